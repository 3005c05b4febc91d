"""Ablation of HPO-SGLD and AdjointSGLD: B, M, temperature and noise scale.

One number is varied at a time around B = M = 50, tau = 1e-3, kappa = 1, on

    synthetic  the paper's section 4.1 without noise (its table 2)
    noisy      the same with a perturbed inner objective (its table 3)
    ridge      one L2 strength for each of eight inputs

with these measures:

    error     root mean square of |estimate - exact| / |exact| over independent
              first chains from the problem's start; exact is the derivative in
              the law, whose temperature is tau kappa^2
    cosine    of the angle between the two, as a mean over the chains (ridge)
    distance  from the bilevel solution after 200 outer steps of Adam, for the
              mean of the last fifth of the iterates, as a median over the runs

HPO-SGLD runs with AdjointSGLD's step size, and on the synthetic problem also
with the one that suits the center, alpha (B + M/2) = 1 / curvature.

    python experiments/theory/ablation.py [--quick] [--output FOLDER]
        [--page docs/theory.md]
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import reporting  # noqa: E402
from exact_problems import Ridge  # noqa: E402
from exact_problems import solve  # noqa: E402
from exact_problems import Synthetic  # noqa: E402
from outer_descent import Adam  # noqa: E402
from outer_descent import compile_chain  # noqa: E402
from outer_descent import descend  # noqa: E402
from outer_descent import exact_chain  # noqa: E402

import keras_hposgld as hs  # noqa: E402

CENTER = {"B": 50, "M": 50, "tau": 1e-3, "kappa": 1.0}
AXES = {  # values, scale, label
    "B": ((0, 10, 50, 100, 200), "linear", "burn-in B"),
    "M": ((1, 10, 50, 200), "log", "samples M"),
    "tau": ((1e-5, 1e-4, 1e-3, 1e-2), "log", "temperature τ"),
    "kappa": ((0.0, 0.5, 1.0, 2.0, 3.0), "linear", "noise scale κ"),
}
EXACT, TUNED = "exact gradient", "HPO-SGLD, α tuned"
COLORS = {
    "HPO-SGLD": reporting.ORANGE,
    TUNED: reporting.YELLOW,
    "AdjointSGLD": reporting.BLUE,
    EXACT: reporting.GRAY,
}


class Case:
    """A problem, the step sizes of its methods, and its solution."""

    def __init__(self, problem, alpha, hyper_rate, tuned_alpha=None):
        self.problem, self.hyper_rate = problem, hyper_rate
        self.methods = {"HPO-SGLD": (hs.estimators.HPOSGLD, alpha)}
        if tuned_alpha is not None:
            self.methods[TUNED] = (hs.estimators.HPOSGLD, tuned_alpha)
        self.methods["AdjointSGLD"] = (hs.estimators.AdjointSGLD, alpha)
        self.solution = solve(problem)

    def reached(self, chain, num_outer, runs):
        """Median distance after `num_outer` outer iterations."""
        optimizer = Adam(self.hyper_rate)
        path = descend(self.problem, chain, optimizer, num_outer, runs)
        mean = path[-num_outer // 5 :].mean(axis=0)
        return np.median(self.problem.distance(mean, self.solution))

    def measure(self, method, point, num_outer, runs):
        """The measures of a method at a point of the ablation."""
        law_temperature = point["tau"] * point["kappa"] ** 2
        if method == EXACT:
            chain = exact_chain(self.problem, law_temperature)
            return {"distance": self.reached(chain, num_outer, runs=1)}
        kind, alpha = self.methods[method]
        estimator = kind(burn_in=point["B"], num_samples=point["M"])
        chain = compile_chain(
            self.problem, estimator, alpha, point["tau"], point["kappa"]
        )
        start, weights = self.problem.start(runs)
        exact = self.problem.gradient(start, law_temperature)
        found = np.asarray(chain(start, weights, 0)[0])
        length = np.linalg.norm(exact, axis=1)
        relative = np.linalg.norm(found - exact, axis=1) / length
        along = np.sum(found * exact, axis=1) / length
        return {
            "error": np.sqrt(np.mean(relative**2)),
            "cosine": np.mean(along / np.linalg.norm(found, axis=1)),
            "distance": self.reached(chain, num_outer, runs),
        }


def run(case, values, num_outer, runs):
    """`{(axis, value, method): measures}`; the center is run once."""
    results, done = {}, {}
    for axis, value in values:
        point = CENTER | {axis: value}
        for method in (*case.methods, EXACT):
            key = (method, *point.values())
            if key not in done:
                done[key] = case.measure(method, point, num_outer, runs)
            results[axis, value, method] = done[key]
    return results


def formatted(case, results):
    """A row a point, a column a measure and method."""
    measures = ["error", "cosine", "distance"]
    if case.solution.size == 1:
        measures.remove("cosine")  # of one number: its sign
    columns = [(m, method) for m in measures for method in case.methods]
    columns.append(("distance", EXACT))
    rows = []
    for axis, value in dict.fromkeys(key[:2] for key in results):
        cells = [results[axis, value, method][m] for m, method in columns]
        cells = [
            f"{cell:.3f}" if m == "cosine" else reporting.scientific(cell)
            for cell, (m, _) in zip(cells, columns, strict=True)
        ]
        rows.append([f"{AXES[axis][2]} = {value:g}", *cells])
    return ["", *[f"{measure}, {method}" for measure, method in columns]], rows


def draw(cases, everything, measure):
    """A row of panels a problem, a column an axis."""
    figure, panels = reporting.panels(
        len(cases), len(AXES), (13, 3 * len(cases)), sharey="row"
    )
    for row, (name, results) in zip(panels, everything.items(), strict=True):
        for panel, (axis, (_, scale, label)) in zip(
            row, AXES.items(), strict=True
        ):
            for method, color in COLORS.items():
                points = [
                    (value, found[measure])
                    for (varied, value, by), found in results.items()
                    if (varied, by) == (axis, method) and measure in found
                ]
                style = "--" if method == EXACT else "o-"
                if points:
                    x, y = np.transpose(points)
                    panel.plot(x, y, style, color=color, label=method)
            panel.axvline(CENTER[axis], color=reporting.GRAY, lw=0.8, zorder=0)
            panel.set(xscale=scale, yscale="log", xlabel=label)
        shown = [v[measure] for k, v in results.items() if k[2] != EXACT]
        row[0].set(ylim=(0.6 * min(shown), 1.7 * max(shown)))
        units = {
            "error": "relative error",
            "distance": cases[name].problem.unit,
        }
        row[0].set(ylabel=f"{name}: {units[measure]}")
        reporting.label_ends(row[-1])
    return figure


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    num_outer, runs = 200, 100
    values = [(axis, value) for axis in AXES for value in AXES[axis][0]]
    cases = {
        "synthetic": Case(Synthetic(), 0.05, 0.02, tuned_alpha=0.01),
        "noisy": Case(Synthetic(noise=0.3), 0.05, 0.02, tuned_alpha=0.01),
        "ridge": Case(Ridge(), 0.1, 0.05),
    }
    if options.quick:
        num_outer, runs = 20, 50
        values = [("kappa", 2.0), ("tau", 4e-3)]
        cases = {"synthetic": Case(Synthetic(), 0.05, 0.02)}
    everything = {}
    for name, case in cases.items():
        everything[name] = run(case, values, num_outer, runs)
        header, rows = formatted(case, everything[name])
        reporting.publish(f"ablation_{name}", header, rows, options.page)
    for measure in ("error", "distance"):
        figure = draw(cases, everything, measure)
        reporting.save(figure, options.output, f"theory_ablation_{measure}")
    return everything


if __name__ == "__main__":
    main()
