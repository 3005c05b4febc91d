"""Effective sample size and R-hat, by TensorFlow Probability."""

import contextlib
import logging
from collections.abc import Iterator

import tensorflow as tf
import tensorflow_probability as tfp

COMPLEX = "You are casting an input of type complex"


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
    with _real_parts_taken():
        sizes = tfp.mcmc.effective_sample_size(
            samples, filter_beyond_positive_pairs=True
        )
    return sizes, reduction


@contextlib.contextmanager
def _real_parts_taken() -> Iterator[None]:
    """Keeps TensorFlow from warning of a cast that is meant.

    TensorFlow Probability finds correlations by a Fourier transform, whose
    imaginary part is zero here. A user could do nothing about it.
    """

    def is_another(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(COMPLEX)

    logger = tf.get_logger()
    logger.addFilter(is_another)
    try:
        yield
    finally:
        logger.removeFilter(is_another)
