# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
``etcd-rendezvous status``, on a real etcd: what it tells of runs, in words and in JSON.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone

import pytest

from etcd_rendezvous import EtcdClient
from support import users
from support.live import Nodes
from support.runs import call, check, torchs_state
from support.scripted import ScriptedServer, json_reply
from support.torchrun import clean_environment, wait_until

pytestmark = pytest.mark.torch


@pytest.fixture
def prefix(run_id):
    """
    A prefix with no runs but a test's own.
    """
    return f"/tests/{run_id}"


@pytest.fixture
def look(prefix):
    """
    A function that reads runs of an endpoint as JSON.
    """

    def read(endpoint, *arguments, status=0, **environment):
        done = call(
            *("status", "--endpoint", endpoint, "--key-prefix", prefix, "--json"),
            *arguments,
            **environment,
        )

        assert status == done.status, done
        assert "" == done.err
        return check(done.out)

    return read


def nodes(members):
    return [(one["address"], one["rank"], one["alive"]) for one in members]


# -- torch's handler, either API -------------------------------------------------------


def test_a_run_of_torchs_handler(served, look, prefix):
    """
    Round, ranks, who waits, who is a spare, who is lost, ages, keys and times to live.
    """
    backend = served.backend("job", key_prefix=prefix, ttl=900)
    state = torchs_state(
        {"n0": 1.0, "n1": 40.0, "n2": 2.0, "n3": 3.0},
        waiting=["n2"],
        spares=["n3"],
        round=7,
        complete=True,
    )
    _, token, _ = backend.set_state(state)

    name = f"etcd-{served.api}"
    (run,) = look(served.endpoint, "job", "--rdzv-backend", name)["runs"]

    assert ("job", served.api, "torch") == (run["run_id"], run["api"], run["handler"])
    assert ("complete", True, False) == (run["phase"], run["complete"], run["closed"])
    assert f"{prefix}/job" == run["key"]
    assert (7, None, len(state)) == (run["round"], run["problem"], run["state_bytes"])
    assert [("n0", 0, True), ("n1", 1, False)] == nodes(run["participants"])
    assert [("n2", None, True)] == nodes(run["waiting"])
    assert [("n3", None, True)] == nodes(run["spares"])
    ages = [one["heartbeat_age"] for one in run["participants"]]
    assert [1.0, 40.0] == pytest.approx(ages, abs=5.0)
    assert 100 == run["participants"][0]["pid"]
    assert 1.0 == pytest.approx(run["state_age"], abs=5.0)
    assert 880 < run["ttl"] <= 900
    assert int(token) == run["revision"]


@pytest.mark.parametrize(
    ("parts", "ages", "phase"),
    [
        ({}, {"n0": 1.0}, "forming"),
        ({"complete": True}, {"n0": 1.0}, "complete"),
        ({"complete": True, "closed": True}, {"n0": 1.0}, "closed"),
        ({"complete": True}, {"n0": 60.0}, "abandoned"),
        ({}, {}, "abandoned"),
    ],
)
def test_phases(newest_v3, look, prefix, parts, ages, phase):
    """
    Where a run stands follows from its state, and from who was heard of lately.
    """
    newest_v3.backend("job", key_prefix=prefix).set_state(torchs_state(ages, **parts))

    (run,) = look(newest_v3.endpoint)["runs"]

    assert phase == run["phase"]
    if phase == "forming":
        assert [("n0", None, True)] == nodes(run["participants"])


def test_what_counts_as_lost_follows_from_the_jobs_settings(
    newest_v3, look, prefix, monkeypatch
):
    """
    Heartbeats that are rarer by the job's own --rdzv-conf are waited for longer.
    """
    state = torchs_state({"n0": 40.0}, complete=True)
    newest_v3.backend("job", key_prefix=prefix).set_state(state)
    conf = "join_timeout=90,keep_alive_interval=20"

    (by_default,) = look(newest_v3.endpoint)["runs"]
    (by_option,) = look(newest_v3.endpoint, "--rdzv-conf", conf)["runs"]
    (by_variable,) = look(newest_v3.endpoint, PET_RDZV_CONF=conf)["runs"]

    assert "abandoned" == by_default["phase"]
    assert "complete" == by_option["phase"] == by_variable["phase"]


