"""Plain models from learned ones."""

import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.training.export import export_model

REGULARIZERS = [
    hs.regularizers.LearnableL1,
    hs.regularizers.LearnableL2,
    hs.regularizers.LearnableL1L2,
]


def make_model(make_regularizer):
    return keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            keras.layers.Conv2D(3, 2, kernel_regularizer=make_regularizer()),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(
                4,
                kernel_regularizer=make_regularizer(),
                bias_regularizer=hs.regularizers.LearnableL2(0.1),
            ),
        ]
    )


def disturb(model, rng):
    """Gives weights and strengths values of their own."""
    hs.find_hyperparameters(model)
    for weight in model.weights:
        shape = weight.shape
        weight.assign(weight + rng.uniform(0.1, 0.5, shape).astype("float32"))


@pytest.mark.parametrize(
    "granularity", ["parameter", "input", "output", "tensor"]
)
@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_export_predicts_and_regularizes_the_same(
    rng, regularizer, granularity
):
    model = make_model(lambda: regularizer(0.1, granularity=granularity))
    disturb(model, rng)
    exported = export_model(model)
    assert not hs.find_hyperparameters(exported)
    assert len(exported.trainable_weights) == len(model.trainable_weights)
    x = rng.normal(size=(5, 6, 6, 2))
    np.testing.assert_allclose(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6
    )
    np.testing.assert_allclose(
        float(sum(exported.losses)), float(sum(model.losses)), rtol=1e-5
    )


def test_strength_per_tensor_is_exported_as_it_is(rng):
    model = make_model(
        lambda: hs.regularizers.LearnableL1L2(0.1, granularity="tensor")
    )
    disturb(model, rng)
    exported = export_model(model)
    owner = hs.find_hyperparameters(model)[0]
    values = owner.hyperparameter_values().values()
    constants = exported.layers[0].kernel_regularizer
    np.testing.assert_allclose(
        [constants.l1, constants.l2], [float(v) for v in values], rtol=1e-5
    )


@pytest.mark.slow
def test_exported_model_loads_without_the_package(tmp_path, rng):
    for name, granularity in (("per_input", "input"), ("scalar", "tensor")):
        model = make_model(
            lambda g=granularity: hs.regularizers.LearnableL2(0.1, g)
        )
        disturb(model, rng)
        export_model(model).save(tmp_path / f"{name}.keras")
        x = rng.normal(size=(4, 6, 6, 2))
        np.savez(
            tmp_path / f"{name}.npz",
            x=x,
            y=model.predict(x, verbose=0),
            losses=float(sum(model.losses)),
        )
    script = textwrap.dedent(
        f"""
        import sys
        sys.modules["keras_hposgld"] = None  # importing it raises
        import keras
        import numpy as np

        for name in ("per_input", "scalar"):
            path = {str(tmp_path)!r} + "/" + name
            expected = np.load(path + ".npz")
            model = keras.models.load_model(path + ".keras")
            np.testing.assert_allclose(
                model.predict(expected["x"], verbose=0),
                expected["y"],
                rtol=1e-5,
            )
            np.testing.assert_allclose(
                float(sum(model.losses)), expected["losses"], rtol=1e-5
            )
            model.compile("sgd", loss="mse")
            model.fit(expected["x"], expected["y"], verbose=0)
        """
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_functional_and_nested_models_are_exported(rng):
    inner = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(
                3, kernel_regularizer=hs.regularizers.LearnableL2(0.1)
            ),
        ]
    )
    first, second = keras.Input((4,)), keras.Input((4,))
    outputs = keras.layers.Dense(
        2, kernel_regularizer=hs.regularizers.LearnableL1(0.1)
    )(inner(first) + inner(second))
    model = keras.Model([first, second], outputs)
    disturb(model, rng)
    exported = export_model(model)
    assert not hs.find_hyperparameters(exported)
    x = [rng.normal(size=(5, 4)) for _ in range(2)]
    np.testing.assert_allclose(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6
    )
    np.testing.assert_allclose(
        float(sum(exported.losses)), float(sum(model.losses)), rtol=1e-5
    )


def test_regularizer_attached_from_outside_is_exported(rng):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    learner = hs.BilevelModel(
        model, regularizer=hs.regularizers.LearnableL2(0.1)
    )
    for variable in learner.hyperparameters:
        variable.assign(rng.normal(-2, 1, variable.shape))
    exported = learner.export()
    np.testing.assert_allclose(
        float(sum(exported.losses)), float(sum(model.losses)), rtol=1e-5
    )


