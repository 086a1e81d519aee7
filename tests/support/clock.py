# SPDX-License-Identifier: BSD-3-Clause
"""
A clock that stands still until it is set.
"""

from __future__ import annotations

__all__ = ["Clock"]


class Clock:
    """
    A monotonic clock for tests.

    Attributes:
        now: What it shows, in seconds; set it to let time pass.
    """

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now
