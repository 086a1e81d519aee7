# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Leases: granted once, renewed rarely, granted anew when they are gone.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from etcd_rendezvous._errors import EtcdConnectionError, EtcdReplyError
from etcd_rendezvous._v3.client import EtcdClient, LeaseNotFoundError
from etcd_rendezvous._v3.lease import Lease, SharedLease
from support.clock import Clock
from support.scripted import (
    ScriptedServer,
    close,
    json_reply,
    refused_endpoint,
    truncated,
)

# A twentieth of it is a minute.
TTL = 1200

GRANT = "/v3/lease/grant"
KEEP_ALIVE = "/v3/lease/keepalive"

GRANTED = json_reply({"header": {"revision": "7"}, "ID": "9", "TTL": str(TTL)})
RENEWED = json_reply({"result": {"header": {}, "ID": "9", "TTL": str(TTL)}})
UNKNOWN = json_reply({"result": {"header": {"revision": "7"}, "ID": "9"}})
NO_ID = json_reply({"result": {"header": {"revision": "7"}}})
EXISTS = {"error": "etcdserver: lease already exists", "code": 9}
NOT_FOUND = {"code": 5, "message": "etcdserver: requested lease not found"}


@pytest.fixture
def clock():
    return Clock(5000.0)


@pytest.fixture
def make(clock):
    """
    A function that makes a lease at a server.
    """
    clients = []

    def make(server, ttl=TTL):
        clients.append(EtcdClient(server.endpoint))
        return Lease(clients[-1], ttl, clock=clock)

    yield make
    for client in clients:
        client.close()


def ids(server):
    return [int(request.json["ID"]) for request in server.requests]


# -- granting ----------------------------------------------------------------------


def test_an_identifier_of_our_own(make):
    """
    A lease is granted at its first use, with an identifier that we have chosen.
    """
    with ScriptedServer([GRANTED]) as server:
        lease = make(server)

        assert [] == server.requests

        found = lease.current(10.0)

        assert [GRANT] == server.paths
        assert {"TTL": str(TTL), "ID": str(found)} == server.requests[0].json
        assert 0 < found < 2**63
        assert lease.is_ours(found)
        assert not lease.is_ours(found + 1)


def test_identifiers_are_of_one_lease(make):
    """
    No two leases share an identifier.
    """
    with ScriptedServer(lambda _: GRANTED) as server:
        assert 20 == len({make(server).current(10.0) for _ in range(20)})


@pytest.mark.parametrize("status", [412, 400])
def test_a_grant_whose_reply_was_lost(make, status):
    """
    "lease already exists" says that the first of two identical grants won.
    """
    with ScriptedServer([truncated(body={}), json_reply(EXISTS, status)]) as server:
        lease = make(server)
        found = lease.current(10.0)

        assert [found, found] == ids(server)
        assert server.requests[0].body == server.requests[1].body
        assert lease.is_ours(found)
        assert found == lease.current(10.0)
        assert 2 == len(server.requests)


def test_a_grant_that_is_refused(make):
    """
    A refused grant is an error, and the next use asks for another lease.
    """
    refused = json_reply({"code": 8, "message": "mvcc: database space exceeded"}, 429)
    with ScriptedServer([refused, GRANTED]) as server:
        lease = make(server)
        with pytest.raises(
            EtcdReplyError, match=r"Could not grant a lease at .* space"
        ):
            lease.current(10.0)
        found = lease.current(10.0)

        first, second = ids(server)
        assert found == second != first
        assert not lease.is_ours(first)


def test_nobody_there(make):
    """
    A grant at nobody is an error.
    """
    with refused_endpoint() as endpoint:
        with pytest.raises(EtcdConnectionError, match="Could not grant a lease"):
            make(SimpleNamespace(endpoint=endpoint)).current(10.0)


# -- renewing ----------------------------------------------------------------------


def test_renewed_rarely(make, clock):
    """
    A lease is renewed when a twentieth of its time is over, however often it is used.
    """
    with ScriptedServer([GRANTED, RENEWED, RENEWED]) as server:
        lease = make(server)
        started = clock.now
        found = []
        counts = []
        for clock.now in (started + s for s in (0, 0, 30, 59.9, 60, 60, 119.9, 500)):
            found.append(lease.current(10.0))
            counts.append(len(server.requests))

        assert [1, 1, 1, 1, 2, 2, 2, 3] == counts
        assert [GRANT, KEEP_ALIVE, KEEP_ALIVE] == server.paths
        assert {"ID": str(found[0])} == server.requests[1].json
        assert 1 == len(set(found))


