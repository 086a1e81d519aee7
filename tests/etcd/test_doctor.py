# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
``etcd-rendezvous doctor`` on set-ups that are well, and on many that are not.
"""

from __future__ import annotations

import base64
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path

import pytest
import urllib3
from click.testing import CliRunner

import etcd_rendezvous
from etcd_rendezvous import EtcdClient, EtcdServer
from etcd_rendezvous._cli.app import cli
from etcd_rendezvous._cli.doctor_findings import CHECKS
from etcd_rendezvous._ports import free_ports
from support import doctor as page
from support import etcds, users
from support.quota import SMALL_QUOTA, use_up
from support.scripted import (
    ScriptedServer,
    raw,
    refused_endpoint,
    reply,
    silence,
    unanswered_endpoint,
)
from support.security import Authority

SOURCE = str(Path(etcd_rendezvous.__file__).parents[1])
NO_GATEWAY = "--enable-grpc-gateway=false"
PROBES = "/torch/elastic/rendezvous/etcd-rendezvous-doctor/"
#: As the variables are that the command reads.
OURS = ("ETCD_RENDEZVOUS_", "PET_")
SECRETS = (users.PASSWORD, "hunter2", "wrong-one")


@dataclass
class Told:
    """
    What the command said.
    """

    status: int
    data: dict
    seconds: float
    output: str = field(repr=False)

    def levels(self, check, endpoint=...):
        """
        The levels of a check's lines.
        """
        return [one["level"] for one in self._of(check, endpoint)]

    def line(self, check, endpoint=...):
        """
        The only line of a check.
        """
        (found,) = self._of(check, endpoint)
        return found

    @property
    def bad(self):
        """
        What is wrong: each check with a level that is not ok, but for unknown, and for
        what depends on how busy this machine is, a server that tests share, and which
        release it is.
        """
        return [
            (one["check"], one["level"])
            for one in self.data["findings"]
            if one["level"] not in ("ok", "unknown")
            and one["check"] not in ("reads", "writes", "history", "version")
        ]

    def _of(self, check, endpoint):
        return [
            one
            for one in self.data["findings"]
            if one["check"] == check and endpoint in (..., one["endpoint"])
        ]


def clean(**variables):
    """
    Return the environment for the command, with nothing in it that it reads.
    """
    kept = {name: text for name, text in os.environ.items() if name[:4] != "ETCD"}
    return {n: t for n, t in kept.items() if not n.startswith(OURS)} | variables


@pytest.fixture
def doctor(monkeypatch):
    """
    A function from arguments and variables to what the doctor says, in JSON.

    Whatever it says is on its page, and no secret is in it.
    """
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)

    def run(*arguments, **variables):
        started = time.monotonic()
        done = CliRunner().invoke(cli, ["doctor", "--json", *arguments], env=variables)
        took = time.monotonic() - started
        assert not any(secret in done.output for secret in SECRETS)
        assert "Traceback" not in done.output, done.output
        assert "" == done.stderr
        told = Told(done.exit_code, json.loads(done.stdout), took, done.stdout)
        listed = page.rows()
        for one in told.data["findings"]:
            levels = [one["level"]]
            if levels == ["warn"] and len(told.data["endpoints"]) > 1:
                levels.append("fail")  # What the others make up for.
            assert any(
                row.fits(one["check"], level, one["says"])
                for row in listed
                for level in levels
            ), one
        return told

    return run


def as_process(*arguments, **variables):
    """
    Run the command in a process of its own; return its status and what it printed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "etcd_rendezvous", "doctor", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean(PYTHONPATH=SOURCE, **variables),
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    assert not any(secret in done.stdout for secret in SECRETS)
    return done.returncode, done.stdout


def as_trainer(password=users.PASSWORD):
    return {
        "ETCD_RENDEZVOUS_USER": users.USER,
        "ETCD_RENDEZVOUS_PASSWORD": password,
    }


