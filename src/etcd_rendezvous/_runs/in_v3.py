# SPDX-License-Identifier: BSD-3-Clause
"""
Read runs through etcd's v3 API.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Final
from urllib.parse import unquote

from .._background import Later
from .._errors import EtcdProtocolError
from .._v3 import wire
from .._v3.client import EtcdClient
from .._v3.state_key import key_of_state
from .of_live import run_of_live
from .of_torch import run_of_torch
from .removal import PARTS
from .report import Phase, Run

__all__ = ["read_run", "run_ids"]

_KEYS_PER_PAGE: Final = 500
_LEASES_AT_ONCE: Final = 8


@dataclass(frozen=True)
class _Times:
    """
    The seconds until leases end, and since they were renewed, by their ids.
    """

    left: dict[int, float]
    ages: dict[int, float]


def run_ids(client: EtcdClient, key_prefix: str) -> list[str]:
    """
    Return the ids of all runs under a prefix.

    It costs some requests for each hundred runs, however many keys they have.

    Args:
        client: The client.
        key_prefix: The prefix, which begins with ``/`` and does not end in one.

    Raises:
        EtcdError: etcd can't be reached, or refuses.
    """
    directory = f"{key_prefix}/".encode()
    end = wire.prefix_end(directory)
    found: dict[bytes, None] = {}
    at = directory
    while at < end:
        page, _ = client.range(at, end, keys_only=True, limit=_KEYS_PER_PAGE)
        if not page.entries:
            break
        for entry in page.entries:
            run, slash, _ = entry.key[len(directory) :].partition(b"/")
            if run and (not slash or _is_of_a_run(entry.key, directory + run)):
                found[run] = None
            # What comes before the "/" of a run's other keys may be other runs.
            below = directory + run + b"/"
            after = wire.prefix_end(below) if slash else entry.key + b"\0"
        if after <= at:
            raise EtcdProtocolError(
                f"Something answered at {client.last_endpoint} that is not etcd's v3 "
                "API: its keys are not in order."
            )
        at = after
    return sorted(unquote(run.decode(errors="replace")) for run in found)


def _is_of_a_run(key: bytes, run: bytes) -> bool:
    """
    Say whether a key below a run's tells that there is one: a probe's does not.
    """
    return key.startswith(tuple(run + part for part in PARTS if part != b"/doctor/"))


def read_run(
    client: EtcdClient, key_prefix: str, run_id: str, now: datetime, silence: float
) -> Run | None:
    """
    Read one run, all of it at one revision.

    Args:
        client: The client.
        key_prefix: The prefix.
        run_id: The run's id.
        now: The time, with a time zone.
        silence: The seconds without a heartbeat after which a node of torch's handler
            counts as dead.

    Returns:
        The run; None if there is nothing of it.

    Raises:
        EtcdError: etcd can't be reached, or refuses.
    """
    key = key_of_state(key_prefix, run_id)
    raw = key.encode()
    live = raw + b"/live/"
    store = raw + b"/store/"
    reply = client.txn(
        [],
        [
            wire.op_range(wire.range_message(raw)),
            wire.op_range(wire.range_message(live, wire.prefix_end(live))),
            wire.op_range(wire.range_message(store, wire.prefix_end(store), limit=1)),
        ],
        what=f"read the run '{run_id}'",
        writes=False,
    )
    if len(reply.ranges) != 3:
        raise EtcdProtocolError(
            f"Something answered at {client.last_endpoint} that is not etcd's v3 API."
        )
    state, lives, stored = reply.ranges
    if not (state.entries or lives.entries or stored.entries):
        return None
    entries = [*state.entries, *lives.entries, *stored.entries]
    times = _times(client, {entry.lease for entry in entries if entry.lease})

    def left(found: Iterable[wire.Entry]) -> float | None:
        return min(
            (times.left[one.lease] for one in found if one.lease in times.left),
            default=None,
        )

    run = Run(
        run_id,
        "v3",
        key,
        Phase.EMPTY,
        store_keys=stored.count,
        store_ttl=left(stored.entries),
    )
    if state.entries:
        (entry,) = state.entries
        run = replace(run, ttl=left([entry]), revision=entry.mod_revision)
        return run_of_torch(
            run,
            entry.value,
            now,
            silence=silence,
            lease_age=times.ages.get(entry.lease),
        )
    if lives.entries:
        rounds = [one for one in lives.entries if one.key == live + b"c/round"]
        run = replace(run, ttl=left(rounds))
        return run_of_live(run, lives.entries, reply.revision, times.ages)
    return run


def _times(client: EtcdClient, leases: set[int]) -> _Times:
    if not leases:
        return _Times({}, {})
    ordered = sorted(leases)

    def asked(first: int) -> dict[int, tuple[int, int]]:
        mine = ordered[first::_LEASES_AT_ONCE]
        return {lease: client.time_to_live(lease) for lease in mine}

    # Whoever is interrupted waits for none of them.
    several = [
        Later(partial(asked, n)) for n in range(min(len(ordered), _LEASES_AT_ONCE))
    ]
    found: dict[int, tuple[int, int]] = {}
    for one in several:
        found |= one.result(threading.TIMEOUT_MAX)
    there = {lease: times for lease, times in found.items() if times[1] > 0}
    return _Times(
        left={lease: float(left) for lease, (left, _) in there.items()},
        ages={
            lease: float(max(granted - left, 0))
            for lease, (left, granted) in there.items()
        },
    )
