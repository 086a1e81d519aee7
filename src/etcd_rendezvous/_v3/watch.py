# SPDX-License-Identifier: BSD-3-Clause
"""
Bounded watch streams.

A watch is a connection of its own, closed when its time is up: a
``cancel_request`` does nothing over HTTP. A few watches can share one stream: their
requests stand in one complete body, a newline between.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from urllib3.exceptions import HTTPError

from .._errors import EtcdConnectionError, EtcdError, EtcdReplyError
from .._settings import Endpoint
from . import retry, wire
from .connection import Stream
from .transport import InterruptedStreamError, Transport

__all__ = ["Watch", "open_watch"]

# The gateway reads a body by this many bytes at first. When it begins to answer, Go's
# server drops what was not yet read: a later watch then is never opened.
_SURELY_READ_BYTES: Final = 512


class Watch:
    """
    An open stream of changes.

    Attributes:
        revision: The store's revision at the last message, at first that which says
            that the watches were created.
        endpoint: Where it comes from.
    """

    def __init__(self, response: Stream, endpoint: Endpoint, what: str) -> None:
        self.endpoint = endpoint
        self._response = response
        self._messages = _messages(response, what)
        self._what = what
        self._early: list[wire.Event] = []
        self._interrupted = False
        self.revision = 0

    def events(self, idle: float) -> Iterator[wire.Event]:
        """
        Yield the changes as they come, until the stream is idle.

        Args:
            idle: The seconds of silence after which it ends.

        Raises:
            EtcdConnectionError: The stream broke or ended.
            EtcdReplyError: The server ended a watch.
        """
        for batch in self.batches(idle):
            yield from batch

    def batches(self, idle: float | None) -> Iterator[list[wire.Event]]:
        """
        Yield the changes as :meth:`events` does, those of one message together.

        The changes that one transaction has made to what one watch of the stream is
        about come in one message.

        Args:
            idle: The seconds of silence after which it ends; None for never.
        """
        self._limit(idle)
        if self._early:
            early, self._early = self._early, []
            yield early
        try:
            for message in self._messages:
                self._refuse_canceled(message)
                self.revision = max(self.revision, message.revision)
                yield message.events
        except TimeoutError:
            return
        except (HTTPError, OSError) as error:
            raise self._broken(f"the stream broke ({error})") from error
        raise self._broken("the stream ended")

    def _broken(self, how: str) -> EtcdConnectionError:
        kind = InterruptedStreamError if self._interrupted else EtcdConnectionError
        return kind(f"Could not {self._what}: {how}.")

    def interrupt(self) -> None:
        """
        Break the stream, from any thread: whoever reads it is told so.
        """
        self._interrupted = True
        with suppress(HTTPError, OSError, ValueError, RuntimeError):
            self._response.shutdown()

    def wait_created(self, how_many: int, seconds: float) -> None:
        """
        Wait until every watch of the stream is there.

        Args:
            how_many: How many watches were asked for.
            seconds: The most seconds of silence.

        Raises:
            EtcdConnectionError: The stream broke, ended or was silent.
            EtcdReplyError: The server refused a watch.
        """
        missing = how_many
        self._limit(seconds)
        try:
            while missing:
                message = next(self._messages, None)
                if message is None:
                    raise self._broken("the stream ended")
                self._refuse_canceled(message)
                if message.created:
                    missing -= 1
                    self.revision = max(self.revision, message.revision)
                self._early.extend(message.events)
        except (HTTPError, OSError) as error:
            raise self._broken(f"the stream broke ({error})") from error

    def _limit(self, seconds: float | None) -> None:
        """
        Let nothing be waited for longer than this.
        """
        sock = getattr(self._response.connection, "sock", None)
        if sock is not None:
            sock.settimeout(seconds)

    def _refuse_canceled(self, message: wire.WatchMessage) -> None:
        # A refused watch is created *and* canceled, with HTTP status 200; after
        # `canceled` the stream stays open and silent.
        if message.compact_revision:
            reason = f"what was before revision {message.compact_revision} is compacted"
            raise _refusal(self._what, 11, reason)
        if message.canceled:
            reason = message.cancel_reason or "the server ended the watch"
            raise _refusal(self._what, 2, reason)


@contextmanager
def open_watch(
    transport: Transport,
    creates: Sequence[wire.Json],
    *,
    what: str,
    timeout: float,
) -> Iterator[Watch]:
    """
    Open watches on one stream, wait until they are there, and close it afterwards.

    Args:
        transport: The way to etcd.
        creates: The watches, from ``wire.watch_create``, each with its own number.
            Where they are longer than what etcd is sure to read, only the first is
            opened.
        what: The operation in words, for errors.
        timeout: The most seconds until the watches are there.

    Yields:
        The open watch.

    Raises:
        EtcdConnectionError: The stream could not be opened, or broke.
        EtcdProtocolError: Something answered that is not etcd's v3 API.
        EtcdReplyError: The server refused it.
    """
    body = b"\n".join(wire.encode(create) for create in creates)
    if len(body) > _SURELY_READ_BYTES:
        creates = creates[:1]
        body = wire.encode(creates[0])
    deadline = time.monotonic() + timeout
    with transport.stream(wire.WATCH, body, what=what, timeout=timeout) as opened:
        watch = Watch(*opened, what)
        watch.wait_created(len(creates), max(deadline - time.monotonic(), 0.01))
        yield watch


def _messages(response: Stream, what: str) -> Iterator[wire.WatchMessage]:
    """
    Cut a stream into its lines; 3.4's last line, an error, has no newline.
    """
    rest = b""
    for chunk in response.chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield _message(line, what)
    if rest.strip():
        yield _message(rest, what)


def _message(line: bytes, what: str) -> wire.WatchMessage:
    try:
        data: Any = json.loads(line)
        failed = wire.decode_error(data)
        if failed is None:
            return wire.decode_watch(data)
    except (
        AttributeError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise EtcdConnectionError(
            f"Could not {what}: the stream holds something that is not etcd's."
        ) from error
    raise _refusal(what, *failed)


def _refusal(what: str, code: int, text: str) -> EtcdError:
    """
    Return the error for the server's words: its last, or those of one going down.
    """
    message = f"Could not {what}: {text}."
    if retry.failure_of_reply(code, text) is retry.Failure.FINAL:
        return EtcdReplyError(message, code, text)
    return EtcdConnectionError(message)
