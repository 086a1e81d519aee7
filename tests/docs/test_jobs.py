# SPDX-License-Identifier: BSD-3-Clause
"""
The commands of the pages that start examples/train.py are jobs that train.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.account import JOB, taken_by
from support.pages import ROOT, block
from support.torchrun import clean_environment

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

SCRIPT = ROOT / "examples" / "train.py"
SECONDS = 200


@pytest.mark.parametrize("shown", taken_by(JOB), ids=lambda shown: shown.id)
def test_jobs_of_the_pages(shown, own_server, newest_etcd_binary, run_id, tmp_path):
    """
    Started on as many nodes as it needs, it trains to the end, in one world of two
    workers, and says what the quick start shows.
    """
    world, step = block("quickstart.md", "Start the job", 1).text.splitlines()
    train = shlex.join([str(SCRIPT), "--checkpoint", str(tmp_path / "checkpoint.pt")])
    command = (
        shown.text.replace("HOST:2379", own_server.get_endpoint())
        .replace("JOB", run_id)
        .replace("my-job", run_id)
        .replace("examples/train.py", f"{train} --steps=20 --pause=0")
    )
    nodes = 1 if "--nnodes=1 " in command else 2
    processes = [
        subprocess.Popen(
            ["bash", "-euc", command],
            cwd=tmp_path,
            env=clean_environment(
                PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                TORCHELASTIC_ETCD_BINARY_PATH=newest_etcd_binary,
                # Some take more nodes than there are.
                PET_RDZV_CONF="last_call_timeout=2",
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for _ in range(nodes)
    ]
    try:
        said = "".join(process.communicate(timeout=SECONDS)[0] for process in processes)
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    assert [0] * nodes == [process.returncode for process in processes], said
    assert [world.replace("400", "20"), step] == [
        line for line in said.splitlines() if line.startswith(("world", "step"))
    ]
