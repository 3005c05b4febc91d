"""One fit and its row; the file of all rows, to which each is appended."""

import contextlib
import signal
import threading
import time
import warnings

import numpy as np
import row_file
from posterior.left_out import LeftOut

FIELDS = ("set", "split", "method", "task", "error", "nll", "seconds", "note")
SMALLEST = 1e-12  # a probability below it counts as this one
TOO_LONG = "too long"


class TooLong(BaseException):
    """A fit has used up its time. No library that catches errors stops it."""


@contextlib.contextmanager
def time_limit(seconds):
    """Raises `TooLong` in the body after this processor time, if it is given.

    It needs the main thread, and a system with timers. A single long call of
    compiled code is interrupted when it returns.
    """
    main = threading.current_thread() is threading.main_thread()
    if not seconds or not main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number, frame):
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def measures(split, prediction):
    """Error and mean negative log-likelihood of the test targets.

    The error is one minus the accuracy, or the root of the mean squared error
    in the units of the targets, as is the density.
    """
    if split.task == "classes":
        probabilities = np.asarray(prediction, float)
        wrong = probabilities.argmax(axis=1) != split.y_test
        own = probabilities[np.arange(len(wrong)), split.y_test]
        own = np.where(np.isfinite(own), own.clip(SMALLEST, 1.0), np.nan)
        return wrong.mean(), -np.log(own).mean()
    mean, deviation = (np.asarray(part, float) for part in prediction)
    errors = split.scale * (mean - split.y_test)
    deviation = split.scale * deviation
    densities = -0.5 * (errors / deviation) ** 2 - np.log(deviation)
    densities -= 0.5 * np.log(2 * np.pi)
    return np.sqrt(np.mean(errors**2)), -densities.mean()


def run(method, split, seed, limit=None):
    """The measured part of a row. `LeftOut` is raised to the caller.

    Args:
        method: Function as those of `rivals.py`.
        split: `sets.Split`.
        seed: Integer.
        limit: Seconds of processor time that the fit may take.
    """
    error = nll = float("nan")
    note = ""
    start = time.process_time()
    try:
        with time_limit(limit), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what did not converge
            prediction = method(
                split.x, split.y, split.x_test, split.task, seed
            )
        error, nll = measures(split, prediction)
        if not np.isfinite(error + nll):
            note = "not finite"
    except TooLong:
        note = TOO_LONG
    except LeftOut:
        raise
    except Exception as failure:  # a row tells of it, and the others go on
        note = f"{type(failure).__name__}: {failure}".replace("\n", " ")[:200]
    return {
        "task": split.task,
        "error": float(error),
        "nll": float(nll),
        "seconds": time.process_time() - start,
        "note": note,
    }


def read(path):
    """All rows of a file, none if there is no file."""
    rows = row_file.read(path)
    for row in rows:
        row["split"] = int(row["split"])
        for key in ("error", "nll", "seconds"):
            row[key] = float(row[key])
    return rows


def append(path, row):
    """Adds a row to a file. The first brings the names of the columns."""
    row_file.append(path, {name: row[name] for name in FIELDS})
