# SPDX-License-Identifier: BSD-3-Clause

"""
Jobs of real `torchrun` processes, whose workers write down what happens to them.

    with Job(folder, backend="etcd-v3", endpoint=…, run_id=…, nnodes="2") as job:
        job.start("a")
        job.start("b")
        world = job.wait_for_world({"a", "b"})
        job.stop()
        assert job.wait() == {"a": 0, "b": 0}

The node *k* of a job has the address 127.0.0.k, so that a MASTER_ADDR tells whose it
is, and ranks follow the order in which the nodes were numbered.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

if TYPE_CHECKING:
    from typing_extensions import Self

WORKER = Path(__file__).parents[1] / "torchrun" / "worker.py"
#: One that never speaks with the others.
IDLE = WORKER.with_name("idle.py")

#: Seconds within which what is to happen happens, on a machine that is busy.
SOON = 100.0

_MARK = "TEST_TORCHRUN_JOB"
_FIRST_ADDRESS = 11
# The settings of a run around this one are not for the agents.
_FOREIGN_PREFIXES = ("PET_", "TORCH", "ETCD")
_FOREIGN_NAMES = frozenset(
    {
        "GROUP_RANK",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "LOGLEVEL",
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
        "WORLD_SIZE",
    }
)

_T = TypeVar("_T")


def clean_environment(**more: str) -> dict[str, str]:
    """
    Return our environment without what would change a fresh torch or plug-in.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _FOREIGN_NAMES and not name.startswith(_FOREIGN_PREFIXES)
    }
    # Two cores, and workers on loopback.
    kept["OMP_NUM_THREADS"] = "1"
    if sys.platform == "linux":
        kept["GLOO_SOCKET_IFNAME"] = "lo"
    return {**kept, **more}


