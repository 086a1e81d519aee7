# SPDX-License-Identifier: BSD-3-Clause
"""
The parts of `etcd-live` that decide and remember, each by itself.
"""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_rendezvous import EtcdSettingError
from etcd_rendezvous._live import records
from etcd_rendezvous._live.mirror import Mirror
from etcd_rendezvous._live.node import TimeUpError, _Wait
from etcd_rendezvous._live.place import Place
from etcd_rendezvous._live.records import Keys, Node, Progress, Round
from etcd_rendezvous._live.rounds import (
    Action,
    Roster,
    Rules,
    Snapshot,
    Standing,
    decide,
    natural,
    nodes_waiting,
    progress,
    rank_key,
    standing,
)
from etcd_rendezvous._live.settings import LiveSettings, parse_live_settings
from etcd_rendezvous._live.speech import describe_wait
from etcd_rendezvous._live.view import View, view_of
from etcd_rendezvous._v3.wire import Entry, Event
from support.clock import Clock

KEYS = Keys(b"/run")
RULES = Rules(min_nodes=2, max_nodes=3, last_call=30, rejoin_last_call=5)


def a_node(name, *, left=-1, created=1, **more):
    return Node(name, more.pop("address", name), 1, 1, 0, left, created=created, **more)


def snapshot(*nodes, last=None, closed=False):
    return Snapshot({node.id: node for node in nodes}, last, closed)


def a_round(*members, number=0, **more):
    return Round(number, members, "address", 1, **more)


def entry(key, value=b"", revision=1, created=1, lease=0):
    return Entry(key, value, created, revision, 1, lease)


# -- what stands in etcd ------------------------------------------------------------

TEXTS = st.text(max_size=20)
NUMBERS = st.integers(-(2**31), 2**31)


@given(st.builds(Node, st.just("id"), TEXTS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, TEXTS))
def test_a_node_is_read_as_it_was_written(node):
    """
    What a node has written is what the others read.
    """
    found = entry(KEYS.node("place", "id"), records.encode_node(node), 9, 8, 7)

    assert records.decode_node(found) == replace(node, created=8, modified=9, lease=7)


@given(
    st.builds(Round, NUMBERS, st.just(("a", "b")), TEXTS, NUMBERS)
    | st.builds(
        Round,
        NUMBERS,
        st.just(("a", "b")),
        TEXTS,
        NUMBERS,
        broken=st.just(True),
        lost=st.just(("a",)),
        lost_count=st.just(1),
    )
)
def test_a_round_is_read_as_it_was_written(one):
    """
    What the closer has written is what the others read.
    """
    found = entry(KEYS.round, records.encode_round(one), 9)

    assert records.decode_round(found, records.encode_table(one)) == replace(
        one, revision=9
    )


@given(st.binary(max_size=40) | st.sampled_from([b"[]", b"{}", b'{"round":"1"}']))
def test_anything_in_the_place_of_a_value(value):
    """
    What is not ours is refused as such.
    """
    for decode in (
        lambda: records.decode_node(entry(b"n/p/id", value)),
        lambda: records.decode_round(entry(b"c/round", value), b"0 a"),
        lambda: records.decode_progress(value),
    ):
        with pytest.raises(ValueError):
            decode()
    assert records.decode_names(value) == []


def test_a_table_of_another_round_is_none():
    """
    Round and table are of one round, or there is none.
    """
    found = entry(KEYS.round, records.encode_round(a_round("a")))

    assert records.decode_round(found, b"1 a b") is None


