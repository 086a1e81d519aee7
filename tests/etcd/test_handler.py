# SPDX-License-Identifier: BSD-3-Clause
"""
The handler, in one process, on a real etcd.
"""

import logging
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.torch

import torch  # noqa: E402
from torch.distributed.elastic.multiprocessing.api import (  # noqa: E402
    SignalException,
)
from torch.distributed.elastic.rendezvous import (  # noqa: E402
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (  # noqa: E402
    _NodeDesc,
    _RendezvousState,
)

from etcd_rendezvous import _handler as handler_module  # noqa: E402
from etcd_rendezvous import create_backend, create_handler  # noqa: E402
from etcd_rendezvous._handler import settings_of_torch  # noqa: E402
from etcd_rendezvous._settings import HANDLER_SETTINGS  # noqa: E402
from support.runs import torchs_state  # noqa: E402
from support.torchrun import wait_until  # noqa: E402


def parameters(endpoint, run_id, *, least=1, most=2, addr=None, **config):
    config = {"last_call_timeout": 1, "keep_alive_interval": 1, **config}
    return RendezvousParameters(
        "etcd-v3", endpoint, run_id, least, most, addr, **config
    )


@pytest.fixture
def handler(own_server, run_id):
    handler = create_handler(parameters(own_server.get_endpoint(), run_id, most=1))
    handler.next_rendezvous()
    yield handler
    handler._stop_heartbeats()


def test_poll_survives_a_stopped_etcd(own_server, handler, caplog, monkeypatch):
    """
    While etcd hangs a poll keeps the last answer, takes at most 5 s, and says so once.
    """
    # However long it takes here.
    monkeypatch.setattr("etcd_rendezvous._log.BEAT_SECONDS", 600)
    own_server.pause()
    took = []
    try:
        for _ in range(3):
            time.sleep(1.1)
            started = time.monotonic()

            assert handler.num_nodes_waiting() == 0

            took.append(time.monotonic() - started)
    finally:
        own_server.resume()

    assert max(took) <= 5
    away = [r for r in caplog.records if "etcd is away" in r.getMessage()]
    assert len(away) == 1
    assert away[0].levelno == logging.WARNING

    deadline = time.monotonic() + 10
    while "again" not in caplog.text:
        assert time.monotonic() < deadline
        handler.num_nodes_waiting()
        time.sleep(0.1)
    assert f"etcd answers '{handler.get_run_id()}' again." in caplog.messages


@pytest.mark.measures
def test_poll_survives_a_dead_etcd(own_server, handler):
    """
    While nothing listens at etcd's port a poll keeps the last answer, at once.
    """
    own_server.kill()
    time.sleep(1.1)
    started = time.monotonic()

    assert handler.num_nodes_waiting() == 0
    assert time.monotonic() - started < 1

    own_server.restart()
    deadline = time.monotonic() + 10
    while handler._holder._last_contact < started:
        assert time.monotonic() < deadline
        handler.num_nodes_waiting()
        time.sleep(0.1)


def test_nobody_is_evicted_right_after_an_outage(own_server, run_id):
    """
    A node whose last heartbeat is from before an outage has time to send another.
    """
    endpoint = own_server.get_endpoint()
    handler = create_handler(parameters(endpoint, run_id, most=2, last_call_timeout=1))
    other = _NodeDesc("other", 1, 0)
    handler.next_rendezvous()
    handler._stop_heartbeats()
    backend, _ = create_backend(parameters(endpoint, run_id))
    bits, token = backend.get_state()
    state = pickle.loads(bits)
    state.participants[other] = 1
    state.last_heartbeats[other] = datetime.now(timezone.utc)
    assert backend.set_state(pickle.dumps(state), token)[2]
    time.sleep(1.1)
    handler.num_nodes_waiting()
    own_server.pause()
    time.sleep(4)
    own_server.resume()
    time.sleep(0.5)

    handler._poll_again_at = 0
    handler.num_nodes_waiting()

    assert other in handler._holder.state.participants

    # Torch's own 15 s where it can't be told another time.
    most = 12 if "keep_alive_interval" in settings_of_torch() else 25
    deadline = time.monotonic() + most
    while other in handler._holder.state.participants:
        assert time.monotonic() < deadline, "a dead node is never evicted"
        handler.num_nodes_waiting()
        time.sleep(0.2)


def test_joining_outlives_a_restart_of_etcd(own_server, run_id):
    """
    Two nodes meet although etcd was away while the first of them waited.
    """
    endpoint = own_server.get_endpoint()
    worlds = []

    def join(addr):
        handler = create_handler(
            parameters(endpoint, run_id, least=2, addr=addr, startup_timeout=10)
        )
        worlds.append(handler.next_rendezvous().world_size)
        handler._stop_heartbeats()

    first = threading.Thread(target=join, args=("127.0.0.1",))
    first.start()
    time.sleep(1)
    own_server.kill()
    time.sleep(2)
    own_server.restart()
    second = threading.Thread(target=join, args=("localhost",))
    second.start()
    first.join(30)
    second.join(30)

    assert worlds == [2, 2]


def test_joining_fails_at_its_time_out(own_server, run_id):
    """
    Joining without an etcd ends with torch's connection error at the join time-out.
    """
    handler = create_handler(
        parameters(own_server.get_endpoint(), run_id, join_timeout=3)
    )
    own_server.kill()
    started = time.monotonic()

    with pytest.raises(RendezvousConnectionError):
        handler.next_rendezvous()

    assert 3 <= time.monotonic() - started < 20


def test_a_slow_etcd_is_not_away_at_the_time_out(newest_v3, make_proxy, run_id):
    """
    When the time to join is up, a node withdraws from an etcd that is slow, and says
    that the others have not come.
    """
    proxy = make_proxy(newest_v3.endpoint)
    handler = create_handler(
        parameters(proxy.endpoint, run_id, least=2, join_timeout=3)
    )
    with (
        proxy.delay(0.6, "/v3/kv"),
        pytest.raises(RendezvousTimeoutError, match="1 joined"),
    ):
        handler.next_rendezvous()

    state, _ = newest_v3.backend(run_id).get_state()
    assert not pickle.loads(state).participants


def test_dead_rank_0_before_bootstrap(own_server, run_id, monkeypatch):
    """
    A rank 0 that dies before it says where to meet costs a round, not the job.
    """
    monkeypatch.setattr(handler_module, "LEAST_BOOTSTRAP_SECONDS", 1.0)
    params = parameters(own_server.get_endpoint(), run_id, addr="localhost")
    backend, _ = create_backend(params)
    state = _RendezvousState()
    dead = _NodeDesc("a-dead-node", 1, 0)
    state.participants[dead] = 0
    state.last_heartbeats[dead] = datetime.now(timezone.utc)
    backend.set_state(pickle.dumps(state))

    handler = create_handler(params)
    info = handler.next_rendezvous()
    handler._stop_heartbeats()

    assert (info.rank, info.world_size) == (0, 1)
    assert info.bootstrap_store_info.master_addr == "localhost"
    assert handler._store.timeout.total_seconds() == 300


def test_every_round_has_its_own_bootstrap_store(own_server, run_id):
    """
    A second round of the same node reports another address than the first.
    """
    handler = create_handler(parameters(own_server.get_endpoint(), run_id, most=1))
    first = handler.next_rendezvous().bootstrap_store_info
    second = handler.next_rendezvous().bootstrap_store_info
    handler._stop_heartbeats()

    assert first.master_port != second.master_port


@pytest.mark.parametrize(
    "of_signal", [SignalException("preempted", signal.SIGTERM), KeyboardInterrupt()]
)
@pytest.mark.parametrize("followed", [False, True])
def test_an_agent_that_a_signal_ends_closes_nothing(
    own_server, run_id, of_signal, followed
):
    """
    It is shut down by torch in some cases where a signal ends the agent, also if
    something fails in consequence; that does not close it, so the others go on.
    """
    params = parameters(own_server.get_endpoint(), run_id, most=1)
    handler = create_handler(params)
    handler.next_rendezvous()
    try:
        try:
            raise of_signal
        except BaseException:
            if followed:
                raise OSError("while workers are stopped") from None
            raise
    except BaseException:
        assert not handler.shutdown()

    other = create_handler(params)
    assert not other.is_closed()


def test_settings_of_the_installed_torch():
    """
    What the handler of the installed torch reads is what our pages say that it does;
    one that is older than theirs may read less.
    """
    read = settings_of_torch()

    assert read <= HANDLER_SETTINGS
    assert read == HANDLER_SETTINGS or torch.__version__ < "2.13"


@pytest.mark.parametrize(
    "odd",
    ["x" * 300, "two words", "größe-日本-🦊", "team/job"],
    ids=["300", "a b", "é", "/"],
)
def test_nodes_meet_under_any_run_id(newest_served, run_id, odd):
    """
    A run id may be long, and have spaces, letters of any alphabet, and slashes.
    """
    handlers = [
        create_handler(
            RendezvousParameters(
                f"etcd-{newest_served.api}",
                newest_served.endpoint,
                f"{run_id}-{odd}",
                2,
                2,
                "localhost",
            )
        )
        for _ in range(2)
    ]
    with ThreadPoolExecutor(2) as pool:
        infos = list(pool.map(lambda one: one.next_rendezvous(), handlers))
    for handler in handlers:
        assert handler.get_run_id() == f"{run_id}-{odd}"
        handler.shutdown()

    assert {info.rank for info in infos} == {0, 1}
    assert {info.world_size for info in infos} == {2}
    # They reach each other through the store, too.
    infos[0].store.set("greeting", odd)
    assert infos[1].store.get("greeting") == odd.encode()


@pytest.mark.parametrize(
    "odd", ["/", "/a", "a/", "a//b", ".", "..", "../a", "a?b", "a#b", "a%41"]
)
def test_a_run_id_that_is_another_on_v2(newest_v2, odd):
    """
    On v2 an id whose path would be that of another run, or of none, is refused at once.
    """
    with pytest.raises(ValueError, match="would be another one in etcd's v2"):
        create_handler(
            RendezvousParameters("etcd-v2", newest_v2.endpoint, odd, 1, 1, "localhost")
        )


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ("a" * 4000, "its path has 4026 characters, and etcd's v2 takes 3900"),
        ("\N{GRINNING FACE}" * 400, "its path has 4826 characters"),
    ],
)
def test_a_run_id_that_is_too_long_on_v2(newest_v2, odd, words):
    """
    On v2 an id is refused at once that makes a request's first line too long.
    """
    with pytest.raises(ValueError, match=words) as caught:
        create_handler(
            RendezvousParameters("etcd-v2", newest_v2.endpoint, odd, 1, 1, "localhost")
        )
    assert len(str(caught.value)) < 300


