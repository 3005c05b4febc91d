"""Checks of the arguments that users pass, and the errors they give.

Each check takes the argument's name and value, and returns the value as the
type that it stands for. What is wrong in any way, also in its type, gives a
`ValueError`: the argument in backticks, the rule, `Received: name=value`.
Numbers are those of Python and the scalars of NumPy; booleans, strings, arrays
and tensors are not.
"""

import math
import numbers
from collections.abc import Collection
from typing import Any

NUM_SEEDS = 2**64


def check_count(
    name: str, value: Any, minimum: int, maximum: int | None = None
) -> int:
    """Checks an integer argument and returns it.

    Args:
        name: String, what the user calls the argument.
        value: What was passed. A float without a fraction, such as `2.0`, is
            an integer.
        minimum: Integer, the least value allowed.
        maximum: Integer, the greatest value allowed. `None` (default): there
            is none.

    Raises:
        ValueError: If `value` is not an integer, or out of range.
    """
    # `int` for fractions that are one only beyond the precision of a float.
    is_whole = _as_float(value).is_integer() and value == int(value)
    if not (_is_integer(value) or is_whole):
        raise ValueError(
            f"`{name}` must be an integer, at least {minimum}. "
            f"Received: {name}={value!r}."
        )
    count = int(value)
    if count < minimum:
        raise ValueError(
            f"`{name}` must be at least {minimum}. Received: {name}={value!r}."
        )
    if maximum is not None and count > maximum:
        raise ValueError(
            f"`{name}` must be at most {maximum}. Received: {name}={value!r}."
        )
    return count


def check_number(
    name: str,
    value: Any,
    zero_allowed: bool = True,
    maximum: float | None = None,
    below: float | None = None,
) -> float:
    """Checks a float argument, which must not be negative, and returns it.

    Args:
        name: String, what the user calls the argument.
        value: What was passed.
        zero_allowed: Whether `value` may be zero. Defaults to `True`.
        maximum: Float, the greatest value allowed. `None` (default): any
            finite one.
        below: Float, the least value that is too large. `None` (default):
            there is none.

    Raises:
        ValueError: If `value` is not a number, not finite, or out of range.
    """
    number = _as_float(value)
    in_range = number >= 0 if zero_allowed else number > 0
    in_range &= maximum is None or number <= maximum
    in_range &= below is None or number < below
    if not (in_range and math.isfinite(number)):
        bound = "0 or above" if zero_allowed else "above 0"
        if maximum is not None:
            bound += f" and at most {maximum}"
        if below is not None:
            bound += f" and below {below}"
        raise ValueError(
            f"`{name}` must be a finite number {bound}. "
            f"Received: {name}={value!r}."
        )
    return number


def check_known(name: str, value: Any, known: Collection) -> Any:
    """Checks that an argument is one of the known ones and returns it.

    Args:
        name: String, what the user calls the argument.
        value: What was passed.
        known: What may be passed: strings, `None`.

    Raises:
        ValueError: If `value` is none of them.
    """
    # An array compares by its entries, a tensor refuses some types.
    if not any(isinstance(value, type(x)) and value == x for x in known):
        raise ValueError(
            f"`{name}` must be one of {tuple(known)}. "
            f"Received: {name}={value!r}."
        )
    return value


def check_seed(name: str, value: Any) -> int:
    """Checks a seed and returns it.

    Args:
        name: String, what the user calls the argument.
        value: What was passed.

    Raises:
        ValueError: If `value` is not an integer that 64 bits hold.
    """
    if not (_is_integer(value) and 0 <= value < NUM_SEEDS):
        raise ValueError(
            f"`{name}` must be an integer from 0 to 2**64 - 1. "
            f"Received: {name}={value!r}."
        )
    return int(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _as_float(value: Any) -> float:
    """`value` as a float, NaN where it is not a number at all."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:  # an integer or a fraction of hundreds of digits
        return math.inf
