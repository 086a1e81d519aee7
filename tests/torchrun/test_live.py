# SPDX-License-Identifier: BSD-3-Clause
"""
Whole jobs on `etcd-live`: nodes that die, are told to end, come late, or are to spare.

Most workers here never speak with each other, so that what an agent does comes from
what the rendezvous tells it, and from nothing else.
"""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from support.state import read_live
from support.torchrun import IDLE, WORKER, wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

#: How long a node lives on that says nothing, on a machine that is busy.
TTL = 6
ROOT = Path(__file__).parents[2]
QUICK = {
    "keep_alive_interval": 1,
    "keep_alive_max_attempt": TTL,
    "last_call_timeout": 60,
    "rejoin_last_call_timeout": 1,
}
#: Nobody loses a lease of its own that is so long.
SLOW = {**QUICK, "keep_alive_interval": 10}
#: What agents take to stop workers and to start others, on a machine that is busy.
RESTART = 20.0
#: What we say is said at most once in so many seconds.
BEAT = 10


@pytest.fixture
def live(make_job, own_server):
    """
    A function that returns a job on `etcd-live`: `Job`'s arguments.
    """

    def make(*, worker=(IDLE,), conf=QUICK, max_restarts=0, **options):
        return make_job(
            own_server,
            backend="etcd-live",
            worker=worker,
            conf=conf,
            max_restarts=max_restarts,
            **options,
        )

    return make


def start(job, names, server, **options):
    """
    Start agents, the first of them alone until it is the closer; return their world.
    """
    for name in names:
        agent = job.start(name, number=10 + ord(name) - ord("a"), **options)
        if name == names[0]:
            wait_until(
                f"{name} to be the closer",
                lambda: read_live(server, job.run_id).closers_address == agent.address,  # noqa: B023
            )
    return job.wait_for_world(set(names))


def seconds_until_next(job, since, nodes, world):
    """
    Return how long after a time the first worker of the next world began.
    """
    after = job.wait_for_world(nodes, after=world)
    return after, min(record["time"] for record in after.joined) - since


def our_lines(job, name, since=0):
    """
    List what we have said to a node of etcd, or of the run.

    Not that it waits for others: a slow machine lets one do so.
    """
    # Tracebacks of workers name files, and the folder may be named after us.
    said = job.agents[name].said[since:].replace(str(ROOT), "")
    return [
        line
        for line in said.splitlines()
        if ("etcd" in line or job.run_id in line) and "Waiting to join" not in line
    ]


def no_traceback(*agents):
    """
    See that nobody has shown the insides of ours.
    """
    for agent in agents:
        assert "etcd_rendezvous/" not in agent.said, agent.said


# -- nodes that die ----------------------------------------------------------------


def test_nodes_die_one_after_the_other(live, own_server):
    """
    An ordinary node, then the closer, then rank 0: those who are left meet again as
    soon as the lease has run out and the last call is over, and end well.
    """
    job = live(nnodes="1:4")
    world = start(job, "cabd", own_server)
    worlds = [world]
    for victim, left in (("d", "abc"), ("c", "ab"), ("a", "b")):
        killed = time.time()
        job.agents[victim].kill_node()
        world, seconds = seconds_until_next(job, killed, set(left), world)
        worlds.append(world)

        assert seconds < TTL + QUICK["rejoin_last_call_timeout"] + RESTART
    job.finish()

    assert job.worlds() == worlds
    assert [one.master[0] for one in worlds] == [
        job.agents[name].address for name in "aaab"
    ]
    # Membership changes are no failures.
    assert {record["restarts"] for record in job.records()} == {0}
    no_traceback(*job.agents.values())


def test_a_lost_node_is_ignored_where_that_is_asked_for(live, own_server):
    """
    With `on_node_loss=ignore` it is as in torch: nothing happens as long as no worker
    fails.
    """
    job = live(nnodes="2:3", conf={**QUICK, "on_node_loss": "ignore"})
    world = start(job, "abc", own_server)
    job.agents["c"].kill_node()
    wait_until(
        "the node to be gone", lambda: len(read_live(own_server, job.run_id).nodes) == 2
    )
    time.sleep(2)
    told = {record["pid"] for record in job.records("begun")}
    for name in "ab":
        job.agents[name].terminate()

    assert told == world.pids


# -- agents that are told to end ---------------------------------------------------


