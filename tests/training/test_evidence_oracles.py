"""The strengths that `fit(x, y)` comes to, against scikit-learn's."""

import keras
import numpy as np
import pytest

import keras_hposgld as hs

N, FEATURES = 80, 5


def make_data():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, FEATURES))
    y = x @ [1.0, -0.5, 0.3, 0.05, 0.0] + 0.5 * rng.normal(size=N)
    return x, y - y.mean()


class Course(keras.callbacks.Callback):
    """The logarithms of all that is learned, once an epoch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_end(self, epoch, logs=None):
        values = self.model.hyperparameter_values().values()
        self.values.append(
            np.log(np.concatenate([np.ravel(v) for v in values]))
        )


def learned(granularity, rule, epochs, integrator="averaged"):
    """Log precisions and log noise, the means over the second half."""
    keras.utils.set_random_seed(0)
    regularizer = hs.regularizers.LearnableL2(granularity=granularity)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(
                1, use_bias=False, kernel_regularizer=regularizer
            ),
        ]
    )
    learner = hs.BilevelModel(model, seed=0)
    learner.compile(
        hs.SGLD("auto", seed=1, integrator=integrator),
        hs.losses.LearnableGaussianLoss(),
        hypergradient=hs.estimators.Evidence(0, 10, update=rule),
        posterior_samples=0,
        steps_per_execution=10,
    )
    x, y = make_data()
    course = Course()
    learner.fit(
        *(x, y[:, None]),
        epochs=epochs,
        steps_per_epoch=200,
        callbacks=[course],
        verbose=0,
    )
    mean = np.mean(course.values[epochs // 2 :], axis=0)
    return mean[:-1] + np.log(2 * N), mean[-1]


@pytest.mark.parametrize("granularity", ["input", "tensor"])
def test_gradient_rule_comes_to_the_optimum_of_scikit_learn(
    granularity, float64
):
    linear_model = pytest.importorskip("sklearn.linear_model")
    kind = {
        "input": linear_model.ARDRegression,
        "tensor": linear_model.BayesianRidge,
    }[granularity]
    # Theirs under our hyperprior of the strengths, Gamma(1/2, 1/(2 r0)) with
    # r0 = 1 in a linear model, and none of the noise.
    exact = kind(
        alpha_1=1e-12,
        alpha_2=1e-12,
        lambda_1=0.5,
        lambda_2=0.5,
        fit_intercept=False,
        max_iter=10_000,
        tol=1e-10,
    ).fit(*make_data())
    precisions, noise = learned(granularity, "gradient", 60)
    error = precisions - np.log(np.ravel(exact.lambda_))
    assert np.sqrt(np.mean(error**2)) < 0.05
    assert abs(noise + 0.5 * np.log(exact.alpha_)) < 0.02


def test_gibbs_samples_the_law_of_the_strengths(float64):
    # Given the noise, by quadrature: the strength of all weights together.
    precisions, noise = learned("tensor", "gibbs", 20, "exact")
    x, y = make_data()
    log_rates = np.linspace(-6, 6, 801)
    densities = []
    for log_rate in log_rates:
        rate, variance = np.exp(log_rate), np.exp(2 * noise)
        covariance = x @ x.T / rate + variance * np.eye(N)
        _, log_det = np.linalg.slogdet(covariance)
        evidence = -0.5 * (log_det + y @ np.linalg.solve(covariance, y))
        # The common scale r0 is drawn, too: half-Cauchy on half-Cauchy.
        scales = np.exp(np.linspace(-15, 15, 601))
        prior = np.sum(
            np.sqrt(scales) / (rate + scales) * np.sqrt(scales) / (1 + scales)
        )
        densities.append(evidence + 0.5 * log_rate + np.log(prior))
    weight = np.exp(densities - np.max(densities))
    expected = weight @ log_rates / weight.sum()
    deviation = np.sqrt(weight @ (log_rates - expected) ** 2 / weight.sum())
    # Ten epochs, each with one of 200 draws: the noise is drawn, too.
    assert abs(precisions[0] - expected) < 0.5 * deviation
