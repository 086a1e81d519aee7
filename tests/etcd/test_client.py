# SPDX-License-Identifier: BSD-3-Clause
"""
The v3 client, on each version and on a cluster of three. Nothing here needs torch.
"""

from __future__ import annotations

import base64
import contextlib
import random
import threading
import time

import pytest

from etcd_rendezvous import EtcdClient, EtcdReplyError
from etcd_rendezvous._v3 import wire
from etcd_rendezvous._v3.state_key import V3StateKey
from etcd_rendezvous._v3.store_keys import V3StoreKeys
from support.scripted import refused_endpoint


@pytest.fixture
def client(v3):
    """
    A client of each version.
    """
    return v3.client()


@pytest.fixture
def key(run_id):
    """
    A key that no other test has.
    """
    return f"/test/{run_id}"


# --- Keys


def test_put_and_get(v3, client, key):
    """
    What was put is there, for an independent reader too, until it is deleted.
    """
    assert client.get(key) is None
    first = client.put(key, "text ü")
    assert client.get(key) == "text ü".encode()
    assert v3.read(key) == "text ü"
    second = client.put(key.encode(), b"\0\xff")
    assert client.get(key.encode()) == b"\0\xff"
    assert second > first
    v3.write(key, "others")
    assert client.get(key) == b"others"

    assert client.delete(key) == 1
    assert client.delete(key) == 0
    assert client.get(key) is None
    assert v3.read(key) is None


def test_any_key_and_value(client, key):
    """
    Keys and values may be any bytes, the value also none.
    """
    pairs = [
        (f"{key}/".encode() + suffix, value)
        for suffix, value in [
            (b"\0", b""),
            (b"\xff\xfe", bytes(range(256))),
            (b"a/../b", b"1"),
            (b"x" * 1000, b"2"),
            (b"~?>", b"???>>>~~~"),
        ]
    ]
    for name, value in pairs:
        client.put(name, value)

    assert [value for _, value in pairs] == [client.get(name) for name, _ in pairs]
    assert client.delete(f"{key}/", prefix=True) == len(pairs)


def test_delete_by_prefix(client, key):
    """
    All keys that start with a prefix go, and no others.
    """
    for name in ("a/1", "a/2", "a", "ab"):
        client.put(f"{key}/{name}", name)

    assert client.delete(f"{key}/a/", prefix=True) == 2
    assert client.get(f"{key}/a") == b"a"
    assert client.get(f"{key}/ab") == b"ab"
    assert client.delete(f"{key}/a") == 1
    assert client.get(f"{key}/ab") == b"ab"


def test_range(client, key):
    """
    A range finds what it was asked for, and tells the revisions of each key.
    """
    created = client.put(f"{key}/a", "1")
    changed = client.put(f"{key}/a", "2")
    newest = client.put(f"{key}/b", "3")
    prefix = f"{key}/".encode()
    end = wire.prefix_end(prefix)

    found, revision = client.range(prefix, end)
    assert revision >= newest
    assert found.count == 2
    first, second = found.entries
    assert (first.key, first.value) == (prefix + b"a", b"2")
    assert (created, changed) == (first.create_revision, first.mod_revision)
    assert (first.version, first.lease) == (2, 0)
    assert (second.key, second.value) == (prefix + b"b", b"3")

    found, _ = client.range(prefix, end, count_only=True)
    assert (found.count, found.entries) == (2, [])
    found, _ = client.range(prefix, end, keys_only=True, limit=1, newest_first=True)
    assert [(prefix + b"b", b"")] == [(one.key, one.value) for one in found.entries]
    found, _ = client.range(prefix, end, max_create_revision=created)
    assert [prefix + b"a"] == [one.key for one in found.entries]
    found, _ = client.range(prefix + b"a", revision=created)
    assert found.entries[0].value == b"1"
    found, _ = client.range(prefix + b"a", min_mod_revision=changed + 1)
    assert (found.count, found.entries) == (1, [])
    found, _ = client.range(key)
    assert (found.count, found.entries) == (0, [])


def test_transaction(client, key):
    """
    A transaction runs one branch or the other, by what is compared.
    """
    raw = key.encode()
    put = wire.op_put(wire.put_message(raw, b"new"))
    read = wire.op_range(wire.range_message(raw))

    reply = client.txn([wire.compare_mod(raw, 0)], [put, read], [read])
    assert reply.succeeded
    assert not reply.maybe_earlier
    (found,) = reply.ranges
    assert found.entries[0].value == b"new"
    assert found.entries[0].mod_revision == reply.revision

    again = client.txn([wire.compare_mod(raw, 0)], [put], [read])
    assert not again.succeeded
    assert again.ranges[0].entries == found.entries
    assert reply.revision == again.revision
    delete = wire.op_delete(wire.delete_message(raw))
    same = [wire.compare_mod(raw, reply.revision)]
    assert client.txn(same, [delete]).succeeded
    assert not client.txn(same, [delete]).succeeded
    assert client.get(key) is None
    assert client.txn([], [read]).succeeded


