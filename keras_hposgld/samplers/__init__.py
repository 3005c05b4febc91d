"""Samplers of the inner weights."""

from keras_hposgld.samplers.sgld import SGLD

__all__ = ["SGLD"]
