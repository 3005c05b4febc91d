"""Every kind of hyperparameter is found, learned, saved, shown and exported."""

import keras
import numpy as np
import pytest

import keras_hposgld as hs
from keras_hposgld.hyperparameters.registry import REGISTRY

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.uniform(size=(24, 6, 6, 1)).astype("float32")
Y = np.arange(24) % 3
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

# Where a kind goes, and the arguments of its class.
PLACES = {
    "l1": ("regularizer", {"initial_value": 1e-2}),
    "l2": ("regularizer", {"initial_value": 1e-2}),
    "l1l2": ("regularizer", {"initial_value": 1e-2}),
    "weight_decay": ("regularizer", {"initial_value": 1e-2, "max_value": 9.0}),
    "activity_penalty": ("last layer", {"initial_value": 0.2, "norm": "l1"}),
    "affine": ("layer", {"rotation": 10.0}),
    "dropout": ("layer", {"initial_rate": 0.3, "granularity": "input"}),
    "gaussian_noise": ("layer", {"initial_stddev": 0.3}),
    "taylor_loss": ("loss", {"from_logits": True}),
    "class_weights": ("loss", {"num_classes": 3, "from_logits": True}),
    "label_smoothing": ("loss", {"from_logits": True}),
    "output_weight": ("loss", {"loss": CROSS_ENTROPY, "max_value": 4.0}),
    "noisy_labels": ("loss", {"num_classes": 3, "from_logits": True}),
    "gaussian_loss": ("likelihood", {"initial_value": 0.5}),
    "example_weights": ("example_weights", {"num_examples": 16}),
    "source_weights": ("source_weights", {"num_sources": 4}),
}
WEIGHTS = ("example_weights", "source_weights")
QUICK = ("l2", "label_smoothing", *WEIGHTS)
LOSSES = [alias for alias, (place, _) in PLACES.items() if place == "loss"]


def make_learner(alias):
    """A learner with one hyperparameter object of a kind; and that object."""
    keras.utils.set_random_seed(0)
    place, arguments = PLACES[alias]
    owner = REGISTRY.find(alias)(**arguments)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            *([owner] if place == "layer" else []),
            L.Flatten(),
            L.Dense(
                3, kernel_regularizer=owner if place == "regularizer" else None
            ),
            *([owner] if place == "last layer" else []),
        ]
    )
    learner = hs.BilevelModel(
        model,
        example_weights=owner if place in WEIGHTS else None,
        seed=0,
    )
    learner.compile(
        optimizer=hs.SGLD(0.05, seed=0),
        loss=owner if place in ("loss", "likelihood") else CROSS_ENTROPY,
        outer_loss=None if place == "likelihood" else CROSS_ENTROPY,
        hypergradient=hs.estimators.HPOSGLD(1, 2),
    )
    return learner, owner


def targets(learner):
    """Classes, or as many numbers as the model has outputs."""
    is_likelihood = learner.outer_level.outer_loss is None
    return keras.utils.to_categorical(Y) if is_likelihood else Y


def sources(learner):
    """The arguments of a fit that say where examples come from."""
    has_sources = isinstance(learner.example_weights, hs.SourceWeights)
    return {"sources": np.arange(16) % 4} if has_sources else {}


def fit(learner):
    y = targets(learner)
    return learner.fit(
        *(X[:16], y[:16]),
        outer_data=(X[16:], y[16:]),
        batch_size=4,
        epochs=3,
        verbose=0,
        **sources(learner),
    )


@pytest.mark.parametrize(
    "alias",
    [
        pytest.param(alias, marks=[] if alias in QUICK else pytest.mark.slow)
        for alias in REGISTRY.aliases
    ],
)
@pytest.mark.filterwarnings("ignore:.*exported layer")
@pytest.mark.filterwarnings("ignore:The hyperparameters were updated")
def test_kind_is_a_citizen(alias, tmp_path):
    learner, owner = make_learner(alias)
    assert learner.find_hyperparameters() == [owner]
    before = learner.hyperparameter_values()
    assert before.keys() == owner.hyperparameter_values().keys()
    assert len(before) == len(learner.hyperparameters) > 0
    fit(learner)
    after = learner.hyperparameter_values()
    for path, value in after.items():
        assert np.isfinite(value).all()
        assert np.any(value != before[path]), path
    # Shown.
    lines = []
    learner.hyperparameter_summary(print_fn=lines.append)
    assert sum(owner.granularity in line for line in lines) >= len(after)
    total = sum(np.size(value) for value in after.values())
    assert lines[-1] == f"{total:,} hyperparameters"
    # Saved: what is loaded goes on to the same numbers.
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    for trained in (learner, loaded):
        fit(trained)
    for a, b in zip(learner.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=a.path)
    values = [
        list(m.hyperparameter_values().values()) for m in (learner, loaded)
    ]
    for a, b in zip(*values, strict=True):
        np.testing.assert_array_equal(a, b)
    # Exported, and refit.
    exported = learner.export()
    np.testing.assert_allclose(
        exported.predict(X, verbose=0),
        learner.predict(X, verbose=0),
        rtol=1e-5,
        atol=1e-6,
    )
    kept = list(learner.hyperparameter_values().values())
    learner.refit(
        *(X[:16], targets(learner)[:16]),
        optimizer="sgd",
        verbose=0,
        **sources(learner),
    )
    found = list(learner.hyperparameter_values().values())
    for a, b in zip(kept, found, strict=True):
        np.testing.assert_array_equal(a, b)
    # Made anew from its config.
    copy = type(owner).from_config(owner.get_config())
    assert copy.get_config() == owner.get_config()


@pytest.mark.parametrize("alias", LOSSES)
def test_learned_loss_needs_another_one(alias):
    learner, owner = make_learner(alias)
    assert owner.needs_outer_loss
    with pytest.raises(ValueError, match="`outer_loss` must be given"):
        learner.compile(optimizer=hs.SGLD(0.05), loss=owner)


def test_register_takes_kinds_of_hyperparameters_alone():
    with pytest.raises(TypeError, match="must inherit from"):
        hs.hyperparameters.register("nothing")(L.Dense)
    with pytest.raises(ValueError, match="not in use"):
        hs.hyperparameters.register("l2")(hs.regularizers.LearnableL1)


def test_contract_says_what_is_missing():
    class Half(hs.hyperparameters.Hyperparameter, L.Layer):
        pass

    with pytest.raises(TypeError, match="hyperparameter_values"):
        Half()
