# SPDX-License-Identifier: BSD-3-Clause
"""
Figures, as they are kept in a file.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

# What is measured: the names of figures, or what they begin with.
GOES_ON = "goes on: "
JOIN, REJOIN = "join", "re-join"
LATE, DEATH, CLOSERS_DEATH = "late node", "node killed", "closer killed"
LEADER = "leader killed"
IDLE, IDLE_AGENT, IDLE_CLOSER = "idle", "idle agent", "idle closer"
STORE, STORE_GROWS, STORE_AT_ONCE = "store: ", "store grows: ", "store at once: "
COUNT = "count"

# Digits that mean something. No machine repeats itself more exactly.
_DIGITS = 4


@dataclass
class Figure:
    """
    One thing measured, of one backend and so many nodes, some times.

    Attributes:
        name: What was measured.
        backend: Whose it is.
        nodes: How many nodes, clients or keys there were.
        values: What each run has given, by name; bytes, seconds and numbers, of which
            ``requests``, ``sent`` and ``received`` are a node's. None is not known or,
            of ``seconds``, not within the limit.
        unfinished: The seconds that it did not finish within, in one run at least;
            None if it always finished, or failed.
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
        The median time; infinite where half of the runs did not finish.
        """
        times = self.values.get("seconds", [])
        if not times or None in times:
            never = [math.inf if one is None else one for one in times or [None]]
            return statistics.median_high(never)
        return self.median("seconds") or 0.0

    @property
    def finished(self) -> bool:
        """
        Whether ``seconds`` is a time.
        """
        return math.isfinite(self.seconds)

    @property
    def middle(self) -> float | None:
        """
        The median time, of runs or of single calls; None if it did not finish.
        """
        if "p50" in self.values:
            return self.median("p50")
        return self.seconds if self.finished else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """
        The least and the most seconds of those that finished; None of a single run.
        """
        known = [one for one in self.values.get("seconds", []) if one is not None]
        return (min(known), max(known)) if len(known) > 1 else None


@dataclass
class Report:
    """
    All that one run of the benchmarks has measured.

    Attributes:
        about: The machine, the versions and the run.
        parts: What was measured, to its end.
        broken: The promises that were not kept, in words.
        figures: The figures.
        apart: What is said of the run of each part that had one of its own.
    """

    about: dict[str, str] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    apart: dict[str, dict[str, str]] = field(default_factory=dict)

    def take(self, other: Report) -> None:
        """
        Take in the parts of another run that are missing in this one.
        """
        names = {one.name for one in self.figures}
        self.figures += [one for one in other.figures if one.name not in names]
        for part in other.parts:
            if part not in self.parts:
                self.parts.append(part)
                self.apart[part] = other.about

    def find(self, name: str, backend: str | None = None) -> list[Figure]:
        """
        Return the figures of a name, and perhaps of a backend.
        """
        return [
            one
            for one in self.figures
            if one.name == name and backend in (None, one.backend)
        ]

    def get(self, name: str, backend: str, nodes: int | None = None) -> Figure | None:
        """
        Return a figure; None if it was not measured.
        """
        found = self.find(name, backend)
        return next((one for one in found if nodes in (None, one.nodes)), None)

    def names(self, start: str) -> list[str]:
        """
        Return the names that begin with something, each once, in their order.
        """
        return list(
            dict.fromkeys(
                one.name for one in self.figures if one.name.startswith(start)
            )
        )

    def save(self, path: Path) -> None:
        """
        Write it to a file.
        """
        # A figure a line: short, and two runs can be compared.
        kept = _rounded(asdict(self))
        figures = ",\n  ".join(json.dumps(one) for one in kept.pop("figures"))
        head = json.dumps(kept, indent=1).removesuffix("\n}")
        path.write_text(f'{head},\n "figures": [\n  {figures}\n ]\n}}\n', "utf-8")

    @staticmethod
    def load(path: Path) -> Report:
        """
        Read it from a file.
        """
        data = json.loads(path.read_text("utf-8"))
        data["figures"] = [Figure(**one) for one in data["figures"]]
        return Report(**data)


def _rounded(value: Any) -> Any:
    if isinstance(value, float) and value and math.isfinite(value):
        return round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value
