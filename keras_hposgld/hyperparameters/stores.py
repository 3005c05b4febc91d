"""Text beside the variables of a layer, in the files of Keras."""

import json
from typing import Any

import numpy as np


def write_text(store: Any, name: str, value: Any) -> None:
    """Writes what JSON can hold into a store, which takes arrays alone."""
    store[name] = np.frombuffer(json.dumps(value).encode(), np.uint8)


def read_text(store: Any, name: str) -> Any:
    """What `write_text` wrote; `None` where there is nothing."""
    if name not in store.keys():
        return None
    return json.loads(np.asarray(store[name]).tobytes().decode())
