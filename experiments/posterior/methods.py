"""All methods by name. Each is a function as `rivals.py` describes it."""

from posterior import ours
from posterior import rivals
from posterior import torch_rivals

METHODS = {**ours.METHODS, **rivals.METHODS, **torch_rivals.METHODS}
