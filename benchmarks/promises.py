# SPDX-License-Identifier: BSD-3-Clause
"""
What is promised of ours, and whether it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator

from .figures import (
    CLOSERS_DEATH,
    DEATH,
    GOES_ON,
    IDLE,
    IDLE_AGENT,
    IDLE_CLOSER,
    JOIN,
    LEADER,
    REJOIN,
    STORE,
    STORE_AT_ONCE,
    STORE_GROWS,
    Figure,
    Report,
)
from .names import C10D, LIVE, OURS, OURS_V2, OURS_V3, TORCHS_STORE, V3, V3_BARE

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
# How much longer a job stands still than a node lives, where there is no last call:
# what workers take to stop and to start.
GOES_ON_WITHIN = 3.0
# As a share of what torch's EtcdStore takes.
STORE_AT_MOST = {
    f"{STORE}get": 1.0,
    f"{STORE}check": 1.0,
    f"{STORE}multi_get of 8": 1.0,
    f"{STORE}add": 1.0,
    f"{STORE}set": 1.5,
    f"{STORE_AT_ONCE}barrier of 64": 0.2,
}
# The last `get` beside the first: it does not grow.
AT_MOST_GROWN = 1.5


def broken(report: Report) -> Iterator[str]:
    """
    Yield each promise that is not kept, in words.
    """
    for figure in report.figures:
        if figure.failure and figure.backend in (*OURS, OURS_V3, OURS_V2):
            yield f"{_named(figure)} failed: {figure.failure}"
        elif figure.backend == OURS_V3 and figure.unfinished is not None:
            yield f"{_named(figure)} did not finish"
        if figure.backend == LIVE:
            yield from _of_live(figure)
    for name in (JOIN, REJOIN):
        yield from _beside_c10d(report, name)
    yield from _stores(report)


def _stores(report: Report) -> Iterator[str]:
    for name, most in STORE_AT_MOST.items():
        ours, theirs = (report.get(name, one) for one in (OURS_V3, TORCHS_STORE))
        # Who does not finish is no measure.
        if ours is None or theirs is None or not theirs.middle or not ours.middle:
            continue
        ratio = ours.middle / theirs.middle
        if ratio > most:
            yield f"{_named(ours)} took {ratio:.2f} times torch's, not {most:g}"
    for backend in (OURS_V3, OURS_V2):
        grown = [one for one in report.figures if one.name.startswith(STORE_GROWS)]
        times = [one.middle for one in grown if one.backend == backend and one.middle]
        if times and times[-1] > AT_MOST_GROWN * times[0]:
            yield (
                f"{backend}: get takes {times[-1] / times[0]:.1f} times as long beside "
                f"{grown[-1].nodes:,} keys, not {AT_MOST_GROWN:g}"
            )


def _beside_c10d(report: Report, name: str) -> Iterator[str]:
    theirs = {figure.nodes: figure for figure in report.find(name, C10D)}
    for backend in (V3, V3_BARE, LIVE):
        for figure in report.find(name, backend):
            base = theirs.get(figure.nodes)
            # Who does not finish is no measure for others.
            if base is None or not base.finished:
                continue
            if backend != LIVE and name != JOIN:
                continue
            if not figure.finished:
                yield f"{_named(figure)} did not finish, c10d did"
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
    if figure.name.startswith(GOES_ON):
        # A last call comes on top of it.
        most_seconds = figure.ttl + GOES_ON_WITHIN
        if "defaults, elastic" not in figure.name and figure.seconds > most_seconds:
            yield f"{named} took {figure.seconds:.1f} s, not {most_seconds:g}"
        return
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
