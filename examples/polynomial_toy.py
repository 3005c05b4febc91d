"""Why average over the inner optima? The paper's section 2.2 and figure 1.

A cubic with a free coefficient (the hyperparameter) interpolates two training
points in infinitely many ways. Choosing one of them at random for each value of
the hyperparameter rarely finds the true quadratic; averaging over them always
does. It is a table, not a gradient: the question is which problem to solve.

    python examples/polynomial_toy.py [--quick] [--output FOLDER]
"""

import argparse
import csv
import pathlib

import numpy as np

TRAIN_X, TRAIN_Y = np.array([-0.75, 0.75]), np.array([-0.375, -0.675])
VALID_X, VALID_Y = np.array([-0.5, 0.5]), np.array([-0.3, -0.5])
NUM_STRENGTHS, NUM_SOLUTIONS = 21, 11
PAPER_FOUND, PAPER_RUNS = 3, 20


def solutions(cubic):
    """All theta in a grid with zero training loss, for a cubic coefficient.

    Two points fix two of the three coefficients; the quadratic one is free.
    Returns an array `(NUM_SOLUTIONS, 3)` of theta_0, theta_1, theta_2.
    """
    quadratic = np.linspace(-1.0, 1.0, NUM_SOLUTIONS)
    residual = TRAIN_Y - cubic * TRAIN_X**3
    slope = (residual[1] - residual[0]) / (TRAIN_X[1] - TRAIN_X[0])
    middle = residual.mean() - quadratic * np.mean(TRAIN_X**2)
    return np.column_stack([middle, np.full(NUM_SOLUTIONS, slope), quadratic])


def loss(x, y, cubic, theta):
    """Summed squared error of one polynomial for each row of `theta`."""
    powers = np.stack([np.ones_like(x), x, x**2])
    return np.sum((cubic * x**3 + theta @ powers - y) ** 2, axis=-1)


def make_table():
    """Validation loss for each hyperparameter and each inner optimum."""
    cubics = np.linspace(-1.0, 1.0, NUM_STRENGTHS)
    table = []
    for cubic in cubics:
        theta = solutions(cubic)
        worst = loss(TRAIN_X, TRAIN_Y, cubic, theta).max()
        if worst > 1e-20:
            raise RuntimeError(f"not an inner optimum: training loss {worst}")
        table.append(loss(VALID_X, VALID_Y, cubic, theta))
    return cubics, np.array(table)


def count_found(cubics, table, num_runs, rng):
    """How often each way of choosing finds the true cubic coefficient, 0."""
    rows = np.arange(len(cubics))
    random = [
        cubics[
            np.argmin(table[rows, rng.integers(0, NUM_SOLUTIONS, len(rows))])
        ]
        for _ in range(num_runs)
    ]
    average = cubics[np.argmin(table.mean(axis=1))]
    found = int(np.sum(np.abs(random) < 1e-9))
    return found, num_runs if abs(average) < 1e-9 else 0


def save_picture(cubics, table, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    x = np.linspace(-1, 1, 200)
    axes[0].plot(x, -0.4 * x**2 - 0.2 * x - 0.3, "k--", label="truth")
    row = int(np.argmin(np.abs(cubics - 0.1)))
    for column, label in (
        (np.argmin(table[row]), "good"),
        (np.argmax(table[row]), "poor"),
    ):
        theta = solutions(cubics[row])[column]
        y = cubics[row] * x**3 + theta @ np.stack([np.ones_like(x), x, x**2])
        axes[0].plot(x, y, label=f"{label}: loss {table[row, column]:.4f}")
    axes[0].plot(TRAIN_X, TRAIN_Y, "bo", label="training")
    axes[0].plot(VALID_X, VALID_Y, "r^", label="validation")
    axes[0].set(ylim=(-1.5, 0.5), title="two inner optima, lambda = 0.1")
    axes[0].legend(fontsize=7)
    image = axes[1].imshow(
        table, aspect="auto", cmap="coolwarm", extent=(-1, 1, 1, -1)
    )
    figure.colorbar(image, ax=axes[1])
    axes[1].set(
        xlabel="inner optimum (its theta_2)",
        ylabel="lambda",
        title="validation loss",
    )
    axes[2].plot(table.mean(axis=1), cubics, ".-")
    axes[2].set(
        ylim=(1, -1), xlabel="mean validation loss", title="averaged over rows"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
    )
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)

    cubics, table = make_table()
    rng = np.random.default_rng(0)
    found, averaged = count_found(cubics, table, PAPER_RUNS, rng)
    repeats = 100 if options.quick else 10_000
    many, _ = count_found(cubics, table, repeats, rng)
    print(f"{'found lambda = 0 in':32s} {'here':>10s} {'paper':>10s}")
    print(
        f"{'random optimum, 20 runs':32s} {found:>7d}/20 {PAPER_FOUND:>7d}/20"
    )
    print(f"{'average over optima, 20 runs':32s} {averaged:>7d}/20 {20:>7d}/20")
    print(f"{f'random optimum, {repeats} runs':32s} {many / repeats:>10.3f}")

    table_path = options.output / "polynomial_toy.csv"
    with table_path.open("w", newline="") as file:
        writer = csv.writer(file)
        header = [f"theta_2={q:.1f}" for q in solutions(0.0)[:, 2]]
        writer.writerow(["lambda", *header, "mean"])
        for cubic, row in zip(cubics, table, strict=True):
            writer.writerow([f"{cubic:.1f}", *row, row.mean()])
    picture_path = options.output / "polynomial_toy.png"
    save_picture(cubics, table, picture_path)
    print(f"table: {table_path}\npicture: {picture_path}")
    return found, averaged, many / repeats


if __name__ == "__main__":
    main()
