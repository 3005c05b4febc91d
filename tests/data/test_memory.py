"""What is left of the data and of a learner after `fit`: nothing."""

import gc
import weakref

import keras
import numpy as np
import pytest

import keras_hposgld as hs
from keras_hposgld.data.level import Level

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype("float32")
Y = X[:, :1]


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return X[rows], Y[rows]


KINDS = {
    "arrays": lambda: dict(x=X, y=Y, outer_data=(X, Y)),
    "PyDataset": lambda: dict(x=Sequence(), outer_data=Sequence()),
    "generator": lambda: dict(
        x=iter([(X, Y)] * 8), outer_data=iter([(X, Y)] * 8)
    ),
}


def make_model():
    regularizer = hs.regularizers.LearnableL2(0.02)
    return keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(1, kernel_regularizer=regularizer),
        ]
    )


@pytest.fixture
def levels(monkeypatch):
    """Weak references to the levels of data that were drawn from."""
    found = []
    for kind in Level.__subclasses__() + [
        kind
        for base in Level.__subclasses__()
        for kind in base.__subclasses__()
    ]:
        if "chains" not in vars(kind):
            continue

        def chains(self, *args, plain=kind.chains, **kwargs):
            found.append(weakref.ref(self))
            examples = getattr(self, "examples", None)
            if examples is not None:
                found.append(weakref.ref(examples[0]))
            return plain(self, *args, **kwargs)

        monkeypatch.setattr(kind, "chains", chains)
    return found


@pytest.fixture
def by_hand():
    """Only what Python frees without its search for circles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "kind, steps_per_execution", [(kind, 1) for kind in KINDS] + [("arrays", 4)]
)
def test_learner_and_data_are_freed(levels, kind, steps_per_execution):
    learner = hs.BilevelModel(make_model())
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 2),
        steps_per_execution=steps_per_execution,
    )
    learner.fit(**KINDS[kind](), steps_per_epoch=4, verbose=0)
    learner = weakref.ref(learner)
    gc.collect()
    assert learner() is None
    assert len(levels) >= 2
    assert all(reference() is None for reference in levels)


def test_arrays_are_freed_when_fit_returns(levels, by_hand):
    learner = hs.BilevelModel(make_model())
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss="mse",
        hypergradient=hs.estimators.HPOSGLD(0, 2),
    )
    for _ in range(2):
        learner.fit(**KINDS["arrays"](), verbose=0)
    assert len(levels) == 8  # twice two levels, and their inputs
    assert [reference() for reference in levels] == [None] * 8


@pytest.mark.parametrize("kind", ["arrays", "generator"])
def test_callback_and_its_data_are_freed(levels, kind):
    model = make_model()
    model.compile("sgd", "mse")
    data = KINDS[kind]()["outer_data"]
    callback = hs.callbacks.LearnHyperparameters(
        data, hs.estimators.HPOSGLD(0, 2), every=2, batch_size=4
    )
    model.fit(X, Y, batch_size=4, callbacks=[callback], verbose=0)
    references = [weakref.ref(callback), weakref.ref(model), *levels]
    del model, callback, data
    gc.collect()
    assert len(levels) >= 1
    assert [reference() for reference in references] == [None] * len(references)
