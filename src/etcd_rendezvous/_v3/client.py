# SPDX-License-Identifier: BSD-3-Clause
"""
The v3 client.
"""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from .._clocks import ClockWatch
from .._credentials import credentials_of
from .._errors import EtcdProtocolError, EtcdReplyError
from .._failover import Answer
from .._settings import (
    DEFAULT_CONNECT_TIMEOUT,
    DEFAULT_READ_TIMEOUT,
    Endpoint,
    TlsFiles,
    parse_endpoints,
)
from . import wire
from .transport import Transport
from .watch import Watch, open_watch

__all__ = ["EtcdClient"]


class EtcdClient:
    """
    A client of etcd's v3 API, for servers 3.4 to 3.7.

    It speaks JSON over HTTP to the gateway that every etcd member serves on its
    client port. Safe for threads, and usable in a child after ``fork``.

    Every operation has one deadline for all its attempts together. Reads are
    linearizable. A write that was sent again after an attempt without an answer
    may have been applied by either: :meth:`put` and :meth:`delete` then are as good
    as once, and :meth:`txn` says so in its reply (``maybe_earlier``).

    All time arguments are in seconds.

    Args:
        endpoints: Where etcd listens: hosts, ``host:port``, IPv6 addresses or URLs,
            separated by commas, or a sequence of such. An operation goes to the
            last endpoint that answered, the first one to any, and to the next
            when one fails.
        protocol: ``http`` or ``https``, for endpoints that are no URLs.
        cert: The path of the client's certificate.
        key: The path of its private key, if that isn't in the same file.
        ca_cert: The path of the authority's certificate, to trust instead of the
            machine's own.
        user: The user to authenticate as; None for nobody.
        password: Their password.
        password_file: The path of a file that holds it, read anew at each
            authentication; in place of ``password``.
        read_timeout: The time for one operation, all its attempts together.
        connect_timeout: The time for one TCP connect.

    Raises:
        EtcdSettingError: An endpoint can't be read, or there is a user without a
            password, or a password without a user.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        endpoints: str | Sequence[str | Endpoint] = "localhost:2379",
        *,
        protocol: str | None = None,
        cert: str | None = None,
        key: str | None = None,
        ca_cert: str | None = None,
        user: str | None = None,
        password: str | None = None,
        password_file: str | None = None,
        read_timeout: float = DEFAULT_READ_TIMEOUT,
        connect_timeout: float = DEFAULT_CONNECT_TIMEOUT,
    ) -> None:
        self._read_timeout = read_timeout
        self._transport = Transport(
            _endpoints(endpoints, protocol),
            TlsFiles(cert, key, ca_cert),
            connect_timeout,
            credentials_of(user, password, password_file),
        )
        self._patient = False
        self._once = False

    def __repr__(self) -> str:
        last = self._transport.failover.last_good
        state = "closed" if self.closed else f"last answer from {last}"
        if last is None and not self.closed:
            state = "not yet used"
        return f"<EtcdClient {','.join(self.endpoints)} API v3, {state}>"

    def __enter__(self) -> EtcdClient:  # noqa: PYI034
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def endpoints(self) -> list[str]:
        """
        The endpoints as URLs, in the order given.
        """
        return [str(endpoint) for endpoint in self._transport.failover.endpoints]

    @property
    def last_endpoint(self) -> Endpoint:
        """
        The endpoint that answered last, or that is tried first.
        """
        failover = self._transport.failover
        return failover.last_good or failover.current

    @property
    def user(self) -> str | None:
        """
        Who etcd has authenticated us as; None where it has not, or does not.
        """
        return self._transport.user

    @property
    def connections_made(self) -> int:
        """
        How many connections this process has made, streams apart; it never falls.
        """
        return self._transport.connections_made

    @property
    def read_timeout(self) -> float:
        """
        The seconds for one operation, all its attempts together.
        """
        return self._read_timeout

    @property
    def failovers(self) -> int:
        """
        How often this process' operations have gone from one endpoint to another.
        """
        return self._transport.failover.moves

    def watch_clocks(self, clocks: ClockWatch) -> None:
        """
        Compare this machine's clock with those of who answers, now and then.

        Args:
            clocks: What does so.
        """
        self._transport.clocks = clocks

    def patiently(self) -> EtcdClient:
        """
        Return a client on the same connections that waits for an etcd that is away.

        Its operations go on until their time is up where no endpoint can be reached,
        as while etcd restarts; this client's then fail at once.
        """
        patient = copy.copy(self)
        patient._patient = True  # noqa: SLF001
        return patient

    def once(self) -> EtcdClient:
        """
        Return a client on the same connections that reads from one endpoint, once.

        For what is not worth going elsewhere: its failures are raised at once, and tell
        nobody that an endpoint is of no use.
        """
        modest = copy.copy(self)
        modest._once = True  # noqa: SLF001
        return modest

    @property
    def closed(self) -> bool:
        """
        Whether it was closed, and not used since.
        """
        return self._transport.closed

    def close(self) -> None:
        """
        Close the idle connections. A later operation opens new ones.

        What renews the leases of stores on this client pauses until then.
        """
        self._transport.close()

    # -- keys ---------------------------------------------------------------------

    def range(
        self,
        key: bytes | str,
        end: bytes | None = None,
        *,
        timeout: float | None = None,
        **filters: Any,
    ) -> tuple[wire.RangeReply, int]:
        """
        Read a key, or all keys from ``key`` up to ``end``.

        Args:
            key: The key.
            end: The key after the last.
            timeout: The most seconds to take; None for ``read_timeout``.
            filters: As of ``wire.range_message``: ``limit``, ``keys_only``,
                ``count_only``, ``min_mod_revision``, ``max_mod_revision``,
                ``max_create_revision``, ``newest_first``, ``oldest_first``,
                ``revision``.

        Returns:
            What was found, and the store's revision.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        raw = _raw(key)
        reply = self._call(
            wire.RANGE,
            wire.range_message(raw, end, **filters),
            f"read the {'keys in' if end else 'key'} {_shown(raw)}",
            timeout,
            writes=False,
        )
        with _etcds_own(reply.endpoint):
            return wire.decode_range(reply.value), wire.header_revision(reply.value)

    def get(self, key: bytes | str, *, timeout: float | None = None) -> bytes | None:
        """
        Read the value of a key.

        Args:
            key: The key.
            timeout: The most seconds to take; None for ``read_timeout``.

        Returns:
            The value, or None if there is no such key.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        found, _ = self.range(key, timeout=timeout)
        return found.entries[0].value if found.entries else None

    def put(
        self,
        key: bytes | str,
        value: bytes | str,
        *,
        lease: int = 0,
        timeout: float | None = None,
    ) -> int:
        """
        Write a key. If the reply is lost it is written again: the last write wins.

        Args:
            key: The key.
            value: The value; etcd takes 1.5 MiB at most.
            lease: The lease that the key hangs on, 0 for none.
            timeout: The most seconds to take; None for ``read_timeout``.

        Returns:
            The store's revision after it.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        raw = _raw(key)
        reply = self._call(
            wire.PUT,
            wire.put_message(raw, _raw(value), lease),
            f"write the key {_shown(raw)}",
            timeout,
        )
        with _etcds_own(reply.endpoint, writes=True):
            return wire.header_revision(reply.value)

    def delete(
        self,
        key: bytes | str,
        *,
        prefix: bool = False,
        timeout: float | None = None,
    ) -> int:
        """
        Delete a key, or all keys that start with it.

        Args:
            key: The key, or the prefix.
            prefix: Whether ``key`` is a prefix.
            timeout: The most seconds to take; None for ``read_timeout``.

        Returns:
            How many keys were deleted; if the reply was lost and the operation
            sent again, how many the last attempt still found.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        raw = _raw(key)
        reply = self._call(
            wire.DELETE_RANGE,
            wire.delete_message(raw, wire.prefix_end(raw) if prefix else None),
            f"delete the key {_shown(raw)}",
            timeout,
        )
        with _etcds_own(reply.endpoint, writes=True):
            return int(reply.value.get("deleted", 0))

    def txn(
        self,
        compare: Iterable[wire.Json],
        success: Iterable[wire.Json],
        failure: Iterable[wire.Json] = (),
        *,
        what: str = "run a transaction",
        timeout: float | None = None,
        writes: bool = True,
    ) -> wire.TxnReply:
        """
        Run a transaction.

        Args:
            compare: The comparisons, from ``wire.compare_mod``.
            success: The operations if all of them hold.
            failure: The operations otherwise.
            what: The transaction in words, for errors.
            timeout: The most seconds to take; None for ``read_timeout``.
            writes: Whether it changes anything.

        Returns:
            What it did; ``maybe_earlier`` tells that an identical attempt may have
            been applied before this one.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        reply = self._call(
            wire.TXN, wire.txn(compare, success, failure), what, timeout, writes=writes
        )
        with _etcds_own(reply.endpoint, writes=writes):
            return wire.decode_txn(reply.value, reply.maybe_earlier)

    # -- leases -------------------------------------------------------------------

    def grant(self, ttl: int, lease_id: int, *, timeout: float | None = None) -> int:
        """
        Grant a lease with an identifier of the caller's.

        Args:
            ttl: The time to live in seconds; etcd makes it at least 2.
            lease_id: The identifier, positive and below 2**63. Choose it at
                random: if it exists, an earlier attempt is taken to have won.
            timeout: The most seconds to take; None for ``read_timeout``.

        Returns:
            The seconds that it was granted for, or 0 if it exists.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        try:
            reply = self._call(
                wire.GRANT,
                {"TTL": str(ttl), "ID": str(lease_id)},
                "grant a lease",
                timeout,
            )
        except _LeaseExistsError:
            return 0
        with _etcds_own(reply.endpoint, writes=True):
            return int(reply.value.get("TTL", 0))

    def grant_new(self, ttl: int, *, timeout: float | None = None) -> tuple[int, int]:
        """
        Grant a lease with an identifier of the server's choice.

        Where the reply is lost another one is granted, and nobody renews the first. So,
        unlike with :meth:`grant`, a copy of the request that arrives late can't bring
        back a lease that has expired.

        Args:
            ttl: The time to live in seconds; etcd makes it at least 2.
            timeout: The most seconds to take; None for ``read_timeout``.

        Returns:
            The identifier, and the seconds that it was granted for.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        reply = self._call(wire.GRANT, {"TTL": str(ttl)}, "grant a lease", timeout)
        with _etcds_own(reply.endpoint, writes=True):
            return int(reply.value["ID"]), int(reply.value.get("TTL", 0))

    def keep_alive(self, lease_id: int, *, timeout: float | None = None) -> int:
        """
        Renew a lease.

        Returns:
            The seconds that it was granted for, or 0 if the server does not know it.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        reply = self._call(
            wire.KEEP_ALIVE, {"ID": str(lease_id)}, "renew a lease", timeout
        )
        # An unknown lease is answered without a TTL.
        with _etcds_own(reply.endpoint):
            return max(int((reply.value.get("result") or {}).get("TTL", 0)), 0)

    def revoke(self, lease_id: int, *, timeout: float | None = None) -> None:
        """
        Revoke a lease, and delete what hangs on it.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        with contextlib.suppress(LeaseNotFoundError):
            self._call(wire.REVOKE, {"ID": str(lease_id)}, "revoke a lease", timeout)

    def seconds_left(self, lease_id: int, *, timeout: float | None = None) -> int:
        """
        Return the seconds until a lease expires if nobody renews it; ours.

        Returns:
            The seconds, or 0 if the server does not know the lease.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        return self.time_to_live(lease_id, timeout=timeout)[0]

    def time_to_live(
        self, lease_id: int, *, timeout: float | None = None
    ) -> tuple[int, int]:
        """
        Return the seconds until a lease expires, and those that it was granted for.

        Returns:
            Both, or 0 and 0 if the server does not know the lease.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        reply = self._call(
            wire.TIME_TO_LIVE,
            {"ID": str(lease_id)},
            "read the time to live of a lease",
            timeout,
            writes=False,
        )
        # A lease that has expired, or never was, has -1.
        with _etcds_own(reply.endpoint):
            granted = int(reply.value.get("grantedTTL", 0))
            return max(int(reply.value.get("TTL", 0)), 0), granted

    # -- the server ---------------------------------------------------------------

    def version(self, *, timeout: float | None = None) -> str:
        """
        Return the server's version, such as ``3.5.35``.

        Raises:
            EtcdError: The server can't be reached, or is not an etcd.
        """
        limit = self._read_timeout if timeout is None else timeout
        endpoint, status, body = self._transport.get("/version", timeout=limit)
        try:
            return str(json.loads(body)["etcdserver"])
        except (ValueError, TypeError, KeyError, RecursionError):
            raise EtcdProtocolError(
                f"Could not read the version at {endpoint}: something answered that "
                f"is not etcd (HTTP status {status})."
            ) from None

    def status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """
        Return the status of the member that answers, as etcd words it.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        return self._call(
            wire.STATUS, {}, "read the status", timeout, writes=False
        ).value

    def watch(
        self,
        creates: Sequence[wire.Json],
        *,
        what: str,
        timeout: float | None = None,
    ) -> AbstractContextManager[Watch]:
        """
        Open watches on one stream; see ``watch.open_watch``.
        """
        return open_watch(
            self._transport,
            creates,
            what=what,
            timeout=self._read_timeout if timeout is None else timeout,
        )

    def serves_v2(self, *, timeout: float) -> bool:
        """
        Say whether the server answers on its v2 API.

        Raises:
            EtcdError: The server can't be reached.
        """
        _, status, body = self._transport.get("/v2/keys", timeout=timeout)
        return is_of_v2(status, body)

    def _call(
        self,
        path: str,
        message: wire.Json,
        what: str,
        timeout: float | None,
        *,
        writes: bool = True,
    ) -> Answer[dict[str, Any]]:
        try:
            return self._transport.post(
                path,
                wire.encode(message),
                what=what,
                timeout=self._read_timeout if timeout is None else timeout,
                writes=writes,
                patient=self._patient,
                once=self._once,
            )
        except EtcdReplyError as error:
            for text, kind in _KINDS.items():
                if text in error.text:
                    raise kind(str(error), error.code, error.text) from error
            raise


def is_of_v2(status: int, body: bytes) -> bool:
    """
    Say whether the page ``/v2/keys`` is that of an etcd that serves its v2 API.

    Args:
        status: Its HTTP status.
        body: What it says.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(data, dict):
        return False
    # It may want a user, of those that v2 has.
    return "errorCode" in data or (status == 200 and "node" in data)


