# SPDX-License-Identifier: BSD-3-Clause
"""
Many clients that do something at once, as threads in a few processes.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from .usage import sent_and_received

PROCESSES = 8
# A TCPStore may look a name up for each client, one after the other.
START_SECONDS = 300.0
# What it may take until all processes know what to do.
_LEAD_SECONDS = 0.05


class NotStartedError(Exception):
    """
    Raised when a client could not be made, so that nothing was measured.
    """


@dataclass(frozen=True)
class Outcome:
    """
    What the clients did.

    Attributes:
        seconds: Until the last one was done; the limit if some were not by then.
        started_at: When they began, on the clock ``time.perf_counter``.
        results: What those that were done have returned.
        failures: What those that failed have raised, in words.
        clients: How many there were.
        cpu_seconds: What their processes have taken of the processors.
        sent: The bytes that they have sent; None where that is not known.
        received: The bytes that they have received.
    """

    seconds: float
    started_at: float
    results: list[Any]
    failures: list[str]
    clients: int
    cpu_seconds: float
    sent: int | None
    received: int | None

    @property
    def all_done(self) -> bool:
        return len(self.results) == self.clients


@dataclass
class _Told:
    """
    What one process tells of its clients.
    """

    started_at: float = 0.0
    finished: list[float] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    sent: int | None = 0
    received: int | None = 0


@dataclass(frozen=True)
class _Order:
    """
    What a process is to do with some of its clients.
    """

    work: Callable[..., Any]
    args: tuple[Any, ...]
    ranks: frozenset[int]
    starts_at: float
    limit: float
    port: int


class Crowd:
    """
    Clients that do one thing after the other, each time all at once.

    Args:
        clients: How many.
        make: Is called with a client's rank and ``args``, in the process of that
            client; returns what ``do`` hands to the work. Its time does not count.
        args: What else it is called with.
        preload: A module to import before the processes are forked.
        port: The port of the server whose connections are counted; 0 for none.
        processes: How many processes they are spread over.

    Raises:
        NotStartedError: A client could not be made.
    """

    def __init__(
        self,
        clients: int,
        make: Callable[..., Any],
        *args: Any,
        preload: str,
        port: int = 0,
        processes: int = PROCESSES,
    ) -> None:
        self.clients = clients
        self._port = port
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([preload])
        self._processes = min(processes, clients)
        self._links: list[Connection] = []
        self._children: list[Any] = []
        try:
            for first in range(self._processes):
                ranks = range(first, clients, self._processes)
                link, theirs = context.Pipe()
                child = context.Process(
                    target=_process, args=(theirs, ranks, make, args), daemon=True
                )
                child.start()
                theirs.close()
                self._links.append(link)
                self._children.append(child)
            self._wait_until_made()
        except BaseException:
            self.close()
            raise

    def _wait_until_made(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        for link in self._links:
            if not link.poll(max(deadline - time.monotonic(), 0.0)):
                raise NotStartedError(
                    f"some clients were not ready after {START_SECONDS:.0f} s"
                )
            try:
                failure = link.recv()
            except EOFError:
                failure = "a process of clients died"
            if failure is not None:
                raise NotStartedError(failure)

    def do(
        self,
        work: Callable[..., Any],
        *args: Any,
        limit: float,
        ranks: Iterable[int] | None = None,
    ) -> Outcome:
        """
        Let clients do something at the same time, and wait until they have done it.

        Args:
            work: Is called with what was made for a client, and ``args``.
            args: What else it is called with.
            limit: The most seconds.
            ranks: Which clients; None for all.
        """
        return self.start(work, *args, limit=limit, ranks=ranks)()

    def start(
        self,
        work: Callable[..., Any],
        *args: Any,
        limit: float,
        ranks: Iterable[int] | None = None,
    ) -> Callable[[], Outcome]:
        """
        Let clients do something at the same time, and return what waits for its end.

        A process does one thing after the other.
        """
        chosen = frozenset(range(self.clients) if ranks is None else ranks)
        starts_at = time.perf_counter() + _LEAD_SECONDS
        order = _Order(work, args, chosen, starts_at, limit, self._port)
        asked = [self._links[n] for n in sorted({r % self._processes for r in chosen})]
        for link in asked:
            link.send(order)
        return lambda: self._outcome(asked, len(chosen), limit)

    def _outcome(self, asked: list[Connection], clients: int, limit: float) -> Outcome:
        told = []
        for link in asked:
            try:
                if link.poll(limit + START_SECONDS):
                    told.append(link.recv())
            except (EOFError, OSError):
                pass  # It was killed, and tells nothing.
        results = [result for one in told for result in one.results]
        starts = [one.started_at for one in told if one.results or one.failures]
        started_at = min(starts, default=0.0)
        finished = max((max(one.finished, default=0.0) for one in told), default=0.0)
        known = all(one.sent is not None for one in told)
        return Outcome(
            seconds=finished - started_at if len(results) == clients else limit,
            started_at=started_at,
            results=results,
            failures=[failure for one in told for failure in one.failures],
            clients=clients,
            cpu_seconds=sum(one.cpu_seconds for one in told),
            sent=sum(one.sent for one in told) if known else None,
            received=sum(one.received for one in told) if known else None,
        )

    def kill(self, rank: int) -> float:
        """
        Kill the process of a client; return when, on ``time.perf_counter``.
        """
        child = self._children[rank % self._processes]
        killed_at = time.perf_counter()
        child.kill()
        return killed_at

    def close(self) -> None:
        """
        End all clients.
        """
        for child in self._children:
            child.kill()
        for child in self._children:
            child.join()
        for link in self._links:
            link.close()

    def __enter__(self) -> Crowd:  # noqa: PYI034
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def run_at_once(
    clients: int,
    prepare: Callable[..., Callable[[], Any]],
    *args: Any,
    limit: float,
    preload: str,
) -> Outcome:
    """
    Let all clients do one thing at the same time.

    Args:
        clients: How many.
        prepare: Is called with a client's rank and ``args``, in the process of that
            client; returns what is measured. Its time does not count.
        args: What else it is called with.
        limit: The most seconds; who is not done by then is killed.
        preload: A module to import before the processes are forked.

    Raises:
        NotStartedError: A client could not be prepared.
    """
    with Crowd(clients, prepare, *args, preload=preload) as crowd:
        return crowd.do(_call, limit=limit)


def _call(work: Callable[[], Any]) -> Any:
    return work()


# -- in the processes of the clients --------------------------------------------------


def _process(
    link: Connection,
    ranks: range,
    make: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    try:
        # At once: connecting may include looking up names.
        with ThreadPoolExecutor(len(ranks)) as pool:
            made = list(pool.map(lambda rank: make(rank, *args), ranks))
    except Exception:  # noqa: BLE001
        link.send(traceback.format_exc())
        os._exit(1)
    link.send(None)
    clients = dict(zip(ranks, made, strict=True))
    while True:
        try:
            order = link.recv()
        except EOFError:
            os._exit(0)
        chosen = [client for rank, client in clients.items() if rank in order.ranks]
        link.send(_carry_out(order, chosen))


def _carry_out(order: _Order, clients: list[Any]) -> _Told:
    told = _Told()

    def run(client: Any) -> None:
        try:
            result = order.work(client, *order.args)
        except Exception as error:  # noqa: BLE001
            told.failures.append(f"{type(error).__name__}: {error}")
        else:
            told.finished.append(time.perf_counter())
            told.results.append(result)

    threads = [
        threading.Thread(target=run, args=(client,), daemon=True) for client in clients
    ]
    before = sent_and_received(order.port)
    time.sleep(max(order.starts_at - time.perf_counter(), 0.0))
    cpu = time.process_time()
    told.started_at = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(told.started_at + order.limit - time.perf_counter(), 0.0))
    told.cpu_seconds = time.process_time() - cpu
    after = sent_and_received(order.port)
    if before is None or after is None:
        told.sent = told.received = None
    else:
        told.sent, told.received = (b - a for a, b in zip(before, after, strict=True))
    # What still runs goes on, but has nobody to tell any more.
    return _Told(
        told.started_at,
        list(told.finished),
        list(told.results),
        list(told.failures),
        told.cpu_seconds,
        told.sent,
        told.received,
    )
