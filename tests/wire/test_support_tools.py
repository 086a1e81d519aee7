# SPDX-License-Identifier: BSD-3-Clause

"""
The tests' own tools do what the tests believe they do.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time

import pytest
import trustme
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from support.proxy import FaultProxy
from support.scripted import (
    HTTP_TO_TLS_SERVER,
    TLS_ALERT,
    ScriptedServer,
    after,
    chunks,
    close,
    half_chunk,
    json_reply,
    raw,
    refused_endpoint,
    reply,
    reset,
    silence,
    truncated,
    unanswered_endpoint,
    when,
)

# Expires in tests that wait for a time-out.
SHORT_TIMEOUT = 0.15
# Never expires in a test that passes.
LONG_TIMEOUT = 10.0

pytestmark = pytest.mark.usefixtures("no_leaked_sockets", "no_leaked_threads")


@pytest.fixture
def pool():
    with urllib3.PoolManager(retries=False, timeout=LONG_TIMEOUT) as manager:
        yield manager


def post(pool, endpoint, path="/v3/kv/txn", body=None, **kwargs):
    url = endpoint if "://" in endpoint else f"http://{endpoint}"
    return pool.request("POST", url + path, json=body or {"a": 1}, **kwargs)


def eventually(condition):
    deadline = time.monotonic() + LONG_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class TestScriptedServer:
    def test_follows_a_list_and_records(self, pool):
        """
        Each request gets its step, in order, and is recorded as it came.
        """
        with ScriptedServer([json_reply({"x": 1}), reply(400, "no"), b""]) as server:
            first = post(pool, server.endpoint, headers={"X-Thing": "7"})
            second = post(pool, server.url, "/v3/watch?a=b")

        assert (first.json(), first.status) == ({"x": 1}, 200)
        assert (second.data.decode(), second.status) == ("no", 400)
        assert second.headers["content-type"] == "text/plain; charset=utf-8"
        assert server.paths == ["/v3/kv/txn", "/v3/watch?a=b"]
        one, two = server.requests
        assert (one.method, one.json, one.headers["x-thing"]) == ("POST", {"a": 1}, "7")
        assert [one.connection, two.connection] == [1, 1]
        assert one.at < two.at
        assert (server.connections, server.overrun) == (1, 0)

    def test_a_callable_answers_every_request(self, pool):
        """
        A callable may write bytes, or return the step for the request.
        """

        def script(exchange):
            if exchange.request.path == "/a":
                return json_reply({"is": "a"})
            exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")
            return None

        with ScriptedServer(script) as server:
            statuses = [post(pool, server.endpoint, p).status for p in ("/a", "/b")]

        assert statuses == [200, 204]

    def test_a_request_too_many_is_counted(self, pool):
        """
        After the end of the script comes a plain-text 500.
        """
        with ScriptedServer() as server:
            assert post(pool, server.endpoint).status == 500
            assert server.overrun == 1

    @pytest.mark.parametrize(
        "step", [close(), reset(), truncated(200, {"a": 1}), silence(0.01)]
    )
    def test_lost_replies(self, pool, step):
        """
        Close, reset, half a reply and a short silence are protocol errors.
        """
        with ScriptedServer([step]) as server:
            with pytest.raises(ProtocolError) as caught:
                post(pool, server.endpoint)

        assert (step.__qualname__.startswith("reset")) == (
            "reset by peer" in str(caught.value)
        )

    def test_silence_is_a_read_timeout_and_ends_with_the_client(self, pool):
        """
        A silent connection stays open until its client leaves.
        """
        with ScriptedServer([silence()]) as server:
            with pytest.raises(ReadTimeoutError):
                post(pool, server.endpoint, timeout=SHORT_TIMEOUT)
            pool.clear()
            server.wait_for_open_connections(0)

    def test_accepted_then_silent(self, pool):
        """
        With on_connect the request is not even read.
        """
        with ScriptedServer(on_connect=silence()) as server:
            with pytest.raises(ReadTimeoutError):
                post(pool, server.endpoint, timeout=SHORT_TIMEOUT)

            eventually(lambda: server.connections == 1)
            assert server.requests == []

    def test_a_chunked_stream_comes_as_it_is_sent(self, pool):
        """
        The second event comes when the test says so, not before.
        """
        go = threading.Event()
        script = [chunks({"n": 1}, go, {"n": 2}, half_chunk({"result": 3}))]
        with ScriptedServer(script) as server:
            response = post(pool, server.endpoint, preload_content=False)
            stream = response.stream()

            assert json.loads(next(stream)) == {"n": 1}
            assert next(stream) == b"\n"
            go.set()
            assert json.loads(next(stream)) == {"n": 2}
            assert next(stream) == b"\n"
            with pytest.raises(ProtocolError):
                next(stream)
            response.close()

    def test_a_whole_stream_keeps_the_connection(self, pool):
        """
        The closing chunk ends the reply, not the connection.
        """
        with ScriptedServer([chunks({"n": 1}, 0.01, b"x"), reply()]) as server:
            assert post(pool, server.endpoint).data == b'{"n": 1}\nx'
            assert post(pool, server.endpoint).status == 200
            assert server.connections == 1

    def test_a_tls_hello_is_recorded_and_answered(self, pool):
        """
        Https to a plain server fails at once, whatever the server says.
        """
        script = [HTTP_TO_TLS_SERVER, TLS_ALERT]
        with ScriptedServer(script) as server:
            for _ in script:
                with pytest.raises(HTTPError):
                    post(pool, f"https://{server.endpoint}")

        assert [request.method for request in server.requests] == ["", ""]
        assert [request.body[0] for request in server.requests] == [0x16, 0x16]

    def test_tls(self):
        """
        With a context it speaks TLS, and failed handshakes are kept.
        """
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        script = [json_reply({}), silence()]
        with ScriptedServer(script, ssl_context=context) as server:
            with urllib3.PoolManager(retries=False, ssl_context=trust) as pool:
                assert post(pool, server.url).status == 200
                with pytest.raises(ReadTimeoutError):
                    post(pool, server.url, timeout=SHORT_TIMEOUT)
            server.wait_for_open_connections(0)
            with urllib3.PoolManager(retries=False) as pool:
                with pytest.raises(HTTPError):
                    post(pool, server.url)
                with pytest.raises(HTTPError):
                    post(pool, server.endpoint)
            eventually(lambda: len(server.tls_errors) == 2)

    def test_what_a_step_raises_is_raised_on_leaving(self, pool):
        """
        An assert in a step fails the test.
        """

        def step(exchange):
            assert exchange.request.json == {"never": 1}

        server = ScriptedServer(step).start()
        with pytest.raises(ProtocolError):
            post(pool, server.endpoint)
        with pytest.raises(AssertionError, match="never"):
            server.__exit__(None, None, None)

    def test_leaving_ends_what_waits(self):
        """
        Neither silence nor a forgotten event holds up the end.
        """
        start = time.monotonic()
        with ScriptedServer(
            [silence(), when(threading.Event(), reply()), after(60, reply())]
        ) as server:
            socks = [
                socket.create_connection((server.host, server.port)) for _ in range(3)
            ]
            for sock in socks:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            server.wait_for_requests(3)
        for sock in socks:
            sock.close()

        assert time.monotonic() - start < 3

    def test_ipv6(self, pool):
        """
        It listens on IPv6 loopback too.
        """
        with ScriptedServer([reply()], host="::1") as server:
            assert server.endpoint.startswith("[::1]:")
            assert post(pool, server.endpoint).status == 200

    def test_ports_that_do_not_answer(self, pool):
        """
        One port refuses, another one lets the connect time out.
        """
        with refused_endpoint() as endpoint, pytest.raises(NewConnectionError):
            post(pool, endpoint)
        with unanswered_endpoint() as endpoint, pytest.raises(ConnectTimeoutError):
            post(pool, endpoint, timeout=SHORT_TIMEOUT)


@pytest.fixture
def server():
    """
    Answers with how many requests came before; /v3/watch streams until cut.
    """

    def script(exchange):
        if exchange.request.path.startswith("/v3/watch"):
            return chunks({"n": 1}, {"n": 2}, then=silence())
        return json_reply({"n": len(exchange.server.requests)})

    with ScriptedServer(script) as scripted:
        yield scripted


@pytest.fixture
def proxied(server, make_proxy):
    return make_proxy(server.endpoint)


class TestFaultProxy:
    def test_passes_and_counts(self, pool, server, proxied):
        """
        Requests by path, and every byte on the client's side.
        """
        got = post(pool, proxied.endpoint, "/v3/kv/range?q=1")
        post(pool, proxied.endpoint)

        assert got.json() == {"n": 1}
        assert dict(proxied.requests) == {"/v3/kv/range": 1, "/v3/kv/txn": 1}
        assert server.paths == ["/v3/kv/range?q=1", "/v3/kv/txn"]
        assert (proxied.total_requests, proxied.connections) == (2, 1)
        assert (
            proxied.log[0].query,
            proxied.log[0].json,
            proxied.log[0].status,
            proxied.log[0].reply_json,
            proxied.log[0].fate,
        ) == ("q=1", {"a": 1}, 200, {"n": 1}, "passed")

        proxied.reset_counts()
        with socket.create_connection(("127.0.0.1", proxied.port)) as sock:
            request = b"POST /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
            sock.sendall(request)
            answer = sock.recv(4096)

            assert answer.endswith(b'{"n": 3}')
            assert len(request) == proxied.bytes_to_server
            assert len(answer) == proxied.bytes_to_client
            assert dict(proxied.requests) == {"/x": 1}

    @pytest.mark.parametrize("mode", ["close", "reset", "half"])
    def test_swallows_what_the_server_answered(self, pool, server, proxied, mode):
        """
        The server has the request, the client has an error, and only n are lost.
        """
        proxied.swallow(2, "/v3/kv/txn", mode=mode)
        with proxied.expect_swallowed(2):
            assert post(pool, proxied.endpoint, "/v3/kv/range").status == 200
            for _ in range(2):
                with pytest.raises(ProtocolError) as caught:
                    post(pool, proxied.endpoint)
                assert (mode == "reset") == ("reset by peer" in str(caught.value))
                assert (mode == "half") == ("IncompleteRead" in str(caught.value))
            assert post(pool, proxied.endpoint).status == 200

        assert ["/v3/kv/range", *["/v3/kv/txn"] * 3] == server.paths
        assert proxied.swallowed == 2
        assert [one.reply_json["n"] for one in proxied.swallowed_replies] == [2, 3]

    def test_swallows_in_silence(self, pool, server, proxied):
        """
        The connection stays open and nothing comes.
        """
        with proxied.swallow(1, mode="silent"), proxied.expect_swallowed(1):
            # Long enough for the server to have answered.
            with pytest.raises(ReadTimeoutError):
                post(pool, proxied.endpoint, timeout=1.5)

            assert len(server.requests) == 1
            assert post(pool, proxied.endpoint).status == 200

    def test_swallowed_bytes_are_not_counted(self, pool, proxied):
        """
        What did not reach the client is not in bytes_to_client.
        """
        proxied.swallow()
        with pytest.raises(ProtocolError):
            post(pool, proxied.endpoint)

        assert proxied.bytes_to_client == 0

    def test_too_few_swallowed_fails(self, pool, proxied):
        """
        A test whose fault did not happen does not pass.
        """
        proxied.swallow(2)
        with pytest.raises(AssertionError, match="swallowed 1 replies, the test needs"):
            with proxied.expect_swallowed(2), pytest.raises(ProtocolError):
                post(pool, proxied.endpoint)
        with pytest.raises(AssertionError, match="swallow: 0 of 1 requests came"):
            with proxied.swallow(1, "/never"):
                assert proxied.swallowed == 1

    def test_expectation_does_not_hide_an_error(self, proxied):
        """
        The error of the block is the one that is seen.
        """
        with pytest.raises(KeyError), proxied.expect_swallowed(1):
            raise KeyError

    def test_swallows_by_request_and_reply(self, pool, proxied):
        """
        A callable chooses by method, path and body; another one by the reply.
        """
        proxied.swallow(
            1,
            lambda method, path, body: (
                (method, path) == ("POST", "/a") and b"7" in body
            ),
            when_reply=lambda status, body: status == 200 and b'"n": 4' in body,
        )
        assert post(pool, proxied.endpoint, "/a").status == 200  # The body.
        assert post(pool, proxied.endpoint, "/b", {"a": 7}).status == 200  # The path.
        assert post(pool, proxied.endpoint, "/a", {"a": 7}).status == 200  # The reply.
        assert proxied.swallowed == 0
        with pytest.raises(ProtocolError):
            post(pool, proxied.endpoint, "/a", {"a": 7})

        assert proxied.swallowed == 1

    def test_holds(self, pool, server, proxied):
        """
        Held requests reach the server when they are released.
        """
        hold = proxied.hold("/v3/kv")
        results = []
        thread = threading.Thread(
            target=lambda: results.append(post(pool, proxied.endpoint).status)
        )
        thread.start()
        hold.wait(1)

        assert (hold.waiting, server.requests) == (1, [])
        hold.release()
        thread.join(LONG_TIMEOUT)
        assert results == [200]
        assert post(pool, proxied.endpoint).status == 200

    @pytest.mark.parametrize("late", [False, True])
    def test_holds_beyond_the_client(self, pool, server, proxied, late):
        """
        What the client gave up reaches the server only if it is to be late.
        """
        with proxied.hold(n=1, late=late) as hold:
            with pytest.raises(ReadTimeoutError):
                post(pool, proxied.endpoint, timeout=SHORT_TIMEOUT)
            hold.wait(1)
            if not late:
                eventually(lambda: hold.waiting == 0)
        if late:
            server.wait_for_requests(1)
        eventually(lambda: proxied.open_connections == 0)

        assert (1 if late else 0) == len(server.requests)
        assert ("late" if late else "dropped") == proxied.log[0].fate

    def test_drops_what_is_held(self, pool, server, proxied):
        """
        Dropped requests never reach the server.
        """
        hold = proxied.hold()

        def drop():
            hold.wait(1)
            hold.drop()

        dropping = threading.Thread(target=drop)
        dropping.start()
        with pytest.raises(ProtocolError):
            post(pool, proxied.endpoint)
        dropping.join()

        assert server.requests == []

    @pytest.mark.parametrize("what", ["request", "reply"])
    @pytest.mark.measures
    def test_delays(self, pool, server, proxied, what):
        """
        A delay is before the server has the request, or after.
        """
        proxied.delay(0.5, n=1, what=what)
        start = time.monotonic()
        post(pool, proxied.endpoint)
        end = time.monotonic()

        assert end - start >= 0.5
        assert (server.requests[0].at - start >= 0.5) == (what == "request")
        post(pool, proxied.endpoint)
        assert time.monotonic() - end < 0.5

    def test_streams_pass_as_they_come(self, pool, server, proxied):
        """
        Events pass while the stream is open, and its end reaches the server.
        """
        response = post(pool, proxied.endpoint, "/v3/watch", preload_content=False)
        stream = response.stream()

        got = [next(stream) for _ in range(4)]
        assert got == [b'{"n": 1}', b"\n", b'{"n": 2}', b"\n"]
        assert proxied.streams == 1
        response.close()
        server.wait_for_open_connections(0)
        proxied.wait_for_streams(0)

    @pytest.mark.parametrize("mode", ["close", "reset", "half", "silent"])
    def test_cuts_open_streams(self, pool, server, proxied, mode):
        """
        A stream that is open is cut now.
        """
        response = post(
            pool,
            proxied.endpoint,
            "/v3/watch",
            preload_content=False,
            timeout=urllib3.Timeout(read=1.5 if mode == "silent" else LONG_TIMEOUT),
        )
        stream = response.stream()
        for _ in range(4):
            next(stream)

        assert proxied.cut_streams(mode, "/elsewhere") == 0
        assert proxied.cut_streams(mode) == 1
        proxied.wait_for_streams(0)
        with pytest.raises(ReadTimeoutError if mode == "silent" else ProtocolError):
            next(stream)
        response.close()
        server.wait_for_open_connections(0)
        eventually(lambda: proxied.log[0].fate == "cut")

    @pytest.mark.parametrize(
        ("mode", "after"), [("close", 2), ("half", 1), ("reset", 0)]
    )
    def test_cuts_the_next_stream(self, pool, proxied, mode, after):
        """
        The next stream is cut after so many chunks, the one after it is not.
        """
        with proxied.cut(1, after=after, mode=mode):
            with pytest.raises(ProtocolError):
                post(pool, proxied.endpoint, "/v3/watch")

        sent = b"".join(one.reply for one in proxied.log)
        assert [b"", b'{"n": 1}', b'{"n": 1}\n'][after] == sent
        response = post(pool, proxied.endpoint, "/v3/watch", preload_content=False)
        assert next(response.stream()) == b'{"n": 1}'
        response.close()

    def test_swallows_a_watch(self, pool, proxied):
        """
        A watch never ends: it is swallowed at its first chunk.
        """
        with proxied.swallow(1, "/v3/watch"), pytest.raises(ProtocolError):
            post(pool, proxied.endpoint, "/v3/watch")

        assert proxied.swallowed == 1

    def test_down_refuses_and_up_accepts_again(self, pool, proxied):
        """
        While down, connections are refused; the port stays the same.
        """
        endpoint = proxied.endpoint
        post(pool, endpoint)
        proxied.down()
        with pytest.raises((NewConnectionError, ProtocolError)):
            post(pool, endpoint)  # The kept connection may be tried first.
        with pytest.raises(NewConnectionError):
            post(pool, endpoint)
        proxied.up()

        assert endpoint == proxied.endpoint
        assert post(pool, endpoint).status == 200

    def test_a_server_that_is_gone_closes(self, pool, make_proxy):
        """
        The proxy cannot refuse any more: it closes, and says 'failed'.
        """
        with refused_endpoint() as nowhere:
            proxied = make_proxy(nowhere)
            with pytest.raises(ProtocolError):
                post(pool, proxied.endpoint)

            assert proxied.log[0].fate == "failed"

    def test_an_idle_close_of_the_server_is_passed(self, pool, make_proxy):
        """
        A server that closes an idle connection closes the client's too.
        """
        bye = threading.Event()

        def script(exchange):
            exchange.run(reply())
            exchange.wait_for(bye)
            exchange.close()

        with ScriptedServer(script) as server:
            proxied = make_proxy(server.endpoint)
            post(pool, proxied.endpoint)
            assert proxied.open_connections == 1
            bye.set()
            eventually(lambda: proxied.open_connections == 0)

    def test_chunked_requests_and_replies(self, pool, make_proxy):
        """
        Both framings pass in both directions, on one connection.
        """

        def script(exchange):
            return chunks(exchange.request.body, exchange.request.body[::-1])

        with ScriptedServer(script) as server:
            proxied = make_proxy(server.endpoint)
            for _ in range(2):
                got = pool.request(
                    "PUT", f"http://{proxied.endpoint}/c", body=iter([b"ab", b"cd"])
                )
                assert got.data == b"abcddcba"

        assert proxied.log[0].body == b"abcd"
        assert proxied.connections == 1

    def test_a_reply_without_length_ends_with_its_connection(self, pool, make_proxy):
        """
        The oldest framing passes too.
        """
        with ScriptedServer([raw(HTTP_TO_TLS_SERVER, close()), reply()]) as server:
            proxied = make_proxy(server.endpoint)
            got = post(pool, proxied.endpoint)

            assert (got.status, got.data[:11]) == (400, b"Client sent")
            assert post(pool, proxied.endpoint).status == 200

    def test_large_bodies(self, pool, make_proxy):
        """
        Megabytes pass unharmed.
        """
        data = bytes(range(256)) * 8192
        with ScriptedServer(
            lambda exchange: reply(200, exchange.request.body)
        ) as server:
            proxied = make_proxy(server.endpoint)
            got = pool.request("POST", f"http://{proxied.endpoint}/", body=data)

        assert data == got.data
        assert proxied.bytes_to_client > len(data) < proxied.bytes_to_server

    def test_tls_passes_blindly(self, make_proxy):
        """
        Of TLS only bytes are counted; the proxy can still be down.
        """
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        with ScriptedServer(lambda _: reply(), ssl_context=context) as server:
            proxied = make_proxy(server.endpoint)
            with urllib3.PoolManager(retries=False, ssl_context=trust) as pool:
                assert post(pool, f"https://{proxied.endpoint}").status == 200
                assert proxied.total_requests == 0
                assert proxied.bytes_to_client > 100 < proxied.bytes_to_server

    def test_many_connections_at_once(self, server, proxied):
        """
        Sixty-four threads lose exactly as many replies as were asked for.
        """
        proxied.swallow(10)
        lost = []

        def one():
            with urllib3.PoolManager(retries=False, timeout=LONG_TIMEOUT) as pool:
                for _ in range(5):
                    try:
                        post(pool, proxied.endpoint)
                    except ProtocolError as exc:
                        lost.append(exc)

        threads = [threading.Thread(target=one) for _ in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_TIMEOUT)

        assert (len(lost), proxied.swallowed, len(server.requests)) == (10, 10, 320)

    def test_leaving_ends_everything_at_once(self, server):
        """
        Held, silent, idle and streaming connections do not hold up the end.
        """
        socks = []
        start = time.monotonic()
        with FaultProxy("127.0.0.1", server.port) as proxied:
            proxied.hold("/held")
            proxied.delay(60, "/delayed")
            proxied.swallow(1, "/silent", mode="silent")
            for path in ("held", "delayed", "silent", "v3/watch", "plain"):
                socks.append(socket.create_connection(("127.0.0.1", proxied.port)))
                socks[-1].sendall(b"GET /%b HTTP/1.1\r\n\r\n" % path.encode())
            proxied.wait_for_requests(5)
            proxied.wait_for_streams(1)
        for sock in socks:
            sock.close()

        assert time.monotonic() - start < 3
        assert proxied.open_connections == 0


def test_nothing_but_loopback(pool):
    """
    A test that tries to leave this machine fails, and is not taken for an outage.
    """
    with pytest.raises(AssertionError, match=r"a test connects to \('192\.0\.2\.1'"):
        post(pool, "192.0.2.1:2379")
