# SPDX-License-Identifier: BSD-3-Clause

"""
A loopback proxy that loses replies on purpose, and counts what passes.

    with FaultProxy(host, port) as proxy:
        proxy.swallow(1, "/v3/kv/txn")
        with proxy.expect_swallowed(1):
            ...  # the server applies the transaction, its reply never comes

It understands HTTP/1.1 (keep-alive, Content-Length and chunked bodies both ways)
and passes streams through as they come.  What is not HTTP/1, such as TLS and gRPC,
is passed through blindly: counted in bytes only.

The proxy accepts before it connects to the server, so a server that is down shows
as a connection closed without a reply; for a refused connection use `down`.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import _http

if TYPE_CHECKING:
    from typing_extensions import Self

#: How a reply or a stream is lost: the connection is closed, reset, kept open in
#: silence, or closed after half of the reply.
Mode = Literal["close", "reset", "silent", "half"]

#: Which requests: all, those whose path starts so, or those the callable likes,
#: which is given method, path (without query) and body.
Match: TypeAlias = "Callable[[str, str, bytes], bool] | str | None"

_JOIN_SECONDS = 5.0


@dataclass
class Passed:
    """
    A request that came to the proxy, and what became of it.
    """

    method: str
    #: The path without its query.
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    #: Number of the client's connection, counted from 1.
    connection: int
    #: `time.monotonic()` when the whole request was there.
    at: float
    #: The server's status; None as long as it has not answered.
    status: int | None = None
    #: The server's body, as far as it was read.
    reply: bytes = field(default=b"", repr=False)
    #: `passed` (or on its way), `swallowed`, `cut`, `dropped` (never forwarded),
    #: `late` (forwarded after its client had gone) or `failed` (the server or the
    #: client went away).
    fate: str = "passed"

    @property
    def json(self) -> Any:
        """
        The request's body, parsed.
        """
        return json.loads(self.body)

    @property
    def reply_json(self) -> Any:
        """
        The reply's body, parsed.
        """
        return json.loads(self.reply)


class Rule:
    """
    What is to happen to some requests; made by the proxy's methods.

    As a context manager it ends with the block, and raises AssertionError if it
    was limited to a number of requests and fewer came.
    """

    def __init__(
        self,
        proxy: FaultProxy,
        kind: str,
        n: int | None,
        match: Match,
        **options: Any,
    ) -> None:
        self._proxy = proxy
        self.kind = kind
        #: How many requests it still waits for; None: no limit.
        self.remaining = n
        #: How many requests it was applied to.
        self.count = 0
        self._match = match
        self.options = options
        self.ended = False

    def matches(self, passed: Passed) -> bool:
        """
        Whether the rule is for this request and not used up.
        """
        if self.ended or self.remaining == 0:
            return False
        if self._match is None:
            return True
        if isinstance(self._match, str):
            return passed.path.startswith(self._match)
        return self._match(passed.method, passed.path, passed.body)

    def cancel(self) -> None:
        """
        Apply it to no further request.
        """
        with self._proxy._changed:
            self.ended = True

    def wait(self, count: int = 1, seconds: float = 10.0) -> None:
        """
        Wait until it was applied to *count* requests in all.
        """
        with self._proxy._changed:
            ok = self._proxy._changed.wait_for(lambda: self.count >= count, seconds)
        assert ok, f"{self.kind}: {self.count} of {count} requests in {seconds} s"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()
        if error is None and self.remaining:
            wanted = self.count + self.remaining
            raise AssertionError(f"{self.kind}: {self.count} of {wanted} requests came")


class Hold(Rule):
    """
    Requests that are kept back; `count` says how many were.
    """

    released: bool | None = None

    @property
    def waiting(self) -> int:
        """
        How many requests are kept back now.
        """
        return sum(one.held_by is self for one in self._proxy._open())

    def release(self) -> None:
        """
        Forward what is kept back, and keep back nothing more.
        """
        self._end(True)

    def drop(self) -> None:
        """
        Close the connections of what is kept back, never forwarding it.
        """
        self._end(False)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
        super().__exit__(kind, error, traceback)

    def _end(self, forward: bool) -> None:
        with self._proxy._changed:
            self.ended = True
            if self.released is None:
                self.released = forward
        for connection in self._proxy._open():
            connection.wake()


class FaultProxy:
    """
    A proxy in front of ``target_host:target_port``, on a free loopback port.

    Leaving the context closes every socket and ends every thread.

    Args:
        target_host: The server's address.

        target_port: The server's port.
    """

    def __init__(self, target_host: str, target_port: int) -> None:
        #: Where new connections to the server go; may be changed.
        self.target = (target_host, target_port)
        #: Requests since the last `reset_counts`, by path without query.
        self.requests: Counter[str] = Counter()
        #: The same requests, one by one.
        self.log: list[Passed] = []
        #: Bytes sent to the client, heads included, since the last `reset_counts`.
        self.bytes_to_client = 0
        #: Bytes received from the client, heads included.
        self.bytes_to_server = 0
        #: How many connections were accepted since the last `reset_counts`.
        self.connections = 0
        #: What was swallowed, ever.
        self.swallowed_replies: list[Passed] = []
        #: Faults of the proxy itself; the first is raised on leaving.
        self.errors: list[BaseException] = []
        self.port = 0
        self._numbers = 0
        self._rules: list[Rule] = []
        self._changed = threading.Condition(threading.RLock())
        self._guard: socket.socket | None = None
        self._listener: _Listener | None = None
        self._connections: set[_Connection] = set()
        self._threads: list[threading.Thread] = []
        self._ending = False

    @classmethod
    def to(cls, endpoint: str) -> FaultProxy:
        """
        A proxy in front of an endpoint, ``host:port`` or a URL.
        """
        return cls(*_http.split_endpoint(endpoint))

    # -- life

    def start(self) -> Self:
        """
        Listen.
        """
        # The guard keeps the port ours while we are `down`: it never listens.
        self._guard = _bind(0)
        self.port = self._guard.getsockname()[1]
        self.up()
        return self

    def close(self) -> None:
        """
        Close all sockets and wait for all threads.
        """
        if self._guard is None:
            return
        with self._changed:
            self._ending = True
        self.down()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - time.monotonic()))
        alive = [thread.name for thread in self._threads if thread.is_alive()]
        if alive:
            self.errors.append(AssertionError(f"threads do not end: {alive}"))
        self._guard.close()
        self._guard = None

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

    @property
    def endpoint(self) -> str:
        """
        ``127.0.0.1:PORT``, without a scheme.
        """
        return f"127.0.0.1:{self.port}"

    def down(self, *, drop: bool = True) -> None:
        """
        Refuse new connections, and (*drop*) reset the open ones.
        """
        with self._changed:
            listener, self._listener = self._listener, None
        if listener is not None:
            listener.end()
        if drop:
            self.drop_connections("reset")

    def up(self) -> None:
        """
        Accept connections again, on the same port.
        """
        with self._changed:
            if self._listener is None:
                self._listener = _Listener(self, _bind(self.port))

    def drop_connections(self, mode: Mode = "reset") -> int:
        """
        End all open connections, idle ones too.

        Returns:
            How many there were.
        """
        connections = self._open()
        for connection in connections:
            connection.order(mode)
        return len(connections)

    @property
    def open_connections(self) -> int:
        """
        How many connections of clients are open now.
        """
        return len(self._open())

    # -- counts

    def reset_counts(self) -> None:
        """
        Start `requests`, `log`, the bytes and `connections` from nothing again.
        """
        with self._changed:
            self.requests = Counter()
            self.log = []
            self.bytes_to_client = self.bytes_to_server = self.connections = 0

    @property
    def total_requests(self) -> int:
        """
        How many requests came since the last `reset_counts`.
        """
        with self._changed:
            return sum(self.requests.values())

    def wait_for_requests(
        self, count: int, match: Match = None, seconds: float = 10.0
    ) -> None:
        """
        Wait until *count* requests have come since the last `reset_counts`.
        """
        rule = Rule(self, "wait", None, match)
        with self._changed:
            ok = self._changed.wait_for(
                lambda: sum(map(rule.matches, self.log)) >= count, seconds
            )
            assert ok, f"not {count} requests in {seconds} s: {dict(self.requests)}"

    # -- faults

    def wait_answered(
        self, fate: str, count: int, seconds: float = 10.0
    ) -> list[Passed]:
        """
        Wait until so many requests of a fate were answered by the server; return them.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = [one for one in self.log if one.fate == fate and one.status]
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, self.log
            time.sleep(0.01)

    @property
    def swallowed(self) -> int:
        """
        How many replies were swallowed, ever.
        """
        return len(self.swallowed_replies)

    def swallow(
        self,
        n: int | None = 1,
        match: Match = None,
        *,
        mode: Mode = "close",
        when_reply: Callable[[int, bytes], bool] | None = None,
    ) -> Rule:
        """
        Lose the server's replies to the next *n* matching requests.

        The request is forwarded and the reply read to its end (of a watch: to its
        first chunk), so the server has applied it.

        Args:
            n: How many; None for all.

            match: Which requests.

            mode: How.

            when_reply: Swallow only replies of which this is true, given status and
                body; the others pass, and do not count.
        """
        return self._add(Rule(self, "swallow", n, match, mode=mode, reply=when_reply))

    @contextlib.contextmanager
    def expect_swallowed(self, n: int) -> Iterator[None]:
        """
        Raise AssertionError if fewer than *n* replies are swallowed in the block.
        """
        before = self.swallowed
        yield
        swallowed = self.swallowed - before
        if swallowed < n:
            raise AssertionError(
                f"the proxy swallowed {swallowed} replies, the test needs {n}; "
                f"requests: {dict(self.requests)}"
            )

    def hold(
        self, match: Match = None, n: int | None = None, *, late: bool = False
    ) -> Hold:
        """
        Keep requests back until `Hold.release`.

        Args:
            match: Which requests.

            n: How many; None for all.

            late: Forward a request on release even if its client has gone, as a
                network that delivers late does. Without it such a request is
                dropped.
        """
        hold = Hold(self, "hold", n, match, late=late)
        self._add(hold)
        return hold

    def delay(
        self,
        seconds: float,
        match: Match = None,
        n: int | None = None,
        *,
        what: Literal["request", "reply"] = "request",
    ) -> Rule:
        """
        Forward requests, or pass replies, so many seconds later.
        """
        return self._add(Rule(self, f"delay-{what}", n, match, seconds=seconds))

    def cut(
        self,
        n: int | None = 1,
        match: Match = "/v3/watch",
        *,
        after: int = 1,
        mode: Mode = "close",
    ) -> Rule:
        """
        Cut the next *n* matching replies after so many parts of their bodies.

        Args:
            n: How many; None for all.

            match: Which requests.

            after: How many parts pass: chunks (etcd's newline is one of its own),
                or pieces of a body of known length.

            mode: How; "half" sends the first half of the next chunk, when it comes.
        """
        return self._add(Rule(self, "cut", n, match, after=after, mode=mode))

    def cut_streams(self, mode: Mode = "close", match: Match = None) -> int:
        """
        Cut all streams that are open now.

        Returns:
            How many there were.
        """
        streams = self._streams(match)
        for connection in streams:
            connection.order(mode)
        return len(streams)

    @property
    def streams(self) -> int:
        """
        How many chunked replies are open now.
        """
        return len(self._streams(None))

    def wait_for_streams(self, count: int, seconds: float = 10.0) -> None:
        """
        Wait until exactly *count* chunked replies are open.
        """
        with self._changed:
            ok = self._changed.wait_for(lambda: self.streams == count, seconds)
        assert ok, f"{self.streams} streams, not {count}, in {seconds} s"

    # -- inside

    def _add(self, rule: Rule) -> Rule:
        with self._changed:
            self._rules.append(rule)
        return rule

    def _open(self) -> list[_Connection]:
        with self._changed:
            return list(self._connections)

    def _streams(self, match: Match) -> list[_Connection]:
        rule = Rule(self, "streams", None, match)
        with self._changed:
            return [
                one
                for one in self._connections
                if one.streaming is not None and rule.matches(one.streaming)
            ]

    def _accepted(self, sock: socket.socket) -> None:
        with self._changed:
            if self._ending:
                sock.close()
                return
            self.connections += 1
            self._numbers += 1
            connection = _Connection(self, sock, self._numbers)
            self._connections.add(connection)
            # Only threads that may still run are kept.
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(connection.thread)
            connection.thread.start()
            self._changed.notify_all()

    def _record(self, passed: Passed) -> None:
        with self._changed:
            self.requests[passed.path] += 1
            self.log.append(passed)
            self._changed.notify_all()

    def _first(self, kind: str, passed: Passed) -> Rule | None:
        with self._changed:
            rules = (rule for rule in self._rules if rule.kind == kind)
            return next((rule for rule in rules if rule.matches(passed)), None)

    def _claim(self, kind: str, passed: Passed) -> Rule | None:
        with self._changed:
            rule = self._first(kind, passed)
            if rule is not None:
                rule.count += 1
                if rule.remaining is not None:
                    rule.remaining -= 1
                self._changed.notify_all()
            return rule

    def _claim_swallow(self, passed: Passed) -> Rule | None:
        assert passed.status is not None
        with self._changed:
            for rule in self._rules:
                if rule.kind != "swallow" or not rule.matches(passed):
                    continue
                wanted = rule.options["reply"]
                if wanted is not None and not wanted(passed.status, passed.reply):
                    continue
                rule.count += 1
                if rule.remaining is not None:
                    rule.remaining -= 1
                passed.fate = "swallowed"
                self.swallowed_replies.append(passed)
                self._changed.notify_all()
                return rule
            return None


