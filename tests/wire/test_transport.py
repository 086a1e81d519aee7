# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Every shape of reply, and of none, that etcd and what stands before it can give.
"""

from __future__ import annotations

import contextlib
import gc
import re
import select
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest
import trustme
import urllib3

from etcd_rendezvous._errors import (
    EtcdConnectionError,
    EtcdProtocolError,
    EtcdReplyError,
)
from etcd_rendezvous._settings import Endpoint
from etcd_rendezvous._v3 import error_texts, retry, scheme, transport, wire
from etcd_rendezvous._v3.client import EtcdClient
from support._http import reset as close_by_reset
from support.scripted import (
    HTTP_TO_TLS_SERVER,
    TLS_ALERT,
    ScriptedServer,
    close,
    json_reply,
    raw,
    refused_endpoint,
    reply,
    reset,
    silence,
    truncated,
    unanswered_endpoint,
)
from support.security import lock

# Expires in tests that wait for it.
SHORT_TIMEOUT = 0.15
# Never expires in a test that passes.
LONG_TIMEOUT = 20.0

GOOD = json_reply(
    {
        "header": {"revision": "7"},
        "succeeded": True,
        "kvs": [{"key": "aw==", "value": "dg=="}],
        "count": "1",
    }
)
HTML = "<html>\n<body><h1>Sorry.</h1></body>\n</html>\n"
MAYBE = " It may or may not have been applied."


def html(status):
    return reply(status, HTML.encode(), {"Content-Type": "text/html"})


def old_error(status, code, text):
    """
    An error as 3.4 and 3.5 shape it.
    """
    return json_reply({"error": text, "code": code, "message": text}, status)


def new_error(status, code, text):
    """
    An error as 3.6 and 3.7 shape it.
    """
    return json_reply({"code": code, "message": text, "details": []}, status)


def open_sockets():
    gc.collect()
    return {
        (one.fd, one.laddr, one.raddr)
        for one in psutil.Process().net_connections(kind="inet")
    }


@pytest.fixture(autouse=True, scope="module")
def nothing_left_open():
    """
    Fail if these tests leave sockets open: looked at once, as it costs its time.
    """
    before = open_sockets()
    yield

    assert set() == open_sockets() - before


@pytest.fixture
def connect():
    """
    A function that makes a client which begins with the first endpoint, as one that
    answered before unless told otherwise.
    """
    clients = []

    def make(*endpoints, read_timeout=LONG_TIMEOUT, known=True, **kwargs):
        client = EtcdClient(endpoints, read_timeout=read_timeout, **kwargs)
        failover = client._transport.failover
        failover._current = 0
        if known:
            failover.answered.update(failover.endpoints)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


@pytest.fixture
def short_attempts(monkeypatch):
    """
    Attempts that take a tenth of their time, for servers that don't answer.
    """
    monkeypatch.setattr(retry, "FIRST_ATTEMPT_SECONDS", 0.2)
    monkeypatch.setattr(transport, "_GRACE_SECONDS", 0.05)


@pytest.fixture
def late_answers_count(monkeypatch):
    """
    The last attempt of a short operation gets its answer, however busy the machine is.
    """
    monkeypatch.setattr(transport, "_GRACE_SECONDS", LONG_TIMEOUT)


def write(client, **kwargs):
    """
    Run a compare-and-swap.
    """
    return client.txn(
        [wire.compare_mod(b"k", 5)],
        [wire.op_put(wire.put_message(b"k", b"v"))],
        what="swap it",
        **kwargs,
    )


def said(error, *endpoints, what="read the key 'k'", applied=""):
    """
    Assert that an error is one sentence with operation and endpoints.

    Returns:
        The reason that it gives, and the number of tries.
    """
    where = ", ".join(f"http://{endpoint}" for endpoint in endpoints)
    found = re.fullmatch(
        rf"Could not {re.escape(what)} at {re.escape(where)}: (?P<reason>.+) "
        rf"\((?P<tries>\d+) tr(?:y|ies) in \d+\.\d s\)\.{re.escape(applied)}",
        str(error),
    )
    assert found, str(error)
    return found["reason"], int(found["tries"])


# -- the last word -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "code", "text"),
    [
        (old_error(400, 3, "etcdserver: request is too large"), 3, "request is too"),
        (new_error(400, 3, "etcdserver: request is too large"), 3, "request is too"),
        (
            json_reply({"error": {"grpc_code": 7, "http_code": 403, "message": "no"}}),
            7,
            "no",
        ),
        (json_reply({"error": {"code": 7, "message": "no", "details": []}}), 7, "no"),
        (old_error(412, 9, "etcdserver: role name not found"), 9, "role name"),
        (old_error(400, 9, "etcdserver: role name not found"), 9, "role name"),
        (new_error(429, 8, "received message larger than max"), 8, "larger than max"),
        (old_error(429, 8, "mvcc: database space exceeded"), 8, "space exceeded"),
        (old_error(404, 5, "etcdserver: requested lease not found"), 5, "lease not"),
        (new_error(501, 12, "Method Not Allowed"), 12, "Method Not Allowed"),
        (reply(400, '\t{ "code": 3,\r\n "message" :"no" }\n'), 3, "no"),
    ],
    ids=[
        "3.4",
        "3.6",
        "stream-3.4",
        "stream-3.6",
        "412",
        "same-as-412",
        "429",
        "no-space",
        "lease",
        "501",
        "white-space",
    ],
)
def test_etcd_refuses(connect, step, code, text):
    """
    A refusal of etcd's is told at once, in etcd's words and with its code.
    """
    with ScriptedServer([step]) as server:
        with pytest.raises(EtcdReplyError) as caught:
            connect(server.endpoint).get("k")

        reason, tries = said(caught.value, server.endpoint)
        assert text in reason
        # What may be done about a limit follows.
        assert caught.value.text == reason.partition("; ")[0]
        assert (code, 1) == (caught.value.code, tries)
        assert 1 == len(server.requests)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (reply(404, "404 page not found\n"), "404 page not found"),
        (new_error(404, 5, "Not Found"), "Not Found"),
        (reply(404), "not found"),
    ],
    ids=["3.5", "3.6", "empty"],
)
def test_no_such_api(connect, step, words):
    """
    A page that is not found means an etcd without the v3 API, and can be told apart.
    """
    with ScriptedServer([step]) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.endpoint).get("k")

        reason = (
            "it answers, but does not serve etcd's v3 API over HTTP; is it an etcd of "
            f"version 3.4 or later with its gRPC gateway on? ({words})"
        )
        assert (reason, 1) == said(caught.value, server.endpoint)
        assert caught.value.api_missing


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (
            reply(400, "CommonName of client\n"),
            "HTTP status 400: 'CommonName of client'",
        ),
        (reply(405, "Method Not Allowed\n"), "HTTP status 405: 'Method Not Allowed'"),
        (html(200), "HTTP status 200: '<html>"),
        (html(403), "HTTP status 403: '<html>"),
        (html(501), "HTTP status 501: '<html>"),
        (reply(301, "", {"Location": "/elsewhere"}), "HTTP status 301: ''"),
        (json_reply(["hello"]), "HTTP status 200"),
        (json_reply({"hello": "world"}, 400), "HTTP status 400"),
        (raw(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"), "SSH-2.0-OpenSSH_9.2p1 Debian"),
        (raw(b"-ERR unknown command\r\n"), "-ERR unknown command"),
    ],
    ids=[
        "400",
        "405",
        "html",
        "html-403",
        "html-501",
        "redirect",
        "a-list",
        "json",
        "ssh",
        "redis",
    ],
)
def test_not_etcd(connect, step, words):
    """
    What is not an etcd is told at once, with what it said.
    """
    with ScriptedServer([step]) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.endpoint).get("k")

        reason, tries = said(caught.value, server.endpoint)
        assert reason.startswith("something answered that ")
        assert words in reason
        assert (1, 1) == (tries, len(server.requests))
        assert not caught.value.api_missing


# -- asked again -------------------------------------------------------------------

# Each with the reason it is told as, and whether a write may have been applied.
ASKED_AGAIN = [
    pytest.param(old_error(500, 2, "etcdserver: request timed out"), True, id="3.4"),
    pytest.param(new_error(503, 14, "etcdserver: request timed out"), True, id="503"),
    pytest.param(new_error(504, 4, "context deadline exceeded"), True, id="504"),
    pytest.param(
        old_error(503, 14, "stream terminated by RST_STREAM with error code: CANCEL"),
        True,
        id="rst",
    ),
    pytest.param(old_error(503, 14, "etcdserver: leader changed"), True, id="leader"),
    pytest.param(new_error(503, 14, "etcdserver: server stopped"), True, id="stopped"),
    pytest.param(
        json_reply({"error": {"code": 14, "message": "transport is closing"}}, 503),
        True,
        id="closing",
    ),
    pytest.param(old_error(503, 14, "etcdserver: no leader"), False, id="no-leader"),
    pytest.param(
        new_error(503, 14, "etcdserver: no leader"), False, id="no-leader-3.6"
    ),
    pytest.param(
        old_error(429, 8, "etcdserver: too many requests"), False, id="too-many"
    ),
    pytest.param(reply(200), True, id="empty"),
    pytest.param(reply(503), True, id="empty-503"),
    pytest.param(html(502), True, id="html-502"),
    pytest.param(reply(504, "upstream timed out"), True, id="plain-504"),
    pytest.param(close(), True, id="closed"),
    pytest.param(reset(), True, id="reset"),
    pytest.param(truncated(200, {"succeeded": True}), True, id="half-a-body"),
    pytest.param(
        raw(b'HTTP/1.0 200 OK\r\n\r\n{"header":{"rev', close()),
        True,
        id="half-a-body-without-length",
    ),
    pytest.param(
        raw(b"HTTP/1.1 200 OK\r\nContent-Le", close()), True, id="half-a-head"
    ),
]


@pytest.mark.parametrize(("step", "applied"), ASKED_AGAIN)
def test_a_write_is_sent_again(connect, step, applied):
    """
    The identical bytes are sent again, and whether the first may have been applied
    is told.
    """
    with ScriptedServer([step, GOOD]) as server:
        answer = write(connect(server.endpoint))

        first, second = server.requests
        assert (first.path, first.body) == (second.path, second.body)
        assert 5 == int(first.json["compare"][0]["mod_revision"])
    assert answer.succeeded
    assert applied is answer.maybe_earlier


@pytest.mark.parametrize(("step", "applied"), ASKED_AGAIN)
def test_a_read_goes_elsewhere(connect, step, applied):
    """
    A read goes to the next endpoint, once, and stays there.
    """
    with ScriptedServer([step]) as bad, ScriptedServer([GOOD, GOOD]) as good:
        client = connect(bad.endpoint, good.endpoint)

        assert [b"v", b"v"] == [client.get("k"), client.get("k")]
        assert (1, 2) == (len(bad.requests), len(good.requests))
        assert good.url == str(client.last_endpoint)


@pytest.mark.parametrize(("step", "applied"), ASKED_AGAIN)
def test_in_vain(connect, late_answers_count, step, applied):
    """
    In the end the error names operation, endpoint, reason and tries, each of which
    was one request; a write says whether it may have been applied.
    """
    with ScriptedServer(default=step) as server:
        with pytest.raises(EtcdConnectionError) as caught:
            write(connect(server.endpoint, read_timeout=0.05))

        reason, tries = said(
            caught.value,
            server.endpoint,
            what="swap it",
            applied=MAYBE if applied else "",
        )
        assert reason
        assert tries == len(server.requests)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            html(502),
            r"HTTP status 502, but not in etcd's words; is a proxy in between\?",
        ),
        (
            reply(200),
            r"HTTP status 200, but not in etcd's words; is a proxy in between\?",
        ),
        (new_error(503, 14, "etcdserver: no leader"), r"etcdserver: no leader"),
        (close(), r"the connection broke \(.*without response.*\)"),
        (reset(), r"the connection broke \(.*reset by peer.*\)"),
        (
            truncated(200, {"count": "1"}),
            r"the connection broke \(.*IncompleteRead.*\)",
        ),
    ],
    ids=["html", "empty", "no-leader", "closed", "reset", "half-a-body"],
)
def test_why_in_vain(connect, late_answers_count, step, expected):
    """
    The reason is what the last attempt met, in words.
    """
    with ScriptedServer(default=step) as server:
        with pytest.raises(EtcdConnectionError) as caught:
            connect(server.endpoint, read_timeout=0.05).get("k")

        reason, _ = said(caught.value, server.endpoint)
        assert re.fullmatch(expected, reason)


def test_nothing_is_sent_twice_behind_our_back(connect):
    """
    urllib3 sends nothing again by itself, and follows nobody elsewhere.
    """
    with ScriptedServer([close(), GOOD]) as server:
        client = connect(server.endpoint)
        transport = client._transport
        pool = transport._pool(transport._own_pools(), client.last_endpoint)
        with pytest.raises(Exception, match="Connection aborted"):
            pool.urlopen("PUT", "/")

        assert 1 == len(server.requests)
        assert pool.retries is False


def test_few_connections_stay_open(connect):
    """
    However many threads ask at once, two connections are left afterwards.
    """
    at_once = 8
    all_here = threading.Barrier(at_once)

    def reply(_):
        with contextlib.suppress(threading.BrokenBarrierError):
            all_here.wait(5)
        return GOOD

    with ScriptedServer(reply) as server:
        client = connect(server.endpoint)
        with ThreadPoolExecutor(at_once) as threads:
            for _ in range(2):
                list(threads.map(lambda _: client.get("k"), range(at_once)))
        mine = [
            connection
            for connection in psutil.Process().net_connections("tcp")
            if connection.raddr
            and server.endpoint.endswith(f":{connection.raddr[1]}")
            and connection.status == psutil.CONN_ESTABLISHED
        ]

        assert 2 == len(mine)
        assert at_once <= server.connections < 3 * at_once


# -- nobody there ------------------------------------------------------------------


def test_refused(connect):
    """
    A refused connection is an error at once.
    """
    with refused_endpoint() as endpoint:
        with pytest.raises(EtcdConnectionError) as caught:
            connect(endpoint).get("k")

    assert ("connection refused; is etcd running there?", 1) == said(
        caught.value, endpoint
    )


def test_all_refused(connect):
    """
    So are refusals everywhere, after one try each; all endpoints are named.
    """
    with refused_endpoint() as one, refused_endpoint() as other:
        with pytest.raises(EtcdConnectionError) as caught:
            write(connect(one, other))

    assert ("connection refused; is etcd running there?", 2) == said(
        caught.value, one, other, what="swap it"
    )


def test_each_in_its_own_way(connect, late_answers_count):
    """
    Where endpoints fail differently each one's reason is told: that one is down says
    nothing of the other, which is up and lacks a leader.
    """
    step = new_error(503, 14, "etcdserver: no leader")
    with ScriptedServer(default=step) as up, refused_endpoint() as down:
        with pytest.raises(EtcdConnectionError) as caught:
            connect(up.endpoint, down, read_timeout=0.1).get("k")

        reason, _ = said(caught.value, up.endpoint, down)
        assert (
            f"etcdserver: no leader (http://{up.endpoint}); connection refused; is etcd "
            f"running there? (http://{down})"
        ) == reason


@pytest.fixture
def names(monkeypatch):
    """
    Host names for the test: by name, what their resolution does.
    """
    resolve = socket.getaddrinfo
    by_name = {}

    def getaddrinfo(host, *args, **kwargs):
        return by_name.get(host, lambda: resolve(host, *args, **kwargs))()

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return by_name


def test_unresolvable(connect, names):
    """
    A name that can't be resolved is an error at once.
    """

    def fail():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names["etcd.invalid"] = fail
    with pytest.raises(EtcdConnectionError) as caught:
        connect("etcd.invalid:2379").get("k")

    assert ("its host name can't be resolved", 1) == said(
        caught.value, "etcd.invalid:2379"
    )


def test_no_connection(connect):
    """
    A connection that does not come about in time is an error then.
    """
    with unanswered_endpoint() as endpoint:
        started = time.monotonic()
        with pytest.raises(EtcdConnectionError) as caught:
            connect(endpoint, connect_timeout=SHORT_TIMEOUT).get("k")
        took = time.monotonic() - started

    assert ("no connection in time", 1) == said(caught.value, endpoint)
    assert SHORT_TIMEOUT <= took < SHORT_TIMEOUT + 1.0


def test_elsewhere(connect, names):
    """
    An endpoint that can't be reached is passed over, and not asked again.
    """

    def fail():
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    names["etcd.invalid"] = fail
    with refused_endpoint() as refused, ScriptedServer([GOOD, GOOD]) as server:
        client = connect(refused, "etcd.invalid", server.endpoint)

        assert write(client).maybe_earlier is False
        assert b"v" == client.get("k")
        assert 1 == server.connections


# -- silence -----------------------------------------------------------------------


@pytest.mark.parametrize("silent", [{"default": silence()}, {"on_connect": silence()}])
def test_silence(connect, silent):
    """
    A server that accepts and is silent is given up when the time is up.
    """
    with ScriptedServer(**silent) as server:
        started = time.monotonic()
        with pytest.raises(EtcdConnectionError) as caught:
            connect(server.endpoint, read_timeout=0.3).get("k")
        took = time.monotonic() - started

        assert ("no answer in time", 1) == said(caught.value, server.endpoint)
        assert 0.3 <= took < 1.8


def test_silence_of_one(connect):
    """
    After a silent endpoint the next is asked, and stays the one to ask.
    """
    with ScriptedServer([silence()]) as silent, ScriptedServer([GOOD, GOOD]) as good:
        client = connect(silent.endpoint, good.endpoint)
        answer = write(client)

        assert answer.maybe_earlier
        assert silent.requests[0].body == good.requests[0].body
        assert b"v" == client.get("k")
        assert (1, 2) == (len(silent.requests), len(good.requests))


@pytest.mark.measures
def test_attempts_grow(connect, short_attempts):
    """
    Each attempt without an answer gives the next one twice the time, within the
    time limit, and the server is told so.
    """
    with ScriptedServer(default=silence()) as server:
        with pytest.raises(EtcdConnectionError) as caught:
            connect(server.endpoint, read_timeout=1.4).get("k")

        assert ("no answer in time", 3) == said(caught.value, server.endpoint)
        told = [
            int(request.headers["grpc-timeout"].removesuffix("m"))
            for request in server.requests
        ]
        assert [200, 400] == told[:2]
        assert 1 <= told[2] < 800


@pytest.mark.measures
def test_name_resolution_counts(connect, names):
    """
    The time that name resolution takes is not granted once more afterwards.
    """
    with ScriptedServer(default=silence()) as server:

        def slowly():
            time.sleep(1.8)
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", server.port))
            ]

        names["slow.example"] = slowly
        started = time.monotonic()
        with pytest.raises(EtcdConnectionError):
            connect(f"slow.example:{server.port}", read_timeout=2.0).get("k")
        took = time.monotonic() - started

    assert 1.8 <= took < 3.5


# -- what is sent ------------------------------------------------------------------


def test_headers(connect):
    """
    A request asks for a member with a leader, and says when we give up.
    """
    with ScriptedServer([GOOD]) as server:
        connect(server.endpoint).get("k")

        (request,) = server.requests
        assert ("POST", "/v3/kv/range") == (request.method, request.path)
        assert "true" == request.headers["grpc-metadata-hasleader"]
        assert "2000m" == request.headers["grpc-timeout"]
        assert "application/json" == request.headers["content-type"]
        assert {"key": "aw=="} == request.json


def test_headers_of_a_short_operation(connect):
    """
    The server is told to give up when a short operation does.
    """
    with ScriptedServer([GOOD]) as server:
        connect(server.endpoint).get("k", timeout=0.5)

        told = server.requests[0].headers["grpc-timeout"]
        assert re.fullmatch("[0-9]{1,8}m", told)
        assert 1 <= int(told[:-1]) <= 500


def test_one_connection(connect):
    """
    Requests that follow each other share a connection.
    """
    with ScriptedServer([GOOD] * 4) as server:
        client = connect(server.endpoint)
        for _ in range(4):
            client.get("k")

        assert (1, 4) == (server.connections, len(server.requests))


def test_a_connection_that_the_server_closed(connect):
    """
    A connection closed while idle is replaced: nothing is sent twice.
    """
    goodbye = json_reply({"header": {"revision": "7"}}, headers={"X": "y"})
    with ScriptedServer([lambda x: x.run(goodbye) or x.close(), GOOD]) as server:
        client = connect(server.endpoint)
        client.get("k")
        server.wait_for_open_connections(0)

        assert write(client).maybe_earlier is False
        assert (2, 2) == (server.connections, len(server.requests))


# -- threads and processes ---------------------------------------------------------


def echo(exchange):
    """
    Answer a range with its own key as the value.
    """
    key = exchange.request.json["key"]
    return json_reply(
        {"header": {"revision": "7"}, "kvs": [{"key": key, "value": key}], "count": "1"}
    )


def test_threads(connect):
    """
    Sixteen threads share a client; each gets its own answers, on few connections.
    """
    start = threading.Barrier(16)

    def read(client, number):
        start.wait()
        keys = [f"{number}-{turn}".encode() for turn in range(10)]
        return keys == [client.get(key) for key in keys]

    with ScriptedServer(echo) as server:
        client = connect(server.endpoint)
        with ThreadPoolExecutor(16) as threads:
            assert [True] * 16 == list(
                threads.map(lambda number: read(client, number), range(16))
            )

        assert 160 == len(server.requests)
        assert server.connections <= 16


def test_fork():
    """
    A child after fork opens connections of its own, and the parent keeps its own.
    """
    script = textwrap.dedent("""
        import os, sys
        from etcd_rendezvous import EtcdClient
        with EtcdClient(sys.argv[1]) as client:
            assert client.get("parent") == b"parent"
            child = os.fork()
            if not child:
                for _ in range(2):
                    assert client.get("child") == b"child"
                client.close()
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert client.get("parent") == b"parent"
    """)
    with ScriptedServer(echo) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, server.endpoint],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert (0, "") == (done.returncode, done.stderr)
        told = [
            (b64decode(request.json["key"]), request.connection)
            for request in server.requests
        ]
    assert [(b"parent", 1), (b"child", 2), (b"child", 2), (b"parent", 1)] == told


def test_closed_and_used_again(connect):
    """
    A client closes its idle connections, and opens others when it is used again.
    """
    with ScriptedServer([GOOD, GOOD]) as server:
        client = connect(server.endpoint)
        client.get("k")
        client.close()
        server.wait_for_open_connections(0)

        assert b"v" == client.get("k")
        assert 2 == server.connections


def test_repr(connect):
    """
    The repr of a client says endpoints, API and state.
    """
    with refused_endpoint() as refused, ScriptedServer([GOOD]) as server:
        client = connect(refused, server.endpoint)
        start = f"<EtcdClient http://{refused},{server.url} API v3, "

        assert f"{start}not yet used>" == repr(client)

        client.get("k")

        assert f"{start}last answer from {server.url}>" == repr(client)

        client.close()

        assert f"{start}closed>" == repr(client)


# -- TLS ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_cert(authority, tmp_path_factory):
    """
    The path of the authority's certificate.
    """
    path = tmp_path_factory.mktemp("tls") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def server_side(certificate, authority=None):
    """
    The TLS settings of a server; with an authority it wants client certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    if authority is not None:
        # In TLS 1.3 the refusal comes after the handshake, or is lost in a reset.
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


