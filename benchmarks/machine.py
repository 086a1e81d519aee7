# SPDX-License-Identifier: BSD-3-Clause
"""
What a run ran on.
"""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

from etcd_rendezvous import EtcdServer


def about(binary: str | None) -> dict[str, str]:
    """
    Return the machine, its load by now, and the versions, in words.

    Args:
        binary: The etcd.
    """
    import torch

    return {
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{_memory() / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "load at the start": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "etcd": EtcdServer(binary=binary).version,
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
