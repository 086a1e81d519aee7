# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Importing costs nothing, and works without what is not needed. Fresh processes.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

import etcd_rendezvous
from support.scripted import ScriptedServer, json_reply

NEEDS_TORCH = [
    "EtcdLiveRendezvousHandler",
    "EtcdRendezvousBackend",
    "EtcdRendezvousHandler",
    "EtcdStore",
    "EtcdStoreTimeoutError",
    "create_backend",
    "create_handler",
    "install",
    "uninstall",
]
NO_TORCH = sorted(set(etcd_rendezvous.__all__) - set(NEEDS_TORCH))

REPLY = json_reply(
    {
        "header": {"revision": "7"},
        "kvs": [{"key": "aw==", "value": "dg==", "mod_revision": "5"}],
        "count": "1",
    }
)


# Two ways to hide a package: as if not installed, and as tests like to do it.
PREAMBLE = """
import json, sys

class Absent:
    def __init__(self, hidden):
        self.hidden = hidden

    def find_spec(self, name, path=None, target=None):
        if name == self.hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def absent(name):
    sys.meta_path.insert(0, Absent(name))

def blocked(name):
    sys.modules[name] = None
"""
HIDINGS = ["absent", "blocked"]


def run(script, *arguments):
    """
    Run a script in a fresh process whose warnings are errors; return what it prints.
    """
    code = PREAMBLE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert 0 == done.returncode, done.stderr
    assert "" == done.stderr
    return json.loads(done.stdout)


def test_importing_us():
    """
    Importing the package imports nothing besides, and nor does listing its names.
    """
    found = run("""
        before = set(sys.modules)
        import etcd_rendezvous
        dir(etcd_rendezvous)
        print(json.dumps(sorted(set(sys.modules) - before)))
    """)

    assert ["etcd_rendezvous"] == found


def test_importing_the_plug_in():
    """
    Importing the entry points imports nothing at all, nor does calling one.
    """
    found = run("""
        import etcd_rendezvous
        before = set(sys.modules)
        from etcd_rendezvous import _plugin
        for name in "etcd_v3", "etcd_auto", "etcd_rendezvous_v3", "etcd_rendezvous_auto":
            assert callable(getattr(_plugin, name)())
        print(json.dumps(sorted(set(sys.modules) - before)))
    """)

    assert ["etcd_rendezvous._plugin"] == found


@pytest.mark.measures
def test_importing_the_plug_in_takes_no_time(tmp_path):
    """
    With bytecode, as after any installation, it takes less than a millisecond.
    """
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    took = []
    for _ in range(12):
        done = subprocess.run(
            [
                sys.executable,
                "-X",
                "importtime",
                "-c",
                "import etcd_rendezvous._plugin",
            ],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=True,
        )
        (line,) = [
            line for line in done.stderr.splitlines() if line.endswith("._plugin")
        ]
        # Of itself, and with what it imports, in microseconds.
        took.append(int(re.findall(r"\d+", line)[1]))

    # The least: a busy machine may make any of them slow, but none quick.
    assert min(took) < 1000, took


@pytest.mark.parametrize("name", NO_TORCH)
def test_what_a_name_imports(name):
    """
    What needs no torch imports neither it nor python-etcd.
    """
    found = run(
        """
        import etcd_rendezvous
        getattr(etcd_rendezvous, sys.argv[1])
        print(json.dumps(sorted({"torch", "etcd"} & set(sys.modules))))
        """,
        name,
    )

    assert [] == found


@pytest.mark.parametrize("hide", HIDINGS)
def test_names_without_torch(hide):
    """
    Without torch all names are there that need none, and the others say so.
    """
    names, errors = run(
        """
        globals()[sys.argv[1]]("torch")
        import etcd_rendezvous
        names, errors = [], {}
        for name in etcd_rendezvous.__all__:
            try:
                getattr(etcd_rendezvous, name)
            except ImportError as error:
                errors[name] = [type(error).__name__, error.name, str(error)]
            else:
                names.append(name)
        print(json.dumps([sorted(names), errors]))
        """,
        hide,
    )

    assert NO_TORCH == names
    assert {
        name: [
            "ModuleNotFoundError",
            "torch",
            (
                f"etcd_rendezvous.{name} needs PyTorch, which is not installed: pip "
                f"install torch."
            ),
        ]
        for name in NEEDS_TORCH
    } == errors


@pytest.mark.parametrize("hide", HIDINGS)
def test_from_import_without_torch(hide):
    """
    The same sentence comes of "from etcd_rendezvous import create_backend".
    """
    found = run(
        """
        globals()[sys.argv[1]]("torch")
        try:
            from etcd_rendezvous import create_backend
        except ModuleNotFoundError as error:
            print(json.dumps(str(error)))
        """,
        hide,
    )

    assert (
        "etcd_rendezvous.create_backend needs PyTorch, which is not installed: "
        "pip install torch."
    ) == found


@pytest.mark.parametrize("hide", HIDINGS)
def test_the_client_needs_neither_torch_nor_python_etcd(hide):
    """
    The v3 client works where torch and python-etcd are absent.
    """
    with ScriptedServer([REPLY]) as server:
        found = run(
            """
            hide = globals()[sys.argv[1]]
            hide("torch")
            hide("etcd")
            from etcd_rendezvous import EtcdClient
            with EtcdClient(sys.argv[2]) as client:
                print(json.dumps(client.get("k").decode()))
            """,
            hide,
            server.endpoint,
        )

        assert ["/v3/kv/range"] == server.paths
    assert "v" == found


@pytest.mark.parametrize("hide", HIDINGS)
def test_all_of_v3_needs_no_python_etcd(hide):
    """
    What backend and store do on v3 works where python-etcd is absent.
    """
    with ScriptedServer([REPLY]) as server:
        found = run(
            """
            hide = globals()[sys.argv[1]]
            hide("torch")
            hide("etcd")
            from etcd_rendezvous import EtcdClient
            from etcd_rendezvous._kv import state_key
            with EtcdClient(sys.argv[2]) as client:
                kv = state_key(client)
                stored = kv.read("k", 0, 10.0).stored
                print(json.dumps([kv.api, stored.value.decode(), stored.revision]))
            """,
            hide,
            server.endpoint,
        )

        assert ["/v3/kv/range"] == server.paths
    assert ["v3", "v", 5] == found


def test_the_command_with_an_old_urllib3(tmp_path):
    """
    The command says in one line that urllib3 is too old, and how to get another.
    """
    (tmp_path / "urllib3.py").write_text("__version__ = '1.26.20'\n")
    done = subprocess.run(
        [sys.executable, "-m", "etcd_rendezvous", "serve"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=60,
        check=False,
    )

    assert 1 == done.returncode
    assert (
        "Error: etcd-rendezvous needs urllib3 2.3 or later, but 1.26.20 is installed: "
        "pip install 'urllib3>=2.3.0,!=2.6.0,<3'.\n"
    ) == done.stderr


def test_dir():
    """
    All public names are listed before any is loaded, and are sorted.
    """
    assert sorted(etcd_rendezvous.__all__) == dir(etcd_rendezvous)
    assert sorted(etcd_rendezvous.__all__) == etcd_rendezvous.__all__


def test_no_such_name():
    """
    A name that there isn't is an AttributeError, and nothing is imported for it.
    """
    with pytest.raises(
        AttributeError, match=r"^module 'etcd_rendezvous' has no attribute 'nonsense'$"
    ):
        _ = etcd_rendezvous.nonsense
