# SPDX-License-Identifier: BSD-3-Clause
"""
Read runs through etcd's v2 API: torch's own, and ours that share them.
"""

from __future__ import annotations

import time
from datetime import datetime

import etcd

from .._v2.requests import STORE_PATH, Requests, name_in, run_of
from .of_torch import run_of_torch
from .report import PROBE_RUN, Phase, Run

__all__ = ["read_runs"]


def read_runs(
    client: etcd.Client, key_prefix: str, now: datetime, silence: float
) -> list[Run]:
    """
    Read all runs under a prefix.

    Args:
        client: A python-etcd client. It is read, never altered.
        key_prefix: The prefix.
        now: The time, with a time zone.
        silence: The seconds without a heartbeat after which a node counts as dead.

    Raises:
        EtcdError: etcd can't be reached, or refuses.
    """
    requests = Requests(client, patient=False, clock=time.monotonic)
    deadline = requests.now() + requests.read_timeout
    states, _ = requests.children(key_prefix, requests.left(deadline), recursive=True)
    stored, _ = requests.children(STORE_PATH, requests.left(deadline))
    keys: dict[str | None, list[etcd.EtcdResult]] = {}
    for node in stored:
        keys.setdefault(run_of(name_in(node.key) or b""), []).append(node)
    runs = []
    # A run is known by its state: the stores of all prefixes have one place.
    for state in states:
        run_id = state.key.removeprefix(f"{key_prefix}/")
        if run_id.startswith(f"{PROBE_RUN}-"):
            continue
        mine = keys.get(run_id, [])
        run = Run(
            run_id,
            "v2",
            state.key,
            Phase.EMPTY,
            ttl=state.ttl,
            store_keys=len(mine),
            # Each has a time to live of its own; torch's have none.
            store_ttl=max((node.ttl for node in mine if node.ttl), default=None),
            revision=state.modifiedIndex,
        )
        value = (state.value or "").encode()
        runs.append(run_of_torch(run, value, now, silence=silence, lease_age=None))
    return runs
