# SPDX-License-Identifier: BSD-3-Clause
"""
Torch's own names: pinned to the installed torch, and taken over.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousParameters,
    RendezvousStateError,
    etcd_rendezvous_backend,
    etcd_server,
    etcd_store,
)

import etcd
import etcd_rendezvous
from etcd_rendezvous import EtcdClient, _factory
from support.torchrun import python

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

INSTALLED = {"ETCD_RENDEZVOUS_INSTALL": "1"}

PREAMBLE = """
import json, sys
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous import (
    etcd_rendezvous_backend as b, etcd_server as e, etcd_store as s)
from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
NAMES = [(b, "EtcdRendezvousBackend"), (b, "create_backend"), (s, "EtcdStore"),
    (e, "EtcdServer"), (e, "find_free_port"), (e, "stop_etcd"),
    (b, "_create_etcd_client")]
before = [getattr(*name) for name in NAMES]
Backend, Store, Server = (before[i] for i in (0, 2, 3))
creator = registry._registry["etcd-v2"]
import etcd_rendezvous
"""


def told(code, *arguments, **environment):
    """
    Run code after the preamble; return the JSON that it prints.
    """
    out, _ = python(PREAMBLE + code, *arguments, **environment)
    return json.loads(out)


# -- names and signatures ----------------------------------------------------------

PAIRS = [
    (torchs, ours, name)
    for torchs, ours, names in (
        (
            etcd_rendezvous_backend.EtcdRendezvousBackend,
            etcd_rendezvous.EtcdRendezvousBackend,
            ["__init__", "get_state", "set_state", "_decode_state"],
        ),
        (
            etcd_store.EtcdStore,
            etcd_rendezvous.EtcdStore,
            ["__init__", "set", "get", "add", "wait", "check"],
        ),
        (
            etcd_server.EtcdServer,
            etcd_rendezvous.EtcdServer,
            [
                "__init__",
                "start",
                "stop",
                "get_host",
                "get_port",
                "get_endpoint",
                "get_client",
            ],
        ),
        (etcd_rendezvous_backend, _factory, ["create_backend", "_create_etcd_client"]),
        (etcd_server, etcd_rendezvous, ["find_free_port", "stop_etcd"]),
    )
    for name in names
]


@pytest.mark.parametrize(
    ("torchs", "ours", "name"), PAIRS, ids=[name for _, _, name in PAIRS]
)
def test_signature(torchs, ours, name):
    """
    What takes torch's arguments takes them under the same names, in the same places,
    with the same defaults; what is ours besides goes by name alone.
    """
    theirs = inspect.signature(getattr(torchs, name)).parameters
    found = inspect.signature(getattr(ours, name)).parameters
    positional = [
        (one.name, one.default)
        for one in found.values()
        if one.kind is not inspect.Parameter.KEYWORD_ONLY
    ]

    assert positional == [(one.name, one.default) for one in theirs.values()]


def test_attributes():
    """
    What users of torch's classes read of them is there.
    """
    client = EtcdClient("localhost:1")
    backend = etcd_rendezvous.EtcdRendezvousBackend(client, "run", "/prefix")
    store = etcd_rendezvous.EtcdStore(client, "prefix")

    assert (backend._client, backend._key, backend._ttl) == (
        client,
        "/prefix/run",
        7200,
    )
    assert (store.client, store.prefix) == (client, "prefix/")
    theirs = etcd_rendezvous_backend.EtcdRendezvousBackend
    assert backend._DEFAULT_TTL == theirs._DEFAULT_TTL


def test_decode_state():
    """
    What python-etcd has read is decoded, or corrupt.
    """
    backend = etcd_rendezvous.EtcdRendezvousBackend(EtcdClient("localhost:1"), "run")

    def read(value):
        return etcd.EtcdResult(node={"key": "/k", "value": value, "modifiedIndex": 7})

    assert backend._decode_state(read("eA==")) == (b"x", 7)
    with pytest.raises(RendezvousStateError, match="The state object is corrupt"):
        backend._decode_state(read("no base64"))


def test_create_etcd_client(server_without_v2, v2_server):
    """
    The client alone is python-etcd's where v2 is served, else ours.
    """
    for server, kind in ((server_without_v2, EtcdClient), (v2_server, etcd.Client)):
        params = RendezvousParameters("etcd-v2", server.get_endpoint(), "run", 1, 1)

        assert isinstance(_factory._create_etcd_client(params), kind)


def test_free_port_and_stop():
    """
    A free port is held until its socket is closed; a process is stopped, once.
    """
    with etcd_rendezvous.find_free_port() as first:
        with etcd_rendezvous.find_free_port() as second:
            assert first.getsockname()[1] != second.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with process:
        etcd_rendezvous.stop_etcd(process)
        assert process.returncode is not None
        etcd_rendezvous.stop_etcd(process)
    etcd_rendezvous.stop_etcd(None)


def test_stop_deletes_data(tmp_path):
    """
    The folder that is named is deleted.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    etcd_rendezvous.stop_etcd(None, str(folder))

    assert not folder.exists()


