"""Shared fixtures: seeds, and the three ways in which TensorFlow runs."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import tensorflow as tf

# Two devices where there is one, for the tests of distribution.
if len(tf.config.list_physical_devices("CPU")) == 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


@pytest.fixture(autouse=True)
def fixed_seeds():
    keras.utils.set_random_seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["eager", "graph", "xla"])
def run(request):
    """Calls a function eagerly, as a graph, or compiled by XLA."""
    if request.param == "eager":
        return lambda function, *args: function(*args)
    jit_compile = request.param == "xla"

    def call(function, *args):
        compiled = tf.function(
            function, jit_compile=jit_compile, autograph=False
        )
        return compiled(*args)

    return call
