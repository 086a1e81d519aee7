# SPDX-License-Identifier: BSD-3-Clause
"""
``etcd-rendezvous status``: what is there of runs, and who is missing.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from etcd_rendezvous._cli.app import console
from etcd_rendezvous._cli.options import NORMALIZED, Target, target_options
from etcd_rendezvous._cli.status_view import show_report, show_run
from etcd_rendezvous._cli.text import plain
from etcd_rendezvous._errors import EtcdError
from etcd_rendezvous._runs.changes import Memory
from etcd_rendezvous._runs.find import Finder
from etcd_rendezvous._runs.report import Report

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["status"]

# Of what a terminal shows.
_LINES_OF_NEWS = 8
_LINES_BESIDES = 9
_LEAST_ROWS = 4


@click.command(context_settings=NORMALIZED)
@click.argument("run_id", required=False)
@target_options
@click.option("--watch", is_flag=True, help="Look again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2),
    default=2.0,
    show_default=True,
    help="The seconds between two looks of --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one line a look.")
def status(
    target: Target, run_id: str | None, watch: bool, interval: float, as_json: bool
) -> None:
    """
    Show the runs that an etcd holds, or the run RUN_ID with all its nodes.

    It only reads. Exit status: 0; 1 if there is no such run, or etcd can't be read.
    """
    finder = Finder(target.settings, target.backend, target.silence)
    with contextlib.closing(finder):
        if watch:
            _watch(finder, target, run_id, interval, as_json=as_json)
            return
        report = finder.find(run_id)
    if as_json:
        click.echo(json.dumps(report.as_json()))
    else:
        console().print(_shown(report, target, run_id))
    if run_id is not None and not report.runs:
        sys.exit(1)


def _shown(
    report: Report, target: Target, run_id: str | None, most: int | None = None
) -> RenderableType:
    if not report.runs:
        what = "No runs" if run_id is None else f"There is no run '{plain(run_id)}'"
        notes = [Text(plain(note), "yellow") for note in report.notes]
        text = f"{what} under {report.key_prefix} at {target.endpoints}."
        return Group(Text(text), *notes)
    if run_id is None:
        return show_report(report, most)
    return Group(*(show_run(run, most) for run in report.runs))


def _watch(
    finder: Finder,
    target: Target,
    run_id: str | None,
    interval: float,
    *,
    as_json: bool,
) -> None:
    """
    Look again and again, until Ctrl-C or SIGTERM.
    """
    screen = console()
    shows: _Lines | _Screen
    if as_json or not screen.is_terminal:
        shows = _Lines(target, run_id, as_json=as_json)
    else:
        shows = _Screen(target, run_id)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    memory = Memory()
    report = finder.find(run_id)  # What is wrong from the start is an error.
    with contextlib.suppress(KeyboardInterrupt), shows:
        while True:
            report = memory.take_in(report)
            shows.update(report, memory.news)
            time.sleep(interval)
            while (found := _found(finder, run_id, shows)) is None:
                time.sleep(interval)
            report = found


def _found(
    finder: Finder, run_id: str | None, shows: _Lines | _Screen
) -> Report | None:
    try:
        return finder.find(run_id)
    except EtcdError as error:
        shows.complain(str(error))
        return None


class _Lines:
    """
    Shows runs first, and then what changes, line by line: for files and pipes.
    """

    def __init__(self, target: Target, run_id: str | None, *, as_json: bool) -> None:
        self._target = target
        self._run_id = run_id
        self._as_json = as_json
        self._shown = False
        self._trouble = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, report: Report, news: Sequence[str]) -> None:
        if self._as_json:
            click.echo(json.dumps(report.as_json()))
        elif not self._shown:
            self._shown = True
            console().print(_shown(report, self._target, self._run_id))
        else:
            if self._trouble:
                click.echo(f"{_clock(report.time)} etcd answers again")
            for line in news:
                click.echo(f"{_clock(report.time)} {plain(line)}")
        self._trouble = False

    def complain(self, sentence: str) -> None:
        if not self._trouble:
            click.echo(plain(sentence), err=True)
        self._trouble = True


class _Screen:
    """
    Shows runs, and what has changed lately, always at the same place of a terminal.
    """

    def __init__(self, target: Target, run_id: str | None) -> None:
        self._target = target
        self._run_id = run_id
        self._live = Live(console=console(wraps=True), auto_refresh=False)
        self._said: deque[str] = deque(maxlen=_LINES_OF_NEWS)
        self._shown: RenderableType = ""

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def update(self, report: Report, news: Sequence[str]) -> None:
        self._said.extend(f"{_clock(report.time)} {plain(line)}" for line in news)
        # What is below it, and the lines about a run besides its nodes.
        rest = len(self._said) + _LINES_BESIDES
        most = max(self._live.console.height - rest, _LEAST_ROWS)
        self._shown = _shown(report, self._target, self._run_id, most)
        self._draw(Text(f"{_clock(report.time)} Ctrl-C ends this.", "dim"))

    def complain(self, sentence: str) -> None:
        self._draw(Text(plain(sentence), "red"))

    def _draw(self, foot: Text) -> None:
        lines = [Text(line) for line in self._said]
        self._live.update(Group(self._shown, "", *lines, foot), refresh=True)


def _clock(moment: datetime) -> str:
    return moment.astimezone().strftime("%H:%M:%S")
