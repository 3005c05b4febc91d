"""Both kinds of placement have the same methods; which one there is."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.training import placement
from keras_hposgld.training.placement import OneReplica
from keras_hposgld.training.placement import placement_of
from keras_hposgld.training.placement import Replicas


def public_methods(kind):
    return {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_")
    }


def test_both_kinds_have_the_same_methods_with_the_same_signatures():
    methods = public_methods(Replicas)
    assert len(methods) == 17
    assert public_methods(OneReplica) == methods


def test_both_kinds_have_the_same_public_attributes(mirrored):
    def names(kind):
        return {name for name in vars(kind) if not name.startswith("_")}

    one, several = OneReplica(), Replicas(mirrored)
    assert (one.num_replicas, several.num_replicas) == (1, 2)
    assert (one.strategy, several.strategy) == (None, mirrored)
    # Which way `Replicas` runs a chain is for itself alone.
    assert names(several) - {"averages_in_loops"} == names(one) | {
        "num_replicas"
    }


def test_strategy_decides_the_kind(mirrored):
    one_device = tf.distribute.OneDeviceStrategy("/cpu:0")
    alone = tf.distribute.MirroredStrategy(["CPU:0"])
    assert type(placement_of(None)) is OneReplica
    assert type(placement_of(one_device)) is OneReplica
    # One replica, but variables and optimizers are those of several.
    assert type(placement_of(alone)) is Replicas
    assert placement_of(mirrored).num_replicas == 2
    assert placement_of(one_device).strategy is one_device


def test_placement_is_found_by_the_scope_and_by_the_model(mirrored):
    assert placement.current().strategy is None
    with mirrored.scope():
        assert placement.current().strategy is mirrored
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert placement.of_model(model).strategy is mirrored
    plain = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    assert placement.of_model(plain).strategy is None
    assert placement.of_model(keras.Sequential()).strategy is None


@pytest.mark.parametrize("compiled", [False, True])
def test_pieces_agree_on_numbers_known_by_hand(mirrored, compiled):
    # Each replica has its own number, 3 and 5; the counter is one for all.
    places = OneReplica(), Replicas(mirrored)
    per_replica = mirrored.experimental_distribute_values_from_function(
        lambda context: tf.constant([3.0, 5.0])[
            context.replica_id_in_sync_group
        ]
    )
    count = tf.constant(7, tf.int64)

    def pieces(place, value):
        total = place.sum(lambda x: {"doubled": 2 * x}, value)
        # Times x: without `average` the products have another mean.
        products = place.mean(
            place.call(
                lambda x: [a * x for a in place.average([x, x * x])], value
            )
        )
        state = place.loop(
            lambda state, index, x: state + x + tf.cast(index, tf.float32),
            place.call(tf.identity, value),
            3,
            value,
        )
        return total["doubled"], products, *place.mean([state, count])

    for place, value, expected in zip(
        places,
        (tf.constant(4.0), per_replica),
        ((8.0, [16.0, 64.0], 19.0, 7), (16.0, [16.0, 68.0], 19.0, 7)),
        strict=True,
    ):
        function = tf.function(pieces) if compiled else pieces
        found = tf.nest.flatten(function(place, value))
        np.testing.assert_array_equal(found, tf.nest.flatten(expected))
        assert found[-1].dtype == tf.int64


def test_numbers_are_agreed_upon_and_recording_needs_the_whole_batch(mirrored):
    one, several = OneReplica(), Replicas(mirrored)
    assert (one.agreed(2**31), several.agreed(2**31)) == (2**31, 2**31)
    one.check_recording()
    with pytest.raises(ValueError, match="`inner_data` must be given"):
        several.check_recording()
