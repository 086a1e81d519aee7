# SPDX-License-Identifier: BSD-3-Clause
"""
Handlers of every backend, and the servers that they meet at.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from etcd_rendezvous import EtcdServer

from .clients import PROCESSES, Crowd
from .names import C10D, LIVE, TORCHS_V2, V3, V3_BARE
from .usage import Used, cpu_seconds, requests_received

PRELOAD = "benchmarks.preload"


@dataclass(frozen=True)
class Place:
    """
    Where handlers of a backend meet.

    Attributes:
        backend: The backend.
        endpoint: What they are told.
        port: The port of the server, to count what goes to it; 0 for several servers.
        server: The server, unless it runs in this process.
        run_id: What they meet under.
    """

    backend: str
    endpoint: str
    port: int = 0
    server: EtcdServer | None = None
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def used(self) -> Used:
        """
        Say what the server has done by now.
        """
        if self.server is None:
            return Used(time.process_time(), None)
        pid = self.server.pid
        if pid is None:
            raise RuntimeError("etcd has ended")
        return Used(cpu_seconds(pid), requests_received(self.endpoint))


@contextmanager
def place(backend: str, server: EtcdServer) -> Iterator[Place]:
    """
    Yield a place to meet: at an etcd or, for c10d, at a server in this process.
    """
    if backend != C10D:
        yield Place(backend, server.get_endpoint(), server.get_port(), server)
        return
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield Place(backend, f"127.0.0.1:{store.port}", store.port)
    del store


def crowd(
    where: Place,
    nodes: int,
    *,
    least: int | None = None,
    alone: bool = False,
    **config: Any,
) -> Crowd:
    """
    Return members that are ready to meet.

    Args:
        where: Where they meet.
        nodes: How many there are, and the most of a round.
        least: The fewest nodes of a round; None for all.
        alone: Whether each is in a process of its own.
        config: More settings, as of ``--rdzv-conf``.
    """
    return Crowd(
        nodes,
        Member,
        where.backend,
        where.endpoint,
        where.run_id,
        (nodes if least is None else least, nodes),
        config,
        preload=PRELOAD,
        port=where.port,
        processes=nodes if alone else PROCESSES,
    )


class Member:
    """
    A handler that is connected, in the process where it is used.
    """

    def __init__(
        self,
        number: int,
        backend: str,
        endpoint: str,
        run_id: str,
        sizes: tuple[int, int],
        config: dict[str, Any],
    ) -> None:
        from torch.distributed.elastic.rendezvous import RendezvousParameters

        name = {V3_BARE: V3, TORCHS_V2: "etcd-v2"}.get(backend, backend)
        # Nobody's own process serves the store.
        own = {"is_host": "0"} if backend == C10D else {}
        params = RendezvousParameters(
            name, endpoint, run_id, *sizes, f"node{number:04}", **own, **config
        )
        self.number = number
        self.handler: Any = _handler(backend, params)
        # The store that workers bootstrap from is no part of what is measured.
        self.handler._create_tcp_store_server = lambda *_: _NoServer()

    @property
    def live(self) -> Any:
        """
        The node behind a handler of `etcd-live`; None behind others.
        """
        return getattr(self.handler, "_node", None)


def _handler(backend: str, params: Any) -> Any:
    from torch.distributed.elastic.rendezvous import (
        c10d_rendezvous_backend,
        dynamic_rendezvous,
        etcd_rendezvous_backend,
    )

    from etcd_rendezvous import EtcdRendezvousHandler, create_backend
    from etcd_rendezvous._factory import create_handler

    if backend == LIVE:
        return create_handler(params)
    create: Any = {
        C10D: c10d_rendezvous_backend.create_backend,
        TORCHS_V2: etcd_rendezvous_backend.create_backend,
    }.get(backend, create_backend)
    made, store = create(params)
    if backend == V3:
        return EtcdRendezvousHandler.create(store, made, params)
    return dynamic_rendezvous.create_handler(store, made, params)


class _NoServer:
    port = 1


# -- what members do ------------------------------------------------------------------


def join(member: Member) -> tuple[int, int]:
    """
    Join the next round; return rank and world size.
    """
    info = member.handler.next_rendezvous()
    return info.rank, info.world_size


def leave(member: Member) -> None:
    """
    End a node of ours, so that what it leaves behind disturbs nobody later.
    """
    if member.live is not None:
        member.live.withdraw(10.0)


def is_round(results: list[Any], nodes: int) -> bool:
    """
    Say whether what `join` has returned is one round, with each rank once.
    """
    return sorted(results) == [(rank, nodes) for rank in range(nodes)]
