# SPDX-License-Identifier: BSD-3-Clause

"""
torch's rendezvous state, as another program reads it. Needs torch and the library.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any


def read_state(server: Any, run_id: str) -> Any:
    """
    Read the state of a run from an etcd server; None if there is none.
    """
    from etcd_rendezvous import EtcdClient, EtcdRendezvousBackend

    client = EtcdClient(server.get_endpoint())
    backend = EtcdRendezvousBackend(client, run_id, "/torch/elastic/rendezvous")
    try:
        found = backend.get_state()
    finally:
        client.close()
    return pickle.loads(found[0]) if found else None


def keys(server: Any, run_id: str) -> list[bytes]:
    """
    List all keys that an etcd server holds of a run.
    """
    from etcd_rendezvous import EtcdClient

    state = f"/torch/elastic/rendezvous/{run_id}".encode()
    with EtcdClient(server.get_endpoint()) as client:
        found, _ = client.range(state, state + b"\xff", keys_only=True)
    return [one.key for one in found.entries]


def addresses(nodes: Iterable[Any]) -> set[str]:
    """
    Return the addresses of nodes of torch's state.
    """
    return {node.addr for node in nodes}
