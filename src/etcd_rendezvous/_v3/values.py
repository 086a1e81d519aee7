# SPDX-License-Identifier: BSD-3-Clause
"""
How the store's values stand in etcd: as they are, but for counters.

etcd counts how often a key was written since it was created: its *version*. A put
that leaves the value as it is adds one to it, on the server, and so can't conflict
with anybody else's. What such a counter holds as its value is only what has to be
added to the version: ``number = version + offset``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .wire import prefix_end

if TYPE_CHECKING:
    from .wire import Entry

__all__ = ["COUNTERS", "counter", "decode", "encode", "is_counter"]

_OURS: Final = b"\0etcd-rendezvous "
_COUNTER: Final = _OURS + b"counter: version"
_VALUE: Final = _OURS + b"value: "

# All values of counters lie between these two.
COUNTERS: Final = (_COUNTER, prefix_end(_COUNTER))


def encode(value: bytes) -> bytes:
    """
    Return what stands in etcd for a value.
    """
    return _VALUE + value if value.startswith(_OURS) else value


def counter(number: int, version: int) -> bytes:
    """
    Return what stands in etcd for a counter.

    Args:
        number: The number.
        version: The version that the key will have when this is written.
    """
    return _COUNTER + b"%+d" % (number - version)


def is_counter(entry: Entry) -> bool:
    """
    Say whether an entry of etcd is a counter.
    """
    return entry.value.startswith(_COUNTER)


def decode(entry: Entry) -> bytes:
    """
    Return the value that an entry of etcd stands for.
    """
    stored = entry.value
    if not stored.startswith(_OURS):
        return stored
    if is_counter(entry):
        return b"%d" % (entry.version + int(stored[len(_COUNTER) :]))
    return stored.removeprefix(_VALUE)