def test_an_agent_is_told_to_end(live, own_server):
    """
    First its worker stops, then its node is gone at once, and only that; the others
    meet again without waiting for its lease, and end well.
    """
    job = live(nnodes="2:3", conf=SLOW, worker=(IDLE, 1.0))
    world = start(job, "abc", own_server)
    told = job.agents["a"]
    (worker,) = (one["pid"] for one in world.joined if one["node"] == "a")
    told.terminate()

    def state():
        # In this order: whoever is seen to be alive now was so before, too.
        found = read_live(own_server, job.run_id)
        return told.address in found.addresses, psutil.pid_exists(worker), found.closed

    seen = set()
    wait_until(
        "the node to be gone",
        lambda: seen.add(now := state()) or not now[0],
        every=0.02,
    )
    gone = time.time()
    told.wait()
    ended = time.time()
    second, seconds = seconds_until_next(job, gone, {"b", "c"}, world)
    job.finish()

    (stopped,) = (one["time"] for one in job.records("ended", nodes={"a"}))
    assert stopped < gone
    assert (False, True, False) not in seen, "the node was gone before its worker"
    assert not any(closed for _, _, closed in seen)
    assert ended - stopped < RESTART
    # Others notice its end as soon as it comes.
    assert seconds < RESTART
    assert job.worlds() == [world, second]
    assert {one["restarts"] for one in second.joined} == {0}
    no_traceback(*job.agents.values())


def test_an_agent_is_told_to_end_while_it_waits(live, own_server):
    """
    A node whose first round has not begun is gone as soon as it is told to end; nothing
    is closed, and the next ones meet.
    """
    job = live(nnodes="2", conf=SLOW)
    job.start("early")
    wait_until("the node", lambda: read_live(own_server, job.run_id).nodes)
    early = job.agents["early"]
    early.terminate()
    assert early.wait() == 1
    state = read_live(own_server, job.run_id)
    world = start(job, "ab", own_server)
    job.finish()

    assert (state.nodes, state.closer, state.closed) == ({}, None, False)
    assert world.size == 2
    assert "closed" not in early.said


# -- agents that are done ----------------------------------------------------------


def test_agents_that_finish_apart(live, own_server):
    """
    Of three agents one is done longer than a lease before the others: all end well, and
    no worker of theirs is started again.
    """
    job = live(nnodes="3")
    world = start(job, "abc", own_server)
    job.stop("a")
    job.wait_for("a's end", lambda: job.records("ended"))
    job.wait_for_steps(world, 0)
    time.sleep(TTL + 2)
    job.stop("c")
    job.finish()

    assert job.worlds() == [world]
    assert {record["pid"] for record in job.records()} == world.pids
    for name in job.agents:
        assert our_lines(job, name) == []


def test_who_waits_at_its_end_is_not_waited_for(live, own_server):
    """
    An agent that is done waits in torch's exit barrier, and joins no more. A late node is
    turned away then, a lost one not missed: the last one trains on.
    """
    job = live(nnodes="2:3")
    world = start(job, "abc", own_server)
    job.stop("a")
    job.wait_for("a's end", lambda: job.records("ended"))
    job.wait_for("the closing", lambda: read_live(own_server, job.run_id).closed)
    late = job.start("late")
    late.ended = True
    assert late.wait() == 1
    assert "is closed" in late.said
    victim = job.agents["c"]
    victim.ended = True
    victim.kill_node()
    time.sleep(TTL + 1)
    before = len(job.records("step", nodes={"b"}))
    job.wait_for("b", lambda: len(job.records("step", nodes={"b"})) > before + 2)

    assert job.worlds() == [world]
    assert {record["pid"] for record in job.records()} == world.pids
    # torch's barrier waits for the lost one, too: 300 s.
    for name in "ab":
        job.agents[name].ended = True
        job.agents[name].process.kill()


def test_a_run_that_is_closed_while_some_still_train(live, own_server):
    """
    A node that has failed for good closes the run. The others train on; who comes
    meanwhile is told in one sentence; after the last of them the id is free at once.
    """
    job = live(nnodes="2:3")
    world = start(job, "abc", own_server)
    failing = job.agents["a"]
    failing.ended = True
    job.fail_worker("a")
    assert failing.wait() == 1
    assert read_live(own_server, job.run_id).closed
    late = job.start("late")
    late.ended = True
    assert late.wait() == 1
    job.wait_for("more than a lease to pass", lambda: failed_for(job) > TTL + 1)
    # An agent that has done its work would wait for all others (torch: 300 s).
    for name in "bc":
        job.agents[name].terminate()
    for name in "bc":
        job.agents[name].wait()
    again = live(nnodes="2")
    start(again, "ab", own_server)
    again.finish()

    assert {record["pid"] for record in job.records()} == world.pids
    (line,) = {one[one.index("The rend") :] for one in late.lines("is closed")}
    assert line == (
        f"The rendezvous '{job.run_id}' is closed. Its run id is free again when the "
        "last of its agents has ended; or use another run id."
    )
    for name in again.agents:
        assert our_lines(again, name) == []


def failed_for(job):
    (failed,) = job.records("failing")
    return time.time() - failed["time"]


# -- spares, and those who are late ------------------------------------------------


