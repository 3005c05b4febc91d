"""What Keras users do, beyond the plain case: each once broke something."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.data.fit_data import FitData


def learnable():
    return hs.regularizers.LearnableL2(1e-2, max_value=5.0)


def make_data(n=60):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4)).astype("float32")
    return x, 2 * x[:, :1] + 0.1


X, Y = make_data()
DATA = dict(outer_data=(X[40:], Y[40:]), batch_size=8, verbose=0)


def make_learner(*layers, compiled=True, **arguments):
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input((4,)),
            *layers,
            keras.layers.Dense(5, "relu", kernel_regularizer=learnable()),
            keras.layers.Dense(1, kernel_regularizer=learnable()),
        ]
    )
    learner = hs.BilevelModel(network)
    return compile_learner(learner, **arguments) if compiled else learner


def compile_learner(learner, **arguments):
    defaults = dict(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(2, 2),
    )
    learner.compile(**(defaults | arguments))
    return learner


def fit(learner, **arguments):
    return learner.fit(X[:40], Y[:40], **(DATA | arguments)).history


def two_outputs():
    first, second = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = keras.layers.Concatenate()([first, second])
    p = keras.layers.Dense(1, kernel_regularizer=learnable(), name="p")(joined)
    q = keras.layers.Dense(2, name="q")(joined)
    return first, second, p, q


def test_lists_of_inputs_and_outputs():
    first, second, p, q = two_outputs()
    learner = compile_learner(
        hs.BilevelModel(keras.Model([first, second], [p, q])),
        loss=["mse", "mse"],
    )
    inputs, targets = [X, X[:, :3]], [Y, X[:, :2]]
    history = learner.fit(
        inputs, targets, outer_data=(inputs, targets), verbose=0
    ).history
    assert np.isfinite(history["outer_loss"][0])
    same = keras.Input((4,)), keras.Input((4,))
    output = keras.layers.Dense(1, kernel_regularizer=learnable())(
        keras.layers.Concatenate()(list(same))
    )
    learner = compile_learner(hs.BilevelModel(keras.Model(list(same), output)))
    learner.fit([X, X], Y, outer_data=([X, X], Y), verbose=0)


def test_evaluate_lists_losses_and_metrics_in_the_order_of_keras():
    first, second, p, q = two_outputs()
    model = keras.Model({"a": first, "b": second}, {"p": p, "q": q})
    settings = dict(
        loss={"p": "mse", "q": "mae"},
        metrics={"q": ["mse"], "p": ["mae"]},
        loss_weights={"p": 0.5, "q": 2.0},
    )
    learner = compile_learner(hs.BilevelModel(model), **settings)
    inputs, targets = {"a": X, "b": X[:, :3]}, {"p": Y, "q": X[:, :2]}
    learner.fit(inputs, targets, outer_data=(inputs, targets), verbose=0)
    model.compile(**settings)
    np.testing.assert_allclose(
        learner.evaluate(inputs, targets, verbose=0),
        model.evaluate(inputs, targets, verbose=0),
        rtol=1e-5,
    )


def test_backup_and_restore_goes_on_as_without_a_break(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(str(tmp_path / "backup"))

    whole = make_learner()
    expected = fit(whole, epochs=4)["loss"]
    with pytest.raises(KeyboardInterrupt):
        fit(make_learner(), epochs=4, callbacks=[backup(), Stop()])
    resumed = make_learner()
    losses = fit(resumed, epochs=4, callbacks=[backup()])["loss"]
    assert losses == expected[2:]
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_callback_list_is_taken():
    learner = make_learner()
    callbacks = keras.callbacks.CallbackList(
        [], add_history=True, model=learner, epochs=1, steps=2
    )
    fit(learner, callbacks=callbacks)
    assert int(learner.outer_iterations) == 2


def test_start_initial_may_come_after_other_training():
    learner = make_learner()
    fit(learner)
    before = [w.numpy() for w in learner.trainable_variables]
    compile_learner(learner, start="initial")
    assert fit(learner)["hypergradient_norm"][0] > 0
    for value, weight in zip(
        learner.starting_weights.values, before, strict=True
    ):
        np.testing.assert_array_equal(value, weight)


def test_class_weight_stays_with_the_training_data():
    y = np.repeat([0, 1], 30)
    data = FitData.from_fit(
        (X, y, None),
        class_weight={0: 1.0, 1: 5.0},
        outer_split=0.2,
        validation_split=0.2,
    )
    (inner, outer), validation = data.levels, data.validation_data
    assert len(inner.examples[1]) == 38
    np.testing.assert_array_equal(
        inner.examples[2], np.where(inner.examples[1] == 1, 5.0, 1.0)
    )
    assert len(outer.examples) == 2
    assert validation[2] is None
    with pytest.raises(ValueError, match="`class_weight` needs one array"):
        FitData.from_fit(
            (X, {"p": y}, None), class_weight={0: 2.0}, outer_data=(X, y)
        )


def test_refit_keeps_frozen_layers_and_adapted_statistics():
    normalization = keras.layers.Normalization()
    normalization.adapt(X * 10 + 3)
    frozen = keras.layers.Dense(4, trainable=False)
    learner = make_learner(normalization, frozen)
    fit(learner)
    kept = [
        w.numpy() for layer in (normalization, frozen) for w in layer.weights
    ]
    learner.refit(X, Y, verbose=0)
    now = [
        w.numpy() for layer in (normalization, frozen) for w in layer.weights
    ]
    for a, b in zip(now, kept, strict=True):
        np.testing.assert_array_equal(a, b)


class ScaledError(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return 2.0 * keras.ops.mean((y_true - y_pred) ** 2, axis=-1)


def test_refit_takes_losses_and_metrics_of_the_users_own():
    def distance(y_true, y_pred):
        return keras.ops.mean(keras.ops.abs(y_true - y_pred), axis=-1)

    for loss in (distance, ScaledError()):
        learner = make_learner(loss=loss, metrics=[distance])
        fit(learner)
        history = learner.refit(X, Y, epochs=2, verbose=0).history
        assert set(history) == {"loss", "distance"}
        fit(learner)


def test_export_keeps_what_was_adapted():
    normalization = keras.layers.Normalization()
    normalization.adapt(X * 10 + 3)
    learner = make_learner(normalization)
    fit(learner)
    np.testing.assert_allclose(
        learner.export().predict(X, verbose=0),
        learner.predict(X, verbose=0),
        rtol=1e-6,
    )
    words = tf.constant(["a b", "b c", "c d", "a"] * 5)
    vectorize = keras.layers.TextVectorization(
        max_tokens=8, output_sequence_length=3
    )
    vectorize.adapt(words)
    learner = hs.BilevelModel(
        keras.Sequential(
            [
                keras.Input((), dtype="string"),
                vectorize,
                keras.layers.Embedding(8, 4),
                keras.layers.Flatten(),
                keras.layers.Dense(1, kernel_regularizer=learnable()),
            ]
        )
    )
    np.testing.assert_allclose(
        learner.export().predict(words, verbose=0),
        learner.predict(words, verbose=0),
        rtol=1e-6,
    )


def penalty(model):
    return float(sum(model.losses))


@pytest.mark.parametrize("attached", [True, False])
def test_export_finds_the_places_of_regularizers(attached):
    def tensor_wise():
        return hs.regularizers.LearnableL2(1e-2, granularity="tensor")

    def place(name):
        return {} if attached else {name: tensor_wise()}

    layers = [
        keras.layers.DepthwiseConv2D(2, **place("depthwise_regularizer")),
        keras.layers.SeparableConv2D(
            3,
            2,
            **place("depthwise_regularizer"),
            **place("pointwise_regularizer"),
        ),
        keras.layers.Reshape((16, 3)),
        keras.layers.LSTM(
            2,
            return_sequences=True,
            **place("kernel_regularizer"),
            **place("recurrent_regularizer"),
        ),
        keras.layers.Flatten(),
        keras.layers.Dense(1, **place("kernel_regularizer")),
    ]
    network = keras.Sequential([keras.Input((6, 6, 2)), *layers])
    learner = hs.BilevelModel(
        network, regularizer=tensor_wise() if attached else None
    )
    assert len(learner.hyperparameters) == 6
    np.testing.assert_allclose(
        penalty(learner.export()), penalty(network), rtol=1e-5
    )


def test_export_reaches_into_wrappers():
    network = keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.TimeDistributed(
                keras.layers.Dense(3, kernel_regularizer=learnable())
            ),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    exported = hs.BilevelModel(network).export()
    assert not hs.find_hyperparameters(exported)
    np.testing.assert_allclose(penalty(exported), penalty(network), rtol=1e-5)


class Hidden(keras.layers.Layer):
    """Makes a learned regularizer that its config does not show."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(3, kernel_regularizer=learnable())

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        return self.dense(inputs)


