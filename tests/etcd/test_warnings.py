# SPDX-License-Identifier: BSD-3-Clause
"""
What both handlers warn of before it goes wrong, and torch's metrics and events: on real
servers.
"""

from __future__ import annotations

import logging
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed.elastic import events, metrics
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
)

from etcd_rendezvous import EtcdClient, create_backend, create_handler
from etcd_rendezvous._clocks import ClockWatch
from support import users
from support.quota import SMALL_QUOTA, fill
from support.scripted import ScriptedServer, json_reply, refused_endpoint
from support.torchrun import wait_until

pytestmark = pytest.mark.torch

PAGE = Path(__file__).parents[2] / "docs" / "logs.md"
NAMES = ("etcd-v3", "etcd-live")
STATUS = "/v3/maintenance/status"


@pytest.fixture
def said(caplog):
    """
    A function that returns the warnings with some words in them.
    """
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda words="": [text for text in caplog.messages if words in text]


@pytest.fixture
def make(run_id):
    """
    A function that makes a handler of a quick node; it is ended with the test.
    """
    made = []

    def make(name, endpoint, least=1, most=1, **config):
        config = {"keep_alive_interval": 1, "last_call_timeout": 1, **config}
        params = RendezvousParameters(
            name, endpoint, run_id, least, most, "127.0.0.1", **config
        )
        made.append(create_handler(params))
        return made[-1]

    yield make
    for one in made:
        end(one)


def end(handler):
    if hasattr(handler, "_node"):
        handler._node.withdraw(1.0)
    else:
        handler._stop_heartbeats()


# -- etcd's space ---------------------------------------------------------------------


@pytest.mark.measures  # A look may take a quarter of a second.
def test_a_quota_that_is_nearly_used_up(
    etcd_binary, make_server, make, said, monkeypatch
):
    """
    Torch's handler and `etcd-live` say so where etcd tells its quota, from 3.6 on, with
    users who have no rights but on the run's keys. What heartbeats add is said of
    torch's handler alone.
    """
    monkeypatch.setattr("etcd_rendezvous._live.node._GUARD_SECONDS", 0.5)
    server = make_server(binary=etcd_binary, extra_args=[SMALL_QUOTA])
    endpoint = server.get_endpoint()
    fill(endpoint, 0.85)
    users.switch_authentication_on(endpoint)
    monkeypatch.setenv("ETCD_RENDEZVOUS_USER", users.USER)
    monkeypatch.setenv("ETCD_RENDEZVOUS_PASSWORD", users.PASSWORD)
    tells = not server.version.startswith(("3.4", "3.5"))

    live = make("etcd-live", endpoint)
    live.next_rendezvous()
    wait_until("its look", lambda: not live._node._lookout.is_due)
    time.sleep(0.1)  # for what must not be said
    wait_until("its line", lambda: len(said("of its quota of 4 MiB")) == tells)
    assert not said("The heartbeats")
    end(live)

    handler = make("etcd-v3", endpoint)
    handler.next_rendezvous()
    wait_until("its look", lambda: not handler._lookout.is_due)
    time.sleep(0.1)
    # Where it does not tell it is taken for 2 GiB, which one node does not fill.
    wait_until("lines", lambda: len(said("The heartbeats of 1 node(s)")) == tells)
    assert len(said("of its quota of 4 MiB")) == 2 * tells
    assert not said(users.PASSWORD)


def test_one_node_asks(newest_v3, make_proxy, make, said):
    """
    Of torch's handlers that of rank 0 asks etcd, of nodes of `etcd-live` the closer.
    """
    for name in ("etcd-v3", "etcd-live"):
        proxies = [make_proxy(newest_v3.endpoint) for _ in range(2)]
        handlers = [make(name, proxy.endpoint, 2, 2) for proxy in proxies]
        infos = join(handlers)
        if name == "etcd-live":
            asks = [one._node.view.closer == one._node.node.id for one in handlers]
            for one in handlers:
                one._node._look_out()
        else:
            asks = [info.rank == 0 for info in infos]
            for one in handlers:
                one._keep_alive()

        assert sorted(asks) == [False, True]
        # One of the node's own threads may have begun to look just before.
        wait_until("the look", lambda p=proxies: any(one.requests[STATUS] for one in p))
        assert [proxy.requests[STATUS] == 1 for proxy in proxies] == asks
        for one in handlers:
            end(one)


def join(handlers):
    with ThreadPoolExecutor(len(handlers)) as pool:
        return list(pool.map(lambda one: one.next_rendezvous(), handlers))


