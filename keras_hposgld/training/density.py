"""What a Keras model must be for its training data to judge it by themselves.

An estimator that needs no outer objective takes exp(-L_T / tau) for the
posterior of the weights: a likelihood of the training data, times a prior whose
normalizer is known. So the loss of an example is minus its log-likelihood, the
penalties of the weights are a prior, and L_T is a function of the weights
alone. What can be seen to be something else is refused here.
"""

import itertools
import math
from typing import Any

import keras

from keras_hposgld.estimators import HypergradientEstimator
from keras_hposgld.hyperparameters.addresses import all_layers
from keras_hposgld.hyperparameters.hyperparameter import Hyperparameter
from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.losses.learnable_loss import LearnableLoss
from keras_hposgld.regularizers import LearnableL2
from keras_hposgld.samplers.sgld import CLIPPING
from keras_hposgld.training.keras_problem import layer_variables
from keras_hposgld.training.likelihood import check_loss
from keras_hposgld.training.likelihood import check_terms
from keras_hposgld.training.likelihood import losses_and_outputs
from keras_hposgld.training.likelihood import WITH_OUTER_DATA

# A batch of arrays, unless the user says so: all examples, if they are not too
# many. Gradients without noise allow large steps and a momentum.
LARGE_BATCH = 2048
LARGEST_BATCH = 10_000  # of examples with few numbers each, as in a table
NUMBERS = 300_000  # of its inputs
AUTO = '`SGLD("auto")`'


def default_batch_size(x: Any) -> int:
    """How many examples a batch of arrays has at most, by their size.

    Args:
        x: Structure of arrays, or what yields batches.
    """
    shapes = [
        tuple(getattr(leaf, "shape", ())) for leaf in keras.tree.flatten(x)
    ]
    if not all(shapes) or None in itertools.chain(*shapes):
        return LARGE_BATCH
    is_table = sum(map(math.prod, shapes)) <= NUMBERS
    return LARGEST_BATCH if is_table else LARGE_BATCH


def refuse_outer_data(
    estimator: HypergradientEstimator, **arguments: Any
) -> None:
    """Refuses what is for an outer objective, where there is none.

    Args:
        estimator: `HypergradientEstimator`.
        **arguments: Of `fit`, by their names; `None` or 0 if not given.

    Raises:
        ValueError: If one is given.
    """
    for name, value in arguments.items():
        if value is None or (isinstance(value, float | int) and not value):
            continue
        raise ValueError(
            f"`{name}` cannot be given with `{type(estimator).__name__}`, "
            "which learns from the training data alone. Received: "
            f"{name}={value!r:.80}. Leave it out: all examples belong to `x`."
        )


def give_priors(learner: keras.Model) -> None:
    """Gives a learner without learned strengths some: a prior of its weights.

    Each of the trainable weights that has no regularizer gets one, but for
    those that scale what they are multiplied by, which are not about zero.

    Args:
        learner: `BilevelModel`, built.
    """
    owners = learner.find_hyperparameters()
    if learner.regularizer is None and not any(
        isinstance(owner, WeightHyperparameter) for owner in owners
    ):
        learner.regularizer = LearnableL2(granularity="auto")
        learner.filter = lambda weight: not weight.name.endswith("gamma")