@pytest.mark.filterwarnings("ignore:The exported layer 'hidden'")
def test_export_says_what_it_cannot_do():
    hidden = keras.Sequential([keras.Input((4,)), Hidden()])
    with pytest.raises(ValueError, match="its `get_config` does not show"):
        hs.BilevelModel(hidden).export()
    wrapped = keras.Sequential(
        [
            keras.Input((6, 4)),
            keras.layers.TimeDistributed(keras.layers.Dense(3)),
        ]
    )
    learner = hs.BilevelModel(wrapped, regularizer=learnable())
    with pytest.warns(UserWarning, match="its config has no place for one"):
        learner.export()


def test_biases_and_embeddings_are_no_kernels():
    inputs = keras.Input((5,), dtype="int32")
    x = keras.layers.Embedding(8, 6)(inputs)
    x = keras.layers.MultiHeadAttention(2, 3)(x, x)
    learner = hs.BilevelModel(keras.Model(inputs, x), regularizer=learnable())
    paths = list(learner.hyperparameter_values())
    assert len(paths) == 4
    assert all("kernel" in path for path in paths)


def test_learner_is_saved_before_it_is_compiled(tmp_path):
    learner = make_learner(compiled=False)
    learner.save(tmp_path / "learner.keras")
    loaded = keras.models.load_model(tmp_path / "learner.keras")
    np.testing.assert_allclose(
        loaded.predict(X, verbose=0), learner.predict(X, verbose=0)
    )
    fit(compile_learner(loaded))


