# SPDX-License-Identifier: BSD-3-Clause

"""
Members of etcd that are started by command lines for other machines: those of the docs.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import urllib3

from etcd_rendezvous._ports import free_ports

from .torchrun import wait_until

if TYPE_CHECKING:
    from typing_extensions import Self

KINDS = ("client", "peer", "metrics")


class Members:
    """
    The members of a cluster on loopback ports; leaving it ends them.

    Args:
        binary: The etcd.
        folder: Where data and logs go.
        names: What the members are called.
        command: A function from a member's name, its data folder and the ports of all,
            by kind and name, to what follows the name of the program.
    """

    def __init__(
        self,
        binary: str,
        folder: Path,
        names: Sequence[str],
        command: Callable[[str, Path, dict[tuple[str, str], int]], list[str]],
    ) -> None:
        self.names = list(names)
        self._binary = binary
        self._folder = folder
        self._command = command
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        keys = [(kind, name) for name in names for kind in KINDS]
        with free_ports(len(keys), ["127.0.0.1"]) as ports:
            self.ports = dict(zip(keys, ports, strict=True))

    def __enter__(self) -> Self:
        for name in self.names:
            self.start(name)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name in list(self._running):
            self.kill(name)

    @contextlib.contextmanager
    def only(self, name: str) -> Iterator[None]:
        """
        Start one member alone, and end it.
        """
        self.start(name)
        try:
            yield
        finally:
            self.kill(name)

    @property
    def endpoints(self) -> list[str]:
        """
        Where clients find the members.
        """
        return [f"127.0.0.1:{self.ports['client', name]}" for name in self.names]

    def start(self, name: str, *more: str) -> None:
        """
        Start a member; what is named besides wins over its command.
        """
        command = self._command(name, self.data(name), self.ports)
        environment = {
            key: value for key, value in os.environ.items() if key[:5] != "ETCD_"
        }
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [self._binary, *command, *more],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    def kill(self, name: str) -> None:
        """
        Kill a member; its data stays.
        """
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wipe(self, name: str) -> None:
        """
        Delete what a member has on its disk.
        """
        shutil.rmtree(self.data(name))

    def data(self, name: str) -> Path:
        """
        Return the data folder of a member.
        """
        return self._folder / f"{name}.data"

    def said(self, name: str) -> str:
        """
        Return what a member has said.
        """
        return self._log(name).read_text("utf-8", errors="replace")

    def wait_ended(self, name: str) -> int:
        """
        Wait until a member has ended by itself, and return its exit status.
        """
        return self._running[name].wait(20)

    def asks(self, name: str, path: str, *, kind: str = "metrics") -> int | None:
        """
        Return the HTTP status of a page of a member; None if it does not come in time.
        """
        url = f"http://127.0.0.1:{self.ports[kind, name]}{path}"
        try:
            return urllib3.request("GET", url, retries=False, timeout=1.5).status
        except urllib3.exceptions.HTTPError:
            return None

    def wait_for(self, path: str, *names: str, kind: str = "metrics") -> None:
        """
        Wait until a page of all members, or of some, says that all is well.
        """
        for name in names or self.names:

            def well(name: str = name) -> bool:
                status = self._running[name].poll()
                assert status is None, f"{name}: {status}\n{self.said(name)[-3000:]}"
                return self.asks(name, path, kind=kind) == 200

            wait_until(f"{path} of {name}", well, seconds=30)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def replaced(words: Sequence[str], values: dict[str, str]) -> list[str]:
    """
    Put values in place of placeholders, each of which must be there.
    """
    text = "\n".join(words)
    for placeholder, value in values.items():
        assert placeholder in text, placeholder
        text = re.sub(re.escape(placeholder), lambda _, value=value: value, text)
    return text.split("\n")