@pytest.mark.parametrize("answer", [UNKNOWN, NO_ID])
def test_gone(make, clock, answer):
    """
    A renewal that is answered without a TTL means a new lease.
    """
    with ScriptedServer([GRANTED, answer, GRANTED]) as server:
        lease = make(server)
        old = lease.current(10.0)
        clock.now += TTL
        new = lease.current(10.0)

        assert [GRANT, KEEP_ALIVE, GRANT] == server.paths
        assert [old, old, new] == ids(server)
        assert old != new
        assert lease.is_ours(old)
        assert lease.is_ours(new)


def test_gone_and_no_new_one(make, clock):
    """
    A lease that is gone is not used again, though no new one could be granted.
    """
    with ScriptedServer(
        [GRANTED, UNKNOWN, json_reply(NOT_FOUND, 404), GRANTED]
    ) as server:
        lease = make(server)
        old = lease.current(10.0)
        clock.now += TTL
        with pytest.raises(EtcdReplyError):
            lease.current(10.0)

        assert old != lease.current(10.0)
        assert [GRANT, KEEP_ALIVE, GRANT, GRANT] == server.paths


def test_a_renewal_without_an_answer(make, clock):
    """
    A renewal whose reply was lost is sent again: it does no harm twice.
    """
    with ScriptedServer([GRANTED, close(), RENEWED]) as server:
        lease = make(server)
        old = lease.current(10.0)
        clock.now += TTL / 20

        assert old == lease.current(10.0)
        assert [GRANT, KEEP_ALIVE, KEEP_ALIVE] == server.paths


def test_forgotten(make):
    """
    A lease that the server does not know any more is granted anew at the next use.
    """
    with ScriptedServer([GRANTED, GRANTED]) as server:
        lease = make(server)
        old = lease.current(10.0)
        lease.forget(old + 1)

        assert old == lease.current(10.0)

        lease.forget(old)
        new = lease.current(10.0)

        assert [old, new] == ids(server)
        assert old != new
        assert lease.is_ours(old)


def test_one_time_limit(clock):
    """
    A renewal and the grant that follows it share one time limit.
    """
    limits = []

    class Slow:
        def keep_alive(self, lease_id, *, timeout):
            limits.append(timeout)
            clock.now += 7.0
            return False

        def grant(self, ttl, lease_id, *, timeout):
            limits.append(timeout)

    lease = Lease(Slow(), TTL, clock=clock)
    lease.current(10.0)
    clock.now += TTL
    lease.current(10.0)

    assert [10.0, 10.0, 3.0] == limits


# -- threads and processes ---------------------------------------------------------


def test_threads(make):
    """
    Threads that use a lease at once share one grant.
    """
    with ScriptedServer(lambda _: GRANTED) as server:
        lease = make(server)
        with ThreadPoolExecutor(8) as threads:
            found = set(threads.map(lambda _: lease.current(10.0), range(32)))

        assert list(found) == ids(server)


def test_fork():
    """
    A child after fork takes a lease of its own, even if a thread of the parent was
    taking one; the parent keeps its own.
    """
    script = textwrap.dedent("""
        import os, sys
        from etcd_rendezvous import EtcdClient
        from etcd_rendezvous._v3.lease import Lease, SharedLease
        with EtcdClient(sys.argv[1]) as client:
            lease = Lease(client, 60)
            mine = lease.current(10.0)
            with lease._lock:
                child = os.fork()
                if not child:
                    found = lease.current(10.0)
                    assert found != mine
                    assert lease.is_ours(found)
                    assert not lease.is_ours(mine)
                    client.close()
                    os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert mine == lease.current(10.0)
    """)
    with ScriptedServer([GRANTED, GRANTED]) as server:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, server.endpoint],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert (0, "") == (done.returncode, done.stderr)
        assert [GRANT, GRANT] == server.paths
        assert 2 == len(set(ids(server)))
        assert 2 == server.connections


# -- shared leases -----------------------------------------------------------------


@pytest.fixture
def share(make):
    """
    A function that makes a shared lease at a server.
    """

    def share(server, ttl=TTL, name=b"/run/store/"):
        client = make(server)._client
        return SharedLease(client, ttl, name)

    return share


