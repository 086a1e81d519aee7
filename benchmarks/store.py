# SPDX-License-Identifier: BSD-3-Clause
"""
What a store's operations take: ours on v3 and v2, torch's EtcdStore, and TCPStore.

All speak to servers on this machine, in one run, and take turns. The etcd is one that
serves v2 as well, since torch's EtcdStore speaks nothing else.
"""

from __future__ import annotations

import collections
import itertools
import json
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import etcd_store as torch_etcd_store
from torch.distributed.elastic.utils import store as store_util

import etcd
from etcd_rendezvous import EtcdClient, EtcdServer, EtcdStore

from .clients import NotStartedError, Outcome, run_at_once
from .figures import STORE, STORE_AT_ONCE, STORE_GROWS, Figure
from .names import OURS_V2, OURS_V3, STORES, TCP

VALUE = b"x" * 100
# What lies beside the keys that are measured: what a job of some 250 agents leaves.
# torch has one directory for all runs.
KEYS_BESIDE = 500
OTHER_KEYS = (1, 100, 1_000, 10_000)
CALLS_A_TURN = 20


def store(
    binary: str | None,
    calls: int,
    runs: int,
    barriers: Sequence[int],
    agents: int,
    limit: float,
    told: Callable[[str], None],
) -> list[Figure]:
    """
    Measure stores.

    Args:
        binary: The etcd.
        calls: Of each operation.
        runs: Of each barrier.
        barriers: Of how many clients each is.
        agents: How many get their ranks.
        limit: The most seconds that many clients take.
        told: Is called with what is being done.

    Raises:
        NotStartedError: A store could not be had.
    """
    with EtcdServer(binary=binary) as server:
        if not server.serves_v2:
            raise NotStartedError(
                f"etcd {server.version} does not serve v2, so torch's EtcdStore can't "
                "be started: name another etcd with --binary."
            )
        bench = _Bench(server.get_endpoint(), limit)
        told(f"store: one client, {calls} calls")
        figures = bench.one_client(calls)
        told("store: get beside other keys")
        figures += bench.growth(max(calls // 5, 2))
        return figures + bench.many_clients(barriers, runs, agents, told)


@dataclass
class _Bench:
    """
    One run of everything.
    """

    etcd: str
    limit: float
    _tcp: Any = field(init=False)

    def __post_init__(self) -> None:
        # Its server runs in this process, as a rank 0 has it.
        self._tcp = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def store(self, kind: str, name: str) -> Any:
        return started(kind, self._endpoint(kind), name)

    def _endpoint(self, kind: str) -> str:
        return f"127.0.0.1:{self._tcp.port}" if kind == TCP else self.etcd

    # -- one client -------------------------------------------------------------------

    def one_client(self, number: int) -> list[Figure]:
        times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        calls: list[tuple[tuple[str, str], Callable[[], Any]]] = []
        stores = []
        for kind in STORES:
            store = self.store(kind, prefix())
            stores.append(store)
            fill(store, "beside", KEYS_BESIDE)
            calls += [
                ((name, kind), call) for name, call in operations(store) if works(call)
            ]
        # Turn by turn, so that all see the same machine; a few calls a turn, since the
        # first one after a pause is slower for everybody.
        for _ in range(max(number // CALLS_A_TURN, 1)):
            for name_and_kind, call in calls:
                times[name_and_kind] += [timed(call) for _ in range(CALLS_A_TURN)]
        for kind in STORES:
            name = prefix()
            one, other = self.store(kind, name), self.store(kind, name)
            times["a waiting client is told", kind] = list(
                wake_ups(one, other, max(number // 5, 2))
            )
        return [
            _quantiles(Figure(f"{STORE}{name}", kind, 1), found)
            for (name, kind), found in times.items()
        ]

    def growth(self, calls: int) -> list[Figure]:
        figures = []
        stores = {kind: self.store(kind, prefix()) for kind in STORES}
        there = 0
        for others in OTHER_KEYS:
            for kind, store in stores.items():
                fill(store, "other", others, there)
                store.set("one", VALUE)
                store.get("one")
                times = [
                    timed(lambda store=store: store.get("one")) for _ in range(calls)
                ]
                figure = Figure(f"{STORE_GROWS}{others:,}", kind, others)
                figures.append(_quantiles(figure, times))
            there = others
        return figures

    # -- many clients -----------------------------------------------------------------

    def many_clients(
        self,
        barriers: Iterable[int],
        runs: int,
        agents: int,
        told: Callable[[str], None],
    ) -> list[Figure]:
        plan = [(f"barrier of {count}", barrier, count, runs) for count in barriers]
        plan += [
            (f"ranks for {agents:,} agents", assign_ranks, agents, 1),
            (f"`synchronize` of {agents:,} agents", synchronize, agents, 1),
        ]
        figures = []
        for name, work, clients, times in plan:
            row = [Figure(f"{STORE_AT_ONCE}{name}", kind, clients) for kind in STORES]
            figures += row
            for _ in range(times):
                for figure in row:
                    told(f"store: {name}: {figure.backend}")
                    outcome = self._at_once(figure.backend, work, clients)
                    if outcome.all_done:
                        figure.add(seconds=outcome.seconds)
                        continue
                    figure.add(seconds=None)
                    figure.unfinished = self.limit
                    # Others may be late: a rival, and whoever speaks v2, where reading
                    # N keys is N requests. What is broken is nothing to compare with.
                    figure.failure = (outcome.failures or [""])[0]
        return figures

    def _at_once(self, kind: str, work: Callable[..., Any], clients: int) -> Outcome:
        return run_at_once(
            clients,
            prepare,
            work,
            kind,
            self._endpoint(kind),
            prefix(),
            clients,
            self.limit,
            limit=self.limit,
            preload="benchmarks.preload",
        )


def _quantiles(figure: Figure, times: list[float]) -> Figure:
    last = statistics.quantiles(times, n=100, method="inclusive")[-1]
    figure.add(p50=statistics.median(times), p99=last)
    return figure


# -- stores and what they do ----------------------------------------------------------


def prefix() -> str:
    return f"/benchmark/{uuid.uuid4().hex}"


def started(kind: str, endpoint: str, name: str) -> Any:
    """
    Return a store that has a connection.

    Raises:
        NotStartedError: It can't be had.
    """
    try:
        store = make(kind, endpoint, name)
        store.set("ready", b"")
    except Exception as error:
        raise NotStartedError(f"{kind}: {error!r}") from error
    return store


def make(kind: str, endpoint: str, name: str) -> Any:
    """
    Make a store with a client, and so with connections, of its own.
    """
    host, port = endpoint.rsplit(":", 1)
    if kind == OURS_V3:
        return EtcdStore(EtcdClient(endpoint), name)
    if kind == TCP:
        tcp = TCPStore(host, int(port), is_master=False, wait_for_workers=False)
        return PrefixStore(name, tcp)
    client = etcd.Client(host=host, port=int(port), read_timeout=60)
    if kind == OURS_V2:
        return EtcdStore(client, name)
    return torch_etcd_store.EtcdStore(client, name)


def fill(store: Any, name: str, count: int, there: int = 0) -> None:
    """
    Write keys, up to a number.
    """
    keys = [f"{name} {number}" for number in range(there, count)]
    store.multi_set(keys, [VALUE.decode()] * len(keys))


def operations(store: Any) -> list[tuple[str, Callable[[], Any]]]:
    eight = [f"beside {number}" for number in range(8)]
    swaps = itertools.count()

    def swap() -> None:
        number = next(swaps)
        expected = str(number) if number else ""
        if store.compare_set("swapped", expected, str(number + 1)) == expected:
            raise AssertionError(f"compare_set lost against nobody at {number}")

    return [
        ("set", lambda: store.set("one", VALUE)),
        ("get", lambda: store.get("one")),
        ("add", lambda: store.add("number", 1)),
        ("check", lambda: store.check(["one"])),
        ("multi_get of 8", lambda: store.multi_get(eight)),
        ("multi_set of 8", lambda: store.multi_set(eight, [VALUE.decode()] * 8)),
        ("wait for what is there", lambda: store.wait(["one"])),
        ("compare_set", swap),
        ("append", lambda: store.append("log", "x")),
    ]


def works(call: Callable[[], Any]) -> bool:
    """
    Say whether a store knows an operation at all.
    """
    try:
        call()
    except (NotImplementedError, RuntimeError) as error:
        if "mplemented" in str(error) or "pure virtual" in str(error):
            return False
        raise
    return True


def timed(call: Callable[[], Any]) -> float:
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


def wake_ups(waiting: Any, setting: Any, count: int) -> Iterator[float]:
    """
    Yield the times from the beginning of a `set` to the end of another's `wait`.
    """
    name = uuid.uuid4().hex
    told: list[float] = []

    def wait(key: str) -> None:
        waiting.wait([key], timedelta(seconds=10))
        told.append(time.perf_counter())

    for number in range(count):
        key = f"{name} {number}"
        thread = threading.Thread(target=wait, args=(key,))
        thread.start()
        time.sleep(0.02)  # until it waits
        started_at = time.perf_counter()
        setting.set(key, VALUE)
        thread.join()
        yield told[-1] - started_at


# -- many clients ---------------------------------------------------------------------


def prepare(
    rank: int,
    work: Callable[[Any, int, int, float], Any],
    kind: str,
    endpoint: str,
    name: str,
    clients: int,
    limit: float,
) -> Callable[[], Any]:
    store = started(kind, endpoint, name)
    store.set_timeout(timedelta(seconds=2 * limit))
    return lambda: work(store, rank, clients, 2 * limit)


def barrier(store: Any, rank: int, clients: int, limit: float) -> None:
    del rank
    store_util.barrier(store, clients, "barrier", barrier_timeout=limit)


def synchronize(store: Any, rank: int, clients: int, limit: float) -> None:
    data = store_util.synchronize(store, b"%d" % rank, rank, clients, "data", limit)
    if data[-1] != b"%d" % (clients - 1):
        raise AssertionError(f"synchronize gave {data[-1]!r} for the last rank")


def assign_ranks(store: Any, rank: int, clients: int, limit: float) -> None:
    """
    Do with the store what torch's agent does to give its workers their ranks.
    """
    del limit
    role_info = json.dumps({"role": "default", "rank": rank, "local_world_size": 8})
    store.set(f"torchelastic/role_info/{rank}", role_info)
    if rank == 0:
        infos = store.multi_get(
            [f"torchelastic/role_info/{other}" for other in range(clients)]
        )
        sizes = [json.loads(info)["local_world_size"] for info in infos]
        store.multi_set(
            [f"torchelastic/assigned_ranks/{other}" for other in range(clients)],
            [json.dumps([sum(sizes[:other]), sum(sizes)]) for other in range(clients)],
        )
    first, _ = json.loads(store.get(f"torchelastic/assigned_ranks/{rank}"))
    if first != 8 * rank:
        raise AssertionError(f"rank {rank} got {first}")
