# SPDX-License-Identifier: BSD-3-Clause
"""
What a store does on the v2 API alone: layout, order, lost replies, waking up, sockets.
"""

from __future__ import annotations

import base64
import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest

from etcd_rendezvous import (
    EtcdConnectionError,
    EtcdError,
    EtcdOutcomeUnknownError,
)
from etcd_rendezvous._v2 import store_keys as module
from etcd_rendezvous._v2.store_keys import V2StoreKeys
from support.scripted import refused_endpoint

QUICK_MODES = ("close", "reset", "half")
TTL = 1000


@pytest.fixture
def make(newest_v2, run_id):
    """
    A function that returns the store's operations, straight or through a proxy; each
    with a client of its own, as another process has it.
    """

    def make(through=None, served=newest_v2):
        return V2StoreKeys(served.client(through), f"/{run_id}/store/", TTL)

    return make


@pytest.fixture
def keys(make):
    """
    A store's operations.
    """
    return make()


@pytest.fixture
def proxy(newest_v2, make_proxy):
    return make_proxy(newest_v2.endpoint)


@pytest.fixture
def lossy(make, proxy):
    """
    Operations whose requests pass the proxy.
    """
    return make(proxy)


def is_write(method, path, body):
    return method in ("PUT", "DELETE") and path.startswith("/v2/keys")


def afterwards(action):
    """
    For `when_reply`: do something between the server's reply and its loss.
    """

    def act(status, body):
        action()
        return True

    return act


def every_second_reply_lost(proxy):
    numbers = itertools.count()
    return proxy.swallow(
        None, is_write, when_reply=lambda status, body: next(numbers) % 2 == 0
    )


def at_once(*actions):
    """
    Run actions in threads; return their results in order.
    """
    barrier = threading.Barrier(len(actions))

    def run(action):
        barrier.wait(10)
        return action()

    with ThreadPoolExecutor(len(actions)) as pool:
        return list(pool.map(run, actions))


def put(keys, name, value):
    keys.put_many([(name, value)], 10)


def get(keys, name):
    return keys.get_many([name], 10)[0]


# --- Where it is stored


def test_layout(keys, newest_v2, run_id):
    """
    Names are base64 below the directory, values base64 in it; queues are beside it.
    """
    put(keys, b"a/b", b"value")
    keys.change(b"changed", lambda _: b"", 10)
    keys.add(b"number", 4, 10)
    keys.push(b"q/1", b"first", 10)

    for name, value in ((b"a/b", b"value"), (b"changed", b""), (b"number", b"4")):
        path = f"/{run_id}/store/{base64.b64encode(name).decode()}"
        assert base64.b64encode(value).decode() == newest_v2.read(path)
        assert TTL - 10 < newest_v2.seconds_left(path) <= TTL
    folder = newest_v2.client().read(f"/{run_id}/store/_queues/cS8x")
    (node,) = folder.children
    assert base64.b64decode(node.value) == b"first"
    assert TTL - 10 < node.ttl <= TTL


def test_every_write_starts_the_time_anew(make, newest_v2, run_id):
    """
    Whatever writes a name gives it its whole time to live again.
    """
    short = V2StoreKeys(newest_v2.client(), f"/{run_id}/store/", 50)
    path = f"/{run_id}/store/{base64.b64encode(b'n').decode()}"
    for write in (
        lambda keys: put(keys, b"n", b"1"),
        lambda keys: keys.add(b"n", 1, 10),
        lambda keys: keys.change(b"n", lambda current: current + b"0", 10),
    ):
        put(short, b"n", b"1")
        assert newest_v2.seconds_left(path) <= 50
        write(make())
        assert newest_v2.seconds_left(path) > TTL - 10


def test_names(keys, newest_v2, run_id):
    """
    All names are listed, those too whose base64 v2 would hide; not what is no name.
    """
    names = [b"", b"a", b"a/b", b"..", b"\xff\xff", b"\xff\xfe\xfd", b"\xfb\xff", b"ab"]
    for name in names:
        put(keys, name, name)
    keys.push(b"queue", b"1", 10)
    client = newest_v2.client()
    client.write(f"/{run_id}/store/folder/YQ==", "MQ==")
    client.write(f"/{run_id}/store/no-base64!", "MQ==")
    client.write(f"/{run_id}/store/YWI", "MQ==")  # lacks its padding
    client.write(f"/{run_id}/store/YW J=", "MQ==")

    assert sorted(names) == sorted(keys.names(10))
    assert keys.count(10) == len(names)
    assert names == keys.get_many(names, 10)
    assert len(names) == len(keys.wait(names, 0.0))


