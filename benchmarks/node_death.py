# SPDX-License-Identifier: BSD-3-Clause
"""
How long a job stands still after the death of a node: ours beside torch's own.

Whole jobs, through ``torchrun``: three nodes with a worker each that sum over gloo, on
one machine. A node is killed, its agent and its worker at once with SIGKILL, and the
time is taken until the first sum of those who go on. So it has in it: noticing, the
next round, the start of new workers (with their import of torch), and their meeting.

What is noticed first is the same for all: gloo sees that a peer's socket is closed, the
workers fail, and their agents want the next round. (``--max-restarts`` is high enough
never to matter. With a machine that loses power, or with collectives that hang, nothing
is seen so early; only a rendezvous that watches its nodes notices then.) What differs
is how long the dead node keeps the next round from beginning, and whether the workers
of that round meet: where they find in the store what those of the last round have left
there, they fail, and one more round is waited for. So rivals differ a lot from run to
run, and several runs say more than one.

- *elastic*: three nodes of ``--nnodes=2:3``; two go on, after a last call.
- *spare*: ``--nnodes=3:3`` with four agents; the fourth steps in.
- *other*: the killed node is neither rank 0 nor the host of c10d. *rank0*: it is both,
  as where c10d is used as its documentation shows it.
- *defaults*: no ``--rdzv-conf``. *equal*: a keep-alive of 5 s x 3 and a last call of
  1 s for all.

    python -m benchmarks.node_death --binary ETCD --json deaths.json
    python -m benchmarks.node_death --backends c10d etcd-live --settings equal

etcd must serve v2 for torch's ``etcd-v2``: 3.5 is the last that does.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etcd_rendezvous import EtcdServer

from .clients import NotStartedError

if TYPE_CHECKING:
    from typing_extensions import Self

BACKENDS = ("c10d", "etcd-v2", "etcd-v3", "etcd-live")
TITLES = {"etcd-v2": "torch's etcd-v2"}
SETTINGS: dict[str, dict[str, int]] = {
    "defaults": {},
    "equal": {
        "keep_alive_interval": 5,
        "keep_alive_max_attempt": 3,
        "last_call_timeout": 1,
    },
}
SHAPES = {"elastic": ("2:3", 3), "spare": ("3:3", 4)}
VICTIMS = ("other", "rank0")
NODES = 3
START_SECONDS = 120.0
WORKER = Path(__file__).with_name("death_worker.py")
# Of etcd-live: how long a node lives on that says nothing, by settings; and how much
# longer a job may stand still than that.
TTL = {"defaults": 6, "equal": 15}
MORE_SECONDS = 3.0
# What would change a fresh torch or plug-in.
FOREIGN = ("PET_", "TORCH", "ETCD_RENDEZVOUS_")


@dataclass
class Row:
    """
    A way to lose a node, and how long the job stood still each time.

    Attributes:
        seconds: Each time; None where it did not go on within the limit.
    """

    backend: str
    settings: str
    shape: str
    victim: str
    seconds: list[float | None] = field(default_factory=list)

    @property
    def aim(self) -> float | None:
        """
        What is promised of the median; None for nothing.
        """
        if self.backend != "etcd-live":
            return None
        if self.shape == "spare" or "last_call_timeout" in SETTINGS[self.settings]:
            return TTL[self.settings] + MORE_SECONDS
        return None

    def median(self, limit: float) -> float:
        """
        Return the median, with the limit in the place of never.
        """
        return statistics.median(limit if one is None else one for one in self.seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[1])
    for name, known in (
        ("backends", BACKENDS),
        ("settings", tuple(SETTINGS)),
        ("shapes", tuple(SHAPES)),
        ("victims", VICTIMS),
    ):
        parser.add_argument(
            f"--{name}", nargs="+", choices=known, default=known, metavar="NAME"
        )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--limit", type=float, default=150.0, help="seconds after which it is 'never'"
    )
    parser.add_argument("--binary", help="the etcd to measure with")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    chosen = itertools.product(
        options.victims, options.shapes, options.settings, options.backends
    )
    rows = [
        Row(backend, settings, shape, victim)
        for victim, shape, settings, backend in chosen
    ]
    with EtcdServer(binary=options.binary) as server:
        print(f"etcd {server.version}; {options.runs} runs, in turn", flush=True)
        try:
            if "etcd-v2" in options.backends and not server.serves_v2:
                raise NotStartedError(f"etcd {server.version} does not serve v2")
            for _ in range(options.runs):
                for row in rows:
                    seconds = stand_still(row, server.get_endpoint(), options.limit)
                    row.seconds.append(seconds)
                    print(_line(row, options.limit), flush=True)
        except NotStartedError as error:
            print(f"A job was not started: {error}")
            return 1
        finally:
            if options.json is not None:
                options.json.write_text(
                    json.dumps(
                        {"limit": options.limit, "rows": [asdict(row) for row in rows]},
                        indent=1,
                    )
                )
    print("\n".join(_table(rows, options.limit)))
    late = [
        f"{_name(row)} took longer than {row.aim:g} s"
        for row in rows
        if row.aim is not None and row.median(options.limit) > row.aim
    ]
    print("\n".join(late))
    return 1 if late else 0


def _name(row: Row) -> str:
    title = TITLES.get(row.backend, row.backend)
    return f"{title}, {row.settings}, {row.shape}, {row.victim}"


def _line(row: Row, limit: float) -> str:
    return f"{_name(row):45} {_said(row.seconds[-1], limit)}"


def _said(seconds: float | None, limit: float) -> str:
    return f"never ({limit:g} s)" if seconds is None else f"{seconds:.1f} s"


def _table(rows: list[Row], limit: float) -> Iterator[str]:
    """
    Yield a table in Markdown: a line for each way to die, a column for each backend.
    """
    backends = list(dict.fromkeys(row.backend for row in rows))
    titles = [TITLES.get(one, one) for one in backends]
    yield f"| killed | nodes | settings | {' | '.join(titles)} |"
    yield "|---" * (3 + len(titles)) + "|"
    ways = dict.fromkeys((row.victim, row.shape, row.settings) for row in rows)
    for way in ways:
        cells = [
            _cell(row, limit)
            for row in rows
            if (row.victim, row.shape, row.settings) == way
        ]
        yield f"| {' | '.join([*way, *cells])} |"


def _cell(row: Row, limit: float) -> str:
    median = row.median(limit)
    said = _said(None if median >= limit else median, limit)
    if len(row.seconds) == 1:
        return said
    ends = sorted(limit if one is None else one for one in row.seconds)
    least, most = (
        _said(None if one >= limit else one, limit) for one in ends[:: len(ends) - 1]
    )
    return said if least == most else f"{said} ({least} to {most})"


def stand_still(row: Row, etcd: str, limit: float) -> float | None:
    """
    Run a job, kill a node, and see when the others go on.

    Returns:
        The seconds; None if they did not go on within the limit.

    Raises:
        NotStartedError: The job did not get so far that a node could be killed.
    """
    with tempfile.TemporaryDirectory() as folder, Job(row, Path(folder), etcd) as job:
        job.start()
        killed = job.kill(0 if row.victim == "rank0" else 1)
        return job.seconds_until_step(killed, limit)


class Job:
    """
    The agents of a job, and what their workers have noted down.

    Args:
        row: What is measured.
        folder: Where notes and output go.
        etcd: The endpoint of etcd.
    """

    def __init__(self, row: Row, folder: Path, etcd: str) -> None:
        self._row = row
        self._folder = folder
        self._etcd = etcd
        self._run_id = uuid.uuid4().hex
        self._agents: list[subprocess.Popen[bytes]] = []
        self._before: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # An agent starts new workers as long as it lives.
        for agent in self._agents:
            agent.kill()
            agent.wait()
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start(self) -> None:
        """
        Start all agents, and wait until three of them train.
        """
        row = self._row
        nnodes, count = SHAPES[row.shape]
        endpoint = f"127.0.0.11:{_free_port()}" if row.backend == "c10d" else self._etcd
        for number in range(count):
            config = dict(SETTINGS[row.settings])
            if row.backend == "c10d":
                # Otherwise all of them would be: they are on one machine.
                config["is_host"] = int(number == 0)
            if number == NODES:
                self._wait("the nodes to train", self._all_train, START_SECONDS)
            self._launch(number, nnodes, endpoint, config)
        self._wait("the nodes to train", self._all_train, START_SECONDS)
        if count > NODES:
            time.sleep(5)  # Until the spare has joined.
            if self._agents[-1].poll() is not None:
                raise NotStartedError(f"{_name(row)}: the spare has ended")
        self._before = {note["pid"] for note in self._notes()}

    def kill(self, number: int) -> float:
        """
        Kill a node; return when that was.
        """
        agent = self._agents[number]
        # A stopped agent starts no worker.
        agent.send_signal(signal.SIGSTOP)
        pids = {note["pid"] for note in self._notes() if note["node"] == str(number)}
        killed = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        agent.kill()
        agent.wait()
        return killed

    def seconds_until_step(self, killed: float, limit: float) -> float | None:
        """
        Return how long after the kill somebody else made a step with all others.
        """

        def stepped() -> float | None:
            return min(
                (
                    note["time"]
                    for note in self._notes()
                    if note["step"] == 1 and note["pid"] not in self._before
                ),
                default=None,
            )

        while time.time() < killed + limit:
            found = stepped()
            if found is not None:
                return float(found - killed)
            time.sleep(0.1)
        return None

    def _launch(
        self, number: int, nnodes: str, endpoint: str, config: dict[str, int]
    ) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(FOREIGN)
        }
        environment |= {
            "BENCHMARK_NODE": str(number),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        options = {
            "nnodes": nnodes,
            "nproc-per-node": 1,
            "max-restarts": 1000,
            "local-addr": f"127.0.0.{11 + number}",
            "rdzv-backend": self._row.backend,
            "rdzv-endpoint": endpoint,
            "rdzv-id": self._run_id,
            "rdzv-conf": ",".join(f"{name}={value}" for name, value in config.items()),
            "log-dir": self._folder / "logs",
        }
        command = [
            *(sys.executable, "-m", "torch.distributed.run"),
            *(f"--{name}={value}" for name, value in options.items() if value),
            str(WORKER),
            str(self._folder),
        ]
        with (self._folder / f"{number}.out").open("wb") as out:
            agent = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        self._agents.append(agent)

    def _all_train(self) -> bool:
        return (
            len({note["node"] for note in self._notes() if note["step"] == 5}) == NODES
        )

    def _wait(self, what: str, ready: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            ended = [one for one in self._agents if one.poll() is not None]
            if ended or time.monotonic() > deadline:
                number = self._agents.index(ended[0]) if ended else 0
                said = (self._folder / f"{number}.out").read_text(errors="replace")
                raise NotStartedError(
                    f"{_name(self._row)}: waited in vain for {what}:\n{said[-2000:]}"
                )
            time.sleep(0.1)

    def _notes(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for path in self._folder.glob("*.jsonl")
            for line in path.read_text().splitlines(keepends=True)
            if line.endswith("\n")
        ]

    def _pids(self) -> set[int]:
        return {note["pid"] for note in self._notes()}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
