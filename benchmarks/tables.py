# SPDX-License-Identifier: BSD-3-Clause
"""
Figures as tables in Markdown: ratios first, and who does not finish is shown so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .figures import (
    CLOSERS_DEATH,
    COUNT,
    DEATH,
    GOES_ON,
    IDLE,
    IDLE_AGENT,
    IDLE_CLOSER,
    JOIN,
    LATE,
    LEADER,
    REJOIN,
    STORE,
    STORE_AT_ONCE,
    STORE_GROWS,
    Figure,
    Report,
)
from .names import (
    BACKENDS,
    C10D,
    LIVE,
    STORES,
    SWAP,
    TITLES,
    TORCHS_STORE,
    V3_BARE,
    WAYS,
)

NOT_MEASURED = "Not measured in this run."
NOTHING = "-"
_NOT_THERE = "not there"
_FORMS = {
    "quick": "the short form, `tox -e bench -- --quick`",
    "full": "the long form, `tox -e bench`",
}
VICTIMS = {
    "other": "neither rank 0 nor c10d's host",
    "rank0": "rank 0, and c10d's host",
}
SHAPES = {
    "elastic": "two of `--nnodes=2:3`",
    "spare": "a spare steps in (`--nnodes=3:3`)",
}
SETTINGS = {
    "defaults": "each one's defaults",
    "equal": "heartbeats 5 s x 3, last call 1 s",
}
_EVENTS = {
    LATE: "a late node waits: all 16 members know",
    DEATH: "one of 4 nodes is killed: the others know",
    CLOSERS_DEATH: "… and it was the closer",
    LEADER: "the leader of 3 etcds is killed while 16 join: all have joined",
}


# -- numbers --------------------------------------------------------------------------


def number(value: float) -> str:
    """
    Return a number with two or three digits that mean something.
    """
    if value >= 9.95:
        return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}"
    # Never 1e-05.
    digits = next((n for n in range(2, 7) if round(value, n) * 10**n >= 10), 6)
    return f"{value:.{digits}f}"


def ratio(value: float) -> str:
    """
    Return a ratio with two digits that mean something.
    """
    if value == 1:
        return "1"  # What the others are compared with.
    if value >= 9.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 0.995 else number(value)


def cell(figure: Figure | None, base: Figure | None, unit: str = "s") -> str:
    """
    Return what stands in a table: the ratio to what it is compared with, and the time.

    Args:
        figure: What is shown; None for nothing.
        base: What it is compared with, perhaps itself; None for nothing.
        unit: ``s`` or ``ms``.
    """
    if figure is None:
        return NOTHING
    time = _time(figure, unit)
    if figure.middle is None:
        # At least so many times; but who fails never comes to an end.
        bound = figure.unfinished
        if base is None or base is figure or base.middle is None or not bound:
            return time
        return f"> {ratio(bound / base.middle)} ({time})"
    if base is None or (base.middle is None and not base.unfinished):
        return time
    if base.middle is None:
        return f"< {ratio(figure.middle / (base.unfinished or 1.0))} ({time})"
    return f"{ratio(figure.middle / base.middle)} ({time})"


def _time(figure: Figure, unit: str) -> str:
    scale = 1000 if unit == "ms" else 1
    if figure.middle is not None:
        times = [figure.middle, *figure.values.get("p99", [])]
        text = " / ".join(number(scale * one) for one in times if one) + f" {unit}"
        late = figure.values.get("seconds", []).count(None)
        if late:
            runs = len(figure.values["seconds"])
            text += f"; {_never(figure)} in {late} of {runs} runs"
        return text
    return _never(figure)


def _never(figure: Figure) -> str:
    if figure.name.startswith(GOES_ON) and figure.failure:
        return f"never: {figure.failure}"
    if figure.unfinished is None:
        return "failed"
    return f"not within {figure.unfinished:.0f} s"


# -- tables ---------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    Return a table in Markdown; a sentence if there is no row.
    """
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return NOT_MEASURED
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines])


def _backends(figures: Iterable[Figure]) -> list[str]:
    there = {one.backend for one in figures}
    return [one for one in (*BACKENDS, V3_BARE) if one in there]


def machine(report: Report) -> str:
    """
    Say what the run ran on.
    """
    about = dict(report.about)
    form, minutes = about.pop("form", ""), about.pop("minutes", "")
    rows = list(about.items())
    if form:
        rows.append(("measured by", _FORMS[form]))
    if minutes:
        rows.append(("which took", f"{minutes} min"))
    for part, own in report.apart.items():
        of_its_own = {"form": _FORMS[own["form"]], "minutes": f"{own['minutes']} min"}
        other = [
            of_its_own.get(name, f"{name} {value}")
            for name, value in own.items()
            if value != report.about.get(name)
        ]
        rows.append((f"the {part}", ", ".join(["in a run of its own", *other])))
    return table(("", ""), rows)


def kept(report: Report) -> str:
    """
    Say which promises were not kept.
    """
    if not report.broken:
        return "In this run all was kept that is promised."
    return "\n".join(
        [
            "In this run not all was kept that is promised:",
            "",
            *(f"- {one}." for one in report.broken),
        ]
    )


def node_death(report: Report) -> str:
    """
    Return the headline: the defaults, with fewer nodes that go on.
    """
    return _deaths(report, "defaults", ["elastic"], with_shape=False)


def node_death_defaults(report: Report) -> str:
    return _deaths(report, "defaults", list(SHAPES), with_shape=True)


def node_death_equal(report: Report) -> str:
    return _deaths(report, "equal", list(SHAPES), with_shape=True)