def test_a_last_call(newest_v3, look, prefix):
    """
    A round that has enough nodes tells when it will be completed with those.
    """
    deadline = datetime.now(timezone.utc) + timedelta(seconds=30)
    state = torchs_state({"n0": 1.0}, deadline=deadline)
    newest_v3.backend("job", key_prefix=prefix).set_state(state)

    (run,) = look(newest_v3.endpoint)["runs"]

    assert 30 == pytest.approx(run["last_call"], abs=5)


def test_torchs_own_keys(newest_v2, look, tmp_path):
    """
    A run of torch's own etcd-v2 is read where torch puts it, its store's keys too, and
    one of a longer name is kept apart.
    """
    from torch.distributed import PrefixStore
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous import etcd_rendezvous_backend as torchs

    run_id = f"torchs-{os.getpid()}-{time.monotonic_ns()}"
    for name, keys in ((run_id, 3), (f"{run_id}.1", 1)):
        params = RendezvousParameters(
            "etcd-v2", newest_v2.endpoint, name, 1, 2, protocol="http"
        )
        backend, store = torchs.create_backend(params)
        backend.set_state(torchs_state({"n0": 1.0, "n1": 2.0}, complete=True))
        theirs = PrefixStore(f"torch.rendezvous.{name}.0", store)
        for number in range(keys):
            theirs.set(f"key-{number}", "x")

    done = call("status", run_id, "--endpoint", newest_v2.endpoint, "--json")
    listed = call("status", "--endpoint", newest_v2.endpoint, "--json")

    (run,) = check(done.out)["runs"]
    assert ("v2", "torch", "complete") == (run["api"], run["handler"], run["phase"])
    assert [("n0", 0, True), ("n1", 1, True)] == nodes(run["participants"])
    assert 3 == run["store_keys"]
    assert 7000 < run["ttl"] <= 7200
    counts = {one["run_id"]: one["store_keys"] for one in check(listed.out)["runs"]}
    assert 1 == counts[f"{run_id}.1"]


def test_a_state_that_would_run_code_is_told_of_not_run(
    newest_v3, look, prefix, tmp_path
):
    """
    What is no state of torch's is unreadable, and says why; the file does not appear.
    """
    import pickle

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    newest_v3.backend("evil", key_prefix=prefix).set_state(pickle.dumps(Payload()))
    newest_v3.write(f"{prefix}/text", "no base64!")

    evil, text = look(newest_v3.endpoint)["runs"]

    assert "unreadable" == evil["phase"] == text["phase"]
    assert "it names posix.mkdir, which has no place in one" == evil["problem"]
    assert "it is not in base64" == text["problem"]
    assert [] == list(tmp_path.iterdir())


# -- which runs there are -----------------------------------------------------------------


def test_run_ids_come_back_as_they_were(v3, look, prefix):
    """
    Runs are told apart and named as their agents name them, whatever is in the names;
    keys of a store alone are a run, a probe's and other people's are none.
    """
    ids = ["a", "a-1", "a.b", "a/b", "a b", "100%", "ünï", "x" * 300, "tab\t"]
    state = torchs_state({"n0": 1.0})
    for run_id in ids:
        v3.backend(run_id, key_prefix=prefix).set_state(state)
    with EtcdClient(v3.endpoint) as client:
        for number in range(600):
            client.put(f"{prefix}/a/store/key-{number}", "x")
        client.put(f"{prefix}/stored/store/key", "x")
        client.put(f"{prefix}/probed/doctor/key", "x")
        client.put(f"{prefix}x/other", "x")

    runs = look(v3.endpoint)["runs"]

    assert sorted([*ids, "stored"]) == [run["run_id"] for run in runs]
    counts = {run["run_id"]: run["store_keys"] for run in runs}
    assert 600 == counts["a"]
    assert {*ids, "stored"} == {run_id for run_id in counts if run_id}
    (stored,) = look(v3.endpoint, "stored")["runs"]
    assert ("empty", None, None) == (
        stored["phase"],
        stored["handler"],
        stored["round"],
    )
    (slashed,) = look(v3.endpoint, "a/b")["runs"]
    assert f"{prefix}/a%2Fb" == slashed["key"]


def test_no_run(newest_v3, look, prefix):
    """
    No runs are no error, a run that there isn't is one.
    """
    assert [] == look(newest_v3.endpoint)["runs"]
    assert [] == look(newest_v3.endpoint, "nobody", status=1)["runs"]

    there = ("--endpoint", newest_v3.endpoint, "--key-prefix", prefix)
    none = call("status", *there)
    nobody = call("status", "nobody", *there)

    assert f"No runs under {prefix} at http://{newest_v3.endpoint}.\n" == none.out
    assert (1, f"There is no run 'nobody' under {prefix} at http://") == (
        nobody.status,
        nobody.out.split(newest_v3.endpoint)[0],
    )


