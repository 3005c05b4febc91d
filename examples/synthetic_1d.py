"""The paper's synthetic problem (section 4.1): tables 2 and 3, figures 2 and 3.

    outer  (lambda - theta)^2 + (theta - 1/2)^2
    inner  theta^3 / 3 - (1 - lambda^2) theta      (theta* = sqrt(1 - lambda^2))

One protocol for all methods: lambda starts at 0.5 and theta at 0.5; the weights
go on from one outer iteration to the next; 100 inner steps and 500 outer steps
of plain gradient descent, lambda kept in [0, 1]. The inner step size alpha and
the outer one, eta, are searched on one grid, the same for every method, for the
lowest outer objective at the end; then alpha is refined.

    python examples/synthetic_1d.py [--quick] [--output FOLDER]
"""

import argparse
import csv
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402

START = 0.5
ETAS = (0.005, 0.02, 0.05, 0.1)
NOISE = 0.3  # half-width of the uniform perturbations of the noisy inner loss


def exact_solution():
    """lambda* and theta*, by ternary search along the inner solutions."""
    low, high = 0.0, 1.0

    def outer(strength):
        theta = np.sqrt(1.0 - strength**2)
        return (strength - theta) ** 2 + (theta - 0.5) ** 2

    for _ in range(200):
        third = (high - low) / 3
        if outer(low + third) < outer(high - third):
            high -= third
        else:
            low += third
    return low, np.sqrt(1.0 - low**2)


