# SPDX-License-Identifier: BSD-3-Clause
"""
How long N of torch's handlers take to meet: ours beside torch's own backends.

All handlers call ``next_rendezvous()`` at once, as threads in eight processes, with
min = max = N. Backends take turns, run by run, so that all see the same machine.

    python -m benchmarks.rendezvous --nodes 32 128 256 --runs 7
"""

from __future__ import annotations

import argparse
import collections
import statistics
import sys
import uuid
from collections.abc import Callable
from typing import Any

from etcd_rendezvous import EtcdServer

from .clients import run_at_once

# What is promised: never much slower than c10d, and twice as fast from 256 nodes on.
AT_MOST = 1.1
BIG = 256
AT_MOST_BIG = 0.5
# "etcd-v3" is what torchrun gets; "etcd-v3-bare" our backend in torch's own handler.
BACKENDS = ("c10d", "etcd-v3", "etcd-v3-bare")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--nodes", type=int, nargs="+", default=[32, 128, 256])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a run")
    parser.add_argument("--binary", help="the etcd to measure with")
    options = parser.parse_args()
    with EtcdServer(binary=options.binary) as server:
        print(f"etcd {server.version}; medians of {options.runs} interleaved runs")
        ok = True
        for nodes in options.nodes:
            ok = _compare(server.get_endpoint(), nodes, options) and ok
    return 0 if ok else 1


def _compare(endpoint: str, nodes: int, options: argparse.Namespace) -> bool:
    times: dict[str, list[float]] = collections.defaultdict(list)
    swaps: dict[str, list[tuple[int, int]]] = collections.defaultdict(list)
    for _ in range(options.runs):
        for backend in options.backends:
            seconds, tried, lost = meet(backend, endpoint, nodes, options.limit)
            times[backend].append(seconds)
            swaps[backend].append((tried, lost))
    base = statistics.median(times[options.backends[0]])
    for backend in options.backends:
        median = statistics.median(times[backend])
        tried, lost = statistics.median_low(swaps[backend])
        print(
            f"{nodes:4} nodes  {backend:13} {median:6.2f} s  "
            f"({min(times[backend]):.2f} to {max(times[backend]):.2f})  "
            f"{median / base:5.2f} times {options.backends[0]}  "
            f"swaps {tried}, lost {lost}",
            flush=True,
        )
    ours = [backend for backend in times if backend.startswith("etcd-v3")]
    ok = all(max(times[backend]) < options.limit for backend in ours)
    if options.backends[0] == "c10d":
        most = AT_MOST_BIG if nodes >= BIG else AT_MOST
        for backend in ours:
            ratio = statistics.median(times[backend]) / base
            if ratio > most:
                print(f"{nodes:4} nodes  {backend} took more than {most} times c10d")
                ok = False
    return ok


def meet(
    backend: str, endpoint: str, nodes: int, limit: float
) -> tuple[float, int, int]:
    """
    Let N handlers meet once.

    Returns:
        The seconds that the slowest took (the limit if some never met), the swaps
        tried, and those lost.
    """
    run_id = uuid.uuid4().hex
    store = None
    if backend == "c10d":
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        endpoint = f"127.0.0.1:{store.port}"
    outcome = run_at_once(
        nodes,
        _prepare,
        backend,
        endpoint,
        run_id,
        nodes,
        limit,
        limit=limit,
        preload="benchmarks.preload",
    )
    tried = sum(counter["tried"] for counter in outcome.results)
    lost = sum(counter["lost"] for counter in outcome.results)
    return outcome.seconds, tried, lost


def _prepare(
    rank: int, backend: str, endpoint: str, run_id: str, nodes: int, limit: float
) -> Callable[[], collections.Counter[str]]:
    address = f"node{rank:04}"
    handler, counter = _handler(backend, endpoint, run_id, nodes, address, limit)

    def join() -> collections.Counter[str]:
        handler.next_rendezvous()
        return counter

    return join


def _handler(
    name: str, endpoint: str, run_id: str, nodes: int, addr: str, limit: float
) -> tuple[Any, collections.Counter[str]]:
    from torch.distributed.elastic.rendezvous import (
        RendezvousParameters,
        c10d_rendezvous_backend,
        dynamic_rendezvous,
        etcd_rendezvous_backend,
    )

    import etcd_rendezvous
    from etcd_rendezvous import EtcdRendezvousHandler

    module = {
        "c10d": c10d_rendezvous_backend,
        "torch-etcd-v2": etcd_rendezvous_backend,
    }.get(name, etcd_rendezvous)
    extra = {"is_host": "0"} if name == "c10d" else {}
    params = RendezvousParameters(
        "etcd-v3" if name.startswith("etcd-v3") else name,
        endpoint,
        run_id,
        nodes,
        nodes,
        addr,
        join_timeout=int(limit),
        **extra,
    )
    backend, store = module.create_backend(params)
    counter: collections.Counter[str] = collections.Counter()
    set_state = backend.set_state

    def counted(state: bytes, token: Any = None) -> Any:
        result = set_state(state, token)
        counter["tried"] += 1
        counter["lost"] += result is None or not result[2]
        return result

    backend.set_state = counted
    if name == "etcd-v3":
        handler: Any = EtcdRendezvousHandler.create(store, backend, params)
    else:
        handler = dynamic_rendezvous.create_handler(store, backend, params)
    # The store that workers bootstrap from is no part of what is measured.
    handler._create_tcp_store_server = lambda *_: _NoServer()
    return handler, counter


class _NoServer:
    port = 1


if __name__ == "__main__":
    sys.exit(main())
