# SPDX-License-Identifier: BSD-3-Clause
"""
Where a node runs, and whether another one that ran there still lives.

A node that was killed holds its place until its lease expires. Whoever starts in the
same place need not wait for that, if it can be sure: every node holds a name in the
abstract namespace of Unix sockets, which belongs to the network namespace (a machine's,
or a pod's) and is free again as soon as no process of that node lives. So two that both
live never take each other for dead, whatever names and numbers they have in common.
Only Linux has this; elsewhere the lease alone tells.
"""

from __future__ import annotations

import errno
import hashlib
import secrets
import socket
import sys
from pathlib import Path
from typing import Final

__all__ = ["Place"]

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_NETWORK: Final = Path("/proc/self/ns/net")


class Place:
    """
    Where a node runs.

    Attributes:
        name: Equal for all nodes of one address in one network namespace, where that
            can be told; it may change when a node's name is to be held.

    Args:
        address: The node's address.
    """

    def __init__(self, address: str) -> None:
        where = _network_namespace()
        self._known = bool(where)
        self.name = _name(f"{where} {address}") if where else _nowhere()
        self._held: socket.socket | None = None

    def hold(self, node: str) -> None:
        """
        Hold a node's name for as long as this process lives, or until the next.

        Args:
            node: The node's id.
        """
        self.release()
        if not self._known:
            return
        try:
            self._held = _bind(node)
        except OSError:
            self._held = None
        if self._held is None:
            # Others must not look for what is not held.
            self._known = False
            self.name = _nowhere()

    def release(self) -> None:
        """
        Hold nothing any more.
        """
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def is_dead(self, node: str) -> bool:
        """
        Say whether a node of the same place is sure to be dead.

        Args:
            node: Its id.
        """
        if not self._known:
            return False
        try:
            bound = _bind(node)
        except OSError:
            return False
        if bound is None:
            return False
        bound.close()
        return True


def _name(where: str) -> str:
    return hashlib.sha256(where.encode()).hexdigest()[:8]


def _nowhere() -> str:
    """
    Return the name of a place where nobody else is.
    """
    return _name(secrets.token_hex(16))


def _network_namespace() -> str:
    """
    Name this boot of this machine, and the network namespace; nothing if unknown.
    """
    if sys.platform != "linux":
        return ""
    try:
        return f"{_BOOT.read_text().strip()} {_NETWORK.readlink()}"
    except OSError:
        return ""


def _bind(node: str) -> socket.socket | None:
    """
    Bind a node's name.

    Returns:
        None if somebody holds it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(f"\0etcd-rendezvous {node}")
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return sock
