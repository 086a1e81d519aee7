# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The commands of the pages that look at a run, or end one, do so.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.account import COMMAND, taken_by
from support.live import Nodes
from support.pages import PAGES, blocks
from support.torchrun import clean_environment

pytestmark = pytest.mark.torch

# What the pages call the run that is meant.
RUN = re.compile(r"\b(JOB|RUN_ID|my-job|gpt-xl)\b")
SECONDS = 60


def lines(shown):
    """
    Return the command lines of a block; on a console the others are what is printed.
    """
    found = shown.text.replace("\\\n", " ").splitlines()
    if shown.language == "console":
        found = [line[2:] for line in found if line.startswith("$ ")]
    return found


def test_every_call_is_understood():
    """
    Every call of etcd-rendezvous on every page names a command, and options that it
    has.
    """
    from etcd_rendezvous._cli.app import cli

    calls = []
    for page in PAGES:
        for one in blocks(page):
            if one.language in ("sh", "console"):
                parts = re.split(r"&&|\||\n", "\n".join(lines(one)))
                words = [shlex.split(part, comments=True) for part in parts]
                calls += [
                    w[w.index("etcd-rendezvous") + 1 :]
                    for w in words
                    if "etcd-rendezvous" in w
                ]

    assert 5 < len(calls)
    for name, *arguments in calls:
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
    On a run that is there each command does its work, and ends well; one that watches
    until Ctrl-C tells of the run.
    """
    endpoint, end = ran
    for line in lines(shown):
        command = RUN.sub(run_id, line.replace("HOST:2379", endpoint))
        if "purge" in command:
            end()
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", command],
            env=clean_environment(
                PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                PET_RDZV_ENDPOINT=endpoint,
            ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        said = ""
        try:
            if "--watch" in command:
                until = time.monotonic() + SECONDS
                while run_id not in said and time.monotonic() < until:
                    said += process.stdout.readline()
                os.killpg(process.pid, signal.SIGINT)
            # purge asks.
            said += process.communicate("y\n", timeout=SECONDS)[0]
        finally:
            process.kill()
            process.communicate()

        assert 0 == process.returncode, said
        assert run_id in said or "doctor" in command, said
