# SPDX-License-Identifier: BSD-3-Clause
"""
How long N nodes take to meet, and to be told what happens: ours beside torch's own.

All nodes call ``next_rendezvous()`` at once, as threads in eight processes, with
min = max = N. Backends take turns, run by run, so that all see the same machine. Then:
a late node, a node that is killed, an etcd that loses its leader, and what it costs
when nothing happens.

    python -m benchmarks.rendezvous --binary ETCD --json figures.json --plot figures.svg
    python -m benchmarks.rendezvous --nodes 2 32 128 --runs 1 --idle-seconds 20
    python -m benchmarks.rendezvous --nodes 128 --parts meetings
    python -m benchmarks.rendezvous --show figures.json

All of it takes a quarter of an hour, mostly because who does not finish is given a
minute each. etcd must serve v2 for torch's ``etcd-v2``: 3.5 is the last that does.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from etcd_rendezvous import EtcdServer

from .clients import NotStartedError
from .events import deaths, elections, late_nodes
from .figures import Report
from .handlers import BACKENDS, OURS, TORCHS_V2, V3_BARE
from .idle import idle
from .meetings import Meetings
from .plot import plot
from .promises import broken

PARTS = ("meetings", "late", "deaths", "leader", "idle")


def main() -> int:
    options = _options()
    console = Console(width=120)
    if options.show is not None:
        report = Report.load(options.show)
    else:
        report = Report()
        try:
            _measure(report, options, console)
        except NotStartedError as error:
            console.print(f"A backend was not started: {error}", markup=False)
            return 1
        if options.json is not None:
            report.save(options.json)
    report.show(console)
    if options.plot is not None:
        plot(report, options.plot)
    complaints = list(broken(report))
    for complaint in complaints:
        console.print(f"Not kept: {complaint}", markup=False)
    return 1 if complaints else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[1])
    parser.add_argument(
        "--nodes", type=int, nargs="+", default=[2, 8, 16, 32, 128, 256, 512, 1024]
    )
    parser.add_argument("--runs", type=int, default=3, help="of each meeting and event")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=[*BACKENDS, V3_BARE],
        default=list(BACKENDS),
        metavar="BACKEND",
        help=", ".join([*BACKENDS, V3_BARE]),
    )
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a meeting")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--idle-nodes", type=int, nargs="+", default=[2, 32, 128])
    parser.add_argument("--idle-seconds", type=float, default=60.0)
    parser.add_argument("--binary", help="the etcd to measure with")
    parser.add_argument("--json", type=Path, help="the file to write the figures to")
    parser.add_argument("--plot", type=Path, help="the file to draw them into")
    parser.add_argument("--show", type=Path, help="measure nothing; show this file")
    return parser.parse_args()


def _measure(report: Report, options: argparse.Namespace, console: Console) -> None:
    """
    Measure all that is asked for, one part after the other.
    """
    told = _teller(console)
    binary, backends, runs = options.binary, options.backends, options.runs
    with EtcdServer(binary=binary) as server:
        if TORCHS_V2 in backends and not server.serves_v2:
            raise NotStartedError(
                f"etcd {server.version} does not serve v2, which {TORCHS_V2} needs; "
                "name another etcd with --binary, or other backends with --backends."
            )
        report.about.update(_about(server))
        if "meetings" in options.parts:
            meetings = Meetings(server, backends, runs, options.limit, told)
            for nodes in options.nodes:
                report.figures += meetings.of(nodes)
        if "late" in options.parts:
            report.figures += late_nodes(server, backends, runs, told)
        if "deaths" in options.parts:
            report.figures += deaths(server, backends, runs, told)
    if "leader" in options.parts:
        # Of torch's own, one is told of one member only, and one has a host instead.
        ours = [backend for backend in backends if backend in OURS]
        report.figures += elections(binary, ours, runs, told)
    if "idle" in options.parts:
        report.figures += idle(
            binary, backends, options.idle_nodes, options.idle_seconds, told
        )


def _teller(console: Console) -> Callable[[str], None]:
    def tell(text: str) -> None:
        console.print(f"[dim]{text}[/dim]")

    return tell


def _about(server: EtcdServer) -> dict[str, str]:
    import torch

    return {
        "etcd": server.version,
        "torch": torch.__version__.partition("+")[0],
        "Python": platform.python_version(),
        "processors": str(os.cpu_count()),
    }


if __name__ == "__main__":
    sys.exit(main())
