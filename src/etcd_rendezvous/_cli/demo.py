# SPDX-License-Identifier: BSD-3-Clause
"""
`etcd-rendezvous demo`: a training job survives the death of the node of rank 0.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from etcd_rendezvous._cli.demo_nodes import Node
from etcd_rendezvous._cli.demo_records import (
    Record,
    World,
    find_phases,
    find_worlds,
    judge,
    parse_record,
)
from etcd_rendezvous._cli.demo_view import Status, View
from etcd_rendezvous._server import EtcdServer

if TYPE_CHECKING:
    from types import FrameType

    from typing_extensions import Self

__all__ = ["demo"]

_STEPS = 400
_CHECKPOINT_EVERY = 20
# The node of rank 0 is killed from this step on, when some steps are not yet saved.
_KILL_STEP = 45
_UNSAVED_STEPS = 5
# Seconds that each worker sleeps at a step: at first, while a newcomer starts (its
# imports take several seconds, and it must not come too late), and after all that.
_PACE = 0.1
_NEWCOMER_PACE = 0.2
_LAST_PACE = 0.02
# Seconds between two looks at the records.
_POLL = 0.1
# Lines of a log that are shown if the demo fails.
_TAIL = 25
# Seconds. A node is taken for dead 5 s after its last heartbeat; the nodes that wait
# for others wait 3 s for more than the least number.
_RDZV_CONF = (
    "join_timeout=90,last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=5"
)


class _MissingError(click.ClickException):
    """
    Raised when a package that the demo needs is not installed.
    """

    exit_code = 2


class _FailedError(Exception):
    """
    Raised when the demo can't go on; the text is one plain sentence.
    """


class _AskedError(BaseException):
    """
    Raised in the main thread because a signal asked us to end.
    """


class _Signals:
    """
    Turn Ctrl-C, SIGTERM and SIGHUP into one `_AskedError`.

    It is raised at once, or at the next `check` while `held` is true: starting and
    killing processes is never interrupted half-way, nor is the cleaning up.
    """

    def __init__(self) -> None:
        self.held = False
        self._number = 0
        self._before: dict[int, Any] = {}

    @property
    def exit_status(self) -> int:
        """
        The exit status of a program that ends because of the signal.
        """
        return 128 + self._number

    def check(self) -> None:
        """
        Raise if a signal has come.
        """
        if self._number:
            raise _AskedError

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        first = not self._number
        self._number = self._number or number
        if first and not self.held:
            raise _AskedError


@dataclass(frozen=True)
class _Plan:
    """
    What to do.

    Attributes:
        nodes: How many nodes the job has when it is complete.
        backend: The name of the rendezvous backend.
        endpoint: Where the nodes meet.
        work: The folder of records, checkpoints and logs.
        deadline: When to give up, by the monotonic clock.
        time_limit: The seconds that led to the deadline.
        newcomer: Whether a node takes the place of the killed one.
    """

    nodes: int
    backend: str
    endpoint: str
    work: Path
    deadline: float
    time_limit: float
    newcomer: bool


class _Job:
    """
    The elastic job: its nodes, and what its workers have written so far.
    """

    def __init__(self, plan: _Plan, view: View, signals: _Signals) -> None:
        self.plan = plan
        self.nodes: dict[str, Node] = {}
        self.records: list[Record] = []
        self.worlds: list[World] = []
        self.killed = ""
        self.kill_time = 0.0
        self._view = view
        self._signals = signals
        self._waiting_for = ""
        self._offsets: dict[Path, int] = {}
        for name in ("records", "checkpoints"):
            (plan.work / name).mkdir()

    def run(self) -> None:
        """
        Play the whole piece, up to the end of training.

        Raises:
            _FailedError: It can't go on.
        """
        plan = self.plan
        self._set_pace(_PACE)
        for number in range(plan.nodes):
            self._start_node(number)
        names = ", ".join(self.nodes)
        self._view.event(f"started {plan.nodes} torchrun agents: {names}")

        self._waiting_for = (
            f"waiting for a world of {plan.nodes} to train up to step {_KILL_STEP}"
        )
        full = self._until(self._ready_to_kill)
        if full is None:
            return
        self._kill_leader(full)

        self._waiting_for = "waiting for the others to meet again and save a checkpoint"
        smaller = self._until(lambda: self._made_progress(plan.nodes - 1))
        if smaller is None:
            return
        if plan.newcomer:
            self._set_pace(_NEWCOMER_PACE)
            name = self._start_node(plan.nodes)
            self._view.event(f"{name} comes in to take the free place", "cyan")
            self._waiting_for = f"waiting for {name} to be taken in"
            if self._until(lambda: self._training(plan.nodes)) is None:
                return
        self._set_pace(_LAST_PACE)
        self._waiting_for = "waiting for the training to end"
        self._until(lambda: None)

    def stop(self) -> None:
        """
        Kill whatever still runs.
        """
        for node in self.nodes.values():
            node.kill()

    def poll(self) -> None:
        """
        Read what the workers have written since the last time, and show it.
        """
        for path in sorted((self.plan.work / "records").glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            # The last line may still be in the making.
            whole = data[: data.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            for line in whole.decode(errors="replace").splitlines():
                try:
                    self.records.append(parse_record(line))
                except ValueError as error:
                    raise _FailedError(str(error)) from error
        known = len(self.worlds)
        self.worlds = find_worlds(self.records)
        for world in self.worlds[known:]:
            self._announce(world)
        self._view.update(self._status())

    def _until(self, condition: Callable[[], World | None]) -> World | None:
        """
        Wait for a condition; None means that all agents have ended well before.
        """
        while True:
            self._signals.check()
            # Asked first, so that nothing they wrote is missed.
            running = [n for n in self.nodes.values() if n.agent.poll() is None]
            self.poll()
            for node in self.nodes.values():
                if node.failed:
                    raise _FailedError(
                        f"The agent of {node.name} ended with exit status "
                        f"{node.agent.returncode}."
                    )
            if not running:
                return None
            if (world := condition()) is not None:
                return world
            if time.monotonic() > self.plan.deadline:
                limit = f"{self.plan.time_limit:g}"
                raise _FailedError(
                    f"The time limit of {limit} s was over while {self._waiting_for}."
                )
            time.sleep(_POLL)

    def _start_node(self, number: int) -> str:
        plan = self.plan
        name = f"node-{number}"
        arguments = [
            f"--nnodes={plan.nodes - 1}:{plan.nodes}",
            "--nproc-per-node=1",
            "--max-restarts=20",
            "--monitor-interval=0.1",
            "--local-addr=127.0.0.1",
            f"--rdzv-backend={plan.backend}",
            f"--rdzv-endpoint={plan.endpoint}",
            "--rdzv-id=demo",
            f"--rdzv-conf={_RDZV_CONF}",
            "-m",
            "etcd_rendezvous._cli.demo_worker",
            f"--work-dir={plan.work}",
            f"--steps={_STEPS}",
            f"--checkpoint-every={_CHECKPOINT_EVERY}",
        ]
        log = plan.work / "logs" / f"{name}.log"
        self.nodes[name] = Node.start(name, arguments, log)
        return name

    def _ready_to_kill(self) -> World | None:
        world = self._training(self.plan.nodes)
        if world is None or not world.checkpoints:
            return None
        unsaved = world.last_step - max(world.checkpoints)
        ready = world.last_step >= _KILL_STEP and unsaved >= _UNSAVED_STEPS
        return world if ready else None

    def _made_progress(self, size: int) -> World | None:
        world = self._training(size)
        if world is None or not world.checkpoints:
            return None
        enough = world.last_step >= max(world.checkpoints) + _UNSAVED_STEPS
        return world if enough else None

    def _training(self, size: int) -> World | None:
        """
        Return the newest world, if it has this size.
        """
        if not self.worlds or self.worlds[-1].size != size:
            return None
        return self.worlds[-1]

    def _kill_leader(self, world: World) -> None:
        node = self.nodes[world.leader]
        self.killed = node.name
        self.kill_time = time.time()
        workers = ", ".join(str(pid) for pid in node.kill())
        self._view.event(
            f"killed {node.name}, the node of rank 0, after step {world.last_step}: "
            f"its agent (pid {node.agent.pid}) and its worker (pid {workers})",
            "bold red",
        )

    def _announce(self, world: World) -> None:
        nodes = ", ".join(world.nodes)
        origin = "from the start"
        if world.resumed_from:
            origin = f"from the checkpoint of step {world.resumed_from}"
        master = world.members[0]
        self._view.event(
            f"a world of {world.size} trains {origin}: {nodes} (they meet at "
            f"{master.master_addr}:{master.master_port})",
            "green",
        )

    def _set_pace(self, seconds: float) -> None:
        file = self.plan.work / "pace"
        unfinished = file.with_suffix(".unfinished")
        unfinished.write_text(f"{seconds}\n", encoding="utf-8")
        unfinished.replace(file)

    def _status(self) -> Status:
        newest = {record.node: record.pid for record in self.records}
        world = self.worlds[-1] if self.worlds else None
        step = world.last_step if world else 0
        if world and any(self.nodes[name].killed for name in world.nodes):
            world = None
        states = {}
        for name, node in self.nodes.items():
            states[name] = "starting" if name not in newest else "getting ready"
            for member in world.members if world else ():
                if member.node == name and newest[name] == member.pid:
                    states[name] = f"rank {member.rank} of {member.world_size}"
            if node.killed:
                states[name] = "killed"
            elif node.agent.returncode is not None:
                states[name] = "ended"
        checkpoints = [item for w in self.worlds for item in w.checkpoints.items()]
        checkpoint, accuracy = max(checkpoints, default=(0, 0.0))
        return Status(
            nodes=states,
            size=world.size if world else 0,
            step=step,
            steps=_STEPS,
            checkpoint=checkpoint,
            accuracy=accuracy,
            waiting_for=self._waiting_for,
        )


@click.command(
    epilog="Exit status: 0 if the workers' own records show what is promised, 1 if "
    "not, 2 if something is missing to begin with."
)
@click.option(
    "--nodes",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    help="How many nodes the job has.",
)
@click.option(
    "--work-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty or new folder that keeps records, checkpoints and logs. "
    "Default: a temporary folder.",
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=1),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="When to stop everything and give up.",
)
@click.option(
    "--binary",
    type=click.Path(path_type=Path),
    help="The etcd binary. Default: TORCHELASTIC_ETCD_BINARY_PATH, PATH, the one of "
    "the extra [etcd].",
)
@click.option("--backend", default="etcd-v3", show_default=True, hidden=True)
@click.option("--withhold-newcomer", is_flag=True, hidden=True)
def demo(
    nodes: int,
    work_dir: Path | None,
    time_limit: float,
    binary: Path | None,
    backend: str,
    withhold_newcomer: bool,
) -> None:
    """
    Watch a training job survive the death of its rank 0.

    Starts a local etcd and an elastic job of three torchrun agents on this machine,
    which train a small network on scikit-learn's digits. While they train, the node of
    rank 0 is killed, agent and worker. The others meet again through etcd and go on
    from the newest checkpoint, a newcomer takes the free place, and training ends.

    It takes about a minute. The training is real, but each step is slowed down by
    0.02 to 0.2 s, so that there is something to interrupt.
    """
    _require_packages()
    deadline = time.monotonic() + time_limit
    with _Signals() as signals, _open_work_dir(work_dir) as work:
        view = View()
        problems: list[str] = []
        try:
            with (
                view,
                (work / "logs" / "etcd.log").open("wb") as log,
                _serve(EtcdServer(binary=binary), log) as server,
            ):
                signals.held = True
                view.event(f"started etcd {server.version} at {server.get_endpoint()}")
                plan = _Plan(
                    nodes=nodes,
                    backend=backend,
                    endpoint=server.get_endpoint(),
                    work=work,
                    deadline=deadline,
                    time_limit=time_limit,
                    newcomer=not withhold_newcomer,
                )
                job = _Job(plan, view, signals)
                try:
                    job.run()
                except _FailedError as error:
                    problems.append(str(error))
                finally:
                    job.stop()
                with contextlib.suppress(_FailedError):
                    job.poll()
        except _AskedError:
            view.event("stopped on request; nothing is left running", "yellow")
            click.get_current_context().exit(signals.exit_status)
        problems += judge(job.records, nodes, job.killed)
        if problems:
            _explain(job, view, problems, kept=work_dir is not None)
            click.get_current_context().exit(1)
        view.summary(job.worlds, _describe_success(job))


def _require_packages() -> None:
    """
    Refuse to start without the packages of the extra, before anything runs.
    """
    for name in ("numpy", "sklearn", "torch"):
        if importlib.util.find_spec(name) is None:
            raise _MissingError(
                f"The demo needs more packages ({name} is missing): "
                'pip install "etcd-rendezvous[demo]"'
            )


@contextlib.contextmanager
def _open_work_dir(wanted: Path | None) -> Iterator[Path]:
    """
    Make the folder of the records; a temporary one is deleted at the end.
    """
    if wanted is None:
        with tempfile.TemporaryDirectory(
            prefix="etcd-rendezvous-demo-", ignore_cleanup_errors=True
        ) as name:
            (Path(name) / "logs").mkdir()
            yield Path(name)
        return
    work = wanted.absolute()
    try:
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()):
            raise click.BadParameter(f"The folder {wanted} is not empty.")
        (work / "logs").mkdir()
    except OSError as error:
        raise click.BadParameter(
            f"The folder {wanted} can't be used: {error.strerror}."
        ) from error
    yield work


@contextlib.contextmanager
def _serve(server: EtcdServer, log: IO[bytes]) -> Iterator[EtcdServer]:
    """
    Run an etcd that writes its log to a file.
    """
    try:
        server.start(stderr=log)
        yield server
    finally:
        server.stop()


def _describe_success(job: _Job) -> list[str]:
    phases = find_phases(job.worlds, job.plan.nodes)
    full, smaller, last = (phase[-1] for phase in phases)
    again = phases[1][0].first_time - job.kill_time
    newcomers = [name for name in last.nodes if name not in full.nodes]
    lost = full.last_step - smaller.resumed_from
    accuracy = min(last.ended.values())
    return [
        (
            f"{job.killed}, the node of rank 0, died after step {full.last_step}, "
            f"{lost} steps after the newest checkpoint. {again:.1f} s later the others "
            f"trained again; {' and '.join(newcomers)} took its place."
        ),
        (
            f"Training ended at step {last.last_step} and tells {accuracy:.1%} of the "
            "held-out digits right. The workers' own records show it: worlds of "
            f"{full.size}, {smaller.size} and {last.size}, each of which began with "
            "the step after the newest checkpoint."
        ),
    ]


def _explain(job: _Job, view: View, problems: Sequence[str], *, kept: bool) -> None:
    """
    Show the ends of the logs that matter, then say what went wrong.
    """
    living = [node for node in job.nodes.values() if node.name != job.killed]
    failed = [node for node in living if node.failed]
    for node in failed or living:
        text = node.log.read_text(encoding="utf-8", errors="replace")
        view.tail(f"The end of {node.log.name}", text.splitlines()[-_TAIL:])
    for problem in problems:
        click.echo(problem, err=True)
    if not kept:
        click.echo("With --work-dir DIR all records and logs are kept.", err=True)
