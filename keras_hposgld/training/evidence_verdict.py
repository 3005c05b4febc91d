"""What is to be said at the end of a `fit` that had no outer data.

The evidence is learned by sampling, and sampling can fail without an error.
Each warning names what was seen, in numbers, and the way out. None rests on
what chance does to a good run: the limits are wide, and a number that varies
much is compared with how much it varies.
"""

import math
import warnings
from typing import Any

import keras

from keras_hposgld.data.level import Level
from keras_hposgld.training import kept_samples
from keras_hposgld.training import likelihood
from keras_hposgld.training.heat import RECENT
from keras_hposgld.training.heat import TOO_WARM
from keras_hposgld.training.heat import WINDOW
from keras_hposgld.training.posterior_average import kinds_for
from keras_hposgld.training.verdict import FEW_UPDATES

FEW_SAMPLES = 8  # of the weights, to average over
# The ratio of a window may be off by one, by chance, where few weights are
# known well. So several are looked at, and how far they differ.
FEWEST_WINDOWS = 4
ERRORS = 4  # standard errors of their mean
SPREAD_EXAMPLES = 1000
ENOUGH_EXAMPLES = 100  # where there are more than those that are seen
ALL_NOISE = 0.95  # of the spread of the targets
NO_NOISE = 1e-2  # of that spread
FEWEST_EPOCHS = 4  # to see a noise fall in
STILL_FALLING = 0.85  # what the last quarter of a fit leaves of the noise
NOTHING = 0.98  # of the loss of a constant prediction
ONE_CLASS = 1e-6  # that loss, where there is only one
SMALLEST_SIZE = 4.0  # effective sample size of the kept samples
LARGEST_R_HAT = 1.7  # of 32 samples worth 10, one run in 250 is above
WEAKER = (
    "a weaker start of the strengths, `LearnableL2(initial_value=...)` with a "
    "smaller number"
)


