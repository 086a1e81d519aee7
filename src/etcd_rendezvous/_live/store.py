# SPDX-License-Identifier: BSD-3-Clause
"""
The store that `etcd-live` hands to agents.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from torch.distributed.elastic.agent.server import api

from .._store import EtcdStore

__all__ = ["AgentStore"]

# Whose workers have all succeeded waits here for the others, with torch's `barrier`.
_EXIT_BARRIER: Final = getattr(
    api, "_TERMINAL_STATE_SYNC_ID", "torchelastic/agent/terminal_state"
)


class AgentStore(EtcdStore):
    """
    A store that tells when torch's agent has finished.

    torch's handlers are not told before all agents have: until then who has finished
    looks like one that trains, and may come back to the next round; it never does.

    Attributes:
        on_finish: Called when the agent begins to wait for the others at its end.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.on_finish: Callable[[], None] = _do_nothing

    def add(self, key: str | bytes, num: int) -> int:
        """
        Add to a number; see ``EtcdStore.add``.
        """
        name = key if isinstance(key, str) else key.decode(errors="replace")
        if f"/{_EXIT_BARRIER}/" in name:
            self.on_finish()
        return super().add(key, num)


def _do_nothing() -> None:
    """
    Take the place of who is told.
    """
