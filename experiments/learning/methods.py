"""What people do with validation data, and what the callback does with them."""

import time

import keras
import numpy as np
import tensorflow as tf

import keras_hposgld as hs

NUM_EPOCHS, STEPS = 20, 100  # an epoch is 100 steps, whatever the data
BATCH_SIZE = 50
LEARNING_RATE = 1e-3
GRID = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0)


def make_network(num_inputs, num_classes):
    """Two hidden layers of 64 units."""
    return keras.Sequential(
        [
            keras.Input((num_inputs,)),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dense(num_classes or 1),
        ]
    )


def compiled(split, seed, decay=None):
    """A fresh network under Adam, or AdamW with one decay for all kernels."""
    keras.utils.set_random_seed(seed)
    model = make_network(split.inner[0].shape[1], split.num_classes)
    rate = keras.optimizers.schedules.CosineDecay(
        LEARNING_RATE, NUM_EPOCHS * STEPS
    )
    if decay is None:
        optimizer = keras.optimizers.Adam(rate)
    else:
        optimizer = keras.optimizers.AdamW(rate, weight_decay=decay)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    classes = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        optimizer,
        loss=classes if split.num_classes else "mse",
        metrics=["accuracy"] if split.num_classes else None,
        steps_per_execution=10,
    )
    return model


def stream(data, seed):
    """Endless shuffled batches."""
    dataset = tf.data.Dataset.from_tensor_slices(data).cache()
    dataset = dataset.shuffle(len(data[0]), seed=seed).repeat()
    return dataset.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE)


def train(model, data, seed, callbacks=(), **arguments):
    """Trains a model; returns the seconds that it took."""
    begin = time.perf_counter()
    model.fit(
        stream(data, seed),
        steps_per_epoch=STEPS,
        epochs=NUM_EPOCHS,
        callbacks=list(callbacks),
        shuffle=False,  # done already
        verbose=0,
        **arguments,
    )
    return time.perf_counter() - begin


def score(model, data):
    """The loss without any regularization, and the accuracy or NaN."""
    x, y = data
    output = model.predict(x, batch_size=1000, verbose=0)
    if model.loss == "mse":
        return float(np.mean((output - y) ** 2)), float("nan")
    return float(model.loss(y, output)), float(np.mean(output.argmax(1) == y))


def row(method, model, split, seconds, **more):
    """A row of the table."""
    loss, accuracy = score(model, split.test)
    outer_loss, _ = score(model, split.outer)
    return {
        "method": method,
        "loss": loss,
        "accuracy": accuracy,
        "outer_loss": outer_loss,
        "seconds": seconds,
        **more,
    }


def early_stopping(split, seed):
    """Adam without decay, the weights of the epoch with the best outer loss."""
    model = compiled(split, seed)
    best = keras.callbacks.EarlyStopping(
        patience=NUM_EPOCHS, restore_best_weights=True
    )
    seconds = train(
        model,
        split.inner,
        seed,
        [best],
        validation_data=split.outer,
        validation_batch_size=1000,
    )
    return [row("Adam, early stopping", model, split, seconds)]


def constants(split, seed):
    """The best constant decay of a grid, and that on all the data."""
    # A variable, so that one traced function serves the whole grid.
    decay, total = tf.Variable(0.0), 0.0
    model = compiled(split, seed, decay)
    start = model.get_weights()

    def run(value, data):
        decay.assign(value)
        model.set_weights(start)
        for variable in model.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        return train(model, data, seed)

    tried = []
    for value in GRID:
        total += run(value, split.inner)
        tried.append(row("best constant", model, split, total, decay=value))
    best = min(tried, key=lambda entry: entry["outer_loss"])
    found, value = best | {"seconds": total}, best["decay"]
    total += run(value, split.everything)
    name = "best constant, on everything"
    return [found, row(name, model, split, total, decay=value)]


def learned(
    split,
    seed,
    name="callback",
    refits=True,
    callback=None,
    watching=(),
    **kind,
):
    """The callback, and a refit on all the data with what it learned.

    Args:
        split: `Split`.
        seed: Integer.
        name: String, of the rows.
        refits: Whether there is a refit.
        callback: Dictionary of more arguments of the callback.
        watching: Callbacks that come after it.
        **kind: Arguments of the regularizer.
    """
    model = compiled(split, seed)
    learning = hs.callbacks.LearnHyperparameters(
        split.outer,
        batch_size=BATCH_SIZE,
        regularizer=hs.regularizers.LearnableWeightDecay(**kind),
        seed=seed,
        **callback or {},
    )
    seconds = train(model, split.inner, seed, [learning, *watching])
    medians = [
        float(np.median(value))
        for value in learning.hyperparameter_values().values()
    ]
    rows = [row(name, model, split, seconds, medians=medians)]
    if refits:
        keras.utils.set_random_seed(seed)
        begin = time.perf_counter()
        hs.refit(
            model,
            stream(split.everything, seed),
            steps_per_epoch=STEPS,
            epochs=NUM_EPOCHS,
            shuffle=False,
            verbose=0,
        )
        seconds += time.perf_counter() - begin
        rows.append(row(f"{name}, refit on everything", model, split, seconds))
    return rows


def bilevel(split, seed):
    """`BilevelModel` with the same network, optimizer and chains."""
    model = compiled(split, seed)
    learner = hs.BilevelModel(
        model, regularizer=hs.regularizers.LearnableWeightDecay(), seed=seed
    )
    learner.compile(
        optimizer=model.optimizer.from_config(model.optimizer.get_config()),
        loss=model.loss,
        hypergradient=hs.estimators.HPOSGLD(0, 5, outer_every=5),
        hyper_optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(0.1, NUM_EPOCHS * STEPS // 5)
        ),
    )
    begin = time.perf_counter()
    learner.fit(
        *split.inner,
        outer_data=split.outer,
        batch_size=BATCH_SIZE,
        epochs=NUM_EPOCHS,
        steps_per_epoch=STEPS,
        verbose=0,
    )
    return [row("BilevelModel", model, split, time.perf_counter() - begin)]
