"""A learner shows the model inside of it as Keras shows a model."""

import keras
import numpy as np
import pytest

import keras_hposgld as hs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y, Z = X[:, :1] - 0.5, X[:, 1:3] + 10.0


def make_model(structure):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    learnable = hs.regularizers.LearnableL2(0.1)
    p = keras.layers.Dense(1, name="p", kernel_regularizer=learnable)(inputs)
    q = keras.layers.Dense(2, name="q")(inputs)
    outputs = {"list": [p, q], "tuple": (p, q), "dict": {"p": p, "q": q}}
    model = keras.Model(inputs, outputs.get(structure, p))
    hs.find_hyperparameters(model)
    return model


def targets(structure):
    return {"list": [Y, Z], "tuple": (Y, Z), "dict": {"p": Y, "q": Z}}.get(
        structure, Y
    )


LISTS = dict(loss=["mse", "mse"], metrics=[["mae"], ["mae"]])
DICTS = dict(
    loss={"p": "mse", "q": "mae"},
    metrics={"q": ["mse"], "p": ["mae", "mape"]},
    loss_weights={"p": 0.5, "q": 2.0},
)


@pytest.mark.parametrize(
    ("structure", "settings"),
    [
        ("single", dict(loss="mse", metrics=["mae"])),
        ("single", dict(loss="mse", weighted_metrics=["mae", "mse"])),
        ("list", LISTS),
        ("list", LISTS | dict(loss_weights=[0.5, 2.0])),
        ("list", DICTS),
        ("list", dict(loss="mse", metrics=["mae", None])),
        ("list", dict(loss=["mse", "mae"], weighted_metrics=[None, ["mse"]])),
        ("tuple", dict(loss=("mse", "mse"), metrics=(["mae"], ["mae"]))),
        ("dict", DICTS),
        ("dict", dict(loss={"p": "mse", "q": None})),
    ],
)
def test_names_and_values_of_logs_are_those_of_plain_keras(structure, settings):
    model, y = make_model(structure), targets(structure)
    model.compile("sgd", **settings)
    expected = model.evaluate(X, y, verbose=0, return_dict=True)
    expected_list = model.evaluate(X, y, verbose=0)
    learner = hs.BilevelModel(model)
    learner.compile(
        hs.SGLD(1e-9), hypergradient=hs.estimators.HPOSGLD(0, 1), **settings
    )
    history = learner.fit(
        X, y, outer_data=(X, y), validation_data=(X, y), verbose=0
    ).history
    ours = {"outer_loss", "hypergradient_norm", "skipped_updates"}
    assert set(history) == (
        ours
        | {"val_outer_loss"}
        | set(expected)
        | {f"val_{name}" for name in expected}
    )
    # At this learning rate nothing moves, so that training sees the same.
    for name, value in expected.items():
        np.testing.assert_allclose(history[name], value, rtol=1e-4)
        np.testing.assert_allclose(history[f"val_{name}"], value, rtol=1e-4)
    np.testing.assert_allclose(
        learner.evaluate(X, y, verbose=0), expected_list, rtol=1e-4
    )


def make_learner():
    model = make_model("single")
    learner = hs.BilevelModel(model)
    learner.compile(hs.SGLD(0.05), loss="mse", metrics=["mae"])
    return learner, model


def test_what_the_model_is_shows():
    learner, model = make_learner()
    assert learner.get_layer("p") is model.get_layer("p")
    assert learner.get_layer(index=1) is model.layers[1]
    assert learner.count_params() == model.count_params() == 9
    assert learner.input_shape == (None, 4)
    assert learner.output_shape == (None, 1)
    assert learner.output_names == ["p"]
    assert (learner.inputs, learner.outputs) == (model.inputs, model.outputs)


def test_what_the_model_lacks_the_learner_lacks():
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    learner = hs.MetaModel(Subclassed())
    for name in ("inputs", "outputs", "output_names", "input_shape"):
        assert not hasattr(learner, name)


def test_batches_are_predicted_and_judged_as_by_the_model():
    learner, model = make_learner()
    model.compile("sgd", loss="mse", metrics=["mae"])
    np.testing.assert_array_equal(
        learner.predict_on_batch(X), model.predict_on_batch(X)
    )
    logs = learner.test_on_batch(X, Y, return_dict=True)
    for name, value in model.test_on_batch(X, Y, return_dict=True).items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-5)


def test_own_prediction_of_the_model_is_the_learners():
    class Doubled(keras.Sequential):
        def predict_step(self, data):
            return 2.0 * super().predict_step(data)

    model = Doubled([keras.Input((4,)), keras.layers.Dense(1)])
    np.testing.assert_allclose(
        hs.BilevelModel(model).predict(X, verbose=0), 2.0 * model(X), rtol=1e-6
    )


def test_summary_is_that_of_the_model_for_all_learners():
    lines = []
    hs.MetaModel(make_model("single")).summary(print_fn=lines.append)
    assert "p (Dense)" in "".join(lines)
    assert "Hyperparameters: 9 " in lines[-1]  # 5 initial weights, 4 strengths


@pytest.mark.parametrize("ending", [".h5", ".hdf5"])
def test_legacy_files_are_refused_with_the_way_out(ending, tmp_path):
    learner, _ = make_learner()
    with pytest.raises(ValueError, match=r"filepath.*\.keras.*export"):
        learner.save(tmp_path / f"learner{ending}")
    with pytest.raises(ValueError, match=r"\.weights\.h5"):
        learner.save_weights(tmp_path / f"learner{ending}")  # Keras's own


@pytest.mark.filterwarnings("ignore:Layer InputLayer")
def test_quantization_is_for_the_plain_model():
    learner, model = make_learner()
    with pytest.raises(RuntimeError, match=r"learner\.export\(\)"):
        learner.quantize("int8")
    plain = learner.export()
    plain.quantize("int8")
    np.testing.assert_allclose(plain(X), model(X), atol=0.1)
