# SPDX-License-Identifier: BSD-3-Clause

"""
Just enough HTTP/1.1 to read requests and replies off a socket, byte-exact.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterator


class Truncated(Exception):
    """
    The other side closed in the middle of a message.
    """


class Reader:
    """
    Reads messages off *sock* and remembers what came too early.

    Args:
        sock: A connected socket, plain or TLS.

        before_recv: Called before each ``recv``; may wait, or raise to get out.

        on_bytes: Called with the number of bytes of each ``recv``.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        before_recv: Callable[[], None] | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self.sock = sock
        self.buffer = bytearray()
        self._before_recv = before_recv
        self._on_bytes = on_bytes

    def fill(self) -> bool:
        """
        Receive once; False at the end of the stream.
        """
        if self._before_recv is not None:
            self._before_recv()
        data = self.sock.recv(65536)
        if not data:
            return False
        if self._on_bytes is not None:
            self._on_bytes(len(data))
        self.buffer += data
        return True

    def take(self, size: int) -> bytes:
        """
        Remove and return the first *size* buffered bytes.
        """
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def exactly(self, size: int) -> bytes:
        """
        Read *size* bytes.
        """
        while len(self.buffer) < size:
            if not self.fill():
                raise Truncated
        return self.take(size)

    def until(self, end: bytes) -> bytes:
        """
        Read up to and including *end*.
        """
        searched = 0
        while (at := self.buffer.find(end, searched)) < 0:
            searched = max(0, len(self.buffer) - len(end))
            if not self.fill():
                raise Truncated
        return self.take(at + len(end))

    def looks_like_http(self) -> bool | None:
        """
        Whether what comes starts as a method does; None at a clean end.

        HTTP/2, as gRPC speaks it, does not count.
        """
        if not self.buffer and not self.fill():
            return None
        return 0x41 <= self.buffer[0] <= 0x5A and not self.buffer.startswith(b"PRI ")

    def head(self) -> Head:
        """
        Read a request's or a reply's head.
        """
        return Head(self.until(b"\r\n\r\n"))

    def parts(
        self, head: Head, *, reply_to: str | None
    ) -> Iterator[tuple[bytes, bytes]]:
        """
        Yield the body as it comes, as pairs of (bytes on the wire, payload).

        A chunked body gives one pair a chunk, and the closing chunk as a pair
        without payload.

        Args:
            head: The message's head.

            reply_to: The request's method if the message is a reply.
        """
        if reply_to is not None and (
            reply_to == "HEAD" or head.status in (204, 304) or head.status < 200
        ):
            return
        if "chunked" in head.headers.get("transfer-encoding", "").lower():
            while True:
                size_line = self.until(b"\r\n")
                size = int(size_line.split(b";")[0], 16)
                if size == 0:
                    trailer = b""
                    while (line := self.until(b"\r\n")) != b"\r\n":
                        trailer += line
                    yield size_line + trailer + line, b""
                    return
                data = self.exactly(size + 2)
                yield size_line + data, data[:-2]
        length = head.headers.get("content-length")
        if length is not None:
            left = int(length)
            while left:
                if not self.buffer and not self.fill():
                    raise Truncated
                data = self.take(left)
                left -= len(data)
                yield data, data
        elif reply_to is not None:
            while self.buffer or self.fill():
                data = self.take(len(self.buffer))
                yield data, data


class Head:
    """
    A parsed head: the first line's three words, and headers by lower-case name.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        first, *lines = raw.decode("latin-1").split("\r\n")
        words = (*first.split(" ", 2), "", "")
        self.words = words[:3]
        self.headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if colon:
                self.headers[name.strip().lower()] = value.strip()

    @property
    def status(self) -> int:
        """
        The status of a reply.
        """
        return int(self.words[1])

    @property
    def streams(self) -> bool:
        """
        Whether the body has no length known in advance.
        """
        return "chunked" in self.headers.get("transfer-encoding", "").lower()


def is_gone(sock: socket.socket) -> bool:
    """
    Whether a readable plain socket is at its end; takes nothing off it.
    """
    try:
        return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except (BlockingIOError, InterruptedError):
        return False
    except OSError:
        return True


def reset(sock: socket.socket) -> None:
    """
    Close so that the other side gets a reset (RST) instead of an end (FIN).
    """
    try:
        pair = "hh" if sys.platform == "win32" else "ii"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(pair, 1, 0))
    except OSError:
        pass
    sock.close()


def shut(sock: socket.socket) -> None:
    """
    End both directions, which wakes a thread that waits on the socket.
    """
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def join_endpoint(host: str, port: int) -> str:
    """
    ``host:port``, with brackets around an IPv6 address.
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """
    Host and port of ``host:port``, ``[v6]:port`` or a URL of these.
    """
    host, _, port = endpoint.rsplit("://", maxsplit=1)[-1].rstrip("/").rpartition(":")
    return host.strip("[]"), int(port)
