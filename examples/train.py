# SPDX-License-Identifier: BSD-3-Clause
"""
An elastic training script: it may be stopped at any step, and goes on.

    torchrun --nnodes=1 --nproc-per-node=2 --rdzv-backend=etcd-live examples/train.py

Whenever a node dies or joins, torchrun starts this script anew on every node, with
other ranks and another world size. All it has to do is to save now and then, and to
begin with the newest checkpoint. On several machines the checkpoint must be in a
folder that all of them share.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

FEATURES = 16
BATCH = 64  # Of the whole world, whatever its size.


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small model on the CPU.")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoint.pt"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds a step")
    options = parser.parse_args()

    # torchrun has put ranks, world size and the master's address into the
    # environment, where this finds them.
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    torch.manual_seed(0)
    truth = torch.randn(FEATURES, 1)
    model = DistributedDataParallel(torch.nn.Linear(FEATURES, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    done = 0
    if options.checkpoint.exists():
        saved = torch.load(options.checkpoint, weights_only=True)
        model.module.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["step"]
    if rank == 0 and done >= options.steps:
        print(
            f"trained to step {done} before; delete {options.checkpoint} to start over"
        )
    elif rank == 0:
        print(f"world of {world}, from step {done + 1} to {options.steps}", flush=True)

    for step in range(done + 1, options.steps + 1):
        # Every worker makes the whole batch of a step, and takes its share.
        inputs = torch.randn(
            BATCH, FEATURES, generator=torch.Generator().manual_seed(step)
        )[rank::world]
        loss = functional.mse_loss(model(inputs), inputs @ truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        time.sleep(options.pause)

        if rank == 0 and (step % options.save_every == 0 or step == options.steps):
            save(options.checkpoint, step, model.module, optimizer)
            print(f"step {step}: loss {loss.item():.1e}, saved", flush=True)

    dist.barrier()
    dist.destroy_process_group()


def save(
    path: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    # Whoever is killed while it writes leaves the last checkpoint whole.
    unfinished = path.with_suffix(".unfinished")
    torch.save(
        {
            "step": step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
        },
        unfinished,
    )
    unfinished.replace(path)


if __name__ == "__main__":
    main()
