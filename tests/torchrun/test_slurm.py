# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The scripts of `examples/slurm`, run without Slurm.

There is no Slurm here: `srun` and `scontrol` are small scripts that start a command once
for each "node", an address of loopback, with the variables that Slurm would set. What
they start is real: etcd, agents, workers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from support.launched import ONCE, SCRIPTS, one_world, told
from support.torchrun import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "slurm"
PAGE = ROOT / "docs" / "slurm.md"
NAMES = ("job.sbatch", "job-with-etcd.sbatch")
# The ports follow from it, and another run of these tests may be going on.
JOB_ID = str(os.getpid())
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
# What srun takes, of which nothing can be checked here but that it is spelt so.
OPTIONS = {
    "--gpus-per-node=0",
    "--kill-on-bad-exit=0",
    "--no-kill",
    "--nodes=1",
    "--ntasks=1",
    "--overlap",
    "--wait=0",
}

SRUN = """#!/bin/bash
# Slurm's srun, as far as the examples need it.
nodes=($FAKE_NODES)
while [[ $1 == -* ]]; do
    case $1 in
        --nodelist=*) nodes=("${1#*=}") ;;
        *) echo "$1" >>"$FAKE_FOLDER/options" ;;
    esac
    shift
done
echo $$ >>"$FAKE_FOLDER/steps"
pids=()
trap 'kill "${pids[@]}"' TERM
for number in "${!nodes[@]}"; do
    SLURM_NODEID=$number SLURM_TOPOLOGY_ADDR="top.leaf$((10 - number)).node$number" \\
        PET_LOCAL_ADDR="${nodes[number]}" "$@" &
    pids+=($!)
done
status=0
for pid in "${pids[@]}"; do
    wait "$pid" || status=$?
    while kill -0 "$pid" 2>/dev/null; do wait "$pid" || status=$?; done
done
exit $status
"""
SCONTROL = """#!/bin/bash
# Slurm's scontrol: the names of the nodes, and a requeue, which ends the step.
case $1 in
    show) printf '%s\\n' $FAKE_NODES ;;
    requeue)
        echo "$2" >>"$FAKE_FOLDER/requeued"
        kill "$(tail -n 1 "$FAKE_FOLDER/steps")"
        ;;
esac
"""
# The "nodes" are one machine, so each member listens on its own address alone.
ETCD = """#!/bin/bash
exec "$REAL_ETCD" "${@/0.0.0.0/$PET_LOCAL_ADDR}"
"""


@pytest.fixture
def slurm(nodes):
    """
    A function that starts a script as Slurm's first node would.
    """
    programs = nodes.folder / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("etcd", ETCD)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def start(script, addresses, **environment):
        nodes.start(
            ["bash", str(FOLDER / script), str(nodes.folder)],
            **{
                "PATH": os.pathsep.join(
                    [str(programs), str(SCRIPTS), os.environ["PATH"]]
                ),
                "FAKE_NODES": " ".join(addresses),
                "FAKE_FOLDER": str(nodes.folder),
                "SLURM_JOB_ID": JOB_ID,
                "SLURM_JOB_NUM_NODES": str(len(addresses)),
                "SLURM_JOB_NODELIST": "node[1-3]",
                "TRAIN": str(ONCE),
                "WORKERS": "1",
                **environment,
            },
        )

    return start


@pytest.mark.parametrize("name", NAMES)
def test_a_script_is_bash(name):
    """
    Bash reads the script, and sbatch its options, which stand before any command.
    """
    text = (FOLDER / name).read_text("utf-8")
    first = next(
        line for line in text.splitlines() if line and not line.startswith("#")
    )

    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
    assert set(NAMES) == {path.name for path in FOLDER.iterdir()}
    assert text.rindex("#SBATCH") < text.index(first)
    assert "#SBATCH --no-kill" in text
    assert "#SBATCH --requeue" in text


def test_nodes_meet_at_an_etcd_outside(nodes, slurm):
    """
    The nodes of a job are one run, of this attempt of the job; their ranks follow the
    switches that Slurm names.
    """
    slurm("job.sbatch", ADDRESSES[:2], ETCD=nodes.endpoint, SLURM_RESTART_COUNT="1")
    records = nodes.finish()
    options = (nodes.folder / "options").read_text().split()

    one_world(records, 2, f"{JOB_ID}-1")
    assert ["top.leaf9.node1", "top.leaf10.node0"] == [
        one["environment"]["ETCD_RENDEZVOUS_RANK_ORDER"] for one in records
    ]
    assert {("127.0.0.3",)} == told(records, "MASTER_ADDR")
    assert {*options} <= OPTIONS


def test_an_etcd_must_be_named(nodes, slurm):
    """
    Without endpoints the script says what is missing, and starts nothing.
    """
    slurm("job.sbatch", ADDRESSES[:2])

    assert 1 == nodes.processes[0].wait(20)
    assert "ETCD: names the endpoints of etcd" in nodes.said()
    assert not (nodes.folder / "steps").exists()


def test_a_job_whose_time_is_up_is_requeued(nodes, slurm):
    """
    At the signal before its end the script has the job requeued, waits until Slurm has
    ended the step, and ends as it did.
    """
    programs = nodes.folder / "programs"
    (programs / "torchrun").write_text(
        '#!/bin/bash\necho "$@" >>"$FAKE_FOLDER/agents"\nexec sleep 60\n'
    )
    (programs / "torchrun").chmod(0o755)
    slurm("job.sbatch", ADDRESSES[:2], ETCD="HOST:2379")
    agents = nodes.folder / "agents"
    wait_until(
        "both agents",
        lambda: agents.exists() and 2 == len(agents.read_text().splitlines()),
    )
    nodes.processes[0].send_signal(signal.SIGUSR1)

    assert 128 + signal.SIGTERM == nodes.processes[0].wait(20)
    assert f"{JOB_ID}\n" == (nodes.folder / "requeued").read_text()
    for line in agents.read_text().splitlines():
        parsed = get_args_parser().parse_args(line.split())
        assert ("2:2", f"{JOB_ID}-0") == (parsed.nnodes, parsed.rdzv_id)


def test_a_job_that_brings_its_own_etcd(nodes, slurm, newest_etcd_binary):
    """
    Three members on the job's first nodes serve its agents, and end with it; nothing of
    them stays.
    """
    temporary = nodes.folder / "tmp"
    temporary.mkdir()
    slurm(
        "job-with-etcd.sbatch",
        ADDRESSES,
        TMPDIR=str(temporary),
        REAL_ETCD=newest_etcd_binary,
    )
    records = nodes.finish()

    one_world(records, 3, f"{JOB_ID}-0")
    # Three members, the agents, and three who tidy up.
    assert 7 == len((nodes.folder / "steps").read_text().split())
    assert {*(nodes.folder / "options").read_text().split()} <= OPTIONS
    assert [] == list(temporary.glob("etcd-*"))


def test_the_page_names_what_there_is():
    """
    The page names both scripts, and no option that they do not use.
    """
    text = PAGE.read_text("utf-8")
    scripts = "\n".join((FOLDER / name).read_text("utf-8") for name in NAMES)
    options = set(re.findall(r"`(--[a-z-]+)", text))

    assert set(NAMES) <= set(re.findall(r"examples/slurm/([\w.-]+)", text))
    assert [] == [option for option in options if option not in scripts]
