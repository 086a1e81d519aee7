# SPDX-License-Identifier: BSD-3-Clause
"""
How full etcd is, how quickly heartbeats fill it, and what is said of that.

Pure functions; who asks etcd is ``lookout``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["DEFAULT_QUOTA", "Growth", "Space", "space_of"]

DEFAULT_QUOTA: Final = 2 * 1024**3  # etcd's own
_NEAR: Final = 0.8
_MIB: Final = 1024**2
_HOUR: Final = 3600.0
_WORTH_A_WORD_HOURS: Final = 24.0


@dataclass(frozen=True)
class Space:
    """
    What one member of etcd has taken of its disk. In bytes.

    Attributes:
        size: What the quota counts.
        in_use: How much of it holds anything; the rest is free, until etcd needs it.
        quota: The most; 0 where etcd does not tell (before 3.6).
    """

    size: int = 0
    in_use: int = 0
    quota: int = 0

    @property
    def is_near_quota(self) -> bool:
        """
        Whether little is left.
        """
        return 0 < self.quota * _NEAR <= self.size

    @property
    def left(self) -> int:
        """
        The bytes until the quota is used up; with etcd's default where it is not told.
        """
        return max((self.quota or DEFAULT_QUOTA) - self.size, 0)

    def in_words(self, where: str) -> str:
        """
        Say that little is left, and what to do.

        Args:
            where: The member.
        """
        return (
            f"The etcd at {where} has taken {_mib(self.size)} MiB of its quota of "
            f"{_mib(self.quota)} MiB, {_mib(self.in_use)} MiB of it in use. When all "
            "is taken no node can join: compact and defragment every member, or raise "
            "--quota-backend-bytes."
        )


def space_of(status: Mapping[str, Any]) -> Space:
    """
    Read a member's status, as etcd words it.

    Args:
        status: The reply of ``maintenance/status``.

    Returns:
        The space; nothing where it does not tell.
    """

    def number(name: str) -> int:
        try:
            return max(int(status.get(name, 0)), 0)
        except (TypeError, ValueError):
            return 0

    return Space(number("dbSize"), number("dbSizeInUse"), number("dbSizeQuota"))


@dataclass(frozen=True)
class Growth:
    """
    What heartbeats write: each of them the whole state, which stays in etcd's history.

    Attributes:
        state: The bytes of the state, as it is stored.
        nodes: How many nodes send heartbeats.
        interval: The seconds between two of a node's.
    """

    state: int
    nodes: int
    interval: float

    @property
    def an_hour(self) -> float:
        """
        The bytes of an hour.
        """
        return self.state * self.nodes / self.interval * _HOUR

    def hours_to_fill(self, space: Space) -> float:
        """
        Return after how many hours the quota is used up, unless etcd is compacted.
        """
        return space.left / max(self.an_hour, 1.0)

    def is_worth_a_word(self, space: Space) -> bool:
        """
        Say whether it uses the quota up within a day.
        """
        return self.hours_to_fill(space) < _WORTH_A_WORD_HOURS

    def in_words(self, where: str, space: Space) -> str:
        """
        Say what it comes to, and what to do.

        Args:
            where: The member.
            space: How full it is.
        """
        quota = space.quota or DEFAULT_QUOTA
        told = "its quota" if space.quota else "etcd's default quota"
        return (
            f"The heartbeats of {self.nodes} node(s) add about {_mib(self.an_hour)} "
            f"MiB an hour to the history of the etcd at {where}, of which nothing was "
            f"ever compacted: unless it is, {told} of {_mib(quota)} MiB is used up in "
            f"{self.hours_to_fill(space):.1f} hours. Start etcd with "
            "--auto-compaction-retention=5m, or take etcd-live, whose heartbeats "
            "write nothing."
        )


def _mib(size: float) -> str:
    return f"{size / _MIB:.0f}"
