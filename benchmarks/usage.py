# SPDX-License-Identifier: BSD-3-Clause
"""
What clients and servers use up, counted by those who know without asking them often.

The kernel counts bytes and processor time, etcd counts requests. Linux only; elsewhere
what is not known is None.
"""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import urllib3

# Within `struct tcp_info`: tcpi_bytes_acked and tcpi_bytes_received.
_TCP_BYTES = struct.Struct("=120xQQ")
_REQUESTS = re.compile(
    rb"^(?:grpc_server_started_total|etcd_http_received_total)\{.*\} (\S+)$",
    re.MULTILINE,
)


def sent_and_received(port: int) -> tuple[int, int] | None:
    """
    Return the bytes that this process has sent to a server, and received from it.

    Only of connections that are open: look before and after.

    Args:
        port: The port of the server.
    """
    if sys.platform != "linux":
        return None
    sent = received = 0
    for sock in connections(port):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_BYTES.size)
        out, back = _TCP_BYTES.unpack(info)
        sent += out
        received += back
    return sent, received


def connections(port: int) -> Iterator[socket.socket]:
    """
    Yield a copy of each socket of this process that is connected to a port.
    """
    for descriptor in Path("/proc/self/fd").iterdir() if port else ():
        try:
            if not descriptor.is_socket():
                continue
            copy = os.dup(int(descriptor.name))
        except OSError:
            continue  # It is closed by now.
        with closing(socket.socket(fileno=copy)) as sock:
            try:
                peer = sock.getpeername()
            except OSError:
                continue
            if isinstance(peer, tuple) and peer[1] == port:
                yield sock


def cpu_seconds(pid: int) -> float | None:
    """
    Return the processor time that a process has taken.
    """
    if sys.platform != "linux":
        return None
    # What clock_getcpuclockid(3) returns, which Python has for threads only.
    return time.clock_gettime(~pid << 3 | 2)


def requests_received(endpoint: str) -> int:
    """
    Return how many requests an etcd has received, of either API.

    Args:
        endpoint: Where it listens, as ``host:port``.
    """
    page = urllib3.request("GET", f"http://{endpoint}/metrics", timeout=10).data
    return int(sum(float(number) for number in _REQUESTS.findall(page)))


@dataclass(frozen=True)
class Used:
    """
    What a server has done by now.

    Attributes:
        cpu_seconds: Of processor time.
        requests: How many it has received.
    """

    cpu_seconds: float | None
    requests: int | None

    def since(self, before: Used) -> Used:
        """
        Return what it has done since then.
        """
        return Used(
            None
            if self.cpu_seconds is None or before.cpu_seconds is None
            else self.cpu_seconds - before.cpu_seconds,
            None
            if self.requests is None or before.requests is None
            else self.requests - before.requests,
        )