def tls_said(error, server):
    """
    Assert that an error is one sentence, and return the reason that it gives.
    """
    found = re.fullmatch(
        rf"Could not read the key 'k' at {re.escape(server.url)}: (.+) "
        r"\(1 try in \d+\.\d s\)\.",
        str(error),
    )
    assert found, str(error)
    return found[1]


def test_https(connect, authority, ca_cert):
    """
    A server whose authority is named is trusted.
    """
    context = server_side(authority.issue_cert("127.0.0.1"))
    with ScriptedServer([GOOD], ssl_context=context) as server:
        assert b"v" == connect(server.url, ca_cert=ca_cert).get("k")
        assert [] == server.tls_errors


def test_untrusted(connect, authority):
    """
    A server of an unknown authority is refused at once, with the remedy.
    """
    context = server_side(authority.issue_cert("127.0.0.1"))
    with ScriptedServer(ssl_context=context) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.url, known=False).get("k")

        assert tls_said(caught.value, server).startswith(
            "its certificate is not trusted; name the authority that signed it with "
            "ca_cert ("
        )


def test_a_handshake_that_fails_with_whom_we_know(connect, authority, ca_cert):
    """
    It is like any outage, since certificates may be on the way: it says so in the same
    words, and with patience it is tried again.
    """
    good, other = (
        server_side(authority.issue_cert(name))
        for name in ("127.0.0.1", "etcd.example")
    )
    with ScriptedServer([GOOD, GOOD], ssl_context=good) as server:
        client = connect(server.url, ca_cert=ca_cert, known=False)
        client.get("k")
        client.close()
        server._ssl_context = other
        with pytest.raises(EtcdConnectionError) as caught:
            client.get("k")
        assert "its certificate is for another name" in str(caught.value)

        threading.Timer(0.3, setattr, (server, "_ssl_context", good)).start()
        client.patiently().get("k")


