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


def addresses(nodes: Iterable[Any]) -> set[str]:
    """
    Return the addresses of nodes of torch's state.
    """
    return {node.addr for node in nodes}
