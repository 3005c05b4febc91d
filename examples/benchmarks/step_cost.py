"""What an inner step costs, in plain Keras SGD steps of the same model.

Each estimator learns one L2 strength for each weight of each kernel; the plain
step has Keras's own L2 with one constant for each kernel. Both run in one
process, T steps a call, in turn; the figures are ratios of medians. A step is
`outer iteration / T`, so what an estimator does at the end of its chain counts.
The second table takes a step of HPO-SGLD apart.

    python examples/benchmarks/step_cost.py [--quick] [--models mlp cnn ...]
        [--rows "HPO-SGLD, Adam" ...] [--repeats 9] [--output FOLDER]
"""

import argparse
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402
from keras_hposgld.core.derivatives import linearize_gradient  # noqa: E402
from keras_hposgld.core.derivatives import value_and_gradients  # noqa: E402
from keras_hposgld.core.loop import run_pooling_steps  # noqa: E402
from keras_hposgld.training import keras_problem  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from models import data_for  # noqa: E402
from models import make_model  # noqa: E402
from models import SIZES  # noqa: E402

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LEARNING_RATE = 0.01
PLAIN = "plain SGD"
PLAIN_ADAM = "plain Adam"
QUICK_ROWS = ("HPO-SGLD, Rademacher noise", "AdjointSGLD, outer_every=5")
# Compiled by XLA too: XLA is slow at convolutions in loops on a CPU.
XLA_MODEL = "mlp"
XLA_ROWS = (
    "HPO-SGLD, temperature 0",
    "HPO-SGLD, Rademacher noise",
    "AdjointSGLD",
)


def rows(num_steps):
    """Estimator and sampler of each row: arguments of SGLD, or an optimizer."""
    half = num_steps // 2
    kinds = hs.estimators
    hpo = kinds.HPOSGLD(half, num_steps - half)

    def noisy(noise):
        return {"temperature": 1e-6, "noise": noise}

    return {
        "HPO-SGLD, temperature 0": (hpo, {}),
        "HPO-SGLD, Rademacher noise": (hpo, noisy("rademacher")),
        "HPO-SGLD, Gaussian noise": (hpo, noisy("gaussian")),
        "HPO-SGLD, outer_every=5": (
            kinds.HPOSGLD(half, num_steps - half, outer_every=5),
            {},
        ),
        "AdjointSGLD": (kinds.AdjointSGLD(half, num_steps - half), {}),
        "HPO-SGLD, PSGLD, Rademacher noise": (
            hpo,
            hs.PSGLD(
                LEARNING_RATE, seed=0, integrator="euler", **noisy("rademacher")
            ),
        ),
        "HPO-SGLD, momentum": (hpo, {"momentum": 0.9}),
        "HPO-SGLD, Adam": (hpo, keras.optimizers.Adam(1e-3)),
        "AdjointSGLD, Gauss-Newton": (
            kinds.AdjointSGLD(half, num_steps - half, curvature="gauss_newton"),
            {},
        ),
        "AdjointSGLD, difference": (
            kinds.AdjointSGLD(
                half, num_steps - half, hessian_product="difference"
            ),
            {},
        ),
        "AdjointSGLD, outer_every=5": (
            kinds.AdjointSGLD(half, num_steps - half, outer_every=5),
            {},
        ),
        "IFT-Neumann, 10 terms": (kinds.IFTNeumann(10, 0.1, num_steps), {}),
        "IFT-CG, 10 iterations": (kinds.IFTCG(10, num_steps=num_steps), {}),
        "RMD": (kinds.RMD(num_steps=num_steps), {}),
    }


def learned_strength():
    return hs.regularizers.LearnableL2(1e-4)


def steady(x, y, *leading):
    """A dataset of one element for ever, as fast as can be."""
    tensors = [
        tf.constant(np.broadcast_to(part, (*leading, *part.shape)))
        for part in (x, y)
    ]
    return tf.data.Dataset.from_tensors(tuple(tensors)).repeat()