def reply_for(exchange):
    """
    Answer as an etcd that has never heard of the lease.
    """
    return UNKNOWN if exchange.request.path == KEEP_ALIVE else GRANTED


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def keepers():
    return [
        thread
        for thread in threading.enumerate()
        if thread.name == "etcd-rendezvous lease"
    ]


def test_one_name_is_one_lease(share):
    """
    Whoever knows the name knows the lease, and no two names share one.
    """
    server = SimpleNamespace(endpoint="localhost:1")
    found = {share(server, name=f"/{i}/".encode()).id for i in range(100)}

    assert 100 == len(found)
    assert all(0 < lease_id < 2**63 for lease_id in found)
    assert share(server).id == share(server).id


def test_shared_lease_is_granted_once(share):
    """
    Nothing is sent before the first use; then it is granted, and not asked for again.
    """
    with ScriptedServer(reply_for) as server:
        lease = share(server)
        assert [] == server.requests

        assert [lease.id] * 3 == [lease.current(10.0) for _ in range(3)]
        assert [KEEP_ALIVE, GRANT] == server.paths
        assert {lease.id} == set(ids(server))
        assert str(TTL) == server.requests[1].json["TTL"]


def test_shared_lease_that_is_there_is_renewed(share):
    """
    A lease that somebody else has granted may be about to end: it is renewed.
    """
    with ScriptedServer(lambda _: RENEWED) as server:
        lease = share(server)
        lease.current(10.0)

        assert [KEEP_ALIVE] == server.paths


def test_shared_lease_granted_by_two_at_once(share):
    """
    Whoever comes second finds that it exists, and has it.
    """
    with ScriptedServer([UNKNOWN, json_reply(EXISTS, 400)]) as server:
        lease = share(server)

        assert lease.id == lease.current(10.0)


def test_shared_lease_that_is_gone(share):
    """
    Once it is known to be gone it is granted anew, under the same identifier.
    """
    with ScriptedServer(reply_for) as server:
        lease = share(server)
        lease.current(10.0)
        lease.forget(lease.id + 1)
        lease.current(10.0)
        assert 2 == len(server.requests)

        lease.forget(lease.id)
        lease.current(10.0)
        assert [KEEP_ALIVE, GRANT] * 2 == server.paths
        assert {lease.id} == set(ids(server))


def test_shared_lease_is_kept_until_it_is_dropped(share):
    """
    A thread renews it thrice a time to live, and ends with the last reference.
    """
    renewed = json_reply({"result": {"header": {}, "ID": "9", "TTL": "1"}})
    with ScriptedServer(lambda _: renewed) as server:
        lease = share(server, ttl=1)
        lease.keep()
        keeper = lease._keeper
        lease.keep()
        assert keeper is lease._keeper
        assert keeper in keepers()
        until(lambda: len(server.requests) >= 3)
        assert {KEEP_ALIVE} == set(server.paths)

        del lease
        until(lambda: not keeper.is_alive())


def test_shared_lease_rests_while_its_client_is_closed(share):
    """
    Nothing is sent over a client that was closed, until it is used again.
    """
    renewed = json_reply({"result": {"header": {}, "ID": "9", "TTL": "1"}})
    with ScriptedServer(lambda _: renewed) as server:
        lease = share(server, ttl=1)
        lease.current(10.0)
        lease._client.close()
        server.wait_for_open_connections(0)
        before = len(server.requests)
        time.sleep(1)
        assert before == len(server.requests)

        lease._client.keep_alive(lease.id)
        until(lambda: len(server.requests) >= before + 3)
        keeper = lease._keeper
        del lease
        until(lambda: not keeper.is_alive())


@pytest.mark.measures
def test_shared_lease_of_a_client_that_is_closed_after_each_use(share):
    """
    It is kept alive as long as it is used, although it is always found closed.
    """
    renewed = json_reply({"result": {"header": {}, "ID": "9", "TTL": "3"}})
    with ScriptedServer(lambda _: renewed) as server:
        lease = share(server, ttl=3)
        lease.current(10.0)
        before = len(server.requests)
        # Every other beat finds it resting.
        until = time.monotonic() + 5.5
        while time.monotonic() < until:
            lease.keep()
            lease._client.close()
            time.sleep(0.05)

        assert len(server.requests) >= before + 2


