# SPDX-License-Identifier: BSD-3-Clause

"""
torch's rendezvous state, and that of `etcd-live`, as another program reads them.

Needs torch and the library.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LiveState:
    """
    What a run of `etcd-live` has in etcd.

    Attributes:
        nodes: The values of the nodes' keys, by id.
        closer: The id of the closer; None if there is none.
        round: The value of the round; None if there is none.
        closed: Whether the run is closed.
    """

    nodes: dict[str, dict[str, Any]]
    closer: str | None
    round: dict[str, Any] | None
    closed: bool

    @property
    def addresses(self) -> set[str]:
        """
        The addresses of all nodes that live.
        """
        return {node["address"] for node in self.nodes.values()}

    @property
    def closers_address(self) -> str | None:
        """
        The address of the closer, if there is one that lives.
        """
        return self.nodes.get(self.closer or "", {}).get("address")


def read_live(server: Any, run_id: str) -> LiveState:
    """
    Read what a run of `etcd-live` has in an etcd server.
    """
    from etcd_rendezvous import EtcdClient

    run = f"/torch/elastic/rendezvous/{run_id}/live/".encode()
    with EtcdClient(server.get_endpoint()) as client:
        found, _ = client.range(run, run + b"\xff")
    values = {one.key[len(run) :].decode(): one.value for one in found.entries}
    nodes = {
        key.rpartition("/")[2]: json.loads(value)
        for key, value in values.items()
        if key.startswith("n/")
    }
    closer = values.get("c/closer")
    return LiveState(
        nodes,
        closer.decode() if closer else None,
        json.loads(values.get("c/round", b"null")),
        "c/closed" in values,
    )