def python(
    code: str, *arguments: str, flags: Sequence[str] = (), **environment: str
) -> tuple[str, str]:
    """
    Run code in a fresh interpreter; return what it printed on stdout and stderr.

    Args:
        code: The code.
        arguments: What it finds in `sys.argv`.
        flags: Options of the interpreter.
        environment: More variables.

    Raises:
        AssertionError: It failed; says how.
    """
    done = subprocess.run(
        [sys.executable, *flags, "-c", code, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=clean_environment(**environment),
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def wait_until(
    what: str, ready: Callable[[], _T], *, seconds: float = SOON, every: float = 0.05
) -> _T:
    """
    Wait until something is true, and return it.

    Raises:
        AssertionError: It did not become so in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise AssertionError(f"Waited {seconds:.0f} s in vain for {what}.")
        time.sleep(every)
    return found


def whole_lines(text: str) -> list[str]:
    """
    Return the lines of what a process writes; the last may still be in the making.
    """
    return text.rpartition("\n")[0].splitlines()


@dataclass
class Agent:
    """
    One node: an agent, which is a `torchrun`, and the workers it starts.
    """

    name: str
    address: str
    endpoint: str | None
    process: subprocess.Popen[bytes]
    stderr: Path
    stdout: Path
    #: Whether we ended it.
    ended: bool = False

    @property
    def returncode(self) -> int | None:
        """
        The exit status of the agent; None while it runs.
        """
        return self.process.poll()

    @property
    def said(self) -> str:
        """
        What the agent and its workers have written on stderr so far.
        """
        return self.stderr.read_text("utf-8", errors="replace")

    def lines(self, *words: str, since: int = 0) -> list[str]:
        """
        List the lines on stderr that hold all these words.

        Args:
            words: The words.
            since: How many characters of `said` to leave out.
        """
        return [
            line
            for line in whole_lines(self.said[since:])
            if all(word in line for word in words)
        ]

    def wait(self, seconds: float = SOON) -> int:
        """
        Wait until the agent ends by itself, and return its exit status.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"The agent {self.name} still runs after {seconds:.0f} s:\n{self.said}"
            ) from None

    def terminate(self) -> None:
        """
        Send the agent SIGTERM, as whoever ends a job on one node does.
        """
        self.ended = True
        self.process.terminate()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """
        Stop the agent in its tracks (SIGSTOP), but not its workers, in this context.
        """
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill_node(self) -> list[int]:
        """
        Kill the agent and all its workers at once, as when a machine loses power.

        Workers have sessions of their own and outlive a killed agent. A stopped agent
        can neither start nor reap one, so the list is complete and nobody else's.

        Returns:
            The process ids of the workers.
        """
        self.ended = True
        if self.returncode is not None:
            return []
        self.process.send_signal(signal.SIGSTOP)
        workers = psutil.Process(self.process.pid).children(recursive=True)
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(workers, timeout=10)
        return [worker.pid for worker in workers]


@dataclass(frozen=True)
class World:
    """
    The workers that met in one round, by their own account.

    Attributes:
        id: A number that they all got from their rank 0.
        joined: Each worker's record of its joining, by rank.
    """

    id: str
    joined: tuple[dict[str, Any], ...]

    @property
    def nodes(self) -> set[str]:
        """
        The names of the nodes that the workers are on.
        """
        return {record["node"] for record in self.joined}

    @property
    def size(self) -> int:
        """
        The size that the workers were told.
        """
        (size,) = {record["world_size"] for record in self.joined}
        return int(size)

    @property
    def complete(self) -> bool:
        """
        Whether every worker's record is there.
        """
        return [record["rank"] for record in self.joined] == list(range(self.size))

    @property
    def master(self) -> tuple[str, int]:
        """
        The MASTER_ADDR and MASTER_PORT that all workers were told.

        Raises:
            AssertionError: They were told different ones.
        """
        masters = {tuple(record["master"]) for record in self.joined}
        assert len(masters) == 1, f"several masters in one world: {self.joined}"
        return masters.pop()

    @property
    def pids(self) -> set[int]:
        """
        The process ids of the workers.
        """
        return {record["pid"] for record in self.joined}


@dataclass
class Job:
    """
    An elastic job on this machine: agents, workers, and their records.

    Leaving its context kills whatever is left of it.

    Args:
        folder: Where records and output go; it is made if need be.
        backend: The `--rdzv-backend`.
        endpoint: The `--rdzv-endpoint`; None for none.
        run_id: The `--rdzv-id`; None for none.
        nnodes: The `--nnodes`.
        conf: Settings for `--rdzv-conf`.
        max_restarts: How many failures of workers an agent bears.
        nproc: How many workers each agent starts.
        worker: The script that the workers run, and what it is told after the folder.
    """

    folder: Path
    backend: str
    endpoint: str | None
    run_id: str | None
    nnodes: str = "2"
    conf: Mapping[str, object] = field(default_factory=dict)
    max_restarts: int = 0
    nproc: int = 1
    worker: Sequence[object] = (WORKER,)
    agents: dict[str, Agent] = field(default_factory=dict)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        (self.folder / "records").mkdir(parents=True, exist_ok=True)

    def start(
        self,
        name: str,
        *,
        backend: str | None = None,
        number: int | None = None,
        conf: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> Agent:
        """
        Start an agent.

        Args:
            name: The name of its node in the records.
            backend: Another backend than the job's.
            number: The last number of its address; default: one more than the last.
            conf: More settings.
            environment: More variables.
            arguments: More options of `torchrun`.
        """
        address = f"127.0.0.{number or _FIRST_ADDRESS + len(self.agents)}"
        options = {
            "nnodes": self.nnodes,
            "nproc-per-node": self.nproc,
            "max-restarts": self.max_restarts,
            "monitor-interval": 0.1,
            "local-addr": address,
            "rdzv-backend": backend or self.backend,
            "rdzv-endpoint": self.endpoint,
            "rdzv-id": self.run_id,
            "rdzv-conf": ",".join(
                f"{key}={value}" for key, value in {**self.conf, **(conf or {})}.items()
            ),
        }
        # The log folder is not used, but torchrun makes one in any case.
        logs = self.folder / "logs"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            *(f"--{key}={value}" for key, value in options.items() if value),
            f"--log-dir={logs}",
            *arguments,
            str(self.worker[0]),
            str(self.folder),
            *map(str, self.worker[1:]),
        ]
        stderr, stdout = (self.folder / f"{name}.{kind}" for kind in ("err", "out"))
        with stderr.open("ab") as err, stdout.open("ab") as out:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=clean_environment(
                    **{_MARK: self.mark, "TEST_TORCHRUN_NODE": name},
                    **(environment or {}),
                ),
            )
        agent = Agent(name, address, self.endpoint, process, stderr, stdout)
        self.agents[name] = agent
        return agent

    # -- what the workers tell ------------------------------------------------------

    def records(self, *kinds: str, nodes: set[str] | None = None) -> list[dict]:
        """
        Read the workers' records, in the order of their time.

        Args:
            kinds: Of these kinds only; default: all.
            nodes: Of these nodes only; default: all.
        """
        found = []
        for file in (self.folder / "records").glob("*.jsonl"):
            for line in whole_lines(file.read_text("utf-8")):
                record = json.loads(line)
                if kinds and record["kind"] not in kinds:
                    continue
                if nodes is None or record["node"] in nodes:
                    found.append(record)
        return sorted(found, key=lambda record: record["time"])

    def worlds(self) -> list[World]:
        """
        List the worlds in which all workers have met, in the order of their time.
        """
        members: dict[str, list[dict]] = {}
        for record in self.records("joined"):
            members.setdefault(record["world"], []).append(record)
        worlds = [
            World(one, tuple(sorted(records, key=lambda record: record["rank"])))
            for one, records in members.items()
        ]
        return [world for world in worlds if world.complete]

    def steps(self, world: World) -> int:
        """
        Return how many steps all workers of a world have made together.
        """
        last = dict.fromkeys(world.pids, 0)
        for record in self.records("step"):
            if record["world"] == world.id:
                last[record["pid"]] = record["step"]
        return min(last.values())

    def wait_for_world(
        self, nodes: set[str], *, after: World | None = None, seconds: float = SOON
    ) -> World:
        """
        Wait until the workers of exactly these nodes have met and made a step.

        Args:
            nodes: The names of the nodes.
            after: A world that must be older.
            seconds: How long to wait.
        """

        def met() -> World | None:
            self.check()
            worlds = self.worlds()
            older = [world.id for world in worlds].index(after.id) + 1 if after else 0
            for world in worlds[older:]:
                if world.nodes == nodes and self.steps(world):
                    return world
            return None

        return self._wait(f"a world of {sorted(nodes)}", met, seconds)

    def wait_for_lines(
        self, agent: Agent, *words: str, seconds: float = SOON
    ) -> list[str]:
        """
        Wait until an agent has said lines with all these words, and return them.
        """

        def spoken() -> list[str]:
            self.check()
            return agent.lines(*words)

        return self._wait(f"{agent.name} to say {words}", spoken, seconds)

    def wait_for(
        self, what: str, ready: Callable[[], _T], *, seconds: float = SOON
    ) -> _T:
        """
        Wait until something is true, as long as no agent ends with an error.
        """

        def checked() -> _T:
            self.check()
            return ready()

        return self._wait(what, checked, seconds)

    def wait_for_steps(self, world: World, more: int, *, seconds: float = SOON) -> None:
        """
        Wait until the workers of a world have made some more steps.
        """
        wanted = self.steps(world) + more
        self._wait(f"{more} more steps", lambda: self.steps(world) >= wanted, seconds)

    def check(self) -> None:
        """
        Raise AssertionError if an agent has ended with an error of its own.
        """
        for agent in self.agents.values():
            assert agent.ended or agent.returncode in (None, 0), (
                f"The agent {agent.name} ended with {agent.returncode}.\n{self.story()}"
            )

    def story(self) -> str:
        """
        Tell all that is known of the job, for whoever reads of a failure.
        """
        parts = [
            f"{record['time']:.3f} {record['kind']} {record['node']}"
            f" pid {record['pid']} rank {record['rank']} of {record['world_size']}"
            f" master {record['master']} world {record.get('world')}"
            for record in self.records("begun", "joined", "failing", "ended")
        ]
        parts += [
            f"--- {agent.name}: exit {agent.returncode}\n{agent.said}"
            for agent in self.agents.values()
        ]
        return "\n".join(parts)

    # -- what it is told ------------------------------------------------------------

    def fail_worker(self, node: str) -> None:
        """
        Let the worker of a node fail.
        """
        (self.folder / f"fail-{node}").touch()

    def stop(self, node: str | None = None) -> None:
        """
        Let the training end, or that of one node whose worker speaks with nobody.
        """
        (self.folder / (f"stop-{node}" if node else "stop")).touch()

    def wait(self, seconds: float = SOON) -> dict[str, int]:
        """
        Wait until all agents have ended that we did not end ourselves.

        Returns:
            Their exit statuses.
        """
        deadline = time.monotonic() + seconds
        living = {name: agent for name, agent in self.agents.items() if not agent.ended}
        for agent in living.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.process.wait(max(deadline - time.monotonic(), 0.1))
        late = [name for name, agent in living.items() if agent.returncode is None]
        assert late == [], f"still running after {seconds:.0f} s\n{self.story()}"
        return {name: agent.process.returncode for name, agent in living.items()}

    def finish(self, seconds: float = SOON) -> None:
        """
        Let the training end, and see all living agents end well.
        """
        self.stop()
        statuses = self.wait(seconds)
        assert set(statuses.values()) == {0}, f"{statuses}\n{self.story()}"

    def close(self) -> None:
        """
        Kill whatever is left.
        """
        for agent in self.agents.values():
            agent.kill_node()
        left = list(self.processes())
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)

    def processes(self) -> Iterator[psutil.Process]:
        """
        Find the job's processes, wherever they are in the tree of processes.
        """
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark:
                    yield process

    def _wait(self, what: str, ready: Callable[[], _T], seconds: float) -> _T:
        try:
            return wait_until(what, ready, seconds=seconds, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
