# SPDX-License-Identifier: BSD-3-Clause
"""
Local etcd servers and clusters, with real processes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import trustme
import urllib3

from etcd_rendezvous import _server
from etcd_rendezvous._errors import EtcdServerError
from etcd_rendezvous._server import (
    EtcdCluster,
    EtcdServer,
    EtcdServerTimeoutError,
    PortTakenError,
)

KEY = base64.b64encode(b"key").decode()
VALUE = base64.b64encode(b"value").decode()


def ask(server, path, body=None, *, timeout=5.0):
    """
    Send one request; return status and body.
    """
    with urllib3.PoolManager(retries=False, timeout=timeout) as pool:
        reply = pool.request(
            "GET" if body is None else "POST",
            f"http://{server.get_endpoint()}{path}",
            body=None if body is None else json.dumps(body),
        )
        return reply.status, reply.data


def put(server):
    assert ask(server, "/v3/kv/put", {"key": KEY, "value": VALUE})[0] == 200


def has_key(server):
    _, data = ask(server, "/v3/kv/range", {"key": KEY})
    return [kv["value"] for kv in json.loads(data).get("kvs", [])] == [VALUE]


def runs(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def gone_within(pid, seconds):
    deadline = time.monotonic() + seconds
    while runs(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def port_is_free(port):
    return _server.bind_error("127.0.0.1", port) is None


@contextlib.contextmanager
def listener():
    with _server.free_ports(1, ["127.0.0.1"]) as ports:
        yield ports[0]


# --- Every version


def test_life_of_a_server(etcd_binary):
    """
    A server is healthy when start returns, keeps port and data through a kill, a
    restart and a pause, and leaves neither process, port nor data behind.
    """
    server = EtcdServer(binary=etcd_binary)
    with server:
        port, pid, data_dir = server.get_port(), server.pid, server.data_dir
        assert server.get_endpoint() == f"localhost:{port}"
        assert json.loads(ask(server, "/version")[1])["etcdserver"] == server.version
        assert (ask(server, "/v2/keys/")[0] == 200) is server.serves_v2
        assert f"{server.version} at localhost:{port}: running, pid" in repr(server)

        put(server)
        server.kill()
        assert not runs(pid)
        assert server.pid is None
        assert data_dir.is_dir()
        assert repr(server).endswith(": killed>")

        server.restart()
        assert (server.get_port(), server.data_dir) == (port, data_dir)
        assert has_key(server)

        server.pause()
        assert ": paused, pid" in repr(server)
        with pytest.raises(urllib3.exceptions.ReadTimeoutError):
            ask(server, "/health", timeout=0.3)
        server.resume()
        assert ask(server, "/health")[0] == 200
        pid = server.pid
    server.stop()

    assert not runs(pid)
    assert port_is_free(port)
    assert not data_dir.exists()
    assert repr(server).endswith(": stopped>")


def test_life_of_a_cluster(etcd_binary):
    """
    A cluster of three survives the death of its leader, who comes back as a member.
    """
    with EtcdCluster(binary=etcd_binary) as cluster:
        leader = cluster.leader()
        put(leader)
        leader.kill()
        successor = cluster.leader()
        assert successor is not leader
        assert has_key(successor)

        leader.restart()
        assert has_key(leader)
        assert cluster.get_endpoint() == ",".join(cluster.endpoints)
        assert len(set(cluster.endpoints)) == 3
        assert repr(cluster).count(": running, pid ") == 3
        pids = [member.pid for member in cluster.members]

    assert not any(map(runs, pids))
    assert repr(cluster).count(": stopped") == 3


def test_health_does_not_need_the_gateway(etcd_binary):
    """
    A server whose JSON gateway is off is found healthy too.
    """
    off = ["--enable-grpc-gateway=false"]
    with EtcdServer(binary=etcd_binary, extra_args=off) as server:
        assert ask(server, "/v3/kv/range", {"key": KEY})[0] == 404
        assert (ask(server, "/v2/keys/")[0] == 200) is server.serves_v2


def test_client(etcd_server):
    """
    Where the v2 API is served, the client is python-etcd's, as torch's is; else ours.
    """
    client = etcd_server.get_client()
    kind = f"{type(client).__module__}.{type(client).__name__}"

    if etcd_server.serves_v2:
        assert kind == "etcd.client.Client"
        assert client.version_prefix == "/v2"
        assert (client.host, client.port) == ("localhost", etcd_server.get_port())
        assert client.version == etcd_server.version
    else:
        assert kind == "etcd_rendezvous._v3.client.EtcdClient"
        assert f"localhost:{etcd_server.get_port()}" in repr(client)
        client.close()


# --- Data and ports


def test_named_data_folder_is_kept(newest_etcd_binary, tmp_path):
    """
    A folder that the caller named outlives the server, and the next one finds it.
    """
    folder = tmp_path / "deep" / "data"
    with EtcdServer(folder, binary=newest_etcd_binary) as server:
        put(server)
    with EtcdServer(str(folder), binary=newest_etcd_binary) as server:
        found = has_key(server)

    assert found
    assert (folder / "etcd.log").is_file()


def test_server_starts_afresh_after_stop(newest_etcd_binary):
    """
    What is started again after stop has no data of the time before.
    """
    server = EtcdServer(binary=newest_etcd_binary)
    with server:
        put(server)
    with server:
        assert not has_key(server)


def test_fsync_can_be_left_out(newest_etcd_binary):
    """
    The switch for throw-away data is passed to a binary that knows it.
    """
    with EtcdServer(binary=newest_etcd_binary, unsafe_no_fsync=True) as server:
        assert "--unsafe-no-fsync=true" in psutil.Process(server.pid).cmdline()


def test_taken_port_is_named_at_once(newest_etcd_binary):
    """
    A port that another program listens on is refused by its number, at once.
    """
    with listener() as port:
        server = EtcdServer(binary=newest_etcd_binary, port=port)
        began = time.monotonic()
        with pytest.raises(PortTakenError, match=rf"^Port {port} is taken") as caught:
            server.start()

    assert caught.value.port == port
    assert time.monotonic() - began < 20
    assert server.pid is None
    assert server.data_dir is None


@pytest.mark.parametrize("make", [EtcdServer, EtcdCluster])
def test_lost_race_for_a_port_is_run_again(newest_etcd_binary, monkeypatch, make):
    """
    If a chosen port is taken before etcd binds it, other ports are tried.
    """
    choose = _server.free_ports
    with listener() as taken:
        tries = []

        @contextlib.contextmanager
        def unlucky(count, addresses):
            with choose(count, addresses) as ports:
                tries.append(count)
                yield [taken, *ports[1:]] if len(tries) == 1 else ports

        monkeypatch.setattr(_server, "free_ports", unlucky)
        with make(binary=newest_etcd_binary) as started:
            assert str(taken) not in started.get_endpoint()

    assert len(tries) > 1


def test_race_lost_again_and_again_is_an_error(newest_etcd_binary, monkeypatch):
    """
    After as many tries as were allowed the error says which port was taken.
    """
    with listener() as taken:

        @contextlib.contextmanager
        def unlucky(count, _addresses):
            yield [taken] * count

        monkeypatch.setattr(_server, "free_ports", unlucky)
        server = EtcdServer(binary=newest_etcd_binary)
        with pytest.raises(PortTakenError, match=f"Port {taken} is taken"):
            server.start(num_retries=2)


def test_address_of_another_machine_is_refused(newest_etcd_binary):
    """
    An address that this machine does not have is refused by name.
    """
    server = EtcdServer(binary=newest_etcd_binary, host="192.0.2.1")
    with pytest.raises(EtcdServerError, match=r"^Can't listen on 192\.0\.2\.1"):
        server.start()


def test_only_loopback_is_listened_on(newest_etcd_binary):
    """
    Nobody reaches the server from outside, unless an address is named.
    """
    with EtcdServer(binary=newest_etcd_binary) as server:
        hosts = {one.laddr.ip for one in psutil.Process(server.pid).net_connections()}
    with EtcdServer(binary=newest_etcd_binary, host="0.0.0.0") as server:
        open_hosts = {
            one.laddr.ip
            for one in psutil.Process(server.pid).net_connections()
            if one.laddr.port == server.get_port() and one.status == "LISTEN"
        }
        assert server.get_host() == "localhost"

    assert hosts <= {"127.0.0.1", "::1"}
    assert open_hosts <= {"0.0.0.0", "::"}


def test_tls(newest_etcd_binary, tmp_path):
    """
    With certificates among the extra arguments clients are served by TLS, and health
    is found without it.
    """
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = [
        f"--cert-file={tmp_path / 'cert.pem'}",
        f"--key-file={tmp_path / 'key.pem'}",
        f"--trusted-ca-file={tmp_path / 'ca.pem'}",
        "--client-cert-auth",
    ]
    with (
        EtcdServer(binary=newest_etcd_binary, extra_args=tls) as server,
        urllib3.PoolManager(
            retries=False,
            timeout=5.0,
            ca_certs=str(tmp_path / "ca.pem"),
            cert_file=str(tmp_path / "cert.pem"),
            key_file=str(tmp_path / "key.pem"),
        ) as pool,
    ):
        reply = pool.request("GET", f"https://{server.get_endpoint()}/version")

    assert reply.json()["etcdserver"] == server.version


# --- What goes wrong


def test_early_end_is_reported_with_the_log(newest_etcd_binary):
    """
    An etcd that ends at once is an error with its exit status and its last words.
    """
    server = EtcdServer(binary=newest_etcd_binary, extra_args=["--no-such-flag"])
    with pytest.raises(
        EtcdServerError, match=r"ended with exit status [12] before(.|\n)*no-such-flag"
    ):
        server.start()

    assert server.pid is None
    assert server.data_dir is None


def test_server_that_is_not_healthy_in_time(newest_etcd_binary, tmp_path):
    """
    A server that never answers is a TimeoutError, and is killed.
    """
    silent = tmp_path / "silent"
    silent.write_text(
        f'#!/bin/sh\n[ $# = 1 ] && exec {newest_etcd_binary} "$1"\n'
        f"echo $$ > {tmp_path / 'pid'}\nexec sleep 60\n"
    )
    silent.chmod(0o755)
    server = EtcdServer(binary=silent)
    with pytest.raises(TimeoutError, match=r"was not healthy within 3 s") as caught:
        server.start(timeout=3)

    assert isinstance(caught.value, EtcdServerTimeoutError)
    assert not runs(int((tmp_path / "pid").read_text()))


def test_start_of_a_running_server_is_refused(newest_etcd_binary):
    """
    A server that runs is not started a second time.
    """
    with EtcdServer(binary=newest_etcd_binary) as server:
        pid = server.pid
        with pytest.raises(EtcdServerError, match="runs already"):
            server.start()
        assert server.pid == pid


def test_server_that_does_not_run_can_not_be_paused(newest_etcd_binary):
    """
    Pause, resume and restart of a server that was never started are refused.
    """
    server = EtcdServer(binary=newest_etcd_binary)
    for action in (server.pause, server.resume, server.restart):
        with pytest.raises(EtcdServerError):
            action()
    server.kill()
    server.stop()


def test_end_of_etcd_is_seen(newest_etcd_binary):
    """
    When etcd ends by itself, wait returns its status and the repr says it.
    """
    with EtcdServer(binary=newest_etcd_binary) as server:
        assert server.wait(0.01) is None
        os.kill(server.pid, signal.SIGKILL)
        assert server.wait(10) == -signal.SIGKILL
        assert repr(server).endswith(": killed by SIGKILL>")


def test_log_goes_where_the_caller_says(newest_etcd_binary, tmp_path):
    """
    A file for stderr gets etcd's log, and no other log is kept.
    """
    server = EtcdServer(binary=newest_etcd_binary, extra_args=["--log-level=info"])
    with (tmp_path / "log").open("wb") as file:
        server.start(stderr=file)
    try:
        assert not (server.data_dir / "etcd.log").exists()
        assert b"ready to serve" in (tmp_path / "log").read_bytes()
    finally:
        server.stop()


def test_leader_of_a_cluster_without_quorum(make_cluster):
    """
    Without a quorum nobody leads; a member can be started again without waiting.
    """
    cluster = make_cluster()
    for member in cluster.members[1:]:
        member.kill()
    with pytest.raises(EtcdServerTimeoutError, match="No member of <EtcdCluster"):
        cluster.leader(timeout=3)
    for member in cluster.members[1:]:
        member.restart(wait=False)

    assert cluster.leader() in cluster.members


def test_paused_leader_loses_the_lead(make_cluster):
    """
    While the leader is paused another member leads, and when it wakes up only one.
    """
    cluster = make_cluster()
    leader = cluster.leader()
    leader.pause()
    successor = cluster.leader()
    leader.resume()

    assert successor is not leader
    assert cluster.leader() in cluster.members


# --- Owners

OWNER = """\
import os, signal, sys, threading, time
from etcd_rendezvous._server import EtcdServer
server = EtcdServer(binary=sys.argv[1])
{start}
print(server.pid, server.get_port(), flush=True)
{then}
"""


@contextlib.contextmanager
def owner(binary, tmp_path, *, start="server.start()", then="time.sleep(60)"):
    """
    A process that owns a server: yields it, etcd's process id and the port.
    """
    source = str(Path(_server.__file__).parent.parent)
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(start=start, then=then), binary],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": source},
    )
    with process:
        try:
            pid, port = map(int, process.stdout.readline().split())
            yield process, pid, port
        finally:
            process.kill()


def test_killed_owner_leaves_no_etcd(newest_etcd_binary, tmp_path):
    """
    When the owner is killed, etcd is gone at once, even if it is paused.
    """
    with owner(newest_etcd_binary, tmp_path, then="server.pause();time.sleep(60)") as (
        process,
        pid,
        port,
    ):
        assert runs(pid)
        process.kill()
        process.wait()
        assert gone_within(pid, 20)
        # The other threads of etcd may end a moment later than its first.
        deadline = time.monotonic() + 20
        while not port_is_free(port) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert port_is_free(port)


def test_owner_that_ends_leaves_nothing(newest_etcd_binary, tmp_path):
    """
    An owner that ends without stop leaves neither process nor data.
    """
    with owner(newest_etcd_binary, tmp_path, then="") as (process, pid, _):
        assert process.wait(20) == 0
        assert gone_within(pid, 20)

    assert list(tmp_path.iterdir()) == []


def test_forked_child_does_not_stop_the_server(newest_etcd_binary, tmp_path):
    """
    A forked child that stops the server, or just ends, leaves it to its owner.
    """
    then = (
        "child = os.fork()\n"
        "if not child:\n"
        "    server.stop()\n"
        "    try:\n"
        "        server.kill()\n"
        "    except RuntimeError as exc:\n"
        "        sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "time.sleep(60)"
    )
    with owner(newest_etcd_binary, tmp_path, then=then) as (process, pid, port):
        assert process.stdout.readline() == b"7\n"
        assert runs(pid)
        assert not port_is_free(port)


def test_server_outlives_the_thread_that_started_it(newest_etcd_binary):
    """
    A server that a thread started lives on when that thread has ended.
    """
    server = EtcdServer(binary=newest_etcd_binary)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        time.sleep(0.2)
        assert ask(server, "/health")[0] == 200
    finally:
        server.stop()


def test_interrupt_during_the_start_leaves_nothing(newest_etcd_binary, tmp_path):
    """
    Ctrl-C while a server starts ends its process and deletes its data.
    """
    start = (
        # Where the tests run in a shell's background, it is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)\n"
        "def wait_healthy(*_):\n"
        "    threading.Timer(0.1, interrupt).start()\n"
        "    time.sleep(60)\n"
        "try:\n"
        "    server._wait_healthy = wait_healthy\n"
        "    server.start()\n"
        "except KeyboardInterrupt:\n"
        "    print(server._etcd_proc.pid, server.get_port(), flush=True)\n"
    )
    with owner(newest_etcd_binary, tmp_path, start=start, then="") as (_, pid, port):
        assert not runs(pid)
        assert port_is_free(port)

    assert list(tmp_path.iterdir()) == []


def test_sockets_and_threads_do_not_leak(
    newest_etcd_binary, no_leaked_sockets, no_leaked_threads
):
    """
    After stop no socket and no thread is left.
    """
    with EtcdServer(binary=newest_etcd_binary) as server:
        assert (
            socket.create_connection(("127.0.0.1", server.get_port())).close() is None
        )
