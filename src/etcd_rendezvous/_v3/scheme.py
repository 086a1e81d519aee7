# SPDX-License-Identifier: BSD-3-Clause
"""
Find out whether an endpoint speaks TLS or plain HTTP.

etcd says nothing to whoever comes with the wrong one: it closes the connection, as
a server does that is going down. So before the first answer of an endpoint a closed
connection is worth one look with the other one.
"""

from __future__ import annotations

import socket
import ssl
from typing import Final

from .._params import Endpoint

__all__ = ["speaks_the_other"]

_LOOK_SECONDS: Final = 2.0


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


def _speaks_tls(connection: socket.socket) -> bool:
    # Nothing is sent that is worth protecting: who the server is does not matter.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(connection):
            return True
    except ssl.SSLEOFError:
        return False
    except ssl.SSLError as error:
        # An alert, such as that a client certificate is wanted, is TLS too.
        return "ALERT" in (error.reason or "")


def _speaks_plain(connection: socket.socket) -> bool:
    connection.sendall(b"GET /version HTTP/1.0\r\n\r\n")
    return connection.recv(5) == b"HTTP/"
