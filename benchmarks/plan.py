# SPDX-License-Identifier: BSD-3-Clause
"""
How much is measured: all of it in an hour, or the most important in a quarter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .names import BACKENDS

NODE_DEATH = "node-death"
PARTS = (
    NODE_DEATH,
    "meetings",
    "late",
    "deaths",
    "leader",
    "idle",
    "store",
    "counters",
)


def _size(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Plan:
    """
    The sizes of everything; by default those of the long form.

    Args:
        binary: The etcd; None for the one that the library finds.
    """

    binary: str | None = None
    parts: Sequence[str] = _size(PARTS, "what is measured")
    backends: Sequence[str] = _size(BACKENDS, "whose handlers")
    runs: int = _size(3, "how often, but for node deaths")
    limit: float = _size(60.0, "seconds that a meeting or a store is waited for")
    death_settings: Sequence[str] = _size(
        ("defaults", "equal"), "the settings with which nodes of a job die"
    )
    death_shapes: Sequence[str] = _size(
        ("elastic", "spare"), "whether fewer go on, or a spare steps in"
    )
    death_runs: int = _size(2, "how often nodes die with the default settings")
    death_limit: float = _size(
        120.0, "seconds that a job is waited for; 30 less with equal settings"
    )
    nodes: Sequence[int] = _size((2, 8, 32, 128, 256, 512, 1024), "how many meet")
    idle_nodes: Sequence[int] = _size((2, 32, 128), "how many do nothing")
    idle_seconds: float = _size(60.0, "how long they are watched")
    calls: int = _size(500, "of each operation of a store")
    barriers: Sequence[int] = _size((64, 256), "of how many clients each is")
    agents: int = _size(1024, "how many get ranks through a store")
    adders: Sequence[int] = _size((64, 256), "how many add to a counter")


QUICK = Plan(
    runs=1,
    limit=20.0,
    death_shapes=("elastic",),
    death_runs=1,
    death_limit=90.0,
    nodes=(2, 32, 128),
    idle_nodes=(32,),
    idle_seconds=10.0,
    calls=100,
    barriers=(64,),
    agents=64,
    adders=(64,),
)
