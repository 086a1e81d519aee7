# SPDX-License-Identifier: BSD-3-Clause
"""
What the doctor finds: lines with a level, and the verdict on all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

__all__ = [
    "CHECKS",
    "Finding",
    "Group",
    "Level",
    "as_json",
    "exit_status",
    "fail",
    "good",
    "unknown",
    "verdict",
    "warn",
    "worst",
]

#: What is looked at: first of each endpoint, then of all together.
CHECKS: Final = (
    "name",
    "tcp",
    "tls",
    "version",
    "api",
    "leader",
    "database",
    "clock",
    "reads",
    "settings",
    "cluster",
    "backend",
    "installed",
    "authentication",
    "lease",
    "rights",
    "watch",
    "writes",
    "history",
    "requests",
    "descriptors",
)

_FAILED: Final = 1


class Level(Enum):
    """
    How bad it is.
    """

    OK = "ok"
    UNKNOWN = "unknown"  # it could not be looked at; says nothing against the job
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """
    One line.

    Attributes:
        level: How bad it is.
        check: What was looked at, in one word.
        says: What was found, in half a sentence.
        remedy: What to do about it; empty where nothing is, or where it is said.
        values: What was measured, for programs.
    """

    level: Level
    check: str
    says: str
    remedy: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


def good(check: str, says: str, **values: Any) -> Finding:
    """
    Return a line on what is as it should be.
    """
    return Finding(Level.OK, check, says, values=values)


def unknown(check: str, says: str, **values: Any) -> Finding:
    """
    Return a line on what could not be looked at.
    """
    return Finding(Level.UNKNOWN, check, says, values=values)


def warn(check: str, says: str, remedy: str = "", **values: Any) -> Finding:
    """
    Return a line on what may bring trouble.
    """
    return Finding(Level.WARN, check, says, remedy, values)


def fail(check: str, says: str, remedy: str = "", **values: Any) -> Finding:
    """
    Return a line on what the job can't do with.
    """
    return Finding(Level.FAIL, check, says, remedy, values)


@dataclass(frozen=True)
class Group:
    """
    The lines on one endpoint, or on all of them together.

    Attributes:
        endpoint: The endpoint as a URL; None for all.
        findings: The lines, in the order in which they were looked at.
    """

    endpoint: str | None
    findings: Sequence[Finding]


def worst(groups: Sequence[Group]) -> Level:
    """
    Return the worst level but for what is unknown; OK where there is no line.
    """
    there = {one.level for group in groups for one in group.findings}
    return next((one for one in (Level.FAIL, Level.WARN) if one in there), Level.OK)


def exit_status(groups: Sequence[Group], *, strict: bool) -> int:
    """
    Return what a script is told: 0, or 1 if a check fails.

    Args:
        groups: The lines.
        strict: Whether a warning counts like a failure.
    """
    level = worst(groups)
    failed = level is Level.FAIL or (strict and level is Level.WARN)
    return _FAILED if failed else 0


def verdict(groups: Sequence[Group], job: str) -> str:
    """
    Return the last line: whether the etcd is good for the job.

    Args:
        groups: The lines.
        job: The job in words: "etcd-v3 with 2 nodes".
    """
    all_of_them = [one.level for group in groups for one in group.findings]
    fails = all_of_them.count(Level.FAIL)
    warns = all_of_them.count(Level.WARN)
    if fails:
        checks = "1 check fails" if fails == 1 else f"{fails} checks fail"
        besides = f", {_warnings(warns)} besides" if warns else ""
        return f"No: this machine can't use that etcd for {job}; {checks}{besides}."
    but = f", with {_warnings(warns)}" if warns else ""
    return f"Yes: this machine can use that etcd for {job}{but}."


def _warnings(number: int) -> str:
    return "1 warning" if number == 1 else f"{number} warnings"


def as_json(groups: Sequence[Group], **about: Any) -> dict[str, Any]:
    """
    Return the lines in the form that ``docs/doctor.md`` promises.

    Args:
        groups: The lines.
        about: What was asked for, and the verdict's sentence.
    """
    return {
        "version": 1,
        **about,
        "level": worst(groups).value,
        "findings": [
            {
                "endpoint": group.endpoint,
                "check": one.check,
                "level": one.level.value,
                "says": one.says,
                "remedy": one.remedy or None,
                "values": dict(one.values),
            }
            for group in groups
            for one in group.findings
        ],
    }
