# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
From run ids to keys, of which no run may meet another's. No server.
"""

from __future__ import annotations

from base64 import b64decode
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from etcd_rendezvous._v3 import wire
from etcd_rendezvous._v3.client import EtcdClient
from etcd_rendezvous._v3.state_key import V3StateKey, encode_run_id

examples = settings(derandomize=True, max_examples=200)

# Any text, and much of what is special.
RUN_IDS = st.text(min_size=1) | st.text("ab/%20\x00\n\x7fFf.é", min_size=1, max_size=5)
PREFIX = "/torch/elastic/rendezvous"


class Recorder(EtcdClient):
    """
    A client that sends nothing, and remembers the transactions.
    """

    def __init__(self):
        super().__init__()
        self.operations = []

    def grant(self, ttl, lease_id, *, timeout=None):
        pass

    def txn(self, compare, success, failure=(), **kwargs):
        self.operations += [*success, *failure]
        return wire.TxnReply(True, 7, [])


def scanned(run_id):
    """
    Return the ranges of keys that belong to a run: what its first swap reads and
    deletes, and all that is below its state's key.
    """
    recorder = Recorder()
    kv = V3StateKey(recorder)
    key = kv.state_key(PREFIX, run_id)
    kv.swap(key, b"state", 0, 60, 1.0)
    messages = [next(iter(operation.values())) for operation in recorder.operations]
    below = f"{key}/".encode()
    return [(below, wire.prefix_end(below))] + [
        (b64decode(message["key"]), b64decode(message["range_end"]))
        for message in messages
        if "range_end" in message
    ]


def keys_of(run_id):
    key = V3StateKey(EtcdClient()).state_key(PREFIX, run_id)
    below = (
        "",
        "/",
        "/store/a",
        "/store.slots/a",
        "/store.queues/a/b",
        "/turn",
        "/turn/1",
        "/live/a",
    )
    return [f"{key}{rest}".encode() for rest in below]


@pytest.mark.parametrize(
    ("run_id", "expected"),
    [
        ("job", "job"),
        ("Job-1_2.3:4", "Job-1_2.3:4"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("/", "%2F"),
        ("..", ".."),
        ("a b", "a b"),
        ("\x00\t\n\x1f\x7f", "%00%09%0A%1F%7F"),
        ("größe", "größe"),
        ("日本", "日本"),
    ],
)
def test_encode_run_id(run_id, expected):
    """
    Slashes, percent signs and control characters are encoded; nothing else is.
    """
    assert expected == encode_run_id(run_id)


@given(RUN_IDS)
@examples
def test_nothing_is_lost(run_id):
    """
    The run id can be had from its key, so no two runs have one key.
    """
    encoded = encode_run_id(run_id)

    assert run_id == unquote(encoded)
    assert "/" not in encoded
    assert not any(character < " " for character in encoded)


@pytest.mark.parametrize(
    ("key_prefix", "run_id", "expected"),
    [
        (PREFIX, "job", "/torch/elastic/rendezvous/job"),
        ("jobs", "job", "/jobs/job"),
        ("/jobs", "a/b", "/jobs/a%2Fb"),
        (None, "job", "/job"),
        ("", "job", "/job"),
        (None, "/job", "/%2Fjob"),
    ],
)
def test_state_key(key_prefix, run_id, expected):
    """
    The key of a state is prefix and run id; a missing leading slash is added.
    """
    assert expected == V3StateKey(EtcdClient()).state_key(key_prefix, run_id)


def test_what_is_scanned():
    """
    A run deletes its old store and sees the others who wait: ranges below its key.
    """
    key = f"{PREFIX}/1".encode()
    ranges = scanned("1")

    assert {
        (key + b"/", key + b"0"),
        (key + b"/store.", key + b"/store0"),
        (key + b"/turn/", key + b"/turn0"),
    } == set(ranges)
    assert all(key + b"/" <= start < end <= key + b"0" for start, end in ranges)


@given(RUN_IDS, RUN_IDS)
@example("1", "10")
@example("10", "1")
@example("a", "a/b")
@example("a", "a/store/b")
@example("a/b", "a%2Fb")
@example("a", "a0")
@example("a", "a\x00")
@example("é", "é/é")
@examples
def test_no_run_sees_another(run_id, other):
    """
    No range that a run reads or deletes holds a key of another run.
    """
    assume(run_id != other)
    ranges = scanned(run_id)

    assert [] == [
        (start, key)
        for start, end in ranges
        for key in keys_of(other)
        if start <= key < end
    ]


@given(RUN_IDS)
@examples
def test_a_run_sees_itself(run_id):
    """
    All keys of a run but its state's are below the state's key.
    """
    (start, end), *_ = scanned(run_id)
    state, *others = keys_of(run_id)

    assert not start <= state < end
    assert all(start <= key < end for key in others)
