# SPDX-License-Identifier: BSD-3-Clause
"""
Three ways to count on etcd v3, side by side: why ``EtcdStore.add`` does what it does.

All clients add 1 to one key at the same time, each on a connection of its own, as
threads in eight processes. The ways take turns.

- *swap*: read, then compare and swap, until nobody else was quicker.
- *children*: a key of its own for each add; the sum is how many there are.
- *version*: ``EtcdStore.add``: etcd counts the writes of the key itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from etcd_rendezvous import EtcdClient, EtcdServer
from etcd_rendezvous._v3 import wire
from etcd_rendezvous._v3.store_keys import V3StoreKeys

from .clients import run_at_once
from .figures import COUNT, Figure
from .names import SWAP, VERSION, WAYS

PRELOAD = "etcd_rendezvous._v3.store_keys"


def swap(client: EtcdClient, key: bytes) -> int:
    known: wire.Entry | None = None
    while True:
        total = (int(known.value) if known else 0) + 1
        reply = client.txn(
            [wire.compare_mod(key, known.mod_revision if known else 0)],
            [wire.op_put(wire.put_message(key, b"%d" % total))],
            [wire.op_range(wire.range_message(key))],
        )
        if reply.succeeded:
            return total
        known = reply.ranges[0].entries[0]


def children(client: EtcdClient, key: bytes) -> int:
    below = key + b"/"
    reply = client.txn(
        [],
        [
            wire.op_put(wire.put_message(below + uuid.uuid4().hex.encode(), b"")),
            wire.op_range(
                wire.range_message(below, wire.prefix_end(below), count_only=True)
            ),
        ],
    )
    return reply.ranges[0].count


def _adder(way: str, client: EtcdClient, key: bytes) -> Callable[[], int]:
    """
    Return what adds 1, ready to go: connected, and with a lease where it needs one.
    """
    client.version()
    if way == VERSION:
        keys = V3StoreKeys(client, f"{key.decode()}/", 60)
        keys.put_many([(b"ready", b"")], 60.0)
        return lambda: keys.add(b"n", 1, 60.0)
    count = swap if way == SWAP else children
    return lambda: count(client, key)


def counters(
    binary: str | None,
    adders: Sequence[int],
    runs: int,
    told: Callable[[str], None],
) -> list[Figure]:
    """
    Measure the three ways.

    Args:
        binary: The etcd.
        adders: How many add at once.
        runs: How often.
        told: Is called with what is being done.
    """
    figures = []
    with EtcdServer(binary=binary) as server:
        for clients in adders:
            told(f"{clients} adders")
            row = [Figure(COUNT, way, clients) for way in WAYS]
            figures += row
            for _ in range(runs):
                for figure in row:
                    seconds, asked = _add_at_once(
                        figure.backend, server.get_endpoint(), clients
                    )
                    figure.add(seconds=seconds, requests=asked / clients)
    return figures


def _add_at_once(way: str, endpoint: str, clients: int) -> tuple[float, int]:
    """
    Let all add once.

    Returns:
        The seconds until the last was done, and the transactions sent.
    """
    key = f"/counters/{uuid.uuid4().hex}".encode()
    outcome = run_at_once(
        clients, _prepare, way, endpoint, key, limit=120.0, preload=PRELOAD
    )
    sums = sorted(total for total, _ in outcome.results)
    if sums != list(range(1, clients + 1)):
        raise AssertionError(f"{way} miscounted: {sums} {outcome.failures}")
    return outcome.seconds, sum(sent for _, sent in outcome.results)


def _prepare(
    _rank: int, way: str, endpoint: str, key: bytes
) -> Callable[[], tuple[int, int]]:
    client = _Counted(endpoint)
    add = _adder(way, client, key)
    client.sent[0] = 0
    return lambda: (add(), client.sent[0])


class _Counted(EtcdClient):
    """
    A client that counts its transactions.
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.sent = [0]  # shared with its copies

    def txn(self, *args: Any, **kwargs: Any) -> wire.TxnReply:
        self.sent[0] += 1
        return super().txn(*args, **kwargs)
