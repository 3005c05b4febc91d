"""Arithmetic on lists of tensors, where it is not plain."""

import math

import pytest
import tensorflow as tf

from keras_hposgld.core import vectors


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "vector, reference, cosine, ratio",
    [
        ([3.0, 4.0], [6.0, 8.0], 1.0, 0.5),
        ([3.0, 4.0], [4.0, -3.0], 0.0, 1.0),
        ([3.0, 4.0], [0.0, 0.0], 0.0, math.inf),
        ([0.0, 0.0], [3.0, 4.0], 0.0, 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 1.0),
    ],
)
def test_agreement_is_defined_for_vectors_of_zeros(
    vector, reference, cosine, ratio, dtype
):
    vector, reference = (
        [tf.constant(part, dtype) for part in parts]
        for parts in (vector, reference)
    )
    agreement = vectors.agreement(vector, reference)
    assert agreement == pytest.approx((cosine, ratio))
