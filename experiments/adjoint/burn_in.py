"""How long AdjointSGLD has to burn in: the mean estimate over B.

The two-dimensional problem of `laws.py`, with chains that start in the law of
the weights but with q = 0. Only q burns in, within a few times 1 over the step
size times the smallest curvature. Then chains of the default length that go on
from one another by `previous=`, which keeps q.

    python experiments/adjoint/burn_in.py [--quick]
        [--page docs/adjoint_sgld.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from laws import Chains  # noqa: E402
from laws import Correlated  # noqa: E402
from laws import exact  # noqa: E402
from laws import relative_bias  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

RATE, TEMPERATURE = 0.05, 0.05
LENGTHS = (0, 10, 50, 100, 200, 400)
FOLLOWING = (1, 2, 5, 10, 20)


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    number, lengths, following = 20_000, LENGTHS, FOLLOWING
    if options.quick:
        number, lengths, following = 2000, (10, 200), (1, 10)
    problem = Correlated()
    truths = exact(problem, TEMPERATURE)
    sampler = hs.SGLD(RATE, TEMPERATURE, integrator="averaged")

    def chains(burn_in, num_samples=10):
        estimator = hs.estimators.AdjointSGLD(burn_in, num_samples)
        return Chains(problem, estimator, sampler, number)

    def biases(estimate):
        return [
            relative_bias(draws, truth)
            for draws, truth in zip(estimate.hypergradient, truths, strict=True)
        ]

    start = chains(400)().params
    rows = [
        (f"B = {length}, M = 10", biases(chains(length)(2, start)))
        for length in lengths
    ]
    default, estimate = chains(10), None
    for number_of_chain in range(1, max(following) + 1):
        estimate = default(
            2, start if estimate is None else None, previous=estimate
        )
        if number_of_chain in following:
            name = f"B = M = 10, chain {number_of_chain} by `previous=`"
            rows.append((name, biases(estimate)))
    reporting.publish(
        "burn_in",
        ["", "λ₁", "λ₂", "λ₃"],
        [
            [name, *(f"{bias:+.1f} ({error:.1f})" for bias, error in found)]
            for name, found in rows
        ],
        options.page,
    )
    return rows


if __name__ == "__main__":
    main()
