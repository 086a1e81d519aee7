# SPDX-License-Identifier: BSD-3-Clause
"""
Agents that a signal ends: they close nothing, so that the others go on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException

__all__ = ["heeding_sigterm", "signalled"]


def signalled(error: BaseException | None) -> bool:
    """
    Say whether an exception, or one that it followed, came of a signal.
    """
    while error is not None:
        if isinstance(error, SignalException | KeyboardInterrupt):
            return True
        error = error.__context__
    return False


@contextmanager
def heeding_sigterm() -> Iterator[None]:
    """
    Let SIGTERM raise what torch's own handler does, where nobody handles it yet.

    torch handles it from the start of the first workers on. Before that it would end
    the process without a chance to say so to the others.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise SignalException(
        f"Process received {signal.Signals(number).name}", signal.Signals(number)
    )
