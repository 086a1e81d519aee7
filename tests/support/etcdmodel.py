# SPDX-License-Identifier: BSD-3-Clause

"""
etcd in memory: it takes the messages that `wire` builds, and answers as etcd does.

    model = EtcdModel()
    watch = model.watch(wire.watch_create(b"a/", b"a0", watch_id=1))
    reply = wire.decode_txn(model.post(wire.TXN, wire.txn([], [put], [])))
    events = wire.decode_watch(watch.messages.popleft()).events

It knows what `etcd-live` uses: transactions with nested ones, ranges, puts, deletes,
leases, and watches from now on. A lease expires when the test
says so. `tests/etcd/test_live_model.py` holds it against real servers.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from etcd_rendezvous._v3 import wire

Json = dict[str, Any]


class RefusedError(Exception):
    """
    etcd's refusal.

    Attributes:
        text: Its words.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass(frozen=True)
class Commit:
    """
    What one request has changed.

    Attributes:
        revision: The store's revision since.
        before: All entries as they were.
        events: The changes, in their order.
    """

    revision: int
    before: dict[bytes, wire.Entry]
    events: list[wire.Event]


@dataclass(eq=False)
class ModelWatch:
    """
    An open watch: messages as the gateway streams them, the oldest first.
    """

    key: bytes
    end: bytes | None
    watch_id: str
    messages: deque[Json] = field(default_factory=deque)


