"""Values and derivatives where everything is zero.

Norms, roots, logarithms and divisions have a value there, and no derivative
unless they are written for one. All that is differentiated is asked here for
its value, its first and its second derivative, of which none may be NaN.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core import derivatives
from keras_hposgld.core import linear_solvers
from keras_hposgld.core import second_derivatives
from keras_hposgld.core.gauss_newton import gauss_newton_product
from keras_hposgld.regularizers.bounded_penalty import bounded_penalty

E = hs.estimators
ZEROS = tf.zeros([2, 3])


def derivatives_of(objective, *params):
    """The value, the gradient and a product with the Hessian."""
    params = [tf.convert_to_tensor(p) for p in params]
    inner = derivatives.linearize_gradient(
        lambda params: (objective(*params), None), params, params
    )
    products = inner.pullback([tf.ones_like(p) for p in params])
    return [inner.value, *inner.gradient, *products]


def penalty(power):
    return lambda: derivatives_of(
        lambda w, u: bounded_penalty(w, u, power, 2.0), ZEROS, ZEROS
    )


def loss(make, y_pred):
    targets = tf.constant([0, 2])

    def at_one():
        loss = make()
        return derivatives_of(lambda y: loss(targets, y), y_pred)

    return at_one


def regularizer(cls, **arguments):
    def at_zero():
        layer = keras.layers.Dense(
            3,
            kernel_initializer="zeros",
            kernel_regularizer=cls(**arguments),
        )
        layer.build((None, 2))
        strengths = hs.find_hyperparameters(layer)[0].variables

        def objective(kernel, *unconstrained):
            mapping = zip(strengths, unconstrained, strict=True)
            scope = [(layer.kernel, kernel), *mapping]
            with keras.StatelessScope(scope):
                return layer.losses[0]

        return derivatives_of(objective, layer.kernel, *strengths)

    return at_zero


def affine():
    layer = hs.layers.LearnableAffine(
        rotation=10.0, translation=0.1, scale=0.1, shear=0.1, seed=1
    )
    images = tf.zeros([2, 4, 4, 1])
    layer.build(images.shape)
    ranges = list(layer.ranges.values())

    def objective(images, *values):
        with keras.StatelessScope(list(zip(ranges, values, strict=True))):
            return tf.reduce_sum(layer(images, training=True) ** 2)

    # Ranges of nearly zero, too.
    return derivatives_of(objective, images, *[r - 50.0 for r in ranges])


def normalized():
    def objective(x):
        mean, variance = second_derivatives.moments(x, [0])
        return tf.reduce_sum(mean + variance)

    return derivatives_of(objective, ZEROS)


def difference():
    return derivatives.difference_along(
        lambda x: [x[0] ** 2], [ZEROS], [ZEROS], [ZEROS]
    )


def gauss_newton():
    return gauss_newton_product(
        lambda params: tf.reduce_sum(hs.mark_predictions(params[0]) ** 2),
        [ZEROS],
        [ZEROS],
    )


def solved(solver):
    def at_zero():
        state = solver.start([ZEROS])
        for number in range(solver.num_steps):
            state = solver.step(state, number, lambda vector: vector)
        solution, residual = solver.solution(state)
        return [*solution, residual]

    return at_zero


def hypergradient(estimator, make_sampler):
    """Of a chain that stands at the minimum of both objectives."""

    def at_zero():
        problem = hs.BilevelProblem(
            lambda h, w, batch: tf.reduce_sum(tf.exp(h) * w**2),
            lambda h, w, batch: tf.reduce_sum(w**2),
        )
        estimate = hs.hypergradient(
            problem,
            tf.zeros([3]),
            tf.zeros([3]),
            estimator=estimator,
            sampler=make_sampler(),
        )
        return [estimate.hypergradient, estimate.params]

    return at_zero


SAMPLERS = {
    "clipnorm": lambda: hs.SGLD(0.1, clipnorm=0.5),
    "clipvalue": lambda: hs.SGLD(0.1, clipvalue=0.5),
    "global_clipnorm": lambda: hs.SGLD(0.1, global_clipnorm=0.5),
    "psgld": lambda: hs.PSGLD(0.1),
    **{
        name: lambda name=name: hs.samplers.get(name)
        for name in ("adam", "adamax", "nadam", "rmsprop")
    },
}
ESTIMATORS = {
    "hpo_sgld": E.HPOSGLD(1, 3),
    "adjoint_sgld": E.AdjointSGLD(1, 3),
    "difference": E.AdjointSGLD(1, 3, hessian_product="difference"),
    "rmd": E.RMD(num_steps=3),
    "fmd": E.FMD(num_steps=2),
    "ift_neumann": E.IFTNeumann(3, num_steps=2),
    "ift_cg": E.IFTCG(3, num_steps=2),
}
R, ONE_SURE = hs.regularizers, [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
PLACES = {
    "penalty, l1": (penalty("l1"), True),
    "penalty, l2": (penalty("l2"), True),
    "LearnableL1": (regularizer(R.LearnableL1), True),
    "LearnableL2": (regularizer(R.LearnableL2), True),
    "LearnableL1L2": (
        regularizer(R.LearnableL1L2, center="initial"),
        True,
    ),
    # Probabilities of zero and of one.
    "class weights": (
        loss(lambda: hs.losses.LearnableClassWeights(3), ONE_SURE),
        False,
    ),
    "label smoothing": (
        loss(hs.losses.LearnableLabelSmoothing, ONE_SURE),
        False,
    ),
    "Taylor loss": (loss(hs.losses.LearnableTaylorLoss, ONE_SURE), False),
    "loss of logits": (
        loss(
            lambda: hs.losses.LearnableClassWeights(3, from_logits=True),
            [[200.0, -200.0, 0.0]] * 2,
        ),
        False,
    ),
    "affine": (affine, True),
    "moments": (normalized, False),
    "difference": (difference, True),
    "Gauss-Newton": (gauss_newton, True),
    "conjugate gradients": (
        solved(linear_solvers.ConjugateGradient(3, 1e-6)),
        True,
    ),
    "Neumann series": (solved(linear_solvers.NeumannSeries(3, None)), True),
    **{
        f"{estimator}, sgld": (
            hypergradient(ESTIMATORS[estimator], lambda: hs.SGLD(0.1)),
            True,
        )
        for estimator in ESTIMATORS
    },
    **{
        f"{estimator}, {sampler}": (
            hypergradient(ESTIMATORS[estimator], SAMPLERS[sampler]),
            True,
        )
        for estimator in ("hpo_sgld", "rmd", "fmd")
        for sampler in SAMPLERS
    },
}


@pytest.mark.parametrize("place", list(PLACES))
def test_value_and_derivatives_at_zero_are_finite(place):
    at_zero, is_zero = PLACES[place]
    results = at_zero()
    for result in results:
        assert np.all(np.isfinite(result))
    if is_zero:
        np.testing.assert_array_equal(results[0], np.zeros_like(results[0]))
