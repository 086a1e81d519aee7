# SPDX-License-Identifier: BSD-3-Clause
"""
An etcd that is away for a while ends no agent and restarts no worker.
"""

from __future__ import annotations

import re
import time
from datetime import datetime, timezone

import pytest

from support.lines import repeated
from support.state import addresses, read_live, read_state

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

#: torch's default: a node without a heartbeat for so many seconds is dead.
DEAD_AFTER = 15
#: What we say is said at most once in so many seconds.
BEAT = 10


class Outage:
    """
    What a job does while etcd is away, and shortly after.
    """

    def __init__(self, job, world, server):
        self.job = job
        self.world = world
        self.server = server
        self.began = time.monotonic()
        self.at_first = job.steps(world)
        self.said = {name: len(agent.said) for name, agent in job.agents.items()}

    def last(self, seconds):
        """
        Let it last; steps are made meanwhile.
        """
        time.sleep(max(self.began + seconds - time.monotonic(), 0))

        # A worker rests a tenth of a second at each step; machines may be slow.
        self.job.wait_for(
            "steps without etcd",
            lambda: self.job.steps(self.world) - self.at_first > seconds,
        )

    def over(self, *, spoken):
        """
        See that everybody is still there, and that it was spoken of, but not too often.
        """
        back = datetime.now(timezone.utc)
        deadline = time.monotonic() + DEAD_AFTER
        while True:
            state = read_state(self.server, self.job.run_id)
            everybody = {agent.address for agent in self.job.agents.values()}
            assert addresses(state.participants) == everybody
            assert addresses(state.last_heartbeats) == everybody
            if min(state.last_heartbeats.values()) > back:
                break
            assert time.monotonic() < deadline, state.last_heartbeats
            time.sleep(0.2)
        self.job.check()
        self.job.wait_for_steps(self.world, 3)
        assert self.job.worlds() == [self.world]
        assert {record["restarts"] for record in self.job.records()} == {0}
        assert {record["pid"] for record in self.job.records()} == self.world.pids
        most = (time.monotonic() - self.began) // BEAT + 1
        for name, agent in self.job.agents.items():
            lines = our_lines(agent, self.said[name])
            assert len(lines) <= most, lines
            if spoken:
                assert any("etcd is away" in line for line in lines), agent.said


def our_lines(agent, since=0):
    """
    List what the library said of etcd: torch's own lines name no endpoint.
    """
    endpoint = agent.endpoint.rpartition(":")[2]
    return agent.lines(f":{endpoint}", since=since)


def said_too_soon(agent):
    """
    List what the library has said twice in ten seconds, numbers aside.
    """
    line = re.compile(r"(?:INFO|WARNING|ERROR) (\S+ \S+) etcd_rendezvous: (.*)")
    found = [line.match(one) for one in agent.said.splitlines()]
    lines = [
        (datetime.fromisoformat(one[1].replace(",", ".")).timestamp(), one[2])
        for one in found
        if one
    ]
    assert len(lines) > 3  # the first of all, and some of each outage
    # A line is written a moment after it was decided to say it.
    return repeated(lines, BEAT - 0.5)


def start_and_wait_for_etcd(job, name):
    """
    Start an agent while etcd is away; return when it has found that out.
    """
    agent = job.start(name, environment={"LOGLEVEL": "INFO"})
    # The last that torchrun says before it asks us for a handler.
    job.wait_for_lines(agent, "Starting elastic_operator")
    time.sleep(1.5)
    return agent


@pytest.mark.timeout(300)
def test_etcd_goes_away_in_mid_training(make_job, own_server):
    """
    It is stopped for 8 s, killed and restarted, and stopped for longer than it takes
    to be taken for dead: nobody notices but the log, which does not repeat itself.
    """
    job = make_job(own_server)
    for name in ("a", "b"):
        job.start(name, environment={"LOGLEVEL": "INFO"})
    world = job.wait_for_world({"a", "b"})

    outage = Outage(job, world, own_server)
    own_server.pause()
    outage.last(8)
    own_server.resume()
    outage.over(spoken=True)

    outage = Outage(job, world, own_server)
    own_server.kill()
    outage.last(3)
    own_server.restart()
    outage.over(spoken=False)

    outage = Outage(job, world, own_server)
    own_server.pause()
    outage.last(DEAD_AFTER + 5)
    own_server.resume()
    outage.over(spoken=True)

    job.finish()
    assert job.worlds() == [world]
    assert [said_too_soon(agent) for agent in job.agents.values()] == [[], []]


def test_who_comes_while_etcd_is_away_does_not_take_the_others_for_dead(
    make_job, own_server
):
    """
    A newcomer that waited for etcd joins those who were there, though the heartbeats
    it finds are old.
    """
    job = make_job(
        own_server,
        nnodes="2:3",
        conf={
            "keep_alive_interval": 1,
            "keep_alive_max_attempt": 5,
            "last_call_timeout": 2,
        },
        max_restarts=9,
    )
    job.start("a")
    job.start("b")
    first = job.wait_for_world({"a", "b"})

    own_server.kill()
    killed = time.monotonic()
    newcomer = start_and_wait_for_etcd(job, "newcomer")
    # By now all heartbeats are too old.
    time.sleep(max(killed + 7 - time.monotonic(), 0))
    # The others shall not be quicker with their next heartbeats.
    with job.agents["a"].paused(), job.agents["b"].paused():
        own_server.restart()
        job.wait_for(
            "the newcomer to be there",
            lambda: (
                newcomer.address
                in addresses(read_state(own_server, job.run_id).last_heartbeats)
            ),
        )
    second = job.wait_for_world({"a", "b", "newcomer"}, after=first)
    job.finish()

    assert [world.nodes for world in job.worlds()] == [first.nodes, second.nodes]


def joined(job, server):
    """
    Return the addresses of the nodes that are there, joining or not.
    """
    if job.backend == "etcd-live":
        return read_live(server, job.run_id).addresses
    state = read_state(server, job.run_id)
    return addresses(state.participants) if state else set()


@pytest.mark.parametrize("backend", ["etcd-v3", "etcd-live"])
def test_etcd_is_restarted_while_agents_are_joining(make_job, own_server, backend):
    """
    One waits for another, etcd is killed, the other comes, etcd is there again: they
    meet.
    """
    job = make_job(own_server, backend=backend, conf={"keep_alive_interval": 1})
    one = job.start("a")
    job.wait_for("one participant", lambda: joined(job, own_server) == {one.address})

    own_server.kill()
    start_and_wait_for_etcd(job, "b")
    own_server.restart()
    world = job.wait_for_world({"a", "b"})
    job.finish()

    assert world.size == 2
