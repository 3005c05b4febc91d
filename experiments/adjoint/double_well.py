"""Where AdjointSGLD is wrong: chains between two wells.

A tilted double well, L_T = (theta^2 - 1)^2 + lambda theta and f = theta, at
several temperatures: the estimates of AdjointSGLD, plain, damped and with the
Gauss-Newton matrix, and of ScoreCovariance, beside the exact derivative. The
last column says what `diagnostics.chain_summary` makes of the chains.

    python experiments/adjoint/double_well.py [--quick]
        [--page docs/adjoint_sgld.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from laws import Chains  # noqa: E402
from laws import exact  # noqa: E402
from laws import Wells  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

TEMPERATURES = (0.01, 0.1, 0.5, 1.0)
RATE = 0.01
NUM_CHAINS, BURN_IN, NUM_SAMPLES = 400, 2000, 20_000
ADJOINTS = {
    "AdjointSGLD": {},
    "`damping=4`": {"damping": 4.0},
    '`curvature="gauss_newton"`': {"curvature": "gauss_newton"},
}


def sampler_at(temperature):
    return hs.SGLD(RATE, temperature, integrator="averaged")


def adjoint(temperature, options, settings):
    """Mean, standard error and number of diverged chains."""
    number, burn_in, num_samples = settings
    problem = Wells()
    energy = problem.energy
    if options.get("curvature"):
        energy = problem.marked_energy
    chains = Chains(
        problem,
        OneByOne(burn_in, num_samples, **options),
        sampler_at(temperature),
        number,
        energy,
    )
    # Half of the chains start in either well.
    start = tf.where(tf.range(number) % 2 == 0, -1.0, 1.0)
    (draws,) = chains(params=[tf.cast(start, tf.float64)]).hypergradient
    return mean_of(draws.numpy())


class OneByOne(hs.estimators.AdjointSGLD):
    """Each entry is a chain of its own: none makes the others NaN."""

    def conclude(self, chain, state):
        return {"hypergradient": [h / self.num_samples for h in state.h]}


def covariance(temperature, settings):
    """The same of ScoreCovariance, one chain after the other."""
    number, burn_in, num_samples = settings
    problem = Wells()
    bilevel = hs.BilevelProblem(
        lambda h, w, batch: problem.energy([h], [w]),
        lambda h, w, batch: problem.outer([h], [w]),
    )
    estimator = hs.estimators.ScoreCovariance(burn_in, num_samples)
    sampler = sampler_at(temperature)

    @tf.function(autograph=False, jit_compile=True)
    def chain(seed):
        return hs.hypergradient(
            bilevel,
            tf.constant(problem.hyperparameters[0], tf.float64),
            tf.cast(1 - 2 * (seed % 2), tf.float64),
            estimator=estimator,
            sampler=sampler,
            seed=seed,
        ).hypergradient

    draws = [chain(tf.constant(seed)).numpy() for seed in range(number)]
    return mean_of(np.array(draws))


def mean_of(draws):
    diverged = ~np.isfinite(draws) | (np.abs(draws) > 1e6)
    kept = draws[~diverged]
    return kept.mean(), kept.std() / np.sqrt(len(kept)), int(diverged.sum())


def r_hat(temperature, num_samples):
    """Of the outer losses of two chains from either well."""
    problem, sampler = Wells(), sampler_at(temperature)
    bilevel = hs.BilevelProblem(
        lambda h, w, batch: problem.energy([h], [w]),
        lambda h, w, batch: problem.outer([h], [w]),
    )
    estimator = hs.estimators.AdjointSGLD(0, num_samples)

    @tf.function(autograph=False, jit_compile=True)
    def chain(start, seed):
        return hs.hypergradient(
            bilevel,
            tf.constant(problem.hyperparameters[0], tf.float64),
            start,
            estimator=estimator,
            sampler=sampler,
            seed=seed,
        ).outer_losses

    starts = (-1.0, 1.0, -1.0, 1.0)
    losses = [
        chain(tf.constant(start, tf.float64), tf.constant(seed)).numpy()
        for seed, start in enumerate(starts)
    ]
    summary = hs.diagnostics.chain_summary(np.stack(losses, axis=1))
    return float(summary.potential_scale_reduction), summary.is_mixed


def cell(mean, error, diverged):
    left_out = f", {diverged} diverged" if diverged else ""
    return f"{mean:.3f} ± {error:.3f}{left_out}"


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    settings = NUM_CHAINS, BURN_IN, NUM_SAMPLES
    temperatures = TEMPERATURES
    if options.quick:
        settings, temperatures = (40, 200, 2000), (0.1, 1.0)
    results = {}
    for temperature in temperatures:
        (truth,) = exact(Wells(), temperature)
        found = {
            name: adjoint(temperature, arguments, settings)
            for name, arguments in ADJOINTS.items()
        }
        found["ScoreCovariance"] = covariance(temperature, settings)
        results[temperature] = truth, found, r_hat(temperature, settings[2])
    header = ["temperature", "exact", *ADJOINTS, "ScoreCovariance", "R-hat"]
    reporting.publish(
        "double_well",
        header,
        [
            [
                f"{temperature:g}",
                f"{truth:.3f}",
                *(cell(*one) for one in found.values()),
                f"{value:.3f}{'' if mixed else ', flagged'}",
            ]
            for temperature, (truth, found, (value, mixed)) in results.items()
        ],
        options.page,
    )
    return results


if __name__ == "__main__":
    main()
