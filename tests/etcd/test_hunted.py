# SPDX-License-Identifier: BSD-3-Clause
"""
Faults that a hunt once found; none may come back.
"""

import os
import pickle
import threading
import time
from datetime import datetime, timedelta, timezone

import pytest

pytestmark = pytest.mark.torch

from torch.distributed import DistNetworkError  # noqa: E402
from torch.distributed.elastic.rendezvous import (  # noqa: E402
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (  # noqa: E402
    _NodeDesc,
    _RendezvousState,
)

from etcd_rendezvous import (  # noqa: E402
    EtcdClient,
    EtcdRendezvousBackend,
    EtcdServer,
    EtcdStore,
    create_backend,
    create_handler,
)


@pytest.mark.measures
def test_short_limit_reaches_the_second_member(newest_etcd_binary):
    """
    A limit of 2 s is enough to pass by a member that hangs.
    """
    with (
        EtcdServer(binary=newest_etcd_binary) as hangs,
        EtcdServer(binary=newest_etcd_binary) as well,
    ):
        endpoints = [hangs.get_endpoint(), well.get_endpoint()]
        client = EtcdClient(endpoints, read_timeout=2)
        client._transport.failover._current = 0
        hangs.pause()
        try:
            assert client.get("k") is None
        finally:
            hangs.resume()
        client.close()


def test_join_ends_at_its_time_out_while_etcd_hangs(own_server, run_id):
    """
    Joining an etcd that hangs ends at the join time-out, not at the read time-out.
    """
    params = RendezvousParameters(
        "etcd-v3", own_server.get_endpoint(), run_id, 2, 2, join_timeout=5
    )
    handler = create_handler(params)
    threading.Timer(1, own_server.pause).start()
    started = time.monotonic()
    try:
        with pytest.raises(RendezvousConnectionError):
            handler.next_rendezvous()

        assert time.monotonic() - started < 20
    finally:
        own_server.resume()


def test_newcomer_does_not_meet_the_dead(own_server, run_id):
    """
    A node that died while a round was forming is no peer for who comes later.
    """
    params = RendezvousParameters(
        "etcd-v3",
        own_server.get_endpoint(),
        run_id,
        2,
        2,
        "localhost",
        join_timeout=3,
        keep_alive_interval=1,
    )
    backend, _ = create_backend(params)
    state = _RendezvousState()
    dead = _NodeDesc("dead", 1, 0)
    state.participants[dead] = 0
    state.last_heartbeats[dead] = datetime.now(timezone.utc) - timedelta(seconds=60)
    backend.set_state(pickle.dumps(state))
    handler = create_handler(params)

    with pytest.raises(RendezvousTimeoutError):
        handler.next_rendezvous()

    assert dead not in handler._holder.state.participants


@pytest.mark.measures
def test_dead_ticket_costs_little_while_others_write(own_server, run_id):
    """
    A dead node in the queue costs the living a second at most, however many writes
    come by from those who do not queue.
    """
    endpoint = own_server.get_endpoint()
    dead, busy, loser = (
        EtcdRendezvousBackend(EtcdClient(endpoint), run_id, "/p") for _ in range(3)
    )
    _, old, _ = busy.set_state(b"0")
    _, token, _ = busy.set_state(b"1", old)
    assert dead.set_state(b"x", old)[2] is False
    stop = threading.Event()

    def write():
        nonlocal token
        while not stop.wait(0.05):
            token = busy.set_state(b"y", token)[1]

    thread = threading.Thread(target=write)
    thread.start()
    started = time.monotonic()
    try:
        assert loser.set_state(b"z", old)[2] is False
    finally:
        took = time.monotonic() - started
        stop.set()
        thread.join()

    assert took < 1.5


@pytest.mark.measures
def test_threads_of_a_store_share_one_time_limit(own_server):
    """
    Five threads that write to an etcd that hangs all give up at their own limit.
    """
    store = EtcdStore(EtcdClient(own_server.get_endpoint()), "/s", timedelta(seconds=2))
    own_server.pause()
    took = []

    def write():
        started = time.monotonic()
        with pytest.raises(DistNetworkError):
            store.set("k", "v")
        took.append(time.monotonic() - started)

    threads = [threading.Thread(target=write) for _ in range(5)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        own_server.resume()

    assert len(took) == 5
    assert max(took) < 3


def test_wait_does_not_spin_where_watches_break(proxy, etcd_server):
    """
    Waiting behind a proxy that cuts every watch asks now and then, not all the time.
    """
    store = EtcdStore(EtcdClient(proxy.endpoint), "/hunted", timedelta(seconds=2))
    proxy.swallow(None, "/v3/watch")

    with pytest.raises(LookupError):
        store.get("never")

    assert proxy.total_requests < 100


def test_inner_time_limit_does_not_extend_the_outer(etcd_server, run_id):
    """
    Time limits nest: the tighter one holds, and the outer one is back afterwards.
    """
    backend = EtcdRendezvousBackend(EtcdClient(etcd_server.get_endpoint()), run_id)
    with backend.time_limit(5):
        with backend.time_limit(50):
            assert backend._time_left() <= 5
        with backend.time_limit(1):
            assert backend._time_left() <= 1
        assert 1 < backend._time_left() <= 5
    assert backend._time_left() == 60


def test_v2_after_fork(v2_server, run_id):
    """
    Parent and child swap on v2 at once, and each is told what etcd holds.
    """
    backend = EtcdRendezvousBackend(v2_server.get_client(), run_id, "/forked")
    _, token, _ = backend.set_state(b"0")
    for _ in range(10):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                found = backend.set_state(b"child", token)
                os.write(write, pickle.dumps((found[0], int(found[1]), found[2])))
            finally:
                os._exit(0)
        mine = backend.set_state(b"parent", token)
        os.waitpid(child, 0)
        theirs = pickle.loads(os.read(read, 1000))
        os.close(read)
        os.close(write)
        state, token = backend.get_state()

        assert sorted([mine[2], theirs[2]], reverse=True) == [True, False]
        assert state == (b"parent" if mine[2] else b"child")
        assert {mine[0], theirs[0]} == {state}
