# SPDX-License-Identifier: BSD-3-Clause
"""
What is read from etcd is not trusted: a state that could run code is refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import pickletools
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.elastic.rendezvous import (
    RendezvousParameters,
    RendezvousStateError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    _NodeDesc,
    _RendezvousState,
)

from etcd_rendezvous import _guard, create_backend, create_handler
from etcd_rendezvous._state import StateRefusedError, count_nodes, read_state
from support.runs import torchs_state

pytestmark = pytest.mark.torch

NOW = datetime.now(timezone.utc)
NODE = _NodeDesc("node-1", 17, 0)
# The same examples each time, on a machine that may be busy.
examples = settings(derandomize=True, max_examples=300)


class Payload:
    """
    Makes a file when it is unpickled; equal and hashable, so that it fits anywhere.
    """

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class PosingAsState(_RendezvousState):
    """
    A state whose class is another's.
    """


def state(nodes=1, **parts):
    """
    Make a state of some nodes, of which some parts are others.
    """
    made = _RendezvousState()
    for number in range(nodes):
        node = _NodeDesc(f"node-{number}.cluster.example", 1000 + number, 0)
        made.participants[node] = number
        made.last_heartbeats[node] = NOW + timedelta(seconds=number)
    made.deadline = NOW
    made.wait_list.add(NODE)
    made.last_heartbeats[NODE] = NOW
    for name, value in parts.items():
        setattr(made, name, value)
    return made


def payloads(path):
    """
    Return states with a payload in each of their parts.
    """
    payload = Payload(path)
    node = _NodeDesc("node", 1, 1)
    object.__setattr__(node, "addr", payload)
    return {
        "participants, a node": state(participants={payload: 0}),
        "participants, a rank": state(participants={NODE: payload}),
        "participants": state(participants=payload),
        "address": state(wait_list={node}),
        "wait_list": state(wait_list={payload}),
        "redundancy_list": state(redundancy_list={payload}),
        "deadline": state(deadline=payload),
        "heartbeats": state(last_heartbeats={NODE: payload}),
        "round": state(round=payload),
        "closed": state(closed=payload),
        "another part": state(also=payload),
        "instead of it": payload,
        "around it": [state(), payload],
    }


PARTS = list(payloads(Path("unused")))


@pytest.fixture
def params(newest_served, run_id):
    return RendezvousParameters(
        f"etcd-{newest_served.api}",
        newest_served.endpoint,
        run_id,
        1,
        2,
        "localhost",
        last_call_timeout=1,
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_payload(params, tmp_path, part):
    """
    A state with a payload, wherever it hides, is refused by the handler when it joins,
    and is not run. Unpickled as it stands it would be.
    """
    proof = tmp_path / "proof"
    evil = pickle.dumps(payloads(proof)[part])
    pickle.loads(evil)
    proof.unlink()
    backend, _ = create_backend(params)
    backend.set_state(evil)
    handler = create_handler(params)

    with pytest.raises(RendezvousStateError, match="is refused") as caught:
        handler.next_rendezvous()
    assert not proof.exists()
    assert backend.key in str(caught.value)
    # A bare backend is of bytes, whatever they mean.
    assert backend.get_state()[0] == evil


def test_a_payload_that_comes_later(params, tmp_path):
    """
    One that is written while a round runs is refused at the next look.
    """
    proof = tmp_path / "proof"
    handler = create_handler(params)
    handler.next_rendezvous()
    backend, _ = create_backend(params)
    evil = pickle.dumps(state(deadline=Payload(proof)))
    _, token = backend.get_state()
    while not backend.set_state(evil, token)[2]:
        _, token = backend.get_state()
    time.sleep(1.1)  # The handler's own cache.

    # A heartbeat may have been the first to look.
    with pytest.raises(RendezvousStateError, match="is refused"):
        handler.num_nodes_waiting()
    handler._stop_heartbeats()
    assert not proof.exists()


@pytest.mark.parametrize(
    ("name", "pickled"),
    [
        ("another class", pickle.dumps(PosingAsState())),
        ("a function", pickle.dumps(os.system)),
        (
            "a part of an allowed name",
            b"\x80\x04\x8c\x08datetime\x8c\x0cdatetime.now\x93.",
        ),
    ],
)
def test_a_name(name, pickled):
    """
    Whatever a state names is refused unless it belongs there.
    """
    with pytest.raises(StateRefusedError, match="it names"):
        read_state(pickled)


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x04\x8c\x01xQ.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x82\1.",
    ],
    ids=["a persistent name", "an old name", "an old instance", "an extension"],
)
def test_other_ways_to_name(pickled):
    """
    No pickle of torch's names anything so.
    """
    with pytest.raises(StateRefusedError, match="not a pickle that torch's handler"):
        read_state(pickled)


@pytest.mark.parametrize("name", ["_RendezvousState", "_NodeDesc"])
@pytest.mark.parametrize("attribute", ["__hash__", "__setstate__", "any"])
def test_a_class_that_is_changed(name, attribute):
    """
    A state that would change a class, so that no later one can be read, is refused, and
    changes nothing.
    """
    good = pickle.dumps(state(), 4)
    frame = good.index(b"\x8c")  # where what is in the frame begins
    changes = b"(N}" + text(attribute) + named("timedelta", "datetime") + b"st"
    evil = b"\x80\x04" + named(name) + changes + b"b0" + good[frame:]
    pickletools.dis(evil, io.StringIO())  # It is well made.
    with pytest.raises(StateRefusedError, match="not a pickle that torch's handler"):
        read_state(evil)

    read_state(good)
    assert count_nodes(good) == 2


def by_hand(*, node=b"", more=b""):
    """
    Write a state opcode by opcode, as no pickler does.

    Args:
        node: What is done to a node that waits, which is made before; it is the first
            in the memo.
        more: More parts of the state.
    """
    made = text("deadline") + b"N"
    made += b"".join(text(one) + b"\x89" for one in ("complete", "closed"))
    made += b"".join(text(one) + b"}" for one in ("participants", "last_heartbeats"))
    made += text("round") + b"K\0" + text("redundancy_list") + b"\x8f"
    made += text("wait_list") + b"\x8f(" + named("_NodeDesc") + b")\x81\x94"
    made += node + b"\x90"
    return b"\x80\x04" + named("_RendezvousState") + b")\x81}(" + made + more + b"ub."


def named(name, module=_RendezvousState.__module__):
    return text(module) + text(name) + b"\x93"


def text(of):
    return b"\x8c" + bytes([len(of)]) + of.encode()


def parts_of_a_node(addr, number=b"K\1"):
    numbers = b"".join(text(one) + number for one in ("pid", "local_id"))
    return b"}(" + text("addr") + addr + numbers + b"u"


PARTS_OF_A_NODE = parts_of_a_node(text("a"))


def test_states_by_hand():
    """
    One that is well made can be read, here and by torch.
    """
    good = by_hand(node=PARTS_OF_A_NODE + b"b")

    assert count_nodes(good) == 1
    assert pickle.loads(good).wait_list == {_NodeDesc("a", 1, 1)}


def used_by_torch(pickled):
    """
    Do what torch does: read a state, write it, number its nodes.
    """
    found = pickle.loads(pickled)
    pickle.dumps(found)
    return sum(node.pid for node in found.wait_list)


@pytest.mark.parametrize(
    "odd",
    [
        by_hand(more=text("late") + b"h\0" + PARTS_OF_A_NODE + b"b"),
        by_hand(node=b"N" + PARTS_OF_A_NODE + b"\x86b"),
        by_hand(node=PARTS_OF_A_NODE[:-1] + text("__reduce_ex__") + b"K\1ub"),
        by_hand(node=PARTS_OF_A_NODE + b"b", more=text("__reduce_ex__") + b"K\1"),
        by_hand(
            node=PARTS_OF_A_NODE + b"b",
            more=text("late") + b"h\0}" + text("pid") + text("1") + b"sb",
        ),
        by_hand(
            node=PARTS_OF_A_NODE + b"b",
            more=text("also")
            + (named("_NodeDesc") + b")\x81}" + text("__reduce_ex__") + b"K\1sb"),
        ),
    ],
    ids=[
        *("a node without parts", "a node set", "a node's hook", "a state's hook"),
        *("a node made twice", "another node's hook"),
    ],
)
def test_what_torch_could_not_read_or_write_again(odd):
    """
    What would be another error in torch's hands, or in the next write, is refused.
    """
    with pytest.raises((AttributeError, TypeError)):
        used_by_torch(odd)
    with pytest.raises(StateRefusedError, match="not a pickle that torch's handler"):
        read_state(odd)


def nested_tuples(levels):
    """
    Write a tuple of two equal tuples of two equal tuples, whose hash takes 2 ** levels.
    """
    inner = (b"h" + bytes([level]) + b"\x86\x94" for level in range(1, levels))
    return b"K\0K\0\x86\x94" + b"".join(inner)


def nested_nodes(levels):
    """
    Write a node that is made of one node three times, and that of another.
    """
    written, parts = b"", (text("a"), b"K\1")
    for level in range(1, levels):
        node = named("_NodeDesc") + b")\x81\x94" + parts_of_a_node(*parts) + b"b"
        written += text(f"also {level}") + node
        parts = (b"h" + bytes([level]),) * 2
    return written + text("wait_list") + b"\x8f(" + parts[0] + b"\x90"


def nested_twins(levels):
    """
    Write two equal nodes that name the two of the level below, and so on, in a set.
    """
    more, below = b"", [b"K\1", b"K\2"]
    for level in range(levels):
        for part in below:
            also = b"".join(text(one) + part for one in "pq")
            parts = parts_of_a_node(text("a"))[:-1] + also + b"u"
            node = named("_NodeDesc") + b")\x81\x94" + parts + b"b"
            more += text(f"also {level} {part!r}") + node
        below = [b"h" + bytes([2 * level + one]) for one in (1, 2)]
    return more + text("also") + b"\x8f(" + b"".join(below) + b"\x90"


# Far fewer than what would take years, so that what is not refused ends.
LEVELS = 26
LEVELS_OF_NODES = 15


@pytest.mark.parametrize(
    "costly",
    [
        text("also") + b"}" + nested_tuples(LEVELS) + b"K\1s",
        text("also") + b"}" + b"h\0" + nested_tuples(LEVELS) + b"s",
        nested_nodes(LEVELS_OF_NODES),
        nested_twins(LEVELS_OF_NODES),
        text("also") + 3000 * (b"}" + text("a")) + b"N" + 3000 * b"s",
        text("also") + b"Nr\xff\xff\xff\x07",
    ],
    ids=[
        *("nested tuples", "a tuple", "nested nodes", "nested twins"),
        *("nested dictionaries", "a far memo"),
    ],
)
def test_what_would_take_long(costly):
    """
    A few bytes that would take years or all memory to read are refused at once.
    """
    evil = by_hand(node=PARTS_OF_A_NODE + b"b", more=costly)
    pickletools.dis(evil, io.StringIO())  # It is well made.
    started = time.thread_time()

    with pytest.raises(StateRefusedError, match="not a pickle that torch's handler"):
        read_state(evil)
    # A few milliseconds, or with a garbage collection more.
    assert time.thread_time() - started < 0.15


def test_many_equal_nodes():
    """
    The same node many times takes as long as many nodes.
    """
    node = named("_NodeDesc") + b")\x81" + PARTS_OF_A_NODE + b"b"
    many = text("wait_list") + b"\x8f(" + 20_000 * node + b"\x90"
    started = time.thread_time()

    read_state(by_hand(node=PARTS_OF_A_NODE + b"b", more=many))
    assert time.thread_time() - started < 3


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"nonsense",
        pickle.dumps(state())[:-20],
        pickle.dumps({}),
        pickle.dumps(None),
        pickle.dumps(NODE),
        pickle.dumps(state(participants=[])),
        pickle.dumps(state(participants={"node": 0})),
        pickle.dumps(state(last_heartbeats={NODE: NOW.replace(tzinfo=None)})),
        pickle.dumps(state(last_heartbeats={NODE: 5})),
        pickle.dumps(state(wait_list={_NodeDesc("node", "1", 0)})),
        pickle.dumps(state(closed=1)),
        pickle.dumps(state(deadline=3.0)),
        pickle.dumps(state(round=10**5000)),
        pickle.dumps(state(also=frozenset({1}))),
        pickle.dumps(state(also=(1, 2))),
    ],
    ids=range(16),
)
def test_what_is_no_state(broken):
    """
    What torch could not work with is refused too, with one kind of error.
    """
    with pytest.raises(StateRefusedError, match="not a pickle that torch's handler"):
        read_state(broken)


@given(st.binary(max_size=300) | st.data())
@examples
def test_any_bytes(data):
    """
    Nothing but that error comes of any bytes, nor of a good state that was damaged.
    """
    if not isinstance(data, bytes):
        whole = bytearray(pickle.dumps(state(nodes=3)))
        for _ in range(data.draw(st.integers(1, 5))):
            place = data.draw(st.integers(0, len(whole) - 1))
            whole[place] = data.draw(st.integers(0, 255))
        data = bytes(whole)
    with contextlib.suppress(StateRefusedError):
        read_state(data)


def test_a_good_state():
    """
    A state of torch's is read as it is, at every protocol that torch may pickle with.
    """
    made = state(nodes=3, round=7, complete=True)
    for protocol in (4, 5):
        found = read_state(pickle.dumps(made, protocol))

        assert (found.round, found.complete, found.closed) == (7, True, False)
        assert found.deadline == NOW
        assert [
            (node.addr, node.pid, node.local_id, rank)
            for node, rank in found.participants.items()
        ] == [
            (n.addr, n.pid, n.local_id, rank) for n, rank in made.participants.items()
        ]
        assert [node.addr for node in found.wait_list] == ["node-1"]
        assert list(found.last_heartbeats.values()) == list(
            made.last_heartbeats.values()
        )
    read_state(pickle.dumps(_RendezvousState()))


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=63),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.datetimes(timezones=st.timezones()).map(lambda one: one.astimezone(timezone.utc))
    | st.datetimes(timezones=st.sampled_from([timezone(timedelta(hours=-3), "west")])),
    st.sampled_from([4, 5]),
)
@examples
def test_good_states(addr, pid, number, deadline, protocol):
    """
    So is whatever torch may put into one.
    """
    node = _NodeDesc(addr, pid, number)
    made = state(round=number, wait_list={node}, deadline=deadline)
    made.participants[_NodeDesc(addr, pid, number)] = number
    found = read_state(pickle.dumps(made, protocol))

    assert (found.round, found.deadline) == (number, deadline)
    assert [vars(one) for one in found.wait_list] == [vars(node)]
    assert len(found.participants) == 2


def test_what_an_unchanged_state_costs(params, monkeypatch):
    """
    Each state is looked at once, however often it is read; one's own is not at all.
    """
    looked = []
    monkeypatch.setattr(_guard, "read_state", looked.append)
    guarded, other = (_guard.GuardedBackend(create_backend(params)[0]) for _ in "ab")
    states = [pickle.dumps(state(nodes)) for nodes in (1, 2)]
    _, token, _ = guarded.set_state(states[0])
    for _ in range(3):
        guarded.get_state()
    assert looked == []
    for _ in range(3):
        other.get_state()
    assert looked == states[:1]

    other.set_state(states[1], token)
    for _ in range(3):
        guarded.get_state()
        assert not guarded.set_state(b"late", token)[2]
    assert looked == states


@pytest.mark.measures
def test_what_it_costs():
    """
    A thousand nodes take at most 2 ms, and at most three times as long as torch takes.
    """
    pickled = pickle.dumps(state(nodes=1000))

    def best(call):
        times = []
        for _ in range(50):
            started = time.perf_counter()
            call(pickled)
            times.append(time.perf_counter() - started)
        return min(times)

    ours, torchs = best(read_state), best(pickle.loads)
    assert ours <= 3 * torchs
    assert ours <= 0.002


def test_a_node_in_two_objects_counts_once():
    """
    Torch's states hold equal nodes that are not the same object.
    """
    state = torchs_state({"n0": 1, "n1": 2, "n2": 3}, waiting=["n1"], spares=["n2"])

    assert count_nodes(state) == 3