def said_of_a_certificate(connect, issued, ca_cert):
    """
    Be refused by what a server shows; return what is said.
    """
    with ScriptedServer(ssl_context=server_side(issued)) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.url, ca_cert=ca_cert, known=False).get("k")

        return tls_said(caught.value, server)


def test_another_name(connect, authority, ca_cert):
    """
    A certificate for another name is refused at once, with what it is about.
    """
    issued = authority.issue_cert("etcd.example")

    assert said_of_a_certificate(connect, issued, ca_cert).startswith(
        "its certificate is for another name; name the endpoint as its certificate "
        "does ("
    )


def test_a_certificate_that_is_out_of_date(connect, authority, ca_cert):
    """
    That it has expired is what is said, not that its authority is not known.
    """
    until = datetime.now(timezone.utc) - timedelta(hours=1)
    issued = authority.issue_cert("127.0.0.1", not_after=until)

    assert said_of_a_certificate(connect, issued, ca_cert).startswith(
        "its certificate is out of date; issue a new one, or set this machine's "
        "clock right ("
    )


@pytest.mark.parametrize("content", [b"nothing of the kind\n", b"\x30\x82\x05\x9c"])
@pytest.mark.parametrize("which", ["ca_cert", "cert", "key", "key left out"])
def test_a_file_that_is_no_certificate(
    connect, authority, ca_cert, tmp_path, which, content
):
    """
    A file that holds something else is told at once, with the settings to look at.
    """
    mine = authority.issue_cert("client.example")
    files = {"ca_cert": ca_cert}
    for name, blob in (
        ("cert", mine.cert_chain_pems[0]),
        ("key", mine.private_key_pem),
    ):
        files[name] = str(tmp_path / name)
        blob.write_to_path(files[name])
    if which in files:
        files[which] = str(tmp_path / "other")
        (tmp_path / "other").write_bytes(content)
    else:
        del files["key"]
    context = server_side(authority.issue_cert("127.0.0.1"))
    with ScriptedServer(ssl_context=context) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.url, **files, known=False).get("k")

        assert tls_said(caught.value, server).startswith(
            "a file holds no certificate, or no key, in PEM; look at ssl_cert, "
            "ssl_cert_key and ca_cert ("
        )


