# SPDX-License-Identifier: BSD-3-Clause
"""
What is our store's alone: where it differs from TCPStore, what it costs, where it is
stored, and etcd away. What it shares with TCPStore is in `test_store_contract.py`.
"""

from __future__ import annotations

import base64
import gc
import itertools
import threading
import time
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psutil
import pytest
from torch.distributed import (
    DistNetworkError,
    DistStoreError,
    PrefixStore,
)

from etcd_rendezvous import EtcdClient, EtcdSettingError, EtcdStore
from support.scripted import refused_endpoint

pytestmark = pytest.mark.torch

MS = timedelta(milliseconds=1)


def limited(store, seconds):
    store.set_timeout(timedelta(seconds=seconds))
    return store


# --- Where TCPStore differs


def test_large_values_at_once(newest_served, run_id):
    """
    Values that are more together than a request may be are set at once.
    """
    store = newest_served.store(run_id)
    values = [bytes([number]) * 700_000 for number in range(5)]
    keys = [f"{run_id}-{number}" for number in range(5)]
    store.multi_set(keys, values)

    assert values == [store.get(key) for key in keys]


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


@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "",
        " ",
        "+",
        "1.5",
        "12x",
        "1e3",
        "0x10",
        "12 3",
        "- 5",
        "1_000",
        "1\0",
        "٣",
    ],
)
def test_add_to_text(newest_served, run_id, text):
    """
    Text is nothing to add to: an error, and the text stays. TCPStore takes the number
    that a text begins with, and drops the connection where there is none.
    """
    store = newest_served.store(run_id)
    store.set(run_id, text)
    for wrapped in (store, PrefixStore("", store)):
        key = run_id if wrapped is store else f"/{run_id}"
        wrapped.set(key, text)
        for amount in (1, 0, -5):
            with pytest.raises(DistStoreError, match=run_id):
                wrapped.add(key, amount)

        assert text.encode() == wrapped.get(key)
    store.set(run_id, "1")
    assert store.add(run_id, 1) == 2


@pytest.mark.parametrize(
    ("number", "amount"),
    [(2**63 - 1, 1), (2**63 - 1, 5), (-(2**63), -1), (2**63, 0), (2**70, -(2**62))],
)
def test_sums_beyond_64_bits(newest_served, run_id, number, amount):
    """
    A sum that torch could not hand on is an error, and what is there stays.
    """
    store = newest_served.store(run_id)
    store.set(run_id, str(number))
    with pytest.raises(DistStoreError, match=rf"'{run_id}' does not fit into 64 bits"):
        store.add(run_id, amount)

    assert store.get(run_id) == str(number).encode()


def test_sums_of_a_counter_beyond_64_bits(newest_served, run_id):
    """
    What `add` itself has counted up to the limit stays there, through a prefix too.
    """
    store = newest_served.store(run_id)
    key = f"{run_id}-counter"
    for one, name in ((store, key), (PrefixStore(run_id, store), "counter")):
        assert one.add(name, 2**62) == 2**62
        assert one.add(name, 2**62 - 2) == 2**63 - 2
        assert one.add(name, 1) == 2**63 - 1
        with pytest.raises(DistStoreError, match="64 bits"):
            one.add(name, 1)
        assert one.get(name) == b"%d" % (2**63 - 1)


@pytest.mark.parametrize("ttl", [1, 0, -5, 2.5, True, "3"])
def test_a_time_to_live_that_can_not_be_used(newest_served, ttl):
    """
    It is refused at once, by name.
    """
    with pytest.raises(ValueError, match="The ttl of a store is a whole number"):
        EtcdStore(newest_served.client(), "/s", ttl=ttl)


def test_a_prefix_that_can_not_be_used(newest_served):
    """
    Likewise.
    """
    with pytest.raises(ValueError, match="The prefix of a store is a str, not bytes"):
        EtcdStore(newest_served.client(), b"/s")


@pytest.mark.parametrize("size", [1_600_000, 2_200_000])
def test_a_value_that_is_too_large(v3, run_id, size):
    """
    What etcd does not take is refused at once, with the limit's name; nothing is lost.
    """
    store = v3.store(run_id)
    store.set("key", "before")
    with pytest.raises(DistStoreError, match=r"--max-request-bytes, 1\.5 MiB"):
        store.set("key", b"x" * size)

    assert store.get("key") == b"before"


