# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
How far a clock is off, and what is said of it. No server, no clock.
"""

from __future__ import annotations

import logging
import random
from email.utils import formatdate

import pytest

from etcd_rendezvous._clocks import ClockWatch, Sending, seconds_ahead
from etcd_rendezvous._settings import Endpoint
from support.clock import Clock

WHERE = Endpoint("http", "etcd0", 2379)
# A date of HTTP has no part of a second; a clock has.
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("sent", "received", "ahead"),
    [
        (NOW, NOW, 0),
        (NOW + 0.99, NOW + 0.99, 0),
        (NOW + 1, NOW + 1, 0),
        (NOW + 1.5, NOW + 1.6, 0.5),
        (NOW + 21, NOW + 21.5, 20),
        (NOW - 0.5, NOW - 0.25, -0.25),
        (NOW - 20, NOW - 20, -20),
        # A slow reply: its date may be of any moment in between.
        (NOW - 30, NOW + 30, 0),
        (NOW - 30, NOW - 10, -10),
        (NOW + 10, NOW + 30, 9),
    ],
)
def test_what_a_date_tells(sent, received, ahead):
    """
    It tells no more than is sure: the resolution and a slow reply are allowed for.
    """
    assert ahead == seconds_ahead(NOW, sent, received)


def test_no_false_alarm():
    """
    Whatever a reply takes, of a clock that is right nothing is told, and of one that
    is off no more than it is.
    """
    chance = random.Random(5)
    for _ in range(1000):
        off = chance.choice([0.0, chance.uniform(-100, 100)])
        sent = NOW + chance.uniform(0, 5)
        stamped = sent + chance.uniform(0, 30)
        received = stamped + chance.uniform(0, 30)

        told = seconds_ahead(float(int(stamped)), sent + off, received + off)

        assert abs(told) <= abs(off) + 1e-6
        assert told * off >= 0


class World:
    """
    A watch whose clocks are set by hand.
    """

    def __init__(self, expiry=15.0):
        self.clock = Clock(100.0)
        self.off = 0.0
        self.watch = ClockWatch(
            expiry, clock=self.clock, wall=lambda: self.local(self.clock())
        )

    def local(self, now):
        return NOW + now + self.off

    def reply(self, *, takes=0.0, date=None):
        """
        Send a request, and look at its reply; return whether it was to be looked at.
        """
        sending = self.watch.begin()
        stamp = formatdate(NOW + self.clock.now, usegmt=True)
        self.clock.now += takes
        if sending is not None:
            self.watch.look(WHERE, stamp if date is None else date, sending)
        return sending is not None


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda: caplog.messages


@pytest.mark.parametrize(
    ("expiry", "harmless", "harmful"), [(15, 5.5, 6.5), (3, 2.5, 3.5), (60, 20.5, 21.5)]
)
def test_what_is_said(said, expiry, harmless, harmful):
    """
    A third of the time after which a node is dead is said, but nothing below 2 s; the
    resolution of a date hides up to one second more.
    """
    world = World(expiry)
    world.off = harmless
    world.reply()
    world.clock.now += 10
    world.off = -harmless + 1
    world.reply()
    assert [] == said()
    world.clock.now += 10
    world.off = harmful
    world.reply()

    (line,) = said()
    assert line.startswith(f"This machine's clock is {harmful - 1:.0f} s or more ahead")
    assert f"of the etcd at {WHERE}: " in line
    assert f"that looks {expiry} s old" in line


def test_a_clock_that_is_behind(said):
    """
    So is one that is behind.
    """
    world = World()
    world.off = -60
    world.reply()

    assert said()[0].startswith("This machine's clock is 60 s or more behind that of")


def test_a_slow_reply(said):
    """
    A reply that takes a minute is none of a clock that is off, nor is one in the midst
    of which the clock is set.
    """
    world = World()
    world.reply(takes=60)
    world.clock.now += 10
    sending = world.watch.begin()
    stamp = formatdate(NOW + world.clock.now, usegmt=True)
    world.off = 3600
    world.clock.now += 5
    world.watch.look(WHERE, stamp, Sending(sending.wall, sending.monotonic))

    assert [] == said()


def test_how_often(said):
    """
    One reply in ten seconds is looked at, and what is wrong said every ten minutes.
    """
    world = World()
    looked = 0
    for _ in range(100):
        looked += world.reply()
        world.clock.now += 1
    assert 10 == looked
    world.off = 60
    for _ in range(1300):
        world.reply()
        world.clock.now += 1

    assert 3 == len(said())
    assert all(line.endswith("which compares none.") for line in said())


@pytest.mark.parametrize(
    "date",
    [
        "",
        "yesterday",
        "0",
        "Thu, 26 Nov 99999999999999999999 23:48:00 GMT",
        "26 Nov 2026 aa:bb:cc +99999999999999",
        "\x00\xff",
        ":" * 50,
        "Thu, 26 Foo 2026 23:48:00 GMT",
    ],
)
def test_what_is_no_date(said, date):
    """
    What can't be read is left alone, and the next reply looked at.
    """
    world = World()

    assert world.reply(date=date)
    assert world.reply()
    assert [] == said()


def test_rubbish():
    """
    Nothing that is read as a date raises.
    """
    chance = random.Random(7)
    letters = "Thu, 26 Nov 2026 23:48:00 GMT+-:;\x00é9"
    world = World()
    for _ in range(3000):
        text = "".join(chance.choices(letters, k=chance.randrange(40)))
        world.clock.now += 700
        world.reply(date=text)