def test_refusals_are_told_in_etcds_words(client, key):
    """
    What etcd refuses is an EtcdReplyError with its words, not tried again.
    """
    start = time.monotonic()
    with pytest.raises(EtcdReplyError) as caught:
        client.put(key, b"x" * 1_600_000)
    assert "request is too large" in caught.value.text
    assert key in str(caught.value)
    assert "1 try" in str(caught.value)
    with pytest.raises(EtcdReplyError) as caught:
        client.put(key, "1", lease=4711)
    assert "requested lease not found" in caught.value.text
    put = wire.op_put(wire.put_message(key.encode(), b"1"))
    with pytest.raises(EtcdReplyError) as caught:
        client.txn([], [put, put])
    assert "duplicate key" in caught.value.text

    assert client.get(key) is None
    assert time.monotonic() - start < 8  # Tried again, one would take 10 s.


# --- Leases


def new_lease_id():
    return random.SystemRandom().getrandbits(62) | 1


def test_leases(client, key):
    """
    A lease of one's own identifier is granted once, renewed, and revoked with what
    hangs on it.
    """
    lease = new_lease_id()
    assert client.keep_alive(lease) == 0
    assert client.seconds_left(lease) == 0
    client.grant(60, lease)
    client.grant(60, lease)
    client.put(key, "1", lease=lease)
    assert client.keep_alive(lease) == 60
    assert 55 <= client.seconds_left(lease) <= 60
    found, _ = client.range(key)
    assert lease == found.entries[0].lease
    client.revoke(lease)
    client.revoke(lease)

    assert client.get(key) is None
    assert client.keep_alive(lease) == 0


def test_lease_that_expires(newest_v3, key):
    """
    What hangs on a lease goes away with it; a renewal keeps it.
    """
    client = newest_v3.client()
    kept, lost = new_lease_id(), new_lease_id()
    start = time.monotonic()
    for lease in (kept, lost):
        client.grant(4, lease)
        client.put(f"{key}/{lease}", "1", lease=lease)
    while client.get(f"{key}/{lost}") is not None:
        assert time.monotonic() - start < 15
        assert client.keep_alive(kept) == 4
        time.sleep(0.2)

    assert time.monotonic() - start > 3.5
    assert client.get(f"{key}/{kept}") == b"1"
    assert client.keep_alive(lost) == 0


# --- The server


def test_version(v3, client):
    """
    The version is the server's own.
    """
    assert v3.server.version == client.version()


def test_status(v3, client):
    """
    So is the status.
    """
    assert v3.server.version == client.status()["version"]


def test_serves_v2(v3, client):
    """
    Whether v2 is served is the server's own answer.
    """
    assert v3.server.serves_v2 is client.serves_v2(timeout=5)


def test_repr(v3, client):
    """
    The repr says endpoint, API and state.
    """
    assert repr(client) == f"<EtcdClient http://{v3.endpoint} API v3, not yet used>"
    client.get("/")
    assert f"last answer from http://{v3.endpoint}>" in repr(client)
    client.close()
    assert "closed" in repr(client)
    assert client.get("/") is None


def test_watch(client, key):
    """
    A watch tells what changes after it was opened.
    """
    raw = key.encode()
    with client.watch([wire.watch_create(raw, watch_id=1)], what="watch") as watch:
        first = client.put(key, "1")
        client.delete(key)
        events = watch.events(5)
        put, gone = next(events), next(events)

    assert (put.deleted, put.entry.key, put.entry.value) == (False, raw, b"1")
    assert first == put.entry.mod_revision
    assert (gone.deleted, gone.entry.key) == (True, raw)


def test_no_leaks(newest_v3, no_leaked_threads, no_leaked_sockets, key):
    """
    A closed client leaves neither sockets nor threads behind, whatever it did.

    The server comes first: it is shared, and stays, if this test is the one to start it.
    """
    with EtcdClient(newest_v3.endpoint) as client:
        client.put(key, "1")
        create = wire.watch_create(key.encode(), watch_id=1)
        with client.watch([create], what="watch") as watch:
            assert list(watch.events(0.05)) == []
        with pytest.raises(EtcdReplyError):
            client.put(key, b"x" * 1_600_000)
        client.delete(key)


def test_many_threads(newest_v3, key):
    """
    One client serves many threads at once.
    """
    client = newest_v3.client()
    failed = []

    def work(number):
        try:
            for turn in range(20):
                client.put(f"{key}/{number}", str(turn))
                assert str(turn).encode() == client.get(f"{key}/{number}")
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert failed == []


def test_endpoint_that_is_down_is_passed_over(newest_v3, key):
    """
    Of several endpoints one that answers is enough, and is asked first from then on.
    """
    with refused_endpoint() as other:
        for endpoints in (
            f"{other},{newest_v3.endpoint}",
            [newest_v3.endpoint, f"http://{other}"],
        ):
            with EtcdClient(endpoints) as client:
                client.put(key, "1")
                assert client.get(key) == b"1"

                assert f"http://{newest_v3.endpoint}" == str(client.last_endpoint)


