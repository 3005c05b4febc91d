"""What all learnable hyperparameters share.

A hyperparameter is held as an *unconstrained* Keras variable that the
optimizer of the hyperparameters moves, and used as a *constrained* value (a
strength, a weight, a range). The variable is not trainable, so a plain
`model.fit` leaves it alone and uses the value as a constant.
"""

import abc
from collections.abc import Callable
from typing import Any

import keras

from keras_hposgld.hyperparameters.own_rules import Beginning
from keras_hposgld.hyperparameters.own_rules import ChainEnd


class Hyperparameter(abc.ABC):
    """Base of the Keras objects that own learnable hyperparameters.

    A layer, a loss, a table of weights: whatever inherits from this and is
    part of a model, or of what it was compiled with, is found, learned, saved,
    exported and shown by the same code. It answers for itself: no other code
    asks what kind it is.

    Attributes:
        granularity: String: what has a value of its own.
        shrinkage: Float, the strength of a prior of its values; `0.0`
            (default): there is none.
        needs_outer_loss: Whether it changes the inner loss itself, so that an
            outer loss has to stand beside it.
        is_about_weights: Whether the inner objective depends on it by a
            function of the weights alone, as on a penalty, so that derivatives
            by it go through no layer.
        is_quadratic: Whether it is a quadratic penalty of the weights and
            nothing else, which `SGLD(integrator="exponential")` solves exactly.
        is_mixture: Whether it is one where the evidence is learned from, given
            variables that `draw_latents` draws.
    """

    granularity: str
    shrinkage: float = 0.0
    needs_outer_loss = False
    is_about_weights = False
    is_quadratic = False
    is_mixture = False

    @property
    @abc.abstractmethod
    def hyperparameter_variables(self) -> list[keras.Variable]:
        """The unconstrained variables, in a fixed order."""

    @abc.abstractmethod
    def hyperparameter_values(self) -> dict:
        """The constrained values, a tensor for each variable, by path."""

    @property
    def fixed_variables(self) -> list[keras.Variable]:
        """All variables of the object that no inner step changes."""
        return self.hyperparameter_variables

    def exported(self) -> keras.layers.Layer:
        """What takes the place of a learned layer in an exported model.

        By default a layer that does nothing, as an augmentation does nothing
        in inference.
        """
        return keras.layers.Identity(name=getattr(self, "name", None))

    def saved_apart(self) -> list[tuple[str, keras.Variable]]:
        """What to save where Keras does not save this object with the model.

        Returns:
            Pairs of a name and a variable.
        """
        return [("hyperparameter", v) for v in self.hyperparameter_variables]

    def prior_gradient(self, share_seen: Callable) -> list | None:
        """What a prior of the values adds to the hypergradient.

        Args:
            share_seen: Function of a weight, of a tensor that broadcasts
                against it and has its rank, and of a boolean. The tensor has
                the curvature that a pull on the weight has; the boolean says
                whether it is decoupled from the gradient. It returns a tensor
                of that shape: how much of the derivative by the pull an
                estimate holds.

        Returns:
            List of tensors like `hyperparameter_variables`: the derivatives of
            minus the log of the prior, each times its share. `None` (default):
            there is no prior.
        """
        return None

    def log_normalizer(self, temperature: float) -> Any:
        """How the prior is normalized that it puts on weights.

        Args:
            temperature: Float, that of the law of the weights.

        Returns:
            Scalar tensor, `log int exp(-penalty / temperature)` over the
            weights that it serves. `None` (default): it is not known to be a
            prior, so that the evidence of the data says nothing about it. A
            weight of an example or a learned loss is none: they would go where
            the loss is smallest.
        """
        return None

    def noise_deviation(self) -> Any:
        """The standard deviation of a Gaussian noise, for a loss that has one.

        Returns:
            Scalar tensor sigma, if the loss of an example is minus the
            logarithm of the density of its targets with independent noise of
            that deviation. `None` (default): it is something else.
        """
        return None

    def begin_rule(self, beginning: Beginning) -> None:  # noqa: B027
        """Prepares for `renewed`, before the first chain of a `fit`.

        Args:
            beginning: `Beginning`.
        """

    def renewed(self, end: ChainEnd) -> list | None:
        """The next values of its variables, where it has a rule of its own.

        It is asked at the end of each chain of an estimator that needs no
        outer objective.

        Args:
            end: `ChainEnd`.

        Returns:
            Pairs of a variable and a tensor. `None` (default): the variables
            follow the hypergradient, by the `hyper_optimizer`.
        """
        return None

    def draw_latents(self, end: ChainEnd) -> None:  # noqa: B027
        """Draws what stands beside its variables, given them and the weights.

        It is called after `renewed`, whatever moved the variables.

        Args:
            end: `ChainEnd`, without slopes.
        """

    def faults(self) -> list[str]:
        """What speaks against its values when a `fit` ends that moved them.

        Returns:
            List of strings, each a warning: what was seen, in numbers, and the
            way out. By default there are none.
        """
        return []

    def check_learning_rate(  # noqa: B027 - most have nothing to refuse
        self, learning_rate: float, scale: float | None = 1.0
    ) -> None:
        """Refuses inner steps that the values may outgrow, if any can.

        Args:
            learning_rate: Float, that of the sampler.
            scale: Float, by how much a step of the sampler may exceed it;
                `None` where the step adapts to the gradient.
        """


class WeightHyperparameter(Hyperparameter):
    """Base of what belongs to single weights: the learned regularizers.

    Attributes:
        name: String, by which configs tell it from others of its class.
        is_from_file: Whether a file has said which weights it is for.
        is_from_outside: Whether it was attached to a model made without it, by
            a learner or a callback, which then has to keep it.
    """

    name: str
    is_about_weights = True
    is_from_file = False
    is_from_outside = False

    @abc.abstractmethod
    def attach(
        self,
        weight: keras.Variable,
        address: str | None = None,
        known: set[str] | None = None,
    ) -> Any:
        """Settles that a weight is regularized; returns its penalty.

        Args:
            weight: Variable.
            address: Its place in the model, see `addresses`, where known.
            known: The addresses of all weights of that model.
        """

    @abc.abstractmethod
    def for_model(self, weights: list) -> Any:
        """This object, or a fresh copy if it serves another model by now.

        Args:
            weights: List of variables: those of the model.
        """

    @abc.abstractmethod
    def waits_for(self, weight: keras.Variable, address: str) -> bool:
        """Whether a weight is one that a file has named."""
