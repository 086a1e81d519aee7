# SPDX-License-Identifier: BSD-3-Clause
"""
Show how the demo's job is doing: live on a terminal, as plain lines elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from etcd_rendezvous._cli.demo_records import World

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Status", "View"]

_STATE_STYLES = {
    "killed": "bold red",
    "ended": "dim",
    "starting": "yellow",
    "getting ready": "yellow",
}


@dataclass(frozen=True)
class Status:
    """
    What the live display shows.

    Attributes:
        nodes: What each node is doing, by its name.
        size: How many workers the present world has, 0 for none.
        step: The last step that was finished.
        steps: How many steps the training has.
        checkpoint: The step of the newest checkpoint, 0 for none.
        accuracy: The accuracy at that checkpoint, 0 to 1.
        waiting_for: What happens next.
    """

    nodes: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    step: int = 0
    steps: int = 1
    checkpoint: int = 0
    accuracy: float = 0.0
    waiting_for: str = ""


class View:
    """
    The demo's output.

    A context manager: the live part vanishes at its end, the events remain.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, emoji=False, markup=False)
        self._start = time.monotonic()
        self._status = Status()
        self._shown_checkpoint = 0
        self._live = (
            Live(
                console=self._console,
                get_renderable=self._render,
                refresh_per_second=8,
                transient=True,
            )
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def event(self, text: str, style: str = "") -> None:
        """
        Print one line about something that happened, with the time since the start.
        """
        line = Text.assemble((self._clock(), "dim"), " ", (text, style))
        self._console.print(line, soft_wrap=True)

    def update(self, status: Status) -> None:
        """
        Show a new status; where there is no live display, print each checkpoint.
        """
        self._status = status
        if self._live is None and status.checkpoint != self._shown_checkpoint:
            self._shown_checkpoint = status.checkpoint
            self.event(
                f"step {status.checkpoint} of {status.steps}: {_describe(status)}"
            )

    def tail(self, title: str, lines: Sequence[str]) -> None:
        """
        Print the end of a log, on standard error.
        """
        console = Console(stderr=True, highlight=False, emoji=False, markup=False)
        console.print(Rule(title, align="left", style="dim"))
        for line in lines:
            console.print(Text(line), soft_wrap=True)

    def summary(self, worlds: Sequence[World], sentences: Sequence[str]) -> None:
        """
        Print a table of the worlds and what they show.
        """
        table = Table(box=SIMPLE_HEAD)
        table.add_column("World", justify="right")
        table.add_column("Nodes")
        table.add_column("Steps")
        table.add_column("Lost", justify="right")
        table.add_column("Pause", justify="right")
        table.add_column("They met at")
        table.add_column("Accuracy", justify="right")
        before: World | None = None
        for world in worlds:
            accuracy = max(world.checkpoints.items(), default=(0, 0.0))[1]
            master = world.members[0]
            lost = pause = ""
            if before is not None:
                lost = str(before.last_step - world.resumed_from)
                pause = f"{world.first_time - before.last_time:.1f} s"
            table.add_row(
                f"{world.size}",
                " ".join(name.removeprefix("node-") for name in world.nodes),
                f"{world.resumed_from + 1} to {world.last_step}",
                lost,
                pause,
                f"{master.master_addr}:{master.master_port}",
                f"{accuracy:.1%}" if accuracy else "",
            )
            before = world
        self._console.print(table)
        for sentence in sentences:
            self._console.print(Text(sentence), soft_wrap=not self._console.is_terminal)

    def _clock(self) -> str:
        return f"{time.monotonic() - self._start:6.1f} s"

    def _render(self) -> RenderableType:
        status = self._status
        nodes = Table.grid(padding=(0, 2))
        for name, state in status.nodes.items():
            style = _STATE_STYLES.get(state, "green")
            nodes.add_row(Text(name, "bold"), Text(state, style))
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(
                total=status.steps,
                completed=status.step,
                width=30,
                complete_style="green",
                finished_style="green",
            ),
            Text(f"step {status.step} of {status.steps}"),
            Text(_describe(status), "dim"),
        )
        now = Text.assemble((self._clock(), "dim"), f" {status.waiting_for}")
        return Padding(Group(nodes, bar, now), (1, 0, 0, 0))


def _describe(status: Status) -> str:
    words = []
    if status.size:
        words.append(f"a world of {status.size}")
    if status.checkpoint:
        words.append(f"accuracy {status.accuracy:.1%}")
    return ", ".join(words)
