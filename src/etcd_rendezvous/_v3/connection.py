# SPDX-License-Identifier: BSD-3-Clause
"""
Connections of urllib3 that are quick with small requests.

A request to a local etcd takes a third of a millisecond, and as much again goes into
``http.client``, above all into its parser of headers, made for mail. So these
connections write and read HTTP/1.1 themselves, as far as a gateway that answers in JSON
needs it: a request in one piece, a reply that is read to its end, or as it comes.
Connecting, TLS, time-outs and pools remain urllib3's, and so do its exceptions.
"""

from __future__ import annotations

import io
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from http.client import BadStatusLine, IncompleteRead, LineTooLong, RemoteDisconnected
from typing import Any, Final

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ProtocolError

__all__ = ["QuickHTTPConnection", "QuickHTTPSConnection", "Reply", "Stream"]

_PIECE: Final = 65_536
_LONGEST_LINE: Final = 65_536
_MOST_DIGITS: Final = 18
_WITHOUT_BODY: Final = frozenset({204, 304})
_GOOD: Final = 200
_ENCODING: Final = "content-encoding"
_DATE: Final = "date"
# Of the headers of a reply, those that say how to read it, and when it was made. The
# rest tells us nothing.
_HEEDED: Final = {
    name.encode(): name
    for name in (_ENCODING, "connection", "content-length", _DATE, "transfer-encoding")
}


class Reply(urllib3.HTTPResponse):
    """
    A reply that was read to its end.

    Attributes:
        date: When it was made by its server's clock, as HTTP writes it; None if it does
            not say.
    """

    date: str | None = None


class _Reader:
    """
    What has been received, and what is yet to come.

    Every error of the socket comes out of it as it is.

    Args:
        sock: The socket.
        timeout: The seconds for all of the reply; None for no limit.
    """

    def __init__(self, sock: socket.socket, timeout: float | None) -> None:
        self._sock = sock
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._data = b""

    def _receive(self, size: int) -> bytes:
        """
        Receive what is there, once something is; nothing at the end.
        """
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left)
        try:
            return self._sock.recv(size)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            raise
        except ssl.SSLError as error:
            if "alert" in str(error).lower():
                raise  # of the handshake: a client's certificate is refused only now
            # The handshake was fine: what was sent may have arrived.
            raise ConnectionAbortedError(f"TLS broke: {error}") from error

    def more(self) -> bool:
        """
        Receive the next piece; return whether there was one.
        """
        piece = self._receive(_PIECE)
        self._data += piece
        return bool(piece)

    def status_line(self) -> bytes:
        """
        Read the first line of a reply; what is no HTTP is refused at once.

        Raises:
            BadStatusLine: It is no HTTP.
            RemoteDisconnected: There is nothing.
        """
        if not self._data and not self.more():
            raise RemoteDisconnected("Remote end closed connection without response")
        while not self._data.startswith(b"HTTP/"):
            if not b"HTTP/".startswith(self._data):
                line, _, _ = self._data.partition(b"\n")
                raise BadStatusLine(line[:200].decode("latin-1").rstrip())
            if not self.more():
                raise IncompleteRead(self._data)
        return self.line()

    def line(self) -> bytes:
        """
        Read a line, without its end.
        """
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) > _LONGEST_LINE:
                raise LineTooLong("reply")
            if not self.more():
                raise IncompleteRead(self._data)
        line, self._data = self._data[:end], self._data[end + 1 :]
        return line.removesuffix(b"\r")

    def exactly(self, size: int) -> bytes:
        """
        Read a number of bytes.
        """
        pieces = [self._data]
        missing = size - len(self._data)
        while missing > 0:
            piece = self._receive(min(missing, 16 * _PIECE))
            if not piece:
                raise IncompleteRead(b"".join(pieces), missing)
            pieces.append(piece)
            missing -= len(piece)
        data = b"".join(pieces)
        data, self._data = data[:size], data[size:]
        return data

    def chunks(self) -> Iterator[bytes]:
        """
        Yield the chunks of a body that comes so, each when it is there.
        """
        while True:
            line = self.line()
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raise IncompleteRead(line) from None
            if size < 0:
                raise IncompleteRead(line)
            if not size:
                break
            yield self.exactly(size)
            self.line()
        while self.line():
            pass  # what may follow a body: nothing that matters

    def unlimited(self) -> None:
        """
        Let what is still to come take any time.
        """
        self._deadline = None

    def to_the_end(self) -> bytes:
        """
        Read until the server closes the connection.
        """
        pieces = [self._data]
        while piece := self._receive(_PIECE):
            pieces.append(piece)
        return b"".join(pieces)

    @property
    def is_empty(self) -> bool:
        """
        Whether nothing has come that was not read.
        """
        return not self._data


