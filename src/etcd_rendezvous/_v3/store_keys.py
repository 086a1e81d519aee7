# SPDX-License-Identifier: BSD-3-Clause
"""
``StoreKeys`` over the v3 API.

All keys of a store hang on one lease that every process shares that uses the store.
What must be applied exactly once is written together with a slot (see ``slots``), so
that each operation is one transaction, whose outcome the slot tells.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from .._errors import (
    EtcdConnectionError,
    EtcdError,
    EtcdLimitError,
    EtcdOutcomeUnknownError,
    EtcdReplyError,
)
from .._kv import sum_of
from . import retry, values, wire
from .client import EtcdClient, LeaseNotFoundError
from .lease import SharedLease
from .releases import dies_of_reads
from .slots import Slot, Slots

__all__ = ["V3StoreKeys", "store_range"]

# etcd refuses more than 128 operations a transaction, and requests over 1.5 MiB.
_OPERATIONS_PER_TXN: Final = 120
_BYTES_PER_TXN: Final = 1_000_000
_NAMES_PER_PAGE: Final = 5_000
_LONGEST_IDLE_SECONDS: Final = 15.0
_LEASE_TRIES: Final = 3
_LARGEST_COUNTER: Final = 2**62
_LONGEST_OPENING_SECONDS: Final = 5.0
_VERSION_SECONDS: Final = 2.0
# However short the time, what is there is read.
_LEAST_LOOK_SECONDS: Final = 1.0
# Up to 0.2 s, when a stream broke.
_ROUNDS_FOR_A_PAUSE: Final = 4

_T = TypeVar("_T")
# What must hold for a write, and from a lease to its operations.
_Write = tuple[list[wire.Json], Callable[[int], list[wire.Json]]]


def store_range(directory: bytes) -> tuple[bytes, bytes]:
    """
    Return the range of all keys of a store, those beside its directory included.

    Args:
        directory: The directory; it ends in ``/``.
    """
    # "." comes right before "/".
    return _beside(directory, b""), wire.prefix_end(directory)


def _beside(directory: bytes, what: bytes) -> bytes:
    return directory.removesuffix(b"/") + b"." + what


class V3StoreKeys:
    """
    The operations of one store on the v3 API.

    Args:
        client: The client.
        directory: The path of the names; it starts and ends in ``/``.
        ttl: The seconds that the keys outlive the last process that uses the store.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        client: EtcdClient,
        directory: str,
        ttl: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client.patiently()
        self._clock = clock
        self._directory = directory.encode()
        self._shown = f"'{directory}'"
        self._slots = Slots(_beside(self._directory, b"slots/"))
        self._queues = _beside(self._directory, b"queues/")
        self._lease = SharedLease(self._client, ttl, self._directory)
        self._bears_reads: bool | None = None

    def hand_lease_over(self) -> SharedLease:
        """
        Return the lease of the keys; its caller keeps it alive, in this process.
        """
        return self._lease.hand_over()

    @property
    def read_timeout(self) -> float:
        """
        The client's ``read_timeout``.
        """
        return self._client.read_timeout

    # -- reading ----------------------------------------------------------------------

    def get_many(self, names: Sequence[bytes], timeout: float) -> list[bytes | None]:
        """
        See ``StoreKeys``.
        """
        self._lease.keep()
        deadline = self._clock() + timeout
        found: list[bytes | None] = []
        for batch in _batches([self._directory + name for name in names]):
            found += self._read(batch, deadline)
        return found

    def _read(self, keys: list[bytes], deadline: float) -> list[bytes | None]:
        """
        Read keys in one transaction, or in more where etcd can't do it in one.
        """
        if len(keys) == 1:
            entry = self._entry(keys[0], deadline)
            return [values.decode(entry) if entry else None]
        borne = self._bears_given_up_reads(deadline)
        try:
            reply = self._client.txn(
                [],
                [wire.op_range(wire.range_message(key)) for key in keys],
                [] if borne else [wire.op_never_done(keys[0])],
                what=f"read {len(keys)} keys in {self._shown}",
                timeout=self._left(deadline),
                writes=False,
            )
        except EtcdLimitError:
            # The reply is too large for the gateway; or it is an etcd that, with its
            # quota used up, refuses even transactions that only read.
            if self._clock() >= deadline:
                raise
            half = len(keys) // 2
            return self._read(keys[:half], deadline) + self._read(keys[half:], deadline)
        return [
            values.decode(one.entries[0]) if one.entries else None
            for one in reply.ranges
        ]

    def _bears_given_up_reads(self, deadline: float) -> bool:
        """
        Say whether the server goes on when a transaction that only reads is given up.
        """
        if self._bears_reads is None:
            limit = min(self._left(deadline), _VERSION_SECONDS)
            try:
                version = self._client.version(timeout=limit)
            except EtcdError:
                return True  # A proxy may hide it; it is asked for again.
            self._bears_reads = not dies_of_reads(version)
        return self._bears_reads

    def names(self, timeout: float) -> list[bytes]:
        """
        See ``StoreKeys``.
        """
        self._lease.keep()
        deadline = self._clock() + timeout
        start, end = self._directory, wire.prefix_end(self._directory)
        names: list[bytes] = []
        while True:
            page, _ = self._client.range(
                start,
                end,
                keys_only=True,
                limit=_NAMES_PER_PAGE,
                timeout=self._left(deadline),
            )
            names += [entry.key.removeprefix(self._directory) for entry in page.entries]
            if len(page.entries) == page.count:
                return names
            start = page.entries[-1].key + b"\0"

    def count(self, timeout: float) -> int:
        """
        See ``StoreKeys``.
        """
        return self._count(self._directory, timeout)

    def _count(self, prefix: bytes, timeout: float) -> int:
        self._lease.keep()
        found, _ = self._client.range(
            prefix, wire.prefix_end(prefix), count_only=True, timeout=timeout
        )
        return found.count

    def _entry(
        self, key: bytes, deadline: float, revision: int = 0
    ) -> wire.Entry | None:
        found, _ = self._client.range(
            key, revision=revision, timeout=self._left(deadline)
        )
        return found.entries[0] if found.entries else None

    # -- writing ----------------------------------------------------------------------

    def put_many(self, items: Sequence[tuple[bytes, bytes]], timeout: float) -> None:
        """
        See ``StoreKeys``. A batch is written whole or not at all.
        """
        deadline = self._clock() + timeout
        # The last of equal names wins; etcd refuses a key twice in a transaction.
        pairs = [
            (self._directory + name, values.encode(value))
            for name, value in dict(items).items()
        ]
        for batch in _batches(pairs, lambda pair: len(pair[0]) + len(pair[1])):

            def send(
                lease: int, left: float, batch: list[tuple[bytes, bytes]] = batch
            ) -> object:
                if len(batch) == 1:
                    return self._client.put(*batch[0], lease=lease, timeout=left)
                return self._client.txn(
                    [],
                    [wire.op_put(wire.put_message(*pair, lease)) for pair in batch],
                    what=f"write {len(batch)} keys in {self._shown}",
                    timeout=left,
                )

            self._leased(deadline, send)

    def change(
        self,
        name: bytes,
        decide: Callable[[bytes | None], bytes | None],
        timeout: float,
    ) -> bytes | None:
        """
        See ``StoreKeys``.
        """
        deadline = self._clock() + timeout
        self._lease.keep()
        entry = self._entry(self._directory + name, deadline)
        while True:
            done, current, entry = self._try(name, entry, decide, _as_it_is, deadline)
            if done:
                return current

    def _try(
        self,
        name: bytes,
        entry: wire.Entry | None,
        decide: Callable[[bytes | None], bytes | None],
        stored_as: Callable[[bytes, int], bytes],
        deadline: float,
    ) -> tuple[bool, bytes | None, wire.Entry | None]:
        """
        Change a name, if it is as it is known.

        Args:
            name: The name.
            entry: What is there, as far as is known.
            decide: See ``StoreKeys.change``.
            stored_as: From a value, and the version that it will have, to what
                stands in etcd.
            deadline: When to give up.

        Returns:
            Whether that is done, the value that was decided on, and what is there.
        """
        key = self._directory + name
        current = values.decode(entry) if entry else None
        wanted = decide(current)
        if wanted == current:
            return True, current, entry
        known = wire.compare_mod(key, entry.mod_revision if entry else 0)
        if wanted is None:
            operation = _deleting(key)
        else:
            version = (entry.version if entry else 0) + 1
            operation = _putting(key, stored_as(wanted, version))
        what = f"change the key {_shown(key)}"
        with self._slots.taken() as slot:
            applied, entry = self._send(slot, key, ([known], operation), what, deadline)
        if not applied:
            self._give_up_if_late(what, deadline)
        return bool(applied), current, entry

    def add(self, name: bytes, amount: int, timeout: float) -> int:
        """
        See ``StoreKeys``.

        Adding one to a counter is a single transaction that nobody else's can
        conflict with. Other amounts, and what is no counter yet, are compared and
        swapped.
        """
        deadline = self._clock() + timeout
        self._lease.keep()
        key = self._directory + name
        entry = None if amount == 1 else self._entry(key, deadline)

        def plus(current: bytes | None) -> bytes:
            return b"%d" % sum_of(current, amount, name)

        def as_counter(value: bytes, version: int) -> bytes:
            number = int(value)
            # Nobody checks a counter's sum; no counter gets from here to 64 bits.
            if abs(number) >= _LARGEST_COUNTER:
                return values.encode(value)
            return values.counter(number, version)

        while True:
            if amount == 1:
                entry, total = self._count_up(key, name, deadline)
                if total is not None:
                    return total
            done, before, entry = self._try(name, entry, plus, as_counter, deadline)
            if done:
                return sum_of(before, amount, name)

    def _count_up(
        self, key: bytes, name: bytes, deadline: float
    ) -> tuple[wire.Entry | None, int | None]:
        """
        Add one to a counter, or create it.

        Returns:
            What is there, and the number that this made it; None where something else
            than a counter is there.
        """
        what = f"add to the key {_shown(key)}"

        def touch(lease: int) -> list[wire.Json]:
            return [wire.op_put(wire.touch_message(key, lease))]

        count: _Write = (wire.compare_between(key, *values.COUNTERS), touch)
        create: _Write = (
            [wire.compare_mod(key, 0)],
            _putting(key, values.counter(1, 1)),
        )
        with self._slots.taken() as slot:
            while True:
                applied, entry = self._send(slot, key, count, what, deadline, create)
                if applied:
                    break
                if entry is not None and not values.is_counter(entry):
                    return entry, None
                self._give_up_if_late(what, deadline)
        if entry is None or entry.mod_revision != applied:
            # Others have written since: an earlier send of ours was applied.
            entry = self._as_it_was(key, applied, what, deadline)
        return entry, int(values.decode(entry))

    def _as_it_was(
        self, key: bytes, revision: int, what: str, deadline: float
    ) -> wire.Entry:
        unknown = f"Could not {what}: it was applied, but the reply was lost, others "
        try:
            entry = self._entry(key, deadline, revision)
        except EtcdReplyError as error:
            entry, reason = None, error.text
        except EtcdError as error:
            raise EtcdOutcomeUnknownError(
                f"{unknown}have written since, and the sum could not be read ({error})."
            ) from error
        else:
            reason = "it was not there then"
        if entry is None:
            raise EtcdOutcomeUnknownError(
                f"{unknown}have written since, and etcd no longer has the history that "
                f"would tell the sum ({reason})."
            )
        return entry

    def _send(
        self,
        slot: Slot,
        key: bytes,
        write: _Write,
        what: str,
        deadline: float,
        otherwise: _Write | None = None,
    ) -> tuple[int, wire.Entry | None]:
        """
        Write once, if the conditions hold.

        Args:
            slot: A slot of the caller's own.
            key: The key that is written.
            write: The conditions, and the operations.
            what: The operation in words, for errors.
            deadline: When to give up.
            otherwise: What to write where the conditions do not hold, likewise.

        Returns:
            The revision at which it was applied, 0 if it was not; and what is there.
            If it was not, a condition did not hold, or the slot was not as it was
            known: it was deleted, or an earlier write, whose outcome nobody knew,
            came after all.
        """
        note = slot.next_note()
        look = wire.op_range(wire.range_message(key))
        look_at_slot = wire.op_range(wire.range_message(slot.key))

        def send(lease: int, left: float) -> wire.TxnReply:
            def once(write: _Write) -> tuple[list[wire.Json], list[wire.Json]]:
                conditions, operations = write
                put_note = wire.op_put(wire.put_message(slot.key, note, lease))
                return (
                    [wire.compare_mod(slot.key, slot.revision), *conditions],
                    [*operations(lease), put_note],
                )

            compare, success = once(write)
            second = [wire.op_txn(wire.txn(*once(otherwise), []))] if otherwise else []
            return self._client.txn(
                compare,
                [*success, look],
                [*second, look, look_at_slot],
                what=what,
                timeout=left,
            )

        reply = self._leased(deadline, send)
        entry, *rest = [next(iter(found.entries), None) for found in reply.ranges]
        if reply.succeeded:
            slot.revision = reply.revision
            return reply.revision, entry
        (held,) = rest
        slot.revision = held.mod_revision if held else 0
        applied = slot.revision if held and held.value == note else 0
        return applied, entry

    def _leased(self, deadline: float, send: Callable[[int, float], _T]) -> _T:
        """
        Send a write that hangs on the lease; grant it anew if it is gone.
        """
        for attempt in range(1, _LEASE_TRIES + 1):
            lease_id = self._lease.current(self._left(deadline))
            try:
                return send(lease_id, self._left(deadline))
            except LeaseNotFoundError:
                self._lease.forget(lease_id)
                if attempt == _LEASE_TRIES:
                    raise
        raise AssertionError("unreachable")

    def _give_up_if_late(self, what: str, deadline: float) -> None:
        if self._clock() >= deadline:
            raise EtcdConnectionError(
                f"Could not {what}: others changed it all the time."
            )

    def _left(self, deadline: float) -> float:
        return max(deadline - self._clock(), 0.0)

    # -- queues -----------------------------------------------------------------------

    def push(self, queue: bytes, value: bytes, timeout: float) -> None:
        """
        See ``StoreKeys``. Values stand in the order in which etcd took them.
        """
        deadline = self._clock() + timeout
        self._lease.keep()
        what = f"push to the queue {_shown(queue)} in {self._shown}"
        with self._slots.taken() as slot:
            applied = 0
            while not applied:
                key = self._queue(queue) + uuid.uuid4().hex.encode()
                put = _putting(key, value)
                absent = wire.compare_mod(key, 0)
                applied, _ = self._send(slot, key, ([absent], put), what, deadline)
                if not applied:
                    self._give_up_if_late(what, deadline)

    def pop(self, queue: bytes, timeout: float, patience: float) -> bytes | None:
        """
        See ``StoreKeys``.
        """
        prefix = self._queue(queue)
        what = f"pop from the queue {_shown(queue)} in {self._shown}"
        self._lease.keep()
        started = self._clock()
        waited_until = started + patience

        def limit() -> float:
            """
            Return the seconds for a look: the time that is left, or a little more.
            """
            left = max(waited_until, started + timeout) - self._clock()
            return min(timeout, max(left, _LEAST_LOOK_SECONDS))

        while True:
            deadline = self._clock() + limit()
            first = self._first(prefix, deadline)
            if first is not None:
                known = wire.compare_mod(first.key, first.mod_revision)
                with self._slots.taken() as slot:
                    applied, _ = self._send(
                        slot,
                        first.key,
                        ([known], _deleting(first.key)),
                        what,
                        deadline,
                    )
                if applied:
                    return first.value
                self._give_up_if_late(what, waited_until + timeout)
                continue  # somebody else was quicker
            if self._clock() >= waited_until:
                return None
            self._next_write(
                wire.watch_create(
                    prefix, wire.prefix_end(prefix), watch_id=1, no_deletes=True
                ),
                lambda: self._count(prefix, limit()) == 0,
                what,
                waited_until,
            )

    def length(self, queue: bytes, timeout: float) -> int:
        """
        See ``StoreKeys``.
        """
        return self._count(self._queue(queue), timeout)

    def _queue(self, queue: bytes) -> bytes:
        """
        Return what the keys of a queue start with; no queue's is part of another's.
        """
        name = queue.replace(b"%", b"%25").replace(b"/", b"%2F")
        return self._queues + name + b"/"

    def _first(self, prefix: bytes, deadline: float) -> wire.Entry | None:
        found, _ = self._client.range(
            prefix,
            wire.prefix_end(prefix),
            limit=1,
            oldest_first=True,
            timeout=self._left(deadline),
        )
        return found.entries[0] if found.entries else None

    # -- waiting ----------------------------------------------------------------------

    def wait(self, names: Sequence[bytes], timeout: float) -> dict[bytes, bytes]:
        """
        See ``StoreKeys``.

        What is there is read in one go. As long as keys are missing, one of them is
        watched, and with it the others are read again. It is chosen by chance, so
        that of N that come in whatever order about ln N are watched.
        """
        deadline = self._clock() + timeout
        missing = dict.fromkeys(names)
        found: dict[bytes, bytes] = {}

        def look(least_seconds: float = _LEAST_LOOK_SECONDS) -> None:
            asked = list(missing)
            limit = min(max(deadline - self._clock(), least_seconds), self.read_timeout)
            for name, value in zip(asked, self.get_many(asked, limit), strict=True):
                if value is not None:
                    found[name] = value
                    del missing[name]

        look()
        while missing and self._clock() < deadline:
            watched = retry.RANDOM.choice(list(missing))

            def is_missing(watched: bytes = watched) -> bool:
                try:
                    look(least_seconds=0.1)
                except EtcdConnectionError:
                    # Cut short by the deadline it says nothing; another one follows.
                    if self._clock() < deadline:
                        raise
                return watched in missing

            entry = self._next_write(
                wire.watch_create(
                    self._directory + watched, watch_id=1, no_deletes=True
                ),
                is_missing,
                f"wait for keys in {self._shown}",
                deadline,
            )
            if entry is not None and watched in missing:
                found[watched] = values.decode(entry)
                del missing[watched]
            if missing and self._clock() >= deadline:
                # Of the others nothing is known since the last watch was opened.
                look()
        return found

    def _next_write(
        self,
        create: wire.Json,
        is_missing: Callable[[], bool],
        what: str,
        deadline: float,
    ) -> wire.Entry | None:
        """
        Wait for a write, for a while.

        Args:
            create: The watch that tells it.
            is_missing: Looks whether it is still to be waited for. It is called when
                the watch is there, so that nothing falls between.
            what: The operation in words, for errors.
            deadline: When to stop.

        Returns:
            What was written; None if nothing was to be waited for, or was told.
        """
        left = max(deadline - self._clock(), 0.01)
        looking = False
        try:
            with self._client.watch(
                [create],
                what=what,
                timeout=min(left, self.read_timeout, _LONGEST_OPENING_SECONDS),
            ) as watch:
                looking = True
                if not is_missing():
                    return None
                left = deadline - self._clock()
                if left <= 0:
                    return None
                events = watch.events(idle=min(left, _LONGEST_IDLE_SECONDS))
                looking = False
                return next((event.entry for event in events), None)
        except (EtcdConnectionError, EtcdReplyError):
            if looking:
                raise
            # The stream broke: a look then raises what is really wrong.
            left = max(deadline - self._clock(), 0.0)
            time.sleep(min(retry.pause_seconds(_ROUNDS_FOR_A_PAUSE), left))
            if self._clock() < deadline:
                is_missing()
        return None


def _as_it_is(value: bytes, version: int) -> bytes:  # noqa: ARG001
    return values.encode(value)


def _putting(key: bytes, value: bytes) -> Callable[[int], list[wire.Json]]:
    return lambda lease: [wire.op_put(wire.put_message(key, value, lease))]


def _deleting(key: bytes) -> Callable[[int], list[wire.Json]]:
    return lambda _: [wire.op_delete(wire.delete_message(key))]


def _shown(key: bytes) -> str:
    return f"'{key.decode(errors='replace')}'"


def _batches(
    items: Sequence[_T], size: Callable[[_T], int] = lambda _: 0
) -> Iterator[list[_T]]:
    """
    Cut items into batches that fit into one transaction each.
    """
    batch: list[_T] = []
    total = 0
    for item in items:
        if batch and (
            len(batch) == _OPERATIONS_PER_TXN or total + size(item) > _BYTES_PER_TXN
        ):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size(item)
    if batch:
        yield batch
