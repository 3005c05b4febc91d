"""keras_hposgld, through `hypergradient` in a `tf.function`."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402
from peer_adapters.task import CG_ITERATIONS  # noqa: E402
from peer_adapters.task import LEARNING_RATE  # noqa: E402


def estimators(num_steps):
    kinds, half = hs.estimators, num_steps // 2
    return {
        "hpo_sgld": kinds.HPOSGLD(half, num_steps - half),
        "hpo_sgld_0": kinds.HPOSGLD(0, num_steps),
        "adjoint_sgld": kinds.AdjointSGLD(half, num_steps - half),
        "rmd": kinds.RMD(num_steps=num_steps),
        "exact": kinds.RMD(num_steps=num_steps),
        # Damping none and tolerance none, as the other implicit methods.
        "ift_cg": kinds.IFTCG(CG_ITERATIONS, num_steps=num_steps),
    }


def network(weights, x):
    """The logits."""
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        if kernel.shape.rank == 4:
            logits = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
            x = tf.nn.max_pool2d(tf.nn.relu(logits), 2, 2, "VALID")
        else:
            x = tf.reshape(x, [-1, kernel.shape[0]])
            logits = tf.matmul(x, kernel) + bias
            x = tf.nn.relu(logits)
    return logits


def cross_entropy(weights, x, y):
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(y, network(weights, x))
    )


def penalty(strengths, weights):
    return tf.add_n(
        [
            tf.reduce_sum(s * w**2)
            for s, w in zip(strengths, weights, strict=True)
        ]
    )


class Adapter:
    """One method; see `measuring` for what is asked of an adapter."""

    def __init__(self, method, num_steps):
        self.method = method.removesuffix("_xla")
        self.num_steps, self.jit_compile = num_steps, method.endswith("_xla")
        self.dtype = tf.float64 if method == "exact" else tf.float32

    def load(self, task):
        def floats(array):
            return tf.constant(array, self.dtype)

        return (
            [floats(h) for h in task.hypers],
            [floats(w) for w in task.weights],
            floats(task.x),
            tf.constant(task.y),
            floats(task.x_outer),
            tf.constant(task.y_outer),
        )

    def unload(self, tensors):
        return [t.numpy() for t in tensors]

    def prepare(self, arguments):
        estimator = estimators(self.num_steps)[self.method]
        sampler = hs.SGLD(LEARNING_RATE)

        @tf.function(autograph=False, jit_compile=self.jit_compile)
        def solve(hypers, weights, x, y, x_outer, y_outer):
            def inner(hypers, weights, batch):
                strengths = [tf.sigmoid(h) for h in hypers]
                return cross_entropy(weights, *batch) + penalty(
                    strengths, weights
                )

            def outer(hypers, weights, batch):
                return cross_entropy(weights, x_outer, y_outer)

            estimate = hs.hypergradient(
                hs.BilevelProblem(inner, outer),
                hypers,
                weights,
                estimator=estimator,
                sampler=sampler,
                inner_batches=(x, y),
            )
            return estimate.hypergradient, estimate.params

        solve.get_concrete_function(*arguments)
        return solve

    def plain_calls(self, arguments):
        """T plain SGD steps: a graph for each, and all in one graph.

        Both as usual, and with the gradient of the penalty by hand.
        """
        hypers, start, x, y, *_ = arguments
        strengths = [tf.sigmoid(h) for h in hypers]
        twice = [2 * strength for strength in strengths]
        batches = list(zip(tf.unstack(x), tf.unstack(y), strict=True))

        def usual(weights, x, y):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = cross_entropy(weights, x, y)
                loss += penalty(strengths, weights)
            return tape.gradient(loss, weights)

        def by_hand(weights, x, y):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                loss = cross_entropy(weights, x, y)
            gradients = tape.gradient(loss, weights)
            return [
                g + s * w
                for g, s, w in zip(gradients, twice, weights, strict=True)
            ]

        def calls(gradient):
            variables = [tf.Variable(w) for w in start]

            def moved(weights, x, y):
                gradients = gradient(weights, x, y)
                return [
                    w - LEARNING_RATE * g
                    for w, g in zip(weights, gradients, strict=True)
                ]

            @tf.function(autograph=False)
            def step(x, y):
                values = [tf.convert_to_tensor(v) for v in variables]
                for variable, new in zip(
                    variables, moved(values, x, y), strict=True
                ):
                    variable.assign(new)

            @tf.function(autograph=False)
            def all_steps(weights, x, y):
                return tf.while_loop(
                    lambda index, weights: index < self.num_steps,
                    lambda index, weights: (
                        index + 1,
                        moved(weights, x[index], y[index]),
                    ),
                    (tf.constant(0), weights),
                    parallel_iterations=1,
                )[1]

            def one_by_one():
                for batch in batches:
                    step(*batch)

            return [one_by_one, lambda: all_steps(start, x, y)]

        return [*calls(usual), *calls(by_hand)]
