# SPDX-License-Identifier: BSD-3-Clause
"""
Requests arrive, but their replies get lost, torn, late or garbled on the way back.

What is told of every operation is true all the same.
"""

from __future__ import annotations

import contextlib

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from etcd_rendezvous import EtcdClient, EtcdRendezvousBackend
from faults.garbler import RUBBISH, Garbler
from support.proxy import FaultProxy
from support.torchrun import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

SWAPS = "/v3/kv/txn"


@pytest.fixture
def proxies(cluster):
    """
    A proxy before each member, which understands what passes.
    """
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(FaultProxy.to(endpoint))
            for endpoint in cluster.endpoints
        ]


def endpoints(proxies):
    return [proxy.endpoint for proxy in proxies]


def now_and_then(rules, count):
    """
    Wait until some rules have been applied so often, all together.
    """
    wait_until(
        f"{count} replies to be spoilt",
        lambda: sum(rule.count for rule in rules) >= count,
        seconds=40,
    )


def test_replies_are_lost_after_the_commit(proxies, at_work):
    """
    Of swaps that were applied, or refused, many replies never come, or half of them.
    """
    spoilt = 0
    with at_work(endpoints(proxies)) as work:
        for mode in ("close", "reset", "half") * 2:
            rules = [proxy.swallow(4, SWAPS, mode=mode) for proxy in proxies]
            now_and_then(rules, 5)
            spoilt += sum(rule.count for rule in rules)
            for rule in rules:
                rule.cancel()

    assert spoilt >= 30
    assert work.failures() == []


def test_connections_fall_silent_after_the_commit(proxies, at_work):
    """
    Of swaps no reply comes, and the connection stays open.
    """
    with at_work(endpoints(proxies)) as work:
        rules = [proxy.swallow(1, SWAPS, mode="silent") for proxy in proxies]
        now_and_then(rules, 2)
        work.wait_for_answers(1)

    assert work.failures() == []


def test_connections_are_reset_in_mid_reply(proxies, at_work):
    """
    All open connections are reset, again and again, wherever their replies are.
    """
    reset = 0
    with at_work(endpoints(proxies), pause=0.005) as work:
        for _ in range(6):
            work.wait_for_answers(1)
            reset += sum(proxy.drop_connections("reset") for proxy in proxies)

    assert reset > 6
    assert work.failures() == []


def test_replies_are_slow(proxies, at_work):
    """
    All replies come after a while, some after longer than one attempt may last, so that
    what has been applied is sent again meanwhile.
    """
    with at_work(endpoints(proxies), read_timeout=15) as work:
        late = [proxy.delay(2.3, SWAPS, n=1, what="reply") for proxy in proxies]
        slow = [proxy.delay(0.2, what="reply") for proxy in proxies]
        now_and_then(late, 1)
        now_and_then(slow, 10)

    assert work.failures() == []
    assert max(one.seconds for one in work.operations()) > 2


def test_rubbish_leaves_open_whether_it_was_written(cluster, run_id):
    """
    Where a write is answered with what is no reply of etcd's, the error says that it may
    have been applied.
    """
    with Garbler(cluster.endpoints[0]) as garbler:
        client = EtcdClient(garbler.endpoint)
        backend = EtcdRendezvousBackend(client, run_id)
        backend.get_state()
        # The next connection's second reply is that to the swap.
        client.close()
        garbler.garble(1)
        with pytest.raises(RendezvousConnectionError) as caught:
            backend.set_state(b"state")
        state, _ = backend.get_state()
        client.close()

    assert state == b"state"
    assert "It may or may not have been applied." in str(caught.value.__cause__)


def test_replies_are_garbled(cluster, at_work):
    """
    What comes back is no reply of etcd's: an operation then ends well elsewhere, or
    fails and says so, and is never told an untruth.
    """
    with contextlib.ExitStack() as stack:
        garblers = [stack.enter_context(Garbler(one)) for one in cluster.endpoints]
        with at_work([one.endpoint for one in garblers]) as work:
            for one in garblers:
                one.garble(len(RUBBISH))
            wait_until(
                "all replies to be garbled",
                lambda: not any(one.left for one in garblers),
                seconds=60,
            )
            work.wait_for_answers(1)

    answered = [one for one in work.operations() if not one.raised]
    assert len(answered) > 20
    written = {one.found for one in answered}
    unknown = [one for one in work.operations() if one.wrote and one.raised]
    assert all("may or may not" in one.error for one in unknown if one.wrote in written)
