# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What `docs/operating.md` says: its commands, and what happens to jobs that run.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from etcd_rendezvous import EtcdClient, create_handler
from etcd_rendezvous._etcd_binary import ask_binary
from support import etcds
from support.live import Nodes
from support.members import Members, replaced
from support.security import Authority
from support.torchrun import wait_until

pytestmark = pytest.mark.torch

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
NAMES = ("one", "two", "three")
# What etcd says for five seconds after its members have found each other.
UNHEALTHY = "etcdserver: unhealthy cluster"


def commands(heading):
    """
    Return the words of each command of the first shell block below a heading.
    """
    text = PAGE.read_text("utf-8")
    section = re.split(rf"^#+ {heading}$", text, flags=re.MULTILINE)[1]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


# -- the commands ------------------------------------------------------------------


def test_one_member(etcd_binary, tmp_path):
    """
    The command for one member starts it, whatever its version, and serves v3.
    """
    ((program, *words),) = commands("One member")

    def command(name, data, ports):
        peer = f"http://127.0.0.1:{ports['peer', name]}"
        return [
            *replaced(
                words,
                {
                    "/var/lib/etcd": str(data),
                    "0.0.0.0:2379": f"127.0.0.1:{ports['client', name]}",
                    "HOST:2379": f"127.0.0.1:{ports['client', name]}",
                },
            ),
            # On a machine of its own it may have the default port.
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={name}={peer}",
        ]

    assert "etcd" == program
    with Members(etcd_binary, tmp_path, NAMES[:1], command) as members:
        members.wait_for("/health", kind="client")
        with EtcdClient(members.endpoints) as client:
            client.put("/probe", "x")

            assert b"x" == client.get("/probe")


def three_members(name, data, ports):
    """
    Return the command for one of three members, which all are on this machine.
    """
    ((program, *words),) = commands("Three members")
    assert "etcd" == program
    values = {
        f"{one}=https://HOST{number}:2380": (
            f"{one}=https://127.0.0.1:{ports['peer', one]}"
        )
        for number, one in enumerate(NAMES, 1)
    }
    values |= {
        "--name=NAME": f"--name={name}",
        "/var/lib/etcd": str(data),
        "https://0.0.0.0:2379": f"https://127.0.0.1:{ports['client', name]}",
        "https://HOST:2379": f"https://127.0.0.1:{ports['client', name]}",
        "https://0.0.0.0:2380": f"https://127.0.0.1:{ports['peer', name]}",
        "https://HOST:2380": f"https://127.0.0.1:{ports['peer', name]}",
        "http://127.0.0.1:2381": f"http://127.0.0.1:{ports['metrics', name]}",
    }
    return replaced(words, values)


@pytest.fixture(scope="module")
def secure_members(newest_etcd_binary, tmp_path_factory):
    """
    The three members of the page, with certificates under the page's names.
    """
    folder = tmp_path_factory.mktemp("members")
    authority = Authority(folder)
    with Members(newest_etcd_binary, folder, NAMES, three_members) as members:
        members.ca = authority.ca
        members.wait_for("/health")
        yield members


