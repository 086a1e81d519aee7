# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What is said of runs, and of what has changed in them. No server.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone

import pytest

from etcd_rendezvous._cli.status_view import duration, show_report, show_run
from etcd_rendezvous._cli.text import plain
from etcd_rendezvous._live.records import (
    Keys,
    Node,
    Round,
    encode_names,
    encode_node,
    encode_round,
    encode_table,
)
from etcd_rendezvous._runs.changes import Memory, changes
from etcd_rendezvous._runs.of_live import run_of_live
from etcd_rendezvous._runs.report import Member, Phase, Report, Run
from etcd_rendezvous._v3.wire import Entry

NOW = datetime(2026, 1, 2, tzinfo=timezone.utc)
A, B, C = (
    Member(f"id-{name}", name, pid, heartbeat_age=1.0)
    for pid, name in enumerate(("node-1", "node-2", "node-10"), 1)
)
FORMING = Run("job", "v3", "/p/job", Phase.FORMING, "torch", 0, (A, B))
COMPLETE = replace(FORMING, phase=Phase.COMPLETE, participants=(A, B, C))


def report(*runs):
    return Report("http://h:1", "/p", NOW, runs)


def lost(member):
    return replace(member, alive=False)


# -- changes ----------------------------------------------------------------------------


def test_nothing_is_said_where_only_time_goes_by():
    """
    Ages, times to live and revisions are no news.
    """
    later = replace(
        COMPLETE,
        participants=tuple(
            replace(one, heartbeat_age=4.0) for one in COMPLETE.participants
        ),
        state_age=4.0,
        ttl=7000.0,
        store_keys=9,
        revision=17,
    )

    assert [] == changes(COMPLETE, later)
    assert [] == changes(None, None)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (None, FORMING, ["round 0 is forming, 2 nodes joined"]),
        (FORMING, None, ["nothing of it is left in etcd"]),
        (
            FORMING,
            COMPLETE,
            ["round 0 is complete with 3 nodes", "node-10 joined"],
        ),
        (
            COMPLETE,
            replace(COMPLETE, participants=(A, lost(B), C)),
            ["node-2 is lost"],
        ),
        (
            replace(COMPLETE, participants=(A, lost(B), lost(C))),
            COMPLETE,
            ["2 nodes are back (node-2, node-10)"],
        ),
        (
            COMPLETE,
            replace(COMPLETE, phase=Phase.BROKEN, participants=(A, lost(B), C)),
            [
                "round 0 has lost 1 node (node-2); the others meet again",
                "node-2 is lost",
            ],
        ),
        (
            COMPLETE,
            replace(COMPLETE, phase=Phase.FORMING, round=1, participants=(A,)),
            [
                "round 1 is forming, 1 node joined",
                "2 nodes left, or are gone (node-2, node-10)",
            ],
        ),
        (COMPLETE, replace(COMPLETE, phase=Phase.CLOSED), ["it is closed"]),
        (
            COMPLETE,
            Run("job", "v3", "/p/job", Phase.UNREADABLE, problem="it is odd"),
            ["it can't be read: it is odd"],
        ),
    ],
)
def test_what_is_said_of_a_change(before, after, said):
    """
    Each change is a line: where the run stands, and who came, went or is lost.
    """
    assert said == changes(before, after)


def test_names_beyond_eight_are_counted():
    """
    A line lists eight names at most, and tells two agents of one node by their pids.
    """
    many = tuple(Member(f"id-{n}", f"node-{n}", n) for n in range(11))
    twins = tuple(Member(f"id-{n}", "node", n) for n in (4, 5))

    (few,) = changes(
        replace(COMPLETE, participants=()), replace(COMPLETE, participants=many)
    )
    (two,) = changes(
        replace(COMPLETE, participants=()), replace(COMPLETE, participants=twins)
    )

    names = ", ".join(f"node-{n}" for n in range(8))
    assert f"11 nodes joined ({names} and 3 more)" == few
    assert "2 nodes joined (node pid 4, node pid 5)" == two


@pytest.mark.parametrize(
    "between",
    [
        [report(replace(COMPLETE, phase=Phase.CLOSED))],
        [report(replace(COMPLETE, phase=Phase.ABANDONED))],
        [report()],
        [],
    ],
    ids=["closed", "abandoned", "gone", "begun again"],
)
def test_who_was_in_an_earlier_job_is_not_missing(between):
    """
    A job with the same run id that begins anew misses nobody of the one before.
    """
    memory = Memory()
    memory.take_in(report(replace(COMPLETE, round=4)))
    for one in between:
        memory.take_in(one)

    (run,) = memory.take_in(report(replace(FORMING, participants=(C,)))).runs

    assert () == run.missing


