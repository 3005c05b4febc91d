"""What a step costs that learns by the evidence, over one that only samples.

Both chains are of the same network, on the same batch of all examples, with
momentum and noise averaged over two steps. The one that only samples is plain
Keras training with `SGLD` and constant L2. Both train in one process, in turn;
the figures are medians of milliseconds a step, and their ratio.

    python examples/benchmarks/evidence_cost.py [--steps 1000] [--repeats 7]
"""

import argparse
import os
import statistics
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402

# Examples, inputs and units of both hidden layers.
SIZES = {
    "small": (900, 8, 50),
    "wide": (1800, 500, 50),
    "large": (2000, 100, 300),
}
AT_ONCE = 100  # steps of an execution


def make_model(num_inputs, width, regularizer=None):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((num_inputs,))]
    for units, activation in ((width, "tanh"), (width, "tanh"), (2, None)):
        layers.append(
            keras.layers.Dense(
                units,
                activation,
                kernel_regularizer=regularizer,
                bias_regularizer=regularizer,
            )
        )
    return keras.Sequential(layers)


def sampling(x, y, width):
    """A Keras model whose training only samples."""
    model = make_model(x.shape[1], width, keras.regularizers.L2(1e-3))
    model.compile(
        hs.SGLD(
            1e-3,
            temperature=1 / len(x),
            momentum=0.95,
            integrator="averaged",
            seed=0,
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=AT_ONCE,
    )
    return model


def learning(x, y, width):
    """A learner at the defaults."""
    learner = hs.BilevelModel(make_model(x.shape[1], width), seed=0)
    learner.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        hypergradient="evidence",
        steps_per_execution=AT_ONCE,
    )
    return learner


def milliseconds(model, x, y, steps):
    """The time of a step in one call of `fit`."""
    data = (x, y)
    if not isinstance(model, hs.BilevelModel):
        # An epoch of Keras would be a single step.
        data = (tf.data.Dataset.from_tensors(data).repeat(),)
    begin = time.perf_counter()
    model.fit(*data, steps_per_epoch=steps, verbose=0)
    return 1000 * (time.perf_counter() - begin) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # training is short
    print(f"{'':8s}{'samples':>10s}{'learns':>10s}{'ratio':>8s}")
    for name, (number, num_inputs, width) in SIZES.items():
        rng = np.random.default_rng(0)
        x = rng.normal(size=(number, num_inputs)).astype("float32")
        y = (x[:, 0] * x[:, 1] > 0).astype(int)
        models = [make(x, y, width) for make in (sampling, learning)]
        seconds = [[], []]
        for _ in range(options.repeats + 1):
            for model, own in zip(models, seconds, strict=True):
                own.append(milliseconds(model, x, y, options.steps))
        # The first call traces.
        plain, ours = (statistics.median(own[1:]) for own in seconds)
        print(f"{name:8s}{plain:10.2f}{ours:10.2f}{ours / plain:8.2f}")


if __name__ == "__main__":
    main()