def test_a_look_does_not_stop_heartbeats(own_server, make_proxy, make):
    """
    An etcd that does not answer how full it is holds no heartbeat up.
    """
    proxy = make_proxy(own_server.get_endpoint())
    with proxy.hold(STATUS):
        handler = make("etcd-v3", proxy.endpoint)
        handler.next_rendezvous()
        wait_until("its look", lambda: not handler._lookout.is_due)
        looked = time.monotonic()
        revision = own_revision(own_server)
        wait_until("heartbeats", lambda: own_revision(own_server) >= revision + 2)

        assert time.monotonic() - looked < 20


def own_revision(server):
    with EtcdClient(server.get_endpoint()) as client:
        return client.range("/")[1]


# -- clocks ---------------------------------------------------------------------------


def test_clocks_that_differ(newest_served, run_id, said):
    """
    On both APIs a reply tells how far etcd's clock is.
    """
    name = f"etcd-{newest_served.api}"
    params = RendezvousParameters(name, newest_served.endpoint, run_id, 1, 1)
    backend, _ = create_backend(params)
    backend.get_state()
    backend.watch_clocks(ClockWatch(15.0))
    backend.get_state()
    assert said() == []
    backend.watch_clocks(ClockWatch(15.0, wall=lambda: time.time() - 60))
    backend.get_state()
    backend.set_state(b"state")

    (line,) = said()
    assert "or more behind that of the etcd at http://" in line
    assert newest_served.endpoint in line


def test_the_handlers_that_compare(newest_v3, make):
    """
    Torch's handler compares clocks; `etcd-live`, to which they are all one, does not.
    """
    ours = make("etcd-v3", newest_v3.endpoint)._store.client._transport
    live = make("etcd-live", newest_v3.endpoint)._store.client._transport

    assert ours.clocks is not None
    assert ours.clocks._expiry == 3
    assert live.clocks is None


# -- failover -------------------------------------------------------------------------


def test_a_member_that_dies(cluster, make, said):
    """
    While a round runs, both handlers say where their operations go now, and why.
    """
    handlers = [make(name, ",".join(cluster.endpoints)) for name in NAMES]
    for handler in handlers:
        # Both at the same member; set while nothing is on its way that would stay there.
        handler._store.client._transport.failover._current = 0
        handler.next_rendezvous()
    assert not said("Operations go")
    cluster.members[0].kill()
    dead, *others = cluster.endpoints
    because = f" now, since http://{dead} failed ("
    # Of a leader that dies the others do not know at once: one may go on from there, too.
    wait_until("two lines", lambda: len(said(because)) >= 2)

    for line in said(because):
        assert any(
            line.startswith(f"Operations go to etcd at http://{one}{because}")
            for one in others
        )


# -- the first line -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-live", "etcd-v2"])
def test_the_first_line(v2_server, make, caplog, name):
    """
    It has the API, the version, the endpoints and the settings, whichever API it is.
    """
    caplog.set_level(logging.INFO, "etcd_rendezvous")
    with refused_endpoint() as gone:
        make(name, f"{v2_server.get_endpoint()},{gone}")

    (line,) = [text for text in caplog.messages if " speaks " in text]
    there = f"http://{v2_server.get_endpoint()}"
    api = "v2" if name == "etcd-v2" else "v3"
    assert f"({name}) speaks etcd's {api} API at {there}, http://{gone} (etcd " in line
    assert f"(etcd {v2_server.version} answers at {there}) with read_timeout=" in line
    assert line.endswith(".")
    assert "keep_alive_interval=1 s" in line


@pytest.mark.parametrize("version", [{}, {"etcdserver": "3.5\nroot:x"}, "page"])
def test_a_version_that_is_not_told(make, caplog, version):
    """
    Where it is not told, or is none, the line goes without, and nothing fails.
    """
    caplog.set_level(logging.INFO, "etcd_rendezvous")
    empty = json_reply({"header": {"revision": "7"}})

    def script(exchange):
        return json_reply(version) if exchange.request.path == "/version" else empty

    with ScriptedServer(script) as server:
        make("etcd-v3", server.endpoint)

    (line,) = [text for text in caplog.messages if " speaks " in text]
    assert f"API at {server.url} (etcd answers) with read_timeout=" in line


def test_the_version_is_asked_for_where_it_is_heard(newest_v3, make_proxy, make):
    """
    Nobody asks for a version that nobody hears of.
    """
    proxy = make_proxy(newest_v3.endpoint)
    make("etcd-v3", proxy.endpoint)

    assert proxy.requests == {"/v3/kv/range": 1}


# -- metrics and events ---------------------------------------------------------------


