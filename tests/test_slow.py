"""Which tests are slow."""

import pytest
from slowest import mark
from slowest import measured
from slowest import slowest

REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_b" time="3.0"/>
<testcase classname="tests.data.test_c" name="test_d[1-x]" time="0.5"/>
</testsuite></testsuites>"""


def test_quickest_case_of_a_test_stays_quick():
    assert slowest(
        {
            "a.py::test_one": 4.0,
            "a.py::test_long": 6.0,
            "a.py::test_cases[1]": 2.0,
            "a.py::test_cases[2]": 3.0,
            "a.py::test_cases[3]": 4.0,
            "a.py::test_brief[1]": 0.5,
            "a.py::test_brief[2]": 0.9,
            "b.py::test_cases[1]": 7.0,
            "b.py::test_cases[2]": 6.0,
        }
    ) == [
        "a.py::test_cases[2]",
        "a.py::test_cases[3]",
        "a.py::test_long",
        "b.py::test_cases[1]",
    ]


def test_report_of_pytest_gives_node_ids(tmp_path):
    path = tmp_path / "times.xml"
    path.write_text(REPORT)
    assert measured(path) == {
        "tests/test_a.py::test_b": 3.0,
        "tests/data/test_c.py::test_d[1-x]": 0.5,
    }


def test_what_is_listed_is_marked_and_must_be_there():
    class Item:
        def __init__(self, nodeid):
            self.nodeid, self.marks = nodeid, []

        def add_marker(self, mark):
            self.marks.append(mark.name)

    items = [Item("a.py::test_one"), Item("a.py::test_two")]
    mark(items, ["a.py::test_two", "b.py::test_of_another_folder"], False)
    assert [item.marks for item in items] == [[], ["slow"]]
    with pytest.raises(pytest.UsageError, match="no tests.*test_gone"):
        mark(items, ["a.py::test_one", "a.py::test_gone"], True)
