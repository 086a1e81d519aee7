# SPDX-License-Identifier: BSD-3-Clause
"""
The library's logger, and speaking at a steady, slow beat.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final

__all__ = ["SlowBeat", "log", "log_under_torchrun"]

log = logging.getLogger("etcd_rendezvous")

BEAT_SECONDS: Final = 10.0


class SlowBeat:
    """
    Say something at most once in ``BEAT_SECONDS``; what is held back is counted.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._next = float("-inf")
        self._held_back = 0

    def hold(self) -> None:
        """
        Begin the beat now, so that nothing is said before one has passed.
        """
        with self._lock:
            self._next = self._clock() + BEAT_SECONDS

    def warn(self, message: str) -> bool:
        """
        Log a warning, unless the last one is too fresh.

        Args:
            message: One sentence.

        Returns:
            Whether it was logged.
        """
        with self._lock:
            now = self._clock()
            if now < self._next:
                self._held_back += 1
                return False
            self._next = now + BEAT_SECONDS
            held_back, self._held_back = self._held_back, 0
        if held_back:
            message = f"{message} ({held_back} more like this since the last line)"
        log.warning("%s", message)
        return True


def log_under_torchrun() -> None:
    """
    Let torch's ``LOGLEVEL`` set our logger's level too; called by the plug-in.

    Nothing under torchrun configures our logger: below WARNING it is mute there.
    It gets a handler if neither it nor the root logger has one.
    """
    level = os.environ.get("LOGLEVEL", "").upper()
    if not isinstance(logging.getLevelName(level), int):
        return
    log.setLevel(level)
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(
            logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s")
        )
        log.addHandler(handler)