def test_names_of_nothing(keys, newest_v2, run_id):
    """
    Where nothing was ever written, or the path is none of a directory, are no names.
    """
    assert keys.names(10) == []
    assert keys.length(b"queue", 10) == 0
    newest_v2.client().write(f"/{run_id}/store", "YQ==")
    assert keys.names(10) == []
    assert keys.count(10) == 0


def test_what_is_no_base64(keys, newest_v2, run_id):
    """
    A value that is not base64 is an error of ours that names the key.
    """
    path = f"/{run_id}/store/YQ=="
    newest_v2.client().write(path, "abc")
    for call in (
        lambda: get(keys, b"a"),
        lambda: keys.change(b"a", lambda _: b"1", 10),
        lambda: keys.add(b"a", 1, 10),
        lambda: keys.wait([b"a"], 1),
    ):
        with pytest.raises(EtcdError, match=path):
            call()


def test_what_a_decision_raises_is_passed_on(keys):
    """
    What is no number is nothing to add to, and nothing is written.
    """
    put(keys, b"a", b"text")
    with pytest.raises(ValueError, match="'a' is not a number"):
        keys.add(b"a", 1, 10)

    assert get(keys, b"a") == b"text"


def test_what_stays_as_it_is_is_not_written(lossy, proxy):
    """
    A decision for what is there already costs a read.
    """
    put(lossy, b"a", b"1")
    proxy.reset_counts()
    assert lossy.change(b"a", lambda _: b"1", 10) == b"1"
    assert lossy.change(b"b", lambda _: None, 10) is None
    assert lossy.add(b"a", 0, 10) == 1

    assert [one.method for one in proxy.log] == ["GET"] * 3


# --- Lost replies


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_change_although_the_reply_was_lost(lossy, proxy, keys, mode):
    """
    Creating, overwriting and deleting are applied once, and told so.
    """
    for before, after in ((None, b"1"), (b"1", b""), (b"", b"3"), (b"3", None)):
        seen = []
        with proxy.expect_swallowed(1), proxy.swallow(1, is_write, mode=mode):
            told = lossy.change(
                b"a", lambda now, seen=seen, after=after: seen.append(now) or after, 10
            )

        assert told == before
        assert seen == [before]
        assert get(keys, b"a") == after


def test_change_although_many_replies_were_lost(lossy, proxy, keys):
    """
    The same where several attempts in a row stay without an answer.
    """
    put(keys, b"a", b"1")
    with proxy.expect_swallowed(5), proxy.swallow(5, is_write):
        assert lossy.change(b"a", lambda now: now + b"2", 10) == b"1"
    with proxy.expect_swallowed(5), proxy.swallow(5, is_write):
        assert lossy.change(b"a", lambda _: None, 10) == b"12"

    assert get(keys, b"a") is None


@pytest.mark.parametrize(
    "others",
    [
        lambda other: put(other, b"a", b"theirs"),
        lambda other: other.change(b"a", lambda _: None, 10),
        lambda other: (
            other.change(b"a", lambda _: None, 10),
            put(other, b"a", b"theirs"),
        ),
    ],
    ids=["overwritten", "deleted", "begun anew"],
)
@pytest.mark.parametrize("wanted", [b"mine", b"", None])
def test_changed_by_others_before_it_was_known(lossy, proxy, keys, others, wanted):
    """
    What was applied is told so although others have written or deleted since: history
    tells. It is not applied again.
    """
    put(keys, b"a", b"before")
    calls = []
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, is_write, when_reply=afterwards(lambda: others(keys))),
    ):
        told = lossy.change(b"a", lambda now: calls.append(now) or wanted, 10)
    left = get(keys, b"a")

    assert told == b"before"
    assert calls == [b"before"]
    assert left in (b"theirs", None)


