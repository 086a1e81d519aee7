# SPDX-License-Identifier: BSD-3-Clause
"""
``etcd-rendezvous purge``: delete what etcd holds of a run.
"""

from __future__ import annotations

import contextlib
import time

import click

from etcd_rendezvous._cli.app import console
from etcd_rendezvous._cli.options import NORMALIZED, Target, target_options
from etcd_rendezvous._cli.status_view import show_run
from etcd_rendezvous._cli.text import plain
from etcd_rendezvous._outages import listed
from etcd_rendezvous._runs.changes import names
from etcd_rendezvous._runs.find import Finder
from etcd_rendezvous._runs.removal import ChangedError, RemovalV2, RemovalV3
from etcd_rendezvous._runs.report import Run

__all__ = ["purge"]

_KEYS_SHOWN = 10
_END_FIRST = "End its job first; or add --force, and they will have to meet again."


@click.command(context_settings=NORMALIZED)
@click.argument("run_id")
@target_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Delete it although nodes of it are alive.")
def purge(target: Target, run_id: str, *, yes: bool, force: bool) -> None:
    """
    Delete what etcd holds of the run RUN_ID, so that the id is free at once.

    It shows what there is, and asks. While a node of the run is alive it refuses: with
    torch's handler it looks for a heartbeat's time whether somebody still writes.

    Exit status: 0 if it is deleted, 1 if not.
    """
    out = console()
    finder = Finder(target.settings, target.backend, target.silence)
    with contextlib.closing(finder):
        runs = finder.find(run_id).runs
        if not runs:
            where = f"{target.settings.key_prefix} at {target.endpoints}"
            raise click.ClickException(
                f"There is no run '{plain(run_id)}' under {where}."
            )
        for run in runs:
            out.print(show_run(run))
        if not force:
            _refuse_alive(runs)
            _refuse_changing(finder, target, runs)
        # What goes as a whole goes first.
        removals = [finder.removal(run) for run in reversed(runs)]
        counts = [_show_keys(removal) for removal in removals]
        if not yes:
            click.confirm(f"Delete {_keys(sum(counts))}?", abort=True)
        deleted = 0
        for removal, count in zip(removals, counts, strict=True):
            try:
                removal.remove(force=force)
            except ChangedError as error:
                raise _changed(run_id, deleted) from error
            deleted += count
    then = f"the run id '{plain(run_id)}' is free"
    if any(run.alive for run in runs):
        then = f"the nodes of '{plain(run_id)}' that live will meet again"
    out.print(f"Deleted {_keys(deleted)}; {then}.")


def _refuse_alive(runs: tuple[Run, ...]) -> None:
    for run in runs:
        if run.alive:
            alive = [plain(name) for name in names(run.alive)]
            raise _alive(run.run_id, listed(alive, len(alive)))


def _refuse_changing(finder: Finder, target: Target, runs: tuple[Run, ...]) -> None:
    """
    Refuse to delete what somebody writes, whatever the clocks say of heartbeats.
    """
    # Of etcd-live the leases tell; a store alone has nothing that tells.
    watched = {run.api: run.revision for run in runs if _is_watched(run)}
    if not watched:
        return
    seconds = target.beat + 1
    click.echo(f"Looking for heartbeats for {seconds} s")
    time.sleep(seconds)
    found = finder.find(runs[0].run_id).runs
    _refuse_alive(found)
    now = {run.api: run.revision for run in found if _is_watched(run)}
    if now != watched:
        raise _alive(runs[0].run_id, "")


def _is_watched(run: Run) -> bool:
    return run.handler != "live" and run.revision > 0


def _alive(run_id: str, who: str) -> click.ClickException:
    return click.ClickException(
        f"Nothing was deleted: nodes of '{plain(run_id)}' are alive{who}. {_END_FIRST}"
    )


def _changed(run_id: str, deleted: int) -> click.ClickException:
    before = f" {_keys(deleted)} of it had been deleted before." if deleted else ""
    return click.ClickException(
        f"The run '{plain(run_id)}' has changed meanwhile, so that its state was left "
        f"alone: nodes of it are alive.{before} {_END_FIRST}"
    )


def _show_keys(removal: RemovalV2 | RemovalV3) -> int:
    shown, count = removal.contents(_KEYS_SHOWN)
    for key in shown:
        click.echo(f"  {plain(key)}")
    if count > len(shown):
        click.echo(f"  and {count - len(shown):,} more")
    return count


def _keys(count: int) -> str:
    return "1 key" if count == 1 else f"{count:,} keys"
