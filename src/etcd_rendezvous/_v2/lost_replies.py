# SPDX-License-Identifier: BSD-3-Clause
"""
What became of a conditional write through v2 whose reply was lost.

A condition can be met by one attempt at most, as long as a key that was created is
not deleted. If no attempt was told that it met it, what is there now, or etcd's
history, tells. v2 knows no leases, so that only the bytes tell whose write it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import etcd

from .._errors import EtcdError, EtcdOutcomeUnknownError
from .._kv import Stored
from .error_texts import is_of_v2
from .requests import Requests

__all__ = ["ENDS", "Write"]

# What ends the life of a key.
ENDS: Final = frozenset({"delete", "expire", "compareAndDelete"})

_LOST: Final = (
    etcd.EtcdCompareFailed,
    etcd.EtcdAlreadyExist,
    etcd.EtcdKeyNotFound,
)
_HISTORY_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Write:
    """
    One conditional write.

    Attributes:
        requests: What to send with.
        key: The key.
        what: The operation in words, for errors.
        send: Sends it.
        is_ours: Says whether an event in etcd's history may be this.
        expected: The index that it expects; 0 for an absent key.
        deadline: When to give up.
    """

    requests: Requests
    key: str
    what: str
    send: Callable[[etcd.Client], etcd.EtcdResult]
    is_ours: Callable[[etcd.EtcdResult], bool]
    expected: int
    deadline: float

    def apply(
        self, stays: float, shows: Callable[[Stored], bool]
    ) -> tuple[int, Stored | None, int]:
        """
        Send it, and find out what became of it.

        Args:
            stays: See ``swap``.
            shows: Says whether what is there now shows that it was applied.

        Returns:
            The index at which it was applied, 0 if it was not; if not, what is
            there; and the store's index.
        """
        requests = self.requests
        started, baseline = requests.now(), requests.index

        def send(sender: etcd.Client) -> etcd.EtcdResult | None:
            try:
                return self.send(sender)
            except _LOST as error:
                if not is_of_v2(error):
                    raise
                return None

        answer = requests.run(
            send, self.what, requests.left(self.deadline), writes=True
        )
        if answer.value is not None:
            index = int(answer.value.modifiedIndex)
            requests.saw(index, baseline)
            if answer.maybe_earlier and requests.now() - started >= stays:
                with self._unknown_if_it_fails():
                    self._make_sure_it_is_the_first(index, baseline)
            return index, None, index
        if not answer.maybe_earlier:
            look = requests.look(self.key, requests.left(self.deadline))
            return 0, look.stored, look.store_revision
        with self._unknown_if_it_fails():
            return self._look_for_it(baseline, shows)

    @contextmanager
    def _unknown_if_it_fails(self) -> Iterator[None]:
        """
        Say of an error in looking a write up that its outcome is not known.
        """
        try:
            yield
        except EtcdOutcomeUnknownError:
            raise
        except EtcdError as error:
            raise EtcdOutcomeUnknownError(
                f"Could not find out what became of a write to '{self.key}': it may or "
                f"may not have been applied ({error})"
            ) from error

    def _look_for_it(
        self, baseline: int, shows: Callable[[Stored], bool]
    ) -> tuple[int, Stored | None, int]:
        """
        Find out what became of it, where an attempt has got no answer.

        Args:
            baseline: An index from before the first attempt.
            shows: As of :meth:`apply`.

        Returns:
            As of :meth:`apply`.
        """
        look = self.requests.look(self.key, self.requests.left(self.deadline))
        current = look.stored
        won_at = 0
        # A wiped store counts from the start again.
        wiped = look.store_revision < baseline
        after = 0 if wiped else max(self.expected, baseline)
        if current is None or current.revision > after:
            won_at = (
                current.revision
                if current is not None and shows(current)
                else self._find(after, current)
            )
        return won_at, current, look.store_revision

    def _find(self, after: int, current: Stored | None) -> int:
        """
        Find out whether an earlier attempt, whose reply was lost, was applied.

        Returns:
            The index at which it was, or 0 if it was not.
        """
        # Where there is something, history has something to tell, though late.
        limit = self.deadline if current is not None else self._soon()
        try:
            first = self._event(after + 1, limit)
            # What is created may come after the end of what was there before.
            while not self.expected and first.action in ENDS:
                first = self._event(first.modifiedIndex + 1, limit)
        except etcd.EtcdWatchTimedOut as error:
            if current is None:
                return 0
            raise EtcdOutcomeUnknownError(
                f"Could not find out what became of a write to '{self.key}': it may or "
                "may not have been applied, and etcd did not tell in time."
            ) from error
        except etcd.EtcdEventIndexCleared as error:
            raise EtcdOutcomeUnknownError(
                f"Could not find out what became of a write to '{self.key}': others "
                "have written since, and etcd no longer has the history that would "
                "tell."
            ) from error
        return int(first.modifiedIndex) if self.is_ours(first) else 0

    def _make_sure_it_is_the_first(self, index: int, baseline: int) -> None:
        """
        Rule out that an earlier attempt created the key, too, and others deleted it.

        Args:
            index: The index at which it was created.
            baseline: An index from before the first attempt.
        """
        after, reason = baseline, "others have deleted what was written first"
        try:
            while after < index:
                event = self._event(after + 1, self._soon())
                after = int(event.modifiedIndex)
                if self.is_ours(event):
                    break
        except (etcd.EtcdWatchTimedOut, etcd.EtcdEventIndexCleared):
            reason = "etcd no longer has the history that would tell"
        if after != index:
            raise EtcdOutcomeUnknownError(
                f"Could not {self.what} just once: it may have been applied twice, "
                f"since a reply was lost, and {reason}."
            )

    def _event(self, index: int, limit: float) -> etcd.EtcdResult:
        """
        Return the first event of the key from an index on.
        """
        return self.requests.run(
            lambda sender: sender.read(self.key, wait=True, waitIndex=index),
            f"find out what became of a write to '{self.key}'",
            max(limit - self.requests.now(), 0.1),
        ).value

    def _soon(self) -> float:
        return min(self.deadline, self.requests.now() + _HISTORY_SECONDS)
