"""One outer iteration here, and in PyTorch and JAX libraries: time and error.

All get the same networks, initial weights, batches and plain gradient steps
(`peer_adapters/task.py`), and one learned L2 strength for each weight. For T
inner steps the table shows

* seconds: an outer iteration, the median of repeats, compilation apart;
* x plain: that time over the time of T plain SGD training steps of the same
  model, batch and regularizer in the *same framework*: the fair number;
* MiB: peak memory beyond what stood before the call;
* cosine, norm: similarity and length ratio of the hypergradient to the exact
  derivative of the T steps, by RMD in float64.

Then all methods learn on digits among noise features, against the clock. Each
point runs in a process of its own. The peers: pip install -e ".[peers]"

    python examples/benchmarks/peers.py [--quick] [--models mlp cnn]
        [--steps 5 20 50 200] [--methods hpo_sgld higher ...] [--repeats 5]
        [--limit 300] [--race-seconds 60] [--output FOLDER]

With "XLA" ours are compiled into one program, as JAX's scan is, and as
`compile(jit_compile=True)` does. Unrolled, as RMD here: higher, torchopt,
jaxopt, jax (a scan), jax_loop (a Python loop, whose compilation grows with T:
XLA is slow at convolutions in a loop on a CPU), optimistix (recursive
checkpoints). Implicit, at the last iterate and batch, with 20
conjugate-gradient steps, as ift_cg here: jaxopt_implicit, optimistix_implicit.
The solvers of jaxopt and optimistix know no minibatches: see `jax_peers.py` for
how they get them. Before the optimum the Hessian is indefinite and conjugate
gradients diverge, which optimistix reports as an error; where the optimum is
reached, the three agree with RMD to 2e-5. In float32, rounding may turn a ReLU
or a maximum the other way: a cosine of 0.9996 was 1 in float64.
"""

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent))

from peer_adapters import measuring  # noqa: E402
from peer_adapters.task import make_task  # noqa: E402
from peer_adapters.task import save_task  # noqa: E402


class Method(NamedTuple):
    label: str
    adapter: str
    needs: tuple = ()  # packages


METHODS = {
    "hpo_sgld": Method("HPO-SGLD, B = T/2", "ours"),
    "hpo_sgld_0": Method("HPO-SGLD, B = 0", "ours"),
    "adjoint_sgld": Method("AdjointSGLD", "ours"),
    "ift_cg": Method("IFT-CG", "ours"),
    "rmd": Method("RMD", "ours"),
    "hpo_sgld_xla": Method("HPO-SGLD, XLA", "ours"),
    "rmd_xla": Method("RMD, XLA", "ours"),
    "higher": Method("higher", "torch_peers", ("torch", "higher")),
    "torchopt": Method("torchopt", "torch_peers", ("torch", "torchopt")),
    "jax": Method("JAX, scan", "jax_peers", ("jax",)),
    "jax_loop": Method("JAX, Python loop", "jax_peers", ("jax",)),
    "jaxopt": Method("jaxopt, unrolled", "jax_peers", ("jax", "jaxopt")),
    "jaxopt_implicit": Method(
        "jaxopt, implicit", "jax_peers", ("jax", "jaxopt")
    ),
    "optimistix": Method(
        "optimistix, unrolled", "jax_peers", ("jax", "optimistix")
    ),
    "optimistix_implicit": Method(
        "optimistix, implicit", "jax_peers", ("jax", "optimistix")
    ),
}
INSTALL = 'pip install -e ".[peers]"'
COLUMNS = (
    *("model", "T", "method", "status", "seconds", "relative"),
    *("plain_seconds", "compile_seconds", "mebibytes", "cosine", "norm_ratio"),
)
EXACT = "exact"
FULL_STEPS, QUICK_STEPS, RACE_STEPS = [5, 20, 50, 200], [2, 4], 20


def run_child(jobs):
    """Runs in a process of its own: a line of JSON for each job."""
    with contextlib.suppress(OSError):  # the first to go if memory runs out
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000")
    for kind, point in jobs:
        result = {"measure": measuring.measure, "race": measuring.race}[kind](
            point
        )
        print("\n" + json.dumps(result), flush=True)


def run_apart(jobs, limit):
    """Runs jobs in one process: the result of each, with its `status`."""
    command = [sys.executable, __file__, "--child", json.dumps(jobs)]
    environment = dict(os.environ)
    if jobs[0][1]["quick"]:  # compile fast
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=limit * len(jobs),
            env=environment,
        )
        output, status = done.stdout, "ok"
        if done.returncode:
            status = failure(done)
    except subprocess.TimeoutExpired as error:
        output, status = (error.stdout or b"").decode(), f"over {limit:g} s"
    results = [
        {"status": "ok", **json.loads(line)}
        for line in output.splitlines()
        if line.startswith("{")
    ]
    return results + [{"status": status}] * (len(jobs) - len(results))


