"""Hypergradient estimators. A new one joins the registry by one import."""

from keras_hposgld.estimators.driver import hypergradient
from keras_hposgld.estimators.driver import run_chain
from keras_hposgld.estimators.estimator import Chain
from keras_hposgld.estimators.estimator import check_count
from keras_hposgld.estimators.estimator import deserialize
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import get
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.estimator import serialize
from keras_hposgld.estimators.hpo_sgld import HPOSGLD

__all__ = [
    "Chain",
    "Estimate",
    "HPOSGLD",
    "HypergradientEstimator",
    "check_count",
    "deserialize",
    "get",
    "hypergradient",
    "run_chain",
    "serialize",
]
