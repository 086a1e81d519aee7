# SPDX-License-Identifier: BSD-3-Clause
"""
As `once.py`, in a script that is written for Lightning, and trains.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import lightning
import torch
from once import report
from torch.utils.data import DataLoader, TensorDataset


class Model(lightning.LightningModule):
    """
    A line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main() -> None:
    # As many nodes, and workers a node, as this round of the job has.
    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(TensorDataset(torch.ones(16, 4)), batch_size=4)
    trainer.fit(Model(), data)
    report(
        Path(sys.argv[1]),
        lambda number: int(
            trainer.strategy.reduce(torch.tensor(float(number)), reduce_op="sum")
        ),
    )
    # Lightning leaves it to the end of the interpreter, which gloo does not always bear.
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
