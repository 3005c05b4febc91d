"""The texts, the votes on them and the clean ones."""

import numpy as np

NUM_SOURCES = 68
CUT_OFF = 500  # training texts as clean ones, and as test texts, for a choice


class Texts:
    """Training texts with votes; clean and test texts with right labels.

    Args:
        data: Path of `trec_weak.npz`.
        features: Path of the features of its parts.
        choosing: Whether clean and test texts are cut off from the training
            texts, for choices that see neither validation nor test part.
    """

    def __init__(self, data, features, choosing=False):
        data, features = np.load(data), np.load(features)
        x, votes, truth = (
            features["train"],
            data["train_votes"].astype("int64"),
            data["train_label"].astype("int64"),
        )
        majority = data["hard_labels"].astype("int64")
        pool = features["valid"], data["valid_label"].astype("int64")
        pool_votes = data["valid_votes"].astype("int64")
        test = features["test"], data["test_label"].astype("int64")
        if choosing:
            order = np.random.default_rng(99).permutation(len(x))
            first, second, rest = np.split(order, [CUT_OFF, 2 * CUT_OFF])
            pool, pool_votes = (x[first], truth[first]), votes[first]
            test = x[second], truth[second]
            x, votes, truth, majority = (
                part[rest] for part in (x, votes, truth, majority)
            )
        self.x, self.votes, self.truth, self.majority = (
            x,
            votes,
            truth,
            majority,
        )
        self.pool, self.pool_votes, self.test = pool, pool_votes, test
        self.rows, self.sources = np.nonzero(votes >= 0)
        self.labels = votes[self.rows, self.sources]

    def draw(self, number, draw):
        """Positions of so many clean texts of the pool."""
        rng = np.random.default_rng(1000 + draw)
        return rng.permutation(len(self.pool[0]))[:number]

    def clean(self, positions):
        """Features and right labels of clean texts."""
        return self.pool[0][positions], self.pool[1][positions]
