# SPDX-License-Identifier: BSD-3-Clause
"""
`etcd-rendezvous demo`, as its user runs it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from etcd_rendezvous._cli.demo_nodes import Node
from etcd_rendezvous._cli.demo_records import find_worlds, judge, parse_record
from support.torchrun import wait_until

pytestmark = pytest.mark.torch

# Seconds: what the demo promises on two cores.
PROMISED = 120


@pytest.fixture
def no_process_left():
    """
    Fail if a test leaves a process of its demo running.
    """
    yield
    deadline = time.monotonic() + 20
    while (left := _our_processes()) and time.monotonic() < deadline:
        time.sleep(0.1)

    assert left == []


def _our_processes():
    """
    List what the demos started by this test run have started in turn.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_DEMO_OWNER") == str(os.getpid()):
                found.append(" ".join(process.cmdline()) or process.name())
        except psutil.Error:
            continue
    return found


def start_demo(*arguments, code="from etcd_rendezvous._cli import main; main()"):
    return subprocess.Popen(
        [sys.executable, "-c", code, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TEST_DEMO_OWNER": str(os.getpid())},
    )


def read_records(folder: Path):
    files = (folder / "records").glob("*.jsonl")
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [parse_record(line) for line in lines]


@pytest.mark.measures
@pytest.mark.timeout(PROMISED + 30)
def test_the_demo_shows_what_it_promises(tmp_path, no_process_left):
    """
    Rank 0's node dies, a newcomer takes its place, and the records show it.
    """
    start = time.monotonic()

    with start_demo("--work-dir", str(tmp_path)) as process:
        output, errors = process.communicate()

    assert process.returncode == 0, output + errors
    assert time.monotonic() - start < PROMISED
    records = read_records(tmp_path)
    worlds = [world.nodes for world in find_worlds(records)]
    assert worlds[0][0] == "node-0"
    assert "node-3" in worlds[-1]
    assert judge(records, 3, "node-0") == []
    assert "killed node-0, the node of rank 0" in output
    assert "worlds of 3, 2 and 3" in output


@pytest.mark.timeout(300)
def test_without_a_newcomer_the_demo_fails(tmp_path, no_process_left):
    """
    If nobody takes the free place, the demo says so and exits with 1.
    """
    options = ("--withhold-newcomer", "--time-limit=270", f"--work-dir={tmp_path}")
    with start_demo(*options) as process:
        output, errors = process.communicate()

    assert process.returncode == 1, output + errors
    assert errors.splitlines()[-1] == "The third world of 3 never formed."


def test_the_time_limit_stops_everything(no_process_left):
    """
    When the time is over everything is stopped and the demo exits with 1.
    """
    with start_demo("--time-limit", "3") as process:
        output, errors = process.communicate()

    assert process.returncode == 1, output + errors
    assert "The time limit of 3 s was over while waiting for a world of 3" in errors
    assert "The first world of 3 never formed." in errors


def test_ctrl_c_stops_everything(no_process_left):
    """
    Ctrl-C leaves nothing behind: no agent, no worker, no etcd, no folder.
    """
    with start_demo() as process:
        for line in process.stdout:
            if "a world of 3 trains" in line:
                break
        folders = {
            Path(word.partition("=")[2])
            for command in _our_processes()
            for word in command.split()
            if word.startswith("--work-dir=")
        }
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate()

    assert process.returncode == 128 + signal.SIGINT, output + errors
    assert "stopped on request" in output
    assert len(folders) == 1
    assert not folders.pop().exists()


@pytest.mark.parametrize("name", ["torch", "sklearn"])
def test_a_missing_package_is_one_sentence(name):
    """
    Without what the extra brings the demo says how to get it, and does nothing.
    """
    code = (
        f"import sys; sys.modules[{name!r}] = None; "
        "from etcd_rendezvous._cli import main; main()"
    )

    with start_demo(code=code) as process:
        output, errors = process.communicate()

    assert process.returncode == 2
    assert output == ""
    assert errors == (
        f"Error: The demo needs more packages ({name} is missing): "
        'pip install "etcd-rendezvous[demo]"\n'
    )


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    """
    The records of another run would be mixed up with those of this one.
    """
    (tmp_path / "something").touch()

    with start_demo("--work-dir", str(tmp_path)) as process:
        _, errors = process.communicate()

    assert process.returncode == 2
    assert f"The folder {tmp_path} is not empty." in errors


def test_killing_a_node_kills_workers_in_sessions_of_their_own(tmp_path):
    """
    An agent's workers can't be reached through its process group.
    """
    worker = "import time; time.sleep(600)"
    agent = (
        "import subprocess, sys, time\n"
        "workers = [\n"
        f"    subprocess.Popen([sys.executable, '-c', {worker!r}], start_new_session=True)\n"
        "    for _ in range(2)\n"
        "]\n"
        "print(*[worker.pid for worker in workers], flush=True)\n"
        "time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", agent], stdout=subprocess.PIPE)
    with process:
        pids = [int(word) for word in process.stdout.readline().split()]
        node = Node("node-0", process, tmp_path / "node-0.log")

        killed = node.kill()

    assert sorted(killed) == sorted(pids)
    assert process.returncode == -signal.SIGKILL
    assert not node.failed
    wait_until(
        "the workers' end", lambda: not any(map(psutil.pid_exists, pids)), seconds=20
    )
    assert node.kill() == []
