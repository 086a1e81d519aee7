# SPDX-License-Identifier: BSD-3-Clause
"""
What an etcd that is away means to a job, and what is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ._errors import EtcdAuthError, EtcdLimitError, EtcdReplyError
from ._log import SlowBeat

__all__ = [
    "MOST_NAMES",
    "Outages",
    "absence",
    "is_hopeless",
    "listed",
    "nodes",
    "span",
]

MOST_NAMES: Final = 8


def absence(error: BaseException | None) -> str:
    """
    Say in a few words what keeps etcd from us.
    """
    if isinstance(error, EtcdLimitError):
        return "etcd refuses to write"
    return "etcd refuses" if isinstance(error, EtcdReplyError) else "etcd is away"


def is_hopeless(error: BaseException | None) -> bool:
    """
    Say whether who is joining would wait in vain.
    """
    return isinstance(error, EtcdLimitError) or (
        isinstance(error, EtcdAuthError) and not error.may_mend
    )


def listed(names: Sequence[str], count: int) -> str:
    """
    List names in brackets, and count those beyond eight.

    Args:
        names: The names, or the first of them.
        count: How many there are.
    """
    shown = names[:MOST_NAMES]
    if not shown:
        return ""
    more = f" and {count - len(shown)} more" if count > len(shown) else ""
    return f" ({', '.join(shown)}{more})"


def nodes(count: int) -> str:
    """
    Return a number of nodes in words.
    """
    return "1 node" if count == 1 else f"{count} nodes"


def span(least: int, most: int) -> str:
    """
    Return how many are needed in words, such as "2" or "2 to 4".
    """
    return f"{least}" if most == least else f"{least} to {most}"


class Outages:
    """
    What is said of an etcd that is away while a round runs.

    Args:
        run_id: The run.
        beat: How often that is said.
    """

    def __init__(self, run_id: str, beat: SlowBeat) -> None:
        self._run_id = run_id
        self._beat = beat
        self._back = beat.another()
        self._said = False

    def begin(self, reason: str, what: str = "etcd is away") -> None:
        """
        Say that it is away, unless that was said too short a time ago.

        Args:
            reason: A sentence.
            what: See :func:`absence`.
        """
        self._said |= self._beat.warn(
            f"{what}; the running round of '{self._run_id}' goes on, but no node can "
            f"join or leave: {reason}"
        )

    def end(self) -> None:
        """
        Say that it is back, if it was said to be away.
        """
        # Where it comes and goes, a later call says so.
        if self._said and self._back.is_due():
            self._said = not self._back.warn(f"etcd answers '{self._run_id}' again.")
