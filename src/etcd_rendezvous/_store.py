# SPDX-License-Identifier: BSD-3-Clause
"""
The store: a ``torch.distributed.Store`` on etcd.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from torch.distributed import DistNetworkError, DistStoreError, Store

from ._errors import EtcdError
from ._kv import KeyValue, key_value

__all__ = ["EtcdStore", "EtcdStoreTimeoutError"]

# Store keys that nobody writes any more go away after a day.
STORE_TTL: Final = 24 * 60 * 60
_MOST_NAMES_IN_A_MESSAGE: Final = 8


class EtcdStoreTimeoutError(DistStoreError, LookupError):
    """
    Raised when keys did not come in time.

    It is torch's ``DistStoreError``, as of every other store, and a
    ``LookupError``, as of torch's own ``EtcdStore``.
    """


class EtcdStore(Store):
    """
    Share keys and values among the members of a rendezvous, through etcd.

    The names are those of torch's ``etcd_store.EtcdStore`` (torch 2.13). Keys are
    read by key, never by the whole directory, and waiting is told by a watch (v3).

    Keys and values are ``str`` (UTF-8) or bytes. Time limits are ``timedelta``; the
    store's own is read at each call. An operation that etcd does not answer raises
    ``torch.distributed.DistNetworkError``. A :meth:`set` whose reply is lost is sent
    again: the last write wins. An :meth:`add` counts exactly once on v3; on v2,
    where nothing but the value itself tells whose write it was, it may miss one if
    a reply is lost in the very moment in which somebody else adds the same amount.

    On v3 keys are readable, ``<prefix><key>``, and hang on a lease of this store; on
    v2 they are as torch's: base64 below the prefix, base64 values, with a TTL. They
    go away a day after this store's last write to etcd.

    Args:
        etcd_client: An ``EtcdClient`` (v3) or python-etcd's ``etcd.Client`` (v2).
        etcd_store_prefix: The path of the keys; a missing ``/`` is added at both
            ends.
        timeout: How long :meth:`get` and :meth:`wait` wait; None for c10d's default
            of 300 s.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        etcd_client: Any,
        etcd_store_prefix: str,
        timeout: timedelta | None = None,
    ) -> None:
        super().__init__()
        self.client = etcd_client
        self.prefix = etcd_store_prefix
        if not self.prefix.endswith("/"):
            self.prefix += "/"
        self._kv: KeyValue = key_value(etcd_client, patient=True)
        self._directory = (
            self.prefix if self.prefix.startswith("/") else f"/{self.prefix}"
        )
        if timeout is not None:
            self.set_timeout(timeout)

    def __repr__(self) -> str:
        return f"<EtcdStore {self._directory!r} {self.client!r}>"

    def set(self, key: str | bytes, value: str | bytes) -> None:
        """
        Write a key.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        self.multi_set([key], [value])

    def multi_set(
        self, keys: Sequence[str | bytes], values: Sequence[str | bytes]
    ) -> None:
        """
        Write many keys, in as few requests as etcd allows.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            DistStoreError: There are not as many values as keys.
        """
        if len(keys) != len(values):
            raise DistStoreError(
                f"multi_set() needs a value for each key, not {len(values)} value(s) "
                f"for {len(keys)} key(s)."
            )
        items = [
            (_bytes(key), _bytes(value))
            for key, value in zip(keys, values, strict=True)
        ]
        with _Translated():
            self._kv.put_many(self._directory, items, STORE_TTL, self._limit())

    def get(self, key: str | bytes) -> bytes:
        """
        Read a key; wait for it if it isn't there.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: It did not come within the store's time limit.
        """
        return self.multi_get([key])[0]

    def multi_get(self, keys: Sequence[str | bytes]) -> list[bytes]:
        """
        Read many keys, in as few requests as etcd allows; wait for those missing.

        Returns:
            The values, in the order of the keys.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: They did not come within the store's time limit.
        """
        names = [_bytes(key) for key in keys]
        found = self._wait(names, self.timeout)
        return [found[name] for name in names]

    def add(self, key: str | bytes, num: int) -> int:
        """
        Add to a number; an absent key counts as 0.

        Returns:
            The new number.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            DistStoreError: What is stored is not a number; it stays.
        """
        with _Translated():
            return self._kv.add(
                self._directory, _bytes(key), num, STORE_TTL, self._limit()
            )

    def check(self, keys: Sequence[str | bytes]) -> bool:
        """
        Say whether all keys are there, without waiting.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        names = list(dict.fromkeys(_bytes(key) for key in keys))
        with _Translated():
            values = self._kv.get_many(self._directory, names, self._limit())
        return all(value is not None for value in values)

    def wait(
        self,
        keys: Sequence[str | bytes],
        override_timeout: timedelta | None = None,
    ) -> None:
        """
        Wait until all keys are there.

        Args:
            keys: The keys.
            override_timeout: The time limit; None for the store's own.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: They did not come in time.
        """
        self._wait(
            [_bytes(key) for key in keys],
            self.timeout if override_timeout is None else override_timeout,
        )

    def has_extended_api(self) -> bool:
        """
        Say whether ``multi_get`` and ``multi_set`` are there.
        """
        return True

    def _wait(self, names: list[bytes], limit: timedelta) -> dict[bytes, bytes]:
        with _Translated():
            found = self._kv.wait(self._directory, names, limit.total_seconds())
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if missing:
            shown = ", ".join(
                f"'{name.decode(errors='replace')}'"
                for name in missing[:_MOST_NAMES_IN_A_MESSAGE]
            )
            if len(missing) > _MOST_NAMES_IN_A_MESSAGE:
                shown += f" and {len(missing) - _MOST_NAMES_IN_A_MESSAGE} more"
            raise EtcdStoreTimeoutError(
                f"wait timeout after {limit.total_seconds():g} s, keys missing in "
                f"'{self._directory}': {shown}"
            )
        return found

    def _limit(self) -> float:
        """
        Return the seconds for an operation that does not wait for keys.
        """
        limit: timedelta = self.timeout
        return min(max(limit.total_seconds(), 1.0), self._kv.read_timeout)


class _Translated:
    """
    Raise what etcd's errors are to callers of a torch store.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, EtcdError):
            raise DistNetworkError(str(error)) from error
        if isinstance(error, ValueError):
            raise DistStoreError(str(error)) from error


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(
        f"Keys and values of a store are str or bytes, not {type(text).__name__}."
    )
