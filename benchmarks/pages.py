# SPDX-License-Identifier: BSD-3-Clause
"""
The pages that show figures, and the marks between which these stand.

    <!-- figures: NAME -->
    … written from docs/figures.json, never by hand …
    <!-- end of figures -->
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from .figures import Report
from .tables import TABLES

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures.json"
PLOTS = ROOT / "docs" / "img"
_PLACE = re.compile(
    r"(?P<mark><!-- figures: (?P<name>[a-z-]+) -->\n)"
    r".*?(?P<end><!-- end of figures -->)",
    re.DOTALL,
)


class UnknownFiguresError(Exception):
    """
    Raised when a mark names no table.
    """


def blocks(report: Report) -> dict[str, str]:
    """
    Return all tables, by the names that marks give them.
    """
    return {name: make(report) for name, make in TABLES.items()}


def rendered(text: str, tables: dict[str, str]) -> str:
    """
    Return a page with the tables in their places.

    Args:
        text: The page as it is.
        tables: The tables, by name.

    Raises:
        UnknownFiguresError: A mark names another.
    """

    def fill(found: re.Match[str]) -> str:
        if found["name"] not in tables:
            raise UnknownFiguresError(f"there are no figures '{found['name']}'")
        return f"{found['mark']}\n{tables[found['name']]}\n\n{found['end']}"

    return _PLACE.sub(fill, text)


def pages() -> Iterator[Path]:
    """
    Yield each page that has a mark.
    """
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        if _PLACE.search(path.read_text("utf-8")):
            yield path


def write_pages(report: Report) -> list[Path]:
    """
    Write tables and plots into the pages; return what was written.
    """
    from .plot import plots

    tables = blocks(report)
    written = list(pages())
    for path in written:
        path.write_text(rendered(path.read_text("utf-8"), tables), "utf-8")
    PLOTS.mkdir(exist_ok=True)
    return written + plots(report, PLOTS, digest(report))


def outdated(report: Report) -> Iterator[Path]:
    """
    Yield each page and plot that was not made from these figures.
    """
    tables = blocks(report)
    for path in pages():
        text = path.read_text("utf-8")
        if rendered(text, tables) != text:
            yield path
    for path in PLOTS.glob("*.svg"):
        # Drawing needs matplotlib, and every version of it draws a little differently.
        if f"figures {digest(report)}" not in path.read_text("utf-8"):
            yield path


def digest(report: Report) -> str:
    """
    Return what tells figures from others.
    """
    figures = [asdict(one) for one in report.figures]
    return hashlib.sha256(json.dumps(figures).encode()).hexdigest()[:16]
