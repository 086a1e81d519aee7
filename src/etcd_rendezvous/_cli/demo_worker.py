# SPDX-License-Identifier: BSD-3-Clause
"""
Train a small network on scikit-learn's digits, as a worker of `torchrun`.

Started by `etcd-rendezvous demo`. It is an ordinary elastic training script (form the
process group, load the newest checkpoint, train, save now and then) with two extras: it
writes down what happened to it, and it sleeps a little at each step, so that there is a
training to interrupt.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

BATCH = 96
LEARNING_RATE = 0.05
MOMENTUM = 0.9
# Seconds that one collective call may take before the worker gives up.
COLLECTIVE_TIMEOUT = 60


class Recorder:
    """
    Append one JSON line for each thing that happens to this worker.

    A line is one write, so a worker that is killed leaves whole lines behind.
    """

    def __init__(self, folder: Path) -> None:
        self._node = os.environ.get("ETCD_RENDEZVOUS_DEMO_NODE", "node")
        name = f"{self._node}-{os.getpid()}.jsonl"
        self._file = os.open(
            folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )

    def write(self, kind: str, **fields: Any) -> None:
        """
        Write down that `kind` happened now.
        """
        record = {
            "kind": kind,
            "time": time.time(),
            "node": self._node,
            "pid": os.getpid(),
            **fields,
        }
        os.write(self._file, json.dumps(record).encode() + b"\n")


def checkpoint_path(folder: Path, step: int) -> Path:
    """
    Name the file of the checkpoint that was made after `step`.
    """
    return folder / f"checkpoint-{step:06d}.pt"


def newest_checkpoint(folder: Path) -> int:
    """
    Return the step of the newest checkpoint on disk, 0 where there is none.
    """
    names = folder.glob("checkpoint-*.pt")
    return max((int(name.stem.rpartition("-")[2]) for name in names), default=0)


def read_pace(file: Path) -> float:
    """
    Return for how many seconds to sleep at each step.
    """
    try:
        return float(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0.0


def load_digits() -> tuple[Any, Any, Any, Any]:
    """
    Return the digits as training inputs and labels, test inputs and labels.

    A quarter is held out for the test. Every worker splits them in the same way.
    """
    import numpy as np
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)  # Pixels are 0 to 16.
    order = np.random.default_rng(0).permutation(len(images))
    train, test = np.split(order, [len(order) * 3 // 4])
    return images[train], labels[train], images[test], labels[test]


def train(work: Path, steps: int, checkpoint_every: int) -> None:
    """
    Train up to `steps`, from the newest checkpoint on.
    """
    recorder = Recorder(work / "records")
    environment = {
        "world_size": int(os.environ["WORLD_SIZE"]),
        "rank": int(os.environ["RANK"]),
        "group_rank": int(os.environ["GROUP_RANK"]),
        "restart": int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
        "master_addr": os.environ["MASTER_ADDR"],
        "master_port": int(os.environ["MASTER_PORT"]),
    }
    recorder.write("begun", **environment)

    import torch
    import torch.distributed as dist
    from torch.nn import functional

    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = [torch.from_numpy(array) for array in load_digits()]
    train_x, train_y, test_x, test_y = parts
    model = torch.nn.Sequential(
        torch.nn.Linear(train_x.shape[1], 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    dist.init_process_group("gloo", timeout=timedelta(seconds=COLLECTIVE_TIMEOUT))
    rank, size = dist.get_rank(), dist.get_world_size()

    # Those who get the same number are one world, whatever they were told about it.
    number = torch.randint(2**62, (1,), generator=_random_generator(torch))
    dist.broadcast(number, src=0)
    world = f"{int(number):016x}"

    checkpoints = work / "checkpoints"
    newest = newest_checkpoint(checkpoints)
    resumed_from = 0
    if newest:
        saved = torch.load(checkpoint_path(checkpoints, newest), weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        resumed_from = int(saved["step"])
    recorder.write(
        "joined", world=world, newest=newest, resumed_from=resumed_from, **environment
    )

    def accuracy() -> float:
        with torch.no_grad():
            right = model(test_x).argmax(dim=1) == test_y
        return float(right.float().mean())

    for step in range(resumed_from + 1, steps + 1):
        time.sleep(read_pace(work / "pace"))

        # The batch of a step is the same in a world of any size.
        shuffle = torch.Generator().manual_seed(step)
        batch = torch.randperm(len(train_x), generator=shuffle)[:BATCH]
        mine = batch[rank::size]
        optimizer.zero_grad()
        loss = functional.cross_entropy(
            model(train_x[mine]), train_y[mine], reduction="sum"
        )
        (loss / BATCH).backward()

        gradients = [parameter.grad for parameter in model.parameters()]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, piece in zip(gradients, flat.split(sizes), strict=True):
            gradient.copy_(piece.view_as(gradient))
        optimizer.step()
        recorder.write("step", world=world, rank=rank, step=step)

        if rank == 0 and (step % checkpoint_every == 0 or step == steps):
            path = checkpoint_path(checkpoints, step)
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
            recorder.write(
                "checkpoint", world=world, rank=rank, step=step, accuracy=accuracy()
            )

    recorder.write("ended", world=world, rank=rank, step=steps, accuracy=accuracy())
    dist.barrier()
    dist.destroy_process_group()


def _random_generator(torch: Any) -> Any:
    """
    Return a generator that, unlike the training's, differs from run to run.
    """
    generator = torch.Generator()
    generator.seed()
    return generator


def main() -> None:
    """
    Read the command line and train.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--checkpoint-every", type=int, required=True)
    options = parser.parse_args()
    train(options.work_dir, options.steps, options.checkpoint_every)


if __name__ == "__main__":
    main()
