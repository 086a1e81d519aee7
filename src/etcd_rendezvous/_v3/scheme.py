# SPDX-License-Identifier: BSD-3-Clause
"""
Find out why an endpoint closes the connection before it has ever answered.

etcd says nothing to whoever comes with http for https, or the reverse: it closes the
connection, as a server does that is going down. And that it refuses a certificate is
often lost, since under TLS 1.3 its alert comes after the handshake, and a reset may
overtake it. So before the first answer of an endpoint a closed connection is worth
one look that sends nothing.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Final

from .._settings import Endpoint, TlsFiles

__all__ = ["alert_of", "speaks_the_other"]

_LOOK_SECONDS: Final = 2.0
_ALERT_SECONDS: Final = 0.5
# What an alert begins with, and what a handshake.
_RECORDS: Final = (b"\x15", b"\x16")


def speaks_the_other(endpoint: Endpoint, timeout: float) -> bool:
    """
    Say whether an endpoint speaks TLS where it is named as http, or the reverse.

    Args:
        endpoint: The endpoint.
        timeout: The most seconds to take, besides two in all and name resolution.
    """
    try:
        with socket.create_connection(
            (endpoint.host, endpoint.port), timeout=min(timeout, _LOOK_SECONDS)
        ) as connection:
            if endpoint.scheme == "http":
                return _speaks_tls(connection)
            return _speaks_plain(connection)
    except OSError:
        return False


def alert_of(endpoint: Endpoint, tls: TlsFiles, timeout: float) -> ssl.SSLError | None:
    """
    Return the alert that a TLS endpoint answers a handshake with, if any.

    Args:
        endpoint: The endpoint.
        tls: The certificate to show; whether the server's is trusted is not asked.
        timeout: The most seconds to take, besides two in all and name resolution.
    """
    context = _any_server()
    # Not by hand as below, since the alert may come after the handshake.
    try:
        if tls.cert:
            context.load_cert_chain(tls.cert, tls.key)
        with (
            socket.create_connection(
                (endpoint.host, endpoint.port), timeout=min(timeout, _LOOK_SECONDS)
            ) as connection,
            context.wrap_socket(connection, server_hostname=endpoint.host) as wrapped,
        ):
            wrapped.settimeout(min(timeout, _ALERT_SECONDS))
            wrapped.recv(1)
    except ssl.SSLError as error:
        return error if "ALERT" in (error.reason or "") else None
    except OSError:
        return None
    return None


def _any_server() -> ssl.SSLContext:
    # Nothing is sent that is worth protecting: who the server is does not matter.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _speaks_tls(connection: socket.socket) -> bool:
    # By hand: `wrap_socket` leaves a socket open if the connection is reset just then.
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        _any_server().wrap_bio(heard, said).do_handshake()
    connection.sendall(said.read())
    # An alert, such as that no version suits, is TLS too.
    return connection.recv(1) in _RECORDS


def _speaks_plain(connection: socket.socket) -> bool:
    connection.sendall(b"GET /version HTTP/1.0\r\n\r\n")
    return connection.recv(5) == b"HTTP/"
