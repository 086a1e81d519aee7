# SPDX-License-Identifier: BSD-3-Clause
"""
One job script, and no change but the name of the backend.
"""

from __future__ import annotations

import socket

import psutil
import pytest

from support import etcds
from support.state import keys
from support.torchrun import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

V3_GATEWAY_OFF = ("--enable-grpc-gateway=false",)


def meet(job, **options):
    """
    Let two agents meet, train and end; return their world.

    Args:
        job: The job.
        options: Options of single agents, by name.
    """
    for name in "ab":
        job.start(name, **options.get(name, {}))
    world = job.wait_for_world({"a", "b"})
    job.finish()

    assert job.worlds() == [world]
    assert world.size == 2
    assert world.master[0] == job.agents["a"].address
    return world


def our_words(job):
    """
    List what was said of etcd, beside that a slow machine lets one wait for the other.
    """
    lines = [line for agent in job.agents.values() for line in agent.lines("etcd")]
    return [line for line in lines if "Waiting to join" not in line]


def test_c10d(make_job):
    """
    The script works with torch's own backend, so it is an ordinary one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    # A node hosts the store if the endpoint's address is its own.
    meet(make_job(backend="c10d", endpoint=f"127.0.0.1:{port}"))


def test_torch_etcd_v2(v2_server, make_job):
    """
    It works with torch's etcd-v2, where etcd still serves v2.
    """
    meet(make_job(v2_server, backend="etcd-v2"))


def test_etcd_v3(etcd_server, make_job):
    """
    It works with etcd-v3, on every version of etcd, and nothing is complained of.
    """
    job = make_job(etcd_server, backend="etcd-v3")
    meet(job)

    assert our_words(job) == []


@pytest.mark.parametrize("which", [0, -1], ids=["oldest", "newest"])
def test_etcd_live(make_job, make_server, which):
    """
    It works with etcd-live, and nothing is complained of.
    """
    server = make_server(binary=etcds.binaries()[which].path)
    job = make_job(server, backend="etcd-live")
    meet(job)

    assert our_words(job) == []


def test_nothing_is_left_of_a_job(make_job, own_server):
    """
    What a job has kept in etcd goes away with its last agent, after the times that its
    settings say.
    """
    job = make_job(
        own_server, backend="etcd-v3", conf={"closed_ttl": 2, "store_ttl": 6}
    )
    meet(job)
    wait_until("an empty etcd", lambda: not keys(own_server, job.run_id), seconds=30)


def test_etcd_auto(make_job, own_server):
    """
    It works with etcd-auto, which takes v3 from a new etcd.
    """
    job = make_job(own_server, backend="etcd-auto")
    meet(job)

    assert our_words(job) == []


@pytest.mark.parametrize("first", ["etcd-v2", "etcd-auto"])
def test_torch_etcd_v2_and_our_etcd_auto_meet(make_job, make_server, first):
    """
    On a server that answers v2 alone, an agent with torch's etcd-v2 and one with our
    etcd-auto are one job, whoever is rank 0.
    """
    # The oldest and the newest that know v2.
    binary = etcds.v2_binaries()[0 if first == "etcd-v2" else -1]
    server = make_server(binary=binary.path, extra_args=V3_GATEWAY_OFF)
    (second,) = {"etcd-v2", "etcd-auto"} - {first}
    job = make_job(server)
    meet(job, a={"backend": first}, b={"backend": second})


def test_etcd_auto_where_v2_is_all_there_is(make_job, make_server):
    """
    It works with etcd-auto on a server with v2 only.
    """
    binary = etcds.v2_binaries()[-1].path
    server = make_server(binary=binary, extra_args=V3_GATEWAY_OFF)
    job = make_job(server, backend="etcd-auto")
    meet(job)

    assert our_words(job) == []


def embedded_etcds(pid):
    """
    List the etcd servers of a process that was their parent.
    """
    return [
        process.cmdline()
        for process in psutil.process_iter(["name", "ppid"])
        if process.info["name"] == "etcd" and process.info["ppid"] == pid
    ]


def test_one_node_with_an_etcd_of_its_own(make_job, newest_etcd_binary):
    """
    `localhost:0` starts an etcd for a job of one node, under the other name too, and
    it ends with the job.
    """
    job = make_job(
        backend="etcd-rendezvous-v3", endpoint="localhost:0", nnodes="1", nproc=2
    )
    agent = job.start(
        "a", environment={"TORCHELASTIC_ETCD_BINARY_PATH": newest_etcd_binary}
    )
    world = job.wait_for_world({"a"})
    assert len(embedded_etcds(agent.process.pid)) == 1
    job.finish()

    assert world.size == 2
    assert world.master[0] == agent.address
    assert list(job.processes()) == []
