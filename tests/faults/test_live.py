# SPDX-License-Identifier: BSD-3-Clause
"""
`etcd-live` while members, links, replies and data of etcd come to harm.

Whatever happens, all in a round know the same of it, rounds only grow, nothing is done
twice, and nobody waits for longer than is said.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

from torch.distributed.elastic.rendezvous import (  # noqa: E402
    RendezvousConnectionError,
)

from etcd_rendezvous import EtcdClient  # noqa: E402
from faults.agents import BOUND, TTL, Agents  # noqa: E402
from faults.garbler import RUBBISH, Garbler  # noqa: E402
from faults.test_data import compact  # noqa: E402
from support.links import Links  # noqa: E402
from support.proxy import FaultProxy  # noqa: E402
from support.quota import SMALL_QUOTA, use_up  # noqa: E402
from support.security import (  # noqa: E402
    PLAIN,
    Authority,
    post,
    switch_authentication_on,
)
from support.state import read_live  # noqa: E402
from support.torchrun import wait_until  # noqa: E402

#: How long etcd is away.
AWAY = TTL + 2


def comma(endpoints):
    return ",".join(endpoints)


@pytest.fixture
def agents(cluster, run_id):
    """
    Nodes that reach the members themselves.
    """
    with Agents(comma(cluster.endpoints), run_id) as agents:
        yield agents
        agents.judge()


@pytest.fixture
def linked(links, run_id):
    """
    Nodes that reach the members over links that can be cut.
    """
    with Agents(comma(links.endpoints), run_id) as agents:
        yield agents
        agents.judge()


# -- members -----------------------------------------------------------------------


def test_members_are_killed_stopped_and_restarted(cluster, agents):
    """
    While a follower is stopped, the leader is killed, another leader is stopped, and all
    are restarted one by one, nodes meet again whenever they want to, and nobody is lost.
    """
    agents.start(4)
    # One may come late, and the four meet in a later round.
    first = number = agents.settle()

    def again():
        nonlocal number
        assert agents.join_again(number % 4) == number + 1
        number += 1

    follower = next(one for one in cluster.members if one is not cluster.leader())
    follower.pause()
    again()
    follower.resume()
    killed = cluster.leader()
    killed.kill()
    again()
    killed.restart()
    stopped = cluster.leader()
    stopped.pause()
    again()
    stopped.resume()
    for member in cluster.members:
        member.restart()
        again()

    assert agents.number == number == first + 6


def test_a_quorum_is_lost_and_comes_back(cluster, agents):
    """
    Without a quorum, for longer than any lease, the round goes on, and who comes waits;
    with it they meet.
    """
    agents.start(3)
    number = agents.settle()
    gone = [one for one in cluster.members if one is not cluster.leader()]
    gone[0].kill()
    gone[1].pause()
    late = agents.start()
    time.sleep(AWAY)
    trained = [one.number for one in agents.all]
    gone[0].restart(wait=False)
    gone[1].resume()
    agents.settle(after=number)

    assert trained == [number] * 3 + [-1]
    assert late.error is None
    assert agents.number == number + 1


# -- links -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_nodes_are_cut_off_from_one_member(links, linked, how):
    """
    Their calls and their watches go to the others: they still meet again, and a node
    that leaves them is missed.
    """
    linked.start(4)
    number = linked.settle()
    links.cut(links.busiest, how)
    again = linked.join_again()
    linked.all.pop().end()
    last = linked.settle(after=again, seconds=BOUND + TTL)
    links.heal()

    assert [again, last] == [number + 1, number + 2]


def test_a_member_is_cut_off_from_the_others(cluster, agents):
    """
    A watch on a member that hears of nothing any more moves on.
    """
    agents.start(4)
    number = agents.settle()
    for isolated in range(3):
        cluster.isolate(isolated)
        number += 1
        assert agents.join_again(seconds=BOUND + TTL) == number
        cluster.heal()


def test_a_node_is_cut_off_from_all(cluster, links, agents, caplog):
    """
    The others go on without it; when it is back it says that it was out, and all meet.
    """
    agents.start(3)
    lonely = agents.start(endpoint=comma(links.endpoints))
    number = agents.settle()
    for member in range(3):
        links.cut(member, "silent")
    others = agents.settle(*agents.all[:3], after=number, seconds=BOUND + TTL)
    assert lonely.number == number
    links.heal()
    agents.settle(after=others, seconds=BOUND + TTL)

    (line,) = [
        one.getMessage() for one in caplog.records if "is out of" in one.getMessage()
    ]
    assert "cut off" in line


# -- replies -----------------------------------------------------------------------


def puts(message):
    """
    List the keys that a transaction puts if it succeeds, as the last words of theirs.
    """
    for operation in message.get("success", []):
        if "request_txn" in operation:
            yield from puts(operation["request_txn"])
        if "request_put" in operation:
            key = base64.b64decode(operation["request_put"]["key"])
            yield key.rpartition(b"/live/")[2].decode()


def does(what):
    """
    Return a function that knows the requests that do something.
    """
    paths = {"grant": "/v3/lease/grant", "revoke": "/v3/lease/revoke"}

    def matches(_method, path, body):
        if what in paths:
            return path == paths[what]
        if path != "/v3/kv/txn":
            return False
        keys = list(puts(json.loads(body)))
        node = any(key.startswith("n/") for key in keys)
        if what in ("register", "leave"):
            return node and (what == "register") == ("c/closer" in keys)
        return {"complete": "c/table", "close": "c/closed"}[what] in keys

    return matches


@pytest.mark.parametrize("mode", ["close", "half", "silent"])
def test_replies_are_lost_after_the_commit(cluster, run_id, mode):
    """
    Of everything that nodes do a reply is lost once: nothing is done twice, nobody
    hangs, and nothing stays.
    """
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy.to(one)) for one in cluster.endpoints]
        proxies = proxies[:1] if mode == "silent" else proxies
        agents = stack.enter_context(
            Agents(comma(one.endpoint for one in proxies), run_id, least=4)
        )

        def lose(what):
            return [one.swallow(1, does(what), mode=mode) for one in proxies]

        lost = [lose("grant"), lose("register"), lose("complete")]
        agents.start(4)
        first = agents.settle(seconds=2 * BOUND)
        lost += [lose("leave"), lose("complete")]
        second = agents.join_again(seconds=2 * BOUND)
        lost += [lose("close"), lose("revoke")]
        ending = list(agents.all)
        for one in ending:
            one._ending = True
            one._thread.join(5)
        started = time.monotonic()
        closed = [one.handler.shutdown() for one in ending]
        took = time.monotonic() - started
        state = read_live(cluster.members[0], run_id)
        agents.judge()

    assert (first, second) == (0, 1)
    assert all(any(rule.count for rule in rules) for rules in lost)
    assert closed == [True] * 4
    assert took < BOUND
    assert state.closed
    assert state.nodes == {}


def test_replies_are_slow_and_garbled(cluster, run_id):
    """
    Late replies and rubbish cost time, and nothing else.
    """
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(FaultProxy.to(one)) for one in cluster.endpoints]
        garblers = [stack.enter_context(Garbler(one.endpoint)) for one in proxies]
        agents = stack.enter_context(
            Agents(comma(one.endpoint for one in garblers), run_id)
        )
        agents.start(4)
        first = agents.settle()
        rules = [one.delay(0.3, what="reply") for one in proxies]
        slow = agents.join_again()
        for rule in rules:
            rule.cancel()
        for one in garblers:
            one.garble(len(RUBBISH))
        ended = time.monotonic() + 4
        while time.monotonic() < ended:
            agents.join_again(seconds=2 * BOUND)
        for one in garblers:
            one.garble(0)
        agents.join_again()
        agents.judge()

    assert slow == first + 1


# -- users and certificates --------------------------------------------------------


def test_tokens_end(make_cluster, run_id, monkeypatch):
    """
    Tokens that have expired, or that a restarted member has forgotten, are replaced.
    """
    monkeypatch.setenv("ETCD_RENDEZVOUS_USER", "trainer")
    monkeypatch.setenv("ETCD_RENDEZVOUS_PASSWORD", "secret")
    with make_cluster(extra_args=["--auth-token-ttl=1"]) as cluster:
        switch_authentication_on(
            cluster.endpoints[0], PLAIN.as_user("trainer", "secret")
        )
        with Agents(comma(cluster.endpoints), run_id) as agents:
            agents.start(3)
            agents.settle()
            time.sleep(3)
            agents.join_again()
            cluster.leader().restart()
            time.sleep(1)
            last = agents.join_again()
            agents.judge()

    assert last == 2


def test_certificates_are_replaced(make_cluster, tmp_path, run_id):
    """
    When all certificates have been replaced and the old ones have run out, nobody has
    noticed.
    """
    authority = Authority(tmp_path)
    began = time.monotonic()
    # A cluster starts meanwhile, and nodes meet.
    lifetime = 15
    authority.renew(seconds=lifetime)
    with make_cluster(extra_args=authority.server_arguments) as cluster:
        with Links(cluster.endpoints) as links:
            config = authority.security.rdzv_conf()
            with Agents(comma(links.endpoints), run_id, **config) as agents:
                agents.start(3)
                agents.settle()
                authority.renew()
                time.sleep(max(began + lifetime + 1 - time.monotonic(), 0))
                links.reset()
                last = agents.join_again()
                agents.judge()

    assert last == 1


# -- data --------------------------------------------------------------------------


def test_history_is_compacted_in_mid_round(cluster, links, linked):
    """
    With all history gone again and again, and all connections reset, nothing is missed.
    """
    client = EtcdClient(cluster.endpoints)
    linked.start(4)
    number = linked.settle()
    for _ in range(4):
        last = linked.number
        linked.all[0].join_again()
        links.reset()
        compact(client)
        number += 1
        assert linked.settle(after=last) == number
    client.close()


def test_there_is_no_space_left(make_server, run_id, caplog):
    """
    A running round outlives its leases, since renewals write nothing; who joins is told
    at once what is wrong; when there is space again all is well.
    """
    server = make_server(extra_args=[SMALL_QUOTA])
    endpoint = server.get_endpoint()
    with Agents(endpoint, run_id, least=2, most=4) as agents:
        agents.start(2)
        number = agents.settle()
        use_up(endpoint)
        agents.start()
        late = agents.all.pop()
        started = time.monotonic()
        wait_until("an error", lambda: late.error, seconds=BOUND)
        took = time.monotonic() - started
        late.end()
        time.sleep(AWAY)
        trained = {one.number for one in agents.all}
        with EtcdClient(endpoint) as client:
            client.delete("/filling")
            compact(client)
        post(endpoint, "maintenance/defragment", {})
        for one in post(endpoint, "maintenance/alarm", {"action": "GET"})["alarms"]:
            post(endpoint, "maintenance/alarm", {"action": "DEACTIVATE", **one})
        agents.start()
        agents.settle(after=number)
        agents.judge()

    assert isinstance(late.error, RendezvousConnectionError)
    assert took < 10  # join_timeout is 600 s
    assert trained == {number}
    (line,) = {
        one.getMessage()
        for one in caplog.records
        if "space exceeded" in one.getMessage()
    }
    assert "database space exceeded" in line
