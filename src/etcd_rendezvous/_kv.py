# SPDX-License-Identifier: BSD-3-Clause
"""
What backend and store need from etcd, whichever API it speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ._errors import EtcdSettingError

__all__ = ["KeyValue", "Look", "Queued", "Stored", "Swap", "key_value", "number_in"]


@dataclass(frozen=True)
class Stored:
    """
    A value, and the revision that wrote it.

    Attributes:
        value: The value, as it is stored.
        revision: etcd's mod revision (v3) or modifiedIndex (v2).
    """

    value: bytes
    revision: int


@dataclass(frozen=True)
class Look:
    """
    What a read found.

    Attributes:
        stored: What is there; None for nothing, and where nothing has changed.
        unchanged: Whether it still is what the caller said it knows.
        store_revision: The revision of the whole store at the read.
    """

    stored: Stored | None
    unchanged: bool
    store_revision: int


@dataclass(frozen=True)
class Queued:
    """
    A place in the order of those who lost a swap; see ``KeyValue.wait_turn``.

    Attributes:
        behind: The ticket that is waited for.
        revision: The store's revision when the place was taken.
    """

    behind: bytes
    revision: int


@dataclass(frozen=True)
class Swap:
    """
    What a compare-and-swap did.

    Attributes:
        won: Whether the new value was written.
        stored: The new value if it won, else the current one; None for none.
        store_revision: The revision of the whole store after it.
        queued: The place of a loser behind whom others wait; None where nobody
            does, or where the API knows no order.
    """

    won: bool
    stored: Stored | None
    store_revision: int
    queued: Queued | None = None


class KeyValue(Protocol):
    """
    The operations of one backend, or one store, on etcd.

    All time arguments are in seconds, and bound an operation with all its
    attempts. Every operation raises ``EtcdError`` and nothing else.
    """

    @property
    def api(self) -> str:
        """
        ``v2`` or ``v3``.
        """

    @property
    def read_timeout(self) -> float:
        """
        The seconds that an operation may take if its caller does not say.
        """

    def state_key(self, key_prefix: str | None, run_id: str) -> str:
        """
        Return the key of a run's state.
        """

    def read(self, key: str, known: int, timeout: float) -> Look:
        """
        Read one key.

        Args:
            key: The key.
            known: The revision that the caller knows the value of; 0 for none. An
                unchanged value is not transferred again (v3).
            timeout: The time limit.
        """

    def swap(
        self, key: str, value: bytes, expected: int, ttl: int, timeout: float
    ) -> Swap:
        """
        Write one key if its revision is the expected one.

        The outcome is true: a write whose reply was lost is resolved.

        Args:
            key: The key.
            value: The new value.
            expected: The revision expected; 0 for an absent key.
            ttl: The seconds after which the key goes away if nobody writes it.
            timeout: The time limit.

        Raises:
            EtcdOutcomeUnknownError: Nobody can tell any more whether it was
                applied.
        """

    def wait_turn(self, key: str, queued: Queued, timeout: float) -> None:
        """
        Wait until it is the caller's turn to try again, or that is uncertain.

        This is order only: the swap stays the guarantee. It raises nothing.
        """

    def get_many(
        self, directory: str, names: Sequence[bytes], timeout: float
    ) -> list[bytes | None]:
        """
        Read the values of names in a directory; None for those that are absent.
        """

    def put_many(
        self,
        directory: str,
        items: Sequence[tuple[bytes, bytes]],
        ttl: int,
        timeout: float,
    ) -> None:
        """
        Write names in a directory.
        """

    def add(
        self, directory: str, name: bytes, amount: int, ttl: int, timeout: float
    ) -> int:
        """
        Add to a decimal number, exactly once; an absent name counts as 0.

        Raises:
            ValueError: What is stored is not a decimal number.
        """

    def wait(
        self, directory: str, names: Sequence[bytes], timeout: float
    ) -> dict[bytes, bytes]:
        """
        Wait until all names are there, and return what is there by then.

        After the time limit the answer lacks the names that are missing.
        """


def number_in(value: bytes, name: bytes) -> int:
    """
    Return the decimal number that a counter holds.

    Args:
        value: The stored value.
        name: The counter's name, for the error.

    Raises:
        ValueError: It is not a number.
    """
    try:
        return int(value)
    except ValueError:
        raise ValueError(
            f"The value of the key '{name.decode(errors='replace')}' is not a number; "
            "add() needs a decimal one."
        ) from None


def key_value(client: object, *, patient: bool = False) -> KeyValue:
    """
    Return the operations on a client: ours (v3) or python-etcd's (v2).

    Args:
        client: An ``EtcdClient``, or an ``etcd.Client``; the latter is not altered.
        patient: Whether operations go on until their time is up although no endpoint
            can be reached, as while etcd restarts.

    Raises:
        EtcdSettingError: It is neither.
    """
    from ._v3.client import EtcdClient

    if isinstance(client, EtcdClient):
        from ._v3.keyvalue import V3KeyValue

        return V3KeyValue(client.patiently() if patient else client)
    # Told by its methods: python-etcd is not imported where only v3 is used.
    if hasattr(client, "api_execute"):
        from ._v2 import V2KeyValue

        return V2KeyValue(client, patient=patient)
    raise EtcdSettingError(
        "The client must be an etcd_rendezvous.EtcdClient or python-etcd's "
        f"etcd.Client, not {type(client).__name__}."
    )