def test_both_apis(newest_v2, serve, look, prefix):
    """
    Where a server serves both APIs the runs of both are shown; a backend's name picks.
    """
    v3 = serve("v3", newest_v2.server)
    for one, age in ((v3, 1.0), (newest_v2, 2.0)):
        one.backend("job", key_prefix=prefix).set_state(torchs_state({"n0": age}))

    def apis(*arguments, **environment):
        runs = look(newest_v2.endpoint, *arguments, **environment)["runs"]
        return [run["api"] for run in runs]

    assert ["v2", "v3"] == apis()
    assert ["v2"] == apis("--rdzv-backend=etcd-v2")
    assert ["v3"] == apis("--rdzv_backend=etcd-v3")
    assert ["v3"] == apis(PET_RDZV_BACKEND="etcd-auto")


def test_v2_alone(make_server, v2_binary, look, prefix, serve):
    """
    A server that serves v2 alone is read as such.
    """
    server = make_server(binary=v2_binary, extra_args=["--enable-grpc-gateway=false"])
    own = serve("v2", server)
    own.backend("job", key_prefix=prefix).set_state(torchs_state({"n0": 1.0}))
    own.write(f"{prefix}/etcd-rendezvous-doctor-17/probe", "a probe's")

    (run,) = look(own.endpoint)["runs"]
    refused = call("status", "--endpoint", own.endpoint, "--rdzv-backend=etcd-v3")

    assert ("v2", "forming") == (run["api"], run["phase"])
    assert 1 == refused.status
    assert "does not serve etcd's v3 API" in refused.err


# -- etcd-live --------------------------------------------------------------------------


def test_a_run_of_etcd_live(etcd_server, run_id, look):
    """
    Forming, complete with a spare, one lost, closed: etcd's own word on who lives.
    """
    endpoint = etcd_server.get_endpoint()

    def seen(phase=None):
        found = call("status", run_id, "--endpoint", endpoint, "--json")
        runs = check(found.out)["runs"]
        return runs[0] if runs and phase in (None, runs[0]["phase"]) else None

    with Nodes(endpoint, run_id) as live:
        first = live.make(2, 2, "127.0.0.1")
        (joins,) = live.joining(first)
        forming = wait_until(
            "the first node to join, and what is said of it after a while",
            lambda: (one := seen("forming")) and one["min_nodes"] and one,
        )
        other = live.process(2, 2, "127.0.0.2")
        second = live.joining(other)[0]
        joins.result(60)
        second.result(60)
        spare = live.make(2, 2, "127.0.0.3")
        live.joining(spare)
        complete = wait_until(
            "the spare", lambda: (one := seen()) and one["spares"] and one, every=0.1
        )
        other.kill()
        # The spare steps in.
        broken = wait_until("the loss", lambda: seen("broken"), every=0.05)
        first.set_closed()
        closed = seen()

    assert ("forming", 0, "live") == (
        forming["phase"],
        forming["round"],
        forming["handler"],
    )
    assert [("127.0.0.1", None, True)] == nodes(forming["participants"])
    assert (2, 2) == (forming["min_nodes"], forming["max_nodes"])
    assert ("complete", 0) == (complete["phase"], complete["round"])
    assert [("127.0.0.1", 0, True), ("127.0.0.2", 1, True)] == nodes(
        complete["participants"]
    )
    assert [("127.0.0.3", None, True)] == nodes(complete["spares"])
    assert all(0 <= one["heartbeat_age"] <= 3 for one in complete["participants"])
    assert 7000 < complete["ttl"] <= 7200
    lost = [one for one in broken["participants"] if not one["alive"]]
    assert [("127.0.0.2", 1, False)] == nodes(lost)
    assert "closed" == closed["phase"]


# -- who may look, and what goes wrong ------------------------------------------------------


