# SPDX-License-Identifier: BSD-3-Clause
"""
Many clients that do something at once, as threads in a few processes.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

PROCESSES = 8
# A TCPStore may look a name up for each client, one after the other.
START_SECONDS = 300.0


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
        results: What those that were done have returned.
        failures: What those that failed have raised, in words.
        clients: How many there were.
    """

    seconds: float
    results: list[Any]
    failures: list[str]
    clients: int

    @property
    def all_done(self) -> bool:
        return len(self.results) == self.clients


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
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    processes = min(PROCESSES, clients)
    go = context.Barrier(processes + 1)
    answers: Any = context.Queue()
    children = [
        context.Process(
            target=_process,
            args=(range(i, clients, processes), prepare, args, limit, go, answers),
            daemon=True,
        )
        for i in range(processes)
    ]
    try:
        for child in children:
            child.start()
        try:
            go.wait(START_SECONDS)
        except threading.BrokenBarrierError:
            raise NotStartedError(_why(answers)) from None
        told = [answers.get(timeout=limit + START_SECONDS) for _ in children]
    finally:
        for child in children:
            child.join(1)
            child.kill()
            child.join()
    results = [result for _, results, _ in told for result in results]
    failures = [failure for _, _, failures in told for failure in failures]
    return Outcome(
        max(seconds for seconds, _, _ in told) if len(results) == clients else limit,
        results,
        failures,
        clients,
    )


def _why(answers: Any) -> str:
    try:
        _, _, failures = answers.get(timeout=5)
    except queue.Empty:
        return f"some clients were not ready after {START_SECONDS:.0f} s"
    return str(failures[0])


def _process(
    ranks: range,
    prepare: Callable[..., Callable[[], Any]],
    args: tuple[Any, ...],
    limit: float,
    go: Any,
    answers: Any,
) -> None:
    finished: list[float] = []
    results: list[Any] = []
    failures: list[str] = []

    def run(work: Callable[[], Any]) -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001
            failures.append(f"{type(error).__name__}: {error}")
        else:
            finished.append(time.perf_counter())
            results.append(result)

    try:
        # At once: connecting may include looking up names.
        with ThreadPoolExecutor(len(ranks)) as pool:
            works = list(pool.map(lambda rank: prepare(rank, *args), ranks))
        threads = [
            threading.Thread(target=run, args=(work,), daemon=True) for work in works
        ]
        go.wait(START_SECONDS)
    except threading.BrokenBarrierError:
        os._exit(1)
    except Exception:  # noqa: BLE001
        answers.put((0.0, [], [traceback.format_exc()]))
        answers.close()
        answers.join_thread()
        go.abort()
        os._exit(1)
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(started + limit - time.perf_counter(), 0.0))
    seconds = max(finished, default=started) - started
    answers.put((seconds, list(results), list(failures)))
    answers.close()
    answers.join_thread()
    os._exit(0)  # what still runs has nobody to tell any more
