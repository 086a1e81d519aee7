# SPDX-License-Identifier: BSD-3-Clause

"""
The lines of the doctor, as `docs/doctor.md` lists them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "doctor.md"

# What the page's capital letters stand for; what is not here is any text.
_PLACEHOLDERS = {
    "N": r"[\d.,]+",
    "SIZE": r"[\d.]+ (?:bytes|[KMGT]iB)",
    "ID": r"[0-9a-f]+",
    "DATE": r"\d{4}-\d\d-\d\d",
    "SIDE": r"(?:ahead of|behind)",
    "TLSN": r"TLSv1\.[23]",
    "NODES": r"(?:1 node|[\d,]+ nodes)",
    "VERSION": r"v?\d\S*",
}
_ANY_TEXT = {
    "ADDRESSES",
    "BACKEND",
    "DURATION",
    "ENDPOINTS",
    "FAULTS",
    "LIMIT",
    "MEMBERS",
    "NOTE",
    "PATH",
    "REASON",
    "USER",
    "WHAT",
}


@dataclass(frozen=True)
class Row:
    """
    A row of the page's tables.
    """

    check: str
    level: str
    says: str
    remedy: str

    def fits(self, check: str, level: str, says: str) -> bool:
        """
        Whether a line is what the row promises.
        """
        words = "|".join({*_PLACEHOLDERS, *_ANY_TEXT})
        parts = re.split(rf"\b({words})\b", self.says)
        pattern = "".join(
            _PLACEHOLDERS.get(part) or (".+" if part in _ANY_TEXT else re.escape(part))
            for part in parts
        )
        same = (self.check, self.level) == (check, level)
        return same and re.fullmatch(pattern, says) is not None


def rows() -> list[Row]:
    """
    Return the rows of the page's tables of lines.
    """
    found = re.findall(
        r"^\| `(\w+)` \| (\w+) \| `(.*?)` \| (.*?) ?\|$",
        PAGE.read_text("utf-8"),
        re.MULTILINE,
    )
    return [Row(*cells) for cells in found]
