"""Effective sample size and R-hat, by TensorFlow Probability."""

import tensorflow as tf
import tensorflow_probability as tfp


def chain_statistics(samples: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Effective sample size of each chain, and R-hat of all together.

    Args:
        samples: Tensor `(num_samples, num_chains, ...)`, at least 4 samples.

    Returns:
        Tensors of shapes `(num_chains, ...)` and `(...)`.
    """
    reduction = tfp.mcmc.potential_scale_reduction(
        samples, independent_chain_ndims=1, split_chains=True
    )
    sizes = tfp.mcmc.effective_sample_size(
        samples, filter_beyond_positive_pairs=True
    )
    return sizes, reduction
