# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Clocks compared by the header `Date` of scripted replies.
"""

from __future__ import annotations

import logging
import time
from email.utils import formatdate

import pytest

from etcd_rendezvous import EtcdClient
from etcd_rendezvous._clocks import ClockWatch
from support.scripted import ScriptedServer, after, json_reply

NOTHING = {"header": {"revision": "7"}}
EXPIRY = 9.0  # so 3 s are said


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda: caplog.messages


def dated(off, name="Date"):
    """
    Reply as a server does whose clock is off.
    """
    return lambda _: json_reply(
        NOTHING, headers={name: formatdate(time.time() + off, usegmt=True)}
    )


def ask(server, times=1):
    """
    Send a few requests of a client that compares clocks.
    """
    with EtcdClient(server.endpoint) as client:
        client.watch_clocks(ClockWatch(EXPIRY))
        for _ in range(times):
            assert client.get("/key") is None


@pytest.mark.parametrize("off", [0, 2, -2])
def test_clocks_that_agree(said, off):
    """
    A few seconds are not spoken of.
    """
    with ScriptedServer(dated(off)) as server:
        ask(server)

    assert [] == said()


@pytest.mark.parametrize(
    ("off", "how", "name"),
    [(20, "behind", "Date"), (-20, "ahead of", "Date"), (20, "behind", "DATE")],
)
def test_clocks_that_differ(said, off, how, name):
    """
    More is, once, with who answered.
    """
    with ScriptedServer(dated(off, name)) as server:
        ask(server, 3)

    (line,) = said()
    assert f"or more {how} that of the etcd at {server.url}: " in line


def test_a_slow_reply(said):
    """
    A reply that takes long after its date was set does not look like a difference.
    """

    def slow(_):
        stamp = formatdate(time.time() - 0.5, usegmt=True)
        return after(1.0, json_reply(NOTHING, headers={"Date": stamp}))

    with ScriptedServer(slow) as server, EtcdClient(server.endpoint) as client:
        # Nothing at all is harmless to this one, but what is sure.
        watch = ClockWatch(EXPIRY)
        watch._harmful = 0.75
        client.watch_clocks(watch)
        client.get("/key")

    assert [] == said()


@pytest.mark.parametrize("headers", [{}, {"Date": "now"}, {"Date": ""}])
def test_replies_without_a_date(said, headers):
    """
    Nothing is said, and nothing fails, where there is none that can be read.
    """
    with ScriptedServer(lambda _: json_reply(NOTHING, headers=headers)) as server:
        ask(server, 2)

    assert [] == said()


def test_nobody_compares_by_default(said):
    """
    A client of one's own compares nothing.
    """
    with ScriptedServer(dated(1000)) as server, EtcdClient(server.endpoint) as client:
        client.get("/key")

    assert [] == said()
