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
import pickletools
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from io import BytesIO
from typing import Any, Final

__all__ = [
    "Node",
    "State",
    "StateRefusedError",
    "check_opcodes",
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


class _Sealed(type):
    """
    A class that a pickle can't change.

    A pickle can set attributes of a class that it names, not of its instances alone,
    and they would stay for all states to come.
    """

    def __setattr__(cls, name: str, _: object) -> None:
        raise TypeError(f"{name} is not to be set on a class")


class Node(metaclass=_Sealed):
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

    # As torch's: a pickle that can't be read there shall not be read here.
    def __setattr__(self, name: str, _: object) -> None:
        raise TypeError(f"{name} is not to be set on a node")

    def __hash__(self) -> int:
        return hash((self.addr, self.pid, self.local_id))

    @property
    def id(self) -> str:
        """
        What torch's logs call it.
        """
        return f"{self.addr}_{self.pid}_{self.local_id}"


class State(metaclass=_Sealed):
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

    def persistent_load(self, pid: Any, /) -> Any:
        raise StateRefusedError("it names an object outside of itself")


def read_state(state: bytes) -> State:
    """
    Read a state of torch's dynamic rendezvous handler; nothing in it is run.

    Args:
        state: The pickled state.

    Returns:
        The state, of stand-ins for torch's classes.

    Raises:
        StateRefusedError: It names anything that does not belong into such a state,
            or is none.
    """
    try:
        found = _Unpickler(BytesIO(state)).load()
    except StateRefusedError:
        raise
    except Exception as error:  # of a broken pickle nearly any may come
        raise StateRefusedError(_UNREADABLE) from error
    if not _is_sound(found):
        raise StateRefusedError(_UNREADABLE)
    return found  # type: ignore[no-any-return]


# What torch's states are made of (pickle protocols 4 and 5).
_PLAIN: Final = frozenset(
    {
        *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT"),
        *("BINGET", "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT"),
        *("BININT1", "BININT2", "LONG1", "SHORT_BINUNICODE", "BINUNICODE"),
        *("SHORT_BINBYTES", "BINBYTES", "GLOBAL", "STACK_GLOBAL", "NEWOBJ", "REDUCE"),
        *("BUILD", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS"),
        *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    }
)
_MEMO: Final = frozenset({"MEMOIZE", "BINPUT", "LONG_BINPUT"})
_MADE_INTO: Final = frozenset({"REDUCE", "NEWOBJ"})
_LARGEST_NUMBER: Final = 2**63


def check_opcodes(state: bytes) -> None:
    """
    Refuse a state that would take much time or memory to read.

    A few bytes can stand for a tuple that takes years to hash. It takes longer than
    :func:`read_state`, and is for those who look at states of others.

    Args:
        state: The pickled state.

    Raises:
        StateRefusedError: It is not made as torch's are.
    """
    is_tuple = False
    try:
        for opcode, argument, _ in pickletools.genops(state):
            name = opcode.name
            if is_tuple and name not in _MEMO:
                # A tuple is what something is made of, and never in another.
                if name not in _MADE_INTO:
                    raise StateRefusedError(_UNREADABLE)
                is_tuple = False
            is_tuple = is_tuple or "TUPLE" in name
            number = abs(argument) if isinstance(argument, int) else 0
            most = len(state) if name == "LONG_BINPUT" else _LARGEST_NUMBER
            if name not in _PLAIN or number > most:
                raise StateRefusedError(_UNREADABLE)
    except StateRefusedError:
        raise
    except Exception as error:  # of a broken pickle nearly any may come
        raise StateRefusedError(_UNREADABLE) from error


def _is_sound(found: Any) -> bool:
    """
    Say whether a state has the parts of one, all of the right kind.
    """
    if type(found) is not State:
        return False
    parts: dict[str, Any] = vars(found)
    try:
        ranks, beats = parts["participants"], parts["last_heartbeats"]
        waiting, spare = parts["wait_list"], parts["redundancy_list"]
        deadline = parts["deadline"]
        return (
            # Whatever pickles it again would heed such a one.
            not any(str(name).startswith("__") for name in parts)
            and type(parts["round"]) is int
            and type(parts["complete"]) is type(parts["closed"]) is bool
            and type(ranks) is type(beats) is dict
            and type(waiting) is type(spare) is set
            and set(map(type, ranks.values())) <= {int}
            and _are_times([*beats.values(), *([] if deadline is None else [deadline])])
            and _are_nodes({*ranks, *beats, *waiting, *spare})
        )
    except KeyError:
        return False


def _are_times(found: list[Any]) -> bool:
    # Without a time zone torch could not compare them.
    return set(map(type, found)) <= {datetime} and None not in {
        time.tzinfo for time in found
    }


def _are_nodes(found: set[Any]) -> bool:
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
