# SPDX-License-Identifier: BSD-3-Clause
"""
Figures, as they are kept in a file and shown as tables.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

JOIN, REJOIN = "join", "re-join"
LATE, DEATH, CLOSERS_DEATH = "late node", "node killed", "closer killed"
LEADER = "leader killed"
IDLE, IDLE_AGENT, IDLE_CLOSER = "idle", "idle agent", "idle closer"

TITLES = {
    JOIN: "All join at once",
    REJOIN: "All re-join, as after a worker's failure",
    LATE: "Until all members know that a late node waits",
    DEATH: "Until all survivors know that a node was killed (SIGKILL)",
    CLOSERS_DEATH: "The same, where the killed node was the closer",
    LEADER: "Until all have joined although the leader of three etcds was killed",
    IDLE: "Idle, a minute",
    IDLE_AGENT: "What an idle agent has and does in a minute",
    IDLE_CLOSER: "The same of the one that is the closer",
}
# What is measured, the unit that it is shown in, and how.
_COLUMNS = {
    "seconds": ("s", "{:.3f}"),
    "requests": ("requests/node", "{:.2f}"),
    "sent": ("sent/node, kB", "{:.1f}"),
    "received": ("received/node, kB", "{:.1f}"),
    "client_cpu": ("clients' CPU, s", "{:.3f}"),
    "server_cpu": ("server's CPU, s", "{:.3f}"),
    "revisions": ("revisions", "{:.0f}"),
    "threads": ("threads", "{:.0f}"),
    "sockets": ("sockets", "{:.0f}"),
}
_IN_KB = frozenset({"sent", "received"})


@dataclass
class Figure:
    """
    One thing measured, of one backend and so many nodes, some times.

    Attributes:
        name: What was measured.
        backend: Whose it is.
        nodes: How many nodes there were.
        values: What each run has given, by name; bytes, seconds and numbers, of which
            ``requests``, ``sent`` and ``received`` are a node's. None is not known.
        unfinished: The seconds that it did not finish within; None if it finished.
        failure: What has failed, in words.
        ttl: The seconds that a node lives without a renewal, where that matters.
        watched: The seconds that were looked at, where a rate was measured.
    """

    name: str
    backend: str
    nodes: int
    values: dict[str, list[float | None]] = field(default_factory=dict)
    unfinished: float | None = None
    failure: str = ""
    ttl: float = 0.0
    watched: float = 0.0

    def add(self, **values: float | None) -> None:
        """
        Take in the values of one run.
        """
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        """
        Return the median of a value; None if it is not known.
        """
        known = [value for value in self.values.get(name, []) if value is not None]
        return statistics.median(known) if known else None

    @property
    def seconds(self) -> float:
        """
        The median time, or at least how long it would have taken.
        """
        median = self.median("seconds")
        if self.unfinished is not None or median is None:
            return self.unfinished or float("inf")
        return median


@dataclass
class Report:
    """
    All that one run of the benchmark has measured.

    Attributes:
        about: The versions and the machine.
        figures: The figures.
    """

    about: dict[str, str] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)

    def find(self, name: str, backend: str | None = None) -> list[Figure]:
        """
        Return the figures of a name, and perhaps of a backend.
        """
        return [
            one
            for one in self.figures
            if one.name == name and backend in (None, one.backend)
        ]

    def save(self, path: Path) -> None:
        """
        Write it to a file.
        """
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Report:
        """
        Read it from a file.
        """
        data = json.loads(path.read_text())
        return Report(data["about"], [Figure(**one) for one in data["figures"]])

    def show(self, console: Console) -> None:
        """
        Print all of it.
        """
        console.print(", ".join(f"{key} {value}" for key, value in self.about.items()))
        for name, title in TITLES.items():
            figures = self.find(name)
            if figures:
                console.print(table(title, figures))


def table(title: str, figures: Iterable[Figure]) -> Table:
    """
    Return a table of figures: medians, and the range of the seconds.
    """
    figures = list(figures)
    shown = [name for name in _COLUMNS if any(name in one.values for one in figures)]
    late = any(one.unfinished is not None or one.failure for one in figures)
    if late and "seconds" not in shown:
        shown.insert(0, "seconds")
    titles = [_COLUMNS[name][0] for name in shown]
    made = Table("nodes", "backend", *titles, title=title, title_justify="left")
    for column in made.columns[:1] + made.columns[2:]:
        column.justify = "right"
    for one in figures:
        cells = [_cell(one, name) for name in shown]
        made.add_row(f"{one.nodes:,}", one.backend, *cells)
    return made


def _cell(figure: Figure, name: str) -> str:
    if name == "seconds":
        if figure.failure:
            return "failed"
        if figure.unfinished is not None:
            return f"not within {figure.unfinished:.0f}"
    median = figure.median(name)
    if median is None:
        return "-"
    text = _COLUMNS[name][1].format(median / 1000 if name in _IN_KB else median)
    if name == "seconds" and len(figure.values[name]) > 1:
        known = [value for value in figure.values[name] if value is not None]
        text += f" ({min(known):.3f} to {max(known):.3f})"
    return text
