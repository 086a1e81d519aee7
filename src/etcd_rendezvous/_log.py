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

__all__ = ["SlowBeat", "SlowLog", "log", "log_under_torchrun"]

log = logging.getLogger("etcd_rendezvous")

BEAT_SECONDS: Final = 10.0


class SlowBeat:
    """
    Say something at most once in ``BEAT_SECONDS``; what is held back is counted.

    Safe for threads, and after ``fork``.

    Args:
        clock: A monotonic clock, in seconds.
        seconds: Another time between two lines.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        seconds: float | None = None,
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._next = float("-inf")
        self._held_back = 0

    def hold(self) -> None:
        """
        Begin the beat now, so that nothing is said before one has passed.
        """
        with self._own_lock():
            self._next = self._clock() + self._between

    def another(self) -> SlowBeat:
        """
        Return one of the same clock and time, for lines of another kind.
        """
        return SlowBeat(self._clock, self._seconds)

    def is_due(self) -> bool:
        """
        Say whether a line would be said now; for whoever would work for its words.
        """
        return self._clock() >= self._next

    def warn(self, message: str) -> bool:
        """
        Log a warning, unless the last one is too fresh.

        Args:
            message: One sentence.

        Returns:
            Whether it was logged.
        """
        return self.say(logging.WARNING, message)

    def say(self, level: int, message: str, *, exc_info: bool = False) -> bool:
        """
        Log a line, unless the last one is too fresh.

        Args:
            level: The level, of ``logging``.
            message: One sentence.
            exc_info: Whether to add the traceback of what is being handled.

        Returns:
            Whether it was logged.
        """
        with self._own_lock():
            now = self._clock()
            if now < self._next:
                self._held_back += 1
                return False
            self._next = now + self._between
            held_back, self._held_back = self._held_back, 0
        if held_back:
            message = f"{message} ({held_back} more like this since the last line)"
        log.log(level, "%s", message, exc_info=exc_info)
        return True

    @property
    def _between(self) -> float:
        return BEAT_SECONDS if self._seconds is None else self._seconds

    def _own_lock(self) -> threading.Lock:
        if self._pid != os.getpid():
            # It may have been held by a thread that the fork left behind.
            self._lock = threading.Lock()
            self._pid = os.getpid()  # last: another thread may look
        return self._lock


class SlowLog:
    """
    Say several things, each of them at a slow beat of its own.

    Args:
        clock: A monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beats: dict[str, SlowBeat] = {}

    def info(self, message: str, *args: object) -> None:
        """
        Log a line; as ``logging`` does it.
        """
        self._say(logging.INFO, message, args)

    def warning(self, message: str, *args: object) -> None:
        """
        Log a warning; as ``logging`` does it.
        """
        self._say(logging.WARNING, message, args)

    def exception(self, message: str, *args: object) -> None:
        """
        Log an error with the traceback of what is being handled.
        """
        self._say(logging.ERROR, message, args, exc_info=True)

    def _say(
        self,
        level: int,
        message: str,
        args: tuple[object, ...],
        *,
        exc_info: bool = False,
    ) -> None:
        beat = self._beats.get(message)
        if beat is None:
            beat = self._beats.setdefault(message, SlowBeat(self._clock))
        beat.say(level, message % args, exc_info=exc_info)


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
