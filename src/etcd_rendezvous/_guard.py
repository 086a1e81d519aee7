# SPDX-License-Identifier: BSD-3-Clause
"""
A backend whose states are looked at before torch unpickles them.
"""

from __future__ import annotations

from typing import Any

from torch.distributed.elastic.rendezvous import RendezvousStateError
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import RendezvousBackend

from ._backend import EtcdRendezvousBackend
from ._state import StateRefusedError, read_state

__all__ = ["GuardedBackend"]


class GuardedBackend(RendezvousBackend):
    """
    Hand on what a backend reads only if it is a state of torch's handler.

    A state costs about as much again as torch takes to unpickle it; one that has not
    changed costs nothing.

    Args:
        backend: The backend.
    """

    def __init__(self, backend: EtcdRendezvousBackend) -> None:
        self._backend = backend
        self._trusted = b""

    @property
    def name(self) -> str:
        """
        The name of the backend.
        """
        return self._backend.name

    def get_state(self) -> tuple[bytes, Any] | None:
        """
        Read the state; see ``EtcdRendezvousBackend``.

        Raises:
            RendezvousConnectionError: As there.
            RendezvousStateError: The state is not one of torch's handler.
        """
        found = self._backend.get_state()
        if found is not None:
            self._check(found[0])
        return found

    def set_state(
        self, state: bytes, token: Any | None = None
    ) -> tuple[bytes, Any, bool] | None:
        """
        Swap the state; see ``EtcdRendezvousBackend``.

        Raises:
            RendezvousConnectionError: As there.
            RendezvousStateError: The state that holds now is not of torch's handler.
        """
        found = self._backend.set_state(state, token)
        if found is not None:
            if found[0] == state:
                self._trusted = found[0]
            else:
                self._check(found[0])
        return found

    def _check(self, state: bytes) -> None:
        # An unchanged state is the very object of the last time.
        if state is self._trusted:
            return
        try:
            read_state(state)
        except StateRefusedError as error:
            raise RendezvousStateError(
                f"The rendezvous state in etcd at '{self._backend.key}' is refused: "
                f"{error}. Somebody else has written there: delete the key, and see "
                "who may write to it."
            ) from error
        self._trusted = state
