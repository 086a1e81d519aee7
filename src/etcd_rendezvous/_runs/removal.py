# SPDX-License-Identifier: BSD-3-Clause
"""
Delete what etcd holds of a run.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from .._v3 import wire
from .._v3.client import EtcdClient
from .report import Run

if TYPE_CHECKING:
    import etcd

__all__ = ["ChangedError", "RemovalV2", "RemovalV3"]


class ChangedError(Exception):
    """
    Raised when a run has changed since it was looked at.
    """


class RemovalV3:
    """
    Removes a run that is kept with the v3 API.

    Args:
        client: The client.
        run: The run, as it was seen.
    """

    def __init__(self, client: EtcdClient, run: Run) -> None:
        self._client = client
        self._run = run
        self._state = run.key.encode()
        # All other keys of a run begin with it, and no key of another does.
        self._below = self._state + b"/"

    def contents(self, limit: int) -> tuple[list[str], int]:
        """
        Return the first keys of it, and how many there are.

        Args:
            limit: The most keys to return.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        end = wire.prefix_end(self._below)
        below, _ = self._client.range(self._below, end, keys_only=True, limit=limit)
        state, _ = self._client.range(self._state, keys_only=True)
        entries = [*state.entries, *below.entries][:limit]
        shown = [entry.key.decode(errors="backslashreplace") for entry in entries]
        return shown, state.count + below.count

    def remove(self, *, force: bool) -> None:
        """
        Delete all of it, in one transaction.

        Args:
            force: Whether to do so although it may have changed.

        Raises:
            ChangedError: It has changed since it was seen, or a node has come.
            EtcdError: etcd can't be reached, or refuses.
        """
        nodes = self._below + b"live/n/"
        unchanged = [
            wire.compare_mod(self._state, self._state_revision),
            wire.compare_create(nodes, 0, wire.prefix_end(nodes)),
        ]
        reply = self._client.txn(
            [] if force else unchanged,
            [
                wire.op_delete(wire.delete_message(self._state)),
                wire.op_delete(
                    wire.delete_message(self._below, wire.prefix_end(self._below))
                ),
            ],
            what=f"delete the run '{self._run.run_id}'",
        )
        # It may have failed because an attempt before it, without a reply, did it all.
        if not reply.succeeded and self.contents(1)[1]:
            raise ChangedError

    @property
    def _state_revision(self) -> int:
        """
        The revision of the state; 0 if there is none.
        """
        return 0 if self._run.handler == "live" else self._run.revision


class RemovalV2:
    """
    Removes a run that is kept with the v2 API, one key after the other.

    Args:
        client: A python-etcd client. It is read, never altered.
        run: The run, as it was seen.
    """

    def __init__(self, client: etcd.Client, run: Run) -> None:
        from .._v2.requests import Requests

        self._requests = Requests(client, patient=False, clock=time.monotonic)
        self._run = run

    def contents(self, limit: int) -> tuple[list[str], int]:
        """
        Return the first keys of it, and how many there are.

        Args:
            limit: The most keys to return.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        from .._v2.requests import STORE_PATH, name_in

        names = [name_in(node.key) or b"" for node in self._store_nodes()]
        keys = [f"{STORE_PATH}/{name.decode(errors='replace')}" for name in names]
        return [self._run.key, *keys][:limit], len(keys) + 1

    def remove(self, *, force: bool) -> None:
        """
        Delete all of it: the state first, then the keys of its store.

        Args:
            force: Whether to do so although it may have changed.

        Raises:
            ChangedError: The state has changed since it was seen.
            EtcdError: etcd can't be reached, or refuses.
        """
        import etcd

        unless = {} if force else {"prevIndex": self._run.revision}
        try:
            self._delete(self._run.key, **unless)
        except etcd.EtcdCompareFailed as error:
            raise ChangedError from error
        for node in self._store_nodes():
            self._delete(node.key)

    def _store_nodes(self) -> list[etcd.EtcdResult]:
        from .._v2.requests import STORE_PATH, name_in, run_of

        nodes, _ = self._requests.children(STORE_PATH, self._requests.read_timeout)
        return [
            node
            for node in nodes
            if run_of(name_in(node.key) or b"") == self._run.run_id
        ]

    def _delete(self, key: str, **unless: int) -> None:
        import etcd

        with contextlib.suppress(etcd.EtcdKeyNotFound):
            self._requests.run(
                lambda sender: sender.delete(key, **unless),
                f"delete the key '{key}'",
                self._requests.read_timeout,
                writes=True,
            )