def failure(done):
    errors = done.stderr.strip()
    words = ("MemoryError", "bad_alloc", "RESOURCE_EXHAUSTED", "can't allocate")
    if done.returncode == -9 or any(word in errors for word in words):
        return "out of memory"
    if not errors:
        return f"failed: code {done.returncode}"
    return f"failed: {measuring.error_line(errors)}"


def run_all(jobs, options):
    """Yields `(job, result)`. Quick: one process for each framework."""
    if not options.quick:
        groups = [[job] for job in jobs]
    else:
        adapters = dict.fromkeys(point["adapter"] for _, point in jobs)
        groups = [
            [job for job in jobs if job[1]["adapter"] == name]
            for name in adapters
        ]
    for group in groups:
        results = run_apart(group, options.limit)
        yield from zip(group, results, strict=True)


def compare(path, exact_path):
    """Cosine and norm ratio of a hypergradient to the exact one."""
    if not (path.exists() and exact_path.exists()):
        return {}
    flat = []
    for name in (path, exact_path):
        with np.load(name) as file:
            parts = [file[key].ravel() for key in file.files]
        flat.append(np.concatenate(parts).astype("float64"))
    estimate, exact = flat
    norms = np.linalg.norm(estimate), np.linalg.norm(exact)
    return {
        "cosine": float(estimate @ exact / (norms[0] * norms[1])),
        "norm_ratio": float(norms[0] / norms[1]),
    }


def adapter_of(method):
    return "ours" if method == EXACT else METHODS[method].adapter


def measure_all(methods, options, folder):
    """The first part: a row, a dict of `COLUMNS`, for each point."""
    jobs = []
    pairs = itertools.product(options.models, options.steps)
    if options.quick:  # each model and each T once
        pairs = zip(options.models, options.steps, strict=False)
    for model, steps in pairs:
        task_path = folder / f"{model}_{steps}.npz"
        save_task(task_path, make_task(model, steps, options.quick))
        for method in (EXACT, *methods):
            result = folder / f"{model}_{steps}_{method}.npz"
            point = {
                "model": model,
                "steps": steps,
                "method": method,
                "adapter": adapter_of(method),
                "task": str(task_path),
                "result": str(result),
                "repeats": options.repeats,
                "quick": options.quick,
                "budget": options.limit / 6,
            }
            jobs.append(("measure", point))
    rows = []
    print(header(), flush=True)
    for (_, point), result in run_all(jobs, options):
        model, steps, method = (point[k] for k in ("model", "steps", "method"))
        if method == EXACT:
            if result["status"] != "ok":
                print(f"no exact hypergradient: {result['status']}")
            continue
        row = {"model": model, "T": steps, "method": method, **result}
        if row["status"] == "ok":
            exact = folder / f"{model}_{steps}_{EXACT}.npz"
            row |= compare(pathlib.Path(point["result"]), exact)
        rows.append(row)
        print(format_row(row), flush=True)
    return rows


def race_all(methods, options):
    """The second part: a result of `measuring.race` for each method."""
    seconds = 0.1 if options.quick else options.race_seconds
    if options.quick:  # one of each framework
        methods = {adapter_of(name): name for name in methods}.values()
    jobs = [
        (
            "race",
            {
                "method": method,
                "adapter": adapter_of(method),
                "steps": 2 if options.quick else RACE_STEPS,
                "quick": options.quick,
                "seconds": seconds,
            },
        )
        for method in methods
    ]
    print(f"\n{race_header()}", flush=True)
    results = {}
    for (_, point), result in run_all(jobs, options):
        results[point["method"]] = result
        print(format_race(point["method"], result), flush=True)
    return results


def header():
    return (
        f"{'':4s} {'T':>4s} {'':22s} {'seconds':>9s} {'x plain':>8s} "
        f"{'compile':>8s} {'MiB':>8s} {'cosine':>9s} {'norm':>7s}"
    )


def format_row(row):
    start = (
        f"{row['model']:4s} {row['T']:4d} {METHODS[row['method']].label:22s}"
    )
    if row["status"] != "ok":
        return f"{start} {row['status']}"
    return (
        f"{start} {row['seconds']:9.4f} {row['relative']:8.2f} "
        f"{row['compile_seconds']:8.2f} {row['mebibytes']:8.1f} "
        f"{row.get('cosine', np.nan):9.6f} {row.get('norm_ratio', np.nan):7.3f}"
    )


