"""The outer data that are drawn from the training data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_hposgld as hs
from keras_hposgld.data.fit_data import FitData
from keras_hposgld.data.splits import fold_numbers

N = 60


def positions(y, fraction=0.25, **arguments):
    """Which examples are drawn: `split` of their positions."""
    (kept, _), (drawn, _) = hs.data.split(
        np.arange(len(y)), y, fraction, **arguments
    )
    np.testing.assert_array_equal(
        np.sort(np.concatenate([kept, drawn])), np.arange(len(y))
    )
    # Each part keeps the order of the data.
    assert np.all(np.diff(kept) > 0) and np.all(np.diff(drawn) > 0)
    return drawn


# 40 examples of a class, 15 of another, 4 of a third, one of the fourth; in
# groups, as many files are.
CLASSES = np.repeat([3, 7, 8, -1], [40, 15, 4, 1])
ONE_HOT = np.eye(4)[np.repeat([0, 1, 2, 3], [40, 15, 4, 1])]


@pytest.mark.parametrize(
    "y",
    [
        CLASSES,
        CLASSES[:, None],
        CLASSES.astype(str),
        CLASSES.astype(str).astype(object),
        ONE_HOT,
        ONE_HOT.astype(bool),
    ],
    ids=["column", "of rank 2", "strings", "objects", "one-hot", "booleans"],
)
def test_outer_data_have_the_share_of_each_class(y):
    for seed in range(5):
        drawn = positions(y, seed=seed)
        # A quarter of 40, 15, 4 and 1, the missing one to 3.75; the class with
        # a single example is left for training.
        found = [np.sum(CLASSES[drawn] == c) for c in (3, 7, 8, -1)]
        assert found == [10, 4, 1, 0]


def test_equal_shares_are_rounded_up_for_any_class():
    # Ten classes of two, of which six of 20 are to be drawn: 0.6 of each, and
    # never both.
    y = np.repeat(np.arange(10), 2)
    chosen = set()
    for seed in range(8):
        classes = y[positions(y, 0.3, seed=seed)]
        assert len(classes) == 6 == len(set(classes))
        chosen |= set(classes)
    assert chosen == set(range(10))


def test_small_classes_leave_their_share_to_others():
    # Eight of ten: all but one of the first class, and none of the single one.
    y = np.repeat([0, 1], [9, 1])
    drawn = positions(y, 0.8)
    assert len(drawn) == 8 and 9 not in drawn


@pytest.mark.parametrize(
    "y",
    [
        np.linspace(0, 1, N),
        np.repeat([0.0, 1.0], N // 2),  # floats are not classes
        np.arange(N),  # so many classes that no draw leaves one of each
        np.repeat([0, 1], N)[:, None].reshape(N, 2),
        {"a": CLASSES, "b": CLASSES},
        [CLASSES, CLASSES],
        None,
    ],
    ids=["line", "floats", "numbers", "labels", "dict", "list", "none"],
)
def test_other_targets_are_shuffled_alone(y):
    x = np.arange(N)
    draws = []
    for seed in range(20):
        (_, _), (drawn, _) = hs.data.split(x, y, 0.25, seed=seed)
        assert len(drawn) == 15
        draws.append(drawn)
    # All examples get their turn, and no part of the data is preferred.
    assert len(np.unique(np.concatenate(draws))) > 0.95 * N
    assert abs(np.mean(draws) - (N - 1) / 2) < 5 * N / np.sqrt(12 * 300)
    again = hs.data.split(x, y, 0.25, stratify=False, seed=19)[1][0]
    np.testing.assert_array_equal(again, draws[-1])


def test_stratify_is_obeyed():
    y = np.repeat([0.0, 1.0], [48, 12])
    assert y[positions(y, stratify=True)].sum() == 3
    counts = {
        int(y[positions(y.astype(int), stratify=False, seed=seed)].sum())
        for seed in range(20)
    }
    assert len(counts) > 2


def test_draw_depends_on_seed_and_targets_alone():
    first = positions(CLASSES, seed=4)
    np.testing.assert_array_equal(first, positions(CLASSES, seed=4))
    assert np.any(first != positions(CLASSES, seed=5))
    (_, _), (rows, _) = hs.data.split(np.eye(N), CLASSES, 0.25, seed=4)
    np.testing.assert_array_equal(rows.argmax(1), first)


def test_structures_and_types_stay_what_they_are():
    pandas = pytest.importorskip("pandas", reason="it is what is tested")
    frame = pandas.DataFrame({"a": np.arange(N), "b": np.ones(N)})
    frame.index = frame.index + 100
    x = {"frame": frame, "tensor": tf.range(N), "list": [np.arange(N), None]}
    y = pandas.Series(CLASSES, index=frame.index)
    weight = np.arange(N) / 2
    train, outer = hs.data.split(x, y, 0.25, sample_weight=weight, seed=3)
    expected = positions(CLASSES, seed=3)
    others = np.setdiff1d(np.arange(N), expected)
    for (u, v, w), rows in ((train, others), (outer, expected)):
        assert isinstance(u["frame"], pandas.DataFrame)
        assert isinstance(v, pandas.Series) and tf.is_tensor(u["tensor"])
        np.testing.assert_array_equal(u["frame"]["a"], rows)
        np.testing.assert_array_equal(u["frame"].index, rows + 100)
        np.testing.assert_array_equal(u["tensor"], rows)
        np.testing.assert_array_equal(u["list"][0], rows)
        assert u["list"][1] is None
        np.testing.assert_array_equal(v, CLASSES[rows])
        np.testing.assert_array_equal(w, rows / 2)


def test_number_drawn_is_the_share_rounded_up():
    y = np.linspace(0, 1, 10)
    for fraction, number in ((0.9, 9), (0.1, 1), (0.01, 1), (0.25, 3)):
        assert len(positions(y, fraction)) == number


X = np.ones((6, 2))
STREAM = tf.data.Dataset.from_tensor_slices((X, X)).batch(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(fraction=0.0), "`fraction` must leave examples"),
        (dict(fraction=1.0), "`fraction` must leave examples"),
        (dict(fraction=-0.5), "`fraction` must leave examples"),
        (dict(fraction=float("nan")), "`fraction` must leave examples"),
        (dict(fraction="half"), "Received: fraction=half"),
        (dict(fraction=0.99), "fraction=0.99 of 6 examples"),
        (dict(x=X[:1], y=X[:1]), "fraction=0.5 of 1 examples"),
        (dict(x=STREAM, y=None), "`fraction` needs arrays.*BatchDataset"),
        (dict(x=[1.0, 2.0], y=None), r"needs arrays of examples.*\['float'\]"),
        (dict(x=None, y=None), "needs arrays of examples. Received: None"),
        (dict(y=X[:4]), r"one length. Received: arrays of \[4, 6\]"),
        (dict(stratify="yes"), "`stratify` must be one of"),
        (dict(stratify=True), "needs classes.*shape \\(6, 2\\)"),
        (dict(y=None, stratify=True), "needs one array.*NoneType"),
        (dict(y=[X, X], stratify=True), "needs one array.*list"),
        (
            dict(y=np.arange(6), stratify=True),
            "6 examples of 6 classes, of which 3",
        ),
        (dict(seed=-1), "`seed` must be an integer"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, message):
    defaults = dict(x=X, y=X, fraction=0.5)
    with pytest.raises(ValueError, match=message):
        hs.data.split(**(defaults | arguments))


def make_learner(**arguments):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(
                10, kernel_regularizer=hs.regularizers.LearnableL2(0.01)
            ),
        ]
    )
    learner = hs.BilevelModel(model, seed=11, **arguments)
    learner.compile(
        optimizer=hs.SGLD(0.05),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        hypergradient=hs.estimators.HPOSGLD(1, 2),
    )
    return learner


def values(learner):
    return [v.numpy() for v in [*learner.weights, *learner.hyperparameters]]


def assert_same(learner, other):
    for a, b in zip(values(learner), values(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_learner_draws_by_its_seed_at_each_fit_and_after_loading(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 2)).astype("float32"), CLASSES + 1
    (u, v), outer = hs.data.split(x, y, 0.25, seed=11)
    assert np.sum(outer[1] == 0) == 0  # the single one
    arguments = dict(batch_size=9, verbose=0)
    given, drawn, default = (
        make_learner(**ways) for ways in ({}, {}, {"outer_split": 0.25})
    )
    for number in range(2):
        given.fit(u, v, outer_data=outer, **arguments)
        drawn.fit(x, y, outer_split=0.25, **arguments)
        default.fit(x, y, **arguments)
        assert_same(given, drawn)
        assert_same(given, default)
        if number == 0:
            default.save(tmp_path / "learner.keras")
            default = keras.models.load_model(tmp_path / "learner.keras")
            assert default.get_config()["outer_split"] == 0.25


def test_what_fit_is_given_goes_before_the_constructor():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 2)).astype("float32"), CLASSES + 1
    arguments = dict(batch_size=9, verbose=0)
    learner, other = make_learner(outer_split=0.25), make_learner()
    learner.fit(x, y, outer_data=(x[:7], y[:7]), **arguments)
    other.fit(x, y, outer_data=(x[:7], y[:7]), **arguments)
    assert_same(learner, other)
    learner.fit(x, y, outer_split=0.5, **arguments)
    other.fit(x, y, outer_split=0.5, **arguments)
    assert_same(learner, other)
    with pytest.raises(ValueError, match="`outer_data` must be given"):
        learner.fit(x, y, outer_split=0.0, **arguments)
    with pytest.raises(ValueError, match="`outer_split` needs arrays"):
        learner.fit(STREAM)
    for share in (1.0, -0.1, float("nan"), "half"):
        with pytest.raises(ValueError, match="`outer_split` must be a finite"):
            make_learner(outer_split=share)


@pytest.mark.parametrize("y", [CLASSES, ONE_HOT, np.linspace(0, 1, N)])
@pytest.mark.parametrize("number", [2, 7])
def test_folds_share_all_examples_and_each_class(y, number):
    drawn = set()
    for seed in range(4):
        fold_of = fold_numbers((y, y), number, "outer_folds", seed)
        sizes = np.bincount(fold_of, minlength=number)
        # 60 examples; each class to within one.
        assert sizes.sum() == N and np.ptp(sizes) <= 1
        if y.dtype.kind != "f" or y.ndim == 2:
            for c in np.unique(CLASSES):
                of_class = np.bincount(fold_of[CLASSES == c], minlength=number)
                assert np.ptp(of_class) <= 1
        again = fold_numbers((y, y), number, "outer_folds", seed)
        np.testing.assert_array_equal(fold_of, again)
        drawn.add(tuple(fold_of))
    assert len(drawn) == 4


def test_targets_that_are_not_classes_are_only_shuffled():
    # As many classes as examples, and floats: in runs, if they were sorted.
    for y in (np.arange(N), np.repeat([0.0, 1.0], N // 2)):
        fold_of = fold_numbers((y, y), 2, "outer_folds")
        assert np.bincount(fold_of[: N // 2]).tolist() != [N // 4, N // 4]


@pytest.mark.parametrize("shuffle", [True, False])
def test_levels_of_a_fold_are_apart_and_batches_are_of_one_size(shuffle):
    x = np.arange(11.0)[:, None]
    inner, outer = FitData.from_fit(
        (x, x, None),
        outer_folds=3,
        outer_batch_size=2,
        seed=4,
        batch_size=9,
        shuffle=shuffle,
    ).levels
    fold_of = fold_numbers((x, x), 3, "outer_folds", 4)
    assert (inner.batch_size, outer.batch_size) == (7, 2)
    assert outer.num_known == 11 and inner.num_known == pytest.approx(22 / 3)
    for level, is_outer in ((inner, False), (outer, True)):
        seen = [set() for _ in range(3)]
        for u, _ in level.chains(4).take(3):
            assert u.shape == (3, 4, level.batch_size, 1)
            for fold in range(3):
                seen[fold] |= set(u[fold].numpy().ravel().astype(int))
        for fold in range(3):
            own = np.flatnonzero((fold_of == fold) == is_outer)
            assert seen[fold] == set(own)
    # A fit that goes on draws what it would have drawn.
    whole = [u.numpy() for u, _ in inner.chains(4).take(3)]
    (last,) = [u.numpy() for u, _ in inner.chains(4, lambda: 2).take(1)]
    np.testing.assert_array_equal(whole[2], last)