def test_deleted_by_others_first(lossy, proxy, keys, newest_v2, run_id):
    """
    Who comes second with a deletion, and whose reply is lost, is told that nothing was
    there any more, if the first deletion was of another kind.
    """
    put(keys, b"a", b"1")
    seen = []

    def decide(now):
        if not seen:
            newest_v2.client().delete(f"/{run_id}/store/YQ==")
        seen.append(now)

    with proxy.expect_swallowed(1), proxy.swallow(1, is_write):
        assert lossy.change(b"a", decide, 10) is None

    assert seen == [b"1", None]


def test_deleted_by_others_of_ours_first(lossy, proxy, keys):
    """
    Where it was of the same kind, both are told that it was they: v2 can't tell.
    """
    put(keys, b"a", b"1")

    def decide(now):
        if now is not None:
            keys.change(b"a", lambda _: None, 10)

    with proxy.expect_swallowed(1), proxy.swallow(1, is_write):
        assert lossy.change(b"a", decide, 10) == b"1"


def test_created_twice(lossy, proxy, keys):
    """
    A name that was created, deleted by others and created again by the repetition of
    the first request: nobody is told that it was written once.
    """
    with (
        proxy.expect_swallowed(1),
        proxy.swallow(
            1,
            is_write,
            when_reply=afterwards(lambda: keys.change(b"a", lambda _: None, 10)),
        ),
        pytest.raises(EtcdOutcomeUnknownError, match="twice"),
    ):
        lossy.change(b"a", lambda _: b"1", 10)


def test_created_by_the_second_attempt(lossy, proxy, keys):
    """
    Where the first attempt never arrived, the second one's answer is believed.
    """
    with proxy.hold(is_write, 1) as hold:
        threading.Timer(0.3, hold.drop).start()
        assert lossy.change(b"a", lambda _: b"1", 10) is None

    assert get(keys, b"a") == b"1"


def test_history_that_was_dropped(lossy, proxy, keys, newest_v2, run_id):
    """
    Where others have written since, and v2's thousand events do not reach back, the
    outcome is unknown, and nothing is written again.
    """
    put(keys, b"a", b"1")
    noise = newest_v2.client()

    def forget():
        put(keys, b"a", b"theirs")
        for number in range(1100):
            noise.write(f"/noise-{run_id}", number)

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, is_write, when_reply=afterwards(forget)),
        pytest.raises(EtcdOutcomeUnknownError, match="history"),
    ):
        lossy.change(b"a", lambda _: b"mine", 10)

    assert get(keys, b"a") == b"theirs"


def test_add_is_exact_for_one(lossy, proxy):
    """
    Who adds alone counts exactly, whatever replies are lost.
    """
    with proxy.expect_swallowed(30), every_second_reply_lost(proxy):
        assert [lossy.add(b"n", 1, 10) for _ in range(30)] == list(range(1, 31))


def test_add_is_exact_for_different_amounts(make, proxy, keys):
    """
    Those who add amounts that sum up to nothing equal lose nothing.
    """
    amounts = (1, 1000, 1_000_000)
    with proxy.expect_swallowed(20), every_second_reply_lost(proxy):
        at_once(
            *[
                lambda n=n: [one.add(b"n", n, 20) for one in [make(proxy)] * 10]
                for n in amounts
            ]
        )

    assert get(keys, b"n") == str(10 * sum(amounts)).encode()


@pytest.mark.parametrize("mode", QUICK_MODES)
def test_push_and_pop_although_the_reply_was_lost(lossy, proxy, keys, mode):
    """
    A value is pushed once, and popped once.
    """
    for value in (b"one", b""):
        with proxy.expect_swallowed(1), proxy.swallow(1, is_write, mode=mode):
            lossy.push(b"q", value, 10)
        assert keys.length(b"q", 10) == 1
        with proxy.expect_swallowed(1), proxy.swallow(1, is_write, mode=mode):
            assert lossy.pop(b"q", 10, 0) == value
        assert keys.length(b"q", 10) == 0
    assert keys.pop(b"q", 10, 0) is None