@pytest.fixture
def etcdctl_of_page(etcdctl, secure_members):
    """
    A function that runs a command of the page on members that live.
    """

    def run(words, *endpoints, may_fail=None):
        assert "etcdctl" == words[0]
        done = subprocess.run(
            [
                etcdctl,
                f"--cacert={secure_members.ca}",
                *(
                    f"--endpoints=https://{one}"
                    for one in [",https://".join(endpoints)]
                ),
                *words[1:],
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        if may_fail is not None and may_fail in done.stderr:
            return ""
        assert 0 == done.returncode, f"{words}\n{done.stderr}"
        return done.stdout

    return run


def test_a_member_is_replaced(secure_members, etcdctl_of_page, run_id):
    """
    A member that has lost its data can't come back as if nothing had been; by the page's
    commands it can. The running round does not notice, and a late node meets the others.
    """
    *living, lost = NAMES
    endpoints = secure_members.endpoints
    listed, removed, added = commands("A member is replaced")
    conf = {"protocol": "https", "ca_cert": secure_members.ca}
    with Nodes(",".join(endpoints), run_id) as nodes:
        handlers = nodes.several(2, most=3, **conf)
        first = nodes.meet(*handlers)[0].number
        secure_members.kill(lost)
        secure_members.wipe(lost)
        secure_members.start(lost)
        assert 0 != secure_members.wait_ended(lost)
        assert "has already been bootstrapped" in secure_members.said(lost)
        secure_members.kill(lost)
        secure_members.wipe(lost)

        table = etcdctl_of_page(listed, *endpoints[:2])
        (member,) = [line.split(",")[0] for line in table.splitlines() if lost in line]
        etcdctl_of_page(replaced(removed, {"ID": member}), *endpoints[:2])
        peer = f"127.0.0.1:{secure_members.ports['peer', lost]}"
        adding = replaced(added, {"NAME": lost, "HOST:2380": peer})
        wait_until(
            "a cluster that calls itself healthy",
            lambda: etcdctl_of_page(adding, *endpoints[:2], may_fail=UNHEALTHY),
            every=0.5,
        )
        secure_members.start(lost, "--initial-cluster-state=existing")
        secure_members.wait_for("/health")
        waiting = [one.num_nodes_waiting() for one in handlers]
        late = nodes.joining(nodes.make(2, 3, "127.0.0.7", **conf))
        for one in handlers:
            wait_until("the late node", lambda one=one: one.num_nodes_waiting())
        told = [one.result(60) for one in [*nodes.joining(*handlers), *late]]

    assert [0, 0] == waiting
    assert {(first + 1, 3)} == {(one.number, one.world_size) for one in told}
    assert NAMES == (*living, lost)


def test_the_remedy_for_a_quota(secure_members, etcdctl_of_page):
    """
    The commands for a quota that is used up are understood, in their order.
    """
    status, compact, defrag, disarm = commands("When the quota is used up")
    endpoints = secure_members.endpoints

    shown = etcdctl_of_page(status, *endpoints)
    told = json.loads(etcdctl_of_page([*status[:-1], "json"], *endpoints))
    revision = max(one["Status"]["header"]["revision"] for one in told)
    compacted = etcdctl_of_page(
        replaced(compact, {"REVISION": str(revision)}), *endpoints
    )
    etcdctl_of_page(defrag, *endpoints)
    etcdctl_of_page(disarm, *endpoints)

    assert all(one in shown for one in endpoints)
    assert f"compacted revision {revision}" in compacted


def test_flags_and_metrics_are_known(secure_members):
    """
    Every flag that the page names is etcd's, of one of the versions at least, and every
    metric is told by a member.
    """
    import urllib3

    text = PAGE.read_text("utf-8")
    helps = "".join(
        subprocess.run(
            [one.path, "--help"], capture_output=True, text=True, check=False
        ).stdout
        for one in etcds.binaries()
    )
    ours = {"--rdzv-endpoint", "--rdzv-conf", "--endpoints", "--config-file"}
    # The help of 3.5 leaves it out; test_factory.py uses it.
    unlisted = {"--enable-grpc-gateway"}
    flags = set(re.findall(r"`(--[a-z0-9-]+)", text)) - ours - unlisted
    url = f"http://127.0.0.1:{secure_members.ports['metrics', 'one']}/metrics"
    metrics = urllib3.request("GET", url, timeout=8).data.decode()
    named = set(re.findall(r"`((?:etcd|process)_[a-z_]+)`", text))

    assert flags
    assert [] == [flag for flag in flags if not re.search(rf"{flag}\b", helps)]
    assert 7 < len(named)
    assert [] == [name for name in named if f"\n{name}" not in metrics]


# -- what happens to jobs that run -------------------------------------------------


def v3_handler(endpoint, run_id):
    params = RendezvousParameters(
        "etcd-v3",
        endpoint,
        run_id,
        2,
        3,
        "localhost",
        # So long that none is late who looks once a second.
        last_call_timeout=4,
        keep_alive_interval=1,
    )
    return create_handler(params)


@pytest.fixture
def v3_handlers(run_id):
    """
    A function that makes a handler of `etcd-v3`, whose heartbeats end with the test.
    """
    with contextlib.ExitStack() as stack:

        def make(endpoint):
            handler = v3_handler(endpoint, run_id)
            stack.callback(handler._stop_heartbeats)
            return handler

        yield make


def test_members_are_upgraded(make_cluster, v3_handlers, run_id):
    """
    While the members of a cluster are replaced one by one by those of the next version,
    and of the one after it as soon as the last has cut its log, rounds of `etcd-live`
    and of `etcd-v3` go on; who comes afterwards meets the others.
    """
    # From 3.5 on: of each minor version one, and where there is one alone, twice.
    versions = [one for one in etcds.binaries() if one.order >= (3, 5)][-3:]
    versions = versions if len(versions) > 1 else versions * 2
    plain = ["--enable-v2=false"] if versions[0].knows_v2 else []
    cluster = make_cluster(binary=versions[0].path, extra_args=plain)
    endpoint = cluster.get_endpoint()
    with Nodes(endpoint, run_id) as nodes, ThreadPoolExecutor(3) as pool:
        live = nodes.several(2, most=3)
        first = nodes.meet(*live)[0].number
        swapped = [v3_handlers(endpoint) for _ in range(2)]
        for one in pool.map(lambda handler: handler.next_rendezvous(), swapped):
            assert 2 == one.world_size
        waiting = []
        for version in versions[1:]:
            for member in cluster.members:
                member.kill()
                member._binary = ask_binary(version.path)
                # Later ones know neither v2 nor the flag for it.
                member._extra_args = ("--snapshot-count=100",)
                member.start()
                waiting += [one.num_nodes_waiting() for one in (*live, *swapped)]
            # So many changes that the log of the last version is cut off.
            with EtcdClient(endpoint) as client:
                for _ in range(300):
                    client.put("/change", "x")
        served = {member.version for member in cluster.members}
        late = nodes.joining(nodes.make(2, 3, "127.0.0.7"))
        newcomer = v3_handlers(endpoint)
        later = pool.submit(newcomer.next_rendezvous)
        for one in (*live, *swapped):
            wait_until("the newcomers", lambda one=one: one.num_nodes_waiting())
        told = [one.result(60) for one in [*nodes.joining(*live), *late]]
        again = [pool.submit(one.next_rendezvous) for one in swapped]

        assert {0} == set(waiting)
        assert {versions[-1].version} == served
        assert {(first + 1, 3)} == {(one.number, one.world_size) for one in told}
        assert [3, 3, 3] == [one.result(60).world_size for one in [*again, later]]


@pytest.mark.parametrize("restored", [False, True], ids=["wiped", "restored"])
def test_a_round_of_v3_outlives_its_etcds_data(
    own_server, v3_handlers, tmp_path, restored
):
    """
    When etcd has lost its data, or has data of old, the running round of `etcd-v3` goes
    on. A newcomer is announced only where the run is still known; in any case it meets
    the others as soon as they join again.
    """
    endpoint = own_server.get_endpoint()
    data = own_server.data_dir / "member"
    handlers = [v3_handlers(endpoint) for _ in range(2)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda one: one.next_rendezvous(), handlers))
        own_server.kill()
        shutil.copytree(data, tmp_path / "saved")
        if restored:
            own_server.restart()
            list(pool.map(lambda one: one.next_rendezvous(), handlers))
            own_server.kill()
        shutil.rmtree(data)
        if restored:
            shutil.copytree(tmp_path / "saved", data)
        own_server.restart()

        assert [0, 0] == waits(handlers, 1)
        joining = pool.submit(v3_handlers(endpoint).next_rendezvous)
        announced = waits(handlers, 30 if restored else 1.5)
        again = [pool.submit(one.next_rendezvous) for one in handlers]

        assert ([1, 1] if restored else [0, 0]) == announced
        assert [3, 3, 3] == [one.result(60).world_size for one in [*again, joining]]


def waits(handlers, seconds):
    """
    Return how many wait, by all handlers, after some seconds, or once all say so.
    """
    until = time.monotonic() + seconds
    while True:
        found = [one.num_nodes_waiting() for one in handlers]
        if all(found) or time.monotonic() > until:
            return found
        time.sleep(0.1)
