# SPDX-License-Identifier: BSD-3-Clause
"""
``StateKey`` over the v2 API.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from typing import Final

import etcd

from .._clocks import ClockWatch
from .._errors import EtcdSettingError
from .._kv import Look, Queued, Swap
from .._settings import check_text
from .requests import (
    STORE_PATH,
    Requests,
    name_in,
    run_of,
    too_long,
    without_empty_parts,
)
from .swap import swap

__all__ = ["V2StateKey"]

# python-etcd does not encode keys.
_NOT_IN_A_PATH: Final = re.compile(r"[?#]|%[0-9A-Fa-f]{2}")


class V2StateKey:
    """
    The operations of one backend on the v2 API.

    Args:
        client: A python-etcd client. It is read, never altered.
        clock: A monotonic clock, in seconds.
    """

    api = "v2"

    def __init__(
        self, client: etcd.Client, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._requests = Requests(client, patient=False, clock=clock)
        self._runs: dict[str, str] = {}

    @property
    def read_timeout(self) -> float:
        """
        The client's ``read_timeout``; where it has none, a minute.
        """
        return self._requests.read_timeout

    @property
    def failovers(self) -> int:
        """
        See ``StateKey``.
        """
        return self._requests.failovers

    def watch_clocks(self, clocks: ClockWatch) -> None:
        """
        See ``StateKey``.
        """
        self._requests.clocks = clocks

    def lookout(self, key: str, interval: float) -> None:
        """
        See ``StateKey``. v2 keeps its data in memory, and has no quota.
        """
        return

    def state_key(self, key_prefix: str | None, run_id: str) -> str:
        """
        See ``StateKey``. Torch's path; python-etcd adds a missing leading ``/``.

        Raises:
            EtcdSettingError: The path would stand for another key, or for none.
        """
        prefix = without_empty_parts(key_prefix or "").rstrip("/")
        key = f"{prefix}/{run_id}" if prefix else run_id
        parts = key.removeprefix("/").split("/")
        if _NOT_IN_A_PATH.search(key) or not {"", ".", ".."}.isdisjoint(parts):
            raise EtcdSettingError(
                f"The key '{key}' would be another one in etcd's v2, whose paths must "
                "not have '?', '#', '%' with two digits, nor empty parts, '.' or '..' "
                "between slashes; use another run id, or etcd's v3."
            )
        check_text(key, "key")
        if (wrong := too_long(key)) is not None:
            raise EtcdSettingError(wrong)
        self._runs[key] = run_id
        return key

    def read(self, key: str, known: int, timeout: float) -> Look:
        """
        See ``StateKey``. The v2 API transfers an unchanged value, too.
        """
        look = self._requests.look(key, timeout)
        # No state is empty: it is base64 of a pickle.
        if look.stored is not None and not look.stored.value:
            self._requests.remove_folder(key, timeout)
            look = self._requests.look(key, timeout)
        return look

    def swap(
        self, key: str, value: bytes, expected: int, ttl: int, timeout: float
    ) -> Swap:
        """
        See ``StateKey``.

        v2 knows no leases, so that after a lost reply only the bytes tell whose
        write it was: two agents that write the same bytes at once may both be told
        that they won.
        """
        deadline = self._requests.now() + timeout
        if not expected:
            self._forget_earlier_rounds(key, deadline)
        return swap(self._requests, key, value, expected, ttl, deadline)

    def seconds_left(self, key: str, timeout: float) -> int | None:
        """
        See ``StateKey``.
        """
        return self._requests.seconds_left(key, timeout)

    def wait_turn(self, key: str, queued: Queued, timeout: float) -> None:
        """
        See ``StateKey``. The v2 API knows no order.
        """

    def leave_queue(self, key: str) -> None:
        """
        See ``StateKey``. There is no queue.
        """

    def _forget_earlier_rounds(self, key: str, deadline: float) -> None:
        """
        Delete what the store holds of a run whose state is gone.

        A state that begins anew counts its rounds from 0 again: what earlier ones
        left must not be read in these. Only what is older than the state's absence
        goes, so that whoever is quicker loses nothing.
        """
        run_id = self._runs.get(key)
        if run_id is None:
            return
        absent = self.read(key, 0, self._requests.left(deadline))
        if absent.stored is not None:
            return
        nodes, _ = self._requests.children(STORE_PATH, self._requests.left(deadline))
        for node in nodes:
            old = node.modifiedIndex <= absent.store_revision
            if old and run_of(name_in(node.key) or b"") == run_id:
                self._delete_unchanged(node, self._requests.left(deadline))

    def _delete_unchanged(self, node: etcd.EtcdResult, timeout: float) -> None:
        with contextlib.suppress(etcd.EtcdKeyNotFound, etcd.EtcdCompareFailed):
            self._requests.run(
                lambda sender: sender.delete(node.key, prevIndex=node.modifiedIndex),
                f"delete the key '{node.key}'",
                timeout,
                writes=True,
            )
