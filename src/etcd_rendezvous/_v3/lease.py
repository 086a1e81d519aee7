# SPDX-License-Identifier: BSD-3-Clause
"""
Leases: what lets keys go away when nobody renews them.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .._errors import EtcdError
from .._locks import held
from .._log import SlowLog, log
from . import retry

if TYPE_CHECKING:
    from .client import EtcdClient

__all__ = ["Lease", "SharedLease"]

# A grant for each write would double its cost; so a lease is renewed at most this
# often a time to live, and a key may go away this much of it early.
_RENEWALS_PER_TTL: Final = 20

# A lease that is shared is renewed this often a time to live, by everyone.
_BEATS_PER_TTL: Final = 3
# Soon after the first use its real time to live is asked for.
_FIRST_BEAT_SECONDS: Final = 5.0
# While its client is closed, whether it was used is looked at this often.
_REST_SECONDS: Final = 1.0


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
            self._id = 0
            self._used = set()
            self._pid = os.getpid()  # last: another thread may look
        if self._is_fresh():
            return self._id
        now = self._clock()
        with held(self._lock, timeout, "renew a lease"):
            if self._is_fresh():
                return self._id
            left = max(now + timeout - self._clock(), 0.0)
            if not (self._id and self._client.keep_alive(self._id, timeout=left)):
                # 62 random bits, below etcd's 63: an identifier of our own lets a
                # grant whose reply was lost be sent again.
                self._id = 0
                chosen = retry.RANDOM.getrandbits(62) | 1
                left = max(now + timeout - self._clock(), 0.0)
                self._client.grant(self.ttl, chosen, timeout=left)
                self._id = chosen
                self._used.add(chosen)
            self._renewed = now
            return self._id

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


class SharedLease:
    """
    A lease that all who name it share, and that lives as long as any of them.

    Its identifier follows from its name, so that nobody has to be told. Each process
    that uses it keeps it alive from a thread of its own, which ends with the object;
    a process that is killed just stops. It is never revoked. Safe for threads; in a
    child after ``fork`` the next use starts a thread of the child's own.

    Args:
        client: The client to grant and renew with.
        ttl: The seconds that it outlives its last user. Where others have granted it
            with another time to live, theirs holds.
        name: What it is shared by; equal names are one lease.
    """

    def __init__(self, client: EtcdClient, ttl: int, name: bytes) -> None:
        self._client = client
        self._ttl = ttl
        self._name = name
        digest = hashlib.sha256(b"etcd-rendezvous lease of " + name).digest()
        # 62 bits, below etcd's 63, and not 0.
        self.id = int.from_bytes(digest[:8], "big") >> 2 | 1
        self.log = SlowLog()
        self._start_anew()

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._granted = False
        # Whether its client was closed at the last beat, and used since.
        self.rests = False
        self._used_since = False
        # Whether somebody else does what a keeper does.
        self._handed_over = False
        # A lock of its own: the other one is held while etcd is asked.
        self._keeper_lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._pid = os.getpid()  # last: another thread may look

    def keep(self) -> None:
        """
        Keep the lease alive from now on, if somebody has granted it.
        """
        if self._pid != os.getpid():
            # The lock may have been held by a thread that the fork left behind.
            self._start_anew()
        if self.rests:
            self._used_since = True
        if self._keeper is None and not self._handed_over:
            with self._keeper_lock:
                if self._keeper is None:
                    self._keeper = _start_keeper(self)

    def hand_over(self) -> SharedLease:
        """
        Leave it to the caller to call :meth:`beat`, in this process.
        """
        self._handed_over = True
        return self

    def current(self, timeout: float, *, probably_new: bool = False) -> int:
        """
        Return the identifier, granted.

        Args:
            timeout: The most seconds to take.
            probably_new: Whether nobody is likely to have granted it: saves a request
                then, and costs one otherwise.

        Raises:
            EtcdError: It could not be granted or renewed.
        """
        self.keep()
        if self._granted:
            return self.id
        deadline = time.monotonic() + timeout
        with held(self._lock, timeout, "grant a lease"):
            if not self._granted:
                left = max(deadline - time.monotonic(), 0.0)
                granted = probably_new and self._client.grant(
                    self._ttl, self.id, timeout=left
                )
                left = max(deadline - time.monotonic(), 0.0)
                # What is there may be about to expire, so it is renewed first.
                if not granted and not self._client.keep_alive(self.id, timeout=left):
                    left = max(deadline - time.monotonic(), 0.0)
                    self._client.grant(self._ttl, self.id, timeout=left)
                self._granted = True
        return self.id

    def forget(self, lease_id: int) -> None:
        """
        Take note that the server no longer knows it.
        """
        if lease_id == self.id:
            self._granted = False

    @property
    def seconds_between_beats(self) -> float:
        """
        How long the keeper waits from one renewal to the next.
        """
        return self._ttl / _BEATS_PER_TTL

    def beat(self, limit: float | None = None) -> bool:
        """
        Renew it once, if it is there; what a keeper does.

        Nothing is sent over a client that was closed and not used since.

        Args:
            limit: The most seconds to take; None for the time between beats.

        Returns:
            False if the server did not answer.
        """
        self.rests = self._client.closed and not self._used_since
        self._used_since = False
        if self.rests:
            return True
        if limit is None:
            limit = max(self.seconds_between_beats, 0.5)
        was_granted = self._granted
        try:
            ttl = self._client.keep_alive(self.id, timeout=limit)
        except EtcdError as error:
            log.debug("A lease was not renewed: %s", error)
            return False
        if ttl:
            self._ttl = min(self._ttl, ttl)
        elif was_granted:
            self._granted = False
            self.log.warning(
                "The lease of '%s' has expired, and with it what was stored there: "
                "nobody could renew it for %s s, or etcd lost its data.",
                self._name.decode(errors="replace"),
                self._ttl,
            )
        return True


def _start_keeper(lease: SharedLease) -> threading.Thread:
    """
    Start the thread that renews a lease, and that ends when nobody holds it any more.
    """
    gone = threading.Event()
    weakref.finalize(lease, gone.set).atexit = False
    thread = threading.Thread(
        target=_keep,
        args=(weakref.ref(lease), gone, lease.seconds_between_beats),
        name="etcd-rendezvous lease",
        daemon=True,
    )
    thread.start()
    return thread


def _keep(
    reference: weakref.ref[SharedLease], gone: threading.Event, seconds: float
) -> None:
    pause = min(seconds, _FIRST_BEAT_SECONDS)
    while not gone.wait(pause):
        lease = reference()
        if lease is None:
            return
        pause = lease.seconds_between_beats
        try:
            answered = lease.beat()
        except Exception:
            # The keys of a whole run hang on this thread.
            lease.log.exception("A lease could not be renewed; it is tried again.")
            answered = False
        if not answered:
            pause /= _BEATS_PER_TTL
        if lease.rests:
            pause = min(pause, _REST_SECONDS)
        # Waiting, the thread must not be what holds the lease.
        del lease
