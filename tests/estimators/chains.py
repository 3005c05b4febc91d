"""A small chain differentiated as a whole, by other means than the package.

The path is the sampler's own. Along it the derivatives are those of

    M <- mu M + A g,   theta <- P(theta - B M - E g - alpha d)

with P the identity unless a projection is given, g the clipped gradient and the
scales held fixed: each value is that of the path, each derivative that of this
form.
"""

import numpy as np
import tensorflow as tf

import keras_hposgld as hs

NUM_STEPS = 5
rng = np.random.default_rng(11)
BATCHES = tf.constant(rng.normal(size=(NUM_STEPS, 6, 3)))
STRENGTHS = [tf.constant([0.3, 0.8, 0.5]), tf.constant(0.6)]
STRENGTHS = [tf.cast(s, tf.float64) for s in STRENGTHS]
START = [tf.constant(rng.normal(size=3)), tf.constant(rng.normal(size=(2, 2)))]


def inner(hypers, params, batch):
    (s, r), (w, u) = hypers, params
    prediction = tf.linalg.matvec(batch, w) + tf.reduce_sum(tf.tanh(u))
    fit = tf.reduce_mean((prediction - 1.0) ** 2)
    return fit + tf.reduce_sum(s * w**2) + r * tf.reduce_sum(u**4 + u[0] * w[0])


def outer(hypers, params, batch):
    (s, r), (w, u) = hypers, params
    error = tf.reduce_mean((tf.linalg.matvec(batch, w) - 0.5) ** 4)
    return error + tf.reduce_sum(tf.sin(u)) * r + 0.1 * tf.reduce_sum(s**2)


def initial(hypers):
    s, r = hypers
    return [START[0] + 0.5 * s, START[1] * (1.0 + r)]


def decay(hypers, params):
    return [2.0 * hypers[0] * params[0], None]


def project(params):
    """The entries of w at least 0.1, the columns of u at most of length 1."""
    w, u = params
    length = tf.sqrt(tf.reduce_sum(u**2, 0))
    return [tf.maximum(w, 0.1), u * tf.minimum(length, 1.0) / length]


def curvature(hypers):
    return [2.0 * hypers[0], None]


PROBLEM = hs.BilevelProblem(
    inner, outer, initial, decay=decay, curvature=curvature
)


