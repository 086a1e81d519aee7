# SPDX-License-Identifier: BSD-3-Clause
"""
The order of those who lost a compare-and-swap on one key.

torch's handler answers a lost swap by trying again at once. With N nodes that is N
swaps of which one wins, again and again. So a loser takes a ticket, in the failure
branch of the lost swap itself, and waits until its predecessor's ticket is gone;
the winner deletes its own in the winning transaction.

Tickets are order only; the swap stays the guarantee. A node that dies while it
waits leaves its ticket behind. About every fourth swap that is won from the queue
therefore touches one more key, the pulse, which everyone who waits sees. Where
neither the pulse nor the predecessor's ticket moves for ``STALL_SECONDS``, everyone
who waits writes its ticket again; ``ANSWER_SECONDS`` later the tickets that were not
written again are those of the dead, and all of them are deleted at once, however
many they are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .._errors import EtcdError
from .._kv import Queued
from . import wire

if TYPE_CHECKING:
    from .client import EtcdClient

__all__ = ["TurnQueue"]

STALL_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 0.2
LONGEST_WAIT_SECONDS: Final = 4.0
_WRITES_PER_PULSE: Final = 4
_DELETES_PER_TXN: Final = 100


class TurnQueue:
    """
    One client's place among those who lost a swap on a key.

    Args:
        client: The client.
        key: The key that is swapped.
        clock: A monotonic clock, in seconds.
        sleep: What to sleep with.
    """

    def __init__(
        self,
        client: EtcdClient,
        key: bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._clock = clock
        self._sleep = sleep
        self._pulse = key + b"/turn"
        self._prefix = key + b"/turn/"
        self._end = wire.prefix_end(self._prefix)
        self._ticket: bytes | None = None
        self._lease = 0
        self._since = 0
        self._has_pulsed = False

    def winning_ops(self, lease: int, version: int) -> list[wire.Json]:
        """
        Return what a winning swap does besides: give the ticket back, beat.

        Args:
            lease: The caller's lease.
            version: The version of the key that is replaced, 0 if unknown.
        """
        if self._ticket is None:
            return []
        ops = [wire.op_delete(wire.delete_message(self._ticket))]
        if version and (version + 1) % _WRITES_PER_PULSE == 0:
            ops.append(wire.op_put(wire.put_message(self._pulse, b"", lease)))
            self._has_pulsed = True
        return ops

    def losing_ops(self, lease: int) -> list[wire.Json]:
        """
        Return what a losing swap does besides: take a ticket, see who is before.

        Args:
            lease: The caller's lease, which names the ticket too.
        """
        ticket = self._ticket_of(lease)
        held = ticket == self._ticket
        old = []
        if self._ticket is not None and not held:
            # That of the lease before; it would be waited for in vain.
            old = [wire.op_delete(wire.delete_message(self._ticket))]
        return [
            *old,
            wire.op_put(wire.put_message(ticket, b"", lease)),
            wire.op_range(wire.range_message(ticket, keys_only=True)),
            wire.op_range(
                self._newest(1, self._since - 1) if held else self._newest(2)
            ),
        ]

    def won(self) -> None:
        """
        Take note that the swap was won, and the ticket deleted with it.
        """
        self._ticket = None
        self._since = 0

    def leave(self) -> None:
        """
        Delete what this client has left in the queue: its ticket, its pulse.

        For a swap that turned out to have been won after all, and for a caller who
        won't try again.
        """
        left = [self._ticket] if self._ticket is not None else []
        if self._has_pulsed:
            left.append(self._pulse)
        self.won()
        self._has_pulsed = False
        if left:
            # If that fails, the others find out that nobody answers to it.
            with contextlib.suppress(EtcdError):
                self._client.txn(
                    [],
                    [wire.op_delete(wire.delete_message(key)) for key in left],
                    what="leave the queue of swaps",
                    timeout=STALL_SECONDS,
                )

    def lost(self, lease: int, reply: wire.TxnReply) -> Queued | None:
        """
        Take note that the swap was lost.

        Args:
            lease: The lease that it was sent with.
            reply: The reply; its last ranges are those of :meth:`losing_ops`.

        Returns:
            The place behind another ticket, or None if nobody is before.
        """
        ticket = self._ticket_of(lease)
        mine, others = reply.ranges[-2].entries[0], reply.ranges[-1].entries
        replaced = ticket == self._ticket and mine.create_revision != self._since
        self._ticket = ticket
        self._lease = lease
        self._since = mine.create_revision
        if replaced:
            # The old ticket was deleted meanwhile, as one that did not answer.
            try:
                return self._place()
            except EtcdError:
                return None  # no order then
        for entry in others:
            if entry.key != ticket:
                return Queued(entry.key, reply.revision)
        return None

    def _place(self) -> Queued | None:
        """
        Ask for the place behind the newest ticket before one's own.
        """
        found, revision = self._client.range(
            self._prefix,
            self._end,
            timeout=STALL_SECONDS,
            keys_only=True,
            newest_first=True,
            limit=1,
            max_create_revision=self._since - 1,
        )
        for entry in found.entries:
            return Queued(entry.key, revision)
        return None

    def _newest(self, limit: int, created_until: int = 0) -> wire.Json:
        return wire.range_message(
            self._prefix,
            self._end,
            keys_only=True,
            newest_first=True,
            limit=limit,
            max_create_revision=created_until,
        )

    def _ticket_of(self, lease: int) -> bytes:
        return self._prefix + f"{lease:016x}".encode()

    def wait(self, queued: Queued, timeout: float) -> None:
        """
        Wait until it is the caller's turn, or time is up.

        Args:
            queued: What :meth:`lost` returned.
            timeout: The most seconds to wait, besides ``LONGEST_WAIT_SECONDS``.
        """
        deadline = self._clock() + min(timeout, LONGEST_WAIT_SECONDS)
        place: Queued | None = queued
        try:
            while place is not None and self._clock() < deadline:
                quiet_since = self._watch(place, deadline)
                if not quiet_since or self._clock() >= deadline:
                    return
                place = self._roll_call(quiet_since)
        except EtcdError:
            # No order then. The caller reads the state next, and meets whatever
            # is wrong there.
            return

    def _watch(self, place: Queued, deadline: float) -> int:
        """
        Wait until the predecessor's ticket is gone.

        Returns:
            0 if it is gone, or time is up; else the revision since which neither it
            nor the pulse has moved for ``STALL_SECONDS``.
        """
        # Where the run's id is so long that there is no room for the pulse, only order
        # is the worse for it.
        creates = [
            wire.watch_create(place.behind, watch_id=1, no_puts=True),
            wire.watch_create(self._pulse, watch_id=2, no_deletes=True),
        ]
        idle = max(min(STALL_SECONDS, deadline - self._clock()), 0.01)
        with self._client.watch(
            creates, what="wait for one's turn", timeout=idle
        ) as watch:
            # A watch begins when it is created; what was written since the place
            # was taken may have been the predecessor's end.
            if watch.revision != place.revision:
                found, _ = self._client.range(
                    place.behind, keys_only=True, timeout=idle
                )
                if not found.entries:
                    return 0
            for event in watch.events(idle):
                if event.deleted or self._clock() >= deadline:
                    return 0
            return watch.revision

    def _roll_call(self, quiet_since: int) -> Queued | None:
        """
        Delete the tickets of those who no longer answer.

        Args:
            quiet_since: The revision since which nothing has moved.

        Returns:
            The caller's place after it; None if nobody is before.
        """
        ticket = self._ticket
        if ticket is None:
            return None
        reply = self._client.txn(
            [],
            [
                wire.op_put(wire.put_message(ticket, b"", self._lease)),
                wire.op_range(wire.range_message(ticket, keys_only=True)),
            ],
            what="answer the queue's roll call",
            timeout=STALL_SECONDS,
        )
        self._since = reply.ranges[0].entries[0].create_revision
        self._sleep(ANSWER_SECONDS)
        while True:
            silent, _ = self._client.range(
                self._prefix,
                self._end,
                keys_only=True,
                limit=_DELETES_PER_TXN,
                max_mod_revision=quiet_since,
                timeout=STALL_SECONDS,
            )
            if not silent.entries:
                break
            # Whoever answers after all is spared; others who call the roll at the
            # same time may have been quicker.
            self._client.txn(
                [wire.compare_mod(e.key, e.mod_revision) for e in silent.entries],
                [wire.op_delete(wire.delete_message(e.key)) for e in silent.entries],
                what="clear the queue of swaps",
                timeout=STALL_SECONDS,
            )
        return self._place()
