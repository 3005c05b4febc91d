"""Can a result be trusted? Comparisons, and what chains say of themselves."""

from keras_hposgld.diagnostics.chain_summary import chain_summary
from keras_hposgld.diagnostics.chain_summary import ChainSummary
from keras_hposgld.diagnostics.hypergradient_check import check_hypergradient
from keras_hposgld.diagnostics.hypergradient_check import HypergradientCheck
from keras_hposgld.diagnostics.label_errors import label_error_scores
from keras_hposgld.diagnostics.label_errors import label_probabilities
from keras_hposgld.diagnostics.two_chains import two_chains
from keras_hposgld.diagnostics.two_chains import TwoChains

__all__ = [
    "ChainSummary",
    "HypergradientCheck",
    "TwoChains",
    "chain_summary",
    "check_hypergradient",
    "label_error_scores",
    "label_probabilities",
    "two_chains",
]
