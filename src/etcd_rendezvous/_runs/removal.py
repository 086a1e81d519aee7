# SPDX-License-Identifier: BSD-3-Clause
"""
Delete what etcd holds of a run.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

from .._errors import EtcdSettingError
from .._settings import DEFAULT_KEY_PREFIX
from .._v3 import wire
from .._v3.client import EtcdClient
from .report import Run

if TYPE_CHECKING:
    import etcd

__all__ = ["ChangedError", "RemovalV2", "RemovalV3"]


#: What the keys of a run begin with on v3, besides that of its state.
PARTS: Final = (
    b"/live/",
    b"/store/",
    b"/store.slots/",
    b"/store.queues/",
    b"/turn/",
    b"/doctor/",
)


class ChangedError(Exception):
    """
    Raised when a run has changed since it was looked at; its state is left alone.
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
        # What else is below may be another's, whose key prefix is this key.
        self._below = [self._state + part for part in PARTS]

    def contents(self, limit: int) -> tuple[list[str], int]:
        """
        Return the first keys of it, and how many there are.

        Args:
            limit: The most keys to return.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        messages = [wire.range_message(self._state, keys_only=True)] + [
            wire.range_message(
                below, wire.prefix_end(below), keys_only=True, limit=limit
            )
            for below in self._below
        ]
        reply = self._client.txn(
            [],
            [wire.op_range(message) for message in messages],
            [wire.op_never_done(self._state)],
            what=f"read the run '{self._run.run_id}'",
            writes=False,
        )
        entries = [entry for found in reply.ranges for entry in found.entries]
        shown = [entry.key.decode(errors="backslashreplace") for entry in entries]
        return shown[:limit], sum(found.count for found in reply.ranges)

    def remove(self, *, force: bool) -> None:
        """
        Delete all of it, in one transaction.

        Args:
            force: Whether to do so although it may have changed.

        Raises:
            ChangedError: It has changed since it was seen, or a node has come.
            EtcdError: etcd can't be reached, or refuses.
        """
        nodes = self._state + b"/live/n/"
        unchanged = [
            wire.compare_mod(self._state, self._state_revision),
            wire.compare_create(nodes, 0, wire.prefix_end(nodes)),
        ]
        reply = self._client.txn(
            [] if force else unchanged,
            [
                wire.op_delete(wire.delete_message(self._state)),
                *(
                    wire.op_delete(wire.delete_message(below, wire.prefix_end(below)))
                    for below in self._below
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

    Raises:
        EtcdSettingError: The run has an id that python-etcd does not send as it is.
    """

    def __init__(self, client: etcd.Client, run: Run) -> None:
        from .._v2.requests import Requests

        if odd := set(run.key) & set("?#%"):
            raise EtcdSettingError(
                f"The run '{run.run_id}' can't be deleted through etcd's v2, where "
                f"'{min(odd)}' ends or changes the name of a key; use etcdctl."
            )
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
        Delete all of it: the keys of its store first, and then the state.

        By its state it is known, so that it can be deleted again if something fails.
        What is written meanwhile stays.

        Args:
            force: Whether to do so although it may have changed.

        Raises:
            ChangedError: The state has changed since it was seen.
            EtcdError: etcd can't be reached, or refuses.
        """
        import etcd

        for node in self._store_nodes():
            with contextlib.suppress(etcd.EtcdCompareFailed):
                self._delete(node.key, prevIndex=node.modifiedIndex)
        unless = {} if force else {"prevIndex": self._run.revision}
        try:
            self._delete(self._run.key, **unless)
        except etcd.EtcdCompareFailed as error:
            raise ChangedError from error

    def _store_nodes(self) -> list[etcd.EtcdResult]:
        """
        Return the keys of the run's store, unless another run may have them.

        The stores of all key prefixes have one place.
        """
        from .._v2.requests import STORE_PATH, name_in, run_of

        usual = f"{DEFAULT_KEY_PREFIX}/{self._run.run_id}"
        seconds = self._requests.read_timeout
        if usual != self._run.key and self._requests.look(usual, seconds).stored:
            return []
        nodes, _ = self._requests.children(STORE_PATH, seconds)
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