def plain_call(name, x, y, num_steps, quick, jit_compile=False, optimizer=None):
    """A function that takes `num_steps` plain Keras steps in one graph."""
    model = make_model(
        name, x.shape[1:], lambda: keras.regularizers.L2(1e-4), quick
    )
    model.compile(
        optimizer or keras.optimizers.SGD(LEARNING_RATE),
        loss=LOSS,
        steps_per_execution=num_steps,
        jit_compile=jit_compile,
    )
    model.make_train_function()
    iterator = iter(steady(x, y))
    return lambda: model.train_function(iterator)


def learner_call(learner, x, y, num_steps):
    """A function that takes one outer iteration of a compiled learner."""
    inner = (x, y)
    if learner.example_weights is not None:
        inner = (x, y, np.arange(len(x)))
    keras_problem.build_on(learner, inner, learner._weigh)
    learner._prepare()
    learner.make_train_function()
    chains = tf.data.Dataset.zip(
        (
            stacked(inner, num_steps),
            stacked((x, y), num_steps),
        )
    )
    iterator = iter(chains)
    return lambda: learner.train_function(iterator)


def stacked(parts, num_steps):
    tensors = tuple(
        tf.constant(np.broadcast_to(part, (num_steps, *part.shape)))
        for part in parts
    )
    return tf.data.Dataset.from_tensors(tensors).repeat()


def make_learner(name, x, estimator, sampler, quick, **other):
    """A compiled learner of strengths, unless `other` says of what else."""
    learns_other = {"loss", "example_weights"} & set(other)
    regularizer = (lambda: None) if learns_other else learned_strength
    model = make_model(name, x.shape[1:], regularizer, quick)
    learner = hs.BilevelModel(
        model, seed=0, example_weights=other.get("example_weights")
    )
    if isinstance(sampler, dict):
        sampler = hs.SGLD(LEARNING_RATE, seed=0, **sampler)
    learner.compile(
        sampler,
        loss=other.get("loss", LOSS),
        outer_loss=LOSS,
        hypergradient=estimator,
        jit_compile=other.get("jit_compile", False),
    )
    return learner


def median_times(calls, repeats):
    """Median seconds of each call, all of them in turn."""
    seconds = {name: [] for name in calls}
    for call in calls.values():
        call()  # traces
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            result = call()
            tf.nest.map_structure(lambda t: np.asarray(t), result)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(s) for name, s in seconds.items()}


def measure(name, options):
    """Seconds per inner step of each row, for one model."""
    x, y = data_for(name, options.batch_size, options.quick)
    steps = options.steps
    calls = {PLAIN: plain_call(name, x, y, steps, options.quick)}
    for row, (estimator, sampler) in rows(steps).items():
        if options.rows and row not in options.rows:
            continue
        learner = make_learner(name, x, estimator, sampler, options.quick)
        calls[row] = learner_call(learner, x, y, steps)
        if name == XLA_MODEL and row in XLA_ROWS:
            learner = make_learner(
                *(name, x, estimator, sampler, options.quick), jit_compile=True
            )
            calls[f"{row}, XLA"] = learner_call(learner, x, y, steps)
    if not options.quick:
        calls[PLAIN_ADAM] = plain_call(
            *(name, x, y, steps, options.quick),
            optimizer=keras.optimizers.Adam(1e-3),
        )
    if name == XLA_MODEL:
        calls["plain SGD, XLA"] = plain_call(
            *(name, x, y, steps, options.quick), jit_compile=True
        )
    if name == "cnn":
        half = steps // 2
        hpo = hs.estimators.HPOSGLD(half, steps - half)
        for row, other in (
            (
                "HPO-SGLD, a learned loss",
                {"loss": hs.losses.LearnableTaylorLoss(from_logits=True)},
            ),
            (
                "HPO-SGLD, example weights",
                {"example_weights": hs.ExampleWeights(len(x))},
            ),
        ):
            learner = make_learner(name, x, hpo, {}, options.quick, **other)
            calls[row] = learner_call(learner, x, y, steps)
    times = median_times(calls, options.repeats)
    return {row: seconds / steps for row, seconds in times.items()}


