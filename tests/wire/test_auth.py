# SPDX-License-Identifier: BSD-3-Clause
"""
Authentication, as a scripted server sees it: which token is sent, who asks for one.
"""

from __future__ import annotations

import base64
import os
import threading
import time

import pytest

from etcd_rendezvous._credentials import Credentials
from etcd_rendezvous._errors import (
    EtcdConnectionError,
    EtcdError,
    EtcdProtocolError,
    EtcdReplyError,
)
from etcd_rendezvous._failover import Trouble
from etcd_rendezvous._v3 import retry, transport, wire
from etcd_rendezvous._v3.auth import Authenticator
from etcd_rendezvous._v3.client import EtcdClient
from support.scripted import ScriptedServer, chunks, close, json_reply, reply, silence

SECRET = 'xyzzy-"42"'
GOOD = json_reply(
    {
        "header": {"revision": "7"},
        "kvs": [{"key": "aw==", "value": "dg=="}],
        "count": "1",
    }
)
REFUSALS = {
    "empty": (3, "etcdserver: user name is empty"),
    "invalid": (16, "etcdserver: invalid auth token"),
    "old": (3, "etcdserver: revision of auth store is old"),
}
WRONG = json_reply(
    {
        "error": "etcdserver: authentication failed, invalid user ID or password",
        "code": 3,
        "message": "etcdserver: authentication failed, invalid user ID or password",
    },
    400,
)
OFF = json_reply(
    {"code": 9, "message": "etcdserver: authentication is not enabled"}, 400
)
DENIED = json_reply({"code": 7, "message": "etcdserver: permission denied"}, 403)


def refusal(name):
    code, text = REFUSALS[name]
    return json_reply({"error": text, "code": code, "message": text}, 400)


class Etcd:
    """
    A script that gives tokens out, and refuses all but the newest.
    """

    def __init__(self, *, refuse="invalid"):
        self.refuse = refuse
        self.given = 0
        self.valid = None

    def __call__(self, exchange):
        if exchange.request.path == wire.AUTHENTICATE:
            self.given += 1
            self.valid = f"token.{self.given}"
            return json_reply({"header": {}, "token": self.valid})
        token = exchange.request.headers.get("authorization")
        return GOOD if token == self.valid else refusal(self.refuse)


@pytest.fixture
def connect():
    """
    A function that makes a client of a server, with a user unless told otherwise.
    """
    clients = []

    def make(*servers, user="alice", password=SECRET, **settings):
        endpoints = [server.endpoint for server in servers]
        clients.append(EtcdClient(endpoints, user=user, password=password, **settings))
        clients[-1]._transport.failover._current = 0
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def tokens(server):
    """
    The tokens that came with requests, those for a token left out.
    """
    return [
        request.headers.get("authorization")
        for request in server.requests
        if request.path != wire.AUTHENTICATE
    ]


def logins(server):
    return server.paths.count(wire.AUTHENTICATE)


# -- the token ---------------------------------------------------------------------


def test_nobody(connect):
    """
    Without a user no token is asked for, and none is sent.
    """
    with ScriptedServer([GOOD]) as server:
        client = connect(server, user=None, password=None)

        assert client.get("k") == b"v"
        assert client.user is None
        assert tokens(server) == [None]
        assert logins(server) == 0


def test_a_user(connect):
    """
    A token is asked for before the first request, and sent bare with every one.
    """
    with ScriptedServer(Etcd()) as server:
        client = connect(server)
        assert [client.get("k") for _ in range(3)] == [b"v"] * 3

        assert client.user == "alice"
        assert server.paths[0] == wire.AUTHENTICATE
        assert server.requests[0].json == {"name": "alice", "password": SECRET}
        assert tokens(server) == ["token.1"] * 3


@pytest.mark.parametrize("how", REFUSALS)
def test_a_token_that_is_refused(connect, how):
    """
    It is replaced once, and the identical request is sent again.
    """
    with ScriptedServer(script := Etcd(refuse=how)) as server:
        client = connect(server)
        client.get("k")
        script.valid = "another"

        assert client.get("k") == b"v"
        assert tokens(server) == ["token.1", "token.1", "token.2"]
        assert server.requests[2].body == server.requests[4].body
        assert logins(server) == 2


def test_a_write_with_a_token_that_is_refused(connect):
    """
    Nothing was applied: it does not count as one that may have been.
    """
    with ScriptedServer(script := Etcd()) as server:
        client = connect(server)
        client.get("k")
        script.valid = "another"

        assert not client.txn([], []).maybe_earlier