def check_density(learner: keras.Model, owners: list[Hyperparameter]) -> None:
    """Checks what can be seen before there are data.

    Args:
        learner: `BilevelModel`, built and compiled.
        owners: The objects that own its hyperparameters.

    Raises:
        ValueError: If a hyperparameter is part of no prior or likelihood; if
            the loss is none; if a weight has a constraint.
    """
    estimator = learner.hypergradient
    name = type(estimator).__name__
    refuse_outer_data(estimator, outer_loss=learner.outer_level.outer_loss)
    for owner in owners:
        if owner.log_normalizer(1.0) is None:
            raise ValueError(
                f"`{name}` learns what a prior of the weights or a likelihood "
                "depends on, and nothing else: it would go to where the loss "
                f"is smallest. Received: {owner!r}. Use `LearnableL2`, "
                "`LearnableL1` or `LearnableL1L2` for strengths, also in the "
                "place of `LearnableWeightDecay`, and `LearnableGaussianLoss` "
                "for the noise of a regression, `NoisyLabelCrossentropy` for "
                f"wrong labels; or {WITH_OUTER_DATA}."
            )
    clipping = [
        limit
        for limit in CLIPPING
        if getattr(learner.optimizer, limit, None) is not None
    ]
    if clipping:
        raise ValueError(
            f"`{clipping[0]}` cannot be given with `{name}`: a chain of "
            "clipped gradients does not sample the posterior. Received: "
            f"{clipping[0]}={getattr(learner.optimizer, clipping[0])}. Leave "
            "it out, and take a smaller learning rate."
        )
    constrained = [
        weight.path
        for weight in learner.trainable_variables
        if weight.constraint is not None
    ]
    if constrained:
        raise ValueError(
            f"`{name}` needs weights without a constraint, which would cut "
            f"off a part of their prior. Received: {constrained[:5]}. Leave "
            f"the constraint out, or use {WITH_OUTER_DATA}."
        )
    _check_constants(name, learner)
    check_loss(name, **learner.plain_compile_arguments())


def _check_constants(name: str, learner: keras.Model) -> None:
    """Refuses Keras's L1 where the steps are chosen without a look at it.

    Step sizes come from second derivatives, and L1 has none. Its L2 is a prior
    whose curvature is known; what is not learned needs no normalizer.
    """
    held = [
        weight.path
        for weight in learner.trainable_variables
        if _l1_of(weight.regularizer) > 0
    ]
    if held and learner.sampler.takes_step_sizes:
        raise ValueError(
            f"Keras's L1 cannot be followed by the steps of {AUTO} with "
            f"`{name}`: weights would hover around zero too widely. Received: "
            f"it as the regularizer of {held[:5]}. Use `LearnableL1` or "
            "`LearnableL1L2`, or a small learning rate that you choose: "
            '`SGLD(learning_rate, integrator="exponential")`.'
        )


def _l1_of(regularizer: Any) -> float:
    kinds = keras.regularizers.L1 | keras.regularizers.L1L2
    return float(regularizer.l1) if isinstance(regularizer, kinds) else 0.0


def check_on_batch(
    learner: keras.Model, batch: Any, has_temperature: bool
) -> None:
    """Checks what the layers do with data, before the first step.

    Args:
        learner: `BilevelModel`, built and compiled.
        batch: The first one of the training data.
        has_temperature: Whether the user has given that of the sampler, and
            so has counted.

    Raises:
        ValueError: If layers draw random numbers or keep a state in training;
            if there are several losses of one output; if the loss of an
            example is a mean.
    """
    name = type(learner.hypergradient).__name__
    x, *_ = keras.utils.unpack_x_y_sample_weight(batch)
    is_training = learner.outer_level.layer_state == "carried"
    with keras.StatelessScope() as scope:
        y_pred = learner.model(x, training=is_training)
    changed = [
        variable
        for variable in layer_variables(learner.model)
        if scope.get_current_value(variable) is not None
    ]
    if changed and is_training:
        raise ValueError(
            f"`{name}` needs a model whose loss is one function of the "
            "weights, without layers that draw random numbers or keep a state "
            f"in training. Received: {_holders(learner.model, changed)}. Leave "
            "them out, with LayerNormalization for BatchNormalization, or "
            'pass `layer_state="frozen"` to `compile`, which runs the model as '
            f"in inference; or use {WITH_OUTER_DATA}."
        )
    pairs = losses_and_outputs(learner, y_pred)
    for owner, _ in pairs:
        if isinstance(owner, LearnableLoss):
            # Whose rule has to know how many targets it judges.
            owner.num_outputs = sum(loss is owner for loss, _ in pairs)
    check_terms(name, pairs, has_temperature)


def _holders(model: keras.Model, variables: list) -> str:
    """Which layers variables belong to: the innermost ones."""
    layers = sorted(all_layers(model), key=lambda layer: len(layer.variables))
    held = {
        next(
            f"{layer.name!r} of type {type(layer).__name__}"
            for layer in layers
            if any(own is variable for own in layer.variables)
        ): None
        for variable in variables
    }
    return ", ".join(list(held)[:5])
