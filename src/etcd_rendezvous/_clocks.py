# SPDX-License-Identifier: BSD-3-Clause
"""
How far this machine's clock is from etcd's, and what is said of that.

torch's handler judges liveness by the nodes' wall clocks, so who is far off is warned.
Nothing of ours hangs on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import mktime_tz, parsedate_tz
from typing import Final, NamedTuple

from ._log import SlowBeat
from ._settings import Endpoint

__all__ = ["RESOLUTION", "ClockWatch", "Sending", "seconds_ahead", "seconds_of"]

#: What a date of HTTP leaves open, in seconds: it is rounded down.
RESOLUTION: Final = 1.0
# A reply is looked at this often, and what is wrong said no more often than that.
_LOOK_SECONDS: Final = 10.0
_SAY_SECONDS: Final = 600.0
_LEAST_HARMFUL_SECONDS: Final = 2.0


class Sending(NamedTuple):
    """
    When a request was sent.

    Attributes:
        wall: By the wall clock, in seconds since the epoch.
        monotonic: By the monotonic clock, in seconds.
    """

    wall: float
    monotonic: float


def seconds_ahead(date: float, sent: float, received: float) -> float:
    """
    Return how far our clock is ahead of a server's, or more; negative if it is behind.

    The server dated its reply at some time between sending and receipt, in whole
    seconds. So a slow reply tells less, but never of a difference that there isn't.

    Args:
        date: The server's date, in seconds since the epoch.
        sent: When the request was sent, by our clock.
        received: When the reply was received, by our clock.

    Returns:
        The least difference that explains the date; 0 if none is needed.
    """
    if date > received:
        return received - date
    return max(sent - (date + RESOLUTION), 0.0)


class ClockWatch:
    """
    Compare clocks at a reply now and then, and warn of a difference that does harm.

    Two nodes that are a third of the expiry off, in opposite directions, are two thirds
    apart. A heartbeat that is a third old then looks as old as all of it.

    Args:
        expiry: The seconds after which torch's handler takes a node without a heartbeat
            for dead.
        clock: A monotonic clock, in seconds.
        wall: The machine's clock, in seconds since the epoch.
    """

    def __init__(
        self,
        expiry: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._expiry = expiry
        self._harmful = max(expiry / 3, _LEAST_HARMFUL_SECONDS)
        self._clock = clock
        self._wall = wall
        self._look_at = float("-inf")
        self._beat = SlowBeat(clock, _SAY_SECONDS)

    def begin(self) -> Sending | None:
        """
        Note that a request is sent; None if its reply is not to be looked at.
        """
        now = self._clock()
        return Sending(self._wall(), now) if now >= self._look_at else None

    def look(self, endpoint: Endpoint, date: str | None, sending: Sending) -> None:
        """
        Look at the date of a reply that has just been received.

        Args:
            endpoint: Who answered.
            date: The header ``Date``; None if there is none.
            sending: When the request was sent.
        """
        told = seconds_of(date)
        if told is None:
            return
        now = self._clock()
        received = self._wall()
        # Whichever is longer: our clock may be set meanwhile, or the machine be asleep.
        sent = min(sending.wall, received - (now - sending.monotonic))
        ahead = seconds_ahead(told, sent, received)
        self._look_at = now + _LOOK_SECONDS
        if abs(ahead) < self._harmful:
            return
        self._look_at = now + _SAY_SECONDS
        self._beat.warn(
            f"This machine's clock is {abs(ahead):.0f} s or more "
            f"{'ahead of' if ahead > 0 else 'behind'} that of the etcd at {endpoint}: "
            "nodes whose clocks differ may take each other for dead, since a heartbeat "
            f"that looks {self._expiry:g} s old counts as none (keep_alive_interval x "
            "keep_alive_max_attempt). Keep all clocks in step (NTP), or take "
            "etcd-live, which compares none."
        )


def seconds_of(date: str | None) -> float | None:
    """
    Read the header ``Date``, in seconds since the epoch; None if it is none.
    """
    if not date:
        return None
    try:
        parts = parsedate_tz(date)
        return None if parts is None else float(mktime_tz(parts))
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
