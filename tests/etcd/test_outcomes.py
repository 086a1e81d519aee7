# SPDX-License-Identifier: BSD-3-Clause
"""
What is told of a write is true, although replies get lost on the way.

A proxy before real servers loses replies after the server has applied the request.
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from etcd_rendezvous import EtcdConnectionError, EtcdOutcomeUnknownError

pytestmark = pytest.mark.torch

CONNECTION_FAILED = (
    "The connection to etcd has failed. See inner exception for details."
)
# A silent connection is given up after two seconds, so one test does for all.
QUICK_MODES = ("close", "reset", "half")


@pytest.fixture
def proxied(served, make_proxy):
    """
    Each API of each version, and a proxy in front of it.
    """
    return served, make_proxy(served.endpoint)


@pytest.fixture
def newest_proxied(newest_served, make_proxy):
    """
    Each API of its newest version, and a proxy in front of it.
    """
    return newest_served, make_proxy(newest_served.endpoint)


@pytest.fixture
def v3_proxied(v3, make_proxy):
    """
    The v3 API, each version in turn, and a proxy in front of it.
    """
    return v3, make_proxy(v3.endpoint)


def afterwards(action):
    """
    For `when_reply`: do something between the server's reply and its loss.
    """

    def act(status, body):
        action()
        return True

    return act


def overwrite(backend, *states):
    """
    Write states, each upon the last, as somebody else.
    """
    _, token = backend.get_state()
    for state in states:
        _, token, won = backend.set_state(state, token)
        assert won


# --- One lost reply


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_won_although_the_reply_was_lost(proxied, run_id, mode):
    """
    A swap that was applied is told as won, with a token that holds; so is a first
    write.
    """
    served, proxy = proxied
    backend = served.backend(run_id, proxy)
    token = None
    for state in (b"one", b"two"):
        with proxy.expect_swallowed(1), proxy.swallow(1, served.is_swap, mode=mode):
            found, token, won = backend.set_state(state, token)

        assert (state, True) == (found, won)
        assert (state, token) == served.backend(run_id).get_state()
    assert backend.set_state(b"three", token)[2] is True


def test_won_although_the_connection_fell_silent(newest_proxied, run_id):
    """
    The same where the connection stays open and nothing comes.
    """
    served, proxy = newest_proxied
    backend = served.backend(run_id, proxy)
    _, token, _ = backend.set_state(b"one")
    start = time.monotonic()
    with proxy.expect_swallowed(1), proxy.swallow(1, served.is_swap, mode="silent"):
        found, token, won = backend.set_state(b"two", token)

    assert (b"two", True) == (found, won)
    assert (b"two", token) == served.backend(run_id).get_state()
    assert time.monotonic() - start < 5


def test_won_although_many_replies_were_lost(proxied, run_id):
    """
    The same where several attempts in a row stay without an answer.
    """
    served, proxy = proxied
    backend = served.backend(run_id, proxy)
    _, token, _ = backend.set_state(b"one")
    with proxy.expect_swallowed(5), proxy.swallow(5, served.is_swap):
        found, token, won = backend.set_state(b"two", token)

    assert (b"two", True) == (found, won)
    assert (b"two", token) == served.backend(run_id).get_state()


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_lost_although_the_reply_was_lost(proxied, run_id, mode):
    """
    A swap that was refused is told as lost, with what holds; so is a first write that
    came second.
    """
    served, proxy = proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    _, old, _ = backend.set_state(b"one")
    _, newer, _ = other.set_state(b"theirs", old)
    for token in (old, None):
        with proxy.expect_swallowed(1), proxy.swallow(1, served.is_swap, mode=mode):
            lost = backend.set_state(b"mine", token)

        assert (b"theirs", newer, False) == lost
    assert (b"theirs", newer) == other.get_state()


def test_no_state_although_the_reply_was_lost(v3_proxied, run_id):
    """
    A swap upon a state that is gone is told as lost, with nothing there.
    """
    served, proxy = v3_proxied
    backend = served.backend(run_id, proxy)
    _, token, _ = backend.set_state(b"one")
    served.delete(backend.key)
    with proxy.expect_swallowed(1), proxy.swallow(1, served.is_swap):
        assert backend.set_state(b"two", token) is None

    assert backend.get_state() is None


def test_lost_to_the_same_bytes_of_long_ago(proxied, run_id):
    """
    A first write that came second is told as lost although the bytes are the same,
    where they were there before.
    """
    served, proxy = proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    _, token, _ = other.set_state(b"same")
    assert (b"same", token) == backend.get_state()
    with proxy.expect_swallowed(1), proxy.swallow(1, served.is_swap):
        lost = backend.set_state(b"same", None)

    assert (b"same", token, False) == lost


# --- Others meanwhile


def test_won_and_overwritten_before_it_was_known(proxied, run_id):
    """
    A swap that was applied, and upon which others have written by the time that its
    outcome is asked for, is told as won; its token is old.
    """
    served, proxy = proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    token = None
    if served.api == "v3":
        _, token, _ = backend.set_state(b"one")
    else:
        _, token, _ = other.set_state(b"one")
    meanwhile = afterwards(lambda: overwrite(other, b"theirs", b"mine too", b"last"))
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, served.is_swap, when_reply=meanwhile),
    ):
        found, mine, won = backend.set_state(b"mine", token)

    assert (b"mine", True) == (found, won)
    state, newest = other.get_state()
    assert state == b"last"
    assert (b"last", newest, False) == backend.set_state(b"again", mine)
    assert (b"last", newest) == backend.get_state()


def test_won_and_gone_before_it_was_known(newest_proxied, run_id):
    """
    The same where the state is gone by then.
    """
    served, proxy = newest_proxied
    backend = served.backend(run_id, proxy)
    _, token, _ = backend.set_state(b"one")
    gone = afterwards(lambda: served.delete(backend.key))
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, served.is_swap, when_reply=gone),
    ):
        found, mine, won = backend.set_state(b"mine", token)

    assert (b"mine", True) == (found, won)
    assert backend.set_state(b"again", mine) is None


def test_lost_and_overwritten_before_it_was_known(proxied, run_id):
    """
    A swap that was refused, and before whose outcome was known others have written
    again, is told as lost.
    """
    served, proxy = proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    _, token, _ = backend.set_state(b"one")
    overwrite(other, b"theirs")
    meanwhile = afterwards(lambda: overwrite(other, b"more", b"last"))
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, served.is_swap, when_reply=meanwhile),
    ):
        found, newest, won = backend.set_state(b"mine", token)

    assert (b"last", False) == (found, won)
    assert (b"last", newest) == other.get_state()


def test_history_that_is_compacted(v3_proxied, run_id, run_etcdctl):
    """
    Where others have written since and etcd has dropped the history, the outcome is
    unknown, and that is what the caller is told; nothing is written again.
    """
    served, proxy = v3_proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    _, token, _ = backend.set_state(b"one")

    def forget():
        overwrite(other, b"theirs", b"last")
        _, newest = other.get_state()
        run_etcdctl(served.endpoint, "compact", str(int(newest)))

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, served.is_swap, when_reply=afterwards(forget)),
        pytest.raises(RendezvousConnectionError) as caught,
    ):
        backend.set_state(b"mine", token)

    assert str(caught.value) == CONNECTION_FAILED
    cause = caught.value.__cause__
    assert isinstance(cause, EtcdOutcomeUnknownError)
    assert backend.key in str(cause)
    assert other.get_state()[0] == b"last"
    assert backend.get_state()[0] == b"last"


def test_history_that_v2_has_dropped(newest_served, run_id, make_proxy):
    """
    v2 keeps a thousand events: the same once there were more.
    """
    if newest_served.api != "v2":
        newest_served, proxy = None, None
        return
    proxy = make_proxy(newest_served.endpoint)
    backend = newest_served.backend(run_id, proxy)
    other = newest_served.backend(run_id)
    _, token, _ = backend.set_state(b"one")
    noise = newest_served.client()

    def forget():
        overwrite(other, b"theirs")
        for number in range(1100):
            noise.write(f"/noise-{run_id}", number)

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, newest_served.is_swap, when_reply=afterwards(forget)),
        pytest.raises(RendezvousConnectionError) as caught,
    ):
        backend.set_state(b"mine", token)

    assert str(caught.value) == CONNECTION_FAILED
    assert isinstance(caught.value.__cause__, EtcdOutcomeUnknownError)
    assert (b"theirs", int(other.get_state()[1])) == backend.get_state()
