# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Leases: granted once, renewed rarely, granted anew when they are gone.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from etcd_rendezvous._errors import EtcdConnectionError, EtcdReplyError
from etcd_rendezvous._v3.client import EtcdClient, LeaseNotFoundError
from etcd_rendezvous._v3.lease import Lease
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


class Clock:
    def __init__(self):
        self.now = 5000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


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
        from etcd_rendezvous._v3.lease import Lease
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


# -- the client's part -------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "expected"), [(RENEWED, True), (UNKNOWN, False), (NO_ID, False)]
)
def test_keep_alive(step, expected):
    """
    A renewal says whether the server still knows the lease.
    """
    with ScriptedServer([step]) as server, EtcdClient(server.endpoint) as client:
        assert expected is client.keep_alive(9)
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
    script = [json_reply(NOT_FOUND, 404), json_reply({"code": 7, "message": "no"}, 403)]
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
