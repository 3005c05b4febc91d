"""What is done with an adapter, the same for every framework.

An adapter is a class `Adapter(method, num_steps)` with

* `load(task)`: the arrays of a `Task` as tensors of the framework;
* `unload(tensors)`: a list of tensors as NumPy arrays laid out as the task's;
* `prepare(arguments)`: traces or compiles for such tensors and returns a
  function of them to `(hypergradient, weights after T steps)`, which blocks
  until both are there;
* `plain_calls(arguments)`: functions that take T plain SGD steps, with the
  strengths held constant; the fastest of them is what counts.
"""

import contextlib
import ctypes
import gc
import importlib
import pathlib
import re
import resource
import statistics
import time

import numpy as np

from peer_adapters import task as tasks

RACE_BATCH = 100
RACE_START = 1e-2
HYPER_LEARNING_RATE = 0.05
PLAIN_TIMES = {}


def make_adapter(point):
    module = importlib.import_module(f"peer_adapters.{point['adapter']}")
    return module.Adapter(point["method"], point["steps"])


def measure(point):
    """Time, memory and hypergradient of one method at one T.

    Args:
        point: Dict with `adapter`, `method`, `steps`, `task` (a path),
            `result` (a path for the hypergradient), `repeats`, and `budget`
            (seconds after which it is not repeated any more).

    Returns:
        Dict of numbers.
    """
    adapter = make_adapter(point)
    arguments = adapter.load(tasks.load_task(point["task"]))
    begin = time.perf_counter()
    solve = adapter.prepare(arguments)
    prepared = time.perf_counter() - begin
    before = fresh_peak()
    begin = time.perf_counter()
    hypergradient = adapter.unload(solve(*arguments)[0])
    first = time.perf_counter() - begin
    np.savez(point["result"], *hypergradient)
    del hypergradient
    if point["method"] == "exact":
        return {}
    seconds = median_time(lambda: solve(*arguments), point)
    memory = (peak() - before) / 1024
    plain = plain_time(adapter, arguments, point)
    return {
        "seconds": seconds,
        "relative": seconds / plain,
        "plain_seconds": plain,
        "compile_seconds": prepared + max(0.0, first - seconds),
        "mebibytes": memory,
    }


def plain_time(adapter, arguments, point):
    """That of T plain SGD steps; once a process for each task."""
    key = point["adapter"], point["task"]
    if key not in PLAIN_TIMES:
        PLAIN_TIMES[key] = min(
            median_time(call, point, warm_up=True)
            for call in adapter.plain_calls(arguments)
        )
    return PLAIN_TIMES[key]


def median_time(call, point, warm_up=False):
    seconds = []
    if warm_up:
        call()
    while len(seconds) < point["repeats"] and sum(seconds) < point["budget"]:
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def fresh_peak():
    """Forgets the peak so far, which compilation may have set, where it can."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def race(point):
    """Test loss against the time spent in outer iterations.

    The clock counts the hypergradient, Adam and the way of the arrays into the
    framework and out of it; neither compilation nor the test loss.

    Args:
        point: Dict with `adapter`, `method`, `steps`, `quick`, `seconds`.

    Returns:
        Dict with `compile_seconds`, `curve` (rows of seconds, outer iterations
        and test loss) and `stopped`: `None`, or why it ended before its time.
    """
    inner, outer, test = tasks.noisy_digits(point["quick"])
    hidden = (16,) if point["quick"] else (256, 256)
    weights = tasks.initial_weights((), hidden, inner[0].shape[1:], seed=0)
    hypers = tasks.initial_hypers(weights, RACE_START)
    adam = tasks.Adam(HYPER_LEARNING_RATE)
    rng = np.random.default_rng(0)

    def next_task():
        rows = rng.integers(0, 300, (point["steps"], RACE_BATCH))
        outer_rows = rng.integers(0, 300, RACE_BATCH)
        return tasks.Task(
            *(hypers, weights, inner[0][rows], inner[1][rows]),
            *(outer[0][outer_rows], outer[1][outer_rows]),
        )

    adapter = make_adapter(point)
    begin = time.perf_counter()
    arguments = adapter.load(next_task())
    solve = adapter.prepare(arguments)
    with contextlib.suppress(Exception):  # comes again, and is kept, below
        solve(*arguments)
    compiled = time.perf_counter() - begin
    clock, iterations, shown = 0.0, 0, 0.0
    curve = [(0.0, 0, tasks.dense_loss(weights, *test))]
    stopped = None
    while clock < point["seconds"]:
        task = next_task()
        begin = time.perf_counter()
        try:
            hypergradient, moved = solve(*adapter.load(task))
        except Exception as error:  # of any framework: the curve so far counts
            stopped = error_line(str(error))
            break
        weights = adapter.unload(moved)
        hypers = adam.move(hypers, adapter.unload(hypergradient))
        clock += time.perf_counter() - begin
        iterations += 1
        if clock - shown >= point["seconds"] / 200:
            shown = clock
            loss = tasks.dense_loss(weights, *test)
            if not np.isfinite(loss):
                stopped = "the weights are not finite"
                break
            curve.append((clock, iterations, loss))
    return {"compile_seconds": compiled, "curve": curve, "stopped": stopped}


def error_line(text):
    """The line of a traceback or message that names the error."""
    lines = [line.strip() for line in text.splitlines() if line.strip("- ")]
    named = [
        line for line in lines if re.match(r"[\w.]+(Error|Exception):", line)
    ]
    return (named or lines or ["no message"])[-1][:90]
