# SPDX-License-Identifier: BSD-3-Clause
"""
A run whose agents have torch's handler: from its state.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from .._state import Node, State, StateRefusedError, read_state
from .report import Member, Phase, Run

__all__ = ["run_of_torch"]


def run_of_torch(
    run: Run, value: bytes, now: datetime, *, silence: float, lease_age: float | None
) -> Run:
    """
    Return a run with what its state says.

    Args:
        run: What is known of it besides.
        value: The state as it stands in etcd, in base64.
        now: The time, with a time zone.
        silence: The seconds without a heartbeat after which a node counts as dead.
        lease_age: The seconds since its lease was renewed, if it has one.
    """
    try:
        raw = b64decode(value, validate=True)
        state = read_state(raw)
    except binascii.Error:
        return replace(run, phase=Phase.UNREADABLE, problem="it is not in base64")
    except StateRefusedError as error:
        return replace(run, phase=Phase.UNREADABLE, problem=str(error))
    ages = {
        node.id: (now - time).total_seconds()
        for node, time in state.last_heartbeats.items()
    }

    def member(node: Node, rank: int | None = None) -> Member:
        age = ages.get(node.id)
        return Member(
            id=node.id,
            address=node.addr,
            pid=node.pid,
            rank=rank,
            heartbeat_age=age,
            alive=age is not None and age <= silence,
        )

    ranked = sorted(state.participants.items(), key=lambda pair: pair[1])
    participants = [
        member(node, rank if state.complete else None) for node, rank in ranked
    ]
    found = replace(
        run,
        handler="torch",
        phase=Phase.FORMING,
        round=state.round,
        participants=tuple(participants),
        waiting=_sorted(map(member, state.wait_list)),
        spares=_sorted(map(member, state.redundancy_list)),
        last_call=_last_call(state, now),
        state_bytes=len(raw),
        state_age=min(ages.values(), default=lease_age),
    )
    return replace(found, phase=_phase(found, state))


def _phase(run: Run, state: State) -> Phase:
    if state.closed:
        return Phase.CLOSED
    if not run.alive:
        return Phase.ABANDONED
    return Phase.COMPLETE if state.complete else Phase.FORMING


def _last_call(state: State, now: datetime) -> float | None:
    if state.deadline is None or state.complete or state.closed:
        return None
    return max((state.deadline - now).total_seconds(), 0.0)


def _sorted(members: Iterable[Member]) -> tuple[Member, ...]:
    return tuple(sorted(members, key=lambda one: one.id))