def test_rights_on_the_prefix_are_enough(make_server, serve):
    """
    A user who may do no more than a rendezvous needs can look, as the plug-in would:
    by the same variables. Nobody else can, and no password shows.
    """
    own = serve("v3", make_server())
    own.backend("job").set_state(torchs_state({"n0": 1.0}))
    users.switch_authentication_on(own.endpoint)
    where = ("status", "--endpoint", own.endpoint, "--json")

    allowed = call(
        *where,
        ETCD_RENDEZVOUS_USER=users.USER,
        ETCD_RENDEZVOUS_PASSWORD=users.PASSWORD,
    )
    nobody = call(*where)
    wrong = call(*where, "--user", users.USER, ETCD_RENDEZVOUS_PASSWORD="guess-17")

    assert ["job"] == [run["run_id"] for run in check(allowed.out)["runs"]]
    assert (1, 1) == (nobody.status, wrong.status)
    assert "it wants a user and a password" in nobody.err
    assert "etcd does not know the user 'trainer' with this password" in wrong.err
    assert "guess" not in wrong.err + wrong.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--endpoint=127.0.0.1:1"], "connection refused"),
        (["--endpoint=:"], "The endpoint ':' can't be read"),
        (
            ["--rdzv-backend=c10d"],
            "The backend 'c10d' (--rdzv-backend or PET_RDZV_BACKEND) keeps nothing",
        ),
        (["--rdzv-conf=read_timout=3"], "did you mean 'read_timeout'?"),
        (["--rdzv-conf=password=x"], "The setting 'password' is refused"),
        (
            ["--rdzv-conf=read_timeout=1,x"],
            "Entry 2 of --rdzv-conf (or PET_RDZV_CONF) is not of the form",
        ),
        (["--read-timeout=never"], "'read_timeout'"),
        ([""], "The run id must not be empty"),
    ],
)
def test_what_can_not_be_is_refused(arguments, said):
    """
    In one sentence, with status 1.
    """
    done = call("status", *arguments)

    assert (1, "") == (done.status, done.out)
    assert done.err.startswith("Error: ")
    assert 1 == done.err.count("\n")
    assert said in done.err


def test_an_etcd_that_does_not_answer(make_proxy, newest_v3):
    """
    One that takes connections and never answers is given up on in read_timeout.
    """
    proxy = make_proxy(newest_v3.endpoint)
    proxy.hold("/v3/kv/range")
    began = time.monotonic()
    done = call("status", "--endpoint", proxy.endpoint, "--read-timeout=2")
    took = time.monotonic() - began

    assert 1 == done.status
    assert "no answer" in done.err
    assert took < 20


@pytest.mark.parametrize("absent", ["torch", "etcd"])
def test_neither_torch_nor_python_etcd_is_needed(newest_v3, prefix, absent):
    """
    All of it works where either is not installed; v2 alone needs python-etcd.
    """
    state = torchs_state({"n0": 99.0}, complete=True)
    newest_v3.backend("job", key_prefix=prefix).set_state(state)
    where = ["--endpoint", newest_v3.endpoint, "--key-prefix", prefix]
    said = []
    for arguments in (["status", "job"], ["purge", "job", "--yes", "--force"]):
        script = (
            f"import sys; sys.modules[{absent!r}] = None; "
            f"sys.argv[1:] = {[*arguments, *where]}; "
            "from etcd_rendezvous._cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=60,
            check=False,
        )
        assert (0, "") == (done.returncode, done.stderr)
        said.append(done.stdout)

    assert "abandoned: nobody of it was heard of for" in said[0]
    assert "Deleted 1 key; the run id 'job' is free." in said[1]


def test_a_v2_that_does_not_answer_is_a_note(newest_v3, make_proxy, look, prefix):
    """
    Where v3 is served, what stands in the way of v2 hides none of its runs.
    """
    newest_v3.backend("job", key_prefix=prefix).set_state(torchs_state({"n0": 1.0}))
    proxy = make_proxy(newest_v3.endpoint)
    proxy.hold("/v2/keys")

    found = look(proxy.endpoint, "--read-timeout=4")

    assert ["job"] == [run["run_id"] for run in found["runs"]]
    (note,) = found["notes"]
    assert note.startswith("What is kept with etcd's v2 API was not read: Could not")


