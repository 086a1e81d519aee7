# SPDX-License-Identifier: BSD-3-Clause

"""
Nodes that any launcher starts, whose workers meet once and tell of it (`once.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .torchrun import WORKER, clean_environment

ONCE = WORKER.with_name("once.py")
# Beside the interpreter, as a user's `PATH` has it.
SCRIPTS = Path(sys.executable).parent


@dataclass
class Nodes:
    """
    The processes that were started, and what is known of them.
    """

    folder: Path
    endpoint: str
    run_id: str
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: Sequence[str], **environment: str) -> None:
        """
        Start one node, with output in a file of its own.
        """
        with self._output(len(self.processes)).open("wb") as out:
            process = subprocess.Popen(
                list(command),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=clean_environment(
                    **{
                        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
                        **environment,
                    }
                ),
            )
        self.processes.append(process)

    def finish(self) -> list[dict]:
        """
        Wait for all to end well; return the workers' records, by rank.
        """
        for process in self.processes:
            try:
                process.wait(200)
            except subprocess.TimeoutExpired:
                raise AssertionError(f"A node still runs.\n{self.said()}") from None
        statuses = [process.returncode for process in self.processes]
        assert set(statuses) == {0}, f"{statuses}\n{self.said()}"
        records = [
            json.loads(path.read_text("utf-8")) for path in self.folder.glob("*.json")
        ]
        return sorted(records, key=lambda record: int(record["environment"]["RANK"]))

    def said(self) -> str:
        """
        What all nodes have said.
        """
        return "\n".join(
            self._output(number).read_text("utf-8", errors="replace")
            for number in range(len(self.processes))
        )

    def _output(self, number: int) -> Path:
        return self.folder / f"node-{number}.out"

    def close(self) -> None:
        """
        Kill what is left.
        """
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def told(records: list[dict], *names: str) -> set[tuple[str | None, ...]]:
    """
    Return the different values of some variables that workers saw.
    """
    return {
        tuple(record["environment"].get(name) for name in names) for record in records
    }


def one_world(records: list[dict], size: int, run_id: str) -> None:
    """
    See that the workers were one world of this size, and of this run.
    """
    assert len(records) == size
    assert {record["sum"] for record in records} == {size * (size + 1) // 2}
    assert told(records, "WORLD_SIZE", "TORCHELASTIC_RUN_ID") == {(str(size), run_id)}
    assert len(told(records, "MASTER_ADDR", "MASTER_PORT")) == 1
    ranks = [int(record["environment"]["RANK"]) for record in records]
    assert ranks == list(range(size))
