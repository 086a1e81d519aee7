# SPDX-License-Identifier: BSD-3-Clause
"""
Make the figures of README and docs: ours beside torch's own, in one run.

    python -m benchmarks                    # all; an hour
    python -m benchmarks --quick            # the most important; a quarter of an hour
    python -m benchmarks --parts meetings --nodes 2 32 --json mine.json
    python -m benchmarks --show mine.json   # measure nothing, show the tables
    python -m benchmarks --pages            # measure nothing, write the pages anew
    python -m benchmarks --add mine.json    # a part that is missing, from its own run
    python -m benchmarks --check            # do the pages show the figures?

A run of all parts writes docs/figures.json, and from it the tables and plots of the
pages. With --json it writes that file, and leaves the pages alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .figures import Report
from .names import BACKENDS, V3_BARE
from .pages import FIGURES, blocks, outdated, write_pages
from .plan import PARTS, QUICK, Plan
from .promises import broken


def main() -> int:
    options = _parser().parse_args()
    if options.show is not None:
        _show(Report.load(options.show))
        return 0
    if options.pages:
        _write(Report.load(FIGURES))
        return 0
    if options.add is not None:
        report = Report.load(FIGURES)
        report.take(Report.load(options.add))
        report.broken = list(broken(report))
        report.save(FIGURES)
        _write(report)
        return 0
    if options.check:
        old = list(outdated(Report.load(FIGURES)))
        for path in old:
            print(f"{path} does not show what {FIGURES.name} has: run with --pages.")
        return 1 if old else 0
    plan = _plan(options)
    if options.json is None and set(plan.parts) != set(PARTS):
        print("The pages show one run of all parts: name a file with --json.")
        return 2
    return _run(plan, options)


def _run(plan: Plan, options: argparse.Namespace) -> int:
    from .clients import NotStartedError
    from .machine import about
    from .parts import Parts

    started = time.monotonic()
    told = _teller(started)
    report = Report(about(plan.binary))
    report.about["form"] = "quick" if options.quick else "full"
    path = options.json or FIGURES
    parts = Parts(plan, told)
    failed = False
    for part in plan.parts:
        try:
            report.figures += parts.measure(part)
            report.parts.append(part)
        except NotStartedError as error:
            # What was measured so far took long.
            print(f"{part} was not measured: {error}", flush=True)
            failed = True
        report.about["minutes"] = f"{(time.monotonic() - started) / 60:.0f}"
        report.broken = list(broken(report))
        report.save(path)
    report = Report.load(path)  # As everybody else will see it.
    _show(report)
    if options.json is None and not failed:
        _write(report)
    return 1 if failed or report.broken else 0


def _show(report: Report) -> None:
    for name, text in blocks(report).items():
        print(f"\n{name}\n\n{text}")


def _write(report: Report) -> None:
    for path in write_pages(report):
        print(f"{path} is written.")


def _teller(started: float) -> Callable[[str], None]:
    def tell(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print(f"{minutes:3}:{seconds:02} {text}", flush=True)

    return tell


def _plan(options: argparse.Namespace) -> Plan:
    """
    Return what is asked for: a form, and what is said otherwise.
    """
    given = {
        field.name: getattr(options, field.name)
        for field in dataclasses.fields(Plan)
        if getattr(options, field.name) is not None
    }
    return dataclasses.replace(QUICK if options.quick else Plan(), **given)


def _parser() -> argparse.ArgumentParser:
    text = (__doc__ or "").strip()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=text.partition("\n")[0],
        epilog=text.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the form that takes a quarter of an hour")
    add("--binary", metavar="ETCD", help="the etcd to measure with; it must serve v2")
    add("--json", type=Path, metavar="FILE", help="where the figures go")
    add("--show", type=Path, metavar="FILE", help="show the tables of such a file")
    add("--pages", action="store_true", help="write the pages from their own file")
    text = "add what FILE has measured and their own file lacks, and write them"
    add("--add", type=Path, metavar="FILE", help=text)
    add("--check", action="store_true", help="say whether the pages show that file")
    add = parser.add_argument_group("other sizes than those of the form").add_argument
    known = {
        "parts": PARTS,
        "backends": (*BACKENDS, V3_BARE),
        "death_settings": Plan.death_settings,
        "death_shapes": Plan.death_shapes,
    }
    for field in dataclasses.fields(Plan):
        if field.name == "binary":
            continue
        choices = known.get(field.name)
        many = isinstance(field.default, tuple)
        text = field.metadata["help"]
        add(
            f"--{field.name.replace('_', '-')}",
            nargs="+" if many else None,
            type=type(field.default[0] if many else field.default),
            choices=choices,
            metavar="NAME" if choices else "N",
            help=f"{text}: {', '.join(choices)}" if choices else text,
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
