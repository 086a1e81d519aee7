# SPDX-License-Identifier: BSD-3-Clause
"""
What a store's operations take: ours on v3 and v2, torch's EtcdStore, and TCPStore.

All speak to servers on this machine, in one run, and take turns. The etcd is one that
serves v2 as well, since torch's EtcdStore speaks nothing else. Exit status 1 if a store
could not be started, or if ours does not keep what is promised beside torch's.

    python -m benchmarks.store --calls 500 --runs 3
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import statistics
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.table import Table
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import etcd_store as torch_etcd_store
from torch.distributed.elastic.utils import store as store_util

import etcd
from etcd_rendezvous import EtcdClient, EtcdServer, EtcdStore

from .clients import NotStartedError, Outcome, run_at_once

OURS_V3, OURS_V2, TORCHS, TCP = "ours, v3", "ours, v2", "torch's EtcdStore", "TCPStore"
KINDS = (OURS_V3, OURS_V2, TORCHS, TCP)

VALUE = b"x" * 100
# What lies beside the keys that are measured: what a job of some 250 agents leaves.
# torch has one directory for all runs.
KEYS_BESIDE = 500
OTHER_KEYS = (1, 100, 1_000, 10_000)
CALLS_A_TURN = 20

# What is promised of ours on v3, as a share of what torch's EtcdStore takes.
AT_MOST = {"get": 1.0, "check": 1.0, "multi_get of 8": 1.0, "add": 1.0, "set": 1.5}
BARRIER = "barrier of 64"
AT_MOST_BARRIER = 0.2
# The last share of `get` beside the first: it does not grow.
AT_MOST_GROWN = 1.5

Times = dict[tuple[str, str], list[float]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("--calls", type=int, default=500, help="of each operation")
    parser.add_argument("--runs", type=int, default=5, help="of each barrier")
    parser.add_argument(
        "--barriers", type=int, nargs="*", default=[64, 256], help="of how many clients"
    )
    parser.add_argument("--agents", type=int, default=1024, help="that get ranks")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a run")
    parser.add_argument("--binary", help="the etcd to measure with; it must serve v2")
    options = parser.parse_args()
    console = Console(width=110)
    with EtcdServer(binary=options.binary) as server:
        if not server.serves_v2:
            console.print(
                f"etcd {server.version} does not serve v2, so torch's EtcdStore can't "
                "be started: name another etcd with --binary."
            )
            return 1
        console.print(
            f"etcd {server.version}; 1 client: {options.calls} calls, p50 / p99 in ms; "
            f"many at once: medians of {options.runs} run(s), in s"
        )
        bench = Bench(server.get_endpoint(), options, console)
        try:
            bench.one_client()
            bench.growth()
            bench.many_clients()
        except NotStartedError as error:
            console.print(f"A store was not started: {error}", markup=False)
            return 1
    for complaint in bench.complaints:
        console.print(f"Not kept: {complaint}", markup=False)
    return 1 if bench.complaints else 0


@dataclass
class Bench:
    """
    One run of everything.
    """

    etcd: str
    options: argparse.Namespace
    console: Console
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Its server runs in this process, as a rank 0 has it.
        self._tcp = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def store(self, kind: str, name: str) -> Any:
        return started(kind, self._endpoint(kind), name)

    def _endpoint(self, kind: str) -> str:
        return f"127.0.0.1:{self._tcp.port}" if kind == TCP else self.etcd

    # -- one client -------------------------------------------------------------------

    def one_client(self) -> None:
        times: Times = collections.defaultdict(list)
        calls: list[tuple[tuple[str, str], Callable[[], Any]]] = []
        stores = []
        for kind in KINDS:
            store = self.store(kind, prefix())
            stores.append(store)
            fill(store, "beside", KEYS_BESIDE)
            calls += [
                ((name, kind), call) for name, call in operations(store) if works(call)
            ]
        # Turn by turn, so that all see the same machine; a few calls a turn, since the
        # first one after a pause is slower for everybody.
        for _ in range(max(self.options.calls // CALLS_A_TURN, 1)):
            for name_and_kind, call in calls:
                times[name_and_kind] += [timed(call) for _ in range(CALLS_A_TURN)]
        for kind in KINDS:
            name = prefix()
            times["a waiting client is told", kind] = list(
                wake_ups(
                    self.store(kind, name),
                    self.store(kind, name),
                    max(self.options.calls // 5, 2),
                )
            )
        self._show("one client, p50 / p99 in ms", times, quantiles)
        for name, most in AT_MOST.items():
            self._promise(name, times, most)

    def growth(self) -> None:
        times: Times = collections.defaultdict(list)
        stores = {kind: self.store(kind, prefix()) for kind in KINDS}
        calls = max(self.options.calls // 5, 2)
        there = 0
        for others in OTHER_KEYS:
            for kind, store in stores.items():
                fill(store, "other", others, there)
                store.set("one", VALUE)
                store.get("one")
                times[f"get beside {others:,}", kind] = [
                    timed(lambda store=store: store.get("one")) for _ in range(calls)
                ]
            there = others
        self._show("get beside other keys, p50 / p99 in ms", times, quantiles)
        first, last = (f"get beside {n:,}" for n in (OTHER_KEYS[0], OTHER_KEYS[-1]))
        for kind in (OURS_V3, OURS_V2):
            ratio = statistics.median(times[last, kind]) / statistics.median(
                times[first, kind]
            )
            if ratio > AT_MOST_GROWN:
                self.complaints.append(f"{kind}: {last} takes {ratio:.1f} as long")

    # -- many clients -----------------------------------------------------------------

    def many_clients(self) -> None:
        plan = [
            (f"barrier of {count}", barrier, count, self.options.runs)
            for count in self.options.barriers
        ]
        agents = self.options.agents
        plan += [
            (f"ranks for {agents:,}, the agents' way", assign_ranks, agents, 1),
            (f"ranks for {agents:,}, synchronize", synchronize, agents, 1),
        ]
        times: Times = collections.defaultdict(list)
        for name, work, clients, runs in plan:
            for _ in range(runs):
                for kind in KINDS:
                    with self.console.status(f"{name}: {kind}"):
                        outcome = self._at_once(kind, work, clients)
                    times[name, kind].append(self._seconds(name, kind, outcome))
        self._show(
            "many clients at once, in s", times, lambda row: seconds(row, self.options)
        )
        if any(name == BARRIER for name, _ in times):
            self._promise(BARRIER, times, AT_MOST_BARRIER)

    def _at_once(self, kind: str, work: Callable[..., Any], clients: int) -> Outcome:
        return run_at_once(
            clients,
            prepare,
            work,
            kind,
            self._endpoint(kind),
            prefix(),
            clients,
            self.options.limit,
            limit=self.options.limit,
            preload="benchmarks.preload",
        )

    def _seconds(self, name: str, kind: str, outcome: Outcome) -> float:
        if outcome.all_done:
            return outcome.seconds
        # Others may be late: a rival, and whoever speaks v2, where reading N keys is N
        # requests. But what is broken is nothing to compare with.
        if kind == OURS_V3 or outcome.failures:
            what = (outcome.failures or ["not in time"])[0]
            self.complaints.append(
                f"{kind}: {name}: {len(outcome.results)} of {outcome.clients} done: "
                f"{what}"
            )
        return self.options.limit

    # -- what is shown ----------------------------------------------------------------

    def _show(
        self, title: str, times: Times, shown: Callable[[list[float]], str]
    ) -> None:
        table = Table("", *KINDS, title=title, title_justify="left")
        for name in dict.fromkeys(name for name, _ in times):
            cells = [
                shown(times[name, kind]) if (name, kind) in times else "not there"
                for kind in KINDS
            ]
            table.add_row(name, *cells)
        self.console.print(table)

    def _promise(self, name: str, times: Times, most: float) -> None:
        ours, theirs = (
            statistics.median(times[name, kind]) for kind in (OURS_V3, TORCHS)
        )
        ratio = ours / theirs
        self.console.print(
            f"{name}: {ratio:.2f} times torch's EtcdStore (promised: {most:g} at most)"
        )
        if ratio > most:
            self.complaints.append(f"{name}: {ratio:.2f} times torch's, not {most:g}")


def quantiles(times: list[float]) -> str:
    middle = statistics.median(times)
    last = statistics.quantiles(times, n=100, method="inclusive")[-1]
    return f"{1000 * middle:.3f} / {1000 * last:.3f}"


def seconds(times: list[float], options: argparse.Namespace) -> str:
    middle = statistics.median(times)
    if middle >= options.limit:
        return f"not within {options.limit:.0f}"
    return f"{middle:.3f}"


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


if __name__ == "__main__":
    sys.exit(main())