def test_one_thread_asks(connect):
    """
    Of eight threads whose token is refused at once one asks; the others take what it
    got.
    """
    everybody = threading.Barrier(8)

    class Slow(Etcd):
        def __call__(self, exchange):
            step = super().__call__(exchange)
            if step is not GOOD and exchange.request.path != wire.AUTHENTICATE:
                everybody.wait(10)
            return step

    with ScriptedServer(script := Slow()) as server:
        client = connect(server)
        client.get("k")
        script.valid = "another"
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(client.get("k")))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert found == [b"v"] * 8
        assert logins(server) == 2
        assert tokens(server).count("token.2") == 8


def test_two_members(connect):
    """
    A token is good for all members: the next one is not asked again.
    """
    script = Etcd()
    with ScriptedServer(script) as first, ScriptedServer(script) as second:
        client = connect(first, second)
        client.get("k")
        client._transport.failover.move_on(client._transport.failover.current)
        client.get("k")

        assert (logins(first), logins(second)) == (1, 0)
        assert tokens(second) == ["token.1"]


def test_no_end_of_refusals(connect, monkeypatch):
    """
    A token that is refused as soon as it is given ends with the operation's time.
    """
    # However late the last refusal comes on a busy machine, it is waited for.
    monkeypatch.setattr(transport, "_GRACE_SECONDS", 20.0)
    give = json_reply({"token": "token.1"})

    def script(exchange):
        login = exchange.request.path == wire.AUTHENTICATE
        return give if login else refusal("invalid")

    with ScriptedServer(script) as server:
        with pytest.raises(EtcdConnectionError, match="invalid auth token"):
            connect(server, read_timeout=0.3).put("k", "v")

        assert logins(server) < 100


def test_connections_that_are_dropped(connect):
    """
    Some builds drop the connection where a token has expired: after the second time
    a new one is asked for.
    """
    script = Etcd()

    def dropping(exchange):
        step = script(exchange)
        login = exchange.request.path == wire.AUTHENTICATE
        return step if login or step is GOOD else close()

    with ScriptedServer(dropping) as server:
        client = connect(server)
        client.get("k")
        script.valid = "another"

        assert client.get("k") == b"v"
        assert tokens(server) == ["token.1", "token.1", "token.1", "token.2"]


def test_a_child(connect):
    """
    After a fork the child goes on with the token, and renews it although a thread of
    the parent was about to.
    """
    with ScriptedServer(script := Etcd()) as server:
        client = connect(server)
        client.get("k")
        client._transport._auth._lock.acquire()
        script.valid = "another"
        child = os.fork()
        if child == 0:
            try:
                os._exit(0 if client.get("k") == b"v" else 1)
            finally:
                os._exit(2)
        _, status = os.waitpid(child, 0)

        assert status == 0


# -- what is wrong with it ---------------------------------------------------------


def test_wrong_password(connect):
    """
    One sentence, at once; and for a while nobody asks again.
    """
    with ScriptedServer([WRONG]) as server:
        client = connect(server)
        for _ in range(3):
            with pytest.raises(EtcdReplyError) as caught:
                client.put("k", "v")

        assert str(caught.value).startswith(
            f"Could not write the key 'k' at http://{server.endpoint}: etcd does not "
            "know the user 'alice' with this password; mend ETCD_RENDEZVOUS_USER and "
            "ETCD_RENDEZVOUS_PASSWORD, or the file that is named in their stead (1 try"
        )
        assert "may or may not" not in str(caught.value)
        assert 1 == logins(server) == len(server.requests)


def test_password_that_is_mended(tmp_path):
    """
    After the while it is asked again, with what is in the file then.
    """
    now = 0.0
    file = tmp_path / "password"
    file.write_text("wrong")
    auth = Authenticator(
        Credentials("alice", password_file=str(file)), clock=lambda: now
    )
    asked = []

    def log_in(body, _):
        asked.append(body)
        if b"wrong" in body:
            return Trouble(retry.Failure.FINAL, wire.WRONG_PASSWORD, code=3)
        return {"token": "token.1"}

    assert isinstance(auth.headers(log_in, 1.0), Trouble)
    file.write_text("right")
    now = 4.9
    assert isinstance(auth.headers(log_in, 1.0), Trouble)
    assert len(asked) == 1
    now = 5.1
    assert auth.headers(log_in, 1.0) == {"Authorization": "token.1"}

    file.unlink()
    auth.distrust()
    trouble = auth.headers(log_in, 1.0)
    assert f"The password file can't be read: {file}" in trouble.reason


