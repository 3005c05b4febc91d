"""JAX: a plain unroll, jaxopt and optimistix."""

import functools

import jax
import jax.numpy as jnp

from peer_adapters.task import CG_ITERATIONS
from peer_adapters.task import LEARNING_RATE


def network(weights, x):
    """The logits."""
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        if kernel.ndim == 4:
            logits = bias + jax.lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            window = (1, 2, 2, 1)
            x = jax.lax.reduce_window(
                *(jax.nn.relu(logits), -jnp.inf, jax.lax.max),
                *(window, window, "VALID"),
            )
        else:
            logits = x.reshape(len(x), -1) @ kernel + bias
            x = jax.nn.relu(logits)
    return logits


def cross_entropy(weights, x, y):
    scores = jax.nn.log_softmax(network(weights, x))
    return -jnp.mean(jnp.take_along_axis(scores, y[:, None], axis=1))


def penalized(strengths, weights, x, y):
    return cross_entropy(weights, x, y) + sum(
        jnp.sum(s * w**2) for s, w in zip(strengths, weights, strict=True)
    )


def inner_objective(weights, hypers, x, y):
    return penalized([jax.nn.sigmoid(h) for h in hypers], weights, x, y)


def descended(weights, gradients):
    return [
        w - LEARNING_RATE * g for w, g in zip(weights, gradients, strict=True)
    ]


def jax_unroll(hypers, weights, x, y):
    def step(weights, batch):
        gradients = jax.grad(inner_objective)(weights, hypers, *batch)
        return descended(weights, gradients), None

    return jax.lax.scan(step, weights, (x, y))[0]


def jax_loop(hypers, weights, x, y):
    """No loop in the graph: XLA is slow at convolutions in a loop on a CPU."""
    for batch in zip(x, y, strict=True):
        gradients = jax.grad(inner_objective)(weights, hypers, *batch)
        weights = descended(weights, gradients)
    return weights


def jaxopt_unroll(hypers, weights, x, y):
    """`run` knows no batches: `update`, its documented step, in a scan."""
    import jaxopt

    solver = jaxopt.GradientDescent(
        inner_objective,
        stepsize=LEARNING_RATE,
        acceleration=False,
        maxiter=len(x),
        unroll=True,
        implicit_diff=False,
    )

    def step(carry, batch):
        return tuple(solver.update(*carry, hypers, *batch)), None

    state = solver.init_state(weights, hypers, x[0], y[0])
    return jax.lax.scan(step, (weights, state), (x, y))[0][0]


def jaxopt_implicit(hypers, weights, x, y):
    """`custom_root` around those steps: the optimum of the last batch."""
    from jaxopt import implicit_diff
    from jaxopt import linear_solve

    solve = functools.partial(linear_solve.solve_cg, maxiter=CG_ITERATIONS)

    @implicit_diff.custom_root(
        lambda weights, hypers: jax.grad(inner_objective)(
            weights, hypers, x[-1], y[-1]
        ),
        solve=solve,
    )
    def minimizer(start, hypers):
        return jaxopt_unroll(hypers, start, x, y)

    return minimizer(weights, hypers)


def optimistix_solve(hypers, weights, x, y, implicit):
    """`minimise` with a solver that takes a batch of its own each step."""
    import equinox as eqx
    import lineax as lx
    import optimistix as optx

    class Minibatches(optx.AbstractMinimiser):
        """Gives step i of `solver` the batch i; `args` end in the batch."""

        solver: optx.GradientDescent
        rtol: float = 0.0
        atol: float = 0.0
        norm: object = eqx.field(static=True, default=optx.max_norm)

        def init(self, fn, y, args, *rest):
            return self.solver.init(fn, y, args, *rest), jnp.asarray(0)

        def step(self, fn, y, args, options, state, tags):
            state, index = state
            args = (*args[:-1], index)
            y, state, aux = self.solver.step(fn, y, args, options, state, tags)
            return y, (state, index + 1), aux

        def terminate(self, *_):
            return jnp.asarray(False), optx.RESULTS.successful

        def postprocess(self, fn, y, aux, args, options, state, tags, result):
            return state[0].y_eval, aux, {}  # y is one step behind

    class TruncatedCG(lx.CG):
        """Conjugate gradients that call their last iterate a solution."""

        def compute(self, *arguments):
            solution, _, stats = super().compute(*arguments)
            return solution, lx.RESULTS.successful, stats

    def objective(weights, args):
        hypers, x, y, index = args
        return inner_objective(weights, hypers, x[index], y[index])

    return optx.minimise(
        objective,
        Minibatches(optx.GradientDescent(LEARNING_RATE, 0.0, 0.0)),
        weights,
        (hypers, x, y, jnp.asarray(len(x) - 1)),
        max_steps=len(x),
        adjoint=optx.ImplicitAdjoint(
            TruncatedCG(rtol=1e-6, atol=1e-6, max_steps=CG_ITERATIONS)
        )
        if implicit
        else optx.RecursiveCheckpointAdjoint(),
        throw=False,
        tags=frozenset({lx.positive_semidefinite_tag}),
    ).value


SOLVERS = {
    "jax": jax_unroll,
    "jax_loop": jax_loop,
    "jaxopt": jaxopt_unroll,
    "jaxopt_implicit": jaxopt_implicit,
    "optimistix": functools.partial(optimistix_solve, implicit=False),
    "optimistix_implicit": functools.partial(optimistix_solve, implicit=True),
}


class Adapter:
    """One method; see `measuring` for what is asked of an adapter."""

    def __init__(self, method, num_steps):
        self.solver, self.num_steps = SOLVERS[method], num_steps

    def load(self, task):
        return tuple(jax.tree.map(jnp.asarray, tuple(task)))

    def unload(self, tensors):
        return [jax.device_get(t) for t in tensors]

    def prepare(self, arguments):
        def outer(hypers, weights, x, y, x_outer, y_outer):
            weights = self.solver(hypers, weights, x, y)
            return cross_entropy(weights, x_outer, y_outer), weights

        solve = jax.jit(jax.grad(outer, has_aux=True))
        compiled = solve.lower(*arguments).compile()
        return lambda *arguments: jax.block_until_ready(compiled(*arguments))

    def plain_calls(self, arguments):
        """T plain SGD steps: a jitted one at a time, and all in one scan."""
        hypers, start, x, y, *_ = arguments
        strengths = [jax.nn.sigmoid(h) for h in hypers]
        batches = list(zip(x, y, strict=True))

        def step(weights, batch, strengths):
            gradients = jax.grad(penalized, 1)(strengths, weights, *batch)
            return descended(weights, gradients)

        one = jax.jit(step, donate_argnums=0)

        @jax.jit
        def scan(weights, strengths, x, y):
            return jax.lax.scan(
                lambda weights, batch: (step(weights, batch, strengths), None),
                weights,
                (x, y),
            )[0]

        def one_by_one():
            weights = [jnp.copy(w) for w in start]
            for batch in batches:
                weights = one(weights, batch, strengths)
            jax.block_until_ready(weights)

        return [
            one_by_one,
            lambda: jax.block_until_ready(scan(start, strengths, x, y)),
        ]
