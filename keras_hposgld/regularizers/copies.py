"""Copies that Keras makes of one regularizer.

A regularizer that serves several layers is one object, which Keras saves once,
with the first of them. When Keras loads the model it makes one object for each
of the layers. Those act as one again: all go to the first of them.
"""

import weakref
from typing import Any


class Copies:
    """The objects that one loading made of one regularizer.

    Attributes:
        first: The regularizer that acts for all of them.
        are_complete: Whether all have been made: the next one with the same
            identity belongs to another loading of the same file.
    """

    def __init__(self, first: Any):
        self.first = first
        self.are_complete = False


_BY_IDENTITY: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def copies_of(identity: str, regularizer: Any) -> Copies:
    """The copies that a regularizer belongs to, which was just made.

    Args:
        identity: String that the file has for the object that was saved.
        regularizer: The regularizer, first of a new group if there is none.
    """
    copies = _BY_IDENTITY.get(identity)
    if copies is None or copies.are_complete:
        copies = _BY_IDENTITY[identity] = Copies(regularizer)
    return copies
