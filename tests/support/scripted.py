# SPDX-License-Identifier: BSD-3-Clause

"""
A loopback server whose bytes are written by the test.

    with ScriptedServer([json_reply({"header": {}}), close()]) as server:
        ...  # first request: a reply; second: the connection is closed
    assert ["/v3/kv/range", "/v3/kv/txn"] == server.paths

A *step* answers one request: bytes (sent as they are), or a callable that is
given the `Exchange`; a callable may itself return a step.  A script is a list of
steps, one a request in the order of their arrival, or one callable for all.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from . import _http

if TYPE_CHECKING:
    from typing_extensions import Self

#: What answers one request.
Step: TypeAlias = "bytes | Callable[[Exchange], Any]"

#: What a reply's body may be given as: a dict or list is sent as JSON.
Body: TypeAlias = "bytes | str | Mapping[str, Any] | list[Any] | None"

#: A fatal TLS alert (unexpected message), as a TLS peer sends it.
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x0a"

#: What a Go server that speaks TLS (etcd with certificates) says to plain HTTP.
HTTP_TO_TLS_SERVER = (
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
)

_JOIN_SECONDS = 5.0


@dataclass(frozen=True)
class Request:
    """
    A request as it came.

    Bytes that are not HTTP (a TLS hello) are a request whose method and path are
    empty and whose body is what came first.
    """

    method: str
    #: The path with its query, as on the request line.
    path: str
    #: By lower-case name.
    headers: Mapping[str, str]
    body: bytes
    #: Number of the connection, counted from 1.
    connection: int
    #: `time.monotonic()` when the whole request was there.
    at: float

    @property
    def json(self) -> Any:
        """
        The body, parsed.
        """
        return json.loads(self.body)


class Exchange:
    """
    One request and the means to answer it, or, for `on_connect`, none yet.
    """

    def __init__(
        self, server: ScriptedServer, sock: socket.socket, connection: int
    ) -> None:
        self.server = server
        self.sock = sock
        self.connection = connection
        self._request: Request | None = None
        self.closed = False

    @property
    def request(self) -> Request:
        """
        The request to be answered.
        """
        assert self._request is not None, "on_connect comes before any request"
        return self._request

    def send(self, data: bytes) -> None:
        """
        Send bytes as they are.
        """
        self.sock.sendall(data)

    def send_head(
        self, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """
        Send a status line and headers, nothing added.
        """
        self.send(_head(status, headers or {}))

    def send_chunk(self, data: Body) -> None:
        """
        Send one chunk; for JSON a second one with the newline, as etcd does.
        """
        for part in _chunk_payloads(data):
            self.send(b"%x\r\n%b\r\n" % (len(part), part))

    def end_chunks(self) -> None:
        """
        Send the closing chunk.
        """
        self.send(b"0\r\n\r\n")

    def close(self) -> None:
        """
        Close the connection.
        """
        self.closed = True
        _http.shut(self.sock)
        self.sock.close()

    def reset(self) -> None:
        """
        Reset the connection.
        """
        self.closed = True
        _http.reset(self.sock)

    def wait_gone(self, seconds: float | None = None) -> bool:
        """
        Wait until the client leaves, the server ends or *seconds* are over.

        Returns:
            Whether the client has left (or the server ends).
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        hang_up = getattr(select, "POLLRDHUP", 0) | select.POLLHUP
        is_tls = isinstance(self.sock, ssl.SSLSocket)
        while not self.server.ending.is_set():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poll = select.poll()
            poll.register(self.sock, hang_up if is_tls else hang_up | select.POLLIN)
            # A TLS socket, or unread bytes before the end, need another look.
            ready = poll.poll(1000 if left is None else min(left, 1.0) * 1000)
            if ready and (ready[0][1] & hang_up or _http.is_gone(self.sock)):
                return True
            if ready:
                self.server.ending.wait(0.01)
        return True

    def wait_for(self, event: threading.Event, seconds: float = 30.0) -> bool:
        """
        Wait for the test's *event*; False if the server ends or time is over.
        """
        deadline = time.monotonic() + seconds
        while not event.wait(0.005):
            if self.server.ending.is_set() or time.monotonic() > deadline:
                return False
        return True

    def run(self, step: Step) -> None:
        """
        Carry out a step.
        """
        while step is not None and not self.closed:
            if isinstance(step, (bytes, bytearray)):
                self.send(step)
                return
            step = step(self)


