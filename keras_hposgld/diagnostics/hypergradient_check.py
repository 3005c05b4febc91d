"""A hypergradient beside the exact derivative of the unrolled chain."""

import numbers
from typing import Any
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_hposgld import estimators
from keras_hposgld.core.checks import check_known
from keras_hposgld.core.checks import check_number
from keras_hposgld.core.problem import BilevelProblem
from keras_hposgld.core.vectors import agreement

REFERENCES = ("rmd", "fmd", "finite_differences")


class HypergradientCheck(NamedTuple):
    """What `check_hypergradient` returns.

    Attributes:
        cosine_similarity: Float in [-1, 1], 1 where the directions agree. 0
            if the estimate or the reference is zero everywhere.
        norm_ratio: Float, length of the estimate over that of the reference.
            Infinite if only the reference is zero everywhere, 1 if both are.
        hypergradient: Structure of tensors, the estimate.
        reference: Structure of tensors, what it was compared with.
    """

    cosine_similarity: float
    norm_ratio: float
    hypergradient: Any
    reference: Any


def check_hypergradient(
    problem: BilevelProblem,
    hyperparameters: Any,
    params: Any = None,
    *,
    estimator: Any = "hpo_sgld",
    sampler: Any,
    reference: str = "rmd",
    inner_batches: Any = None,
    outer_batches: Any = None,
    seed: Any = 0,
    step: float = 1e-4,
) -> HypergradientCheck:
    """Compares an estimate with the exact derivative of the unrolled chain.

    The reference is the derivative of the outer objective at the end of the
    very chain that the estimator runs: same number of steps, batches, noise.

    Args:
        problem: As for `hypergradient`.
        hyperparameters: As for `hypergradient`.
        params: As for `hypergradient`.
        estimator: As for `hypergradient`: the one to check.
        sampler: As for `hypergradient`.
        reference: `"rmd"` (default), `"fmd"` or `"finite_differences"`
            (central ones, two chains a hyperparameter).
        inner_batches: As for `hypergradient`.
        outer_batches: As for `hypergradient`.
        seed: As for `hypergradient`.
        step: Float, the step of the finite differences. Defaults to `1e-4`;
            use float64 with it.

    Returns:
        `HypergradientCheck`.

    Raises:
        ValueError: If `reference` is unknown, `step` not above 0, or the
            estimator has no use for an outer objective.

    Example:

    ```python
    import keras_hposgld as hs
    import tensorflow as tf

    problem = hs.BilevelProblem(
        lambda h, w, batch: tf.reduce_sum((w - 1.0) ** 2 + h * w**2),
        lambda h, w, batch: tf.reduce_sum((w - 0.5) ** 2),
    )
    check = hs.diagnostics.check_hypergradient(
        problem, tf.constant([0.1, 0.2]), tf.zeros([2]), sampler=hs.SGLD(0.1)
    )
    assert check.cosine_similarity > 0.99
    ```
    """
    check_known("reference", reference, REFERENCES)
    step = check_number("step", step, zero_allowed=False)
    estimator = estimators.get(estimator)
    _refuse_without_outer(estimator)
    flat = [
        # As `hypergradient` does.
        tf.convert_to_tensor(float(x) if isinstance(x, numbers.Integral) else x)
        for x in tf.nest.flatten(hyperparameters)
    ]

    @tf.function(autograph=False, reduce_retracing=True)
    def solve(values, name):
        steps = {"num_steps": estimator.num_steps}
        return estimators.hypergradient(
            problem,
            tf.nest.pack_sequence_as(hyperparameters, values),
            params,
            estimator={
                "itself": lambda: estimator,
                "rmd": lambda: estimators.RMD(**steps),
                "fmd": lambda: estimators.FMD(**steps),
                "finite_differences": lambda: estimators.RMDFO(**steps),
            }[name](),
            sampler=sampler,
            inner_batches=inner_batches,
            outer_batches=outer_batches,
            seed=seed,
        )

    estimate = solve(flat, "itself").hypergradient
    if reference == "finite_differences":
        exact = _central_differences(
            lambda values: solve(values, reference).outer_loss, flat, step
        )
        exact = tf.nest.pack_sequence_as(hyperparameters, exact)
    else:
        exact = solve(flat, reference).hypergradient
    cosine_similarity, norm_ratio = agreement(
        tf.nest.flatten(estimate), tf.nest.flatten(exact)
    )
    return HypergradientCheck(
        cosine_similarity=cosine_similarity,
        norm_ratio=norm_ratio,
        hypergradient=estimate,
        reference=exact,
    )


def _refuse_without_outer(estimator):
    if not estimator.needs_outer:
        raise ValueError(
            "`estimator` must be one that differentiates the outer objective, "
            f"as the reference does. Received: estimator={estimator!r}. "
            "Compare the evidence of a small problem with quadrature."
        )


def _central_differences(function, values, step):
    slopes = []
    for position, value in enumerate(values):
        slope = np.zeros(value.shape, value.dtype.as_numpy_dtype)
        for index in np.ndindex(*value.shape):
            ends = []
            for sign in (1, -1):
                moved = np.array(value)  # `.numpy()` of a scalar is no array
                moved[index] += sign * step
                inputs = list(values)
                inputs[position] = tf.constant(moved)
                ends.append(float(function(inputs)))
            slope[index] = (ends[0] - ends[1]) / (2 * step)
        slopes.append(tf.constant(slope))
    return slopes
