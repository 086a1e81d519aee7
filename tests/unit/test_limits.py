# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What is said of etcd's limits, by etcd's own words.
"""

from __future__ import annotations

import pytest

from etcd_rendezvous._errors import EtcdLimitError
from etcd_rendezvous._limits import concerns_size, refuse_over, remedy_of
from etcd_rendezvous._v3.retry import Failure, failure_of_reply


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        (3, "etcdserver: request is too large", "--max-request-bytes"),
        (
            8,
            "grpc: received message larger than max (2097360 vs. 2097152)",
            "--max-request-bytes",
        ),
        (
            8,
            "grpc: received message larger than max (4778467 vs. 4194304)",
            "update etcd",
        ),
        (8, "etcdserver: mvcc: database space exceeded", "etcdctl alarm disarm"),
        (2, "http: POST too large", "use etcd-v3"),
    ],
)
def test_a_limit(code, text, remedy):
    """
    Each limit has a remedy, and etcd's words about it are its last.
    """
    assert remedy in remedy_of(text)
    assert Failure.FINAL is failure_of_reply(code, text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "etcdserver: too many requests",
        "etcdserver: request timed out",
        "etcdserver: requested lease not found",
        "etcdserver: mvcc: required revision has been compacted",
    ],
)
def test_no_limit(text):
    """
    Other words are not about a limit.
    """
    assert remedy_of(text) is None


def test_what_a_limit_is_of():
    """
    All limits are about the size of one message, but the quota.
    """
    assert concerns_size(EtcdLimitError("", 3, "etcdserver: request is too large"))
    assert not concerns_size(EtcdLimitError("", 8, "mvcc: database space exceeded"))


def test_a_write_over_the_limit():
    """
    A write is refused if key and value alone fill a request.
    """
    refuse_over(100, "/kéy", b"x" * 94)
    with pytest.raises(EtcdLimitError) as caught:
        refuse_over(100, "/kéy", b"x" * 95)

    assert (
        "Could not write the key '/kéy': key and value have 100 bytes, and a request "
        "may have 100 (request_limit), so it was not sent; raise --max-request-bytes on "
        "every member of etcd, and request_limit with it."
    ) == str(caught.value)
    assert concerns_size(caught.value)
