# SPDX-License-Identifier: BSD-3-Clause
"""
How long it takes until nodes are told what has happened.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from etcd_rendezvous import EtcdCluster, EtcdServer

from .clients import Crowd
from .figures import CLOSERS_DEATH, DEATH, LATE, LEADER, Figure
from .handlers import Member, Place, crowd, is_round, join, leave, place
from .names import LIVE

LATE_AFTER = 16
MORTALS = 4
ELECTORS = 16
TTL = 6
MORTAL = {"keep_alive_interval": 2, "keep_alive_max_attempt": 3}
_POLL_SECONDS = 0.01
_JOIN_SECONDS = 60
# How long a rival is given that does not notice by itself: some lifetimes of a node.
_LIFETIMES = 3


def late_nodes(
    server: EtcdServer, backends: Sequence[str], runs: int, told: Callable[[str], None]
) -> list[Figure]:
    """
    Measure how soon a late node is noticed by all.
    """
    figures = {backend: Figure(LATE, backend, LATE_AFTER) for backend in backends}
    for run in range(runs):
        for backend, figure in figures.items():
            if figure.unfinished is None:
                told(f"late node, run {run + 1}: {backend}")
                with place(backend, server) as where:
                    _late_node(where, figure)
    return list(figures.values())


def _late_node(where: Place, figure: Figure) -> None:
    nodes = figure.nodes
    with crowd(
        where, nodes + 1, least=nodes, join_timeout=_JOIN_SECONDS, last_call_timeout=1
    ) as members:
        if not _met(members, figure, range(nodes)):
            return
        outcome = members.do(
            _come_or_notice, nodes, _JOIN_SECONDS / 2, limit=_JOIN_SECONDS
        )
        came = [at for number, at in outcome.results if number == nodes]
        noticed = [at for number, at in outcome.results if number < nodes]
        if outcome.all_done:
            figure.add(seconds=max(noticed) - came[0])
        else:
            figure.add(seconds=None)
            figure.unfinished = _JOIN_SECONDS / 2
        _end(members, figure)


def _come_or_notice(member: Member, late: int, limit: float) -> tuple[int, float]:
    if member.number != late:
        return member.number, notice(member, limit)
    # Torch's handlers ask once a second: come at any time of theirs.
    time.sleep(random.uniform(0.5, 1.5))
    came = time.perf_counter()
    threading.Thread(target=_come, args=(member,), daemon=True).start()
    return member.number, came


def _come(member: Member) -> None:
    try:
        member.handler.next_rendezvous()
    except Exception:  # noqa: BLE001
        return  # There is no next round: the others are gone.


def notice(member: Member, limit: float) -> float:
    """
    Return when somebody is seen to wait.

    Raises:
        TimeoutError: Nobody was seen.
    """
    deadline = time.perf_counter() + limit
    while member.handler.num_nodes_waiting() <= 0:
        if time.perf_counter() > deadline:
            raise TimeoutError
        time.sleep(_POLL_SECONDS)
    return time.perf_counter()


def deaths(
    server: EtcdServer, backends: Sequence[str], runs: int, told: Callable[[str], None]
) -> list[Figure]:
    """
    Measure how soon the survivors are told that a node was killed.

    Rivals, which mostly wait, are measured at the same time.
    """
    figures = [Figure(DEATH, backend, MORTALS, ttl=TTL) for backend in backends]
    told("node killed")
    rivals = [figure for figure in figures if figure.backend != LIVE]
    with ThreadPoolExecutor(max(len(rivals), 1)) as pool:
        list(pool.map(partial(_death, server), rivals))
    if LIVE in backends:
        figures.append(Figure(CLOSERS_DEATH, LIVE, MORTALS, ttl=TTL))
    for run in range(runs):
        for figure in figures:
            if figure.backend == LIVE and figure.unfinished is None:
                told(f"{figure.name}, run {run + 1}: {figure.backend}")
                _death(server, figure)
    return figures


def _death(server: EtcdServer, figure: Figure) -> None:
    with (
        place(figure.backend, server) as where,
        crowd(
            where, figure.nodes, alone=True, join_timeout=_JOIN_SECONDS, **MORTAL
        ) as members,
    ):
        if not _met(members, figure, range(figure.nodes)):
            return
        victim = figure.nodes - 1
        if figure.backend == LIVE:
            closer = members.do(_who_closes, limit=_JOIN_SECONDS)
            [closes] = [number for number, is_it in closer.results if is_it]
            others = set(range(figure.nodes)) - {closes}
            victim = closes if figure.name == CLOSERS_DEATH else max(others)
        # At any time between two renewals.
        time.sleep(random.uniform(0, MORTAL["keep_alive_interval"]))
        limit = float(_LIFETIMES * TTL)
        survivors = set(range(figure.nodes)) - {victim}
        outcome_of = members.start(notice, limit, limit=2 * limit, ranks=survivors)
        killed_at = members.kill(victim)
        outcome = outcome_of()
        if outcome.all_done:
            figure.add(seconds=max(outcome.results) - killed_at)
        else:
            figure.add(seconds=None)
            figure.unfinished = limit
        _end(members, figure, survivors)


def _who_closes(member: Member) -> tuple[int, bool]:
    return member.number, member.live.view.closer == member.live.node.id


def elections(
    binary: str | None,
    backends: Sequence[str],
    runs: int,
    told: Callable[[str], None],
) -> list[Figure]:
    """
    Measure how long a round takes whose etcd loses its leader meanwhile.

    Half of the nodes wait already; the others come as the leader is killed.
    """
    figures = [Figure(LEADER, backend, ELECTORS) for backend in backends]
    for run in range(runs):
        for figure in figures:
            told(f"leader killed, run {run + 1}: {figure.backend}")
            with EtcdCluster(3, binary=binary) as cluster:
                _election(cluster, figure)
    return figures


def _election(cluster: EtcdCluster, figure: Figure) -> None:
    where = Place(figure.backend, cluster.get_endpoint())
    nodes = figure.nodes
    with crowd(where, nodes, alone=True, join_timeout=_JOIN_SECONDS) as members:
        early = members.start(join, limit=_JOIN_SECONDS, ranks=range(nodes // 2))
        time.sleep(1)
        leader = cluster.leader()
        late = members.start(join, limit=_JOIN_SECONDS, ranks=range(nodes // 2, nodes))
        killed_at = time.perf_counter()
        leader.kill()
        outcomes = [early(), late()]
        results = [result for one in outcomes for result in one.results]
        if is_round(results, nodes):
            ends = [one.started_at + one.seconds for one in outcomes]
            figure.add(seconds=max(ends) - killed_at)
        else:
            figure.add(seconds=None)
            figure.unfinished = _JOIN_SECONDS
        _end(members, figure)


def _met(members: Crowd, figure: Figure, numbers: Iterable[int]) -> bool:
    outcome = members.do(join, limit=_JOIN_SECONDS, ranks=numbers)
    if not is_round(outcome.results, outcome.clients):
        figure.add(seconds=None)
        figure.unfinished = _JOIN_SECONDS
        figure.failure = next(iter(outcome.failures), "they have not met")
        return False
    return True


def _end(members: Crowd, figure: Figure, numbers: Any = None) -> None:
    if figure.backend == LIVE:
        members.do(leave, limit=_JOIN_SECONDS, ranks=numbers)
