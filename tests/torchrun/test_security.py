# SPDX-License-Identifier: BSD-3-Clause
"""
Whole jobs on an etcd that wants a user; nobody sees the password.
"""

from __future__ import annotations

import base64
import contextlib

import psutil
import pytest

from support import etcds
from support.users import (
    PASSWORD,
    USER,
    switch_authentication_on,
    switch_v2_authentication_on,
)

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

TALKATIVE = ["--event-log-handler=console"]


@pytest.fixture
def guarded(own_server):
    """
    A server that wants a user.
    """
    switch_authentication_on(own_server.get_endpoint())
    return own_server


def command_lines(job):
    """
    What everybody on this machine can see of the job's processes.

    Other tests, which may run just now, tell etcdctl the password so.
    """
    found = []
    for process in job.processes():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


@pytest.fixture
def guarded_v2(make_server):
    """
    A server that has v2 alone, and wants a user.
    """
    server = make_server(
        binary=etcds.v2_binaries()[-1].path,
        extra_args=["--enable-grpc-gateway=false"],
    )
    switch_v2_authentication_on(server.get_endpoint())
    return server


@pytest.mark.parametrize(
    ("backend", "server"),
    [("etcd-v3", "guarded"), ("etcd-live", "guarded"), ("etcd-auto", "guarded_v2")],
)
def test_a_password_is_seen_by_nobody(make_job, request, tmp_path, backend, server):
    """
    Given in the environment on one node and in a file on the other, the password is in
    no line of agents and workers at DEBUG, in no event of torch's and in no command
    line; they meet, work and end.
    """
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", "utf-8")
    job = make_job(request.getfixturevalue(server), backend=backend)
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
    lines = command_lines(job)
    job.finish()

    assert any(f"user={USER}" in line for line in lines)
    secrets = PASSWORD, base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert not any(secret in line for line in lines for secret in secrets)
    for agent in job.agents.values():
        if server == "guarded":  # On v2 the password goes with every request.
            assert agent.lines("DEBUG", "Authenticated as", USER)
        # torch's own account of the rendezvous.
        assert "'rdzv_backend'" in agent.said or '"rdzv_backend"' in agent.said
    for path in job.folder.rglob("*"):
        if path.is_file():
            said = path.read_text("utf-8", errors="replace")
            assert not any(secret in said for secret in secrets)


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