# -- the mirror ---------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_a_mirror_knows_the_truth_whatever_comes_first(seed):
    """
    Reads and events in any order, late or twice: the latest of each key counts.
    """
    chance = random.Random(seed)
    history, states, state = [], [{}], {}
    for revision in range(1, 12):
        key = chance.choice([b"c/a", b"c/b", b"c/c"])
        deleted = key in state and chance.random() < 0.4
        one = entry(key, b"%d" % revision, revision)
        history.append(Event(deleted, one))
        state = {**state, key: one}
        if deleted:
            del state[key]
        states.append(state)
    mirror = Mirror(b"c/")
    steps = [lambda e=e: mirror.tell([e]) for e in history for _ in range(2)]
    steps += [
        lambda r=revision: mirror.load(list(states[r].values()), r)
        for revision in chance.sample(range(1, 12), 4)
    ]
    # Reads and events, in any order.
    chance.shuffle(steps)
    for step in steps:
        step()

    mirror.load(list(state.values()), 11)
    assert {one.key: one for one in mirror} == state


def test_old_news_are_none():
    """
    What was known before changes nothing.
    """
    mirror = Mirror(b"c/")
    assert mirror.load([entry(b"c/a", b"1", 5)], 7)

    assert not mirror.tell([Event(False, entry(b"c/a", b"0", 4))])
    assert not mirror.tell([Event(True, entry(b"c/a", b"", 7))])
    assert not mirror.load([], 6)
    assert mirror.tell([Event(True, entry(b"c/a", b"", 8))])
    assert not mirror.load([entry(b"c/a", b"1", 5)], 7)
    assert mirror.get(b"c/a") is None


def test_a_view_of_the_common_keys():
    """
    What all nodes watch, in one piece; and what is not ours, by its key.
    """
    mirror = Mirror(KEYS.common)
    mirror.load(
        [
            entry(KEYS.closer, b"a", 3, 3),
            entry(KEYS.round, records.encode_round(a_round("a", "b")), 4),
            entry(KEYS.table, b"0 a b", 4),
        ],
        4,
    )

    view = view_of(mirror, KEYS)
    assert (view.closer, view.office, view.closed) == ("a", 3, False)
    assert view.round == a_round("a", "b", revision=4)
    mirror.tell([Event(False, entry(KEYS.round, b"theirs", 5))])
    assert view_of(mirror, KEYS).corrupt == "/run/live/c/round"


# -- decisions ----------------------------------------------------------------------


def test_too_few_nodes_wait():
    """
    With fewer than the minimum nothing is decided.
    """
    assert decide(snapshot(a_node("a")), RULES, 0.0).action is Action.WAIT


def test_enough_nodes_wait_for_the_last_call():
    """
    With enough the last call begins, and ends when more than enough have come.
    """
    first = decide(snapshot(a_node("a"), a_node("b")), RULES, 10.0)
    assert (first.action, first.wake_at) == (Action.WAIT, 40.0)

    late = decide(snapshot(a_node("a"), a_node("b")), RULES, 39.9, first.enough_since)
    assert late.action is Action.WAIT
    over = decide(snapshot(a_node("b"), a_node("a")), RULES, 40.0, first.enough_since)
    assert over.round == Round(0, ("a", "b"), "a", 1)
    full = decide(snapshot(*map(a_node, "cab")), RULES, 10.0)
    assert full.round.members == ("a", "b", "c")


def test_the_oldest_come_first():
    """
    Whoever registered first is in where not all can be.
    """
    nodes = [a_node(name, created=5 - at) for at, name in enumerate("abcd")]

    assert decide(snapshot(*nodes), RULES, 0.0).round.members == ("b", "c", "d")


def test_nobody_leaves_anybody_behind():
    """
    While a member of the last round lives and has not left it there is no other round.
    """
    last = a_round("a", "b", "c", broken=True, waiting=2)
    nodes = [a_node("a", left=0), a_node("b", left=0), a_node("c"), a_node("d")]

    assert decide(snapshot(*nodes, last=last), RULES, 0.0).action is Action.WAIT
    nodes[2] = a_node("c", left=0)
    done = decide(snapshot(*nodes, last=last), RULES, 0.0)
    assert done.round.number == 1


