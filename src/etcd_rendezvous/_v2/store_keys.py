# SPDX-License-Identifier: BSD-3-Clause
"""
``StoreKeys`` over the v2 API.

Names and values are torch's: base64 below a directory, base64 in it. A queue is a
directory beside it, with a key of its own for each value, in the order in which etcd
created them. A value that was taken is not deleted but marked, with its taker's own
mark, and goes away by itself soon: so it shows who took it, and that it was there.
"""

from __future__ import annotations

import binascii
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from typing import Final

import etcd

from .._errors import (
    EtcdConnectionError,
    EtcdLimitError,
    EtcdOutcomeUnknownError,
    EtcdProtocolError,
)
from .._kv import sum_of
from .requests import Requests, encode_name, name_in, too_long, without_empty_parts
from .swap import delete, swap

__all__ = ["V2StoreKeys"]

# However short the time, what is there is read.
_LEAST_READ_SECONDS: Final = 1.0
_READS_ONE_BY_ONE: Final = 32
_ENDS: Final = frozenset({"delete", "expire", "compareAndDelete"})
# No base64 begins so.
_TAKEN: Final = "taken "
_TAKEN_SECONDS: Final = 30


class V2StoreKeys:
    """
    The operations of one store on the v2 API.

    Args:
        client: A python-etcd client. It is read, never altered.
        directory: The path of the names; it starts and ends in ``/``.
        ttl: The seconds that a name lives after its last write.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        client: etcd.Client,
        directory: str,
        ttl: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._requests = Requests(client, patient=True, clock=clock)
        self._directory = without_empty_parts(directory)
        self._ttl = ttl

    @property
    def read_timeout(self) -> float:
        """
        The client's ``read_timeout``; where it has none, a minute.
        """
        return self._requests.read_timeout

    def _path(self, name: bytes) -> str:
        return _short_enough(self._directory + encode_name(name))

    # -- reading ----------------------------------------------------------------------

    def get_many(self, names: Sequence[bytes], timeout: float) -> list[bytes | None]:
        """
        See ``StoreKeys``. One request a name: v2 has no transactions.
        """
        deadline = self._requests.now() + timeout
        return [self._get(name, self._requests.left(deadline)) for name in names]

    def names(self, timeout: float) -> list[bytes]:
        """
        See ``StoreKeys``.

        One listing of the directory, values included. Torch's directory is the same
        for all runs, and so are the names in it.
        """
        nodes, _ = self._requests.children(self._directory, timeout)
        names = [name_in(node.key) for node in nodes]
        return [name for name in names if name is not None]

    def count(self, timeout: float) -> int:
        """
        See ``StoreKeys``. As ``names``, those of other runs included.
        """
        return len(self.names(timeout))

    def _get(self, name: bytes, timeout: float) -> bytes | None:
        path = self._path(name)
        stored = self._requests.look(path, timeout).stored
        return None if stored is None else _decoded(path, stored.value)

    # -- writing ----------------------------------------------------------------------

    def put_many(self, items: Sequence[tuple[bytes, bytes]], timeout: float) -> None:
        """
        See ``StoreKeys``. One request a name: v2 has no transactions.
        """
        deadline = self._requests.now() + timeout
        for name, value in dict(items).items():
            text = b64encode(value).decode()
            left = self._requests.left(deadline)
            self._requests.put(self._path(name), text, self._ttl, left)

    def change(
        self,
        name: bytes,
        decide: Callable[[bytes | None], bytes | None],
        timeout: float,
    ) -> bytes | None:
        """
        See ``StoreKeys``.

        After a lost reply a value that stands where ours was to stand is taken for
        ours, and so is a deletion: v2 has nothing else that would tell.
        """
        deadline = self._requests.now() + timeout
        path = self._path(name)
        stored = self._requests.look(path, timeout).stored
        while True:
            current = None if stored is None else _decoded(path, stored.value)
            wanted = decide(current)
            if wanted == current:
                return current
            expected = 0 if stored is None else stored.revision
            if wanted is None:
                outcome = delete(self._requests, path, expected, deadline)
            else:
                text = b64encode(wanted)
                outcome = swap(
                    self._requests, path, text, expected, self._ttl, deadline, stays=0
                )
            if outcome.won:
                return current
            stored = outcome.stored
            self._give_up_if_late(f"change the key '{path}'", deadline)

    def add(self, name: bytes, amount: int, timeout: float) -> int:
        """
        See ``StoreKeys``.

        After a lost reply a sum that stands where ours was to stand is taken for
        ours: v2 has nothing else that would tell.
        """
        before = self.change(
            name, lambda current: b"%d" % sum_of(current, amount, name), timeout
        )
        return sum_of(before, amount, name)

    def _give_up_if_late(self, what: str, deadline: float) -> None:
        if self._requests.now() >= deadline:
            raise EtcdConnectionError(
                f"Could not {what}: others changed it all the time."
            )

    # -- waiting ----------------------------------------------------------------------

    def wait(self, names: Sequence[bytes], timeout: float) -> dict[bytes, bytes]:
        """
        See ``StoreKeys``. One name after the other.
        """
        deadline = self._requests.now() + timeout
        found: dict[bytes, bytes] = {}
        missing = list(dict.fromkeys(names))
        while missing and self._requests.now() < deadline:
            value = self._wait_for(missing[0], deadline)
            if value is not None:
                found[missing.pop(0)] = value
        if missing:
            found |= self._read_all(missing)
        return found

    def _wait_for(self, name: bytes, deadline: float) -> bytes | None:
        """
        Wait for a name or the deadline; return its value, None if it did not come.
        """
        path = self._path(name)
        while (left := deadline - self._requests.now()) > 0:
            limit = min(max(left, _LEAST_READ_SECONDS), self.read_timeout)
            look = self._requests.look(path, limit)
            if look.stored is not None:
                return _decoded(path, look.stored.value)
            left = deadline - self._requests.now()
            if left > 0:
                event = self._requests.poll(path, look.store_revision + 1, left)
                if event is not None and event.action not in _ENDS:
                    return _decoded(path, event.value or "")
        return None

    def _read_all(self, names: Sequence[bytes]) -> dict[bytes, bytes]:
        """
        Read what is there of names, in a time that does not grow with their number.
        """
        if len(names) <= _READS_ONE_BY_ONE:
            values = self.get_many(names, _LEAST_READ_SECONDS)
            pairs = zip(names, values, strict=True)
            return {name: value for name, value in pairs if value is not None}
        nodes, _ = self._requests.children(self._directory, _LEAST_READ_SECONDS)
        nodes_by_name = {name_in(node.key): node for node in nodes}
        return {
            name: _decoded(node.key, node.value or "")
            for name in names
            if (node := nodes_by_name.get(name)) is not None
        }

    # -- queues -----------------------------------------------------------------------

    def push(self, queue: bytes, value: bytes, timeout: float) -> None:
        """
        See ``StoreKeys``. Values stand in the order in which etcd took them.
        """
        deadline = self._requests.now() + timeout
        key = f"{self._queue(queue)}/{uuid.uuid4().hex}"
        outcome = swap(
            self._requests,
            key,
            b64encode(value),
            0,
            self._ttl,
            deadline,
            # Half of it for what clocks do.
            stays=_TAKEN_SECONDS / 2,
            own=True,
        )
        if not outcome.won:
            raise EtcdOutcomeUnknownError(
                f"Could not find out what became of a push to '{key}': it is gone, and "
                "etcd does not tell whether it was there."
            )

    def pop(self, queue: bytes, timeout: float, patience: float) -> bytes | None:
        """
        See ``StoreKeys``.
        """
        path = self._queue(queue)
        started = self._requests.now()
        waited_until = started + patience
        while True:
            # What is left, or a little more, so that what is there is seen.
            left = self._requests.left(max(waited_until, started + timeout))
            limit = min(timeout, max(left, _LEAST_READ_SECONDS))
            deadline = self._requests.now() + limit
            nodes, index = self._requests.children(path, limit)
            untaken = _untaken(nodes)
            for node in untaken:
                mark = f"{_TAKEN}{uuid.uuid4().hex}".encode()
                taken = swap(
                    self._requests,
                    node.key,
                    mark,
                    int(node.modifiedIndex),
                    _TAKEN_SECONDS,
                    deadline,
                )
                if taken.won:
                    return _decoded(node.key, node.value or "")
                latest = waited_until + timeout
                self._give_up_if_late(f"pop from the queue '{path}'", latest)
            if untaken:
                continue  # others were quicker; there may be more by now
            left = waited_until - self._requests.now()
            if left <= 0:
                return None
            self._requests.poll(path, index + 1, left, recursive=True)

    def length(self, queue: bytes, timeout: float) -> int:
        """
        See ``StoreKeys``.
        """
        nodes, _ = self._requests.children(self._queue(queue), timeout)
        return len(_untaken(nodes))

    def _queue(self, queue: bytes) -> str:
        """
        Return the directory of a queue, without a slash at its end.

        It is below torch's path, so that a right on that suffices, and v2 hides what
        begins with a ``_`` from those who list the keys.
        """
        return _short_enough(
            f"{self._directory.rstrip('/')}/_queues/{encode_name(queue)}"
        )


def _short_enough(path: str) -> str:
    """
    Return a path as it is.

    Raises:
        EtcdLimitError: It is too long for a request.
    """
    if (wrong := too_long(path)) is not None:
        raise EtcdLimitError(wrong)
    return path


def _untaken(nodes: Sequence[etcd.EtcdResult]) -> list[etcd.EtcdResult]:
    """
    Return those nodes of a queue that nobody has taken, the oldest first.
    """
    untaken = [node for node in nodes if not (node.value or "").startswith(_TAKEN)]
    return sorted(untaken, key=lambda node: int(node.createdIndex))


def _decoded(path: str, text: str | bytes) -> bytes:
    try:
        return b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise EtcdProtocolError(
            f"The value of the key '{path}' is not base64, as a store's values are."
        ) from error
