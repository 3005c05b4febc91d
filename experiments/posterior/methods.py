"""All methods by name. Each is a function as `rivals.py` describes it."""

from posterior import rivals
from posterior import torch_rivals

# What the strengths are learned by here is one more function, in a file of its
# own: add it to this dictionary, first.
OURS: dict = {}

METHODS = {**OURS, **rivals.METHODS, **torch_rivals.METHODS}