# --- A cluster of three


class Traffic:
    """
    Swaps that count up a number, reads and adds, from threads of their own.

    Every operation must succeed, and may take a while: nothing may get lost.
    """

    def __init__(self, endpoints, key):
        self.key = key
        self.swaps = self.reads = self.adds = 0
        self.slowest = 0.0
        self.failed = []
        self._ended = threading.Event()
        self._clients = [
            EtcdClient(endpoints, read_timeout=30, connect_timeout=1) for _ in range(4)
        ]
        works = (self._swap, self._swap, self._read, self._add)
        self._threads = [
            threading.Thread(target=self._run, args=[work, client])
            for work, client in zip(works, self._clients, strict=True)
        ]
        self._lock = threading.Lock()

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info):
        self._ended.set()
        for thread in self._threads:
            thread.join(60)
        for client in self._clients:
            client.close()

    def _run(self, work, client):
        kv = V3StateKey(client)
        keys = V3StoreKeys(client, f"{self.key}-adds/", 60)
        try:
            while not self._ended.is_set():
                start = time.monotonic()
                work(keys if work == self._add else kv)
                with self._lock:
                    self.slowest = max(self.slowest, time.monotonic() - start)
        except BaseException as error:
            self.failed.append(error)

    def _swap(self, kv):
        stored = kv.read(self.key, 0, 30).stored
        number = int(base64.b64decode(stored.value)) if stored else 0
        value = base64.b64encode(str(number + 1).encode())
        swap = kv.swap(self.key, value, stored.revision if stored else 0, 60, 30)
        with self._lock:
            self.swaps += swap.won

    def _read(self, kv):
        kv.read(self.key, 0, 30)
        with self._lock:
            self.reads += 1

    def _add(self, keys):
        total = keys.add(b"n", 1, 30)
        with self._lock:
            self.adds += 1
            assert total == self.adds

    def go_on(self, seconds=60.0):
        """
        Wait until each of them has got on.
        """
        before = self.swaps, self.reads, self.adds
        deadline = time.monotonic() + seconds
        while not all(
            now >= then + 3
            for now, then in zip(
                (self.swaps, self.reads, self.adds), before, strict=True
            )
        ):
            assert self.failed == []
            assert time.monotonic() < deadline, (before, self.swaps, self.reads)
            time.sleep(0.02)

    def check(self, client):
        """
        Nothing was lost, and nothing was counted twice.
        """
        assert self.failed == []
        assert self.swaps == int(base64.b64decode(client.get(self.key)))
        keys = V3StoreKeys(client, f"{self.key}-adds/", 60)
        assert [b"%d" % self.adds] == keys.get_many([b"n"], 30)


def test_members_are_killed(cluster, key):
    """
    While one member of three, its leader too, is killed, reads, swaps and adds go on,
    and nothing is lost.
    """
    with Traffic(cluster.get_endpoint(), key) as traffic:
        traffic.go_on()
        for victim in (cluster.leader(), None):
            member = victim or next(
                one for one in cluster.members if one is not cluster.leader()
            )
            member.kill()
            traffic.go_on()
            member.restart()
            traffic.go_on()
    with EtcdClient(cluster.get_endpoint()) as client:
        traffic.check(client)

    # An attempt of two seconds on the old leader, an election, and some more.
    assert traffic.slowest < 20


def test_leader_hangs(cluster, key):
    """
    While the leader hangs (SIGSTOP) the others go on, and nothing is lost when it
    comes back.
    """
    with Traffic(cluster.get_endpoint(), key) as traffic:
        traffic.go_on()
        leader = cluster.leader()
        leader.pause()
        try:
            traffic.go_on()
        finally:
            leader.resume()
        traffic.go_on()
    with EtcdClient(cluster.get_endpoint()) as client:
        traffic.check(client)

    assert traffic.slowest < 20


@pytest.mark.measures
def test_client_of_one_member_that_hangs(cluster, key):
    """
    An endpoint that takes connections and does not answer costs two seconds once; the
    next operation goes to the one that answered.
    """
    follower = next(one for one in cluster.members if one is not cluster.leader())
    others = [one for one in cluster.endpoints if one != follower.get_endpoint()]
    follower.pause()
    with contextlib.ExitStack() as stack:
        stack.callback(follower.resume)
        client = stack.enter_context(
            EtcdClient([follower.get_endpoint(), others[0]], read_timeout=20)
        )
        # The first endpoint is chosen at random.
        client._transport.failover._current = 0
        start = time.monotonic()
        client.put(key, "1")
        first = time.monotonic() - start
        start = time.monotonic()
        assert client.get(key) == b"1"
        second = time.monotonic() - start

    assert 1.9 < first < 5
    assert second < 1
