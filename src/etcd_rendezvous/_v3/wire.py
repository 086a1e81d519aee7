# SPDX-License-Identifier: BSD-3-Clause
"""
The bodies and replies of etcd's v3 JSON gateway, built and parsed in one place.

etcd ignores unknown request fields in silence: a misspelt ``compare`` turns a
compare-and-swap into an unconditional write. So no other module spells a field.
Keys and values travel in base64 (standard alphabet, padded: 3.5 and older refuse
the rest), 64-bit integers as strings, and false, zero and empty fields are absent
from replies.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = [
    "Entry",
    "RangeReply",
    "TxnReply",
    "WatchMessage",
    "decode_error",
    "decode_range",
    "decode_txn",
    "decode_watch",
    "encode",
    "op_delete",
    "op_never_done",
    "op_put",
    "op_range",
    "op_txn",
    "prefix_end",
    "txn",
    "watch_create",
]

Json = dict[str, Any]

RANGE: Final = "/v3/kv/range"
PUT: Final = "/v3/kv/put"
TXN: Final = "/v3/kv/txn"
DELETE_RANGE: Final = "/v3/kv/deleterange"
GRANT: Final = "/v3/lease/grant"
REVOKE: Final = "/v3/lease/revoke"
KEEP_ALIVE: Final = "/v3/lease/keepalive"
TIME_TO_LIVE: Final = "/v3/lease/timetolive"
WATCH: Final = "/v3/watch"
AUTHENTICATE: Final = "/v3/auth/authenticate"
STATUS: Final = "/v3/maintenance/status"

LEASE_NOT_FOUND: Final = "requested lease not found"
LEASE_EXISTS: Final = "lease already exists"
COMPACTED: Final = "required revision has been compacted"
AUTH_IS_OFF: Final = "authentication is not enabled"
WRONG_PASSWORD: Final = "authentication failed, invalid user ID or password"  # noqa: S105


@dataclass(frozen=True)
class Entry:
    """
    A key with its value, as etcd stored it.

    Attributes:
        key: The key.
        value: The value; empty where only keys were asked for.
        create_revision: The revision that created the key.
        mod_revision: The revision that last changed it.
        version: How often it was written since it was created.
        lease: The lease that it hangs on, 0 for none.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True)
class RangeReply:
    """
    What a range found.

    Attributes:
        entries: The keys that were asked for and passed the filters.
        count: How many keys there are, whatever the filters and the limit.
    """

    entries: list[Entry]
    count: int


@dataclass(frozen=True)
class TxnReply:
    """
    What a transaction did.

    Attributes:
        succeeded: Whether its comparisons held.
        revision: The store's revision after it.
        ranges: The replies of the range operations of the branch that ran, in
            their order.
        maybe_earlier: Whether an earlier, identical attempt may have been applied
            before the one that this is the reply of.
    """

    succeeded: bool
    revision: int
    ranges: list[RangeReply]
    maybe_earlier: bool = False


@dataclass(frozen=True)
class Event:
    """
    One change of one key.

    Attributes:
        deleted: Whether the key was deleted or expired.
        entry: The key after the change; without value if deleted.
    """

    deleted: bool
    entry: Entry


@dataclass(frozen=True)
class WatchMessage:
    """
    One message of a watch stream.

    Attributes:
        watch_id: Which watch of the stream it is about.
        created: Whether it confirms that the watch is there.
        canceled: Whether the server has ended the watch, or refused it.
        compact_revision: The oldest revision still there, if that is why.
        revision: The store's revision.
        events: The changes.
        cancel_reason: The server's words on why it ended the watch, if it had any.
    """

    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    revision: int
    events: list[Event]
    cancel_reason: str = ""


def encode(message: Mapping[str, Any]) -> bytes:
    """
    Return a message as the body of a request.
    """
    return json.dumps(message, separators=(",", ":")).encode()


def _b64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def prefix_end(prefix: bytes) -> bytes:
    """
    Return the end of the range of all keys that start with a prefix.
    """
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b"\0"
    return stripped[:-1] + bytes([stripped[-1] + 1])


