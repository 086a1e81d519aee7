# SPDX-License-Identifier: BSD-3-Clause
"""
``StateKey`` over the v3 API.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from .._clocks import ClockWatch
from .._errors import EtcdError, EtcdOutcomeUnknownError
from .._kv import Look, Queued, Stored, Swap
from .._lookout import Lookout
from .._settings import check_text
from . import wire
from .client import EtcdClient, LeaseNotFoundError
from .lease import Lease
from .lost_replies import find_lost_write
from .store_keys import store_range
from .turns import TurnQueue

__all__ = ["V3StateKey", "encode_run_id"]

_LEASE_TRIES: Final = 3


@dataclass(frozen=True)
class _Mark:
    """
    What tells a write of a key from every other.

    The revision alone does, until etcd is wiped and counts from the start again;
    leases are random numbers, and one writer's each.

    Attributes:
        revision: The revision of the write.
        lease: The lease that the key hangs on.
        version: How often the key was written since it was created, 0 if unknown.
        connections: How many connections had been made when it was seen last.
    """

    revision: int
    lease: int
    version: int
    connections: int

    def comparisons(self, key: bytes) -> list[wire.Json]:
        """
        Return the comparisons that hold as long as nobody has written again.
        """
        return [
            wire.compare_mod(key, self.revision),
            wire.compare_lease(key, self.lease),
        ]


def encode_run_id(run_id: str) -> str:
    """
    Percent-encode what would make one run's keys part of another's.

    That is ``/``, ``%`` and control characters: run ``1`` never sees ``10``, nor
    ``a`` a run ``a/b``.
    """
    return re.sub(
        r"[/%\x00-\x1f\x7f]", lambda match: f"%{ord(match.group()):02X}", run_id
    )


def key_of_state(key_prefix: str | None, run_id: str) -> str:
    """
    Return the key of a run's state. A missing leading ``/`` is added.

    Raises:
        EtcdSettingError: It is no text in UTF-8.
    """
    run = encode_run_id(run_id)
    key = f"{key_prefix}/{run}" if key_prefix else run
    check_text(key, "key")
    return key if key.startswith("/") else f"/{key}"


class V3StateKey:
    """
    The operations of one backend on the v3 API.

    Args:
        client: The client.
        clock: A monotonic clock, in seconds.
    """

    api = "v3"

    def __init__(
        self, client: EtcdClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        # One lease a time to live, none shared with anyone: what hangs on them
        # was written here.
        self._leases: dict[int, Lease] = {}
        self._queues: dict[bytes, TurnQueue] = {}
        self._marks: dict[bytes, _Mark] = {}
        self._seen_revision = 0

    @property
    def read_timeout(self) -> float:
        """
        The client's ``read_timeout``.
        """
        return self._client.read_timeout

    @property
    def failovers(self) -> int:
        """
        See ``StateKey``.
        """
        return self._client.failovers

    def watch_clocks(self, clocks: ClockWatch) -> None:
        """
        See ``StateKey``.
        """
        self._client.watch_clocks(clocks)

    def lookout(self, key: str, interval: float) -> Lookout:
        """
        See ``StateKey``.
        """
        return Lookout(self._client, key, interval)

    def state_key(self, key_prefix: str | None, run_id: str) -> str:
        """
        See ``StateKey``. A missing leading ``/`` is added, as python-etcd does.
        """
        return key_of_state(key_prefix, run_id)

    # -- one key, one fence ---------------------------------------------------------

    def read(self, key: str, known: int, timeout: float) -> Look:
        """
        See ``StateKey``.
        """
        raw = key.encode()
        deadline = self._clock() + timeout
        baseline = self._seen_revision
        mark = self._mark(raw, known)
        if mark is not None:
            found, revision = self._client.range(
                raw, min_mod_revision=known + 1, timeout=timeout
            )
            self._saw(revision, baseline)
            if found.count and not found.entries:
                if revision >= known and self._is_unchanged(raw, mark, deadline):
                    return Look(None, True, revision)
                found, revision = self._client.range(
                    raw, timeout=max(deadline - self._clock(), 0.0)
                )
        else:
            found, revision = self._client.range(raw, timeout=timeout)
        self._saw(revision, baseline)
        stored = self._noted(found.entries[0]) if found.entries else None
        return Look(stored, False, revision)

    def _is_unchanged(self, key: bytes, mark: _Mark, deadline: float) -> bool:
        """
        Say whether a key that is not newer than a mark is what was marked.

        An etcd that was wiped, and has counted up to the mark again, answers as if
        nothing had changed. But it was started anew, so that there was a new
        connection since; then it is asked more closely.
        """
        if mark.connections == self._client.connections_made:
            return True
        connections = self._client.connections_made
        reply = self._client.txn(
            mark.comparisons(key),
            [],
            what=f"read the key '{key.decode()}'",
            timeout=max(deadline - self._clock(), 0.0),
            writes=False,
        )
        if reply.succeeded:
            self._marks[key] = replace(mark, connections=connections)
        return reply.succeeded

    def swap(
        self, key: str, value: bytes, expected: int, ttl: int, timeout: float
    ) -> Swap:
        """
        See ``StateKey``.
        """
        raw = key.encode()
        deadline = self._clock() + timeout
        baseline = self._seen_revision
        maybe_earlier = False
        for attempt in range(1, _LEASE_TRIES + 1):
            lease = self._lease(ttl)
            try:
                lease_id = lease.current(max(deadline - self._clock(), 0.0))
                reply = self._send_swap(raw, value, expected, lease_id, deadline)
            except LeaseNotFoundError:
                # The lease expired, or etcd was wiped. This attempt wrote nothing, but
                # one before it, whose reply was lost, may have.
                maybe_earlier = True
                lease.forget(lease_id)
                if attempt == _LEASE_TRIES:
                    raise
            except EtcdError as error:
                if not maybe_earlier or isinstance(error, EtcdOutcomeUnknownError):
                    raise
                raise EtcdOutcomeUnknownError(
                    f"Could not swap the key '{key}': it may or may not have been "
                    f"applied ({error})"
                ) from error
            else:
                break
        self._saw(reply.revision, baseline)
        queue = self._queue(raw)
        if reply.succeeded:
            queue.won()
            mark = self._mark(raw, expected)
            self._marks[raw] = _Mark(
                reply.revision,
                lease_id,
                mark.version + 1 if mark and mark.version else 0,
                self._client.connections_made,
            )
            return Swap(True, Stored(value, reply.revision), reply.revision)
        queued = queue.lost(lease_id, reply)
        current = reply.ranges[0].entries[0] if reply.ranges[0].entries else None
        if reply.maybe_earlier or maybe_earlier:
            # A wiped store counts from the start again.
            after = 0 if reply.revision < baseline else max(expected, baseline)
            won_at = self._find_lost(raw, value, after, current, deadline)
            if won_at:
                queue.leave()
                return Swap(True, Stored(value, won_at), reply.revision)
        stored = self._noted(current) if current is not None else None
        return Swap(False, stored, reply.revision, queued)

    def seconds_left(self, key: str, timeout: float) -> int | None:
        """
        See ``StateKey``.
        """
        deadline = self._clock() + timeout
        # Of keys alone etcd 3.7 does not tell the lease.
        found, _ = self._client.range(key.encode(), timeout=timeout)
        if not found.entries or not found.entries[0].lease:
            return None
        return self._client.seconds_left(
            found.entries[0].lease, timeout=max(deadline - self._clock(), 0.0)
        )

    def wait_turn(self, key: str, queued: Queued, timeout: float) -> None:
        """
        See ``StateKey``.
        """
        self._queue(key.encode()).wait(queued, timeout)

    def leave_queue(self, key: str) -> None:
        """
        See ``StateKey``.
        """
        self._queue(key.encode()).leave()

    def _send_swap(
        self, key: bytes, value: bytes, expected: int, lease_id: int, deadline: float
    ) -> wire.TxnReply:
        queue = self._queue(key)
        mark = self._mark(key, expected)
        # A state that begins anew counts its rounds from 0 again: what the store
        # holds of earlier ones must not be read in these.
        fresh = []
        if not expected:
            first, end = store_range(key + b"/store/")
            fresh = [wire.op_delete(wire.delete_message(first, end))]
        return self._client.txn(
            mark.comparisons(key) if mark else [wire.compare_mod(key, expected)],
            [
                wire.op_put(wire.put_message(key, value, lease_id)),
                *fresh,
                *queue.winning_ops(lease_id, mark.version if mark else 0),
            ],
            [wire.op_range(wire.range_message(key)), *queue.losing_ops(lease_id)],
            what=f"swap the key '{key.decode()}'",
            timeout=max(deadline - self._clock(), 0.0),
        )

    def _find_lost(
        self,
        key: bytes,
        value: bytes,
        after: int,
        current: wire.Entry | None,
        deadline: float,
    ) -> int:
        """
        Find out whether an earlier attempt of a swap, whose reply was lost, won.

        Its write carries a lease of ours, and came after every revision that was known
        before it was sent.
        """
        return find_lost_write(
            self._client,
            key,
            lambda entry: self._is_ours(entry, value, after),
            after,
            current,
            deadline,
            clock=self._clock,
        )

    def _is_ours(self, entry: wire.Entry, value: bytes, after: int) -> bool:
        return (
            entry.mod_revision > after
            and entry.value == value
            and any(lease.is_ours(entry.lease) for lease in self._leases.values())
        )

    def _noted(self, entry: wire.Entry) -> Stored:
        self._marks[entry.key] = _Mark(
            entry.mod_revision,
            entry.lease,
            entry.version,
            self._client.connections_made,
        )
        return Stored(entry.value, entry.mod_revision)

    def _mark(self, key: bytes, revision: int) -> _Mark | None:
        """
        Return what is known of a key at a revision.
        """
        mark = self._marks.get(key)
        return mark if mark is not None and mark.revision == revision else None

    def _saw(self, revision: int, baseline: int) -> None:
        """
        Remember the newest revision; older than ``baseline`` means a wiped store.
        """
        if revision < baseline or revision > self._seen_revision:
            self._seen_revision = revision

    def _lease(self, ttl: int) -> Lease:
        lease = self._leases.get(ttl)
        if lease is None:
            lease = self._leases.setdefault(ttl, Lease(self._client, ttl))
        return lease

    def _queue(self, key: bytes) -> TurnQueue:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues.setdefault(key, TurnQueue(self._client, key))
        return queue
