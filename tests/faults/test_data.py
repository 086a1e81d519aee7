# SPDX-License-Identifier: BSD-3-Clause
"""
etcd's data: history that is gone, no space for more, and all of it lost.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from etcd_rendezvous import (
    EtcdClient,
    EtcdRendezvousBackend,
    EtcdReplyError,
    EtcdStore,
)
from etcd_rendezvous._v3 import wire
from support.security import post
from support.torchrun import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

PREFIX = "/torch/elastic/rendezvous"


def compact(client):
    """
    Drop all history.
    """
    _, revision = client.range("any")
    post(
        str(client.last_endpoint).partition("://")[2],
        "kv/compaction",
        {"revision": str(revision), "physical": True},
    )


def fill(client, key):
    """
    Write until there is no space left.
    """
    for _ in range(100):
        client.put(key, b"x" * 2**17)


def test_history_is_compacted_in_mid_watch(cluster, links, run_id):
    """
    Who waits for a key is not troubled by a compaction: a watch that has missed what
    was compacted away is opened anew, and the key is found.
    """
    waiting = EtcdClient(links.endpoints)
    store = EtcdStore(waiting, f"{PREFIX}/{run_id}/store", timedelta(seconds=20))
    writer = EtcdClient(cluster.endpoints)
    found = []
    thread = threading.Thread(target=lambda: found.append(store.get("key")))
    thread.start()
    wait_until("a watch", lambda: links.links[links.busiest].connections > 1)
    # It hears nothing of this.
    for number in range(3):
        links.cut(number, "silent")
    for number in range(20):
        writer.put(f"{PREFIX}/{run_id}/other", str(number))
    compact(writer)
    EtcdStore(writer, f"{PREFIX}/{run_id}/store").set("key", "value")
    compact(writer)
    links.reset()
    links.heal()
    thread.join(20)

    assert found == [b"value"]
    waiting.close()
    writer.close()


def test_history_is_compacted_while_clients_work(cluster, links, at_work):
    """
    With all history gone again and again, and all connections reset, nobody is told an
    untruth. An outcome that only the history knew is unknown, and nothing else fails.
    """
    client = EtcdClient(cluster.endpoints)
    with at_work(links.endpoints, pause=0.005) as work:
        for _ in range(10):
            compact(client)
            links.reset()
            # So few of them are hit, however slow the machine makes them.
            work.wait_for_answers(2)
        work.wait_for_answers(3)
    client.close()
    failed = [one for one in work.operations() if one.raised]

    assert all("EtcdOutcomeUnknownError" in one.error for one in failed)
    assert len(failed) < len(work.operations()) / 10


def test_there_is_no_space_left(make_cluster, run_id):
    """
    Once the quota is used up writes are refused at once and etcd's words say why; reads
    go on. After compaction, defragmentation and the end of the alarm all is well.
    """
    with make_cluster(extra_args=[f"--quota-backend-bytes={2**20}"]) as cluster:
        client = EtcdClient(cluster.endpoints, read_timeout=10)
        backend = EtcdRendezvousBackend(client, run_id, PREFIX)
        state, token, _ = backend.set_state(b"before")
        with pytest.raises(EtcdReplyError, match="database space exceeded"):
            fill(client, f"{PREFIX}/{run_id}/fat")
        started = time.monotonic()
        with pytest.raises(RendezvousConnectionError) as caught:
            backend.set_state(b"refused", token)
        took = time.monotonic() - started
        while_full = backend.get_state()

        client.delete(f"{PREFIX}/{run_id}/fat")
        compact(client)
        for endpoint in cluster.endpoints:
            post(endpoint, "maintenance/defragment", {})
        alarms = post(cluster.endpoints[0], "maintenance/alarm", {"action": "GET"})
        for one in alarms["alarms"]:
            post(
                cluster.endpoints[0],
                "maintenance/alarm",
                {"action": "DEACTIVATE", **one},
            )
        after = backend.set_state(b"after", token)
        client.close()

    assert "database space exceeded" in str(caught.value.__cause__)
    assert isinstance(caught.value.__cause__, EtcdReplyError)
    assert took < 5  # the client would try for ten
    assert while_full == (state, token)
    assert after[::2] == (b"after", True)


def test_a_server_is_wiped_and_started_again(make_server, run_id, caplog):
    """
    A state that is gone is not there, although its server has the same address; old
    tokens win nothing, and a warning is given.
    """
    server = make_server()
    client = EtcdClient(server.get_endpoint())
    backend = EtcdRendezvousBackend(client, run_id, PREFIX)
    _, token, _ = backend.set_state(b"one")
    _, token, _ = backend.set_state(b"two", token)
    port = server.get_port()
    server.stop()
    make_server(port=port)

    assert backend.set_state(b"three", token) is None
    assert backend.get_state() is None
    state, newer, won = backend.set_state(b"four")
    assert (state, won) == (b"four", True)
    assert backend.set_state(b"five", token) == (b"four", newer, False)
    assert backend.set_state(b"six", newer)[::2] == (b"six", True)
    assert "etcd has lost its data" in caplog.text
    client.close()


def test_a_watch_from_history_that_is_gone_says_so(cluster, run_id):
    """
    A watch that starts before what was compacted ends with an error, not in silence.
    """
    client = EtcdClient(cluster.endpoints)
    key = f"{PREFIX}/{run_id}"
    first = client.put(key, b"1")
    client.put(key, b"2")
    compact(client)
    create = wire.watch_create(key.encode(), watch_id=1, start_revision=first)

    with pytest.raises(EtcdReplyError, match="compacted"):
        with client.watch([create], what="look back", timeout=5) as watch:
            list(watch.events(5))
    client.close()
