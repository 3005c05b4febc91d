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
    """Whether strengths of this kind have a rule: those of a prior."""
    return set(owner.powers) <= {"l1", "l2"}


def begin(owner: Any, beginning: Beginning) -> None:
    """Sets the start and the bound where the user has left them to us.

    Args:
        owner: `LearnableRegularizer`, with strengths.
        beginning: `Beginning`.
    """
    if not has_rule(owner):
        return
    for penalty in owner.penalties:
        penalty.is_new = _is_as_made(penalty)
    if beginning.follows_any and (owner.is_quadratic or owner.is_mixture):
        _widen(owner)
    for penalty in owner.penalties:
        penalty.pools = owner.granularity == "auto" and not beginning.is_first(
            penalty.weight
        )
        penalty.learns_scale = (
            beginning.learns_scale
            and len(penalty.shape) > 1
            and len(owner.powers) == 1
        )
        if penalty.learns_scale and penalty.scale is None:
            owner.add_scale(penalty, SCALE_OF_LINEAR)
        if penalty.is_new and owner.starts_by_rule:
            _start(penalty, beginning.temperature)


def _is_as_made(penalty: Any) -> bool:
    """Whether no strength of a weight has moved."""
    owner = penalty.owner
    variables = list(penalty.strengths.values())
    start = owner.unconstrain(owner.initial_value, variables[0].dtype)
    return all(np.all(v.numpy() == np.asarray(start)) for v in variables)


def _start(penalty: Any, tau: float) -> None:
    """Sets all strengths of a weight to where they start."""
    for power, variable in penalty.strengths.items():
        start = math.log(START * _usual_rate(penalty, power))
        log_rate = tf.fill(variable.shape, start)
        variable.assign(_unconstrained(penalty, power, log_rate, tau))


def _widen(owner: Any) -> None:
    """Raises a bound that nobody asked for; the strengths stay."""
    if not owner.has_default_bound or owner.max_value == MAX_VALUE:
        return
    variables = [v for p in owner.penalties for v in p.strengths.values()]
    strengths = list(map(owner.constrain, variables))
    owner.max_value = MAX_VALUE
    for variable, value in zip(variables, strengths, strict=True):
        variable.assign(owner.unconstrain(value, variable.dtype))


def renewed(owner: Any, end: ChainEnd) -> list | None:
    """Pairs of a variable and its next value, see `Hyperparameter.renewed`."""
    if not has_rule(owner):
        return None
    pairs: list = []
    for penalty in owner.penalties:
        for power, groups in _groups(penalty, end).items():
            pairs += _renewed(penalty, power, groups, end)
    return pairs


def _renewed(
    penalty: Any, power: str, groups: update_rules.Groups, end: ChainEnd
) -> list:
    variable = penalty.strengths[power]
    usual = _usual_rate(penalty, power)
    if penalty.learns_scale:
        usual = tf.convert_to_tensor(penalty.scale)
    pairs = []
    if end.rule == "gradient" or groups.expected is not None:
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


def _groups(penalty: Any, end: ChainEnd) -> dict[str, update_rules.Groups]:
    """What the strengths of each power know of the weight."""
    log_rates = {
        power: update_rules.log_rate_of(
            penalty.log_strength(power), power, end.temperature
        )
        for power in penalty.strengths
    }
    kept = kept_axes(penalty.owner.granularity, penalty.shape)
    if penalty.pools:
        kept = set()
        log_rates = tf.nest.map_structure(tf.reduce_mean, log_rates)
    axes = [axis for axis in range(len(penalty.shape)) if axis not in kept]
    number = math.prod(penalty.shape[axis] for axis in axes)
    expected = {}
    if len(log_rates) > 1:
        expected = update_rules.expected_sizes(log_rates)
    dtype = next(iter(log_rates.values())).dtype
    deviation = penalty.deviation(end.weight(penalty.weight), dtype)
    return {
        power: update_rules.Groups(
            log_rate,
            number / 2 if power == "l2" else float(number),
            update_rules.size_of(deviation, power, axes),
            number * expected[power] if expected else None,
        )
        for power, log_rate in log_rates.items()
    }


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
