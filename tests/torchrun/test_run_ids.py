# SPDX-License-Identifier: BSD-3-Clause
"""
Run ids as people choose them, and run ids that come again.
"""

from __future__ import annotations

import time

import pytest

from support.state import read_state
from support.torchrun import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

# torchrun makes a folder of that name for its logs.
LONGEST = 240


def meet(job):
    """
    Let two agents meet, train and end; see that nobody else was with them.
    """
    for name in "ab":
        job.start(name)
    world = job.wait_for_world({"a", "b"})
    job.finish()

    assert world.size == 2
    assert job.worlds() == [world]


@pytest.mark.parametrize(
    "odd",
    ["none", "with space", "größe-日本-🦊", "50%/..", "x" * LONGEST],
    ids=lambda text: ascii(text[:12]),
)
def test_an_odd_run_id(make_job, own_server, odd):
    """
    Agents meet under any run id.
    """
    job = make_job(own_server, run_id=odd)
    # torchrun's own need, for an id with a slash.
    (job.folder / "logs" / odd).parent.mkdir(parents=True, exist_ok=True)
    meet(job)

    assert read_state(own_server, odd).closed


def test_an_odd_run_id_on_etcd_live(make_job, own_server):
    """
    The same on `etcd-live`; and when its agents have ended the id is free at once.
    """
    for _ in range(2):
        meet(make_job(own_server, backend="etcd-live", run_id="größe 日本-🦊"))


def test_run_ids_that_begin_alike(make_job, own_server):
    """
    Jobs whose ids are the beginning of each other, at the same time, never meet.
    """
    jobs = [
        make_job(own_server, run_id=one, nnodes="1:4") for one in ("j", "j1", "j/1")
    ]
    for job in jobs:
        (job.folder / "logs" / "j").mkdir(parents=True)
        job.conf = {"last_call_timeout": 1}
        job.start("a")
    for job in jobs:
        job.wait_for_world({"a"})
    for job in jobs:
        job.finish()
        assert [world.size for world in job.worlds()] == [1]


def test_two_jobs_of_one_node_with_default_ids(make_job, newest_etcd_binary):
    """
    Jobs of one node that name neither id nor endpoint, at the same time, never meet.
    """
    binary = {"TORCHELASTIC_ETCD_BINARY_PATH": newest_etcd_binary}
    jobs = [make_job(run_id=None, endpoint=None, nnodes="1", nproc=2) for _ in range(2)]
    for job in jobs:
        job.start("a", environment=binary)
    worlds = [job.wait_for_world({"a"}) for job in jobs]
    for job in jobs:
        job.finish()
        assert not job.agents["a"].lines("The run id is 'none'")

    assert [world.size for world in worlds] == [2, 2]
    assert worlds[0].master[1] != worlds[1].master[1]


def test_requeued_after_its_end(make_job, own_server, run_id):
    """
    A job that ended comes again under its id, as Slurm's requeue does: too early it is
    told how long to wait, and after so long it meets.
    """
    # Long enough for the early ones to start, on a machine that is busy.
    conf = {"closed_ttl": 40}
    former = make_job(own_server, conf=conf)
    meet(former)

    early = make_job(own_server, conf=conf)
    agents = [early.start(name) for name in "ab"]
    assert [agent.wait() for agent in agents] == [1, 1]
    for agent in agents:
        (line, *_) = agent.lines("RendezvousClosedError", f"'{run_id}' is closed")
        left = int(line.split("free again in ")[1].split()[0])
        assert 0 <= left <= 40

    # The early ones have not made it any longer.
    started = time.monotonic()
    wait_until("the run id to be free", lambda: not read_state(own_server, run_id))
    assert time.monotonic() - started <= left + 5
    meet(make_job(own_server, conf=conf))


def test_requeued_after_its_death(make_job, own_server):
    """
    A job whose agents were all told to end comes again under its id at once: nothing
    was closed.
    """
    conf = {"keep_alive_interval": 1, "last_call_timeout": 1}
    former = make_job(own_server, conf=conf)
    for name in "ab":
        former.start(name)
    former.wait_for_world({"a", "b"})
    for agent in former.agents.values():
        agent.terminate()
    for agent in former.agents.values():
        agent.wait()

    meet(make_job(own_server, conf=conf))
