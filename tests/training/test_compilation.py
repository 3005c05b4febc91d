"""One outer iteration under XLA, and lowered for a GPU that is not there."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from builders import has_version

import keras_hposgld as hs
from keras_hposgld import estimators
from keras_hposgld.training import keras_problem


def strength():
    return hs.regularizers.LearnableL2(1e-2, max_value=5.0)


def mlp():
    return [
        keras.Input((12,)),
        keras.layers.Dense(8, "relu", kernel_regularizer=strength()),
        keras.layers.Dense(3, kernel_regularizer=strength()),
    ]


def cnn():
    return [
        keras.Input((12,)),
        keras.layers.Reshape((3, 4, 1)),
        keras.layers.Conv2D(
            4, 2, padding="same", kernel_regularizer=strength()
        ),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("relu"),
        keras.layers.MaxPooling2D((1, 2)),
        keras.layers.Flatten(),
        keras.layers.Dense(3, kernel_regularizer=strength()),
    ]


def transformer():
    tokens = keras.Input((12,))
    x = keras.layers.Dense(6)(keras.layers.Reshape((4, 3))(tokens))
    attended = keras.layers.MultiHeadAttention(
        2, 3, kernel_regularizer=strength()
    )(x, x)
    x = keras.layers.LayerNormalization()(x + attended)
    hidden = keras.layers.Dense(8, "gelu", kernel_regularizer=strength())(x)
    x = keras.layers.LayerNormalization()(x + keras.layers.Dense(6)(hidden))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(3)(x))


NETWORKS = {"mlp": mlp, "cnn": cnn, "transformer": transformer}


def make_learner(network, estimator, **arguments):
    keras.utils.set_random_seed(0)
    model = NETWORKS[network]()
    if not isinstance(model, keras.Model):
        model = keras.Sequential(model)
    learner = hs.BilevelModel(model, seed=1)
    learner.compile(
        optimizer=hs.SGLD(0.05, temperature=1e-4, seed=2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        hypergradient=estimator,
        hyper_optimizer=keras.optimizers.SGD(1.0),
        **arguments,
    )
    return learner


def make_data(n=24, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    x = rng.normal(size=(n, 12)) + 0.3 * y[:, None]
    return x.astype("float32"), y.astype("int32")


def fit(learner):
    history = learner.fit(
        *make_data(),
        outer_data=make_data(seed=1),
        batch_size=8,
        steps_per_epoch=3 * learner.hypergradient.num_steps,
        verbose=0,
    )
    return history.history


@pytest.mark.parametrize(
    "network",
    [
        "mlp",
        pytest.param("cnn", marks=pytest.mark.slow),
        pytest.param("transformer", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "estimator",
    [hs.estimators.HPOSGLD(1, 2), hs.estimators.AdjointSGLD(1, 2)],
    ids=["hpo_sgld", "adjoint_sgld"],
)
def test_compiled_iteration_gives_the_eager_result(network, estimator):
    eager = make_learner(network, estimator, run_eagerly=True)
    compiled = make_learner(network, estimator, jit_compile=True)
    assert compiled.jit_compile is True
    expected, history = fit(eager), fit(compiled)
    variables = [
        (*learner.weights, *learner.hyperparameters)
        for learner in (compiled, eager)
    ]
    for a, b in zip(*variables, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=a.path)
    for key, values in expected.items():
        np.testing.assert_allclose(history[key], values, rtol=1e-4, atol=1e-6)


def test_automatic_compilation_is_off_on_cpu():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    assert make_learner("mlp", "hpo_sgld").jit_compile is False


def pure_outer_iteration(learner):
    """From all state and the batches to the next state, all tensors."""
    sampler = learner.optimizer
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        keras_problem.layer_variables(learner.model),
        learner.outer_level.loss(learner),
    )
    variables = [
        *problem.weights,
        *problem.hyperparameters,
        *problem.layer_variables,
        *problem.metrics_variables,
        *sampler.variables,
    ]

    def iterate(values, inner, outer):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            chain = estimators.Chain(
                problem,
                keras_problem.tensors(problem.hyperparameters),
                sampler,
                first_step=tf.cast(
                    tf.convert_to_tensor(sampler.iterations), tf.int32
                ),
                seed=sampler.chain_seed,
            )
            estimate = estimators.run_chain(
                learner.hypergradient,
                chain,
                keras_problem.tensors(problem.weights),
                inner,
                outer,
            )
            hyperparameters = chain.hyperparameters
        # Keras's optimizers have no pure step under TensorFlow. This is the
        # one of `SGD(1.0)`, which the learner has.
        moved = [
            value - slope
            for value, slope in zip(
                hyperparameters, estimate.hypergradient, strict=True
            )
        ]
        return estimate.params, moved, estimate.carry

    return iterate, keras_problem.tensors(variables)


@pytest.mark.skipif(
    not has_version(tf, 2, 19), reason="TensorFlow 2.18 has no such stage"
)
@pytest.mark.parametrize(
    "network, estimator",
    [
        ("cnn", hs.estimators.HPOSGLD(2, 2)),
        ("cnn", hs.estimators.AdjointSGLD(2, 2)),
        *(
            pytest.param(network, estimator, marks=pytest.mark.slow)
            for network, estimator in (
                ("cnn", hs.estimators.IFTCG(num_steps=4)),
                ("cnn", hs.estimators.IFTNeumann(num_steps=4)),
                ("transformer", hs.estimators.HPOSGLD(2, 2)),
                ("transformer", hs.estimators.IFTCG(num_steps=4)),
            )
        ),
    ],
    ids=repr,
)
def test_outer_iteration_lowers_for_a_gpu(network, estimator):
    learner = make_learner(network, estimator)
    fit(learner)
    iterate, values = pure_outer_iteration(learner)
    x, y = make_data(8)
    num_steps = estimator.num_steps
    batches = (tf.stack([x] * num_steps), tf.stack([y] * num_steps))
    arguments = (values, batches, batches)
    function = tf.function(iterate, jit_compile=True, autograph=False)
    lowered = function.experimental_get_compiler_ir(*arguments)(
        stage="stablehlo", platform_name="GPU"
    )
    assert "stablehlo.while" in lowered
    # Nothing that runs on the host, and no dimension that is not known.
    for forbidden in ("custom_call", "outfeed", "infeed", "send", "tensor<?"):
        assert f"stablehlo.{forbidden}" not in lowered
    assert "?x" not in lowered and "<?" not in lowered


def test_pure_outer_iteration_is_what_fit_does():
    # What is lowered above is the computation that `fit` runs.
    estimator = hs.estimators.HPOSGLD(1, 1)
    learner = make_learner("mlp", estimator)
    learner.fit(*make_data(8), outer_data=make_data(8), batch_size=8, verbose=0)
    iterate, values = pure_outer_iteration(learner)
    inner, outer = make_data(8, seed=3), make_data(8, seed=4)
    stacked = [
        tuple(tf.stack([part] * 2) for part in level)
        for level in (inner, outer)
    ]
    params, moved, _ = iterate(values, *stacked)
    learner.train_step(tuple(stacked))
    for variable, value in zip(
        [*learner.trainable_variables, *learner.hyperparameters],
        [*params, *moved],
        strict=True,
    ):
        np.testing.assert_allclose(variable, value, rtol=1e-5, atol=1e-6)
