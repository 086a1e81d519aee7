# SPDX-License-Identifier: BSD-3-Clause
"""
Links pass on what they get, unless they are cut.
"""

from __future__ import annotations

import socket

import pytest

from support.links import Link


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@pytest.fixture
def link(server):
    link = Link(server.getsockname)
    yield link
    link.close()


def connect(link):
    return socket.create_connection(("127.0.0.1", link.port), 5)


def look(sock, link):
    """
    Connect and wait for what comes.
    """
    sock.connect(("127.0.0.1", link.port))
    sock.recv(20)


def test_what_comes_in_goes_out(no_leaked_sockets, no_leaked_threads, server, link):
    """
    A link passes on bytes in both directions, and the end.
    """
    with connect(link) as client, server.accept()[0] as served:
        client.sendall(b"there")
        there = served.recv(10)
        served.sendall(b"back")
        back = client.recv(10)
        served.close()

        assert (there, back, client.recv(10)) == (b"there", b"back", b"")


def test_a_silent_link_keeps_back_what_comes(server, link):
    """
    Nothing passes a silent link, not even a new connection, until it is mended.
    """
    with connect(link) as client, server.accept()[0] as served:
        link.cut("silent")
        client.sendall(b"late")
        served.settimeout(0.2)
        with pytest.raises(TimeoutError):
            served.recv(10)
        link.heal()
        served.settimeout(5)

        assert served.recv(10) == b"late"


def test_a_link_that_resets_lets_nobody_in(server, link):
    """
    Its connections are reset, and so are new ones, until it is mended.
    """
    with connect(link) as client, server.accept()[0]:
        link.cut("reset")
        with pytest.raises(ConnectionResetError):
            client.recv(10)
    # It may come as early as that.
    with pytest.raises(ConnectionResetError), connect(link) as client:
        client.recv(10)
    link.heal()
    with connect(link) as client, server.accept()[0] as served:
        client.sendall(b"again")

        assert served.recv(10) == b"again"


def test_a_cut_is_for_one_source(server):
    """
    Where a link knows who connects, one may be cut off, and others not.
    """
    names = {}
    link = Link(server.getsockname, names.get)
    try:
        one, other = socket.socket(), socket.socket()
        for name, sock in (("one", one), ("other", other)):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
            names[sock.getsockname()[1]] = name
        link.cut("reset", "one")
        with one, other:
            other.connect(("127.0.0.1", link.port))
            with server.accept()[0] as served:
                served.sendall(b"for the other")

                assert other.recv(20) == b"for the other"
            with pytest.raises(ConnectionResetError):
                look(one, link)
    finally:
        link.close()