class _Ended(Exception):
    """
    The client or the server went away.
    """


class _Ordered(Exception):
    """
    The test wants the connection to end, in this mode.
    """

    def __init__(self, mode: Mode, *, cuts: bool = False) -> None:
        self.mode = mode
        self.cuts = cuts


class _Waker:
    """
    A socket pair that makes a waiting thread look up.
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._writer.send(b"!")

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._reader.recv(64):
                pass

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._writer.close()


class _Listener:
    """
    The accepting thread between an `up` and the next `down`.
    """

    def __init__(self, proxy: FaultProxy, sock: socket.socket) -> None:
        self._proxy = proxy
        self._sock = sock
        self._waker = _Waker()
        self._ended = False
        sock.listen(512)
        sock.setblocking(False)
        self._thread = threading.Thread(
            target=self._run, name=f"proxy-{proxy.port}-accept", daemon=True
        )
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        while not self._ended:
            poll.poll()
            if self._ended:
                break
            with contextlib.suppress(OSError):
                sock, _ = self._sock.accept()
                sock.setblocking(True)
                self._proxy._accepted(sock)

    def end(self) -> None:
        self._ended = True
        self._waker.wake()
        self._thread.join()
        self._sock.close()
        self._waker.close()


class _Connection:
    """
    One client's connection and its own one to the server.
    """

    def __init__(self, proxy: FaultProxy, client: socket.socket, number: int) -> None:
        self.proxy = proxy
        self.client = client
        self.number = number
        self.server: socket.socket | None = None
        self.streaming: Passed | None = None
        self.held_by: Hold | None = None
        self._order: Mode | None = None
        self._watch_client = True
        self._waker = _Waker()
        self._from_client = _http.Reader(
            client, before_recv=self._await_client, on_bytes=self._count_to_server
        )
        self._from_server: _http.Reader | None = None
        self.thread = threading.Thread(
            target=self._run, name=f"proxy-{proxy.port}-{number}", daemon=True
        )

    # -- called by other threads

    def wake(self) -> None:
        """
        Make the thread look at its orders.
        """
        self._waker.wake()

    def order(self, mode: Mode) -> None:
        """
        Make the thread end the connection.
        """
        with self.proxy._changed:
            if self._order is None or self.proxy._ending:
                self._order = mode
            if self.proxy._ending:
                # A send that blocks must end too.
                _http.shut(self.client)
                server = self.server
                if server is not None:
                    _http.shut(server)
        self.wake()

    # -- the thread

    def _run(self) -> None:
        passed: Passed | None = None
        try:
            self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                passed = None
                self._watch_client = True
                is_http = self._from_client.looks_like_http()
                if is_http is None:
                    break
                if not is_http:
                    self._tunnel()
                    break
                passed, raw = self._read_request()
                if not self._exchange(passed, raw):
                    break
        except _Ordered as order:
            if passed is not None and passed.fate == "passed":
                passed.fate = "cut" if self.streaming or order.cuts else "failed"
            mode = order.mode
            if mode == "half" and not self.streaming:
                mode = "close"
            self._not_streaming()
            with contextlib.suppress(_Ended, _Ordered, OSError):
                self._end_client(mode)
        except (_Ended, _http.Truncated, OSError):
            if passed is not None and passed.fate == "passed":
                passed.fate = "failed"
        except BaseException as exc:
            self.proxy.errors.append(exc)
        finally:
            self._close()

    def _close(self) -> None:
        with self.proxy._changed:
            self.streaming = None
            self.proxy._connections.discard(self)
            self.proxy._changed.notify_all()
        self.client.close()
        self._drop_server()
        self._waker.close()

    def _read_request(self) -> tuple[Passed, bytes]:
        head = self._from_client.head()
        raw, payload = [head.raw], []
        for wire, part in self._from_client.parts(head, reply_to=None):
            raw.append(wire)
            payload.append(part)
        method, target, _ = head.words
        path, _, query = target.partition("?")
        passed = Passed(
            method,
            path,
            query,
            head.headers,
            b"".join(payload),
            self.number,
            time.monotonic(),
        )
        self.proxy._record(passed)
        return passed, b"".join(raw)

    def _exchange(self, passed: Passed, raw: bytes) -> bool:
        """
        Forward a request and pass its reply; False if the connection is to end.
        """
        if not self._hold(passed):
            passed.fate = "dropped"
            return False
        delay = self.proxy._claim("delay-request", passed)
        if delay is not None:
            try:
                self._pause(delay.options["seconds"])
            except _Ended:
                passed.fate = "dropped"
                return False
        server, reader = self._connect()
        server.sendall(raw)
        while True:
            head = reader.head()
            if head.status >= 200 or head.status == 101:
                break
            self._to_client(head.raw)  # 100 Continue and the like.
        passed.status = head.status
        parts = reader.parts(head, reply_to=passed.method)
        seen: list[tuple[bytes, bytes]] = []
        if self.proxy._first("swallow", passed) is not None:
            for part in parts:
                seen.append(part)
                passed.reply += part[1]
                if passed.path.endswith("/watch"):
                    break
            rule = self.proxy._claim_swallow(passed)
            if rule is not None:
                self._drop_server()
                reply = head.raw + b"".join(wire for wire, _ in seen)
                self._end_client(rule.options["mode"], reply[: self._half(head, reply)])
                return False
        delay = self.proxy._claim("delay-reply", passed)
        if delay is not None:
            self._pause(delay.options["seconds"])
        self._pass(passed, head, seen, parts)
        ends = head.headers.get("connection", "").lower() == "close"
        unbounded = not head.streams and "content-length" not in head.headers
        return not (ends or (unbounded and head.status not in (204, 304)))

    def _pass(
        self,
        passed: Passed,
        head: _http.Head,
        seen: list[tuple[bytes, bytes]],
        parts: Iterator[tuple[bytes, bytes]],
    ) -> None:
        cut = self.proxy._claim("cut", passed)
        if head.streams:
            with self.proxy._changed:
                self.streaming = passed
                self.proxy._changed.notify_all()
        known = len(seen)

        def all_parts() -> Iterator[tuple[bytes, bytes]]:
            yield from seen
            yield from parts

        # A short reply goes out in one piece, so that its client wakes up once.
        pending = head.raw
        if head.streams or cut is not None:
            self._to_client(pending)
            pending = b""
        last = None
        if cut is not None and cut.options["mode"] != "half":
            last = cut.options["after"]
            if last == 0:
                self._cut(cut, b"")
        for number, (wire, payload) in enumerate(all_parts()):
            if cut is not None and number >= cut.options["after"]:
                self._cut(cut, wire)
            if number >= known:
                passed.reply += payload
            if head.streams and not payload:
                # The end: a client that has it must find no stream any more.
                self._not_streaming()
            self._to_client(pending + wire)
            pending = b""
            if cut is not None and number + 1 == last:
                self._cut(cut, b"")
        if pending:
            self._to_client(pending)
        self._not_streaming()

    def _cut(self, rule: Rule, wire: bytes) -> None:
        if rule.options["mode"] == "half":
            self._to_client(wire[: max(1, len(wire) // 2)])
            raise _Ordered("close", cuts=True)
        raise _Ordered(rule.options["mode"], cuts=True)

    def _not_streaming(self) -> None:
        with self.proxy._changed:
            if self.streaming is not None:
                self.streaming = None
                self.proxy._changed.notify_all()

    def _half(self, head: _http.Head, reply: bytes) -> int:
        return len(head.raw) + (len(reply) - len(head.raw)) // 2

    def _hold(self, passed: Passed) -> bool:
        with self.proxy._changed:
            rule = self.proxy._claim("hold", passed)
            if not isinstance(rule, Hold):
                return True
            self.held_by = rule
            self.proxy._changed.notify_all()
        try:
            while True:
                with self.proxy._changed:
                    released = rule.released
                gone = _http.is_gone(self.client)
                if gone:
                    if not rule.options["late"]:
                        return False
                    passed.fate = "late"
                if released is not None:
                    # What is to be late is not given up for a client that leaves.
                    self._watch_client = not rule.options["late"]
                    return released
                with contextlib.suppress(_Ended):
                    self._wait(None, client=not gone, wakes=True)
                if self.proxy._ending:
                    return False
        finally:
            with self.proxy._changed:
                self.held_by = None
                self.proxy._changed.notify_all()

    def _connect(self) -> tuple[socket.socket, _http.Reader]:
        if self.server is None or self._from_server is None:
            self.server = socket.create_connection(self.proxy.target, 3.0)
            self.server.settimeout(None)
            self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._from_server = _http.Reader(
                self.server, before_recv=self._await_server
            )
        return self.server, self._from_server

    def _drop_server(self) -> None:
        if self.server is not None:
            self.server.close()
        self.server = self._from_server = None

    def _tunnel(self) -> None:
        server, _ = self._connect()
        self._from_client.buffer, data = bytearray(), bytes(self._from_client.buffer)
        server.sendall(data)
        while True:
            ready = self._wait(None, client=True, server=True)
            if self.client.fileno() in ready:
                data = self.client.recv(65536)
                self._count_to_server(len(data))
                if not data:
                    return
                server.sendall(data)
            if server.fileno() in ready:
                data = server.recv(65536)
                if not data:
                    return
                self._to_client(data)

    # -- sending, counting, ending

    def _to_client(self, data: bytes) -> None:
        # Counted first: the client may look as soon as it has the bytes.
        with self.proxy._changed:
            self.proxy.bytes_to_client += len(data)
        self.client.sendall(data)

    def _count_to_server(self, size: int) -> None:
        with self.proxy._changed:
            self.proxy.bytes_to_server += size

    def _end_client(self, mode: Mode, half: bytes | None = None) -> None:
        if mode == "half":
            # Of a stream, what may come is not known: a chunk that never ends.
            self._to_client(b'40\r\n{"result":' if half is None else half)
        if mode == "silent":
            self._drop_server()
            with self.proxy._changed:
                self._order = None if not self.proxy._ending else self._order
            while True:
                self._wait(None, client=True)
                if not self.client.recv(65536):
                    return
        elif mode == "reset":
            _http.reset(self.client)
        else:
            _http.shut(self.client)

    # -- waiting: everything that blocks comes through here

    def _await_client(self) -> None:
        """
        Wait for the next bytes of the client; the server may leave meanwhile.
        """
        while True:
            ready = self._wait(None, client=True, server=self.server is not None)
            if self.client.fileno() in ready:
                return
            if self.server is not None and _http.is_gone(self.server):
                raise _Ended
            if ready:
                time.sleep(0.001)  # Bytes of the server that nobody asked for.

    def _await_server(self) -> None:
        """
        Wait for the next bytes of the server; the client may leave meanwhile.
        """
        watch = self._watch_client
        while True:
            ready = self._wait(None, client=watch, server=True)
            if self.server is not None and self.server.fileno() in ready:
                return
            if self.client.fileno() in ready:
                if _http.is_gone(self.client):
                    raise _Ended
                watch = False  # It sent more, before it has its reply.

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        watch = self._watch_client
        while (left := deadline - time.monotonic()) > 0:
            if self._wait(left, client=watch):
                if _http.is_gone(self.client):
                    raise _Ended
                watch = False

    def _wait(
        self,
        seconds: float | None,
        *,
        client: bool = False,
        server: bool = False,
        wakes: bool = False,
    ) -> set[int]:
        """
        Wait for sockets, the time or an order.

        Returns:
            The file descriptors that are readable; none after *seconds*, or (with
            *wakes*) when another thread wants a look. With *wakes* a client that
            has gone raises `_Ended`.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            with self.proxy._changed:
                if self._order is not None:
                    raise _Ordered(self._order)
                if self.proxy._ending:
                    raise _Ended
            poll = select.poll()
            poll.register(self._waker, select.POLLIN)
            if client:
                poll.register(self.client, select.POLLIN)
            if server and self.server is not None:
                poll.register(self.server, select.POLLIN)
            left = None
            if deadline is not None:
                left = max(0.0, deadline - time.monotonic()) * 1000
            ready = {fd for fd, _ in poll.poll(left)}
            if self._waker.fileno() in ready:
                ready.discard(self._waker.fileno())
                self._waker.drain()
                if wakes:
                    return ready
            if wakes and ready:
                if _http.is_gone(self.client):
                    raise _Ended
                time.sleep(0.001)
            elif ready or (deadline is not None and time.monotonic() >= deadline):
                with self.proxy._changed:
                    if self._order is not None:
                        raise _Ordered(self._order)
                return ready


def _bind(port: int) -> socket.socket:
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", port))
    except OSError:
        sock.close()
        raise
    return sock
