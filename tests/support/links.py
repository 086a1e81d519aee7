# SPDX-License-Identifier: BSD-3-Clause
"""
Links that can be cut: blind proxies before the ports of members.

    with Links([member.get_endpoint() for member in cluster.members]) as links:
        client = EtcdClient(links.endpoints)
        links.cut(0, "silent")   # What client and member 0 say no longer arrives.
        links.heal()

What passes is not looked at, so TLS and gRPC pass too. For faults of single requests
there is `support.proxy`.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from . import _http

if TYPE_CHECKING:
    from typing_extensions import Self

#: How a link is cut: connections are refused and reset, or stay open in silence.
Cut = Literal["reset", "silent"]

_JOIN_SECONDS = 5.0


class Link:
    """
    A blind proxy on a free loopback port.

    Args:
        target: Returns where connections go, host and port, once one is made.
        source: Says who a connection is from, given its port. Default: nobody.
    """

    def __init__(
        self,
        target: Callable[[], tuple[str, int]],
        source: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._target = target
        self._source = source
        self._changed = threading.Condition()
        self._cuts: dict[object, Cut] = {}
        self._pairs: dict[tuple[socket.socket, socket.socket], object] = {}
        self._threads: list[threading.Thread] = []
        self._ended = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._run(self._accept)

    @property
    def endpoint(self) -> str:
        """
        ``127.0.0.1:PORT``.
        """
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """
        How many connections are open.
        """
        with self._changed:
            return len(self._pairs)

    def cut(self, how: Cut, source: object = None) -> None:
        """
        Let nothing pass any more from and to a source.
        """
        with self._changed:
            self._cuts[source] = how
        if how == "reset":
            self.reset(source)

    def heal(self) -> None:
        """
        Let everything pass again, and what was kept back in silence too.
        """
        with self._changed:
            self._cuts.clear()
            self._changed.notify_all()

    def reset(self, source: object = None) -> int:
        """
        Reset the open connections of a source; return how many there were.
        """
        with self._changed:
            pairs = [pair for pair, one in self._pairs.items() if one == source]
        for pair in pairs:
            self._drop(pair)
        return len(pairs)

    def close(self) -> None:
        """
        End all connections and threads.
        """
        with self._changed:
            self._ended = True
            pairs = list(self._pairs)
            self._changed.notify_all()
        _http.shut(self._listener)
        for pair in pairs:
            self._drop(pair)
        for thread in list(self._threads):
            thread.join(_JOIN_SECONDS)
        self._listener.close()

    def _run(self, function: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(
            target=function, args=arguments, name=f"link-{self.port}", daemon=True
        )
        with self._changed:
            self._threads = [one for one in self._threads if one.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, (_, port) = self._listener.accept()
            except OSError:
                return
            self._run(self._connect, sock, port)

    def _connect(self, sock: socket.socket, port: int) -> None:
        source = self._source(port)
        if not self._may_pass(source):
            _http.reset(sock)
            return
        try:
            server = socket.create_connection(self._target(), 3.0)
        except OSError:
            _http.reset(sock)
            return
        pair = sock, server
        for one in pair:
            one.settimeout(None)
            # It may be over already, which not every system bears.
            with contextlib.suppress(OSError):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # From here on another thread may close them.
        with self._changed:
            self._pairs[pair] = source
            late = self._ended or self._cuts.get(source) == "reset"
        if late:
            self._drop(pair)
            return
        self._run(self._pump, sock, server, source)
        self._pump(server, sock, source)

    def _pump(self, here: socket.socket, there: socket.socket, source: object) -> None:
        ended = False
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                if not self._may_pass(source):
                    break
                there.sendall(data)
            else:
                ended = self._may_pass(source)
        for pair in ((here, there), (there, here)):
            self._drop(pair, ended=ended)

    def _may_pass(self, source: object) -> bool:
        """
        Wait while a link is silent; return whether it is not to be reset.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._ended or self._cuts.get(source) != "silent"
            )
            return not self._ended and source not in self._cuts

    def _drop(
        self, pair: tuple[socket.socket, socket.socket], *, ended: bool = False
    ) -> None:
        """
        Reset a pair of connections, or end it as one side has ended.
        """
        with self._changed:
            known = self._pairs.pop(pair, self) is not self
        if known:
            for sock in pair:
                # A thread may be waiting on it. An end would be told by this, too.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR if ended else socket.SHUT_RD)
                if ended:
                    sock.close()
                else:
                    _http.reset(sock)


class Links:
    """
    One link before each endpoint.
    """

    def __init__(self, endpoints: Sequence[str]) -> None:
        self.links = [
            Link(partial(_http.split_endpoint, endpoint)) for endpoint in endpoints
        ]

    @property
    def endpoints(self) -> list[str]:
        """
        The endpoints for clients.
        """
        return [link.endpoint for link in self.links]

    @property
    def busiest(self) -> int:
        """
        The number of the link with the most connections.
        """
        return max(range(len(self.links)), key=lambda n: self.links[n].connections)

    def cut(self, number: int, how: Cut) -> None:
        """
        Cut the link to one member.
        """
        self.links[number].cut(how)

    def heal(self) -> None:
        """
        Mend all links.
        """
        for link in self.links:
            link.heal()

    def reset(self) -> int:
        """
        Reset all connections; return how many there were.
        """
        return sum(link.reset() for link in self.links)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for link in self.links:
            link.close()
