"""The strengths of a regularizer, renewed by the rules of `update_rules`."""

import math
from typing import Any

import numpy as np
import tensorflow as tf

from keras_hposgld.hyperparameters import bijectors
from keras_hposgld.hyperparameters.own_rules import Beginning
from keras_hposgld.hyperparameters.own_rules import ChainEnd
from keras_hposgld.regularizers import update_rules
from keras_hposgld.regularizers.granularity import kept_axes

# The step follows any strength here, so that a default bound need not be low.
MAX_VALUE = 1e6
LARGEST_SHARE = 0.999  # of the bound, where the way back is still exact
SCALE_OF_LINEAR = 1.0  # r0 at the start where it is learned: weak
# Where rates start, over the usual one: from the weak side, since strengths
# that are too strong at first hide from the weights what there is to learn.
START = 0.2


def has_rule(owner: Any) -> bool:
    """Whether strengths of this kind have a rule: those of one power."""
    return owner.powers in (("l1",), ("l2",))


def begin(owner: Any, beginning: Beginning) -> None:
    """Sets the start and the bound where the user has left them to us.

    Args:
        owner: `LearnableRegularizer`, with strengths.
        beginning: `Beginning`.
    """
    if not has_rule(owner):
        return
    (power,) = owner.powers
    for penalty in owner.penalties:
        variable = penalty.strengths[power]
        start = owner.unconstrain(owner.initial_value, variable.dtype)
        penalty.is_new = bool(np.all(variable.numpy() == np.asarray(start)))
    if beginning.follows_any and (owner.is_quadratic or owner.is_mixture):
        _widen(owner, power)
    for penalty in owner.penalties:
        penalty.pools = owner.granularity == "auto" and not beginning.is_first(
            penalty.weight
        )
        penalty.learns_scale = beginning.is_linear and len(penalty.shape) > 1
        if penalty.learns_scale and penalty.scale is None:
            owner.add_scale(penalty, SCALE_OF_LINEAR)
        if penalty.is_new and owner.starts_by_rule:
            log_rate = tf.fill(
                penalty.strengths[power].shape,
                math.log(START * _usual_rate(penalty, power)),
            )
            penalty.strengths[power].assign(
                _unconstrained(penalty, power, log_rate, beginning.temperature)
            )


def _widen(owner: Any, power: str) -> None:
    """Raises a bound that nobody asked for; the strengths stay."""
    if not owner.has_default_bound or owner.max_value == MAX_VALUE:
        return
    strengths = [owner.constrain(p.strengths[power]) for p in owner.penalties]
    owner.max_value = MAX_VALUE
    for penalty, values in zip(owner.penalties, strengths, strict=True):
        variable = penalty.strengths[power]
        variable.assign(owner.unconstrain(values, variable.dtype))


def renewed(owner: Any, end: ChainEnd) -> list | None:
    """Pairs of a variable and its next value, see `Hyperparameter.renewed`."""
    if not has_rule(owner):
        return None
    (power,) = owner.powers
    pairs: list = []
    for penalty in owner.penalties:
        pairs += _renewed(penalty, power, end)
    return pairs


def _renewed(penalty: Any, power: str, end: ChainEnd) -> list:
    variable = penalty.strengths[power]
    groups = _groups(penalty, power, end)
    usual = _usual_rate(penalty, power)
    if penalty.learns_scale:
        usual = tf.convert_to_tensor(penalty.scale)
    pairs = []
    if end.rule == "gradient":
        log_rate = update_rules.gradient(groups, usual, end.number)
    else:
        seeds = [end.seed_of(variable, purpose) for purpose in range(4)]
        log_rate, nu = update_rules.gibbs(groups, usual, seeds[:2])
        if penalty.learns_scale:
            scale = update_rules.common_scale(usual, nu, seeds[2:])
            pairs.append((penalty.scale, scale))
    log_rate = tf.broadcast_to(log_rate, variable.shape)
    value = _unconstrained(penalty, power, log_rate, end.temperature)
    return [(variable, value), *pairs]


def _groups(penalty: Any, power: str, end: ChainEnd) -> update_rules.Groups:
    log_rate = update_rules.log_rate_of(
        penalty.log_strength(power), power, end.temperature
    )
    weight = end.weight(penalty.weight)
    deviation = penalty.deviation(weight, log_rate.dtype)
    kept = kept_axes(penalty.owner.granularity, penalty.shape)
    if penalty.pools:
        kept, log_rate = set(), tf.reduce_mean(log_rate)
    axes = [axis for axis in range(len(penalty.shape)) if axis not in kept]
    number = math.prod(penalty.shape[axis] for axis in axes)
    shape = number / 2 if power == "l2" else float(number)
    size = update_rules.size_of(deviation, power, axes)
    return update_rules.Groups(log_rate, shape, size)


def _usual_rate(penalty: Any, power: str) -> float:
    if penalty.learns_scale:
        return SCALE_OF_LINEAR
    return update_rules.usual_rate(penalty.shape, power)


def _unconstrained(
    penalty: Any, power: str, log_rate: tf.Tensor, tau: Any
) -> tf.Tensor:
    """The variable's value at a rate, within the bound."""
    owner = penalty.owner
    log_strength = update_rules.log_strength_of(log_rate, power, tau)
    largest = math.log(LARGEST_SHARE * owner.max_value)
    log_strength = tf.minimum(log_strength, largest)
    dtype = penalty.strengths[power].dtype
    if owner.bijector is None:
        return tf.cast(
            bijectors.bounded_from_log(log_strength, owner.max_value), dtype
        )
    return tf.cast(owner.bijector.inverse(tf.exp(log_strength)), dtype)