@pytest.mark.parametrize("files", [1, 2])
def test_a_key_that_is_encrypted(connect, authority, ca_cert, tmp_path, files):
    """
    A key with a password is refused at once, also in the certificate's file; nobody is
    asked on the terminal.
    """
    mine = authority.issue_cert("client.example")
    cert, own = tmp_path / "cert.pem", tmp_path / "key.pem"
    mine.private_key_pem.write_to_path(str(own))
    locked = Path(lock(str(own)))
    chain = mine.cert_chain_pems[0].bytes()
    cert.write_bytes(chain if files == 2 else locked.read_bytes() + chain)
    context = server_side(authority.issue_cert("127.0.0.1"))
    with ScriptedServer(ssl_context=context) as server:
        client = connect(
            server.url,
            ca_cert=ca_cert,
            cert=str(cert),
            key=str(locked) if files == 2 else None,
            known=False,
        )
        with pytest.raises(EtcdProtocolError) as caught:
            client.get("k")

        assert tls_said(caught.value, server).startswith(
            "the client's key is encrypted"
        )


def test_client_certificate(connect, authority, ca_cert, tmp_path):
    """
    The client's certificate is shown, with its key in a file of its own or the same.
    """
    mine = authority.issue_cert("client.example")
    mine.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    mine.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    mine.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "both.pem"))
    context = server_side(authority.issue_cert("127.0.0.1"), authority)
    with ScriptedServer([GOOD, GOOD], ssl_context=context) as server:
        two_files = connect(
            server.url,
            ca_cert=ca_cert,
            cert=str(tmp_path / "cert.pem"),
            key=str(tmp_path / "key.pem"),
        )
        one_file = connect(server.url, ca_cert=ca_cert, cert=str(tmp_path / "both.pem"))

        assert [b"v", b"v"] == [two_files.get("k"), one_file.get("k")]


