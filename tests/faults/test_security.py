# SPDX-License-Identifier: BSD-3-Clause
"""
Users, tokens that end, and certificates that are replaced while clients work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time

import pytest

from etcd_rendezvous import EtcdClient, EtcdError
from faults.leader_kills import LONG, kill_leaders
from support.links import Links
from support.proxy import FaultProxy
from support.security import PLAIN, PREFIX, Authority, switch_authentication_on

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

#: Of a certificate, in seconds: a cluster starts meanwhile, and clients begin.
LIFETIME = 12
AUTHENTICATE = "/v3/auth/authenticate"


@pytest.mark.measures
def test_the_leader_is_killed_again_and_again(
    secure_cluster, security, at_work, fault_seconds, report
):
    """
    What holds without users and certificates holds with them: no operation fails, and
    those that a kill hits take less than 3 s, in the middle (of a short run: 6 s).
    """
    clients = 16 if fault_seconds > LONG else 8
    with at_work(
        secure_cluster.endpoints, clients=clients, read_timeout=15, security=security
    ) as work:
        kills = kill_leaders(secure_cluster, fault_seconds)
        work.wait_for_answers(1)
    kills.judge(work, report)
    for stranger in (
        dataclasses.replace(security, user=None, password=None),
        dataclasses.replace(security, cert=None, key=None),
    ):
        client = EtcdClient(secure_cluster.endpoints, **stranger.client_options())
        with pytest.raises(EtcdError):
            client.get(PREFIX)
        client.close()


def test_tokens_end(make_cluster, at_work):
    """
    Tokens that have expired, or that a restarted member has forgotten, are replaced;
    nobody notices.
    """
    # Tokens end after a second without use, and clients rest for longer.
    with (
        make_cluster(extra_args=["--auth-token-ttl=1"]) as cluster,
        contextlib.ExitStack() as stack,
    ):
        security = PLAIN.as_user("trainer", "secret")
        switch_authentication_on(cluster.endpoints[0], security)
        proxies = [
            stack.enter_context(FaultProxy.to(endpoint))
            for endpoint in cluster.endpoints
        ]
        endpoints = [proxy.endpoint for proxy in proxies]
        with at_work(endpoints, clients=3, security=security, pause=1.1) as work:
            work.wait_for_answers(1, seconds=30)
            cluster.leader().restart()
            work.wait_for_answers(1, seconds=30)
        renewed = sum(proxy.requests[AUTHENTICATE] for proxy in proxies)
        refused = [
            one
            for proxy in proxies
            for one in proxy.log
            if one.status not in (200, None) and b"invalid auth token" in one.reply
        ]

    assert work.failures() == []
    assert refused
    assert renewed > 3


def test_certificates_are_replaced(make_cluster, tmp_path, at_work):
    """
    New certificates of servers and clients in the place of the old ones count from the
    next connection on: nobody notices that the old ones have run out.
    """
    authority = Authority(tmp_path)
    began = time.monotonic()
    authority.renew(seconds=LIFETIME)
    with make_cluster(extra_args=authority.server_arguments) as cluster:
        with Links(cluster.endpoints) as links:
            with at_work(
                links.endpoints, clients=4, security=authority.security
            ) as work:
                old = authority.copy_of_client("old")
                authority.renew()
                time.sleep(max(began + LIFETIME + 1 - time.monotonic(), 0))
                links.reset()
                work.wait_for_answers(3)
        late = EtcdClient(cluster.endpoints, read_timeout=5, **old.client_options())
        with pytest.raises(EtcdError, match="certificate"):
            late.get("any")
        late.close()

    assert work.failures() == []
