"""The loop over the steps of a chain, and what it does with max pooling."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core.loop import batch_at

ESTIMATORS = {
    "hpo_sgld": hs.estimators.HPOSGLD(1, 2),
    "outer_every": hs.estimators.HPOSGLD(1, 2, outer_every=2),
    "adjoint_sgld": hs.estimators.AdjointSGLD(1, 2),
    "rmd": hs.estimators.RMD(num_steps=3),
    "ift_neumann": hs.estimators.IFTNeumann(2, 0.1, num_steps=3),
}

SAMPLER = hs.SGLD(0.3, temperature=1e-3, seed=2)


def convolutional_hypergradient(estimator, pool, inner_pool=None):
    """Of a strength for each weight of a convolution before a pooling."""
    inner_pool = inner_pool or pool
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(3, 5, 6, 6, 2)))
    kernel = tf.constant(0.3 * rng.normal(size=(3, 3, 2, 4)))

    def error(params, batch, pool):
        features = pool(tf.nn.conv2d(batch, params[0], 1, "SAME"))
        return tf.reduce_mean((features - 1.0) ** 2)

    def outer(strengths, params, batch):
        return error(params, batch, pool)

    def inner(strengths, params, batch):
        penalty = tf.reduce_sum(strengths[0] * params[0] ** 2)
        return error(params, batch, inner_pool) + penalty

    return hs.hypergradient(
        hs.BilevelProblem(inner, outer),
        [tf.fill(kernel.shape, tf.constant(0.2, tf.float64))],
        [kernel],
        estimator=estimator,
        sampler=SAMPLER,
        inner_batches=x,
        outer_batches=x[::-1],
    ).hypergradient[0]


def max_pool(x):
    return tf.nn.max_pool2d(x, 2, 2, "VALID")


def average_pool(x):
    return tf.nn.avg_pool2d(x, 2, 2, "VALID")


@pytest.mark.parametrize("name", ESTIMATORS)
def test_max_pooling_gives_the_same_in_a_graph_of_its_own(name):
    def compute():
        return convolutional_hypergradient(ESTIMATORS[name], max_pool)

    eager = compute()
    np.testing.assert_allclose(
        tf.function(compute, autograph=False)(), eager, rtol=1e-10
    )
    assert np.all(eager != 0.0)


def functions_apart(pool, name, inner_pool=None):
    """The functions of a graph that TensorFlow does not dissolve in it."""
    graph = (
        tf.function(
            lambda: convolutional_hypergradient(
                ESTIMATORS[name], pool, inner_pool
            ),
            autograph=False,
        )
        .get_concrete_function()
        .graph
    )
    return [
        {node.op for node in function.node_def}
        for function in graph.as_graph_def().library.function
        if function.attr["_noinline"].b
    ]


@pytest.mark.parametrize("name", ["hpo_sgld", "outer_every", "adjoint_sgld"])
def test_only_a_step_with_max_pooling_is_a_graph_of_its_own(name):
    (step,) = functions_apart(max_pool, name)
    assert "Conv2DBackpropFilter" in step
    assert functions_apart(average_pool, name) == []


def test_max_pooling_is_found_within_a_condition():
    # Of the outer objective alone, which is not computed at each step.
    assert len(functions_apart(max_pool, "outer_every", average_pool)) == 1


def test_rmd_has_max_pooling_apart_on_both_ways():
    forward, backward = functions_apart(max_pool, "rmd")
    assert "Conv2DBackpropFilter" in forward & backward


def test_an_error_of_the_objective_comes_through_the_loop():
    def pool(x):
        raise ValueError("no such pooling")

    with pytest.raises(ValueError, match="no such pooling"):
        tf.function(
            lambda: convolutional_hypergradient(ESTIMATORS["rmd"], pool),
            autograph=False,
        )()


# TensorFlow puts temporary variables into graphs of 205 MB and more. That of a
# sum with a variable of a loop in it failed the second call. It needs a process
# with one CPU device.
LARGE_BATCH = """
import numpy as np, tensorflow as tf, keras_hposgld as hs

rng = np.random.default_rng(0)
x = tf.constant(rng.normal(size=(2, 40_000, 32)), tf.float32)
sizes = [32, 64, 64, 64, 64, 1]
weights = [
    tf.constant(rng.normal(size=size) / 10.0, tf.float32)
    for size in zip(sizes[:-1], sizes[1:])
]

def fit(weights, x):
    for matrix in weights[:-1]:
        x = tf.tanh(x @ matrix)
    return tf.reduce_mean((x @ weights[-1] - 1.0) ** 2)

def inner(strength, weights, batch):
    return fit(weights, batch) + sum(
        tf.exp(strength) * tf.reduce_sum(matrix**2) for matrix in weights
    )

problem = hs.BilevelProblem(inner, lambda h, w, batch: fit(w, batch))
sampler = hs.SGLD(0.01, seed=0)
for estimator in (
    hs.estimators.RMD(num_steps=2),
    hs.estimators.FMD(num_steps=2),
    hs.estimators.HPOSGLD(0, 2),
    hs.estimators.AdjointSGLD(0, 2),
):
    @tf.function(autograph=False)
    def call(strength):
        return hs.hypergradient(
            *(problem, strength, weights),
            estimator=estimator,
            sampler=sampler,
            inner_batches=x,
            outer_batches=x,
        ).hypergradient

    first, second = call(tf.constant(-2.0)), call(tf.constant(-2.0))
    # Not bit for bit: two threads may add a large sum in another order.
    assert first != 0.0, estimator
    assert abs(first - second) <= 1e-5 * abs(first), (estimator, first, second)
"""


@pytest.mark.slow
def test_a_large_batch_leaves_no_temporary_variable_behind():
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", LARGE_BATCH],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_error_in_forward_mode_leaves_strategies_as_they_are():
    # The first call is that of the step, the next one that of a direction.
    calls = []

    def inner(strength, weight, batch):
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("no such objective")
        return strength * weight**2

    problem = hs.BilevelProblem(inner, lambda h, w, b: w)

    @tf.function(autograph=False)
    def call():
        return hs.hypergradient(
            problem,
            tf.constant(0.1),
            tf.constant(1.0),
            estimator="fmd",
            sampler=hs.SGLD(0.1),
        ).hypergradient

    with pytest.raises(ValueError, match="no such objective"):
        call()
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        keras.Variable(1.0)
    assert tf.compat.v1.get_variable_scope().caching_device is None


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("jit_compile", [True, False])
def test_a_stack_of_one_batch_serves_every_step(length, known, jit_compile):
    """Also where the number of batches is known to the run alone."""
    stack = np.arange(2.0 * length).reshape(length, 2)
    shape = [length if known else None, 2]

    @tf.function(
        input_signature=[tf.TensorSpec(shape, tf.float64)],
        jit_compile=jit_compile,
    )
    def batch_of_each_step(batches):
        return [batch_at((batches, None), index)[0] for index in range(3)]

    expected = stack if length == 3 else np.repeat(stack, 3, axis=0)
    np.testing.assert_array_equal(batch_of_each_step(stack), expected)