def test_nodes_of_one_address():
    """
    Where an address has several nodes, lines tell which of them left or is lost, and
    one that left is missing although the other is there.
    """
    first, second = (replace(A, id=f"{pid}", pid=pid) for pid in (7, 8))
    both = replace(COMPLETE, participants=(first, second))
    alone = replace(FORMING, round=1, participants=(second,))
    memory = Memory()
    memory.take_in(report(both))

    (seen,) = memory.take_in(report(alone)).runs
    known_no_more = replace(lost(first), pid=0)
    (said,) = changes(both, replace(both, participants=(known_no_more, second)))

    assert ("node-1",) == seen.missing
    assert "job: node-1 pid 7 left, or is gone" == memory.news[-1]
    assert "node-1 pid 7 is lost" == said


def test_a_closed_run_has_ended(capsys):
    """
    Who is not alive any more in a run that is closed has ended, and is not lost.
    """
    from etcd_rendezvous._cli.app import console

    run = replace(
        COMPLETE, phase=Phase.CLOSED, handler="live", participants=(lost(A), B)
    )
    console().print(show_run(run))
    console().print(show_report(report(run)))
    shown = capsys.readouterr().out

    assert "ended" in shown
    assert "lost" not in shown
    assert " 2 " in shown
    assert "1 of 2" not in shown


def test_a_narrow_terminal(capsys):
    """
    Of a name that is too long nothing is lost, nor of the columns beside it.
    """
    from rich.console import Console

    name = "training-worker-0.training.namespace.svc.cluster.local." * 2
    run = replace(COMPLETE, run_id=name, participants=(replace(A, address=name),))
    narrow = Console(width=80)
    narrow.print(show_report(report(run)))
    narrow.print(show_run(run))
    shown = capsys.readouterr().out

    assert "…" not in shown
    assert shown.count("1.0 s") == 2
    assert "".join(line.split(" ")[0] for line in shown.splitlines()[1:]).count(name)


def test_who_is_missing_is_remembered():
    """
    Of a round that was seen complete those who are not in the next one are missing;
    the first look brings no news, and later ones name the run.
    """
    memory = Memory()
    (first,) = memory.take_in(report(COMPLETE)).runs
    none = memory.news
    again = replace(FORMING, round=1, participants=(A, C))
    (second,) = memory.take_in(report(again)).runs
    said = memory.news
    (third,) = memory.take_in(report(replace(again, participants=(A, B, C)))).runs

    assert [] == none
    assert () == first.missing == third.missing
    assert ("node-2",) == second.missing
    assert [
        "job: round 1 is forming, 2 nodes joined",
        "job: node-2 left, or is gone",
    ] == said


# -- etcd-live ---------------------------------------------------------------------------


def entry(key, value, revision=5, lease=0):
    return Entry(key, value, revision, revision, 1, lease)


def live(nodes, last=None, *others):
    """
    Make a run of its keys; the first node has lease 1, the next one 2.
    """
    keys = Keys(b"/p/job")
    entries = [
        entry(keys.node("here", node.id), encode_node(node), lease=number)
        for number, node in enumerate(nodes, 1)
    ]
    if last:
        entries += [
            entry(keys.round, encode_round(last), 6),
            entry(keys.table, encode_table(last), 6),
            entry(keys.names, encode_names(["h0", "h1", "h2"][: len(last.members)]), 6),
        ]
    ages = {number: float(number) for number in range(1, len(nodes) + 1)}
    run = Run("job", "v3", "/p/job", Phase.EMPTY)
    return run_of_live(run, [*entries, *others], 9, ages)


def node(number, left=-1):
    return Node(f"n{number}", f"h{number}", 1, number, left=left)


def addresses(members):
    return [(one.address, one.rank, one.alive) for one in members]


ROUND = Round(3, ("n0", "n1"), "h0", 1)


def test_a_live_run_that_forms():
    """
    Those who have registered have joined; they have no ranks, and a lease's age.
    """
    run = live([node(0), node(1)])

    assert (Phase.FORMING, 0, "live") == (run.phase, run.round, run.handler)
    assert [("h0", None, True), ("h1", None, True)] == addresses(run.participants)
    assert [1.0, 2.0] == [one.heartbeat_age for one in run.participants]


def test_a_live_run_that_is_complete_with_a_spare():
    """
    Who is not in a round that has no room is a spare; where there is room it waits.
    """
    full = live([node(0), node(1), node(2)], ROUND)
    roomy = live([node(0), node(1), node(2)], replace(ROUND, waiting=1))

    assert Phase.COMPLETE == full.phase == roomy.phase
    assert [("h0", 0, True), ("h1", 1, True)] == addresses(full.participants)
    assert [("h2", None, True)] == addresses(full.spares) == addresses(roomy.waiting)
    assert () == full.waiting == roomy.spares
    assert 6 == full.revision


def test_a_live_run_that_has_lost_a_node():
    """
    The lost one keeps its rank and name; who has left waits for the next round, and
    when all have, that one forms and says who is missing.
    """
    broken = live([node(1), node(2, left=3)], replace(ROUND, broken=True))
    forming = live([node(1, left=3)], replace(ROUND, broken=True))

    assert Phase.BROKEN == broken.phase
    assert [("h0", 0, False), ("h1", 1, True)] == addresses(broken.participants)
    assert ["h2"] == [one.address for one in broken.waiting]
    assert (Phase.FORMING, 4) == (forming.phase, forming.round)
    assert ["h1"] == [one.address for one in forming.participants]
    assert ("h0",) == forming.missing