# -- all is well -------------------------------------------------------------------


def test_all_is_well(etcd_server, doctor, run_etcdctl, no_leaked_sockets):
    """
    A good etcd is good for a job, whatever its version; nothing stays in it.
    """
    endpoint = etcd_server.get_endpoint()

    told = doctor("--endpoint", endpoint, "--backend=etcd-v3")

    found = run_etcdctl(endpoint, "get", "--prefix", "--keys-only", PROBES)
    assert [] == told.bad
    faulty = etcd_server.version.startswith("3.4.") or etcd_server.version == "3.5.1"
    assert ["warn" if faulty else "ok"] == told.levels("version")
    assert 0 == told.status
    assert ("v3", "etcd-v3", 2) == tuple(
        told.data[name] for name in ("api", "backend", "nodes")
    )
    assert [f"http://{endpoint}"] == told.data["endpoints"]
    assert etcd_server.version == told.line("version")["values"]["version"]
    assert 2 * 1024**3 == told.line("database")["values"]["quota"]
    assert told.line("rights")["values"]["key"].startswith(f"{PROBES}doctor/")
    assert 1 < told.line("reads")["values"]["count"] <= 100
    assert not found.get("kvs")
    wanted = [c for c in CHECKS if c not in ("settings", "cluster", "installed")]
    assert wanted[:-1] == [one["check"] for one in told.data["findings"]]


def test_for_people(newest_v3):
    """
    Without a terminal it prints plain lines, remedies below them, the verdict at the end.
    """
    status, printed = as_process(
        "--endpoint", newest_v3.endpoint, "--backend=etcd-v3", "--nodes=20000"
    )

    lines = printed.splitlines()
    assert 1 == status
    assert f"http://{newest_v3.endpoint}" == lines[0]
    assert "all endpoints, as the job uses them" in lines
    assert any(
        re.match(r"  ok       tcp             connected in", one) for one in lines
    )
    (number,) = [n for n, one in enumerate(lines) if one.startswith("  fail")]
    assert lines[number].split()[1] == "requests"
    assert lines[number + 1].lstrip().startswith("-> raise --max-request-bytes")
    assert lines[-1].startswith("No: this machine can't use that etcd for etcd-v3 with")
    assert "\x1b" not in printed


def test_as_torchrun_is_told(newest_v3, doctor):
    """
    The variables of torchrun mean what they mean there.
    """
    told = doctor(
        PET_RDZV_ENDPOINT=newest_v3.endpoint,
        PET_RDZV_BACKEND="etcd-live",
        PET_RDZV_CONF="keep_alive_interval=3,ttl=600",
        PET_RDZV_ID="a/job",
        PET_NNODES="2:4",
    )

    assert "etcd-live" == told.data["backend"]
    assert 4 == told.data["nodes"]
    assert "/a%2Fjob/doctor/" in told.line("rights")["values"]["key"]
    assert ["warn"] == told.levels("settings")  # the ttl is without effect there
    assert ["ok"] == told.levels("descriptors")


def test_strict(newest_v3, doctor):
    """
    With --strict a warning is a failure, too.
    """
    arguments = ("--endpoint", newest_v3.endpoint, "--rdzv-conf=is_host=1")

    lax, strict = doctor(*arguments), doctor(*arguments, "--strict")

    assert (0, 1) == (lax.status, strict.status)
    assert "warn" == strict.data["level"] == lax.data["level"]


@pytest.mark.parametrize(
    "arguments", [["--nodes=0"], ["--nodes=x"], ["--nodes=2:"], ["--no-such-option"]]
)
def test_wrong_usage(arguments):
    """
    A command line that can't be understood has a status of its own.
    """
    done = CliRunner().invoke(cli, ["doctor", *arguments])

    assert 2 == done.exit_code


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ("password=hunter2", "The setting 'password' is refused"),
        ("read_timout=5", "did you mean 'read_timeout'?"),
        ("hunter2", "Entry 1 of --rdzv-conf (or PET_RDZV_CONF) is not of the form"),
    ],
)
def test_refused_settings(conf, said):
    """
    What the plug-in would refuse is refused; a password is not repeated.
    """
    done = CliRunner().invoke(cli, ["doctor", f"--rdzv-conf={conf}"])

    assert 1 == done.exit_code
    assert said in done.stderr
    assert "hunter2" not in done.output


