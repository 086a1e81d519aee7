# SPDX-License-Identifier: BSD-3-Clause
"""
How runs are shown to people.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from etcd_rendezvous._cli.text import plain
from etcd_rendezvous._outages import listed, nodes, span
from etcd_rendezvous._runs.report import Member, Phase, Report, Run

__all__ = ["duration", "show_report", "show_run"]

_LOST = "lost"
_STYLES = {
    Phase.FORMING: "yellow",
    Phase.COMPLETE: "green",
    Phase.BROKEN: "red",
    Phase.CLOSED: "dim",
    Phase.ABANDONED: "red",
    Phase.EMPTY: "dim",
    Phase.UNREADABLE: "red",
}


def duration(seconds: float | None) -> str:
    """
    Return a time in the largest unit that says enough.
    """
    if seconds is None:
        return "-"
    # Clocks that differ make times in the future.
    sign, seconds = ("-", -seconds) if seconds < 0 else ("", seconds)
    if seconds < 10:
        return f"{sign}{seconds:.1f} s"
    if seconds < 120:
        return f"{sign}{seconds:.0f} s"
    if seconds < 2 * 3600:
        return f"{sign}{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{sign}{seconds / 3600:.0f} h"
    return f"{sign}{seconds / 86400:.0f} d"


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{duration(seconds)} ago"


def show_report(report: Report, most: int | None = None) -> RenderableType:
    """
    Show all runs, a line each.

    Args:
        report: The runs.
        most: The most runs to show; None for all.
    """
    table = _table("run", "handler", "round", "state", "nodes", "besides")
    for title in ("heard of", "gone in"):
        table.add_column(title, justify="right", no_wrap=True)
    for run in report.runs[:most]:
        table.add_row(
            Text(plain(run.run_id), "bold"),
            _handler(run),
            "-" if run.round is None else str(run.round),
            Text(run.phase.value, _STYLES[run.phase]),
            _count(run),
            _besides(run),
            duration(_heard_of(run)),
            duration(run.store_ttl if run.ttl is None else run.ttl),
        )
    return Group(table, *_more(len(report.runs), most), *_notes(report))


def show_run(run: Run, most: int | None = None) -> RenderableType:
    """
    Show one run with its nodes.

    Args:
        run: The run.
        most: The most nodes to show, those that are lost first; None for all.
    """
    parts: list[RenderableType] = [
        Text.assemble(
            (plain(run.run_id), "bold"), f"  {_handler(run)}, {plain(run.key)}"
        ),
        Text(_standing(run), _STYLES[run.phase]),
    ]
    if run.missing:
        gone = listed([plain(name) for name in run.missing], len(run.missing))
        parts.append(Text(f"missing from the last round{gone}", "red"))
    shown = [
        *((one, _role(one, run)) for one in run.participants),
        *(
            (one, _role(one, run, "waits"))
            for one in run.waiting
            if not _is_in(one, run.participants)
        ),
        *((one, _role(one, run, "spare")) for one in run.spares),
    ]
    if most is not None and len(shown) > most:
        shown.sort(key=lambda pair: pair[0].alive)
    if shown:
        parts += [_members(shown[:most]), *_more(len(shown), most)]
    parts.extend(Text(line, "dim") for line in _times(run))
    return Group(*parts)


def _members(shown: Iterable[tuple[Member, str]]) -> Table:
    table = _table("node", "rank", "pid", "state")
    table.add_column("heard of", justify="right", no_wrap=True)
    for member, role in shown:
        table.add_row(
            plain(member.address),
            "-" if member.rank is None else str(member.rank),
            str(member.pid or "-"),
            Text(role, "red" if role == _LOST else ""),
            _ago(member.heartbeat_age),
        )
    return table


def _table(name: str, *titles: str) -> Table:
    """
    Return a table that is narrow enough for any terminal: names go on below.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(name, overflow="fold")
    for title in titles:
        table.add_column(title, no_wrap=True)
    return table


def _besides(run: Run) -> str:
    words = []
    if run.waiting:
        words.append(f"{len(run.waiting)} wait" + "s" * (len(run.waiting) == 1))
    if run.spares:
        words.append(f"{len(run.spares)} spare" + "s" * (len(run.spares) > 1))
    return ", ".join(words)


