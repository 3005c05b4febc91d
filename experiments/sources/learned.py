"""Weights of sources, learned with the logistic regression on their votes."""

import keras
from sources.texts import NUM_SOURCES

import keras_hposgld as hs

# Chosen by `--choose` of the experiment.
EPOCHS = 20
RATE, EPSILON = 0.3, 0.01


def learned_weights(texts, clean, normalize, seed, epochs=EPOCHS):
    """The weights of the sources, `(68,)`.

    Args:
        texts: `Texts`.
        clean: Positions of the clean texts, the outer data.
        normalize: As in `SourceWeights`.
        seed: Integer.
        epochs: Integer.
    """
    keras.utils.set_random_seed(seed)
    num_features = texts.x.shape[1]
    strength = hs.regularizers.LearnableL2(
        1e-3, granularity="tensor", max_value=1.0
    )
    model = keras.Sequential(
        [
            keras.Input((num_features,)),
            keras.layers.Dense(6, kernel_regularizer=strength),
        ]
    )
    weights = hs.SourceWeights(NUM_SOURCES, normalize)
    learner = hs.BilevelModel(model, example_weights=weights, seed=seed)
    learner.compile(
        optimizer=hs.SGLD(0.5, seed=seed),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # What a source can change is in proportion to its votes: an Adam that
        # made all steps alike would move the small ones as fast as the wide.
        hyper_optimizer=keras.optimizers.Adam(RATE, epsilon=EPSILON),
    )
    learner.fit(
        *(texts.x, texts.votes),
        sources="votes",
        outer_data=texts.clean(clean),
        batch_size=512,
        epochs=epochs,
        verbose=0,
    )
    return weights.numpy()
