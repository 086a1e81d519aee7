# SPDX-License-Identifier: BSD-3-Clause
"""
What went wrong with a request to the v2 API, in words for people.

The sentence around it (what, where, how often it was tried) is made by ``_failover``.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

import etcd

from .._credentials import LEAST_SECRET, PASSWORD_VARIABLE, USER_VARIABLE
from .._failover import Trouble
from .._v3 import retry
from .._v3.error_texts import SPEAKS_TLS

__all__ = ["basic", "is_of_v2", "no_v2", "trouble_of_answer"]

# v2's own: it does not say whether user, password or right is what is missing.
_UNAUTHORIZED: Final = 110


def trouble_of_answer(error: etcd.EtcdException, client: etcd.Client) -> Trouble:
    """
    Return what an answer means that python-etcd has raised.

    Args:
        error: What it has raised.
        client: The client, which has user and password.
    """
    user = client.username
    payload = error.payload if isinstance(error.payload, dict) else {}
    if payload.get("errorCode") == _UNAUTHORIZED:
        reason = (
            f"etcd's v2 does not let the user '{user}' do this: the password is "
            "another one, or no role of theirs has the right to this key"
            if user
            else "etcd's v2 wants a user and a password; set "
            f"{USER_VARIABLE} and {PASSWORD_VARIABLE}"
        )
        cause = _harmless(error, client)
        return Trouble(retry.Failure.FINAL, reason, cause, code=retry.UNAUTHENTICATED)
    text = str(payload.get("cause") or payload.get("message") or error)
    text = " ".join(_without_password(text, client).split())[:200]
    cause = _harmless(error, client)
    if "HTTP request to an HTTPS server" in text:
        return Trouble(
            retry.Failure.FINAL,
            SPEAKS_TLS,
            cause,
            not_etcd=True,
        )
    # A reply without a body: so ends the long poll of an etcd that is going down.
    if getattr(error.__context__, "doc", None) == "":
        return Trouble(retry.Failure.AMBIGUOUS, "the reply was empty", cause)
    no_json = "JSON" in str(error) or payload.get("message") == "Bad response"
    if "errorCode" not in payload and "404 page not found" in text:
        return no_v2(error, client)
    if "errorCode" not in payload and no_json:
        return Trouble(
            retry.Failure.FINAL,
            f"something answered that is not etcd ({text})",
            cause,
            not_etcd=True,
        )
    return Trouble(retry.failure_of_reply(2, text), text, cause)


def _harmless(
    error: etcd.EtcdException, client: etcd.Client
) -> etcd.EtcdException | None:
    """
    Return an error that may be handed on: None where it repeats the password.
    """
    text = str(error)
    return error if _without_password(text, client) == text else None


def _without_password(text: str, client: etcd.Client) -> str:
    """
    Return what a server says without the password, plain or as it is sent.
    """
    if client.password:
        text = text.replace(basic(client), "***")
        if len(client.password) >= LEAST_SECRET:
            text = text.replace(client.password, "***")
    return text


def basic(client: etcd.Client) -> str:
    """
    Return user and password as HTTP sends them.
    """
    return b64encode(f"{client.username}:{client.password}".encode()).decode()


def is_of_v2(error: etcd.EtcdException) -> bool:
    """
    Say whether it is v2's own word; python-etcd's "key not found" may be a page's.
    """
    return isinstance(error.payload, dict) and "errorCode" in error.payload


def no_v2(error: etcd.EtcdException, client: etcd.Client) -> Trouble:
    """
    Return what is wrong with who answers, but not on v2.

    Args:
        error: What python-etcd has raised.
        client: The client, which has user and password.
    """
    return Trouble(
        retry.Failure.FINAL,
        "it answers, but does not serve etcd's v2 API: etcd up to 3.5 does with "
        "--enable-v2, later ones no longer do; use the backend etcd-v3",
        _harmless(error, client),
        not_etcd=True,
        api_missing=True,
    )
