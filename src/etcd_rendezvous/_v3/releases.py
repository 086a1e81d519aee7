# SPDX-License-Identifier: BSD-3-Clause
"""
What releases of etcd can't bear.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["DIE_OF_READS", "dies_of_reads"]

Release = tuple[int, int, int]

#: The first releases that end when nobody waits any longer for the answer to a
#: transaction that only reads (etcd#14110, #14891), and the first that no longer do.
#: `status` alone sends them such ones: who asks it may have no right to write.
DIE_OF_READS: Final[tuple[tuple[Release, Release], ...]] = (
    ((3, 4, 0), (3, 4, 23)),
    ((3, 5, 0), (3, 5, 7)),
)


def dies_of_reads(version: str) -> bool:
    """
    Say whether transactions that only read must not be sent to a server.

    Args:
        version: Its version, such as ``3.5.35``.
    """
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is None:
        return False
    release = int(numbers[1]), int(numbers[2]), int(numbers[3])
    return any(first <= release < fixed for first, fixed in DIE_OF_READS)
