"""Linear systems `matvec(x) = rhs` over vectors held as lists of tensors.

A solver is three functions, `start`, `step` and `solution`, so that whoever has
a loop can run it. It returns the solution with its relative residual,
`|rhs - matvec(x)| / |rhs|`, so that a bad solve is seen as such.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import tensorflow as tf

from keras_hposgld.core.loop import run_steps
from keras_hposgld.core.vectors import dot
from keras_hposgld.core.vectors import norm
from keras_hposgld.core.vectors import plus_scaled
from keras_hposgld.core.vectors import zeros_like


class CGState(NamedTuple):
    """What the next step of the conjugate gradients needs."""

    x: list
    residual: list
    direction: list
    image: list  # the matrix times the direction
    curvature: tf.Tensor  # along the residual before
    goal: tf.Tensor  # the norm of the residual to stop at
    length: tf.Tensor  # of the right-hand side
    goes_on: tf.Tensor


class ConjugateGradient(NamedTuple):
    """Conjugate gradients from zero, in the form that lessens the residual.

    This form is known as the method of conjugate residuals. It takes as many
    steps to the solution as the other form. Stopped early, it has the least
    residual of all combinations of the products so far, where the other may
    have a larger one than zero has, above all at a saddle.

    It stands still from a relative residual of `tolerance` on, and where the
    residual is not a direction of positive curvature.

    Reference:
        Hestenes and Stiefel, 1952; Stiefel, 1955; Fong and Saunders, "CG
        versus MINRES", 2012.
    """

    max_iterations: int
    tolerance: float

    @property
    def num_steps(self) -> int:
        """How many steps, of one product with the matrix each."""
        return self.max_iterations

    def start(self, rhs: list) -> CGState:
        """The state before the first step."""
        rhs, zeros, length = list(rhs), zeros_like(rhs), norm(rhs)
        goal = tf.convert_to_tensor(self.tolerance, length.dtype) * length
        return CGState(
            x=zeros,
            residual=rhs,
            direction=zeros,
            image=zeros,
            curvature=tf.zeros_like(length),
            goal=goal,
            length=length,
            goes_on=length > goal,
        )

    def step(self, state: CGState, number: Any, matvec: Callable) -> CGState:
        """The state after one more step."""
        product = matvec(state.residual)
        curvature = dot(state.residual, product)
        ratio = tf.math.divide_no_nan(curvature, state.curvature)
        direction = plus_scaled(state.residual, ratio, state.direction)
        image = plus_scaled(product, ratio, state.image)
        step = curvature / dot(image, image)
        residual = plus_scaled(state.residual, -step, image)
        moved = state._replace(
            x=plus_scaled(state.x, step, direction),
            residual=residual,
            direction=direction,
            image=image,
            curvature=curvature,
        )
        # Not along what has no positive curvature, or is not a number.
        moves = state.goes_on & (curvature > 0) & tf.math.is_finite(step)
        chosen = tf.nest.map_structure(
            lambda new, old: tf.where(moves, new, old), moved, state
        )
        return chosen._replace(goes_on=moves & (norm(residual) > state.goal))

    def solution(self, state: CGState) -> tuple[list, tf.Tensor]:
        """The solution and its relative residual, which is at most 1."""
        relative = tf.math.divide_no_nan(norm(state.residual), state.length)
        return state.x, relative


class NeumannState(NamedTuple):
    """What the next step of the series needs."""

    x: list
    residual: list
    rhs: list
    probe: list  # of the power method; empty if the step size was given
    step_size: tf.Tensor


class NeumannSeries(NamedTuple):
    """`step_size * sum_k (I - step_size * A)^k rhs`, `num_terms` terms.

    It converges to the solution if `A` is symmetric, positive definite and
    `step_size * largest eigenvalue < 2`. One term is `step_size * rhs`.

    `step_size` is a float or a scalar tensor `> 0`. `None`: 1 over an estimate
    of the largest eigenvalue, which takes `POWER_ITERATIONS` products more.

    Reference:
        Lorraine, Vicol and Duvenaud, AISTATS 2020.
    """

    num_terms: int
    step_size: Any

    @property
    def num_steps(self) -> int:
        """How many steps, of one product with the matrix each."""
        return self.num_terms + self._num_probes

    @property
    def _num_probes(self) -> int:
        return POWER_ITERATIONS if self.step_size is None else 0

    def start(self, rhs: list) -> NeumannState:
        """The state before the first step."""
        rhs = list(rhs)
        probe, step_size = [], self.step_size
        if step_size is None:
            probe, step_size = _power_start(rhs), 0.0
        if not tf.is_tensor(step_size):  # a cast would go through float32
            step_size = tf.constant(step_size, rhs[0].dtype)
        return NeumannState(zeros_like(rhs), rhs, rhs, probe, step_size)

    def step(
        self, state: NeumannState, number: Any, matvec: Callable
    ) -> NeumannState:
        """The state after one more step."""
        if not state.probe:
            return self._add_term(state, matvec)
        is_probe = number < self._num_probes
        # The series ends with a product for the residual, so that the power
        # method and the series take one product each, of a vector chosen here.
        x = plus_scaled(state.x, state.step_size, state.residual)
        scaled, size = _normalized(state.probe)
        chosen = _where(is_probe, scaled, x)
        product = matvec(chosen)
        step_size = tf.math.divide_no_nan(
            tf.ones_like(state.step_size),
            tf.cast(norm(product), state.step_size.dtype),
        )
        return state._replace(
            x=_where(is_probe, state.x, x),
            residual=_where(
                is_probe, state.residual, plus_scaled(state.rhs, -1.0, product)
            ),
            probe=_where(is_probe, product, state.probe),
            step_size=tf.where(is_probe, step_size, state.step_size),
        )

    def _add_term(self, state: NeumannState, matvec: Callable) -> NeumannState:
        x = plus_scaled(state.x, state.step_size, state.residual)
        return state._replace(
            x=x, residual=plus_scaled(state.rhs, -1.0, matvec(x))
        )

    def solution(self, state: NeumannState) -> tuple[list, tf.Tensor]:
        """The partial sum and its relative residual."""
        relative = tf.math.divide_no_nan(norm(state.residual), norm(state.rhs))
        return state.x, relative


POWER_ITERATIONS = 10


def solve(solver: Any, matvec: Callable, rhs: list) -> tuple[list, tf.Tensor]:
    """Runs a solver in one loop.

    Args:
        solver: `ConjugateGradient` or `NeumannSeries`.
        matvec: Function from a list of tensors to `A` times it, with `A`
            symmetric.
        rhs: List of tensors.

    Returns:
        The solution and its relative residual.
    """
    state = run_steps(
        lambda state, number: solver.step(state, number, matvec),
        solver.start(rhs),
        solver.num_steps,
    )
    return solver.solution(state)


def neumann_series(
    matvec: Callable, rhs: list, num_terms: int, step_size: Any
) -> tuple[list, tf.Tensor]:
    """Solves by `NeumannSeries(num_terms, step_size)`."""
    return solve(NeumannSeries(num_terms, step_size), matvec, rhs)


def conjugate_gradient(
    matvec: Callable, rhs: list, max_iterations: int, tolerance: float
) -> tuple[list, tf.Tensor]:
    """Solves by `ConjugateGradient(max_iterations, tolerance)`."""
    return solve(ConjugateGradient(max_iterations, tolerance), matvec, rhs)


def largest_curvature(
    matvec: Callable, start: list, num_iterations: int = POWER_ITERATIONS
) -> tf.Tensor:
    """Largest eigenvalue by modulus, by the power method.

    It starts from `start` plus a fixed pseudo-random vector of that length:
    `start` alone may have next to nothing of the eigenvector that is looked
    for. The vector has a share of about `1 / sqrt(n)` of it, with `n` entries
    in all, and the estimate is above that to the power
    `1 / num_iterations`, times the eigenvalue: half of it for a million
    entries and 10 iterations.

    Args:
        matvec: Function from a list of tensors to `A` times it, with `A`
            symmetric.
        start: List of tensors. If it is zero, so is the estimate.
        num_iterations: Integer, products with `A` that it takes.

    Returns:
        Scalar tensor `>= 0`, an estimate from below.
    """
    start = _power_start(start)

    def body(k: tf.Tensor, vector: list, size: tf.Tensor) -> tuple:
        scaled = [
            tf.math.divide_no_nan(tensor, tf.cast(size, tensor.dtype))
            for tensor in vector
        ]
        vector = matvec(scaled)
        return k + 1, vector, norm(vector)

    *_, size = tf.while_loop(
        lambda k, *_: k < num_iterations,
        body,
        (tf.constant(0), start, norm(start)),
        parallel_iterations=1,
        maximum_iterations=num_iterations,
    )
    return size


def _power_start(vector: list) -> list:
    return plus_scaled(vector, norm(vector), _pseudo_random_like(vector))


def _normalized(vector: list) -> tuple[list, tf.Tensor]:
    """A vector of length one, and its length before."""
    length = norm(vector)
    return [
        tf.math.divide_no_nan(part, tf.cast(length, part.dtype))
        for part in vector
    ], length


def _where(condition: tf.Tensor, left: list, right: list) -> list:
    return [tf.where(condition, a, b) for a, b in zip(left, right, strict=True)]


def _pseudo_random_like(vector: list) -> list:
    """A vector of about unit length, the same one under any compiler.

    Only raw random integers are the same everywhere.
    """
    sizes = [tf.size(tensor, tf.int64) for tensor in vector]
    # The variance of a uniform number between -1 and 1 is 1 / 3.
    scale = tf.sqrt(3.0 / tf.cast(tf.add_n(sizes), tf.float32)) / 2.0**31

    def draw(position: int, tensor: tf.Tensor) -> tf.Tensor:
        words = tf.random.stateless_uniform(
            tf.shape(tensor),
            seed=[0, position],
            minval=None,
            maxval=None,
            dtype=tf.int32,
            alg="philox",
        )
        return tf.cast(scale * tf.cast(words, tf.float32), tensor.dtype)

    return [draw(position, tensor) for position, tensor in enumerate(vector)]
