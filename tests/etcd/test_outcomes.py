# SPDX-License-Identifier: BSD-3-Clause
"""
What is told of a write is true, although replies get lost on the way.

A proxy before real servers loses replies after the server has applied the request.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import urllib3
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from etcd_rendezvous import EtcdConnectionError, EtcdOutcomeUnknownError
from support.scripted import ScriptedServer, close, reply

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

    assert (found, won) == (b"two", True)
    assert (b"two", token) == served.backend(run_id).get_state()
    assert time.monotonic() - start < 9


def test_won_although_many_replies_were_lost(proxied, run_id):
    """
    The same where several attempts in a row stay without an answer.
    """
    served, proxy = proxied
    backend = served.backend(run_id, proxy)
    _, token, _ = backend.set_state(b"one")
    with proxy.expect_swallowed(5), proxy.swallow(5, served.is_swap):
        found, token, won = backend.set_state(b"two", token)

    assert (found, won) == (b"two", True)
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


def test_no_state_although_the_reply_was_lost(newest_proxied, run_id):
    """
    A swap upon a state that is gone is told as lost, with nothing there.
    """
    served, proxy = newest_proxied
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
    _, token, _ = backend.set_state(b"one")
    meanwhile = afterwards(lambda: overwrite(other, b"theirs", b"mine too", b"last"))
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, served.is_swap, when_reply=meanwhile),
    ):
        found, mine, won = backend.set_state(b"mine", token)

    assert (found, won) == (b"mine", True)
    state, newest = other.get_state()
    assert state == b"last"
    assert (b"last", newest, False) == backend.set_state(b"again", mine)
    assert (b"last", newest) == backend.get_state()


def test_new_state_won_and_overwritten_before_it_was_known(proxied, run_id):
    """
    The same for the first write of a state that begins anew.
    """
    served, proxy = proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    backend.set_state(b"one")
    served.delete(backend.key)
    meanwhile = afterwards(lambda: overwrite(other, b"theirs", b"last"))
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, served.is_swap, when_reply=meanwhile),
    ):
        found, mine, won = backend.set_state(b"mine")

    assert (found, won) == (b"mine", True)
    assert backend.set_state(b"again", mine)[::2] == (b"last", False)


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

    assert (found, won) == (b"mine", True)
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

    assert (found, won) == (b"last", False)
    assert (b"last", newest) == other.get_state()


def test_history_that_is_compacted(v3_proxied, run_id):
    """
    Where others have written since and etcd has dropped the history, the outcome is
    unknown, and that is what the caller is told; nothing is written again.
    """
    served, proxy = v3_proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    _, token, _ = backend.set_state(b"one")

    def forget():
        overwrite(other, b"theirs", b"last")
        served.compact()

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


def test_etcd_goes_away_before_the_outcome_is_known(newest_v2, run_id, make_proxy):
    """
    On v2, where a swap was applied, others have written since, and nobody answers who
    asks what became of it, the caller is told that it may have been applied.
    """
    proxy = make_proxy(newest_v2.endpoint)
    backend = newest_v2.backend(run_id, proxy, read_timeout=2)
    other = newest_v2.backend(run_id)
    _, token, _ = backend.set_state(b"one")
    meanwhile = afterwards(lambda: overwrite(other, b"theirs"))
    with (
        proxy.swallow(1, newest_v2.is_swap, when_reply=meanwhile),
        proxy.swallow(None, lambda method, *_: method == "GET"),
        pytest.raises(RendezvousConnectionError) as caught,
    ):
        backend.set_state(b"mine", token)

    assert isinstance(caught.value.__cause__, EtcdOutcomeUnknownError)
    assert "it may or may not have been applied" in str(caught.value.__cause__)


@pytest.mark.parametrize("page", [(403, "Forbidden"), (502, "Bad Gateway")])
def test_something_else_answers_before_the_outcome_is_known(newest_v3, run_id, page):
    """
    Likewise on v3, where a proxy's page comes in the place of etcd's history.
    """
    other = newest_v3.backend(run_id)
    lose = []

    def pass_on(exchange):
        request = exchange.request
        if request.path == "/v3/watch":
            return reply(*page)
        answer = urllib3.request(
            "POST", f"http://{newest_v3.endpoint}{request.path}", body=request.body
        )
        if lose and request.path == "/v3/kv/txn":
            lose.pop()
            overwrite(other, b"theirs")
            return close()
        return reply(answer.status, answer.data)

    with ScriptedServer(pass_on) as server:
        backend = newest_v3.backend(run_id, server, read_timeout=2)
        _, token, _ = backend.set_state(b"one")
        lose.append(True)
        with pytest.raises(RendezvousConnectionError) as caught:
            backend.set_state(b"mine", token)

    assert isinstance(caught.value.__cause__, EtcdOutcomeUnknownError)
    assert "it may or may not have been applied" in str(caught.value.__cause__)
    assert "history" not in str(caught.value.__cause__)


def test_no_lease_is_to_be_had_before_the_outcome_is_known(
    newest_v3, make_proxy, run_id
):
    """
    Likewise where a swap is lost on the way, its lease ends, and there is no other.
    """
    proxy = make_proxy(newest_v3.endpoint)
    backend = newest_v3.backend(run_id, proxy, read_timeout=2)
    _, token, _ = backend.set_state(b"one")
    client = newest_v3.client()
    revoke = afterwards(lambda: client.revoke(lease_of(newest_v3, backend.key)))
    with (
        proxy.swallow(1, newest_v3.is_swap, when_reply=revoke),
        proxy.swallow(None, "/v3/lease/grant"),
        pytest.raises(RendezvousConnectionError) as caught,
    ):
        backend.set_state(b"mine", token)

    assert isinstance(caught.value.__cause__, EtcdOutcomeUnknownError)
    assert "it may or may not have been applied" in str(caught.value.__cause__)


def test_history_that_v2_has_dropped(newest_v2, run_id, make_proxy):
    """
    v2 keeps a thousand events: the same once there were more.
    """
    proxy = make_proxy(newest_v2.endpoint)
    backend, other = newest_v2.backend(run_id, proxy), newest_v2.backend(run_id)
    _, token, _ = backend.set_state(b"one")
    noise = newest_v2.client()

    def forget():
        overwrite(other, b"theirs")
        for number in range(1100):
            noise.write(f"/noise-{run_id}", number)

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, newest_v2.is_swap, when_reply=afterwards(forget)),
        pytest.raises(RendezvousConnectionError) as caught,
    ):
        backend.set_state(b"mine", token)

    assert str(caught.value) == CONNECTION_FAILED
    assert isinstance(caught.value.__cause__, EtcdOutcomeUnknownError)
    assert (b"theirs", int(other.get_state()[1])) == backend.get_state()


def test_two_agents_close_with_the_same_bytes(v3_proxied, run_id):
    """
    Where two agents write the same bytes upon the same state, exactly one of them is
    told that it won, whoever's reply was lost.
    """
    served, proxy = v3_proxied
    one, other = served.backend(run_id, proxy), served.backend(run_id)
    told = {}
    for first_at_etcd in ("one", "other"):
        found = one.get_state()
        token = found[1] if found else None
        old = one.set_state(f"before {first_at_etcd}".encode(), token)[1]
        other.get_state()

        def close_too(old=old, first_at_etcd=first_at_etcd):
            told["other"] = other.set_state(b"closed", old)[2]

        if first_at_etcd == "other":
            close_too()
            meanwhile = None
        else:
            meanwhile = afterwards(close_too)
        with (
            proxy.expect_swallowed(1),
            proxy.swallow(1, served.is_swap, when_reply=meanwhile),
        ):
            state, newest, told["one"] = one.set_state(b"closed", old)

        assert state == b"closed"
        expected = {"one": first_at_etcd == "one", "other": first_at_etcd == "other"}
        assert expected == told
        assert (b"closed", newest) == other.get_state()


def test_threads_of_one_backend_write_the_same_bytes(v3_proxied, run_id):
    """
    Where threads share a backend, and replies are lost, of those that write the same
    bytes with the same token exactly one is told that it won.
    """
    served, proxy = v3_proxied
    backend = served.backend(run_id, proxy)
    token = None
    with proxy.expect_swallowed(30), every_second_reply_lost(served, proxy):
        for number in range(10):
            state = str(number).encode()
            results = at_once(
                *[lambda s=state, t=token: backend.set_state(s, t) for _ in range(4)]
            )

            assert [won for _, _, won in results].count(True) == 1
            assert {state} == {found for found, _, _ in results}
            token = next(token for _, token, won in results if won)


# --- Late arrivals


@pytest.mark.measures
def test_stale_write_that_arrives_late(newest_proxied, run_id):
    """
    A write that the network delivers after others have written changes nothing, not
    even if its sender was told of the time-out and has gone.
    """
    served, proxy = newest_proxied
    backend = served.backend(run_id, proxy, read_timeout=1)
    other = served.backend(run_id)
    _, token, _ = backend.set_state(b"one")
    with proxy.hold(served.is_swap, late=True) as hold:
        with pytest.raises(RendezvousConnectionError) as caught:
            backend.set_state(b"late", token)
        assert isinstance(caught.value.__cause__, EtcdConnectionError)
        assert "may or may not have been applied" in str(caught.value.__cause__)
        _, newer, won = other.set_state(b"theirs", token)
        assert won
        kept = hold.waiting
        assert kept >= 1
    late = proxy.wait_answered("late", kept)

    assert not any(won_reply(served, one) for one in late)
    assert (b"theirs", newer) == other.get_state()
    assert (b"theirs", newer) == backend.get_state()


def test_attempt_that_arrives_after_its_repetition(newest_proxied, run_id):
    """
    A first attempt that arrives after the second one has won changes nothing.
    """
    served, proxy = newest_proxied
    backend, other = served.backend(run_id, proxy), served.backend(run_id)
    _, token, _ = backend.set_state(b"one")
    with proxy.hold(served.is_swap, 1, late=True) as hold:
        state, mine, won = backend.set_state(b"mine", token)
        assert (state, won) == (b"mine", True)
        _, newer, won = other.set_state(b"theirs", mine)
        assert won
        assert hold.waiting == 1
    late = proxy.wait_answered("late", 1)

    assert not any(won_reply(served, one) for one in late)
    assert (b"theirs", newer) == backend.get_state()


def won_reply(served, passed):
    if served.api == "v2":
        return passed.status in (200, 201)
    return passed.reply_json.get("succeeded", False)


# --- Many lost replies


def every_second_reply_lost(served, proxy):
    numbers = itertools.count()
    return proxy.swallow(
        None,
        served.is_swap,
        when_reply=lambda status, body: next(numbers) % 2 == 0,
    )


def at_once(*actions):
    """
    Run actions in threads; return their results in order.
    """
    with ThreadPoolExecutor(len(actions)) as pool:
        barrier = threading.Barrier(len(actions))

        def run(action):
            barrier.wait(10)
            return action()

        return list(pool.map(run, actions))


def count_up(backend, swaps, mark):
    """
    Add one to a number in the state, again and again; return how often it was told
    that it won.
    """
    found = backend.get_state()
    wins = 0
    for _ in range(swaps):
        number, token = (int(found[0].split()[0]), found[1]) if found else (0, None)
        state, token, won = backend.set_state(f"{number + 1} {mark}".encode(), token)
        found = state, token
        wins += won
    return wins


def check_counter(served, proxy, run_id, agents, each):
    """
    Let agents swap, and lose every second reply: what they were told must be true.
    """
    swaps = each * len(agents)
    with proxy.expect_swallowed(swaps), every_second_reply_lost(served, proxy):
        wins = at_once(
            *[
                # On v2 nothing but the bytes tells whose write it was.
                lambda b=b, m=m: count_up(b, each, m if served.api == "v2" else "")
                for m, b in enumerate(agents)
            ]
        )

    state, _ = served.backend(run_id).get_state()
    assert sum(wins) == int(state.split()[0])
    assert sum(wins) >= swaps / 4


def test_counter_in_the_state_is_exact(newest_proxied, run_id):
    """
    200 swaps of four agents, every second reply lost: a number in the state ends as
    high as they were told that they won.
    """
    served, proxy = newest_proxied
    agents = [served.backend(run_id, proxy) for _ in range(4)]
    check_counter(served, proxy, run_id, agents, 50)


def test_counter_in_the_state_is_exact_on_every_version(proxied, run_id):
    """
    The same with 40 swaps on each version.
    """
    served, proxy = proxied
    agents = [served.backend(run_id, proxy) for _ in range(4)]
    check_counter(served, proxy, run_id, agents, 10)


def test_counter_of_threads_that_share_a_backend_is_exact(
    newest_v3, make_proxy, run_id
):
    """
    The same for four threads with one backend.
    """
    proxy = make_proxy(newest_v3.endpoint)
    backend = newest_v3.backend(run_id, proxy)
    check_counter(newest_v3, proxy, run_id, [backend] * 4, 30)


def test_add_is_exact(v3_proxied, run_id):
    """
    60 adds of four stores, every second reply lost: each gets a number of its own, and
    together 1 to 60.
    """
    served, proxy = v3_proxied
    stores = [served.store(run_id, proxy) for _ in range(4)]
    with proxy.expect_swallowed(60), every_second_reply_lost(served, proxy):
        sums = at_once(
            *[lambda s=s: [s.add("counter", 1) for _ in range(15)] for s in stores]
        )

    assert list(range(1, 61)) == sorted(itertools.chain(*sums))
    assert served.store(run_id).get("counter") == b"60"


def test_add_of_threads_that_share_a_store_is_exact(newest_v3, make_proxy, run_id):
    """
    The same for four threads with one store, and different amounts.
    """
    proxy = make_proxy(newest_v3.endpoint)
    store = newest_v3.store(run_id, proxy)
    with proxy.expect_swallowed(60), every_second_reply_lost(newest_v3, proxy):
        at_once(
            *[
                lambda n=n: [store.add("counter", n) for _ in range(15)]
                for n in (1, -3, 7, 100)
            ]
        )

    assert store.add("counter", 0) == 15 * (1 - 3 + 7 + 100)


def test_add_on_v2_is_exact_for_one(newest_v2, make_proxy, run_id):
    """
    On v2 a store that adds alone counts exactly, whatever replies are lost.
    """
    proxy = make_proxy(newest_v2.endpoint)
    store = newest_v2.store(run_id, proxy)
    with proxy.expect_swallowed(20), every_second_reply_lost(newest_v2, proxy):
        sums = [store.add(f"counter-{run_id}", 1) for _ in range(20)]

    assert list(range(1, 21)) == sums


def test_set_although_replies_were_lost(proxied, run_id):
    """
    What was set is there, although the replies were lost.
    """
    served, proxy = proxied
    store = served.store(run_id, proxy)
    writes = ("/v3/kv/", "/v3/lease/") if served.api == "v3" else ("/v2/keys",)
    numbers = itertools.count()
    with (
        proxy.expect_swallowed(5),
        proxy.swallow(
            None,
            lambda method, path, body: method != "GET" and path.startswith(writes),
            when_reply=lambda status, body: next(numbers) % 2 == 0,
        ),
    ):
        for number in range(5):
            store.set(f"{run_id}-{number}", str(number))

    assert served.store(run_id).multi_get(
        [f"{run_id}-{number}" for number in range(5)]
    ) == [b"0", b"1", b"2", b"3", b"4"]


# --- Leases


def lease_of(served, key):
    return served.client().range(key)[0].entries[0].lease


def test_grant_although_the_reply_was_lost(v3_proxied, run_id):
    """
    A lease whose grant stayed without an answer is granted once, and used.
    """
    served, proxy = v3_proxied
    backend = served.backend(run_id, proxy)
    with proxy.expect_swallowed(1), proxy.swallow(1, "/v3/lease/grant"):
        _, token, won = backend.set_state(b"one")

    assert won
    grants = [one.json["ID"] for one in proxy.log if one.path == "/v3/lease/grant"]
    assert [str(lease_of(served, backend.key))] * 2 == grants
    assert backend.set_state(b"two", token)[2] is True


def test_lease_that_was_revoked(v3, run_id):
    """
    A lease that is gone is granted anew: for a state that went with it, for a lost
    swap, and for the store.
    """
    backend, other = v3.backend(run_id), v3.backend(run_id)
    store = v3.store(run_id)
    _, token, _ = backend.set_state(b"one")
    client = v3.client()
    first = lease_of(v3, backend.key)
    client.revoke(first)

    assert backend.get_state() is None
    _, token, won = backend.set_state(b"two")
    assert won
    second = lease_of(v3, backend.key)
    assert first != second

    # Somebody else's lease holds the state; ours, gone, is only for the next write.
    _, newer, won = other.set_state(b"theirs", token)
    assert won
    client.revoke(second)
    assert (b"theirs", newer, False) == backend.set_state(b"mine", token)
    _, _, won = backend.set_state(b"mine", newer)
    assert won
    third = lease_of(v3, backend.key)
    assert third not in (first, second)

    store.set("key", "value")
    client.revoke(lease_of(v3, f"{backend.key}/store/key"))
    assert store.check(["key"]) is False
    store.set("key", "again")
    assert store.add("number", 1) == 1
    client.revoke(lease_of(v3, f"{backend.key}/store/key"))
    assert store.add("number", 1) == 1


def test_lease_that_expired(newest_v3, run_id):
    """
    A backend that was silent for longer than its TTL writes again with a new lease.
    """
    backend = newest_v3.backend(run_id, ttl=4)
    _, token, _ = backend.set_state(b"one")
    first = lease_of(newest_v3, backend.key)
    deadline = time.monotonic() + 20
    while newest_v3.client().get(backend.key) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert backend.set_state(b"two", token) is None
    assert backend.set_state(b"three")[::2] == (b"three", True)
    assert first != lease_of(newest_v3, backend.key)


def test_lost_replies_and_a_revoked_lease(newest_v3, make_proxy, run_id):
    """
    A swap that was applied is told as won although by then its lease, and with it the
    state, is gone.
    """
    proxy = make_proxy(newest_v3.endpoint)
    backend = newest_v3.backend(run_id, proxy)
    _, token, _ = backend.set_state(b"one")
    client = newest_v3.client()
    revoke = afterwards(lambda: client.revoke(lease_of(newest_v3, backend.key)))
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, newest_v3.is_swap, when_reply=revoke),
    ):
        state, mine, won = backend.set_state(b"two", token)

    assert (state, won) == (b"two", True)
    assert backend.set_state(b"three", mine) is None
    assert backend.get_state() is None