def test_a_lost_member_breaks_the_round():
    """
    The round is marked once; while etcd was away lately nobody is lost yet.
    """
    last = a_round("a", "b")
    lost = snapshot(a_node("a"), last=last)

    assert decide(lost, RULES, 0.0).round == replace(last, broken=True)
    broken = snapshot(a_node("a"), last=replace(last, broken=True))
    assert decide(broken, RULES, 0.0).action is Action.WAIT
    assert decide(lost, RULES, 0.0, gone_may_return=True).action is Action.WAIT
    nobody = snapshot(a_node("c"), a_node("d"), last=last)
    assert decide(nobody, RULES, 0.0, gone_may_return=True).round is None or (
        decide(nobody, RULES, 0.0, gone_may_return=True).round.waiting
    )


def test_who_waits_is_announced_where_there_is_room():
    """
    Late nodes are announced, spares are not; nor is who went away again.
    """
    room = a_round("a", "b")
    late = snapshot(*map(a_node, "abc"), last=room)
    assert decide(late, RULES, 0.0).round == replace(room, waiting=1)
    gone = snapshot(a_node("a"), a_node("b"), last=replace(room, waiting=1))
    assert decide(gone, RULES, 0.0).round == replace(room, waiting=0)
    full = snapshot(*map(a_node, "abcd"), last=a_round("a", "b", "c"))
    assert decide(full, RULES, 0.0).action is Action.WAIT


def test_after_a_loss_the_last_call_is_another():
    """
    But not where nobody of the last round is left: that is another job.
    """
    last = a_round("a", "b", "c", broken=True)
    after_loss = snapshot(a_node("a", left=0), a_node("b", left=0), last=last)
    assert decide(after_loss, RULES, 0.0).wake_at == 5.0
    another_job = snapshot(a_node("x"), a_node("y"), last=last)
    assert decide(another_job, RULES, 0.0).wake_at == 30.0
    no_loss = snapshot(a_node("a", left=0), a_node("b", left=0), last=a_round("a", "b"))
    assert decide(no_loss, RULES, 0.0).wake_at == 30.0


def test_a_closed_run_decides_nothing():
    """
    Whatever there is.
    """
    closed = snapshot(*map(a_node, "abc"), last=a_round("a", "x"), closed=True)

    assert decide(closed, RULES, 0.0).action is Action.WAIT


@given(st.integers(0, 2**32))
def test_a_roster_says_what_a_snapshot_says(seed):
    """
    Following what happens comes to the same as looking at all of it.
    """
    chance = random.Random(seed)
    last = chance.choice([None, a_round("a", "b", "c", number=2)])
    roster = Roster({}, last)
    nodes = {}
    for _ in range(20):
        name = chance.choice("abcde")
        if chance.random() < 0.3:
            nodes.pop(name, None)
            roster.drop(name)
        else:
            nodes[name] = a_node(name, left=chance.randint(-1, 3))
            roster.put(nodes[name])
        seen = Snapshot(nodes, last)
        assert roster.nodes == nodes
        assert (roster.inside, roster.gone) == (seen.inside, seen.gone)
        assert roster.waiting == seen.waiting
        assert decide(roster, RULES, 0.0) == decide(seen, RULES, 0.0)


def test_ranks():
    """
    An order of one's own first, then the address, numbers as numbers.
    """
    nodes = [
        a_node("1", address="node66"),
        a_node("2", address="node7"),
        a_node("3", address="node9", order="rack10"),
        a_node("4", address="node99", order="rack2"),
    ]

    assert [node.id for node in sorted(nodes, key=rank_key)] == ["4", "3", "2", "1"]
    assert natural("10.0.0.9") < natural("10.0.0.10")
    assert natural("a") < natural("a1") < natural("a1b")


@given(st.lists(st.text("ab019", max_size=6)))
def test_any_texts_can_be_sorted(texts):
    """
    Whatever addresses look like, and in one way only.
    """
    nodes = [a_node("id", address=text) for text in texts]

    backwards = nodes[::-1]
    assert sorted(nodes, key=rank_key) == sorted(backwards, key=rank_key)