def test_text_that_is_no_text(newest_served, run_id):
    """
    What UTF-8 can't encode is a TypeError, whatever is done with it.
    """
    store = newest_served.store(run_id)
    for call in (
        lambda: store.set("\ud800", ""),
        lambda: store.set("key", "\ud800"),
        lambda: store.get("\ud800"),
        lambda: store.add("\ud800", 1),
        lambda: store.check(["\ud800"]),
        lambda: store.wait(["key"], float("inf")),
    ):
        with pytest.raises(TypeError):
            call()


def test_an_etcd_that_is_away_is_waited_for_no_longer(serve, newest_served, run_id):
    """
    Waiting for keys of an etcd that is not there ends at the client's own limit.
    """
    with refused_endpoint() as endpoint:
        refused = types.SimpleNamespace(endpoint=endpoint)
        client = newest_served.client(refused, read_timeout=1)
        store = EtcdStore(client, "/s", timedelta(seconds=30))
        started = time.monotonic()
        with pytest.raises(DistNetworkError):
            store.get("key")

    assert time.monotonic() - started < 20


def test_a_limit_of_nothing(newest_served, run_id):
    """
    A limit of no time bounds the waiting alone: what is there is found. TCPStore's
    server has to answer within it.
    """
    store = limited(newest_served.store(run_id), 0)
    store.set("there", "1")
    for _ in range(10):
        assert store.get("there") == b"1"
        assert store.multi_get(["there"] * 2) == [b"1"] * 2
        store.wait(["there"])
        store.wait(["there"], timedelta(0))
        store.wait([], timedelta(0))
        assert store.multi_get([]) == []
    store.barrier("alone", 1, timedelta(0))


def test_a_limit_that_has_passed(newest_served, run_id):
    """
    A negative limit times out at once, and finds what is there. TCPStore waits for
    ever.
    """
    store = newest_served.store(run_id)
    store.set("p/there", "1")
    for one, there in ((store, "p/there"), (PrefixStore("p", store), "there")):
        started = time.monotonic()
        for limit in (timedelta(seconds=-5), -0.5):
            with pytest.raises(LookupError, match="gone"):
                one.wait(["gone"], limit)
            one.wait([there], limit)
        one.set_timeout(timedelta(seconds=-5))
        assert one.get(there) == b"1"
        assert one.add("n", 1) == 1
        with pytest.raises(LookupError, match="gone"):
            one.get("gone")
        assert time.monotonic() - started < 5


def test_what_tcpstore_does_not_take(newest_served, run_id):
    """
    Views of bytes, any iterable of keys, and names of arguments.
    """
    store = newest_served.store(run_id)
    store.set(key="k", value=memoryview(b"1"))
    assert store.get(key="k") == b"1"
    assert store.check(key for key in ("k",)) is True
    assert store.compare_set(key="c", expected_value="", desired_value="2") == b"2"
    assert store.add(key="n", num=3) == 3
    store.append(key="c", value=memoryview(b"3"))
    assert store.multi_get(keys=("c", "n")) == [b"23", b"3"]
    assert store.delete_key(key="c") is True


def test_a_limit_that_is_no_limit(newest_served, run_id):
    """
    A time limit may be longer than anybody lives.
    """
    store = newest_served.store(run_id)
    store.set("k", "1")
    for limit in (1e20, -1e20, timedelta.max):
        store.wait(["k"], limit)


def test_slashes_in_a_prefix(newest_served):
    """
    Several slashes in a row do no harm; a prefix that is no text is refused.
    """
    run = uuid.uuid4()
    store = EtcdStore(newest_served.client(), f"//{run}//a/")
    store.set("k", "1")
    assert store.add("n", 2) == 2
    assert store.multi_get(["k", "n"]) == [b"1", b"2"]
    assert store.num_keys() == 2
    assert sorted(store.list_keys()) == ["k", "n"]
    store.queue_push("q", "1")
    assert store.queue_pop("q") == b"1"
    with pytest.raises(EtcdSettingError, match="is no text in UTF-8"):
        EtcdStore(newest_served.client(), "a\udc80")


