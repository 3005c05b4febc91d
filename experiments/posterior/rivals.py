"""What people do today, with scikit-learn. One setting serves all sets.

Every method is a function `(x, y, x_test, task, seed)`. For the task
"regression" it returns the predictive mean and deviation of each test target,
for "classes" an array of probabilities, one column a class. Inputs and targets
of a regression are standardized.

A method without a predictive law has one deviation for all targets: that of its
errors on training examples that a fit did not see.
"""

import numpy as np
from posterior.left_out import LeftOut
from sklearn.ensemble import RandomForestClassifier
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import ARDRegression
from sklearn.linear_model import BayesianRidge
from sklearn.linear_model import LassoCV
from sklearn.linear_model import LogisticRegressionCV
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GridSearchCV
from sklearn.model_selection import StratifiedKFold
from sklearn.neural_network import MLPClassifier
from sklearn.neural_network import MLPRegressor

HIDDEN = (50, 50)
DECAYS = np.logspace(-3, 2, 6)
NUM_TREES = 500
NUM_FOLDS = 5
MANY = 2000  # examples from which on three folds serve


def folds_of(x, y, task, seed):
    """A number of folds, or folds in which all classes are."""
    number = 3 if len(x) > MANY else NUM_FOLDS
    if task == "regression":
        return number
    return StratifiedKFold(number, shuffle=True, random_state=seed)


def constant(mean, variance):
    """A predictive law whose deviation is the same for all targets."""
    return mean, np.full(len(mean), np.sqrt(variance))


def regression_only(task):
    if task != "regression":
        raise LeftOut("it is for regressions only")


def ard(x, y, x_test, task, seed):
    """A strength for each input, by the evidence of a linear model."""
    regression_only(task)
    return ARDRegression().fit(x, y).predict(x_test, return_std=True)


def bayesian_ridge(x, y, x_test, task, seed):
    """One strength, by the evidence of a linear model."""
    regression_only(task)
    return BayesianRidge().fit(x, y).predict(x_test, return_std=True)


def linear(x, y, x_test, task, seed):
    """One strength by cross-validation, leaving out one for a regression."""
    if task == "regression":
        model = RidgeCV(np.logspace(-6, 5, 45), store_cv_results=True)
        model.fit(x.astype(float), y)
        errors = model.cv_results_.mean(axis=0).min()
        return constant(model.predict(x_test), errors)
    return _logistic(x, y, x_test, task, seed, l1_ratios=(0.0,))


def lasso(x, y, x_test, task, seed):
    """An absolute penalty, its strength by cross-validation."""
    if task == "regression":
        folds = folds_of(x, y, task, seed)
        model = LassoCV(cv=folds, random_state=seed)
        model.fit(x.astype(float), y)
        errors = model.mse_path_.mean(axis=1).min()
        return constant(model.predict(x_test), errors)
    return _logistic(
        x, y, x_test, task, seed, l1_ratios=(1.0,), solver="saga", tol=1e-3
    )


def _logistic(x, y, x_test, task, seed, **options):
    model = LogisticRegressionCV(
        Cs=np.logspace(-5, 3, 9),
        cv=folds_of(x, y, task, seed),
        scoring="neg_log_loss",
        max_iter=1000,
        random_state=seed,
        use_legacy_attributes=False,
        **options,
    )
    return model.fit(x, y).predict_proba(x_test)


def network(x, y, x_test, task, seed):
    """A network of two hidden layers, its decay by cross-validation."""
    regression = task == "regression"
    kind = MLPRegressor if regression else MLPClassifier
    search = GridSearchCV(
        kind(hidden_layer_sizes=HIDDEN, max_iter=1000, random_state=seed),
        {"alpha": DECAYS},
        scoring="neg_mean_squared_error" if regression else "neg_log_loss",
        cv=folds_of(x, y, task, seed),
        error_score="raise",
    ).fit(x, y)
    if regression:
        return constant(search.predict(x_test), -search.best_score_)
    return search.predict_proba(x_test)


def forest(x, y, x_test, task, seed):
    """A random forest; the errors are those of examples not in the bag."""
    if task == "regression":
        model = RandomForestRegressor(
            NUM_TREES, oob_score=True, random_state=seed
        ).fit(x, y)
        errors = np.mean((model.oob_prediction_ - y) ** 2)
        return constant(model.predict(x_test), errors)
    model = RandomForestClassifier(NUM_TREES, random_state=seed).fit(x, y)
    # One more tree is divided among the classes: no probability is 0.
    probabilities = model.predict_proba(x_test)
    share = 1 / probabilities.shape[1]
    return (NUM_TREES * probabilities + share) / (NUM_TREES + 1)


METHODS = {
    "ard": ard,
    "bayesian_ridge": bayesian_ridge,
    "linear_cv": linear,
    "lasso_cv": lasso,
    "network_cv": network,
    "forest": forest,
}
