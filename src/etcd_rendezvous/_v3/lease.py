# SPDX-License-Identifier: BSD-3-Clause
"""
Leases: what lets keys go away when nobody renews them.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .._errors import EtcdConnectionError

if TYPE_CHECKING:
    from .client import EtcdClient

__all__ = ["Lease"]

# A grant for each write would double its cost; so a lease is renewed at most this
# often a time to live, and a key may go away this much of it early.
_RENEWALS_PER_TTL: Final = 20


class Lease:
    """
    A lease with an identifier of our own, granted at its first use.

    It is never revoked: what hangs on it goes away when its time is up. Safe for
    threads; after ``fork`` the child takes a lease of its own.

    Args:
        client: The client to grant and renew with.
        ttl: The time to live, in seconds. etcd's least is 2 s, and expiry comes up
            to 0.5 s late.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        client: EtcdClient,
        ttl: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ttl = ttl
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._id = 0
        self._renewed = 0.0
        self._used: set[int] = set()

    def current(self, timeout: float) -> int:
        """
        Return the identifier of a granted lease, renewed if it is due.

        Args:
            timeout: The most seconds to take.

        Raises:
            EtcdError: The lease could not be granted or renewed.
        """
        if self._pid != os.getpid():
            # The lock may have been held by a thread that the fork left behind.
            self._lock = threading.Lock()
            self._pid = os.getpid()
            self._id = 0
            self._used = set()
        if self._is_fresh():
            return self._id
        now = self._clock()
        lock = self._lock
        if not lock.acquire(timeout=timeout):
            raise EtcdConnectionError(
                "Could not renew a lease: another thread's attempt has no answer yet "
                f"({timeout:.1f} s)."
            )
        try:
            if self._is_fresh():
                return self._id
            left = max(now + timeout - self._clock(), 0.0)
            if not (self._id and self._client.keep_alive(self._id, timeout=left)):
                # 62 random bits, below etcd's 63: an identifier of our own lets a
                # grant whose reply was lost be sent again.
                self._id = 0
                chosen = random.SystemRandom().getrandbits(62) | 1
                left = max(now + timeout - self._clock(), 0.0)
                self._client.grant(self.ttl, chosen, timeout=left)
                self._id = chosen
                self._used.add(chosen)
            self._renewed = now
            return self._id
        finally:
            lock.release()

    def _is_fresh(self) -> bool:
        age = self._clock() - self._renewed
        return self._id != 0 and age < self.ttl / _RENEWALS_PER_TTL

    def forget(self, lease_id: int) -> None:
        """
        Take note that the server no longer knows a lease.
        """
        if self._id == lease_id:
            self._id = 0

    def is_ours(self, lease_id: int) -> bool:
        """
        Say whether an identifier is or was this lease's.
        """
        return lease_id in self._used
