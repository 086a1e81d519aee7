# SPDX-License-Identifier: BSD-3-Clause
"""
The rendezvous backend: torch's ``RendezvousBackend`` on one key of etcd.
"""

from __future__ import annotations

import binascii
import os
import threading
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousStateError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    RendezvousBackend,
)

from ._errors import EtcdError, EtcdLimitError
from ._kv import StateKey, Stored, Swap, state_key
from ._limits import concerns_size, is_near, near_in_words, refuse_over
from ._locks import held
from ._log import SlowBeat, log
from ._settings import DEFAULT_CLOSED_TTL, DEFAULT_REQUEST_LIMIT, DEFAULT_STATE_TTL
from ._state import count_nodes, is_closed

if TYPE_CHECKING:
    from ._clocks import ClockWatch
    from ._lookout import Lookout

__all__ = ["EtcdRendezvousBackend"]

# torch's words; monitoring and torch's own tests look for them.
CONNECTION_FAILED: Final = (
    "The connection to etcd has failed. See inner exception for details."
)
STATE_CORRUPT: Final = "The state object is corrupt. See inner exception for details."

_LARGEST_REVISION: Final = 2**63 - 1
# A state that is nearly too large is spoken of this often.
_SIZE_SECONDS: Final = 600.0


class _Token(int):
    """
    A fencing token: etcd's revision, and which life of the store it is from.

    A store that was wiped counts its revisions from the start again, so a token
    from before may equal a revision of now.
    """

    life: int

    def __new__(cls, revision: int, life: int) -> _Token:  # noqa: PYI034
        token = super().__new__(cls, revision)
        token.life = life
        return token

    def __reduce__(self) -> tuple[type[_Token], tuple[int, int]]:
        return type(self), (int(self), self.life)


@dataclass(frozen=True)
class _Known:
    """
    The state as this backend saw it last.
    """

    state: bytes
    raw: bytes
    revision: int


def _decoded(raw: bytes) -> bytes:
    try:
        return b64decode(raw, validate=True)
    except binascii.Error as error:
        raise RendezvousStateError(STATE_CORRUPT) from error