class MadeFromAName(EtcdStore):
    """
    A user's store, which is made from something else.
    """

    def __init__(self, served, name):
        super().__init__(served.client(), f"/{name}", timedelta(seconds=7))
        self.name = name


def test_a_clone_of_a_users_store(newest_served, run_id):
    """
    The clone of a subclass is one of that class, however that is made.
    """
    store = MadeFromAName(newest_served, run_id)
    store.set("k", "1")
    clone = store.clone()

    assert type(clone) is MadeFromAName
    assert clone.name == run_id
    assert clone.get("k") == b"1"
    assert clone.timeout == timedelta(seconds=7)


def test_long_keys(served, run_id):
    """
    Keys longer than TCPStore's 8 KiB work on v3; v2 says at once where they are too
    long, be the connection a new one or not.
    """
    v2 = served.api == "v2"
    for size in (2700, 2800) if v2 else (9000, 100_000):
        for store in (served.store(run_id), served.store(run_id)):
            store.set("k" * size, "1")
            assert store.get("k" * size) == b"1"
            assert store.add("n" * size, 1) > 0
            store.queue_push("q" * size, "1")
            assert store.queue_pop("q" * size) == b"1"
            with pytest.raises(DistStoreError, match="timeout"):
                store.wait(["g" * size], 10 * MS)
    store = served.store(run_id)
    key = "k" * 3000
    for call in (
        lambda: store.set(key, "1"),
        lambda: store.get(key),
        lambda: store.add(key, 1),
        lambda: store.wait([key]),
        lambda: store.queue_push(key, "1"),
        lambda: store.queue_len(key),
    ):
        if v2:
            with pytest.raises(DistStoreError, match="use a shorter one, or etcd's v3"):
                call()


def test_the_stores_own_limit_by_name(newest_served, run_id):
    """
    The limit of wait has the name that it has in torch's EtcdStore, and None is the
    store's.
    """
    store = limited(newest_served.store(run_id), 0.05)
    for arguments in ((None,), ()):
        with pytest.raises(DistStoreError, match=r"0\.05 s.*gone"):
            store.wait(["gone"], *arguments)
    with pytest.raises(DistStoreError, match=r"0\.01 s.*gone"):
        store.wait(["gone"], override_timeout=10 * MS)


def test_what_was_written_is_there_for_all(newest_served, run_id):
    """
    What a call has written is there for everybody when it returns. TCPStore does not
    wait until its server has a key, or a queue its value.
    """
    one, other = (newest_served.store(run_id) for _ in range(2))
    for number in range(20):
        key = f"key-{number}"
        one.set(key, "1")
        assert other.check([key]) is True
        other.append(key, "2")
        assert one.get(key) == b"12"
        one.multi_set([key, "k"], ["3", "4"])
        assert other.multi_get(["k", key]) == [b"4", b"3"]
        one.queue_push("q", key)
        assert other.queue_len("q") == 1
        assert other.queue_pop("q", block=False) == key.encode()


def test_a_pop_that_waits_never_finds_its_queue_empty(newest_served, run_id):
    """
    Who pops and waits goes on waiting where another one was quicker. TCPStore's is a
    QueueEmptyError then.
    """
    stores = [limited(newest_served.store(run_id), 20) for _ in range(4)]

    def pop(store):
        return [store.queue_pop("q") for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(pop, store) for store in stores]
        pusher = newest_served.store(run_id)
        for number in range(40):
            pusher.queue_push("q", f"{number:02}")
        popped = [one.result(30) for one in waiting]

    assert sorted(itertools.chain(*popped)) == [b"%02d" % n for n in range(40)]
    assert [sorted(own) for own in popped] == popped


def test_a_queue_is_not_there_as_a_key(newest_served, run_id):
    """
    A queue does not pass for a key. For TCPStore's check, wait and get it does.
    """
    store = limited(newest_served.store(run_id), 0.02)
    store.queue_push("q", "1")

    assert store.check(["q"]) is False
    for call in (store.get, lambda key: store.wait([key])):
        with pytest.raises(DistStoreError, match="timeout"):
            call("q")
    assert store.compare_set("q", "1", "2") == b"1"
    assert store.check(["q"]) is False