def range_message(
    key: bytes,
    end: bytes | None = None,
    *,
    keys_only: bool = False,
    count_only: bool = False,
    limit: int = 0,
    min_mod_revision: int = 0,
    max_mod_revision: int = 0,
    max_create_revision: int = 0,
    newest_first: bool = False,
    oldest_first: bool = False,
    revision: int = 0,
) -> Json:
    """
    Return the message of a range.

    Args:
        key: The key, or the first of the range.
        end: The key after the last of the range.
        keys_only: Leave the values out; etcd 3.7 then leaves the leases out, too.
        count_only: Leave everything but the count out.
        limit: The most entries to return, 0 for all.
        min_mod_revision: Leave out keys that were last changed before.
        max_mod_revision: Leave out keys that were changed later.
        max_create_revision: Leave out keys that were created later.
        newest_first: Sort by the revision of creation, the newest first.
        oldest_first: Sort by the revision of creation, the oldest first.
        revision: Read the store as it was then, 0 for now.
    """
    message: Json = {"key": _b64(key)}
    if end is not None:
        message["range_end"] = _b64(end)
    if keys_only:
        message["keys_only"] = True
    if count_only:
        message["count_only"] = True
    if limit:
        message["limit"] = str(limit)
    if min_mod_revision:
        message["min_mod_revision"] = str(min_mod_revision)
    if max_mod_revision:
        message["max_mod_revision"] = str(max_mod_revision)
    if max_create_revision:
        message["max_create_revision"] = str(max_create_revision)
    if newest_first or oldest_first:
        message["sort_order"] = "DESCEND" if newest_first else "ASCEND"
        message["sort_target"] = "CREATE"
    if revision:
        message["revision"] = str(revision)
    return message


def put_message(key: bytes, value: bytes, lease: int = 0) -> Json:
    """
    Return the message of a put.
    """
    message: Json = {"key": _b64(key), "value": _b64(value)}
    if lease:
        message["lease"] = str(lease)
    return message


def touch_message(key: bytes, lease: int = 0) -> Json:
    """
    Return the message of a put that leaves the value of a key as it is.

    The key must exist. Its version is one more afterwards.
    """
    message: Json = {"key": _b64(key), "ignore_value": True}
    if lease:
        message["lease"] = str(lease)
    return message


def delete_message(key: bytes, end: bytes | None = None) -> Json:
    """
    Return the message of a delete.
    """
    message: Json = {"key": _b64(key)}
    if end is not None:
        message["range_end"] = _b64(end)
    return message


def op_range(message: Json) -> Json:
    """
    Return a range as an operation of a transaction.
    """
    return {"request_range": message}


def op_put(message: Json) -> Json:
    """
    Return a put as an operation of a transaction.
    """
    return {"request_put": message}


def op_delete(message: Json) -> Json:
    """
    Return a delete as an operation of a transaction.
    """
    return {"request_delete_range": message}


def op_never_done(key: bytes) -> Json:
    """
    Return what makes a transaction that only reads one that writes, for etcd.

    It stands in the branch for comparisons that failed, of a transaction that compares
    nothing. Such a one is not given up (see ``releases``). No quota refuses it, since a
    delete needs no room.

    Args:
        key: A key that the user may write.
    """
    return op_delete(delete_message(key))


def op_txn(message: Json) -> Json:
    """
    Return a transaction as an operation of a transaction.
    """
    return {"request_txn": message}


def changes(operations: Iterable[Json]) -> Iterator[tuple[bytes, bytes, int, bool]]:
    """
    Yield what operations of a transaction change, each on a single key.

    Yields:
        The key, its new value, its lease, and whether it is deleted.
    """
    for operation in operations:
        put = operation.get("request_put")
        delete = operation.get("request_delete_range")
        if put is not None:
            value = b64decode(put["value"])
            yield b64decode(put["key"]), value, int(put.get("lease", 0)), False
        elif delete is not None:
            yield b64decode(delete["key"]), b"", 0, True


def compare_mod(key: bytes, mod_revision: int) -> Json:
    """
    Return the comparison that a key was last changed by a revision.

    Args:
        key: The key.
        mod_revision: The revision, 0 for an absent key.
    """
    return {
        "key": _b64(key),
        "target": "MOD",
        "result": "EQUAL",
        "mod_revision": str(mod_revision),
    }


def compare_create(key: bytes, create_revision: int, end: bytes | None = None) -> Json:
    """
    Return the comparison that a key was created by a revision.

    Args:
        key: The key, or the first of a range.
        create_revision: The revision, 0 for an absent key.
        end: The key after the last of the range. It holds for a range if it holds for
            every key that is there.
    """
    compare = {
        "key": _b64(key),
        "target": "CREATE",
        "result": "EQUAL",
        "create_revision": str(create_revision),
    }
    if end is not None:
        compare["range_end"] = _b64(end)
    return compare


def compare_lease(key: bytes, lease: int) -> Json:
    """
    Return the comparison that a key hangs on a lease.

    Args:
        key: The key.
        lease: The lease, 0 for none.
    """
    return {
        "key": _b64(key),
        "target": "LEASE",
        "result": "EQUAL",
        "lease": str(lease),
    }


