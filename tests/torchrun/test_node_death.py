# SPDX-License-Identifier: BSD-3-Clause
"""
Any node may die, rank 0's included: through torchrun, with TCPStore sharing on.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys

import pytest

from support import etcds
from support.runs import check
from support.torchrun import clean_environment

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

# A dead node is noticed after five seconds, and a round of two begins after two.
CONF = {"last_call_timeout": 2, "keep_alive_interval": 1, "keep_alive_max_attempt": 5}


@pytest.fixture
def job(request, make_job, own_server):
    """
    A job of two or three nodes.
    """
    return make_job(
        own_server, backend=request.param, nnodes="2:3", conf=CONF, max_restarts=9
    )


def one_master_a_world(job):
    """
    Check that all workers of a round were told the same master, a new one each round.
    """
    masters = [world.master for world in job.worlds()]

    assert len(masters) == len(set(masters))
    for world in job.worlds():
        rank_0 = world.joined[0]["node"]
        assert world.master[0] == job.agents[rank_0].address


@contextlib.contextmanager
def watched(job, *arguments):
    """
    Watch a job by the command; yields a list that has its lines in the end.
    """
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "etcd_rendezvous", "status", job.run_id, "--watch"),
            *("--interval=0.3", f"--rdzv-endpoint={job.endpoint}", *arguments),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(PYTHONUNBUFFERED="1"),
    )
    lines = [process.stdout.readline().rstrip("\n")]  # It has looked.
    try:
        yield lines
    finally:
        process.terminate()
        lines += process.communicate()[0].splitlines()


@pytest.mark.parametrize("job", ["etcd-v3", "etcd-live"], indirect=True)
def test_the_node_of_rank_0_dies_a_newcomer_comes_a_worker_fails(job):
    """
    In every round all workers have the same MASTER_ADDR and MASTER_PORT, those of that
    round's rank 0, and the job ends well. Who watches is told who is missing.
    """
    for name in "abc":
        job.start(name)
    first = job.wait_for_world({"a", "b", "c"})
    job.wait_for_steps(first, 3)

    conf = ",".join(f"{name}={value}" for name, value in CONF.items())
    with (
        watched(job, f"--rdzv-conf={conf}") as lines,
        watched(job, f"--rdzv-conf={conf}", "--json") as objects,
    ):
        assert job.agents["a"].kill_node()
        second = job.wait_for_world({"b", "c"}, after=first)
        job.wait_for_steps(second, 3)

    # It sorts before all others: neither survivor's old master is right any more.
    job.start("newcomer", number=10)
    third = job.wait_for_world({"newcomer", "b", "c"}, after=second)
    job.wait_for_steps(third, 3)

    job.fail_worker("c")
    fourth = job.wait_for_world({"newcomer", "b", "c"}, after=third)
    job.wait_for_steps(fourth, 3)
    job.finish()

    assert [world.size for world in (first, second, third, fourth)] == [3, 2, 3, 3]
    ranks_0 = [one.joined[0]["node"] for one in (first, second, third, fourth)]
    assert ranks_0 == ["a", "b", "newcomer", "newcomer"]
    one_master_a_world(job)
    see_the_loss(job, lines, [check(line)["runs"][0] for line in objects])


def see_the_loss(job, lines, runs):
    """
    Check what was told to who watched while node a was lost.
    """
    a, b, c = (job.agents[name].address for name in "abc")
    text = "\n".join(lines)
    # On a busy machine one may come late, and the three meet in a later round.
    number = int(re.search(r"round (\d+) is complete: 3 nodes", text)[1])
    assert re.search(rf": {a} (is lost|left, or is gone)$", text, re.MULTILINE)
    again = f": round {number + 1} is complete with 2 nodes$"
    assert re.search(again, text, re.MULTILINE)
    assert any(a in run["missing"] for run in runs if run["phase"] == "forming")
    assert [b, c] == [one["address"] for one in runs[-1]["participants"]]
    assert [runs[0]["phase"], runs[-1]["phase"]] == ["complete", "complete"]


# `test_live.py` has more of it.
@pytest.mark.parametrize("job", ["etcd-v3"], indirect=True)
def test_sigterm_of_one_agent_does_not_close_the_run_for_the_others(job):
    """
    Whoever is told to leave leaves; the other two re-form and go on.
    """
    one_is_told_to_end(job)


@pytest.mark.parametrize("api", ["v2", "v3"])
def test_sigterm_of_one_agent_under_torchs_name(make_job, make_server, api):
    """
    So it is where torch's name is taken over, whichever API is spoken.
    """
    binary = (etcds.v2_binaries() if api == "v2" else etcds.binaries())[-1]
    flags = () if api == "v2" else binary.without_v2
    job = make_job(
        make_server(binary=binary.path, extra_args=flags),
        backend="etcd-v2",
        nnodes="2:3",
        conf=CONF,
        max_restarts=9,
    )
    one_is_told_to_end(job, environment={"ETCD_RENDEZVOUS_INSTALL": "1"})


def one_is_told_to_end(job, **options):
    """
    Start three agents, and let one of them be preempted.
    """
    for name in "abc":
        job.start(name, **options)
    first = job.wait_for_world({"a", "b", "c"})

    job.agents["a"].terminate()
    job.agents["a"].wait()
    second = job.wait_for_world({"b", "c"}, after=first)
    job.wait_for_steps(second, 3)
    job.finish()

    assert second.size == 2
    one_master_a_world(job)