@pytest.mark.parametrize(
    "step",
    [
        json_reply({"code": 3, "message": "boo \x1b]0;mine\x07\x1b[2J"}, 400),
        json_reply({"header": {"revision": "5"}, "succeeded": True}),
        json_reply(
            {
                "header": {"revision": "5"},
                "kvs": [{"key": "L2E=", "mod_revision": "5"}],
                "count": "1",
            }
        ),
    ],
    ids=["escapes", "an empty transaction", "a key out of place"],
)
@pytest.mark.parametrize("run", [[], ["job"]], ids=["all", "one"])
def test_a_server_that_is_odd(step, run, capfd):
    """
    What it says ends the command in one sentence, and nothing that a terminal obeys.
    """
    with ScriptedServer(step) as server:
        done = call("status", *run, "--endpoint", server.endpoint, "--read-timeout=2")

    assert done.status in (0, 1)
    assert "\x1b" not in done.out + done.err
    assert 1 >= done.err.count("\n")


# -- watching --------------------------------------------------------------------------------


@contextlib.contextmanager
def watching(*arguments, **options):
    """
    Run ``status --watch`` as a process.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "etcd_rendezvous", "status", "--watch", *arguments],
        env=clean_environment(PYTHONUNBUFFERED="1"),
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_watching_into_a_file(newest_v3, prefix):
    """
    The run first, then a line for each change; Ctrl-C ends it well.
    """
    backend = newest_v3.backend("job", key_prefix=prefix)
    ages = {"n0": 0.0, "n1": 0.0}
    _, token, _ = backend.set_state(torchs_state(ages, complete=True))
    where = ("--endpoint", newest_v3.endpoint, "--key-prefix", prefix)
    with watching("job", *where, "--interval=0.2", stdout=subprocess.PIPE) as process:
        head = [process.stdout.readline().decode() for _ in range(7)]
        backend.set_state(torchs_state({"n0": 0.0}, round=1), token)
        said = [process.stdout.readline().decode() for _ in range(2)]
        newest_v3.delete(f"{prefix}/job")
        gone = process.stdout.readline().decode()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        status = process.wait(60)

    assert f"job  etcd-v3, {prefix}/job\n" == head[0]
    assert "round 0 is complete: 2 nodes\n" == head[1]
    assert re.match(r"node +rank +pid +state +heard of", head[2])
    assert re.match(r"n0 +0 +100 +in the round +\d\.\d s ago", head[3])
    clock = r"\d\d:\d\d:\d\d job: "
    assert re.fullmatch(clock + "round 1 is forming, 1 node joined\n", said[0])
    assert re.fullmatch(clock + "n1 left, or is gone\n", said[1])
    assert re.fullmatch(clock + "nothing of it is left in etcd\n", gone)
    assert (0, b"") == (status, rest)


def test_watching_as_json_while_etcd_is_away(make_proxy, newest_v3, prefix):
    """
    One object a look; while etcd is away one sentence, and then it goes on.
    """
    state = torchs_state({"n0": 0.0})
    newest_v3.backend("job", key_prefix=prefix).set_state(state)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    proxy = make_proxy(newest_v3.endpoint)
    where = ("--endpoint", proxy.endpoint, "--key-prefix", prefix)
    with watching(*where, "--json", "--interval=0.2", **pipes) as process:
        first = process.stdout.readline()
        proxy.down()
        sentence = process.stderr.readline().decode()
        proxy.up()
        while (last := process.stdout.readline()) == first:
            pass
        process.terminate()
        status = process.wait(60)
        more = process.stderr.read().decode()

    assert ["job"] == [run["run_id"] for run in check(first)["runs"]]
    assert ["job"] == [run["run_id"] for run in check(last)["runs"]]
    assert sentence.startswith("Could not read ")
    assert (0, "") == (status, more)


def test_watching_on_a_terminal(newest_v3, prefix):
    """
    The run and what has changed stand at one place, and the cursor is back at the end.
    """
    backend = newest_v3.backend("job", key_prefix=prefix)
    _, token, _ = backend.set_state(torchs_state({"n0": 0.0}))
    where = ("--endpoint", newest_v3.endpoint, "--key-prefix", prefix)
    ours, theirs = pty.openpty()
    shown = b""

    def until(words):
        nonlocal shown
        deadline = time.monotonic() + 60
        while words not in shown:
            assert time.monotonic() < deadline, shown
            shown += os.read(ours, 4096)

    try:
        with watching("job", *where, "--interval=0.2", stdout=theirs) as process:
            until(b"Ctrl-C ends this.")
            backend.set_state(torchs_state({"n0": 0.0}, complete=True), token)
            until(b"job: round 0 is complete with 1 node")
            process.terminate()
            until(b"\x1b[?25h")
            status = process.wait(60)
    finally:
        os.close(ours)
        os.close(theirs)

    assert b"round 0 is forming" in shown
    assert 0 == status
