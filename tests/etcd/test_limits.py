# SPDX-License-Identifier: BSD-3-Clause
"""
etcd's limits, reached on real servers: each a plain error at once, with its remedy.
"""

from __future__ import annotations

import collections
import logging
import pickle
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import urllib3
from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    _NodeDesc,
    _RendezvousState,
)

from etcd_rendezvous import (
    EtcdClient,
    EtcdConnectionError,
    EtcdLimitError,
    EtcdRendezvousBackend,
    EtcdRendezvousHandler,
    EtcdStore,
    create_backend,
    create_handler,
)
from support.oldgateway import old_gateway
from support.quota import SMALL_QUOTA, use_up

pytestmark = pytest.mark.torch

GUARANTEES = Path(__file__).parents[2] / "docs" / "guarantees.md"
NAMES = ("node-{:05}", "job-worker-{:05}.job-headless.namespace.svc.cluster.local")
AT_ONCE = 15.0  # seconds, where waiting would take the join time-out of ten minutes


def state_of(nodes, name=NAMES[0]):
    """
    Return torch's state of so many running nodes, pickled.
    """
    state = _RendezvousState()
    state.complete = True
    state.deadline = now = datetime.now(timezone.utc)
    for number in range(nodes):
        node = _NodeDesc(name.format(number), 100_000 + number, 0)
        state.participants[node] = number
        state.last_heartbeats[node] = now + timedelta(milliseconds=number)
    return pickle.dumps(state)


def bytes_left(key, limit=1_572_864):
    """
    Return how many bytes a state may have so that its request is just not refused.
    """
    return (limit - 1 - len(key)) // 4 * 3


@pytest.fixture
def params(run_id):
    """
    A function from an endpoint and settings to torch's parameters.
    """

    def make(endpoint, **config):
        config = {"last_call_timeout": 1, "keep_alive_interval": 1, **config}
        return RendezvousParameters(
            "etcd-v3", endpoint, run_id, 1, 3, "localhost", **config
        )

    return make


@pytest.fixture
def limited(etcd_binary, make_server, run_etcdctl):
    """
    A server of each version whose data may have 4 MiB.
    """
    server = make_server(binary=etcd_binary, extra_args=[SMALL_QUOTA])
    return Limited(server.get_endpoint(), run_etcdctl)


@pytest.fixture
def newest_limited(newest_etcd_binary, make_server, run_etcdctl):
    """
    Such a server of the newest version.
    """
    server = make_server(binary=newest_etcd_binary, extra_args=[SMALL_QUOTA])
    return Limited(server.get_endpoint(), run_etcdctl)


class Limited:
    """
    A server with a small quota.
    """

    def __init__(self, endpoint, run_etcdctl):
        self.endpoint = endpoint
        self._run_etcdctl = run_etcdctl

    def fill(self):
        """
        Write until the quota is used up; return what is then said.
        """
        return use_up(self.endpoint)

    def make_room(self):
        """
        Do what the message says.
        """
        newest = self._run_etcdctl(self.endpoint, "del", "/filling")["header"]
        with urllib3.PoolManager(retries=False) as pool:
            for path, message in (
                ("kv/compaction", {"revision": newest["revision"], "physical": True}),
                ("maintenance/defragment", {}),
            ):
                reply = pool.request(
                    "POST", f"http://{self.endpoint}/v3/{path}", json=message
                )
                assert reply.status == 200, reply.data
        self._run_etcdctl(self.endpoint, "alarm", "disarm")


def refused(call, kind=RendezvousConnectionError):
    """
    Let a call be refused because of a limit, at once; return what was said.
    """
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        call()
    assert time.monotonic() - started < AT_ONCE
    error = caught.value
    cause = error if isinstance(error, EtcdLimitError) else error.__cause__
    assert isinstance(cause, EtcdLimitError)
    assert "\n" not in str(cause)
    return str(cause)


# --- The size of a request


