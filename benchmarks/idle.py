# SPDX-License-Identifier: BSD-3-Clause
"""
What nodes cost that do nothing but run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import urllib3

from etcd_rendezvous import EtcdClient, EtcdServer

from .figures import IDLE, IDLE_AGENT, IDLE_CLOSER, Figure
from .handlers import Member, Place, crowd, join, leave, place
from .names import C10D, LIVE, TORCHS_V2
from .usage import connections

KEPT_ALIVE = {"keep_alive_interval": 5, "keep_alive_max_attempt": 3}
_JOIN_SECONDS = 60
# What belongs to joining is over by then, the first renewal for the store included.
_SETTLE_SECONDS = 6.0
_ASK_SECONDS = 1.0


def idle(
    binary: str | None,
    backends: Sequence[str],
    sizes: Sequence[int],
    seconds: float,
    told: Callable[[str], None],
) -> list[Figure]:
    """
    Measure what idle nodes cost, each backend at an etcd of its own at the same time.

    As agents do, every node asks once a second whether somebody waits.

    Args:
        binary: The etcd.
        backends: The backends.
        sizes: The numbers of nodes.
        seconds: How long they are watched.
        told: Is called with what is being done.
    """
    told(f"idle for {seconds:.0f} s")
    with ThreadPoolExecutor(len(backends) + 1) as pool:
        found = pool.map(partial(_of_backend, binary, sizes, seconds), backends)
        parts = [pool.submit(_parts, binary, seconds)] if LIVE in backends else []
        figures = [figure for figures in found for figure in figures]
        return figures + [figure for part in parts for figure in part.result()]


def _of_backend(
    binary: str | None, sizes: Sequence[int], seconds: float, backend: str
) -> list[Figure]:
    figures = []
    with EtcdServer(binary=binary) as server:
        for nodes in sizes:
            figure = Figure(IDLE, backend, nodes, watched=seconds)
            figures.append(figure)
            with place(backend, server) as where:
                if not _idle(where, figure, seconds):
                    break
    return figures


def _idle(where: Place, figure: Figure, seconds: float) -> bool:
    nodes = figure.nodes
    with crowd(where, nodes, join_timeout=_JOIN_SECONDS, **KEPT_ALIVE) as members:
        if not members.do(join, limit=_JOIN_SECONDS).all_done:
            figure.unfinished = _JOIN_SECONDS
            return False
        time.sleep(_SETTLE_SECONDS)
        revision, before = _revision(where), where.used()
        outcome = members.do(_stay, seconds, limit=seconds + _JOIN_SECONDS)
        used = where.used().since(before)
        grown = _revision(where) - revision
        if not outcome.all_done:
            figure.failure = next(iter(outcome.failures), "they have not stayed")
            return False

        def each(number: float | None) -> float | None:
            return None if number is None else number * 60 / seconds / nodes

        figure.add(
            revisions=None if where.server is None else grown * 60 / seconds,
            requests=each(used.requests),
            sent=each(outcome.sent),
            received=each(outcome.received),
        )
        if where.backend == LIVE:
            members.do(leave, limit=_JOIN_SECONDS)
    return True


def _stay(member: Member, seconds: float) -> None:
    """
    Be in a round for a while, as an agent is.

    Raises:
        RuntimeError: Somebody waits.
    """
    ends = time.perf_counter() + seconds
    while (left := ends - time.perf_counter()) > 0:
        if member.handler.num_nodes_waiting() > 0:
            raise RuntimeError("somebody waits")
        time.sleep(min(_ASK_SECONDS, left))


def _revision(where: Place) -> int:
    """
    Return how often anything was written at a place, ever.
    """
    if where.backend == C10D:
        return 0
    if where.backend == TORCHS_V2:
        page = urllib3.request("GET", f"http://{where.endpoint}/v2/keys")
        return int(page.headers["X-Etcd-Index"])
    with EtcdClient(where.endpoint) as client:
        return client.range("/", keys_only=True)[1]


# -- threads and sockets --------------------------------------------------------------


def _parts(binary: str | None, seconds: float) -> list[Figure]:
    """
    Measure what one agent has open, and what it sends, and the same of the closer.
    """
    figures = []
    with (
        EtcdServer(binary=binary) as server,
        place(LIVE, server) as where,
        crowd(
            where, 2, alone=True, join_timeout=_JOIN_SECONDS, **KEPT_ALIVE
        ) as members,
    ):
        members.do(join, limit=_JOIN_SECONDS)
        time.sleep(_SETTLE_SECONDS)
        members.do(_count, limit=_JOIN_SECONDS)
        members.do(_stay, seconds, limit=seconds + _JOIN_SECONDS)
        outcome = members.do(_counted, where.port, limit=_JOIN_SECONDS)
        for closes, threads, sockets, requests in outcome.results:
            name = IDLE_CLOSER if closes else IDLE_AGENT
            figure = Figure(name, LIVE, 1, watched=seconds)
            figure.add(
                threads=threads, sockets=sockets, requests=requests * 60 / seconds
            )
            figures.append(figure)
        members.do(leave, limit=_JOIN_SECONDS)
    return figures


class _Counted:
    """
    What counts the calls of a function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self._function(*args, **kwargs)


def _count(member: Member) -> None:
    """
    Count the requests of a node from now on.
    """
    transport = member.live.client._transport
    transport._send = _Counted(transport._send)
    transport.stream = _Counted(transport.stream)


def _counted(member: Member, port: int) -> tuple[bool, int, int, int]:
    """
    Say whether a node closes, and tell its threads, sockets and requests.
    """
    transport = member.live.client._transport
    ours = [
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("etcd-rendezvous")
    ]
    return (
        member.live.view.closer == member.live.node.id,
        len(ours),
        sum(1 for _ in connections(port)),
        transport._send.calls + transport.stream.calls,
    )