class Collected(metrics.MetricHandler):
    """
    What was put, and a fault that each putting ends in.
    """

    def __init__(self):
        self.put = []
        self.fault = None

    def emit(self, metric_data):
        self.put.append((metric_data.name, metric_data.value))
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def collected():
    handler = Collected()
    metrics.configure(handler, group="etcd_rendezvous")
    yield handler
    metrics.api._metrics_map.pop("etcd_rendezvous")


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-live", "etcd-v2"])
def test_metrics(newest_v2, make, collected, name):
    """
    Each joining puts them, by each agent.
    """
    handlers = [make(name, newest_v2.endpoint, 2, 2) for _ in range(2)]
    join(handlers)

    put = dict(collected.put)
    common = {"next_rendezvous.success": 1, "round.nodes": 2, "failovers": 0}
    of_swaps = set() if name == "etcd-live" else {"lost_swaps"}
    assert common.items() <= put.items()
    assert set(put) == {*common, *of_swaps, "next_rendezvous.duration.ms"}
    assert 0 <= put["next_rendezvous.duration.ms"] < 30_000
    assert {type(value) for value in put.values()} == {int}
    assert len(collected.put) == 2 * len(put)


def test_metrics_as_the_page_shows_them(newest_v3, make, capsys):
    """
    The page's code prints them.
    """
    (code,) = re.findall(
        r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    try:
        exec(compile(code, "logs.md", "exec"), {})
        make("etcd-v3", newest_v3.endpoint).next_rendezvous()
    finally:
        metrics.api._metrics_map.pop("etcd_rendezvous", None)

    assert "[etcd_rendezvous]: round.nodes=1\n" in capsys.readouterr().out


def test_metrics_of_a_failure(newest_v3, make, collected):
    """
    A joining that fails is told as one.
    """
    for name in ("etcd-v3", "etcd-live"):
        handler = make(name, newest_v3.endpoint, 2, 2, join_timeout=3)
        with pytest.raises(RendezvousTimeoutError):
            handler.next_rendezvous()

    put = [name for name, _ in collected.put]
    assert put.count("next_rendezvous.failure") == 2
    assert "next_rendezvous.success" not in put
    assert "round.nodes" not in put


def test_lost_swaps_are_counted(newest_v3, run_id):
    """
    A backend counts the swaps that others were quicker with.
    """
    params = RendezvousParameters("etcd-v3", newest_v3.endpoint, run_id, 1, 1)
    backend, other = (create_backend(params)[0] for _ in range(2))
    _, token, _ = backend.set_state(b"one")
    _, newer, _ = other.set_state(b"two", token)
    assert not backend.set_state(b"three", token)[2]
    assert backend.set_state(b"four", newer)[2]

    assert (backend.lost_swaps, other.lost_swaps) == (1, 0)


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-live"])
def test_a_listener_that_fails(newest_v3, make, collected, monkeypatch, name):
    """
    Whatever a handler of metrics or a recorder of events does, nodes meet.
    """
    collected.fault = RuntimeError("no room")
    if name == "etcd-live":

        def fail(**_):
            raise RuntimeError("no room")

        monkeypatch.setattr(
            "etcd_rendezvous._live.handler.construct_and_record_rdzv_event", fail
        )
    handler = make(name, newest_v3.endpoint)

    assert handler.next_rendezvous().world_size == 1
    assert handler.shutdown()


class Recorded(logging.Handler):
    """
    Events as torch hands them to who listens.
    """

    def __init__(self):
        super().__init__()
        self.events = []

    def emit(self, record):
        self.events.append(events.RdzvEvent.deserialize(record.getMessage()))


@pytest.fixture
def recorded(monkeypatch):
    handler = Recorded()
    monkeypatch.setitem(events.handlers._log_handlers, "dynamic_rendezvous", handler)
    events._events_loggers.pop("dynamic_rendezvous", None)
    yield handler
    events._events_loggers.pop("dynamic_rendezvous", None)


def test_both_handlers_record_the_same(newest_v3, make, recorded):
    """
    What torch's handler records of itself, `etcd-live` does: the same kinds of events,
    with the same fields.
    """
    kinds = {}
    for name in ("etcd-v3", "etcd-live"):
        recorded.events.clear()
        handler = make(name, newest_v3.endpoint)
        handler.next_rendezvous()
        handler.shutdown()
        found = [one for one in recorded.events if "RendezvousHandler" in one.name]
        kinds[name] = {
            (
                one.name.rpartition(".")[2],
                one.node_state,
                one.rank,
                one.local_id is None,
                one.hostname,
                one.pid,
                one.master_endpoint,
            )
            for one in found
            if "_keep_alive" not in one.name
        }

    assert kinds["etcd-v3"]
    assert kinds["etcd-v3"] == kinds["etcd-live"]


def test_a_handler_that_is_not_created(recorded, run_id):
    """
    Its failure is an event.
    """
    with refused_endpoint() as endpoint:
        params = RendezvousParameters(
            "etcd-live", endpoint, run_id, 1, 1, startup_timeout=0
        )
        with pytest.raises(RendezvousConnectionError):
            create_handler(params)

    (event,) = recorded.events
    assert event.run_id == run_id
    assert event.node_state is events.NodeState.FAILED
    assert event.message.startswith("RendezvousConnectionError: ")
