# SPDX-License-Identifier: BSD-3-Clause
"""
As `once.py`, in a script that is written for Hugging Face's Accelerate.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from once import report


def main() -> None:
    accelerator = Accelerator(cpu=True)
    report(
        Path(sys.argv[1]),
        lambda number: int(accelerator.reduce(torch.tensor([number]))),
    )
    accelerator.end_training()


if __name__ == "__main__":
    main()
