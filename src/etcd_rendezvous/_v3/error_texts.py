# SPDX-License-Identifier: BSD-3-Clause
"""
What went wrong with a request to the v3 API, in words for people.

The sentence around it (what, where, how often it was tried) is made by ``_failover``,
remedies for etcd's limits by ``_limits``, for users and rights by ``auth``.
"""

from __future__ import annotations

import json
import ssl
from http.client import BadStatusLine
from typing import Any, Final

import urllib3

from .._failover import Trouble
from . import retry, wire

__all__ = [
    "SPEAKS_NO_TLS",
    "SPEAKS_TLS",
    "UNRESOLVED",
    "read_reply",
    "tls_in_words",
    "trouble_of_exception",
]

UNRESOLVED: Final = "its host name can't be resolved"
SPEAKS_TLS: Final = "it speaks TLS; use protocol=https"
SPEAKS_NO_TLS: Final = (
    "it does not speak TLS; use protocol=http, or name the port that serves https"
)

_FILES: Final = "look at ssl_cert, ssl_cert_key and ca_cert"
_NO_PEM: Final = f"a file holds no certificate, or no key, in PEM; {_FILES}"
# What OpenSSL says of a file that is not what it should be. It does not name the file.
_NO_CERTIFICATE: Final = ("pem lib", "no certificate or crl found", "no start line")
_CERTIFICATE_ALERTS: Final = (
    "certificate required",
    "bad certificate",
    "alert unknown ca",
    "certificate unknown",
    "certificate expired",
)
# What the gateway says where etcd refuses its certificate.
_GATEWAYS_OWN_TLS: Final = "remote error: tls: "
_COMMON_NAME: Final = "CommonName of client sending a request against gateway"
_TLS_ALERT: Final = "\x15\x03"
_MATCHED_NO_API: Final = frozenset({5, 12})  # gRPC: not found, unimplemented


def trouble_of_exception(error: BaseException) -> Trouble:
    """
    Return what urllib3's exception means, and what to call it.
    """
    failure = retry.failure_of_exception(error)
    cause = retry.cause_of(error)
    if isinstance(cause, BadStatusLine) and failure is retry.Failure.FINAL:
        # What a TLS server says to plain HTTP starts so, unless it is written in Go.
        reason = (
            SPEAKS_TLS
            if str(cause.args[0]).startswith(_TLS_ALERT)
            else f"something answered that does not speak HTTP ({cause.args[0]!r})"
        )
        return Trouble(failure, reason, error, not_etcd=True)
    return Trouble(failure, _in_words(error, failure), error)


def _in_words(error: BaseException, failure: retry.Failure) -> str:
    if failure is retry.Failure.TLS:
        cause = retry.cause_of(error)
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError):
            return f"a certificate's file can't be read; {_FILES} ({cause})"
        if isinstance(error, UnicodeDecodeError):
            return f"{_NO_PEM} (it is no text)"
        return tls_in_words(str(error))
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return UNRESOLVED
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        cause = error.__cause__ or error.__context__
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused; is etcd running there?"
        return f"no connection ({cause or error})"
    # A NewConnectionError is one, too.
    if isinstance(error, urllib3.exceptions.ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return "no answer in time"
    cause = retry.cause_of(error)
    return f"the connection broke ({getattr(cause, 'strerror', None) or cause})"


def tls_in_words(text: str) -> str:
    """
    Return what the words of a TLS library mean to people.
    """
    lowered = text.lower()
    if "wrong version number" in lowered or "record layer" in lowered:
        return SPEAKS_NO_TLS
    if "mismatch, certificate is not valid for" in lowered:
        return (
            "its certificate is for another name; name the endpoint as its certificate "
            f"does ({text})"
        )
    if "certificate has expired" in lowered or "not yet valid" in lowered:
        return (
            "its certificate is out of date; issue a new one, or set this machine's "
            f"clock right ({text})"
        )
    if "certificate verify failed" in lowered:
        return (
            "its certificate is not trusted; name the authority that signed it with "
            f"ca_cert ({text})"
        )
    if "key values mismatch" in lowered:
        return (
            "the client's certificate and key do not belong together; mend ssl_cert "
            "and ssl_cert_key"
        )
    if "private key is encrypted" in lowered:
        return (
            "the client's key is encrypted, and nobody is there to say its password; "
            "name one that is not with ssl_cert_key"
        )
    if any(words in lowered for words in _NO_CERTIFICATE):
        return f"{_NO_PEM} ({text})"
    if any(alert in lowered for alert in _CERTIFICATE_ALERTS):
        return (
            "it wants a client certificate, or another one; name it with ssl_cert and "
            "ssl_cert_key"
        )
    return f"the TLS handshake failed ({text})"


def read_reply(status: int, body: bytes, token: str = "") -> dict[str, Any] | Trouble:
    """
    Tell a good reply from an error, and etcd's error from somebody else's.

    Args:
        status: The HTTP status.
        body: The reply.
        token: What we were authenticated by; whoever repeats it is not quoted so.
    """
    if token:
        body = body.replace(token.encode(), b"***")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return _not_json(status, body)
    error = wire.decode_error(data)
    if error is not None:
        code, text = error
        if _GATEWAYS_OWN_TLS in text:
            return Trouble(
                retry.Failure.TLS,
                "its gateway can't reach its own etcd, since with --client-cert-auth "
                "the server's certificate must be good as a client's too (extended key "
                f"usage clientAuth, an authority of --trusted-ca-file): {text}",
            )
        if status == 404 and code in _MATCHED_NO_API and "lease" not in text:
            return _no_v3(text)
        return Trouble(retry.failure_of_reply(code, text), text, code=code)
    if status == 200 and isinstance(data, dict):
        return data
    return _not_etcd(
        f"something answered that is not etcd's v3 API (HTTP status {status})"
    )


def _not_json(status: int, body: bytes) -> Trouble:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    if "HTTP request to an HTTPS server" in text:
        return _not_etcd(SPEAKS_TLS)
    if _COMMON_NAME in text:
        return Trouble(
            retry.Failure.FINAL,
            "where etcd has users, its gateway refuses client certificates with a "
            "CommonName; use one without (subject alternative names alone), beside "
            "user and password",
            code=retry.UNAUTHENTICATED,
        )
    if status == 404:
        return _no_v3(text)
    if (status >= 500 and status != 501) or (
        status == 200 and body.lstrip()[:1] in (b"", b"{")
    ):
        # A proxy in between, an etcd that is going down, or half a reply.
        return Trouble(
            retry.Failure.AMBIGUOUS,
            f"HTTP status {status}, but not in etcd's words; is a proxy in between?",
        )
    return _not_etcd(
        f"something answered that is not etcd (HTTP status {status}: {text!r})"
    )


def _no_v3(text: str) -> Trouble:
    return Trouble(
        retry.Failure.FINAL,
        "it answers, but does not serve etcd's v3 API over HTTP; is it an etcd of "
        f"version 3.4 or later with its gRPC gateway on? ({text or 'not found'})",
        not_etcd=True,
        api_missing=True,
    )


def _not_etcd(reason: str) -> Trouble:
    return Trouble(retry.Failure.FINAL, reason, not_etcd=True)
