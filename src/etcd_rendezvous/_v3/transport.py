# SPDX-License-Identifier: BSD-3-Clause
"""
Requests to etcd's gateway, over urllib3.

urllib3 never sends anything again by itself here (``retries=False``): whether a
request may be repeated is decided by ``retry``.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.client import RemoteDisconnected
from types import MappingProxyType
from typing import Any, Final

import urllib3
from urllib3.exceptions import HTTPError

from .._clocks import ClockWatch
from .._credentials import Credentials
from .._errors import EtcdConnectionError
from .._failover import Answer, Failover, Trouble
from .._pools import CONNECTIONS_PER_POOL, Count, Usage, counted, new_pool
from .._settings import Endpoint, TlsFiles
from . import retry, wire
from .auth import Authenticator
from .connection import QuickHTTPConnection, QuickHTTPSConnection, Reply, Stream
from .error_texts import (
    SPEAKS_NO_TLS,
    SPEAKS_TLS,
    read_reply,
    tls_in_words,
    trouble_of_exception,
)
from .scheme import alert_of, speaks_the_other

__all__ = ["InterruptedStreamError", "Transport"]

# The socket waits this much longer than the server was told to, so that the
# server's own words about a time-out arrive before ours.
_GRACE_SECONDS: Final = 0.25
# By urllib3, the last one of a client's key that is no text.
_RAISED: Final = (HTTPError, OSError, UnicodeDecodeError)
# Without an answer, in one operation.
_DROPPED_BY_CHANCE: Final = 1


class InterruptedStreamError(EtcdConnectionError):
    """
    Raised to whoever reads a stream that was interrupted on purpose.
    """


class _Pools:
    """
    The connections of one process: a child after ``fork`` makes its own.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.by_endpoint: dict[Endpoint, urllib3.HTTPConnectionPool] = {}
        self.usage = Usage(lambda: list(self.by_endpoint.values()))


