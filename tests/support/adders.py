# SPDX-License-Identifier: BSD-3-Clause
"""
Processes that add to one key of a store at the same time.

    sums = add_at_once(endpoint, prefix, processes=16, adds=625)

Run as a script it forks those processes, which import torch once together, and prints
what each was told, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from datetime import timedelta


def add_at_once(
    endpoint: str, prefix: str, *, processes: int, adds: int, seconds: float = 100.0
) -> list[list[int]]:
    """
    Let each process add 1 so often; return what each was told.

    Raises:
        AssertionError: One has failed; says how.
    """
    done = subprocess.run(
        [sys.executable, __file__, endpoint, prefix, str(processes), str(adds)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: list[list[int]] = json.loads(done.stdout)
    return told


def main() -> int:
    endpoint, prefix = sys.argv[1:3]
    processes, adds = map(int, sys.argv[3:])

    from etcd_rendezvous import EtcdClient, EtcdStore

    store = EtcdStore(
        EtcdClient(endpoint, read_timeout=60), prefix, timedelta(seconds=60)
    )
    pipes = []
    for _ in range(processes):
        read, write = os.pipe()
        if not os.fork():
            status = 1
            try:
                sums = [store.add("counter", 1) for _ in range(adds)]
                with os.fdopen(write, "w") as pipe:
                    json.dump(sums, pipe)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(write)
        pipes.append(os.fdopen(read))
    told = [pipe.read() for pipe in pipes]
    failed = [os.waitstatus_to_exitcode(os.wait()[1]) for _ in pipes]
    print(f"[{', '.join(one or 'null' for one in told)}]")
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
