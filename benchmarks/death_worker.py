# SPDX-License-Identifier: BSD-3-Clause
"""
What nodes train in ``benchmarks.node_death``: an endless sum of ones over gloo.

Each worker notes down when it has begun, and when it has made its first steps.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

PAUSE = 0.1
NOTED = 5
# No time-out of a collective is to end a wait: only a peer that is seen to be gone.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def main() -> None:
    folder, node = Path(sys.argv[1]), os.environ["BENCHMARK_NODE"]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with (folder / f"{node}-{os.getpid()}.jsonl").open("a", buffering=1) as notes:

        def note(step: int) -> None:
            told = {"node": node, "pid": os.getpid(), "rank": rank, "size": size}
            notes.write(json.dumps({**told, "step": step, "time": time.time()}) + "\n")

        note(0)
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT)
        step = 0
        while True:
            total = torch.ones(1)
            dist.all_reduce(total)
            assert int(total) == size
            step += 1
            if step <= NOTED:
                note(step)
            time.sleep(PAUSE)


if __name__ == "__main__":
    main()
