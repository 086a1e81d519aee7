# SPDX-License-Identifier: BSD-3-Clause
"""
A proxy that puts rubbish in the place of replies.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading

from support import _http

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

#: What comes instead of a reply, in turn.
RUBBISH = (
    b"\x00\xff\x13\x37" * 8,
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n\xff\xfe\xfd\xfc\xfb",
    JSON + b'Content-Length: 9\r\n\r\n{"header"',
    JSON + b"Content-Length: 2\r\n\r\n[]",
    JSON + b"Content-Length: 4\r\n\r\nnull",
    JSON + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    JSON + b"Content-Length: 400\r\n\r\n{",
    b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 12\r\n\r\nBad Gateway\n",
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
    b"",
)


class Garbler:
    """
    A proxy before an endpoint. Requests are forwarded, their replies read and, as often
    as is wanted, thrown away for rubbish.
    """

    def __init__(self, endpoint):
        self._target = _http.split_endpoint(endpoint)
        self._lock = threading.Lock()
        self._rubbish = itertools.cycle(RUBBISH)
        self._sockets = set()
        self._threads = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        #: How many replies are still to be garbled.
        self.left = 0
        self._start(self._accept)

    def garble(self, count):
        """
        Garble the second reply on each of the next connections, so many in all.
        """
        with self._lock:
            self.left = count

    def __enter__(self):
        return self

    def __exit__(self, *_):
        _http.shut(self._listener)
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            _http.shut(sock)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _start(self, function, *arguments):
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                self._start(self._serve, self._listener.accept()[0])

    def _serve(self, client):
        with contextlib.suppress(OSError, _http.Truncated), contextlib.closing(client):
            with socket.create_connection(self._target, 3) as server:
                server.settimeout(None)
                with self._lock:
                    self._sockets |= {client, server}
                try:
                    self._exchange(_http.Reader(client), _http.Reader(server))
                finally:
                    with self._lock:
                        self._sockets -= {client, server}

    def _exchange(self, client, server):
        for number in itertools.count():
            head = client.head()
            server.sock.sendall(head.raw)
            for wire, _ in client.parts(head, reply_to=None):
                server.sock.sendall(wire)
            reply = server.head()
            rubbish = self._next(number)
            if rubbish is None:
                client.sock.sendall(reply.raw)
            for wire, _ in server.parts(reply, reply_to=head.words[0]):
                if rubbish is None:
                    client.sock.sendall(wire)
            if rubbish is not None:
                client.sock.sendall(rubbish)
                return

    def _next(self, number):
        with self._lock:
            if not self.left or number % 2 == 0:
                return None
            self.left -= 1
            return next(self._rubbish)
