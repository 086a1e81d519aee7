# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The model of etcd that `tests/unit/test_live_protocol.py` stands on, held against real
servers: whatever `etcd-live` sends, both answer the same. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import replace

import pytest
from urllib3.exceptions import HTTPError

from etcd_rendezvous import EtcdClient
from etcd_rendezvous._errors import EtcdReplyError
from etcd_rendezvous._live import requests
from etcd_rendezvous._live.records import Keys, Node, Progress, Round
from etcd_rendezvous._v3 import wire
from support.etcdmodel import EtcdModel, RefusedError

KEYS = Keys(b"/run")
RUN_LEASE = 99
LEASES = [11, 12, 13]
IDS = ["a", "b", "c"]
PLACES = ["here", "there"]
STEPS = 1200


class Both:
    """
    A real server, fresh, and the model, which are told the same.
    """

    def __init__(self, client):
        self.client = client
        self.model = EtcdModel()

    def txn(self, request):
        """
        What both answer: the reply, or the refusal.
        """
        try:
            found = without_leases_of_bare_keys(self.client.txn(*request))
        except EtcdReplyError as error:
            found = error.text.removeprefix("etcdserver: ")
        try:
            raw = self.model.post(wire.TXN, wire.txn(*request))
            modelled = without_leases_of_bare_keys(wire.decode_txn(raw))
        except RefusedError as error:
            modelled = error.text
        return found, modelled

    def grant(self, lease):
        self.client.grant(600, lease)
        with refused(wire.LEASE_EXISTS):
            self.model.post(wire.GRANT, {"TTL": "600", "ID": str(lease)})

    def revoke(self, lease):
        self.client.revoke(lease)
        with refused(wire.LEASE_NOT_FOUND):
            self.model.post(wire.REVOKE, {"ID": str(lease)})

    def keep_alive(self, lease):
        raw = self.model.post(wire.KEEP_ALIVE, {"ID": str(lease)})
        modelled = int(raw["result"].get("TTL", 0))
        return bool(self.client.keep_alive(lease)), bool(modelled)


@contextlib.contextmanager
def refused(text):
    """
    Take no offence at a refusal.
    """
    try:
        yield
    except RefusedError as error:
        if error.text != text:
            raise


def without_leases_of_bare_keys(reply):
    """
    Leave out the leases where only keys were asked for, as etcd 3.7 does.
    """
    return replace(
        reply,
        ranges=[
            replace(
                found,
                entries=[
                    one if one.value else replace(one, lease=0) for one in found.entries
                ],
            )
            for found in reply.ranges
        ],
    )


@pytest.fixture
def both(make_server, etcd_binary):
    """
    Both, for each version.
    """
    server = make_server(binary=etcd_binary)
    with EtcdClient(server.get_endpoint()) as client:
        yield Both(client)


def any_request(draw, model):
    """
    A transaction that `etcd-live` may send, and that often finds what it wants.
    """

    def mod(key):
        entry = model.entries.get(key)
        if entry is None or draw.random() < 0.2:
            return draw.choice([0, model.revision])
        return entry.mod_revision

    place, lease = draw.choice(PLACES), draw.choice([0, *LEASES])
    name = draw.choice(IDS)
    key = KEYS.node(place, name)
    own = model.entries.get(key)
    created = own.create_revision if own else draw.choice([0, model.revision])
    if own and draw.random() < 0.7:
        lease = own.lease
    left = draw.randrange(-1, 3)
    node = Node(name, "host", 1, 2, left=left, created=created, lease=lease)
    new = Round(draw.randrange(3), ("a", "b"), "host", 1, draw.random() < 0.5)
    fence = requests.Fence(mod(KEYS.round), mod(KEYS.closer), mod(KEYS.resumed))
    return draw.choice(
        [
            lambda: requests.register(KEYS, place, node),
            lambda: requests.register(KEYS, place, node),
            lambda: requests.reopen(KEYS, place, node),
            lambda: requests.resume(KEYS, place, node, mod(KEYS.round), RUN_LEASE),
            lambda: requests.take_office(KEYS, key, node),
            lambda: requests.resign(KEYS, mod(KEYS.closer)),
            lambda: requests.load(KEYS),
            lambda: requests.complete(KEYS, fence, new, ["x", "y"], RUN_LEASE),
            lambda: requests.mark(KEYS, fence, new, RUN_LEASE),
            lambda: requests.say_progress(KEYS, fence.office, Progress(1), lease),
            lambda: requests.leave(KEYS, place, node),
            lambda: requests.close(KEYS, key, node, 0, RUN_LEASE),
            lambda: requests.close(KEYS, None, node, mod(KEYS.round), RUN_LEASE),
        ]
    )()


