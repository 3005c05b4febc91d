"""What both kinds of chains of a callback have in common."""

import abc
import weakref
from typing import Any

import keras
import tensorflow as tf

from keras_hposgld.callbacks.learning_data import read_data
from keras_hposgld.callbacks.rate_of_learning import RATE
from keras_hposgld.callbacks.rate_of_learning import RateOfLearning
from keras_hposgld.hyperparameters.discovery import variables_of
from keras_hposgld.training.outer_level import OuterLevel
from keras_hposgld.training.state import checkpointed
from keras_hposgld.training.state import state_of


class Chains(abc.ABC):
    """The chains that a callback learns from, over one `fit` or several.

    What they keep belongs to one model and to its trainable weights of now;
    for others there is another object.

    Args:
        estimator: As in `LearnHyperparameters`, like all of them.
        hyper_optimizer: Likewise.
        every: Integer: the batches from the end of a chain to the next.
        warmup_batches: Likewise.
        batch_size: Likewise.
        data: Dictionary from the name of a level to its data, or `None`.
        seed: Integer.
        **outer_arguments: Those of `OuterLevel.configure`.

    Attributes:
        sampler: `Sampler`, whose steps are those of the chains.
        rate: `RateOfLearning`, `None` if `hyper_optimizer` was given.
        batches: Iterator, `None` until `draw` was called.
    """

    sampler: Any
    batches: Any = None

    def __init__(
        self,
        estimator: Any,
        hyper_optimizer: Any,
        *,
        every: int,
        warmup_batches: int,
        batch_size: int,
        data: dict[str, Any],
        seed: int,
        **outer_arguments: Any,
    ):
        self.outer_level = OuterLevel()
        self.rate: RateOfLearning | None = None
        if hyper_optimizer is None:
            hyper_optimizer = keras.optimizers.Adam(RATE)
            self.rate = RateOfLearning(hyper_optimizer)
        self.outer_level.configure(
            estimator, hyper_optimizer, **outer_arguments
        )
        self.every = every
        self.warmup_batches = warmup_batches
        self.batch_size = batch_size
        self.seed = seed
        self.data: Any = None
        self._given = data
        self._served: Any = None

    @property
    def num_steps(self) -> int:
        """The length of a chain."""
        return self.outer_level.estimator.num_steps

    @property
    def num_done(self) -> int:
        """How many chains there have been."""
        return int(self.outer_level.iterations.numpy())

    def serves(self, model: keras.Model, owners: list) -> bool:
        """Whether its state belongs to a model as it is now."""
        return self._served in (None, _identity_of(model, owners))

    def read_data(self, model: keras.Model) -> None:
        """Reads the levels of data that are its own, once."""
        if self.data is None:
            self.data = read_data(
                self._given,
                model,
                self.outer_level,
                self.batch_size,
                self.seed,
            )

    def begin(self, model: keras.Model, owners: list) -> None:
        """Prepares the chains of a `fit`.

        Args:
            model: Built and compiled `keras.Model`.
            owners: The objects that own its hyperparameters.
        """
        self._served = _identity_of(model, owners)
        self.batches = None
        if self.rate is not None:
            self.rate.begin()

    def set_rate(self, epoch: int, batch: int, params: dict) -> None:
        """Sets the rate of learning before a batch, where it is ours.

        Args:
            epoch: Integer, that of now.
            batch: Integer: the batches of this epoch before this one.
            params: What Keras tells its callbacks.
        """
        if self.rate is not None:
            epochs, batches = params["epochs"], params["steps"]
            self.rate.set_for(epoch, batch, epochs, batches)

    @abc.abstractmethod
    def end(self, model: keras.Model) -> None:
        """Leaves the model as it was, also if its `fit` was broken off."""

    @abc.abstractmethod
    def draw(self) -> None:
        """Starts to draw batches, from where the last chain ended."""

    @abc.abstractmethod
    def before(self) -> None:
        """What there is to do before batches of `fit`."""

    @abc.abstractmethod
    def after(self, before: int, now: int) -> None:
        """What there is to do after batches of `fit`.

        Args:
            before: Integer, the batches of all fits before those of now.
            now: Integer, with them.

        Raises:
            RuntimeError: If too many updates in a row were skipped.
        """

    def state(self, model: keras.Model, owners: list) -> tf.Module:
        """All that learning resumes from; the weights are in Keras's backup."""
        state = state_of(
            model, owners, self.outer_level, self.sampler.keras_optimizer()
        )
        del state["weights"]
        return checkpointed(state)


def _identity_of(model: keras.Model, owners: list) -> tuple:
    """A model, its trainable weights and hyperparameters, as they are now."""
    return (
        weakref.ref(model),
        [id(weight) for weight in model.trainable_variables],
        [id(variable) for variable in variables_of(owners)],
    )
