# SPDX-License-Identifier: BSD-3-Clause
"""
A job trains through a rolling restart of etcd, and through eight seconds without it.
"""

from __future__ import annotations

import time

import pytest

from faults.leader_kills import LONG
from support.security import PLAIN
from support.torchrun import Job

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

NODES = "abcd"
#: How long the quorum is away.
AWAY = 8


def pytest_generate_tests(metafunc):
    # With users and certificates it has all that the plain one has.
    is_long = metafunc.config.getoption("--fault-seconds") > LONG
    metafunc.parametrize("form", ["plain", "secured"] if is_long else ["secured"])
    metafunc.parametrize("backend", ["etcd-v3", "etcd-live"])


@pytest.fixture
def reached(form, request):
    """
    A cluster, and how it is reached.
    """
    if form == "plain":
        return request.getfixturevalue("cluster"), PLAIN
    names = "secure_cluster", "security"
    return tuple(map(request.getfixturevalue, names))


def test_training_goes_on(reached, tmp_path, run_id, report, form, backend):
    """
    While all members are restarted one by one, and while two of three are gone for 8 s,
    the same workers of four agents go on, and the job ends well.
    """
    cluster, security = reached
    with Job(
        tmp_path,
        backend,
        cluster.get_endpoint(),
        run_id,
        nnodes=str(len(NODES)),
        conf=security.rdzv_conf(),
    ) as job:
        for name in NODES:
            job.start(name, environment=security.environment())
        world = job.wait_for_world(set(NODES))

        begun, steps = time.monotonic(), job.steps(world)
        for member in cluster.members:
            member.restart()
            job.wait_for_steps(world, 5)
        restarted, after_restart = time.monotonic(), job.steps(world)

        leader = cluster.leader()
        gone = [leader, next(one for one in cluster.members if one is not leader)]
        gone[0].kill()
        gone[1].pause()
        time.sleep(AWAY)
        without = job.steps(world) - after_restart
        gone[1].resume()
        gone[0].restart()
        job.wait_for_steps(world, 5)
        job.finish()
        records = job.records()
    report(
        f"4 agents, {backend}, {form}: {after_restart - steps} steps in "
        f"{restarted - begun:.1f} s of a rolling restart, {without} in {AWAY} s "
        f"without a quorum"
    )

    # A worker rests a tenth of a second at each step; machines may be slow.
    assert without > AWAY
    assert job.worlds() == [world]
    assert {record["restarts"] for record in records} == {0}
    assert {record["pid"] for record in records} == world.pids
