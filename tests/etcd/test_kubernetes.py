# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What `examples/kubernetes` says: by Kubernetes' own schemas, and to real etcd members.

There is no cluster here. Whether a cluster does with it what its page says, nobody has
tried.
"""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from etcd_rendezvous import EtcdClient
from support import etcds
from support.members import Members, replaced

pytestmark = pytest.mark.torch  # Where there is none, nor are there the schemas.

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "kubernetes"
PAGE = ROOT / "docs" / "kubernetes.md"
MEMBERS = ("etcd-0", "etcd-1", "etcd-2")


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text("utf-8")))


def one_of(name, kind):
    (found,) = [one for one in documents(name) if kind == one["kind"]]
    return found


def container(name, kind):
    (found,) = one_of(name, kind)["spec"]["template"]["spec"]["containers"]
    return found


def versions():
    """
    Return the versions of Kubernetes that the page names, from the oldest on.
    """
    oldest, newest = re.search(
        r"Kubernetes (1\.\d+) to (1\.\d+)", PAGE.read_text("utf-8")
    ).groups()
    numbers = range(int(oldest[2:]), int(newest[2:]) + 1)
    return [f"1.{number}" for number in numbers]


# -- the schemas -------------------------------------------------------------------


def test_documents_are_what_kubernetes_knows():
    """
    Each document is valid in every version that the page names, with no field that
    Kubernetes would not know; the newest is the newest whose schemas we have.
    """
    checked = [
        (name, version, kubernetes_validate.validate(one, version, strict=True))
        for name in ("etcd.yaml", "job.yaml")
        for one in documents(name)
        for version in versions()
    ]

    assert {path.name for path in FOLDER.iterdir()} == {name for name, _, _ in checked}
    assert all(version == by for _, version, by in checked)
    assert kubernetes_validate.latest_version().startswith(versions()[-1])


@pytest.mark.parametrize("field", ["tolerationSecond", "volumeMount", "fieldpath"])
def test_a_field_that_there_is_not_is_found(field):
    """
    The schemas reach to the bottom: a misspelt field is refused.
    """
    spoilt = copy.deepcopy(one_of("job.yaml", "Job"))
    pod = spoilt["spec"]["template"]["spec"]
    place = {
        "tolerationSecond": pod["tolerations"][0],
        "volumeMount": pod["containers"][0],
        "fieldpath": pod["containers"][0]["env"][2]["valueFrom"]["fieldRef"],
    }[field]
    place[field] = "x"

    with pytest.raises(kubernetes_validate.ValidationError, match=field):
        kubernetes_validate.validate(spoilt, versions()[-1], strict=True)


# -- what belongs together ---------------------------------------------------------


def test_names_of_etcd_are_the_same_everywhere():
    """
    Members, services, budget, policy and agents speak of the same pods and ports.
    """
    members = one_of("etcd.yaml", "StatefulSet")["spec"]
    labels = members["template"]["metadata"]["labels"]
    headless, client = [
        one for one in documents("etcd.yaml") if "Service" == one["kind"]
    ]
    command = container("etcd.yaml", "StatefulSet")["command"]
    cluster = dict(
        one.split("=", 1)
        for word in command
        if word.startswith("--initial-cluster=")
        for one in word.partition("=")[2].split(",")
    )
    names = MEMBERS
    ports = container("etcd.yaml", "StatefulSet")["ports"]
    job = container("job.yaml", "Job")["command"]
    (endpoint,) = [word for word in job if word.startswith("--rdzv-endpoint=")]
    policy = one_of("etcd.yaml", "NetworkPolicy")["spec"]
    pods = one_of("job.yaml", "Job")["spec"]["template"]["metadata"]["labels"]

    assert len(MEMBERS) == members["replicas"]
    assert headless["metadata"]["name"] == members["serviceName"]
    assert headless["spec"]["clusterIP"] == "None"
    assert [2379, 2380] == [one["port"] for one in headless["spec"]["ports"]]
    assert [2379] == [one["port"] for one in client["spec"]["ports"]]
    assert [2379, 2380, 2381] == [one["containerPort"] for one in ports]
    assert {name: f"http://{name}.etcd:2380" for name in names} == cluster
    assert ",".join(f"{name}.etcd:2379" for name in names) == endpoint.partition("=")[2]
    for selector in (
        headless["spec"]["selector"],
        client["spec"]["selector"],
        members["selector"]["matchLabels"],
        policy["podSelector"]["matchLabels"],
        one_of("etcd.yaml", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
    ):
        assert labels == selector
    allowed = policy["ingress"][1]["from"][0]["podSelector"]["matchLabels"]
    assert allowed.items() <= pods.items()


def test_a_pod_is_given_the_time_to_end():
    """
    A pod may take longer to end than torch gives workers to stop, and an agent to say
    that it leaves; the job has no more pods than a round takes.
    """
    job = one_of("job.yaml", "Job")["spec"]
    command = container("job.yaml", "Job")["command"]
    most = int(
        next(word for word in command if word.startswith("--nnodes=")).split(":")[1]
    )

    assert 30 + 10 < job["template"]["spec"]["terminationGracePeriodSeconds"]
    assert [most, most] == [job["completions"], job["parallelism"]]


# -- the members -------------------------------------------------------------------


def statefulset_command(name, data, ports):
    """
    Return the StatefulSet's command with this machine in the place of the cluster.
    """
    values = {
        "/var/lib/etcd/data": str(data),
        "http://0.0.0.0:2379": f"http://127.0.0.1:{ports['client', name]}",
        "http://$(POD_NAME).etcd:2379": f"http://127.0.0.1:{ports['client', name]}",
        "http://0.0.0.0:2380": f"http://127.0.0.1:{ports['peer', name]}",
        "http://$(POD_NAME).etcd:2380": f"http://127.0.0.1:{ports['peer', name]}",
        "http://0.0.0.0:2381": f"http://127.0.0.1:{ports['metrics', name]}",
        "$(POD_NAME)": name,
    }
    values |= {
        f"http://{one}.etcd:2380": f"http://127.0.0.1:{ports['peer', one]}"
        for one in MEMBERS
    }
    program, *words = container("etcd.yaml", "StatefulSet")["command"]
    assert "etcd" == program
    return replaced(words, values)


def test_the_members_of_the_statefulset(etcd_binary, tmp_path):
    """
    Three members with the command of the StatefulSet are a cluster, on every version:
    they serve the gateway, keep its quota, and answer its probes, also when one is gone.
    """
    ready, alive = probes(etcd_binary)

    with Members(etcd_binary, tmp_path, MEMBERS, statefulset_command) as members:
        members.wait_for(ready)
        members.wait_for(alive)
        with EtcdClient(members.endpoints) as client:
            client.put("/probe", "x")
            members.kill("etcd-2")
            assert b"x" == client.get("/probe")
        members.wait_for(ready, "etcd-0", "etcd-1")
        quota = re.search(
            r"^etcd_server_quota_backend_bytes (\S+)$",
            metrics(members, "etcd-0"),
            re.MULTILINE,
        )[1]

        assert 2**31 == float(quota)


def test_a_member_that_is_alone(newest_etcd_binary, tmp_path):
    """
    A member without the others is alive, so that it is left alone, but not ready.
    """
    ready, alive = probes(newest_etcd_binary)

    members = Members(newest_etcd_binary, tmp_path, MEMBERS, statefulset_command)
    with members.only("etcd-0"):
        members.wait_for(alive, "etcd-0")

        assert 200 != members.asks("etcd-0", ready)


def probes(binary):
    """
    Return the paths of readiness and liveness, or what an old version has instead.
    """
    if etcds.ask(binary).order < (3, 5, 11):
        return "/health", "/metrics"
    found = container("etcd.yaml", "StatefulSet")
    return tuple(
        found[probe]["httpGet"]["path"] for probe in ("readinessProbe", "livenessProbe")
    )


def metrics(members, name):
    import urllib3

    url = f"http://127.0.0.1:{members.ports['metrics', name]}/metrics"
    return urllib3.request("GET", url, timeout=8).data.decode()


# -- the page ----------------------------------------------------------------------


def test_the_page_names_what_there_is():
    """
    Files and names of the page are those of the examples, in its PyTorchJob, too.
    """
    text = PAGE.read_text("utf-8")
    host = re.search(r"rdzvHost: (\S+)", text)[1]
    services = {
        one["metadata"]["name"]
        for one in documents("etcd.yaml")
        if one["kind"] == "Service"
    }
    applied = re.findall(r"kubectl apply -f (\S+)", text)

    assert host in services
    assert applied
    assert all((ROOT / path).is_file() for path in applied)


def test_the_pages_commands_of_etcdctl():
    """
    What the page has etcdctl do in a member's pod is said in the page on security, too.
    """
    said = (ROOT / "docs" / "security.md").read_text("utf-8")
    lines = PAGE.read_text("utf-8").replace("\\\n", " ").splitlines()
    calls = [shlex.split(line) for line in lines if line.startswith("kubectl exec")]

    assert calls
    for call in calls:
        words = call[call.index("--") + 1 :]
        assert "etcdctl" == words[0]
        if words[1:2] in (["user"], ["role"], ["auth"]):
            assert " ".join(words) in said
