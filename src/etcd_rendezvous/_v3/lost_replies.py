# SPDX-License-Identifier: BSD-3-Clause
"""
What became of a conditional write through v3 whose reply was lost.

What is there now tells, or the key's history. For writes of the store see ``slots``,
for those of `etcd-live` its ``requests``.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Final

from .._errors import (
    EtcdConnectionError,
    EtcdError,
    EtcdOutcomeUnknownError,
    EtcdReplyError,
)
from . import retry, wire
from .client import EtcdClient

__all__ = ["find_lost_write"]

_HISTORY_SECONDS: Final = 2.0


def find_lost_write(
    client: EtcdClient,
    key: bytes,
    is_ours: Callable[[wire.Entry], bool],
    after: int,
    current: wire.Entry | None,
    deadline: float,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """
    Find out whether an attempt to write a key, whose reply was lost, was applied.

    At most one attempt can have been.

    Args:
        client: The client.
        key: The key.
        is_ours: Says whether an entry was written by the attempt.
        after: A revision before which it can't have been written.
        current: What is there now.
        deadline: When to give up.
        clock: A monotonic clock, in seconds, as of the deadline.

    Returns:
        The revision that it wrote, or 0 if it did not.

    Raises:
        EtcdOutcomeUnknownError: Nobody can tell any more, or not in time.
    """
    if current is not None:
        if is_ours(current):
            return current.mod_revision
        if current.mod_revision <= after:
            return 0
    what = f"find out what became of a write to '{key.decode()}'"
    for round_ in itertools.count(1):
        try:
            return _search_history(client, key, is_ours, after, current, what)
        except EtcdError as error:
            if isinstance(error, EtcdReplyError) and wire.COMPACTED in error.text:
                raise EtcdOutcomeUnknownError(
                    f"Could not {what}: others have written since, and etcd no longer "
                    f"has the history that would tell ({error.text})."
                ) from error
            may_come = isinstance(error, EtcdConnectionError)
            if not may_come or clock() >= deadline:
                raise EtcdOutcomeUnknownError(
                    f"Could not {what}: it may or may not have been applied ({error})"
                ) from error
            time.sleep(retry.pause_seconds(round_))
    raise AssertionError("unreachable")


def _search_history(
    client: EtcdClient,
    key: bytes,
    is_ours: Callable[[wire.Entry], bool],
    after: int,
    current: wire.Entry | None,
    what: str,
) -> int:
    create = wire.watch_create(key, watch_id=1, start_revision=after + 1)
    with client.watch([create], what=what, timeout=_HISTORY_SECONDS) as watch:
        for event in watch.events(_HISTORY_SECONDS):
            if not event.deleted and is_ours(event.entry):
                return event.entry.mod_revision
            if current and event.entry.mod_revision >= current.mod_revision:
                return 0
    if current is not None:
        raise EtcdConnectionError(f"Could not {what}: the history did not come.")
    return 0
