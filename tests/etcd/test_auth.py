# SPDX-License-Identifier: BSD-3-Clause
"""
Users, passwords and rights, on real servers: set up by the commands of
`docs/security.md`, as they stand there.
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
)

import etcd
from etcd_rendezvous import (
    EtcdClient,
    EtcdRendezvousBackend,
    EtcdServer,
    EtcdStore,
    create_backend,
    create_handler,
)
from etcd_rendezvous._cli.doctor_versions import judge_version
from etcd_rendezvous._credentials import (
    PASSWORD_FILE_VARIABLE,
    PASSWORD_VARIABLE,
    USER_VARIABLE,
)
from support import etcds
from support.security import Authority
from support.torchrun import wait_until
from support.users import (
    PASSWORD,
    USER,
    as_root,
    switch_authentication_on,
    switch_v2_authentication_on,
)

pytestmark = pytest.mark.torch

PREFIX = "/torch/elastic/rendezvous"


@pytest.fixture(scope="module")
def guarded(etcd_binary):
    """
    The endpoint of a server that authenticates: each version in turn.
    """
    with EtcdServer(binary=etcd_binary) as server:
        switch_authentication_on(server.get_endpoint())
        yield server.get_endpoint()


@pytest.fixture(scope="module")
def guarded_v2(v2_binary):
    """
    The endpoint of a server that authenticates on v2: each version that has it in turn.
    """
    with EtcdServer(binary=v2_binary) as server:
        switch_v2_authentication_on(server.get_endpoint())
        yield server.get_endpoint()


@pytest.fixture
def own_guarded(make_server):
    """
    A server of the test's own, of the newest version, that authenticates.
    """

    def make(*arguments, **kwargs):
        server = make_server(extra_args=arguments, **kwargs)
        switch_authentication_on(server.get_endpoint())
        return server

    return make


@pytest.fixture
def as_user(monkeypatch):
    """
    The environment names the user, and the password.
    """
    monkeypatch.setenv(USER_VARIABLE, USER)
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)


def parameters(endpoint, run_id, name="etcd-v3", least=1, **config):
    return RendezvousParameters(
        name, endpoint, run_id, least, 2, last_call_timeout=1, **config
    )


def refused(params):
    """
    Create a backend in vain; return what was said, and the seconds that it took.
    """
    started = time.monotonic()
    with pytest.raises(RendezvousConnectionError) as caught:
        create_backend(params)
    said = str(caught.value.__cause__)
    assert PASSWORD not in said
    assert "\n" not in said
    return said, time.monotonic() - started


def do_everything(backend, store):
    """
    Do all that a backend and a store can.
    """
    state, token, won = backend.set_state(b"one")
    assert (state, won) == (b"one", True)
    assert backend.set_state(b"two", token)[2]
    assert not backend.set_state(b"three", token)[2]
    assert backend.get_state()[0] == b"two"
    assert backend.get_state()[0] == b"two"
    assert backend.seconds_left() > 0

    # On v2 the store is that of all runs.
    before = store.num_keys()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, ["late"], timedelta(seconds=20))
        time.sleep(0.2)
        store.set("late", b"x")
        waiting.result()
    assert [store.add("n", 1), store.add("n", 2)] == [1, 3]
    assert store.compare_set("c", "", "new") == b"new"
    store.append("late", b"y")
    store.multi_set(["a", "b"], [b"1", b"2"])
    assert store.multi_get(["a", "b", "late"]) == [b"1", b"2", b"xy"]
    assert store.check(["a"])
    assert store.delete_key("a")
    assert store.num_keys() == before + 4
    store.queue_push("q", b"z")
    assert store.queue_pop("q") == b"z"
    with pytest.raises(DistStoreError):
        store.wait(["never"], timedelta(seconds=0.3))


# -- v3 ----------------------------------------------------------------------------


def test_a_role_on_the_prefix_is_enough(guarded, run_id, as_user):
    """
    With the page's role all operations work, and what a client can do besides.
    """
    backend, store = create_backend(parameters(guarded, run_id))
    do_everything(backend, store)

    client = EtcdClient(guarded, user=USER, password=PASSWORD)
    client.grant(30, lease := time.time_ns())
    client.put(f"{PREFIX}/{run_id}/leased", "x", lease=lease)
    assert client.keep_alive(lease)
    assert client.seconds_left(lease)
    client.revoke(lease)
    assert client.get(f"{PREFIX}/{run_id}/leased") is None
    assert client.status()["version"] == client.version()
    assert client.user == USER


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-live"])
def test_agents_meet(guarded, run_id, as_user, name):
    """
    Two handlers meet, see a third that waits, and close.
    """
    first, second = (
        create_handler(parameters(guarded, run_id, name, 2, keep_alive_interval=1))
        for _ in range(2)
    )
    with ThreadPoolExecutor(2) as pool:
        rounds = list(pool.map(lambda one: one.next_rendezvous(), (first, second)))

    assert {0, 1} == {one.rank for one in rounds}
    rounds[0].store.set("key", "value")
    assert rounds[1].store.get("key") == b"value"
    assert first.num_nodes_waiting() == 0
    assert first.shutdown()
    assert second.shutdown()


def test_a_role_on_one_run(own_guarded, run_id, as_user):
    """
    A role on the run's own prefix is enough, too; for others it is not.
    """
    endpoint = own_guarded().get_endpoint()
    as_root(endpoint, "role revoke-permission --prefix rendezvous " + PREFIX + "/")
    permission = f"role grant-permission --prefix rendezvous readwrite {PREFIX}/"
    as_root(endpoint, permission + run_id)
    do_everything(*create_backend(parameters(endpoint, run_id)))
    for _ in range(2):  # whoever comes second finds a closed run
        handler = create_handler(parameters(endpoint, run_id, "etcd-live"))
        assert handler.next_rendezvous().world_size == 1
        assert handler.shutdown()

    said, seconds = refused(parameters(endpoint, "another", startup_timeout=30))
    assert f"Could not read the key '{PREFIX}/another'" in said
    assert f"the user '{USER}' may not" in said
    assert seconds < 15


def test_a_missing_right(guarded, run_id, as_user):
    """
    Under another key prefix the user may nothing, which is said at once.
    """
    params = parameters(guarded, run_id, key_prefix="/other", startup_timeout=30)
    said, seconds = refused(params)

    assert f"the user '{USER}' may not; give a role of theirs the permission" in said
    assert f"'/other/{run_id}'" in said
    assert seconds < 15


def test_a_wrong_password(guarded, run_id, as_user, monkeypatch):
    """
    It is one sentence, at once, although etcd would be waited for.
    """
    monkeypatch.setenv(PASSWORD_VARIABLE, "another")
    said, seconds = refused(parameters(guarded, run_id, startup_timeout=30))

    assert f"etcd does not know the user '{USER}' with this password" in said
    assert PASSWORD_VARIABLE in said
    assert seconds < 15


def test_nobody(guarded, run_id):
    """
    Without a user it is said at once that etcd wants one.
    """
    said, seconds = refused(parameters(guarded, run_id, startup_timeout=30))

    assert "it wants a user and a password" in said
    assert seconds < 15


def test_a_password_in_a_file(guarded, run_id, tmp_path):
    """
    User and file may be settings.
    """
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", "utf-8")
    config = {"user": USER, "password_file": str(file)}
    backend, _ = create_backend(parameters(guarded, run_id, **config))

    assert backend.set_state(b"x")[2]


def test_a_server_that_does_not_authenticate(newest_v3, run_id, as_user, caplog):
    """
    The user is not used, which is warned of.
    """
    backend, _ = create_backend(parameters(newest_v3.endpoint, run_id))

    assert backend.set_state(b"x")[2]
    warned = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert [f"The user '{USER}' is not used"] == [text[:30] for text in warned]
    assert PASSWORD not in caplog.text


# -- what changes while it is used -------------------------------------------------


def _ttl_binaries():
    try:
        found = [
            pytest.param(one.path, id=one.version)
            for one in etcds.binaries()
            # 3.4 has no such flag.
            if not one.version.startswith("3.4.")
        ]
        # The oldest and the newest.
        return list(dict.fromkeys((found[0], found[-1])))
    except etcds.NoEtcdError:
        return [pytest.param(None, id="no-etcd", marks=pytest.mark.etcd)]


@pytest.mark.parametrize("binary", _ttl_binaries())
def test_tokens_that_end(own_guarded, run_id, as_user, binary):
    """
    When a token has ended nobody notices: neither who reads, writes, counts, nor who
    waits all the while.
    """
    endpoint = own_guarded("--auth-token-ttl=1", binary=binary).get_endpoint()
    backend, store = create_backend(parameters(endpoint, run_id))
    _, other = create_backend(parameters(endpoint, run_id))
    token = backend.set_state(b"one")[1]
    auth = store.client._transport._auth
    before = auth._token
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.wait, ["late"], timedelta(seconds=30))
        time.sleep(2.3)
        state, token, won = backend.set_state(b"two", token)
        assert (state, won) == (b"two", True)
        other.set("late", b"x")
        waiting.result()

    time.sleep(2.3)
    assert [store.add("n", 1), store.add("n", 1)] == [1, 2]
    assert not backend.set_state(b"three", token - 1)[2]
    assert before != auth._token


def test_a_restart(own_guarded, run_id, as_user):
    """
    A member that was restarted may have forgotten the token.
    """
    server = own_guarded()
    backend, store = create_backend(parameters(server.get_endpoint(), run_id))
    token = backend.set_state(b"one")[1]
    server.restart()

    assert backend.set_state(b"two", token)[2]
    assert store.add("n", 1) == 1


def test_a_user_that_changes(own_guarded, run_id, monkeypatch, tmp_path):
    """
    Roles that come and go, and a password that changes in etcd and in its file, do not
    end what is under way.
    """
    file = tmp_path / "password"
    file.write_text(PASSWORD, "utf-8")
    monkeypatch.setenv(USER_VARIABLE, USER)
    monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(file))
    endpoint = own_guarded().get_endpoint()
    backend, store = create_backend(parameters(endpoint, run_id))
    token = backend.set_state(b"one")[1]
    as_root(endpoint, "role add more")
    as_root(endpoint, f"user grant-role {USER} more")
    token = backend.set_state(b"two", token)[1]

    # etcd forgets a user's tokens where the password changes.
    as_root(endpoint, f"user delete {USER}")
    as_root(endpoint, f"user add {USER}:changed")
    as_root(endpoint, f"user grant-role {USER} rendezvous")
    file.write_text("changed")
    assert backend.set_state(b"three", token)[2]
    assert store.add("n", 1) == 1


def test_authentication_that_is_switched(make_server, run_id, as_user):
    """
    Switched on and off again, it does not end what is under way.
    """
    endpoint = make_server().get_endpoint()
    backend, store = create_backend(parameters(endpoint, run_id))
    token = backend.set_state(b"one")[1]
    switch_authentication_on(endpoint)
    token = backend.set_state(b"two", token)[1]
    assert store.add("n", 1) == 1

    as_root(endpoint, "auth disable")
    assert backend.set_state(b"three", token)[2]
    assert store.add("n", 1) == 2


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-live"])
def test_a_password_that_is_no_longer_right(own_guarded, run_id, as_user, caplog, name):
    """
    A handler keeps its last answer, and etcd is not asked again and again.
    """
    server = own_guarded("--auth-token-ttl=1")
    endpoint = server.get_endpoint()
    params = parameters(endpoint, run_id, name, keep_alive_interval=1)
    handler = create_handler(params)
    handler.next_rendezvous()
    as_root(endpoint, f"user delete {USER}")
    # Some releases let anybody renew a lease, so that nothing is refused.
    unasked = "renew and end leases" in judge_version(server.version, v3=True).says
    refuses = name == "etcd-v3" or not unasked
    said = f"etcd refuses; the running round of '{run_id}' goes on"
    deadline = time.monotonic() + 30
    until = time.monotonic() + 2.5
    while time.monotonic() < until or (refuses and said not in caplog.text):
        assert time.monotonic() < deadline, caplog.text
        assert handler.num_nodes_waiting() == 0
        time.sleep(0.05)
    if name == "etcd-live":
        handler._node.withdraw(1.0)
    else:
        handler._stop_heartbeats()
    assert "etcd is away" not in caplog.text


def joining(params):
    """
    Join in vain; return what was said, and the seconds that it took.
    """
    handler = create_handler(params)
    started = time.monotonic()
    with pytest.raises(RendezvousConnectionError) as caught:
        handler.next_rendezvous()
    if params.backend != "etcd-live":
        handler._stop_heartbeats()
    return str(caught.value.__cause__), time.monotonic() - started


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-live"])
def test_joining_with_the_right_to_read_alone(
    own_guarded, run_id, as_user, caplog, name
):
    """
    Who may not write is told so at once when joining, not after the join time-out.
    """
    endpoint = own_guarded().get_endpoint()
    as_root(endpoint, f"role revoke-permission --prefix rendezvous {PREFIX}/")
    as_root(endpoint, f"role grant-permission --prefix rendezvous read {PREFIX}/")
    said, seconds = joining(parameters(endpoint, run_id, name))

    assert f"the user '{USER}' may not; give a role of theirs the permission" in said
    assert said in caplog.messages
    assert seconds < 10


@pytest.mark.parametrize("way", ["environment", "file"])
def test_a_password_that_changes_while_one_is_joining(
    own_guarded, run_id, monkeypatch, tmp_path, way
):
    """
    One from the environment can't get right again, which is said at once; one from a
    file is waited for.
    """
    file = tmp_path / "password"
    file.write_text(PASSWORD, "utf-8")
    monkeypatch.setenv(USER_VARIABLE, USER)
    if way == "file":
        monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(file))
    else:
        monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    endpoint = own_guarded().get_endpoint()
    params = RendezvousParameters("etcd-v3", endpoint, run_id, 2, 2, join_timeout=60)
    backend, _ = create_backend(params)
    with ThreadPoolExecutor(2) as pool:
        if way == "file":
            first = pool.submit(create_handler(params).next_rendezvous)
        else:
            first = pool.submit(joining, params)
        wait_until("the first to join", backend.get_state)
        time.sleep(1)
        as_root(endpoint, f"user delete {USER}")
        as_root(endpoint, f"user add {USER}:changed")
        as_root(endpoint, f"user grant-role {USER} rendezvous")
        if way == "environment":
            assert "does not know the user" in first.result(50)[0]
            return
        time.sleep(3)
        assert not first.done()
        file.write_text("changed")
        second = pool.submit(create_handler(params).next_rendezvous)
        assert {first.result(60).rank, second.result(60).rank} == {0, 1}


# -- v2 ----------------------------------------------------------------------------


def test_torchs_two_paths_are_enough_on_v2(guarded_v2, run_id, as_user):
    """
    With the page's role all operations work on v2.
    """
    backend, store = create_backend(parameters(guarded_v2, run_id, "etcd-v2"))
    assert isinstance(store.client, etcd.Client)

    do_everything(backend, store)


def test_a_client_of_ones_own_on_v2(guarded_v2, run_id):
    """
    A python-etcd client that is handed in has its user with it.
    """
    host, _, port = guarded_v2.rpartition(":")
    client = etcd.Client(host, int(port), username=USER, password=PASSWORD)
    store = EtcdStore(client, "/torch/elastic/store")

    assert EtcdRendezvousBackend(client, run_id, PREFIX).set_state(b"x")[2]
    assert store.add(run_id, 1) == 1


@pytest.mark.parametrize("name", ["etcd-v2", "etcd-auto"])
def test_a_wrong_password_on_v2(guarded_v2, run_id, as_user, monkeypatch, name):
    """
    On v2 it is said at the first request; where v3 is spoken, its users are others.
    """
    monkeypatch.setenv(PASSWORD_VARIABLE, "another")
    backend, _ = create_backend(parameters(guarded_v2, run_id, name))
    if name == "etcd-auto":
        assert backend.set_state(b"x")[2]
        return
    with pytest.raises(RendezvousConnectionError) as caught:
        backend.get_state()

    said = str(caught.value.__cause__)
    assert f"etcd's v2 does not let the user '{USER}' do this" in said


def test_joining_with_a_wrong_password_on_v2(
    guarded_v2, run_id, as_user, monkeypatch, caplog
):
    """
    Who is joining on v2 is told so at once, too.
    """
    monkeypatch.setenv(PASSWORD_VARIABLE, "another")
    said, seconds = joining(parameters(guarded_v2, run_id, "etcd-v2"))

    assert f"etcd's v2 does not let the user '{USER}' do this" in said
    assert said in caplog.messages
    assert seconds < 10


def test_nobody_on_v2(guarded_v2, run_id):
    """
    Without a user it is said that v2 wants one.
    """
    backend, _ = create_backend(parameters(guarded_v2, run_id, "etcd-v2"))
    with pytest.raises(RendezvousConnectionError) as caught:
        backend.get_state()

    assert "etcd's v2 wants a user and a password" in str(caught.value.__cause__)


def test_certificates_on_v2(newest_v2_binary, make_server, run_id, tmp_path):
    """
    v2 is reached by TLS with a client's certificate, also once both sides have new
    ones; nobody without one gets in.
    """
    authority = Authority(tmp_path)
    server = make_server(binary=newest_v2_binary, extra_args=authority.server_arguments)
    endpoint, config = server.get_endpoint(), authority.security.rdzv_conf()
    backend, store = create_backend(
        parameters(endpoint, run_id, "etcd-v2", read_timeout=10, **config)
    )
    assert isinstance(store.client, etcd.Client)
    do_everything(backend, store)

    authority.renew()
    server.restart()
    assert backend.set_state(b"new", backend.get_state()[1])[2]
    for name in ("ca_cert", "ssl_cert"):
        less = dict(config)
        del less[name]
        if name == "ssl_cert":
            del less["ssl_cert_key"]
        said, _ = refused(parameters(endpoint, run_id, "etcd-v2", **less))
        assert f"with {name}" in said
    binary = tmp_path / "binary"
    binary.write_bytes(b"\x30\x82\x05\x9c")
    less = {**config, "ssl_cert_key": str(binary)}
    said, _ = refused(parameters(endpoint, run_id, "etcd-v2", **less))
    assert "a file holds no certificate, or no key, in PEM" in said


def test_users_of_v3_where_v2_is_asked_for(v2_binary, run_id, monkeypatch):
    """
    v2 has users of its own: those of v3 do not keep its from being spoken.
    """
    monkeypatch.setenv(USER_VARIABLE, "somebody")
    monkeypatch.setenv(PASSWORD_VARIABLE, "else")
    with EtcdServer(binary=v2_binary) as server:
        switch_authentication_on(server.get_endpoint())
        backend, _ = create_backend(
            parameters(server.get_endpoint(), run_id, "etcd-v2")
        )

        assert backend.set_state(b"x")[2]


# -- secrets -----------------------------------------------------------------------


@contextlib.contextmanager
def everything_logged():
    """
    Catch all that any logger says from DEBUG on, and torch's events.
    """
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    names = ["etcd_rendezvous", "urllib3", "etcd", "torch", "torchelastic"]
    loggers = [root, *map(logging.getLogger, names)]
    levels = [one.level for one in loggers]
    events = logging.getLogger("torchelastic-events-console")
    root.addHandler(handler)
    events.addHandler(handler)
    for one in loggers:
        one.setLevel(logging.DEBUG)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        events.removeHandler(handler)
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


@pytest.mark.parametrize(
    ("api", "way"), [("v3", "environment"), ("v3", "file"), ("v2", "environment")]
)
def test_no_secret_is_shown(
    api, way, own_guarded, newest_v2_binary, make_server, run_id, monkeypatch, tmp_path
):
    """
    Neither password nor token is in a log line at DEBUG, a repr or an exception, its
    causes included.
    """
    if api == "v3":
        server = own_guarded("--auth-token-ttl=1")
    else:
        server = make_server(binary=newest_v2_binary)
        switch_v2_authentication_on(server.get_endpoint())
    monkeypatch.setenv(USER_VARIABLE, USER)
    if way == "file":
        (tmp_path / "it").write_text(PASSWORD, "utf-8")
        monkeypatch.setenv(PASSWORD_FILE_VARIABLE, str(tmp_path / "it"))
    else:
        monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    shown = []
    secrets = {PASSWORD, ascii(PASSWORD)[1:-1]}
    with everything_logged() as stream:
        params = parameters(server.get_endpoint(), run_id, f"etcd-{api}")
        backend, store = create_backend(params)
        handler = create_handler(params)
        handler.next_rendezvous()
        do_everything(
            *create_backend(
                parameters(server.get_endpoint(), f"{run_id}2", f"etcd-{api}")
            )
        )
        if api == "v3":
            secrets.add(store.client._transport._auth._token)
            time.sleep(2.3)
            backend.get_state()
            secrets.add(store.client._transport._auth._token)
            assert len(secrets) == 4
        handler.shutdown()
        if api == "v3":
            live = create_handler(
                parameters(server.get_endpoint(), run_id, "etcd-live")
            )
            live.next_rendezvous()
            live.shutdown()
            shown.append(repr(live))
        for broken in (
            parameters(server.get_endpoint(), run_id, key_prefix="/other"),
            parameters("localhost:1", run_id, read_timeout=1),
        ):
            try:
                create_backend(broken)
            except RendezvousConnectionError:
                shown.append(traceback.format_exc())
        shown += [repr(one) for one in (backend, store, handler, store.client)]
        server.kill()
        try:
            backend.get_state()
        except RendezvousConnectionError:
            shown.append(traceback.format_exc())
    shown.append(stream.getvalue())

    assert {"v2": "/v2/keys", "v3": "/v3/kv/txn"}[api] in stream.getvalue()
    for text in shown:
        for secret in secrets:
            assert secret not in text