# -- taking over -------------------------------------------------------------------


def test_install_and_uninstall():
    """
    Torch's public names are ours while installed, and torch's own afterwards.
    """
    found = told(
        "def ours(): return [getattr(*name).__module__.startswith('etcd_rendezvous')"
        " for name in NAMES]\n"
        "steps = [ours()]\n"
        "for step in (etcd_rendezvous.install, etcd_rendezvous.install,"
        " etcd_rendezvous.uninstall, etcd_rendezvous.uninstall):\n"
        "    step()\n"
        "    steps.append(ours())\n"
        "steps.append([x is y for x, y in"
        " zip(before, [getattr(*name) for name in NAMES])])\n"
        "steps.append(registry._registry['etcd-v2'] is creator)\n"
        "print(json.dumps(steps))\n"
    )

    no, yes = [False] * 7, [True] * 7
    assert found == [no, yes, yes, no, no, yes, True]


@pytest.mark.parametrize("by", ["call", "variable"])
def test_instances_of_torchs_classes(own_server, run_id, by):
    """
    What is created while installed is ours, and an instance of torch's classes that
    were imported before; it works, also where v2 is gone.
    """
    found = told(
        f"if {by!r} == 'call': etcd_rendezvous.install()\n"
        "endpoint, run = sys.argv[1:]\n"
        "params = RendezvousParameters('etcd-v2', endpoint, run, 1, 1, 'localhost')\n"
        "backend, store = b.create_backend(params)\n"
        "store.set('key', 'value')\n"
        "value = store.get('key').decode()\n"
        "handler = get_rendezvous_handler(params)\n"
        "info = handler.next_rendezvous()\n"
        "handler.shutdown()\n"
        "print(json.dumps([\n"
        "    isinstance(backend, Backend), isinstance(store, Store),\n"
        "    isinstance(store.clone(), Store), isinstance(e.EtcdServer(), Server),\n"
        "    isinstance(backend, etcd_rendezvous.EtcdRendezvousBackend),\n"
        "    isinstance(store, etcd_rendezvous.EtcdStore),\n"
        "    isinstance(handler, etcd_rendezvous.EtcdRendezvousHandler),\n"
        "    type(backend).__name__, backend.name, handler.get_backend(),\n"
        "    value, info.world_size]))\n"
        if by == "call"
        else "endpoint, run = sys.argv[1:]\n"
        "params = RendezvousParameters('etcd-v2', endpoint, run, 1, 1, 'localhost')\n"
        "handler = get_rendezvous_handler(params)\n"
        "print(json.dumps([isinstance(handler, etcd_rendezvous.EtcdRendezvousHandler),"
        " handler.get_backend()]))\n",
        own_server.get_endpoint(),
        run_id,
        **(INSTALLED if by == "variable" else {}),
    )

    if by == "variable":
        assert found == [True, "etcd-v2"]
    else:
        assert found[:7] == [True] * 7
        assert found[7:] == ["EtcdRendezvousBackend", "etcd-v2", "etcd-v2", "value", 1]


@pytest.mark.parametrize(
    ("value", "ours"), [("0", False), ("", False), ("No ", False), ("true", True)]
)
def test_the_variable_switches(value, ours):
    """
    The variable installs unless it says no.
    """
    found = told(
        "print(json.dumps(b.create_backend.__module__.startswith('etcd_rendezvous')))",
        ETCD_RENDEZVOUS_INSTALL=value,
    )

    assert found is ours


def test_no_endpoint_is_torchs_default():
    """
    Under torch's name no endpoint means localhost:2379, and no etcd of the job's own.
    """
    params = RendezvousParameters("etcd-v2", "", "run", 1, 1)

    assert _factory._embedded(params) is None


def test_a_job_that_says_etcd_v2(make_job, server_without_v2):
    """
    A job that names torch's etcd-v2 runs unchanged on an etcd without v2: through ours.
    """
    job = make_job(server_without_v2, backend="etcd-v2")
    for name in "ab":
        job.start(name, environment=INSTALLED)
    world = job.wait_for_world({"a", "b"})
    job.finish()

    assert world.size == 2
    assert job.worlds() == [world]
    assert job.agents["a"].lines("does not serve etcd's v2 API")


def test_with_torchs_own_agent(make_job, v2_server):
    """
    Where v2 is served, an agent that is taken over and one that is not are one job.
    """
    job = make_job(v2_server, backend="etcd-v2")
    job.start("a", environment=INSTALLED)
    job.start("b")
    world = job.wait_for_world({"a", "b"})
    job.finish()

    assert world.size == 2


def test_what_torchs_modules_hold_can_be_pickled():
    """
    While installed, too, classes and `create_backend` go to spawned processes.
    """
    found = told(
        "import pickle\n"
        "etcd_rendezvous.install()\n"
        "held = [b.EtcdRendezvousBackend, b.create_backend, s.EtcdStore, e.EtcdServer]\n"
        "print(json.dumps([pickle.loads(pickle.dumps(one)) is one for one in held]))\n"
    )

    assert found == [True] * 4
