# SPDX-License-Identifier: BSD-3-Clause
"""
What every node knows of its run.
"""

from __future__ import annotations

from dataclasses import dataclass

from .mirror import Mirror
from .records import Keys, Progress, Round, decode_progress, decode_round

__all__ = ["View", "view_of"]


@dataclass(frozen=True)
class View:
    """
    What is known of a run from the keys that every node watches.

    Attributes:
        closer: The id of the node that closes rounds; None if there is none.
        office: The revision that it became so at; 0 if there is none.
        round: The last round that has completed.
        round_revision: The revision of its key; 0 if there is none.
        closed: Whether the run is closed.
        progress: How far the next round is, if somebody has said so.
        corrupt: The key that holds what is not ours; empty if none does.
    """

    closer: str | None = None
    office: int = 0
    round: Round | None = None
    round_revision: int = 0
    closed: bool = False
    progress: Progress | None = None
    corrupt: str = ""


def view_of(mirror: Mirror, keys: Keys) -> View:
    """
    Return what the keys say.

    Args:
        mirror: The keys that every node watches.
        keys: Their names.
    """
    closer = mirror.get(keys.closer)
    entry, table = mirror.get(keys.round), mirror.get(keys.table)
    last, corrupt = None, ""
    if entry is not None and table is not None:
        try:
            last = decode_round(entry, table.value)
        except ValueError:
            corrupt = keys.round.decode()
    said = mirror.get(keys.progress)
    progress = None
    if said is not None:
        try:
            progress = decode_progress(said.value)
        except ValueError:
            corrupt = keys.progress.decode()
    return View(
        closer=closer.value.decode(errors="replace") if closer else None,
        office=closer.mod_revision if closer else 0,
        round=last,
        round_revision=entry.mod_revision if entry else 0,
        closed=mirror.get(keys.closed) is not None,
        progress=progress,
        corrupt=corrupt,
    )