# -- steps -------------------------------------------------------------------------


def raw(data: bytes, then: Step | None = None) -> Step:
    """
    Send *data* as it is, then carry out *then* (default: keep the connection).
    """

    def step(exchange: Exchange) -> Step | None:
        exchange.send(data)
        return then

    return step


def reply(
    status: int = 200, body: Body = b"", headers: Mapping[str, str] | None = None
) -> Step:
    """
    A whole reply; text is sent as text/plain, a dict as JSON.

    Headers given replace the ones that would be sent (Content-Type,
    Content-Length).
    """
    payload, sent = _payload(body)
    sent["Content-Length"] = str(len(payload))
    return raw(_head(status, {**sent, **(headers or {})}) + payload)


def json_reply(
    body: Mapping[str, Any] | list[Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Step:
    """
    A whole reply with a JSON body.
    """
    return reply(status, body, headers)


def truncated(status: int = 200, body: Body = b"", then: Step | None = None) -> Step:
    """
    A reply that promises its whole body, sends half of it and closes.

    Args:
        status: The status.

        body: The whole body.

        then: What is done instead of closing.
    """
    payload, sent = _payload(body)
    sent["Content-Length"] = str(len(payload))
    half = payload[: len(payload) // 2]
    return raw(_head(status, sent) + half, then or close())


def chunks(
    *parts: Body | float | threading.Event | Callable[[Exchange], Any],
    then: Step | None = None,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Step:
    """
    A chunked reply, as a watch sends it.

    Args:
        parts: Bytes and text are a chunk each; a dict is a chunk of JSON and one
            with a newline. A number waits so many seconds, an event until the test
            sets it, and a callable does as it likes with the exchange.

        then: What follows the last part: by default the closing chunk. `close()`
            leaves it out, `silence()` keeps the stream open.

        status: The status.

        headers: Replaces Content-Type and Transfer-Encoding.
    """
    sent = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}

    def step(exchange: Exchange) -> Step | None:
        exchange.send(_head(status, {**sent, **(headers or {})}))
        for part in parts:
            if isinstance(part, threading.Event):
                exchange.wait_for(part)
            elif isinstance(part, (int, float)):
                if exchange.wait_gone(part):
                    exchange.close()
            elif callable(part):
                part(exchange)
            else:
                exchange.send_chunk(part)
            if exchange.closed:
                return None
        if then is not None:
            return then
        exchange.end_chunks()
        return None

    return step


def half_chunk(data: Body, then: Step | None = None) -> Callable[[Exchange], None]:
    """
    For `chunks`: a chunk that promises all of *data*, sends half and closes.
    """
    payload = b"".join(_chunk_payloads(data))

    def part(exchange: Exchange) -> None:
        exchange.send(b"%x\r\n%b" % (len(payload), payload[: len(payload) // 2]))
        exchange.run(then or close())
        exchange.close()

    return part


def close() -> Step:
    """
    Close the connection without a word.
    """
    return lambda exchange: exchange.close()


def reset() -> Step:
    """
    Reset the connection.
    """
    return lambda exchange: exchange.reset()


def silence(seconds: float | None = None, then: Step | None = None) -> Step:
    """
    Say nothing for *seconds* (None: for ever), then do *then* (default: close).

    It ends early when the client leaves or the server ends.
    """

    def step(exchange: Exchange) -> Step | None:
        if exchange.wait_gone(seconds):
            exchange.close()
            return None
        return then or close()

    return step


def after(seconds: float, step: Step) -> Step:
    """
    Carry out *step* after *seconds*, unless the client has left by then.
    """
    return silence(seconds, step)


def when(event: threading.Event, step: Step) -> Step:
    """
    Carry out *step* once the test sets *event* (close if it never does).
    """
    return lambda exchange: step if exchange.wait_for(event) else close()


# -- server ------------------------------------------------------------------------


class ScriptedServer:
    """
    A server on a free loopback port that follows a script.

    Leaving the context closes every socket, ends every thread and raises what a
    step raised (an assert in a step counts).

    Args:
        script: A list of steps, one a request in order of arrival, or a callable
            that answers every request. A request that comes after the end of the
            list is answered by *default*, and `overrun` counts it.

        default: The step for requests beyond the list: by default a plain-text 500.

        on_connect: A step carried out on each new connection before a request is
            read, or a list of them: one a connection, None or the end of the list
            meaning nothing special.

        ssl_context: Makes the server speak TLS. Failed handshakes are in
            `tls_errors`.

        host: The address to listen at; ``::1`` for IPv6.
    """

    def __init__(
        self,
        script: Iterable[Step] | Callable[[Exchange], Any] = (),
        *,
        default: Step | None = None,
        on_connect: Step | Iterable[Step | None] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._for_all = script if callable(script) else None
        self._steps: Iterator[Step] = iter(() if callable(script) else script)
        self._default = default or reply(500, "the test's script has ended\n")
        if callable(on_connect) or isinstance(on_connect, (bytes, bytearray)):
            self._on_all: Step | None = on_connect
            self._on_connect: Iterator[Step | None] = iter(())
        else:
            self._on_all = None
            self._on_connect = iter(on_connect or ())
        self._ssl_context = ssl_context
        self.host = host
        self.port = 0
        self.ending = threading.Event()
        #: Every request, in order of arrival.
        self.requests: list[Request] = []
        #: How many connections were accepted.
        self.connections = 0
        #: How many requests came after the end of the script.
        self.overrun = 0
        #: What steps raised; the first is raised again on leaving.
        self.errors: list[BaseException] = []
        self.tls_errors: list[Exception] = []
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._socks: set[socket.socket] = set()

    @property
    def endpoint(self) -> str:
        """
        ``127.0.0.1:PORT``, without a scheme.
        """
        return _http.join_endpoint(self.host, self.port)

    @property
    def url(self) -> str:
        """
        The endpoint with its scheme.
        """
        return f"{'https' if self._ssl_context else 'http'}://{self.endpoint}"

    @property
    def paths(self) -> list[str]:
        """
        The paths of the requests so far.
        """
        return [request.path for request in self.requests]

    @property
    def open_connections(self) -> int:
        """
        How many connections are open now.
        """
        with self._changed:
            return len(self._socks)

    def wait_for_requests(self, count: int, seconds: float = 10.0) -> list[Request]:
        """
        Wait until *count* requests have come; AssertionError if they do not.
        """
        with self._changed:
            ok = self._changed.wait_for(lambda: len(self.requests) >= count, seconds)
            assert ok, f"{len(self.requests)} of {count} requests in {seconds} s"
            return list(self.requests)

    def wait_for_open_connections(self, count: int, seconds: float = 10.0) -> None:
        """
        Wait until exactly *count* connections are open.
        """
        with self._changed:
            ok = self._changed.wait_for(lambda: len(self._socks) == count, seconds)
            assert ok, f"{len(self._socks)} connections, not {count}, in {seconds} s"

    def start(self) -> Self:
        """
        Listen.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.bind((self.host, 0))
            self._listener.listen(128)
        except OSError:
            self._listener.close()
            raise
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept, "accept")
        return self

    def close(self) -> None:
        """
        End: close all sockets and wait for all threads.
        """
        if self._listener is None:
            return
        self.ending.set()
        _http.shut(self._listener)
        with contextlib.suppress(OSError):
            # Wakes accept where a shutdown does not.
            socket.create_connection((self.host, self.port), 0.2).close()
        with self._changed:
            for sock in self._socks:
                _http.shut(sock)
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._listener.close()
        self._listener = None
        alive = [thread.name for thread in self._threads if thread.is_alive()]
        if alive:
            self.errors.append(AssertionError(f"a step does not end: {alive}"))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
        if self.errors and error is None:
            raise self.errors[0]

    def _spawn(self, target: Callable[..., None], name: str, *args: Any) -> None:
        thread = threading.Thread(
            target=target, args=args, name=f"scripted-{self.port}-{name}", daemon=True
        )
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self.ending.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                if self.ending.is_set():
                    sock.close()
                    return
                self.connections += 1
                number = self.connections
                self._socks.add(sock)
            self._spawn(self._serve, f"connection-{number}", sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        plain = sock
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ssl_context is not None:
                try:
                    sock = self._ssl_context.wrap_socket(sock, server_side=True)
                except OSError as exc:
                    self.tls_errors.append(exc)
                    return
                with self._changed:
                    self._socks.discard(plain)
                    self._socks.add(sock)
                    if self.ending.is_set():
                        return
            self._converse(Exchange(self, sock, number))
        except (OSError, _http.Truncated):
            pass  # The client went away, or we are ending.
        except BaseException as exc:
            self.errors.append(exc)
        finally:
            with self._changed:
                self._socks.discard(plain)
                self._socks.discard(sock)
                self._changed.notify_all()
            sock.close()
            plain.close()

    def _converse(self, exchange: Exchange) -> None:
        with self._changed:
            greeting = self._on_all or next(self._on_connect, None)
        if greeting is not None:
            exchange.run(greeting)
        reader = _http.Reader(exchange.sock)
        while not exchange.closed and not self.ending.is_set():
            request = self._read(reader, exchange.connection)
            if request is None:
                return
            exchange._request = request
            with self._changed:
                self.requests.append(request)
                self._changed.notify_all()
                step = self._for_all or next(self._steps, None)
                if step is None:
                    self.overrun += 1
                    step = self._default
            exchange.run(step)
            if request.headers.get("connection", "").lower() == "close":
                return
            if not request.method:
                return

    def _read(self, reader: _http.Reader, number: int) -> Request | None:
        is_http = reader.looks_like_http()
        if is_http is None:
            return None
        if not is_http:
            data = reader.take(len(reader.buffer))
            return Request("", "", {}, data, number, time.monotonic())
        head = reader.head()
        body = b"".join(part for _, part in reader.parts(head, reply_to=None))
        method, path, _ = head.words
        return Request(method, path, head.headers, body, number, time.monotonic())


# -- ports that are no server ------------------------------------------------------


@contextlib.contextmanager
def refused_endpoint() -> Iterator[str]:
    """
    An endpoint that refuses connections, and that nobody else can take meanwhile.
    """
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield _http.join_endpoint(*sock.getsockname())


@contextlib.contextmanager
def unanswered_endpoint() -> Iterator[str]:
    """
    An endpoint where a TCP connect is not answered (Linux): its queue is full.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            sock = stack.enter_context(socket.socket())
            sock.settimeout(0.2)
            try:
                sock.connect(listener.getsockname())
            except TimeoutError:
                break
        yield _http.join_endpoint(*listener.getsockname())


# -- bytes -------------------------------------------------------------------------


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Status"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def _payload(body: Body) -> tuple[bytes, dict[str, str]]:
    if body is None:
        return b"", {}
    if isinstance(body, (bytes, bytearray)):
        return bytes(body), {"Content-Type": "application/json"}
    if isinstance(body, str):
        return body.encode(), {"Content-Type": "text/plain; charset=utf-8"}
    return json.dumps(body).encode(), {"Content-Type": "application/json"}


def _chunk_payloads(data: Body) -> tuple[bytes, ...]:
    payload, _ = _payload(data)
    return (payload,) if isinstance(data, (bytes, bytearray, str)) else (payload, b"\n")
