"""The error where there is no second derivative, from all that need one."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.core import derivatives
from keras_hposgld.core.missing_derivatives import missing
from keras_hposgld.core.missing_derivatives import MissingSecondDerivativeError
from keras_hposgld.core.second_derivatives import differentiable_twice

E = hs.estimators
NEED_ONE = {
    "rmd": E.RMD(num_steps=2),
    "fmd": E.FMD(num_steps=2),
    "adjoint": E.AdjointSGLD(1, 2),
    "gauss-newton": E.AdjointSGLD(1, 2, curvature="gauss_newton"),
    "cg": E.IFTCG(num_steps=2),
    "neumann": E.IFTNeumann(num_steps=2),
}
NEED_NONE = {
    "hpo_sgld": E.HPOSGLD(1, 2),
    "difference": E.AdjointSGLD(1, 2, hessian_product="difference"),
    "score": E.ScoreCovariance(1, 2),
}
IMAGES = np.random.default_rng(0).normal(size=(2, 3, 3, 2)).astype("float32")
LOGITS = np.random.default_rng(0).normal(size=(2, 6, 3)).astype("float32")


def local_response(weights):
    scaled = hs.mark_predictions(IMAGES * weights)
    return tf.reduce_sum(tf.nn.local_response_normalization(scaled) ** 3)


def ctc(weights):
    logits = hs.mark_predictions(LOGITS * weights)
    return keras.losses.CTC()(np.array([[1, 2], [2, 1]]), logits)


LOSSES = {
    "local response": (local_response, tf.ones([2]), "LRNGrad"),
    "ctc": (ctc, tf.ones([3]), "tf.nn.ctc_loss"),
}


@pytest.fixture(params=list(LOSSES))
def loss(request):
    return LOSSES[request.param]


@pytest.fixture(params=[False, True], ids=["eager", "autograph"])
def run(request):
    """As a user does who knows nothing of AutoGraph, too."""
    return tf.function if request.param else lambda function: function


def hypergradient(run, loss, start, estimator):
    problem = hs.BilevelProblem(
        lambda h, w, batch: loss(w) + h * tf.reduce_sum(w**2),
        lambda h, w, batch: tf.reduce_sum(w**2),
    )
    sampler = hs.SGLD(0.01, temperature=0.1)
    return run(
        lambda: (
            hs.hypergradient(
                problem,
                tf.constant(0.1),
                start,
                estimator=estimator,
                sampler=sampler,
            ).hypergradient
        )
    )()


@pytest.mark.parametrize("name", list(NEED_ONE))
def test_who_needs_one_says_what_to_do(name, loss, run):
    loss, start, operation = loss
    with pytest.raises(MissingSecondDerivativeError) as error:
        hypergradient(run, loss, start, NEED_ONE[name])
    assert f"operation='{operation}'" in str(error.value)
    way_out = str(missing(operation)).split("Received")[1].partition(". ")[2]
    assert way_out in str(error.value)
    assert isinstance(error.value, (ValueError, LookupError))


@pytest.mark.parametrize("name", list(NEED_NONE))
def test_who_needs_none_goes_on(name, loss):
    loss, start, _ = loss
    found = hypergradient(lambda f: f, loss, start, NEED_NONE[name])
    assert np.isfinite(found)
    assert found != 0.0


def test_gauss_newton_says_so_of_the_model_too():
    # The product with the Jacobian is the derivative of a gradient as well.
    def loss(weights):
        y = tf.nn.local_response_normalization(IMAGES * weights)
        return tf.reduce_sum(hs.mark_predictions(y) ** 2)

    with pytest.raises(MissingSecondDerivativeError, match="LRNGrad"):
        hypergradient(lambda f: f, loss, tf.ones([2]), NEED_ONE["gauss-newton"])


def test_place_is_named_in_a_graph():
    def objective(params):
        with tf.name_scope("here"):
            y = tf.nn.local_response_normalization(IMAGES * params[0])
        return tf.reduce_sum(y**3), None

    @tf.function(autograph=False)
    def product(w):
        inner = derivatives.linearize_gradient(objective, [w], [w])
        return inner.pullback([w])[0]

    with pytest.raises(MissingSecondDerivativeError, match="here/LRN"):
        product(tf.ones([2]))


def test_layer_is_named_by_forward_mode():
    class LocalResponse(keras.layers.Layer):
        def call(self, x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.nn.local_response_normalization(x)
            return tape.gradient(y, x)

    with pytest.raises(MissingSecondDerivativeError, match="LocalResponse"):
        derivatives.directional_derivative(
            lambda inputs: [LocalResponse()(inputs[0])],
            [tf.constant(IMAGES)],
            [tf.constant(IMAGES)],
        )


def test_other_errors_pass():
    def raises(error):
        def function(inputs):
            raise error

        return function

    for error in (KeyError("a"), IndexError("b"), TypeError("c")):
        with pytest.raises(type(error)) as caught:
            derivatives.directional_derivative(
                raises(error), [tf.constant(1.0)], [tf.constant(1.0)]
            )
        assert caught.value is error


def test_ctc_loss_and_its_gradient_are_tensorflows_own():
    def value_and_gradient():
        x = tf.constant(LOGITS)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = keras.losses.CTC()(np.array([[1, 2], [2, 1]]), x)
        return value, tape.gradient(value, x)

    own = value_and_gradient()
    with differentiable_twice():
        ours = value_and_gradient()
    for a, b in zip(ours, own, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_pullback_of_another_number_of_entries_is_refused(number):
    # TensorFlow would read beyond the end of a list that is too short.
    params = [tf.constant(1.0), tf.constant(2.0)]
    inner = derivatives.linearize_gradient(
        lambda params: (params[0] ** 2 * params[1] ** 2, None), params, params
    )
    with pytest.raises(ValueError, match=f"Received: {number} entries and 2"):
        inner.pullback([tf.constant(1.0)] * number)