def test_a_run_id_that_is_no_text(served):
    """
    An id with bytes in it that are no UTF-8, as a shell may hand on, is refused.
    """
    names = {"v2": ["etcd-v2"], "v3": ["etcd-v3", "etcd-live"]}[served.api]
    for name in names:
        with pytest.raises(ValueError, match="udc80' is no text in UTF-8"):
            create_handler(
                RendezvousParameters(
                    name, served.endpoint, "a\udc80", 1, 1, "localhost"
                )
            )


def test_a_run_id_that_another_begins_with_on_v2(newest_v2, run_id):
    """
    On v2 an id that another begins with, before a slash, is refused in a sentence while
    that run is there, and is free afterwards, although etcd keeps its folder.
    """

    def create(run):
        return create_handler(
            RendezvousParameters(
                "etcd-v2", newest_v2.endpoint, run, 1, 1, "localhost", closed_ttl=2
            )
        )

    longer = create(f"{run_id}/job")
    longer.next_rendezvous()
    shorter = create(run_id)
    with pytest.raises(RendezvousConnectionError) as caught:
        shorter._holder._backend.get_state()
    assert "it is a folder" in str(caught.value.__cause__)

    longer.shutdown()
    path = f"/torch/elastic/rendezvous/{run_id}"
    wait_until("its end", lambda: newest_v2.read(f"{path}/job") is None)
    assert newest_v2.client().read(path).dir
    assert create(run_id).next_rendezvous().world_size == 1


