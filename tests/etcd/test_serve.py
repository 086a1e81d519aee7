# SPDX-License-Identifier: BSD-3-Clause
"""
``etcd-rendezvous serve``, as a process.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import urllib3

from etcd_rendezvous import _ports, _server


def environment(tmp_path):
    source = str(Path(_server.__file__).parent.parent)
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": source}


class Serve:
    """
    The running command.
    """

    def __init__(self, process):
        self.process = process
        self.lines = []

    def read_until(self, pattern):
        """
        Read the command's output until a line matches.
        """
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(pattern, line):
                return found
        pytest.fail(f"the command ended, and said: {''.join(self.lines)}")

    def rest(self):
        """
        Wait for the end; return everything that was said.
        """
        self.lines += self.process.stdout
        self.process.wait(20)
        return "".join(self.lines)

    def etcd(self):
        """
        The process of etcd.
        """
        (child,) = psutil.Process(self.process.pid).children()
        return child


@pytest.fixture
def start_serve(newest_etcd_binary, tmp_path):
    """
    A function that starts the command with some arguments.
    """
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            command = [sys.executable, "-m", "etcd_rendezvous", "serve"]
            process = subprocess.Popen(
                [*command, "--binary", newest_etcd_binary, *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment(tmp_path),
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return Serve(process)

        yield start


def etcd_answers(endpoint):
    with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        return pool.request("GET", f"http://{endpoint}/health").status == 200


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_it_is_asked_to_end(start_serve, tmp_path, number):
    """
    It says the command line that uses it, serves, and ends at Ctrl-C or SIGTERM with
    status 0, leaving neither etcd nor data.
    """
    serve = start_serve("--port", "0")
    endpoint = serve.read_until(
        r"^  torchrun --nnodes=2:4 --max-restarts=10 --rdzv-backend=etcd-live "
        r"--rdzv-endpoint=(127\.0\.0\.1:\d+) --rdzv-id=JOB train\.py$"
    )[1]
    assert etcd_answers(endpoint)
    etcd = serve.etcd()
    serve.process.send_signal(number)
    said = serve.rest()

    assert serve.process.returncode == 0
    assert "Warning" not in said
    assert said.endswith("etcd is stopped.\n")
    assert not etcd.is_running()
    assert list(tmp_path.iterdir()) == []


def test_every_address_is_warned_of(start_serve):
    """
    With 0.0.0.0 it warns of what that means, and names this machine in the command.
    """
    serve = start_serve("--host", "0.0.0.0", "--port", "0")
    name, port = serve.read_until(r"--rdzv-endpoint=(\S+):(\d+) ").groups()

    assert name == socket.gethostname()
    assert re.search(
        r"Warning: there is no authentication on 0\.0\.0\.0: anyone .* can read and "
        r"change .* end or mislead its job\.$",
        "".join(serve.lines),
        re.MULTILINE,
    )
    assert etcd_answers(f"127.0.0.1:{port}")


def test_taken_port_is_one_sentence(start_serve, tmp_path):
    """
    A port that is taken is said at once, with the option that names another.
    """
    with _ports.free_ports(1, ["127.0.0.1"]) as (port,):
        serve = start_serve("--port", str(port))
        said = serve.rest()

    assert said == (
        f"Error: Port {port} is taken: another program listens on 127.0.0.1:{port}. "
        "Choose another with --port (0: a free one).\n"
    )
    assert serve.process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_named_data_folder_is_kept(start_serve, tmp_path):
    """
    Data in a named folder is found again by the next run.
    """
    key = base64.b64encode(b"key").decode()
    replies = []
    for path in ("put", "range"):
        serve = start_serve("--port", "0", "--data-dir", str(tmp_path / "data"))
        endpoint = serve.read_until(r"--rdzv-endpoint=(\S+) ")[1]
        with urllib3.PoolManager(retries=False, timeout=5.0) as pool:
            url = f"http://{endpoint}/v3/kv/{path}"
            reply = pool.request("POST", url, json={"key": key, "value": key})
        replies.append(reply.json())
        serve.process.terminate()
        assert "its data is kept" in serve.rest()

    assert replies[1]["kvs"][0]["value"] == key


def test_death_of_etcd_ends_the_command(start_serve, tmp_path):
    """
    When etcd dies by itself, the command says so and ends with status 1.
    """
    serve = start_serve("--port", "0")
    serve.read_until("Ctrl-C")
    serve.etcd().kill()
    said = serve.rest()

    assert said.endswith("Error: etcd ended by itself (signal 9).\n")
    assert serve.process.returncode == 1
    assert list(tmp_path.iterdir()) == []


def test_killed_command_leaves_no_etcd(start_serve):
    """
    When the command itself is killed, etcd goes with it.
    """
    serve = start_serve("--port", "0")
    serve.read_until("Ctrl-C")
    etcd = serve.etcd()
    serve.process.kill()
    serve.process.wait()
    deadline = time.monotonic() + 20
    while etcd.is_running() and etcd.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_missing_binary_is_one_sentence(start_serve):
    """
    A binary that does not exist is refused by name.
    """
    serve = start_serve("--binary", "/no/such/etcd")

    assert serve.rest() == "Error: The etcd binary /no/such/etcd does not exist.\n"
    assert serve.process.returncode == 1


def run_without(module, tmp_path, *arguments):
    """
    Run the command in a Python where a module can't be imported.
    """
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = {list(arguments)!r};"
        "from etcd_rendezvous._cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("module", ["click", "rich"])
def test_missing_extra_cli_is_one_sentence(tmp_path, module):
    """
    Without the extra [cli] the command says how to get it, and ends with status 2.
    """
    done = run_without(module, tmp_path, "etcd-rendezvous", "serve")

    assert done.stderr == (
        "The command etcd-rendezvous needs more packages: "
        'pip install "etcd-rendezvous[cli]"\n'
    )
    assert done.returncode == 2


def test_serve_does_not_import_the_demo(tmp_path):
    """
    The list of commands, and serve, work where the demo's parts are missing.
    """
    module = "etcd_rendezvous._cli.demo"
    listed = run_without(module, tmp_path, "etcd-rendezvous", "--help")
    helped = run_without(module, tmp_path, "etcd-rendezvous", "serve", "--help")

    assert "demo" in listed.stdout
    assert (listed.returncode, helped.returncode) == (0, 0)


def test_two_signals_at_once(start_serve):
    """
    Ctrl-C and SIGTERM at the same time end it as one does.
    """
    for _ in range(3):
        serve = start_serve("--port", "0")
        serve.read_until(r"^Ctrl-C stops it\.$")
        serve.process.send_signal(signal.SIGINT)
        serve.process.send_signal(signal.SIGTERM)
        said = serve.rest()

        assert serve.process.returncode == 0
        assert said.endswith("etcd is stopped.\n")
        assert "Traceback" not in said
