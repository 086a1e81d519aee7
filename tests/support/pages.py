# SPDX-License-Identifier: BSD-3-Clause

"""
The blocks of code on README and on the pages of docs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^( *)(`{3,})(.*)$")


@dataclass(frozen=True)
class Block:
    """
    A block of code.

    Attributes:
        page: The name of the page's file.
        heading: The last heading before it.
        number: Its number below that heading, from 0.
        language: What stands behind the fence: a language, or a directive of Sphinx.
        text: What is in it, without the indentation of its fence.
        line: The line of the page that its fence is on, from 1.
    """

    page: str
    heading: str
    number: int
    language: str
    text: str
    line: int

    @property
    def id(self) -> str:
        """
        Its name in the names of tests.
        """
        heading = re.sub(r"\W+", "-", self.heading.lower()).strip("-")
        return f"{self.page.removesuffix('.md')}-{heading[:40]}-{self.number}"

    def __str__(self) -> str:
        first = self.text.partition("\n")[0]
        return f"{self.page}:{self.line} ({self.language}, `{first}`)"


def blocks(page: Path) -> list[Block]:
    """
    Return the blocks of a page, in their order.
    """
    found: list[Block] = []
    heading = ""
    opened: tuple[str, str, str, int] | None = None
    inside: list[str] = []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fence = _FENCE.match(line)
        if opened is None:
            if fence is not None:
                opened = (*fence.groups(), number)
                inside = []
            elif re.match(r"#+ ", line):
                heading = line.lstrip("#").strip()
            continue
        indent, ticks, language, start = opened
        if fence is not None and fence[2] == ticks and not fence[3]:
            before = [one for one in found if one.heading == heading]
            text = "".join(f"{one}\n" for one in inside)
            found.append(
                Block(page.name, heading, len(before), language.strip(), text, start)
            )
            opened = None
        else:
            inside.append(line.removeprefix(indent))
    assert opened is None, f"{page.name}: a block does not end"
    return found


def block(page: str, heading: str, number: int = 0) -> Block:
    """
    Return one block.
    """
    (path,) = [path for path in PAGES if path.name == page]
    (found,) = [
        one for one in blocks(path) if (one.heading, one.number) == (heading, number)
    ]
    return found