def test_no_client_certificate(connect, authority, ca_cert):
    """
    A server that wants a client certificate ends the handshake, which is told at once.
    """
    context = server_side(authority.issue_cert("127.0.0.1"), authority)
    with ScriptedServer(ssl_context=context) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.url, ca_cert=ca_cert, known=False).get("k")

        assert tls_said(caught.value, server).startswith("the TLS handshake failed (")


@pytest.mark.parametrize(
    "alert", ["tlsv13 alert certificate required", "sslv3 alert bad certificate"]
)
def test_another_client_certificate(alert):
    """
    The alerts that etcd sends for a client certificate are told with the remedy.
    """
    error = ssl.SSLError(1, f"[SSL: ALERT] {alert} (_ssl.c:2580)")
    trouble = error_texts.trouble_of_exception(urllib3.exceptions.SSLError(error))

    assert (
        "it wants a client certificate, or another one; name it with ssl_cert and "
        "ssl_cert_key"
    ) == trouble.reason
    assert retry.Failure.TLS is trouble.failure


def test_a_client_certificate_that_is_not_there(connect, tmp_path):
    """
    A certificate that can't be read is told at once, and nothing is sent.
    """
    with ScriptedServer() as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(
                f"https://{server.endpoint}",
                cert=str(tmp_path / "missing.pem"),
                known=False,
            ).get("k")

        assert (
            "a certificate's file can't be read; look at ssl_cert, ssl_cert_key and "
            "ca_cert ([Errno 2] No such file or directory"
        ) in str(caught.value)
        assert [] == server.requests


