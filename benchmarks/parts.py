# SPDX-License-Identifier: BSD-3-Clause
"""
The parts of a run, each of which measures at etcds of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from etcd_rendezvous import EtcdServer

from .clients import NotStartedError
from .counters import counters
from .events import deaths, elections, late_nodes
from .figures import Figure
from .idle import idle
from .meetings import Meetings
from .names import OURS, TORCHS_V2
from .node_death import DEFAULTS, EQUAL, node_deaths, ways
from .plan import NODE_DEATH, Plan
from .store import store


@dataclass
class Parts:
    """
    What measures each part.

    Args:
        plan: How much is measured.
        told: Is called with what is being done.
    """

    plan: Plan
    told: Callable[[str], None]

    def measure(self, part: str) -> list[Figure]:
        """
        Measure a part, by its name in ``plan.PARTS``.

        Raises:
            NotStartedError: Something could not be started, so that there is nothing
                to compare.
        """
        return {
            NODE_DEATH: self._node_death,
            "meetings": self._meetings,
            "late": self._late,
            "deaths": self._deaths,
            "leader": self._leader,
            "idle": self._idle,
            "store": self._store,
            "counters": self._counters,
        }[part]()

    def _node_death(self) -> list[Figure]:
        plan = self.plan
        return node_deaths(
            plan.binary,
            plan.backends,
            ways(plan.death_settings, plan.death_shapes),
            # What the defaults give is what most people get.
            {DEFAULTS: plan.death_runs, EQUAL: 1},
            plan.death_limit,
            self.told,
        )

    def _meetings(self) -> list[Figure]:
        plan, figures = self.plan, []
        with self._server() as server:
            meetings = Meetings(server, plan.backends, plan.runs, plan.limit, self.told)
            for nodes in plan.nodes:
                figures += meetings.of(nodes)
        return figures

    def _late(self) -> list[Figure]:
        with self._server() as server:
            return late_nodes(server, self.plan.backends, self.plan.runs, self.told)

    def _deaths(self) -> list[Figure]:
        with self._server() as server:
            return deaths(server, self.plan.backends, self.plan.runs, self.told)

    def _leader(self) -> list[Figure]:
        # Of torch's own, one is told of one member only, and one has a host instead.
        ours = [backend for backend in self.plan.backends if backend in OURS]
        return elections(self.plan.binary, ours, self.plan.runs, self.told)

    def _idle(self) -> list[Figure]:
        plan = self.plan
        return idle(
            plan.binary, plan.backends, plan.idle_nodes, plan.idle_seconds, self.told
        )

    def _store(self) -> list[Figure]:
        plan = self.plan
        return store(
            plan.binary,
            plan.calls,
            plan.runs,
            plan.barriers,
            plan.agents,
            plan.limit,
            self.told,
        )

    def _counters(self) -> list[Figure]:
        return counters(self.plan.binary, self.plan.adders, self.plan.runs, self.told)

    def _server(self) -> EtcdServer:
        server = EtcdServer(binary=self.plan.binary)
        if TORCHS_V2 in self.plan.backends and not server.serves_v2:
            raise NotStartedError(
                f"This etcd does not serve v2, which {TORCHS_V2} needs; name another "
                "one with --binary, or other backends with --backends."
            )
        return server
