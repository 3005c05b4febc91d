"""The example of source weights, with fewer epochs."""

import numpy as np
from test_examples import load


def test_sources_that_mislead_are_found_and_the_model_gains():
    example = load("learn_source_weights")
    results, weights = example.main(["--epochs", "25"])
    good, bad = np.split(weights, [5])
    assert bad.max() < good.min()
    assert results["learned weights"] > results["all sources alike"] + 0.3