def _is_in(member: Member, members: Sequence[Member]) -> bool:
    return any(one.id == member.id for one in members)


def _role(member: Member, run: Run, besides: str = "") -> str:
    """
    Say what becomes of a node; ``besides`` if it is not in the round.
    """
    if not member.alive:
        return "ended" if run.phase is Phase.CLOSED else _LOST
    if besides:
        return besides
    if run.phase is Phase.FORMING:
        return "joined"
    if _is_in(member, run.waiting):
        return "waits for the next round"
    if run.phase is Phase.BROKEN:
        return "has not left it yet"
    return "in the round"


def _handler(run: Run) -> str:
    if run.handler == "live":
        return "etcd-live"
    return f"etcd-{run.api}" if run.handler else f"? ({run.api})"


def _count(run: Run) -> str:
    alive, world = sum(one.alive for one in run.participants), _world(run)
    over = run.phase is Phase.CLOSED
    return str(world) if over or alive == world else f"{alive} of {world}"


def _world(run: Run) -> int:
    """
    Return how many nodes a round began with: those that were evicted leave a gap.
    """
    ranks = [one.rank + 1 for one in run.participants if one.rank is not None]
    return max([len(run.participants), *ranks])


def _heard_of(run: Run) -> float | None:
    ages = [one.heartbeat_age for one in run.members.values()]
    return min((age for age in ages if age is not None), default=run.state_age)


def _standing(run: Run) -> str:
    there = nodes(len(run.participants))
    if run.phase is Phase.FORMING:
        call = ""
        if run.last_call is not None:
            call = f"; enough, the last call ends in {duration(run.last_call)}"
        return f"round {run.round} is forming: {there} joined{_needed(run)}{call}"
    if run.phase is Phase.COMPLETE:
        lost = len(run.participants) - sum(one.alive for one in run.participants)
        gone = f" of {_world(run)}" if _world(run) > len(run.participants) else ""
        silent = f"; {nodes(lost)} of them not heard of any more" if lost else ""
        return f"round {run.round} is complete: {there}{gone}{silent}"
    if run.phase is Phase.BROKEN:
        return f"round {run.round} has lost a node; its others meet again"
    if run.phase is Phase.CLOSED:
        return f"closed: its job is over; its run id is {_free(run)}"
    if run.phase is Phase.ABANDONED:
        heard = _heard_of(run)
        since = "" if heard is None else f" for {duration(heard)}"
        return f"abandoned: nobody of it was heard of{since}"
    if run.phase is Phase.EMPTY:
        return "no rendezvous, only keys of a store"
    return f"unreadable: {plain(run.problem or '')}"


def _needed(run: Run) -> str:
    if run.min_nodes is None:
        return ""
    return f", {span(run.min_nodes, run.max_nodes or run.min_nodes)} needed"


def _free(run: Run) -> str:
    """
    Say when the run id of a closed run is free.
    """
    if run.handler == "live":
        left = len(run.alive)
        if not left:
            return "free"
        return f"free when the last {nodes(left)} of it have ended"
    when = "soon" if run.ttl is None else f"in {duration(run.ttl)}"
    return f"free {when}, if all its agents have ended"


def _times(run: Run) -> list[str]:
    lines = []
    if run.state_bytes is not None:
        written = f", written {duration(run.state_age)} ago" if run.state_age else ""
        lines.append(
            f"state: {run.state_bytes:,} bytes{written}{_goes(run.ttl)}"
            f" (revision {run.revision})"
        )
    elif run.handler == "live":
        lines.append(f"rendezvous: revision {run.revision}{_goes(run.ttl)}")
    keys = "1 key" if run.store_keys == 1 else f"{run.store_keys:,} keys"
    lines.append(f"store: {keys}{_goes(run.store_ttl) if run.store_keys else ''}")
    return lines


def _goes(ttl: float | None) -> str:
    return "" if ttl is None else f"; gone in {duration(ttl)} unless it is renewed"


def _more(count: int, most: int | None) -> list[Text]:
    if most is None or count <= most:
        return []
    return [Text(f"and {count - most:,} more", "dim")]


def _notes(report: Report) -> list[Text]:
    return [Text(plain(note), "yellow") for note in report.notes]
