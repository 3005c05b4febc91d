"""Tables of the measurement of source weights."""

import numpy as np

KEYS = ("method", "number", "draw")


def show(rows):
    """Mean accuracy, its standard error, and seconds, as Markdown."""
    numbers = sorted({int(row["number"]) for row in rows})
    print("| | " + " | ".join(f"{n} clean" for n in numbers) + " | seconds |")
    print("| --- |" + " ---: |" * (len(numbers) + 1))
    for name in dict.fromkeys(row["method"] for row in rows):
        cells, seconds = [], []
        for number in numbers:
            own = [
                row
                for row in rows
                if row["method"] == name and int(row["number"]) == number
            ]
            values = [float(row["accuracy"]) for row in own]
            seconds += [float(row["seconds"]) for row in own]
            cell = f"{np.mean(values):.3f}" if values else ""
            if len(values) > 1:
                error = np.std(values, ddof=1) / len(values) ** 0.5
                cell += f" ({error:.3f})"
            cells.append(cell)
        time = f"{np.median(seconds):.1f}"
        print(f"| {name.replace('_', ' ')} | {' | '.join(cells)} | {time} |")


def show_choice(rows):
    """The best strength and weight of a clean text of each method."""
    groups = {}
    for row in rows:
        key = row["method"], int(row["number"])
        setting = float(row["strength"]), float(row["clean"])
        groups.setdefault(key, {}).setdefault(setting, []).append(
            float(row["accuracy"])
        )
    for key, settings in groups.items():
        best = max(settings, key=lambda setting: np.mean(settings[setting]))
        print(f"    {key}: {best},  # {np.mean(settings[best]):.3f}")
