# SPDX-License-Identifier: BSD-3-Clause
"""
The store on v3: applied exactly once, at the cost of the network, and nothing left.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.utils import store as store_util

from etcd_rendezvous import EtcdClient, EtcdStore
from etcd_rendezvous._v3.wire import prefix_end
from support.adders import add_at_once

pytestmark = pytest.mark.torch

MODES = ("close", "reset", "half")
WRITES = ("/v3/kv/txn", "/v3/kv/put")


@pytest.fixture
def lossy(v3, make_proxy, run_id):
    """
    A store of each version, the proxy that it speaks through, and a store beside it.
    """
    proxy = make_proxy(v3.endpoint)
    store = v3.store(run_id, proxy)
    store.set("ready", "")  # connected, with a lease
    return store, proxy, v3.store(run_id)


def is_write(method, path, body):
    """
    For the proxy: whether a request is one of the store's transactions that write.
    """
    return path == "/v3/kv/txn" and b"request_put" in body


# What is there before, what is done, what it returns, and what is there afterwards.
CHANGES = {
    "add": ("7", lambda store: store.add("key", 1), 8, b"8"),
    "add to nothing": (None, lambda store: store.add("key", 1), 1, b"1"),
    "add 5": ("7", lambda store: store.add("key", 5), 12, b"12"),
    "subtract": ("7", lambda store: store.add("key", -9), -2, b"-2"),
    "compare_set": ("7", lambda store: store.compare_set("key", "7", "8"), b"8", b"8"),
    "compare_set of nothing": (
        None,
        lambda store: store.compare_set("key", "", "8"),
        b"8",
        b"8",
    ),
    "append": ("7", lambda store: store.append("key", "8"), None, b"78"),
    "append to nothing": (None, lambda store: store.append("key", "8"), None, b"8"),
    "delete_key": ("7", lambda store: store.delete_key("key"), True, None),
}


@pytest.fixture(params=CHANGES)
def change(request):
    """
    Each operation that must be applied once.
    """
    return CHANGES[request.param]


def prepare(store, before):
    if before is not None:
        store.set("key", before)


def there(store):
    return store.get("key") if store.check(["key"]) else None


# --- Lost replies


@pytest.mark.parametrize("mode", MODES)
def test_once_although_the_reply_was_lost(lossy, change, mode):
    """
    What was applied and not answered is applied once, and its result is that of once.
    """
    store, proxy, other = lossy
    before, call, result, after = change
    prepare(other, before)
    with proxy.expect_swallowed(1), proxy.swallow(1, is_write, mode=mode):
        found = call(store)

    assert (result, after) == (found, there(other))


def test_once_although_many_replies_were_lost(lossy, change):
    """
    The same where the answers to its repetitions are lost as well.
    """
    store, proxy, other = lossy
    before, call, result, after = change
    prepare(other, before)
    with proxy.expect_swallowed(4), proxy.swallow(4, is_write):
        found = call(store)

    assert (result, after) == (found, there(other))


def test_once_although_others_were_quick(lossy, change):
    """
    The result is that of its own moment although others have changed the key before
    it was known, and theirs stays.
    """
    store, proxy, other = lossy
    before, call, result, _ = change
    prepare(other, before)

    def overwrite(status, body):
        # A first attempt may find that it needs the slower way, and write nothing.
        applied = b"response_put" in body
        if applied:
            other.set("key", "theirs")
        return applied

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, is_write, when_reply=overwrite),
    ):
        found = call(store)

    assert (result, b"theirs") == (found, there(other))


def test_one_answer_although_others_count_on(lossy):
    """
    An adder whose reply is lost is told its own number, not that of those who counted
    on; nor is it counted twice.
    """
    store, proxy, other = lossy

    def count_on(status, body):
        assert [other.add("key", 1) for _ in range(3)][-1] > 3
        return True

    with (
        proxy.expect_swallowed(2),
        proxy.swallow(2, is_write, when_reply=count_on),
    ):
        found = store.add("key", 1)

    assert (found, there(other)) == (1, b"7")


def test_sum_that_nobody_can_tell(lossy, v3):
    """
    Counted, unanswered, counted on by others, and compacted: the sum is gone, which is
    said; it was counted once.
    """
    store, proxy, other = lossy

    def count_on_and_compact(status, body):
        other.add("key", 1)
        v3.compact()
        return True

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, is_write, when_reply=count_on_and_compact),
        pytest.raises(DistNetworkError, match="it was applied, but the reply was lost"),
    ):
        store.add("key", 1)

    assert there(other) == b"2"
    assert store.add("key", 1) == 3


def test_late_write_changes_nothing(lossy):
    """
    A write that a slow network delivers after its repetition was answered does nothing
    any more.
    """
    store, proxy, other = lossy
    store.set("log", "")
    with proxy.hold(is_write, 1, late=True) as hold:
        appending = threading.Thread(target=store.append, args=("log", "x"))
        appending.start()
        hold.wait(1)
        appending.join(20)  # its second attempt is let through
        assert not appending.is_alive()
    proxy.wait_answered("late", 1)

    assert other.get("log") == b"x"


def test_queues_although_replies_were_lost(lossy):
    """
    What is pushed is there once, in order, and what is popped is popped once.
    """
    store, proxy, other = lossy
    numbers = itertools.count()
    with (
        proxy.expect_swallowed(20),
        proxy.swallow(
            None, is_write, when_reply=lambda status, body: next(numbers) % 2 == 0
        ),
    ):
        for number in range(10):
            store.queue_push("queue", str(number))
        assert other.queue_len("queue") == 10
        popped = [store.queue_pop("queue", block=False) for _ in range(10)]

    assert [b"%d" % number for number in range(10)] == popped
    assert other.queue_len("queue") == 0


def test_ten_thousand_adds_of_sixteen_processes(newest_v3, make_proxy, run_id):
    """
    16 processes add 10,000 times to one key, through a proxy that loses one reply in
    ten after the server has applied the write, and cuts connections: they are told
    1 to 10,000.
    """
    proxy = make_proxy(newest_v3.endpoint)
    store = newest_v3.store(run_id)
    numbers = itertools.count()
    over = threading.Event()

    def cut_connections():
        while not over.wait(0.5):
            proxy.drop_connections()

    cutting = threading.Thread(target=cut_connections)
    cutting.start()
    try:
        with (
            proxy.expect_swallowed(500),
            proxy.swallow(
                None,
                lambda _, path, body: path in WRITES,
                when_reply=lambda status, body: next(numbers) % 10 == 0,
            ),
        ):
            told = add_at_once(
                proxy.endpoint, store.prefix, processes=16, adds=10_000 // 16
            )
    finally:
        over.set()
        cutting.join()

    assert list(range(1, 10_001)) == sorted(itertools.chain(*told))
    assert all(one == sorted(one) for one in told)
    assert store.get("counter") == b"10000"


# --- The leader dies


def test_once_although_the_leader_dies(cluster, run_id):
    """
    While the leader is killed, and comes back, four writers count, append, swap and
    delete: each is told the truth, and nothing is done twice.
    """
    writers, swaps = 4, []
    told = [[] for _ in range(writers)]
    deleted = [0] * writers
    over = threading.Event()

    def write(number):
        client = EtcdClient(cluster.get_endpoint(), read_timeout=30, connect_timeout=1)
        store = EtcdStore(client, f"/{run_id}", timedelta(seconds=30))
        swapped = 0
        while not over.is_set():
            told[number].append(store.add("counter", 1))
            store.append("log", f"{number},")
            before = f"{swapped}" if swapped else ""
            after = store.compare_set(f"own {number}", before, f"{swapped + 1}")
            assert after == b"%d" % (swapped + 1)
            swapped += 1
            store.set(f"gone {number}", "")
            deleted[number] += store.delete_key(f"gone {number}")
        swaps.append(swapped)
        client.close()

    def go_on():
        before = [len(one) for one in told]
        deadline = time.monotonic() + 60
        while any(len(now) < then + 3 for now, then in zip(told, before, strict=True)):
            assert time.monotonic() < deadline, (before, told)
            assert all(not one.done() for one in running), running
            time.sleep(0.02)

    with ThreadPoolExecutor(writers) as pool:
        running = [pool.submit(write, number) for number in range(writers)]
        try:
            go_on()
            for _ in range(2):
                leader = cluster.leader()
                leader.kill()
                go_on()
                leader.restart()
                go_on()
        finally:
            over.set()
        for one in running:
            one.result(60)

    with EtcdClient(cluster.get_endpoint()) as client:
        store = EtcdStore(client, f"/{run_id}", timedelta(seconds=30))
        adds = sum(map(len, told))
        assert list(range(1, adds + 1)) == sorted(itertools.chain(*told))
        log = store.get("log").decode().split(",")[:-1]
        assert [len(one) for one in told] == [
            log.count(str(number)) for number in range(writers)
        ]
        assert sorted(swaps) == sorted(deleted)


# --- What it costs


@pytest.mark.measures
def test_a_waiting_client_is_told_at_once(newest_served, run_id):
    """
    Between a `set` and the end of another client's `wait` are less than 5 ms, in the
    median.
    """
    waiting, setting = newest_served.store(run_id), newest_served.store(run_id)
    told = []

    def wait(key):
        waiting.wait([key], timedelta(seconds=20))
        told.append(time.perf_counter())

    def median(start):
        took = []
        for number in range(start, start + 40):
            key = f"{run_id}-{number}"
            thread = threading.Thread(target=wait, args=(key,))
            thread.start()
            time.sleep(0.02)
            started = time.perf_counter()
            setting.set(key, "")
            thread.join()
            took.append(told[-1] - started)
        return statistics.median(took)

    # What else the machine does may spoil a try.
    assert min(median(start) for start in (0, 40, 80)) < 0.005


class Counted(EtcdStore):
    """
    A store that counts the calls of what waits, adds and sets.
    """

    calls = 0

    def add(self, *args):
        self.calls += 1
        return super().add(*args)

    def set(self, *args):
        self.calls += 1
        super().set(*args)

    def wait(self, *args):
        self.calls += 1
        super().wait(*args)


def test_what_a_barrier_costs(newest_v3, make_proxy, run_id):
    """
    A barrier is at most three calls of the store and six requests a worker, those for
    its lease included.
    """
    proxies = [make_proxy(newest_v3.endpoint) for _ in range(8)]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(EtcdClient(proxy.endpoint)) for proxy in proxies]
        stores = [Counted(client, f"/{run_id}") for client in clients]
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda store: store_util.barrier(store, 8, "b", barrier_timeout=20),
                    stores,
                )
            )

        assert all(2 <= store.calls <= 3 for store in stores)
        assert all(2 <= proxy.total_requests <= 6 for proxy in proxies)


# --- What is left


@contextlib.contextmanager
def holder(endpoint, prefix, ttl):
    """
    A process that uses a store and then only lives on; the second one has only read.
    """
    script = textwrap.dedent(
        """
        import sys, time
        from etcd_rendezvous import EtcdClient, EtcdStore
        endpoint, prefix, ttl = sys.argv[1:]
        store = EtcdStore(EtcdClient(endpoint), prefix, ttl=int(ttl))
        if not store.check(["state"]):
            store.add("members", 1)
            store.queue_push("queue", "value")
            store.set("state", "here")
        print("ready", flush=True)
        time.sleep(100)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, endpoint, prefix, str(ttl)],
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_keys_live_as_long_as_anybody(newest_v3, run_id):
    """
    The keys of a run stay as long as one of its processes lives, although the others
    were killed and it does nothing; after it all of them go away.
    """
    ttl = 4
    prefix = f"/{run_id}"

    def keys():
        found, _ = client.range(prefix, prefix_end(prefix.encode()))
        return [entry.key for entry in found.entries]

    with newest_v3.client() as client:
        with (
            holder(newest_v3.endpoint, prefix, ttl) as first,
            holder(newest_v3.endpoint, prefix, ttl),
        ):
            there = keys()
            assert len(there) >= 4
            first.kill()
            first.wait()
            until = time.monotonic() + 3 * ttl
            while time.monotonic() < until:
                assert keys() == there
                time.sleep(0.1)
        ended = time.monotonic()
        while keys():
            assert time.monotonic() < ended + ttl + 20
            time.sleep(0.1)