def test_closed_run_says_when_it_is_free(own_server, run_id):
    """
    Joining a closed run names the seconds until its id is free, and then it is.
    """
    params = parameters(own_server.get_endpoint(), run_id, most=1, closed_ttl=6)
    first = create_handler(params)
    first.next_rendezvous()
    assert first.shutdown()

    with pytest.raises(RendezvousClosedError, match=r"free again in [0-6] s if"):
        create_handler(params).next_rendezvous()

    backend, _ = create_backend(params)
    wait_until("its end", lambda: backend.get_state() is None)
    again = create_handler(params)
    assert again.next_rendezvous().world_size == 1
    again._stop_heartbeats()


@pytest.mark.parametrize(
    ("ages", "complete", "said"),
    [
        ({"a": 1.0}, False, "1 joined (a), 2 to 4 needed for round 3"),
        (
            {"a": 1.0},
            True,
            (
                "round 3 is running with 1 node (a); this node joins the next round, which "
                "begins when the running one ends or makes room"
            ),
        ),
        (
            {"a": 1.0, "b": 1.0},
            True,
            (
                "round 3 is running with 2 nodes (a, b); this node joins the next round, "
                "which begins when the running one ends or makes room"
            ),
        ),
    ],
)
def test_how_far_a_round_is(ages, complete, said):
    """
    Who waits is told who has joined, or who is in the round that runs.
    """
    state = pickle.loads(torchs_state(ages, complete=complete, round=3))
    settings = SimpleNamespace(min_nodes=2, max_nodes=4)

    assert handler_module.describe(state, settings) == said
