# SPDX-License-Identifier: BSD-3-Clause
"""
What backend and store need from etcd, whichever API it speaks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeGuard

from ._errors import EtcdSettingError
from ._settings import DEFAULT_STORE_TTL, DEFAULT_STORE_TTL_V2

if TYPE_CHECKING:
    from ._clocks import ClockWatch
    from ._lookout import Lookout
    from ._v3.client import EtcdClient

__all__ = [
    "Look",
    "Queued",
    "StateKey",
    "StoreKeys",
    "Stored",
    "Swap",
    "state_key",
    "store_keys",
    "sum_of",
]


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
    A place in the order of those who lost a swap; see ``StateKey.wait_turn``.

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


class StateKey(Protocol):
    """
    What a backend needs of etcd: one key, swapped.

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

    @property
    def failovers(self) -> int:
        """
        How often operations have gone from one endpoint to another.
        """

    def watch_clocks(self, clocks: ClockWatch) -> None:
        """
        Compare this machine's clock with those of who answers, now and then.
        """

    def lookout(self, key: str, interval: float) -> Lookout | None:
        """
        Return what looks how full etcd is; None where that can't be asked (v2).

        Args:
            key: The key.
            interval: The seconds between two heartbeats.
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

    def seconds_left(self, key: str, timeout: float) -> int | None:
        """
        Return the seconds until a key goes away if nobody writes it.

        None where there is no key, or it stays.
        """

    def wait_turn(self, key: str, queued: Queued, timeout: float) -> None:
        """
        Wait until it is the caller's turn to try again, or that is uncertain.

        This is order only: the swap stays the guarantee. It raises nothing.
        """

    def leave_queue(self, key: str) -> None:
        """
        Give up one's turn: the caller won't try again. It raises nothing.
        """


class StoreKeys(Protocol):
    """
    What a store needs of etcd: names with values, and queues, in one directory.

    All time arguments are in seconds, and bound an operation with all its
    attempts. Every operation raises ``EtcdError``, besides what it documents. An
    etcd that can't be reached is waited for until the time is up, as while it
    restarts.
    """

    @property
    def read_timeout(self) -> float:
        """
        The most seconds that an operation should be given that waits for no key.
        """

    def get_many(self, names: Sequence[bytes], timeout: float) -> list[bytes | None]:
        """
        Read the values of names; None for those that are absent.
        """

    def put_many(self, items: Sequence[tuple[bytes, bytes]], timeout: float) -> None:
        """
        Write names. Of equal ones the last wins.
        """

    def change(
        self,
        name: bytes,
        decide: Callable[[bytes | None], bytes | None],
        timeout: float,
    ) -> bytes | None:
        """
        Change one name, depending on its value; exactly once.

        Args:
            name: The name.
            decide: From the current value, None for none, to the wanted one, None to
                delete. It is called again whenever somebody else was quicker, and
                whatever it raises is passed on. Where both are equal nothing is
                written.
            timeout: The time limit.

        Returns:
            The value that the decision was made on.

        Raises:
            EtcdOutcomeUnknownError: Nobody can tell any more whether it was
                applied.
        """

    def add(self, name: bytes, amount: int, timeout: float) -> int:
        """
        Add to a decimal number, exactly once; an absent name counts as 0.

        Returns:
            The sum.

        Raises:
            EtcdOutcomeUnknownError: Nobody can tell any more whether it was
                applied, or with which sum.
            ValueError: What is stored is not a decimal number, or the sum is beyond
                64 bits.
        """

    def names(self, timeout: float) -> list[bytes]:
        """
        Return the names that are there, in no particular order.
        """

    def count(self, timeout: float) -> int:
        """
        Return how many names are there.
        """

    def wait(self, names: Sequence[bytes], timeout: float) -> dict[bytes, bytes]:
        """
        Wait until all names are there, and return what is there by then.

        After the time limit the answer lacks the names that are missing.
        """

    def push(self, queue: bytes, value: bytes, timeout: float) -> None:
        """
        Put a value at the end of a queue, exactly once. Queues are not names.
        """

    def pop(self, queue: bytes, timeout: float, patience: float) -> bytes | None:
        """
        Take the first value of a queue, exactly once.

        Args:
            queue: The queue.
            timeout: The time limit of the taking.
            patience: How long to wait for a value; 0 for not at all.

        Returns:
            The value, or None if none came.
        """

    def length(self, queue: bytes, timeout: float) -> int:
        """
        Return how many values a queue holds.
        """


def sum_of(value: bytes | None, amount: int, name: bytes) -> int:
    """
    Add to the decimal number that a counter holds.

    Args:
        value: The stored value; None counts as 0.
        amount: What to add.
        name: The counter's name, for the error.

    Raises:
        ValueError: It is not a number, or the sum is beyond the 64 bits of torch's
            stores.
    """
    if value is not None and not re.fullmatch(rb"\s*[+-]?[0-9]+\s*", value):
        raise ValueError(
            f"The value of the key '{name.decode(errors='replace')}' is not a number; "
            "add() needs a decimal one."
        )
    total = (0 if value is None else int(value)) + amount
    if not -(2**63) <= total < 2**63:
        raise ValueError(
            f"The sum for the key '{name.decode(errors='replace')}' does not fit into "
            "64 bits."
        )
    return total


def state_key(client: object) -> StateKey:
    """
    Return the backend's operations on a client: ours (v3) or python-etcd's (v2).

    Args:
        client: An ``EtcdClient``, or an ``etcd.Client``; the latter is not altered.

    Raises:
        EtcdSettingError: It is neither.
    """
    if _speaks_v3(client):
        from ._v3.state_key import V3StateKey

        return V3StateKey(client)
    from ._v2.state_key import V2StateKey

    return V2StateKey(client)


def store_keys(client: object, directory: str, ttl: int | None) -> StoreKeys:
    """
    Return a store's operations on a client: ours (v3) or python-etcd's (v2).

    Args:
        client: An ``EtcdClient``, or an ``etcd.Client``; the latter is not altered.
        directory: The path of the names; it starts and ends in ``/``.
        ttl: The seconds to live: on v3 from the end of the last store that uses the
            directory, on v2 from a name's own last write. None for the default.

    Raises:
        EtcdSettingError: The client is neither.
    """
    if _speaks_v3(client):
        from ._v3.store_keys import V3StoreKeys

        return V3StoreKeys(client, directory, ttl or DEFAULT_STORE_TTL)
    from ._v2.store_keys import V2StoreKeys

    return V2StoreKeys(client, directory, ttl or DEFAULT_STORE_TTL_V2)


def _speaks_v3(client: object) -> TypeGuard[EtcdClient]:
    from ._v3.client import EtcdClient

    if isinstance(client, EtcdClient):
        return True
    # Told by its methods: python-etcd is not imported where only v3 is used.
    if hasattr(client, "api_execute"):
        return False
    raise EtcdSettingError(
        "The client must be an etcd_rendezvous.EtcdClient or python-etcd's "
        f"etcd.Client, not {type(client).__name__}."
    )
