"""Theorem 2 of the paper as numbers: how far the outer iterations get.

The theorem: with a constant outer step size eta <= 1/L and M large enough, the
squared gradient of the expected outer objective F after k outer iterations is
at most (F_0 - F_min) / (eta k). Two problems with exact F show where it stops:

    synthetic  the paper's section 4.1; f depends on lambda directly
    ridge      one L2 strength for each of eight inputs; f does not

HPO-SGLD and AdjointSGLD of several lengths B + M stand beside the exact
gradient. The outer level is plain gradient descent with eta = 1/L, L being the
largest curvature of F along a slow descent by the exact gradient, and Adam.

    python experiments/theory/theorem_2.py [--quick] [--output FOLDER]
        [--page docs/theory.md]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import reporting  # noqa: E402
from exact_problems import Ridge  # noqa: E402
from exact_problems import Synthetic  # noqa: E402
from outer_descent import Adam  # noqa: E402
from outer_descent import compile_chain  # noqa: E402
from outer_descent import descend  # noqa: E402
from outer_descent import exact_chain  # noqa: E402
from outer_descent import GradientDescent  # noqa: E402
from outer_descent import inside  # noqa: E402

import keras_hposgld as hs  # noqa: E402

TEMPERATURE = 1e-3
INNER_RATES = {"synthetic": 0.05, "ridge": 0.1}
ADAM_RATES = {"synthetic": 0.02, "ridge": 0.05}
EXACT = "exact gradient"
METHODS = {  # estimator, B, M, color
    "HPO-SGLD 10 + 10": ("HPOSGLD", 10, 10, reporting.YELLOW),
    "HPO-SGLD 100 + 100": ("HPOSGLD", 100, 100, reporting.ORANGE),
    "HPO-SGLD 100 + 1000": ("HPOSGLD", 100, 1000, reporting.DARK_ORANGE),
    "AdjointSGLD 100 + 100": ("AdjointSGLD", 100, 100, reporting.LIGHT_BLUE),
    "AdjointSGLD 100 + 1000": ("AdjointSGLD", 100, 1000, reporting.BLUE),
}
QUICK_METHODS = ["HPO-SGLD 100 + 100", "AdjointSGLD 100 + 100"]


def largest_curvature(problem, path):
    """Largest eigenvalue of the Hessian of F at the points of a path."""
    step, columns = 1e-4, []
    for shift in step * np.eye(path.shape[1]):
        ahead = problem.gradient(path + shift, TEMPERATURE)
        behind = problem.gradient(path - shift, TEMPERATURE)
        columns.append((ahead - behind) / (2 * step))
    hessian = np.stack(columns, axis=1)
    return np.max(np.linalg.eigvalsh(hessian + hessian.transpose(0, 2, 1))) / 2


def step_size(problem, num_outer):
    """1/L, with L along a slow descent by the exact gradient."""
    slow = 0.1 / largest_curvature(problem, problem.start(1)[0])
    path = descend(
        problem,
        exact_chain(problem, TEMPERATURE),
        GradientDescent(slow),
        num_outer,
        runs=1,
    )
    return 1 / largest_curvature(problem, path[:, 0])


def squared_gradients(problem, hyperparameters):
    """Squared norm of the exact gradient of F, one number a row."""
    gradient = problem.gradient(hyperparameters, TEMPERATURE)
    return np.sum(inside(problem, hyperparameters, gradient) ** 2, axis=1)


def follow(problem, chain, optimizer, num_outer, runs):
    """One curve.

    Returns:
        Squared gradients `(num_outer, runs)`; the squared gradient at the mean
        iterate of the second half, where the noise of the steps is averaged
        out, and F at the last iterate, both as medians over the runs.
    """
    path = descend(problem, chain, optimizer, num_outer, runs)
    squares = np.array([squared_gradients(problem, rows) for rows in path])
    mean = path[num_outer // 2 :].mean(axis=0)
    last = problem.value(path[-1], TEMPERATURE)
    return squares, np.median(squared_gradients(problem, mean)), np.median(last)


def run_problem(name, problem, num_outer, runs, methods):
    """Curves `{(optimizer, method): curve}`, F at the start, the bound."""
    eta = step_size(problem, num_outer)
    chains = {EXACT: exact_chain(problem, TEMPERATURE)}
    for method in methods:
        kind, burn_in, num_samples, _ = METHODS[method]
        estimator = getattr(hs.estimators, kind)(
            burn_in=burn_in, num_samples=num_samples
        )
        chains[method] = compile_chain(
            problem, estimator, INNER_RATES[name], TEMPERATURE
        )
    optimizers = {
        "plain": lambda: GradientDescent(eta),
        "Adam": lambda: Adam(ADAM_RATES[name]),
    }
    curves = {
        (kind, method): follow(problem, chain, make(), num_outer, runs)
        for kind, make in optimizers.items()
        for method, chain in chains.items()
    }
    first = problem.value(problem.start(1)[0], TEMPERATURE)[0]
    decrease = first - min(curve[2] for curve in curves.values())
    return curves, first, decrease / (eta * np.arange(1, num_outer + 1))


def formatted(curves, first):
    """A row a curve: some iterations, where it levels off, F at the end."""
    rows = []
    for (optimizer, method), (squares, at_mean, last) in curves.items():
        median = np.median(squares, axis=1)
        shown = [k for k in (1, 10, 100, 1000) if k <= len(median)]
        level = np.median(median[-max(1, len(median) // 10) :])
        cells = [*(median[k - 1] for k in shown), level, at_mean]
        cells = [*map(reporting.scientific, cells), f"{last:.5f}"]
        rows.append([f"{optimizer}, {method}", *cells])
    last = f"F (start: {first:.5f})"
    return ["", *[f"k = {k}" for k in shown], "level", "at mean", last], rows


def in_bins(squares, num_bins=70):
    """Quartiles over the runs and over bins of iterations, equal in log k."""
    edges = np.unique(np.geomspace(1, len(squares) + 1, num_bins).astype(int))
    pairs = list(zip(edges, edges[1:], strict=False))
    bins = [
        np.quantile(squares[a - 1 : b - 1], (0.25, 0.5, 0.75)) for a, b in pairs
    ]
    return [np.sqrt(a * (b - 1)) for a, b in pairs], np.transpose(bins)


def draw(everything):
    """A row of panels a problem, a column an outer optimizer."""
    figure, axes = reporting.panels(len(everything), 2, (11.5, 8), sharey="row")
    for row, (name, (curves, _, bound)) in zip(
        axes, everything.items(), strict=True
    ):
        for (optimizer, method), (squares, *_) in curves.items():
            axis = row[int(optimizer == "Adam")]
            color = METHODS[method][3] if method in METHODS else reporting.BLACK
            k, (low, middle, high) = in_bins(squares)
            axis.fill_between(k, low, high, color=color, alpha=0.15, lw=0)
            order = 3 if method == EXACT else 2
            axis.plot(k, middle, color=color, label=method, zorder=order)
        k = np.arange(1, len(bound) + 1)
        row[0].plot(k, bound, "--", color=reporting.GRAY, label="bound, 1/k")
        row[0].set(ylabel="squared norm of the gradient of F")
        for axis, outer in zip(row, ("gradient descent", "Adam"), strict=True):
            axis.set(xscale="log", yscale="log", xlabel="outer iteration k")
            axis.set(ylim=(bound[-1] * 1e-5, 30 * bound[0]))
            axis.set(title=f"{name}, outer level: {outer}")
            reporting.label_ends(axis)
    return figure


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    num_outer, runs, methods = 1000, 20, list(METHODS)
    if options.quick:
        num_outer, runs, methods = 60, 4, QUICK_METHODS
    everything = {}
    for name, problem in (("synthetic", Synthetic()), ("ridge", Ridge())):
        everything[name] = run_problem(name, problem, num_outer, runs, methods)
        header, rows = formatted(*everything[name][:2])
        reporting.publish(f"theorem_2_{name}", header, rows, options.page)
    reporting.save(draw(everything), options.output, "theory_theorem_2")
    return everything


if __name__ == "__main__":
    main()
