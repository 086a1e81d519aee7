# SPDX-License-Identifier: BSD-3-Clause
"""
Taking a lock within a time limit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ._errors import EtcdConnectionError

__all__ = ["held"]


@contextmanager
def held(lock: threading.Lock, timeout: float, what: str) -> Iterator[None]:
    """
    Hold a lock.

    Args:
        lock: The lock.
        timeout: The most seconds to wait for it.
        what: What it is wanted for, in words: "renew a lease".

    Raises:
        EtcdConnectionError: Another thread holds it all the time.
    """
    if not lock.acquire(timeout=max(timeout, 0.0)):
        raise EtcdConnectionError(
            f"Could not {what}: another thread's attempt has no answer yet "
            f"({timeout:.1f} s)."
        )
    try:
        yield
    finally:
        lock.release()
