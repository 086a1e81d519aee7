# SPDX-License-Identifier: BSD-3-Clause
"""
The addresses and ports of local servers.
"""

from __future__ import annotations

import ipaddress
import random
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ._errors import EtcdServerError

__all__ = [
    "bind_error",
    "bracketed",
    "find_free_port",
    "free_ports",
    "is_any",
    "listen_addresses",
    "url",
]


def find_free_port() -> socket.socket:
    """
    Find a free port of localhost; torch's ``etcd_server.find_free_port``.

    Returns:
        A socket that listens on it. Close it right before the port is used; until
        then nobody else gets it, afterwards anybody may.

    Raises:
        EtcdServerError: There is none.

    .. versionadded:: 0.1.0
    """
    try:
        return _bind(listen_addresses("localhost")[0], 0)
    except OSError as error:
        raise EtcdServerError(f"There is no free port: {error}.") from error


def listen_addresses(host: str) -> list[str]:
    """
    Return the addresses to listen on: for localhost all that clients may try.
    """
    name = host.strip("[]")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        if name == "localhost":
            return ["127.0.0.1"]
        msg = f"The host {host} can't be resolved: {exc}"
        raise EtcdServerError(msg) from exc
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if name != "localhost":
        return addresses[:1]
    if "::1" in addresses and bind_error("::1", 0) is None:
        return ["127.0.0.1", "::1"]
    return ["127.0.0.1"]


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As etcd does, so that connections which just ended are no obstacle.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(1)  # Two sockets may be bound to a port, only one may listen.
    except OSError:
        sock.close()
        raise
    return sock


def bind_error(address: str, port: int) -> OSError | None:
    try:
        _bind(address, port).close()
    except OSError as exc:
        return exc
    return None


def _port_ranges() -> list[range]:
    """
    Return the ports that the kernel does not give to outgoing connections.

    A server of ours is killed and started again on its port. Meanwhile the kernel
    could give a port of its own range to an outgoing connection, even to a client
    that tries to reach this very port, and thereby connects to itself.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii")
        low, high = (int(word) for word in text.split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    ranges = [range(10240, low), range(high + 1, 65536)]
    return [ports for ports in ranges if len(ports) >= 1000]


@contextmanager
def free_ports(count: int, addresses: Sequence[str]) -> Iterator[list[int]]:
    """
    Hold ports that are free on each of some addresses.
    """
    # Of the system's randomness: tests with one seed must not meet on one port.
    choose = random.SystemRandom()
    ranges = _port_ranges()
    ports: list[int] = []
    with ExitStack() as held:
        for attempt in range(200 + count):
            if len(ports) == count:
                break
            port = 0
            if ranges and attempt < 150:
                port = choose.choice(choose.choice(ranges))
            with ExitStack() as holding:
                try:
                    for address in addresses:
                        sock = holding.enter_context(_bind(address, port))
                        port = sock.getsockname()[1]
                except OSError:
                    continue
                held.enter_context(holding.pop_all())
            ports.append(port)
        else:
            msg = f"No free port was found on {', '.join(addresses)}."
            raise EtcdServerError(msg)
        yield ports


def is_any(host: str) -> bool:
    """
    Say whether a host means all addresses of the machine.
    """
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def url(scheme: str, address: str, port: int) -> str:
    return f"{scheme}://{bracketed(address)}:{port}"


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