def test_queues_and_lists_are_not_to_be_had_through_torch(newest_served, run_id):
    """
    A PrefixStore of torch's hands queues and lists of keys on to torch's stores alone.
    """
    store = newest_served.store(run_id)
    wrapped = PrefixStore("prefix", store)
    for call in (
        wrapped.list_keys,
        lambda: wrapped.queue_push("q", "1"),
        lambda: wrapped.queue_pop("q", False),
        lambda: wrapped.queue_len("q"),
    ):
        with pytest.raises(NotImplementedError):
            call()

    assert store.list_keys() == []


def test_keys_that_are_no_text_are_listed(newest_served, run_id):
    """
    Keys that are no UTF-8 are listed in a form that is taken as a key again.
    TCPStore's list is a UnicodeDecodeError then.
    """
    store = newest_served.store(run_id)
    store.multi_set(["ü", b"\xff/\xfe"], ["1", "2"])
    keys = store.list_keys()

    assert sorted(keys) == sorted(["ü", b"\xff/\xfe".decode(errors="surrogateescape")])
    assert sorted(store.multi_get(keys)) == [b"1", b"2"]
    assert [store.delete_key(key) for key in keys] == [True, True]
    assert store.num_keys() == 0


def test_the_names_that_torch_calls(newest_served, run_id):
    """
    What torch's C++ calls deleteKey and getNumKeys has these names as well.
    """
    store = newest_served.store(run_id)
    store.multi_set(["a", "b"], ["1", "2"])

    assert store.deleteKey("a") is True
    assert store.deleteKey("a") is False
    assert store.getNumKeys() == store.num_keys() == 1


# --- Waiting


def test_races_between_reading_and_writing(served, run_id):
    """
    1,000 keys that are written while others begin to wait for them all arrive, and
    none only at a look that comes later: who waits looks again after 15 s.
    """
    store = limited(served.store(run_id), 20)
    keys = [f"{run_id}-{number}" for number in range(1000)]
    barrier = threading.Barrier(2)
    slowest = 0.0

    def write():
        for key in keys:
            barrier.wait(20)
            store.set(key, key)

    def read(key):
        nonlocal slowest
        barrier.wait(20)
        started = time.monotonic()
        value = store.get(key)
        slowest = max(slowest, time.monotonic() - started)
        return value

    writer = threading.Thread(target=write)
    writer.start()
    try:
        values = [read(key) for key in keys]
    finally:
        barrier.abort()
        writer.join()

    assert [key.encode() for key in keys] == values
    assert slowest < 10


def test_forty_wait_at_once(newest_served, run_id):
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
        (lambda: store.multi_set(keys, keys), 5),  # with the lease of all stores
        (lambda: store.multi_get(keys), 4),  # and once who etcd is
        (lambda: store.check(keys), 3),
        (lambda: store.wait(keys), 3),
        (lambda: store.multi_set(keys, keys), 3),
    ):
        proxy.reset_counts()
        call()

        assert proxy.total_requests <= most

    assert [key.encode() for key in keys] == store.multi_get(keys)


def test_four_thousand_keys_in_forty_requests(newest_v3, make_proxy, run_id):
    """
    4,000 keys are set, and read, in at most 40 requests.
    """
    proxy = make_proxy(newest_v3.endpoint)
    store = newest_v3.store(run_id, proxy)
    keys = [f"key-{number}" for number in range(4000)]
    store.multi_set(keys, keys)
    assert proxy.total_requests <= 40
    proxy.reset_counts()
    values = store.multi_get(keys)

    assert proxy.total_requests <= 40
    assert [key.encode() for key in keys] == values


def test_adders_at_once_need_a_request_each(newest_v3, make_proxy, run_id):
    """
    200 adds of 20 clients at once, the first ones too, are about 200 transactions.
    """
    proxy = make_proxy(newest_v3.endpoint)
    stores = [newest_v3.store(run_id, proxy) for _ in range(20)]
    for store in stores:
        store.set("ready", "")
    proxy.reset_counts()
    with ThreadPoolExecutor(20) as pool:
        sums = list(
            pool.map(lambda s: [s.add("counter", 1) for _ in range(10)], stores)
        )

    assert sorted(number for one in sums for number in one) == list(range(1, 201))
    assert proxy.total_requests <= 220


