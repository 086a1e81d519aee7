# SPDX-License-Identifier: BSD-3-Clause
"""
Reach one endpoint: resolve its name, connect, read plain pages from it.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import urllib3
from urllib3.exceptions import HTTPError

from etcd_rendezvous._background import Later
from etcd_rendezvous._cli.doctor_facts import Clock, Page, Tls
from etcd_rendezvous._clocks import RESOLUTION, seconds_of
from etcd_rendezvous._pools import new_pool
from etcd_rendezvous._settings import Endpoint, TlsFiles

__all__ = ["Pages", "clock_of", "connect", "metrics_in", "resolve"]

_LARGEST_PAGE: Final = 4 * 1024 * 1024


def resolve(endpoint: Endpoint, limit: float) -> list[tuple[Any, ...]]:
    """
    Resolve the host of an endpoint.

    Args:
        endpoint: The endpoint.
        limit: The most seconds to take.

    Returns:
        What ``socket.getaddrinfo`` found; nothing where the name is not known.

    Raises:
        TimeoutError: There was no answer in time.
    """
    lookup = Later(
        lambda: socket.getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM
        )
    )
    try:
        return list(lookup.result(limit))
    except TimeoutError:
        raise
    except (OSError, UnicodeError):
        return []


def connect(found: Iterable[tuple[Any, ...]], timeout: float) -> float | None:
    """
    Connect to the first address that lets us.

    Args:
        found: The addresses, from :func:`resolve`.
        timeout: The most seconds for each.

    Returns:
        How many seconds it took; None if none lets us.
    """
    for family, kind, protocol, _, address in found:
        with suppress(OSError), socket.socket(family, kind, protocol) as sock:
            sock.settimeout(timeout)
            started = time.monotonic()
            sock.connect(address)
            return time.monotonic() - started
    return None


class Pages:
    """
    Plain pages of one endpoint, on one connection. Use it as a context manager.

    Args:
        endpoint: The endpoint.
        tls: Certificates, for ``https``.
        connect_timeout: The most seconds for a TCP connect.
    """

    def __init__(
        self, endpoint: Endpoint, tls: TlsFiles, connect_timeout: float
    ) -> None:
        self._pool = new_pool(endpoint, tls, 1)
        self._connect_timeout = connect_timeout

    def __enter__(self) -> Pages:  # noqa: PYI034
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.close()

    def get(self, path: str, timeout: float) -> Page | None:
        """
        Read a page.

        Args:
            path: Its path.
            timeout: The most seconds to wait for any part of it.

        Returns:
            The page; None where there is no HTTP answer.
        """
        limits = urllib3.Timeout(
            connect=min(self._connect_timeout, timeout), read=timeout
        )
        before = time.time()
        try:
            response = self._pool.urlopen(
                "GET",
                path,
                headers={"User-Agent": "etcd-rendezvous"},
                redirect=False,
                preload_content=False,
                timeout=limits,
            )
            after = time.time()
            # Reading to the end gives the connection back.
            tls = _tls_of(getattr(response.connection, "sock", None))
            body = response.read(_LARGEST_PAGE)
        except (HTTPError, OSError, ValueError):
            return None
        response.drain_conn()
        clock = clock_of(response.headers.get("Date"), before, after)
        return Page(response.status, body, clock, tls)


def _tls_of(sock: object) -> Tls | None:
    if not isinstance(sock, ssl.SSLSocket):
        return None
    ends = (sock.getpeercert() or {}).get("notAfter")
    if not isinstance(ends, str):
        return None
    return Tls(sock.version() or "TLS", ssl.cert_time_to_seconds(ends))


def clock_of(date: str | None, before: float, after: float) -> Clock | None:
    """
    Return what the date of a reply says of two clocks.

    Args:
        date: The ``Date`` header, which is rounded down to a second.
        before: This machine's time before the request, in seconds since 1970.
        after: The same when the reply was there.
    """
    told = seconds_of(date)
    return None if told is None else Clock(told - after, told + RESOLUTION - before)


def metrics_in(text: str, names: Iterable[str]) -> dict[str, float]:
    """
    Find numbers in a page of metrics.

    Args:
        text: The page, in the format of Prometheus.
        names: Metrics without labels.
    """
    wanted = frozenset(names)
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name in wanted:
            with suppress(ValueError):
                found[name] = float(value)
    return found