def test_a_state_that_is_too_large(v3, make_proxy, run_id):
    """
    A state over the limit is not sent; key, size, limit, nodes and remedy are named.
    """
    proxy = make_proxy(v3.endpoint)
    backend = v3.backend(run_id, proxy)
    state = state_of(20_000)
    said = refused(lambda: backend.set_state(state))

    assert proxy.total_requests == 0
    assert f"'{backend.key}'" in said
    size = int(re.search("have ([0-9]+) bytes", said)[1])
    assert size == len(backend.key) + (len(state) + 2) // 3 * 4
    assert "may have 1572864 (request_limit), so it was not sent" in said
    assert "raise --max-request-bytes on every member" in said
    assert said.endswith("The state holds 20000 node(s).")
    assert backend.get_state() is None
    assert backend.set_state(b"small")[2] is True


def test_a_state_just_below_the_limit(v3, run_id):
    """
    What a request needs besides is not counted: there etcd refuses, and the nodes are
    named as well; a little less is stored.
    """
    backend = v3.backend(run_id)
    room = bytes_left(backend.key)
    nodes = 18_000
    # The last node's name fills it up.
    state = pickle.loads(state_of(nodes))
    state.participants[_NodeDesc("x" * 300, 1, 0)] = nodes
    missing = room - len(pickle.dumps(state))
    state.participants = dict(list(state.participants.items())[:-1])
    state.participants[_NodeDesc("x" * (300 + missing), 1, 0)] = nodes
    full = pickle.dumps(state)
    assert len(full) == room
    said = refused(lambda: backend.set_state(full))

    assert "request is too large; etcd's limit is --max-request-bytes, 1.5 MiB" in said
    assert f"'{backend.key}' at http://{v3.endpoint}" in said
    assert said.endswith(f"The state holds {nodes + 1} node(s).")
    assert backend.set_state(b"x" * (room - 1000))[2] is True


def test_bytes_that_are_no_state(v3, run_id):
    """
    A bare backend takes any bytes: of these no nodes are told.
    """
    said = refused(lambda: v3.backend(run_id).set_state(b"x" * 1_300_000))

    assert said.endswith("and request_limit with it.")


def test_a_limit_that_is_raised(etcd_binary, make_server, params):
    """
    With etcd's limit and the setting raised a large state is stored, read and swapped;
    with only the setting raised etcd refuses, with only etcd's the setting does.
    """
    raised = make_server(
        binary=etcd_binary, extra_args=["--max-request-bytes=8000000"]
    ).get_endpoint()
    usual = make_server(binary=etcd_binary).get_endpoint()
    state = state_of(60_000)
    assert 4 * 1024 * 1024 < len(state) * 4 / 3 < 7_000_000

    backend, _ = create_backend(params(raised, request_limit=8_000_000))
    _, token, won = backend.set_state(state)
    assert won
    assert backend.set_state(state, token)[2] is True
    assert create_backend(params(raised))[0].get_state()[0] == state

    said = refused(lambda: create_backend(params(raised))[0].set_state(state))
    assert "(request_limit)" in said
    backend, _ = create_backend(params(usual, request_limit=8_000_000))
    said = refused(lambda: backend.set_state(state))
    assert "received message larger than max" in said
    assert "raise it on every member" in said
    assert said.endswith("The state holds 60000 node(s).")


def test_a_lower_limit(newest_v3, params):
    """
    The setting may be lower than etcd's own limit.
    """
    backend, _ = create_backend(params(newest_v3.endpoint, request_limit=1000))
    said = refused(lambda: backend.set_state(state_of(10)))

    assert "may have 1000 (request_limit)" in said
    assert said.endswith("The state holds 10 node(s).")


def test_a_state_that_v2_does_not_take(v2_server, serve, run_id):
    """
    v2 takes far more, whatever v3's limit; what it does not take is refused likewise.
    """
    served = serve("v2", v2_server)
    backend = served.backend(run_id)
    _, token, won = backend.set_state(state_of(20_000))
    assert won
    large = state_of(130_000)
    said = refused(lambda: backend.set_state(large, token))

    assert "etcd's v2 takes 10 MiB at most" in said
    assert said.endswith("The state holds 130000 node(s).")


