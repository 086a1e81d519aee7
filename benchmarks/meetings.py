# SPDX-License-Identifier: BSD-3-Clause
"""
How long N nodes take to meet, and to meet again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from etcd_rendezvous import EtcdServer

from .clients import Crowd
from .figures import JOIN, REJOIN, Figure
from .handlers import Place, crowd, is_round, join, leave, place
from .names import LIVE

# Equal for all. While N nodes meet nobody has to renew anything.
KEPT_ALIVE = {"keep_alive_interval": 5, "keep_alive_max_attempt": 3}
# Who takes longer than this is measured once at that size.
SLOW_SECONDS = 10.0


@dataclass
class Meetings:
    """
    Backends that take turns, so that all see the same machine.

    A backend that does not finish is not tried with more nodes.

    Args:
        server: The etcd.
        backends: The backends.
        runs: How often each meets.
        limit: The most seconds that it takes.
        told: Is called with what is being done.
    """

    server: EtcdServer
    backends: Sequence[str]
    runs: int
    limit: float
    told: Callable[[str], None]
    given_up: dict[str, set[str]] = field(
        default_factory=lambda: {JOIN: set(), REJOIN: set()}
    )

    def of(self, nodes: int) -> list[Figure]:
        """
        Let all backends meet with a number of nodes.

        Raises:
            NotStartedError: A handler could not be made.
        """
        figures = {
            (name, backend): Figure(name, backend, nodes)
            for name in (JOIN, REJOIN)
            for backend in self.backends
            if backend not in self.given_up[JOIN] | self.given_up[name]
        }
        for run in range(self.runs):
            for backend in self.backends:
                joining = figures.get((JOIN, backend))
                rejoining = figures.get((REJOIN, backend))
                if joining is None or (run and joining.seconds > SLOW_SECONDS):
                    continue
                if rejoining is not None and run and rejoining.seconds > SLOW_SECONDS:
                    rejoining = None
                self.told(f"{nodes} nodes, run {run + 1}: {backend}")
                self._meet(joining, rejoining)
        return list(figures.values())

    def _meet(self, joining: Figure, rejoining: Figure | None) -> None:
        backend, nodes = joining.backend, joining.nodes
        config = dict(KEPT_ALIVE, join_timeout=int(self.limit))
        with (
            place(backend, self.server) as where,
            crowd(where, nodes, **config) as members,
        ):
            if self._measure(where, members, joining) and rejoining is not None:
                self._measure(where, members, rejoining)
            if backend == LIVE:
                members.do(leave, limit=self.limit)

    def _measure(self, where: Place, members: Crowd, figure: Figure) -> bool:
        """
        Let them meet once; return whether they have.
        """
        before = where.used()
        outcome = members.do(join, limit=self.limit)
        used = where.used().since(before)
        if not outcome.all_done or not is_round(outcome.results, figure.nodes):
            figure.unfinished = self.limit
            figure.add(seconds=None)
            if outcome.all_done:
                figure.failure = "they have not met in one round"
            elif outcome.failures and outcome.seconds < self.limit:
                figure.failure = outcome.failures[0]
            self.given_up[figure.name].add(figure.backend)
            return False

        def each(number: int | None) -> float | None:
            return None if number is None else number / figure.nodes

        figure.add(
            seconds=outcome.seconds,
            requests=each(used.requests),
            sent=each(outcome.sent),
            received=each(outcome.received),
            client_cpu=outcome.cpu_seconds,
            server_cpu=used.cpu_seconds,
        )
        return True