def measure_phases(name, options):
    """Seconds of each part of a step of HPO-SGLD."""
    x, y = data_for(name, options.batch_size, options.quick)
    learner = make_learner(
        name, x, "hpo_sgld", {"temperature": 1e-6}, options.quick
    )
    keras_problem.build_on(learner, (x, y))
    learner._prepare()
    problem = keras_problem.KerasProblem(
        learner,
        learner.hyperparameters,
        keras_problem.layer_variables(learner.model),
        learner.outer_level.loss(learner),
        tracks_metrics=False,
    )
    hypers = keras_problem.tensors(problem.hyperparameters)
    weights = keras_problem.tensors(problem.weights)
    batch, carry = (tf.constant(x), tf.constant(y)), problem.initial_carry
    noises = {
        noise: hs.SGLD(LEARNING_RATE, temperature=1e-6, noise=noise, seed=0)
        for noise in ("gaussian", "rademacher")
    }
    still = hs.SGLD(LEARNING_RATE, seed=0)

    def inner(params, sources):
        return linearize_gradient(
            lambda p: problem.inner(hypers, p, batch, carry), params, sources
        )

    def outer(params):
        return value_and_gradients(
            lambda p: problem.outer(hypers, p, batch, carry), hypers, params
        )[2]

    def mover(sampler):
        return lambda params, index: sampler.move(
            params, weights, index, sampler.chain_seed
        )

    # Each changes the params, so that nothing is taken out of the loop.
    parts = {
        "inner gradient": lambda p, i: inner(p, []).gradient,
        "the same, and a mixed product": lambda p, i: _add(
            (lin := inner(p, hypers)).gradient, lin.pullback(lin.gradient)
        ),
        "outer gradient": lambda p, i: outer(p),
        "update": mover(still),
        "update with Gaussian noise": mover(noises["gaussian"]),
        "update with Rademacher noise": mover(noises["rademacher"]),
    }

    def repeated(part):
        def step(params, index):
            new = part(params, index)
            return [p + 1e-12 * n for p, n in zip(params, new, strict=True)]

        @tf.function(autograph=False)
        def call():
            return run_pooling_steps(step, weights, options.steps)[0]

        return call

    times = median_times(
        {key: repeated(part) for key, part in parts.items()}, options.repeats
    )
    return {row: seconds / options.steps for row, seconds in times.items()}


def _add(gradient, products):
    # Kernels alone have products; they come in the order of the weights.
    total = tf.add_n([tf.reduce_sum(p) for p in products if p is not None])
    return [g + 1e-12 * total for g in gradient]


def format_table(title, results):
    """Ratios, a column for each model."""
    names = list(results)
    all_rows = list(
        dict.fromkeys(r for column in results.values() for r in column)
    )
    lines = [
        f"{title:34s}" + "".join(f"{name:>10s}" for name in names),
        "-" * (34 + 10 * len(names)),
    ]
    for row in all_rows:
        cells = "".join(
            f"{results[name][row]:10.2f}" if row in results[name] else " " * 10
            for name in names
        )
        lines.append(f"{row:34s}{cells}")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny models")
    parser.add_argument(
        "--models", nargs="+", choices=list(SIZES), default=list(SIZES)
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        choices=list(rows(2)),
        metavar="ROW",
        help="of these estimators alone",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="T, of a chain")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent.parent / "output",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.repeats, options.batch_size = 4, 2, 4
        options.rows = options.rows or QUICK_ROWS
    options.output.mkdir(parents=True, exist_ok=True)
    ratios, phases = {}, {}
    for name in options.models:
        seconds = measure(name, options)
        plain = seconds.pop(PLAIN)
        print(f"{name}: a plain step takes {1000 * plain:.2f} ms", flush=True)
        ratios[name] = {row: value / plain for row, value in seconds.items()}
        parts = measure_phases(name, options)
        phases[name] = {row: value / plain for row, value in parts.items()}
        print(
            format_table("steps, in plain SGD steps", {name: ratios[name]}),
            flush=True,
        )
    tables = "\n\n".join(
        [
            format_table("inner step / plain SGD step", ratios),
            format_table("part of a step / plain SGD step", phases),
        ]
    )
    print(f"\n{tables}")
    (options.output / "step_cost.txt").write_text(tables + "\n")
    return ratios, phases


if __name__ == "__main__":
    main()
