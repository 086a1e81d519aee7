# SPDX-License-Identifier: BSD-3-Clause
"""
``KeyValue`` over the v2 API, through python-etcd.

The layout is torch's, so that agents with torch's ``etcd-v2`` and with ours share a
run. python-etcd builds and parses the requests; when to send again is decided by
our own retry table, with urllib3's silent repeats switched off.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import urllib3

import etcd

from ._errors import EtcdConnectionError, EtcdOutcomeUnknownError
from ._failover import Answer, Failover, Trouble
from ._kv import Look, Queued, Stored, Swap, number_in
from ._params import Endpoint, Settings
from ._v3 import retry
from ._v3.transport import trouble_of_exception

__all__ = ["V2KeyValue", "make_client"]

_T = TypeVar("_T")

# torch's
STORE_PATH: Final = "/torch/elastic/store"

_LOST_SWAP: Final = (
    etcd.EtcdCompareFailed,
    etcd.EtcdAlreadyExist,
    etcd.EtcdKeyNotFound,
)
_ENDS: Final = frozenset({"delete", "expire", "compareAndDelete"})
_HISTORY_SECONDS: Final = 2.0
_CONNECTIONS: Final = 32


def make_client(settings: Settings, endpoint: Endpoint) -> etcd.Client:
    """
    Return a python-etcd client of the member that answered.

    It is made without asking the server for its members: the addresses that etcd
    advertises need not be reachable from here.

    Args:
        settings: The settings.
        endpoint: The member.
    """
    others = [other for other in settings.endpoints if other != endpoint]
    hosts = tuple((other.host, other.port) for other in (endpoint, *others))
    tls = settings.tls
    return etcd.Client(
        host=hosts,
        protocol=endpoint.scheme,
        read_timeout=settings.read_timeout,
        allow_reconnect=True,
        use_proxies=True,
        cert=(tls.cert, tls.key) if tls.cert and tls.key else tls.cert,
        ca_cert=tls.ca,
    )


class _Sender(etcd.Client):
    """
    A client for one attempt: a given client's settings, one member, one time limit.
    """

    def __init__(
        self, like: etcd.Client, http: Any, base_uri: str, timeout: float
    ) -> None:
        self.__dict__.update(like.__dict__)
        self.http = http
        self._base_uri = base_uri
        # Whether etcd lost its data is told by its index; a new cluster on the old
        # port is one to talk to.
        self.expected_cluster_id = None
        self._read_timeout = timeout
        self._allow_reconnect = False

    def __del__(self) -> None:
        """
        Leave the connections alone: they are shared.
        """


@dataclass(frozen=True)
class _Said:
    """
    What v2 said of keys and watches: an answer, though python-etcd raises it.
    """

    error: etcd.EtcdException


class V2KeyValue:
    """
    The operations of one backend, or one store, on the v2 API.

    Args:
        client: A python-etcd client. It is read, never altered.
        patient: Whether operations go on although no endpoint can be reached.
        clock: A monotonic clock, in seconds.
    """

    api = "v2"

    def __init__(
        self,
        client: etcd.Client,
        *,
        patient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._patient = patient
        self._clock = clock
        self._own_connections()
        uris = [client.base_uri, *client._machines_cache]  # noqa: SLF001
        self._failover = Failover([_endpoint(uri) for uri in dict.fromkeys(uris)])
        self._index = 0
        self._runs: dict[str, str] = {}

    @property
    def read_timeout(self) -> float:
        """
        The client's ``read_timeout``; where it has none, a minute.
        """
        return float(self._client.read_timeout) or 60.0

    def state_key(self, key_prefix: str | None, run_id: str) -> str:
        """
        See ``KeyValue``. Torch's path; python-etcd adds a missing leading ``/``.
        """
        key = f"{key_prefix}/{run_id}" if key_prefix else run_id
        self._runs[key] = run_id
        return key

    # -- one key, one fence ---------------------------------------------------------

    def read(self, key: str, known: int, timeout: float) -> Look:
        """
        See ``KeyValue``. The v2 API transfers an unchanged value, too.
        """
        baseline = self._index
        try:
            node = self._run(
                lambda sender: sender.read(key, quorum=True),
                f"read the key '{key}'",
                timeout,
            ).value
        except etcd.EtcdKeyNotFound as error:
            look = Look(None, False, _index_of(error))
        else:
            look = Look(_stored(node), False, node.etcd_index)
        self._saw(look.store_revision, baseline)
        return look

    def swap(
        self, key: str, value: bytes, expected: int, ttl: int, timeout: float
    ) -> Swap:
        """
        See ``KeyValue``.

        v2 knows no leases, so that after a lost reply only the bytes tell whose
        write it was: two agents that write the same bytes at once may both be told
        that they won.
        """
        deadline = self._clock() + timeout
        if not expected:
            self._forget_earlier_rounds(key, deadline)
        timeout = self._left(deadline)
        baseline = self._index
        condition: dict[str, Any] = (
            {"prevIndex": expected} if expected else {"prevExist": False}
        )

        def send(sender: etcd.Client) -> etcd.EtcdResult | None:
            try:
                return sender.write(key, value.decode("ascii"), ttl, **condition)
            except _LOST_SWAP as error:
                if not _is_of_v2(error):
                    raise
                return None

        answer = self._run(send, f"swap the key '{key}'", timeout, writes=True)
        if answer.value is not None:
            index = answer.value.modifiedIndex
            self._saw(index, baseline)
            return Swap(True, Stored(value, index), index)
        current = self.read(key, 0, self._left(deadline))
        if answer.maybe_earlier:
            # A wiped store counts from the start again.
            wiped = current.store_revision < baseline
            after = 0 if wiped else max(expected, baseline)
            won_at = self._resolve(
                key, value, after, current.stored, deadline, begins=not expected
            )
            if won_at:
                return Swap(True, Stored(value, won_at), current.store_revision)
        return Swap(False, current.stored, current.store_revision)

    def wait_turn(self, key: str, queued: Queued, timeout: float) -> None:
        """
        See ``KeyValue``. The v2 API knows no order.
        """

    def _resolve(
        self,
        key: str,
        value: bytes,
        after: int,
        current: Stored | None,
        deadline: float,
        *,
        begins: bool,
    ) -> int:
        """
        Find out whether an earlier attempt of a swap, whose reply was lost, won.

        Returns:
            The index that it wrote, or 0 if it did not.
        """
        if current is not None:
            if current.revision <= after:
                return 0
            if current.value == value:
                return current.revision
        # Where there is a state, history has something to tell, though late.
        limit = self._clock() + _HISTORY_SECONDS if current is None else deadline
        limit = min(deadline, limit)
        try:
            first = self._first_event(key, after + 1, limit)
            # A state that begins anew may come after the end of the old one.
            while begins and first.action in _ENDS:
                first = self._first_event(key, first.modifiedIndex + 1, limit)
        except etcd.EtcdWatchTimedOut as error:
            if current is None:
                return 0
            raise EtcdOutcomeUnknownError(
                f"Could not find out what became of a write to '{key}': it may or may "
                "not have been applied, and etcd did not tell in time."
            ) from error
        except etcd.EtcdEventIndexCleared as error:
            raise EtcdOutcomeUnknownError(
                f"Could not find out what became of a write to '{key}': others have "
                "written since, and etcd no longer has the history that would tell."
            ) from error
        if (first.value or "").encode() == value:
            return int(first.modifiedIndex)
        return 0

    def _first_event(self, key: str, index: int, limit: float) -> etcd.EtcdResult:
        return self._run(
            lambda sender: sender.read(key, wait=True, waitIndex=index),
            f"find out what became of a write to '{key}'",
            max(limit - self._clock(), 0.1),
        ).value

    def _saw(self, index: int, baseline: int) -> None:
        """
        Remember the newest index; older than ``baseline`` means a wiped store.
        """
        if index < baseline or index > self._index:
            self._index = index

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
        absent = self.read(key, 0, self._left(deadline))
        if absent.stored is not None:
            return
        try:
            nodes = self._run(
                lambda sender: sender.read(STORE_PATH, quorum=True),
                f"list the keys in '{STORE_PATH}'",
                self._left(deadline),
            ).value.children
        except etcd.EtcdKeyNotFound:
            return
        rounds = f"torch.rendezvous.{run_id}.".encode()
        for node in nodes:
            old = not node.dir and node.modifiedIndex <= absent.store_revision
            if old and _name(node.key).startswith(rounds):
                self._delete_unchanged(node, self._left(deadline))

    def _left(self, deadline: float) -> float:
        return max(deadline - self._clock(), 0.05)

    def _delete_unchanged(self, node: etcd.EtcdResult, timeout: float) -> None:
        with contextlib.suppress(etcd.EtcdKeyNotFound, etcd.EtcdCompareFailed):
            self._run(
                lambda sender: sender.delete(node.key, prevIndex=node.modifiedIndex),
                f"delete the key '{node.key}'",
                timeout,
                writes=True,
            )

    # -- many keys in a directory ----------------------------------------------------

    def get_many(
        self, directory: str, names: Sequence[bytes], timeout: float
    ) -> list[bytes | None]:
        """
        See ``KeyValue``. One request a key: v2 has no transactions.
        """
        deadline = self._clock() + timeout
        values: list[bytes | None] = []
        for name in names:
            try:
                node = self._get(directory, name, self._left(deadline))
            except etcd.EtcdKeyNotFound:
                values.append(None)
            else:
                values.append(b64decode(node.value or ""))
        return values

    def put_many(
        self,
        directory: str,
        items: Sequence[tuple[bytes, bytes]],
        ttl: int,
        timeout: float,
    ) -> None:
        """
        See ``KeyValue``. One request a key: v2 has no transactions.
        """
        deadline = self._clock() + timeout
        for name, value in items:
            left = self._left(deadline)
            self._put(_path(directory, name), b64encode(value).decode(), ttl, left)

    def _put(self, key: str, text: str, ttl: int, timeout: float) -> None:
        self._run(
            lambda sender: sender.write(key, text, ttl),
            f"write the key '{key}'",
            timeout,
            writes=True,
        )

    def add(
        self, directory: str, name: bytes, amount: int, ttl: int, timeout: float
    ) -> int:
        """
        See ``KeyValue``.

        After a lost reply a sum that stands where ours was to stand is taken for
        ours: v2 has nothing else that would tell.
        """
        deadline = self._clock() + timeout
        key = _path(directory, name)
        while True:
            left = self._left(deadline)
            baseline = self._index
            try:
                node = self._get(directory, name, left)
            except etcd.EtcdKeyNotFound as error:
                self._saw(_index_of(error), baseline)
                expected, total = 0, amount
            else:
                self._saw(node.etcd_index, baseline)
                expected = node.modifiedIndex
                total = number_in(b64decode(node.value or ""), name) + amount
            swap = self.swap(key, b64encode(str(total).encode()), expected, ttl, left)
            if swap.won:
                return total
            if self._clock() >= deadline:
                raise EtcdConnectionError(
                    f"Could not add to the key '{key}': others changed it all the "
                    f"time for {timeout:.1f} s."
                )

    def wait(
        self, directory: str, names: Sequence[bytes], timeout: float
    ) -> dict[bytes, bytes]:
        """
        See ``KeyValue``. One key after the other.
        """
        deadline = self._clock() + timeout
        found: dict[bytes, bytes] = {}
        for name in dict.fromkeys(names):
            while name not in found:
                left = deadline - self._clock()
                try:
                    node = self._get(directory, name, min(max(left, 1.0), 60.0))
                except etcd.EtcdKeyNotFound as error:
                    if left <= 0:
                        break
                    self._wait_for_change(directory, name, _index_of(error) + 1, left)
                else:
                    found[name] = b64decode(node.value or "")
        return found

    def _wait_for_change(
        self, directory: str, name: bytes, index: int, seconds: float
    ) -> None:
        path = _path(directory, name)
        try:
            self._sender(self._failover.current, min(seconds, 15.0)).read(
                path, wait=True, waitIndex=index
            )
        except (etcd.EtcdWatchTimedOut, etcd.EtcdEventIndexCleared):
            return
        except etcd.EtcdException as error:
            # Read again; if something is really wrong, that says what.
            self._failover.move_on(self._failover.current)
            if isinstance(error, etcd.EtcdConnectionFailed):
                time.sleep(min(0.1, max(seconds, 0.0)))

    def _get(self, directory: str, name: bytes, timeout: float) -> etcd.EtcdResult:
        path = _path(directory, name)
        return self._run(
            lambda sender: sender.read(path, quorum=True),
            f"read the key '{path}'",
            timeout,
        ).value

    # -- requests ---------------------------------------------------------------------

    def _sender(self, endpoint: Endpoint, timeout: float) -> _Sender:
        if self._pid != os.getpid():
            # The parent's connections stay the parent's.
            self._own_connections()
        return _Sender(self._client, self._http, str(endpoint), timeout)

    def _own_connections(self) -> None:
        settings = dict(self._client.http.connection_pool_kw)
        settings.update(retries=False, maxsize=_CONNECTIONS)
        self._http = urllib3.PoolManager(**settings)
        self._pid = os.getpid()

    def _run(
        self,
        operation: Callable[[_Sender], _T],
        what: str,
        timeout: float,
        *,
        writes: bool = False,
    ) -> Answer[_T]:
        """
        Run an operation through the retry table.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
            etcd.EtcdException: What v2 says about keys and watches.
        """

        def attempt(endpoint: Endpoint, limit: float) -> _T | _Said | Trouble:
            try:
                return operation(self._sender(endpoint, limit))
            except (
                etcd.EtcdWatchTimedOut,
                etcd.EtcdEventIndexCleared,
                etcd.EtcdCompareFailed,
            ) as error:
                return _Said(error)
            except etcd.EtcdKeyNotFound as error:
                return _Said(error) if _is_of_v2(error) else _no_v2(error)
            except etcd.EtcdConnectionFailed as error:
                return trouble_of_exception(error.cause or error)
            except etcd.EtcdException as error:
                return _trouble_of_answer(error)

        answer = self._failover.run(
            attempt,
            what=what,
            timeout=timeout,
            writes=writes,
            patient=self._patient,
        )
        value: Any = answer.value
        if isinstance(value, _Said):
            raise value.error
        return Answer(value, answer.endpoint, answer.maybe_earlier)


def _trouble_of_answer(error: etcd.EtcdException) -> Trouble:
    payload = error.payload if isinstance(error.payload, dict) else {}
    text = str(payload.get("cause") or payload.get("message") or error)
    text = " ".join(text.split())[:200]
    if "HTTP request to an HTTPS server" in text:
        return Trouble(
            retry.Failure.FINAL,
            "it speaks TLS; use protocol=https",
            error,
            not_etcd=True,
        )
    no_json = "JSON" in str(error) or payload.get("message") == "Bad response"
    if "errorCode" not in payload and "404 page not found" in text:
        return _no_v2(error)
    if "errorCode" not in payload and no_json:
        return Trouble(
            retry.Failure.FINAL,
            f"something answered that is not etcd ({text})",
            error,
            not_etcd=True,
        )
    return Trouble(retry.failure_of_reply(2, text), text, error)


def _is_of_v2(error: etcd.EtcdException) -> bool:
    """
    Say whether it is v2's own word; python-etcd's "key not found" may be a page's.
    """
    return isinstance(error.payload, dict) and "errorCode" in error.payload


def _no_v2(error: etcd.EtcdException) -> Trouble:
    return Trouble(
        retry.Failure.FINAL,
        "it answers, but does not serve etcd's v2 API: etcd up to 3.5 does with "
        "--enable-v2, later ones no longer do; use the backend etcd-v3",
        error,
        not_etcd=True,
        api_missing=True,
    )


def _index_of(error: Exception) -> int:
    payload = getattr(error, "payload", None)
    return int(payload.get("index", 0)) if isinstance(payload, dict) else 0


def _stored(node: etcd.EtcdResult) -> Stored:
    return Stored((node.value or "").encode(), int(node.modifiedIndex))


def _path(directory: str, name: bytes) -> str:
    """
    Return torch's path of a store key.

    torch can't read keys whose base64 has a ``/`` in it, so these may be anything;
    nor the empty key.
    """
    return directory + (b64encode(name).decode().replace("/", "_") or "=")


def _name(path: str) -> bytes:
    """
    Return the store key of a path; empty if it is none.
    """
    try:
        return b64decode(path.rsplit("/", 1)[-1].replace("_", "/"), validate=True)
    except binascii.Error:
        return b""


def _endpoint(uri: str) -> Endpoint:
    parts = urlsplit(uri)
    return Endpoint(parts.scheme, parts.hostname or "", parts.port or 2379)