class Stream(urllib3.HTTPResponse):
    """
    A good reply that comes in chunks, and is read as they come.

    Args:
        reader: What it is read from.
        about: What urllib3's response takes.
    """

    def __init__(self, reader: _Reader, **about: Any) -> None:
        super().__init__(preload_content=False, **about)
        self._reader = reader

    def chunks(self) -> Iterator[bytes]:
        """
        Yield the chunks, each when it is there.

        Raises:
            OSError: Nothing came in time, or the connection broke.
            ProtocolError: It breaks off.
        """
        try:
            yield from self._reader.chunks()
        except (IncompleteRead, LineTooLong) as error:
            raise ProtocolError("it breaks off") from error


class _Quick(HTTPConnection):
    """
    What both kinds of connection have in common.
    """

    _asked: tuple[str, str] = ("", "")
    _streams = False

    def request(  # type: ignore[override]
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        preload_content: bool = True,
        **_: Any,
    ) -> None:
        """
        Send a request in one piece.

        Args:
            method: The method.
            url: The path.
            body: The body.
            headers: The headers, besides ``Host``, ``Accept-Encoding`` and
                ``Content-Length``.
            preload_content: Whether the reply is read to its end; else a good one that
                comes in chunks is a :class:`Stream`.
        """
        if self.sock is None:
            self.connect()
        else:
            self.sock.settimeout(self.timeout)
        self._asked = method, url
        self._streams = not preload_content
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [
            f"{method} {url} HTTP/1.1",
            f"Host: {host}:{self.port}",
            "Accept-Encoding: identity",
        ]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines) + "\r\n\r\n"
        self.sock.sendall(head.encode("latin-1") + (body or b""))

    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]
        """
        Read the reply, to its end unless it is a stream.

        Raises:
            BadStatusLine: It is no HTTP.
            HTTPException: It breaks off.
            OSError: Nothing came in time, or the connection broke.
        """
        reader = _Reader(self.sock, self.timeout)
        version, status, reason, headers = _head(reader)
        while 100 <= status < 200:
            version, status, reason, headers = _head(reader)
        length = headers.get("content-length", "")
        stays = version == b"HTTP/1.1"
        if "close" in headers.get("connection", "").lower():
            stays = False
        chunked = "chunked" in headers.get("transfer-encoding", "").lower()
        if self._streams and status == _GOOD and chunked:
            reader.unlimited()
            return Stream(reader, status=status, sock_shutdown=self.sock.shutdown)
        if status in _WITHOUT_BODY:
            body = b""
        elif chunked:
            body = b"".join(reader.chunks())
        elif length.isdecimal():
            if len(length) > _MOST_DIGITS:
                raise IncompleteRead(b"")
            body = reader.exactly(int(length))
        else:
            stays = False
            body = reader.to_the_end()
        # Whatever follows a reply is no answer to the next request.
        if not stays or not reader.is_empty:
            self.close()
        method, url = self._asked
        encoded = _ENCODING in headers
        answer = Reply(
            # urllib3 wants something to read from where it is to decode.
            body=body if body and not encoded else io.BytesIO(body),
            headers={_ENCODING: headers[_ENCODING]} if encoded else None,
            status=status,
            reason=reason,
            request_method=method,
            request_url=url,
        )
        answer.date = headers.get(_DATE)
        return answer


def _head(reader: _Reader) -> tuple[bytes, int, str, dict[str, str]]:
    """
    Read what stands before a body.

    Returns:
        The version, the status, its reason, and the headers that are heeded.
    """
    line = reader.status_line()
    version, _, rest = line.partition(b" ")
    number, _, reason = rest.partition(b" ")
    if len(number) != 3 or not number.isdigit():
        raise BadStatusLine(line[:200].decode("latin-1"))
    headers: dict[str, str] = {}
    while line := reader.line():
        name, _, value = line.partition(b":")
        heeded = _HEEDED.get(name.strip().lower())
        if heeded is not None:
            headers[heeded] = value.strip().decode("latin-1")
    return version, int(number), reason.decode("latin-1"), headers


class QuickHTTPConnection(_Quick):
    """
    A connection without TLS.
    """


class QuickHTTPSConnection(_Quick, HTTPSConnection):
    """
    A connection with TLS.
    """
