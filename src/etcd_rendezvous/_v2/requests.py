# SPDX-License-Identifier: BSD-3-Clause
"""
Requests to the v2 API: attempts, endpoints, connections, and what v2 said.
"""

from __future__ import annotations

import binascii
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import urllib3

import etcd

from .._clocks import ClockWatch
from .._errors import EtcdReplyError
from .._failover import Answer, Failover, Trouble
from .._kv import Look, Stored
from .._pools import CONNECTIONS_PER_POOL, Usage
from .._settings import Endpoint, Settings
from .._v3.error_texts import trouble_of_exception
from .error_texts import basic, is_of_v2, no_v2, trouble_of_answer

__all__ = [
    "STORE_PATH",
    "Requests",
    "encode_name",
    "make_client",
    "name_in",
    "run_of",
    "too_long",
    "without_empty_parts",
]

# torch's
STORE_PATH: Final = "/torch/elastic/store"

# etcd closes a new connection whose first line is not over within 4 KiB.
_LONGEST_PATH: Final = 3_900
_LONGEST_POLL_SECONDS: Final = 15.0
_POLL_PAUSE_SECONDS: Final = 0.1

_T = TypeVar("_T")


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
    who = settings.credentials
    return etcd.Client(
        host=hosts,
        protocol=endpoint.scheme,
        read_timeout=settings.read_timeout,
        allow_reconnect=True,
        use_proxies=True,
        cert=(tls.cert, tls.key or tls.cert) if tls.cert else None,
        ca_cert=tls.ca,
        username=who.user if who else None,
        password=who.password() if who else None,
    )


class _Sender(etcd.Client):
    """
    A client for one attempt: a given client's settings, one member, one time limit.
    """

    def __init__(
        self,
        like: etcd.Client,
        http: Any,
        endpoint: Endpoint,
        timeout: float,
        clocks: ClockWatch | None,
    ) -> None:
        self.__dict__.update(like.__dict__)
        self.http = http
        self._endpoint = endpoint
        self._clocks = clocks
        self._sending = clocks.begin() if clocks is not None else None
        self._base_uri = str(endpoint)
        # Whether etcd lost its data is told by its index; a new cluster on the old
        # port is one to talk to.
        self.expected_cluster_id = None
        self._read_timeout = timeout
        self._allow_reconnect = False

    def _get_headers(self) -> dict[str, str]:
        """
        Return the headers that say who we are; python-etcd's are for Latin-1 alone.
        """
        if not (self.username and self.password):
            return {}
        return {"authorization": f"Basic {basic(self)}"}

    def _handle_server_response(self, response: Any) -> Any:
        """
        Look at when the reply was made; python-etcd hands on no headers.
        """
        if self._sending is not None and self._clocks is not None:
            date = response.headers.get("Date")
            self._clocks.look(self._endpoint, date, self._sending)
        try:
            return super()._handle_server_response(response)
        except UnicodeDecodeError as error:
            payload = {"message": "Bad response", "cause": str(error)}
            raise etcd.EtcdException(payload=payload) from None

    def __del__(self) -> None:
        """
        Leave the connections alone: they are shared.
        """


class _Connections:
    """
    The connections of one process: a child after ``fork`` makes its own.

    Args:
        client: The client whose settings they have.
    """

    def __init__(self, client: etcd.Client) -> None:
        settings = dict(client.http.connection_pool_kw)
        settings.update(retries=False, maxsize=CONNECTIONS_PER_POOL)
        self.http = urllib3.PoolManager(**settings)
        self.pid = os.getpid()
        pools = self.http.pools
        self.usage = Usage(lambda: [pools[key] for key in pools.keys()])  # noqa: SIM118


@dataclass(frozen=True)
class _Said:
    """
    What v2 said of keys and watches: an answer, though python-etcd raises it.
    """

    error: etcd.EtcdException