class Reference:
    """The chain of a sampler, and derivatives along it.

    Args:
        sampler: `Sampler`.
        state: The state that the chain starts with, or `None`.
        first_step: Integer, the steps that the sampler has taken before.
        project: Function of the params: what ends a step.
    """

    def __init__(
        self, sampler, state=None, first_step=0, project=lambda params: params
    ):
        self.project, self.unprojected = project, [None]
        self.sampler, self.first_step = sampler, first_step
        params = initial(STRENGTHS)
        state = sampler.init(params) if state is None else state
        seed = tf.constant([7, 0])
        self.params, self.scales = [params], []
        for index in range(NUM_STEPS):
            number = tf.constant(first_step + index, tf.int64)
            with tf.GradientTape() as tape:
                tape.watch(params)
                value = inner(STRENGTHS, params, BATCHES[index])
            gradient = tape.gradient(value, params)
            params, state = sampler.step(
                params, gradient, decay(STRENGTHS, params), state, number, seed
            )
            self.unprojected.append(params)
            params = project(params)
            self.params.append(params)
            ones = [tf.ones_like(p) for p in params]
            self.scales.append(
                (
                    sampler.force_scale(ones, state, number),
                    sampler.velocity_scale(ones, state, number),
                    sampler.direct_scale(ones, state, number),
                    sampler.learning_rate_at(number, "float64"),
                )
            )

    def step(self, hypers, params, velocity, index):
        """One step of the form, at values that may carry derivatives."""
        with tf.GradientTape() as tape:
            tape.watch(params)
            value = inner(hypers, params, BATCHES[index])
        gradient = self.sampler.clip(tape.gradient(value, params))
        force, scale, direct, alpha = self.scales[index]
        decays = decay(hypers, params)
        own = self.sampler.own_decay(params)
        moved, after = [], []
        for n, param in enumerate(params):
            m = self.sampler.momentum * velocity[n] + force[n] * gradient[n]
            change = scale[n] * m
            if direct is not None:
                change += direct[n] * gradient[n]
            for part in (decays, own):
                if part is not None and part[n] is not None:
                    change += alpha * part[n]
            new = param - change
            # The value of the path, the derivative of the form.
            actual = self.unprojected[index + 1][n]
            moved.append(new - tf.stop_gradient(new) + actual)
            after.append(m)
        return self.project(moved), after

    def derivative(self):
        """Of the outer objective at the end by the hyperparameters."""
        with tf.GradientTape() as tape:
            tape.watch(STRENGTHS)
            params = initial(STRENGTHS)
            velocity = [tf.zeros_like(p) for p in params]
            for index in range(NUM_STEPS):
                params, velocity = self.step(STRENGTHS, params, velocity, index)
            value = outer(STRENGTHS, params, BATCHES[-1])
        return tape.gradient(value, STRENGTHS)

    def paper_recursion(self, burn_in, curvature):
        """Equations 22 and 25 with dense Jacobians, in NumPy."""
        sizes = [3, 1]
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(STRENGTHS)
            start = _flat(initial(STRENGTHS))
        d0 = _jacobian(tape, start, STRENGTHS)
        mu = self.sampler.momentum
        y, h = np.zeros(4), np.zeros(4)
        v_old = self._outer_gradient(0, 0)[0]
        g = v_old @ d0
        for index in range(NUM_STEPS):
            v, direct, _ = self._outer_gradient(index + 1, index)
            _, _, hessian_f = self._outer_gradient(index, index)
            mixed, hessian = self._second(index)
            force, scale, extra, alpha = (
                None if part is None else part for part in self.scales[index]
            )
            a, b = (_flat(part).numpy() for part in (force, scale))
            total = mixed + hessian @ d0
            y = mu * y - (v * a * b) @ total
            g = g + y
            if extra is not None:
                g = g - (v * _flat(extra).numpy()) @ total
            by_lambda, by_theta = self._decay_jacobians(index)
            g = g - float(alpha) * v @ (by_lambda + by_theta @ d0)
            moved = _flat(self.params[index + 1]) - _flat(self.params[index])
            if curvature == "paper":
                g = g + (moved.numpy() @ hessian_f) @ d0
            else:
                g = (
                    g
                    + (v - (v_old if index else self._outer_gradient(0, 0)[0]))
                    @ d0
                )
            v_old = v
            if index >= burn_in:
                h = h + (direct + g) / (NUM_STEPS - burn_in)
        parts = np.split(h, np.cumsum(sizes)[:-1])
        return [parts[0], parts[1].reshape(())]

    def _outer_gradient(self, at, batch):
        with tf.GradientTape(persistent=True) as second:
            flat = _flat(self.params[at])
            second.watch(flat)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch([flat, STRENGTHS])
                value = outer(STRENGTHS, _shaped(flat), BATCHES[batch])
            v = tape.gradient(value, flat)
        direct = _flat(tape.gradient(value, STRENGTHS))
        return (
            v.numpy(),
            direct.numpy(),
            second.jacobian(v, flat, experimental_use_pfor=False).numpy(),
        )

    def _second(self, index):
        flat = _flat(self.params[index])
        with tf.GradientTape(persistent=True) as second:
            second.watch([flat, STRENGTHS])
            with tf.GradientTape() as tape:
                tape.watch(flat)
                value = inner(STRENGTHS, _shaped(flat), BATCHES[index])
            gradient = tape.gradient(value, flat)
            gradient = _flat(self.sampler.clip(_shaped(gradient)))
        return (
            _jacobian(second, gradient, STRENGTHS),
            second.jacobian(
                gradient, flat, experimental_use_pfor=False
            ).numpy(),
        )

    def _decay_jacobians(self, index):
        flat = _flat(self.params[index])
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([flat, STRENGTHS])
            params = _shaped(flat)
            first, _ = decay(STRENGTHS, params)
            total = tf.concat([first, tf.zeros([4], tf.float64)], 0)
            own = self.sampler.own_decay(params)
            if own is not None:
                total += _flat(own)
        return (
            _jacobian(tape, total, STRENGTHS),
            tape.jacobian(total, flat, experimental_use_pfor=False).numpy(),
        )


def _flat(tensors):
    return tf.concat([tf.reshape(t, [-1]) for t in tensors], 0)


def _shaped(flat):
    return [flat[:3], tf.reshape(flat[3:], [2, 2])]


def _jacobian(tape, target, sources):
    rows = tape.jacobian(
        target,
        sources,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
        experimental_use_pfor=False,  # faster for so few entries
    )
    return np.concatenate(
        [np.reshape(row, [target.shape[0], -1]) for row in rows], axis=1
    )
