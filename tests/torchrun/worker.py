# SPDX-License-Identifier: BSD-3-Clause
"""
What `torchrun` runs in the tests: a worker that sums numbers with all others.

    torchrun … worker.py FOLDER

It writes what happens to it into FOLDER/records, one JSON line each, goes on until
FOLDER/stop exists, and fails once for each FOLDER/fail-NODE (see `support.torchrun`).
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

PAUSE = 0.1
# Seconds until a worker gives up on the others: longer than any test waits.
COLLECTIVE_TIMEOUT = 80


class Recorder:
    """
    Append lines that are whole, whenever the worker is killed.
    """

    def __init__(self, folder: Path) -> None:
        self._always = {
            "node": os.environ.get("TEST_TORCHRUN_NODE", ""),
            "pid": os.getpid(),
            "world_size": int(os.environ["WORLD_SIZE"]),
            "rank": int(os.environ["RANK"]),
            "restarts": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
            "master": [os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])],
        }
        name = f"{self._always['node']}-{os.getpid()}.jsonl"
        self._file = os.open(
            folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )

    def write(self, kind: str, **fields: object) -> None:
        record = {"kind": kind, "time": time.time(), **self._always, **fields}
        os.write(self._file, json.dumps(record).encode() + b"\n")


def main() -> None:
    folder = Path(sys.argv[1])
    recorder = Recorder(folder / "records")
    recorder.write("begun")

    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT))

    # Those who get the same number are one world, whatever they were told about it.
    number = torch.randint(2**62, (1,))
    dist.broadcast(number, src=0)
    world = f"{int(number):x}"
    recorder.write("joined", world=world)

    fail = folder / f"fail-{os.environ.get('TEST_TORCHRUN_NODE', '')}"
    stop = folder / "stop"
    step = 0
    while True:
        if fail.exists():
            fail.unlink()
            recorder.write("failing", world=world)
            sys.exit(1)
        sums = torch.tensor([1.0, float(stop.exists())])
        dist.all_reduce(sums)
        assert int(sums[0]) == dist.get_world_size()
        step += 1
        recorder.write("step", world=world, step=step)
        if sums[1]:
            break
        time.sleep(PAUSE)
    recorder.write("ended", world=world)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
