# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What is said, and how often.
"""

from __future__ import annotations

import logging
import os
import threading

import pytest

from etcd_rendezvous._log import (
    BEAT_SECONDS,
    SlowBeat,
    SlowLog,
    log,
    log_under_torchrun,
)
from etcd_rendezvous._outages import Outages
from support.clock import Clock
from support.lines import Lines


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(caplog):
    """
    What was warned of, line by line.
    """
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if (record.name, record.levelname) == ("etcd_rendezvous", "WARNING")
    ]


# -- the beat ----------------------------------------------------------------------


def test_the_first_word(clock, lines):
    """
    The first line is said at once.
    """
    assert SlowBeat(clock).warn("One.")
    assert ["One."] == lines()


def test_held_back(clock, lines):
    """
    What comes within ten seconds is held back and counted in the next line.
    """
    beat = SlowBeat(clock)
    said = []
    for now in (0.0, 0.1, 9.9, BEAT_SECONDS, 15.0, 20.0, 40.0):
        clock.now = now
        said.append(beat.warn(f"At {now:g}."))

    assert 10.0 == BEAT_SECONDS
    assert [True, False, False, True, False, True, True] == said
    assert [
        "At 0.",
        "At 10. (2 more like this since the last line)",
        "At 20. (1 more like this since the last line)",
        "At 40.",
    ] == lines()


def test_hold(clock, lines):
    """
    Who holds the beat first says nothing before ten seconds have passed.
    """
    clock.now = 100.0
    beat = SlowBeat(clock)
    beat.hold()
    said = []
    for clock.now in (100.0, 109.9, 110.0):
        said.append(beat.warn("Waiting."))

    assert [False, False, True] == said
    assert ["Waiting. (2 more like this since the last line)"] == lines()


def test_percent_signs(clock, lines):
    """
    A message is said as it is.
    """
    SlowBeat(clock).warn("The key 'a%2Fb' is at 100 %s.")

    assert ["The key 'a%2Fb' is at 100 %s."] == lines()


def test_beats_are_of_their_own(clock, lines):
    """
    One beat does not hold back another's words.
    """
    SlowBeat(clock).warn("One.")
    SlowBeat(clock).warn("Two.")

    assert ["One.", "Two."] == lines()


def test_many_threads(clock, lines):
    """
    Of many threads that speak at once one is heard, and all others are counted.
    """
    beat = SlowBeat(clock)
    barrier = threading.Barrier(8)

    def speak():
        barrier.wait()
        for _ in range(20):
            beat.warn("All at once.")

    threads = [threading.Thread(target=speak) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    clock.now = BEAT_SECONDS
    beat.warn("Later.")

    assert [
        "All at once.",
        "Later. (159 more like this since the last line)",
    ] == lines()


def test_another_time(clock, lines):
    """
    A beat may be slower; another one like it counts by itself.
    """
    beat = SlowBeat(clock, 600.0)
    other = beat.another()
    said = []
    for clock.now in (0.0, 599.0, 600.0):
        said += [beat.is_due(), beat.warn("One."), other.warn("Two.")]

    assert [True, True, True, False, False, False, True, True, True] == said
    assert [
        "One.",
        "Two.",
        "One. (1 more like this since the last line)",
        "Two. (1 more like this since the last line)",
    ] == lines()


def test_a_beat_after_fork(clock, lines):
    """
    A child that was forked while a thread spoke can speak.
    """
    beat = SlowBeat(clock)
    with beat._lock:
        child = os.fork()
        if not child:
            said = beat.warn("Said by the child.")
            os._exit(0 if said else 1)
        _, status = os.waitpid(child, 0)

    assert 0 == status
    assert beat.warn("Said by the parent.")


# -- several things ----------------------------------------------------------------


def test_lines_of_several_kinds(clock, caplog):
    """
    Each kind of line has a beat of its own, whatever stands in it, and its level.
    """
    caplog.set_level(logging.INFO, "etcd_rendezvous")
    slow = SlowLog(clock)
    for clock.now in (0.0, 9.0, 10.0):
        slow.info("Round %d.", clock.now)
        slow.warning("Lost %s.", "a%s")
        try:
            raise OSError("it broke")
        except OSError:
            slow.exception("Started again.")

    assert [
        ("INFO", "Round 0."),
        ("WARNING", "Lost a%s."),
        ("ERROR", "Started again."),
        ("INFO", "Round 10. (1 more like this since the last line)"),
        ("WARNING", "Lost a%s. (1 more like this since the last line)"),
        ("ERROR", "Started again. (1 more like this since the last line)"),
    ] == [(record.levelname, record.getMessage()) for record in caplog.records]
    assert "it broke" in caplog.text


# -- an etcd that comes and goes ---------------------------------------------------


def test_an_etcd_that_comes_and_goes(clock, caplog):
    """
    However often it does, neither is said twice in ten seconds, and the last is said.
    """
    outages = Outages("job", SlowBeat(clock))
    with Lines(clock) as said:
        for clock.now in range(100):
            if clock.now % 3 == 0:
                outages.begin("it does not answer.")
            else:
                outages.end()
        for clock.now in range(100, 120):
            outages.end()

    assert [] == said.repeated(BEAT_SECONDS)
    assert said.texts[-1].startswith("etcd answers 'job' again.")
    assert 2 * 100 / BEAT_SECONDS >= len(said.texts) > 10


def test_an_etcd_whose_absence_was_not_said(clock, lines):
    """
    That it is back is said only if its absence was.
    """
    beat = SlowBeat(clock)
    outages = Outages("job", beat)
    outages.end()
    beat.warn("Something else.")
    outages.begin("it does not answer.")
    outages.end()

    assert ["Something else."] == lines()


# -- under torchrun ----------------------------------------------------------------


@pytest.fixture
def root(monkeypatch):
    """
    The root of logging as nobody has configured it, as under torchrun.
    """
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.delenv("LOGLEVEL", raising=False)
    # pytest listens at the real root.
    monkeypatch.setattr(log, "parent", root)
    monkeypatch.setattr(log, "handlers", [])
    level = log.level
    log.setLevel(logging.NOTSET)
    yield root
    log.setLevel(level)


@pytest.mark.parametrize("level", [None, "", "nonsense", "10", "level 7"])
def test_no_level(root, monkeypatch, level):
    """
    Without a level that there is nothing is changed.
    """
    if level is not None:
        monkeypatch.setenv("LOGLEVEL", level)
    log_under_torchrun()

    assert (logging.NOTSET, []) == (log.level, log.handlers)


@pytest.mark.parametrize(
    ("level", "expected"),
    [("INFO", logging.INFO), ("debug", logging.DEBUG), ("Error", logging.ERROR)],
)
def test_level(root, monkeypatch, level, expected):
    """
    LOGLEVEL sets the level of our logger, and of no other.
    """
    monkeypatch.setenv("LOGLEVEL", level)
    log_under_torchrun()

    assert (expected, logging.WARNING) == (log.level, root.level)


def test_a_handler(root, monkeypatch, capsys):
    """
    A logger that nobody listens to gets one handler, to standard error.
    """
    monkeypatch.setenv("LOGLEVEL", "INFO")
    log_under_torchrun()
    log_under_torchrun()
    log.info("It is heard.")
    log.debug("It is not.")

    assert 1 == len(log.handlers)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("INFO ")
    assert line.endswith(" etcd_rendezvous: It is heard.")


@pytest.mark.parametrize("ours", [True, False])
def test_handlers_that_are_there(root, monkeypatch, ours):
    """
    Where somebody listens already, to us or to all, no handler is added.
    """
    (log if ours else root).addHandler(logging.NullHandler())
    monkeypatch.setenv("LOGLEVEL", "INFO")
    log_under_torchrun()

    assert 1 == len(log.handlers + root.handlers)
    assert logging.INFO == log.level


def test_name():
    """
    The logger has the package's name.
    """
    assert "etcd_rendezvous" == log.name