class LeaseNotFoundError(EtcdReplyError):
    """
    Raised when the server does not know a lease; nothing was applied.
    """


class _LeaseExistsError(EtcdReplyError):
    """
    Raised when a lease with the identifier exists.
    """


_KINDS: dict[str, type[EtcdReplyError]] = {
    wire.LEASE_NOT_FOUND: LeaseNotFoundError,
    wire.LEASE_EXISTS: _LeaseExistsError,
}


@contextlib.contextmanager
def _etcds_own(endpoint: Endpoint, *, writes: bool = False) -> Iterator[None]:
    """
    Refuse a reply that is JSON, but not etcd's.

    Args:
        endpoint: Who answered.
        writes: Whether what was asked for changes keys.

    Raises:
        EtcdProtocolError: It isn't.
    """
    try:
        yield
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise EtcdProtocolError(
            f"Something answered at {endpoint} that is not etcd's v3 API."
            + writes * " It may or may not have been applied."
        ) from error


def _raw(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else bytes(text)


def _shown(key: bytes) -> str:
    return f"'{key.decode('utf-8', 'backslashreplace')}'"


def _endpoints(
    endpoints: str | Sequence[str | Endpoint], protocol: str | None
) -> list[Endpoint]:
    if isinstance(endpoints, str):
        endpoints = [endpoints]
    found: dict[Endpoint, None] = {}
    for item in endpoints:
        if isinstance(item, Endpoint):
            found[item] = None
        else:
            found.update(dict.fromkeys(parse_endpoints(item, protocol)))
    return list(found) or list(parse_endpoints(None, protocol))
