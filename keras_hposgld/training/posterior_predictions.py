"""What a learner predicts by the samples of its weights."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.training import posterior_average


class PosteriorPredictions:
    """A context in which a learner predicts by its samples when called.

    It may be entered within itself: a replica's thread can wait inside of it
    while another one enters.

    Args:
        learner: `PosteriorLearner`.

    Attributes:
        kind: String, what is predicted: `"average"`, `"deviation"` (with the
            standard deviation) or `"each"` (for each sample).
    """

    def __init__(self, learner: keras.Model):
        self.learner = learner
        self.kind = "average"
        self.depth = 0
        self.functions: dict[str, Any] = {}

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *error: Any) -> None:
        self.depth -= 1

    def forget(self) -> None:
        """Has all functions that Keras predicts by traced anew."""
        self.functions.clear()

    @contextlib.contextmanager
    def asked_for(self, kind: str) -> Iterator[None]:
        """Lets the learner's `predict` give something else for a while.

        Args:
            kind: String. The function that Keras makes for it is kept.
        """
        learner, own = self.learner, self.learner.predict_function
        learner.predict_function = self.functions.get(kind)
        self.kind = kind
        try:
            yield
            self.functions[kind] = learner.predict_function
        finally:
            learner.predict_function = own
            self.kind = "average"

    def of(self, inputs: Any, present: Any) -> Any:
        """The predictions that are asked for.

        Args:
            inputs: Structure of tensors.
            present: Structure of tensors: those by the weights as they are.
        """
        learner, posterior = self.learner, self.learner.posterior
        if not (self.depth and posterior.values):
            return present
        outputs = keras.tree.flatten(present)
        _check_floats(learner.model, outputs)
        number, sample = posterior.num_used(), posterior.reader(learner.model)

        def predict(index: tf.Tensor) -> list:
            # Outside of the scope, in which nothing of it would be kept.
            with keras.StatelessScope(sample(index)):
                return keras.tree.flatten(learner.model(inputs, training=False))

        def pack(results: list) -> Any:
            return keras.tree.pack_sequence_as(present, results)

        if self.kind == "each":
            room = posterior.capacity
            return pack(posterior_average.each(predict, outputs, number, room))
        kinds = posterior_average.kinds_for(learner, present)
        arguments = (predict, outputs, kinds, number)
        if self.kind == "deviation":
            both = posterior_average.averaged_with_deviation(*arguments)
            return tuple(map(pack, both))
        results = tf.cond(
            number > 0,
            lambda: posterior_average.averaged(*arguments),
            lambda: outputs,
        )
        for result, output in zip(results, outputs, strict=True):
            # Private to Keras, whose losses leave out what it masks.
            mask = getattr(output, "_keras_mask", None)
            if mask is not None:
                result._keras_mask = mask
        return pack(results)


def _check_floats(model: keras.Model, outputs: list) -> None:
    for output in outputs:
        if not output.dtype.is_floating:
            raise ValueError(
                "Predictions must be floats to be averaged over samples of the "
                f"weights. Received: an output of dtype {output.dtype.name} of "
                f"model={model!r}. Leave that output out, or compile with "
                "`posterior_samples=0`."
            )
