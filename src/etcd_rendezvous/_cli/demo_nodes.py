# SPDX-License-Identifier: BSD-3-Clause
"""
Start and kill the demo's nodes: a `torchrun` agent with its workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# Run by a fresh interpreter, which then becomes the agent. If the demo is killed, the
# kernel sends the agent SIGTERM (Linux only), at which it ends its workers.
_DIE_WITH_OWNER = """\
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
except Exception:
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

# Seconds until a process that got SIGSTOP must have stopped.
_STOP_TIMEOUT = 2.0
# The settings of another run, or of a run around this one, are not for the agents.
_FOREIGN_PREFIXES = ("PET_", "TORCHELASTIC_", "ETCD_RENDEZVOUS_DEMO_")
_FOREIGN_NAMES = frozenset(
    {
        "GROUP_RANK",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
        "WORLD_SIZE",
    }
)


@dataclass
class Node:
    """
    One machine of the demo's job: an agent and the workers it starts.

    Attributes:
        name: Its name in the records.
        agent: The process of its agent.
        log: Where agent and workers write their output.
        killed: Whether we killed it.
    """

    name: str
    agent: subprocess.Popen[bytes]
    log: Path
    killed: bool = False

    @property
    def failed(self) -> bool:
        """
        Whether the agent ended with an error of its own.
        """
        return not self.killed and self.agent.poll() not in (None, 0)

    @classmethod
    def start(cls, name: str, arguments: Sequence[str], log: Path) -> Node:
        """
        Start `torchrun` with these arguments.

        The agent gets a session of its own, so that Ctrl-C reaches the demo alone.
        """
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in _FOREIGN_NAMES and not key.startswith(_FOREIGN_PREFIXES)
        }
        environment["ETCD_RENDEZVOUS_DEMO_NODE"] = name
        environment["OMP_NUM_THREADS"] = "1"
        command = [
            str(os.getpid()),
            sys.executable,
            "-m",
            "torch.distributed.run",
            *arguments,
        ]
        with log.open("ab") as output:
            agent = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _DIE_WITH_OWNER, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(name, agent, log)

    def kill(self) -> list[int]:
        """
        Kill the agent and all its workers at once, as when a machine loses power.

        The workers live in sessions of their own, so they are found by parentage. A
        stopped agent can neither start another worker nor reap a dead one: until it is
        killed, no process id among its children can pass to a stranger.

        Returns:
            The process ids of the workers that were killed.
        """
        if self.agent.poll() is not None:
            return []
        self.killed = True
        self.agent.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_TIMEOUT
        table = _read_processes()
        while table.get(self.agent.pid, (0, "Z"))[1] not in "TZ":
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
            table = _read_processes()
        workers = list(_find_descendants(table, self.agent.pid))
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.agent.kill()
        self.agent.wait()
        return workers


def _find_descendants(table: dict[int, tuple[int, str]], pid: int) -> Iterator[int]:
    for child, (parent, state) in table.items():
        if parent == pid and state != "Z":
            yield child
            yield from _find_descendants(table, child)


def _read_processes() -> dict[int, tuple[int, str]]:
    """
    Return the parent and the state (one letter) of each process of this machine.
    """
    folder = Path("/proc")
    if not (folder / "self" / "stat").exists():
        return _ask_ps()
    table = {}
    for entry in folder.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # It has ended in the meantime.
            # The name, in parentheses, may hold anything.
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            state, parent = text.rpartition(")")[2].split()[:2]
            table[int(entry.name)] = (int(parent), state)
    return table


def _ask_ps() -> dict[int, tuple[int, str]]:
    """
    Ask `ps` where there is no /proc.
    """
    answer = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,state="],  # noqa: S607 - Its place differs.
        capture_output=True,
        check=True,
        text=True,
    )
    rows = (line.split() for line in answer.stdout.splitlines())
    return {int(row[0]): (int(row[1]), row[2][0]) for row in rows if len(row) == 3}