def test_waiting_for_many_keys_takes_few_requests(v3, make_proxy, run_id):
    """
    100 keys that come one by one are waited for in some five rounds of a watch and a
    read, not with a request a key.
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
    # Five rounds are the mean; nobody will see 20.
    assert proxy.total_requests <= 40


def test_waits_leave_no_sockets(newest_served, run_id):
    """
    1,000 waits, in vain and not, leave two sockets open at most, which are used again.
    """
    store = newest_served.store(run_id)
    before = sockets()
    store.set(f"{run_id}-there", "1")

    def wait(number):
        if number % 3:
            with pytest.raises(DistStoreError):
                store.wait([f"{run_id}-gone-{number}"], 5 * MS)
        else:
            store.wait([f"{run_id}-there"], 5000 * MS)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(wait, range(1000)))
    deadline = time.monotonic() + 20
    while sockets() - before > 2 and time.monotonic() < deadline:
        time.sleep(0.05)

    assert sockets() - before <= 2


def test_a_client_that_is_dropped_leaves_no_sockets(newest_v3, run_id):
    """
    A client that nobody has closed closes its connections when nobody holds it.
    """
    before = sockets()
    for _ in range(10):
        EtcdClient(newest_v3.endpoint).put(f"/{run_id}", "x")
    gc.collect()

    assert sockets() <= before


def test_clones_share_a_lease(newest_v3, run_id):
    """
    However many clones are used, one thread keeps their keys.
    """
    store = newest_v3.store(run_id)
    store.set("key", "1")
    before = set(threading.enumerate())
    for number in range(20):
        store.clone().set(f"key-{number}", "1")

    # Of those from before this test some may have ended.
    assert set(threading.enumerate()) <= before


@pytest.mark.measures
def test_waits_in_vain_end_in_time(newest_served, run_id):
    """
    50 threads that wait in vain all end when their time is up, and name what is
    missing then, not what was missing at first.
    """
    store = newest_served.store(run_id)
    came, gone = f"{run_id}-came", f"{run_id}-gone"

    def wait(_):
        started = time.monotonic()
        with pytest.raises(DistStoreError, match=gone) as caught:
            store.wait([came, gone], 600 * MS)
        assert came not in str(caught.value)
        return time.monotonic() - started

    with ThreadPoolExecutor(50) as pool:
        waiting = [pool.submit(wait, number) for number in range(50)]
        time.sleep(0.2)
        store.set(came, "")
        took = [one.result(20) for one in waiting]

    assert min(took) >= 0.6
    assert max(took) < 1.6


@pytest.mark.measures
def test_a_watch_that_is_slow_to_open(newest_v3, make_proxy, run_id):
    """
    The time that opening a watch takes is part of the wait's own.
    """
    proxy = make_proxy(newest_v3.endpoint)
    store = newest_v3.store(run_id, proxy)
    store.set("key", "")
    started = time.monotonic()
    with proxy.delay(1.0, "/v3/watch"), pytest.raises(DistStoreError, match="gone"):
        store.wait(["gone"], 1500 * MS)

    assert 1.5 <= time.monotonic() - started < 2.3


def sockets():
    return len(psutil.Process().net_connections(kind="tcp"))


# --- Where it is stored


def test_layout_on_v3(v3, run_id):
    """
    On v3 keys are readable, below the prefix, and hang on a lease. A number that was
    added to stands there as what is to be added to its key's version.
    """
    store = v3.store(run_id)
    store.set("a/b", "value")
    store.add("number", 4)
    store.set("text", "4")

    assert v3.read(f"/torch/elastic/rendezvous/{run_id}/store/a/b") == "value"
    assert v3.read(f"{store.prefix}text") == "4"
    number = v3.read(f"{store.prefix}number")
    assert number == "\0etcd-rendezvous counter: version+3"
    store.add("number", 1)
    assert number == v3.read(f"{store.prefix}number")
    for key in ("a/b", "number", "text"):
        assert 7000 < v3.seconds_left(f"{store.prefix}{key}") <= 7200


def test_time_to_live(newest_served, run_id):
    """
    The time to live of the keys can be set: that of all that writes them.
    """
    prefix = f"/{run_id}"
    store = EtcdStore(newest_served.client(), prefix, ttl=100)
    store.set("a", "1")
    store.add("b", 1)
    store.append("c", "1")
    store.compare_set("d", "", "1")
    store.multi_set(["e", "a"], ["1", "2"])
    store.add("a", 5)
    clone = store.clone()
    clone.set("f", "1")

    for key in "abcdef":
        encoded = base64.b64encode(key.encode()).decode()
        name = key if newest_served.api == "v3" else encoded
        assert 50 < newest_served.seconds_left(f"{prefix}/{name}") <= 100


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


# What needs an etcd that answers, and for how long it waits for one: as long as the
# store's limit, 2 s here, or its own, or a second at least.
ASKING = {
    "set": (lambda store: store.set("key", "2"), 3),
    "get": (lambda store: store.get("key"), 3),
    "get gone": (lambda store: store.get("gone"), 3),
    "add": (lambda store: store.add("n", 1), 3),
    "add 5": (lambda store: store.add("n", 5), 3),
    "compare_set": (lambda store: store.compare_set("key", "1", "2"), 3),
    "append": (lambda store: store.append("key", "2"), 3),
    "delete_key": (lambda store: store.delete_key("key"), 3),
    "check": (lambda store: store.check(["key"]), 3),
    "multi_get": (lambda store: store.multi_get(["key", "n"]), 3),
    "multi_set": (lambda store: store.multi_set(["a", "b"], ["1", "2"]), 3),
    "num_keys": (lambda store: store.num_keys(), 3),
    "list_keys": (lambda store: store.list_keys(), 3),
    "wait": (lambda store: store.wait(["key"]), 3),
    "wait 3 s": (lambda store: store.wait(["gone"], 3000 * MS), 3),
    "wait 1 ms": (lambda store: store.wait(["gone"], MS), 1),
    "barrier": (lambda store: store.barrier("barrier", 2, 1000 * MS), 3),
    "queue_push": (lambda store: store.queue_push("q", "1"), 3),
    "queue_pop": (lambda store: store.queue_pop("q"), 3),
    "queue_pop now": (lambda store: store.queue_pop("q", block=False), 3),
    "queue_len": (lambda store: store.queue_len("q"), 3),
}
# What waits in vain while etcd goes away, and how long.
WAITING = {
    "get": (lambda store: store.get("gone"), 3),
    "wait": (lambda store: store.wait(["gone", "too"], 3000 * MS), 3),
    "queue_pop": (lambda store: store.queue_pop("empty"), 3),
}


@pytest.mark.parametrize("how", ["pause", "kill"])
@pytest.mark.parametrize("api", ["v3", "v2"])
def test_etcd_that_goes_away(request, serve, make_server, run_id, api, how):
    """
    Where etcd hangs or is gone, whatever needs it is a DistNetworkError when its time
    is up, and what began to wait before likewise.
    """
    fixture = "newest_etcd_binary" if api == "v3" else "newest_v2_binary"
    server = make_server(binary=request.getfixturevalue(fixture))
    store = serve(api, server).store(run_id, timeout=3000 * MS)
    store.multi_set(["key", "n"], ["1", "1"])
    store.queue_push("q", "1")

    def took(call):
        started = time.monotonic()
        with pytest.raises(DistNetworkError, match=server.get_endpoint()):
            call(store)
        return time.monotonic() - started

    with ThreadPoolExecutor(len(ASKING) + len(WAITING)) as pool:
        waiting = [(pool.submit(took, call), most) for call, most in WAITING.values()]
        time.sleep(0.5)
        getattr(server, how)()
        try:
            asking = [(pool.submit(took, call), most) for call, most in ASKING.values()]
            store.wait([])
            for one, seconds in asking:
                assert seconds - 0.1 <= one.result(30) < seconds + 6
            for one, seconds in waiting:
                assert seconds - 0.1 <= one.result(30) < seconds + 6
        finally:
            if how == "pause":
                server.resume()


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
