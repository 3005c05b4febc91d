"""Hyperparameters copied from model to model, and what is no partner."""

import keras
import numpy as np
import pytest
import tensorflow_probability as tfp
from builders import assert_equal
from builders import values

import keras_hposgld as hs

L = keras.layers
R = hs.regularizers
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(*regularizers, affine=None, trainable=(True, True)):
    """Two dense layers, each with one of the regularizers, or with none."""
    first, second = regularizers or (None, None)
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            *([] if affine is None else [affine]),
            L.Flatten(),
            L.Dense(3, kernel_regularizer=first, trainable=trainable[0]),
            L.Dense(3, kernel_regularizer=second, trainable=trainable[1]),
        ]
    )


def move(model, seed=0):
    """Gives a model hyperparameters as if it had learned."""
    rng = np.random.default_rng(seed)
    for owner in hs.find_hyperparameters(model):
        for variable in owner.hyperparameter_variables:
            variable.assign(rng.normal(-2.0, 1.0, variable.shape))
    return model


def one_for_both():
    shared = R.LearnableL1L2(granularity="input")
    return make_model(shared, shared)


def one_for_each():
    return make_model(
        R.LearnableL1L2(granularity="input"),
        R.LearnableL1L2(granularity="input"),
    )


def attached():
    return hs.BilevelModel(
        make_model(), regularizer=R.LearnableL1L2(granularity="input")
    )


@pytest.mark.parametrize("make_target", [one_for_both, one_for_each, attached])
@pytest.mark.parametrize("make_source", [one_for_both, one_for_each, attached])
def test_strengths_go_by_the_weight_to_the_last_bit(make_source, make_target):
    source, target = move(make_source()), make_target()
    weights = [weight.numpy() for weight in target.trainable_variables]
    before = values(source)
    assert hs.copy_hyperparameters(source, target) is None
    assert_equal(values(target), before)
    assert_equal(values(source), before)
    assert_equal(target.trainable_variables, weights)
    # Each has its own.
    move(target, seed=1)
    assert_equal(values(source), before)


def test_model_inside_of_a_learner_is_the_model_alone():
    model = move(one_for_both())
    target = hs.BilevelModel(one_for_each())
    hs.copy_hyperparameters(model, target)
    other = one_for_both()
    hs.copy_hyperparameters(target, other)
    assert_equal(values(other), values(model))
    hs.copy_hyperparameters(other, other)
    assert_equal(values(other), values(model))


def test_layers_losses_and_tables_are_copied():
    def make():
        learner = hs.BilevelModel(
            make_model(
                affine=hs.layers.LearnableAffine(rotation=9.0, scale=0.1)
            ),
            example_weights=hs.ExampleWeights(7),
        )
        learner.compile(
            optimizer=hs.SGLD(0.1),
            loss=hs.losses.LearnableClassWeights(3, from_logits=True),
            outer_loss=CROSS_ENTROPY,
        )
        return learner

    source, target = move(make()), make()
    hs.copy_hyperparameters(source, target)
    assert len(values(source)) == 4
    assert_equal(values(target), values(source))


def test_losses_go_by_their_outputs():
    def make(order):
        inputs = keras.Input((3,))
        outputs = {name: L.Dense(3, name=name)(inputs) for name in "ab"}
        model = keras.Model(inputs, outputs)
        losses = {n: hs.losses.LearnableLabelSmoothing() for n in order}
        model.compile("adam", loss=losses)
        return model, losses

    (source, known), (target, own) = make("ab"), make("ba")
    for number, loss in enumerate(known.values()):
        loss.variable.assign(float(number) - 3.0)
    hs.copy_hyperparameters(source, target)
    for name in "ab":
        assert float(own[name].variable) == float(known[name].variable)


@pytest.mark.parametrize(
    "regularizer",
    [
        lambda: R.LearnableL2(max_value=3.0),
        lambda: R.LearnableL2(bijector=tfp.bijectors.Softplus()),
        lambda: R.LearnableL2(bijector=tfp.bijectors.Exp(), max_value=0.9),
    ],
    ids=["bound", "softplus", "exponential"],
)
def test_strengths_are_converted_where_a_bound_has_room(regularizer):
    source = move(make_model(R.LearnableL2(max_value=1.0), None))
    (strengths,) = hs.find_hyperparameters(source)
    strengths.hyperparameter_variables[0].assign_add(np.full((36, 3), -1.0))
    target = make_model(regularizer(), None)
    hs.copy_hyperparameters(source, target)
    assert_equal(values(target), values(source), rtol=1e-5)
    assert np.std(values(target)[0]) > 0.01