def test_popped_before_the_push_was_known(make, proxy, keys, newest_v2, run_id):
    """
    A value that was popped by the time that its push is sent again is not pushed again,
    by one who has seen nothing of etcd's history either.
    """
    noise = newest_v2.client()
    for number in range(1100):
        noise.write(f"/noise-{run_id}", number)
    for mode in QUICK_MODES:
        popped = []

        def pop(popped=popped):
            popped.append(keys.pop(b"q", 10, 10))

        with (
            proxy.expect_swallowed(1),
            proxy.swallow(1, is_write, mode=mode, when_reply=afterwards(pop)),
        ):
            make(proxy).push(b"q", mode.encode(), 10)

        assert popped == [mode.encode()]
        assert keys.pop(b"q", 10, 0) is None


def test_pushed_again_after_the_mark_is_gone(
    lossy, proxy, keys, monkeypatch, newest_v2, run_id
):
    """
    A push that is repeated when nothing shows any more that its value was popped is an
    error, not another value in silence.
    """
    monkeypatch.setattr(module, "_TAKEN_SECONDS", 0.0)

    def forget():
        client = newest_v2.client()
        (node,) = client.read(f"/{run_id}/store/_queues/cQ==").children
        client.delete(node.key)

    with (
        proxy.expect_swallowed(1),
        proxy.swallow(1, is_write, when_reply=afterwards(forget)),
        pytest.raises(EtcdOutcomeUnknownError, match="twice"),
    ):
        lossy.push(b"q", b"1", 10)


def test_pops_at_once_although_replies_were_lost(make, proxy, keys):
    """
    Each value goes to one of those who pop, whoever's reply is lost, even where all
    values are equal.
    """
    values = [b"same"] * 20 + [str(number).encode() for number in range(20)]
    for value in values:
        keys.push(b"q", value, 10)

    def pop_all():
        one, popped = make(proxy), []
        while (value := one.pop(b"q", 20, 0)) is not None:
            popped.append(value)
        return popped

    with proxy.expect_swallowed(20), every_second_reply_lost(proxy):
        popped = at_once(*[pop_all] * 4)

    assert sorted(values) == sorted(itertools.chain(*popped))


def test_pushes_and_pops_at_once_although_replies_were_lost(make, proxy):
    """
    The same while others push, with their replies lost too; what one has pushed comes
    in its order.
    """
    pushers, each = 3, 10

    def push(number):
        one = make(proxy)
        for turn in range(each):
            one.push(b"q", b"%d %d" % (number, turn), 20)
        return []

    def pop(number):
        one = make(proxy)
        return [one.pop(b"q", 20, 20) for _ in range(each)]

    with proxy.expect_swallowed(30), every_second_reply_lost(proxy):
        told = at_once(
            *[lambda n=n: push(n) for n in range(pushers)],
            *[lambda n=n: pop(n) for n in range(pushers)],
        )

    everything = [b"%d %d" % (n, turn) for n in range(pushers) for turn in range(each)]
    assert sorted(everything) == sorted(itertools.chain(*told))
    for popped, number in itertools.product(told, range(pushers)):
        turns = [int(one.split()[1]) for one in popped if int(one.split()[0]) == number]
        assert turns == sorted(turns)


# --- Queues


def test_queue_order(make):
    """
    First in, first out, whoever pushes; the odd value and the odd name too.
    """
    one, other = make(), make()
    values = [b"", b"taken", b"taken x", b"\0\xff", b"x" * 100_000] * 3
    for name in (b"q", b"", b"a/b", b"\xff\xff"):
        for number, value in enumerate(values):
            (one if number % 2 else other).push(name, value, 10)
        assert one.length(name, 10) == len(values)
        popped = [
            (other if number % 2 else one).pop(name, 10, 0)
            for number in range(len(values))
        ]

        assert values == popped
        assert one.pop(name, 10, 0) is None
    assert one.names(10) == []


def test_a_value_that_was_taken_goes_away(keys, newest_v2, run_id):
    """
    What is left of a popped value counts for nothing, and lives for half a minute.
    """
    keys.push(b"q", b"1", 10)
    keys.pop(b"q", 10, 0)
    (left,) = newest_v2.client().read(f"/{run_id}/store/_queues/cQ==").children

    assert 0 < left.ttl <= 30
    assert keys.length(b"q", 10) == 0


