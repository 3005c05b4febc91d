"""Shared fixtures: seeds, and the three ways in which TensorFlow runs."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest
import slowest
import tensorflow as tf
from builders import has_version

# Two devices where there is one, for the tests of distribution.
if len(tf.config.list_physical_devices("CPU")) == 1:
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )


def pytest_collection_modifyitems(config, items):
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    slowest.mark(items, slowest.listed(), is_whole)


@pytest.fixture(autouse=True, scope="session")
def datasets_are_not_tuned():
    # TensorFlow tunes each dataset in a thread. Whoever drops the iterator
    # waits for that thread, and on a busy machine it sleeps up to a minute
    # more before it notices.
    options, iterate = tf.data.Options(), tf.data.Dataset.__iter__
    options.autotune.enabled = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            tf.data.Dataset,
            "__iter__",
            lambda dataset: iterate(dataset.with_options(options)),
        )
        yield


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


@pytest.fixture(scope="session")
def mirrored():
    # One for all: TensorFlow mixes up the collectives of two in one process.
    devices = tf.config.list_logical_devices("CPU")
    if len(devices) < 2:
        pytest.skip("needs two logical CPU devices; see conftest.py")
    if not has_version(keras, 3, 9):
        pytest.skip("Keras 3.8 takes no distributed data")
    return tf.distribute.MirroredStrategy([d.name for d in devices[:2]])


@pytest.fixture
def float64():
    # The policy too: a layer that was made before has fixed it to float32.
    policy = keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy(policy)


@pytest.fixture
def policy(request):
    """The dtype policy of the time of a test, an indirect parameter."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)