def test_nobody_waits_for_another_ones_grant_to_keep_it(share):
    """
    While one thread's grant has no answer, others still begin to keep the lease, and
    give up a write at their own limit.
    """
    answer = threading.Event()

    def reply_late(exchange):
        answer.wait(20)
        return reply_for(exchange)

    with ScriptedServer(reply_late) as server:
        lease = share(server)
        granting = threading.Thread(target=lease.current, args=(20.0,))
        granting.start()
        until(lambda: server.requests)
        # As when another thread comes right between its first steps.
        lease._keeper = None
        started = time.monotonic()
        try:
            lease.keep()
            with pytest.raises(EtcdConnectionError, match="another thread's attempt"):
                lease.current(0.2)
            took = time.monotonic() - started
        finally:
            answer.set()
            granting.join(20)

    assert took < 2


def test_shorter_time_to_live_of_somebody_else(share):
    """
    Where the lease was granted for less than we would, we renew as often as that needs.
    """
    renewed = json_reply({"result": {"header": {}, "ID": "9", "TTL": "3"}})
    with ScriptedServer(lambda _: renewed) as server:
        lease = share(server)
        assert TTL / 3 == lease.seconds_between_beats

        assert lease.beat()
        assert 1 == lease.seconds_between_beats


def test_shared_lease_that_expired_is_told(share, caplog):
    """
    What hung on it is lost: one warning, and the next write grants it anew.
    """
    with ScriptedServer(reply_for) as server:
        lease = share(server)
        lease.beat()  # nobody has granted it yet: nothing is lost
        assert [] == caplog.records

        lease.current(10.0)
        assert lease.beat()
        assert lease.beat()
        assert 1 == len(caplog.records)
        assert "The lease of '/run/store/' has expired" in caplog.text

        lease.current(10.0)
        assert GRANT == server.paths[-1]


@pytest.mark.parametrize("odd", [{"result": "ok"}, {"result": {"TTL": "x"}}])
def test_an_odd_reply_does_not_end_the_keeper(share, odd):
    """
    What is not etcd's is an error as others; the thread renews on.
    """
    with ScriptedServer(lambda _: json_reply(odd)) as server:
        lease = share(server, ttl=1)
        assert not lease.beat()
        lease.keep()
        until(lambda: len(server.requests) >= 4)


def test_etcd_that_is_away_is_asked_again(share):
    """
    A renewal that fails says so, and raises nothing.
    """
    with refused_endpoint() as endpoint:
        lease = share(SimpleNamespace(endpoint=endpoint))

        assert not lease.beat()


def test_grant_that_fails(share):
    """
    A lease that can't be had is an error, and is asked for again.
    """
    refused = json_reply({"code": 8, "message": "mvcc: database space exceeded"}, 429)
    with ScriptedServer([UNKNOWN, refused, UNKNOWN, GRANTED]) as server:
        lease = share(server)
        with pytest.raises(EtcdReplyError, match="Could not grant a lease at"):
            lease.current(10.0)

        assert lease.id == lease.current(10.0)


# -- the client's part -------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"), [(RENEWED, TTL), (UNKNOWN, 0), (NO_ID, 0)]
)
def test_keep_alive(step, expected):
    """
    A renewal tells the time to live, and 0 for a lease that the server doesn't know.
    """
    with ScriptedServer([step]) as server, EtcdClient(server.endpoint) as client:
        assert expected == client.keep_alive(9)
        assert [(KEEP_ALIVE, {"ID": "9"})] == [
            (r.path, r.json) for r in server.requests
        ]


@pytest.mark.parametrize(
    "step", [json_reply({"header": {}}), json_reply(NOT_FOUND, 404)]
)
def test_revoke(step):
    """
    A lease that is gone already is as good as revoked.
    """
    with ScriptedServer([step]) as server, EtcdClient(server.endpoint) as client:
        client.revoke(9)

        assert [("/v3/lease/revoke", {"ID": "9"})] == [
            (request.path, request.json) for request in server.requests
        ]


def test_a_write_upon_a_lease_that_is_gone():
    """
    A write upon an unknown lease is an error that can be told from all others.
    """
    script = [json_reply(NOT_FOUND, 404), json_reply({"code": 9, "message": "no"}, 400)]
    with ScriptedServer(script) as server, EtcdClient(server.endpoint) as client:
        with pytest.raises(LeaseNotFoundError) as caught:
            client.put("k", "v", lease=9)

        assert (5, "etcdserver: requested lease not found") == (
            caught.value.code,
            caught.value.text,
        )
        assert "9" == server.requests[0].json["lease"]

        with pytest.raises(EtcdReplyError) as caught:
            client.put("k", "v", lease=9)

        assert EtcdReplyError is type(caught.value)