class Transport:
    """
    Send requests to whichever endpoint answers.

    Safe for threads, and after ``fork``.

    Args:
        endpoints: Where etcd listens; at least one.
        tls: Certificates, for ``https`` endpoints.
        connect_timeout: The most seconds that one TCP connect may take.
        credentials: Who we are to etcd; None for nobody.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        tls: TlsFiles,
        connect_timeout: float,
        credentials: Credentials | None = None,
    ) -> None:
        self.failover = Failover(endpoints)
        self._auth = Authenticator(credentials)
        self._tls = tls
        self._connect_timeout = connect_timeout
        self._pools = _Pools()
        self._made = Count()
        #: What compares our clock with those of who answers; None for nothing.
        self.clocks: ClockWatch | None = None
        #: Whether it was closed, and not used since.
        self.closed = False

    def post(
        self,
        path: str,
        body: bytes,
        *,
        what: str,
        timeout: float,
        writes: bool = True,
        patient: bool = False,
        once: bool = False,
    ) -> Answer[dict[str, Any]]:
        """
        Send one operation until it is answered or its time is up.

        Args:
            path: The path of the API, such as ``/v3/kv/txn``.
            body: The body; every attempt sends these very bytes.
            what: The operation in words, for errors: "read the key '/a'".
            timeout: The seconds for all attempts together. It is overshot by 0.3 s at
                most, and by what name resolution takes.
            writes: Whether the operation changes anything.
            patient: Whether to go on although no endpoint can be reached.
            once: Whether one endpoint is asked, once; it reads, and a failure has no
                effect.

        Raises:
            EtcdConnectionError: No endpoint answered.
            EtcdProtocolError: Something answered that is not etcd's v3 API.
            EtcdReplyError: etcd answered with an error.
        """
        self.closed = False
        dropped = 0

        def attempt(endpoint: Endpoint, limit: float) -> dict[str, Any] | Trouble:
            nonlocal dropped
            outcome = self._auth.run(
                lambda headers, seconds: self._send(
                    endpoint, path, body, seconds, headers
                ),
                partial(self._send, endpoint, wire.AUTHENTICATE),
                limit,
            )
            if isinstance(outcome, Trouble) and isinstance(
                retry.cause_of(outcome.cause), RemoteDisconnected
            ):
                # Some builds of etcd say so that a token has expired (etcd#15256).
                dropped += 1
                if dropped == _DROPPED_BY_CHANCE + 1:
                    self._auth.distrust()
            return outcome

        if once:
            return self.failover.ask(attempt, what=what, timeout=timeout)
        return self.failover.run(
            attempt, what=what, timeout=timeout, writes=writes, patient=patient
        )

    def _send(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        limit: float,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any] | Trouble:
        """
        Send one request, once.
        """
        pools = self._own_pools()
        clocks = self.clocks
        sending = clocks.begin() if clocks is not None else None
        try:
            with pools.usage.one_more():
                response = self._pool(pools, endpoint).urlopen(
                    "POST",
                    path,
                    body=body,
                    headers={**_headers(limit), **headers},
                    retries=False,
                    redirect=False,
                    timeout=self._timeout(limit, total=limit + _GRACE_SECONDS),
                )
        except _RAISED as error:
            return self._trouble(endpoint, error, limit)
        self.failover.answered.add(endpoint)
        if sending is not None and clocks is not None and isinstance(response, Reply):
            clocks.look(endpoint, response.date, sending)
        return read_reply(response.status, response.data, _token_in(headers))

    @contextmanager
    def stream(
        self, path: str, body: bytes, *, what: str, timeout: float
    ) -> Iterator[tuple[Stream, Endpoint]]:
        """
        Open a stream of messages on a connection of its own; close it afterwards.

        One attempt at the last good endpoint: whoever watches reads again and
        watches again, elsewhere, after a failure.

        Args:
            path: The path of the API.
            body: The complete body.
            what: The operation in words, for errors.
            timeout: The most seconds until the stream is there, and at first between
                two messages; a ``TimeoutError`` comes out of the reading then.

        Yields:
            The open stream, and where it comes from.

        Raises:
            EtcdConnectionError: The stream could not be opened.
            EtcdProtocolError: Something answered that is not etcd's v3 API.
            EtcdReplyError: etcd answered with an error.
        """
        endpoint = self.failover.current
        started = time.monotonic()
        pool = _quick(new_pool(endpoint, self._tls, size=1))
        response: urllib3.BaseHTTPResponse | None = None
        trouble: Trouble | None = None
        own = self._auth.headers(
            partial(self._send, endpoint, wire.AUTHENTICATE), timeout
        )
        try:
            try:
                if isinstance(own, Trouble):
                    trouble = own
                else:
                    response = pool.urlopen(
                        "POST",
                        path,
                        body=body,
                        headers=_headers(None) | own,
                        retries=False,
                        redirect=False,
                        preload_content=False,
                        timeout=self._timeout(timeout, read=timeout),
                    )
                    if response.status != 200:
                        outcome = read_reply(
                            response.status, response.data, _token_in(own)
                        )
                        trouble = outcome if isinstance(outcome, Trouble) else None
            except _RAISED as error:
                trouble = trouble_of_exception(error)
            if trouble is not None or not isinstance(response, Stream):
                trouble = self.failover.in_context(
                    trouble
                    or Trouble(retry.Failure.AMBIGUOUS, "its answer is no stream")
                )
                if trouble.failure is not retry.Failure.FINAL:
                    self.failover.move_on(endpoint, trouble.reason)
                raise self.failover.error(
                    trouble, endpoint, what, 1, started
                ) from trouble.cause
            try:
                yield response, endpoint
            except InterruptedStreamError:
                self.failover.move_on(endpoint)
                raise
            except EtcdConnectionError:
                # It broke: whoever watches again does so elsewhere.
                self.failover.move_on(endpoint, "a watch broke")
                raise
        finally:
            if response is not None:
                response.close()
            pool.close()

    def get(self, path: str, *, timeout: float) -> tuple[Endpoint, int, bytes]:
        """
        Read a plain page, such as ``/version``, from the last good endpoint.

        Returns:
            The endpoint, the HTTP status and the body.

        Raises:
            EtcdConnectionError: The endpoint did not answer.
            EtcdProtocolError: TLS on one side only, or a certificate refused.
        """

        def attempt(endpoint: Endpoint, limit: float) -> tuple[int, bytes] | Trouble:
            pools = self._own_pools()
            try:
                with pools.usage.one_more():
                    response = self._pool(pools, endpoint).urlopen(
                        "GET",
                        path,
                        retries=False,
                        redirect=False,
                        timeout=self._timeout(limit, total=limit),
                    )
            except _RAISED as error:
                return self._trouble(endpoint, error, limit)
            self.failover.answered.add(endpoint)
            return response.status, response.data

        answer = self.failover.run(
            attempt, what=f"read {path}", timeout=timeout, writes=False
        )
        return answer.endpoint, *answer.value

    @property
    def connections_made(self) -> int:
        """
        How many connections this process has made, streams apart; it never falls.
        """
        return self._made.number

    @property
    def user(self) -> str | None:
        """
        Who etcd has authenticated us as; None where it has not, or does not.
        """
        return self._auth.user

    def close(self) -> None:
        """
        Close all idle connections. The transport can still be used.
        """
        self.closed = True
        pools, self._pools = self._pools, _Pools()
        if pools.pid == os.getpid():
            for pool in pools.by_endpoint.values():
                pool.close()

    def _trouble(
        self, endpoint: Endpoint, error: BaseException, limit: float
    ) -> Trouble:
        trouble = trouble_of_exception(error)
        # Closed before all of the request was read, it is a reset.
        closed = isinstance(
            retry.cause_of(error),
            ConnectionResetError | BrokenPipeError | ssl.SSLEOFError,
        )
        if not closed or endpoint in self.failover.answered:
            return trouble
        alert = None
        if endpoint.scheme == "https":
            alert = alert_of(endpoint, self._tls, limit)
        if alert is not None:
            return Trouble(retry.Failure.TLS, tls_in_words(str(alert)), error)
        if speaks_the_other(endpoint, limit):
            reason = SPEAKS_TLS if endpoint.scheme == "http" else SPEAKS_NO_TLS
            return Trouble(retry.Failure.FINAL, reason, error, not_etcd=True)
        return trouble

    def _timeout(
        self, connect: float, *, read: float | None = None, total: float | None = None
    ) -> urllib3.Timeout:
        return urllib3.Timeout(
            connect=min(connect, self._connect_timeout), read=read, total=total
        )

    def _own_pools(self) -> _Pools:
        if self._pools.pid != os.getpid():
            # The parent's connections stay the parent's: they are left alone.
            self._pools = _Pools()
        return self._pools

    def _pool(self, pools: _Pools, endpoint: Endpoint) -> urllib3.HTTPConnectionPool:
        pool = pools.by_endpoint.get(endpoint)
        if pool is None:
            with pools.lock:
                pool = pools.by_endpoint.get(endpoint)
                if pool is None:
                    pool = counted(
                        _quick(new_pool(endpoint, self._tls, CONNECTIONS_PER_POOL)),
                        self._made,
                    )
                    pools.by_endpoint[endpoint] = pool
        return pool


def _quick(pool: urllib3.HTTPConnectionPool) -> urllib3.HTTPConnectionPool:
    """
    Let a pool make connections that are quick with small requests.
    """
    # To urllib3 a request may have any kind of body; ours has bytes.
    if isinstance(pool, urllib3.HTTPSConnectionPool):
        pool.ConnectionCls = QuickHTTPSConnection  # type: ignore[assignment]
    else:
        pool.ConnectionCls = QuickHTTPConnection  # type: ignore[assignment]
    return pool


def _token_in(headers: Mapping[str, str]) -> str:
    return headers.get("Authorization", "")


def _headers(limit: float | None) -> dict[str, str]:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "etcd-rendezvous",
        # A member without a leader then says so at once.
        "Grpc-Metadata-hasleader": "true",
    }
    if limit is not None:
        # The server then gives up when we do.
        headers["Grpc-Timeout"] = f"{max(int(limit * 1000), 1)}m"
    return headers