class EvidenceVerdict:
    """Looks at what a `fit` under the evidence came to.

    Args:
        learner: `BilevelModel`, built, before the first chain of the `fit`.
        level: `Level`, its training data.
    """

    def __init__(self, learner: keras.Model, level: Level):
        self.learner = learner
        self.level = level
        self.owners = learner.find_hyperparameters()
        self.first_step = self._steps()
        self.noises: list = []
        self.see()

    def _steps(self) -> int:
        return int(self.learner.optimizer.iterations.numpy())

    def _noise(self) -> float | None:
        noises = [owner.noise_deviation() for owner in self.owners]
        found = [float(noise) for noise in noises if noise is not None]
        return found[0] if found else None

    def see(self) -> None:
        """Takes notice of the noise, when an epoch ends."""
        self.noises.append(self._noise())

    def warn(self) -> None:
        """Warns of each fault that there is, once."""
        for fault in self.faults():
            warnings.warn(fault, stacklevel=3)

    def faults(self) -> list[str]:
        """The warnings, none where `Verdict` has said that chains are few."""
        if int(self.learner.hyper_optimizer.iterations.numpy()) < FEW_UPDATES:
            return []
        found = [self._too_few_samples(), self._too_warm()]
        if self.noises[-1] is not None:
            found += [self._all_is_noise(), self._noise_falls()]
        found += self._of_predictions()
        return [fault for fault in found if fault is not None]

    def _too_few_samples(self) -> str | None:
        used = self.learner.num_samples_used()
        room = self.learner.posterior.capacity
        if used >= min(FEW_SAMPLES, room):
            return None
        return (
            f"Predictions are averages over {used} samples of the weights, "
            f"which is too few: there is room for {room}, and "
            f"{int(self.learner.posterior.count.numpy())} chains have run. "
            "Train for more epochs."
        )

    def _too_warm(self) -> str | None:
        learner = self.learner
        ratios = learner.step_sizes.heat.recent_windows()
        if len(ratios) < RECENT:
            ratios = ratios[1:]  # in the first one the chain may be on its way
        # A chain that begins anew each time has no law of its own.
        if len(ratios) < FEWEST_WINDOWS or learner.start != "continue":
            return None
        mean = ratios.mean()
        error = ratios.std(ddof=1) / math.sqrt(len(ratios))
        if mean - ERRORS * error <= TOO_WARM:
            return None
        if learner.sampler.takes_step_sizes:
            halvings = int(learner.step_sizes.halvings.numpy())
            remedy = (
                f"The learning rate was halved {halvings} times (`halvings` in "
                "the logs), which was not enough. Take a larger `batch_size`, "
                "whose gradients have less noise, or train for more epochs: it "
                "is halved again as long as the chain is too warm."
            )
        else:
            rate = float(learner.optimizer.learning_rate.numpy())
            remedy = (
                f"The learning rate is {rate:.3g}. Lower it, take a larger "
                '`batch_size` or a smaller `momentum`, or use `SGLD("auto")`.'
            )
        return (
            "The chain heats itself, and so samples weights that are spread "
            f"too widely: over its last {len(ratios) * WINDOW} chains the mean "
            f"of weight times gradient was {mean:.2f} of the temperature. It "
            f"should be 1, and at most {TOO_WARM}. {remedy}"
        )

    def _all_is_noise(self) -> str | None:
        spread = self._spread()
        noise = self.noises[-1]
        if spread is None or noise < ALL_NOISE * spread:
            return None
        return (
            "Next to nothing of the targets is explained: the learned noise is "
            f"{noise:.3g}, and the standard deviation of the training targets "
            f"{spread:.3g}. The strengths may be stuck at a strong start, or "
            "the inputs say nothing of the targets. Train for more epochs, "
            f"with standardized targets; or take {WEAKER}."
        )

    def _spread(self) -> float | None:
        """That of the targets, where enough of them are seen."""
        _, y, *rest = (*self.level.some_examples(SPREAD_EXAMPLES), None)[:3]
        if y is None or len(keras.tree.flatten(y)) != 1:
            return None
        (y,) = keras.tree.flatten(y)
        if len(y) < min(ENOUGH_EXAMPLES, self.level.num_known):
            return None
        return kept_samples.spread(y, *rest) or None

    def _noise_falls(self) -> str | None:
        noise, epochs = self.noises[-1], len(self.noises) - 1
        before = self.noises[-1 - epochs // 4]
        left = STILL_FALLING
        if self.learner.draws_exactly:  # never at rest: 1 / sqrt(2 n) wide
            chance = ERRORS / math.sqrt(2.0 * self.level.num_known)
            left = min(left, math.exp(-chance))
        falls = epochs >= FEWEST_EPOCHS and noise < left * before
        spread = self._spread()
        is_small = spread is not None and noise < NO_NOISE * spread
        weights = sum(
            math.prod(w.shape) for w in self.learner.trainable_variables
        )
        has_room = weights > self.level.num_known
        course = (
            f"in the last {epochs // 4} of {epochs} epochs it fell from "
            f"{before:.3g} to {noise:.3g}"
        )
        if has_room and (falls or is_small):
            said = (
                course
                if falls
                else f"it is {noise:.3g}, and the standard deviation of the "
                f"training targets {spread:.3g}"
            )
            return (
                f"The learned noise collapses: {said}. With {weights:,} "
                f"weights and {self.level.num_known:,.0f} examples a model "
                "can fit the noise of the targets too, and predictions of new "
                "examples suffer. Take a smaller model or more examples; or, "
                "with a loss of your own, a noise that is known."
            )
        if falls:
            return (
                f"The learned noise was still falling: {course}. Train for "
                "more epochs."
            )
        return None

    def _of_predictions(self) -> list:
        learner = self.learner
        steps = self._steps() - self.first_step
        number = kept_samples.number_to_see(
            learner, steps, self.level.batch_size
        )
        if not number:
            return []
        x, *targets = self.level.some_examples(number)
        rows = kept_samples.predictions(learner, x)
        kinds = kinds_for(learner, rows[0])
        outputs = zip(*map(keras.tree.flatten, rows), strict=True)
        pairs = [(list(y), k) for y, k in zip(outputs, kinds, strict=True)]
        said = [self._mixing(y, kind) for y, kind in pairs]
        # Of several outputs the first that has not settled says enough.
        mixing = next((fault for fault in said if fault is not None), None)
        if len(pairs) > 1:
            return [mixing]
        return [mixing, self._explained(*pairs[0], *targets)]

    def _mixing(self, rows: list, kind: Any) -> str | None:
        if len(rows) < FEW_SAMPLES:
            return None
        mixing = kept_samples.mixing(rows, kind)
        if mixing.size >= SMALLEST_SIZE and mixing.r_hat <= LARGEST_R_HAT:
            return None
        return (
            "The chain is too short to have settled: its "
            f"{len(rows)} kept samples of the weights are worth "
            f"{mixing.size:.1f} independent ones, and R-hat of their first "
            f"half against the second is {mixing.r_hat:.2f}, where 1 is right "
            "(medians over predictions of training examples). What was learned "
            "depends on where it began. Train for more epochs"
            + (
                "."
                if self.learner.sampler.takes_step_sizes
                else ', or with a larger learning rate or `SGLD("auto")`.'
            )
        )

    def _explained(
        self, rows: list, kind: Any, y: Any = None, sample_weight: Any = None
    ) -> str | None:
        loss, name = likelihood.loss_of(self.learner)
        of_classes = (*likelihood.OVER_CLASSES, "binarycrossentropy")
        if name not in of_classes or y is None:
            return None
        (y,) = keras.tree.flatten(y)
        if len(y) < min(ENOUGH_EXAMPLES, self.level.num_known):
            return None
        found = kept_samples.explained(
            loss, name, y, kind.average_of(rows), sample_weight
        )
        if found is None or found.constant_loss < ONE_CLASS:
            return None
        # These examples may have seen less of a gain than there is.
        if found.loss - found.error <= NOTHING * found.constant_loss:
            return None
        return (
            "Next to nothing of the classes is explained: the mean loss of the "
            f"predictions on training data is {found.loss:.4g}, and that of "
            f"the frequencies of the classes {found.constant_loss:.4g}. The "
            "strengths may be stuck at a strong start, or the inputs say "
            f"nothing of the classes. Train for more epochs; or take {WEAKER}."
        )