def test_a_live_run_without_nodes():
    """
    Without any node that lives it is abandoned; closed, it is closed.
    """
    keys = Keys(b"/p/job")

    assert Phase.ABANDONED == live([], ROUND).phase
    assert Phase.CLOSED == live([], ROUND, entry(keys.closed, b"")).phase


@pytest.mark.parametrize("key", ["n/here/x", "c/round", "c/progress"])
def test_a_live_run_that_is_not_ours(key):
    """
    What etcd-live has not written is named, not followed.
    """
    table = entry(Keys(b"/p/job").table, b"0 x")
    run = live([], None, entry(b"/p/job/live/" + key.encode(), b"{}"), table)

    assert Phase.UNREADABLE == run.phase
    assert f"the key '/p/job/live/{key}' holds what etcd-live has not written" == (
        run.problem
    )


# -- for people ---------------------------------------------------------------------------


def test_times():
    """
    A time is given in the largest unit that says enough; none as a dash.
    """
    times = [None, 0.04, 9.94, 10.2, 119, 120, 7199, 7200, 172800, -3.2]

    assert [
        *("-", "0.0 s", "9.9 s", "10 s", "119 s", "2 min", "120 min", "2 h"),
        *("2 d", "-3.2 s"),
    ] == [duration(one) for one in times]


def test_nothing_that_a_terminal_would_obey_is_shown(capsys):
    """
    What anybody may have written into etcd shows as text, escapes and all.
    """
    from etcd_rendezvous._cli.app import console

    evil = "\x1b[2Jx\r\n\u202ey"
    run = replace(
        COMPLETE,
        run_id=evil,
        key=f"/p/{evil}",
        participants=(replace(A, address=evil),),
        missing=(evil,),
    )
    bad = replace(run, phase=Phase.UNREADABLE, problem=evil)

    console().print(show_run(run))
    console().print(show_run(bad))
    shown = capsys.readouterr().out

    assert "\\x1b[2Jx\\r\\n\\u202ey" == plain(evil)
    assert plain(evil) in shown
    assert set("\x1b\r\u202e").isdisjoint(shown)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (FORMING, "round 0 is forming: 2 nodes joined"),
        (
            replace(FORMING, min_nodes=3, max_nodes=8),
            "round 0 is forming: 2 nodes joined, 3 to 8 needed\n",
        ),
        (
            replace(FORMING, min_nodes=3, max_nodes=3),
            "round 0 is forming: 2 nodes joined, 3 needed\n",
        ),
        (
            replace(FORMING, last_call=12.2),
            "2 nodes joined; enough, the last call ends in 12 s",
        ),
        (
            replace(COMPLETE, participants=(A, lost(C))),
            "round 0 is complete: 2 nodes; 1 node of them not heard of any more",
        ),
        (
            replace(COMPLETE, participants=(replace(A, rank=0), replace(C, rank=2))),
            "round 0 is complete: 2 nodes of 3",
        ),
        (replace(COMPLETE, phase=Phase.BROKEN), "round 0 has lost a node"),
        (
            replace(COMPLETE, phase=Phase.ABANDONED),
            "abandoned: nobody of it was heard of for 1.0 s",
        ),
        (replace(COMPLETE, phase=Phase.EMPTY), "no rendezvous, only keys of a store"),
        (
            replace(COMPLETE, phase=Phase.CLOSED, ttl=52.0),
            "closed: its job is over; its run id is free in 52 s, if all its agents",
        ),
        (
            replace(COMPLETE, phase=Phase.CLOSED, handler="live"),
            "its run id is free when the last 3 nodes of it have ended",
        ),
        (
            replace(
                COMPLETE, phase=Phase.CLOSED, handler="live", participants=(lost(A),)
            ),
            "closed: its job is over; its run id is free\n",
        ),
    ],
)
def test_where_a_run_stands(run, words, capsys):
    """
    One line says it in words.
    """
    from etcd_rendezvous._cli.app import console

    console().print(show_run(run))

    assert words in capsys.readouterr().out.splitlines(keepends=True)[1]


def test_where_there_is_no_room_for_all(capsys):
    """
    Those that are lost are shown, and the others counted.
    """
    from etcd_rendezvous._cli.app import console

    many = tuple(replace(A, id=f"{n}", address=f"node-{n}") for n in range(99))
    run = replace(COMPLETE, participants=(*many, lost(B), lost(C)))

    console().print(show_run(run, 4))
    one = capsys.readouterr().out
    console().print(show_report(report(*[run] * 9), 3))
    all_runs = capsys.readouterr().out

    rows = [line.split()[0] for line in one.splitlines()[3:7]]
    assert ["node-2", "node-10", "node-0", "node-1"] == rows
    assert "\nand 97 more\n" in one
    assert 3 == all_runs.count("job")
    assert "\nand 6 more\n" in all_runs
