"""The inventory of state: complete, and resumed by every way of saving."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_saving import by_file

import keras_hposgld as hs

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "state.md"
N = 24


def make_learner():
    """A learner that has something in every part of the inventory."""
    keras.utils.set_random_seed(2)
    centered = hs.regularizers.LearnableL2(0.05, max_value=5, center="initial")
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh", kernel_regularizer=centered),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(3),
        ]
    )
    learner = hs.BilevelModel(
        model, example_weights=hs.ExampleWeights(N), seed=1
    )
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-3, seed=3, momentum=0.5),
        loss=hs.losses.LearnableTaylorLoss(from_logits=True),
        outer_loss=keras.losses.SparseCategoricalCrossentropy(True),
        hypergradient=hs.estimators.AdjointSGLD(1, 1),
        start="initial",
    )
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 4)).astype("float32"), np.arange(N) % 3
    learner.fit(x, y, outer_data=(x, y), batch_size=8, verbose=0)
    return learner


def perturb(learner):
    for variables in learner.state().values():
        for number, variable in enumerate(variables):
            old = variable.numpy()
            # Little enough for a learning rate to be no cause of an error.
            change = (number + 1) / 1024 if old.dtype.kind == "f" else 1
            variable.assign((old + change).astype(old.dtype))


def by_weights(learner, folder):
    # The state of an optimizer is not among the weights, as in Keras.
    learner.save_weights(folder / "learner.weights.h5")
    other = make_learner()
    other.load_weights(folder / "learner.weights.h5")
    return other


def by_checkpoint(learner, folder):
    path = tf.train.Checkpoint(learner=learner).save(str(folder / "state"))
    other = make_learner()
    status = tf.train.Checkpoint(learner=other).restore(path)
    status.assert_existing_objects_matched()
    return other


@pytest.mark.parametrize("way", [by_file, by_weights, by_checkpoint])
def test_every_part_comes_back(tmp_path, way):
    learner = make_learner()
    perturb(learner)
    expected, found = learner.state(), way(learner, tmp_path).state()
    assert expected.keys() == found.keys()
    for name, variables in expected.items():
        assert variables, name  # or the test would show nothing of it
        if way is by_weights and name in ("sampler", "hyper_optimizer"):
            continue
        for variable, other in zip(variables, found[name], strict=True):
            np.testing.assert_array_equal(other, variable, err_msg=name)


def test_nothing_is_left_out():
    learner = make_learner()
    known = {id(v) for part in learner.state().values() for v in part}
    metrics = {id(variable) for variable in learner.metrics_variables}
    for variable in (
        *learner.variables,
        *learner.hyperparameters,
        *learner.optimizer.variables,
        *learner.hyper_optimizer.variables,
    ):
        assert id(variable) in known | metrics, variable.path


def test_the_page_lists_every_part():
    page = PAGE.read_text()
    for name in make_learner().state():
        assert f"| `{name}` |" in page, name
