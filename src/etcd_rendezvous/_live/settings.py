# SPDX-License-Identifier: BSD-3-Clause
"""
The settings that `etcd-live` has besides those of every backend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .._errors import EtcdSettingError
from .._settings import LEAST_TTL, whole_number

__all__ = ["RANK_ORDER_VARIABLE", "LiveSettings", "parse_live_settings"]

RANK_ORDER_VARIABLE: Final = "ETCD_RENDEZVOUS_RANK_ORDER"
_LONGEST_ORDER: Final = 256
_ON_NODE_LOSS: Final = ("restart", "ignore")


@dataclass(frozen=True)
class LiveSettings:
    """
    What a node of `etcd-live` can be told. Times are in seconds.

    Attributes:
        join_timeout: How long joining may take; a spare's wait does not count.
        last_call_timeout: How long more nodes are waited for once there are enough.
        rejoin_last_call_timeout: The same, in a round after one that lost a node.
        close_timeout: How long closing may take.
        heartbeat_timeout: How long one renewal of the lease may take.
        keep_alive_interval: The time between renewals.
        keep_alive_max_attempt: As many intervals a node lives on without a renewal.
        on_node_loss: ``restart`` or ``ignore``.
        rank_order: What ranks are sorted by before addresses; empty for nothing.
    """

    join_timeout: int = 600
    last_call_timeout: int = 30
    rejoin_last_call_timeout: int = 30
    close_timeout: int = 30
    heartbeat_timeout: int = 5
    keep_alive_interval: int = 2
    keep_alive_max_attempt: int = 3
    on_node_loss: str = "restart"
    rank_order: str = ""

    @property
    def ttl(self) -> int:
        """
        How long a node lives without a renewal.
        """
        return max(self.keep_alive_interval * self.keep_alive_max_attempt, LEAST_TTL)

    def in_words(self) -> str:
        """
        List the values that take effect, for the log.
        """
        seconds = (
            "join_timeout",
            "last_call_timeout",
            "rejoin_last_call_timeout",
            "close_timeout",
            "heartbeat_timeout",
            "keep_alive_interval",
        )
        others = ("keep_alive_max_attempt", "on_node_loss", "rank_order")
        return ", ".join(
            [f"{name}={getattr(self, name)} s" for name in seconds]
            + [
                f"{name}={getattr(self, name)}"
                for name in others
                if getattr(self, name)
            ]
        )


def parse_live_settings(
    config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> LiveSettings:
    """
    Parse the settings of `etcd-live`.

    Args:
        config: The settings by name; others are left alone.
        environ: The environment variables.

    Raises:
        EtcdSettingError: A value can't be used.
    """
    default = LiveSettings()

    def seconds(name: str, otherwise: int, least: int = 1) -> int:
        return whole_number(config, name, otherwise, least=least)

    last_call = seconds("last_call_timeout", default.last_call_timeout)
    on_node_loss = str(config.get("on_node_loss") or default.on_node_loss)
    if on_node_loss not in _ON_NODE_LOSS:
        raise EtcdSettingError(
            f"The setting 'on_node_loss' must be {' or '.join(_ON_NODE_LOSS)}, not "
            f"{on_node_loss!r}."
        )
    order = config.get("rank_order")
    order = str(environ.get(RANK_ORDER_VARIABLE, "") if order is None else order)
    if len(order) > _LONGEST_ORDER:
        raise EtcdSettingError(
            f"The setting 'rank_order' must have {_LONGEST_ORDER} characters or less, "
            f"not {len(order)}."
        )
    return LiveSettings(
        join_timeout=seconds("join_timeout", default.join_timeout),
        last_call_timeout=last_call,
        rejoin_last_call_timeout=seconds("rejoin_last_call_timeout", last_call, 0),
        close_timeout=seconds("close_timeout", default.close_timeout),
        heartbeat_timeout=seconds("heartbeat_timeout", default.heartbeat_timeout),
        keep_alive_interval=seconds("keep_alive_interval", default.keep_alive_interval),
        keep_alive_max_attempt=seconds(
            "keep_alive_max_attempt", default.keep_alive_max_attempt
        ),
        on_node_loss=on_node_loss,
        rank_order=order.strip(),
    )
