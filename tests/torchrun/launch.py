# SPDX-License-Identifier: BSD-3-Clause
"""
Launch a function on `etcd-v3` without naming an endpoint, as a user's script does.

    python launch.py RUN_ID
"""

from __future__ import annotations

import json
import os
import sys


def work(number: int) -> list[int]:
    """
    Sum numbers with the other worker.
    """
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    total = torch.tensor([number + dist.get_rank()])
    dist.all_reduce(total)
    dist.destroy_process_group()
    return [int(total), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])]


def main() -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id=sys.argv[1],
        rdzv_backend="etcd-v3",
        monitor_interval=0.1,
        local_addr="127.0.0.1",
    )
    print(json.dumps(elastic_launch(config, work)(20)))


if __name__ == "__main__":
    main()