def test_a_spare_steps_in(live, own_server):
    """
    A node too many waits longer than it may take to join; it steps in as soon as a
    lease has run out, without a last call. One that is not needed ends with the job.
    """
    job = live(nnodes="2:2")
    world = start(job, "ab", own_server)
    for name in ("spare", "unneeded"):
        job.start(name, conf={"join_timeout": 15})
    wait_until("all", lambda: len(read_live(own_server, job.run_id).nodes) == 4)
    time.sleep(15 + 1)
    job.check()

    killed = time.time()
    job.agents["a"].kill_node()
    job.wait_for(
        "another world", lambda: job.worlds()[-1] != world and job.worlds()[-1]
    )
    second = job.worlds()[-1]
    (stepped_in,) = second.nodes - {"b"}
    (other,) = {"spare", "unneeded"} - {stepped_in}
    seconds = min(record["time"] for record in second.joined) - killed
    job.agents[other].ended = True
    job.finish()
    job.agents[other].wait()

    assert seconds < TTL + RESTART
    # What torch's launcher makes of a spare's end is its own affair.
    no_traceback(*job.agents.values())
    assert job.worlds() == [world, second]


def test_a_late_node_and_an_order_of_ones_own(live, own_server):
    """
    A node that comes late is announced, and all meet again. Ranks follow the order that
    nodes bring, as a setting or in the environment, before their addresses.
    """
    job = live(nnodes="2:3", conf={**QUICK, "last_call_timeout": 1})
    order = "ETCD_RENDEZVOUS_RANK_ORDER"
    job.start("a", environment={order: "rack10"})
    job.start("b", conf={"rank_order": "rack9"}, environment={order: "rack11"})
    first = job.wait_for_world({"a", "b"})
    job.start("late", environment={order: "rack1"})
    second = job.wait_for_world({"a", "b", "late"}, after=first)
    job.finish()

    assert [one["node"] for one in first.joined] == ["b", "a"]
    assert [one["node"] for one in second.joined] == ["late", "b", "a"]
    assert job.worlds() == [first, second]


# -- workers that fail -------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False], ids=["agents-store", "own-store"])
def test_workers_that_fail(live, own_server, shared):
    """
    Twice a worker fails, and all meet again with a new master, the same for all.
    """
    job = live(nnodes="2", worker=(WORKER,), max_restarts=2)
    environment = {} if shared else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    worlds = [start(job, "ab", own_server, environment=environment)]
    for name in "ab":
        job.fail_worker(name)
        worlds.append(job.wait_for_world({"a", "b"}, after=worlds[-1]))
    job.finish()

    assert job.worlds() == worlds
    masters = [world.master for world in worlds]
    assert {address for address, _ in masters} == {job.agents["a"].address}
    assert len(set(masters)) == 3
    for name in job.agents:
        assert our_lines(job, name) == []


# -- etcd goes away ----------------------------------------------------------------


def test_etcd_goes_away_for_longer_than_a_lease(live, own_server):
    """
    Killed and started again on its data, then stopped in its tracks and let go on: the
    same workers train on, and of each outage a line is said, and one of its end.
    """
    job = live(nnodes="2:3")
    world = start(job, "abc", own_server)
    for take_away, give_back in (
        (own_server.kill, own_server.restart),
        (own_server.pause, own_server.resume),
    ):
        since = {name: len(agent.said) for name, agent in job.agents.items()}
        # Who has just said that it waits says no more for a while.
        silent = {name for name, agent in job.agents.items() if agent.lines("Waiting")}
        began = time.monotonic()
        take_away()
        time.sleep(TTL + 2)
        give_back()
        wait_until("etcd", lambda: len(read_live(own_server, job.run_id).nodes) == 3)
        time.sleep(2)
        job.check()
        steps = job.steps(world)
        job.wait_for_steps(world, 1)
        assert steps
        most = (time.monotonic() - began) // BEAT + 1
        for name, agent in job.agents.items():
            lines = our_lines(job, name, since[name])
            away = [line for line in lines if "etcd is away" in line]
            assert (name not in silent) <= len(away) <= most, agent.said
            assert len(lines) - len(away) <= 2, agent.said
    job.finish()

    assert job.worlds() == [world]
    assert {record["pid"] for record in job.records()} == world.pids
    no_traceback(*job.agents.values())


# -- what is said while waiting ----------------------------------------------------


def test_what_is_said_to_who_waits(live, own_server):
    """
    After ten seconds, and no more often, who is in, how many are needed, and who of the
    last round is missing.
    """
    job = live(nnodes="3", conf={**QUICK, "join_timeout": 200})
    start(job, "abc", own_server)
    a, b, c = job.agents.values()
    since = len(a.said)
    killed = time.monotonic()
    c.kill_node()
    (line,) = job.wait_for(
        "a to speak", lambda: a.lines("Waiting to join", since=since)
    )
    spoken = time.monotonic()
    for agent in (a, b):
        agent.terminate()
        agent.wait()

    assert spoken - killed > BEAT
    left = int(line.split(" s left")[0].rpartition(" ")[2])
    assert 150 <= left <= 190
    assert f"2 joined ({a.address}, {b.address}), 3 needed for round 1" in line
    assert f"1 of round 0 is missing ({c.address})" in line
