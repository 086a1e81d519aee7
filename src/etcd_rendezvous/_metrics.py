# SPDX-License-Identifier: BSD-3-Clause
"""
torch's metrics of a rendezvous.

Where they go is the user's choice, and may fail; no rendezvous does for that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from torch.distributed.elastic.metrics import put_metric

from ._log import log

__all__ = ["METRIC_GROUP", "Metrics"]

# torch keeps its own, `torchelastic`, for itself.
METRIC_GROUP: Final = "etcd_rendezvous"


class Metrics:
    """
    Put torch's metrics of each joining.

    Args:
        counters: What only ever grows, by the name of its metric; of each is put by how
            much it has grown since the last time.
    """

    def __init__(self, **counters: Callable[[], int]) -> None:
        self._counters = counters
        self._before = dict.fromkeys(counters, 0)

    @contextmanager
    def of_joining(self) -> Iterator[None]:
        """
        Measure a joining: how long it takes, and whether it succeeds.
        """
        started = time.monotonic()
        outcome = "failure"
        try:
            yield
            outcome = "success"
        finally:
            took = int((time.monotonic() - started) * 1000)
            _put(f"next_rendezvous.{outcome}", 1)
            _put("next_rendezvous.duration.ms", took)
            for name, counter in self._counters.items():
                before, self._before[name] = self._before[name], counter()
                _put(name, self._before[name] - before)

    def put_nodes(self, nodes: int) -> None:
        """
        Tell of how many nodes a round is.
        """
        _put("round.nodes", nodes)


def _put(name: str, value: int) -> None:
    try:
        put_metric(name, value, METRIC_GROUP)
    except Exception as error:  # noqa: BLE001 - of the user's handler anything may come
        log.debug("A metric was not put: %r", error)
