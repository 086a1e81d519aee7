# SPDX-License-Identifier: BSD-3-Clause
"""
Replies that etcd would never send: nothing but documented errors comes of them.
"""

from __future__ import annotations

import contextlib
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_rendezvous import EtcdClient, EtcdError
from etcd_rendezvous._v3 import wire
from etcd_rendezvous._v3.error_texts import read_reply
from etcd_rendezvous._v3.transport import Transport
from etcd_rendezvous._v3.watch import _message

# The same examples each time, on a machine that may be busy.
examples = settings(derandomize=True, max_examples=1500)

KV = {
    "key": "L2E=",
    "value": "MQ==",
    "create_revision": "5",
    "mod_revision": "7",
    "version": "2",
    "lease": "77",
}
HEADER = {"cluster_id": "1", "member_id": "2", "revision": "9", "raft_term": "3"}
RANGE = {"header": HEADER, "kvs": [KV, KV], "count": "2"}
TXN = {
    "header": HEADER,
    "succeeded": True,
    "responses": [
        {"response_put": {"header": HEADER}},
        {"response_range": {"kvs": [KV], "count": "1"}},
    ],
}
LEASE = {"header": HEADER, "ID": "77", "TTL": "60"}
DELETED = {"header": HEADER, "deleted": "3"}
ERRORS = [
    {"error": "etcdserver: no leader", "code": 14, "message": "etcdserver: no leader"},
    {"code": 5, "message": "etcdserver: requested lease not found"},
]
MESSAGES = [
    {
        "result": {
            "header": HEADER,
            "watch_id": "1",
            "created": True,
            "events": [{"type": "DELETE", "kv": KV}, {"kv": KV}],
        }
    },
    {
        "result": {
            "header": HEADER,
            "canceled": True,
            "compact_revision": "4",
            "cancel_reason": "compacted",
        }
    },
    {"error": {"grpc_code": 14, "http_code": 503, "message": "server stopped"}},
]
NUMBERS = st.sampled_from([float("inf"), float("nan"), 1e30, -1, "-1", "9" * 5000])
ODD = NUMBERS | st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "1e400", "L2E", "=", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(list(HEADER) + list(KV)), inner, max_size=3)
    ),
    max_leaves=5,
)
# Operations, each with what etcd answers.
OPERATIONS = [
    (lambda client: client.range("a"), RANGE),
    (lambda client: client.get("a"), RANGE),
    (lambda client: client.put("a", "1"), DELETED),
    (lambda client: client.delete("a"), DELETED),
    (lambda client: client.txn([], [wire.op_range(wire.range_message(b"a"))]), TXN),
    (lambda client: client.grant(5, 77), LEASE),
    (lambda client: client.keep_alive(77), {"result": LEASE}),
    (lambda client: client.seconds_left(77), LEASE),
    (lambda client: client.revoke(77), LEASE),
    (lambda client: client.status(), LEASE),
]


def places(data, path=()):
    """
    Return the ways to everything in a parsed reply.
    """
    found = [path]
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    for key, value in items:
        found += places(value, (*path, key))
    return found


@st.composite
def mutated(draw, replies):
    """
    A reply of etcd's in which some values are others; sometimes its bytes are damaged.
    """
    reply = json.loads(json.dumps(draw(st.sampled_from(replies))))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(places(reply)[1:] or [("header",)]))
        inside = reply
        for key in way:
            inside = inside[key]
        inside[last] = draw(ODD)
    raw = bytearray(json.dumps(reply).encode())
    if draw(st.sampled_from([False, False, False, True])):
        raw = raw[: draw(st.integers(1, len(raw)))]
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


class Answered(EtcdClient):
    """
    A client that gets its replies from a test, in the place of a connection.
    """

    def __init__(self, status, body):
        super().__init__("localhost:1", read_timeout=0.01)
        self._transport = OneReply(self._transport, status, body)


class OneReply:
    def __init__(self, transport: Transport, status, body):
        self.failover = transport.failover
        self._reply = status, body

    def post(self, path, body, *, what, timeout, writes=True, **_):
        return self.failover.run(
            lambda endpoint, limit: read_reply(*self._reply),
            what=what,
            timeout=timeout,
            writes=writes,
        )


@given(st.data())
@examples
def test_a_reply(data):
    """
    Whatever comes, an operation returns or raises an error of ours.
    """
    operation, good = data.draw(st.sampled_from(OPERATIONS))
    body = data.draw(mutated([good, good, *ERRORS]) | st.binary(max_size=50))
    status = data.draw(st.sampled_from([200, 200, 200, 400, 404, 429, 500, 501, 503]))
    with contextlib.suppress(EtcdError):
        operation(Answered(status, body))


@given(mutated(MESSAGES) | st.binary(max_size=50))
@examples
def test_a_message_of_a_watch(line):
    """
    So does a watch, message by message.
    """
    with contextlib.suppress(EtcdError):
        _message(line, "watch")
