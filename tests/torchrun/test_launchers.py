# SPDX-License-Identifier: BSD-3-Clause
"""
Every launcher, option and variable that people start elastic jobs with.

Two nodes meet on `etcd-v3`, or where it says so on `etcd-live`, sum, and end; what their workers were told is looked at.
The commands of `docs/launchers.md` are run as they stand there.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from torch.distributed.run import determine_local_world_size

from support.launched import SCRIPTS, Nodes, one_world, told
from support.pages import block

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "launchers.md"
LIVE = PAGE.with_name("live.md")
BLOCK = re.MULTILINE | re.DOTALL
ONCE = str(HERE / "once.py")
TORCHRUN = (str(SCRIPTS / "torchrun"),)
MODULE = (sys.executable, "-m", "torch.distributed.run")
# What `auto` means here; torch decides.
AUTO = determine_local_world_size("auto")


# -- torch's own launchers ---------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """
    A way to start a job.

    Attributes:
        program: What is started on each node.
        options: Options in place of the usual ones of the same name; None: left out.
        environment: More variables.
        nodes: The number of nodes.
        workers: The size of the world that comes of it.
        seen: What the workers must see in their environment.
        also: Looks at what else must have come of it.
    """

    program: Sequence[str] = TORCHRUN
    options: dict[str, str | None] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    nodes: int = 2
    workers: int = 2
    seen: dict[str, str] = field(default_factory=dict)
    also: Callable[[Nodes], None] | None = None


def has_logs(nodes: Nodes) -> None:
    """
    What the workers print is in files, and what is tee'd is on the console, too.
    """
    files = list((nodes.folder / "logs").glob(f"{nodes.run_id}_*/attempt_0/0/*"))
    assert {file.name for file in files} >= {"stdout.log", "stderr.log"}
    printed = {file.read_text() for file in files if file.name == "stdout.log"}
    assert printed == {"worker 0 was here\n", "worker 1 was here\n"}
    said = nodes.said().splitlines()
    assert {line for line in said if "was here" in line} == {
        "[default0]:worker 0 was here",
        "[default0]:worker 1 was here",
    }


EVERYTHING = dict.fromkeys(
    ("nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "rdzv-id"), None
)
WAYS = {
    "torchrun": Way(
        seen={
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "GROUP_WORLD_SIZE": "2",
        }
    ),
    "module": Way(MODULE),
    "underscores": Way(
        options={
            **dict.fromkeys(EVERYTHING, None),
            "nnodes": "2",
            "nproc_per_node": "1",
            "rdzv_backend": "etcd-v3",
            "rdzv_endpoint": "{endpoint}",
            "rdzv_id": "{run_id}",
            "rdzv_conf": "join_timeout=90",
        }
    ),
    "variables": Way(
        options=EVERYTHING,
        environment={
            "PET_NNODES": "1:2",
            "PET_NPROC_PER_NODE": "1",
            "PET_MAX_RESTARTS": "7",
            "PET_RDZV_BACKEND": "etcd-v3",
            "PET_RDZV_ENDPOINT": "{endpoint}",
            "PET_RDZV_ID": "{run_id}",
            "PET_RDZV_CONF": "join_timeout=90,last_call_timeout=20",
        },
        seen={"TORCHELASTIC_MAX_RESTARTS": "7"},
    ),
    "local-addr": Way(
        options={"local-addr": "127.0.0.7"}, seen={"MASTER_ADDR": "127.0.0.7"}
    ),
    "max-restarts": Way(
        options={"max-restarts": "0"}, seen={"TORCHELASTIC_MAX_RESTARTS": "0"}
    ),
    "logs": Way(
        options={"log-dir": "logs", "redirects": "2", "tee": "1"}, also=has_logs
    ),
    "own-store": Way(
        environment={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        seen={"TORCHELASTIC_USE_AGENT_STORE": "False"},
    ),
    "identical": Way(environment={"TORCH_ELASTIC_WORKER_IDENTICAL": "1"}),
    "elastic": Way(
        options={"nnodes": "1:4", "rdzv-conf": "last_call_timeout=10"},
        seen={"GROUP_WORLD_SIZE": "2"},
    ),
    "auto": Way(
        options={"nnodes": "1", "nproc-per-node": "auto"},
        nodes=1,
        workers=AUTO,
        seen={"LOCAL_WORLD_SIZE": str(AUTO)},
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_way_to_launch(nodes, way):
    """
    Nodes that are started so meet, and their workers see what torch promises them.
    """
    options = {
        "nnodes": "2",
        "nproc-per-node": "1",
        "rdzv-backend": "etcd-v3",
        "rdzv-endpoint": "{endpoint}",
        "rdzv-id": "{run_id}",
        **way.options,
    }
    facts = {"endpoint": nodes.endpoint, "run_id": nodes.run_id}
    for _ in range(way.nodes):
        nodes.start(
            [
                *way.program,
                *(
                    f"--{name}={value.format(**facts)}"
                    for name, value in options.items()
                    if value is not None
                ),
                ONCE,
                str(nodes.folder),
            ],
            **{name: text.format(**facts) for name, text in way.environment.items()},
        )
    records = nodes.finish()

    one_world(records, way.workers, nodes.run_id)
    assert told(records, *way.seen) == {tuple(way.seen.values())}
    if way.also is not None:
        way.also(nodes)


@pytest.mark.parametrize("backend", ["etcd-v3", "etcd-live"])
@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_a_function(nodes, start_method, backend):
    """
    A program that launches a function meets with its like on another node.
    """
    for _ in range(2):
        nodes.start(
            [
                sys.executable,
                str(HERE / "launch.py"),
                str(nodes.folder),
                nodes.run_id,
                backend,
                start_method,
                nodes.endpoint,
            ]
        )

    one_world(nodes.finish(), 2, nodes.run_id)


def test_a_function_on_one_node(nodes, newest_etcd_binary):
    """
    A program that launches a function needs no endpoint for one node.
    """
    nodes.start(
        [
            sys.executable,
            str(HERE / "launch.py"),
            str(nodes.folder),
            nodes.run_id,
            "etcd-v3",
            "spawn",
        ],
        TORCHELASTIC_ETCD_BINARY_PATH=newest_etcd_binary,
    )

    one_world(nodes.finish(), 2, nodes.run_id)


def test_standalone_is_torchs(nodes):
    """
    `--standalone` is c10d, whatever backend is named with it: etcd is not even asked.
    """
    nodes.start(
        [
            *TORCHRUN,
            "--standalone",
            "--rdzv-backend=etcd-v3",
            "--rdzv-endpoint=no-such-host.invalid",
            ONCE,
            str(nodes.folder),
        ]
    )
    (record,) = nodes.finish()

    assert record["sum"] == 1
    assert "etcd" not in nodes.said()


# -- the commands of the page ------------------------------------------------------


def commands(heading: str) -> list[list[str]]:
    """
    Return the words of each command in the first shell block below a heading.
    """
    section = PAGE.read_text("utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    block = re.search(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)[1]
    lines = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def torchx() -> str:
    """
    Find TorchX, which can't be installed beside us.
    """
    found = os.environ.get("ETCD_RENDEZVOUS_TEST_TORCHX") or shutil.which("torchx")
    assert found, (
        "There is no TorchX. It needs an environment of its own: tox -e tests makes "
        "one; or set ETCD_RENDEZVOUS_TEST_TORCHX to its command."
    )
    return found


def run_page(nodes: Nodes, heading: str, script: str, *, copies: int = 2) -> None:
    """
    Start the command below a heading, with this test's names for what it names so.
    """
    (words,) = commands(heading)
    host, _, port = nodes.endpoint.rpartition(":")
    for placeholder, text in (("HOST", host), ("2379", port), ("JOB", nodes.run_id)):
        pattern = re.compile(rf"\b{placeholder}\b")
        assert any(pattern.search(word) for word in words) or placeholder == "JOB"
        words = [pattern.sub(text, word) for word in words]
    assert words[-1] == "train.py"
    words[-1:] = [str(HERE / script), str(nodes.folder)]
    environment = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    if words[0] == "torchx":
        words[0] = torchx()
    for _ in range(copies):
        nodes.start(words, **environment)


@pytest.mark.parametrize(
    ("heading", "script"),
    [
        ("torchrun", "once.py"),
        ("Accelerate", "once_accelerate.py"),
        ("Lightning", "once_lightning.py"),
    ],
)
def test_command_of_the_page(nodes, heading, script):
    """
    The page's command, on two nodes, is a job of two.
    """
    run_page(nodes, heading, script)

    one_world(nodes.finish(), 2, nodes.run_id)


def test_variables_as_the_page_sets_them(nodes):
    """
    With nothing but the page's variables torchrun, on two nodes, is a job of two.
    """
    shown = block("launchers.md", "torchrun", 1).text
    for _ in range(2):
        nodes.start(["bash", "-euc", filled_in(shown, nodes)])

    one_world(nodes.finish(), 2, nodes.run_id)


def test_the_function_of_the_page(nodes):
    """
    The page's program, on two nodes, is a job of two, each of which gets the result of
    its own worker.
    """
    code = block("launchers.md", "A function").text
    for placeholder, text in (("HOST:2379", nodes.endpoint), ("JOB", nodes.run_id)):
        assert placeholder in code
        code = code.replace(placeholder, text)
    program = nodes.folder / "program.py"
    program.write_text(f"{code}    print(results)\n", "utf-8")
    for _ in range(2):
        nodes.start([sys.executable, str(program)])
    nodes.finish()

    assert {"{0: None}", "{1: None}"} <= set(nodes.said().splitlines())


def test_lightning_is_told_as_on_the_page():
    """
    The script that Lightning is tested with tells its Trainer what the page does.
    """

    def arguments(code):
        (call,) = [
            node
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Trainer")
        ]
        return {ast.unparse(keyword) for keyword in call.keywords}

    shown = arguments(block("launchers.md", "Lightning", 1).text)

    assert shown
    assert shown <= arguments((HERE / "once_lightning.py").read_text("utf-8"))


def test_command_for_torchx(nodes):
    """
    TorchX starts the nodes itself, and names the run.
    """
    run_page(nodes, "TorchX", "once.py", copies=1)
    records = nodes.finish()

    ((run_id,),) = told(records, "TORCHELASTIC_RUN_ID")
    assert run_id.startswith("sh-")
    one_world(records, 2, run_id)


def test_command_of_the_page_of_live(nodes):
    """
    The command that the page of `etcd-live` begins with, on two nodes, is a job of two.
    """
    block = re.search(r"^```sh\n(torchrun .*?)^```$", LIVE.read_text("utf-8"), BLOCK)[1]
    for _ in range(2):
        nodes.start(
            ["bash", "-c", filled_in(block, nodes)], PET_RDZV_CONF="last_call_timeout=2"
        )

    one_world(nodes.finish(), 2, nodes.run_id)


def test_command_for_an_order_of_ones_own(nodes):
    """
    The command for Slurm gives its nodes ranks in Slurm's own order.
    """
    block = re.search(r"^```sh\nsrun (.*?)^```$", LIVE.read_text("utf-8"), BLOCK)[1]
    for number in ("1", "0"):
        nodes.start(
            # Slurm would start it on each node.
            ["bash", "-c", filled_in(block, nodes)],
            SLURM_NODEID=number,
            # Of two addresses this one comes last.
            PET_LOCAL_ADDR=f"127.0.0.{2 - int(number)}",
        )
    records = nodes.finish()

    one_world(records, 2, nodes.run_id)
    seen = [one["environment"] for one in records]
    assert [one["SLURM_NODEID"] for one in seen] == ["0", "1"]


def filled_in(block: str, nodes: Nodes) -> str:
    """
    Put this test's names into a command of the page.
    """
    script = f"{ONCE} {nodes.folder}"
    for placeholder, text in (
        ("HOST:2379", nodes.endpoint),
        ("JOB", nodes.run_id),
        ("train.py", script),
    ):
        assert placeholder in block
        block = block.replace(placeholder, text)
    return block


def test_variables_of_the_page():
    """
    The page's variables are those that the installed torchrun reads.
    """
    from torch.distributed.run import get_args_parser

    text = PAGE.read_text("utf-8")
    known = {
        f"PET_{action.dest.upper()}"
        for action in get_args_parser()._actions
        if action.dest != "help"
    }

    assert set(re.findall(r"\bPET_[A-Z_]+\b", text)) <= known
