"""Says which tests the quick suite leaves to the slow one, by measured times.

    python -m pytest -m "not slow" --junitxml=times.xml
    python tests/slowest.py times.xml >> tests/slow.txt

Of a test with several cases the quickest one stays quick, however long: what
the others repeat is seen in `make test` too. A test of one case that takes
long is slow. `conftest.py` marks as `slow` what the file lists.
"""

import collections
import pathlib
import sys
from xml.etree import ElementTree

import pytest

LISTED = pathlib.Path(__file__).with_name("slow.txt")
REPEATED, LONG = 1.0, 4.5  # seconds


def slowest(seconds):
    """The node ids to mark, of those that were measured.

    Args:
        seconds: Dictionary from the node id of a test to its time.
    """
    cases = collections.defaultdict(list)
    for name, time in seconds.items():
        cases[name.split("[")[0]].append((time, name))
    chosen = []
    for own in cases.values():
        quickest, *others = sorted(own)
        if not others:
            chosen += [name for time, name in [quickest] if time > LONG]
        chosen += [name for time, name in others if time > REPEATED]
    return sorted(chosen)


def measured(path):
    """The times in a report of pytest: a dictionary."""
    return {
        f"{case.get('classname').replace('.', '/')}.py::{case.get('name')}": (
            float(case.get("time"))
        )
        for case in ElementTree.parse(path).getroot().iter("testcase")
    }


def listed():
    """The node ids in the file: a list."""
    return LISTED.read_text().splitlines()


def mark(items, names, is_whole):
    """Marks tests as slow.

    Args:
        items: List of collected tests.
        names: List of the node ids to mark.
        is_whole: Whether these are all tests there are. Then a name that is
            not among them is an error.
    """
    items = {item.nodeid: item for item in items}
    for name in items.keys() & set(names):
        items[name].add_marker(pytest.mark.slow)
    unknown = sorted(set(names) - items.keys())
    if is_whole and unknown:
        raise pytest.UsageError(f"{LISTED.name} lists no tests: {unknown}")


if __name__ == "__main__":
    print("\n".join(slowest(measured(sys.argv[1]))))
