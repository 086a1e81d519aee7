# SPDX-License-Identifier: BSD-3-Clause
"""
A training script that meets once, sums once, writes down what it was told, and ends.

    torchrun … once.py FOLDER [SECONDS]

Of SECONDS it waits its own share before it ends: rank 0 none, the last one all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


def report(folder: Path, add_up: Callable[[int], int]) -> None:
    """
    Let the workers sum their ranks, and write a record of it.

    Args:
        folder: Where the record goes.
        add_up: Sums a number of each worker's.
    """
    environment = dict(os.environ)
    record = {"sum": add_up(int(environment["RANK"]) + 1), "environment": environment}
    unfinished = folder / f"{os.getpid()}.unfinished"
    unfinished.write_text(json.dumps(record), "utf-8")
    unfinished.rename(unfinished.with_suffix(".json"))
    print(f"worker {environment['RANK']} was here", flush=True)


def add_up(number: int) -> int:
    """
    Sum a number of each worker's, with torch alone.
    """
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([number])
    dist.all_reduce(total)
    dist.destroy_process_group()
    return int(total)


def main() -> None:
    report(Path(sys.argv[1]), add_up)
    if len(sys.argv) > 2:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        time.sleep(float(sys.argv[2]) * rank / (size - 1))


if __name__ == "__main__":
    main()
