# SPDX-License-Identifier: BSD-3-Clause
"""
What can be told of torch's pickled rendezvous state without unpickling it.
"""

from __future__ import annotations

from typing import Final

__all__ = ["is_closed"]

# In a pickle, the short text "closed" that follows a memo mark, then True.
_CLOSED: Final = b"\x8c\x06closed\x94\x88"


def is_closed(state: bytes) -> bool:
    """
    Say whether a state looks like torch's state of a closed rendezvous.

    It looks for how torch's state object pickles its attribute (pickle protocols 4
    and 5), so it costs nothing and runs nothing. Good enough to choose whether to
    wait; nothing that must be right may hang on it.

    Args:
        state: The pickled state.
    """
    return _CLOSED in state
