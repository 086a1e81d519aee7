# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The figures of README and docs, and the tables that are made of them. No server.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # For `benchmarks`, which is not installed.

from benchmarks import pages, tables  # noqa: E402
from benchmarks.figures import (  # noqa: E402
    GOES_ON,
    JOIN,
    STORE_AT_ONCE,
    STORE_GROWS,
    Figure,
    Report,
)
from benchmarks.names import (  # noqa: E402
    C10D,
    LIVE,
    OURS_V2,
    OURS_V3,
    TITLES,
    TORCHS_STORE,
    TORCHS_V2,
)
from benchmarks.promises import STORE_AT_MOST, broken  # noqa: E402

DEATH = f"{GOES_ON}defaults, elastic, other"


def figure(name, backend, *seconds, unfinished=None, failure="", nodes=3):
    made = Figure(name, backend, nodes, unfinished=unfinished, failure=failure, ttl=6)
    for one in seconds:
        made.add(seconds=one)
    return made


@pytest.fixture
def report():
    """
    Figures of all kinds of outcomes.
    """
    return Report(
        about={"processor": "some", "form": "quick", "minutes": "3"},
        figures=[
            figure(DEATH, C10D, 80.0, 60.0),
            figure(DEATH, TORCHS_V2, None, unfinished=90.0),
            figure(DEATH, LIVE, 35.0),
            figure(DEATH.replace("other", "rank0"), C10D, None, failure="it ends"),
            figure(DEATH.replace("other", "rank0"), TORCHS_V2, None, unfinished=90.0),
            figure(DEATH.replace("other", "rank0"), LIVE, 38.0),
        ],
    )


def test_a_part_of_its_own_run(report):
    """
    What a run could not measure is taken from another, and the page says so.
    """
    own = {"processor": "other", "form": "full", "minutes": "9"}
    one = figure(f"{STORE_AT_ONCE}barrier of 64", OURS_V3, 0.1)
    again = figure(DEATH, LIVE, 1.0)
    report.parts = ["node-death"]
    report.take(Report(own, ["store", "node-death"], [], [one, again]))

    assert report.parts == ["node-death", "store"]
    assert report.find(one.name) == [one]
    assert again not in report.figures
    said = "in a run of its own, processor other, the long form, `tox -e bench`, 9 min"
    assert f"| the store | {said} |" in tables.machine(report)


# -- the pages -------------------------------------------------------------------------


def test_pages_show_the_figures():
    """
    All tables and plots of README and docs are made of docs/figures.json as it is.
    """
    assert [] == list(pages.outdated(Report.load(pages.FIGURES)))


def test_every_table_is_shown():
    """
    The page of benchmarks has every table, and README the one of a node's death.
    """
    shown = {
        path.name: re.findall("<!-- figures: (.*) -->", path.read_text("utf-8"))
        for path in pages.pages()
    }

    assert sorted(tables.TABLES) == sorted(shown["benchmarks.md"])
    assert ["node-death"] == shown["README.md"]


