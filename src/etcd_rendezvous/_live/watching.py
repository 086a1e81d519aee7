# SPDX-License-Identifier: BSD-3-Clause
"""
Looking after the watches, of a node and of the closer.
"""

from __future__ import annotations

from .._errors import EtcdError
from .._log import log
from .._settings import Endpoint
from .._v3 import wire
from .._v3.client import EtcdClient
from .._v3.watch import Watch

__all__ = ["has_missed", "move"]


def has_missed(
    client: EtcdClient, prefix: bytes, known: int, count: int, seconds: float
) -> bool:
    """
    Say whether a watch has missed anything, as far as etcd can be asked.

    Args:
        client: The client.
        prefix: What the keys begin with.
        known: The latest revision that is known of.
        count: How many keys there are, as far as is known.
        seconds: The most seconds to take.
    """
    try:
        found, revision = client.range(
            prefix,
            wire.prefix_end(prefix),
            keys_only=True,
            min_mod_revision=known + 1,
            timeout=seconds,
        )
    except EtcdError as error:
        log.debug("The watch of '%s' is not looked after: %s", prefix.decode(), error)
        return False
    return bool(found.entries) or found.count != count or revision < known


def move(watch: Watch | None, where: Endpoint, *, anyway: bool) -> None:
    """
    Let a watch be opened again, unless it comes from where calls are answered.

    Args:
        watch: The watch; None if there is none now.
        where: Where calls are answered.
        anyway: Whether to open it again in any case.
    """
    if watch is not None and (anyway or watch.endpoint != where):
        watch.interrupt()
