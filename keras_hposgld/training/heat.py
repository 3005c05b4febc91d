"""Whether the steps of a chain heat it.

Under the law exp(-L_T / tau) the mean of w dL_T/dw is tau for each entry w of a
weight (equipartition). Steps that are too large for the curvature, or noisy
gradients of minibatches, make it more: the chain samples a law that is too
wide. The mean over all entries of all weights is looked at: that of a bias
alone is ruled by chance, and by where the chain is still on its way to.

A chain that rises far above where the last ones have been has diverged, also if
its numbers are finite still. It counts as one whose numbers are not: what it
did to the weights could be undone by nothing. (A momentum may take it up again
to where it came from.)
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

TOO_WARM = 1.3
WINDOW = 50  # chains
RECENT = 8  # windows
FEWEST = 4  # of which something can be said
SURELY = 4.0  # standard errors
FADES = 0.9  # what is left of a height, a chain later


class Heat(keras.layers.Layer):
    """Follows the equipartition ratio of the chains of a `fit`.

    Attributes:
        last: Variable: the mean over the last whole window of chains, 0 before
            the first has ended.
        recent: Variable: the same of the last windows, in a ring.
        windows: Variable: how many have ended.
    """

    def __init__(self) -> None:
        super().__init__(name="heat", trainable=False)
        self.total = self._number("total")
        self.last = self._number("last")
        self.chains = self._number("chains", "int32")
        self.recent = self._number("recent", shape=(RECENT,))
        self.windows = self._number("windows", "int32")
        self.highest = self._number("highest")
        self.built = True

    def _number(
        self, name: str, dtype: str = "float32", shape: tuple = ()
    ) -> keras.Variable:
        return self.add_weight(
            shape=shape,
            initializer="zeros",
            dtype=dtype,
            trainable=False,
            name=name,
        )

    def judged(self, estimate: Any, temperature: float) -> Any:
        """The estimate, with an infinite loss if the chain has diverged.

        Args:
            estimate: `Estimate`.
            temperature: Float, that of the law.
        """
        first, peak = (tf.cast(x, tf.float32) for x in estimate.inner_range)
        entries = sum(param.shape.num_elements() for param in estimate.params)
        highest = tf.maximum(first, self.highest.value)
        # Of the law itself, with tau / 2 for each entry.
        usual = 1.0 + 10.0 * temperature * entries
        has_diverged = peak > usual + 2.0 * tf.maximum(highest, 0.0)
        loss = estimate.inner_loss
        infinite = tf.constant(np.inf, loss.dtype)
        return estimate._replace(
            inner_loss=tf.where(has_diverged, infinite, loss)
        )

    def see(self, estimate: Any, skipped: tf.Tensor) -> tf.Tensor:
        """Takes notice of a chain.

        Args:
            estimate: `Estimate`, with `equipartition`.
            skipped: 1 if its update was skipped, else 0.

        Returns:
            Whether the steps are too large: the last windows of chains were
            too warm, by more than chance, or this chain came to numbers that
            are not finite.
        """
        peak = tf.cast(estimate.inner_range[1], tf.float32)
        highest = tf.maximum(FADES * self.highest.value, peak)
        self.highest.assign(tf.where(skipped > 0, self.highest.value, highest))
        ratio = _ratio(estimate)
        counts = tf.math.is_finite(ratio) & (skipped == 0)
        self.total.assign_add(tf.where(counts, ratio, 0.0))
        self.chains.assign_add(tf.cast(counts, tf.int32))
        is_whole = self.chains.value >= WINDOW

        def end() -> None:
            self.last.assign(self.total / WINDOW)
            slot = tf.one_hot(self.windows.value % RECENT, RECENT)
            self.recent.assign(
                tf.where(slot > 0, self.last.value, self.recent.value)
            )
            self.windows.assign_add(1)
            self.begin_window()

        tf.cond(is_whole, end, lambda: None)
        return (skipped > 0) | (is_whole & self._is_hot())

    def _is_hot(self) -> tf.Tensor:
        """Whether the mean of the last windows is too warm beyond doubt."""
        number = tf.minimum(self.windows.value, RECENT)
        counts = tf.cast(tf.range(RECENT) < number, tf.float32)
        size = tf.maximum(tf.cast(number, tf.float32), 2.0)
        mean = tf.reduce_sum(counts * self.recent.value) / size
        squares = tf.reduce_sum(counts * (self.recent.value - mean) ** 2)
        error = tf.sqrt(squares / (size * (size - 1.0)))
        is_known = number >= FEWEST
        return is_known & (mean - SURELY * error > TOO_WARM)

    def begin_anew(self) -> None:
        """Forgets all windows: the steps are others now."""
        self.windows.assign(0)
        self.begin_window()

    def recent_windows(self) -> np.ndarray:
        """The ratios of the last windows. A single one is often chance."""
        number = min(int(self.windows.numpy()), RECENT)
        return np.asarray(self.recent.numpy())[:number]

    def begin_window(self) -> None:
        """Begins the next window."""
        self.total.assign(0.0)
        self.chains.assign(0)


def _ratio(estimate: Any) -> tf.Tensor:
    """The mean over all entries of all weights."""
    numbers = [param.shape.num_elements() for param in estimate.params]
    shares = tf.constant(numbers, tf.float32) / float(sum(numbers))
    return tf.reduce_sum(shares * tf.cast(estimate.equipartition, tf.float32))
