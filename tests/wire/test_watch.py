# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Watch streams in every shape that etcd gives them, and their ends.
"""

from __future__ import annotations

import json
import re
import threading
import time
from base64 import b64encode

import pytest

from etcd_rendezvous._errors import (
    EtcdAuthError,
    EtcdConnectionError,
    EtcdError,
    EtcdProtocolError,
    EtcdReplyError,
)
from etcd_rendezvous._v3 import wire
from etcd_rendezvous._v3.client import EtcdClient
from support.scripted import (
    ScriptedServer,
    chunks,
    close,
    half_chunk,
    json_reply,
    refused_endpoint,
    reply,
    reset,
    silence,
)

pytestmark = pytest.mark.usefixtures("no_leaked_sockets", "no_leaked_threads")

# Expires in tests that wait for it.
SHORT_TIMEOUT = 0.15
# So does this one, in a test that something comes to before.
IDLE_SECONDS = 1.0
# Never expires in a test that passes.
LONG_TIMEOUT = 20.0


def result(**fields):
    return {"result": {"header": {"revision": "5"}, **fields}}


def event(key, revision=6, **fields):
    kv = {"key": b64encode(key.encode()).decode(), "mod_revision": str(revision)}
    return {"kv": kv, **fields}


CREATED = result(watch_id="1", created=True)
A = result(watch_id="1", events=[event("a", 6)])
B = result(watch_id="1", events=[event("b", 7), event("c", 8, type="DELETE")])


def lines(*messages):
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def watching(client, *creates, timeout=LONG_TIMEOUT):
    creates = creates or [wire.watch_create(b"k", watch_id=1)]
    return client.watch(creates, what="watch it", timeout=timeout)


@pytest.fixture
def connect():
    """
    A function that makes a client which begins with the first endpoint.
    """
    clients = []

    def make(*endpoints):
        client = EtcdClient(endpoints)
        client._transport.failover._current = 0
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()


def told(events, count):
    """
    Take a number of events off a stream, not one more, as (key, deleted).
    """
    return [
        (found.entry.key, found.deleted)
        for _, found in zip(range(count), events, strict=False)
    ]


def watch_and_fail(client, *, created):
    """
    Watch, and wait for what can't come: an error ends it, before `created` or after.
    """
    with watching(client) as watch:
        assert created
        pytest.fail(f"there came {told(watch.events(LONG_TIMEOUT), 1)}")


def watch_all(client, found):
    """
    Watch, and collect keys until an error ends it.
    """
    with watching(client) as watch:
        for one in watch.events(LONG_TIMEOUT):
            found.append(one.entry.key)


ABC = [(b"a", False), (b"b", False), (b"c", True)]


# -- what comes --------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        (CREATED, A, B),
        (lines(CREATED, A, B),),
        tuple(bytes([byte]) for byte in lines(CREATED, A, B)),
        (lines(CREATED)[:-1], b"\n", lines(A)[:-1], b"\n" + lines(B)[:9], lines(B)[9:]),
        (b"\n \n" + lines(CREATED), b"\n\n", lines(A) + b"\n", b"\r\n" + lines(B)),
    ],
    ids=["chunks-and-newlines", "one-chunk", "bytes", "split", "empty-lines"],
)
def test_events(connect, parts):
    """
    Events are told in their order, however the stream is cut into chunks.
    """
    with ScriptedServer([chunks(*parts, then=silence())]) as server:
        with watching(connect(server.endpoint)) as watch:
            assert 5 == watch.revision
            assert ABC == told(watch.events(LONG_TIMEOUT), 3)


def test_events_come_at_once(connect):
    """
    An event is told when it comes, not when the stream ends.
    """
    go = threading.Event()
    script = [chunks(CREATED, A, go, B, then=silence())]
    with ScriptedServer(script) as server, watching(connect(server.endpoint)) as watch:
        events = watch.events(LONG_TIMEOUT)

        assert ABC[:1] == told(events, 1)

        go.set()

        assert ABC[1:] == told(watch.events(LONG_TIMEOUT), 2)


def test_events_before_all_watches_are_there(connect):
    """
    What one watch tells before the others are created is not lost.
    """
    creates = [wire.watch_create(key, watch_id=n) for n, key in ((1, b"a"), (2, b"b"))]
    script = [chunks(CREATED, A, result(watch_id="2", created=True), B, then=silence())]
    with ScriptedServer(script) as server:
        with watching(connect(server.endpoint), *creates) as watch:
            assert ABC == told(watch.events(LONG_TIMEOUT), 3)


def test_events_with_created(connect):
    """
    A message that confirms the watch may hold events too.
    """
    message = result(watch_id="1", created=True, events=[event("a")])
    with ScriptedServer([chunks(message, B, then=silence())]) as server:
        with watching(connect(server.endpoint)) as watch:
            assert ABC == told(watch.events(LONG_TIMEOUT), 3)


def test_values(connect):
    """
    An event has the key as it was after the change.
    """
    kv = {
        "key": "YQ==",
        "value": "dg==",
        "create_revision": "3",
        "mod_revision": "6",
        "version": "2",
        "lease": "9",
    }
    message = result(watch_id="1", events=[{"kv": kv}])
    with ScriptedServer([chunks(CREATED, message, then=silence())]) as server:
        with watching(connect(server.endpoint)) as watch:
            found = next(iter(watch.events(LONG_TIMEOUT)))

    assert wire.Event(False, wire.Entry(b"a", b"v", 3, 6, 2, 9)) == found


# -- what is sent ------------------------------------------------------------------


def test_one_watch(connect):
    """
    A watch is a complete body, for a member that has a leader, without a time limit.
    """
    with ScriptedServer([chunks(CREATED, then=silence())]) as server:
        with watching(connect(server.endpoint)):
            pass

        (request,) = server.requests
        assert ("POST", "/v3/watch") == (request.method, request.path)
        assert {"create_request": {"key": "aw==", "watch_id": "1"}} == request.json
        assert str(len(request.body)) == request.headers["content-length"]
        assert "true" == request.headers["grpc-metadata-hasleader"]
        assert "grpc-timeout" not in request.headers


def test_several_watches(connect):
    """
    Several watches share one stream: one message a line in the body.
    """
    creates = [
        wire.watch_create(b"a", watch_id=1),
        wire.watch_create(b"b", b"c", watch_id=2, start_revision=9, no_puts=True),
        wire.watch_create(b"c", watch_id=3, no_deletes=True),
    ]
    replies = [
        {
            "result": {
                "header": {"revision": str(n)},
                "watch_id": str(n),
                "created": True,
            }
        }
        for n in (3, 1, 2)
    ]
    with ScriptedServer([chunks(*replies, A, then=silence())]) as server:
        with watching(connect(server.endpoint), *creates) as watch:
            assert 3 == watch.revision
            assert ABC[:1] == told(watch.events(LONG_TIMEOUT), 1)

        (request,) = server.requests
        assert creates == [json.loads(line) for line in request.body.split(b"\n")]


def test_more_watches_than_etcd_is_sure_to_read(connect):
    """
    A gateway may overlook what follows the first 512 bytes of a body, so that only the first
    watch is opened.
    """
    creates = [wire.watch_create(b"k" * 180, watch_id=number) for number in (1, 2)]
    with ScriptedServer([chunks(CREATED, A, then=silence())]) as server:
        with watching(connect(server.endpoint), *creates) as watch:
            assert ABC[:1] == told(watch.events(LONG_TIMEOUT), 1)

        (request,) = server.requests
        assert creates[0] == request.json


def test_a_connection_of_its_own(connect):
    """
    A watch shares its connection with nobody, and requests go on meanwhile.
    """

    def script(exchange):
        if exchange.request.path == "/v3/watch":
            return chunks(CREATED, A, then=silence())
        return json_reply(
            {"header": {"revision": "7"}, "kvs": [{"value": "dg=="}], "count": "1"}
        )

    with ScriptedServer(script) as server:
        client = connect(server.endpoint)
        with watching(client) as one, watching(client) as other:
            assert b"v" == client.get("k")
            assert ABC[:1] * 2 == told(one.events(LONG_TIMEOUT), 1) + told(
                other.events(LONG_TIMEOUT), 1
            )
            assert [1, 2, 3] == [request.connection for request in server.requests]
            assert 3 == server.open_connections

        # The request's connection stays for the next one.
        server.wait_for_open_connections(1)


# -- the server ends it ------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            result(watch_id="1", created=True, canceled=True),
            "the server ended the watch",
        ),
        (
            result(
                created=True,
                canceled=True,
                cancel_reason="etcdserver: permission denied",
            ),
            "etcdserver: permission denied",
        ),
        (
            result(canceled=True, compact_revision="77"),
            "what was before revision 77 is compacted",
        ),
        (result(compact_revision="77"), "what was before revision 77 is compacted"),
        (
            {"error": {"grpc_code": 7, "http_code": 403, "message": "no rights"}},
            "no rights",
        ),
        ({"error": {"code": 7, "message": "no rights"}}, "no rights"),
        ({"error": "no rights", "code": 7, "message": "no rights"}, "no rights"),
    ],
    ids=[
        "canceled",
        "reason",
        "compacted",
        "compacted-only",
        "3.4",
        "3.6",
        "no-stream",
    ],
)
@pytest.mark.parametrize("before", [(), (CREATED,)], ids=["at-first", "later"])
@pytest.mark.parametrize("newline", [True, False])
def test_refused(connect, message, words, before, newline):
    """
    A watch that the server refuses, at first or later, is an error with its words,
    although the stream stays open.
    """
    last = message if newline else json.dumps(message).encode()
    then = silence() if newline else None
    with ScriptedServer([chunks(*before, last, then=then)]) as server:
        client = connect(server.endpoint)
        with pytest.raises(EtcdReplyError) as caught:
            watch_and_fail(client, created=bool(before))

        assert f"Could not watch it: {words}." == str(caught.value)
        assert words == caught.value.text
        server.wait_for_open_connections(0)


@pytest.mark.parametrize(
    "last",
    [
        {"error": {"grpc_code": 14, "message": "error reading from server: EOF"}},
        {"error": {"code": 14, "message": "etcdserver: no leader"}},
        result(canceled=True, cancel_reason="etcdserver: no leader"),
        {"error": {"code": 2, "message": "etcdserver: server stopped"}},
        {"error": {"code": 1, "message": "context canceled"}},
        b"what is this",
    ],
    ids=["eof", "no-leader", "canceled", "stopped", "context", "nonsense"],
)
@pytest.mark.parametrize("before", [(), (CREATED,)], ids=["at-first", "later"])
def test_the_server_goes_down(connect, last, before):
    """
    The words of a server that goes down are no refusal: one watches elsewhere.
    """
    script = [chunks(*before, last)]
    with refused_endpoint() as next_one, ScriptedServer(script) as server:
        client = connect(server.endpoint, next_one)
        with pytest.raises(EtcdConnectionError, match=r"^Could not watch it: .+\.$"):
            watch_and_fail(client, created=bool(before))

        assert f"http://{next_one}" == str(client._transport.failover.current)
        server.wait_for_open_connections(0)


# -- other ends --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "words"),
    [
        (None, "the stream ended"),
        (close(), "the stream broke"),
        (chunks(half_chunk(A)), "the stream broke"),
    ],
    ids=["end", "closed", "garbage"],
)
@pytest.mark.parametrize("parts", [(), (CREATED,), (CREATED, A)])
def test_the_stream_ends(connect, then, words, parts):
    """
    A stream that ends or breaks is an error, after what came before it.
    """
    script = [chunks(*parts, then=then)]
    found = []
    with refused_endpoint() as next_one, ScriptedServer(script) as server:
        client = connect(server.endpoint, next_one)
        with pytest.raises(EtcdConnectionError) as caught:
            watch_all(client, found)

        expected = [b"a"] if A in parts else []
        assert expected == found
        assert str(caught.value).startswith(f"Could not watch it: {words}")
        assert f"http://{next_one}" == str(client._transport.failover.current)
        server.wait_for_open_connections(0)


@pytest.mark.parametrize("parts", [(), (CREATED,), (CREATED, A)])
def test_reset(connect, parts):
    """
    So is a reset, which may overtake what came before it.
    """
    script = [chunks(*parts, then=reset())]
    with refused_endpoint() as next_one, ScriptedServer(script) as server:
        client = connect(server.endpoint, next_one)
        with pytest.raises(EtcdConnectionError, match=r"Could not watch it.* broke \("):
            with watching(client) as watch:
                told(watch.events(LONG_TIMEOUT), 9)

        assert f"http://{next_one}" == str(client._transport.failover.current)
        server.wait_for_open_connections(0)


@pytest.mark.parametrize("whole", [CREATED, A])
def test_half_a_chunk(connect, whole):
    """
    Half a chunk is a broken stream, and no event.
    """
    before = () if whole is CREATED else (CREATED,)
    with ScriptedServer([chunks(*before, half_chunk(whole))]) as server:
        client = connect(server.endpoint)
        with pytest.raises(EtcdConnectionError, match="the stream broke"):
            watch_and_fail(client, created=bool(before))

        server.wait_for_open_connections(0)


@pytest.mark.parametrize(
    "odd",
    [
        b"[]",
        b"null",
        b"5",
        b'{"result":[1]}',
        b'{"result":{"events":[5]}}',
        b'{"result":{"watch_id":"x"}}',
        b'{"result":{"events":[{"kv":{"key":"a"}}]}}',
        b"[" * 99_999,
    ],
    ids=[f"odd-{number}" for number in range(8)],
)
def test_what_is_not_etcds(connect, odd):
    """
    JSON of somebody else in a stream is a stream that broke.
    """
    with ScriptedServer([chunks(CREATED, odd + b"\n", then=silence())]) as server:
        with watching(connect(server.endpoint)) as watch:
            with pytest.raises(EtcdConnectionError, match="not etcd's"):
                told(watch.events(LONG_TIMEOUT), 1)


def test_idle(connect):
    """
    A stream that is idle for the time given ends silently, after what came before.
    """
    with ScriptedServer([chunks(CREATED, A, then=silence())]) as server:
        client = connect(server.endpoint)
        started = time.monotonic()
        with watching(client) as watch:
            # The event may come a while after the watch is there.
            assert ABC[:1] == told(watch.events(IDLE_SECONDS), 9)
            took = time.monotonic() - started

        assert IDLE_SECONDS <= took < LONG_TIMEOUT / 2
        assert server.url == str(client._transport.failover.current)
        server.wait_for_open_connections(0)


def test_idle_in_the_middle_of_a_line(connect):
    """
    Half a line before the silence is no event, and no error.
    """
    script = [chunks(CREATED, lines(A)[:-9], then=silence())]
    with ScriptedServer(script) as server:
        with watching(connect(server.endpoint)) as watch:
            assert [] == told(watch.events(SHORT_TIMEOUT), 9)


@pytest.mark.parametrize(
    "step",
    [
        silence(),
        chunks(then=silence()),
        chunks(A, then=silence()),
        chunks(CREATED, then=silence()),
    ],
    ids=["no-head", "no-message", "no-created", "only-one-created"],
)
def test_never_created(connect, step):
    """
    A watch that is not confirmed in time is an error, and one watches elsewhere.
    """
    creates = [wire.watch_create(b"a", watch_id=1), wire.watch_create(b"b", watch_id=2)]
    with refused_endpoint() as next_one, ScriptedServer([step]) as server:
        client = connect(server.endpoint, next_one)
        with pytest.raises(EtcdConnectionError, match="Could not watch it"):
            with watching(client, *creates, timeout=SHORT_TIMEOUT):
                pytest.fail("it was never created")

        assert f"http://{next_one}" == str(client._transport.failover.current)
        server.wait_for_open_connections(0)


# -- never opened ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (
            json_reply({"error": "no rights", "code": 7, "message": "no rights"}, 403),
            EtcdAuthError,
            "no rights",
        ),
        (
            json_reply({"code": 14, "message": "etcdserver: no leader"}, 503),
            EtcdConnectionError,
            "etcdserver: no leader",
        ),
        (
            reply(404, "404 page not found\n"),
            EtcdProtocolError,
            "does not serve etcd's v3 API",
        ),
        (reply(502, "<html>"), EtcdConnectionError, "HTTP status 502"),
        (
            reply(403, "<html>"),
            EtcdProtocolError,
            "something answered that is not etcd",
        ),
        (close(), EtcdConnectionError, "the connection broke"),
    ],
    ids=["refused", "no-leader", "404", "html-502", "html-403", "closed"],
)
def test_never_opened(connect, step, kind, words):
    """
    A stream that is not opened is an error of its kind that names the endpoint; where
    waiting may help, one watches elsewhere.
    """
    with refused_endpoint() as next_one, ScriptedServer([step]) as server:
        client = connect(server.endpoint, next_one)
        with pytest.raises(EtcdError) as caught:
            with watching(client):
                pytest.fail("it was never opened")

        text = str(caught.value)
        assert kind is type(caught.value)
        assert text.startswith(f"Could not watch it at {server.url}: ")
        assert words in text
        moved = kind is EtcdConnectionError
        assert (f"http://{next_one}" if moved else server.url) == str(
            client._transport.failover.current
        )
        assert 1 == len(server.requests)
        server.wait_for_open_connections(0)


def test_a_page_instead_of_a_stream(connect):
    """
    A page with status 200 is no stream.
    """
    with ScriptedServer([reply(200, "<html>hello</html>")]) as server:
        with pytest.raises(EtcdConnectionError, match="its answer is no stream"):
            with watching(connect(server.endpoint)):
                pytest.fail("it is no stream")

        server.wait_for_open_connections(0)


def test_nobody_there(connect):
    """
    A watch is one attempt; the next goes elsewhere.
    """
    with refused_endpoint() as refused:
        with ScriptedServer([chunks(CREATED, A, then=silence())]) as server:
            client = connect(refused, server.endpoint)
            with pytest.raises(EtcdConnectionError) as caught:
                with watching(client):
                    pytest.fail("nobody is there")

            said, _, tries = str(caught.value).partition(" (")
            assert (
                f"Could not watch it at http://{refused}: connection refused; is etcd "
                "running there?"
            ) == said
            assert re.fullmatch(r"1 try in \d+\.\d s\)\.", tries)

            with watching(client) as watch:
                assert ABC[:1] == told(watch.events(LONG_TIMEOUT), 1)


# -- the caller ends it ------------------------------------------------------------


def test_closed_in_the_end(connect):
    """
    The connection is closed when the caller is done, in the middle of events too.
    """
    with ScriptedServer(lambda _: chunks(CREATED, A, B, then=silence())) as server:
        client = connect(server.endpoint)
        with watching(client):
            server.wait_for_open_connections(1)
        server.wait_for_open_connections(0)
        with watching(client) as watch:
            assert ABC[:2] == told(watch.events(LONG_TIMEOUT), 2)
        server.wait_for_open_connections(0)

        assert server.url == str(client._transport.failover.current)


def test_closed_after_an_error_of_the_caller(connect):
    """
    The connection is closed when the caller fails, and the error is the caller's.
    """
    with ScriptedServer([chunks(CREATED, A, then=silence())]) as server:
        client = connect(server.endpoint)

        def fail():
            with watching(client) as watch:
                raise KeyError(*told(watch.events(LONG_TIMEOUT), 1))

        with pytest.raises(KeyError):
            fail()

        assert server.url == str(client._transport.failover.current)
        server.wait_for_open_connections(0)
