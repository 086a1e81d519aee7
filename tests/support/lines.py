# SPDX-License-Identifier: BSD-3-Clause
"""
What the library logs, and how soon it says the same again.
"""

from __future__ import annotations

import logging
import re
import time

__all__ = ["Lines", "repeated"]


class Lines(logging.Handler):
    """
    Collect lines, while this context lasts.

    Args:
        clock: The clock that tells when each was said; by default the real one.
    """

    def __init__(self, clock=time.monotonic):
        super().__init__()
        self._clock = clock
        self._logger = logging.getLogger("etcd_rendezvous")
        self.said = []

    def emit(self, record):
        self.said.append((self._clock(), record.getMessage()))

    @property
    def texts(self):
        return [text for _, text in self.said]

    def repeated(self, seconds):
        """
        List what was said again too soon; see `repeated`.
        """
        return repeated(self.said, seconds)

    def __enter__(self):
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *failure):
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


def repeated(said, seconds):
    """
    List lines that differ in numbers at most, and came within so many seconds.

    Args:
        said: When each line was said, and the line; in order.
        seconds: What must lie between two equal ones.
    """
    found = []
    last = {}
    for when, text in said:
        held_back = r" \(\d+ more like this since the last line\)$"
        same = re.sub(r"\d+(\.\d+)?", "N", re.sub(held_back, "", text))
        if same in last and when - last[same] < seconds:
            found.append((when - last[same], text))
        last[same] = when
    return found
