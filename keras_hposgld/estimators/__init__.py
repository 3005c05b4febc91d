"""Hypergradient estimators. A new one joins the registry by one import."""

from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_number
from keras_hposgld.estimators.adjoint_sgld import AdjointSGLD
from keras_hposgld.estimators.chain import Chain
from keras_hposgld.estimators.driver import run_chain
from keras_hposgld.estimators.estimator import Estimate
from keras_hposgld.estimators.estimator import HypergradientEstimator
from keras_hposgld.estimators.evidence import Evidence
from keras_hposgld.estimators.first_order import FirstOrder
from keras_hposgld.estimators.fmd import FMD
from keras_hposgld.estimators.functional import hypergradient
from keras_hposgld.estimators.hpo_sgld import HPOSGLD
from keras_hposgld.estimators.ift import IFTCG
from keras_hposgld.estimators.ift import IFTNeumann
from keras_hposgld.estimators.registry import deserialize
from keras_hposgld.estimators.registry import get
from keras_hposgld.estimators.registry import register
from keras_hposgld.estimators.registry import serialize
from keras_hposgld.estimators.rmd import RMD
from keras_hposgld.estimators.rmd import RMDFO
from keras_hposgld.estimators.score_covariance import ScoreCovariance

__all__ = [
    "AdjointSGLD",
    "Chain",
    "Estimate",
    "Evidence",
    "FMD",
    "FirstOrder",
    "HPOSGLD",
    "HypergradientEstimator",
    "IFTCG",
    "IFTNeumann",
    "RMD",
    "RMDFO",
    "ScoreCovariance",
    "check_count",
    "check_number",
    "deserialize",
    "get",
    "hypergradient",
    "register",
    "run_chain",
    "serialize",
]
