# SPDX-License-Identifier: BSD-3-Clause
"""
What can be told of runs, and how it is written as JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, Final

__all__ = ["PROBE_RUN", "SCHEMA", "Member", "Phase", "Report", "Run"]

#: The run that the doctor's probes belong to where none is named; it is never told of.
#: No job should have its name.
PROBE_RUN: Final = "etcd-rendezvous-doctor"

#: The number of the JSON's form. Members may be added to it; whatever else changes
#: makes it another.
SCHEMA: Final = 1


class Phase(Enum):
    """
    Where a run stands.
    """

    #: Nodes join its next round.
    FORMING = "forming"
    #: Its round is complete, and runs.
    COMPLETE = "complete"
    #: Its round has lost a node, and its other nodes leave it (`etcd-live`).
    BROKEN = "broken"
    #: It is closed: its job is over.
    CLOSED = "closed"
    #: Nobody of it lives, as far as can be told.
    ABANDONED = "abandoned"
    #: There are keys of its store, but there is no rendezvous.
    EMPTY = "empty"
    #: What stands there is not a rendezvous.
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Member:
    """
    A node of a run.

    Attributes:
        id: Tells it from all others of the run.
        address: Where its workers can be reached.
        pid: The process of its agent.
        rank: Its rank; None before its round is complete.
        heartbeat_age: The seconds since it was heard of last; None if nobody knows.
            With torch's handler by the node's clock and this machine's; with
            `etcd-live` by etcd's, in whole seconds.
        alive: Whether it counts as alive.
    """

    id: str
    address: str
    pid: int
    rank: int | None = None
    heartbeat_age: float | None = None
    alive: bool = True

    def as_json(self) -> dict[str, Any]:
        """
        Return what stands for it in JSON.
        """
        return {
            "id": self.id,
            "address": self.address,
            "pid": self.pid,
            "rank": self.rank,
            "heartbeat_age": _rounded(self.heartbeat_age),
            "alive": self.alive,
        }


@dataclass(frozen=True)
class Run:
    """
    A run. Times are in seconds from now.

    Attributes:
        run_id: Its id.
        api: etcd's API that it is kept with, ``v2`` or ``v3``.
        key: The key of its state; where there is none, what its keys begin with.
        phase: Where it stands.
        handler: Whose handler its agents have, ``torch`` or ``live``; None if
            nobody can tell.
        round: The number of the round that runs, or else of the one that forms.
        participants: The nodes of this round, in the order of their ranks.
        waiting: The nodes that wait for the next round.
        spares: The nodes that step in when another is lost.
        missing: The addresses of nodes that were in the last round and are not in
            the one that forms (`etcd-live`).
        min_nodes: How many nodes a round needs (`etcd-live`, while one forms); None if
            nothing tells.
        max_nodes: How many they may have.
        last_call: When a round that has enough nodes is completed with those it has.
        state_bytes: The size of the pickled state.
        state_age: How long ago the state was written, as of its newest heartbeat, or
            else of its lease.
        ttl: When what is there of the rendezvous goes away if nobody writes it.
        store_keys: How many keys its store has.
        store_ttl: When the store's keys go away if nobody of the run lives.
        problem: Why it can't be read, in half a sentence.
        revision: The revision that last wrote the rendezvous.
    """

    run_id: str
    api: str
    key: str
    phase: Phase
    handler: str | None = None
    round: int | None = None
    participants: tuple[Member, ...] = ()
    waiting: tuple[Member, ...] = ()
    spares: tuple[Member, ...] = ()
    missing: tuple[str, ...] = ()
    min_nodes: int | None = None
    max_nodes: int | None = None
    last_call: float | None = None
    state_bytes: int | None = None
    state_age: float | None = None
    ttl: float | None = None
    store_keys: int = 0
    store_ttl: float | None = None
    problem: str | None = None
    revision: int = 0

    @property
    def members(self) -> dict[str, Member]:
        """
        All its nodes, by id.
        """
        return {
            one.id: one for one in (*self.spares, *self.waiting, *self.participants)
        }

    @property
    def alive(self) -> list[Member]:
        """
        Those of its nodes that count as alive.
        """
        return [one for one in self.members.values() if one.alive]

    def as_json(self) -> dict[str, Any]:
        """
        Return what stands for it in JSON.
        """
        return {
            "run_id": self.run_id,
            "api": self.api,
            "handler": self.handler,
            "key": self.key,
            "phase": self.phase.value,
            "problem": self.problem,
            "round": self.round,
            "complete": self.phase is Phase.COMPLETE,
            "closed": self.phase is Phase.CLOSED,
            "participants": [one.as_json() for one in self.participants],
            "waiting": [one.as_json() for one in self.waiting],
            "spares": [one.as_json() for one in self.spares],
            "missing": list(self.missing),
            "min_nodes": self.min_nodes,
            "max_nodes": self.max_nodes,
            "last_call": _rounded(self.last_call),
            "state_bytes": self.state_bytes,
            "state_age": _rounded(self.state_age),
            "ttl": _rounded(self.ttl),
            "store_keys": self.store_keys,
            "store_ttl": _rounded(self.store_ttl),
            "revision": self.revision,
        }


@dataclass(frozen=True)
class Report:
    """
    The runs that an etcd holds.

    Attributes:
        endpoint: The member that answered.
        key_prefix: The path that they are under.
        time: When they were read, by this machine's clock.
        runs: The runs, sorted.
        notes: What could not be read, a sentence each.
    """

    endpoint: str
    key_prefix: str
    time: datetime
    runs: tuple[Run, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """
        Return what stands for it in JSON.
        """
        return {
            "schema": SCHEMA,
            "time": self.time.isoformat(timespec="milliseconds"),
            "endpoint": self.endpoint,
            "key_prefix": self.key_prefix,
            "runs": [run.as_json() for run in self.runs],
            "notes": list(self.notes),
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
