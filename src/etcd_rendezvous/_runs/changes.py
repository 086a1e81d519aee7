# SPDX-License-Identifier: BSD-3-Clause
"""
What has changed in a run between two looks at it, in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from .._live.rounds import natural
from .._outages import listed, nodes
from .report import Member, Phase, Report, Run

__all__ = ["Memory", "changes", "names"]


def names(
    members: Iterable[Member], crowded: AbstractSet[str] = frozenset()
) -> list[str]:
    """
    Return the addresses of nodes, sorted; with the process where one has several.

    Args:
        members: The nodes.
        crowded: Addresses that have several, whatever is among the nodes.
    """
    members = list(members)
    crowded = crowded | _crowded(members)
    found = [
        f"{one.address} pid {one.pid}"
        if one.address in crowded and one.pid
        else one.address
        for one in members
    ]
    return sorted(found, key=natural)


def _crowded(members: Iterable[Member]) -> set[str]:
    counts = Counter(one.address for one in members)
    return {address for address, count in counts.items() if count > 1}


def changes(before: Run | None, after: Run | None) -> list[str]:
    """
    Say what has changed in a run.

    Args:
        before: The run at the earlier look; None if there was nothing of it.
        after: The same at the later one.

    Returns:
        A line each, without the run's name. None for times that go by.
    """
    if after is None:
        return [] if before is None else ["nothing of it is left in etcd"]
    if before is None:
        return [_standing(after)]
    lines = []
    if (before.phase, before.round) != (after.phase, after.round):
        lines.append(_standing(after))
    if after.problem is not None or before.problem is not None:
        return lines
    old, new = before.members, after.members
    both = [(old[id_], new[id_]) for id_ in old if id_ in new]
    events = {
        "joined": [one for id_, one in new.items() if id_ not in old],
        "left, or is gone": [one for id_, one in old.items() if id_ not in new],
        # What is known of a lost one may be less than was.
        "is lost": [was for was, now in both if was.alive and not now.alive],
        "is back": [now for was, now in both if now.alive and not was.alive],
    }
    crowded = _crowded(old.values()) | _crowded(new.values())
    for what, members in events.items():
        lines += _of(what, names(members, crowded))
    return lines


def _of(what: str, who: list[str]) -> list[str]:
    if not who:
        return []
    if len(who) == 1:
        return [f"{who[0]} {what}"]
    what = what.replace("is ", "are ", 1)
    return [f"{nodes(len(who))} {what}{listed(who, len(who))}"]


def _standing(run: Run) -> str:
    """
    Say where a run stands.
    """
    count = nodes(len(run.participants))
    if run.phase is Phase.FORMING:
        return f"round {run.round} is forming, {count} joined"
    if run.phase is Phase.COMPLETE:
        return f"round {run.round} is complete with {count}"
    if run.phase is Phase.BROKEN:
        lost = [one for one in run.participants if not one.alive]
        return (
            f"round {run.round} has lost {nodes(len(lost))}"
            f"{listed(names(lost), len(lost))}; the others meet again"
        )
    return {
        Phase.CLOSED: "it is closed",
        Phase.ABANDONED: "nobody of it is alive any more",
        Phase.EMPTY: "only keys of its store are there",
        Phase.UNREADABLE: f"it can't be read: {run.problem}",
    }[run.phase]


class Memory:
    """
    What was seen of runs at earlier looks, and so what is new, and who is missing.

    Attributes:
        news: What the last look has brought, a line each, with the runs' names.
    """

    def __init__(self) -> None:
        self.news: list[str] = []
        self._runs: dict[tuple[str, str], Run] | None = None
        self._complete: dict[tuple[str, str], Run] = {}

    def take_in(self, report: Report) -> Report:
        """
        Take note of a look; the first one brings no news.

        Args:
            report: What was seen.

        Returns:
            The same, with those that are missing of a round that was seen complete:
            the state of torch's handler does not tell them.
        """
        runs = {(run.run_id, run.api): self._with_missing(run) for run in report.runs}
        self.news = []
        if self._runs is not None:
            for key in sorted({*self._runs, *runs}):
                lines = changes(self._runs.get(key), runs.get(key))
                self.news += [f"{key[0]}: {line}" for line in lines]
        self._runs = runs
        self._complete = {
            key: one for key, one in self._complete.items() if key in runs
        }
        return replace(report, runs=tuple(runs.values()))

    def _with_missing(self, run: Run) -> Run:
        key = (run.run_id, run.api)
        last = self._complete.get(key)
        if last is not None and _is_another(run, last):
            del self._complete[key]
            last = None
        if run.phase is Phase.COMPLETE:
            self._complete[key] = run
        if last is None or run.phase is not Phase.FORMING or run.missing:
            return run
        # Who is there again may be another process at the same address.
        there = Counter(one.address for one in run.members.values())
        absent = Counter(one.address for one in last.participants) - there
        return replace(run, missing=tuple(sorted(absent.elements(), key=natural)))


def _is_another(run: Run, last: Run) -> bool:
    """
    Say whether a run does not go on with a round that was seen complete.
    """
    over = run.phase in (Phase.CLOSED, Phase.ABANDONED)
    return over or (run.round or 0) < (last.round or 0)
