# SPDX-License-Identifier: BSD-3-Clause
"""
Asking etcd now and then how full it is.

One node of a job does so, from a thread that is there anyway, right after a heartbeat.
What etcd does not answer at once is left for the next time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ._errors import EtcdConnectionError, EtcdError, EtcdReplyError
from ._log import log
from ._space import Growth, Space, space_of
from ._v3 import wire

if TYPE_CHECKING:
    from ._v3.client import EtcdClient

__all__ = ["Lookout"]

_LOOK_SECONDS: Final = 600.0
_LONGEST_SECONDS: Final = 1.0


class Lookout:
    """
    Look whether etcd's quota is nearly used up, or soon will be.

    It raises nothing. One request is sent every ten minutes, and once another.

    Args:
        client: The client.
        key: A key that the user may read.
        interval: The seconds between two heartbeats; each request of a look takes a
            quarter of it at most.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        client: EtcdClient,
        key: str | bytes,
        interval: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # A look has less time than an operation: that it is late says nothing.
        self._client = client.once()
        self._key = key
        self._seconds = min(interval / 4, _LONGEST_SECONDS)
        self._clock = clock
        self._look_at = float("-inf")
        # Whether etcd tells its status.
        self._tells = True
        # Whether nothing more is to be said of a history that grows.
        self._growth_is_told = False

    @property
    def is_due(self) -> bool:
        """
        Whether it is time to look.
        """
        return self._clock() >= self._look_at

    def look(self, growth: Growth | None = None) -> None:
        """
        Look, if it is time, and warn of what is found.

        Args:
            growth: What heartbeats add to the history; None for nothing.
        """
        if not self.is_due:
            return
        self._look_at = self._clock() + _LOOK_SECONDS
        try:
            space = self._space()
            where = str(self._client.last_endpoint)
            if space.is_near_quota:
                log.warning("%s", space.in_words(where))
            if growth is not None and not self._growth_is_told:
                self._look_at_growth(growth, space, where)
        except EtcdConnectionError as error:
            log.debug("How full etcd is was not told: %s", error)
        except Exception as error:  # noqa: BLE001 - a heartbeat's thread runs this
            log.debug("How full etcd is is not known: %r", error)

    def _space(self) -> Space:
        if not self._tells:
            return Space()
        try:
            return space_of(self._client.status(timeout=self._seconds))
        except EtcdConnectionError:
            raise
        except EtcdError as error:
            # It won't tell the next time either.
            log.debug("etcd does not tell how full it is: %s", error)
            self._tells = False
            return Space()

    def _look_at_growth(self, growth: Growth, space: Space, where: str) -> None:
        if not growth.is_worth_a_word(space):
            return
        compacted = self._was_compacted()
        self._growth_is_told = True
        if not compacted:
            log.warning("%s", growth.in_words(where, space))

    def _was_compacted(self) -> bool:
        """
        Say whether history was ever compacted; if so, somebody sees to it.

        Where that is refused, too: it would be in vain to ask again.
        """
        try:
            self._client.range(
                self._key, revision=1, keys_only=True, timeout=self._seconds
            )
        except EtcdReplyError as error:
            if wire.COMPACTED not in error.text:
                log.debug("Whether etcd is compacted is not known: %s", error)
            return True
        return False
