"""Tables of the rows: means by set, who is ahead of whom, mean ranks."""

import numpy as np

MEASURES = ("error", "nll")


def names_of(rows, key):
    """Different values of a column, in their order."""
    return list(dict.fromkeys(row[key] for row in rows))


def complete(rows):
    """Rows with both measures."""
    return [r for r in rows if np.isfinite(r["error"] + r["nll"])]


def values(rows, measure):
    """`{set: {method: {split: value}}}` of the complete rows."""
    found = {}
    for row in complete(rows):
        methods = found.setdefault(row["set"], {})
        splits = methods.setdefault(row["method"], {})
        splits[row["split"]] = row[measure]
    return found


def mean_and_error(numbers):
    """Mean and its standard error over the splits."""
    spread = np.std(numbers, ddof=1) if len(numbers) > 1 else np.nan
    return np.mean(numbers), spread / np.sqrt(len(numbers))


def show_set(rows):
    """Prints the rows of one set: a line for each method."""
    name, task = rows[0]["set"], rows[0]["task"]
    error = "RMSE" if task == "regression" else "wrong"
    print(
        f"\n{name}\n{'':18s}{error:>10s}    (error)       nll    (error)",
        end="",
    )
    print("  splits  seconds")
    for method in names_of(rows, "method"):
        own = [r for r in rows if r["method"] == method]
        good = complete(own)
        if good:
            cells = [mean_and_error([r[m] for r in good]) for m in MEASURES]
            line = "".join(f"{a:10.4f} ({b:8.4f})" for a, b in cells)
            seconds = np.mean([r["seconds"] for r in good])
            line += f"{len(good):8d}{seconds:9.1f}"
        else:
            line = "  no fit"
        notes = names_of([r for r in own if r["note"]], "note")
        print(f"{method:18s}{line}  {'; '.join(notes)}".rstrip())


def common(methods):
    """Mean of each method over the splits that all of them have."""
    shared = set.intersection(*(set(splits) for splits in methods.values()))
    return {
        name: np.mean([splits[n] for n in shared]) if shared else np.nan
        for name, splits in methods.items()
    }


def ahead(rows, one, other):
    """In how many sets one method is ahead, in both measures and in each.

    Returns:
        Numbers of sets: ahead in both, in the error, in the likelihood, and
        of sets with rows of both methods on the same split.
    """
    counts = np.zeros(4, int)
    errors, nlls = (values(rows, measure) for measure in MEASURES)
    for name in errors:
        if not {one, other} <= errors[name].keys():
            continue
        means = [
            common({m: found[name][m] for m in (one, other)})
            for found in (errors, nlls)
        ]
        if np.isnan(means[0][one]):
            continue
        wins = [mean[one] < mean[other] for mean in means]
        counts += np.array([all(wins), *wins, True], int)
    return counts


def mean_ranks(rows, measure):
    """`{method: (mean rank, number of sets)}`; 1 is the best, ties share.

    The methods of a set are compared on the splits that all of them have.
    """
    ranks = {}
    for methods in values(rows, measure).values():
        means = common(methods)
        for name, mean in means.items():
            if np.isnan(mean):
                continue
            others = np.array(list(means.values()))
            rank = np.sum(others < mean) + (np.sum(others == mean) + 1) / 2
            ranks.setdefault(name, []).append(rank)
    return {name: (np.mean(r), len(r)) for name, r in ranks.items()}


def show_markdown(rows, measure):
    """Prints a table of means over all splits, a line for each set.

    Behind a mean is the number of its splits, where it differs from that of
    the first method. Bold is the best on the splits that all methods have.
    """
    methods = names_of(complete(rows), "method")
    print(f"\n| {measure} | splits | " + " | ".join(methods) + " |")
    print("| --- |" + " ---: |" * (len(methods) + 1))
    for name, found in values(rows, measure).items():
        means = {m: np.mean(list(found[m].values())) for m in found}
        shared = common(found)
        best = min(shared.values())
        number = len(next(iter(found.values())))
        cells = []
        for method in methods:
            cell = f"{means[method]:.3g}" if method in found else ""
            if shared.get(method) == best:
                cell = f"**{cell}**"
            if method in found and len(found[method]) != number:
                cell += f" ({len(found[method])})"
            cells.append(cell)
        print(f"| {name} | {number} | " + " | ".join(cells) + " |")


def show_summary(rows):
    """Prints who is ahead of whom, and the mean ranks of each task."""
    methods = names_of(complete(rows), "method")
    print("\nIn how many sets is the row ahead of the column in both measures,")
    print("of the sets that both have served?")
    print(f"{'':18s}" + "".join(f"{m[:12]:>14s}" for m in methods))
    for one in methods:
        cells = []
        for other in methods:
            both, _, _, sets = ahead(rows, one, other)
            cells.append("" if one == other else f"{both} of {sets}")
        print(f"{one:18s}" + "".join(f"{cell:>14s}" for cell in cells))
    for task in names_of(rows, "task"):
        own = [r for r in rows if r["task"] == task]
        by_error, by_nll = (mean_ranks(own, m) for m in MEASURES)
        print(f"\nMean ranks, {task}\n{'':18s}     error       nll  sets")
        for name in sorted(by_error, key=lambda n: by_error[n][0]):
            (error, sets), (nll, _) = by_error[name], by_nll[name]
            print(f"{name:18s}{error:10.2f}{nll:10.2f}{sets:6d}")
