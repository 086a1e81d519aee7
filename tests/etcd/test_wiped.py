# SPDX-License-Identifier: BSD-3-Clause
"""
An etcd that lost its data: wiped, and started again on the same port.
"""

from __future__ import annotations

import logging
import shutil

import pytest

from etcd_rendezvous import EtcdServer

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def v3_server_here(newest_etcd_binary):
    """
    A server of this module's own.
    """
    with EtcdServer(binary=newest_etcd_binary) as server:
        yield server


@pytest.fixture(scope="module")
def v2_server_here(newest_v2_binary):
    """
    Another one, with the v2 API.
    """
    with EtcdServer(binary=newest_v2_binary) as server:
        yield server


@pytest.fixture
def own_v3(serve, v3_server_here):
    """
    The v3 API of a server that may be wiped.
    """
    if v3_server_here.pid is None:
        v3_server_here.restart()
    return serve("v3", v3_server_here)


@pytest.fixture(params=["v3", "v2"])
def own(request, serve, own_v3, v2_server_here):
    """
    Each API of a server that may be wiped.
    """
    if request.param == "v3":
        return own_v3
    if v2_server_here.pid is None:
        v2_server_here.restart()
    return serve("v2", v2_server_here)


@pytest.fixture
def losses(caplog):
    """
    A function that returns the warnings that etcd has lost its data.
    """
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda: [
        text for text in caplog.messages if "etcd has lost its data" in text
    ]


def wipe(server):
    server.kill()
    shutil.rmtree(server.data_dir / "member")
    server.restart()


def write_often(backend, times):
    found = backend.get_state()
    token = found[1] if found else None
    for number in range(times):
        _, token, won = backend.set_state(f"old {number}".encode(), token)
        assert won
    return token


def raise_revision_to(own, revision):
    """
    Write until the next write has this revision.
    """
    client = own.client()
    while True:
        if own.api == "v2":
            reached = client.write("/noise", 1).modifiedIndex
        else:
            reached = client.put("/noise", b"1")
        assert reached < revision
        if reached == revision - 1:
            return


def test_no_state_any_more(own, run_id, losses):
    """
    After the loss there is no state, and a token from before loses; it is warned of
    once, by the key's name.
    """
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    wipe(own.server)

    assert backend.get_state() is None
    assert backend.set_state(b"mine", old) is None
    assert backend.get_state() is None
    (told,) = losses()
    assert backend.key in told


def test_state_is_read_anew(own, run_id, losses):
    """
    What others have written after the loss is read, not what was known from before,
    and the new token counts.
    """
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    wipe(own.server)
    _, newer, _ = own.backend(run_id).set_state(b"new")

    state, token = backend.get_state()
    assert (b"new", newer) == (state, token)
    assert (b"new", newer, False) == backend.set_state(b"mine", old)
    assert (b"new", newer) == backend.get_state()
    state, newest, won = backend.set_state(b"newer", token)
    assert (state, won) == (b"newer", True)
    assert (b"newer", newest) == backend.get_state()
    assert len(losses()) == 1


def test_swap_notices_the_loss(own, run_id, losses):
    """
    The same where a swap is what comes first after the loss.
    """
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    wipe(own.server)
    _, newer, _ = own.backend(run_id).set_state(b"new")

    state, token, won = backend.set_state(b"mine", old)
    assert (b"new", newer, False) == (state, token, won)
    assert backend.set_state(b"newer", token)[2] is True
    assert len(losses()) == 1


def test_first_write_after_the_loss(own, run_id, losses):
    """
    The first to come after the loss begins anew.
    """
    backend = own.backend(run_id)
    write_often(backend, 10)
    wipe(own.server)
    state, token, won = backend.set_state(b"new")

    assert (state, won) == (b"new", True)
    assert (b"new", token) == backend.get_state()
    assert backend.set_state(b"newer", token)[2] is True
    assert len(losses()) == 1


def test_old_token_of_an_equal_number_loses(own, run_id, losses):
    """
    Once the loss was noticed, a token from before loses even if the new state has the
    very number that the token had.
    """
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    wipe(own.server)
    assert backend.get_state() is None
    raise_revision_to(own, int(old))
    _, newer, _ = own.backend(run_id).set_state(b"new")
    assert int(old) == int(newer)

    assert (b"new", newer, False) == backend.set_state(b"mine", old)
    _, mine, won = backend.set_state(b"mine", backend.get_state()[1])
    assert won
    assert (b"mine", mine) == own.backend(run_id).get_state()
    assert len(losses()) == 1


def test_old_token_of_an_equal_number_loses_unnoticed(own_v3, run_id):
    """
    The same on v3 where the new state had the number before the loss was noticed: a
    token stands for one write, and no other write may be replaced with it.
    """
    own = own_v3
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    wipe(own.server)
    raise_revision_to(own, int(old))
    _, newer, _ = own.backend(run_id).set_state(b"new")
    assert int(old) == int(newer)

    state, _, won = backend.set_state(b"mine", old)
    assert (state, won) == (b"new", False)
    assert own.backend(run_id).get_state()[0] == b"new"


def test_state_of_an_equal_number_is_read_unnoticed(own_v3, run_id):
    """
    And it is the new state that is read, not the one known from before.
    """
    own = own_v3
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    wipe(own.server)
    raise_revision_to(own, int(old))
    own.backend(run_id).set_state(b"new")

    assert backend.get_state()[0] == b"new"


def test_two_losses(own, run_id, losses):
    """
    The second loss is noticed like the first, and not warned of again.
    """
    backend = own.backend(run_id)
    old = write_often(backend, 10)
    for _ in range(2):
        wipe(own.server)
        assert backend.get_state() is None
        assert backend.set_state(b"mine", old) is None
        old = write_often(backend, 10)

    assert backend.get_state() == (b"old 9", old)
    assert len(losses()) == 1


def test_another_cluster_on_the_old_port(own, run_id, losses):
    """
    A new cluster, of another identity, where the old one was: the same.
    """
    backend = own.backend(run_id)
    if own.api == "v2":
        # A client that was used before remembers the identity.
        backend = _used_client_backend(own, run_id)
    old = write_often(backend, 10)
    server = own.server
    server.kill()
    binary = server._binary.path
    with EtcdServer(binary=binary, port=server.get_port()) as other:
        assert other.get_port() == server.get_port()

        assert backend.get_state() is None
        assert backend.set_state(b"mine", old) is None
        assert backend.set_state(b"new")[2] is True
        assert backend.get_state()[0] == b"new"
    assert len(losses()) == 1


def _used_client_backend(own, run_id):
    import etcd
    from etcd_rendezvous import EtcdRendezvousBackend

    host, port = own.endpoint.rsplit(":", 1)
    client = etcd.Client(host, int(port), read_timeout=10, allow_reconnect=True)
    client.write("/used", 1)
    assert client.expected_cluster_id
    return EtcdRendezvousBackend(client, run_id)


def test_store_after_the_loss(own, run_id):
    """
    A store works on after the loss, with nothing of before.
    """
    store = own.store(run_id)
    store.set("key", "old")
    assert store.add("number", 5) == 5
    wipe(own.server)

    assert store.check(["key"]) is False
    store.set("key", "new")
    assert store.get("key") == b"new"
    assert store.add("number", 1) == 1
