"""Checks of arguments, on all that a user may pass by mistake."""

from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from keras_hposgld.core import checks

# What is not a number at all, or not one that is finite.
NEVER = {
    "None": None,
    "inf": float("inf"),
    "-inf": float("-inf"),
    "nan": float("nan"),
    "np.inf": np.float32("inf"),
    "np.nan": np.float64("nan"),
    "True": True,
    "np.True_": np.True_,
    "string": "3",
    "np.str_": np.str_("3"),
    "complex": 3 + 0j,
    "list": [3],
    "tuple": (3,),
    "array": np.array([3, 4]),
    "0-d array": np.array(3),
    "tensor": tf.constant([3.0, 4.0]),
    "0-d tensor": tf.constant(3),
    "object": object(),
}


@pytest.fixture(params=list(NEVER))
def never(request):
    return NEVER[request.param]


def test_what_is_not_a_number_is_refused_by_every_check(never):
    for check, rule in (
        (lambda: checks.check_count("size", never, 0), "be an integer"),
        (lambda: checks.check_number("size", never), "be a finite number"),
        (lambda: checks.check_seed("size", never), "be an integer from 0"),
        (lambda: checks.check_known("size", never, ("a", "b")), "be one of"),
    ):
        with pytest.raises(ValueError, match=f"`size` must {rule}") as error:
            check()
        assert f"Received: size={never!r}." in str(error.value)


def test_symbolic_tensor_is_refused():
    @tf.function
    def call(value):
        checks.check_number("size", value)

    with pytest.raises(ValueError, match="`size` must be a finite number"):
        call(tf.constant(1.0))


@pytest.mark.parametrize(
    "value",
    [
        2,
        2.0,
        np.int64(2),
        np.uint8(2),
        np.float16(2),
        np.float32(2),
        Fraction(2),
    ],
)
def test_count_is_returned_as_an_integer(value):
    count = checks.check_count("size", value, 2, 2)
    assert type(count) is int
    assert count == 2


@pytest.mark.parametrize(
    "value, rule",
    [
        (2.5, "be an integer, at least 1"),
        (np.float32(0.5), "be an integer, at least 1"),
        (Fraction(10**20, 3), "be an integer, at least 1"),
        (0, "be at least 1"),
        (-1.0, "be at least 1"),
        (10, "be at most 9"),
        (10**20, "be at most 9"),
    ],
)
def test_count_out_of_range_is_refused(value, rule):
    with pytest.raises(ValueError, match=f"`size` must {rule}.*Received: size"):
        checks.check_count("size", value, 1, 9)


def test_count_without_a_maximum_may_be_of_any_size():
    assert checks.check_count("size", 10**400, 1) == 10**400


@pytest.mark.parametrize(
    "value", [1, 0.5, np.int32(1), np.float32(0.5), np.float64(0.5)]
)
def test_number_is_returned_as_a_float(value):
    number = checks.check_number("rate", value, zero_allowed=False, maximum=1)
    assert type(number) is float
    assert number == value


def test_number_out_of_range_is_refused():
    assert checks.check_number("rate", 0) == 0.0
    for arguments, rule in (
        ((-1e-30,), "0 or above"),
        ((10**400,), "0 or above"),
        ((-(10**400),), "0 or above"),
        ((0.0, False), "above 0"),
        ((np.float32(0), False), "above 0"),
        ((1.5, True, 1), "0 or above and at most 1"),
        ((1.5, False, 1), "above 0 and at most 1"),
        ((1, True, None, 1), "0 or above and below 1"),
    ):
        message = rf"`rate` must be a finite number {rule}\. Received: rate="
        with pytest.raises(ValueError, match=message):
            checks.check_number("rate", *arguments)


def test_known_value_is_returned():
    known = (None, "initial", "last")
    for value in (*known, np.str_("last")):
        assert checks.check_known("center", value, known) == value
    with pytest.raises(
        ValueError, match=r"one of \('a',\)\. Received: center="
    ):
        checks.check_known("center", "b", {"a": 1})


@pytest.mark.parametrize(
    "value", [0, 2**64 - 1, np.int64(2**63 - 1), np.uint64(2**64 - 1)]
)
def test_seed_is_returned_as_an_integer(value):
    seed = checks.check_seed("seed", value)
    assert type(seed) is int
    assert seed == int(value)


@pytest.mark.parametrize("value", [-1, np.int32(-1), 2**64, 2.0, 1.5])
def test_seed_that_64_bits_do_not_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"`seed`.*2\*\*64 - 1.*seed="):
        checks.check_seed("seed", value)
