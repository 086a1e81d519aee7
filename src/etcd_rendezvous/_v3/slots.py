# SPDX-License-Identifier: BSD-3-Clause
"""
Slots: what tells afterwards whether a write whose reply was lost was applied.

Every write that must be applied exactly once also writes a key of the writer's own,
its slot, with a note that no other write has, if the slot is still as the writer
knows it. A second send of the same write therefore changes nothing; and the note
that is found says whether the first one did, and its revision when.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Slot", "Slots"]


class Slot:
    """
    A slot; for one write at a time.

    Attributes:
        key: Its key.
        revision: The revision that is known to have written it last, 0 for none.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.revision = 0
        self._notes = 0

    def next_note(self) -> bytes:
        """
        Return a note that the slot has never held.
        """
        self._notes += 1
        return b"%d" % self._notes


class Slots:
    """
    The slots of one writer, as many as it has writes at the same time.

    Safe for threads; a child after ``fork`` takes slots of its own.

    Args:
        prefix: What their keys start with.
    """

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._start_anew()

    def _start_anew(self) -> None:
        self._free: list[Slot] = []
        self._pid = os.getpid()  # last: another thread may look

    @contextmanager
    def taken(self) -> Iterator[Slot]:
        """
        Take a slot for a while.
        """
        if self._pid != os.getpid():
            self._start_anew()
        free = self._free
        try:
            slot = free.pop()
        except IndexError:
            slot = Slot(self._prefix + uuid.uuid4().hex.encode())
        try:
            yield slot
        finally:
            free.append(slot)