def test_centers_are_those_of_the_target():
    source, target = (
        move(make_model(R.LearnableL2(center="initial"), None), seed)
        for seed in (1, 2)
    )
    (owner,) = hs.find_hyperparameters(target)
    center = owner.penalties[0].center.numpy()
    hs.copy_hyperparameters(source, target)
    assert_equal(values(target), values(source))
    np.testing.assert_array_equal(owner.penalties[0].center, center)
    assert np.any(
        center != hs.find_hyperparameters(source)[0].penalties[0].center
    )


def affine(**arguments):
    return make_model(affine=hs.layers.LearnableAffine(**arguments))


def with_loss(loss):
    model = make_model()
    model.compile("adam", loss=loss)
    return model


@pytest.mark.parametrize(
    ("make_source", "make_target", "messages"),
    [
        (
            lambda: make_model(R.LearnableL2(), R.LearnableL2()),
            lambda: make_model(R.LearnableL2(), R.LearnableL1()),
            [
                r"layers/dense_1/kernel \(l2\) of `source` has no partner",
                r"layers/dense_1/kernel \(l1\) of `target` has no partner",
            ],
        ),
        (
            one_for_both,
            lambda: make_model(
                R.LearnableL1L2(granularity="input"),
                R.LearnableL1L2(granularity="input"),
                trainable=(False, True),
            ),
            [
                r"layers/dense/kernel \(l1\) of `source`",
                r"layers/dense/kernel \(l2\) of `source`",
            ],
        ),
        (
            lambda: make_model(R.LearnableL2(granularity="input"), None),
            lambda: make_model(R.LearnableL2(granularity="output"), None),
            [r"shape \(36,\) in `source` and \(3,\) in `target`"],
        ),
        (
            # The same number of strengths, of other units.
            lambda: make_model(None, R.LearnableL2(granularity="input")),
            lambda: make_model(None, R.LearnableL2(granularity="output")),
            ["granularity 'input' in `source` and 'output' in `target`"],
        ),
        (
            lambda: make_model(R.LearnableL2(), None),
            lambda: make_model(R.LearnableL2(center="initial"), None),
            ["pulls to 'zero' in `source` and 'the initial weights' in"],
        ),
        (
            lambda: make_model(R.LearnableL2(max_value=50.0), None),
            lambda: make_model(R.LearnableL2(max_value=0.5), None),
            ["strengths up to .* in `source`, and a bound of 0.5 in `target`"],
        ),
        (
            # At the bound, where the sigmoid has no finite number.
            lambda: make_model(
                R.LearnableL2(bijector=tfp.bijectors.Exp(), max_value=0.5),
                None,
            ),
            lambda: make_model(R.LearnableL2(max_value=0.5), None),
            ["strengths up to 0.5 in `source`, and a bound of 0.5"],
        ),
        (
            lambda: affine(rotation=9.0),
            lambda: affine(rotation=9.0, shear=0.1),
            ["layers/learnable_affine/shear of `target` has no partner"],
        ),
        (
            lambda: affine(rotation=9.0),
            lambda: affine(rotation=9.0, max_rotation=20.0),
            ["layers/learnable_affine/rotation: .* stands for another value"],
        ),
        (
            lambda: with_loss(hs.losses.LearnableClassWeights(3)),
            lambda: with_loss(
                hs.losses.LearnableClassWeights(3, max_value=2.0)
            ),
            ["loss: the same number stands for another value"],
        ),
        (
            lambda: with_loss(hs.losses.LearnableClassWeights(8)),
            lambda: with_loss(hs.losses.LearnableTaylorLoss()),
            ["loss: is a LearnableClassWeights in `source` and a Learnable"],
        ),
        (
            one_for_both,
            make_model,
            ["`target` must have hyperparameters.*regularizer="],
        ),
        (make_model, one_for_both, ["`source` must have hyperparameters"]),
        (
            one_for_both,
            lambda: keras.Sequential([L.Dense(3)]),
            ["`target` must be built"],
        ),
        (
            lambda: keras.Sequential([L.Dense(3)]),
            one_for_both,
            ["`source` must be built"],
        ),
    ],
)
def test_all_that_has_no_partner_is_named_and_nothing_copied(
    make_source, make_target, messages
):
    source, target = make_source(), make_target()
    if source.built:
        move(source)
    before = values(target) if target.built else []
    with pytest.raises(ValueError) as error:
        hs.copy_hyperparameters(source, target)
    for message in messages:
        assert error.match(message)
    if before:
        assert_equal(values(target), before)
