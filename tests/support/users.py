# SPDX-License-Identifier: BSD-3-Clause
"""
Users and rights, given by the commands of `docs/security.md`, as they stand there.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path

from . import etcds

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
USER = "trainer"
PASSWORD = "xyzzy-42-\u00fc"
ROOT_PASSWORD = "the-root-of-it"


def switch_authentication_on(endpoint: str) -> None:
    """
    Let a server ask who one is; the page's user may touch a rendezvous' keys only.
    """
    _run(endpoint, _commands(v2=False))


def switch_v2_authentication_on(endpoint: str) -> None:
    """
    The same for v2, by the etcdctl of the packaged etcd, which still knows it.
    """
    _run(endpoint, _commands(v2=True), v2=True)


def as_root(endpoint: str, command: str) -> None:
    """
    Run a command of etcdctl's as root.
    """
    _run(endpoint, f"etcdctl --user 'root:{ROOT_PASSWORD}' {command}")


@functools.cache
def _commands(*, v2: bool) -> str:
    """
    Return the page's commands for one of the APIs, with passwords put in.
    """
    blocks = re.findall(
        r"^```sh\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    (block,) = [
        block
        for block in blocks
        if "auth enable" in block and ("ETCDCTL_API=2" in block) == v2
    ]
    return block.replace("ROOT_PASSWORD", ROOT_PASSWORD).replace("PASSWORD", PASSWORD)


def _run(endpoint: str, commands: str, *, v2: bool = False) -> None:
    binary = etcds.packaged("etcdctl") if v2 else etcds.etcdctl()
    assert binary is not None
    env = {name: text for name, text in os.environ.items() if name[:4] != "ETCD"}
    env["PATH"] = f"{Path(binary).parent}{os.pathsep}{env['PATH']}"
    # The two APIs read different variables.
    env["ETCDCTL_ENDPOINT" if v2 else "ETCDCTL_ENDPOINTS"] = f"http://{endpoint}"
    done = subprocess.run(
        ["bash", "-euc", commands],
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