class EtcdModel:
    """
    One etcd.

    Args:
        on_commit: Called after each change.
    """

    def __init__(self, on_commit: Callable[[Commit], None] | None = None) -> None:
        self.revision = 1
        self.entries: dict[bytes, wire.Entry] = {}
        self.leases: set[int] = set()
        self.watches: list[ModelWatch] = []
        self._next_lease = 1_000_000
        self._on_commit = on_commit
        self._events: list[wire.Event] = []

    # -- requests ----------------------------------------------------------------

    def post(self, path: str, message: Json) -> Json:
        """
        Answer a request.

        Raises:
            RefusedError: etcd would refuse it; nothing has changed.
        """
        return self._PATHS[path](self, message)

    def watch(self, message: Json) -> ModelWatch:
        """
        Open a watch of what changes from now on.
        """
        create = message["create_request"]
        watch = ModelWatch(*_span(create), create["watch_id"])
        watch.messages.append(self._watch_message(watch, created=True))
        self.watches.append(watch)
        return watch

    def end_watch(self, watch: ModelWatch) -> None:
        """
        Break a watch off; what it was not yet read of is lost.
        """
        self.watches.remove(watch)
        watch.messages.clear()

    def expire(self, *leases: int) -> None:
        """
        Let leases expire, one after the other.
        """
        for lease in leases:
            self._end_lease(lease)

    def _txn(self, message: Json) -> Json:
        taken = self._choose(message)
        self._check_leases(taken)
        before = dict(self.entries)
        reply = self._run(taken)
        self._commit(before)
        # The replies within one have no header of their own.
        return {"header": self._header(), **reply}

    def _grant(self, message: Json) -> Json:
        lease = int(message.get("ID", 0))
        if not lease:
            self._next_lease += 1
            lease = self._next_lease
        if lease in self.leases:
            raise RefusedError(wire.LEASE_EXISTS)
        self.leases.add(lease)
        return {"header": self._header(), "ID": str(lease), "TTL": message["TTL"]}

    def _revoke(self, message: Json) -> Json:
        lease = int(message["ID"])
        if lease not in self.leases:
            raise RefusedError(wire.LEASE_NOT_FOUND)
        self._end_lease(lease)
        return {"header": self._header()}

    def _keep_alive(self, message: Json) -> Json:
        result = {"header": self._header(), "ID": message["ID"]}
        if int(message["ID"]) in self.leases:
            result["TTL"] = "10"
        return {"result": result}

    def _read(self, message: Json) -> Json:
        return {"header": self._header(), **self._range(message)}

    _PATHS = {  # noqa: RUF012
        wire.TXN: _txn,
        wire.RANGE: _read,
        wire.GRANT: _grant,
        wire.REVOKE: _revoke,
        wire.KEEP_ALIVE: _keep_alive,
    }

    # -- transactions ------------------------------------------------------------

    def _choose(self, txn: Json) -> tuple[bool, list[tuple[str, Any]]]:
        """
        Choose the branches. All comparisons are made before anything is written.
        """
        holds = all(map(self._holds, txn.get("compare", ())))
        ops = []
        for op in txn.get("success" if holds else "failure", ()):
            ((kind, message),) = op.items()
            ops.append(
                (kind, self._choose(message) if kind == "request_txn" else message)
            )
        return holds, ops

    def _holds(self, compare: Json) -> bool:
        assert compare["result"] == "EQUAL"
        name, attribute = {
            "CREATE": ("create_revision", "create_revision"),
            "MOD": ("mod_revision", "mod_revision"),
            "LEASE": ("lease", "lease"),
        }[compare["target"]]
        wanted = int(compare.get(name, 0))
        key, end = _span(compare)
        found = self._select(key, end)
        if not found and end is None:
            return wanted == 0
        return all(getattr(entry, attribute) == wanted for entry in found)

    def _check_leases(self, taken: tuple[bool, list[tuple[str, Any]]]) -> None:
        for kind, message in taken[1]:
            if kind == "request_txn":
                self._check_leases(message)
            elif kind == "request_put":
                lease = int(message.get("lease", 0))
                if lease and lease not in self.leases:
                    raise RefusedError(wire.LEASE_NOT_FOUND)

    def _run(self, taken: tuple[bool, list[tuple[str, Any]]]) -> Json:
        succeeded, ops = taken
        responses = []
        for kind, message in ops:
            if kind == "request_txn":
                responses.append({"response_txn": self._run(message)})
            elif kind == "request_put":
                self._put(message)
                responses.append({"response_put": {}})
            elif kind == "request_delete_range":
                for entry in self._select(*_span(message)):
                    self._delete(entry)
                responses.append({"response_delete_range": {}})
            else:
                responses.append({"response_range": self._range(message)})
        reply: Json = {"responses": responses} if responses else {}
        if succeeded:
            reply["succeeded"] = True
        return reply

    def _range(self, message: Json) -> Json:
        found = self._select(*_span(message))
        if not found:
            return {}
        keys_only = message.get("keys_only", False)
        kvs = [_encode_entry(entry, value=not keys_only) for entry in found]
        return {"kvs": kvs, "count": str(len(kvs))}

    def _select(self, key: bytes, end: bytes | None) -> list[wire.Entry]:
        if end is None:
            entry = self.entries.get(key)
            return [entry] if entry else []
        return [self.entries[one] for one in sorted(self.entries) if key <= one < end]

    # -- changes -----------------------------------------------------------------

    def _put(self, message: Json) -> None:
        key, revision = _bytes(message["key"]), self.revision + 1
        old = self.entries.get(key)
        entry = wire.Entry(
            key=key,
            value=_bytes(message.get("value", "")),
            create_revision=old.create_revision if old else revision,
            mod_revision=revision,
            version=old.version + 1 if old else 1,
            lease=int(message.get("lease", 0)),
        )
        self.entries[key] = entry
        self._events.append(wire.Event(deleted=False, entry=entry))

    def _delete(self, entry: wire.Entry) -> None:
        del self.entries[entry.key]
        gone = wire.Entry(entry.key, b"", 0, self.revision + 1, 0, 0)
        self._events.append(wire.Event(deleted=True, entry=gone))

    def _end_lease(self, lease: int) -> None:
        before = dict(self.entries)
        self.leases.discard(lease)
        for key in sorted(self.entries):
            if self.entries[key].lease == lease:
                self._delete(self.entries[key])
        self._commit(before)

    def _commit(self, before: dict[bytes, wire.Entry]) -> None:
        if not self._events:
            return
        self.revision += 1
        commit = Commit(self.revision, before, self._events)
        self._events = []
        for watch in self.watches:
            events = [
                event for event in commit.events if _within(watch, event.entry.key)
            ]
            if events:
                watch.messages.append(
                    self._watch_message(watch, events=list(map(_encode_event, events)))
                )
        if self._on_commit:
            self._on_commit(commit)

    def _header(self) -> Json:
        return {"revision": str(self.revision)}

    def _watch_message(self, watch: ModelWatch, **fields: Any) -> Json:
        header = self._header()
        return {"result": {"header": header, "watch_id": watch.watch_id, **fields}}


def _span(message: Json) -> tuple[bytes, bytes | None]:
    end = message.get("range_end")
    return _bytes(message["key"]), None if end is None else _bytes(end)


def _within(watch: ModelWatch, key: bytes) -> bool:
    if watch.end is None:
        return key == watch.key
    return watch.key <= key < watch.end


@lru_cache(maxsize=4096)
def _bytes(text: str) -> bytes:
    return b64decode(text)


@lru_cache(maxsize=4096)
def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _encode_event(event: wire.Event) -> Json:
    # A put is the default, which JSON leaves out.
    raw: Json = {"kv": _encode_entry(event.entry)}
    if event.deleted:
        raw["type"] = "DELETE"
    return raw


def _encode_entry(entry: wire.Entry, *, value: bool = True) -> Json:
    raw: Json = {"key": _text(entry.key), "mod_revision": str(entry.mod_revision)}
    for name in ("create_revision", "version", "lease"):
        number = getattr(entry, name)
        if number:
            raw[name] = str(number)
    if value and entry.value:
        raw["value"] = _text(entry.value)
    return raw
