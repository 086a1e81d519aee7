# SPDX-License-Identifier: BSD-3-Clause
"""
What `torchrun` runs where nobody but the agents shall notice anything.

    torchrun … idle.py FOLDER [SECONDS]

A worker like `worker.py`, and with the same records, that never speaks with the others:
neither does it fail when one of them is gone, nor does it load torch. Those who were
told the same master count as one world. It ends when FOLDER/stop or FOLDER/stop-NODE is
there, fails once for FOLDER/fail-NODE, and takes SECONDS to end when it is told to by
SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from worker import PAUSE, Recorder


def main() -> None:
    folder = Path(sys.argv[1])
    linger = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0

    def end_slowly(number: int, frame: object) -> None:
        recorder.write("told")
        time.sleep(linger)
        recorder.write("ended")
        sys.exit(1)

    recorder = Recorder(folder / "records")
    recorder.write("begun")
    if linger:
        signal.signal(signal.SIGTERM, end_slowly)
    node = os.environ.get("TEST_TORCHRUN_NODE", "")
    world = "{MASTER_ADDR}:{MASTER_PORT}".format(**os.environ)
    recorder.write("joined", world=world)
    fail = folder / f"fail-{node}"
    step = 0
    while not ((folder / "stop").exists() or (folder / f"stop-{node}").exists()):
        if fail.exists():
            fail.unlink()
            recorder.write("failing", world=world)
            sys.exit(1)
        step += 1
        recorder.write("step", world=world, step=step)
        time.sleep(PAUSE)
    recorder.write("ended", world=world)


if __name__ == "__main__":
    main()