def test_what_a_push_and_a_pop_cost(lossy, proxy):
    """
    A push is one request, a pop two; one that waits is told, and does not ask.
    """
    lossy.push(b"q", b"1", 10)
    assert [one.method for one in proxy.log] == ["PUT"]
    proxy.reset_counts()
    assert lossy.pop(b"q", 10, 0) == b"1"
    assert [one.method for one in proxy.log] == ["GET", "PUT"]
    proxy.reset_counts()
    assert lossy.pop(b"other", 10, 0.5) is None
    assert proxy.total_requests <= 3
    proxy.reset_counts()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lossy.pop, b"third", 10, 20)
        proxy.wait_for_streams(1)
        time.sleep(0.5)
        lossy.push(b"third", b"1", 10)
        assert waiting.result(20) == b"1"
    assert [one.method for one in proxy.log] == ["GET", "GET", "PUT", "GET", "PUT"]


# --- Waking up


@pytest.mark.measures
def test_a_write_wakes_a_wait(keys, make):
    """
    What is written is seen within milliseconds, by wait and by pop.
    """
    other, seen, told = make(), queue.Queue(), []

    def read():
        for number in range(20):
            if number % 2:
                keys.wait([b"%d" % number], 20)
            else:
                keys.pop(b"q", 10, 20)
            seen.put(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(20):
        time.sleep(0.02)
        start = time.monotonic()
        if number % 2:
            put(other, b"%d" % number, b"1")
        else:
            other.push(b"q", b"1", 10)
        told.append(seen.get(timeout=20) - start)
    thread.join()

    assert sorted(told)[10] < 0.05, told


@pytest.mark.parametrize("kind", ["wait", "pop"])
def test_nothing_falls_between_reading_and_waiting(lossy, proxy, keys, kind):
    """
    What is written after the read, and before the long poll arrives, ends the waiting.
    """
    reads = itertools.count()
    with (
        ThreadPoolExecutor(1) as pool,
        proxy.hold(lambda method, *_: method == "GET" and next(reads) == 1, 1) as hold,
    ):
        if kind == "wait":
            waiting = pool.submit(lossy.wait, [b"a"], 20)
        else:
            waiting = pool.submit(lossy.pop, b"a", 10, 20)
        hold.wait(1)
        if kind == "wait":
            put(keys, b"a", b"1")
        else:
            keys.push(b"a", b"1", 10)
        start = time.monotonic()
        hold.release()

        assert waiting.result(20) in ({b"a": b"1"}, b"1")
        assert time.monotonic() - start < 10  # A long poll takes 15 s.


def test_more_events_than_v2_keeps(lossy, proxy, keys, newest_v2, run_id):
    """
    Where more than a thousand events come between, what is there is found still.
    """
    reads = itertools.count()
    noise = newest_v2.client()
    with (
        ThreadPoolExecutor(1) as pool,
        proxy.hold(lambda method, *_: method == "GET" and next(reads) == 1, 1) as hold,
    ):
        waiting = pool.submit(lossy.wait, [b"a"], 20)
        hold.wait(1)
        put(keys, b"a", b"1")
        for number in range(1100):
            noise.write(f"/noise-{run_id}", number)
        hold.release()

        assert waiting.result(20) == {b"a": b"1"}


def test_a_deleted_name_is_waited_for_again(lossy, proxy, keys):
    """
    A deletion wakes nobody for good.
    """
    put(keys, b"b", b"1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lossy.wait, [b"a", b"b"], 20)
        proxy.wait_for_streams(1)
        keys.change(b"b", lambda _: None, 10)
        put(keys, b"a", b"1")
        time.sleep(0.2)
        assert not waiting.done()
        put(keys, b"b", b"2")

        assert waiting.result(20) == {b"a": b"1", b"b": b"2"}


@pytest.mark.measures
def test_the_time_out_does_not_grow_with_what_is_missing(lossy, proxy, keys):
    """
    However many names are missing, waiting ends in time, and what is there is found.
    """
    for count, most in ((1, 4), (20, 30), (500, 5)):
        names = [b"%d-%d" % (count, number) for number in range(count)]
        put(keys, names[-1], b"1")
        proxy.reset_counts()
        start = time.monotonic()
        found = lossy.wait([b"gone", *names, *names], 0.2)

        assert 0.2 <= time.monotonic() - start < 1.5
        assert found == {names[-1]: b"1"}
        assert proxy.total_requests <= most


def test_no_time_to_wait(keys):
    """
    Without any time what is there is found, all of it.
    """
    names = [b"%d" % number for number in range(100)]
    keys.put_many([(name, name) for name in names], 20)
    for limit in (0.0, -1.0, 0.001):
        assert keys.wait(names, limit) == {name: name for name in names}
        assert keys.wait([], limit) == {}


# --- Sockets


def test_waits_leave_no_sockets(make, newest_v2):
    """
    A thousand waits, in vain and not, by many threads, leave two sockets open at most.
    """
    keys = make()
    put(keys, b"there", b"1")

    def use(number):
        if number % 5 == 4:
            return keys.wait([b"there"], 5)
        if number % 5 == 3:
            return keys.pop(b"q", 5, 0.005)
        return keys.wait([b"gone %d" % number], 0.005)

    before = sockets(newest_v2.endpoint)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(1000)))

    assert sockets(newest_v2.endpoint) - before <= 2


