# SPDX-License-Identifier: BSD-3-Clause
"""
Read torch's pickled rendezvous state without trusting it.

A pickle can name any function and have it called. What is read from etcd may have been
written by anybody who reaches it, and torch unpickles it in every agent. Here it is
read with stand-ins for the few classes that such a state is made of, and refused if it
names anything else.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import cache
from io import BytesIO
from typing import Any, Final

__all__ = [
    "Node",
    "State",
    "StateRefusedError",
    "count_nodes",
    "is_closed",
    "read_state",
]

# In a pickle, the short text "closed" that follows a memo mark, then True.
_CLOSED: Final = b"\x8c\x06closed\x94\x88"

_TORCH: Final = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
_UNREADABLE: Final = "it is not a pickle that torch's handler has written"


class StateRefusedError(ValueError):
    """
    Raised for a state that is not one of torch's handler; says why, in half a sentence.
    """


class Node:
    """
    Stands for torch's description of a node.

    A state may hold one node several times; equal ones have the same ``id``.

    Attributes:
        addr: Its address.
        pid: The process id of its agent.
        local_id: Tells apart the agents of one process.
    """

    addr: str
    pid: int
    local_id: int

    def __hash__(self) -> int:
        # As torch's: what can't be read there shall not be read here. The sums refuse
        # what is no text and no number, and with it a node that is made of nodes that
        # are made of nodes, whose hash would take years.
        return hash((self.addr + "", self.pid + 0, self.local_id + 0))

    def __eq__(self, other: object) -> bool:
        # Of these alone, too, and not of whatever else a pickle has put into it.
        return type(other) is Node and (
            (self.addr, self.pid, self.local_id)
            == (other.addr, other.pid, other.local_id)
        )

    @property
    def id(self) -> str:
        """
        What torch's logs call it.
        """
        return f"{self.addr}_{self.pid}_{self.local_id}"


class State:
    """
    Stands for torch's rendezvous state (2.6 to 2.14).

    Attributes:
        round: The number of the round.
        complete: Whether the round is complete.
        deadline: When a round with enough nodes is closed; None if there are too few.
        closed: Whether the rendezvous is closed.
        participants: The nodes of the round with their ranks.
        wait_list: The nodes that wait for the next round.
        redundancy_list: The nodes that are there in case another fails.
        last_heartbeats: When each node was heard of last.
    """

    round: int
    complete: bool
    deadline: datetime | None
    closed: bool
    participants: dict[Node, int]
    wait_list: set[Node]
    redundancy_list: set[Node]
    last_heartbeats: dict[Node, datetime]


# Nothing else may be named by a state. None of these does anything but be made.
_ALLOWED: Final[dict[tuple[str, str], Callable[..., object]]] = {
    (_TORCH, "_RendezvousState"): State,
    (_TORCH, "_NodeDesc"): Node,
    ("datetime", "datetime"): datetime,
    ("datetime", "timezone"): timezone,
    ("datetime", "timedelta"): timedelta,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise StateRefusedError(
                f"it names {module_name}.{global_name}, which has no place in one"
            ) from None


def read_state(state: bytes) -> State:
    """
    Read a state of torch's dynamic rendezvous handler; nothing in it is run.

    It takes about twice the time that torch takes, whatever the state is.

    Args:
        state: The pickled state.

    Returns:
        The state, of stand-ins for torch's classes.

    Raises:
        StateRefusedError: It names anything that does not belong into such a state,
            or is none.
    """
    if not _has_the_form(state):
        raise StateRefusedError(_UNREADABLE)
    try:
        found = _Unpickler(BytesIO(state)).load()
    except StateRefusedError:
        raise
    except Exception as error:  # of a broken pickle nearly any may come
        raise StateRefusedError(_UNREADABLE) from error
    if not _is_sound(found):
        raise StateRefusedError(_UNREADABLE)
    return found  # type: ignore[no-any-return]


# The opcode of a text of more than 255 bytes, whose length follows in four.
_LONG_TEXT: Final = ord("X")


@cache
def _form() -> re.Pattern[bytes]:
    """
    Return what a state looks like: some of the opcodes that pickle writes for one.

    They are those of the protocols 4 and 5, with their arguments. Two things are left
    out by which a few bytes could take years, or all memory, to read: tuples that are
    made of tuples, since none is let be that is not at once made into something else;
    and a place in the memo of the pickle's own choice.
    """
    texts = b"|".join(re.escape(bytes([n])) + b".{%d}" % n for n in range(256))
    # There is one way to read a pickle: each begins with bytes of its own.
    opcodes = (
        rb"[hK].|M..|[jJ].{4}|\x8a(?:\x05.{5}|\x06.{6}|\x07.{7}|\x08.{8})",  # numbers
        rb"\x8c(?:%b)|C\n.{10}" % texts,  # a text; a time
        rb"[t\x85-\x87]\x94?[R\x81]",  # a tuple that is made into something
        rb"\x80[\x04\x05]|\x95.{8}",  # the protocol, and its frames
    )
    those_without_arguments = rb"[\x94)}(u\x81bsN\x88\x89\x8f\x90\x93.]*"
    return re.compile(
        rb"%b(?:(?:%b)%b){0,1000}"
        % (those_without_arguments, b"|".join(opcodes), those_without_arguments),
        re.DOTALL,
    )


def _has_the_form(state: bytes) -> bool:
    form, end = _form(), 0
    while end < len(state):
        start, found = end, form.match(state, end)
        end = found.end() if found else start
        if end == start:
            if state[end] != _LONG_TEXT:
                return False
            end += 5 + int.from_bytes(state[end + 1 : end + 5], "little")
    return end == len(state)


_PARTS: Final = frozenset(State.__annotations__)
_PLAIN: Final = frozenset({bool, datetime, int, str, type(None)})


def _is_sound(found: Any) -> bool:
    """
    Say whether a state has the parts of one, all of the right kind.

    Another torch may add parts; of them only plain ones are known to do no harm.
    """
    if type(found) is not State:
        return False
    parts: dict[str, Any] = vars(found)
    try:
        ranks, beats = parts["participants"], parts["last_heartbeats"]
        waiting, spare = parts["wait_list"], parts["redundancy_list"]
        deadline = parts["deadline"]
        return (
            all(
                name in _PARTS
                or (type(part) in _PLAIN and not str(name).startswith("__"))
                for name, part in parts.items()
            )
            and type(parts["round"]) is int
            and type(parts["complete"]) is type(parts["closed"]) is bool
            and type(ranks) is type(beats) is dict
            and type(waiting) is type(spare) is set
            and set(map(type, ranks.values())) <= {int}
            and _are_times([*beats.values(), *([] if deadline is None else [deadline])])
            and _are_nodes([*ranks, *beats, *waiting, *spare])
        )
    except KeyError:
        return False


def _are_times(found: list[Any]) -> bool:
    # Without a time zone torch could not compare them.
    return set(map(type, found)) <= {datetime} and None not in {
        time.tzinfo for time in found
    }


def _are_nodes(found: list[Any]) -> bool:
    if not set(map(type, found)) <= {Node}:
        return False
    kinds = {
        (len(parts), type(parts["addr"]), type(parts["pid"]), type(parts["local_id"]))
        for parts in map(vars, found)
    }
    return kinds <= {(3, str, int, int)}


def count_nodes(state: bytes) -> int | None:
    """
    Return how many nodes a state holds; None if it is not one of torch's handler.

    Args:
        state: The pickled state.
    """
    try:
        found = read_state(state)
    except StateRefusedError:
        return None
    lists = (
        found.participants,
        found.wait_list,
        found.redundancy_list,
        found.last_heartbeats,
    )
    return len({node.id for nodes in lists for node in nodes})


def is_closed(state: bytes) -> bool:
    """
    Say whether a state looks like torch's state of a closed rendezvous.

    It looks for how torch's state object pickles its attribute (pickle protocols 4
    and 5), so it costs nothing and runs nothing. Good enough to choose whether to
    wait; nothing that must be right may hang on it.

    Args:
        state: The pickled state.
    """
    return _CLOSED in state
