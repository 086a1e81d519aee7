# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The errors are one tree, and survive the way to another process.
"""

from __future__ import annotations

import copy
import pickle

import pytest

import etcd_rendezvous
from etcd_rendezvous import _errors
from etcd_rendezvous._v3.client import LeaseNotFoundError

ERRORS = [getattr(_errors, name) for name in _errors.__all__]


def test_public():
    """
    Every error can be had from the package.
    """
    assert ERRORS == [getattr(etcd_rendezvous, name) for name in _errors.__all__]
    assert set(_errors.__all__) <= set(etcd_rendezvous.__all__)


@pytest.mark.parametrize("kind", [*ERRORS, LeaseNotFoundError])
def test_one_root(kind):
    """
    Whoever catches EtcdError catches all errors of ours; they say what they are.
    """
    assert issubclass(kind, _errors.EtcdError)
    assert kind.__doc__.strip()


def test_what_they_are_besides():
    """
    A bad setting is a ValueError and a server that fails a RuntimeError, as in torch.
    """
    assert issubclass(_errors.EtcdSettingError, ValueError)
    assert issubclass(_errors.EtcdServerError, RuntimeError)


def test_apart():
    """
    No kind is a kind of another, but of the root, of etcd's replies and of a local
    server's errors.
    """
    kinds = [kind for kind in ERRORS if kind is not _errors.EtcdError]
    roots = {_errors.EtcdReplyError, _errors.EtcdServerError}

    assert [] == [
        (one, other)
        for one in kinds
        for other in kinds
        if one is not other and other not in roots and issubclass(one, other)
    ]


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("again", [copy.copy, lambda e: pickle.loads(pickle.dumps(e))])
def test_picklable(kind, again):
    """
    An error is the same after pickling and copying.
    """
    error = kind("It failed.")
    other = again(error)

    assert (kind, "It failed.") == (type(other), str(other))
    assert vars(error) == vars(other)


@pytest.mark.parametrize(
    "kind",
    [
        _errors.EtcdReplyError,
        _errors.EtcdLimitError,
        _errors.EtcdAuthError,
        LeaseNotFoundError,
    ],
)
def test_a_reply_is_picklable(kind):
    """
    So are the code and the words of etcd's answer.
    """
    other = pickle.loads(pickle.dumps(kind("It failed.", 5, "not found")))

    assert (kind, "It failed.", 5, "not found") == (
        type(other),
        str(other),
        other.code,
        other.text,
    )


def test_a_reply_without_code():
    """
    An answer without a code has gRPC's "unknown".
    """
    assert (2, "") == (
        _errors.EtcdReplyError("It failed.").code,
        _errors.EtcdReplyError("It failed.").text,
    )


def test_a_missing_api_is_picklable():
    """
    So is whether it was the API that is missing.
    """
    error = _errors.EtcdProtocolError("It failed.")

    assert error.api_missing is False

    error.api_missing = True

    assert pickle.loads(pickle.dumps(error)).api_missing is True