def test_standing():
    """
    A node is in a round, has missed it, or waits.
    """
    assert standing(None, "a", -1) is Standing.WAITS
    assert standing(a_round("a"), "b", -1) is Standing.WAITS
    assert standing(a_round("a"), "a", 0) is Standing.WAITS
    assert standing(a_round("a"), "a", -1) is Standing.IN
    assert standing(a_round("a", broken=True), "a", -1) is Standing.MISSED


@pytest.mark.parametrize(
    ("last", "closed", "restart", "waiting"),
    [
        (None, False, True, 1),
        (None, True, True, 0),
        (a_round("a"), False, True, 0),
        (a_round("a", waiting=3), False, True, 3),
        (a_round("a", broken=True), False, True, 1),
        (a_round("a", broken=True), False, False, 0),
        (a_round("a", broken=True, waiting=2), False, False, 2),
        (a_round("b", number=1), False, True, 1),
        (a_round("a", broken=True, waiting=2), True, True, 0),
    ],
)
def test_nodes_waiting(last, closed, restart, waiting):
    """
    What a node of round 0 is told.
    """
    found = nodes_waiting(last, closed=closed, number=0, restart=restart)

    assert found == waiting


# -- what is said -------------------------------------------------------------------


def test_progress_counts_names_beyond_eight():
    """
    Eight are named, the others counted.
    """
    names = [f"node{number}" for number in range(12)]
    last = a_round(*names, number=4, broken=True)
    here = snapshot(a_node("node9", left=4), last=last)

    said = progress(here, {name: name for name in names}, None)

    assert (said.joined, said.names, said.missing_count) == (1, ("node9",), 11)
    assert said.missing == tuple(f"node{number}" for number in range(8))
    view = View(round=last, progress=said)
    assert describe_wait(view, Rules(4, 12, 1, 1), "me", 0.0) == (
        "1 joined (node9), 4 to 12 needed for round 5; 11 of round 4 are missing "
        "(node0, node1, node2, node3, node4, node5, node6, node7 and 3 more)"
    )


def test_progress_tells_nodes_of_one_address_apart():
    """
    Who waits does not hide who is missing at the same address; who has started again
    there is not missing.
    """
    last = a_round("a", "b", "c", number=4, broken=True)
    names = dict.fromkeys("abc", "here")
    alone = snapshot(replace(a_node("a", left=4), address="here"), last=last)
    again = snapshot(
        replace(a_node("a", left=4), address="here"),
        replace(a_node("new"), address="here"),
        last=last,
    )

    assert progress(alone, names, None).missing == ("here", "here")
    assert progress(again, names, None).missing == ("here",)


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (View(), "2 to 3 nodes needed for round 0"),
        (
            View(progress=Progress(2, ("a", "b"), seconds=9.0)),
            (
                "2 joined (a, b), enough for round 0, which begins in 5 s, or as soon as "
                "there are 3"
            ),
        ),
        (
            View(round=a_round("a", "b")),
            (
                "round 0 is running with 2 nodes; this node joins the next round, which "
                "begins when the running one ends or makes room"
            ),
        ),
        (
            View(round=a_round("a", "b", "c")),
            (
                "round 0 is running with 3 nodes; this node is a spare, and steps in when "
                "one of them is lost"
            ),
        ),
        # It has left that round before the others.
        (View(round=a_round("a", "b", "me")), "2 to 3 nodes needed for round 1"),
    ],
)
def test_what_is_said_to_who_waits(view, said):
    """
    How far the next round is, in words.
    """
    assert describe_wait(view, RULES, "me", 4.0) == said


# -- waiting ------------------------------------------------------------------------