@pytest.mark.parametrize(
    "step",
    [raw(HTTP_TO_TLS_SERVER, close()), raw(TLS_ALERT, close())],
    ids=["go", "alert"],
)
def test_http_to_https(connect, step):
    """
    A server that speaks TLS is told from its answer to plain HTTP, at once.
    """
    with ScriptedServer([step]) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.endpoint).get("k")

        assert ("it speaks TLS; use protocol=https", 1) == said(
            caught.value, server.endpoint
        )


def test_https_to_http(connect):
    """
    A server that does not speak TLS is told from its answer to TLS, at once.
    """
    answer = raw(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", close())
    with ScriptedServer([answer]) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.endpoint, protocol="https", known=False).get("k")

        assert (
            f"Could not read the key 'k' at https://{server.endpoint}: it does not "
            "speak TLS; use protocol=http, or name the port that serves https (1 try"
        ) in str(caught.value)


def only_hang_up_on(is_ours, step):
    """
    A script that closes the connections of some requests, and answers the others.
    """
    return lambda exchange: close() if is_ours(exchange.request) else step


@pytest.mark.parametrize("size", [1, 100_000])
def test_https_hangs_up_on_http(connect, authority, size):
    """
    A server that speaks TLS and closes without a word, as etcd does, is told by one
    look, at once; so it is if it closes without reading all of the request.
    """
    context = server_side(authority.issue_cert("127.0.0.1"))
    with ScriptedServer(ssl_context=context) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(server.endpoint, known=False).get("k" * size)

        assert ("it speaks TLS; use protocol=https", 1) == said(
            caught.value, server.endpoint, what=f"read the key '{'k' * size}'"
        )


