# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Looking how full etcd is: how often, and what is done with odd answers. Scripted servers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from base64 import b64encode

import pytest

from etcd_rendezvous import EtcdClient
from etcd_rendezvous._lookout import Lookout
from etcd_rendezvous._space import Growth
from support.clock import Clock
from support.scripted import (
    ScriptedServer,
    close,
    json_reply,
    refused_endpoint,
    reply,
    silence,
)

STATUS, RANGE = "/v3/maintenance/status", "/v3/kv/range"
HEADER = {"header": {"revision": "7"}}
FULL = {**HEADER, "dbSize": "90", "dbSizeInUse": "10", "dbSizeQuota": "100"}
ROOMY = {**FULL, "dbSize": "10"}
FAST = Growth(10_000, 1000, 5.0)
COMPACTED = json_reply(
    {"code": 11, "message": "etcdserver: mvcc: required revision has been compacted"},
    400,
)
DENIED = json_reply({"code": 7, "message": "etcdserver: permission denied"}, 403)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda: caplog.messages


class Etcd:
    """
    Answer with a status, and with what a range of revision 1 finds.
    """

    def __init__(self, status, history=None):
        self.status = status
        self.history = json_reply(HEADER) if history is None else history

    def __call__(self, exchange):
        if exchange.request.path == RANGE:
            return self.history
        return json_reply(self.status) if isinstance(self.status, dict) else self.status


@contextlib.contextmanager
def looking(script, interval=None):
    """
    A lookout on a clock that is set by hand.

    Without an interval it waits for its answers, however busy the machine is.
    """
    clock = Clock()
    with ScriptedServer(script) as server, EtcdClient(server.endpoint) as client:
        lookout = Lookout(client, "/run/key", interval or 5.0, clock=clock)
        if interval is None:
            lookout._seconds = 20.0
        yield lookout, clock, server


def test_how_often(said):
    """
    At first, and every ten minutes, with one request.
    """
    with looking(Etcd(FULL)) as (lookout, clock, server):
        for now in (0, 1, 599, 600, 601, 1200):
            clock.now = now
            assert lookout.is_due == (now in (0, 600, 1200))
            lookout.look()

        assert [STATUS] * 3 == server.paths
        assert 3 == len(said())
        assert f"The etcd at {server.url} has taken 0 MiB of its quota" in said()[0]


def test_room_enough(said):
    """
    With room nothing is said, nor where no quota is told.
    """
    script = Etcd(ROOMY)
    with looking(script) as (lookout, clock, _):
        lookout.look()
        clock.now = 600
        script.status = {**HEADER, "dbSize": "99999999999"}
        lookout.look()

    assert [] == said()


def test_history_that_grows(said):
    """
    It is said once, if nothing was ever compacted; that is asked at revision 1 of a key
    that the user may read.
    """
    with looking(Etcd(ROOMY)) as (lookout, clock, server):
        for now in (0, 600, 1200):
            clock.now = now
            lookout.look(FAST)

        (line,) = said()
        assert "The heartbeats of 1000 node(s) add about" in line
        (asked,) = [one.json for one in server.requests if one.path == RANGE]
        assert b64encode(b"/run/key").decode() == asked["key"]
        assert "1" == asked["revision"]
        assert asked["keys_only"]


@pytest.mark.parametrize(
    ("growth", "history", "asked"),
    [(FAST, COMPACTED, 1), (None, None, 0), (Growth(100, 1, 3600.0), None, 0)],
)
def test_history_that_does_no_harm(said, growth, history, asked):
    """
    What was compacted is seen to by somebody, and what grows slowly is not asked of.
    """
    status = {**ROOMY, "dbSizeQuota": "2147483648"}
    with looking(Etcd(status, history)) as (lookout, clock, server):
        for now in (0, 600):
            clock.now = now
            lookout.look(growth)

        assert asked == server.paths.count(RANGE)
    assert [] == said()


@pytest.mark.parametrize("refusal", [DENIED, reply(404, "404 page not found")])
def test_a_status_that_is_refused(said, refusal):
    """
    It is not asked for again; a history that grows is told of all the same.
    """
    with looking(Etcd(refusal)) as (lookout, clock, server):
        lookout.look()
        clock.now = 600
        lookout.look(FAST)

        assert [STATUS, RANGE] == server.paths
    (line,) = said()
    assert "etcd's default quota of 2048 MiB" in line


def test_a_history_that_is_not_told(said):
    """
    Where it is refused to say whether anything was compacted, nothing is said, and it is
    not asked again.
    """
    with looking(Etcd(ROOMY, DENIED)) as (lookout, clock, server):
        for now in (0, 600):
            clock.now = now
            lookout.look(FAST)

        assert 1 == server.paths.count(RANGE)
    assert [] == said()


@pytest.mark.parametrize(
    "odd",
    [
        reply(200, "no JSON"),
        reply(200, "[1]"),
        json_reply({"dbSize": {}, "dbSizeQuota": "many"}),
        json_reply({}),
        close(),
        reply(502, "<html>"),
    ],
)
def test_odd_answers(said, odd):
    """
    Whatever it is that answers, nothing is raised, and nothing said.
    """
    with looking(Etcd(odd), interval=0.2) as (lookout, _, _server):
        lookout.look()

    assert [] == said()


def test_an_etcd_that_is_away(said):
    """
    Nor where nobody answers.
    """
    with refused_endpoint() as endpoint, EtcdClient(endpoint) as client:
        Lookout(client, "/key", 5.0).look(FAST)

    assert [] == said()


def test_an_etcd_that_is_silent(said):
    """
    It is waited for a quarter of the time between heartbeats, and a moment.
    """
    with looking(Etcd(silence()), interval=0.8) as (lookout, _, server):
        started = time.monotonic()
        lookout.look(FAST)
        took = time.monotonic() - started

        assert 0.2 <= took < 2.0
        server.wait_for_requests(1)
        assert {STATUS} == set(server.paths)
    assert [] == said()


def test_what_is_sent():
    """
    A status is asked for with nothing else in the request.
    """
    with looking(Etcd(ROOMY)) as (lookout, _, server):
        lookout.look()

        assert [{}] == [json.loads(one.body) for one in server.requests]


def test_a_look_that_is_late_moves_nothing():
    """
    A member that is slow to tell how full it is stays the one that is asked.
    """
    with ScriptedServer(silence()) as slow, ScriptedServer() as other:
        with EtcdClient([slow.endpoint, other.endpoint]) as client:
            failover = client._transport.failover
            failover._current = 0

            Lookout(client, "/k", 0.8).look()

            assert str(failover.current) == f"http://{slow.endpoint}"
            assert failover.moves == 0
            assert other.paths == []