def test_no_answer_to_an_authentication(connect):
    """
    A write that was not even sent was surely not applied.
    """
    with ScriptedServer(lambda _: silence()) as server:
        with pytest.raises(EtcdConnectionError) as caught:
            connect(server, read_timeout=0.2).put("k", "v")

        assert "no answer in time" in str(caught.value)
        assert "may or may not" not in str(caught.value)
        server.wait_for_requests(1)
        assert {wire.AUTHENTICATE} == set(server.paths)


def test_authentication_that_is_off(connect):
    """
    Requests go without a token; once it is switched on, one is asked for.
    """
    script = Etcd()
    off = True

    def switched(exchange):
        if not off:
            return script(exchange)
        return OFF if exchange.request.path == wire.AUTHENTICATE else GOOD

    with ScriptedServer(switched) as server:
        client = connect(server)
        client.get("k")
        client.get("k")
        assert logins(server) == 1
        assert client.user is None

        off = False
        script.refuse, script.valid = "empty", "another"
        client.get("k")
        assert client.user == "alice"
        assert tokens(server) == [None, None, None, "token.1"]


def test_a_user_is_wanted(connect):
    """
    Where etcd wants a user and none is named, how to name one is said at once.
    """
    with ScriptedServer([refusal("empty")]) as server:
        with pytest.raises(EtcdReplyError) as caught:
            connect(server, user=None, password=None).get("k")

        assert (
            "it wants a user and a password; set ETCD_RENDEZVOUS_USER and "
            "ETCD_RENDEZVOUS_PASSWORD (1 try"
        ) in str(caught.value)


def test_missing_right(connect):
    """
    Who may not, and how to give the right, is said at once.
    """
    give = json_reply({"token": "token.1"})
    with ScriptedServer([give, DENIED]) as server:
        with pytest.raises(EtcdReplyError) as caught:
            connect(server).get("k")

        assert caught.value.code == 7
        assert (
            "the user 'alice' may not; give a role of theirs the permission readwrite "
            "on what is below the key prefix (etcdctl role grant-permission --prefix "
            "ROLE readwrite PREFIX/)"
        ) in str(caught.value)


def test_an_echo_in_a_line_about_a_failover(connect, caplog):
    """
    What a member repeats while it fails is not in the line that says so.
    """
    words = f"etcdserver: request timed out, {SECRET}"
    echo = json_reply({"code": 14, "message": words}, 503)
    with ScriptedServer(lambda _: echo) as bad, ScriptedServer(Etcd()) as good:
        client = connect(bad, good)
        client._transport.failover._current = 0
        client.get("k")

        (line,) = caplog.messages
        assert f"since {bad.url} failed (etcdserver: request timed out, ***)" in line


def test_an_echo(connect):
    """
    What repeats the password is not repeated.
    """

    def echo(exchange):
        return reply(403, exchange.request.body)

    def inside(exchange):
        return json_reply({"code": 3, "message": f"no {SECRET}, no"}, 400)

    for script in (echo, inside):
        with ScriptedServer(script) as server:
            with pytest.raises((EtcdReplyError, EtcdProtocolError)) as caught:
                connect(server).get("k")

            assert server.paths[0] == wire.AUTHENTICATE
            assert "xyzzy" not in str(caught.value)


@pytest.mark.parametrize("status", [200, 400, 403, 404])
def test_an_echo_of_a_token(connect, status):
    """
    What repeats the token is not repeated either, by a request or a watch.
    """
    token = "tokenthatissecret.17"

    def script(exchange):
        if exchange.request.path == wire.AUTHENTICATE:
            return json_reply({"header": {}, "token": token})
        sent = exchange.request.headers["authorization"]
        if status == 400:
            return json_reply({"code": 3, "message": f"no {sent}"}, 400)
        return reply(status, f"<html>{'x' * 170} {sent}")

    with ScriptedServer(script) as server:
        client = connect(server)
        watch = wire.watch_create(b"k", watch_id=1)

        def watched():
            with client.watch([watch], what="watch", timeout=1) as stream:
                list(stream.events(0.5))

        for call in (lambda: client.get("k"), watched):
            with pytest.raises(EtcdError) as caught:
                call()
            chain = [caught.value, caught.value.__cause__, caught.value.__context__]
            assert "tokenthat" not in "".join(map(repr, chain))


