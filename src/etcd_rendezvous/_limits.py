# SPDX-License-Identifier: BSD-3-Clause
"""
etcd's limits: which of them its words are about, and what to do about it.
"""

from __future__ import annotations

from typing import Final

from ._errors import EtcdLimitError

__all__ = ["concerns_size", "is_near", "near_in_words", "refuse_over", "remedy_of"]

_QUOTA: Final = "database space exceeded"
_OF_REQUESTS: Final = (
    "etcd's limit is --max-request-bytes, 1.5 MiB by default: raise it on every "
    "member, or write less at once"
)
# By what etcd, or gRPC before it, says; the first that fits.
_REMEDIES: Final = {
    _QUOTA: "etcd's quota is used up: delete what is not needed, compact and "
    "defragment every member, or raise --quota-backend-bytes; then run 'etcdctl "
    "alarm disarm'",
    "request is too large": _OF_REQUESTS,
    # What the gateway receives as gRPC's client; it is the default there.
    "vs. 4194304)": "the gateway of an etcd before 3.4.17 passes on no reply over "
    "4 MiB: update etcd, or store less in one key",
    "received message larger than max": _OF_REQUESTS,
    "POST too large": "etcd's v2 takes 10 MiB at most: write less at once, or use "
    "etcd-v3",
}
_NEAR: Final = 0.8
_INVALID_ARGUMENT: Final = 3  # the code of "request is too large"


def remedy_of(text: str) -> str | None:
    """
    Return what to do about a limit of etcd's.

    Args:
        text: etcd's words.

    Returns:
        The remedy; None if the words are not about a limit.
    """
    return next((remedy for words, remedy in _REMEDIES.items() if words in text), None)


def concerns_size(error: EtcdLimitError) -> bool:
    """
    Say whether it is about the size of one request or reply, not about all there is.
    """
    return _QUOTA not in error.text


def is_near(limit: int, key: str, value: bytes) -> bool:
    """
    Say whether a write takes four fifths of what a request may have, or more.

    Args:
        limit: The most bytes of a request.
        key: The key.
        value: The value.
    """
    return len(key) + len(value) >= limit * _NEAR


def near_in_words(limit: int, key: str, value: bytes, nodes: int | None) -> str:
    """
    Say that a state is nearly too large, and what to do.

    Args:
        limit: The most bytes of a request.
        key: The key.
        value: The value.
        nodes: How many nodes it holds; None if that is not known.
    """
    size = len(key.encode()) + len(value)
    held = "" if nodes is None else f" with {nodes} node(s)"
    return (
        f"The rendezvous state '{key}'{held} has {size} bytes, and a request may have "
        f"{limit} (request_limit): soon no more nodes can join. Raise "
        "--max-request-bytes on every member of etcd, and request_limit with it."
    )


def refuse_over(limit: int, key: str, value: bytes) -> None:
    """
    Refuse a write whose request would surely be over a limit.

    A request takes a few hundred bytes besides: of one that is just below the limit
    etcd itself says that it is too large.

    Args:
        limit: The most bytes of a request.
        key: The key.
        value: The value.

    Raises:
        EtcdLimitError: It is.
    """
    size = len(key.encode()) + len(value)
    if size >= limit:
        raise EtcdLimitError(
            f"Could not write the key '{key}': key and value have {size} bytes, and a "
            f"request may have {limit} (request_limit), so it was not sent; raise "
            "--max-request-bytes on every member of etcd, and request_limit with it.",
            _INVALID_ARGUMENT,
            "request is too large",
        )
