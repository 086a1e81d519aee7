# SPDX-License-Identifier: BSD-3-Clause
"""
Read runs through etcd's v2 API: torch's own, and ours that share them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime

import etcd

from .._v2.requests import STORE_PATH, Requests, name_in, run_of
from .of_torch import run_of_torch
from .report import Phase, Run

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
    keys: dict[str, list[etcd.EtcdResult]] = {}
    for node in stored:
        run_id = run_of(name_in(node.key) or b"")
        if run_id is not None:
            keys.setdefault(run_id, []).append(node)
    runs = {
        run_id: _stored(run_id, key_prefix, nodes) for run_id, nodes in keys.items()
    }
    for state in states:
        run_id = state.key.removeprefix(f"{key_prefix}/")
        run = replace(
            runs.get(run_id) or _stored(run_id, key_prefix, []),
            ttl=state.ttl,
            revision=state.modifiedIndex,
        )
        value = (state.value or "").encode()
        runs[run_id] = run_of_torch(run, value, now, silence=silence, lease_age=None)
    return [runs[run_id] for run_id in sorted(runs)]


def _stored(run_id: str, key_prefix: str, nodes: list[etcd.EtcdResult]) -> Run:
    """
    Return what is known of a run from its store's keys.
    """
    # On v2 each has a time to live of its own.
    ttls = [node.ttl for node in nodes if node.ttl]
    return Run(
        run_id,
        "v2",
        f"{key_prefix}/{run_id}",
        Phase.EMPTY,
        store_keys=len(nodes),
        store_ttl=max(ttls, default=None),
    )
