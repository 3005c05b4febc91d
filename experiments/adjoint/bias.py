"""How far AdjointSGLD is from the derivative of the law, over the step size.

Many independent chains beside each other, against quadrature, for both
integrators of `SGLD`, with momentum, and for `PSGLD`. Beside the estimator
stands the variant that pairs C with the q of *after* the step, as version 0.1.0
did. The figures are biases in per cent of the exact derivative, with standard
errors in brackets.

    python experiments/adjoint/bias.py [--quick] [--page docs/adjoint_sgld.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
from laws import Chains  # noqa: E402
from laws import Correlated  # noqa: E402
from laws import exact  # noqa: E402
from laws import Quartic  # noqa: E402
from laws import relative_bias  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

TIME = 30.0  # the burn-in in units of step size times number of steps
RATES = (0.05, 0.1, 0.2, 0.28)
SAMPLERS = {  # of the two-dimensional table: temperature, sampler
    "plain noise, α = 0.2": (0.05, lambda t: hs.SGLD(0.2, t)),
    "averaged noise, α = 0.2": (
        0.05,
        lambda t: hs.SGLD(0.2, t, integrator="averaged"),
    ),
    "plain noise, α = 0.1": (0.5, lambda t: hs.SGLD(0.1, t)),
    "averaged noise, α = 0.1": (
        0.5,
        lambda t: hs.SGLD(0.1, t, integrator="averaged"),
    ),
    "`PSGLD`, α = 0.1": (0.5, lambda t: hs.PSGLD(0.1, t)),
    "momentum 0.9, plain noise, α = 0.02": (
        0.5,
        lambda t: hs.SGLD(0.02, t, momentum=0.9),
    ),
    "momentum 0.9, averaged noise, α = 0.02": (
        0.5,
        lambda t: hs.SGLD(0.02, t, momentum=0.9, integrator="averaged"),
    ),
    "momentum 0.9, averaged noise, α = 0.05": (
        0.5,
        lambda t: hs.SGLD(0.05, t, momentum=0.9, integrator="averaged"),
    ),
}


class AfterTheStep(hs.estimators.AdjointSGLD):
    """The variant that pairs C with the q of after the step."""

    def contribute(self, chain, own, step):
        own, _ = super().contribute(chain, own, step)
        products = chain.mean(step.inner.pullback(own.q))
        return own, products[: len(chain.hyperparameters)]


def draws(problem, kind, sampler, number):
    """The hypergradients of chains in their law."""
    rate = float(sampler.learning_rate) / (1 - sampler.momentum)
    burn_in = round(TIME / rate)
    estimator = kind(burn_in, 2 * burn_in)
    chains = Chains(problem, estimator, sampler, number)
    if isinstance(sampler, hs.PSGLD):  # its first chain makes P
        first = Chains(problem, kind(0, 200), sampler, number)()
        return chains(previous=first).hypergradient
    return chains().hypergradient


def cell(bias, error):
    if not np.isfinite(bias):
        return "diverged"
    return f"{bias:+.2f} ({error:.2f})"


def over_step_size(temperature, number, rates):
    """Rows of the one-dimensional table."""
    problem = Quartic()
    (truth,) = exact(problem, temperature)
    rows = []
    for name, kind, integrator in (
        ("plain noise, q after the step", AfterTheStep, "euler"),
        ("plain noise", hs.estimators.AdjointSGLD, "euler"),
        ("averaged noise, q after the step", AfterTheStep, "averaged"),
        ("averaged noise", hs.estimators.AdjointSGLD, "averaged"),
    ):
        found = []
        for rate in rates:
            sampler = hs.SGLD(rate, temperature, integrator=integrator)
            (one,) = draws(problem, kind, sampler, number)
            found.append(relative_bias(one, truth))
        rows.append((name, found))
    return rows


def over_samplers(number, names):
    """Rows of the two-dimensional table: a bias for each hyperparameter."""
    problem, rows = Correlated(), []
    for name in names:
        temperature, make = SAMPLERS[name]
        truths = exact(problem, temperature)
        for label, kind in (
            ("", hs.estimators.AdjointSGLD),
            (", q after the step", AfterTheStep),
        ):
            sampler = make(temperature)
            if label and isinstance(sampler, hs.PSGLD):
                continue
            parts = draws(problem, kind, sampler, number)
            found = [
                relative_bias(one, truth)
                for one, truth in zip(parts, truths, strict=True)
            ]
            rows.append((f"{name}{label}", temperature, found))
    return rows


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    number, rates, names = 40_000, RATES, list(SAMPLERS)
    if options.quick:
        number, rates, names = 2000, RATES[1:3], names[1:2]
    tables = {}
    for temperature in (0.3, 0.5)[: 1 if options.quick else 2]:
        tables[temperature] = over_step_size(temperature, number, rates)
        reporting.publish(
            f"bias_{temperature}",
            [f"τ = {temperature}", *(f"α = {rate}" for rate in rates)],
            [
                [n, *(cell(*f) for f in found)]
                for n, found in tables[temperature]
            ],
            options.page,
        )
    samplers = over_samplers(number // 2, names)
    reporting.publish(
        "bias_samplers",
        ["", "τ", "λ₁", "λ₂", "λ₃"],
        [
            [name, f"{temperature:g}", *(cell(*f) for f in found)]
            for name, temperature, found in samplers
        ],
        options.page,
    )
    return tables, samplers


if __name__ == "__main__":
    main()
