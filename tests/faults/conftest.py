# SPDX-License-Identifier: BSD-3-Clause
"""
A cluster of three for each file, and clients that work on it.

A test leaves the cluster whole: `cluster` sees to that.
"""

from __future__ import annotations

import time

import pytest

from etcd_rendezvous import EtcdCluster
from faults.crew import Crew
from faults.parted import PartedCluster
from support.links import Links
from support.security import Authority, switch_authentication_on

#: What a test may take besides the run whose length is free.
BESIDES = 120

_tables = pytest.StashKey[list[str]]()


def pytest_configure(config):
    config.stash[_tables] = []


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "fault_seconds" in item.fixturenames:
            limit = BESIDES + config.getoption("--fault-seconds")
            item.add_marker(pytest.mark.timeout(limit))


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[_tables]:
        terminalreporter.section("runs with faults")
        for line in config.stash[_tables]:
            terminalreporter.write_line(line)


@pytest.fixture
def report(request):
    """
    A function that puts a line into the summary at the end.
    """
    return request.config.stash[_tables].append


@pytest.fixture(scope="session")
def fault_seconds(request):
    """
    How long a run lasts whose length is free.
    """
    return request.config.getoption("--fault-seconds")


@pytest.fixture(scope="session")
def crew():
    """
    The process whose children are the clients.
    """
    with Crew() as crew:
        yield crew


@pytest.fixture(scope="module")
def shared_cluster(newest_etcd_binary):
    """
    Three members, which speak with each other over links that can be cut.
    """
    with PartedCluster(binary=newest_etcd_binary, unsafe_no_fsync=True) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster):
    """
    Three members in good health, and so again for the next test.
    """
    yield shared_cluster
    shared_cluster.heal()
    make_whole(shared_cluster)


@pytest.fixture(scope="module")
def shared_secure_cluster(newest_etcd_binary, tmp_path_factory):
    """
    Three members that want a certificate and a user, and who that is.
    """
    authority = Authority(tmp_path_factory.mktemp("authority"))
    security = authority.security.as_user("trainer", "secret")
    with EtcdCluster(
        binary=newest_etcd_binary,
        unsafe_no_fsync=True,
        extra_args=authority.server_arguments,
    ) as cluster:
        switch_authentication_on(cluster.endpoints[0], security)
        yield cluster, security


@pytest.fixture
def secure_cluster(shared_secure_cluster):
    """
    Three members in good health that want a certificate and a user.
    """
    yield shared_secure_cluster[0]
    make_whole(shared_secure_cluster[0])


@pytest.fixture
def security(shared_secure_cluster):
    """
    How one gets into `secure_cluster`.
    """
    return shared_secure_cluster[1]


@pytest.fixture
def links(cluster):
    """
    A link before each member, for its clients.
    """
    with Links(cluster.endpoints) as links:
        yield links


def make_whole(cluster):
    """
    Resume and restart what was paused or killed, and wait for a leader.
    """
    for member in cluster.members:
        if member.pid is None:
            member.restart(wait=False)
        else:
            member.resume()
    deadline = time.monotonic() + 30
    for member in cluster.members:
        member._wait_healthy(deadline, 30)


@pytest.fixture
def at_work(crew, tmp_path, run_id):
    """
    A function (endpoints, **options) that lets clients work; see `Crew.at_work`.
    """

    def at_work(endpoints, **options):
        return crew.at_work(tmp_path, endpoints, run_id, **options)

    return at_work
