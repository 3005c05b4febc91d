"""Learns hyperparameters on several machines, started here on one.

Without arguments this script is a launcher: it starts two worker processes on
this machine, each with a `TF_CONFIG` that names all workers and its own place
among them, waits for them, and compares what they learned with a run in a
single process. On a cluster, each machine runs the worker part below, with a
`TF_CONFIG` that its scheduler sets.

    python examples/multi_worker.py                 # two workers, then one
    python examples/multi_worker.py --kill          # one is killed midway and
                                                    # both are started again
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

NUM_WORKERS = 2


def make_strategy():
    """That of the cluster, or of a single process where there is none."""
    import tensorflow as tf

    # Before anything else of TensorFlow, as it opens the connections.
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.get_strategy()


def train(options):
    """What every worker runs: only the scope is not of a single process."""
    import keras
    import numpy as np

    strategy = make_strategy()
    import keras_hposgld as hs

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    y = np.arange(480) % 3
    x = rng.normal(size=(480, 8, 8, 1)) + 0.3 * y[:, None, None, None]
    with strategy.scope():
        strength = dict(initial_value=1e-2, max_value=5.0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                keras.layers.Conv2D(
                    4,
                    3,
                    kernel_regularizer=hs.regularizers.LearnableL2(**strength),
                ),
                # All replicas normalize by the statistics of the whole batch.
                keras.layers.BatchNormalization(synchronized=True),
                keras.layers.Activation("relu"),
                keras.layers.Flatten(),
                keras.layers.Dense(
                    3,
                    kernel_regularizer=hs.regularizers.LearnableL2(**strength),
                ),
            ]
        )
        learner = hs.BilevelModel(model)
        learner.compile(
            optimizer=hs.SGLD(0.05, temperature=1e-4),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            hypergradient=options.estimator,
            hyper_optimizer=keras.optimizers.Adam(0.05),
        )
    # Each worker has a place of its own for what it saves.
    own = options.folder / options.name
    callbacks = [keras.callbacks.BackupAndRestore(own / "backup")]
    if options.die:
        callbacks.append(_die_in_epoch(1))
    history = learner.fit(
        x[:240],
        y[:240],
        outer_data=(x[240:400], y[240:400]),
        validation_data=(x[400:], y[400:]),
        batch_size=16,  # of all workers together
        epochs=options.epochs,
        steps_per_epoch=options.chains_per_epoch
        * learner.hypergradient.num_steps,
        callbacks=callbacks,
        verbose=0,
    )
    accuracy = learner.evaluate(x[400:], y[400:], verbose=0, return_dict=True)
    predictions = learner.predict(x[400:], verbose=0)
    np.savez(
        own / "learned.npz",
        *[v.numpy() for v in (*learner.weights, *learner.hyperparameters)],
        predictions,
        [values[-1] for _, values in sorted(history.history.items())],
        [value for _, value in sorted(accuracy.items())],
    )


def _die_in_epoch(number):
    import keras

    class Die(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_end(self, batch, logs=None):
            is_late = batch > self.params["steps"] // 2  # in the epoch
            if self.epoch == number and is_late:
                os.kill(os.getpid(), signal.SIGKILL)

    return Die()


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def start(options, names, dying=(), script=__file__):
    """Starts a process for each name; more than one are a cluster."""
    workers = [f"localhost:{port}" for port in free_ports(len(names))]
    processes = []
    for index, name in enumerate(names):
        environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
        # The workers are on one machine: none takes its GPU.
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
        if len(names) > 1:
            task = {"type": "worker", "index": index}
            environment["TF_CONFIG"] = json.dumps(
                {"cluster": {"worker": workers}, "task": task}
            )
        (options.folder / name).mkdir(exist_ok=True)
        with open(options.folder / name / "log.txt", "a") as log:
            processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, script, "--name", name),
                        *("--folder", str(options.folder)),
                        *("--estimator", options.estimator),
                        *("--epochs", str(options.epochs)),
                        *("--chains-per-epoch", str(options.chains_per_epoch)),
                        *(["--die"] if name in dying else []),
                    ],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def wait(processes, seconds):
    """Waits until all have ended; if one fails, the others are ended too.

    Returns:
        List of exit codes.
    """
    deadline = time.monotonic() + seconds
    try:
        while any(process.poll() is None for process in processes):
            if any(process.poll() for process in processes):
                break
            if time.monotonic() > deadline:
                raise TimeoutError(f"No end after {seconds} seconds.")
            time.sleep(0.2)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
    return [process.returncode for process in processes]


def launch(options, script=__file__):
    """Runs the workers and a single process.

    Args:
        options: What `parse` returned, with a `folder`.
        script: Path of what each worker runs, with the options of this one.

    Returns:
        Arrays that each process learned, by its name.
    """
    import numpy as np

    names = [f"worker_{index}" for index in range(NUM_WORKERS)]

    def run(names, dying=()):
        return wait(start(options, names, dying, script), options.time_limit)

    codes = run(names, names[-1:] if options.kill else ())
    if options.kill:
        if 0 in codes:
            raise SystemExit(f"No worker was killed: exit codes {codes}.")
        print(f"one worker was killed; exit codes {codes}", flush=True)
        codes = run(names)
    codes += run(["alone"])
    for name, code in zip([*names, "alone"], codes, strict=True):
        if code != 0:
            log = (options.folder / name / "log.txt").read_text()
            raise SystemExit(f"{name} ended with code {code}:\n{log[-3000:]}")
    learned = {}
    for name in [*names, "alone"]:
        with np.load(options.folder / name / "learned.npz") as file:
            learned[name] = [file[key] for key in file.files]
    for name in names:
        difference = max(
            np.abs(a - b).max()
            for a, b in zip(learned[name], learned["alone"], strict=True)
        )
        print(f"{name}: largest difference to one process {difference:.1e}")
    return learned


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--estimator", default="hpo_sgld")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--chains-per-epoch", type=int, default=10)
    parser.add_argument("--kill", action="store_true", help="one, and go on")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--time-limit", type=float, default=300.0)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--name", help="of a worker: set by the launcher")
    parser.add_argument("--die", action="store_true", help="set by --kill")
    options = parser.parse_args(arguments)
    if options.quick:
        options.epochs, options.chains_per_epoch = 3, 3
    return options


def main(arguments=None):
    options = parse(arguments)
    if options.name:
        return train(options)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        return launch(options)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = pathlib.Path(folder)
        return launch(options)


if __name__ == "__main__":
    main()
