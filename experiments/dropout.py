"""One run that learns dropout rates, against a grid of constant ones.

    python experiments/dropout.py [--data FOLDER] [--seeds 3] [--out FILE]

Two sets: 3 000 images of Fashion-MNIST, and sentences of film reviews as
TF-IDF, from `text/mr.jsonl.gz` in the folder `--data` (left out without it).
Each network has two dropout layers. All rows train by Adam for as many steps on
the same training examples. The grid has one rate for both layers and is chosen
by the outer examples; the callback learns a rate for each on those. Settings
were chosen on seed 100.
"""

import argparse
import gzip
import json
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

import keras_hposgld as hs  # noqa: E402

GRID = (0.0, 0.1, 0.2, 0.35, 0.5, 0.7)
STARTS = (0.2, 0.6, 0.02)
BATCH_SIZE, LEARNING_RATE = 100, 1e-3
EPOCHS, STEPS = 10, 100  # an epoch is 100 steps, whatever the data
WARMUP = 0.1  # of the training: until then a rate is judged by its first steps
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def fashion_mnist(seed, folder):
    """Training, outer and test images: 2 000, 1 000 and 10 000."""
    (x, y), test = keras.datasets.fashion_mnist.load_data()
    order = np.random.default_rng(seed).permutation(len(x))

    def part(x, y):
        return (x.reshape(len(x), -1) / 255).astype("float32"), y.astype(int)

    inner, outer = order[:2000], order[2000:3000]
    return part(x[inner], y[inner]), part(x[outer], y[outer]), part(*test)


def film_reviews(seed, folder):
    """Training, outer and test sentences: 3 000, 1 500 and 6 162."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    path = pathlib.Path(folder) / "text" / "mr.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    order = np.random.default_rng(seed).permutation(len(rows))
    texts = np.array([row["text"] for row in rows])[order]
    y = np.array([row["label"] for row in rows])[order]
    words = TfidfVectorizer(max_features=2000, sublinear_tf=True)
    words.fit(texts[:3000])
    x = 5 * words.transform(texts).toarray().astype("float32")
    return tuple(
        (x[part], y[part])
        for part in (slice(3000), slice(3000, 4500), slice(4500, None))
    )


def network_of(name, num_inputs, dropout):
    """Two dropout layers, of `dropout(number)`, number 0 and 1."""
    dense = keras.layers.Dense
    if name == "film_reviews":
        inside = [dropout(0), dense(64, "relu"), dropout(1), dense(2)]
    else:
        inside = [dense(128, "relu"), dropout(0), dense(128, "relu")]
        inside += [dropout(1), dense(10)]
    return keras.Sequential([keras.Input((num_inputs,)), *inside])


def train(name, parts, seed, dropout, learns=False):
    """Trains a network; returns its row, and the rates it ends with."""
    inner, outer, test = parts
    keras.utils.set_random_seed(seed)
    model = network_of(name, inner[0].shape[1], dropout)
    num_steps = EPOCHS * STEPS
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, num_steps)
    model.compile(
        keras.optimizers.Adam(rate),
        loss=LOSS,
        metrics=["accuracy"],
        steps_per_execution=10,
    )
    learning = hs.callbacks.LearnHyperparameters(
        outer,
        batch_size=BATCH_SIZE,
        warmup_batches=int(WARMUP * num_steps),
        seed=seed,
    )
    data = tf.data.Dataset.from_tensor_slices(inner).cache()
    data = data.shuffle(len(inner[0]), seed=seed).repeat().batch(BATCH_SIZE)
    begin = time.process_time()
    model.fit(
        data.prefetch(2),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        callbacks=[learning] if learns else [],
        shuffle=False,  # done already
        verbose=0,
    )
    seconds = time.process_time() - begin
    scores = [
        model.evaluate(*part, batch_size=1000, verbose=0)
        for part in (outer, test)
    ]
    rates = list(learning.hyperparameter_values().values()) if learns else []
    return {
        "outer_loss": scores[0][0],
        "loss": scores[1][0],
        "accuracy": scores[1][1],
        "seconds": seconds,
        "rates": [float(rate) for rate in rates],
    }


def grid(name, parts, seed):
    """A row for each constant rate, and one for the best on outer examples."""
    rows = []
    for rate in GRID:
        row = train(
            name, parts, seed, lambda _, rate=rate: keras.layers.Dropout(rate)
        )
        rows.append({"method": f"Dropout({rate})"} | row | {"rates": [rate]})
    best = min(rows, key=lambda row: row["outer_loss"])
    seconds = sum(row["seconds"] for row in rows)
    best = best | {"method": "best of the grid", "seconds": seconds}
    return [*rows, best]


def learned(name, parts, seed):
    """The callback from several starts, and Keras's layer at what it found."""
    rows = []
    for relaxation, starts in (("gaussian", STARTS), ("clipped", STARTS[:1])):
        for start in starts:
            row = train(
                name,
                parts,
                seed,
                lambda _, start=start, relaxation=relaxation: (
                    hs.layers.LearnableDropout(start, relaxation=relaxation)
                ),
                learns=True,
            )
            rows.append({"method": f"learned, {relaxation}, {start}"} | row)
    rates = rows[0]["rates"]
    row = train(
        name, parts, seed, lambda number: keras.layers.Dropout(rates[number])
    )
    rows.append({"method": "Dropout, rates learned"} | row | {"rates": rates})
    return rows


def table(rows):
    """Means over the seeds, standard errors in brackets, as Markdown."""
    heads = ("", "rates", "outer loss", "test loss", "accuracy", "seconds")
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]

        def cell(key, own=own):
            values = [row[key] for row in own]
            error = np.std(values, ddof=1) / len(values) ** 0.5
            return f"{np.mean(values):.3f} ({error:.3f})"

        rates = np.mean([row["rates"] for row in own], axis=0)
        cells = [
            method,
            ", ".join(f"{rate:.2f}" for rate in rates),
            *(cell(key) for key in ("outer_loss", "loss", "accuracy")),
            f"{np.mean([row['seconds'] for row in own]):.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments=None):
    global EPOCHS, STEPS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with text/mr.jsonl.gz")
    parser.add_argument("--sets", nargs="*", help="names; default: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", help="file for all rows, as JSON")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        EPOCHS, STEPS = 2, 20
    all_rows = []
    for load in (fashion_mnist, film_reviews):
        name = load.__name__
        if options.sets and name not in options.sets:
            continue
        if load is film_reviews and not options.data:
            print(f"\n{name}: left out, it needs --data")
            continue
        rows = []
        for seed in range(options.seeds):
            parts = load(seed, options.data)
            for row in grid(name, parts, seed) + learned(name, parts, seed):
                rows.append({"set": name, "seed": seed} | row)
                print(json.dumps(rows[-1]), flush=True)
        print(f"\n{name}\n\n{table(rows)}\n", flush=True)
        all_rows += rows
    if options.out:
        pathlib.Path(options.out).write_text(json.dumps(all_rows, indent=1))
    return all_rows


if __name__ == "__main__":
    main()