class Requests:
    """
    Send requests to whichever endpoint of a client answers.

    Safe for threads, and after ``fork``.

    Args:
        client: A python-etcd client. It is read, never altered.
        patient: Whether operations go on although no endpoint can be reached.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, client: etcd.Client, *, patient: bool, clock: Callable[[], float]
    ) -> None:
        self._client = client
        self._patient = patient
        self._clock = clock
        self._connections = _Connections(client)
        uris = [client.base_uri, *client._machines_cache]  # noqa: SLF001
        self._failover = Failover([_endpoint(uri) for uri in dict.fromkeys(uris)])
        self._index = 0
        #: What compares our clock with those of who answers; None for nothing.
        self.clocks: ClockWatch | None = None

    @property
    def failovers(self) -> int:
        """
        How often operations have gone from one endpoint to another.
        """
        return self._failover.moves

    @property
    def read_timeout(self) -> float:
        """
        The client's ``read_timeout``; where it has none, a minute.
        """
        return float(self._client.read_timeout) or 60.0

    # -- time -------------------------------------------------------------------------

    def now(self) -> float:
        """
        Return the clock's time, in seconds.
        """
        return self._clock()

    def left(self, deadline: float) -> float:
        """
        Return the seconds until a deadline, never quite none.
        """
        return max(deadline - self._clock(), 0.05)

    # -- etcd's index -----------------------------------------------------------------

    @property
    def index(self) -> int:
        """
        The newest index that etcd has told.
        """
        return self._index

    def saw(self, index: int, baseline: int) -> None:
        """
        Remember the newest index.

        Args:
            index: The index in a reply.
            baseline: The newest one known before the request was sent; an older one
                in the reply means a wiped store.
        """
        if index < baseline or index > self._index:
            self._index = index

    # -- requests ---------------------------------------------------------------------

    def look(self, key: str, timeout: float) -> Look:
        """
        Read one key.
        """
        node, index = self._read(key, f"read the key '{key}'", timeout)
        return Look(_stored(node) if node is not None else None, False, index)

    def remove_folder(self, key: str, timeout: float) -> None:
        """
        Remove an empty folder that stands in the place of a key, if it is one.

        etcd's v2 keeps the folders of keys that are gone.

        Raises:
            EtcdReplyError: There are keys in it.
        """
        node, _ = self._read(key, f"read the key '{key}'", timeout)
        if node is None or not node.dir:
            return
        try:
            self.run(
                lambda sender: sender.delete(key, dir=True),
                f"remove the empty folder '{key}'",
                timeout,
                writes=True,
            )
        except etcd.EtcdDirNotEmpty as error:
            raise EtcdReplyError(
                f"Could not use the key '{key}': in etcd's v2 it is a folder, since "
                "another run's id begins with this one and a slash; use another run "
                "id, or etcd's v3."
            ) from error
        except (etcd.EtcdKeyNotFound, etcd.EtcdNotDir):
            return  # Another was quicker.

    def seconds_left(self, key: str, timeout: float) -> int | None:
        """
        Return the seconds until a key goes away; None if it is gone, or stays.
        """
        node, _ = self._read(key, f"read the key '{key}'", timeout)
        return node.ttl if node is not None else None

    def children(
        self, path: str, timeout: float, *, recursive: bool = False
    ) -> tuple[list[etcd.EtcdResult], int]:
        """
        List a directory.

        Args:
            path: The directory.
            timeout: The most seconds to take.
            recursive: Whether to list the directories in it, too.

        Returns:
            The nodes in it that hold a value, and the store's index; no nodes where
            there is no directory.
        """
        path = path.rstrip("/")
        what = f"list the keys in '{path}'"
        node, index = self._read(path, what, timeout, recursive=recursive)
        if node is None or not node.dir:
            return [], index
        # An empty directory is its own and only child.
        return [child for child in node.children if not child.dir], index

    def put(self, key: str, text: str, ttl: int, timeout: float) -> None:
        """
        Write one key.
        """
        self.run(
            lambda sender: sender.write(key, text, ttl),
            f"write the key '{key}'",
            timeout,
            writes=True,
        )

    def poll(
        self, key: str, index: int, seconds: float, *, recursive: bool = False
    ) -> etcd.EtcdResult | None:
        """
        Wait for a change, in one long poll of limited length. It raises nothing.

        Args:
            key: The key, or the directory.
            index: The index from which on changes count, so that none falls between
                a read and this.
            seconds: How long to wait at most.
            recursive: Whether to wait for what is below a directory.

        Returns:
            The change. None if none came, or nobody knows: read again, which also
            says what is wrong.
        """
        endpoint = self._failover.current
        try:
            with self._sender(endpoint, min(seconds, _LONGEST_POLL_SECONDS)) as sender:
                return sender.read(key, wait=True, waitIndex=index, recursive=recursive)
        except (etcd.EtcdWatchTimedOut, etcd.EtcdEventIndexCleared):
            return None
        except etcd.EtcdException:
            self._failover.move_on(endpoint, "a long poll broke")
            time.sleep(min(_POLL_PAUSE_SECONDS, max(seconds, 0.0)))
            return None

    def run(
        self,
        operation: Callable[[etcd.Client], _T],
        what: str,
        timeout: float,
        *,
        writes: bool = False,
    ) -> Answer[_T]:
        """
        Run an operation through the retry table.

        Args:
            operation: Sends it with a client.
            what: The operation in words, for errors: "read the key '/a'".
            timeout: The seconds for all attempts together.
            writes: Whether it changes anything.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
            etcd.EtcdException: What v2 says about keys and watches.
        """

        def attempt(endpoint: Endpoint, limit: float) -> _T | _Said | Trouble:
            try:
                with self._sender(endpoint, limit) as sender:
                    return operation(sender)
            except (
                etcd.EtcdWatchTimedOut,
                etcd.EtcdEventIndexCleared,
                etcd.EtcdCompareFailed,
                etcd.EtcdDirNotEmpty,
                etcd.EtcdNotDir,
            ) as error:
                return _Said(error)
            except etcd.EtcdKeyNotFound as error:
                if is_of_v2(error):
                    return _Said(error)
                return no_v2(error, self._client)
            except etcd.EtcdConnectionFailed as error:
                return trouble_of_exception(error.cause or error)
            except etcd.EtcdException as error:
                return trouble_of_answer(error, self._client)
            except UnicodeDecodeError as error:  # a client's key that is no text
                return trouble_of_exception(error)

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

    def _read(
        self, key: str, what: str, timeout: float, *, recursive: bool = False
    ) -> tuple[etcd.EtcdResult | None, int]:
        """
        Return what is there, None for nothing, and the store's index.
        """
        baseline = self._index
        try:
            node = self.run(
                lambda sender: sender.read(key, quorum=True, recursive=recursive),
                what,
                timeout,
            ).value
        except etcd.EtcdKeyNotFound as error:
            node, index = None, _index_of(error)
        else:
            index = int(node.etcd_index)
        self.saw(index, baseline)
        return node, index

    @contextmanager
    def _sender(self, endpoint: Endpoint, timeout: float) -> Iterator[_Sender]:
        connections = self._connections
        if connections.pid != os.getpid():
            # The parent's connections stay the parent's.
            connections = self._connections = _Connections(self._client)
        with connections.usage.one_more():
            yield _Sender(
                self._client, connections.http, endpoint, timeout, self.clocks
            )


def _index_of(error: Exception) -> int:
    payload = getattr(error, "payload", None)
    return int(payload.get("index", 0)) if isinstance(payload, dict) else 0


def _stored(node: etcd.EtcdResult) -> Stored:
    return Stored((node.value or "").encode(), int(node.modifiedIndex))


def _endpoint(uri: str) -> Endpoint:
    parts = urlsplit(uri)
    return Endpoint(parts.scheme, parts.hostname or "", parts.port or 2379)


# -- names in paths -----------------------------------------------------------------


def without_empty_parts(path: str) -> str:
    """
    Return a path with one slash for several; etcd sends away who writes several.
    """
    return re.sub("/+", "/", path)


def too_long(path: str) -> str | None:
    """
    Return what is wrong with a path that is too long for a request; None if it is not.
    """
    length = len(quote(path, safe="/+="))
    if length <= _LONGEST_PATH:
        return None
    return (
        f"Could not use the key '{path[:80]}...': its path has {length} characters, "
        f"and etcd's v2 takes {_LONGEST_PATH}; use a shorter one, or etcd's v3."
    )


def encode_name(name: bytes) -> str:
    """
    Return the last part of torch's path of a store key.

    torch can't read keys whose base64 has a ``/`` in it, so these may be anything
    that does not begin with a ``_``, which would hide them; nor the empty key.
    """
    return b64encode(name).decode().replace("/", "-") or "="


def name_in(path: str) -> bytes | None:
    """
    Return the store key of a path; None if it is none.
    """
    part = path.rsplit("/", 1)[-1]
    try:
        name = b64decode(part.replace("-", "/")) if part != "=" else b""
    except (binascii.Error, ValueError):
        return None
    return name if encode_name(name) == part else None


def run_of(name: bytes) -> str | None:
    """
    Return the run that a store key of torch's handler is of.

    Args:
        name: The key: ``torch.rendezvous.<run>.<round>/…``.

    Returns:
        The run; None if it is nobody's, or might be of either of two runs.
    """
    prefix = b"torch.rendezvous."
    if not name.startswith(prefix):
        return None
    rest = name.removeprefix(prefix)
    ends = [found.start() for found in re.finditer(rb"\.[0-9]+/", rest)]
    return rest[: ends[0]].decode(errors="replace") if len(ends) == 1 else None
