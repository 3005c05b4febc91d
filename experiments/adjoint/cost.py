"""What a step of AdjointSGLD costs, in steps of HPO-SGLD.

A multilayer perceptron of 256-512-512-10 with batches of 64 examples, and
chains of 60 steps. Learned are a weight for each example, or an L2 strength for
each weight of the model. Figures are ratios of medians of processor time, all
kinds in turn. Pin it to one core: `taskset -c 0`.

    python experiments/adjoint/cost.py [--quick] [--page docs/adjoint_sgld.md]
"""

import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf  # noqa: E402
from bias import AfterTheStep  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

SIZES, BATCH_SIZE, NUM_EXAMPLES = (256, 512, 512, 10), 64, 1000
KINDS = {
    "HPO-SGLD": hs.estimators.HPOSGLD,
    "AdjointSGLD": hs.estimators.AdjointSGLD,
    '`hessian_product="difference"`': lambda *length: hs.estimators.AdjointSGLD(
        *length, hessian_product="difference"
    ),
    '`curvature="gauss_newton"`': lambda *length: hs.estimators.AdjointSGLD(
        *length, curvature="gauss_newton"
    ),
    "q after the step": AfterTheStep,
}


def predict(weights, x):
    for kernel in weights[:-1]:
        x = tf.tanh(x @ kernel)
    return x @ weights[-1]


def losses(weights, x, y):
    logits = hs.mark_predictions(predict(weights, x))
    return tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)


def by_example(table, weights, batch):
    x, y, rows = batch
    return tf.reduce_mean(tf.gather(table, rows) * losses(weights, x, y))


def by_weight(strengths, weights, batch):
    x, y, _ = batch
    penalties = [
        tf.reduce_sum(s * w**2) for s, w in zip(strengths, weights, strict=True)
    ]
    return tf.reduce_mean(losses(weights, x, y)) + tf.add_n(penalties)


def outer(hyperparameters, weights, batch):
    x, y, _ = batch
    return tf.reduce_mean(losses(weights, x, y))


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    sizes, num_steps, repeats = SIZES, 60, 9
    if options.quick:
        sizes, num_steps, repeats = (8, 8, 10), 4, 2
    pairs = zip(sizes[:-1], sizes[1:], strict=True)
    weights = [
        tf.random.stateless_normal(pair, [number, 0]) / pair[0] ** 0.5
        for number, pair in enumerate(pairs)
    ]
    shape = num_steps, BATCH_SIZE
    batches = (
        tf.random.stateless_normal([*shape, sizes[0]], [7, 0]),
        tf.random.stateless_uniform(shape, [8, 0], 0, 10, tf.int32),
        tf.random.stateless_uniform(shape, [9, 0], 0, NUM_EXAMPLES, tf.int32),
    )
    problems = {
        "a weight for each example": (by_example, tf.ones([NUM_EXAMPLES])),
        "an L2 strength for each weight": (
            by_weight,
            [tf.fill(w.shape, 1e-4) for w in weights],
        ),
    }
    sampler, half = hs.SGLD(0.05), num_steps // 2

    def compiled(inner, hyperparameters, kind):
        bilevel = hs.BilevelProblem(inner, outer)

        @tf.function(autograph=False)
        def solve():
            estimate = hs.hypergradient(
                bilevel,
                hyperparameters,
                weights,
                estimator=kind(half, half),
                sampler=sampler,
                inner_batches=batches,
                outer_batches=batches,
            )
            return tf.nest.flatten(estimate.hypergradient)

        return solve

    calls = {
        (name, case): compiled(*problem, kind)
        for case, problem in problems.items()
        for name, kind in KINDS.items()
    }
    seconds = {key: [] for key in calls}
    for turn in range(repeats + 1):
        for key, call in calls.items():
            begin = time.process_time()
            [part.numpy() for part in call()]
            if turn:  # the first call traces
                seconds[key].append(time.process_time() - begin)
    times = {key: statistics.median(one) for key, one in seconds.items()}
    ratios = {
        name: [times[name, case] / times["HPO-SGLD", case] for case in problems]
        for name in KINDS
    }
    reporting.publish(
        "cost",
        ["step / step of HPO-SGLD", *problems],
        [[name, *(f"{r:.2f}" for r in row)] for name, row in ratios.items()],
        options.page,
    )
    return ratios


if __name__ == "__main__":
    main()
