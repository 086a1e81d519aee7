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
run, and several runs say more than one. (torch 2.13's handler says where the workers
meet in its first round only: a spare that steps in later waits for that in vain.)

Jobs run one after the other, with nothing beside them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etcd_rendezvous import EtcdServer

from .clients import NotStartedError
from .figures import GOES_ON, Figure
from .names import C10D, TORCHS_V2

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULTS, EQUAL = "defaults", "equal"
SETTINGS: dict[str, dict[str, int]] = {
    DEFAULTS: {},
    EQUAL: {
        "keep_alive_interval": 5,
        "keep_alive_max_attempt": 3,
        "last_call_timeout": 1,
    },
}
# ``--nnodes``, and how many agents there are.
ELASTIC, SPARE = "elastic", "spare"
SHAPES = {ELASTIC: ("2:3", 3), SPARE: ("3:3", 4)}
# The first is neither rank 0 nor the host of c10d, the second is both, as where c10d is
# used as its documentation shows it.
OTHER, RANK0 = "other", "rank0"
VICTIMS = (OTHER, RANK0)
NODES = 3
START_SECONDS = 120.0
WORKER = Path(__file__).with_name("death_worker.py")
# Of etcd-live: how long a node lives on that says nothing.
TTL = {DEFAULTS: 6, EQUAL: 15}
# Of all: by how much the last call is shorter, and with it what is waited for.
SHORTER = {DEFAULTS: 0.0, EQUAL: 30.0}
# What would change a fresh torch or plug-in.
FOREIGN = ("PET_", "TORCH", "ETCD_RENDEZVOUS_")


@dataclass(frozen=True)
class Way:
    """
    A way to lose a node.

    Attributes:
        settings: Of the rendezvous.
        shape: Whether fewer nodes go on, or a spare steps in.
        victim: Who is killed.
    """

    settings: str
    shape: str
    victim: str

    @property
    def name(self) -> str:
        """
        What its figures are called.
        """
        return f"{GOES_ON}{self.settings}, {self.shape}, {self.victim}"


def ways(
    settings: Sequence[str] = tuple(SETTINGS),
    shapes: Sequence[str] = tuple(SHAPES),
    victims: Sequence[str] = VICTIMS,
) -> list[Way]:
    """
    Return the ways to lose a node, in the order of the tables.
    """
    return [Way(*one) for one in itertools.product(settings, shapes, victims)]


def node_deaths(
    binary: str | None,
    backends: Sequence[str],
    chosen: Sequence[Way],
    runs: dict[str, int],
    limit: float,
    told: Callable[[str], None],
) -> list[Figure]:
    """
    Measure how long jobs stand still.

    Args:
        binary: The etcd.
        backends: The backends.
        chosen: The ways to lose a node.
        runs: How often, by settings.
        limit: The seconds after which a job with the default settings is not waited
            for any longer.
        told: Is called with what is being done.

    Raises:
        NotStartedError: A job did not get so far that a node could be killed.
    """
    figures = {
        (way, backend): Figure(way.name, backend, NODES, ttl=TTL[way.settings])
        for way in chosen
        for backend in backends
    }
    with EtcdServer(binary=binary) as server:
        if TORCHS_V2 in backends and not server.serves_v2:
            raise NotStartedError(f"etcd {server.version} does not serve v2")
        for run in range(max(runs.values())):
            for (way, backend), figure in figures.items():
                if run < runs[way.settings]:
                    told(f"{way.name}, run {run + 1}: {backend}")
                    most = limit - SHORTER[way.settings]
                    _stand_still(way, figure, server.get_endpoint(), most)
    return list(figures.values())


def _stand_still(way: Way, figure: Figure, etcd: str, limit: float) -> None:
    """
    Run a job, kill a node, and see when the others go on.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        Job(way, figure.backend, Path(folder), etcd) as job,
    ):
        job.start()
        killed = job.kill(0 if way.victim == RANK0 else 1)
        seconds = job.seconds_until_step(killed, limit)
        figure.add(seconds=seconds)
        if seconds is not None:
            return
        if job.ended:
            figure.failure = f"the job ends after {time.time() - killed:.0f} s"
        else:
            figure.unfinished = limit


class Job:
    """
    The agents of a job, and what their workers have noted down.

    Args:
        way: The way that a node will be lost.
        backend: The backend.
        folder: Where notes and output go.
        etcd: The endpoint of etcd.
    """

    def __init__(self, way: Way, backend: str, folder: Path, etcd: str) -> None:
        self._way = way
        self._backend = backend
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
        nnodes, count = SHAPES[self._way.shape]
        c10d = self._backend == C10D
        endpoint = f"127.0.0.11:{_free_port()}" if c10d else self._etcd
        for number in range(count):
            config = dict(SETTINGS[self._way.settings])
            if c10d:
                # Otherwise all of them would be: they are on one machine.
                config["is_host"] = int(number == 0)
            if number == NODES:
                self._wait("the nodes to train", self._all_train, START_SECONDS)
            self._launch(number, nnodes, endpoint, config)
        self._wait("the nodes to train", self._all_train, START_SECONDS)
        if count > NODES:
            time.sleep(5)  # Until the spare has joined.
            if self._agents[-1].poll() is not None:
                raise NotStartedError(f"{self._name}: the spare has ended")
        self._before = {note["pid"] for note in self._notes()}

    def kill(self, number: int) -> float:
        """
        Kill a node; return when that was.
        """
        agent = self._agents[number]
        # A stopped agent starts no worker.
        agent.send_signal(signal.SIGSTOP)
        notes = [note for note in self._notes() if note["node"] == str(number)]
        if {note["rank"] == 0 for note in notes} != {number == 0}:
            raise NotStartedError(f"{self._name}: node {number} has another rank")
        pids = {note["pid"] for note in notes}
        killed = time.time()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        agent.kill()
        agent.wait()
        return killed

    def seconds_until_step(self, killed: float, limit: float) -> float | None:
        """
        Return how long after the kill somebody else made a step with all others.

        Returns:
            The seconds; None if it was not within the limit, or if the job has ended.
        """
        while time.time() < killed + limit:
            over = self.ended
            steps = [
                note["time"]
                for note in self._notes()
                if note["step"] == 1 and note["pid"] not in self._before
            ]
            if steps:
                return float(min(steps) - killed)
            if over:
                break
            time.sleep(0.1)
        return None

    @property
    def ended(self) -> bool:
        """
        Whether no agent is left: nobody will go on.
        """
        return all(agent.poll() is not None for agent in self._agents)

    @property
    def _name(self) -> str:
        return f"{self._way.name}, {self._backend}"

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
            "rdzv-backend": "etcd-v2" if self._backend == TORCHS_V2 else self._backend,
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
                    f"{self._name}: waited in vain for {what}:\n{said[-2000:]}"
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