def test_weights_load_into_a_learner_compiled_otherwise(tmp_path):
    learner = make_learner()
    fit(learner)
    learner.save_weights(tmp_path / "learner.weights.h5")
    other = make_learner(hypergradient="adjoint_sgld", start="initial")
    other.load_weights(tmp_path / "learner.weights.h5")
    np.testing.assert_allclose(
        other.predict(X, verbose=0), learner.predict(X, verbose=0)
    )
    assert fit(other)["hypergradient_norm"][0] > 0


def test_refusals_name_the_way_out():
    learner = make_learner()
    with pytest.raises(RuntimeError, match="`train_on_batch` cannot be"):
        learner.train_on_batch(X, Y)
    used = learner.hyper_optimizer
    with pytest.raises(ValueError, match="`hyper_optimizer` must be one"):
        make_learner(hyper_optimizer=used)
    compile_learner(learner, hyper_optimizer=used)  # the same learner may
    with pytest.raises(ValueError, match="`outer_loss` must be one loss"):
        make_learner(outer_loss=["mse"])
    inputs_only = tf.data.Dataset.from_tensor_slices(X).batch(4)
    with pytest.raises(ValueError, match="must be \\(x, y\\) or"):
        learner.fit(inputs_only, outer_data=inputs_only, verbose=0)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        fit(learner, outer_batch_size=0)


def test_dataset_of_unknown_rank_is_taken():
    def batches():
        for start in range(0, 40, 8):
            yield X[start : start + 8], Y[start : start + 8]

    dataset = tf.data.Dataset.from_generator(
        batches, output_types=(tf.float32, tf.float32)
    )
    learner = make_learner()
    history = learner.fit(
        dataset,
        outer_data=dataset,
        steps_per_epoch=2 * learner.hypergradient.num_steps,
        verbose=0,
    )
    assert np.isfinite(history.history["outer_loss"][0])


def test_noise_for_shapes_that_are_known_when_the_chain_runs():
    sampler = hs.SGLD(np.float32(0.1), temperature=0.5)
    problem = hs.BilevelProblem(
        lambda h, w, batch: tf.reduce_sum(h * w**2),
        lambda h, w, batch: tf.reduce_sum(w),
    )

    @tf.function(
        autograph=False, input_signature=[tf.TensorSpec([None], tf.float32)]
    )
    def end(start):
        return hs.hypergradient(
            problem, 1.0, start, estimator="hpo_sgld", sampler=sampler
        ).params

    for size in (3, 4):
        known = hs.hypergradient(
            problem,
            1.0,
            tf.ones([size]),
            estimator="hpo_sgld",
            sampler=sampler,
        ).params
        np.testing.assert_allclose(end(tf.ones([size])), known, rtol=1e-5)
