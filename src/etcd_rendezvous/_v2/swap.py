# SPDX-License-Identifier: BSD-3-Clause
"""
Conditional writes of one key; ``lost_replies`` finds out what became of them.
"""

from __future__ import annotations

from math import inf
from typing import Any

from .._kv import Stored, Swap
from .lost_replies import ENDS, Write
from .requests import Requests

__all__ = ["delete", "swap"]


def swap(
    requests: Requests,
    key: str,
    value: bytes,
    expected: int,
    ttl: int,
    deadline: float,
    *,
    stays: float = inf,
    own: bool = False,
) -> Swap:
    """
    Write one key if its index is the expected one.

    Args:
        requests: What to send with.
        key: The key.
        value: The new value, ASCII.
        expected: The index expected; 0 for an absent key.
        ttl: The seconds after which the key goes away if nobody writes it.
        deadline: When to give up.
        stays: For how many seconds nobody deletes a key that this creates. Later, a
            second creation is ruled out by etcd's history.
        own: Whether nobody else creates this key, so that it is ours if it is there.

    Raises:
        EtcdOutcomeUnknownError: Nobody can tell any more whether it was applied, or
            how often.
    """
    condition: dict[str, Any] = (
        {"prevIndex": expected} if expected else {"prevExist": False}
    )
    write = Write(
        requests,
        key,
        f"swap the key '{key}'",
        lambda sender: sender.write(key, value.decode("ascii"), ttl, **condition),
        lambda event: (
            event.action not in ENDS and (event.value or "").encode() == value
        ),
        expected,
        deadline,
    )
    won_at, current, index = write.apply(
        inf if expected else stays, lambda found: own or found.value == value
    )
    if won_at:
        return Swap(True, Stored(value, won_at), index)
    return Swap(False, current, index)


def delete(requests: Requests, key: str, expected: int, deadline: float) -> Swap:
    """
    Delete one key if its index is the expected one.

    Where a reply was lost, the first deletion of the same kind is taken for ours:
    a deletion has no bytes.

    Args:
        requests: What to send with.
        key: The key.
        expected: The index expected.
        deadline: When to give up.

    Raises:
        EtcdOutcomeUnknownError: Nobody can tell any more whether it was applied.
    """
    write = Write(
        requests,
        key,
        f"delete the key '{key}'",
        lambda sender: sender.delete(key, prevIndex=expected),
        lambda event: event.action == "compareAndDelete",
        expected,
        deadline,
    )
    won_at, current, index = write.apply(inf, lambda _: False)
    return Swap(bool(won_at), None if won_at else current, index)
