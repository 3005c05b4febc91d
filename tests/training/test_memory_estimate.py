"""The memory that a run is told to need."""

import warnings

import keras
import numpy as np
import pytest

import keras_hposgld as hs
from keras_hposgld.estimators.registry import REGISTRY
from keras_hposgld.training import memory_estimate

AVAILABLE = "keras_hposgld.training.memory_estimate.available_memory"


def make_learner(granularity="parameter", sampler=None, **arguments):
    strength = hs.regularizers.LearnableL2(granularity=granularity)
    model = keras.Sequential(
        [
            keras.Input((50,)),
            keras.layers.Dense(20, use_bias=False, kernel_regularizer=strength),
        ]
    )
    learner = hs.BilevelModel(model)
    learner.compile(sampler or hs.SGLD(0.01), loss="mse", **arguments)
    return learner


def test_parts_are_the_bytes_of_the_variables():
    learner = make_learner(
        hypergradient=hs.estimators.RMD(num_steps=30, truncation=9),
        hyper_optimizer=keras.optimizers.Adam(0.1),
        start="initial",
    )
    estimate = learner.memory_estimate()
    vector = 4 * 50 * 20
    assert estimate.weights == 2 * vector  # they, and those of the start
    assert estimate.hyperparameters == vector
    # Two moments; a step counter of 8 bytes, a learning rate of 4.
    assert estimate.optimizers == 2 * vector + 8 + 4
    assert estimate.chain == (9 + 4) * vector + 2 * vector
    assert estimate.total == sum(estimate[:4])
    assert "MiB" in str(estimate) and "total" in str(estimate)


def test_fmd_keeps_a_vector_for_each_strength():
    learner = make_learner(
        "input", hypergradient=hs.estimators.FMD(num_steps=3)
    )
    # 50 strengths, 1000 weights: at least their matrix.
    assert learner.memory_estimate().chain > 4 * 50 * 1000


def test_fewer_strengths_take_less():
    fine, coarse = (
        make_learner(granularity).memory_estimate()
        for granularity in ("parameter", "tensor")
    )
    assert coarse.hyperparameters == 4
    assert coarse.chain == fine.chain - 3 * (4000 - 4)


def test_a_curvature_is_one_more_vector():
    plain, exponential = (
        make_learner(sampler=hs.SGLD(0.01, integrator=integrator))
        .memory_estimate()
        .chain
        for integrator in ("euler", "exponential")
    )
    assert exponential == plain + 4 * 50 * 20


def test_linear_memory_is_what_the_estimators_say():
    # Not with the chain's length, except for what keeps the path.
    for alias in REGISTRY.aliases:
        estimator = REGISTRY.find(alias)
        if hasattr(estimator(), "burn_in"):
            short, long = estimator(2, 3), estimator(200, 300)
        else:
            short, long = estimator(num_steps=5), estimator(num_steps=500)
        grows = long.copies_in_chain(10) != short.copies_in_chain(10)
        assert grows == (alias == "rmd"), alias
    fmd = hs.estimators.FMD()
    assert fmd.copies_in_chain(100)[0] > 10 * fmd.copies_in_chain(1)[0]


def test_a_run_that_will_not_fit_is_announced(monkeypatch):
    learner = make_learner()
    x, y = np.ones((8, 50)), np.ones((8, 20))
    arguments = dict(outer_data=(x, y), verbose=0, epochs=1)
    monkeypatch.setattr(AVAILABLE, lambda: 1000)
    with pytest.warns(UserWarning, match="more memory than there is"):
        learner.fit(x, y, **arguments)
    for enough in (10**9, None):
        monkeypatch.setattr(
            memory_estimate, "available_memory", lambda n=enough: n
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Learning the hyper")
            learner.fit(x, y, **arguments)


def test_batches_that_will_not_fit_are_announced(monkeypatch):
    estimator = hs.estimators.HPOSGLD(30, 20)
    learner = make_learner("tensor", hypergradient=estimator)
    x, y = np.ones((16, 50)), np.ones((16, 20))
    arguments = dict(batch_size=8, outer_batch_size=4, verbose=0)
    arguments["outer_data"] = (x[:8], y[:8])
    # Four bytes a number; of two chains, the inner and the outer batches.
    size = 4 * (50 + 20) * (8 + 4) * 50 * 2
    chain = learner.memory_estimate().chain
    for missing in (0, 1):
        available = size + chain - missing
        monkeypatch.setattr(
            memory_estimate, "available_memory", lambda n=available: n
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            learner.fit(x, y, **arguments)
        found = [w for w in caught if "shorter chains" in str(w.message)]
        assert len(found) == missing
    assert f"two chains {size / 2**20:,.0f} MiB" in str(found[0].message)


def test_available_memory_is_plausible():
    available = memory_estimate.available_memory()
    assert available is None or 10**7 < available < 10**14


def test_estimate_needs_a_compiled_learner():
    with pytest.raises(RuntimeError, match="compile"):
        hs.BilevelModel(keras.Sequential()).memory_estimate()
