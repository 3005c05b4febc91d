"""What is to be said at the end of a `fit`, where learning came to nothing.

Each warning names what was seen, in numbers, and the way out.
"""

import hashlib
import math
import warnings
from typing import Any

import keras
import numpy as np

from keras_hposgld.hyperparameters.hyperparameter import WeightHyperparameter
from keras_hposgld.training.outer_level import OuterLevel

# Adam moves a strength by at most its learning rate, in logarithms: 0.05 for a
# learner, so that ten updates change it by at most two thirds.
FEW_UPDATES = 10
# So many chains may be lost where each halves the steps: that is a cure.
CURED = 3
NEAR_BOUND = 0.95  # of `max_value`
MANY = 10  # strengths for each outer example
RISE = 1.05  # of the validation loss over its best
FEWEST_EPOCHS = 5  # to see a rise in


class Verdict:
    """Looks at what a `fit` learned.

    Args:
        owners: The objects that own the hyperparameters, when it begins.
        outer_level: `OuterLevel`.
        num_examples: Number of outer examples, infinite if nobody knows.
        advice: String: how to have more chains.
    """

    def __init__(
        self,
        owners: list,
        outer_level: OuterLevel,
        num_examples: float,
        advice: str,
    ):
        self.owners = owners
        self.outer_level = outer_level
        self.num_examples = num_examples
        self.advice = advice
        self.before = [
            (variable, _digest(variable))
            for owner in owners
            for variable in owner.hyperparameter_variables
        ]
        self.num_updates = self._updates()
        self.skipped = 0
        self.halves_steps = False
        self.losses: list[list] = []  # outer, and on separate data

    @property
    def judge(self) -> str:
        """Which data say what is learned."""
        needs_outer = self.outer_level.estimator.needs_outer
        return "outer" if needs_outer else "training"

    def _updates(self) -> int:
        return int(self.outer_level.hyper_optimizer.iterations.numpy())

    def see(self, logs: dict) -> None:
        """Takes notice of the logs of an epoch."""
        skipped = logs.get("skipped_updates", 0.0)
        self.skipped += int(skipped) if np.isfinite(skipped) else 0
        self.halves_steps = "halvings" in logs
        names = ("outer_loss", "val_outer_loss")
        both = [float(logs.get(name, np.nan)) for name in names]
        if np.all(np.isfinite(both)):
            self.losses.append(both)

    def warn(self) -> None:
        """Warns of each fault that there is, once."""
        for fault in (
            self._too_few(),
            self._skipped(),
            self._without_gradient(),
            self._at_bound(),
            self._too_many(),
            self._memorized(),
            *self._of_owners(),
        ):
            if fault is not None:
                warnings.warn(fault, stacklevel=3)

    def _too_few(self) -> str | None:
        updates = self._updates()
        if updates >= FEW_UPDATES:
            return None
        chains = int(self.outer_level.iterations.numpy())
        reasons = [f"{chains} chains have run, in all fits"]
        if self.outer_level.warmup_steps:
            reasons.append(
                "those that start before inner step "
                f"{self.outer_level.warmup_steps} (`warmup_steps`) update "
                "nothing"
            )
        times = {0: "never", 1: "once"}.get(updates, f"{updates} times")
        return (
            f"The hyperparameters were updated {times}, which is too few for "
            f"anything to be learned: {'; '.join(reasons)}. Train for more "
            f"epochs, or {self.advice}."
        )

    def _skipped(self) -> str | None:
        if self.skipped <= (CURED if self.halves_steps else 0):
            return None
        is_one = self.skipped == 1
        return (
            f"{self.skipped} update{'' if is_one else 's'} of the "
            f"hyperparameters {'was' if is_one else 'were'} skipped, "
            "since a number was not finite. Received: the last time first in "
            f"{self.outer_level.guard.cause()}. Lower the learning rate"
            + (", or clip the gradients." if self.judge == "outer" else ".")
        )

    def _without_gradient(self) -> str | None:
        moved = self._updates() - self.num_updates  # a skipped one is none
        rate = float(self.outer_level.hyper_optimizer.learning_rate.numpy())
        if moved < 2 or rate == 0.0:  # the last rate of a schedule counts
            return None
        still = [
            variable.path
            for variable, digest in self.before
            if digest == _digest(variable)
        ]
        if not still:
            return None
        return (
            f"{len(still)} hyperparameter{'s' * (len(still) > 1)} did not move "
            f"in {moved} updates. Received: {still[:5]}. Their hypergradient "
            f"was zero, or too small to change anything: the {self.judge} loss "
            "does not depend on their weights, or only through an operation "
            "without a derivative."
        )

    def _at_bound(self) -> str | None:
        bounded: list[Any] = [
            owner
            for owner in self.owners
            if isinstance(owner, WeightHyperparameter)
        ]
        paths = [
            path
            for owner in bounded
            for path, value in owner.hyperparameter_values().items()
            if np.median(np.asarray(value)) > NEAR_BOUND * owner.max_value
        ]
        if not paths:
            return None
        return (
            f"Most strengths of a weight are at their bound: the {self.judge} "
            f"data ask for more. Received: {paths[:5]}. Raise `max_value`, "
            "with `learning_rate * max_value` below 1."
        )

    def _of_owners(self) -> list[str]:
        """What the kinds say of themselves, once they have moved."""
        if self._updates() == self.num_updates:
            return []
        return [fault for owner in self.owners for fault in owner.faults()]

    def _too_many(self) -> str | None:
        number = sum(
            math.prod(variable.shape)
            for owner in self.owners
            if isinstance(owner, WeightHyperparameter) and not owner.shrinkage
            for variable in owner.hyperparameter_variables
        )
        if number <= MANY * self.num_examples:
            return None
        return (
            f"There are {number:,} strengths without a prior, and "
            f"{self.num_examples:,.0f} outer examples cannot pay for so many: "
            'they will be fitted to chance. Use `granularity="auto"`, which '
            "has fewer and a prior, or pass `shrinkage=0.5`."
        )

    def _memorized(self) -> str | None:
        if len(self.losses) < FEWEST_EPOCHS:
            return None
        outer, separate = np.transpose(self.losses)
        best = int(separate.argmin())
        if not (
            separate[-1] > RISE * separate[best] and outer[-1] < outer[best]
        ):
            return None
        return (
            "The outer set is being memorized: its loss fell from "
            f"{outer[best]:.4g} to {outer[-1]:.4g}, while that of the "
            f"validation data rose from {separate[best]:.4g} (epoch "
            f"{best + 1}) to {separate[-1]:.4g}. Use a coarser `granularity`, "
            "`shrinkage=0.5`, more outer data, or early stopping on "
            "`val_outer_loss`."
        )


def _digest(variable: keras.Variable) -> bytes:
    """By which a value is known again, without a copy of it."""
    value = np.ascontiguousarray(np.atleast_1d(variable.numpy()))
    # As bytes: NumPy lends no buffer of numbers such as bfloat16.
    return hashlib.blake2b(value.view(np.uint8).data, digest_size=16).digest()
