# SPDX-License-Identifier: BSD-3-Clause
"""
The group of commands; each is imported only when it is used.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from typing import Any, Final

import click
import rich.console

from etcd_rendezvous._cli.text import plain
from etcd_rendezvous._errors import EtcdError
from etcd_rendezvous._requirements import require_urllib3

__all__ = ["cli", "console"]


@dataclass(frozen=True)
class _Command:
    """
    Where a command is, and what the list of commands says of it.

    Attributes:
        module: The module, which has the command under the command's own name.
        summary: One line for the list of commands.
        extra: The extra that it needs besides ``[cli]``, if any.
    """

    module: str
    summary: str
    extra: str | None = None


_COMMANDS: Final = {
    "demo": _Command(
        "etcd_rendezvous._cli.demo",
        "Watch a training job survive the death of its rank 0.",
        "demo",
    ),
    "doctor": _Command(
        "etcd_rendezvous._cli.doctor", "Say whether this machine can use an etcd."
    ),
    "purge": _Command("etcd_rendezvous._cli.purge", "Delete what etcd holds of a run."),
    "serve": _Command(
        "etcd_rendezvous._cli.serve", "Run a local etcd in the foreground."
    ),
    "status": _Command(
        "etcd_rendezvous._cli.status", "Show runs, their rounds and their nodes."
    ),
}


def console(*, stderr: bool = False, wraps: bool = False) -> rich.console.Console:
    """
    Make a console that does not break a line of ours: they are there to be copied.

    Args:
        stderr: Whether it writes there.
        wraps: Whether it breaks lines that are too long for the terminal.
    """
    made = rich.console.Console(
        stderr=stderr, soft_wrap=not wraps, highlight=False, markup=False, emoji=False
    )
    if not made.is_terminal:
        # A file or a pipe has no edge that a table would have to keep clear of.
        made.width = 1000
    return made


def _plain(
    exc: EtcdError | ModuleNotFoundError, name: str | None
) -> click.ClickException | None:
    """
    Turn an error of ours, or a missing extra, into one sentence.

    Args:
        exc: What was raised.
        name: The command that raised it.

    Returns:
        What click prints; None for an error that needs its traceback.
    """
    if isinstance(exc, EtcdError):
        return click.ClickException(plain(str(exc)))
    extra = _COMMANDS[name].extra if name in _COMMANDS else None
    ours = exc.name is None or exc.name.startswith("etcd_rendezvous")
    if extra is None or ours:
        return None
    return click.ClickException(
        f"The command {name} needs more packages ({exc.name} is missing): "
        f'pip install "etcd-rendezvous[{extra}]"'
    )


class _LazyGroup(click.Group):
    """
    A group that lists its commands without importing them.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        try:
            require_urllib3()
        except ImportError as exc:
            raise click.ClickException(str(exc)) from exc
        try:
            module = importlib.import_module(_COMMANDS[cmd_name].module)
        except ModuleNotFoundError as exc:
            if (plain := _plain(exc, cmd_name)) is not None:
                raise plain from exc
            raise
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.summary) for name, command in _COMMANDS.items()]
            )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (EtcdError, ModuleNotFoundError) as exc:
            if (plain := _plain(exc, ctx.invoked_subcommand)) is not None:
                raise plain from exc
            raise


def _version() -> str:
    try:
        return importlib.metadata.version("etcd-rendezvous")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed)"


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="etcd-rendezvous")
def cli() -> None:
    """
    PyTorch elastic jobs meet through etcd.
    """