def test_joining_with_a_state_that_is_too_large(newest_v3, params, caplog):
    """
    Who would make the state too large by joining is told at once, not after the join
    time-out, and the reason stands in the log.
    """
    endpoint = newest_v3.endpoint
    backend, _ = create_backend(params(endpoint))
    # More than may take part: who comes waits, and says so in the state.
    backend.set_state(state_of(100))
    handler = create_handler(params(endpoint, request_limit=8700))
    said = refused(handler.next_rendezvous)

    assert said.endswith("The state holds 101 node(s).")
    assert said in [one.getMessage() for one in caplog.records]


WRITES = {
    "set": lambda store, value: store.set("key", value),
    "multi_set": lambda store, value: store.multi_set(["a", "key"], ["b", value]),
    "compare_set": lambda store, value: store.compare_set("key", "before", value),
    "append": lambda store, value: store.append("key", value),
    "queue_push": lambda store, value: store.queue_push("queue", value),
}


@pytest.mark.parametrize("size", [1_600_000, 2_200_000])
@pytest.mark.parametrize("write", WRITES)
def test_a_value_that_is_too_large(v3, run_id, write, size):
    """
    Whatever writes too large a value into the store is told the remedy at once.
    """
    store = v3.store(run_id)
    store.set("key", "before")
    said = refused(lambda: WRITES[write](store, b"x" * size), DistStoreError)

    assert "raise it on every member, or write less at once" in said
    assert v3.endpoint in said
    assert store.get("key") == b"before"
    assert store.queue_len("queue") == 0


def test_more_than_a_transaction_holds(v3, make_proxy, run_id):
    """
    No transaction has more operations than etcd's 128, nor more bytes than 1.5 MiB.
    """
    proxy = make_proxy(v3.endpoint)
    store = v3.store(run_id, proxy)
    keys = [f"key-{number}" for number in range(300)]
    values = [b"%d" % number + b"x" * 20_000 for number in range(300)]
    store.multi_set(keys, values)

    assert store.multi_get(keys) == values
    sent = [one.json for one in proxy.log if one.path == "/v3/kv/txn"]
    assert max(len(one["success"]) for one in sent) == 120
    assert {one.status for one in proxy.log} == {200}


# --- The size of a reply


def test_replies_that_are_large(v3, run_id):
    """
    The gateways of today pass on replies over 4 MiB.
    """
    store = v3.store(run_id)
    keys = [f"key-{number}" for number in range(6)]
    store.multi_set(keys, [b"x" * 1_000_000] * 6)

    assert store.multi_get(keys) == [b"x" * 1_000_000] * 6


def test_replies_that_are_too_large(newest_v3, run_id):
    """
    Where the gateway does not pass on 4 MiB, keys are read in fewer at a time.
    """
    with old_gateway(newest_v3.endpoint) as gateway:
        store = newest_v3.store(run_id, gateway)
        keys = [f"key-{number}" for number in range(100)]
        values = [b"%d" % number + b"x" * 100_000 for number in range(100)]
        store.multi_set(keys, values)
        before = len(gateway.paths)

        assert store.multi_get([*keys, keys[0]]) == [*values, values[0]]
        assert store.check(keys)
        # 10 MB, in halves until they have less than 4. The lease is kept meanwhile, and
        # etcd is asked once who it is.
        asked = collections.Counter(gateway.paths[before:])
        del asked["/v3/lease/keepalive"]
        assert asked == {"/v3/kv/txn": 2 * (1 + 2 + 4), "/version": 1}


