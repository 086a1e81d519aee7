# SPDX-License-Identifier: BSD-3-Clause
"""
Whole jobs on an etcd that wants a user; nobody sees the password.
"""

from __future__ import annotations

import psutil
import pytest

from support.users import PASSWORD, USER, switch_authentication_on

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

TALKATIVE = ["--event-log-handler=console"]


@pytest.fixture
def guarded(own_server):
    """
    A server that wants a user.
    """
    switch_authentication_on(own_server.get_endpoint())
    return own_server


def command_lines():
    """
    What everybody on this machine can see of all processes.
    """
    return [
        " ".join(one.info["cmdline"] or ()) for one in psutil.process_iter(["cmdline"])
    ]


@pytest.mark.parametrize("backend", ["etcd-v3", "etcd-live"])
def test_a_password_is_seen_by_nobody(make_job, guarded, tmp_path, backend):
    """
    Given in the environment on one node and in a file on the other, the password is in
    no line of agents and workers at DEBUG, in no event of torch's and in no command
    line; they meet, work and end.
    """
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", "utf-8")
    job = make_job(guarded, backend=backend)
    told = {"LOGLEVEL": "DEBUG", "ETCD_RENDEZVOUS_USER": USER}
    job.start(
        "a",
        environment={**told, "ETCD_RENDEZVOUS_PASSWORD": PASSWORD},
        arguments=TALKATIVE,
    )
    job.start(
        "b",
        environment={"LOGLEVEL": "DEBUG"},
        conf={"user": USER, "password_file": file},
        arguments=TALKATIVE,
    )
    world = job.wait_for_world({"a", "b"})
    job.wait_for_steps(world, 3)
    lines = command_lines()
    job.finish()

    assert any(f"user={USER}" in line for line in lines)
    assert all(PASSWORD not in line for line in lines)
    for agent in job.agents.values():
        assert "DEBUG" in agent.said
        assert agent.lines("Authenticated as", USER)
        # torch's own account of the rendezvous.
        assert "'rdzv_backend'" in agent.said or '"rdzv_backend"' in agent.said
    for path in job.folder.rglob("*"):
        if path.is_file():
            assert PASSWORD not in path.read_text("utf-8", errors="replace")


def test_a_wrong_password(make_job, guarded):
    """
    It ends the agent at once, with one plain line.
    """
    job = make_job(guarded, nnodes="1")
    environment = {
        "ETCD_RENDEZVOUS_USER": USER,
        "ETCD_RENDEZVOUS_PASSWORD": "another-42",
    }
    agent = job.start("a", environment=environment)

    assert agent.wait() == 1
    words = f"etcd does not know the user '{USER}' with this password"
    assert agent.lines("Could not read the key", words)
    assert "another-42" not in agent.said
