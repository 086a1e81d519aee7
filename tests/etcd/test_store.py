# SPDX-License-Identifier: BSD-3-Clause
"""
The store, on both APIs of real servers, beside torch's own TCPStore.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psutil
import pytest
from torch.distributed import (
    DistNetworkError,
    DistStoreError,
    PrefixStore,
    Store,
    TCPStore,
)

from etcd_rendezvous import EtcdStore
from support import etcds
from support.scripted import refused_endpoint

pytestmark = pytest.mark.torch

ODD_KEYS = [
    "/",
    "//",
    "a/b",
    "/a/",
    "..",
    "../a",
    ".",
    "%2F",
    "a%b",
    "nul\0nul",
    "a b",
    "ü-日本",
    "k?q=1&r#s+t",
    "???>>>~~~",  # whose base64 has a "/" in it
    "x" * 300,
    "",
]
MS = timedelta(milliseconds=1)


def kinds(*, wrapped=False):
    """
    Return each API of each version, or wrapped in a PrefixStore of the newest alone.
    """
    try:
        found = [("v3", etcds.binaries()), ("v2", etcds.v2_binaries())]
    except etcds.NoEtcdError:
        found = []
    name = "prefixed-" if wrapped else ""
    params = [
        pytest.param(
            (api, one.path, wrapped),
            id=f"{name}{api}-{one.version}",
            marks=[pytest.mark.etcd] + [pytest.mark.v2] * (api == "v2"),
        )
        for api, binaries in found
        for one in (binaries[-1:] if wrapped else binaries)
    ]
    tcp = pytest.param(
        ("tcp", None, wrapped), id=f"{name}TCPStore", marks=pytest.mark.etcd
    )
    return [*params, tcp]


class Kind:
    """
    A kind of store.

    Attributes:
        store: A store.
        twin: What another thread uses: a TCPStore itself is busy while it waits.
    """

    def __init__(self, store, twin):
        self.store = store
        self.twin = twin
        # A PrefixStore does not keep what it wraps alive.
        self.kept = [store, twin]

    def wrap(self):
        wrapped = []
        for one in (self.store, self.twin):
            inner = PrefixStore("a/b", one)
            self.kept.append(inner)
            wrapped.append(PrefixStore("outer", inner))
        self.store, self.twin = wrapped


@pytest.fixture(params=kinds() + kinds(wrapped=True))
def kind(request, serve, _shared_servers, run_id):
    """
    Each kind of store in turn: ours, and torch's TCPStore beside it.
    """
    name, binary, wrapped = request.param
    if name == "tcp":
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        kind = Kind(store, TCPStore("127.0.0.1", store.port, wait_for_workers=False))
    else:
        served = serve(name, _shared_servers(binary))
        # On v2 all runs share a folder, and only the handler's prefix parts them.
        prefix = f"/torch/elastic/rendezvous/{run_id}/store"
        store = EtcdStore(served.client(), prefix)
        kind = Kind(store, store)
    if wrapped:
        kind.wrap()
    return kind


@pytest.fixture
def store(kind):
    """
    A store of each kind in turn.
    """
    return kind.store


def limited(store, seconds):
    store.set_timeout(timedelta(seconds=seconds))
    return store


# --- Values


def test_is_torchs_store(store):
    """
    It is a Store of torch's, and says that it has the extended API.
    """
    assert isinstance(store, Store)
    assert store.has_extended_api() is True


def test_set_and_get(store):
    """
    What was set last is there, str or bytes.
    """
    for value in ("text", b"bytes", b"", b"\0\xff", bytearray(b"array"), "ü"):
        store.set("key", value)

        expected = value.encode() if isinstance(value, str) else bytes(value)
        assert expected == store.get("key")


def test_str_and_bytes_name_one_key(store):
    """
    A key as bytes and as str is one key.
    """
    store.set(b"key", "a")
    assert store.get("key") == b"a"
    store.set("key", "b")
    assert store.get(b"key") == b"b"


def test_other_types_are_refused(store):
    """
    Keys and values are text or bytes, or a TypeError.
    """
    for wrong in (5, None, 1.5, ["a"]):
        with pytest.raises(TypeError):
            store.set("key", wrong)
        with pytest.raises(TypeError):
            store.set(wrong, "value")
        with pytest.raises(TypeError):
            store.get(wrong)

    assert store.check(["key"]) is False


def test_odd_keys(store):
    """
    Any text is a key of its own.
    """
    for number, key in enumerate(ODD_KEYS):
        store.set(key, str(number))

    values = [str(number).encode() for number in range(len(ODD_KEYS))]
    assert values == [store.get(key) for key in ODD_KEYS]
    assert values == store.multi_get(ODD_KEYS)
    assert store.check(ODD_KEYS) is True
    store.wait(ODD_KEYS, 1000 * MS)
    for key in ODD_KEYS:
        assert store.check([f"{key}-"]) is False
        assert store.add(f"{key}+", 3) == 3


def test_large_value(store):
    """
    A value of 1 MiB comes back whole, and so do some at once.
    """
    value = bytes(range(256)) * 4096
    keys = [f"large-{number}" for number in range(5)]
    for key in keys:
        store.set(key, value)

    assert value == store.get(keys[0])
    assert [value] * 5 == store.multi_get(keys)


def test_large_values_at_once(newest_served, run_id):
    """
    Values that are more together than a request may be are set at once.
    """
    store = newest_served.store(run_id)
    values = [bytes([number]) * 700_000 for number in range(5)]
    keys = [f"{run_id}-{number}" for number in range(5)]
    store.multi_set(keys, values)

    assert values == [store.get(key) for key in keys]


# --- Numbers


def test_add(store):
    """
    A number is added to; it is stored as decimal text.
    """
    assert store.add("n", 1) == 1
    assert store.add("n", 5) == 6
    assert store.add("n", -10) == -4
    assert store.add("n", 0) == -4
    assert store.get("n") == b"-4"
    store.set("n", "10")
    assert store.add("n", 1) == 11
    assert store.add("zero", 0) == 0
    assert store.check(["zero"]) is True
    assert store.get("zero") == b"0"
    assert store.add("large", 2**62) == 2**62


def test_add_to_text(newest_served, run_id):
    """
    Text is nothing to add to: an error, and the text stays. TCPStore drops the
    connection.
    """
    store = newest_served.store(run_id)
    key = f"text-{run_id}"
    for text in ("abc", "", "1.5"):
        store.set(key, text)
        with pytest.raises(DistStoreError, match=key):
            store.add(key, 1)

        assert text.encode() == store.get(key)


def test_add_at_once(store):
    """
    Those who add at once get each a number of its own.
    """
    with ThreadPoolExecutor(5) as pool:
        sums = list(pool.map(lambda _: store.add("n", 1), range(50)))

    assert list(range(1, 51)) == sorted(sums)


# --- Many keys


def test_multi_set_and_get(store):
    """
    Many are set and read in order, repeats too; of equal keys the last one counts.
    """
    store.multi_set(["a", "b", "a"], ["1", "2", "3"])

    assert store.multi_get(["a", "b", "a", "a"]) == [b"3", b"2", b"3", b"3"]
    assert store.multi_get([]) == []
    store.multi_set([], [])


def test_multi_set_of_unequal_lengths(store):
    """
    Keys without values are an error, and nothing is set.
    """
    with pytest.raises(DistStoreError):
        store.multi_set(["a", "b"], ["1"])

    assert store.check(["a"]) is False


def test_check(store):
    """
    Check says whether all are there, at once; none are always there.
    """
    store.set("a", "1")

    assert store.check(["a"]) is True
    assert store.check(["a", "a"]) is True
    assert store.check(["b"]) is False
    assert store.check(["a", "b"]) is False
    assert store.check([]) is True


# --- Waiting


def test_wait_for_what_is_there(store):
    """
    Waiting for what is there, or for nothing, is over at once.
    """
    store.multi_set(["a", "b"], ["1", "2"])
    start = time.monotonic()
    store.wait(["a"])
    store.wait(["a", "b", "a"], timedelta(seconds=30))
    store.wait([])
    store.wait([], MS)

    assert time.monotonic() - start < 5


def test_time_out(store):
    """
    What does not come is a DistStoreError after the time limit that names what is
    missing: for wait, get and multi_get, the store's own limit or another.
    """
    limited(store, 0.12)
    store.set("there", "1")
    for call in (
        lambda: store.wait(["there", "gone"]),
        lambda: store.get("gone"),
        lambda: store.multi_get(["there", "gone"]),
        lambda: limited(store, 30).wait(["there", "gone"], 120 * MS),
    ):
        start = time.monotonic()
        with pytest.raises(DistStoreError, match=r"timeout.*gone"):
            call()

        assert 0.1 <= time.monotonic() - start < 3


def test_short_time_out(store):
    """
    Limits of a millisecond, and of nothing, are limits.
    """
    store.set("there", "1")
    for limit in (0, 1, 10):
        start = time.monotonic()
        with pytest.raises(DistStoreError):
            store.wait(["gone"], limit * MS)
        assert time.monotonic() - start < 2
        store.wait(["there"], 2000 * MS)


def test_time_out_is_a_lookup_error(served, run_id):
    """
    Ours is a LookupError too, as of torch's own EtcdStore, and names the missing keys
    alone, at most eight of them.
    """
    store = served.store(run_id, timeout=50 * MS)
    keys = [f"key-{run_id}-{number}" for number in range(11)]
    store.set(keys[0], "there")
    for wrapped in (store, PrefixStore("", store)):
        with pytest.raises(LookupError) as caught:
            wrapped.wait([keys[0], *keys] if wrapped is store else keys)

        assert isinstance(caught.value, DistStoreError)
    with pytest.raises(LookupError) as caught:
        store.wait([keys[0], *keys])
    assert f"'{keys[0]}'" not in str(caught.value)
    assert all(f"'{key}'" in str(caught.value) for key in keys[1:9])
    assert f"'{keys[9]}'" not in str(caught.value)
    assert "2 more" in str(caught.value)


def test_set_by_another_thread(kind):
    """
    get, multi_get and wait return what another thread sets meanwhile.
    """
    store = limited(kind.store, 20)
    calls = {
        "one": lambda: store.get("one"),
        "two": lambda: store.multi_get(["one", "two"])[1],
        "three": lambda: store.wait(["one", "two", "three"]) or store.get("three"),
        "four": lambda: (
            store.wait(["four"], timedelta(seconds=20)) or store.get("four")
        ),
    }
    for key, call in calls.items():
        with later(kind.twin, key, 0.1):
            start = time.monotonic()

            assert key.encode() == call()
            assert time.monotonic() - start < 5


class later:  # noqa: N801
    """
    Set a key to its name after some seconds, from another thread.
    """

    def __init__(self, store, key, seconds):
        self._timer = threading.Timer(seconds, store.set, [key, key])

    def __enter__(self):
        self._timer.start()

    def __exit__(self, *exc_info):
        self._timer.join()


def test_wait_does_not_wait_for_time(kind):
    """
    What is set is seen at once, not at some next look.
    """
    store = limited(kind.store, 20)
    seen, told = queue.Queue(), []

    def read():
        for number in range(10):
            store.get(f"key-{number}")
            seen.put(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(10):
        time.sleep(0.02)
        start = time.monotonic()
        kind.twin.set(f"key-{number}", "1")
        told.append(seen.get(timeout=20) - start)
    thread.join()

    assert sorted(told)[5] < 0.1, told


def test_races_between_reading_and_writing(served, run_id):
    """
    200 keys that are written while others begin to wait for them all arrive.
    """
    store = limited(served.store(run_id), 20)
    keys = [f"{run_id}-{number}" for number in range(200)]
    barrier = threading.Barrier(2)

    def write():
        for key in keys:
            barrier.wait(20)
            store.set(key, key)

    def read(key):
        barrier.wait(20)
        return store.get(key)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        values = [read(key) for key in keys]
    finally:
        barrier.abort()
        writer.join()

    assert [key.encode() for key in keys] == values


def test_two_hundred_wait_at_once(newest_served, run_id):
    """
    Many threads that wait on one store each get what is theirs.
    """
    store = newest_served.store(run_id)
    limited(store, 30)
    keys = [f"{run_id}-{number}" for number in range(40)]
    with ThreadPoolExecutor(len(keys)) as pool:
        waiting = [pool.submit(store.get, key) for key in keys]
        time.sleep(0.3)
        store.multi_set(keys, keys)
        values = [one.result(30) for one in waiting]

    assert [key.encode() for key in keys] == values


# --- What it costs


def test_many_keys_in_few_requests(v3, make_proxy, run_id):
    """
    300 keys are set, read, checked and waited for in a handful of requests.
    """
    proxy = make_proxy(v3.endpoint)
    store = v3.store(run_id, proxy)
    keys = [f"key-{number:03}" for number in range(300)]
    for call, most in (
        (lambda: store.multi_set(keys, keys), 4),  # with the grant of a lease
        (lambda: store.multi_get(keys), 3),
        (lambda: store.check(keys), 3),
        (lambda: store.wait(keys), 3),
        (lambda: store.multi_set(keys, keys), 3),
    ):
        proxy.reset_counts()
        call()

        assert proxy.total_requests <= most

    assert [key.encode() for key in keys] == store.multi_get(keys)


def test_waiting_for_many_keys_takes_few_requests(v3, make_proxy, run_id):
    """
    100 keys that come one by one are waited for with one watch, not one request a key.
    """
    proxy = make_proxy(v3.endpoint)
    store, other = v3.store(run_id, proxy), v3.store(run_id)
    limited(store, 30)
    keys = [f"key-{number:03}" for number in range(100)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.multi_get, keys)
        proxy.wait_for_streams(1)
        for key in keys:
            other.set(key, key)
        values = waiting.result(30)

    assert [key.encode() for key in keys] == values
    assert proxy.total_requests <= 5


def test_waits_leave_no_sockets(newest_served, run_id):
    """
    Hundreds of waits, in vain and not, leave no sockets open but a few that are used
    again.
    """
    store = newest_served.store(run_id)
    store.set(f"{run_id}-there", "1")
    before = sockets()

    def wait(number):
        if number % 3:
            with pytest.raises(DistStoreError):
                store.wait([f"{run_id}-gone-{number}"], 5 * MS)
        else:
            store.wait([f"{run_id}-there"], 5000 * MS)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(wait, range(300)))
    deadline = time.monotonic() + 3
    while sockets() - before > 8 and time.monotonic() < deadline:
        time.sleep(0.05)

    assert sockets() - before <= 8


def sockets():
    return len(psutil.Process().net_connections(kind="tcp"))


# --- Where it is stored


def test_layout_on_v3(v3, run_id):
    """
    On v3 keys are readable, below the prefix, and hang on a lease.
    """
    store = v3.store(run_id)
    store.set("a/b", "value")
    store.add("number", 4)

    assert v3.read(f"/torch/elastic/rendezvous/{run_id}/store/a/b") == "value"
    assert v3.read(f"{store.prefix}number") == "4"
    assert 86_000 < v3.seconds_left(f"{store.prefix}a/b") <= 86_400
    assert 86_000 < v3.seconds_left(f"{store.prefix}number") <= 86_400


def test_layout_on_v2_is_torchs(newest_v2, run_id):
    """
    On v2 torch's own EtcdStore reads what ours writes, and ours what torch's does.
    """
    from torch.distributed.elastic.rendezvous.etcd_store import EtcdStore as Torchs

    client = newest_v2.client()
    ours = EtcdStore(client, "/torch/elastic/store", 5000 * MS)
    theirs = Torchs(newest_v2.client(), "/torch/elastic/store", 5000 * MS)
    key = f"key-{run_id}"
    ours.set(key, "ours")
    assert theirs.get(key) == b"ours"
    theirs.set(f"{key}-2", "theirs")
    assert ours.get(f"{key}-2") == b"theirs"
    assert ours.add(f"{key}-n", 2) == 2
    assert theirs.add(f"{key}-n", 3) == 5
    assert ours.add(f"{key}-n", 1) == 6
    node = client.read(f"/torch/elastic/store/{theirs._encode(key)}")
    assert 86_000 < node.ttl <= 86_400


@pytest.mark.parametrize("prefix", ["/a/b", "a/b", "/a/b/", "a/b/"])
def test_prefix(newest_served, run_id, prefix):
    """
    A missing slash of the prefix is added at both ends.
    """
    client = newest_served.client()
    prefix = prefix.replace("a", run_id)
    store = EtcdStore(client, prefix)
    store.set("key", "value")

    assert store.client is client
    assert f"{prefix.removesuffix('/')}/" == store.prefix
    name, text = ("key", "value") if newest_served.api == "v3" else ("a2V5", "dmFsdWU=")
    assert text == newest_served.read(f"/{run_id}/b/{name}")


def test_default_time_limit(newest_served, run_id):
    """
    The time limit is c10d's unless another is given, and can be changed.
    """
    assert timedelta(seconds=300) == newest_served.store(run_id).timeout
    assert newest_served.store(run_id, timeout=7000 * MS).timeout == 7000 * MS
    store = newest_served.store(run_id)
    store.set_timeout(1234 * MS)
    assert store.timeout == 1234 * MS


# --- etcd away


def test_etcd_that_is_away(newest_served, run_id):
    """
    Where no etcd answers until the time limit, that is a DistNetworkError that names
    the endpoint.
    """
    with refused_endpoint() as endpoint:
        store = EtcdStore(client_of(newest_served, endpoint), "/store", 1000 * MS)
        for call in (
            lambda: store.set("key", "1"),
            lambda: store.get("key"),
        ):
            start = time.monotonic()
            with pytest.raises(DistNetworkError, match=endpoint):
                call()
            assert 0.5 < time.monotonic() - start < 4


def client_of(served, endpoint):
    class Somewhere:
        pass

    Somewhere.endpoint = endpoint
    return served.client(Somewhere, read_timeout=5)


@pytest.mark.parametrize("api", ["v3", "v2"])
def test_etcd_restarts(request, serve, make_server, run_id, api):
    """
    Sets, adds and waits ride out an etcd that is killed and started again.
    """
    fixture = "newest_etcd_binary" if api == "v3" else "newest_v2_binary"
    server = make_server(binary=request.getfixturevalue(fixture))
    own = serve(api, server)
    writer, adder, reader = (own.store(run_id, read_timeout=30) for _ in range(3))
    limited(reader, 30)
    ended = threading.Event()
    writes = itertools.count()

    def write():
        number = 0
        while not ended.is_set():
            number = next(writes)
            writer.set(f"key-{number}", str(number))
        return number

    def add():
        total = 0
        while not ended.is_set():
            total += 1
            assert total == adder.add("number", 1)
        return total

    with ThreadPoolExecutor(3) as pool:
        writing, adding = pool.submit(write), pool.submit(add)
        waiting = pool.submit(reader.get, "last")
        try:
            time.sleep(0.3)
            server.kill()
            time.sleep(0.3)
            server.restart()
            time.sleep(0.3)
        finally:
            ended.set()
        last, total = writing.result(30), adding.result(30)
        writer.set("last", "done")

        assert waiting.result(30) == b"done"
    keys = [f"key-{number}" for number in range(last + 1)]
    assert [str(number).encode() for number in range(last + 1)] == reader.multi_get(
        keys
    )
    assert total == reader.add("number", 0)
    assert last > 2
    assert total > 2
