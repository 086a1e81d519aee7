# SPDX-License-Identifier: BSD-3-Clause
"""
What torch's stores promise, asked of TCPStore and of ours in the same words.

What is asserted here holds for TCPStore, for ours on v3 and for ours on v2, of every
version, and through PrefixStores. Where ours differs on purpose, the tests are in
`test_store.py`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import (
    DistStoreError,
    PrefixStore,
    QueueEmptyError,
    Store,
    TCPStore,
)

from etcd_rendezvous import EtcdStore
from support import etcds

pytestmark = pytest.mark.torch

# TCPStore looks up the names of its sockets; where nobody answers, that takes a while.
os.environ.setdefault("RES_OPTIONS", "timeout:1 attempts:1")

ODD_KEYS = [
    "/",
    "//",
    "a/b",
    "/a/",
    "..",
    "../a",
    ".",
    "%2F",
    "a%b",
    "nul\0nul",
    "a b",
    "ü-日本",
    "k?q=1&r#s+t",
    "???>>>~~~",  # whose base64 has a "/" in it
    "x" * 300,
    "",
]
NO_TEXT = (5, None, 1.5)
MS = timedelta(milliseconds=1)
# Seconds that suffice on a busy machine, and are less than any limit not to be hit.
SOON = 15


def kinds(*, wrapped=False):
    """
    Return each API of each version, or wrapped in a PrefixStore of the newest alone.
    """
    try:
        found = [("v3", etcds.binaries()), ("v2", etcds.v2_binaries())]
    except etcds.NoEtcdError:
        found = []
    name = "prefixed-" if wrapped else ""
    params = [
        pytest.param(
            (api, one.path, wrapped),
            id=f"{name}{api}-{one.version}",
            marks=[pytest.mark.etcd] + [pytest.mark.v2] * (api == "v2"),
        )
        for api, binaries in found
        for one in (binaries[-1:] if wrapped else binaries)
    ]
    tcp = pytest.param(
        ("tcp", None, wrapped), id=f"{name}TCPStore", marks=pytest.mark.etcd
    )
    return [*params, tcp]


class Kind:
    """
    A kind of store.

    Attributes:
        busy: Whether it is a TCPStore, which is busy while it waits.
        store: A store.
        twin: What another thread uses: a TCPStore itself is busy while it waits.
        make: Returns a store of a client of its own, as another process has it,
            unwrapped.
    """

    def __init__(self, make, store, *, busy, wrapped):
        self.make = make
        self.busy = busy
        self._wrapped = wrapped
        # A PrefixStore does not keep what it wraps alive.
        self._kept = []
        self.store = self._wrap(store)

    @functools.cached_property
    def twin(self):
        return self._wrap(self.make()) if self.busy else self.store

    def clients(self, count):
        """
        Stores of clients of their own, as other processes have them.
        """
        return [self._wrap(self.make()) for _ in range(count)]

    def _wrap(self, store):
        self._kept.append(store)
        if not self._wrapped:
            return store
        inner = PrefixStore("a/b", store)
        self._kept.append(inner)
        return PrefixStore("outer", inner)


@pytest.fixture
def _make_kind(serve, _shared_servers, run_id, monkeypatch):
    # TCPStore looks up the names of its sockets, now and then for as long as it takes.
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")

    def make_kind(param):
        name, binary, wrapped = param
        if name == "tcp":
            master = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

            def client():
                return TCPStore("127.0.0.1", master.port, wait_for_workers=False)

            return Kind(client, master, busy=True, wrapped=wrapped)
        served = serve(name, _shared_servers(binary))
        # On v2 all runs share a folder, and only the handler's prefix parts them.
        prefix = f"/torch/elastic/rendezvous/{run_id}/store"

        def store():
            return EtcdStore(served.client(), prefix)

        return Kind(store, store(), busy=False, wrapped=wrapped)

    return make_kind


@pytest.fixture(params=kinds() + kinds(wrapped=True))
def kind(request, _make_kind):
    """
    Each kind of store in turn: ours, and torch's TCPStore beside it.
    """
    return _make_kind(request.param)


@pytest.fixture
def store(kind):
    """
    A store of each kind in turn.
    """
    return kind.store


@pytest.fixture(params=kinds())
def bare(request, _make_kind):
    """
    Each kind of store in turn, never wrapped: torch's PrefixStore hands queues and
    lists of keys on to TCPStore alone.
    """
    return _make_kind(request.param)


def limited(store, seconds):
    store.set_timeout(timedelta(seconds=seconds))
    return store


def sent(store):
    """
    Wait until others see what this client has written: TCPStore's set, multi_set,
    append and queue_push do not.
    """
    store.num_keys()


@contextlib.contextmanager
def later(call, *arguments, seconds=0.1):
    """
    Call something after some seconds, in another thread; see that nobody goes on
    before that.
    """
    called = threading.Event()

    def work():
        called.set()
        call(*arguments)

    timer = threading.Timer(seconds, work)
    timer.start()
    try:
        yield
        assert called.is_set()
    finally:
        timer.join()


@contextlib.contextmanager
def within(least, most=SOON):
    """
    See that something takes no less and no more seconds than these.
    """
    start = time.monotonic()
    yield
    taken = time.monotonic() - start
    assert least <= taken < most


@contextlib.contextmanager
def times_out(seconds, *names):
    """
    See that something is a DistStoreError after these seconds that names these keys.
    """
    with within(seconds * 0.9, seconds + SOON):
        with pytest.raises(DistStoreError, match="timeout") as caught:
            yield caught
    assert [name for name in names if name not in str(caught.value)] == []


def at_once(call, arguments):
    """
    Call something with each of these arguments at the same time, in threads.
    """
    arguments = list(arguments)
    barrier = threading.Barrier(len(arguments))

    def one(argument):
        barrier.wait(20)
        return call(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(one, arguments))


# --- Values


def test_is_torchs_store(store):
    """
    It is a Store of torch's, and says that it has the extended API.
    """
    assert isinstance(store, Store)
    assert store.has_extended_api() is True


def test_set_and_get(store):
    """
    What was set last is there, str or bytes.
    """
    for value in ("text", b"bytes", b"", b"\0\xff", bytearray(b"array"), "ü", ""):
        store.set("key", value)

        expected = value.encode() if isinstance(value, str) else bytes(value)
        assert expected == store.get("key")
        assert type(store.get("key")) is bytes


def test_str_and_bytes_name_one_key(store):
    """
    A key as bytes and as str is one key.
    """
    store.set(b"key", "a")
    assert store.get("key") == b"a"
    store.set("key", "b")
    assert store.get(b"key") == b"b"
    assert store.add(bytearray(b"n"), 1) == 1
    assert store.add("n", 1) == 2
    assert store.multi_get([b"key", "n"]) == [b"b", b"2"]
    assert store.check([b"key", bytearray(b"n")]) is True
    assert store.delete_key(b"key") is True
    assert store.check(["key"]) is False


def test_keys_that_are_no_utf8(bare):
    """
    Bytes that are no UTF-8 are a key as well.
    """
    store = bare.store
    store.set(b"\xff\xfe", "1")
    assert store.get(b"\xff\xfe") == b"1"
    assert store.add(b"\xff", 2) == 2
    assert store.check([b"\xff\xfe", b"\xff"]) is True
    assert store.check([b"\xfe"]) is False
    assert store.delete_key(b"\xff") is True
    store.append(b"\xff\xfe", b"\xfd")
    assert store.compare_set(b"\xff\xfe", b"1\xfd", b"\xfc") == b"\xfc"


def test_other_types_are_refused(store):
    """
    Keys and values are text or bytes, or a TypeError, and nothing is written.
    """
    limited(store, 0.01)
    for wrong in NO_TEXT:
        for call, *arguments in (
            (store.set, wrong, "value"),
            (store.set, "key", wrong),
            (store.get, wrong),
            (store.add, wrong, 1),
            (store.compare_set, wrong, "", "value"),
            (store.compare_set, "key", wrong, "value"),
            (store.compare_set, "key", "", wrong),
            (store.append, wrong, "value"),
            (store.append, "key", wrong),
            (store.delete_key, wrong),
            (store.check, [wrong]),
            (store.wait, [wrong]),
            (store.wait, [wrong], MS),
            (store.multi_get, [wrong]),
            (store.multi_set, [wrong], ["value"]),
            (store.multi_set, ["key"], [wrong]),
        ):
            with pytest.raises(TypeError):
                call(*arguments)

    assert store.check(["key"]) is False


def test_one_text_is_no_list_of_keys(store):
    """
    A text where keys belong is a TypeError: its letters are nobody's keys.
    """
    limited(store, 0.01)
    for call in (
        lambda: store.check("key"),
        lambda: store.wait("key"),
        lambda: store.wait("key", MS),
        lambda: store.multi_get("key"),
        lambda: store.multi_set("key", ["1", "2", "3"]),
        lambda: store.multi_set(["k"], "1"),
        lambda: store.multi_get(b"key"),
        lambda: store.multi_get(None),
    ):
        with pytest.raises(TypeError):
            call()

    assert store.check(["k"]) is False
    assert store.multi_get(("",)[:0]) == []


def test_odd_keys(store):
    """
    Any text is a key of its own.
    """
    for number, key in enumerate(ODD_KEYS):
        store.set(key, str(number))

    values = [str(number).encode() for number in range(len(ODD_KEYS))]
    assert values == [store.get(key) for key in ODD_KEYS]
    assert values == store.multi_get(ODD_KEYS)
    assert store.check(ODD_KEYS) is True
    store.wait(ODD_KEYS, 1000 * MS)
    for key in ODD_KEYS:
        assert store.check([f"{key}-"]) is False
        assert store.add(f"{key}+", 3) == 3


def test_odd_keys_can_be_changed(store):
    """
    Any text is a key of its own for what changes and deletes keys as well.
    """
    before = store.num_keys()
    store.multi_set(ODD_KEYS, ODD_KEYS)
    for key in ODD_KEYS:
        store.append(key, "+")
        assert store.compare_set(key, f"{key}+", f"{key}-") == f"{key}-".encode()

    assert [f"{key}-".encode() for key in ODD_KEYS] == store.multi_get(ODD_KEYS)
    for number, key in enumerate(ODD_KEYS):
        assert store.num_keys() == before + len(ODD_KEYS) - number
        assert store.delete_key(key) is True
        assert store.check([key]) is False


def test_large_value(store):
    """
    A value of 1 MiB comes back whole, and so do some at once.
    """
    value = bytes(range(256)) * 4096
    keys = [f"large-{number}" for number in range(5)]
    for key in keys:
        store.set(key, value)

    assert value == store.get(keys[0])
    assert [value] * 5 == store.multi_get(keys)


@pytest.mark.parametrize(
    "value",
    [
        b"\0",
        b"\0etcd-rendezvous ",
        b"\0etcd-rendezvous counter: version+5",
        b"\0etcd-rendezvous value: 1",
        b"MTI=",
        b'{"1": null}',
    ],
)
def test_odd_values(store, value):
    """
    Any bytes are a value that comes back as it is, whatever a store writes itself.
    """
    store.set("a", value)
    assert store.get("a") == value
    assert store.compare_set("b", "", value) == value
    assert store.compare_set("b", value, value + b"0") == value + b"0"
    store.append("c", value)
    store.append("c", value)
    store.multi_set(["d", "e"], [value, value + value])
    assert store.multi_get(["c", "d", "e"]) == [value + value, value, value + value]
    store.add("n", 1)
    store.set("n", value)
    assert store.get("n") == value
    assert store.compare_set("n", value, "1") == b"1"
    assert store.add("n", 1) == 2


def test_a_prefix_is_a_name_before_a_slash(store):
    """
    A PrefixStore's keys are its prefix, a slash, and the key; others' are not seen.
    """
    one, two = PrefixStore("one", store), PrefixStore("two", store)
    one.set("key", "1")

    assert store.get("one/key") == b"1"
    assert two.check(["key"]) is False
    assert store.check(["key"]) is False
    assert two.add("key", 5) == 5
    assert one.delete_key("key") is True
    assert store.get("two/key") == b"5"


# --- Numbers


def test_add(store):
    """
    A number is added to; it is stored as decimal text.
    """
    assert store.add("n", 1) == 1
    assert store.get("n") == b"1"
    assert store.add("n", 5) == 6
    assert store.add("n", -10) == -4
    assert store.add("n", 0) == -4
    assert store.get("n") == b"-4"
    assert store.multi_get(["n"]) == [b"-4"]
    assert store.add("n", 1) == -3
    assert store.add("zero", 0) == 0
    assert store.check(["zero"]) is True
    assert store.get("zero") == b"0"
    assert store.add("zero", 1) == 1
    assert store.add("minus", -3) == -3
    assert store.add("minus", 3) == 0
    assert store.get("minus") == b"0"


def test_add_large_numbers(store):
    """
    Numbers have 64 bits; others are no numbers to add.
    """
    assert store.add("large", 2**62) == 2**62
    assert store.add("large", 2**62 - 1) == 2**63 - 1
    assert store.add("large", -1) == 2**63 - 2
    assert store.add("low", -(2**63)) == -(2**63)
    assert store.get("low") == str(-(2**63)).encode()
    for amount in (2**63, -(2**63) - 1, 2**64, 10**30):
        with pytest.raises(TypeError):
            store.add("large", amount)

    assert store.get("large") == str(2**63 - 2).encode()


def test_add_takes_whole_numbers(store):
    """
    What can be a whole number is one; texts and fractions are a TypeError.
    """

    class Whole:
        def __index__(self):
            return 7

    assert store.add("n", Whole()) == 7
    assert store.add("n", True) == 8
    for amount in (1.5, 1.0, "1", b"1", None):
        with pytest.raises(TypeError):
            store.add("n", amount)
        with pytest.raises(TypeError):
            store.add("new", amount)

    assert store.get("n") == b"8"
    assert store.check(["new"]) is False


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("10", 10),
        ("+5", 5),
        (" 12 ", 12),
        ("\t7\n", 7),
        ("007", 7),
        ("-0", 0),
        ("-12", -12),
    ],
)
def test_add_to_a_number_that_was_set(store, text, number):
    """
    Text that says a decimal number is one to add to, with a sign, blanks or zeros.
    """
    store.set("n", text)
    assert store.add("n", 1) == number + 1
    assert store.get("n") == str(number + 1).encode()
    assert store.add("n", 1) == number + 2


def test_a_number_is_text_to_others(store):
    """
    Whatever writes a number's key, adding goes on from what is there.
    """
    assert store.add("n", 1) == 1
    store.append("n", "0")
    assert store.get("n") == b"10"
    assert store.add("n", 1) == 11
    assert store.compare_set("n", "11", "20") == b"20"
    assert store.add("n", 1) == 21
    assert store.add("n", 1) == 22
    store.set("n", "30")
    assert store.add("n", 1) == 31
    store.multi_set(["n"], ["40"])
    assert store.add("n", 2) == 42
    assert store.add("n", 1) == 43
    assert store.compare_set("n", "42", "0") == b"43"
    assert store.get("n") == b"43"
    assert store.delete_key("n") is True
    assert store.add("n", 1) == 1
    assert store.get("n") == b"1"


def test_add_at_once(store):
    """
    Those who add at once get each a number of its own.
    """
    sums = at_once(lambda _: [store.add("n", 1) for _ in range(5)], range(10))

    assert list(range(1, 51)) == sorted(itertools.chain(*sums))
    assert all(sorted(own) == own for own in sums)
    assert store.get("n") == b"50"


def test_add_at_once_from_several_clients(kind):
    """
    Several clients that add at once get each a number of its own, whichever amount.
    """
    ones = at_once(
        lambda client: [client.add("n", 1) for _ in range(20)], kind.clients(5)
    )
    twos = at_once(
        lambda client: [client.add("m", 2) for _ in range(5)], kind.clients(4)
    )

    assert list(range(1, 101)) == sorted(itertools.chain(*ones))
    assert list(range(2, 41, 2)) == sorted(itertools.chain(*twos))
    assert kind.store.multi_get(["n", "m"]) == [b"100", b"40"]


def test_mixed_amounts_at_once(kind):
    """
    Ones, other amounts and a look at once: nothing is lost, whoever is quicker.
    """

    def change(numbered):
        number, client = numbered
        for _ in range(8):
            client.add("n", (1, 1, 5, -2)[number])
            assert client.get("n").isdigit()

    kind.store.set("n", "1000")
    sent(kind.store)
    at_once(change, enumerate(kind.clients(4)))

    assert kind.store.get("n") == b"1040"


# --- Swaps


def test_compare_set_of_an_absent_key(store):
    """
    An absent key is set where nothing is expected; else the answer is what was
    expected, and nothing is set.
    """
    assert store.compare_set("a", "expected", "new") == b"expected"
    assert store.check(["a"]) is False
    assert store.compare_set("a", "", "new") == b"new"
    assert store.get("a") == b"new"
    assert store.compare_set("b", b"", b"\0\xff") == b"\0\xff"
    assert store.get("b") == b"\0\xff"
    assert store.compare_set("c", "", "") == b""
    assert store.check(["c"]) is True


def test_compare_set_of_a_key(store):
    """
    A key is set where it is as expected; the answer is what is there then.
    """
    store.set("a", "1")
    assert store.compare_set("a", "2", "3") == b"1"
    assert store.compare_set("a", "", "3") == b"1"
    assert store.compare_set("a", "11", "3") == b"1"
    assert store.get("a") == b"1"
    assert store.compare_set("a", "1", "2") == b"2"
    assert store.compare_set("a", b"2", b"2") == b"2"
    assert store.compare_set("a", "2", "ü") == "ü".encode()
    assert store.compare_set("a", "ü".encode(), bytearray(b"3")) == b"3"
    assert store.compare_set(b"a", "3", "") == b""
    assert store.get("a") == b""


def test_compare_set_of_an_empty_value(store):
    """
    An empty value is nothing to expect, and differs from all else.
    """
    store.set("a", "")
    assert store.compare_set("a", "1", "2") == b""
    assert store.get("a") == b""
    assert store.compare_set("a", "", "2") == b"2"
    assert store.get("a") == b"2"


def test_compare_set_of_a_number(store):
    """
    A number is compared as the text that it is.
    """
    store.add("n", 1)
    store.add("n", 1)
    assert store.compare_set("n", "1", "7") == b"2"
    assert store.compare_set("n", "02", "7") == b"2"
    assert store.compare_set("n", "", "7") == b"2"
    assert store.compare_set("n", "2", "text") == b"text"
    assert store.get("n") == b"text"


def test_compare_set_at_once(kind):
    """
    Of those who want one absent key one gets it, and all are told who.
    """
    clients = kind.clients(4)
    for key in ("a", "b", "c"):
        told = at_once(
            lambda one, key=key: one[1].compare_set(key, "", one[0]),
            zip(["0", "1", "2", "3"], clients, strict=True),
        )

        assert told == [kind.store.get(key)] * 4
        assert int(told[0]) in range(4)


def test_compare_set_counts(kind):
    """
    Who counts by swaps, trying again when somebody was quicker, loses nothing.
    """

    def count(numbered):
        number, client = numbered
        for turn in range(5):
            seen, wanted = b"0", b""
            while seen != wanted:
                # Nobody else, and no other turn, writes the same.
                wanted = b"%d %d.%d" % (int(seen.split()[0]) + 1, number, turn)
                seen = client.compare_set("n", seen, wanted)

    kind.store.set("n", "0")
    sent(kind.store)
    at_once(count, enumerate(kind.clients(3)))

    assert kind.store.get("n").split()[0] == b"15"


def test_append(store):
    """
    Appending creates a key, or makes its value longer; nothing can be appended.
    """
    store.append("a", "1")
    assert store.get("a") == b"1"
    store.append("a", b"\0\xff")
    store.append(b"a", "ü")
    store.append("a", "")
    assert store.get("a") == b"1\0\xff\xc3\xbc"
    store.append("empty", "")
    assert store.check(["empty"]) is True
    assert store.get("empty") == b""
    store.append("empty", bytearray(b"2"))
    assert store.get("empty") == b"2"


def test_append_to_a_number(store):
    """
    A number grows by digits, as the text that it is.
    """
    store.add("n", 3)
    store.append("n", "7")
    assert store.get("n") == b"37"
    store.append("n", "")
    assert store.get("n") == b"37"
    store.append("n", " apples")
    assert store.get("n") == b"37 apples"


def test_append_at_once(kind):
    """
    What several clients append at once is all there, each piece whole and in its
    client's order.
    """

    def append(numbered):
        number, client = numbered
        for piece in range(5):
            client.append("a", f"{number}:{piece},")
        sent(client)

    at_once(append, enumerate(kind.clients(4)))

    pieces = kind.store.get("a").decode().split(",")[:-1]
    assert len(pieces) == 20
    for number in range(4):
        own = [piece for piece in pieces if piece.startswith(f"{number}:")]
        assert own == [f"{number}:{piece}" for piece in range(5)]


# --- Deleting and counting


def test_delete_key(store):
    """
    A deleted key is gone; what was not there is not deleted.
    """
    store.multi_set(["a", "ab"], ["1", ""])
    assert store.delete_key("a") is True
    assert store.delete_key("a") is False
    assert store.check(["a"]) is False
    assert store.get("ab") == b""
    assert store.delete_key("ab") is True
    assert store.delete_key("never") is False
    with pytest.raises(DistStoreError):
        limited(store, 0.02).get("a")
    assert store.compare_set("a", "1", "2") == b"1"
    assert store.compare_set("a", "", "2") == b"2"
    store.delete_key("a")
    store.append("a", "3")
    assert store.get("a") == b"3"


def test_delete_a_number(store):
    """
    A number that was deleted starts from nothing again, time after time.
    """
    for _ in range(3):
        assert [store.add("n", 1) for _ in range(3)] == [1, 2, 3]
        assert store.delete_key("n") is True
        assert store.delete_key("n") is False
        assert store.check(["n"]) is False
    assert store.add("n", 0) == 0


def test_delete_at_once(kind):
    """
    Of those who delete one key at once one has deleted it.
    """
    clients = kind.clients(4)
    for key in ("a", "b", "c"):
        kind.store.set(key, "1")
        sent(kind.store)
        told = at_once(lambda client, key=key: client.delete_key(key), clients)

        assert sorted(told) == [False, False, False, True]


def test_num_keys(store):
    """
    The number of keys is that of keys, however they came; not of writes.
    """
    before = store.num_keys()

    def more():
        return store.num_keys() - before

    store.set("a", "1")
    store.set("a", "2")
    assert more() == 1
    store.multi_set(["a", "b", "c", "b"], ["1", "2", "3", "4"])
    assert more() == 3
    store.add("n", 1)
    store.add("n", 1)
    assert more() == 4
    store.append("d", "")
    assert more() == 5
    store.compare_set("e", "", "1")
    store.compare_set("f", "1", "1")
    assert more() == 6
    store.set("a/b/c", "")
    assert more() == 7
    store.check(["gone"])
    store.delete_key("gone")
    assert more() == 7
    for key in ("a", "n", "a/b/c"):
        store.delete_key(key)
    assert more() == 4


def test_list_keys(bare):
    """
    All keys are listed, once each, as text; in no particular order.
    """
    store = bare.store
    assert store.list_keys() == []
    store.multi_set(ODD_KEYS, ODD_KEYS)
    store.add("n", 1)
    store.add("n", 1)
    store.set("gone", "1")
    store.delete_key("gone")

    assert type(store.list_keys()) is list
    assert sorted(store.list_keys()) == sorted([*ODD_KEYS, "n"])
    assert sorted(bare.make().list_keys()) == sorted([*ODD_KEYS, "n"])


# --- Many keys


def test_multi_set_and_get(store):
    """
    Many are set and read in order, repeats too; of equal keys the last one counts.
    """
    store.multi_set(["a", "b", "a"], ["1", "2", "3"])

    assert store.multi_get(["a", "b", "a", "a"]) == [b"3", b"2", b"3", b"3"]
    assert store.multi_get(["b", "a"]) == [b"2", b"3"]
    assert store.multi_get([]) == []
    store.multi_set([], [])
    store.multi_set((b"a", "b"), (b"\0", bytearray(b"\xff")))
    assert store.multi_get(("a", b"b")) == [b"\0", b"\xff"]


def test_multi_set_of_equal_keys(store):
    """
    Of equal keys the last one counts, be it by text or bytes, and however many.
    """
    for count in (2, 3, 50):
        values = [str(number) for number in range(count)]
        store.multi_set(["same", b"same"] * count, [*values, *values])
        assert store.get("same") == str(count - 1).encode()


def test_many_keys(store):
    """
    Many keys are set and read at once, in order.
    """
    keys = [f"key-{number}" for number in range(60)]
    store.multi_set(keys, keys)

    assert [key.encode() for key in keys] == store.multi_get(keys)
    assert [key.encode() for key in keys[::-1]] == store.multi_get(keys[::-1])
    assert store.check(keys) is True
    assert store.check([*keys, "gone"]) is False
    store.wait(keys, 2000 * MS)


def test_multi_set_of_unequal_lengths(store):
    """
    Keys without values are an error, and so are values without keys; nothing is set.
    """
    for keys, values in ((["a", "b"], ["1"]), (["a"], ["1", "2"]), (["a"], [])):
        with pytest.raises(DistStoreError):
            store.multi_set(keys, values)

    assert store.check(["a"]) is False


def test_check(store):
    """
    Check says whether all are there, at once; none are always there.
    """
    store.set("a", "1")
    store.set("empty", "")

    assert store.check(["a"]) is True
    assert store.check(["a", "a"]) is True
    assert store.check(["empty"]) is True
    assert store.check(["b"]) is False
    assert store.check(["a", "b"]) is False
    assert store.check(["b", "a"]) is False
    assert store.check([]) is True
    assert store.check(["a/"]) is False


# --- Waiting


def test_wait_for_what_is_there(store):
    """
    Waiting for what is there, or for nothing, is over at once.
    """
    store.multi_set(["a", "b"], ["1", ""])
    with within(0):
        store.wait(["a"])
        store.wait(["a", "b", "a"], timedelta(seconds=30))
        store.wait([])
        store.wait([], MS)


def test_time_out(store):
    """
    What does not come is a DistStoreError after the time limit that names what is
    missing: for wait, get and multi_get, the store's own limit or another.
    """
    limited(store, 0.06)
    store.set("there", "1")
    for call in (
        lambda: store.wait(["there", "gone"]),
        lambda: store.wait(["gone", "there"]),
        lambda: store.get("gone"),
        lambda: store.multi_get(["there", "gone"]),
        lambda: limited(store, 30).wait(["there", "gone"], 60 * MS),
    ):
        with times_out(0.06, "gone"):
            call()


def test_all_that_is_missing_is_named(store):
    """
    A time-out names each key that is missing.
    """
    limited(store, 0.02)
    for call in (store.wait, store.multi_get):
        with times_out(0.02, "missing-1", "missing-2", "x/y-3"):
            call(["missing-1", "missing-2", "x/y-3"])


def test_short_time_out(store):
    """
    Limits of a millisecond, and of nothing, are limits; what is there is found.
    """
    store.set("there", "1")
    for limit in (0, 1, 10):
        with times_out(limit / 1000, "gone"):
            store.wait(["gone"], limit * MS)
        store.wait(["there"], 2000 * MS)
    for limit in (0, 1, 10):
        store.set_timeout(limit * MS)
        for call in (
            lambda: store.get("gone"),
            lambda: store.wait(["gone"]),
            lambda: store.multi_get(["gone"]),
        ):
            with times_out(limit / 1000, "gone"):
                call()


def test_short_limits_find_what_is_there(kind):
    """
    A limit of a few milliseconds bounds the waiting for keys, not the work: what is
    there is found, and all that waits for nothing works.
    """
    store = kind.store
    # TCPStore's server has to answer within it.
    store.set_timeout((2000 if kind.busy else 20) * MS)
    for number in range(20):
        store.set("there", str(number))
        assert store.get("there") == str(number).encode()
        store.wait(["there"])
    store.set_timeout(0 * MS)
    store.set("there", "1")
    assert store.add("n", 1) == 1
    assert store.check(["there"]) is True
    assert store.compare_set("there", "1", "2") == b"2"
    store.append("there", "3")
    assert store.delete_key("there") is True
    assert store.num_keys() > 0


def test_the_limit_is_that_of_each_call(store):
    """
    A limit that is changed holds from the next call on, however the last one ended.
    """
    for seconds in (0.05, 0.01, 0.1, 30, 0.02):
        limited(store, seconds)
        assert store.timeout == timedelta(seconds=seconds)
        if seconds == 30:
            store.set("there", "1")
            store.wait(["there"])
            continue
        for call in (store.get, lambda key: store.wait([key])):
            with times_out(seconds, "gone"):
                call("gone")


def test_a_limit_of_its_own(kind):
    """
    A limit given to wait is that of this call alone: shorter or longer than the
    store's.
    """
    store = limited(kind.store, 30)
    with times_out(0.05, "gone"):
        store.wait(["gone"], 50 * MS)
    assert store.timeout == timedelta(seconds=30)
    limited(store, 0.02)
    with later(kind.twin.set, "late", "1", seconds=0.2):
        with within(0):
            store.wait(["late"], timedelta(seconds=20))
    assert store.timeout == 20 * MS


def test_limits_in_seconds(store):
    """
    A limit may be a float of seconds, as torch takes it; nothing else is one.
    """
    with times_out(0.05, "gone"):
        store.wait(["gone"], 0.05)
    for wrong in (5, "1", b"1", [1]):
        with pytest.raises(TypeError):
            store.wait(["gone"], wrong)
        with pytest.raises(TypeError):
            store.set_timeout(wrong)


def test_set_by_another_thread(kind):
    """
    get, multi_get and wait return what another thread sets meanwhile.
    """
    store = limited(kind.store, 20)
    calls = {
        "one": lambda: store.get("one"),
        "two": lambda: store.multi_get(["one", "two"])[1],
        "three": lambda: store.wait(["one", "two", "three"]) or store.get("three"),
        "four": lambda: (
            store.wait(["four"], timedelta(seconds=20)) or store.get("four")
        ),
    }
    for key, call in calls.items():
        with later(kind.twin.set, key, key):
            with within(0):
                assert key.encode() == call()


@pytest.mark.parametrize(
    "write",
    [
        lambda store, key: store.set(key, "1"),
        lambda store, key: store.set(key, ""),
        lambda store, key: store.multi_set(["other", key], ["0", "1"]),
        lambda store, key: store.add(key, 1),
        lambda store, key: store.add(key, 0),
        lambda store, key: store.append(key, "1"),
        lambda store, key: store.compare_set(key, "", "1"),
    ],
    ids=["set", "empty", "multi_set", "add", "zero", "append", "compare_set"],
)
def test_whatever_writes_ends_a_wait(kind, write):
    """
    A wait ends with whatever writes the key, and get has the value.
    """
    store = limited(kind.store, 20)
    for call in (store.get, lambda key: store.wait([key])):
        with later(write, kind.twin, f"key-{id(call)}", seconds=0.05):
            with within(0):
                call(f"key-{id(call)}")


def test_a_deleted_key_is_waited_for_again(kind):
    """
    What was deleted is as absent as what never was: it is waited for until it is set.
    """
    store = limited(kind.store, 20)
    store.set("key", "old")
    store.delete_key("key")
    with later(kind.twin.set, "key", "new"):
        with within(0):
            assert store.get("key") == b"new"


@pytest.mark.measures
def test_wait_does_not_wait_for_time(kind):
    """
    What is set is seen at once, not at some next look.
    """
    store = limited(kind.store, 20)
    seen, told = queue.Queue(), []

    def read():
        for number in range(10):
            store.get(f"key-{number}")
            seen.put(time.monotonic())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(10):
        time.sleep(0.02)
        start = time.monotonic()
        kind.twin.set(f"key-{number}", "1")
        told.append(seen.get(timeout=20) - start)
    thread.join()

    assert sorted(told)[5] < 0.1, told


# --- Together


def test_barrier(kind):
    """
    A barrier ends for all when the last one has come, and not before.
    """
    early, last = kind.clients(3), kind.store
    arrived = threading.Event()

    def pass_barrier(client):
        client.barrier("barrier", 4, timedelta(seconds=20))
        return arrived.is_set()

    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(pass_barrier, client) for client in early]
        time.sleep(0.2)
        assert not any(one.done() for one in waiting)
        arrived.set()
        with within(0):
            last.barrier("barrier", 4)
            assert [one.result(20) for one in waiting] == [True] * 3
    with within(0):
        last.barrier("alone", 1)


def test_barrier_with_one_missing(store):
    """
    A barrier that one does not come to is a DistStoreError after its time limit, and
    names the barrier.
    """
    with times_out(0.05, "the-bar"):
        store.barrier("the-bar", 2, 50 * MS)
    with times_out(0, "the-other"):
        store.barrier("the-other", 2, 0 * MS)


def test_barrier_with_the_stores_limit(bare):
    """
    A barrier without a time limit has the store's; torch's PrefixStore has its own.
    """
    limited(bare.store, 0.05)
    with times_out(0.05, "the-bar"):
        bare.store.barrier("the-bar", 2)


def test_clone(kind):
    """
    A clone has the same keys, and a time limit of its own.
    """
    limited(kind.store, 7)
    kind.store.set("a", "1")
    clone = kind.store.clone()
    gc.collect()

    assert clone.get("a") == b"1"
    assert clone.timeout == timedelta(seconds=7)
    clone.set("b", "2")
    assert clone.add("n", 1) == 1
    assert kind.store.add("n", 1) == 2
    assert kind.store.get("b") == b"2"
    limited(clone, 0.05)
    assert kind.store.timeout == timedelta(seconds=7)
    with times_out(0.05, "gone"):
        clone.get("gone")
    limited(kind.store, 8)
    assert clone.timeout == 50 * MS
    assert clone.delete_key("a") is True
    assert clone.compare_set("c", "", "3") == b"3"
    clone.append("c", "4")
    sent(clone)
    assert kind.store.get("c") == b"34"
    assert kind.store.num_keys() == clone.num_keys()


def test_a_clone_works_while_its_original_waits(kind):
    """
    A clone can be used at once by another thread, while the original waits.
    """
    store = limited(kind.store, 20)
    clone = store.clone()
    with later(clone.set, "key", "1"):
        with within(0):
            assert store.get("key") == b"1"
    with later(store.set, "key-2", "2"):
        with within(0):
            assert clone.get("key-2") == b"2"


def test_a_clone_of_a_clone(kind):
    """
    Clones of clones are stores like any other.
    """
    clones = [kind.store]
    for _ in range(4):
        clones.append(clones[-1].clone())
    sums = at_once(lambda clone: [clone.add("n", 1) for _ in range(5)], clones)

    assert list(range(1, 26)) == sorted(itertools.chain(*sums))


def test_a_prefix_can_be_cloned(kind):
    """
    The clone of a PrefixStore has its prefix, and lives on without it.
    """
    prefixed = PrefixStore("prefix", kind.store)
    clone = prefixed.clone()
    del prefixed
    gc.collect()
    clone.set("key", "1")

    assert kind.store.get("prefix/key") == b"1"
    assert clone.multi_get(["key"]) == [b"1"]
    assert clone.delete_key("key") is True
    assert kind.store.check(["prefix/key"]) is False


def test_a_clone_lives_on_alone(bare):
    """
    A clone does not need what it was cloned from.
    """
    original = bare.make()
    original.set("key", "1")
    clone = original.clone()
    del original
    gc.collect()

    assert clone.get("key") == b"1"
    clone.set("key", "2")
    sent(clone)
    assert bare.store.get("key") == b"2"


# --- Queues


def test_a_queue_is_first_in_first_out(bare):
    """
    What is pushed first is popped first, whoever pushes it.
    """
    store, other = bare.store, bare.make()
    assert store.queue_len("q") == 0
    values = ["1", b"2", bytearray(b"3"), "", b"\0\xff", "ü", "1", "1"]
    for number, value in enumerate(values):
        pusher = (store, other)[number % 2]
        pusher.queue_push("q", value)
        assert pusher.queue_len("q") == number + 1

    popped = [(other, store)[number % 2].queue_pop("q") for number in range(8)]
    assert popped == [b"1", b"2", b"3", b"", b"\0\xff", "ü".encode(), b"1", b"1"]
    assert all(type(value) is bytes for value in popped)
    assert store.queue_len("q") == 0


def test_a_queue_can_be_emptied_and_filled(bare):
    """
    A queue that was emptied is a queue as before.
    """
    store = bare.store
    for number in range(5):
        store.queue_push("q", f"{number}")
        store.queue_push("q", f"{number}+")
        assert store.queue_pop("q") == b"%d" % number
        assert store.queue_pop("q", block=False) == b"%d+" % number
        with pytest.raises(QueueEmptyError):
            store.queue_pop("q", block=False)


def test_pop_of_an_empty_queue(bare):
    """
    An empty queue is torch's QueueEmptyError at once for those who do not want to
    wait; for the others a DistStoreError after the store's time limit.
    """
    store = limited(bare.store, 0.06)
    store.queue_push("used", "1")
    store.queue_pop("used")
    for name in ("used", "never"):
        with within(0):
            with pytest.raises(QueueEmptyError):
                limited(store, 20).queue_pop(name, False)
            with pytest.raises(QueueEmptyError):
                store.queue_pop(name, block=False)
        limited(store, 0.06)
        for arguments in ((), (True,)):
            with times_out(0.06, name) as caught:
                store.queue_pop(name, *arguments)
            assert not isinstance(caught.value, QueueEmptyError)
        assert store.queue_len(name) == 0
    assert issubclass(QueueEmptyError, DistStoreError)


def test_a_pop_that_timed_out_takes_nothing(bare):
    """
    What comes after a pop has given up is for the next one.
    """
    with pytest.raises(DistStoreError):
        limited(bare.store, 0.03).queue_pop("q")
    limited(bare.store, 20).queue_push("q", "1")
    sent(bare.store)
    time.sleep(0.05)

    assert bare.twin.queue_len("q") == 1
    assert bare.store.queue_pop("q") == b"1"


def test_a_push_wakes_a_pop(bare):
    """
    A pop that waits gets what is pushed, at once.
    """
    store = limited(bare.store, 20)
    for number in range(3):
        with later(bare.twin.queue_push, "q", f"{number}"):
            with within(0):
                assert store.queue_pop("q") == b"%d" % number

    assert store.queue_len("q") == 0


def popped(store):
    """
    Pop from the queue; again where another one was quicker, which TCPStore tells.
    """
    while True:
        with contextlib.suppress(QueueEmptyError):
            return store.queue_pop("q")


def test_each_waiting_pop_gets_its_own(bare):
    """
    Those who wait for the same queue get each a value of its own.
    """
    clients = [limited(bare.make(), 20) for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(popped, client) for client in clients]
        time.sleep(0.1)
        for number in range(6):
            bare.store.queue_push("q", f"{number}")
        found = [one.result(20) for one in waiting]

    assert sorted(found) == [b"%d" % number for number in range(6)]
    assert bare.store.queue_len("q") == 0


def test_push_and_pop_at_once(bare):
    """
    Where many push and pop at once each value is popped once, and those of one
    pusher in their order.
    """
    clients = [limited(bare.make(), 20) for _ in range(6)]

    def work(numbered):
        number, client = numbered
        if number < 3:
            for value in range(10):
                client.queue_push("q", f"{number}:{value}")
            return []
        return [popped(client) for _ in range(10)]

    found = at_once(work, enumerate(clients))[3:]

    assert sorted(itertools.chain(*found)) == sorted(
        f"{number}:{value}".encode() for number in range(3) for value in range(10)
    )
    for own in found:
        for number in range(3):
            of_one = [value for value in own if value.startswith(b"%d:" % number)]
            assert sorted(of_one) == of_one
    assert bare.store.queue_len("q") == 0


def test_a_queue_is_no_key(bare):
    """
    A queue and a key of one name have nothing to do with each other, and queues are
    not counted or listed.
    """
    store = bare.store
    store.set("key", "1")
    store.queue_push("q", "first")
    store.queue_push("q", "second")
    assert store.num_keys() == 1
    assert store.list_keys() == ["key"]
    assert store.delete_key("q") is False
    assert store.queue_len("q") == 2
    assert store.queue_len("key") == 0
    assert store.add("q", 5) == 5
    assert store.num_keys() == 2
    assert sorted(store.list_keys()) == ["key", "q"]
    assert store.queue_pop("q") == b"first"
    assert store.get("q") == b"5"
    assert store.delete_key("q") is True
    assert store.queue_len("q") == 1
    assert store.queue_pop("q") == b"second"
    with pytest.raises(QueueEmptyError):
        store.queue_pop("key", block=False)
    assert store.get("key") == b"1"
    assert store.num_keys() == 1


def test_odd_queues(bare):
    """
    Any text names a queue of its own, and a value may be 1 MiB large.
    """
    store = bare.store
    for number, name in enumerate(ODD_KEYS):
        store.queue_push(name, f"{number}")
    for number, name in enumerate(ODD_KEYS):
        assert store.queue_len(name) == 1
        assert store.queue_len(f"{name}-") == 0
        assert store.queue_pop(name.encode()) == b"%d" % number
        assert store.queue_len(name) == 0
    value = bytes(range(256)) * 4096
    store.queue_push("large", value)
    assert store.queue_pop("large") == value


def test_other_types_are_no_queues(bare):
    """
    Queues' names and values are text or bytes, or a TypeError.
    """
    store = limited(bare.store, 0.01)
    for wrong in NO_TEXT:
        for call in (
            lambda wrong=wrong: store.queue_push(wrong, "value"),
            lambda wrong=wrong: store.queue_push("q", wrong),
            lambda wrong=wrong: store.queue_pop(wrong),
            lambda wrong=wrong: store.queue_pop(wrong, block=False),
            lambda wrong=wrong: store.queue_len(wrong),
        ):
            with pytest.raises(TypeError):
                call()

    assert store.queue_len("q") == 0


def test_a_clone_has_the_same_queues(bare):
    """
    A clone pops what its original pushes.
    """
    clone = bare.store.clone()
    bare.store.queue_push("q", "1")
    sent(bare.store)

    assert clone.queue_len("q") == 1
    assert clone.queue_pop("q") == b"1"
    with later(bare.store.queue_push, "q", "2"):
        assert limited(clone, 20).queue_pop("q") == b"2"
