"""Which kind of chains a callback has: in the training, or apart from it."""

from typing import Any

import keras

from keras_hposgld import estimators
from keras_hposgld.callbacks.chains_apart import ChainsApart
from keras_hposgld.callbacks.chains_in_training import ChainsInTraining
from keras_hposgld.callbacks.checks import why_not_in_training
from keras_hposgld.core.checks import check_count
from keras_hposgld.core.checks import check_known

KINDS = ("training", "apart")


class ChainKind:
    """Makes the chains of a callback, from what the user has asked for.

    Args:
        wanted: `"training"`, `"apart"`, or `None` for what can be.
        **arguments: Those of `LearnHyperparameters` that the chains take.

    Raises:
        ValueError: If an argument is out of range, or does not go with the
            kind that is wanted.

    Attributes:
        name: `"training"` or `"apart"`.
    """

    def __init__(self, wanted: str | None, **arguments: Any):
        if wanted is not None:
            check_known("chain", wanted, KINDS)
        if arguments["every"] != "auto":
            check_count("every", arguments["every"], 1)
        check_count("warmup_batches", arguments["warmup_batches"], 0)
        check_count("batch_size", arguments["batch_size"], 1)
        self.wanted = wanted
        self.arguments = arguments
        reason = _why_apart(arguments)
        if wanted == "training" and reason is not None:
            raise ValueError(
                f'`chain="training"` cannot serve this callback: {reason}. '
                'Leave it out, or pass `chain="apart"`.'
            )
        self.name = wanted or ("training" if reason is None else "apart")

    def chains(self) -> Any:
        """New chains, with fresh optimizers."""
        arguments = self.fresh_arguments()
        del arguments["chain"]
        if self.name == "apart":
            return ChainsApart(**arguments)
        for name in ("sampler", "inner_data"):
            del arguments[name]
        return ChainsInTraining(**arguments)

    def settles_for(self, model: keras.Model) -> bool:
        """Takes chains apart where a model can have no others.

        Returns:
            Whether that is new.
        """
        if self.name == "apart" or self.wanted == "training":
            return False
        if why_not_in_training(model) is None:
            return False
        self.name = "apart"
        return True

    def fresh_arguments(self) -> dict:
        """The arguments of a callback like this one, not used yet."""
        arguments = {key: fresh(value) for key, value in self.arguments.items()}
        return {"chain": self.wanted, **arguments}


def fresh(argument: Any) -> Any:
    """An optimizer or regularizer that has not been used; data as they are."""
    if isinstance(argument, keras.optimizers.Optimizer | keras.layers.Layer):
        return type(argument).from_config(argument.get_config())
    return argument


def _why_apart(arguments: dict) -> str | None:
    """What only chains apart can do, `None` if nothing was asked for."""
    for name in ("sampler", "inner_data"):
        if arguments[name] is not None:
            return f"`{name}` is for chains apart"
    if arguments["layer_state"] != "carried":
        return '`fit` trains with `layer_state="carried"`'
    estimator = arguments["estimator"]
    if estimator is None:
        return None
    estimator = estimators.get(estimator)
    if not estimator.takes_single_steps:
        return (
            f"{estimator!r} looks back over the whole chain, or to other "
            "weights than those of the training"
        )
    every = arguments["every"]
    if every != "auto" and every < estimator.num_steps:
        return (
            f"a chain of {estimator.num_steps} steps does not end every "
            f"{every} steps"
        )
    return None
