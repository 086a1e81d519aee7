# SPDX-License-Identifier: BSD-3-Clause
"""
The transactions of `etcd-live`.

Each is what one request does, and each may be sent twice: what it compares is no
longer so once it was applied, and the reply of the second shows what the first did.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from .._v3 import wire
from .records import Keys, Node, Progress, Round
from .records import encode_names as _names
from .records import encode_node as _node
from .records import encode_progress as _progress
from .records import encode_round as _round
from .records import encode_table as _table

__all__ = [
    "Fence",
    "Request",
    "close",
    "complete",
    "has_left",
    "leave",
    "load",
    "mark",
    "register",
    "reopen",
    "resign",
    "resume",
    "say_progress",
    "take_office",
    "told",
]


class Request(NamedTuple):
    """
    A transaction.

    Attributes:
        compare: Its comparisons.
        success: What it does if they hold.
        failure: What it does otherwise.
    """

    compare: list[wire.Json]
    success: list[wire.Json]
    failure: list[wire.Json]


def register(keys: Keys, place: str, node: Node) -> Request:
    """
    Register a node, and make it the closer if there is none, unless the run is closed.

    Either branch reads the nodes of the place, and then the common keys: the node is
    registered if it is among the former.
    """
    key = keys.node(place, node.id)
    read = _read(keys, place)
    return Request(
        [wire.compare_create(keys.closed, 0), wire.compare_create(key, 0)],
        [*_put_node_and_take_office(keys, key, node), *read],
        read,
    )


def reopen(keys: Keys, place: str, node: Node) -> Request:
    """
    Register a node in a run that is closed, if no node lives, and open it again.

    It reads what ``register`` does.
    """
    key = keys.node(place, node.id)
    read = _read(keys, place)
    return Request(
        [wire.compare_create(keys.nodes, 0, wire.prefix_end(keys.nodes))],
        [
            wire.op_delete(wire.delete_message(keys.closed)),
            *_put_node_and_take_office(keys, key, node),
            *read,
        ],
        read,
    )


def resume(
    keys: Keys, place: str, node: Node, round_revision: int, run_lease: int
) -> Request:
    """
    Register a node again that is in the running round, and has lost its lease.

    It fails if the round was written since, as it is when it broke. ``complete`` and
    ``mark`` fail if they were decided on before this. It reads what ``register`` does.

    Args:
        keys: The keys of the run.
        place: Where the node runs.
        node: The node, with its new lease.
        round_revision: The revision that the round is known to be written at.
        run_lease: The lease of the run.
    """
    key = keys.node(place, node.id)
    note = wire.put_message(keys.resumed, node.id.encode(), run_lease)
    read = _read(keys, place)
    return Request(
        [wire.compare_mod(keys.round, round_revision), wire.compare_create(key, 0)],
        [*_put_node_and_take_office(keys, key, node), wire.op_put(note), *read],
        read,
    )


def _put_node_and_take_office(keys: Keys, key: bytes, node: Node) -> list[wire.Json]:
    office = wire.put_message(keys.closer, node.id.encode(), node.lease)
    return [
        wire.op_put(wire.put_message(key, _node(node), node.lease)),
        wire.op_txn(
            wire.txn([wire.compare_create(keys.closer, 0)], [wire.op_put(office)], [])
        ),
    ]


def _read(keys: Keys, place: str) -> list[wire.Json]:
    # With the values: of keys alone etcd 3.7 does not tell the leases.
    return [_range(keys.place(place)), _range(keys.common)]


def _range(prefix: bytes) -> wire.Json:
    return wire.op_range(wire.range_message(prefix, wire.prefix_end(prefix)))


def told(request: Request, revision: int) -> list[wire.Event]:
    """
    Return what a watch will tell of a transaction that has succeeded.

    Only of its puts and deletes of single keys, and only what they have in common with
    what the watch tells: keys, values, leases, and the revision of the change.

    Args:
        request: The transaction.
        revision: The revision that it was applied at.
    """
    return [
        wire.Event(deleted, wire.Entry(key, value, revision, revision, 1, lease))
        for key, value, lease, deleted in wire.changes(request.success)
    ]


def take_office(keys: Keys, key: bytes, node: Node) -> Request:
    """
    Become the closer, if there is none. On failure it reads the common keys.

    Args:
        keys: The keys of the run.
        key: The node's own.
        node: The node.
    """
    office = wire.put_message(keys.closer, node.id.encode(), node.lease)
    return Request(
        [
            wire.compare_create(keys.closer, 0),
            wire.compare_create(key, node.created),
        ],
        [wire.op_put(office)],
        [_range(keys.common)],
    )


def resign(keys: Keys, office: int) -> Request:
    """
    Be the closer no longer.

    Args:
        keys: The keys of the run.
        office: The revision that made the node the closer.
    """
    return Request(
        [wire.compare_mod(keys.closer, office)],
        [wire.op_delete(wire.delete_message(keys.closer))],
        [],
    )


def load(keys: Keys) -> Request:
    """
    Read what the closer decides on.

    Its ranges are the nodes, the common keys, the names, and the last return.
    """
    return Request(
        [],
        [
            _range(keys.nodes),
            _range(keys.common),
            wire.op_range(wire.range_message(keys.names)),
            wire.op_range(wire.range_message(keys.resumed, keys_only=True)),
        ],
        # It is rare enough to cost every etcd what old ones need.
        [wire.op_never_done(keys.names)],
    )


class Fence(NamedTuple):
    """
    What must still be so when the closer writes.

    Attributes:
        round: The revision of the round that was decided on, 0 for none.
        office: The revision that made the node the closer.
        resumed: The revision of the last return into the round, 0 for none.
    """

    round: int
    office: int
    resumed: int

    def compare(self, keys: Keys) -> list[wire.Json]:
        """
        Return the comparisons.
        """
        return [
            wire.compare_mod(keys.round, self.round),
            wire.compare_mod(keys.closer, self.office),
            wire.compare_mod(keys.resumed, self.resumed),
        ]


def complete(
    keys: Keys, fence: Fence, new: Round, names: list[str], run_lease: int
) -> Request:
    """
    Complete a round, unless the run is closed.

    Args:
        keys: The keys of the run.
        fence: What was decided on.
        new: The round.
        names: The addresses of its nodes, in the order of their ranks.
        run_lease: The lease of the run.
    """
    values = {
        keys.round: _round(new),
        keys.table: _table(new),
        keys.names: _names(names),
    }
    return Request(
        [*fence.compare(keys), wire.compare_create(keys.closed, 0)],
        [
            *(
                wire.op_put(wire.put_message(key, value, run_lease))
                for key, value in values.items()
            ),
            wire.op_delete(wire.delete_message(keys.progress)),
        ],
        [],
    )


def mark(keys: Keys, fence: Fence, marked: Round, run_lease: int) -> Request:
    """
    Write into a round what has become of it.
    """
    put = wire.put_message(keys.round, _round(marked), run_lease)
    return Request(fence.compare(keys), [wire.op_put(put)], [])


def say_progress(
    keys: Keys, office: int, progress: Progress, own_lease: int
) -> Request:
    """
    Tell those who wait how far the next round is.
    """
    put = wire.put_message(keys.progress, _progress(progress), own_lease)
    return Request([wire.compare_mod(keys.closer, office)], [wire.op_put(put)], [])


def leave(keys: Keys, place: str, node: Node) -> Request:
    """
    Leave a round, and wait for the next one; ``has_left`` says what became of it.

    It compares what the node has written last: a copy that arrives late, after the node
    has left a later round, must not take that back.

    Args:
        keys: The keys of the run.
        place: Where the node runs.
        node: The node as it is to be, with ``modified`` as it was; 0 is not compared.
    """
    key = keys.node(place, node.id)
    put = wire.put_message(key, _node(node), node.lease)
    compare = [wire.compare_create(key, node.created)]
    if node.modified:
        compare.append(wire.compare_mod(key, node.modified))
    read = wire.op_range(wire.range_message(key))
    return Request(compare, [wire.op_put(put)], [read])


def has_left(reply: wire.TxnReply, node: Node) -> Node | None:
    """
    Say what the reply of ``leave`` tells.

    Args:
        reply: The reply.
        node: The node as it was to be.

    Returns:
        The node as it is; None if it is out.
    """
    if reply.succeeded:
        return replace(node, modified=reply.revision)
    for entry in reply.ranges[0].entries:
        # An earlier copy has won.
        if entry.create_revision == node.created and entry.value == _node(node):
            return replace(node, modified=entry.mod_revision)
    return None


def close(
    keys: Keys, key: bytes | None, node: Node, round_revision: int, run_lease: int
) -> Request:
    """
    Close the run. On failure it reads the common keys: it may have been closed before.

    It compares what ends with the run, so that a copy that arrives late does not close
    one that was opened again.

    Args:
        keys: The keys of the run.
        key: The node's own; None if it is not registered.
        node: The node.
        round_revision: The revision of the last round, 0 for none; compared if the node
            is not registered.
        run_lease: The lease of the run.
    """
    put = wire.put_message(keys.closed, node.id.encode(), run_lease)
    own = (
        wire.compare_mod(keys.round, round_revision)
        if key is None
        else wire.compare_create(key, node.created)
    )
    return Request(
        [wire.compare_create(keys.closed, 0), own],
        [wire.op_put(put)],
        [_range(keys.common)],
    )
