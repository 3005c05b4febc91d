"""What a noise model of the labels gains, with and without right labels.

    python experiments/noisy_labels.py --out rows.csv
        [--data FOLDER --features FOLDER] [--sets digits,wine] [--seeds 3]

Protocol, fixed before the run. Settings were looked at on digits with seed 0
alone; the seeds of the rows begin with 1.

* `digits`, `breast_cancer`, `wine` of scikit-learn: half of the examples are
  for training, half for the test, by seed. Of the training labels 30 % are
  flipped to another class at random. The network has one hidden layer of 50
  tanh units. There are no right labels.
* `cifar10n`: the human labels "worse" of 8000 images, on standardized features
  of a frozen EfficientNet-Lite0; the next 1000 images have right labels.
* `trec_weak`: majority labels of 68 labelling functions on 5033 questions, on
  standardized features of a frozen MiniLM (without `--features`: TF-IDF and 200
  singular vectors); the 500 of its validation part have right labels. On both
  sets the model is linear.

Evidence: `SGLD("auto")`, 2000 steps, all else at its default. Adam: 1e-3 for
60 epochs in batches of 64 (20 epochs on the large sets). Methods:

    plain, rate, matrix    evidence, with cross-entropy or the noise model
    adam                   Adam, cross-entropy
    gce                    Adam, generalized cross-entropy, q = 0.7 (Zhang and
                           Sabuncu, NeurIPS 2018)
    forward                Adam, the noise model held at the true T (an oracle)
    truth                  Adam, cross-entropy on the true labels (an oracle)
    cleanlab               CleanLearning around logistic regression, where
                           cleanlab is installed
    right                  Adam on the right labels alone
    both                   Adam on noisy and right labels together
    matrix_outer           Adam, T learned on the right labels by the callback,
                           a chain apart every 20 batches, Adam(0.1) for T

Added when first rows had shown a weak baseline (Adam without a penalty on many
features), and a flip rate that was found too small:

    logistic               logistic regression, its strength by 3-fold
                           cross-validation on the noisy labels
    logistic_right         the same on the right labels alone
    logistic_both          the same on noisy and right labels together
    decay_outer            Adam, cross-entropy, weight decay learned on the
                           right labels by the callback at its defaults
    matrix_decay           the same, and T learned as well
    plain_long, rate_long  as plain and rate, with four times the steps
    plain_linear,          as plain and rate, with a linear model
    rate_linear

A row has the accuracy on right test labels; the share of the labels that is
flipped, and the one found; the AUC of telling wrong training labels from right
ones, by 1 - p[label]; and the seconds of processor time. Rows that are there
are not computed again. At the end all are printed, and their means.
"""

import argparse
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import row_file  # noqa: E402
from labels.methods import METHODS  # noqa: E402
from labels.methods import OUTER  # noqa: E402
from labels.tasks import LARGE  # noqa: E402
from labels.tasks import large_task  # noqa: E402
from labels.tasks import SMALL  # noqa: E402
from labels.tasks import small_task  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

FIELDS = "set seed method accuracy flipped found auc seconds".split()


def compute(task, method, seed):
    """The measured part of a row."""
    keras.utils.set_random_seed(seed)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        predict, found = method(task, seed)
    seconds = time.process_time() - start
    for message in {str(w.message) for w in said if w.category is UserWarning}:
        print("   warned:", message)
    x, noisy, true = task.train
    doubt = 1 - predict(x)[np.arange(len(x)), noisy]
    right = predict(task.test[0]).argmax(1) == task.test[1]
    return {
        "accuracy": right.mean(),
        "flipped": np.mean(noisy != true),
        "found": np.nan if found is None else found,
        "auc": roc_auc_score(noisy != true, doubt),
        "seconds": seconds,
    }


def show(rows):
    for row in rows:
        print(*(row[field] for field in FIELDS))
    keys = dict.fromkeys((row["set"], row["method"]) for row in rows)
    print(
        "\nmeans: set, method, seeds, accuracy, found - flipped, auc, seconds"
    )
    for key in keys:
        own = [row for row in rows if (row["set"], row["method"]) == key]
        numbers = np.array([[float(r[f]) for f in FIELDS[3:]] for r in own])
        accuracy, flipped, found, auc, seconds = numbers.mean(0)
        print(
            f"{key[0]:14s} {key[1]:13s} {len(own)} {accuracy:.3f} "
            f"{found - flipped:+.3f} {auc:.3f} {seconds:.0f}"
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path)
    parser.add_argument("--features", type=pathlib.Path)
    parser.add_argument("--sets", default=",".join([*SMALL, *LARGE]))
    parser.add_argument("--methods", default=",".join([*METHODS, *OUTER]))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(arguments)
    done = {
        (r["set"], r["seed"], r["method"]) for r in row_file.read(options.out)
    }
    for name in options.sets.split(","):
        needs = options.data and (options.features or name == "trec_weak")
        if name in LARGE and not needs:
            print(f"{name}: left out, it needs --data and --features")
            continue
        for seed in range(1, options.seeds + 1):
            is_small = name in SMALL
            task = (
                small_task(name, seed)
                if is_small
                else large_task(name, options.data, options.features)
            )
            methods = METHODS if is_small else METHODS | OUTER
            for method in options.methods.split(","):
                key = (name, str(seed), method)
                if method not in methods or key in done:
                    continue
                try:
                    row = compute(task, methods[method], seed)
                except ImportError as error:
                    print(f"{method}: left out, {error}")
                    continue
                row = dict(zip(FIELDS, key, strict=False)) | {
                    name: f"{value:.4g}" for name, value in row.items()
                }
                row_file.append(options.out, row)
                print(*row.values(), flush=True)
                keras.backend.clear_session()
    show(row_file.read(options.out))


if __name__ == "__main__":
    main()
