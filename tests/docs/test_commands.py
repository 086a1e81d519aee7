# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The commands of the pages that look at a run, or end one, do so.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time

import pytest

from support.account import COMMAND, taken_by
from support.live import Nodes
from support.pages import PAGES, blocks
from support.torchrun import clean_environment

pytestmark = pytest.mark.torch


def calls(text):
    """
    Return the words behind `etcd-rendezvous` of each of its calls in a block.
    """
    lines = text.replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.removeprefix("$ ").split("&&")]
    words = [shlex.split(part, comments=True) for part in parts]
    return [one[1:] for one in words if one[:1] == ["etcd-rendezvous"]]


def test_every_call_is_understood():
    """
    Every call on every page names a command, and options that it has.
    """
    from etcd_rendezvous._cli.app import cli

    shown = [
        words
        for page in PAGES
        for one in blocks(page)
        if one.language in ("sh", "console")
        for words in calls(one.text)
    ]

    assert shown
    for name, *arguments in shown:
        with cli.make_context("etcd-rendezvous", [name, *arguments]) as context:
            command = cli.get_command(context, name)
            assert command is not None, name
            command.make_context(name, arguments, parent=context)


@pytest.fixture
def ran(make_server, run_id):
    """
    An endpoint where a run of one node has met, and the function that ends it.
    """
    with Nodes(make_server().get_endpoint(), run_id) as nodes:
        handler = nodes.make(1, 1)
        nodes.meet(handler)
        yield nodes.endpoint, handler.shutdown


@pytest.mark.parametrize("shown", taken_by(COMMAND), ids=lambda shown: shown.id)
def test_commands_of_the_pages(shown, ran, run_id):
    """
    On the run that it names the command does its work, and ends well; one that watches
    until Ctrl-C names the run.
    """
    endpoint, end = ran
    (words,) = calls(shown.text)
    words = [
        word.replace("HOST:2379", endpoint)
        for word in (run_id if word in ("JOB", "my-job") else word for word in words)
    ]
    if words[0] == "purge":
        end()
    process = subprocess.Popen(
        [sys.executable, "-m", "etcd_rendezvous", *words],
        env=clean_environment(COLUMNS="200"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        if "--watch" in words:
            said = ""
            until = time.monotonic() + 30
            while run_id not in said and time.monotonic() < until:
                said += process.stdout.readline()
            process.send_signal(signal.SIGINT)
        # purge asks.
        said = process.communicate("y\n" if words[0] == "purge" else None, timeout=30)[
            0
        ]
    finally:
        process.kill()
        process.communicate()

    assert 0 == process.returncode, said