def test_a_value_that_does_not_fit_into_a_reply(make_server, params):
    """
    A single value that the gateway does not pass on is an error at once, with the
    remedy; so is such a state.
    """
    server = make_server(extra_args=["--max-request-bytes=9000000"])
    with old_gateway(server.get_endpoint()) as gateway:
        backend, store = create_backend(
            params(gateway.endpoint, request_limit=9_000_000)
        )
        store.set("key", b"x" * 5_000_000)
        said = refused(lambda: store.get("key"), DistStoreError)

        assert "no reply over 4 MiB: update etcd, or store less in one key" in said
        backend.set_state(b"x" * 5_000_000)
        other, _ = create_backend(params(gateway.endpoint))
        assert "no reply over 4 MiB" in refused(other.get_state)
        store.client.close()


# --- The quota

REMEDY = (
    "database space exceeded; etcd's quota is used up: delete what is not needed, "
    "compact and defragment every member, or raise --quota-backend-bytes; then run "
    "'etcdctl alarm disarm' (1 try in "
)


def test_quota(limited, run_id):
    """
    An exhausted quota is an error at once for whatever writes, with the remedy; reads
    go on, and after the remedy the same objects do.
    """
    endpoint = limited.endpoint
    with EtcdClient(endpoint) as client:
        backend = EtcdRendezvousBackend(client, run_id)
        store = EtcdStore(client, f"/{run_id}")
        _, token, _ = backend.set_state(b"one")
        store.multi_set(["key", "other"], ["value", "value"])
        store.add("number", 1)
        store.queue_push("queue", "value")
        said = [str(limited.fill())]

        said.append(refused(lambda: backend.set_state(b"two", token)))
        said.append(refused(lambda: client.grant(10, 77), EtcdLimitError))
        fresh = EtcdRendezvousBackend(client, f"{run_id}-fresh")
        said.append(refused(lambda: fresh.set_state(b"one")))
        new = EtcdStore(client, f"/{run_id}-new")
        said += [
            refused(call, DistStoreError)
            for call in (
                lambda: store.set("key", "x"),
                lambda: store.multi_set(["key", "other"], ["x", "x"]),
                lambda: store.add("number", 1),
                lambda: store.add("number", 2),
                lambda: store.compare_set("key", "value", "x"),
                lambda: store.append("key", "x"),
                lambda: store.delete_key("key"),
                lambda: store.queue_push("queue", "x"),
                lambda: store.queue_pop("queue"),
                lambda: new.set("key", "x"),
            )
        ]
        for one in said:
            assert REMEDY in one
            assert f"http://{endpoint}" in one
            assert "may not have been applied" not in one
            assert "node(s)" not in one

        assert backend.get_state()[0] == b"one"
        assert store.multi_get(["key", "other"]) == [b"value", b"value"]
        assert store.check(["key", "none"]) is False
        assert sorted(store.list_keys()) == ["key", "number", "other"]
        assert store.queue_len("queue") == 1

        limited.make_room()

        assert backend.set_state(b"two", token)[2] is True
        assert fresh.set_state(b"one")[2] is True
        assert store.add("number", 1) == 2
        assert store.add("number", 2) == 4
        store.multi_set(["key", "other"], ["x", "y"])
        assert store.multi_get(["key", "other"]) == [b"x", b"y"]
        assert store.queue_pop("queue") == b"value"
        assert store.delete_key("key")
        new.set("key", "x")


def test_joining_without_room(newest_limited, params, caplog):
    """
    Who wants to join is told at once, and the reason stands in the log.
    """
    handler = create_handler(params(newest_limited.endpoint))
    newest_limited.fill()
    said = refused(handler.next_rendezvous)

    assert REMEDY in said
    assert said in [one.getMessage() for one in caplog.records]
    newest_limited.make_room()
    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()


def test_quota_while_the_round_forms(newest_limited, params, run_id):
    """
    Likewise if it happens after the state was written, when rank 0 says where to meet.
    """

    class LateStore(EtcdStore):
        def set(self, key, value):
            newest_limited.fill()
            super().set(key, value)

    parameters = params(newest_limited.endpoint)
    backend, store = create_backend(parameters)
    late = LateStore(store.client, store.prefix)
    handler = EtcdRendezvousHandler.create(late, backend, parameters)

    assert REMEDY in refused(handler.next_rendezvous)
    newest_limited.make_room()
    handler._stop_heartbeats()


