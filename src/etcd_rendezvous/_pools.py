# SPDX-License-Identifier: BSD-3-Clause
"""
What we want of urllib3's connection pools.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import urllib3

from ._settings import Endpoint, TlsFiles

__all__ = ["CONNECTIONS_PER_POOL", "Count", "Usage", "counted", "new_pool"]

# For as many threads at the same time; what more of them need is not kept.
CONNECTIONS_PER_POOL: Final = 32
# What stays open to an endpoint when nothing is under way.
_IDLE_CONNECTIONS: Final = 2


def new_pool(
    endpoint: Endpoint, tls: TlsFiles, size: int
) -> urllib3.HTTPConnectionPool:
    """
    Make a pool of connections to an endpoint, which sends nothing twice by itself.

    Args:
        endpoint: The endpoint.
        tls: Certificates, for ``https``.
        size: How many connections it keeps.
    """
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    if endpoint.scheme == "http":
        return urllib3.HTTPConnectionPool(
            host, endpoint.port, maxsize=size, retries=False
        )
    return urllib3.HTTPSConnectionPool(
        host,
        endpoint.port,
        maxsize=size,
        retries=False,
        cert_file=tls.cert,
        # Named, urllib3 looks whether it is encrypted; else OpenSSL asks the terminal.
        key_file=tls.key or tls.cert,
        ca_certs=tls.ca,
        cert_reqs="CERT_REQUIRED",
    )


class Usage:
    """
    The requests under way: after the last one few connections stay open.

    Args:
        pools: Returns the pools that are used.
    """

    def __init__(
        self, pools: Callable[[], Iterable[urllib3.HTTPConnectionPool]]
    ) -> None:
        self._pools = pools
        self._lock = threading.Lock()
        self._requests = 0

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """
        Note that a request is under way.
        """
        with self._lock:
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1
                if not self._requests:
                    for pool in self._pools():
                        _trim(pool)


def _trim(pool: urllib3.HTTPConnectionPool) -> None:
    """
    Close all connections of a pool but a few; none may be in use.
    """
    queue = pool.pool
    if queue is None or sum(map(bool, queue.queue)) <= _IDLE_CONNECTIONS:
        return
    # The pool's queue is always full when nothing is in use; the newest come last.
    held = [queue.get_nowait() for _ in range(queue.qsize())][::-1]
    open_ones = [connection for connection in held if connection is not None]
    kept = open_ones[-_IDLE_CONNECTIONS:]
    for connection in open_ones[:-_IDLE_CONNECTIONS]:
        connection.close()
    for connection in [None] * (len(held) - len(kept)) + kept:
        queue.put_nowait(connection)


class Count:
    """
    How many there were.

    It knows nobody: a pool's connections may hold it without holding the pool.
    """

    number = 0


def counted(
    pool: urllib3.HTTPConnectionPool, made: Count
) -> urllib3.HTTPConnectionPool:
    """
    Let a pool count its new connections. urllib3's own count misses some.

    Args:
        pool: The pool; nothing has been sent over it.
        made: What counts them.
    """
    kind = pool.ConnectionCls

    class Counted(kind):  # type: ignore[misc, valid-type]
        def connect(self) -> None:
            super().connect()
            made.number += 1

    pool.ConnectionCls = Counted
    return pool