def test_what_keras_cannot_express_is_left_out_with_a_warning(rng):
    inputs = keras.Input((5, 6))
    attention = keras.layers.MultiHeadAttention(
        2, 3, kernel_regularizer=hs.regularizers.LearnableL2(0.1)
    )
    several = keras.Model(inputs, attention(inputs, inputs))
    centered = make_model(
        lambda: hs.regularizers.LearnableL2(0.1, center="initial")
    )
    for model, shape, reason in (
        (several, (2, 5, 6), "one object to several weights"),
        (centered, (2, 6, 6, 2), "pulls to the initial weights"),
    ):
        disturb(model, rng)
        with pytest.warns(UserWarning, match=reason):
            exported = export_model(model)
        assert not hs.find_hyperparameters(exported)
        x = rng.normal(size=shape)
        np.testing.assert_allclose(
            exported.predict(x, verbose=0),
            model.predict(x, verbose=0),
            rtol=1e-5,
        )


class Subclassed(keras.Model):
    """A model of the user's own, with the config that Keras asks for."""

    def __init__(self, kernel_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.dense = keras.layers.Dense(
            3, kernel_regularizer=self.kernel_regularizer
        )

    def call(self, inputs):
        return self.dense(inputs)

    def get_config(self):
        return {
            "kernel_regularizer": keras.regularizers.serialize(
                self.kernel_regularizer
            )
        }

    def build(self, input_shape):
        self.dense.build(input_shape)


def test_subclassed_model_is_exported(rng):
    model = Subclassed(hs.regularizers.LearnableL2(0.1))
    x = rng.normal(size=(5, 4))
    model(x)
    disturb(model, rng)
    exported = export_model(model)
    assert not hs.find_hyperparameters(exported)
    np.testing.assert_allclose(
        exported.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-6
    )
    np.testing.assert_allclose(
        float(sum(exported.losses)), float(sum(model.losses)), rtol=1e-5
    )


@keras.saving.register_keras_serializable("tests")
class Scaling(keras.layers.Layer):
    """Its config shows more than its constructor takes."""

    def __init__(self, scale, **arguments):
        super().__init__(**arguments)
        self.scale = scale

    def call(self, inputs):
        return self.scale * inputs

    def get_config(self):
        return super().get_config() | {"scale": self.scale, "derived": 1}


@keras.saving.register_keras_serializable("tests")
class Backbone(keras.Model):
    """A graph with a config of its own, in the manner of KerasHub."""

    def __init__(self, units, **arguments):
        inputs = keras.Input((4,))
        outputs = keras.layers.Dense(units, name="dense")(Scaling(2.0)(inputs))
        super().__init__(inputs, outputs, **arguments)
        self.units = units

    def get_config(self):
        return {"units": self.units, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_graph_with_a_config_of_its_own_is_made_from_that(rng):
    learner = hs.BilevelModel(
        Backbone(3), regularizer=hs.regularizers.LearnableL2(0.01)
    )
    with pytest.warns(UserWarning, match="no place for one"):
        exported = learner.export()
    assert type(exported) is Backbone and exported.units == 3
    x = rng.normal(size=(5, 4))
    np.testing.assert_array_equal(exported(x), learner.model(x))
    assert exported.layers[-1].kernel.regularizer is None


@pytest.mark.parametrize("wrap", [hs.BilevelModel, hs.MetaModel])
def test_export_to_a_path_is_that_of_keras(rng, tmp_path, wrap):
    model = make_model(lambda: hs.regularizers.LearnableL2(0.1))
    disturb(model, rng)
    x = rng.normal(size=(5, 6, 6, 2)).astype("float32")
    exported = wrap(model).export(tmp_path / "served", verbose=False)
    assert isinstance(exported, keras.Sequential)
    loaded = tf.saved_model.load(tmp_path / "served")
    np.testing.assert_allclose(
        loaded.serve(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match="format"):
        wrap(model).export(tmp_path / "other", format="punched_cards")


def test_frozen_layers_are_exported_and_refit(rng):
    x, y = rng.normal(size=(24, 4)), rng.normal(size=(24, 1))
    first, last = (
        keras.layers.Dense(
            n, kernel_regularizer=hs.regularizers.LearnableL2(0.1)
        )
        for n in (3, 1)
    )
    model = keras.Sequential([keras.Input((4,)), first, last])
    first.trainable = False  # from the start
    learner = hs.BilevelModel(model)
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    fit = dict(outer_data=(x[16:], y[16:]), batch_size=4, verbose=0)
    learner.fit(x[:16], y[:16], **fit)
    exported = learner.export()
    assert exported.layers[0].kernel_regularizer is None
    np.testing.assert_allclose(exported(x), model(x), rtol=1e-6)
    first.trainable = True
    learner.compile(optimizer=hs.SGLD(0.05), loss="mse")
    learner.fit(x[:16], y[:16], **fit)
    last.trainable = False  # after learning
    (value,) = last.kernel.regularizer.strength_values().values()
    kept = last.kernel.numpy()
    learner.refit(x, y, optimizer="sgd", verbose=0)
    np.testing.assert_array_equal(last.kernel, kept)
    np.testing.assert_array_equal(
        *last.kernel.regularizer.strength_values().values(), value
    )
    assert learner.export().layers[1].kernel_regularizer is not None
