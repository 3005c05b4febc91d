"""The task that all frameworks solve, in NumPy, and what they share.

The weights are a list `[kernel, bias, kernel, bias, ...]`. A kernel of rank 4
is a 3x3 convolution, followed by ReLU and 2x2 max pooling; one of rank 2 a
dense layer, followed by ReLU unless it is the last. Images are (height, width,
channels), kernels (..., inputs, outputs). Each weight has an L2 strength, the
sigmoid of a hyperparameter:

    inner = cross-entropy(inner batch) + sum(sigmoid(hyper) * weight**2)
    outer = cross-entropy(outer batch)

A chain is T steps of plain gradient descent, each with a batch of its own; the
outer objective is taken with one batch all along.
"""

from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits

LEARNING_RATE = 0.05
START = 1e-3  # strength
CG_ITERATIONS = 20  # of the implicit methods, all on the last inner batch


class Task(NamedTuple):
    """Lists of arrays and the arrays of a chain, in the adapters' order."""

    hypers: list
    weights: list
    x: np.ndarray  # (T, batch, ...)
    y: np.ndarray  # (T, batch)
    x_outer: np.ndarray
    y_outer: np.ndarray


class Sizes(NamedTuple):
    convolutions: tuple
    dense: tuple
    side: int
    batch: int


SIZES = {
    ("mlp", False): Sizes((), (512, 512), 28, 64),
    ("cnn", False): Sizes((32, 64, 64), (288,), 28, 64),
    ("mlp", True): Sizes((), (16,), 8, 8),
    ("cnn", True): Sizes((2, 3), (8,), 8, 8),
}


def make_task(model, num_steps, quick=False, seed=0):
    """Digits enlarged to 28x28, and the initial weights of a network."""
    sizes = SIZES[model, quick]
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).reshape(-1, 8, 8, 1)
    if sizes.side == 28:
        images = images.repeat(3, axis=1).repeat(3, axis=2)
        images = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    # Noise, so that the maximum of a pool is unique.
    images = images + 0.1 * rng.normal(size=images.shape)
    if not sizes.convolutions:
        images = images.reshape(len(images), -1)
    images, labels = images.astype("float32"), labels.astype("int32")
    inner = rng.integers(0, 900, (num_steps, sizes.batch))
    outer = rng.integers(900, len(labels), sizes.batch)
    weights = initial_weights(
        sizes.convolutions, sizes.dense, images.shape[1:], seed
    )
    return Task(
        initial_hypers(weights),
        weights,
        images[inner],
        labels[inner],
        images[outer],
        labels[outer],
    )


def initial_weights(convolutions, dense, shape, seed):
    """He's normal initialization; biases zero."""
    rng = np.random.default_rng(seed + 1)
    kernels, inputs, side = [], shape[-1], shape[0]
    for filters in convolutions:
        kernels.append((3, 3, inputs, filters))
        inputs, side = filters, side // 2
    inputs *= side**2 if convolutions else 1
    for units in (*dense, 10):
        kernels.append((inputs, units))
        inputs = units
    weights = []
    for kernel in kernels:
        scale = np.sqrt(2.0 / np.prod(kernel[:-1]))
        weights.append((scale * rng.normal(size=kernel)).astype("float32"))
        weights.append(np.zeros(kernel[-1], "float32"))
    return weights


def initial_hypers(weights, start=START):
    logit = np.log(start / (1 - start))
    return [np.full(w.shape, logit, "float32") for w in weights]


def save_task(path, task):
    arrays = {name: getattr(task, name) for name in Task._fields[2:]}
    for name in Task._fields[:2]:
        for index, array in enumerate(getattr(task, name)):
            arrays[f"{name}{index:02d}"] = array
    np.savez(path, **arrays)


def load_task(path):
    with np.load(path) as file:
        lists = [
            [file[key] for key in sorted(file) if key.startswith(name)]
            for name in Task._fields[:2]
        ]
        return Task(*lists, *(file[name] for name in Task._fields[2:]))


def noisy_digits(quick=False, seed=0):
    """Digits beside columns of noise: inner, outer and test set."""
    rng = np.random.default_rng(seed)
    x, y = load_digits(return_X_y=True)
    order = rng.permutation(len(y))
    x, y = x[order], y[order].astype("int32")
    x = (x - x[:300].mean(axis=0)) / (x[:300].std(axis=0) + 1.0)
    noise = rng.normal(size=(len(x), 8 if quick else 256))
    x = np.hstack([x, noise]).astype("float32")
    return (x[:300], y[:300]), (x[300:600], y[300:600]), (x[600:], y[600:])


def dense_loss(weights, x, y):
    """Cross-entropy of a network without convolutions."""
    for kernel, bias in zip(weights[::2], weights[1::2], strict=True):
        logits = x @ kernel + bias
        x = np.maximum(logits, 0.0)
    logits = logits - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(log_total - logits[np.arange(len(y)), y]))


class Adam:
    """Adam on lists of arrays, the same for all frameworks."""

    def __init__(self, learning_rate):
        self.learning_rate, self.step, self.moments = learning_rate, 0, None

    def move(self, values, gradients):
        if self.moments is None:
            self.moments = [(0.0, 0.0) for _ in values]
        self.step += 1
        rate = self.learning_rate * np.sqrt(1 - 0.999**self.step)
        rate = np.float32(rate / (1 - 0.9**self.step))
        moved = []
        for index, (value, gradient) in enumerate(
            zip(values, gradients, strict=True)
        ):
            first, second = self.moments[index]
            first = np.float32(0.9) * first + np.float32(0.1) * gradient
            second = np.float32(0.999) * second
            second += np.float32(0.001) * gradient**2
            self.moments[index] = first, second
            moved.append(value - rate * first / (np.sqrt(second) + 1e-7))
        return moved
