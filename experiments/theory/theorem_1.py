"""Theorem 1 of the paper as numbers: where HPO-SGLD's approximation is exact.

The theorem: the first-order approximation becomes exact for infinitesimal
steps. Two problems of one weight, "mean" at temperature 0 and "width" at 1/2,
have every number in closed form (`one_weight.py`). HPOSGLD's hypergradient
after m steps, g_m, is divided by the exact derivative of E[f(theta^m)]. As the
step size alpha goes to 0, the ratio goes to 1 at a fixed number of steps. At a
fixed time t = alpha m, which is what a burn-in needs, it goes to another
number. RMD, exact for the chain, is the check.

    python experiments/theory/theorem_1.py [--quick] [--output FOLDER]
        [--page docs/theory.md]
"""

import functools
import os
from typing import Any
from typing import NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import reporting  # noqa: E402
import tensorflow as tf  # noqa: E402
from one_weight import Mean  # noqa: E402
from one_weight import Width  # noqa: E402

import keras_hposgld as hs  # noqa: E402

RATES = (0.1, 0.01, 0.001)
STEPS, TIMES = 10, (1, 3, 10)
CURVE_RATE = 0.01


@functools.cache
def measure(problem, kind, alpha, m):
    """Mean and standard error of the package's estimate after `m` steps."""
    estimator = {
        "HPO-SGLD": lambda: hs.estimators.HPOSGLD(m - 1, 1),
        "AdjointSGLD": lambda: hs.estimators.AdjointSGLD(m - 1, 1),
        "RMD": lambda: hs.estimators.RMD(num_steps=m),
    }[kind]()
    bilevel = hs.BilevelProblem(problem.inner, problem.outer)
    sampler = hs.SGLD(alpha, temperature=problem.temperature)

    def filled(value):
        return tf.fill([problem.num_chains], tf.constant(value, tf.float64))

    @tf.function(autograph=False, jit_compile=problem.num_chains > 10_000)
    def chains():
        return hs.hypergradient(
            bilevel,
            filled(problem.strength),
            filled(problem.start),
            estimator=estimator,
            sampler=sampler,
            seed=1,
        ).hypergradient

    draws = chains().numpy()
    return draws.mean(), draws.std() / np.sqrt(len(draws))


def ratio(problem, kind, alpha, m):
    """Estimate over exact derivative, and the Monte Carlo error of that."""
    mean, error = measure(problem, kind, alpha, m)
    exact = problem.exact(alpha, m)
    return mean / exact, abs(error / exact)


class Row(NamedTuple):
    """A row of the table; `time` is `None` where the steps are fixed."""

    problem: Any
    kind: str
    time: float | None
    ratios: tuple
    errors: tuple
    limit: float


def make_row(problem, kind, time):
    lengths = [STEPS if time is None else round(time / a) for a in RATES]
    pairs = [
        ratio(problem, kind, alpha, m)
        for alpha, m in zip(RATES, lengths, strict=True)
    ]
    exact = time is None or kind == "RMD"
    limit = 1.0 if exact else problem.limit(time)
    return Row(problem, kind, time, *zip(*pairs, strict=True), limit)


def formatted(row):
    """The cells, with the Monte Carlo error where there is one."""
    held = f"t = {row.time}" if row.time else f"m = {STEPS}"
    cells = [
        f"{value:.4f}" + (f" ± {error:.4f}" if error > 0 else "")
        for value, error in zip(row.ratios, row.errors, strict=True)
    ]
    name = type(row.problem).__name__.lower()
    return [f"{name}, {row.kind}, {held}", *cells, f"{row.limit:.4f}"]


def draw(rows, curves):
    """Panels: over alpha, over time, and against the derivative in the law."""
    figure, ((left, middle, right),) = reporting.panels(1, 3, (13, 4))
    rows = [row for row in rows if row.kind == "HPO-SGLD"]
    mean, width = rows[0].problem, rows[-1].problem
    over_alpha = [row for row in rows if row.problem is mean and row.time != 10]
    colors = (reporting.BLUE, reporting.YELLOW, reporting.ORANGE)
    for row, color in zip(over_alpha, colors, strict=False):
        label = f"t = α m = {row.time}" if row.time else f"m = {STEPS} steps"
        left.plot(RATES, row.ratios, "o-", color=color, label=label)
        left.axhline(row.limit, color=color, linestyle=":", linewidth=1)
    left.set(xscale="log", xlabel="step size α", xlim=(0.13, 0.00077))
    left.set(ylabel="g / exact derivative", title="“mean”, α → 0")

    time = np.geomspace(0.1, 10, 200)
    for problem, color in ((mean, reporting.ORANGE), (width, reporting.BLUE)):
        name = f"“{type(problem).__name__.lower()}”"
        middle.plot(time, problem.limit(time), color=color, label=name)
        points = [(r.time, r.ratios[-1]) for r in rows if r.problem is problem]
        middle.plot(*np.transpose(points[1:]), "o", color=color)
    middle.plot(time, 0 * time + 1, ":", color=reporting.GRAY, label="exact")
    middle.set(xscale="log", yscale="log", xlabel="time t = α m")
    middle.set(ylabel="g / exact derivative")
    middle.set(title="limit α → 0; dots: α = 0.001")

    right.axvspan(3, 10.2, color="#f2f2f2")
    right.text(9.9, 0.15, "start forgotten\nto 5 % and less", ha="right")
    for (kind, points), color, marker in zip(
        curves.items(),
        (reporting.ORANGE, reporting.BLACK, reporting.LIGHT_BLUE),
        ("o-", "s-", "x"),
        strict=True,
    ):
        right.plot(*points, marker, color=color, label=kind)
    right.set(ylim=(0, 6.5), xlim=(0, 10.2), xlabel="time t = α m")
    right.set(ylabel="estimate / derivative in the law")
    right.set(title=f"α = {CURVE_RATE}, “mean”")
    for axis in (left, middle, right):
        reporting.label_ends(axis)
    return figure


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    problems = [Mean(), Width(2_000 if options.quick else 100_000)]
    times = TIMES[:1] if options.quick else TIMES
    rows = [
        make_row(problem, kind, time)
        for problem in problems
        for kind, time in (
            *[("HPO-SGLD", time) for time in (None, *times)],
            ("RMD", times[0]),
        )
    ]
    header = ["", *[f"α = {alpha:g}" for alpha in RATES], "limit"]
    cells = [formatted(row) for row in rows]
    reporting.publish("theorem_1", header, cells, options.page)

    times = (0.5, 4) if options.quick else (0.1, 0.3, 1, 2, 3, 4, 6, 8, 10)
    curves = {}
    for kind in ("HPO-SGLD", "RMD", "AdjointSGLD"):
        values = [
            -measure(problems[0], kind, CURVE_RATE, round(time / CURVE_RATE))[0]
            for time in times  # in the law the derivative of E[theta] is -1
        ]
        curves[kind] = np.array(times), np.array(values)
    reporting.save(draw(rows, curves), options.output, "theory_theorem_1")
    return rows, curves


if __name__ == "__main__":
    main()