def sockets(endpoint):
    port = urlsplit(f"//{endpoint}").port
    return sum(
        bool(one.raddr) and one.raddr.port == port and one.status != "TIME_WAIT"
        for one in psutil.Process().net_connections(kind="tcp")
    )


# --- Time limits, and an etcd that is away


@pytest.mark.measures
def test_refused_until_the_time_is_up(newest_v2):
    """
    Where nobody listens, every operation waits for its time, and then says so.
    """
    with refused_endpoint() as endpoint:

        class Refused:
            pass

        Refused.endpoint = endpoint
        keys = V2StoreKeys(newest_v2.client(Refused), "/store/", TTL)
        for call in (
            lambda: keys.get_many([b"a"], 0.5),
            lambda: keys.put_many([(b"a", b"1")], 0.5),
            lambda: keys.change(b"a", lambda _: b"1", 0.5),
            lambda: keys.names(0.5),
            lambda: keys.wait([b"a"], 0.5),
            lambda: keys.push(b"q", b"1", 0.5),
            lambda: keys.pop(b"q", 0.5, 0),
            lambda: keys.pop(b"q", 0.5, 0.1),
            lambda: keys.pop(b"q", 0.5, 9.0),
            lambda: keys.length(b"q", 0.5),
        ):
            start = time.monotonic()
            with pytest.raises(EtcdConnectionError, match=endpoint):
                call()
            assert 0.4 < time.monotonic() - start < 1.5


def test_an_etcd_that_hangs(make_server, newest_v2_binary, serve, make):
    """
    Where etcd does not answer, operations end in time all the same.
    """
    server = make_server(binary=newest_v2_binary)
    keys = make(served=serve("v2", server))
    put(keys, b"a", b"1")
    server.pause()
    try:
        for call in (
            lambda: keys.change(b"a", lambda _: b"2", 0.5),
            lambda: keys.add(b"n", 1, 0.5),
            lambda: keys.pop(b"q", 0.5, 0.5),
            lambda: keys.wait([b"a", b"b"], 0.5),
        ):
            start = time.monotonic()
            with pytest.raises(EtcdConnectionError):
                call()
            assert time.monotonic() - start < 8
    finally:
        server.resume()


def test_etcd_restarts_while_others_wait(make_server, newest_v2_binary, serve, make):
    """
    Who waits for a name, or for a value of a queue, rides out an etcd that is stopped
    or killed, and started again.
    """
    server = make_server(binary=newest_v2_binary)
    served = serve("v2", server)
    keys, other = make(served=served), make(served=served)
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(keys.wait, [b"a"], 40)
        popping = pool.submit(keys.pop, b"q", 20, 40)
        time.sleep(0.3)
        server.kill()
        time.sleep(0.3)
        server.restart()
        put(other, b"a", b"1")
        other.push(b"q", b"2", 20)

        assert waiting.result(40) == {b"a": b"1"}
        assert popping.result(40) == b"2"
