# SPDX-License-Identifier: BSD-3-Clause
"""
The store: a ``torch.distributed.Store`` on etcd.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, Final

from torch.distributed import DistNetworkError, DistStoreError, Store

from ._errors import EtcdError, EtcdLimitError, EtcdSettingError
from ._kv import StoreKeys, store_keys
from ._settings import LEAST_TTL, check_text

try:
    from torch.distributed import QueueEmptyError
except ImportError:  # an older torch, which has no queues
    QueueEmptyError = DistStoreError

__all__ = ["EtcdStore", "EtcdStoreTimeoutError"]

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

    It does what torch's ``TCPStore`` does (torch 2.13), and has the names of torch's
    ``etcd_store.EtcdStore``. Keys are read by key, never by the whole directory, and
    waiting is told by etcd, without polling. Safe for threads, and usable in a child
    after ``fork``.

    Keys and values are ``str`` (UTF-8) or bytes. Time limits are ``timedelta``; the
    store's own is read at each call. :meth:`get`, :meth:`multi_get`, :meth:`wait`
    and :meth:`queue_pop` wait as long as that for keys; the other operations take at
    most the client's ``read_timeout``. An operation that etcd does not answer raises
    ``torch.distributed.DistNetworkError``; one that is over a limit of etcd's, of a
    request or of all the data, raises ``torch.distributed.DistStoreError``.

    A :meth:`set` whose reply is lost is sent again: the last write wins. What adds,
    compares, appends, deletes, pushes or pops is applied exactly once on v3, and its
    result is that of this one time; where nobody can tell any more, that is an error.
    On v2 nothing but the value itself tells whose write it was: after a lost reply an
    equal write of somebody else's may be taken for one's own.

    On v3 keys are readable, ``<prefix><key>``, and hang on a lease that all stores of
    the same prefix share and keep alive; they go away ``ttl`` after the last process
    that uses one. (A number that :meth:`add` has made stands there as an offset to
    the key's version.) On v2 keys are torch's: base64 below the prefix, base64
    values; each goes away ``ttl`` after its own last write.

    Through torch's ``PrefixStore`` all of it can be used but :meth:`list_keys` and
    the queues, which torch does not hand on to stores in Python. A ``PrefixStore``
    does not keep this object alive: hold it as long.

    Args:
        etcd_client: An ``EtcdClient`` (v3) or python-etcd's ``etcd.Client`` (v2).
        etcd_store_prefix: The path of the keys; a missing ``/`` is added at both
            ends.
        timeout: How long to wait for keys; None for c10d's default of 300 s.
        ttl: The time to live in seconds, at least 2; None for two hours on v3 and a
            day on v2.

    Raises:
        EtcdSettingError: The client is neither of the two, the prefix is no ``str``,
            or the time to live can't be used.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        etcd_client: Any,
        etcd_store_prefix: str,
        timeout: timedelta | None = None,
        *,
        ttl: int | None = None,
    ) -> None:
        # Not super(): with `install()` torch's own EtcdStore stands in between.
        Store.__init__(self)
        if not isinstance(etcd_store_prefix, str):
            raise EtcdSettingError(
                "The prefix of a store is a str, not "
                f"{type(etcd_store_prefix).__name__}."
            )
        check_text(etcd_store_prefix, "prefix of a store")
        if ttl is not None and (type(ttl) is not int or ttl < LEAST_TTL):
            raise EtcdSettingError(
                f"The ttl of a store is a whole number of seconds, {LEAST_TTL} or "
                f"more, not {ttl!r}."
            )
        self.client = etcd_client
        self.prefix = etcd_store_prefix
        if not self.prefix.endswith("/"):
            self.prefix += "/"
        self._directory = (
            self.prefix if self.prefix.startswith("/") else f"/{self.prefix}"
        )
        self._ttl = ttl
        self._keys: StoreKeys = store_keys(etcd_client, self._directory, ttl)
        self._clones: list[EtcdStore] = []
        if timeout is not None:
            self.set_timeout(timeout)

    def __repr__(self) -> str:
        return f"<EtcdStore {self._directory!r} {self.client!r}>"

    def _hand_lease_over(self) -> Any:
        """
        Return the lease of the keys (v3); its caller keeps it alive, in this process.
        """
        return self._keys.hand_lease_over()  # type: ignore[attr-defined]

    # -- one key ----------------------------------------------------------------------

    def set(self, key: str | bytes, value: str | bytes) -> None:
        """
        Write a key.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        with _Translated():
            self._keys.put_many([(_bytes(key), _bytes(value))], self._limit())

    def get(self, key: str | bytes) -> bytes:
        """
        Read a key; wait for it if it isn't there.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: It did not come within the store's time limit.
        """
        return self.multi_get([key])[0]

    def add(self, key: str | bytes, num: int) -> int:
        """
        Add to a number; an absent key counts as 0.

        Any number of clients may add 1 to the same key at the same time: on v3 that
        is one transaction each. Other amounts are compared and swapped, and tried
        again where somebody else was quicker.

        Returns:
            The new number.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            DistStoreError: What is stored is not a number, or the sum is beyond 64
                bits; it stays.
        """
        amount = operator.index(num)
        if not -(2**63) <= amount < 2**63:
            raise TypeError("add() takes an integer of 64 bits.")
        with _Translated():
            return self._keys.add(_bytes(key), amount, self._limit())

    def compare_set(
        self,
        key: str | bytes,
        expected_value: str | bytes,
        desired_value: str | bytes,
    ) -> bytes:
        """
        Write a key if its value is the expected one.

        An absent key is as expected if nothing (``""``) is.

        Returns:
            The desired value if it was written; else the current one, or the
            expected one where there is none.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        expected, desired = _bytes(expected_value), _bytes(desired_value)

        def decide(current: bytes | None) -> bytes | None:
            return desired if (current or b"") == expected else current

        before = self._change(key, decide)
        if (before or b"") == expected:
            return desired
        return expected if before is None else before

    def append(self, key: str | bytes, value: str | bytes) -> None:
        """
        Write a value behind what is there; an absent key is created.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        more = _bytes(value)
        self._change(key, lambda current: (current or b"") + more)

    def delete_key(self, key: str | bytes) -> bool:
        """
        Delete a key.

        Returns:
            Whether it was there.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        return self._change(key, lambda _: None) is not None

    def deleteKey(self, key: str | bytes) -> bool:  # noqa: N802
        """
        What torch's C++ calls :meth:`delete_key`.
        """
        return self.delete_key(key)

    def _change(
        self, key: str | bytes, decide: Callable[[bytes | None], bytes | None]
    ) -> bytes | None:
        with _Translated():
            return self._keys.change(_bytes(key), decide, self._limit())

    # -- many keys --------------------------------------------------------------------

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
        items = list(zip(_each(keys), _each(values), strict=True))
        with _Translated():
            self._keys.put_many(items, self._limit())

    def multi_get(self, keys: Sequence[str | bytes]) -> list[bytes]:
        """
        Read many keys, in as few requests as etcd allows; wait for those missing.

        Returns:
            The values, in the order of the keys.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: They did not come within the store's time limit.
        """
        names = _each(keys)
        found = self._wait(names, self.timeout)
        return [found[name] for name in names]

    def check(self, keys: Iterable[str | bytes]) -> bool:
        """
        Say whether all keys are there, without waiting.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        names = list(dict.fromkeys(_each(keys)))
        with _Translated():
            values = self._keys.get_many(names, self._limit())
        return all(value is not None for value in values)

    def wait(
        self,
        keys: Iterable[str | bytes],
        override_timeout: timedelta | float | None = None,
    ) -> None:
        """
        Wait until all keys are there.

        Args:
            keys: The keys.
            override_timeout: The time limit, also as a float of seconds, as torch
                takes it; None for the store's own.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: They did not come in time.
        """
        limit = self.timeout
        if isinstance(override_timeout, float) and math.isfinite(override_timeout):
            most = timedelta.max.total_seconds()
            limit = timedelta(seconds=max(-1.0, min(override_timeout, most - 1)))
        elif override_timeout is not None:
            limit = override_timeout
        if not isinstance(limit, timedelta):
            raise TypeError("A time limit is a timedelta, or a float of seconds.")
        self._wait(_each(keys), limit)

    def num_keys(self) -> int:
        """
        Return how many keys there are.

        On v2 stores of all runs may share a path; then all their keys count.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        with _Translated():
            return self._keys.count(self._limit())

    def getNumKeys(self) -> int:  # noqa: N802
        """
        What torch's C++ calls :meth:`num_keys`.
        """
        return self.num_keys()

    def list_keys(self) -> list[str]:
        """
        Return all keys, in no particular order; as of :meth:`num_keys`.

        Bytes that are no UTF-8 come as Python's surrogate escapes, which are taken
        as keys, too.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        with _Translated():
            names = self._keys.names(self._limit())
        return [name.decode(errors="surrogateescape") for name in names]

    def has_extended_api(self) -> bool:
        """
        Say whether ``append``, ``multi_get`` and ``multi_set`` are there.
        """
        return True

    # -- queues -----------------------------------------------------------------------

    def queue_push(self, key: str | bytes, value: str | bytes) -> None:
        """
        Put a value at the end of a queue. Queues and keys have names of their own.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        with _Translated():
            self._keys.push(_bytes(key), _bytes(value), self._limit())

    def queue_pop(self, key: str | bytes, block: bool = True) -> bytes:
        """
        Take the first value of a queue.

        Args:
            key: The queue.
            block: Whether to wait for a value, as long as the store's time limit.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
            EtcdStoreTimeoutError: Nothing came in time.
            QueueEmptyError: The queue is empty, and ``block`` is false.
        """
        queue = _bytes(key)
        limit: timedelta = self.timeout
        patience = limit.total_seconds() if block else 0.0
        with _Translated():
            value = self._keys.pop(queue, self._limit(), patience)
        if value is not None:
            return value
        if block:
            raise self._timed_out([queue], limit, "queues empty")
        raise QueueEmptyError(
            f"The queue {_shown(queue)} in '{self._directory}' is empty."
        )

    def queue_len(self, key: str | bytes) -> int:
        """
        Return how many values a queue holds.

        Raises:
            DistNetworkError: etcd can't be reached, or refuses.
        """
        with _Translated():
            return self._keys.length(_bytes(key), self._limit())

    # -- the store itself -------------------------------------------------------------

    def clone(self) -> EtcdStore:
        """
        Return another store on the same keys, with a time limit of its own.

        It lives as long as this one, since torch's C++ does not hold it.
        """
        # Not by the class itself: that of a user may be made from something else.
        clone = type(self).__new__(type(self))
        clone.__dict__.update(vars(self))
        EtcdStore.__init__(clone, self.client, self.prefix, self.timeout, ttl=self._ttl)
        clone._keys = self._keys  # noqa: SLF001 (one lease, one thread that keeps it)
        self._clones.append(clone)
        return clone

    def _wait(self, names: list[bytes], limit: timedelta) -> dict[bytes, bytes]:
        with _Translated():
            found = self._keys.wait(names, limit.total_seconds())
        missing = [name for name in dict.fromkeys(names) if name not in found]
        if missing:
            raise self._timed_out(missing, limit, "keys missing")
        return found

    def _timed_out(
        self, names: list[bytes], limit: timedelta, what: str
    ) -> EtcdStoreTimeoutError:
        shown = ", ".join(map(_shown, names[:_MOST_NAMES_IN_A_MESSAGE]))
        if len(names) > _MOST_NAMES_IN_A_MESSAGE:
            shown += f" and {len(names) - _MOST_NAMES_IN_A_MESSAGE} more"
        return EtcdStoreTimeoutError(
            f"wait timeout after {limit.total_seconds():g} s, {what} in "
            f"'{self._directory}': {shown}"
        )

    def _limit(self) -> float:
        """
        Return the seconds for an operation that does not wait for keys.
        """
        limit: timedelta = self.timeout
        return min(max(limit.total_seconds(), 1.0), self._keys.read_timeout)


class _Translated:
    """
    Raise what etcd's errors are to callers of a torch store.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, EtcdLimitError):
            raise DistStoreError(str(error)) from error
        if isinstance(error, EtcdError):
            raise DistNetworkError(str(error)) from error
        if isinstance(error, ValueError):
            raise DistStoreError(str(error)) from error


def _shown(name: bytes) -> str:
    return f"'{name.decode(errors='replace')}'"


def _each(texts: Iterable[str | bytes]) -> list[bytes]:
    if isinstance(texts, (str, bytes)):
        raise TypeError("A sequence is wanted here, not a single str or bytes.")
    return [_bytes(text) for text in texts]


def _bytes(text: str | bytes) -> bytes:
    if isinstance(text, str):
        try:
            return text.encode(errors="surrogateescape")
        except UnicodeEncodeError as error:
            raise TypeError(f"A key or value can't be encoded: {error}.") from error
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(
        f"Keys and values of a store are str or bytes, not {type(text).__name__}."
    )
