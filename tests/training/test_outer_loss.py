"""An outer loss of some outputs is the sum of Keras's losses of those."""

import keras
import numpy as np
import pytest

import keras_hposgld as hs
from keras_hposgld.training.outer_loss import loss_function

L = keras.layers
NAMES = ["wide", "main"]  # not in the order of the alphabet
MAIN, WIDE = keras.losses.MeanAbsoluteError(), keras.losses.MeanSquaredError()


def make_batch(seed=0, n=10):
    rng = np.random.default_rng(seed)
    shapes = {"wide": (n, 3), "main": (n, 1)}
    y, y_pred = (
        {name: rng.normal(size=shape) for name, shape in shapes.items()}
        for _ in range(2)
    )
    weights = {k: rng.uniform(size=n) for k in NAMES}
    return y, y_pred, weights


def as_list(parts):
    return [parts[name] for name in NAMES]


def as_keras_sorts(parts):
    return [parts[name] for name in sorted(NAMES)]


def test_sum_is_over_the_outputs_that_are_named():
    y, y_pred, weights = make_batch()
    losses = {"wide": "mse", "main": MAIN}
    main = MAIN(y["main"], y_pred["main"], weights["main"])
    wide = WIDE(y["wide"], y_pred["wide"], weights["wide"])
    by_list = as_list(y), as_list(y_pred), as_list(weights)
    for given, expected in ((losses, main + wide), ({"main": MAIN}, main)):
        given = given | {"wide": given.get("wide")}
        for function, batches in (
            (loss_function(given, NAMES), (by_list, (y, *by_list[1:]))),
            # Keras flattens a dictionary by the alphabet, and names none.
            (
                loss_function(given),
                (
                    (y, y_pred, weights),
                    (as_keras_sorts(y), y_pred, as_keras_sorts(weights)),
                ),
            ),
        ):
            for batch in batches:
                np.testing.assert_allclose(
                    function(*batch), expected, rtol=1e-6
                )


def test_sample_weights_may_be_one_for_all():
    y, y_pred, weights = make_batch()
    shared = weights["main"]
    found = loss_function({"wide": "mse", "main": "mae"})(y, y_pred, shared)
    expected = WIDE(y["wide"], y_pred["wide"], shared)
    expected += MAIN(y["main"], y_pred["main"], shared)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = loss_function({"main": "mae"})(y, y_pred)
    np.testing.assert_allclose(found, MAIN(y["main"], y_pred["main"]))


def make_learner(outer_loss, as_dict=True, keys=NAMES):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    hidden = L.Dense(
        5, "tanh", kernel_regularizer=hs.regularizers.LearnableL2(1e-2)
    )(inputs)
    outputs = [
        L.Dense(units, name=name)(hidden)
        for name, units in zip(NAMES, (3, 1), strict=True)
    ]
    if as_dict:
        outputs = dict(zip(keys, outputs, strict=True))
    learner = hs.BilevelModel(keras.Model(inputs, outputs), seed=0)
    learner.compile(
        optimizer=hs.SGLD(0.05, seed=0), loss="mse", outer_loss=outer_loss
    )
    return learner


@pytest.mark.parametrize("as_dict", [True, False])
def test_learner_judges_by_it_and_keeps_it(tmp_path, as_dict):
    # Against a function of all outputs that computes the same.
    def main_alone(y, y_pred):
        y, y_pred = (
            part["main"] if isinstance(part, dict) else part[1]
            for part in (y, y_pred)
        )
        return keras.losses.mean_absolute_error(y, y_pred)

    x = np.random.default_rng(1).normal(size=(10, 4))
    y, *_ = make_batch()
    y = y if as_dict else as_list(y)
    found = []
    for outer_loss in ({"main": "mae"}, main_alone):
        learner = make_learner(outer_loss, as_dict)
        learner.fit(x, y, outer_split=0.4, batch_size=3, epochs=2, verbose=0)
        found.append(
            [
                *learner.hyperparameter_values().values(),
                learner.evaluate(x, y, verbose=0, return_dict=True)[
                    "outer_loss"
                ],
            ]
        )
        if outer_loss is not main_alone:
            learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    logs = loaded.evaluate(x, y, verbose=0, return_dict=True)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    np.testing.assert_allclose(logs["outer_loss"], found[0][-1], rtol=1e-6)


def test_names_are_those_of_the_outputs_and_checked_by_compile():
    # Of a dictionary its keys count, of a list the names of the layers.
    renamed = ("a", "b")
    make_learner({"b": "mse"}, keys=renamed)
    for outer_loss, as_dict, keys in (
        ({"mian": "mse"}, True, NAMES),
        ({"mian": "mse", "main": None}, False, NAMES),
        ({"main": "mse"}, True, renamed),
    ):
        with pytest.raises(
            ValueError, match="`outer_loss` must name outputs.*Correct"
        ):
            make_learner(outer_loss, as_dict, keys)


def test_what_cannot_be_judged_is_refused():
    y, y_pred, _ = make_batch()
    with pytest.raises(ValueError, match="`outer_loss` must hold the loss"):
        make_learner({"main": None})
    with pytest.raises(ValueError, match="`outer_loss` must be one loss, or"):
        make_learner(["mse", "mse"])
    with pytest.raises(ValueError, match="Correct \\['mian'\\]"):
        loss_function({"mian": "mse"})(y, y_pred)
    with pytest.raises(ValueError, match="needs the targets.*\\['main'\\]"):
        loss_function({"main": "mse"})({"wide": y["wide"]}, y_pred)
    # A subclass that returns a list has no names for what is in it.
    with pytest.raises(ValueError, match="outputs without names"):
        loss_function({"main": "mse"})(as_list(y), as_list(y_pred))
