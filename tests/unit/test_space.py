# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
How full etcd is, and how quickly heartbeats fill it. No server.
"""

from __future__ import annotations

import pytest

from etcd_rendezvous._limits import is_near, near_in_words
from etcd_rendezvous._space import Growth, Space, space_of

MIB = 1024**2
GIB = 1024**3


@pytest.mark.parametrize(
    ("status", "space"),
    [
        (
            {"dbSize": "20480", "dbSizeInUse": "16384", "dbSizeQuota": "2147483648"},
            Space(20480, 16384, 2147483648),
        ),
        ({"dbSize": "20480", "dbSizeInUse": "16384"}, Space(20480, 16384, 0)),
        ({}, Space()),
        ({"dbSize": None, "dbSizeInUse": "x", "dbSizeQuota": [1]}, Space()),
        ({"dbSize": -5}, Space()),
    ],
)
def test_a_status(status, space):
    """
    What a member tells is read, and nothing made of what it does not.
    """
    assert space == space_of(status)


@pytest.mark.parametrize(
    ("size", "quota", "near"),
    [(79, 100, False), (80, 100, True), (120, 100, True), (0, 0, False), (9, 0, False)],
)
def test_near_the_quota(size, quota, near):
    """
    Four fifths are near; without a quota nothing is.
    """
    assert near == Space(size, size, quota).is_near_quota


def test_the_quota_in_words():
    """
    The line has the member, the sizes and what to do.
    """
    assert (
        "The etcd at http://a:1 has taken 1700 MiB of its quota of 2048 MiB, 300 MiB of "
        "it in use. When all is taken no node can join: compact and defragment every "
        "member, or raise --quota-backend-bytes."
    ) == Space(1700 * MIB, 300 * MIB, 2 * GIB).in_words("http://a:1")


def test_what_heartbeats_add():
    """
    Each heartbeat of each node writes the whole state.
    """
    assert 13_333 * 100 / 5 * 3600 == Growth(13_333, 100, 5.0).an_hour


@pytest.mark.parametrize(
    ("nodes", "space", "word"),
    [
        # At 133 bytes a node, and a heartbeat every 5 s.
        (10, Space(), False),
        (29, Space(), False),
        (32, Space(), True),
        (32, Space(quota=8 * GIB), False),
        (100, Space(quota=8 * GIB), True),
        (10, Space(quota=2 * GIB), False),
        (10, Space(size=2 * GIB - 1, quota=2 * GIB), True),
        (0, Space(size=3 * GIB), True),
    ],
)
def test_what_is_worth_a_word(nodes, space, word):
    """
    A quota that is used up within a day is; where it is not told, etcd's default.
    """
    assert word == Growth(133 * nodes, nodes, 5.0).is_worth_a_word(space)


def test_growth_in_words():
    """
    The line has the estimate, the member, and what to do.
    """
    growth = Growth(13_333, 100, 5.0)

    assert (
        "The heartbeats of 100 node(s) add about 916 MiB an hour to the history of the "
        "etcd at http://a:1, of which nothing was ever compacted: unless it is, etcd's "
        "default quota of 2048 MiB is used up in 2.2 hours. Start etcd with "
        "--auto-compaction-retention=5m, or take etcd-live, whose heartbeats write "
        "nothing."
    ) == growth.in_words("http://a:1", Space())
    assert "its quota of 8192 MiB is used up in 8.9 hours." in growth.in_words(
        "http://a:1", Space(0, 0, 8 * GIB)
    )


@pytest.mark.parametrize(("size", "near"), [(75, False), (76, True), (99, True)])
def test_near_the_limit_of_a_request(size, near):
    """
    Key and value together are near it from four fifths on.
    """
    assert near == is_near(100, "/key", b"x" * size)


def test_the_limit_in_words():
    """
    The line has the key, the nodes where they are known, the bytes and what to do.
    """
    for nodes, held in ((7, " with 7 node(s)"), (None, "")):
        assert (
            f"The rendezvous state '/key'{held} has 84 bytes, and a request may have "
            "100 (request_limit): soon no more nodes can join. Raise "
            "--max-request-bytes on every member of etcd, and request_limit with it."
        ) == near_in_words(100, "/key", b"x" * 80, nodes)
