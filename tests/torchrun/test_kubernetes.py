# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The agents of `examples/kubernetes/job.yaml`, run without Kubernetes.

What Kubernetes would do is done here: variables are put into the command, and each pod
has an address of its own.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from support.launched import ONCE, one_world, told

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
JOB = ROOT / "examples" / "kubernetes" / "job.yaml"
# What the paths in the example's label names are for a pod.
LABELS = {
    "metadata.labels['batch.kubernetes.io/job-name']": "train",
    "metadata.labels['batch.kubernetes.io/controller-uid']": (
        "6f2a6c1e-5a3e-4b43-9d3e-0f6f0a5a7f11"
    ),
}
RUN_ID = "-".join(LABELS.values())


def container():
    *_, job = yaml.safe_load_all(JOB.read_text("utf-8"))
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return found


def in_pod(pod_ip):
    """
    Return command and environment as a pod with this address sees them.
    """
    fields = {"status.podIP": pod_ip, **LABELS}
    secrets = {"user": "trainer", "password": "CHANGE-ME"}
    environment = {}
    for one in container()["env"]:
        source = one.get("valueFrom", {})
        if "fieldRef" in source:
            environment[one["name"]] = fields[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            environment[one["name"]] = secrets[source["secretKeyRef"]["key"]]
        else:
            environment[one["name"]] = one["value"]
    command = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], word)
        for word in container()["command"]
    ]
    return command, environment


def test_torchrun_understands_the_command():
    """
    The command means what it should: a run of this Job's own, two to four nodes,
    and this pod's address; the script's own options are left to it.
    """
    (program, *words), _ = in_pod("10.1.2.3")
    parsed = get_args_parser().parse_args(words)

    assert "torchrun" == program
    assert ("etcd-live", RUN_ID) == (parsed.rdzv_backend, parsed.rdzv_id)
    assert ("2:4", "10.1.2.3") == (parsed.nnodes, parsed.local_addr)
    assert 3 == len(parsed.rdzv_endpoint.split(","))
    assert "/app/train.py" == parsed.training_script
    assert ["--checkpoint=/checkpoints/train.pt"] == parsed.training_script_args


def test_two_pods_meet(nodes):
    """
    Two agents with the example's command and environment are a job of two, whose master
    is one of the pods; that etcd has no users is warned of.
    """
    for pod_ip in ("127.0.0.2", "127.0.0.3"):
        command, environment = in_pod(pod_ip)
        script = command.index("/app/train.py")
        values = {"--rdzv-endpoint": nodes.endpoint}
        words = [
            f"{name}={values[name]}"
            if (name := word.partition("=")[0]) in values
            else word
            for word in command[:script]
        ]
        nodes.start(
            # The other two pods, whom the last call waits for, do not come.
            [*words, "--nnodes=2:2", str(ONCE), str(nodes.folder)],
            **environment,
        )
    records = nodes.finish()

    one_world(records, 2, RUN_ID)
    assert {("127.0.0.2",)} == told(records, "MASTER_ADDR")
    assert "The user 'trainer' is not used" in nodes.said()
    assert "CHANGE-ME" not in nodes.said()