def test_settings_of_live(doctor):
    """
    So is what only the handler of etcd-live would refuse.
    """
    arguments = ["--backend=etcd-live", "--rdzv-conf=on_node_loss=cry"]

    done = CliRunner().invoke(cli, ["doctor", *arguments])

    assert 1 == done.exit_code
    assert "The setting 'on_node_loss' must be restart or ignore" in done.stderr


# -- the probe key -----------------------------------------------------------------


def test_the_probe_goes_away_by_itself(newest_v3, make_proxy, doctor, run_etcdctl):
    """
    The probe key hangs on a short lease: a doctor that is killed leaves nothing.
    """
    proxy = make_proxy(newest_v3.endpoint)
    told = []
    with proxy.hold("/v3/kv/deleterange") as hold:
        thread = threading.Thread(
            target=lambda: told.append(doctor("--endpoint", proxy.endpoint))
        )
        thread.start()
        hold.wait()
        found = run_etcdctl(newest_v3.endpoint, "get", "--prefix", PROBES)["kvs"]
        leases = [
            run_etcdctl(newest_v3.endpoint, "lease", "timetolive", f"{one['lease']:x}")
            for one in found
        ]
    thread.join()

    assert [10] == [lease["granted-ttl"] for lease in leases]
    assert ["ok"] == told[0].levels("rights")


# -- reaching it -------------------------------------------------------------------


def test_a_name_that_does_not_resolve():
    """
    A name that is not known is told as such, as soon as it is known not to be.
    """
    status, printed = as_process("--endpoint=no-such-host.invalid")

    assert 1 == status
    assert re.search(r"fail +name +its host name can't be resolved\n", printed)
    assert " tcp " not in printed


def test_a_port_that_refuses():
    """
    A port that refuses is told as such.
    """
    with refused_endpoint() as endpoint:
        status, printed = as_process("--endpoint", endpoint)

    assert 1 == status
    assert re.search(
        r"fail +tcp +connection refused; is etcd running there\?\n", printed
    )


class _First(random.SystemRandom):
    """
    Chance that always takes the first.
    """

    def randrange(self, *_):
        return 0


def test_a_member_that_refuses_beside_one_that_does_not(doctor, newest_v3, monkeypatch):
    """
    It is told once, in its own line, although the library warns of it, too.
    """
    monkeypatch.setattr("etcd_rendezvous._v3.retry.RANDOM", _First())
    with refused_endpoint() as gone:
        told = doctor("--endpoint", f"{gone},{newest_v3.endpoint}")

    assert ["warn"] == told.levels("tcp", f"http://{gone}")
    assert ["ok"] == told.levels("backend")
    assert "Operations go" not in told.output


def test_a_port_that_swallows_connections(doctor):
    """
    A connection that is not answered takes no longer than it may.
    """
    with unanswered_endpoint() as endpoint:
        told = doctor("--endpoint", endpoint, "--connect-timeout=1")

    assert [("tcp", "fail")] == told.bad
    assert "no connection in time" in told.line("tcp")["says"]
    assert told.seconds < 20


def test_an_endpoint_that_hangs(doctor):
    """
    What accepts connections and never answers is told as such, and soon.
    """
    with ScriptedServer(lambda _: silence()) as server:
        told = doctor("--endpoint", server.endpoint, "--read-timeout=1")

    assert [("api", "fail")] == told.bad
    assert "no answer in time" == told.line("api")["says"]
    assert "stopped or overloaded" in told.line("api")["remedy"]
    assert told.seconds < 20


