# SPDX-License-Identifier: BSD-3-Clause
"""
Launch a function, as a user's program does.

    python launch.py FOLDER RUN_ID BACKEND START_METHOD [ENDPOINT]

With an endpoint it is one of two nodes with a worker each, else the only one, with two.
"""

from __future__ import annotations

import sys
from pathlib import Path

from once import add_up, report


def work(folder: str) -> str:
    """
    Sum numbers with the other worker.
    """
    report(Path(folder), add_up)
    return "worked"


def main() -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    folder, run_id, backend, start_method, *endpoint = sys.argv[1:]
    nodes = 2 if endpoint else 1
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=2 // nodes,
        run_id=run_id,
        rdzv_backend=backend,
        rdzv_endpoint=endpoint[0] if endpoint else "",
        start_method=start_method,
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    returned = elastic_launch(config, work)(folder)
    assert set(returned.values()) == {"worked"}, returned


if __name__ == "__main__":
    main()
