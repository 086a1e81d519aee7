# SPDX-License-Identifier: BSD-3-Clause
"""
Authentication: one token for all requests, renewed in one place.

etcd has no refresh: whoever's token is refused asks for a new one, with the password.
Checking it costs etcd a good part of a tenth of a second of a core (it is bcrypt), so
one thread does it, and the others wait for what it gets.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeGuard

from .._credentials import (
    LEAST_SECRET,
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    Credentials,
)
from .._errors import EtcdSettingError
from .._failover import Trouble
from .._log import log
from . import retry, wire

__all__ = ["Authenticator"]

#: What an attempt got.
Outcome: TypeAlias = "dict[str, Any] | Trouble"

# A password that was refused is not tried again sooner: a poll would ask without end.
_REFUSED_SECONDS: Final = 5.0
_NONE_WANTED: Final = ""
# What a header can hold.
_TOKEN: Final = re.compile(r"[!-~]+")


class Authenticator:
    """
    The token of one user. Safe for threads, and after ``fork``.

    Args:
        credentials: Who we are; None for nobody.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        credentials: Credentials | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._credentials = credentials
        self._clock = clock
        # Empty where etcd wants none; None where it has not been asked for.
        self._token: str | None = None if credentials else _NONE_WANTED
        self._refusal: tuple[float, Trouble] | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def user(self) -> str | None:
        """
        Who etcd has authenticated us as.
        """
        return self._credentials.user if self._credentials and self._token else None

    def run(
        self,
        send: Callable[[dict[str, str], float], Outcome],
        log_in: Callable[[bytes, float], Outcome],
        limit: float,
    ) -> Outcome:
        """
        Send a request with a token; where that is refused, once more with a new one.

        Args:
            send: Sends the request with these headers, within a number of seconds.
            log_in: Sends this body to where tokens are had, within a number of
                seconds.
            limit: The seconds for all of it.
        """
        until = self._clock() + limit
        had = self._token
        token = self._current(log_in, limit)
        if isinstance(token, Trouble):
            return token
        left = limit if token == had else self._left(until)
        outcome = send(_headers(token), left)
        if _is(outcome, retry.Failure.UNAUTHENTICATED):
            fresh = self._current(log_in, self._left(until), refused=token)
            if isinstance(fresh, Trouble):
                return fresh
            outcome = send(_headers(fresh), self._left(until))
        if isinstance(outcome, Trouble) and self._credentials is not None:
            return _rights_in_words(outcome, self._credentials)
        return outcome

    def headers(
        self, log_in: Callable[[bytes, float], Outcome], limit: float
    ) -> dict[str, str] | Trouble:
        """
        Return the headers that say who we are, or why there are none.

        Args:
            log_in: As of :meth:`run`.
            limit: The most seconds to take.
        """
        token = self._current(log_in, limit)
        return token if isinstance(token, Trouble) else _headers(token)

    def distrust(self) -> None:
        """
        Ask for a new token at the next request.
        """
        if self._credentials is not None:
            self._token = None

    def _current(
        self,
        log_in: Callable[[bytes, float], Outcome],
        limit: float,
        *,
        refused: str | None = None,
    ) -> str | Trouble:
        """
        Return the token, asked for if need be.

        Args:
            log_in: As of :meth:`run`.
            limit: The most seconds to take.
            refused: The token that etcd would not take.

        Returns:
            The token, empty where there is none; or why there is none.
        """
        if self._token is not None and self._token != refused:
            return self._token
        if self._credentials is None:
            return Trouble(
                retry.Failure.FINAL,
                "it wants a user and a password; set "
                f"{USER_VARIABLE} and {PASSWORD_VARIABLE}",
                code=retry.UNAUTHENTICATED,
            )
        if self._pid != os.getpid():
            # The lock may have been held by a thread that the fork left behind.
            self._lock = threading.Lock()
            self._pid = os.getpid()  # last: another thread may look
        until = self._clock() + limit
        # After a fork another thread may put a new one into its place.
        lock = self._lock
        if not lock.acquire(timeout=max(limit, 0.0)):
            return Trouble(
                retry.Failure.AMBIGUOUS,
                "another thread's authentication has no answer yet",
                sent=False,
            )
        try:
            if self._token is not None and self._token != refused:
                return self._token
            token = self._ask(self._credentials, log_in, until)
            if not isinstance(token, Trouble):
                self._token = token
            return token
        finally:
            lock.release()

    def _ask(
        self,
        credentials: Credentials,
        log_in: Callable[[bytes, float], Outcome],
        until: float,
    ) -> str | Trouble:
        if self._refusal is not None and self._clock() < self._refusal[0]:
            return self._refusal[1]
        try:
            password = credentials.password()
        except EtcdSettingError as error:
            return Trouble(
                retry.Failure.FINAL,
                str(error).rstrip("."),
                error,
                code=retry.UNAUTHENTICATED,
                may_mend=True,
            )
        body = wire.encode({"name": credentials.user, "password": password})
        outcome = log_in(body, self._left(until))
        if isinstance(outcome, Trouble):
            if wire.AUTH_IS_OFF in outcome.reason:
                log.debug("etcd's v3 API does not authenticate.")
                return _NONE_WANTED
            trouble = _in_words(outcome, credentials, password)
            if _is(trouble, retry.Failure.FINAL) and not trouble.not_etcd:
                self._refusal = self._clock() + _REFUSED_SECONDS, trouble
            return trouble
        token = outcome.get("token")
        if not (isinstance(token, str) and _TOKEN.fullmatch(token)):
            return Trouble(
                retry.Failure.FINAL,
                "something answered that is not etcd's v3 API",
                not_etcd=True,
            )
        log.debug("Authenticated as '%s'.", credentials.user)
        return token

    def _left(self, until: float) -> float:
        return max(until - self._clock(), 0.05)


def _is(outcome: object, failure: retry.Failure) -> TypeGuard[Trouble]:
    return isinstance(outcome, Trouble) and outcome.failure is failure


def _headers(token: str) -> dict[str, str]:
    # Bare: 3.4 refuses "Bearer".
    return {"Authorization": token} if token else {}


def _rights_in_words(trouble: Trouble, credentials: Credentials) -> Trouble:
    if trouble.code != retry.PERMISSION_DENIED:
        return trouble
    return replace(
        trouble,
        reason=f"the user '{credentials.user}' may not; give a role of theirs the "
        "permission readwrite on what is below the key prefix (etcdctl role "
        "grant-permission --prefix ROLE readwrite PREFIX/)",
    )


def _in_words(trouble: Trouble, credentials: Credentials, password: str) -> Trouble:
    """
    Say what is wrong with an authentication; the request itself was not sent.
    """
    reason = trouble.reason
    # Whatever it is that answers, what it repeats is not to be shown.
    forms = (password, *(text(password)[1:-1] for text in (json.dumps, repr, ascii)))
    if trouble.not_etcd:
        # A stranger's own words stand in brackets, and in what was raised.
        trouble = replace(trouble, cause=None)
        reason = reason.partition(" (")[0]
    for secret in forms:
        if len(secret) >= LEAST_SECRET:
            reason = reason.replace(secret, "***")
    if wire.WRONG_PASSWORD in reason:
        reason = (
            f"etcd does not know the user '{credentials.user}' with this password; "
            f"mend {USER_VARIABLE} and {PASSWORD_VARIABLE}, or the file that is named "
            "in their stead"
        )
        may_mend = credentials.password_file is not None
        trouble = replace(trouble, code=retry.UNAUTHENTICATED, may_mend=may_mend)
    return replace(trouble, reason=reason, sent=False)
