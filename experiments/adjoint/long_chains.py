"""HPO-SGLD and AdjointSGLD over the length of the chain, against quadrature.

The one-dimensional problem of `laws.py`, whose outer objective depends on the
hyperparameter directly too. Chains start at 0.7, B = M.

    python experiments/adjoint/long_chains.py [--quick]
        [--page docs/algorithm.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
from laws import Chains  # noqa: E402
from laws import exact  # noqa: E402
from laws import Quartic  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

RATE, TEMPERATURE, NUM_CHAINS = 0.05, 0.01, 1000
LENGTHS = (5, 20, 50, 200, 2000)


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    lengths = LENGTHS[:2] if options.quick else LENGTHS
    problem, sampler = Quartic(), hs.SGLD(RATE, TEMPERATURE)
    (truth,) = exact(problem, TEMPERATURE)
    rows = []
    for length in lengths:
        found = []
        for kind in (hs.estimators.HPOSGLD, hs.estimators.AdjointSGLD):
            chains = Chains(problem, kind(length, length), sampler, NUM_CHAINS)
            (draws,) = (part.numpy() for part in chains().hypergradient)
            found.append((draws.mean(), draws.std() / np.sqrt(NUM_CHAINS)))
        rows.append((length, found))
    reporting.publish(
        "long_chains",
        ["B = M", "HPO-SGLD", "AdjointSGLD", "exact"],
        [
            [
                str(length),
                *(f"{mean:.3f} ± {error:.1g}" for mean, error in found),
                f"{truth:.4f}",
            ]
            for length, found in rows
        ],
        options.page,
    )
    return truth, rows


if __name__ == "__main__":
    main()