class Method:
    """An estimator within the outer loop, compiled once for all step sizes."""

    def __init__(self, estimator, num_outer, temperature=0.0, noisy=False):
        self.estimator = estimator
        self.sampler = hs.SGLD(0.1, temperature=temperature)
        self.num_outer = num_outer
        self.noisy = noisy
        self.compiled = tf.function(
            self._run, autograph=False, jit_compile=True
        )

    def __call__(self, alpha, eta, seed=0):
        """Lambda and theta, averaged over the last tenth of the run."""
        self.sampler.learning_rate = alpha
        return self.compiled(
            tf.constant(eta, tf.float64), tf.constant(seed)
        ).numpy()

    def _run(self, eta, seed):
        steps = self.estimator.num_steps
        half = tf.constant(START, tf.float64)
        kept = [tf.zeros_like(half)] if self.estimator.remembers else []
        tail = max(1, self.num_outer // 10)

        def outer_iteration(k, strength, theta, kept, mean):
            batches = None
            if self.noisy:
                batches = tf.random.stateless_uniform(
                    [steps, 2],
                    tf.stack([seed, k]),
                    -NOISE,
                    NOISE,
                    dtype=tf.float64,
                )
            estimate = hs.hypergradient(
                PROBLEM,
                strength,
                estimator=self.estimator,
                sampler=self.sampler,
                inner_batches=batches,
                seed=tf.stack([seed, 7]),
                previous=going_on(theta, kept, k * steps),
            )
            strength = strength - eta * estimate.hypergradient
            strength = tf.clip_by_value(strength, 0.0, 1.0)
            late = tf.cast(k >= self.num_outer - tail, tf.float64) / tail
            mean += late * tf.stack([strength, estimate.params])
            return k + 1, strength, estimate.params, [*estimate.kept], mean

        *_, mean = tf.while_loop(
            lambda k, *_: k < self.num_outer,
            outer_iteration,
            (tf.constant(0), half, half, kept, tf.zeros([2], tf.float64)),
            maximum_iterations=self.num_outer,
        )
        return mean


def going_on(theta, kept, num_steps):
    """What a chain needs of the one before it, within a `tf.while_loop`.

    A loop of TensorFlow carries no `None`, and so no `Estimate` as it is.
    """
    return hs.Estimate(
        None,
        theta,
        None,
        None,
        kept=kept,
        sampler_state={},
        num_steps=num_steps,
    )


def inner(strength, theta, batch):
    """The inner objective; a batch holds the two perturbations."""
    cubic, linear = (0.0, 0.0) if batch is None else tf.unstack(batch)
    return (1 / 3 + cubic) * theta**3 - (1 - strength**2 + linear) * theta


def outer(strength, theta, batch):
    """The outer objective."""
    return (strength - theta) ** 2 + (theta - 0.5) ** 2


PROBLEM = hs.BilevelProblem(inner, outer)


def search(method, alphas, seeds=(0,)):
    """The step sizes whose lambda has the lowest outer objective.

    It is taken at the exact inner solution of that lambda: with weights that
    have not converged the outer objective can be lower than it ever is.
    """

    def value(alpha, eta):
        strengths = np.array([method(alpha, eta, seed)[0] for seed in seeds])
        theta = np.sqrt(np.maximum(1 - strengths**2, 0.0))
        total = np.mean(outer(strengths, theta, None))
        return total if np.isfinite(total) else np.inf

    best = min((value(a, eta), a, eta) for a in alphas for eta in ETAS)
    ratio = alphas[1] / alphas[0]
    for _ in range(4):
        _, alpha, eta = best
        finer = alpha * ratio ** np.linspace(-0.75, 0.75, 7)
        best = min([best, *((value(a, eta), a, eta) for a in finer)])
        ratio **= 0.25
    return best[1], best[2]


def estimators(length):
    """The methods of the paper's tables with `length` inner steps."""
    half = length // 2
    kinds = hs.estimators
    return {
        "HPO-SGLD": kinds.HPOSGLD(half, length - half),
        "AdjointSGLD (ours)": kinds.AdjointSGLD(half, length - half),
        "IFT-Neumann": kinds.IFTNeumann(num_terms=50, num_steps=length),
        "IFT-CG": kinds.IFTCG(num_steps=length),
        "RMD": kinds.RMD(num_steps=length),
        "RMD-FO": kinds.RMDFO(num_steps=length),
        "FMD": kinds.FMD(num_steps=length),
    }


PAPER_2 = {
    "HPO-SGLD": (0.7488, 0.6629),
    "IFT-Neumann": (0.7491, 0.6625),
    "IFT-CG": (0.7488, 0.6628),
    "RMD": (0.7360, 0.6770),
    "RMD-FO": (0.6916, 0.7228),
    "FMD": (0.7360, 0.6770),
    "RMD, 1000 steps": (0.7489, 0.6627),
    "RMD-FO, 1000 steps": (0.6916, 0.7226),
    "FMD, 1000 steps": (0.7489, 0.6627),
}
PAPER_3 = {
    "HPO-SGLD, tau=1e-02": (0.7495, 0.6516),
    "HPO-SGLD, tau=1e-05": (0.7473, 0.6383),
    "HPO-SGLD, tau=1e-10": (0.7468, 0.6411),
    "IFT-Neumann": (0.7640, 0.6203),
    "IFT-CG": (0.7544, 0.6318),
    "RMD": (0.7363, 0.6779),
    "RMD-FO": (0.6923, 0.7235),
    "FMD": (0.7364, 0.6778),
    "RMD, 1000 steps": (0.7517, 0.6484),
    "RMD-FO, 1000 steps": (0.6926, 0.7075),
    "FMD, 1000 steps": (0.7517, 0.6484),
}


def rows_of(table, num_steps, long_steps):
    """Names, estimators and temperatures of the rows of a table."""
    short, long = estimators(num_steps), estimators(long_steps)
    rows = {}
    if table == 3:
        for temperature in (1e-2, 1e-5, 1e-10):
            for name in ("HPO-SGLD", "AdjointSGLD (ours)"):
                rows[f"{name}, tau={temperature:.0e}"] = (
                    short.get(name),
                    temperature,
                )
        short = {k: v for k, v in short.items() if "SGLD" not in k}
    rows |= {name: (estimator, 0.0) for name, estimator in short.items()}
    for name in ("RMD", "RMD-FO", "FMD"):
        rows[f"{name}, {long_steps} steps"] = (long[name], 0.0)
    return rows


def make_table(table, settings, exact, say):
    """Table 2 (noise-free, one run) or 3 (noisy, many seeds)."""
    paper = PAPER_2 if table == 2 else PAPER_3
    seeds = settings["seeds"] if table == 3 else (0,)
    say(
        f"\ntable {table}: lambda* = {exact[0]:.4f}, theta* = {exact[1]:.4f}, "
        f"{len(seeds)} run(s) a row\n"
        f"{'':26s} {'lambda (error)':>26s} {'theta (error)':>26s} "
        f"{'paper':>15s}  alpha  eta"
    )
    lines, chosen = [], {}
    for name, (estimator, temperature) in rows_of(
        table, settings["num_steps"], settings["long_steps"]
    ).items():
        method = Method(
            estimator, settings["num_outer"], temperature, noisy=table == 3
        )
        alpha, eta = search(
            method,
            settings["alphas"],
            settings["search_seeds"] if table == 3 else (0,),
        )
        ends = np.array([method(alpha, eta, seed) for seed in seeds])
        errors = np.abs(ends - exact).mean(axis=0)
        mean, spread = ends.mean(axis=0), ends.std(axis=0)
        chosen[name] = (alpha, eta)
        reported = paper.get(name, (float("nan"),) * 2)
        lines.append([name, *mean, *spread, *errors, alpha, eta, *reported])
        cells = [
            f"{m:.4f}+-{s:.4f} ({e:.5f})"
            for m, s, e in zip(mean, spread, errors, strict=True)
        ]
        say(
            f"{name:26s} {cells[0]:>26s} {cells[1]:>26s} "
            f"{reported[0]:7.4f} {reported[1]:7.4f}  {alpha:.4f} {eta:g}"
        )
    return lines, chosen


def make_step_size_table(settings, exact, say):
    """HPO-SGLD beside AdjointSGLD over inner step sizes, best eta for each."""
    say("\nerror of lambda over the inner step size, best eta for each")
    lines = []
    names = ("HPO-SGLD", "AdjointSGLD (ours)")
    methods = {
        name: Method(
            estimators(settings["num_steps"])[name], settings["num_outer"]
        )
        for name in names
    }
    say(f"{'alpha':>8s} {names[0]:>20s} {names[1]:>20s}")
    for alpha in (0.01, 0.02, 0.05, 0.1, 0.2):
        errors = [
            min(abs(methods[name](alpha, eta)[0] - exact[0]) for eta in ETAS)
            for name in names
        ]
        lines.append([alpha, *errors])
        say(f"{alpha:8.2f} {errors[0]:20.5f} {errors[1]:20.5f}")
    return lines


def make_lengths(settings, chosen, exact):
    """Figure 2: errors over the number of inner steps, at table 2's sizes."""
    lines = []
    for length in settings["lengths"]:
        for name, estimator in estimators(length).items():
            method = Method(estimator, settings["num_outer"])
            errors = np.abs(method(*chosen[name]) - exact)
            lines.append([length, name, *errors])
    return lines


def make_approximation(alpha, num_steps):
    """Figure 3: the first-order approximation of equation 21, step by step.

    Returns rows of m, the exact product v_m dtheta^{m-1}/dlambda, what stands
    for it (g_{m-1}), and the relative error of the running hypergradient.
    """
    strength, theta, estimate = 0.7, START, None
    # Without a learned start, what a step adds to g does not depend on g: a
    # chain of one step gives it.
    estimator, sampler = hs.estimators.HPOSGLD(0, 1), hs.SGLD(alpha)
    jacobian, g, h, exact_sum, lines = 0.0, 0.0, 0.0, 0.0, []
    for m in range(1, num_steps + 1):
        old_g, old_jacobian = g, jacobian
        jacobian -= alpha * (2 * theta * jacobian + 2 * strength)
        estimate = hs.hypergradient(
            PROBLEM,
            tf.constant(strength, tf.float64),
            None if estimate else tf.constant(START, tf.float64),
            estimator=estimator,
            sampler=sampler,
            previous=estimate,
        )
        theta = float(estimate.params)
        v = -2 * (strength - theta) + 2 * (theta - 0.5)
        direct = 2 * (strength - theta)
        exact_sum += direct + v * jacobian
        g += float(estimate.hypergradient) - direct
        h += direct + g
        running = abs(h - exact_sum) / abs(exact_sum)
        lines.append([m, v * old_jacobian, old_g, running])
    return lines


def save_pictures(lengths, approximation, burn_in, folder):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name in estimators(10):
        points = np.array([[r[0], r[2], r[3]] for r in lengths if r[1] == name])
        for axis, column in zip(axes, (1, 2), strict=True):
            axis.loglog(points[:, 0], points[:, column], ".-", label=name)
    for axis, label in zip(axes, ("lambda", "theta"), strict=True):
        axis.set(xlabel="inner steps", ylabel=f"error of {label}")
    axes[0].legend(fontsize=7)
    figure.savefig(folder / "synthetic_1d_figure2.png", dpi=150)

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    steps, exact, stand_in, running = np.array(approximation).T
    axes[0].plot(steps, exact, label="exact product")
    axes[0].plot(steps, stand_in, "--", label="first-order stand-in")
    axes[1].semilogy(steps, running)
    for axis in axes:
        axis.axvline(burn_in, color="red", linestyle=":")
        axis.set(xlabel="m")
    axes[0].legend()
    axes[1].set(ylabel="relative error of the running hypergradient")
    figure.savefig(folder / "synthetic_1d_figure3.png", dpi=150)
    plt.close("all")


def write_csv(path, header, lines):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(lines)


FULL = {
    "num_steps": 100,
    "long_steps": 1000,
    "num_outer": 500,
    "alphas": np.geomspace(0.01, 0.5, 12),
    "seeds": range(20),
    "search_seeds": (100, 101, 102),
    "lengths": (10, 20, 50, 100, 200, 500, 1000),
}
QUICK = FULL | {
    "num_steps": 20,
    "long_steps": 40,
    "num_outer": 60,
    "alphas": np.geomspace(0.05, 0.4, 3),
    "seeds": range(2),
    "search_seeds": (100,),
    "lengths": (10, 20),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short chains")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else FULL
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)

    def say(text):
        print(text, flush=True)

    say(__doc__)
    exact = np.array(exact_solution())
    header = "method lambda theta lambda_std theta_std lambda_error theta_error"
    header = (header + " alpha eta paper_lambda paper_theta").split()
    table_2, chosen = make_table(2, settings, exact, say)
    write_csv(folder / "synthetic_1d_table2.csv", header, table_2)
    sizes = make_step_size_table(settings, exact, say)
    write_csv(
        folder / "synthetic_1d_step_sizes.csv",
        ["alpha", "hpo_sgld_error", "adjoint_sgld_error"],
        sizes,
    )
    lengths = make_lengths(settings, chosen, exact)
    write_csv(
        folder / "synthetic_1d_figure2.csv",
        ["inner_steps", "method", "lambda_error", "theta_error"],
        lengths,
    )
    approximation = make_approximation(
        chosen["HPO-SGLD"][0], settings["num_steps"]
    )
    write_csv(
        folder / "synthetic_1d_figure3.csv",
        ["m", "exact_product", "stand_in", "running_relative_error"],
        approximation,
    )
    save_pictures(lengths, approximation, settings["num_steps"] // 2, folder)
    table_3, _ = make_table(3, settings, exact, say)
    write_csv(folder / "synthetic_1d_table3.csv", header, table_3)
    say(f"\ntables and pictures: {folder}/synthetic_1d_*")
    return table_2, sizes, table_3


if __name__ == "__main__":
    main()