class EtcdRendezvousBackend(RendezvousBackend):
    """
    Hold the rendezvous state under one key of etcd, changed by compare-and-swap.

    The value is base64 text. The key is ``<key_prefix>/<run_id>``; on v3 the run
    id is percent-encoded as far as needed, so that no run's keys are part of
    another's. The names and the behaviour are those of torch's
    ``etcd_rendezvous_backend.EtcdRendezvousBackend`` (torch 2.13), with these
    differences: both APIs of etcd are served, a swap whose reply was lost is told
    truly, an unchanged state is not transferred again (v3), and a token that can't
    match is a lost swap, never an exception.

    Safe for threads, and usable in a child after ``fork``.

    Args:
        client: An ``EtcdClient`` (v3) or python-etcd's ``etcd.Client`` (v2). The
            latter is not altered.
        run_id: The run id of the rendezvous.
        key_prefix: The path under which the state is stored.
        ttl: The seconds after which a state that nobody writes goes away; None, 0
            or negative for two hours. On v3 it may go up to a twentieth earlier,
            since the lease is not renewed at each write.
        closed_ttl: The same for the state of a closed rendezvous, where the
            handler says that it is one (this library's does). Ours.
        request_limit: The most bytes of a request, etcd's ``--max-request-bytes``: a
            larger state is refused, and not sent (v3). Ours.
        name: The name to go by; None for ``etcd-v2`` or ``etcd-v3``, by the API.
            Ours.

    Raises:
        ValueError: The run id is empty, or the client is neither of the two.

    .. versionadded:: 0.1.0
    """

    _DEFAULT_TTL = DEFAULT_STATE_TTL

    def __init__(
        self,
        client: Any,
        run_id: str,
        key_prefix: str | None = None,
        ttl: int | None = None,
        *,
        closed_ttl: int = DEFAULT_CLOSED_TTL,
        request_limit: int = DEFAULT_REQUEST_LIMIT,
        name: str | None = None,
    ) -> None:
        if not run_id:
            raise ValueError("The run id must be a non-empty string.")
        self._client = client
        self._kv: StateKey = state_key(client)
        self._key = self._kv.state_key(key_prefix, run_id)
        self._ttl = ttl if ttl and ttl > 0 else self._DEFAULT_TTL
        self._closed_ttl = closed_ttl
        self._request_limit = request_limit
        self._name = name or f"etcd-{self._kv.api}"
        self._known: _Known | None = None
        self._store_revision = 0
        self._life = 0
        self._warned_of_wipe = False
        self._local = threading.local()
        self._reports = True
        #: How many swaps were lost to others. Ours.
        self.lost_swaps = 0
        self._sizes = SlowBeat(seconds=_SIZE_SECONDS)
        self._own_locks()

    def __repr__(self) -> str:
        return (
            f"<EtcdRendezvousBackend {self._name} key={self._key!r} {self._client!r}>"
        )

    @property
    def name(self) -> str:
        """
        The name of the backend.
        """
        return self._name

    @property
    def key(self) -> str:
        """
        The key of the state in etcd.
        """
        return self._key

    @property
    def closed_ttl(self) -> int:
        """
        The seconds after which the state of a closed rendezvous goes away.
        """
        return self._closed_ttl

    @contextmanager
    def time_limit(self, seconds: float) -> Iterator[None]:
        """
        Bound every call of the current thread, inside the block, by a deadline.

        Args:
            seconds: The most seconds for all calls in the block together. Without
                this each call has the client's ``read_timeout``.
        """
        outer: float | None = getattr(self._local, "deadline", None)
        deadline = time.monotonic() + seconds
        self._local.deadline = deadline if outer is None else min(deadline, outer)
        try:
            yield
        finally:
            self._local.deadline = outer

    def get_state(self) -> tuple[bytes, Any] | None:
        """
        Read the state.

        Returns:
            The state and its token, or None if there is no state.

        Raises:
            RendezvousConnectionError: etcd can't be reached, or refuses; the
                ``__cause__`` says where, what, how often and how long it was tried.
            RendezvousStateError: What is stored is not base64 text.
        """
        with self._translated("get_state"):
            return self._read(self._time_left())

    def set_state(
        self, state: bytes, token: Any | None = None
    ) -> tuple[bytes, Any, bool] | None:
        """
        Write the state if the token is that of the current one.

        Args:
            state: The new state.
            token: A token from an earlier call. None or another falsy value: write
                only if there is no state. A truthy value that is not a token of
                ours is a lost swap.

        Returns:
            The state that holds now, its token and True if it is ours; the current
            state, its token and False if the swap was lost; None if it was lost and
            there is no state. A swap is told truly although its reply was lost; by
            then others may have written again, so that a True says that our state
            was written, and its token may already be old.

        Raises:
            RendezvousConnectionError: etcd can't be reached, or refuses, or would
                refuse so large a state. Whether the state was written is unknown then,
                if requests were sent.
            RendezvousStateError: What is stored is not base64 text.
        """
        with self._translated("set_state"):
            expected = self._expected(token)
            if expected is None:
                found = self._read(self._time_left())
                return (*found, False) if found else None
            deadline = time.monotonic() + self._time_left()
            ttl = self._closed_ttl if self._says_closed else self._ttl
            left = deadline - time.monotonic()
            # One thread at a time: if its reply is lost, a swap of ours is known by
            # its bytes and its lease, and threads may write the same bytes.
            with held(self._swap_lock, left, f"swap the key '{self._key}'"):
                timeout = max(deadline - time.monotonic(), 0.0)
                before = self._store_revision
                swap = self._swap(state, expected, ttl, timeout)
                self._note_revision(swap.store_revision, before)
            if swap.won and swap.stored is not None:
                return *self._remember(swap.stored), True
            if swap.stored is None:
                self._known = None
                return None
            current = self._remember(swap.stored)
            # Nobody writes again to a closed state; don't queue for that.
            if swap.queued is None or is_closed(current[0]):
                return *current, False
            left = deadline - time.monotonic()
            self._kv.wait_turn(self._key, swap.queued, left)
            # What is known is old by now: no use in asking whether it changed.
            self._known = None
            found = self._read(max(deadline - time.monotonic(), 0.0))
            return (*found, False) if found else None

    def _swap(self, state: bytes, expected: int, ttl: int, timeout: float) -> Swap:
        """
        Swap the state; if it is too large, say how many nodes it holds.
        """
        raw = b64encode(state)
        try:
            # v2 has a limit of its own, which can't be raised.
            if self._kv.api == "v3":
                refuse_over(self._request_limit, self._key, raw)
                self._warn_near_limit(state, raw)
            swap = self._kv.swap(self._key, raw, expected, ttl, timeout)
        except EtcdLimitError as error:
            nodes = count_nodes(state) if concerns_size(error) else None
            if nodes is None:
                raise
            raise EtcdLimitError(
                f"{error} The state holds {nodes} node(s).", error.code, error.text
            ) from error
        self.lost_swaps += not swap.won
        return swap

    def _warn_near_limit(self, state: bytes, raw: bytes) -> None:
        """
        Warn of a state that is nearly too large, now and then.
        """
        if is_near(self._request_limit, self._key, raw) and self._sizes.is_due():
            self._sizes.warn(
                near_in_words(self._request_limit, self._key, raw, count_nodes(state))
            )

    @property
    def state_bytes(self) -> int:
        """
        The bytes of the state as it is stored, as far as is known. Ours.
        """
        known = self._known
        return len(known.raw) if known is not None else 0

    @property
    def failovers(self) -> int:
        """
        How often operations have gone from one endpoint to another. Ours.
        """
        return self._kv.failovers

    def watch_clocks(self, clocks: ClockWatch) -> None:
        """
        Compare this machine's clock with etcd's, now and then. Ours, for the handler.
        """
        self._kv.watch_clocks(clocks)

    def lookout(self, interval: float) -> Lookout | None:
        """
        Return what looks how full etcd is (v3). Ours, for the handler.

        Args:
            interval: The seconds between two heartbeats.
        """
        return self._kv.lookout(self._key, interval)

    # What the handler knows, and a bare backend does not look for: see design of
    # `closed_ttl`.
    _says_closed = False

    def say_closed(self, closed: bool) -> None:
        """
        Say whether the states written from now on are those of a closed rendezvous.

        They are then stored with ``closed_ttl``. Ours; the handler calls it.
        """
        self._says_closed = closed

    def seconds_left(self) -> int | None:
        """
        Return the seconds until the state goes away if nobody writes it.

        Returns:
            The seconds; None if there is no state. Ours.

        Raises:
            RendezvousConnectionError: As of :meth:`get_state`.
        """
        with self._translated("seconds_left"):
            return self._kv.seconds_left(self._key, self._time_left())

    def leave_queue(self) -> None:
        """
        Give up one's turn among those who lost a swap, where there is an order (v3).

        For who won't try again: otherwise the others wait half a second for it, and
        its key stays in etcd for ``ttl``. It raises nothing. Ours, for the handler.
        """
        self._kv.leave_queue(self._key)

    def _own_locks(self) -> None:
        """
        Take locks of one's own: a thread that a fork left behind may hold the old.
        """
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._swap_lock = threading.Lock()
        self._failures = SlowBeat()

    def leave_reports_to_caller(self) -> None:
        """
        Log no failures: the caller reports them, with what they mean for the job.

        Ours; the handler calls it.
        """
        self._reports = False

    def _time_left(self) -> float:
        deadline: float | None = getattr(self._local, "deadline", None)
        if deadline is None:
            return self._kv.read_timeout
        return min(max(deadline - time.monotonic(), 0.05), self._kv.read_timeout)

    def _expected(self, token: Any) -> int | None:
        """
        Return the revision that a token stands for; None for a token that can't win.
        """
        try:
            if not token:
                return 0
        except Exception:  # noqa: BLE001 (an array of numbers, say)
            return None
        if isinstance(token, bool) or not isinstance(token, int):
            return None
        if isinstance(token, _Token) and token.life != self._life:
            return None
        return int(token) if 0 < token <= _LARGEST_REVISION else None

    def _read(self, timeout: float) -> tuple[bytes, Any] | None:
        known, before = self._known, self._store_revision
        look = self._kv.read(self._key, known.revision if known else 0, timeout)
        self._note_revision(look.store_revision, before)
        if look.unchanged:
            if known is not None and look.store_revision >= known.revision:
                return known.state, _Token(known.revision, self._life)
            # The store counts from the start again: read in full.
            look = self._kv.read(self._key, 0, timeout)
        if look.stored is None:
            self._known = None
            return None
        return self._remember(look.stored)

    def _remember(self, stored: Stored) -> tuple[bytes, Any]:
        known = self._known
        if known is None or (known.revision, known.raw) != (
            stored.revision,
            stored.value,
        ):
            if known is not None and known.revision == stored.revision:
                self._note_wipe(self._store_revision)
            state = _decoded(stored.value)
            known = self._known = _Known(state, stored.value, stored.revision)
        return known.state, _Token(known.revision, self._life)

    def _decode_state(self, result: Any) -> tuple[bytes, Any]:
        """
        Decode what python-etcd read; torch's private name, which users' tests call.

        Raises:
            RendezvousStateError: It is not base64.
        """
        token = _Token(int(result.modifiedIndex), self._life)
        return _decoded(result.value.encode()), token

    def _note_revision(self, revision: int, before: int) -> None:
        """
        Notice a store that was wiped: its revision never goes back otherwise.

        Args:
            revision: The store's revision in a reply.
            before: The newest one known before the request was sent. (Replies to
                several threads may overtake each other.)
        """
        if revision >= before:
            with self._lock:
                self._store_revision = max(self._store_revision, revision)
        else:
            self._note_wipe(revision)

    def _note_wipe(self, revision: int) -> None:
        """
        Forget what was known: from now on every older token is a lost swap.

        Args:
            revision: The revision of the store as it is now.
        """
        with self._lock:
            self._store_revision = revision
            self._known = None
            self._life += 1
            warn = not self._warned_of_wipe
            self._warned_of_wipe = True
        if warn:
            log.warning(
                "etcd has lost its data: it was wiped, or restored from an old copy. "
                "The rendezvous state at '%s' is read anew, and what others knew of "
                "the old one no longer counts.",
                self._key,
            )

    @contextmanager
    def _translated(self, operation: str) -> Iterator[None]:
        if self._pid != os.getpid():
            self._own_locks()
        try:
            yield
        except EtcdError as error:
            if self._reports:
                self._failures.warn(f"{operation} failed: {error}")
            raise RendezvousConnectionError(CONNECTION_FAILED) from error