def test_http_hangs_up_on_https(connect):
    """
    So is who does not.
    """
    script = only_hang_up_on(lambda request: not request.method, reply(200, "hello"))
    with ScriptedServer(script) as server:
        with pytest.raises(EtcdProtocolError) as caught:
            connect(f"https://{server.endpoint}", known=False).get("k")

        assert (
            f"Could not read the key 'k' at https://{server.endpoint}: it does not "
            "speak TLS; use protocol=http, or name the port that serves https (1 try"
        ) in str(caught.value)
        assert ["", "", "/version"] == server.paths


def test_a_server_that_goes_down_is_looked_at(connect):
    """
    A server that closes before its first answer and does not speak TLS either is
    going down: the identical bytes are sent again.
    """
    with ScriptedServer([close(), close(), GOOD]) as server:
        answer = write(connect(server.endpoint, known=False))

        first, look, second = server.requests
        assert first.body == second.body
        assert ("POST", "", "POST") == (first.method, look.method, second.method)
    assert answer.maybe_earlier


def test_a_server_that_answered_is_not_looked_at(connect):
    """
    After its first answer a server that closes gets no such look.
    """
    with ScriptedServer([GOOD, close(), GOOD]) as server:
        client = connect(server.endpoint, known=False)
        client.get("k")

        assert write(client).maybe_earlier
        assert ["POST"] * 3 == [request.method for request in server.requests]


