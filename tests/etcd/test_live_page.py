# SPDX-License-Identifier: BSD-3-Clause
"""
What `docs/live.md` shows of etcd.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from etcd_rendezvous import EtcdClient
from support.live import Nodes
from support.torchrun import wait_until

pytestmark = pytest.mark.torch

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, heading, language):
    """
    Return the code blocks below a heading.
    """
    text = (DOCS / page).read_text("utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def without_chance(text, run_id):
    """
    Return keys and values, with ids, places, ports and processes told by address alone.
    """
    lines = text.replace(f"/{run_id}/", "/JOB/").splitlines()
    found = dict(zip(lines[::2], lines[1::2], strict=True))
    ids = {
        key.rpartition("/")[2]: json.loads(value)["address"]
        for key, value in found.items()
        if "/n/" in key
    }
    text = "\n".join(f"{key} = {value}" for key, value in found.items())
    for node, address in ids.items():
        text = text.replace(node, f"<{address}>")
    text = re.sub(r"/n/[0-9a-f]{8}/", "/n/<place>/", text)
    return sorted(re.sub(r'"(port|pid|slot)":\d+', r'"\1":<number>', text).splitlines())


def test_keys_as_etcdctl_shows_them(make_server, etcdctl, run_id):
    """
    The page's command shows what stands on the page.
    """
    (command,) = blocks("live.md", "What stands in etcd", "sh")
    (shown,) = blocks("live.md", "What stands in etcd", "text")
    endpoint = make_server().get_endpoint()
    with Nodes(endpoint, run_id) as nodes:
        one, two = (nodes.make(2, 2, name) for name in ("node7", "node66"))
        for handler in (one, two):
            # Nobody has these names.
            handler._create_tcp_store_server = lambda *_: None
        joining = nodes.joining(two)
        wait_until("the closer", lambda: two._node.view.closer)
        for future in [*joining, *nodes.joining(one)]:
            future.result(60)
        program, *words = shlex.split(command.replace("/JOB/", f"/{run_id}/"))
        done = subprocess.run(
            [etcdctl, f"--endpoints={endpoint}", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )

    assert program == "etcdctl"
    assert without_chance(done.stdout, run_id) == without_chance(shown, run_id)


def test_keys_that_come_and_go(make_server, run_id):
    """
    What a return and the end of a run leave is as the page's table says.
    """
    with (
        Nodes(make_server().get_endpoint(), run_id) as nodes,
        EtcdClient(nodes.endpoint) as client,
    ):
        handler = nodes.make(1, 1)
        keys = handler._node.keys
        nodes.meet(handler)
        assert client.get(keys.resumed) is None
        client.revoke(handler._node.node.lease)
        wait_until("its return", lambda: client.get(keys.resumed))
        assert handler.num_nodes_waiting() == 0
        handler.shutdown()

        assert client.get(keys.closed) is not None
        assert client.get(keys.closer) is None
