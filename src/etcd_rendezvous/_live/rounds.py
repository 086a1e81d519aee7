# SPDX-License-Identifier: BSD-3-Clause
"""
The decisions: what the closer does next, and where a node stands.

Pure functions of what is known and of the time. What is known may be old: who has left
a round never comes back into it, and who is gone does so only in a way that makes a
decision taken meanwhile fail (see ``requests.resume``), so that an old view waits too
long at worst; it never completes a round too early.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum, auto

from .._outages import MOST_NAMES
from .records import NONE_LEFT, Node, Progress, Round

__all__ = [
    "Action",
    "Decision",
    "Roster",
    "Rules",
    "Snapshot",
    "Standing",
    "decide",
    "natural",
    "nodes_waiting",
    "progress",
    "rank_key",
    "standing",
    "with_names",
]


@dataclass(frozen=True)
class Rules:
    """
    What a round is to be like. Times are in seconds.

    Attributes:
        min_nodes: The fewest nodes of a round.
        max_nodes: The most.
        last_call: How long more nodes are waited for once there are enough.
        rejoin_last_call: The same, after a round that has lost a node.
    """

    min_nodes: int
    max_nodes: int
    last_call: float
    rejoin_last_call: float


@dataclass(frozen=True)
class Snapshot:
    """
    What is known of a run.

    Attributes:
        nodes: The nodes that live, by id.
        round: The last round that has completed.
        closed: Whether the run is closed.
    """

    nodes: Mapping[str, Node]
    round: Round | None = None
    closed: bool = False

    @property
    def number(self) -> int:
        """
        The number of the last round.
        """
        return self.round.number if self.round else NONE_LEFT

    @property
    def gone(self) -> AbstractSet[str]:
        """
        The ids of those in the last round that live no more.
        """
        members = self.round.members if self.round else ()
        return {member for member in members if member not in self.nodes}

    @property
    def inside(self) -> AbstractSet[str]:
        """
        The ids of those that live, and have not left the last round.
        """
        members = self.round.members if self.round else ()
        return {
            member
            for member in members
            if member in self.nodes and self.nodes[member].left < self.number
        }

    @property
    def waiting(self) -> list[Node]:
        """
        Those that wait for the next round, the oldest first.
        """
        inside = self.inside
        waiting = [node for node in self.nodes.values() if node.id not in inside]
        return sorted(waiting, key=lambda node: (node.created, node.id))


class Roster:
    """
    A snapshot that follows what happens, one node at a time.

    It says what a :class:`Snapshot` of the same says, at a cost that does not grow with
    the number of nodes. Not safe for threads.

    Args:
        nodes: The nodes that live, by id.
        last: The last round that has completed.
    """

    def __init__(self, nodes: Mapping[str, Node], last: Round | None) -> None:
        self.nodes = dict(nodes)
        self.round = last
        self.closed = False
        seen = Snapshot(self.nodes, last)
        self.number = seen.number
        self.inside = set(seen.inside)
        self.gone = set(seen.gone)
        self._members = frozenset(last.members if last else ())

    def put(self, node: Node) -> None:
        """
        Take note of what a node has written.
        """
        self.nodes[node.id] = node
        if node.id in self._members:
            self.gone.discard(node.id)
            if node.left < self.number:
                self.inside.add(node.id)
            else:
                self.inside.discard(node.id)

    def drop(self, node: str) -> None:
        """
        Take note that a node is gone.
        """
        self.nodes.pop(node, None)
        self.inside.discard(node)
        if node in self._members:
            self.gone.add(node)

    @property
    def waiting(self) -> list[Node]:
        """
        Those that wait for the next round, the oldest first.
        """
        return Snapshot(self.nodes, self.round).waiting


class Action(Enum):
    """
    What the closer does.
    """

    #: Nothing, until something changes or it is time.
    WAIT = auto()
    #: Complete the next round.
    COMPLETE = auto()
    #: Write into the running round what has become of it.
    MARK = auto()


@dataclass(frozen=True)
class Decision:
    """
    What the closer does, and what it keeps in mind.

    Attributes:
        action: What it does.
        round: The round to write, unless it waits.
        enough_since: When there were enough nodes first; None if there are not.
        wake_at: When to decide again at the latest; None for when something changes.
    """

    action: Action = Action.WAIT
    round: Round | None = None
    enough_since: float | None = None
    wake_at: float | None = None


def decide(
    snapshot: Snapshot | Roster,
    rules: Rules,
    now: float,
    enough_since: float | None = None,
    *,
    gone_may_return: bool = False,
) -> Decision:
    """
    Decide what the closer does.

    Args:
        snapshot: What it knows.
        rules: What a round is to be like.
        now: The time, of a monotonic clock of its own.
        enough_since: What the last decision has kept in mind.
        gone_may_return: Whether etcd was away so lately that who lost its lease may
            yet come back into the running round.
    """
    if snapshot.closed:
        return Decision()
    last, gone = snapshot.round, snapshot.gone
    waiting = len(snapshot.nodes) - len(snapshot.inside)
    present = len(snapshot.inside) + (len(gone) if gone_may_return else 0)
    if last is not None and present:
        broken = last.broken or (bool(gone) and not gone_may_return)
        # As in torch, whoever finds no room is not announced: it is a spare.
        welcome = waiting if present < rules.max_nodes else 0
        if broken != last.broken or bool(welcome) != bool(last.waiting):
            marked = replace(last, broken=broken, waiting=welcome)
            return Decision(Action.MARK, marked)
        return Decision()
    if waiting < rules.min_nodes:
        return Decision()
    if waiting < rules.max_nodes:
        since = now if enough_since is None else enough_since
        # With all of it gone it is what an earlier job has left behind.
        lost = last is not None and 0 < len(gone) < len(last.members)
        ends = since + (rules.rejoin_last_call if lost else rules.last_call)
        if now < ends:
            return Decision(enough_since=since, wake_at=ends)
    ranked = sorted(snapshot.waiting[: rules.max_nodes], key=rank_key)
    return Decision(
        Action.COMPLETE,
        Round(
            number=snapshot.number + 1,
            members=tuple(node.id for node in ranked),
            address=ranked[0].address,
            port=ranked[0].port,
        ),
        # Whoever fails to write it does not begin the last call again.
        enough_since,
    )


def rank_key(node: Node) -> tuple[object, ...]:
    """
    Return what nodes are sorted by for their ranks: an order of theirs, the address.

    Those without an order of theirs come last.
    """
    return (
        not node.order,
        natural(node.order),
        natural(node.address),
        node.address,
        node.pid,
        node.slot,
        node.id,
    )


def natural(text: str) -> tuple[tuple[str, int], ...]:
    """
    Return what to sort a text by, so that numbers in it compare as numbers.
    """
    parts = re.split(r"([0-9]+)", text)
    numbers = [int(digits) for digits in parts[1::2]]
    return tuple(zip(parts[::2], [*numbers, -1], strict=True))


class Standing(Enum):
    """
    Where a node stands.
    """

    #: It waits for a round.
    WAITS = auto()
    #: It is in the round.
    IN = auto()
    #: It was in the round, which broke before it knew.
    MISSED = auto()


def standing(last: Round | None, node: str, left: int) -> Standing:
    """
    Say where a node stands.

    Args:
        last: The last round.
        node: Its id.
        left: The last round that it has left.
    """
    if last is None or last.number <= left or node not in last.members:
        return Standing.WAITS
    return Standing.MISSED if last.broken else Standing.IN


def nodes_waiting(
    last: Round | None, *, closed: bool, number: int, restart: bool
) -> int:
    """
    Say how many nodes wait, to one that is in a round.

    Args:
        last: The last round.
        closed: Whether the run is closed.
        number: The round that it is in.
        restart: Whether a lost node is a reason to form the next round.

    Returns:
        How many; at least 1 if it has to join the next round.
    """
    if closed:
        return 0
    if last is None:
        return 1  # etcd has lost it, and with it the order of rounds.
    if last.number != number or (last.broken and restart):
        return max(last.waiting, 1)
    return last.waiting


def with_names(
    broken: Round, gone: AbstractSet[str], names: Mapping[str, str]
) -> Round:
    """
    Return a round that breaks, with the names of those that it has lost.

    Args:
        broken: The round.
        gone: The ids of those that are gone.
        names: The addresses of its nodes, by id.
    """
    lost = sorted((names.get(node, "?") for node in gone), key=natural)
    return replace(broken, lost=tuple(lost[:MOST_NAMES]), lost_count=len(lost))


def progress(
    snapshot: Snapshot | Roster, names: Mapping[str, str], seconds: float | None
) -> Progress:
    """
    Say how far the next round is.

    Args:
        snapshot: What is known.
        names: The addresses of the last round's nodes, by id.
        seconds: How long the last call still takes; None if it has not begun.
    """
    waiting = snapshot.waiting
    missing = [*snapshot.gone, *snapshot.inside]
    members = frozenset(snapshot.round.members if snapshot.round else ())
    # A node that has started again has another id; several may have one address.
    new = Counter(node.address for node in waiting if node.id not in members)
    absent = sorted(
        (Counter(names.get(member, "?") for member in missing) - new).elements(),
        key=natural,
    )
    return Progress(
        joined=len(waiting),
        names=tuple(
            sorted((node.address for node in waiting), key=natural)[:MOST_NAMES]
        ),
        missing=tuple(absent[:MOST_NAMES]),
        missing_count=len(absent),
        seconds=seconds,
    )
