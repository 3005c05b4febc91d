"""Ways to find wrong labels and to do without them, on one part and seed.

Each method is a function of a `Run` that returns the AUC of its scores, the
test accuracy after its refit, and the share of the given labels that it keeps.
`nan` stands for what a method has not.
"""

import functools
import importlib.util
import math
import warnings

import keras
import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

import keras_hposgld as hs

STEPS, BATCH, RATE, L2 = 600, 256, 1e-3, 0.01
OUTER_WEIGHT = 2.0
EPOCHS, LEARNING_BATCH, LEARNING_RATE, TABLE_RATE = 60, 1000, 4.0, 0.1
FOLDS = 5
NONE = math.nan


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


def at_random(run):
    """random scores, half dropped."""
    scores = np.random.default_rng(run.seed).random(len(run.rows))
    return run.auc(scores), *run.filtered(scores < 0.5)


def no_cleaning(run):
    """given labels alone, loss."""
    model = run.trained(run.part.x, run.given)
    loss = run.loss(run.probabilities(model))
    return run.auc(loss), run.accuracy(model), 1.0


def both(run):
    """given labels and outer data, loss."""
    model = run.refit(run.given, np.ones(len(run.rows)))
    loss = run.loss(run.probabilities(model))
    return run.auc(loss), run.accuracy(model), 1.0


def cross_validated(run):
    """cross-validated self-confidence, filter."""
    keeps = run.left_out.argmax(1) == run.part.given
    return run.auc(run.loss(run.left_out)), *run.filtered(keeps)


def cleanlab_cross_validated(run):
    """cleanlab, cross-validated."""
    return _cleanlab(run, run.left_out)


def cleanlab_outer(run):
    """cleanlab, outer model."""
    return _cleanlab(run, run.probabilities(run.outer_model))


def _cleanlab(run, probabilities):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that no label names
        issues = find_label_issues(run.part.given, probabilities)
        quality = get_label_quality_scores(run.part.given, probabilities)
    return run.auc(-quality), *run.filtered(~issues)


def outer_alone(run):
    """outer data alone, loss."""
    loss = run.loss(run.probabilities(run.outer_model))
    return run.auc(loss), run.accuracy(run.outer_model), 0.0


def outer_filter(run):
    """outer data alone, filter."""
    probabilities = run.probabilities(run.outer_model)
    keeps = probabilities.argmax(1) == run.part.given
    return run.auc(run.loss(probabilities)), *run.filtered(keeps)


def weights_alone(run):
    """learned weights."""
    weights = run.learner.example_weights.numpy()
    model = run.refit(run.given, weights)
    return run.auc(-weights), run.accuracy(model), float(weights.mean())


def margins_alone(run):
    """learned: loss of the model."""
    loss = run.loss(run.probabilities(run.learner))
    return run.auc(loss), run.accuracy(run.learner), NONE


def weights_and_margins(run):
    """learned: ranks of weights and losses."""
    loss = run.loss(run.probabilities(run.learner))
    ranks = rankdata(loss) + rankdata(-run.learner.example_weights.numpy())
    return run.auc(ranks), NONE, NONE


def ours(run):
    """ours."""
    return _ours(run, *run.ours())


def ours_and_outer(run):
    """ours, outer."""
    return _ours(run, *run.ours([run.outer_model]))


def ours_twice(run):
    """ours, twice."""
    refit = run.corrected(run.ours()[1])
    return _ours(run, *run.ours([refit]))


def ours_outer_twice(run):
    """ours, outer, twice."""
    _, probabilities = run.ours([run.outer_model])
    refit = run.corrected(probabilities)
    return _ours(run, *run.ours([run.outer_model, refit]))


def ours_filter(run):
    """ours, filter in place of correction."""
    scores, _ = run.ours()
    return run.auc(scores), *run.filtered(scores < 0.5)


def _ours(run, scores, probabilities):
    model = run.corrected(probabilities)
    return run.auc(scores), run.accuracy(model), float(np.mean(scores < 0.5))


def perfect_filter(run):
    """oracle: right labels and outer data."""
    return 1.0, *run.filtered(~run.is_wrong)


def true_labels(run):
    """oracle: true labels and outer data."""
    model = run.refit(
        np.eye(run.part.num_classes)[run.part.true], np.ones(len(run.rows))
    )
    return NONE, run.accuracy(model), 1.0


CLEANLAB = (cleanlab_cross_validated, cleanlab_outer)
METHODS = (
    *(at_random, no_cleaning, both, cross_validated),
    *(*CLEANLAB, outer_alone, outer_filter),
    *(weights_alone, margins_alone, weights_and_margins),
    *(ours, ours_filter, ours_and_outer, ours_twice, ours_outer_twice),
    *(perfect_filter, true_labels),
)


def methods(names=()):
    """Name and function of those of these names, or of all.

    Those of cleanlab are left out where it is not installed.
    """
    has_cleanlab = importlib.util.find_spec("cleanlab") is not None
    named = {one.__doc__.splitlines()[0].rstrip("."): one for one in METHODS}
    return {
        name: method
        for name, method in named.items()
        if (not names or name in names)
        and (has_cleanlab or method not in CLEANLAB)
    }