def test_marks_are_closed():
    """
    Between two marks stands the end of the first: no text of a page is lost.
    """
    for path in pages.pages():
        marks = re.findall("<!-- (figures:|end of figures)", path.read_text("utf-8"))

        assert ["figures:", "end of figures"] * (len(marks) // 2) == marks


def test_figure_that_somebody_edits():
    """
    A table is written anew in its place, and nothing beside it changes.
    """
    page = "One.\n\n<!-- figures: a -->\n\n| 2 |\n\n<!-- end of figures -->\n\nTwo.\n"
    edited = page.replace("2", "1")

    assert page == pages.rendered(edited, {"a": "| 2 |"})
    assert page == pages.rendered(page, {"a": "| 2 |"})


def test_mark_that_names_nothing():
    """
    A mark that names no table is an error.
    """
    page = "<!-- figures: b -->\n<!-- end of figures -->"

    with pytest.raises(pages.UnknownFiguresError, match="'b'"):
        pages.rendered(page, {"a": ""})


def test_figures_in_a_file(report, tmp_path):
    """
    What is read from a file is what was written, to four digits.
    """
    report.figures[0].add(seconds=1.23456789)
    report.figures[1].add(requests=0.0)
    path = tmp_path / "figures.json"

    report.save(path)
    read = Report.load(path)

    assert [80.0, 60.0, 1.235] == read.figures[0].values["seconds"]
    assert report.figures[1:] == read.figures[1:]
    assert report.about == read.about
    assert pages.digest(read) == pages.digest(Report.load(path))


# -- the tables ------------------------------------------------------------------------


def test_ratios_come_first(report):
    """
    A cell begins with the ratio to c10d; who does not finish is shown so, and has one
    only where c10d has a time; an end is told from a limit.
    """
    head, _, other, rank0 = tables.node_death(report).splitlines()
    cells = [line[2:-2].split(" | ") for line in (head, other, rank0)]

    assert [TITLES[one] for one in (C10D, TORCHS_V2, LIVE)] == cells[0][1:]
    assert ["1 (70.0 s)", "> 1.3 (not within 90 s)", "0.50 (35.0 s)"] == cells[1][1:]
    assert ["never: it ends", "not within 90 s", "38.0 s"] == cells[2][1:]


def test_ratio_to_who_is_late():
    """
    Beside one that is late the ratio is a bound.
    """
    base = figure(JOIN, C10D, None, unfinished=60.0)

    assert "not within 60 s" == tables.cell(base, base)
    assert "< 0.10 (6.00 s)" == tables.cell(figure(JOIN, LIVE, 6.0), base)


def test_late_in_some_runs():
    """
    The median counts runs that did not finish as later than all others.
    """
    one = figure(DEATH, C10D, 80.0, None, 70.0, unfinished=90.0)
    two = figure(DEATH, C10D, 80.0, None, unfinished=90.0)

    assert 80.0 == one.seconds
    assert "1 (80.0 s; not within 90 s in 1 of 3 runs)" == tables.cell(one, one)
    assert math.inf == two.seconds
    assert "not within 90 s" == tables.cell(two, two)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1,234"),
        (99.6, "100"),
        (43.94, "43.9"),
        (9.96, "10.0"),
        (1.064, "1.06"),
        (0.0142, "0.014"),
        (0.00012, "0.00012"),
    ],
)
def test_numbers(value, text):
    """
    Numbers have the digits that mean something, and no exponent.
    """
    assert text == tables.number(value)


def test_what_was_not_measured():
    """
    A table without figures says so; all of them can be had.
    """
    made = pages.blocks(Report())

    assert set(tables.TABLES) == set(made)
    assert tables.NOT_MEASURED == made["join"]


def test_promises(report):
    """
    What was not kept is told, of ours alone; of rivals nothing is promised.
    """
    assert [] == list(broken(report))

    report.figures += [
        figure(DEATH.replace("elastic", "spare"), LIVE, 30.0),
        figure(JOIN, C10D, 1.0, nodes=128),
        figure(JOIN, LIVE, 0.5, nodes=128),
    ]
    report.broken = list(broken(report))

    assert 2 == len(report.broken)
    assert "spare, other took 30.0 s, not 9" in report.broken[0]
    assert "took 0.50 times c10d, not 0.25" in report.broken[1]
    assert report.broken[1] in tables.kept(report)


def test_promises_of_stores():
    """
    Each promise of the store is told where it is not kept, and only there.
    """
    for name, most in STORE_AT_MOST.items():
        theirs = figure(name, TORCHS_STORE, 1.0)
        for seconds, told in ((0.9 * most, 0), (1.1 * most, 1)):
            ours = figure(name, OURS_V3, seconds)
            assert told == len(list(broken(Report(figures=[theirs, ours]))))
    for backend in (OURS_V3, OURS_V2):
        for last, told in ((1.4, 0), (1.6, 1)):
            grown = [
                figure(f"{STORE_GROWS}{keys}", backend, seconds, nodes=keys)
                for keys, seconds in ((1, 1.0), (10, last))
            ]
            assert told == len(list(broken(Report(figures=grown))))
    barrier = f"{STORE_AT_ONCE}barrier of 64"
    late = figure(barrier, OURS_V3, None, unfinished=60.0)
    assert [f"{OURS_V3}, 3 nodes, {barrier} did not finish"] == list(
        broken(Report(figures=[late, figure(barrier, TORCHS_STORE, 1.0)]))
    )