def race_header():
    return (
        f"{'digits among noise':22s} {'iterations':>10s} {'best loss':>10s} "
        f"{'after s':>8s} {'last loss':>10s}"
    )


def format_race(method, result):
    start = f"{METHODS[method].label:22s}"
    if result["status"] != "ok":
        return f"{start} {result['status']}"
    curve = np.array(result["curve"])
    best = np.argmin(curve[:, 2])
    line = (
        f"{start} {curve[-1, 1]:10.0f} {curve[best, 2]:10.4f} "
        f"{curve[best, 0]:8.1f} {curve[-1, 2]:10.4f}"
    )
    return f"{line}  {result['stopped'] or ''}".rstrip()


def versions(methods):
    names = dict.fromkeys(
        ["tensorflow", "keras", *(n for m in methods for n in METHODS[m].needs)]
    )
    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return f"{', '.join(found)}; {len(os.sched_getaffinity(0))} CPU cores"


def save_pictures(rows, races, options):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    def style(method):
        index = list(METHODS).index(method)
        ours = METHODS[method].adapter == "ours"
        return {
            "label": METHODS[method].label,
            "color": plt.get_cmap("tab20")(index),
            "linestyle": "-" if ours else "--",
            "linewidth": 2.2 if ours else 1.2,
        }

    panels = (
        ("relative", "outer iteration / T plain SGD steps"),
        ("mebibytes", "peak memory beyond (MiB)"),
    )
    figure, axes = plt.subplots(
        len(options.models),
        2,
        figsize=(11.5, 3.6 * len(options.models)),
        layout="constrained",
        squeeze=False,
    )
    for model, line in zip(options.models, axes, strict=True):
        for axis, (column, label) in zip(line, panels, strict=True):
            for method in METHODS:
                points = [
                    (row["T"], max(row[column], 0.1))
                    for row in rows
                    if row["model"] == model
                    and row["method"] == method
                    and row["status"] == "ok"
                ]
                if points:
                    axis.loglog(
                        *zip(*points, strict=True), marker=".", **style(method)
                    )
            axis.set(xlabel="inner steps T", ylabel=label, title=model)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(),
        loc="outside right upper",
        fontsize=7,
    )
    paths = [options.output / "peers.png"]
    figure.savefig(paths[0], dpi=150)
    if races:
        figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
        for method, result in races.items():
            if len(result.get("curve", ())) > 1:
                curve = np.array(result["curve"])
                axis.semilogy(curve[:, 0], curve[:, 2], **style(method))
        axis.set(xlabel="seconds", ylabel="test cross-entropy")
        axis.legend(fontsize=7)
        paths.append(options.output / "peers_race.png")
        figure.savefig(paths[1], dpi=150)
    plt.close("all")
    return paths


def save_tables(rows, races, text, options):
    (options.output / "peers.txt").write_text(text + "\n")
    with (options.output / "peers.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    with (options.output / "peers_race.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow("method seconds outer_iterations test_loss".split())
        for method, result in races.items():
            for line in result.get("curve", ()):
                writer.writerow([method, *line])


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks")
    models, methods = ["mlp", "cnn"], list(METHODS)
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--steps", nargs="+", type=int)
    parser.add_argument(
        "--methods", nargs="+", choices=methods, default=methods
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=float, default=300, help="seconds")
    parser.add_argument(
        "--race-seconds", type=float, default=60, help="0: no second part"
    )
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent.parent / "output",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.repeats = 1
    options.steps = options.steps or (
        QUICK_STEPS if options.quick else FULL_STEPS
    )
    return options


def main(arguments=None):
    options = parse(arguments)
    if options.child:
        run_child(json.loads(options.child))
        return None
    options.output.mkdir(parents=True, exist_ok=True)
    methods, skipped = [], []
    for name in options.methods:
        missing = [
            package
            for package in METHODS[name].needs
            if importlib.util.find_spec(package) is None
        ]
        if missing:
            skipped.append(
                f"{METHODS[name].label}: skipped, {missing[0]} is not "
                f"installed ({INSTALL})"
            )
        else:
            methods.append(name)
    title = "\n".join([versions(methods), *skipped])
    print(title, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = measure_all(methods, options, pathlib.Path(folder))
    races = race_all(methods, options) if options.race_seconds else {}
    text = "\n".join(
        [title, header(), *(format_row(row) for row in rows)]
        + ["", race_header()] * bool(races)
        + [format_race(method, result) for method, result in races.items()]
    )
    save_tables(rows, races, text, options)
    for path in save_pictures(rows, races, options):
        print(f"picture: {path}")
    print(f"tables: {options.output / 'peers.txt'}, peers.csv, peers_race.csv")
    return rows, races


if __name__ == "__main__":
    main()