def test_a_round_that_runs_without_room(newest_limited, params, caplog):
    """
    A running round goes on although no heartbeat can be written: polls keep the last
    answer and say why, and after the remedy nobody is evicted and others can join.
    """
    # So long that none is late who looks once a second.
    several = params(newest_limited.endpoint, last_call_timeout=4)
    first, second = (create_handler(several) for _ in range(2))
    with ThreadPoolExecutor(2) as pool:
        joined = list(pool.map(lambda one: one.next_rendezvous(), [first, second]))
    assert [one.world_size for one in joined] == [2, 2]
    newest_limited.fill()
    # Longer than a node may be silent: three heartbeats of a second.
    until = time.monotonic() + 5
    slowest = 0.0
    while time.monotonic() < until:
        for handler in (first, second):
            started = time.monotonic()
            assert handler.num_nodes_waiting() == 0
            slowest = max(slowest, time.monotonic() - started)
        time.sleep(0.1)

    assert slowest < 3  # As long as it takes where etcd is away.
    told = [
        one
        for one in caplog.records
        if one.getMessage().startswith("etcd refuses to write; the running round of ")
    ]
    assert {one.levelno for one in told} == {logging.WARNING}
    assert 1 <= len(told) <= 2
    assert REMEDY in told[0].getMessage()

    newest_limited.make_room()
    third = create_handler(several)
    joining = threading.Thread(target=third.next_rendezvous)
    joining.start()
    try:
        deadline = time.monotonic() + 60
        while first.num_nodes_waiting() != 1 or second.num_nodes_waiting() != 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(first._holder.state.participants) == 2
        # All meet again.
        with ThreadPoolExecutor(2) as pool:
            joined = list(pool.map(lambda one: one.next_rendezvous(), [first, second]))
        assert [one.world_size for one in joined] == [3, 3]
    finally:
        joining.join(30)
        for handler in (first, second, third):
            handler._stop_heartbeats()


# --- History that is gone


def test_waiting_although_history_is_compacted(v3, make_proxy, run_id):
    """
    Who waits for keys, or for a queue, misses nothing if etcd drops its history, and
    the stream breaks, meanwhile.
    """
    proxy = make_proxy(v3.endpoint)
    store, other = v3.store(run_id, proxy), v3.store(run_id)
    with ThreadPoolExecutor(2) as pool:
        key = pool.submit(store.get, "key")
        value = pool.submit(store.queue_pop, "queue")
        proxy.wait_for_streams(2)
        other.multi_set(["a", "b"], ["1", "2"])
        v3.compact()
        proxy.cut_streams()
        other.multi_set(["a", "b"], ["3", "4"])
        v3.compact()
        other.set("key", "came")
        other.queue_push("queue", "came")

        assert key.result(10) == b"came"
        assert value.result(10) == b"came"


def test_a_revision_that_is_compacted(v3):
    """
    A client that reads the past, or watches from there, is told in one sentence.
    """
    client = v3.client()
    revision = client.put("/compacted", "one")
    client.put("/compacted", "two")
    v3.compact()
    with pytest.raises(Exception, match="required revision has been compacted") as read:
        client.range("/compacted", revision=revision)

    assert str(read.value).startswith("Could not read the key '/compacted' at http://")
    assert not isinstance(read.value, EtcdConnectionError)


# --- What the documentation says


def test_how_many_nodes_fit():
    """
    As many nodes fit into a state as the page says, within a hundred.
    """
    said = re.search(
        r"about ([\d,]+) nodes with names of 10 characters, or ([\d,]+) with names of 57",
        GUARANTEES.read_text().replace("\n  ", " "),
    )
    for name, number in zip(NAMES, said.groups(), strict=True):
        nodes = int(number.replace(",", ""))
        assert len(name.format(0)) in (10, 57)
        sizes = [
            len(state_of(nodes + more, name)) * 4 / 3 + 500 for more in (-100, 100)
        ]
        assert sizes[0] < 1_572_864 < sizes[1]
