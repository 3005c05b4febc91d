"""The direct derivative and a look back at one step: an estimator to copy.

With v = df/dtheta at theta^m and C = d2L_T/dtheta dlambda where the step to
theta^m began, the sample of step m is

    df/dlambda - (A B + E) v . C - v . dD/dlambda,

the derivative of f(theta^m) if the weights before the step were constants. A,
B, E and the decay D are those of the sampler (`samplers/sampler.py`).
"""

import keras_hposgld as hs
from keras_hposgld.core.vectors import add
from keras_hposgld.estimators.chain import refuse_moving_start
from keras_hposgld.estimators.sampled import SampledEstimator


@hs.estimators.register("look_back")
class LookBack(SampledEstimator):
    """The mean of a look back at one step, over the samples of a chain.

    Args:
        burn_in: Integer `>= 0`. Defaults to `10`.
        num_samples: Integer `>= 1`. Defaults to `10`.

    Raises:
        ValueError: If a number is out of range, or if the problem has
            `initial_params`.
    """

    outer_at_end_of_step = True  # v at theta^m. `False`: where the step began
    # What a chain holds at its peak, for the estimate of memory: theta before
    # and after, a gradient, v and A B v; h and a product.
    copies = (5, 2)

    def __init__(self, burn_in=10, num_samples=10):
        # Arguments are attributes of the same name: `get_config` reads them.
        self._set_lengths(burn_in, num_samples)

    def begin(self, chain, params):
        """What the recursion carries along the chain: here nothing."""
        refuse_moving_start(self, chain.problem, "it looks back at one step")
        return ()

    def contribute(self, chain, own, step):
        """What is carried on, and what the sample subtracts from df/dlambda.

        The mean over the samples, their losses and the standard error are
        made by `SampledEstimator`, the means over replicas by `Chain`.
        """
        v, scales = step.outer.v, step.scales
        force = scales.force(scales.velocity(v))
        direct = scales.direct(v)
        if direct is not None:  # Nesterov's look ahead
            force = add(force, direct)
        products = chain.products(step.inner, force)
        by_lambda, _ = chain.decay_products(step.before.params, v, scales)
        return own, add(products, by_lambda)
