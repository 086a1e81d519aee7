# SPDX-License-Identifier: BSD-3-Clause
"""
Calls that may hang, in threads that nobody has to wait for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Later"]

_T = TypeVar("_T")


class Later(Generic[_T]):
    """
    A call that runs in a thread of its own, and ends with the process if need be.

    Args:
        call: What to call.
    """

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._value: _T | None = None
        self._error: BaseException | None = None
        self._done = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self._error = error
        finally:
            self._done.set()

    def result(self, seconds: float) -> _T:
        """
        Return what the call returned, or raise what it raised.

        Args:
            seconds: How long to wait for it at most.

        Raises:
            TimeoutError: It is still under way.
        """
        if not self._done.wait(max(seconds, 0.0)):
            raise TimeoutError("it is still under way")
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]
