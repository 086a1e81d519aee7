# SPDX-License-Identifier: BSD-3-Clause
"""
The errors of this library: one shallow tree with one root, and no torch in it.

What callers of torch's contracts see are torch's own classes; the errors here
are then their ``__cause__``.
"""

from __future__ import annotations

__all__ = [
    "EtcdAuthError",
    "EtcdConnectionError",
    "EtcdError",
    "EtcdLimitError",
    "EtcdOutcomeUnknownError",
    "EtcdProtocolError",
    "EtcdReplyError",
    "EtcdServerError",
    "EtcdServerTimeoutError",
    "EtcdSettingError",
    "PortTakenError",
]


class EtcdError(Exception):
    """
    The root of every error that this library raises of its own.

    Attributes:
        reason: Of an operation that failed: why, without what and where; it may name
            the remedy. Empty where the whole message is that.
    """

    reason = ""


class EtcdConnectionError(EtcdError):
    """
    Raised when no endpoint of etcd answered an operation in time.
    """


class EtcdProtocolError(EtcdError):
    """
    Raised when something answered that waiting won't mend.

    That is: not an etcd, an etcd without the API asked for, or TLS on one side
    only.

    Attributes:
        api_missing: Whether the server said that it has no page for the API asked
            for.
    """

    api_missing = False


class EtcdReplyError(EtcdError):
    """
    Raised when etcd answered an operation with an error.

    Attributes:
        code: The gRPC code of the answer; 2 ("unknown") where etcd sent none.
        text: etcd's own words.
    """

    def __init__(self, message: str, code: int = 2, text: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.text = text

    def __reduce__(self) -> tuple[type[EtcdReplyError], tuple[str, int, str]]:
        return type(self), (str(self), self.code, self.text)


class EtcdLimitError(EtcdReplyError):
    """
    Raised when a request, a reply or all of the data is larger than etcd allows.

    Trying again won't help; the message names the remedy. A state that is known to be
    too large is refused in etcd's stead, and not sent.
    """


class EtcdAuthError(EtcdReplyError):
    """
    Raised when etcd refuses a user, their password, or what they have no right to.

    Attributes:
        may_mend: Whether it may go away by itself, since the password is in a file,
            which is read anew.
    """

    may_mend = False


class EtcdOutcomeUnknownError(EtcdError):
    """
    Raised when it can't be found out whether a conditional write was applied.

    The reply was lost, others have written since, and etcd no longer has the
    history that would tell, or could not be asked.
    """


class EtcdServerError(EtcdError, RuntimeError):
    """
    Raised when a local etcd server can't be found, started or reached.
    """


class EtcdSettingError(EtcdError, ValueError):
    """
    Raised when a setting is unknown, or has a value that can't be used.
    """


class EtcdServerTimeoutError(EtcdServerError, TimeoutError):
    """
    Raised when a local etcd server is not healthy in time.
    """


class PortTakenError(EtcdServerError):
    """
    Raised when another program listens on the port of a local etcd server.

    Attributes:
        port: The port; 0 if it is not known which of several it was.
    """

    def __init__(self, message: str, port: int = 0) -> None:
        super().__init__(message)
        self.port = port

    def __reduce__(self) -> tuple[type[PortTakenError], tuple[str, int]]:
        return type(self), (str(self), self.port)