def _deaths(
    report: Report, settings: str, shapes: list[str], *, with_shape: bool
) -> str:
    names = report.names(GOES_ON)
    backends = _backends(one for one in report.figures if one.name in names)
    rows = []
    for shape in shapes:
        for victim, who in VICTIMS.items():
            name = f"{GOES_ON}{settings}, {shape}, {victim}"
            if name not in names:
                continue
            base = report.get(name, C10D)
            cells = [cell(report.get(name, one), base) for one in backends]
            rows.append([who, *([SHAPES[shape]] if with_shape else []), *cells])
    head = ["the node that dies", *(["who goes on"] if with_shape else [])]
    return table([*head, *(TITLES[one] for one in backends)], rows)


def join(report: Report) -> str:
    return _by_nodes(report, JOIN, _beside_c10d(report, JOIN))


def rejoin(report: Report) -> str:
    return _by_nodes(report, REJOIN, _beside_c10d(report, REJOIN))


def _beside_c10d(report: Report, name: str) -> Callable[[Figure], str]:
    return lambda figure: cell(figure, report.get(name, C10D, figure.nodes))


def join_requests(report: Report) -> str:
    return _by_nodes(report, JOIN, lambda one: _plain(one, "requests"))


def join_received(report: Report) -> str:
    return _by_nodes(report, JOIN, lambda one: _plain(one, "received", 1 / 1000))


def _by_nodes(report: Report, name: str, shown: Callable[[Figure], str]) -> str:
    figures = report.find(name)
    backends = _backends(figures)
    rows = []
    for nodes in sorted({one.nodes for one in figures}):
        found = [report.get(name, backend, nodes) for backend in backends]
        rows.append([f"{nodes:,}", *(shown(one) if one else NOTHING for one in found)])
    return table(["nodes", *(TITLES[one] for one in backends)], rows)


def _plain(figure: Figure | None, name: str, scale: float = 1) -> str:
    median = None if figure is None else figure.median(name)
    if median is None:
        return NOTHING
    value = scale * median
    return f"{value:.0f}" if value == int(value) else number(value)


def events(report: Report) -> str:
    """
    Return how soon nodes are told what happens.
    """
    figures = [one for one in report.figures if one.name in _EVENTS]
    backends = _backends(figures)
    rows = []
    for name, what in _EVENTS.items():
        if report.find(name):
            base = report.get(name, C10D)
            found = [report.get(name, one) for one in backends]
            rows.append([what, *(cell(one, base) for one in found)])
    return table(["", *(TITLES[one] for one in backends)], rows)


def idle(report: Report) -> str:
    """
    Return what a minute costs in which nothing happens.
    """
    figures = sorted(report.find(IDLE), key=lambda one: one.nodes)
    rows = []
    for one in figures:
        sent = [_plain(one, name, 1 / 1000) for name in ("sent", "received")]
        counts = [_plain(one, name) for name in ("revisions", "requests")]
        rows.append([f"{one.nodes:,}", TITLES[one.backend], *counts, *sent])
    head = ("nodes", "", "writes", "requests a node", "sent, kB a node", "received")
    return table(head, rows)


def idle_agent(report: Report) -> str:
    rows = []
    for name, who in ((IDLE_AGENT, "an agent"), (IDLE_CLOSER, "the closer")):
        for one in report.find(name, LIVE):
            counts = [_plain(one, what) for what in ("threads", "sockets", "requests")]
            rows.append([who, *counts])
    return table(("`etcd-live`", "threads", "connections", "requests"), rows)


# -- the store ------------------------------------------------------------------------


def store_one(report: Report) -> str:
    rows = []
    for name in report.names(STORE):
        what = name.removeprefix(STORE)
        first, _, rest = what.partition(" ")
        # The names of operations, but not a sentence.
        title = what if first == "a" else f"`{first}` {rest}".strip()
        rows.append([title, *_store_cells(report, name, "ms")])
    return table(["", *(TITLES[one] for one in STORES)], rows)


def store_grows(report: Report) -> str:
    rows = []
    for name in report.names(STORE_GROWS):
        count = name.removeprefix(STORE_GROWS)
        keys = "key" if count == "1" else "keys"
        rows.append([f"{count} {keys}", *_store_cells(report, name, "ms")])
    return table(["`get` beside", *(TITLES[one] for one in STORES)], rows)


def store_at_once(report: Report) -> str:
    rows = [
        [name.removeprefix(STORE_AT_ONCE), *_store_cells(report, name, "s")]
        for name in report.names(STORE_AT_ONCE)
    ]
    return table(["", *(TITLES[one] for one in STORES)], rows)


def _store_cells(report: Report, name: str, unit: str) -> list[str]:
    base = report.get(name, TORCHS_STORE)
    found = [report.get(name, kind) for kind in STORES]
    return [_NOT_THERE if one is None else cell(one, base, unit) for one in found]


def counters(report: Report) -> str:
    rows = []
    for clients in sorted({one.nodes for one in report.find(COUNT)}):
        base = report.get(COUNT, SWAP, clients)
        found = [report.get(COUNT, way, clients) for way in WAYS]
        cells = [f"{cell(one, base)}, {_plain(one, 'requests')}" for one in found]
        rows.append([f"{clients:,}", *cells])
    return table(["adders at once", *(TITLES[way] for way in WAYS)], rows)


TABLES: dict[str, Callable[[Report], str]] = {
    "machine": machine,
    "kept": kept,
    "node-death": node_death,
    "node-death-defaults": node_death_defaults,
    "node-death-equal": node_death_equal,
    "join": join,
    "re-join": rejoin,
    "join-requests": join_requests,
    "join-received": join_received,
    "events": events,
    "idle": idle,
    "idle-agent": idle_agent,
    "store-one": store_one,
    "store-grows": store_grows,
    "store-at-once": store_at_once,
    "counters": counters,
}
