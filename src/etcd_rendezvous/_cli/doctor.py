# SPDX-License-Identifier: BSD-3-Clause
"""
``etcd-rendezvous doctor``: can this machine use that etcd for this job?
"""

from __future__ import annotations

import json
import re
import socket
from base64 import b64encode
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import click
from rich.text import Text

from etcd_rendezvous._background import Later
from etcd_rendezvous._cli.app import console
from etcd_rendezvous._cli.doctor_checks import examine
from etcd_rendezvous._cli.doctor_facts import Job
from etcd_rendezvous._cli.doctor_findings import (
    CHECKS,
    Finding,
    Group,
    Level,
    as_json,
    exit_status,
    verdict,
    worst,
)
from etcd_rendezvous._cli.options import NORMALIZED, Target, target_options
from etcd_rendezvous._cli.text import plain
from etcd_rendezvous._errors import EtcdSettingError
from etcd_rendezvous._plugin import takes_over
from etcd_rendezvous._runs.report import PROBE_RUN
from etcd_rendezvous._settings import Settings

__all__ = ["doctor"]

_NAME_SECONDS: Final = 2.0
_LEVEL_WIDTH: Final = max(len(level.value) for level in Level)
_CHECK_WIDTH: Final = max(map(len, CHECKS))
_STYLES: Final = {
    Level.OK: "green",
    Level.UNKNOWN: "dim",
    Level.WARN: "yellow",
    Level.FAIL: "bold red",
}


def _most_nodes(_context: object, _parameter: object, text: str) -> int:
    """
    Read a number of nodes, or the most of a range, as torchrun writes it.
    """
    most = re.fullmatch(r"(?:[0-9]+:)?([0-9]{1,9})", text)
    if most is None or not int(most[1]):
        raise click.BadParameter("write N or MIN:MAX, as for torchrun's --nnodes.")
    return int(most[1])


@click.command(context_settings=NORMALIZED)
@target_options
@click.option(
    "--nodes",
    "--nnodes",
    envvar="PET_NNODES",
    default="2",
    metavar="N|MIN:MAX",
    callback=_most_nodes,
    help="How many nodes the job has. Default: PET_NNODES, 2.",
)
@click.option(
    "--rdzv-id",
    envvar="PET_RDZV_ID",
    metavar="ID",
    help="The run that the probe key belongs to, for a user who may touch one run "
    f"alone. Default: PET_RDZV_ID, {PROBE_RUN}.",
)
@click.option("--strict", is_flag=True, help="Let a warning fail, too.")
@click.option("--json", "in_json", is_flag=True, help="For programs: print JSON.")
@click.pass_context
def doctor(
    context: click.Context,
    target: Target,
    nodes: int,
    rdzv_id: str | None,
    strict: bool,
    in_json: bool,
) -> None:
    """
    Say whether this machine can use an etcd for a job.

    It looks at each endpoint (name, TCP, TLS, version, API, leader, database, clock,
    round trips), and then uses them as the job's backend does: it writes, watches,
    reads and deletes a probe key. Each line is ok, warn or fail, with what to do; the
    exit status is 1 if one fails.
    """
    settings = target.settings
    job = _job(target, nodes)
    with _progress(in_json, f"Looking at {target.endpoints} …"):
        groups, api = examine(settings, job, rdzv_id or PROBE_RUN)
    sentence = verdict(groups, str(job))
    if in_json:
        found = as_json(
            groups,
            verdict=sentence,
            backend=job.backend,
            api=api,
            nodes=nodes,
            endpoints=[str(one) for one in settings.endpoints],
        )
        click.echo(_without_secrets(json.dumps(found, indent=2), settings))
    else:
        _show(groups, settings)
        style = _STYLES[worst(groups)]
        console().print(Text(sentence, style=style))
    context.exit(exit_status(groups, strict=strict))


def _job(target: Target, nodes: int) -> Job:
    try:
        name = Later(socket.getfqdn).result(_NAME_SECONDS)
    except TimeoutError:
        name = socket.gethostname()
    return Job(
        target.backend,
        nodes,
        name_length=len(name),
        beat=target.beat,
        silence=target.silence,
        request_limit=target.settings.request_limit,
        takes_over=takes_over(),
    )


def _progress(in_json: bool, what: str) -> AbstractContextManager[object]:
    """
    Show on a terminal that something is under way.
    """
    err = console(stderr=True)
    if in_json or not err.is_terminal:
        return nullcontext()
    return err.status(Text(what))


def _show(groups: Sequence[Group], settings: Settings) -> None:
    out = console()
    for group in groups:
        title = group.endpoint or "all endpoints, as the job uses them"
        out.print(Text(title, style="bold"))
        for one in group.findings:
            for line in _lines(one):
                line.plain = plain(_without_secrets(line.plain, settings))
                out.print(line)
        out.print()


def _lines(finding: Finding) -> list[Text]:
    """
    Return a finding as a line, and what to do about it as one that follows.
    """
    level = finding.level
    line = Text("  ")
    line.append(f"{level.value:<{_LEVEL_WIDTH}}", style=_STYLES[level])
    line.append(f"  {finding.check:<{_CHECK_WIDTH}}  {finding.says}")
    if not finding.remedy:
        return [line]
    indent = " " * (2 + _LEVEL_WIDTH + 2 + _CHECK_WIDTH + 2)
    return [line, Text(f"{indent}-> {finding.remedy}")]


def _without_secrets(text: str, settings: Settings) -> str:
    """
    Leave out what a stranger may have repeated of a request to the v2 API.

    Each such request has the password in it; v3's client sees to its own.
    """
    who = settings.credentials
    if who is None:
        return text
    try:
        password = who.password()
    except EtcdSettingError:
        return text
    return text.replace(b64encode(f"{who.user}:{password}".encode()).decode(), "***")