def test_a_spare_has_all_its_time_once_there_is_room():
    """
    However long ago it last looked, and however late it is woken.
    """
    clock = Clock()
    node = SimpleNamespace(
        clock=clock,
        node=a_node("spare"),
        rules=RULES,
        view=View(),
        _away_error=None,
        _progress_at=0,
    )
    wait = _Wait(node, clock(), 10)
    full, broken = (
        View(round=a_round("a", "b", "c", broken=broken)) for broken in (False, True)
    )

    wait.look_at(full)
    clock.now = 9.0
    wait.look_at(full)
    clock.now = 20.0
    wait.look_at(broken)
    clock.now = 29.0
    wait.look_at(broken)
    clock.now = 30.0
    with pytest.raises(TimeUpError):
        wait.look_at(broken)


# -- settings -----------------------------------------------------------------------


def test_default_settings():
    """
    torch's, but for quicker heartbeats, which cost nothing here.
    """
    assert parse_live_settings({}, {}) == LiveSettings(
        600, 30, 30, 30, 5, 2, 3, "restart", ""
    )
    assert parse_live_settings({}, {}).ttl == 6


def test_settings():
    """
    Texts as torchrun hands them over; the last call of a re-join follows the other.
    """
    found = parse_live_settings(
        {
            "last_call_timeout": "7",
            "keep_alive_interval": "1",
            "keep_alive_max_attempt": "1",
            "on_node_loss": "ignore",
            "rank_order": "3",
        },
        {"ETCD_RENDEZVOUS_RANK_ORDER": "9"},
    )

    assert (found.last_call_timeout, found.rejoin_last_call_timeout) == (7, 7)
    assert (found.ttl, found.on_node_loss, found.rank_order) == (2, "ignore", "3")
    environment = {"ETCD_RENDEZVOUS_RANK_ORDER": " rack2 "}
    assert parse_live_settings({}, environment).rank_order == "rack2"
    none = parse_live_settings({"rejoin_last_call_timeout": 0}, {})
    assert none.rejoin_last_call_timeout == 0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"on_node_loss": "Restart!"}, "'on_node_loss' must be restart or ignore"),
        ({"rejoin_last_call_timeout": -1}, "must be 0 s or more, not -1 s"),
        ({"last_call_timeout": 0}, "must be 1 s or more, not 0 s"),
        ({"keep_alive_interval": "soon"}, "a whole number of seconds, not 'soon'"),
        ({"rank_order": "x" * 257}, "'rank_order' must have 256 characters or less"),
    ],
)
def test_settings_that_are_refused(config, said):
    """
    By name, with what may be set.
    """
    with pytest.raises(EtcdSettingError, match=said):
        parse_live_settings(config, {})


# -- the place ----------------------------------------------------------------------

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux has abstract sockets"
)


@linux_only
def test_who_lives_is_not_taken_for_dead():
    """
    A node's name is taken for as long as its process lives, and free at its end.
    """
    code = """
        import sys, time
        from etcd_rendezvous._live.place import Place
        place = Place("address")
        place.hold("node-of-a-test")
        print(place.name, flush=True)
        time.sleep(60)
        """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    place = Place("address")
    try:
        assert process.stdout.readline().strip() == place.name
        assert not place.is_dead("node-of-a-test")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

    assert place.is_dead("node-of-a-test")
    assert Place("another").name != place.name


def test_where_the_place_is_not_known_nobody_is_dead(monkeypatch):
    """
    Then each node is in a place of its own.
    """
    monkeypatch.setattr("etcd_rendezvous._live.place._network_namespace", str)
    one, two = Place("address"), Place("address")

    one.hold("node")

    assert one.name != two.name
    assert not two.is_dead("node")


def test_a_name_that_can_not_be_held(monkeypatch):
    """
    Whoever can't hold its name is in a place where nobody looks for it.
    """
    place = Place("address")
    name = place.name

    def refuse(*_):
        raise PermissionError("no sockets here")

    monkeypatch.setattr(socket, "socket", refuse)
    place.hold("node")

    assert place.name != name
    assert not place.is_dead("other")