def test_ctrl_c():
    """
    Ctrl-C ends it at once, and without a traceback.
    """
    with ScriptedServer(lambda _: silence()) as server:
        process = subprocess.Popen(
            [sys.executable, "-m", "etcd_rendezvous", "doctor"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=clean(PYTHONPATH=SOURCE, PET_RDZV_ENDPOINT=server.endpoint),
        )
        server.wait_for_requests(1, 60)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=60)

    assert 1 == process.returncode
    assert "Aborted!" == printed.strip()


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (raw(b"SSH-2.0-x\r\n"), "something answered that does not speak HTTP"),
        (reply(403, "denied by policy"), "something answered that is not etcd"),
        (reply(502, "bad gateway"), "is a proxy in between?"),
    ],
    ids=["ssh", "forbidden", "proxy"],
)
def test_something_else(doctor, step, says):
    """
    What is no etcd is told as such.
    """
    with ScriptedServer(lambda _: step) as server:
        told = doctor("--endpoint", server.endpoint, "--read-timeout=4")

    assert [("api", "fail")] == told.bad
    assert says in told.line("api")["says"]


# -- TLS ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """
    An authority with the certificates of a server and a client.
    """
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def secured(newest_etcd_binary, authority):
    """
    A server with TLS that wants a client's certificate.
    """
    with EtcdServer(
        binary=newest_etcd_binary, host="0.0.0.0", extra_args=authority.server_arguments
    ) as server:
        yield server.get_port()


def test_tls(secured, authority, doctor):
    """
    With the right certificates all is well by TLS, too.
    """
    mine = authority.security
    told = doctor(
        f"--endpoint=https://127.0.0.1:{secured}",
        f"--ca-cert={mine.ca}",
        f"--ssl-cert={mine.cert}",
        f"--ssl-cert-key={mine.key}",
    )

    assert 0 == told.status
    assert "the server's certificate ends on 3000-01-01" in told.line("tls")["says"]


@pytest.mark.parametrize(
    ("scheme", "host", "trusted", "says"),
    [
        ("http", "127.0.0.1", False, "it speaks TLS; use protocol=https"),
        ("https", "127.0.0.1", False, "name the authority that signed it with ca_cert"),
        ("https", "127.0.0.2", True, "its certificate is for another name"),
        ("https", "127.0.0.1", True, "it wants a client certificate"),
    ],
    ids=["http", "authority", "name", "client"],
)
def test_tls_that_fails(secured, authority, doctor, scheme, host, trusted, says):
    """
    That is told apart: http for https, an authority that is not known, a certificate for
    another name, and a missing one.
    """
    trust = [f"--ca-cert={authority.ca}"] if trusted else []

    told = doctor(f"--endpoint={scheme}://{host}:{secured}", *trust)

    assert [("tls", "fail")] == told.bad
    assert says in told.line("tls")["says"]


def test_https_for_http(newest_v3, doctor):
    """
    So is the reverse.
    """
    told = doctor(f"--endpoint=https://{newest_v3.endpoint}")

    assert [("tls", "fail")] == told.bad
    assert told.line("tls")["says"].startswith(
        "it does not speak TLS; use protocol=http"
    )


# -- versions and APIs -------------------------------------------------------------


@pytest.fixture(scope="module")
def v2_alone(newest_v2_binary):
    """
    A server whose gateway is off, so that it serves v2 alone.
    """
    with EtcdServer(binary=newest_v2_binary, extra_args=[NO_GATEWAY]) as server:
        yield server.get_endpoint()


def test_the_gateway_is_off(v2_alone, doctor):
    """
    Without its gateway an etcd is of no use to etcd-v3, though to etcd-auto by v2.
    """
    told = doctor("--endpoint", v2_alone, "--backend=etcd-v3")

    assert [("api", "fail")] == told.bad
    assert (
        "is it an etcd of version 3.4 or later with its gRPC gateway on?"
        in (told.line("api")["says"])
    )
    assert "etcd-auto" in told.line("api")["remedy"]


def test_the_port_for_peers(make_server, doctor):
    """
    Whoever names the wrong one of etcd's two ports is told so.
    """
    with free_ports(1, ["localhost"]) as ports:
        (peer,) = ports
    make_server(peer_port=peer)

    told = doctor("--endpoint", f"localhost:{peer}")

    assert ("api", "fail") in told.bad
    assert "it is etcd's port for its peers" == told.line("api")["says"]
    assert 1 == told.status


@pytest.mark.parametrize("backend", ["etcd-auto", "etcd-v2", None])
def test_v2_alone(v2_alone, doctor, backend):
    """
    Where v2 alone is served, torch's own paths are tried; nothing stays there.
    """
    told = doctor("--endpoint", v2_alone, *([f"--backend={backend}"] * bool(backend)))

    assert (0, "v2", []) == (told.status, told.data["api"], told.bad)
    assert "etcd's v2 API alone" == told.line("api")["says"]
    assert 1 == len(told.levels("writes"))
    with urllib3.PoolManager(retries=False) as pool:
        left = [
            node["key"]
            for path in ("rendezvous", "store")
            for node in pool.request(
                "GET", f"http://{v2_alone}/v2/keys/torch/elastic/{path}"
            )
            .json()["node"]
            .get("nodes", ())
        ]
    assert [] == left


@pytest.mark.parametrize(("install", "level"), [("0", "fail"), ("1", "warn")])
def test_v2_is_asked_for_and_not_served(server_without_v2, doctor, install, level):
    """
    The name of torch's own fails where there is no v2, unless ours takes it over.
    """
    told = doctor(
        f"--endpoint={server_without_v2.get_endpoint()}",
        "--backend=etcd-v2",
        ETCD_RENDEZVOUS_INSTALL=install,
    )

    assert [("backend", level)] == told.bad
    assert "does not serve etcd's v2 API" in told.line("backend")["says"]
    assert (level == "fail") == told.status


def test_a_faulty_version(make_server, doctor):
    """
    A release with known faults is named, with the one to update to.
    """
    binary = etcds.packaged("etcd")
    assert "3.5.1" == etcds.ask(binary).version
    server = make_server(binary=binary)

    told = doctor("--endpoint", server.get_endpoint())

    assert [] == told.bad
    assert ["warn"] == told.levels("version")
    assert "lose or corrupt data" in told.line("version")["says"]
    assert "3.5.28" in told.line("version")["remedy"]
    assert 2 * 1024**3 == told.line("database")["values"]["quota"]


def hidden(names, *arguments):
    """
    Run the command where packages are not installed; return its status and output.
    """
    code = (
        "import sys\n"
        f"for name in {names!r}: sys.modules[name] = None\n"
        "from etcd_rendezvous._cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "doctor", "--json", *arguments],
        capture_output=True,
        text=True,
        env=clean(PYTHONPATH=SOURCE),
        timeout=60,
        check=False,
    )
    assert "" == done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("backend", ["etcd-auto", "etcd-live"])
def test_without_torch_and_python_etcd(newest_v3, backend):
    """
    Neither torch nor python-etcd is needed to look at v3.
    """
    status, data = hidden(
        ["torch", "etcd"], "--endpoint", newest_v3.endpoint, f"--backend={backend}"
    )

    assert 0 == status
    assert "v3" == data["api"]


def test_v2_without_python_etcd(v2_alone):
    """
    Where v2 is to be spoken, a missing python-etcd is a failure.
    """
    status, data = hidden(["torch", "etcd"], "--endpoint", v2_alone)

    assert 1 == status
    assert ["etcd's v2 API needs python-etcd, which is not installed"] == [
        one["says"].partition(":")[0]
        for one in data["findings"]
        if one["check"] == "installed"
    ]


# -- users and rights --------------------------------------------------------------


@pytest.fixture(scope="module")
def with_users(newest_etcd_binary):
    """
    A server that asks who one is.
    """
    with EtcdServer(binary=newest_etcd_binary) as server:
        users.switch_authentication_on(server.get_endpoint())
        yield server.get_endpoint()


def test_a_user_with_rights(with_users, doctor):
    """
    The user of docs/security.md has all the rights that are needed.
    """
    told = doctor("--endpoint", with_users, **as_trainer())

    assert (0, []) == (told.status, told.bad)
    assert f"as the user '{users.USER}'" == told.line("authentication")["says"]


def test_no_user(with_users, doctor):
    """
    That a user is wanted is told as such; what is told to users only is not known.
    """
    told = doctor("--endpoint", with_users)

    assert [("authentication", "fail")] == told.bad
    assert "it wants a user and a password" in told.line("authentication")["says"]
    # Older releases tell their status to anybody.
    assert told.levels("leader") == told.levels("database")
    assert told.levels("leader") in (["unknown"], ["ok"])


def test_a_wrong_password(with_users, doctor, tmp_path):
    """
    So is a wrong password, from the environment or a file.
    """
    file = tmp_path / "password"
    file.write_text("wrong-one\n")
    by_file = {
        "ETCD_RENDEZVOUS_USER": users.USER,
        "ETCD_RENDEZVOUS_PASSWORD_FILE": str(file),
    }
    for variables in (as_trainer("wrong-one"), by_file):
        told = doctor("--endpoint", with_users, **variables)

        assert [("authentication", "fail")] == told.bad
        assert "with this password" in told.line("authentication")["says"]


def test_no_rights(with_users, doctor):
    """
    So is a prefix that the user may not touch.
    """
    told = doctor("--endpoint", with_users, "--key-prefix=/mine", **as_trainer())

    assert [("rights", "fail")] == told.bad
    assert f"the user '{users.USER}' may not" in told.line("rights")["says"]


def test_a_right_to_read_alone(with_users, doctor):
    """
    So is a prefix that the user may read, and not write.
    """
    grant = "role grant-permission --prefix rendezvous read /read-only/"
    users.as_root(with_users, grant)

    told = doctor("--endpoint", with_users, "--key-prefix=/read-only", **as_trainer())

    assert [("rights", "fail")] == told.bad
    assert ["ok"] == told.levels("authentication")


def test_a_right_to_one_run(with_users, doctor):
    """
    A user who may touch one run alone names it.
    """
    run = "/one/run"
    grant = f"role grant-permission --prefix rendezvous readwrite {run}"
    users.as_root(with_users, grant)
    arguments = ("--endpoint", with_users, "--key-prefix=/one")

    without = doctor(*arguments, **as_trainer())
    told = doctor(*arguments, "--rdzv-id=run", **as_trainer())

    assert [("rights", "fail")] == without.bad
    assert (0, []) == (told.status, told.bad)
    assert told.line("rights")["values"]["key"].startswith(f"{run}/doctor/")


def test_a_user_for_nothing(newest_v3, doctor):
    """
    That an etcd does not authenticate is a warning to who names a user.
    """
    told = doctor("--endpoint", newest_v3.endpoint, **as_trainer())

    assert 0 == told.status
    assert ["ok", "warn"] == told.levels("backend")
    assert (
        "etcd does not ask who we are, so the user is not used"
        == (told.line("authentication")["says"])
    )


def test_users_of_v2(make_server, newest_v2_binary, doctor):
    """
    On v2 a user with rights is fine, and a wrong password is a missing right.
    """
    server = make_server(binary=newest_v2_binary, extra_args=[NO_GATEWAY])
    endpoint = server.get_endpoint()
    users.switch_v2_authentication_on(endpoint)

    good = doctor("--endpoint", endpoint, **as_trainer())
    bad = doctor("--endpoint", endpoint, **as_trainer("wrong-one"))
    nobody = doctor("--endpoint", endpoint)

    assert (0, []) == (good.status, good.bad)
    assert [("rights", "fail")] == bad.bad == nobody.bad
    assert "the password is another one" in bad.line("rights")["says"]
    assert "v2 wants a user and a password" in nobody.line("rights")["says"]


def test_a_stranger_who_repeats_the_password(doctor):
    """
    What answers v2 with the password that it was sent does not get it shown.
    """
    sent = base64.b64encode(f"{users.USER}:{users.PASSWORD}".encode()).decode()

    def step(exchange):
        request = exchange.request
        if "authorization" in request.headers:
            return reply(400, f"no: {request.headers['authorization']}")
        if request.path == "/version":
            return reply(200, {"etcdserver": "3.5.35"})
        if request.path == "/v2/keys":
            return reply(200, {"node": {}})
        return reply(404, "404 page not found")

    with ScriptedServer(step) as server:
        told = doctor("--endpoint", server.endpoint, **as_trainer())

    assert [("rights", "fail")] == told.bad
    assert "no: Basic ***" in told.line("rights")["says"]
    assert sent not in told.output


# -- members -----------------------------------------------------------------------


def test_members_that_die(cluster, doctor):
    """
    Three members are well; without one the job goes through the others; without a
    majority it does not, and the member that is left says why.
    """
    endpoints = ",".join(member.get_endpoint() for member in cluster.members)
    arguments = ("--endpoint", endpoints, "--backend=etcd-live", "--read-timeout=2")
    first, second, third = (f"http://{m.get_endpoint()}" for m in cluster.members)
    well = doctor(*arguments)
    cluster.members[0].kill()
    cluster.leader(timeout=30)  # It may have been the one.
    without_one = doctor(*arguments)
    cluster.members[1].pause()
    without_majority = doctor(*arguments)

    assert (0, []) == (well.status, well.bad)
    assert 3 == well.line("cluster")["values"]["members"]
    assert 1 == sum(
        one["values"]["leader"] == one["values"]["member"]
        for one in well.data["findings"]
        if one["check"] == "leader"
    )
    assert (0, [("tcp", "warn")]) == (without_one.status, without_one.bad)
    assert "connection refused" in without_one.line("tcp", first)["says"]
    assert 1 == without_majority.status
    assert ["fail"] == without_majority.levels("tcp", first)
    assert "no answer in time" == without_majority.line("api", second)["says"]
    assert ["fail"] == without_majority.levels("leader", third)
    assert "majority" in without_majority.line("leader", third)["remedy"]
    assert without_majority.seconds < 40


def test_two_clusters(newest_v3, own_server, doctor):
    """
    Endpoints of two clusters are a failure, although each of them is well.
    """
    own = own_server.get_endpoint()

    told = doctor("--endpoint", f"{newest_v3.endpoint},{own}")

    assert [("cluster", "fail")] == told.bad
    assert "2 clusters" in told.line("cluster")["says"]
    assert 1 == told.status


def test_one_member_twice(newest_v3, doctor):
    """
    Two names of one member are told to be that.
    """
    port = newest_v3.server.get_port()

    told = doctor(f"--endpoint=localhost:{port},127.0.0.1:{port}")

    assert "2 endpoints lead to one member of cluster" in told.line("cluster")["says"]
    assert 0 == told.status


def test_a_quota_that_is_used_up(make_server, doctor):
    """
    A quota that is used up is told as such, with the remedy.
    """
    server = make_server(extra_args=[SMALL_QUOTA])
    use_up(server.get_endpoint())

    told = doctor("--endpoint", server.get_endpoint())

    assert 1 == told.status
    assert ("database", "fail") in told.bad
    assert "the alarm NOSPACE is on" in told.line("database")["says"]
    assert "etcdctl alarm disarm" in told.line("database")["remedy"]
    assert ["fail"] == told.levels("lease")


def test_history(make_server, doctor):
    """
    Whether anything was ever compacted is seen, and what many nodes would write.
    """
    endpoint = make_server().get_endpoint()
    few = doctor("--endpoint", endpoint)
    many = doctor("--endpoint", endpoint, "--nodes=200")
    live = doctor("--endpoint", endpoint, "--nodes=200", "--backend=etcd-live")
    with EtcdClient(endpoint) as client, urllib3.PoolManager(retries=False) as pool:
        newest = client.put("/x", b"")
        url = f"http://{endpoint}/v3/kv/compaction"
        pool.request("POST", url, json={"revision": str(newest)})
    compacted = doctor("--endpoint", endpoint, "--nodes=200")

    assert [["ok"], ["warn"], ["ok"], ["ok"]] == [
        told.levels("history") for told in (few, many, live, compacted)
    ]
    assert "--auto-compaction-retention" in many.line("history")["remedy"]
    assert compacted.line("history")["values"]["compacted"]


def test_too_many_nodes(newest_v3, doctor):
    """
    A state that etcd would not take is foreseen; a raised limit, and etcd-live, take it.
    """
    arguments = ("--endpoint", newest_v3.endpoint, "--nodes=20000")

    levels = [
        doctor(*arguments, *more).levels("requests")
        for more in (
            ("--backend=etcd-v3",),
            ("--backend=etcd-v3", "--rdzv-conf=request_limit=8000000"),
            ("--backend=etcd-live",),
        )
    ]

    assert [["fail"], ["ok"], ["ok"]] == levels


# -- between us and etcd -----------------------------------------------------------


@pytest.mark.parametrize("how", ["swallowed", "stuck"])
def test_a_proxy_that_keeps_streams(newest_v3, make_proxy, doctor, how):
    """
    A proxy that passes on replies, but not streams as they come, is found out: before
    the watch is there, or after.
    """
    proxy = make_proxy(newest_v3.endpoint)
    if how == "swallowed":
        proxy.swallow(None, "/v3/watch", mode="silent")
    else:
        proxy.cut(None, "/v3/watch", after=1, mode="silent")

    told = doctor("--endpoint", proxy.endpoint, "--read-timeout=4")

    assert [("watch", "fail")] == told.bad
    says = "did not tell of a write within 4 s, though requests are answered"
    assert says in told.line("watch")["says"]
    assert (how == "swallowed") == ("(no answer in time)" in told.line("watch")["says"])
    assert "unbuffered" in told.line("watch")["remedy"]
    assert 1 == told.status


def skewed(endpoint, seconds):
    """
    Return a server in front of an etcd whose clock is ahead by so many seconds.
    """
    pool = urllib3.PoolManager(retries=False)

    def step(exchange):
        request = exchange.request
        if request.path == "/v3/watch":
            return reply(404, "404 page not found")  # no streams here
        answer = pool.request(
            request.method, f"http://{endpoint}{request.path}", body=request.body
        )
        now = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        date = format_datetime(now, usegmt=True)
        return reply(answer.status, answer.data, {"Date": date})

    return ScriptedServer(step)


@pytest.mark.parametrize(
    ("seconds", "backend", "level"),
    [
        (60, "etcd-v3", "warn"),
        (-60, "etcd-auto", "warn"),
        (3, "etcd-v3", "ok"),
        (60, "etcd-live", "ok"),
    ],
)
def test_clocks_that_differ(newest_v3, doctor, seconds, backend, level):
    """
    A difference of clocks that would evict nodes is warned of, but of etcd-live.
    """
    with skewed(newest_v3.endpoint, seconds) as server:
        told = doctor("--endpoint", server.endpoint, f"--backend={backend}")

    line = told.line("clock")
    assert level == line["level"]
    assert ("behind" if seconds > 0 else "ahead of") in line["says"]
    assert abs(line["values"]["seconds"] - seconds) < 2
    if backend == "etcd-live":
        assert "compares no clocks" in line["says"]
