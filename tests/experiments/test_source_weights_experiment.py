"""The measurement of source weights, on data of a known kind."""

import pathlib
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def experiment(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))  # as for a script that is run
    import source_weights

    yield source_weights
    for name in [n for n in sys.modules if n.split(".")[0] == "sources"]:
        del sys.modules[name]
    del sys.modules["source_weights"]


@pytest.fixture
def files(tmp_path):
    """Six classes with centers; half of the sources are mostly wrong."""
    rng = np.random.default_rng(0)
    centers = 3.0 * rng.normal(size=(6, 8))
    data, features = {}, {}
    for part, number in (("train", 1300), ("valid", 500), ("test", 200)):
        labels = rng.integers(6, size=number)
        x = centers[labels] + rng.normal(size=(number, 8))
        votes = np.full((number, 68), -1, "int8")
        for source in range(68):
            speaks = rng.uniform(size=number) < 0.03
            share = 0.95 if source % 2 else 0.1
            right = rng.uniform(size=number) < share
            vote = np.where(right, labels, (labels + 1) % 6)
            votes[speaks, source] = vote[speaks]
        data |= {f"{part}_label": labels, f"{part}_votes": votes}
        features[part] = x.astype("float32")
    data["hard_labels"] = data["train_votes"].max(axis=1).clip(0)
    np.savez(tmp_path / "votes.npz", **data)
    np.savez(tmp_path / "features.npz", **features)
    return [
        *("--data", str(tmp_path / "votes.npz")),
        *("--features", str(tmp_path / "features.npz")),
        *("--out", str(tmp_path / "rows.csv")),
        *("--draws", "1"),
    ]


@pytest.mark.slow
def test_learned_weights_tell_good_sources_from_bad_ones(
    experiment, files, capsys
):
    experiment.main([*files, "--methods", "learned_bounded,uniform,oracle"])
    printed = capsys.readouterr().out
    rows = experiment.row_file.read(pathlib.Path(files[5]))
    right = {
        (row["method"], row["number"]): float(row["accuracy"]) for row in rows
    }
    assert len(right) == 3 * 2
    for number in ("60", "500"):
        learned = right["learned_bounded", number]
        assert learned > right["uniform", number] + 0.03
        assert learned > right["oracle", number] - 0.05
    assert "| learned bounded |" in printed
    # What is there is not computed again.
    experiment.main([*files, "--methods", "learned_bounded,uniform,oracle"])
    assert len(experiment.row_file.read(pathlib.Path(files[5]))) == len(rows)


def test_a_choice_sees_neither_validation_nor_test_part(experiment, files):
    whole = experiment.Texts(files[1], files[3])
    cut = experiment.Texts(files[1], files[3], choosing=True)
    both = np.concatenate([cut.pool[0], cut.test[0], cut.x])
    order = [np.lexsort(part.T) for part in (both, whole.x)]
    np.testing.assert_array_equal(both[order[0]], whole.x[order[1]])
    assert len(cut.pool[0]) == len(cut.test[0]) == 500
    # Each vote stands beside the text that it is about.
    np.testing.assert_array_equal(cut.votes[cut.rows, cut.sources], cut.labels)


def test_gradient_of_an_example_is_that_of_its_loss(experiment, files):
    from sources import methods
    from sources.heads import fitted

    texts = experiment.Texts(files[1], files[3])
    clean = texts.draw(60, 0)
    head = fitted(texts, np.ones(len(texts.rows)), clean, 0.1, 1.0)
    x, labels = texts.clean(clean[:3])
    found = methods._gradients(head, x, labels)
    change = np.random.default_rng(1).normal(size=head.coef_.shape)

    def losses(step):
        logits = x @ (head.coef_ + step * change).T + head.intercept_
        own = logits[np.arange(3), labels]
        return np.log(np.exp(logits).sum(1)) - own

    slopes = (losses(1e-6) - losses(-1e-6)) / 2e-6
    np.testing.assert_allclose(found @ change.ravel(), slopes, rtol=1e-4)