# python-etcd calls what urllib3 up to 2.5 warns of.
@pytest.mark.filterwarnings("ignore:HTTPResponse.getheader:DeprecationWarning")
def test_an_echo_on_v2():
    """
    Nor is it on v2, as it is or as it was sent.
    """
    import etcd
    from etcd_rendezvous._v2.requests import Requests

    def header(exchange):
        return reply(403, f"no {exchange.request.headers['authorization']}")

    def plain(exchange):
        return json_reply({"errorCode": 300, "cause": f"no {SECRET}, no"}, 400)

    def no_page(exchange):
        sent = exchange.request.headers["authorization"]
        return reply(404, f"404 page not found, {sent}")

    def no_key(exchange):
        sent = exchange.request.headers["authorization"]
        return json_reply({"message": f"no {sent}"}, 404)

    def no_right(exchange):
        sent = exchange.request.headers["authorization"]
        return json_reply({"errorCode": 110, "message": f"no {sent}"}, 401)

    for script in (header, plain, no_page, no_key, no_right):
        with ScriptedServer(script) as server:
            host, _, port = server.endpoint.rpartition(":")
            host = host.removeprefix("http://")
            client = etcd.Client(host, int(port), username="us", password=SECRET)
            requests = Requests(client, patient=False, clock=time.monotonic)
            with pytest.raises((EtcdReplyError, EtcdProtocolError)) as caught:
                requests.look("/k", 5.0)
            chain = [caught.value, caught.value.__cause__, caught.value.__context__]

            said = " ".join(map(repr, chain)) + str(caught.value)
            if script in (header, plain):
                assert "no ***" in said or "no Basic ***" in said
            assert "xyzzy" not in said
            assert base64.b64encode(f"us:{SECRET}".encode()).decode() not in said


@pytest.mark.parametrize(
    "token", [None, 7, "", "a\r\nX-Evil: b", "\u65e5\u672c", ["x"]]
)
def test_an_odd_token(connect, token):
    """
    What is no token is refused, and is not sent.
    """
    with ScriptedServer([json_reply({"token": token})]) as server:
        with pytest.raises(EtcdProtocolError, match="not etcd's v3 API"):
            connect(server).get("k")


# -- streams -----------------------------------------------------------------------


def watching(client):
    create = wire.watch_create(b"k", watch_id=1)
    return client.watch([create], what="watch the key 'k'", timeout=2.0)


CREATED = {"result": {"header": {"revision": "7"}, "watch_id": "1", "created": True}}


def test_a_watch(connect):
    """
    A watch has a token, asked for if need be.
    """
    give = json_reply({"token": "token.1"})
    with ScriptedServer([give, chunks(CREATED, then=silence())]) as server:
        with watching(connect(server)):
            assert tokens(server) == ["token.1"]


@pytest.mark.parametrize("inside", [True, False])
def test_a_watch_that_is_refused(connect, inside):
    """
    A refused token is like a stream that breaks: read again, which renews it, and watch
    again.
    """
    reason = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
    ended = {"created": True, "canceled": True, "cancel_reason": reason}
    script = Etcd()

    def streams(exchange):
        step = script(exchange)
        if exchange.request.path != wire.WATCH:
            return step
        if step is GOOD:
            return chunks(CREATED, then=silence())
        return chunks({"result": ended}, then=silence()) if inside else step

    with ScriptedServer(streams) as server:
        client = connect(server)
        client.get("k")
        script.valid = "another"
        with pytest.raises(EtcdConnectionError, match="invalid auth token"):
            watching(client).__enter__()
        client.get("k")
        with watching(client):
            assert tokens(server)[-1] == "token.2"


def test_a_watch_without_the_right(connect):
    """
    A missing right is etcd's last word.
    """
    reason = "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    ended = {"created": True, "canceled": True, "cancel_reason": reason}
    give = json_reply({"token": "token.1"})
    with ScriptedServer([give, chunks({"result": ended}, then=silence())]) as server:
        with pytest.raises(EtcdReplyError, match="permission denied"):
            watching(connect(server)).__enter__()


def test_a_watch_with_a_wrong_password(connect):
    """
    It is not even opened.
    """
    with ScriptedServer([WRONG]) as server:
        with pytest.raises(EtcdReplyError, match="does not know the user 'alice'"):
            watching(connect(server)).__enter__()

        assert server.paths == [wire.AUTHENTICATE]
