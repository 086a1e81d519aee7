# SPDX-License-Identifier: BSD-3-Clause
"""
What `etcd-live` keeps in etcd: where it stands, and how it is written.

========================  =======================================  =================
key, below ``…/live/``    value                                    written by
========================  =======================================  =================
``n/<place>/<id>``        a node (JSON); on the node's own lease   that node
``c/closer``              the id of the node that closes rounds;   the node itself
                          on that node's lease
``c/round``               the round (JSON)                         the closer
``c/table``               its number, and the ids in rank order    the closer
``c/closed``              there is one: the run is closed          any node
``c/progress``            how far the next round is (JSON); on     the closer
                          the closer's lease
``names``                 the addresses of the round (JSON)        the closer
``resumed``               changes when a node came back into the   that node
                          running round after its lease was lost
========================  =======================================  =================

What names no lease hangs on that of the run's store, and goes away with it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from .._v3.wire import Entry

__all__ = [
    "NONE_LEFT",
    "Keys",
    "Node",
    "Progress",
    "Round",
    "decode_names",
    "decode_node",
    "decode_progress",
    "decode_round",
    "decode_table",
    "encode_names",
    "encode_node",
    "encode_progress",
    "encode_round",
    "encode_table",
    "node_id",
]

# Before the first round.
NONE_LEFT: Final = -1


class Keys:
    """
    The keys of one run.

    Args:
        run: The key of the run, without a trailing ``/``.
    """

    def __init__(self, run: bytes) -> None:
        directory = run + b"/live/"
        #: What all keys of nodes begin with.
        self.nodes = directory + b"n/"
        #: What the keys begin with that every node watches.
        self.common = directory + b"c/"
        self.closer = self.common + b"closer"
        self.round = self.common + b"round"
        self.table = self.common + b"table"
        self.closed = self.common + b"closed"
        self.progress = self.common + b"progress"
        self.names = directory + b"names"
        self.resumed = directory + b"resumed"

    def place(self, place: str) -> bytes:
        """
        Return what the keys of all nodes of one place begin with.
        """
        return self.nodes + place.encode() + b"/"

    def node(self, place: str, node: str) -> bytes:
        """
        Return the key of a node.
        """
        return self.place(place) + node.encode()


@dataclass(frozen=True)
class Node:
    """
    A node that lives.

    Attributes:
        id: Made at random, anew whenever it registers.
        address: Where its workers can be reached.
        port: The port of the store that it serves if it becomes rank 0.
        pid: Its process.
        slot: Its number among the handlers of that process.
        left: The last round that it has left, or never will be in: it waits for a
            later one.
        order: What it is sorted by before its address; empty for nothing.
        created: The revision that it registered at.
        modified: The revision that it was last written at.
        lease: Its lease.
    """

    id: str
    address: str
    port: int
    pid: int
    slot: int = 0
    left: int = NONE_LEFT
    order: str = ""
    created: int = 0
    modified: int = 0
    lease: int = 0


@dataclass(frozen=True)
class Round:
    """
    A round that has completed.

    Attributes:
        number: Its number; the first is 0.
        members: The ids of its nodes, in the order of their ranks.
        address: Where rank 0 is.
        port: The port of the store that rank 0 serves.
        broken: Whether one of its nodes is gone.
        lost: The addresses of some of those that were gone when it broke.
        lost_count: How many those are.
        waiting: How many nodes wait for room that there is.
        revision: The revision that wrote it last.
    """

    number: int
    members: tuple[str, ...]
    address: str
    port: int
    broken: bool = False
    waiting: int = 0
    revision: int = 0
    lost: tuple[str, ...] = ()
    lost_count: int = 0


@dataclass(frozen=True)
class Progress:
    """
    How far the next round is, for those who wait.

    Attributes:
        joined: How many nodes have joined.
        names: The addresses of some of them.
        missing: The addresses of some that were in the last round and are gone, or
            have not left it.
        missing_count: How many those are.
        seconds: How long the last call takes from now on; None if it has not begun.
        least: The fewest nodes that the round needs; 0 if that was not told.
        most: The most that it may have; 0 likewise.
    """

    joined: int
    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    missing_count: int = 0
    seconds: float | None = None
    least: int = 0
    most: int = 0

    def same_as(self, other: Progress | None) -> bool:
        """
        Say whether it says the same but for the seconds, which go by.
        """
        return other is not None and (
            replace(self, seconds=None) == replace(other, seconds=None)
            and (self.seconds is None) == (other.seconds is None)
        )


def node_id(key: bytes) -> str:
    """
    Return the id in the key of a node.
    """
    return key.rsplit(b"/", 1)[-1].decode(errors="replace")


def encode_node(node: Node) -> bytes:
    """
    Return what stands in etcd for a node.
    """
    value: dict[str, Any] = {
        "address": node.address,
        "port": node.port,
        "pid": node.pid,
        "slot": node.slot,
        "left": node.left,
    }
    if node.order:
        value["order"] = node.order
    return _json(value)


def decode_node(entry: Entry) -> Node:
    """
    Return the node that an entry of etcd stands for.

    Raises:
        ValueError: It stands for none.
    """
    value = _object(entry.value)
    return Node(
        id=node_id(entry.key),
        address=_text(value, "address"),
        port=_number(value, "port"),
        pid=_number(value, "pid"),
        slot=_number(value, "slot"),
        left=_number(value, "left"),
        order=_text(value, "order", ""),
        created=entry.create_revision,
        modified=entry.mod_revision,
        lease=entry.lease,
    )


def encode_round(entry: Round) -> bytes:
    """
    Return what stands in etcd for a round, its members apart.
    """
    value: dict[str, Any] = {
        "round": entry.number,
        "state": "broken" if entry.broken else "up",
        "nodes": len(entry.members),
        "address": entry.address,
        "port": entry.port,
        "waiting": entry.waiting,
    }
    if entry.broken:
        value |= {"lost": entry.lost, "lost_count": entry.lost_count}
    return _json(value)


def decode_round(entry: Entry, table: bytes) -> Round | None:
    """
    Return the round that two entries of etcd stand for.

    Args:
        entry: The round.
        table: Its members.

    Returns:
        None if they are not of the same round.

    Raises:
        ValueError: They stand for nothing.
    """
    value = _object(entry.value)
    number, members = decode_table(table)
    if number != _number(value, "round"):
        return None
    return Round(
        number=number,
        members=members,
        address=_text(value, "address"),
        port=_number(value, "port"),
        broken=_text(value, "state") != "up",
        waiting=_number(value, "waiting"),
        revision=entry.mod_revision,
        lost=_texts(value, "lost") if "lost" in value else (),
        lost_count=_number(value, "lost_count") if "lost" in value else 0,
    )


def encode_table(entry: Round) -> bytes:
    """
    Return what stands in etcd for the members of a round.
    """
    return " ".join((str(entry.number), *entry.members)).encode()


def decode_table(value: bytes) -> tuple[int, tuple[str, ...]]:
    """
    Return the number of a round and its members.

    Raises:
        ValueError: There are none.
    """
    number, *members = value.decode().split(" ")
    return int(number), tuple(members)


def encode_progress(progress: Progress) -> bytes:
    """
    Return what stands in etcd for how far a round is.
    """
    return _json(
        {
            "joined": progress.joined,
            "names": progress.names,
            "missing": progress.missing,
            "missing_count": progress.missing_count,
            "seconds": progress.seconds,
            "least": progress.least,
            "most": progress.most,
        }
    )


def decode_progress(value: bytes) -> Progress:
    """
    Return how far a round is.

    Raises:
        ValueError: It says nothing.
    """
    found = _object(value)
    seconds = found.get("seconds")
    return Progress(
        joined=_number(found, "joined"),
        names=_texts(found, "names"),
        missing=_texts(found, "missing"),
        missing_count=_number(found, "missing_count"),
        seconds=float(seconds) if isinstance(seconds, int | float) else None,
        least=_number({"least": 0, **found}, "least"),
        most=_number({"most": 0, **found}, "most"),
    )


def encode_names(names: list[str]) -> bytes:
    """
    Return what stands in etcd for the addresses of a round's nodes.
    """
    return _json(names)


def decode_names(value: bytes) -> list[str]:
    """
    Return the addresses of a round's nodes; none if they can't be read.
    """
    try:
        names = json.loads(value)
    except ValueError:
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _object(value: bytes) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - it is data
    return found


def _number(value: dict[str, Any], name: str) -> int:
    number = value.get(name)
    if type(number) is not int:
        raise ValueError(f"'{name}' is no number")
    return number


def _text(value: dict[str, Any], name: str, default: str | None = None) -> str:
    text = value.get(name, default)
    if not isinstance(text, str):
        raise ValueError(f"'{name}' is no text")  # noqa: TRY004 - it is data
    return text


def _texts(value: dict[str, Any], name: str) -> tuple[str, ...]:
    texts = value.get(name)
    if not isinstance(texts, list):
        raise ValueError(f"'{name}' is no list")  # noqa: TRY004 - it is data
    return tuple(str(text) for text in texts)
