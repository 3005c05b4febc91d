"""What it means that derivatives hold the scales of a step fixed.

One weight, L_T = (w - 1)^2 + lambda w^2, f = (w - 1/2)^2 at lambda = 1/2. RMD,
which holds the scales of each step fixed, over the derivative of the very steps
by central differences, for several optimizers and numbers of steps. 1 is exact.
The last row has AdjointSGLD in the place of RMD.

    python experiments/samplers/fixed_scales.py [--quick]
        [--page docs/samplers.md]
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402

sys.path.append(str(pathlib.Path(__file__).parents[1] / "theory"))

import reporting  # noqa: E402

STEPS = (20, 50, 200, 1000)
KERAS = keras.optimizers
RMD = hs.estimators.RMD
ROWS = {  # the optimizer, and what estimates with it after so many steps
    "`SGLD(0.02, momentum=0.9)`": (lambda: hs.SGLD(0.02, momentum=0.9), RMD),
    "SGD(0.02), Nesterov 0.9": (
        lambda: KERAS.SGD(0.02, momentum=0.9, nesterov=True),
        RMD,
    ),
    "Adam(0.1)": (lambda: KERAS.Adam(0.1), RMD),
    "Adam(0.02)": (lambda: KERAS.Adam(0.02), RMD),
    "Nadam(0.02)": (lambda: KERAS.Nadam(0.02), RMD),
    "RMSprop(0.02)": (lambda: KERAS.RMSprop(0.02), RMD),
    "RMSprop(0.02), cosine decay": (
        lambda: KERAS.RMSprop(KERAS.schedules.CosineDecay(0.02, STEPS[-1])),
        RMD,
    ),
    "RMSprop(0.02), AdjointSGLD": (
        lambda: KERAS.RMSprop(0.02),
        lambda num_steps: hs.estimators.AdjointSGLD(num_steps - 1, 1),
    ),
}


def ratio(make, kind, num_steps):
    """Estimate over central differences, of one chain."""
    problem = hs.BilevelProblem(
        lambda h, w, batch: (w - 1.0) ** 2 + h * w**2,
        lambda h, w, batch: (w - 0.5) ** 2,
    )
    check = hs.diagnostics.check_hypergradient(
        problem,
        tf.constant(0.5, tf.float64),
        tf.constant(0.0, tf.float64),
        estimator=kind(num_steps=num_steps),
        sampler=make(),
        reference="finite_differences",
    )
    return float(check.hypergradient) / float(check.reference)


def main(arguments=None):
    options = reporting.parse(__doc__, arguments)
    steps, names = STEPS, list(ROWS)
    if options.quick:
        steps, names = STEPS[:2], names[:3]
    rows = {
        name: [ratio(*ROWS[name], number) for number in steps] for name in names
    }
    reporting.publish(
        "fixed_scales",
        ["estimate / exact", *(f"{number} steps" for number in steps)],
        [[name, *(f"{r:.4g}" for r in found)] for name, found in rows.items()],
        options.page,
    )
    return rows


if __name__ == "__main__":
    main()