def compare_between(key: bytes, low: bytes, high: bytes) -> list[Json]:
    """
    Return the comparisons that a key's value is above one and below another.

    They don't hold where there is no key.
    """
    return [
        {"key": _b64(key), "target": "VALUE", "result": result, "value": _b64(value)}
        for result, value in (("GREATER", low), ("LESS", high))
    ]


def txn(
    compare: Iterable[Json], success: Iterable[Json], failure: Iterable[Json]
) -> Json:
    """
    Return the message of a transaction.
    """
    return {
        "compare": list(compare),
        "success": list(success),
        "failure": list(failure),
    }


def watch_create(
    key: bytes,
    end: bytes | None = None,
    *,
    watch_id: int,
    start_revision: int = 0,
    no_puts: bool = False,
    no_deletes: bool = False,
) -> Json:
    """
    Return the message that opens one watch of a stream.

    Args:
        key: The key, or the first of the range.
        end: The key after the last of the range.
        watch_id: The number that the watch's messages carry, at least 1.
        start_revision: The first revision whose changes are told; 0 for the
            changes from now on. A revision that is not above the store's costs up
            to 100 ms.
        no_puts: Tell deletions only.
        no_deletes: Tell puts only.
    """
    create: Json = {"key": _b64(key), "watch_id": str(watch_id)}
    if end is not None:
        create["range_end"] = _b64(end)
    if start_revision:
        create["start_revision"] = str(start_revision)
    filters = [
        name for name, on in (("NOPUT", no_puts), ("NODELETE", no_deletes)) if on
    ]
    if filters:
        create["filters"] = filters
    return {"create_request": create}


def header_revision(reply: Mapping[str, Any]) -> int:
    """
    Return the store's revision that a reply was made at; etcd's is never 0.

    Raises:
        KeyError, TypeError, ValueError: The reply is not etcd's.
    """
    return int(reply["header"]["revision"])


def _decode_entry(raw: Mapping[str, Any]) -> Entry:
    return Entry(
        key=b64decode(raw.get("key", "")),
        value=b64decode(raw.get("value", "")),
        create_revision=int(raw.get("create_revision", 0)),
        mod_revision=int(raw.get("mod_revision", 0)),
        version=int(raw.get("version", 0)),
        lease=int(raw.get("lease", 0)),
    )


def decode_range(reply: Mapping[str, Any]) -> RangeReply:
    """
    Parse the reply of a range.
    """
    return RangeReply(
        entries=[_decode_entry(raw) for raw in reply.get("kvs", ())],
        count=int(reply.get("count", 0)),
    )


def decode_txn(reply: Mapping[str, Any], maybe_earlier: bool = False) -> TxnReply:
    """
    Parse the reply of a transaction.
    """
    ranges = []
    for response in reply.get("responses", ()):
        found = response.get("response_range")
        if found is not None:
            ranges.append(decode_range(found))
    return TxnReply(
        succeeded=bool(reply.get("succeeded", False)),
        revision=header_revision(reply),
        ranges=ranges,
        maybe_earlier=maybe_earlier,
    )


def decode_watch(message: Mapping[str, Any]) -> WatchMessage:
    """
    Parse one message of a watch stream.
    """
    result = message.get("result") or {}
    return WatchMessage(
        watch_id=int(result.get("watch_id", 0)),
        created=bool(result.get("created", False)),
        canceled=bool(result.get("canceled", False)),
        compact_revision=int(result.get("compact_revision", 0)),
        revision=int((result.get("header") or {}).get("revision", 0)),
        events=[
            Event(
                deleted=raw.get("type") == "DELETE",
                entry=_decode_entry(raw.get("kv") or {}),
            )
            for raw in result.get("events", ())
        ],
        cancel_reason=str(result.get("cancel_reason", "")),
    )


def decode_error(data: object) -> tuple[int, str] | None:
    """
    Find etcd's error in a parsed reply or stream message.

    The shapes differ by version: ``{"error", "code", "message"}`` (3.4, 3.5),
    ``{"code", "message"}`` (3.6, 3.7, and some builds of 3.5), and inside streams
    ``{"error": {"grpc_code", "http_code", "message"}}`` or
    ``{"error": {"code", "message"}}``.

    Args:
        data: What JSON gave.

    Returns:
        The gRPC code and the message, or None where there is no error.
    """
    if not isinstance(data, dict):
        return None
    error = data.get("error")
    if isinstance(error, dict):
        code = error.get("grpc_code", error.get("code", 2))
        text = error.get("message", "")
    elif "code" in data and ("message" in data or error is not None):
        code = data["code"]
        text = data.get("message") or error or ""
    elif isinstance(error, str):
        code, text = 2, error
    else:
        return None
    return (code if isinstance(code, int) else 2), str(text)
