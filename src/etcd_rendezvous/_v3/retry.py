# SPDX-License-Identifier: BSD-3-Clause
"""
The retry table: what a failure says about the server, and what to do next.

Pure functions; the loop that obeys them is in ``transport``. Failures are told
apart by etcd's message first and its gRPC code second, never by HTTP status: the
same error had different statuses in different versions.
"""

from __future__ import annotations

import errno
import random
import ssl
from collections.abc import Callable
from enum import Enum
from http.client import BadStatusLine, RemoteDisconnected
from typing import Final

import urllib3.exceptions as urllib3_errors

__all__ = [
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "Failure",
    "Step",
    "attempt_seconds",
    "cause_of",
    "decide",
    "failure_of_exception",
    "failure_of_reply",
    "pause_seconds",
]


class Failure(Enum):
    """
    What a failed attempt says of the request.
    """

    NOT_SENT = "not sent"  # refused, unresolved, no connection in time
    TLS = "TLS handshake failed"  # not sent either, and waiting won't mend it
    REJECTED = "rejected"  # the server said so before it proposed anything
    UNAUTHENTICATED = "token refused"  # nothing was applied, and a new token may do
    AMBIGUOUS = "ambiguous"  # it may have been applied, or may yet be
    FINAL = "final"  # the server's last word


class Step(Enum):
    """
    What to do after a failed attempt.
    """

    NEXT = "send to the next endpoint"
    RAISE = "give up"


# "no leader" comes at once under the hasleader header, before a proposal. A learner is
# a member that has no vote yet; the others serve.
_REJECTED: Final = ("no leader", "too many requests", "not supported for learner")

_TOKEN_REFUSED: Final = (
    "user name is empty",
    "invalid auth token",
    "revision of auth store is old",
)
# gRPC
PERMISSION_DENIED: Final = 7
UNAUTHENTICATED: Final = 16

_AMBIGUOUS: Final = (
    "request timed out",
    "deadline exceeded",
    "leader changed",
    "server stopped",
    "stream terminated by rst_stream",
    "context canceled",
    "error reading from server",
    "transport is closing",
    "connection closed",
)

# gRPC: 1 cancelled, 4 deadline exceeded, 14 unavailable
_AMBIGUOUS_CODES: Final = frozenset({1, 4, 14})

# No socket gives these.
_FILE_ERRORS: Final = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR})

# Not Python's own generator: its numbers are the user's, who may have seeded it.
RANDOM: Final = random.SystemRandom()

FIRST_ATTEMPT_SECONDS: Final = 2.0
FIRST_PAUSE_SECONDS: Final = 0.025
LONGEST_PAUSE_SECONDS: Final = 0.5


def failure_of_reply(code: int, text: str) -> Failure:
    """
    Classify an error that etcd answered with.

    Args:
        code: The gRPC code of the answer.
        text: The message of the answer.

    Returns:
        The kind of failure.
    """
    lowered = text.lower()
    if any(phrase in lowered for phrase in _REJECTED):
        return Failure.REJECTED
    if any(phrase in lowered for phrase in _TOKEN_REFUSED):
        return Failure.UNAUTHENTICATED
    if any(phrase in lowered for phrase in _AMBIGUOUS):
        return Failure.AMBIGUOUS
    if code == UNAUTHENTICATED:
        return Failure.UNAUTHENTICATED
    if code in _AMBIGUOUS_CODES:
        return Failure.AMBIGUOUS
    return Failure.FINAL


def failure_of_exception(error: BaseException) -> Failure:
    """
    Classify an exception that urllib3 raised for one attempt.

    Args:
        error: The exception, raised with urllib3's own retries switched off.

    Returns:
        The kind of failure.
    """
    if isinstance(
        error,
        (urllib3_errors.NewConnectionError, urllib3_errors.ConnectTimeoutError),
    ):
        return Failure.NOT_SENT
    if isinstance(error, UnicodeDecodeError):
        # urllib3 has looked for a password in a client's key, which is no text.
        return Failure.TLS
    if isinstance(error, urllib3_errors.SSLError):
        # A connection that ends in the middle of TLS may end after the request.
        reason = error.args[0] if error.args else None
        if isinstance(reason, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return Failure.AMBIGUOUS
        return Failure.TLS
    if isinstance(error, urllib3_errors.LocationParseError):
        return Failure.FINAL
    cause = cause_of(error)
    if isinstance(cause, OSError) and cause.errno in _FILE_ERRORS:
        # The client's certificate can't be read.
        return Failure.TLS
    if isinstance(cause, BadStatusLine) and not isinstance(cause, RemoteDisconnected):
        # It does not speak HTTP.
        return Failure.FINAL
    return Failure.AMBIGUOUS


def cause_of(error: BaseException | None) -> object:
    """
    Return what urllib3 wrapped into an error of its own, or the error itself.
    """
    if isinstance(error, urllib3_errors.ProtocolError) and len(error.args) > 1:
        return error.args[1]
    if isinstance(error, urllib3_errors.SSLError) and error.args:
        return error.args[0]
    return error


def decide(
    failure: Failure, *, all_unreachable: bool, patient: bool, time_left: float
) -> Step:
    """
    Choose the next step after a failed attempt.

    Args:
        failure: What the attempt failed with.
        all_unreachable: Whether every endpoint has failed in a row without the
            request being sent.
        patient: Whether to go on although nobody can be reached: where the caller
            would rather wait, and where an earlier attempt of a write may have been
            applied, since its outcome is worth the wait.
        time_left: The seconds left of the operation's deadline.

    Returns:
        The step to take. A repeated request is always the identical one; whoever
        sent a conditional write resolves what came of it.
    """
    if failure is Failure.FINAL or time_left <= 0:
        return Step.RAISE
    if all_unreachable and not (patient and failure is not Failure.TLS):
        return Step.RAISE
    return Step.NEXT


def attempt_seconds(timeouts_so_far: int, time_left: float) -> float:
    """
    Return how long the next attempt may take, in seconds.

    Attempts of 2, 4, 8 … seconds within the deadline: attempts that stay short
    turn a stall of three seconds into an overload.

    Args:
        timeouts_so_far: How many attempts of this operation were ambiguous.
        time_left: The seconds left of the operation's deadline.
    """
    return min(FIRST_ATTEMPT_SECONDS * float(2 ** min(timeouts_so_far, 10)), time_left)


def pause_seconds(
    rounds: int, uniform: Callable[[float, float], float] = RANDOM.uniform
) -> float:
    """
    Return how long to sleep after a full round of all endpoints, in seconds.

    25 ms doubling to 500 ms, with full jitter.

    Args:
        rounds: How many full rounds have failed, at least 1.
        uniform: The source of randomness.
    """
    longest = min(
        FIRST_PAUSE_SECONDS * float(2 ** min(rounds - 1, 10)), LONGEST_PAUSE_SECONDS
    )
    return uniform(0.0, longest)
