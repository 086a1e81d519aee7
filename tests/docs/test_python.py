# SPDX-License-Identifier: BSD-3-Clause
"""
The Python of the pages does what it says: it is run, on a real etcd.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support import etcds
from support.account import PYTHON, taken_by
from support.pages import block

pytestmark = pytest.mark.torch


@pytest.fixture
def address(_shared_servers):
    """
    Host and port of the newest server that has both APIs.
    """
    server = _shared_servers(etcds.v2_binaries()[-1].path)
    return server.get_host(), server.get_port()


@pytest.mark.parametrize("shown", taken_by(PYTHON), ids=lambda shown: shown.id)
def test_python_of_the_pages(shown, address, newest_etcd_binary, run_id, monkeypatch):
    """
    It runs to its end; what it asserts is so.
    """
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", newest_etcd_binary)
    # A page sets it, too; so it is undone.
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    host, port = address
    code = shown.text.replace("my-job", run_id).replace("HOST:2379", f"{host}:{port}")
    code = code.replace('host="localhost", port=2379', f'host="{host}", port={port}')

    exec(compile(code, shown.page, "exec"), {"__name__": "__main__"})


def test_the_fixture_of_the_page(tmp_path, newest_etcd_binary):
    """
    The page's fixture gives a test of its reader's the endpoint of a server.
    """
    fixture = block("library.md", "Local etcd servers, for tests and experiments", 1)
    tested = tmp_path / "test_it.py"
    tested.write_text(
        fixture.text
        + """

def test_it(etcd):
    from etcd_rendezvous import EtcdClient

    with EtcdClient(etcd) as client:
        client.put("/greeting", "hello")
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tested],
        cwd=tmp_path,
        env={**os.environ, "TORCHELASTIC_ETCD_BINARY_PATH": newest_etcd_binary},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
