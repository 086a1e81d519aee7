# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The bodies and replies of etcd's v3 JSON gateway. No server.
"""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_rendezvous._v3 import wire

# etcd's names, from api/etcdserverpb/rpc.proto. etcd ignores others in silence, and
# whatever stands in their place is missing then.
NAMES = {
    "RangeRequest": {
        "key": bytes,
        "range_end": bytes,
        "limit": int,
        "revision": int,
        "sort_order": {"NONE", "ASCEND", "DESCEND"},
        "sort_target": {"KEY", "VERSION", "CREATE", "MOD", "VALUE"},
        "serializable": bool,
        "keys_only": bool,
        "count_only": bool,
        "min_mod_revision": int,
        "max_mod_revision": int,
        "min_create_revision": int,
        "max_create_revision": int,
    },
    "PutRequest": {
        "key": bytes,
        "value": bytes,
        "lease": int,
        "prev_kv": bool,
        "ignore_value": bool,
        "ignore_lease": bool,
    },
    "DeleteRangeRequest": {"key": bytes, "range_end": bytes, "prev_kv": bool},
    "Compare": {
        "result": {"EQUAL", "GREATER", "LESS", "NOT_EQUAL"},
        "target": {"VERSION", "CREATE", "MOD", "VALUE", "LEASE"},
        "key": bytes,
        "version": int,
        "create_revision": int,
        "mod_revision": int,
        "value": bytes,
        "lease": int,
        "range_end": bytes,
    },
    "RequestOp": {
        "request_range": "RangeRequest",
        "request_put": "PutRequest",
        "request_delete_range": "DeleteRangeRequest",
        "request_txn": "TxnRequest",
    },
    "TxnRequest": {
        "compare": ["Compare"],
        "success": ["RequestOp"],
        "failure": ["RequestOp"],
    },
    "WatchRequest": {"create_request": "WatchCreateRequest"},
    "WatchCreateRequest": {
        "key": bytes,
        "range_end": bytes,
        "start_revision": int,
        "progress_notify": bool,
        "filters": [{"NOPUT", "NODELETE"}],
        "prev_kv": bool,
        "watch_id": int,
        "fragment": bool,
    },
}


def check(data, kind):
    """
    Assert that data from JSON is a message as etcd knows it.
    """
    if isinstance(kind, str):
        assert isinstance(data, dict)
        assert set() == set(data) - set(NAMES[kind])
        for name, value in data.items():
            check(value, NAMES[kind][name])
    elif isinstance(kind, list):
        assert isinstance(data, list)
        for item in data:
            check(item, kind[0])
    elif isinstance(kind, set):
        assert data in kind
    elif kind is bool:
        assert data is True
    else:
        assert isinstance(data, str)
        if kind is int:
            assert str(int(data)) == data
        else:
            b64decode(data, validate=True)


# -- requests ----------------------------------------------------------------------


def test_paths():
    """
    These are the paths that the gateway serves.
    """
    assert [
        "/v3/kv/range",
        "/v3/kv/put",
        "/v3/kv/txn",
        "/v3/kv/deleterange",
        "/v3/lease/grant",
        "/v3/lease/revoke",
        "/v3/lease/keepalive",
        "/v3/lease/timetolive",
        "/v3/watch",
        "/v3/maintenance/status",
    ] == [
        wire.RANGE,
        wire.PUT,
        wire.TXN,
        wire.DELETE_RANGE,
        wire.GRANT,
        wire.REVOKE,
        wire.KEEP_ALIVE,
        wire.TIME_TO_LIVE,
        wire.WATCH,
        wire.STATUS,
    ]


def test_range():
    """
    A range without filters is its key.
    """
    assert {"key": "L2E="} == wire.range_message(b"/a")


def test_range_with_everything():
    """
    Every filter of a range has etcd's name, and numbers are strings.
    """
    message = wire.range_message(
        b"/a",
        b"/b",
        keys_only=True,
        count_only=True,
        limit=3,
        min_mod_revision=4,
        max_create_revision=5,
        newest_first=True,
        revision=6,
    )

    check(message, "RangeRequest")
    assert {
        "key": "L2E=",
        "range_end": "L2I=",
        "keys_only": True,
        "count_only": True,
        "limit": "3",
        "min_mod_revision": "4",
        "max_create_revision": "5",
        "sort_order": "DESCEND",
        "sort_target": "CREATE",
        "revision": "6",
    } == message


@pytest.mark.parametrize(
    ("lease", "expected"),
    [
        (0, {"key": "L2E=", "value": "AP8="}),
        (2**62 + 1, {"key": "L2E=", "value": "AP8=", "lease": "4611686018427387905"}),
    ],
)
def test_put(lease, expected):
    """
    A put has key, value and, where there is one, a lease.
    """
    message = wire.put_message(b"/a", b"\x00\xff", lease)

    check(message, "PutRequest")
    assert expected == message


@pytest.mark.parametrize(
    ("end", "expected"),
    [(None, {"key": "L2E="}), (b"/b", {"key": "L2E=", "range_end": "L2I="})],
)
def test_delete(end, expected):
    """
    A delete has a key or a range.
    """
    message = wire.delete_message(b"/a", end)

    check(message, "DeleteRangeRequest")
    assert expected == message


@pytest.mark.parametrize("revision", [0, 2**63 - 1])
def test_compare_mod(revision):
    """
    A comparison of the mod revision names all four fields, the 0 of absence too.
    """
    message = wire.compare_mod(b"/a", revision)

    check(message, "Compare")
    assert {
        "key": "L2E=",
        "target": "MOD",
        "result": "EQUAL",
        "mod_revision": str(revision),
    } == message


def test_txn():
    """
    A compare-and-swap is comparison, put and range, under etcd's names.
    """
    message = wire.txn(
        [wire.compare_mod(b"/a", 5)],
        [
            wire.op_put(wire.put_message(b"/a", b"v")),
            wire.op_delete(wire.delete_message(b"/b")),
        ],
        (wire.op_range(wire.range_message(key)) for key in (b"/a", b"/b")),
    )

    check(message, "TxnRequest")
    assert {
        "compare": [
            {"key": "L2E=", "target": "MOD", "result": "EQUAL", "mod_revision": "5"}
        ],
        "success": [
            {"request_put": {"key": "L2E=", "value": "dg=="}},
            {"request_delete_range": {"key": "L2I="}},
        ],
        "failure": [
            {"request_range": {"key": "L2E="}},
            {"request_range": {"key": "L2I="}},
        ],
    } == message


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {}),
        ({"end": b"/b"}, {"range_end": "L2I="}),
        ({"start_revision": 9}, {"start_revision": "9"}),
        ({"no_puts": True}, {"filters": ["NOPUT"]}),
        ({"no_deletes": True}, {"filters": ["NODELETE"]}),
        ({"no_puts": True, "no_deletes": True}, {"filters": ["NOPUT", "NODELETE"]}),
    ],
)
def test_watch_create(options, expected):
    """
    A watch has etcd's names, and always a create_request and a number.
    """
    message = wire.watch_create(b"/a", watch_id=2, **options)

    check(message, "WatchRequest")
    assert {"create_request": {"key": "L2E=", "watch_id": "2", **expected}} == message


def test_encode():
    """
    A message on the wire is JSON without white space.
    """
    assert b'{"key":"L2E=","limit":"1"}' == wire.encode(
        wire.range_message(b"/a", limit=1)
    )


@given(st.binary())
def test_base64(key):
    """
    Keys travel in standard, padded base64: 3.5 and older refuse any other.
    """
    text = json.loads(wire.encode(wire.range_message(key)))["key"]

    assert key == b64decode(text, validate=True)
    assert 0 == len(text) % 4


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        (b"/a/", b"/a0"),
        (b"a", b"b"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"a\x00", b"a\x01"),
        (b"\xff", b"\0"),
        (b"", b"\0"),
    ],
)
def test_prefix_end(prefix, expected):
    """
    The end of a prefix is the next prefix; after the last there is none, a zero byte.
    """
    assert expected == wire.prefix_end(prefix)


@given(st.binary(min_size=1), st.binary())
def test_prefix_end_divides(prefix, key):
    """
    A key is in the range of a prefix if and only if it starts with it.
    """
    end = wire.prefix_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)

    assert key.startswith(prefix) is inside
    assert prefix + key >= prefix
    assert end == b"\0" or prefix + key < end


# -- replies -----------------------------------------------------------------------


def test_a_full_range():
    """
    A range's reply has its keys with all their numbers, which come as strings.
    """
    reply = json.loads("""
        {"header": {"cluster_id": "14841639068965178418", "revision": "12",
                    "raft_term": "2"},
         "kvs":\t[ {"key": "L2E=", "create_revision": "3", "mod_revision": "11",
                  "version": "4", "value": "AP8=", "lease": "7587880132419912705"} ],
         "more": true, "count": "2"}
    """)
    found = wire.decode_range(reply)

    assert [
        wire.Entry(b"/a", b"\x00\xff", 3, 11, 4, 7587880132419912705)
    ] == found.entries
    assert 2 == found.count
    assert 12 == wire.header_revision(reply)


def test_an_empty_range():
    """
    Fields that are absent are empty or zero.
    """
    assert wire.RangeReply([], 0) == wire.decode_range({"header": {"revision": "2"}})


@pytest.mark.parametrize("reply", [{}, {"header": {}}, {"header": None}, {"header": 1}])
def test_a_reply_without_a_revision(reply):
    """
    A reply without the store's revision is not etcd's.
    """
    with pytest.raises((KeyError, TypeError)):
        wire.header_revision(reply)


def test_an_unchanged_range():
    """
    A count without keys is what the filters held back.
    """
    assert wire.RangeReply([], 1) == wire.decode_range({"count": "1"})


def test_an_empty_value():
    """
    A value that is absent is empty.
    """
    found = wire.decode_range({"kvs": [{"key": "L2E="}], "count": "1"})

    assert [wire.Entry(b"/a", b"", 0, 0, 0, 0)] == found.entries


def test_numbers_may_be_numbers():
    """
    A number that comes as a number is read, too.
    """
    reply = {"header": {"revision": 12}, "count": 2, "kvs": [{"lease": 5}]}

    assert 12 == wire.header_revision(reply)
    assert wire.RangeReply([wire.Entry(b"", b"", 0, 0, 0, 5)], 2) == wire.decode_range(
        reply
    )


def test_a_won_txn():
    """
    A transaction that succeeded says so, and its revision.
    """
    reply = {
        "header": {"revision": "8"},
        "succeeded": True,
        "responses": [{"response_put": {"header": {"revision": "8"}}}],
    }

    assert wire.TxnReply(True, 8, [], False) == wire.decode_txn(reply)


def test_a_lost_txn():
    """
    A transaction without "succeeded" was lost; its ranges are in their order.
    """
    reply = {
        "header": {"revision": "8"},
        "responses": [
            {"response_range": {"count": "1", "kvs": [{"key": "L2E="}]}},
            {"response_put": {}},
            {"response_range": {}},
        ],
    }
    expected = wire.TxnReply(
        False,
        8,
        [
            wire.RangeReply([wire.Entry(b"/a", b"", 0, 0, 0, 0)], 1),
            wire.RangeReply([], 0),
        ],
        True,
    )

    assert expected == wire.decode_txn(reply, maybe_earlier=True)


def test_an_empty_txn():
    """
    A transaction's reply may lack everything but its header.
    """
    reply = {"header": {"revision": "9"}}

    assert wire.TxnReply(False, 9, [], False) == wire.decode_txn(reply)


def test_a_created_watch():
    """
    A watch's first message confirms it.
    """
    message = {
        "result": {"header": {"revision": "5"}, "watch_id": "2", "created": True}
    }

    assert wire.WatchMessage(2, True, False, 0, 5, []) == wire.decode_watch(message)


def test_events():
    """
    A put has no type; a deletion has one, and no value.
    """
    message = {
        "result": {
            "header": {"revision": "9"},
            "events": [
                {"kv": {"key": "L2E=", "value": "dg==", "mod_revision": "8"}},
                {"type": "PUT", "kv": {"key": "L2I="}},
                {"type": "DELETE", "kv": {"key": "L2E=", "mod_revision": "9"}},
                {"type": "DELETE"},
            ],
        }
    }
    told = wire.decode_watch(message)

    assert [False, False, True, True] == [event.deleted for event in told.events]
    assert [b"/a", b"/b", b"/a", b""] == [event.entry.key for event in told.events]
    assert [b"v", b"", b"", b""] == [event.entry.value for event in told.events]
    assert [8, 0, 9, 0] == [event.entry.mod_revision for event in told.events]


def test_a_canceled_watch():
    """
    A canceled watch says since when the history is there, and why it was canceled.
    """
    message = {
        "result": {
            "canceled": True,
            "compact_revision": "77",
            "cancel_reason": "compacted",
        }
    }
    told = wire.decode_watch(message)

    assert told.canceled
    assert not told.created
    assert (77, "compacted") == (told.compact_revision, told.cancel_reason)


@pytest.mark.parametrize("message", [{}, {"result": {}}, {"result": None}])
def test_an_empty_watch_message(message):
    """
    A message without anything says nothing.
    """
    assert wire.WatchMessage(0, False, False, 0, 0, []) == wire.decode_watch(message)


# -- errors ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        # 3.4 and 3.5
        ({"error": "no", "code": 3, "message": "no"}, (3, "no")),
        ({"error": "no", "message": "no", "code": 14, "details": []}, (14, "no")),
        ({"error": "no", "code": 5}, (5, "no")),
        # 3.6 and 3.7
        ({"code": 3, "message": "no", "details": []}, (3, "no")),
        ({"code": 3, "message": ""}, (3, "")),
        # inside streams
        (
            {
                "error": {
                    "grpc_code": 14,
                    "http_code": 503,
                    "message": "no",
                    "http_status": "Service Unavailable",
                }
            },
            (14, "no"),
        ),
        ({"error": {"code": 14, "message": "no", "details": []}}, (14, "no")),
        ({"error": {"message": "no"}}, (2, "no")),
        ({"error": {}}, (2, "")),
        # of somebody in between
        ({"error": "no"}, (2, "no")),
        ({"error": {"code": "E1", "message": "no"}}, (2, "no")),
        ({"code": "E1", "message": "no"}, (2, "no")),
    ],
)
def test_errors(data, expected):
    """
    An error is found in all shapes that etcd's versions give it.
    """
    assert expected == wire.decode_error(data)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"header": {"revision": "3"}, "kvs": [], "count": "1"},
        {"result": {"created": True}},
        {"error": None},
        {"code": 5},
        {"message": "hello"},
        [],
        ["error"],
        "error",
        3,
        None,
    ],
)
def test_no_errors(data):
    """
    What is no error is not taken for one.
    """
    assert wire.decode_error(data) is None
