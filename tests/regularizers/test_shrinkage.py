"""The prior that pulls the strengths of one weight to each other."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import keras_hposgld as hs

KINDS = {
    "l1": hs.regularizers.LearnableL1,
    "l2": hs.regularizers.LearnableL2,
    "l1l2": hs.regularizers.LearnableL1L2,
    "decay": hs.regularizers.LearnableWeightDecay,
}


def all_of_it(weight, curvature, is_decoupled):
    """As if an estimate held the whole derivative."""
    return tf.ones_like(curvature)


def regularized(kind, **arguments):
    """A layer of 5 to 3 units in float64, its strengths at random."""
    regularizer = KINDS[kind](0.5, **{"max_value": 3.0} | arguments)
    layer = keras.layers.Dense(
        3, kernel_regularizer=regularizer, dtype="float64"
    )
    model = keras.Sequential([keras.Input((5,), dtype="float64"), layer])
    (owner,) = hs.find_hyperparameters(model)
    rng = np.random.default_rng(3)
    for variable in owner.hyperparameter_variables:
        variable.assign(rng.normal(size=variable.shape))
    return owner, layer.kernel


def minus_log_prior(owner):
    """The sum of `shrinkage * |d|`, by its definition."""
    total = 0.0
    for value in owner.hyperparameter_values().values():
        logs = np.log(np.asarray(value))
        total += owner.shrinkage * np.abs(logs - logs.mean()).sum()
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "arguments",
    [
        {"granularity": "auto"},
        {"granularity": "output", "shrinkage": 0.3, "center": "initial"},
        {
            "granularity": "parameter",
            "shrinkage": 2.0,
            "bijector": tfp.bijectors.Softplus(),
            "max_value": 30.0,
        },
    ],
)
def test_gradient_is_that_of_the_prior(kind, arguments):
    owner, _ = regularized(kind, **arguments)
    gradient = owner.prior_gradient(all_of_it)
    step = 1e-6
    for variable, part in zip(
        owner.hyperparameter_variables, gradient, strict=True
    ):
        start, flat = variable.numpy(), np.ravel(part)
        for place in range(start.size):
            moved = []
            for sign in (1, -1):
                shifted = start.copy()
                shifted.flat[place] += sign * step
                variable.assign(shifted)
                moved.append(minus_log_prior(owner))
            variable.assign(start)
            slope = (moved[0] - moved[1]) / (2 * step)
            assert flat[place] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_each_deviation_counts_by_its_share():
    owner, kernel = regularized("decay", granularity="input", shrinkage=1.0)
    (value,) = owner.hyperparameter_values().values()
    seen = []

    def share(weight, curvature, is_decoupled):
        seen.append((weight, curvature, is_decoupled))
        return 0.1 * curvature

    (gradient,) = owner.prior_gradient(share)
    ((weight, curvature, is_decoupled),) = seen
    assert weight is kernel and is_decoupled
    np.testing.assert_allclose(curvature, np.reshape(value, (5, 1)))
    value = np.asarray(value)
    pull = 0.1 * value * np.sign(np.log(value) - np.log(value).mean())
    expected = (pull - pull.mean()) * (1 - value / 3.0)
    np.testing.assert_allclose(gradient, expected)


def test_curvature_of_the_pull():
    for kind, power in (("l2", 2.0), ("l1", None)):
        owner, kernel = regularized(kind, granularity="input", shrinkage=1.0)
        (value,) = owner.hyperparameter_values().values()
        seen = []

        def share(weight, curvature, is_decoupled, seen=seen):
            seen.append(curvature)
            assert not is_decoupled
            return tf.ones_like(curvature)

        owner.prior_gradient(share)
        over = power or 1.0 / np.abs(kernel).mean()
        np.testing.assert_allclose(np.ravel(seen[0]), over * np.asarray(value))


def test_auto_is_per_input_with_a_prior():
    regularizer = hs.regularizers.LearnableL2(granularity="auto")
    assert regularizer.shrinkage == 0.5
    for shape, expected in (
        ((5, 3), (5,)),
        ((2, 2, 4, 3), (4,)),
        ((7,), ()),
    ):
        weight = keras.Variable(np.zeros(shape), trainable=True)
        penalty = regularizer.attach(weight)
        assert penalty.strengths["l2"].shape == expected
        assert np.ndim(penalty(weight)) == 0


def test_prior_is_an_argument_that_is_saved():
    plain = hs.regularizers.LearnableL1(granularity="input")
    assert plain.shrinkage == 0.0 and plain.prior_gradient(all_of_it) is None
    made = hs.regularizers.LearnableL1(granularity="auto", shrinkage=0.25)
    again = hs.regularizers.LearnableL1.from_config(made.get_config())
    assert again.shrinkage == 0.25 and again.granularity == "auto"
    old = {k: v for k, v in made.get_config().items() if k != "shrinkage"}
    old["granularity"] = "input"
    assert hs.regularizers.LearnableL1.from_config(old).shrinkage == 0.0
    with pytest.raises(ValueError, match="`shrinkage`"):
        hs.regularizers.LearnableL2(shrinkage=-1.0)
