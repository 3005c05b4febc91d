"""What the methods of `label_methods.py` use of one part and seed.

All of them train the same linear layer. The settings are here.
"""

import functools
import math

import keras
import numpy as np
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

import keras_hposgld as hs

STEPS, BATCH, RATE, L2 = 600, 256, 1e-3, 0.01
OUTER_WEIGHT = 2.0
EPOCHS, LEARNING_BATCH, LEARNING_RATE, TABLE_RATE = 60, 1000, 4.0, 0.1
FOLDS = 5


class Run:
    """A part, and what several methods use of it, made once.

    Its properties cost time where they are read first.
    """

    def __init__(self, part, seed, quick=False):
        self.part, self.seed = part, seed
        self.steps, self.epochs = (20, 4) if quick else (STEPS, EPOCHS)
        self.is_wrong = part.given != part.true
        self.given = np.eye(part.num_classes)[part.given]
        self.outer = np.eye(part.num_classes)[part.outer_y]
        self.rows = np.arange(len(part.given))

    def trained(self, x, targets, weights=None):
        """A linear layer, the same for all methods."""
        keras.utils.set_random_seed(self.seed)
        model = self.network()
        model.compile(
            keras.optimizers.Adam(
                keras.optimizers.schedules.CosineDecay(RATE, self.steps)
            ),
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        )
        batches = math.ceil(len(x) / BATCH)
        model.fit(
            *(x, targets, BATCH),
            epochs=math.ceil(self.steps / batches),
            sample_weight=weights,
            verbose=0,
        )
        return model

    def network(self):
        dense = keras.layers.Dense(
            self.part.num_classes,
            kernel_initializer="zeros",
            kernel_regularizer=keras.regularizers.L2(L2),
        )
        return keras.Sequential([keras.Input(self.part.x.shape[1:]), dense])

    def refit(self, targets, weights):
        """The model of weighted training examples and outer ones."""
        part = self.part
        return self.trained(
            np.concatenate([part.x, part.outer_x]),
            np.concatenate([targets, self.outer]),
            np.r_[weights, np.full(len(part.outer_x), OUTER_WEIGHT)],
        )

    def filtered(self, keeps):
        """Test accuracy of a refit on some labels, and their share."""
        model = self.refit(self.given, np.asarray(keeps, "float32"))
        return self.accuracy(model), float(np.mean(keeps))

    def accuracy(self, model):
        predicted = model.predict(self.part.test_x, verbose=0).argmax(1)
        return float(np.mean(predicted == self.part.test_y))

    def auc(self, scores):
        return float(roc_auc_score(self.is_wrong, scores))

    def loss(self, probabilities):
        """Of the given labels."""
        given = probabilities[self.rows, self.part.given]
        return -np.log(np.maximum(given, 1e-30))

    def probabilities(self, model, x=None):
        x = self.part.x if x is None else x
        logits = model.predict(x, verbose=0).astype("float64")
        logits -= logits.max(1, keepdims=True)
        return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    @functools.cached_property
    def outer_model(self):
        return self.trained(self.part.outer_x, self.outer)

    @functools.cached_property
    def left_out(self):
        """Class probabilities by models that have not seen an example."""
        found = np.zeros(self.given.shape)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=self.seed)
        for kept, left in folds.split(self.part.x, self.part.given):
            model = self.trained(self.part.x[kept], self.given[kept])
            found[left] = self.probabilities(model, self.part.x[left])
        return found

    @functools.cached_property
    def learner(self):
        part = self.part
        keras.utils.set_random_seed(self.seed)
        dense = keras.layers.Dense(part.num_classes, kernel_initializer="zeros")
        learner = hs.BilevelModel(
            keras.Sequential([keras.Input(part.x.shape[1:]), dense]),
            example_weights=hs.ExampleWeights(len(part.x)),
            seed=self.seed,
        )
        learner.compile(
            hs.SGLD(
                LEARNING_RATE / part.x.shape[1], temperature=0.0, seed=self.seed
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            hypergradient="adjoint_sgld",
            hyper_optimizer=keras.optimizers.Adam(TABLE_RATE),
        )
        learner.fit(
            *(part.x, part.given, LEARNING_BATCH),
            outer_data=(part.outer_x, part.outer_y),
            outer_batch_size=len(part.outer_x),
            epochs=self.epochs,
            verbose=0,
        )
        return learner

    def ours(self, models=()):
        """Scores and probabilities by the library."""
        arguments = (self.learner, self.part.x, self.part.given)
        probabilities = hs.diagnostics.label_probabilities(
            *arguments, models=models
        )
        scores = hs.diagnostics.label_error_scores(*arguments, models=models)
        return scores, probabilities

    def corrected(self, probabilities):
        """The model of soft targets."""
        return self.refit(probabilities, np.ones(len(self.rows)))
