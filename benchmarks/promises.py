# SPDX-License-Identifier: BSD-3-Clause
"""
What is promised of ours, and whether it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from .figures import (
    CLOSERS_DEATH,
    DEATH,
    IDLE,
    IDLE_AGENT,
    IDLE_CLOSER,
    JOIN,
    LEADER,
    REJOIN,
    TITLES,
    Figure,
    Report,
)
from .handlers import C10D, LIVE, OURS, V3, V3_BARE

# As a share of what c10d takes: never much slower, and twice as fast from 256 on.
AT_MOST_V3 = 1.1
BIG = 256
AT_MOST_BIG = 0.5
# `etcd-live` is never slower, and four times as fast with 128 nodes and more.
AT_MOST_LIVE = 1.0
MANY = 128
AT_MOST_MANY = 0.25
# Requests are linear in the number of nodes.
LINEAR_FROM = 32
REQUESTS = {JOIN: 3.5, REJOIN: 1.5}
# After the time that a node lives without a renewal.
TOLD_WITHIN = 1.0
ELECTED_WITHIN = 5.0
# Threads, sockets and requests a minute; the latter are seen in whole minutes only.
MINUTE = 60.0
IDLE_AT_MOST = {IDLE_AGENT: (2, 2, 15), IDLE_CLOSER: (3, 4, 20)}


def broken(report: Report) -> Iterator[str]:
    """
    Yield each promise that is not kept, in words.
    """
    for name in TITLES:
        for figure in report.find(name):
            if figure.backend in OURS:
                yield from _of_all(figure)
            if figure.backend == LIVE:
                yield from _of_live(figure)
    for name in (JOIN, REJOIN):
        yield from _beside_c10d(report, name)


def _of_all(figure: Figure) -> Iterator[str]:
    if figure.failure:
        yield f"{_named(figure)} failed: {figure.failure}"


def _beside_c10d(report: Report, name: str) -> Iterator[str]:
    theirs = {figure.nodes: figure for figure in report.find(name, C10D)}
    for backend in (V3, V3_BARE, LIVE):
        for figure in report.find(name, backend):
            base = theirs.get(figure.nodes)
            # Who does not finish is no measure for others.
            if base is None or (base.unfinished and figure.unfinished):
                continue
            if backend != LIVE and name != JOIN:
                continue
            most = _most(figure)
            ratio = figure.seconds / base.seconds
            if ratio > most:
                yield f"{_named(figure)} took {ratio:.2f} times c10d, not {most:g}"


def _most(figure: Figure) -> float:
    if figure.backend == LIVE:
        return AT_MOST_MANY if figure.nodes >= MANY else AT_MOST_LIVE
    return AT_MOST_BIG if figure.nodes >= BIG else AT_MOST_V3


def _of_live(figure: Figure) -> Iterator[str]:
    named = _named(figure)
    if figure.unfinished is not None:
        yield f"{named} did not finish"
        return
    requests = figure.median("requests")
    most = REQUESTS.get(figure.name)
    if (
        most
        and requests is not None
        and figure.nodes >= LINEAR_FROM
        and requests > most
    ):
        yield f"{named} took {requests:.2f} requests a node, not {most:g}"
    slowest = max((s for s in figure.values.get("seconds", []) if s), default=0.0)
    within = {
        DEATH: figure.ttl + TOLD_WITHIN,
        CLOSERS_DEATH: figure.ttl + TOLD_WITHIN,
        LEADER: ELECTED_WITHIN,
    }.get(figure.name)
    if within is not None and slowest > within:
        yield f"{named} took {slowest:.1f} s, not {within:g}"
    if figure.name == IDLE and figure.median("revisions") != 0:
        yield f"{named} has written {figure.median('revisions'):.0f} times a minute"
    counted = zip(
        ("threads", "sockets", "requests"),
        IDLE_AT_MOST.get(figure.name, ()),
        strict=False,
    )
    for what, limit in counted:
        number = figure.median(what)
        if what == "requests" and figure.watched < MINUTE:
            continue
        if number is not None and number > limit:
            yield f"{named}: {number:.0f} {what}, not {limit}"


def _named(figure: Figure) -> str:
    return f"{figure.backend}, {figure.nodes:,} nodes, {figure.name}"