def test_a_look_keeps_to_the_time_limit(connect):
    """
    A server that closes and is silent then is given up when the time is up.
    """
    with ScriptedServer([close()], default=silence()) as server:
        started = time.monotonic()
        with pytest.raises(EtcdConnectionError):
            connect(server.endpoint, known=False, read_timeout=0.3).get("k")

        assert time.monotonic() - started < 1.8


def test_a_look_that_is_reset(monkeypatch):
    """
    A look that is reset before it has said anything finds nothing, and leaves no socket
    open.
    """
    create_connection = socket.create_connection
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def reset_already(*given, **named):
            connection = create_connection(*given, **named)
            close_by_reset(listening.accept()[0])
            events = select.poll()
            events.register(connection, select.POLLHUP)
            assert events.poll(LONG_TIMEOUT * 1000)
            return connection

        monkeypatch.setattr(socket, "create_connection", reset_already)
        endpoint = Endpoint("http", *listening.getsockname())
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")  # Elsewhere this one is let pass.
            assert not scheme.speaks_the_other(endpoint, LONG_TIMEOUT)
            gc.collect()

    assert not told


@pytest.mark.parametrize("protocol", ["http", "HTTP"])
def test_protocol(connect, protocol):
    """
    The client's protocol may be written in capitals.
    """
    with ScriptedServer([GOOD]) as server:
        assert b"v" == connect(server.endpoint, protocol=protocol).get("k")


# -- pages -------------------------------------------------------------------------


def test_version(connect):
    """
    The server's version is what it says.
    """
    page = json_reply({"etcdserver": "3.5.35", "etcdcluster": "3.5.0"})
    with ScriptedServer([page]) as server:
        assert "3.5.35" == connect(server.endpoint).version()
        assert [("GET", "/version")] == [(r.method, r.path) for r in server.requests]


@pytest.mark.parametrize(
    "step", [html(200), json_reply({}), json_reply([]), reply(404)]
)
def test_no_version(connect, step):
    """
    What tells no version is not an etcd.
    """
    with ScriptedServer([step]) as server:
        with pytest.raises(
            EtcdProtocolError,
            match=r"^Could not read the version at http://127\.0\.0\.1:\d+: something "
            r"answered that is not etcd \(HTTP status \d+\)\.$",
        ):
            connect(server.endpoint).version()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (json_reply({"action": "get", "node": {"dir": True}}), True),
        (reply(404, "404 page not found\n"), False),
        (html(200), False),
        (json_reply({"hello": "world"}), False),
        (json_reply(["node"]), False),
        (json_reply({"node": {}}, 403), False),
    ],
    ids=["v2", "off", "html", "json", "a-list", "refused"],
)
def test_serves_v2(connect, step, expected):
    """
    The v2 API is there if its own page says so.
    """
    with ScriptedServer([step]) as server:
        client = connect(server.endpoint)

        assert expected is client.serves_v2(timeout=LONG_TIMEOUT)
        assert ["/v2/keys"] == server.paths


def test_a_page_that_does_not_come(connect):
    """
    A page that nobody serves is an error like any other.
    """
    with refused_endpoint() as endpoint:
        with pytest.raises(EtcdConnectionError) as caught:
            connect(endpoint).version()

    assert ("connection refused; is etcd running there?", 1) == said(
        caught.value, endpoint, what="read /version"
    )


def test_values_are_bytes(connect):
    """
    A value of any bytes arrives as it is.
    """
    value = bytes(range(256))
    found = {"value": b64encode(value).decode()}
    answer = json_reply({"header": {"revision": "7"}, "kvs": [found], "count": "1"})
    with ScriptedServer([answer]) as server:
        assert value == connect(server.endpoint).get(b"\xff\x00")
        assert b"\xff\x00" == b64decode(server.requests[0].json["key"])


@pytest.mark.parametrize(
    "body", [{}, {"status": "ok"}, {"header": "x"}, {"header": {"revision": "x"}}]
)
def test_json_of_somebody_else(connect, body):
    """
    A JSON object that is not etcd's is refused as such, by reads and by swaps.
    """
    with ScriptedServer(default=json_reply(body)) as server:
        client = connect(server.endpoint)
        for call, writes in (
            (lambda: client.get("k"), False),
            (lambda: client.put("k", "v"), True),
            (lambda: client.txn([], []), True),
            (lambda: client.txn([], [], writes=False), False),
        ):
            with pytest.raises(EtcdProtocolError, match="not etcd's v3 API") as caught:
                call()
            assert str(caught.value).endswith(MAYBE) == writes
