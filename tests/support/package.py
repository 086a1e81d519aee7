# SPDX-License-Identifier: BSD-3-Clause
"""
The package as users get it, and what runs it where nothing else is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, check=True, **options):
    """
    Run a command without what would let it find our sources; return what it did.
    """
    environment = {**os.environ, **options.pop("env", {})}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env=environment,
        **options,
    )
    if check and done.returncode:
        pytest.fail(f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


@dataclass(frozen=True)
class Built:
    """
    What is uploaded to an index.
    """

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Pipx:
    """
    A pipx with folders of its own.
    """

    home: Path

    @property
    def bin(self):
        return self.home / "bin"

    @property
    def python(self):
        """
        The Python of what it has installed.
        """
        return self.home / "home" / "venvs" / "etcd-rendezvous" / "bin" / "python"

    def run(self, *words, check=True):
        env = {
            "PIPX_HOME": str(self.home / "home"),
            "PIPX_BIN_DIR": str(self.bin),
            "PIPX_MAN_DIR": str(self.home / "man"),
            "PIPX_DEFAULT_PYTHON": sys.executable,
        }
        return run(sys.executable, "-m", "pipx", *words, check=check, env=env)
