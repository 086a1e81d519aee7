# SPDX-License-Identifier: BSD-3-Clause
"""
The loop that obeys the retry table: attempts, endpoints and one deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from ._errors import (
    EtcdAuthError,
    EtcdConnectionError,
    EtcdError,
    EtcdLimitError,
    EtcdProtocolError,
    EtcdReplyError,
)
from ._limits import remedy_of
from ._log import SlowBeat
from ._settings import Endpoint
from ._v3 import retry

__all__ = ["FAILED_OVER", "Answer", "Failover", "Trouble"]

# What the line of a failover begins with.
FAILED_OVER: Final = "Operations go to etcd at"
_ABOUT_THE_USER: Final = frozenset({retry.PERMISSION_DENIED, retry.UNAUTHENTICATED})

_T = TypeVar("_T")


@dataclass(frozen=True)
class Answer(Generic[_T]):
    """
    What an operation got.

    Attributes:
        value: The answer.
        endpoint: Who answered.
        maybe_earlier: Whether an earlier, identical attempt of a write may have
            been applied too.
    """

    value: _T
    endpoint: Endpoint
    maybe_earlier: bool


@dataclass(frozen=True)
class Trouble:
    """
    One failed attempt, in words.

    Attributes:
        failure: What it says of the request.
        reason: The words.
        cause: The exception, if there was one.
        code: The gRPC code of etcd's own answer.
        not_etcd: Whether what answered is not the API that was asked for.
        api_missing: Whether that was said by a page that was not found.
        sent: Whether the operation itself was sent, and not only what comes before
            it, such as an authentication.
        may_mend: Whether a refusal may go away by itself.
    """

    failure: retry.Failure
    reason: str
    cause: BaseException | None = None
    code: int = 2
    not_etcd: bool = False
    api_missing: bool = False
    sent: bool = True
    may_mend: bool = False


class Failover:
    """
    Try endpoints until one answers, the last good one first.

    When operations have moved to another one, a line says so.

    Args:
        endpoints: At least one. The first to be tried is chosen at random.
        clock: A monotonic clock, in seconds.
        sleep: What to sleep with.

    Attributes:
        moves: How often operations have moved.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.endpoints = tuple(endpoints)
        self.last_good: Endpoint | None = None
        #: Who has ever answered.
        self.answered: set[Endpoint] = set()
        self.moves = 0
        self._clock = clock
        self._sleep = sleep
        # Who was left first while no other has answered yet, and why.
        self._left: tuple[Endpoint, str] | None = None
        self._beat = SlowBeat(clock)
        self._current = retry.RANDOM.randrange(len(self.endpoints))

    @property
    def current(self) -> Endpoint:
        """
        The endpoint that is tried first.
        """
        return self.endpoints[self._current]

    def move_on(self, endpoint: Endpoint, reason: str | None = None) -> None:
        """
        Prefer the endpoint after this one, if this one is preferred now.

        Args:
            endpoint: The endpoint.
            reason: What is wrong with it, in words; None for nothing.
        """
        if self.endpoints[self._current] == endpoint:
            self._current = (self._current + 1) % len(self.endpoints)
            if reason is not None:
                self._left = self._left or (endpoint, reason)

    def _stay_with(self, index: int, reasons: Mapping[Endpoint, str]) -> None:
        """
        Ask an endpoint that has answered first from now on.

        Args:
            index: Which it is.
            reasons: What was wrong with those that were asked in this operation.
        """
        index %= len(self.endpoints)
        endpoint = self.endpoints[index]
        here = self.current
        self.last_good = endpoint
        if here != endpoint and here not in reasons:
            return  # Another operation has moved to one that this has not asked.
        left, self._left = self._left, None
        if here != endpoint:
            left = left or (here, reasons[here])
        self._current = index
        if left is not None and left[0] != endpoint:
            self.moves += 1
            self._beat.warn(
                f"{FAILED_OVER} {endpoint} now, since {left[0]} failed ({left[1]})."
            )

    def _give_up(self, index: int, reasons: Mapping[Endpoint, str]) -> None:
        """
        Ask the endpoint after one first, when an operation has ended without an answer.

        Args:
            index: Which was asked last.
            reasons: What was wrong with those that were asked in this operation.
        """
        here = self.current
        if here in reasons:  # Else another operation has moved, as above.
            self._current = (index + 1) % len(self.endpoints)
            self._left = self._left or (here, reasons[here])

    def run(
        self,
        attempt: Callable[[Endpoint, float], _T | Trouble],
        *,
        what: str,
        timeout: float,
        writes: bool,
        patient: bool = False,
    ) -> Answer[_T]:
        """
        Run one operation until it is answered or its time is up.

        Args:
            attempt: Sends the operation to an endpoint, within a number of seconds;
                each call sends the identical request.
            what: The operation in words, for errors: "read the key '/a'".
            timeout: The seconds for all attempts together.
            writes: Whether the operation changes anything, so that an attempt
                without an answer leaves open whether it was applied.
            patient: Whether to go on until the time is up although no endpoint can
                be reached, as while etcd restarts.

        Raises:
            EtcdConnectionError: No endpoint answered.
            EtcdAuthError: User, password or right are refused.
            EtcdLimitError: It is over a limit of etcd's.
            EtcdProtocolError: Something answered that is not the API asked for.
            EtcdReplyError: etcd answered with another error.
        """
        started = self._clock()
        deadline = started + timeout
        tries = slow = 0
        maybe_earlier = False
        unreachable: set[Endpoint] = set()
        reasons: dict[Endpoint, str] = {}
        index = self._current
        while True:
            endpoint = self.endpoints[index % len(self.endpoints)]
            left = max(deadline - self._clock(), 0.05)
            # However short the time, every endpoint is to have a share of it.
            share = left / max(len(self.endpoints) - tries, 1)
            tries += 1
            known = endpoint in self.answered
            result = attempt(endpoint, retry.attempt_seconds(slow, share))
            if isinstance(result, Trouble):
                result = self.in_context(result)
            if not isinstance(result, Trouble):
                self._stay_with(index, reasons)
                self.answered.add(endpoint)
                return Answer(result, endpoint, maybe_earlier)
            reasons[endpoint] = result.reason
            if result.failure in (retry.Failure.NOT_SENT, retry.Failure.TLS):
                unreachable.add(endpoint)
            else:
                unreachable.clear()
            if result.failure is retry.Failure.AMBIGUOUS:
                slow += 1
                maybe_earlier = maybe_earlier or (writes and result.sent)
            elif result.not_etcd and known and not result.api_missing:
                # Rubbish in the place of a reply: etcd may be behind it.
                maybe_earlier = maybe_earlier or (writes and result.sent)
            step = retry.decide(
                result.failure,
                all_unreachable=len(unreachable) == len(self.endpoints),
                patient=patient or maybe_earlier,
                time_left=deadline - self._clock(),
            )
            if step is retry.Step.RAISE:
                if result.failure is retry.Failure.FINAL and not result.not_etcd:
                    # A refusal of etcd's is an answer, too.
                    self._stay_with(index, reasons)
                else:
                    self._give_up(index, reasons)
                if result.failure is not retry.Failure.FINAL:
                    result = replace(result, reason=_of_each(reasons))
                raise self.error(
                    result, endpoint, what, tries, started, maybe_earlier
                ) from result.cause
            del result  # and the frames that its exception knows
            index += 1
            rounds, rest = divmod(tries, len(self.endpoints))
            if rest == 0:
                pause = retry.pause_seconds(rounds)
                self._sleep(min(pause, max(deadline - self._clock(), 0.0)))

    def ask(
        self,
        attempt: Callable[[Endpoint, float], _T | Trouble],
        *,
        what: str,
        timeout: float,
    ) -> Answer[_T]:
        """
        Read from the endpoint that is asked first, once; a failure has no effect.

        Args:
            attempt: As of :meth:`run`.
            what: Likewise.
            timeout: The seconds for it.

        Raises:
            EtcdError: As of :meth:`run`.
        """
        started = self._clock()
        endpoint = self.current
        result = attempt(endpoint, timeout)
        if isinstance(result, Trouble):
            trouble = self.in_context(result)
            raise self.error(trouble, endpoint, what, 1, started) from trouble.cause
        return Answer(result, endpoint, False)

    def in_context(self, trouble: Trouble) -> Trouble:
        """
        See a failed attempt in the light of what was before.

        A handshake that fails once any member has answered is nothing final:
        certificates are replaced one file after the other, on either side.
        """
        if trouble.failure is retry.Failure.TLS and self.answered:
            return replace(trouble, failure=retry.Failure.NOT_SENT)
        return trouble

    def error(
        self,
        trouble: Trouble,
        endpoint: Endpoint,
        what: str,
        tries: int,
        started: float,
        maybe_applied: bool = False,
    ) -> EtcdError:
        """
        Return the error that says all there is to say of a failed operation.
        """
        where = str(endpoint)
        if tries > 1 and len(self.endpoints) > 1:
            where = ", ".join(map(str, self.endpoints))
        final = trouble.failure is retry.Failure.FINAL and not trouble.not_etcd
        remedy = remedy_of(trouble.reason) if final else None
        reason = f"{trouble.reason}; {remedy}" if remedy else trouble.reason
        often = "1 try" if tries == 1 else f"{tries} tries"
        message = (
            f"Could not {what} at {where}: {reason} "
            f"({often} in {self._clock() - started:.1f} s)."
        )
        if maybe_applied:
            message += " It may or may not have been applied."
        error = _error_of(trouble, message, final=final, about_limits=bool(remedy))
        error.reason = reason
        return error


def _of_each(reasons: dict[Endpoint, str]) -> str:
    """
    Return why an operation failed, of each endpoint where the reasons differ.
    """
    ends: dict[str, list[str]] = {}
    for endpoint, reason in reasons.items():
        ends.setdefault(reason, []).append(str(endpoint))
    if len(ends) == 1:
        return next(iter(ends))
    return "; ".join(
        f"{reason} ({', '.join(endpoints)})" for reason, endpoints in ends.items()
    )


def _error_of(
    trouble: Trouble, message: str, *, final: bool, about_limits: bool
) -> EtcdError:
    """
    Return the error of the right kind for a failed operation.
    """
    if trouble.not_etcd or trouble.failure is retry.Failure.TLS:
        error = EtcdProtocolError(message)
        error.api_missing = trouble.api_missing
        return error
    if final:
        if trouble.code in _ABOUT_THE_USER:
            refusal = EtcdAuthError(message, trouble.code, trouble.reason)
            refusal.may_mend = trouble.may_mend
            return refusal
        kind = EtcdLimitError if about_limits else EtcdReplyError
        return kind(message, trouble.code, trouble.reason)
    return EtcdConnectionError(message)