def test_a_look_that_is_slow_at_the_end(newest_v3, make_proxy, run_id):
    """
    An etcd that is slow when the time to wait is up is not one that is away.
    """
    proxy = make_proxy(newest_v3.endpoint)
    store = newest_v3.store(run_id, proxy)
    store.set("key", "1")
    reads = itertools.count()
    slow = proxy.delay(
        0.8, lambda _, path, __: path.startswith("/v3/kv/") and next(reads) > 0
    )
    with pytest.raises(DistStoreError, match=r"0\.3 s.*'gone'"):
        store.wait(["gone"], timedelta(seconds=0.3))

    assert slow.count > 1


def test_a_server_that_dies_of_reads(newest_v3, make_proxy, run_id, monkeypatch):
    """
    Releases that may end when a transaction that only reads is given up get none; what
    they get instead writes nothing.
    """
    proxy = make_proxy(newest_v3.endpoint)
    store = newest_v3.store(run_id, proxy)
    store.multi_set(["a", "b"], ["1", "2"])
    monkeypatch.setattr(EtcdClient, "version", lambda *_, timeout: "3.5.6")
    before, revision = len(proxy.log), revision_of(newest_v3)

    assert store.multi_get(["a", "b", "a"]) == [b"1", b"2", b"1"]
    assert store.check(["a", "c"]) is False
    store.wait(["a", "b"])
    sent = [one.json for one in proxy.log[before:] if one.path == "/v3/kv/txn"]
    assert len(sent) == 3
    assert all("request_delete_range" in one["failure"][0] for one in sent)
    assert not any(one["compare"] for one in sent)
    assert revision_of(newest_v3) == revision


def revision_of(served):
    return served.client().range("nobody")[1]
