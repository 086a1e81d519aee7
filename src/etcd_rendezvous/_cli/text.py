# SPDX-License-Identifier: BSD-3-Clause
"""
Text of others, fit to be shown.
"""

from __future__ import annotations

__all__ = ["plain"]


def plain(text: str) -> str:
    """
    Return a text without anything that a terminal would obey.

    What stands in etcd may have been written by anybody, and so may what answers.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )
