# SPDX-License-Identifier: BSD-3-Clause
"""
What must be installed, in one sentence where it is missing or too old.

Only the first use of a name asks: importing this library imports nothing of these.
"""

from __future__ import annotations

import re
from importlib import import_module
from types import ModuleType
from typing import Final

__all__ = [
    "LEAST_TORCH",
    "LEAST_URLLIB3",
    "require_python_etcd",
    "require_torch",
    "require_urllib3",
]

LEAST_TORCH: Final = (2, 6)
LEAST_URLLIB3: Final = (2, 3)


def require_torch(what: str) -> None:
    """
    Make sure that there is a PyTorch that this library works with.

    Args:
        what: What needs it, as the beginning of a sentence.

    Raises:
        ModuleNotFoundError: It is not installed.
        ImportError: It is too old.
    """
    torch = _imported(
        "torch", f"{what} needs PyTorch, which is not installed: pip install torch."
    )
    _refuse_older(
        torch,
        LEAST_TORCH,
        f"{what} needs PyTorch {{least}} or later, but {{found}} is installed: "
        "pip install --upgrade torch.",
    )


def require_urllib3() -> None:
    """
    Make sure that there is a urllib3 that this library works with.

    Raises:
        ModuleNotFoundError: It is not installed.
        ImportError: It is too old.
    """
    remedy = "pip install 'urllib3>=2.3.0,!=2.6.0,<3'."
    urllib3 = _imported(
        "urllib3", f"etcd-rendezvous needs urllib3, which is not installed: {remedy}"
    )
    _refuse_older(
        urllib3,
        LEAST_URLLIB3,
        "etcd-rendezvous needs urllib3 {least} or later, but {found} is installed: "
        + remedy,
    )


def require_python_etcd() -> None:
    """
    Make sure that there is a python-etcd; only etcd's v2 API needs it.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    _imported(
        "etcd",
        "etcd's v2 API needs python-etcd, which is not installed: pip install "
        "python-etcd; or use the v3 API, with the backend etcd-v3.",
    )


def _imported(name: str, absent: str) -> ModuleType:
    """
    Import a module; where it is not installed, say that.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # It is there, and lacks something itself.
        raise ModuleNotFoundError(absent, name=name) from error


def _refuse_older(module: ModuleType, least: tuple[int, int], message: str) -> None:
    found = str(getattr(module, "__version__", ""))
    numbers = re.match(r"(\d+)\.(\d+)", found)
    # One that tells no version may be a build of somebody's own.
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < least:
        text = message.format(least=".".join(map(str, least)), found=found)
        raise ImportError(text, name=module.__name__)