def test_the_model_answers_as_etcd_does(both):
    """
    Transactions in any order, with leases that live and leases that don't: the
    replies, the refusals and the changes that watches tell are the same. What one
    transaction has changed comes in one message.
    """
    draw = random.Random(random.getrandbits(32))
    prefixes = {1: KEYS.common, 2: KEYS.nodes}
    creates = [
        wire.watch_create(prefix, wire.prefix_end(prefix), watch_id=number)
        for number, prefix in prefixes.items()
    ]
    outcomes = []
    with both.client.watch(creates, what="watch") as real:
        watches = {n: both.model.watch(one) for n, one in enumerate(creates, 1)}
        for lease in (*LEASES, RUN_LEASE):
            both.grant(lease)
        for _ in range(STEPS):
            lease, chance = draw.choice(LEASES), draw.random()
            if chance < 0.09:
                both.revoke(lease)
            elif chance < 0.15:
                both.grant(lease)
            elif chance < 0.2:
                found, modelled = both.keep_alive(lease)
                assert found == modelled
            else:
                found, modelled = both.txn(any_request(draw, both.model))
                assert found == modelled
                outcomes.append(getattr(found, "succeeded", found))
        expected = {}
        for number, watch in watches.items():
            created, *messages = map(wire.decode_watch, watch.messages)
            assert (created.created, created.watch_id) == (True, number)
            expected[number] = [e for one in messages for e in one.events]
        told, whole = read(real, sum(map(len, expected.values())))

    assert expected == told
    assert whole
    # All that can happen has happened often; the last some forty times.
    for outcome in (True, False, wire.LEASE_NOT_FOUND):
        assert outcomes.count(outcome) > 5, outcome


def read(watch, count):
    """
    The changes that each watch of a stream tells, of which there are so many, and
    whether those of one revision came together.
    """
    told = {1: list(watch._early), 2: []}
    whole = True

    def limit():
        # Silence says that that was all.
        watch._limit(10 if sum(map(len, told.values())) < count else 0.5)

    limit()
    with contextlib.suppress(OSError, HTTPError):
        for message in watch._messages:
            events = told[message.watch_id]
            if events and message.events:
                last = events[-1].entry.mod_revision
                whole = whole and last < message.events[0].entry.mod_revision
            events.extend(message.events)
            limit()
    return told, whole


def test_a_comparison_of_a_range_holds_if_it_holds_for_all_that_is_there(both):
    """
    Also where nothing is there; and a nested transaction compares with what was there
    before the transaction, but reads what it has written.
    """
    first, second = KEYS.node("here", "a"), KEYS.node("here", "b")
    end = wire.prefix_end(KEYS.nodes)
    put = wire.op_put(wire.put_message(first, b"1"))
    reads = wire.op_range(wire.range_message(KEYS.nodes, end))
    nested = wire.op_txn(
        wire.txn(
            [wire.compare_create(first, 0)],
            [wire.op_put(wire.put_message(second, b"2")), reads],
            [],
        )
    )
    empty = wire.compare_create(KEYS.nodes, 0, end)
    for request in (
        ([empty], [put, nested, reads], [reads]),
        ([empty], [put], [reads]),
        ([wire.compare_create(KEYS.nodes, 2, end)], [reads], []),
        ([wire.compare_lease(first, 0)], [reads], []),
        ([wire.compare_mod(first, 5)], [reads], [nested, reads]),
    ):
        found, modelled = both.txn(request)
        assert found == modelled
    assert 2 == len(found.ranges[-1].entries)
