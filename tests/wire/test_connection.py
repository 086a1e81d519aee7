# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The quick connection: HTTP/1.1 in every shape that a gateway or a proxy may give it.
"""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
from http.client import BadStatusLine, HTTPException, IncompleteRead, RemoteDisconnected

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_rendezvous._v3.connection import QuickHTTPConnection
from support.scripted import ScriptedServer, json_reply

pytestmark = pytest.mark.usefixtures("no_leaked_sockets")

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = (
    b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"3;x=y\r\nbod\r\n1\r\ny\r\n0\r\nTrailer: z\r\n\r\n"
)


@contextlib.contextmanager
def connected(timeout=5.0):
    """
    A connection, and the socket of the server that it is connected to.
    """
    ours, theirs = socket.socketpair()
    connection = QuickHTTPConnection("localhost", 1, timeout=timeout)
    connection.sock = ours
    with ours, theirs:
        yield connection, theirs
        connection.close()


def answer(*pieces, timeout=5.0, end=False):
    """
    Read the reply that is sent in pieces; return status, body, and what stays open.
    """
    with connected(timeout) as (connection, server):

        def send():
            for piece in pieces:
                server.sendall(piece)
                # So that they do not come as one.
                time.sleep(0.001 if len(pieces) > 1 else 0)
            if end:
                server.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            response = connection.getresponse()
        finally:
            sending.join()
        return response.status, response.data, not connection.is_closed


# -- replies -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "end", "expected"),
    [
        (PLAIN, False, (200, b"body", True)),
        (CHUNKED, False, (400, b"body", True)),
        (PLAIN.replace(b"\r\n", b"\n"), False, (200, b"body", True)),
        (PLAIN.replace(b"1.1", b"1.0", 1), False, (200, b"body", False)),
        (
            PLAIN.replace(b"\r\n", b"\r\nConnection: Close\r\n", 1),
            False,
            (200, b"body", False),
        ),
        (
            PLAIN.replace(b"Content-Length: 4", b"content-length:4"),
            False,
            (200, b"body", True),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nbody", True, (200, b"body", False)),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", False, (200, b"", True)),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, (204, b"", True)),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, False, (200, b"body", True)),
    ],
    ids=[
        "length",
        "chunks",
        "bare-newlines",
        "http-1.0",
        "closes",
        "lower-case",
        "no-length",
        "empty",
        "no-content",
        "continue",
    ],
)
def test_reply(reply, end, expected):
    """
    A reply is read to its end, and the connection stays where it may.
    """
    assert expected == answer(reply, end=end)
    assert expected == answer(*(bytes([byte]) for byte in reply), end=end)


@given(st.data())
def test_a_reply_in_pieces(data):
    """
    It does not matter where the network cuts a reply.
    """
    reply = data.draw(st.sampled_from([PLAIN, CHUNKED]))
    cut = data.draw(st.integers(0, len(reply)))

    assert b"body" == answer(reply[:cut], reply[cut:])[1]


@given(st.data())
def test_a_reply_that_breaks_off(data):
    """
    Wherever a reply breaks off, that is an error, and never half a body.
    """
    reply = data.draw(st.sampled_from([PLAIN, CHUNKED]))
    cut = data.draw(st.integers(0, len(reply) - 1))

    with pytest.raises(HTTPException) as caught:
        answer(reply[:cut], end=True)
    assert isinstance(caught.value, (IncompleteRead, RemoteDisconnected, BadStatusLine))


@given(st.binary(max_size=200))
def test_anything_else(reply):
    """
    Whatever is sent instead of a reply is an error of HTTP's.
    """
    with pytest.raises((HTTPException, ValueError)):
        answer(reply, end=True)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_few_letters_of_a_reply(size):
    """
    A reply that breaks off in its first word was one of HTTP's: what became of the
    request is open.
    """
    with pytest.raises(IncompleteRead):
        answer(PLAIN[:size], end=True)


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nbody\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nbody\r\n",
    ],
)
def test_lengths_that_are_none(reply):
    """
    A length that can't be one is an error of HTTP's, too.
    """
    with pytest.raises(HTTPException):
        answer(reply)


def test_more_than_a_reply():
    """
    What follows a reply is never taken for the next one.
    """
    assert (200, b"body", False) == answer(PLAIN + PLAIN)


def test_a_body_that_was_compressed():
    """
    A proxy may compress although it was not asked to.
    """
    body = gzip.compress(b"body")
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"

    assert b"body" == answer(head % len(body) + body)[1]


def test_large_bodies():
    """
    A body of many pieces is read, by its length and in chunks.
    """
    body = bytes(range(256)) * 40_000
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    chunk = b"%x\r\n%s\r\n" % (len(body) // 2, body[: len(body) // 2])
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

    assert body == answer(head + body)[1]
    assert body == answer(chunked + chunk * 2 + b"0\r\n\r\n")[1]


@pytest.mark.parametrize(
    "banner", [b"SSH-2.0-x\r\n", b"\x15\x03\x01\x00\x02\x02\x0a", b"HTTPS\n", b"H\n"]
)
def test_no_http(banner):
    """
    What does not speak HTTP is told at once, although it keeps the connection open.
    """
    with pytest.raises(BadStatusLine) as caught:
        answer(banner, timeout=20.0)
    assert banner[:1].decode() == caught.value.args[0][:1]


def test_a_line_without_end():
    """
    Headers that never end are not read for ever.
    """
    with pytest.raises(HTTPException):
        answer(b"HTTP/1.1 200 OK\r\n" + b"x" * 200_000, timeout=20.0)


# -- time --------------------------------------------------------------------------


@pytest.mark.measures
def test_a_reply_that_dribbles():
    """
    The time limit is that of the whole reply, although something comes all the time.
    """
    started = time.monotonic()
    # Not more than a socket holds: when the time is up, nobody reads them any more.
    with pytest.raises(TimeoutError):
        answer(*[b"HTTP/1.1 200 OK\r\n", *[b"x: y\r\n"] * 250], timeout=0.15)

    with connected(0.15) as (connection, server):
        over = threading.Event()

        def dribble():
            with contextlib.suppress(OSError):
                server.sendall(PLAIN[:-4].replace(b"4", b"400"))
                while not over.wait(0.02):
                    server.sendall(b"x")

        dribbling = threading.Thread(target=dribble)
        dribbling.start()
        started = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                connection.getresponse()
        finally:
            took = time.monotonic() - started
            over.set()
            dribbling.join()

    assert took < 1


# -- requests ----------------------------------------------------------------------


def test_a_request():
    """
    A request is one piece, with all that HTTP/1.1 wants.
    """
    with ScriptedServer([json_reply({"a": 1})] * 2) as server:
        host, port = server.endpoint.rsplit(":", 1)
        connection = QuickHTTPConnection(host, int(port), timeout=5.0)
        connection.request("POST", "/v3/x", body=b"{}", headers={"A": "b"})
        assert b'{"a": 1}' == connection.getresponse().data
        connection.request("GET", "/version")
        assert 200 == connection.getresponse().status
        connection.close()

        post, get = server.requests
        assert ("POST", "/v3/x", b"{}") == (post.method, post.path, post.body)
        assert {
            "host": server.endpoint,
            "accept-encoding": "identity",
            "a": "b",
            "content-length": "2",
        } == post.headers
        assert ("GET", "/version", b"") == (get.method, get.path, get.body)
        assert 1 == server.connections
