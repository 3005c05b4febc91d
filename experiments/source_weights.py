"""Sources of labels that do not deserve the same trust: what to weigh them by.

    python experiments/source_weights.py --data trec_weak.npz
        --features trec_minilm.npz --out rows.csv [--draws 5] [--choose]

5033 questions with the votes of 68 labelling functions, 40 % of which are
wrong; one of them votes on 62 % of the texts, and is right on 23 %. Besides,
there are some clean texts without votes. Features are those of a frozen
sentence encoder (`real/features.py`). The task is one of six classes.

Protocol, fixed before the run. A method gives each source a weight, from the
votes and the clean texts. Then a logistic regression is trained on all votes,
with the weights of their sources divided by their mean, and on the clean texts,
each with the weight `clean`. Its strength and that weight are chosen for each
method with `--choose`, on clean and test texts that are cut off from the
training texts, as were the settings of `learned`. The reported rows take their
clean texts from the validation part, 60 drawn at random (five draws) or all
500, and are tested on the test part.

Rows that are there are not computed again.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import row_file  # noqa: E402
from sources import table  # noqa: E402
from sources.heads import accuracy  # noqa: E402
from sources.methods import METHODS  # noqa: E402
from sources.texts import Texts  # noqa: E402

NUMBERS = (60, 500)
STRENGTHS = (0.03, 0.1, 0.3)  # scikit-learn's C
CLEAN = (1.0, 3.0, 10.0)

# Chosen by `--choose`: C, and the weight of a clean text.
CHOSEN = {
    ("uniform", 60): (0.3, 10.0),
    ("majority", 60): (0.3, 10.0),
    ("clean_alone", 60): (0.3, 10.0),
    ("hits", 60): (0.1, 10.0),
    ("alignment", 60): (0.03, 10.0),
    ("regression", 60): (0.03, 10.0),
    ("learned_softmax", 60): (0.1, 10.0),
    ("learned_bounded", 60): (0.03, 10.0),
    ("without_the_widest", 60): (0.03, 10.0),
    ("oracle", 60): (0.1, 10.0),
    ("uniform", 500): (0.03, 10.0),
    ("majority", 500): (0.03, 10.0),
    ("clean_alone", 500): (0.1, 10.0),
    ("hits", 500): (0.03, 10.0),
    ("alignment", 500): (0.03, 10.0),
    ("regression", 500): (0.03, 10.0),
    ("learned_softmax", 500): (0.03, 10.0),
    ("learned_bounded", 500): (0.03, 10.0),
    ("without_the_widest", 500): (0.03, 10.0),
    ("oracle", 500): (0.03, 10.0),
}


def draws_of(number, draws):
    """Which draws of so many clean texts there are."""
    return range(draws if number < 500 else 1)


def compute(arguments):
    rows = row_file.read(arguments.out)
    done = {tuple(row[key] for key in table.KEYS) for row in rows}
    texts = Texts(arguments.data, arguments.features, arguments.choose)
    for number in NUMBERS:
        for draw in draws_of(number, arguments.draws):
            clean = texts.draw(number, draw)
            for name in arguments.methods:
                grid = [(c, w) for c in STRENGTHS for w in CLEAN]
                if not arguments.choose:
                    grid = [CHOSEN[name, number]]
                if (name, str(number), str(draw)) in done:
                    continue
                votes, seconds = METHODS[name](texts, clean, draw)
                for strength, weight in grid:
                    right = accuracy(texts, votes, clean, strength, weight)
                    row = dict(
                        method=name,
                        number=number,
                        draw=draw,
                        strength=strength,
                        clean=weight,
                        accuracy=round(right, 4),
                        seconds=round(seconds, 1),
                    )
                    row_file.append(arguments.out, row)
                    print(*row.values(), flush=True)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--features", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument(
        "--methods", type=lambda text: text.split(","), default=[*METHODS]
    )
    parser.add_argument("--choose", action="store_true")
    arguments = parser.parse_args(arguments)
    compute(arguments)
    rows = row_file.read(arguments.out)
    show = table.show_choice if arguments.choose else table.show
    show(rows)


if __name__ == "__main__":
    main()
