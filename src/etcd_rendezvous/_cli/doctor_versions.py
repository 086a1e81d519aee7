# SPDX-License-Identifier: BSD-3-Clause
"""
Which releases of etcd are known to be faulty, and which were tried.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from etcd_rendezvous._cli.doctor_findings import Finding, fail, good, unknown, warn
from etcd_rendezvous._v3.releases import DIE_OF_READS, Release

__all__ = ["FAULTS", "Fault", "judge_version"]

_CHECK: Final = "version"
_OLDEST: Final = (3, 4)
_NEWEST: Final = (3, 7)


@dataclass(frozen=True)
class Fault:
    """
    A fault of some releases of one minor version.

    Attributes:
        first: The first that has it.
        fixed: The first after it that does not.
        what: What is wrong, as half a sentence.
    """

    first: Release
    fixed: Release
    what: str


_CRASHES: Final = (
    "a member that is killed under load may lose or corrupt data when it starts again"
)
_UNASKED: Final = (
    "where users are on, whoever reaches it can renew and end leases, set alarms and "
    "list members without a password, and reads may be older than they should"
)

_DIES: Final = "it may end when a read is given up, as happens under load"

FAULTS: Final = (
    Fault((3, 5, 0), (3, 5, 3), _CRASHES),
    Fault((3, 4, 0), (3, 4, 42), _UNASKED),
    Fault((3, 5, 0), (3, 5, 28), _UNASKED),
    Fault((3, 6, 0), (3, 6, 9), _UNASKED),
    *(Fault(first, fixed, _DIES) for first, fixed in DIE_OF_READS),
)


def judge_version(text: str | None, *, v3: bool) -> Finding:
    """
    Judge a version of etcd.

    Args:
        text: The version as etcd words it, such as ``3.5.35``; None if it is not told.
        v3: Whether the v3 API is spoken to it.
    """
    numbers = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text or "")
    if text is None or numbers is None:
        return unknown(_CHECK, "it does not tell its version at /version")
    release = int(numbers[1]), int(numbers[2]), int(numbers[3] or 0)
    if release[:2] < _OLDEST:
        says = f"{text} is older than {_in_words(_OLDEST)}, the oldest that is known"
        remedy = "update etcd"
        if v3:
            return fail(_CHECK, f"{says} to work", remedy, version=text)
        return warn(_CHECK, f"{says} to work", remedy, version=text)
    found = [fault for fault in FAULTS if fault.first <= release < fault.fixed]
    if found:
        newest = max(fault.fixed for fault in found)
        return warn(
            _CHECK,
            f"{text} is a release with known faults: "
            + "; ".join(fault.what for fault in found),
            f"update every member to {_in_words(newest)} or later",
            version=text,
        )
    if release[:2] > _NEWEST:
        return warn(
            _CHECK,
            f"{text} is newer than all that this library was tried with "
            f"({_in_words(_OLDEST)} to {_in_words(_NEWEST)})",
            version=text,
        )
    return good(_CHECK, text, version=text)


def _in_words(release: tuple[int, ...]) -> str:
    return ".".join(map(str, release))
