# SPDX-License-Identifier: BSD-3-Clause
"""
Links are cut: between clients and a member, and between members.
"""

from __future__ import annotations

import pytest

from etcd_rendezvous import EtcdClient, EtcdConnectionError
from support.state import keys

pytestmark = pytest.mark.torch


def number_of(cluster, member):
    return cluster.members.index(member)


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_clients_are_cut_off_from_one_member(cluster, links, at_work, how):
    """
    Clients that no longer reach one of the members go on with the others, and are told
    truly what became of the operations that they had under way.
    """
    with at_work(links.endpoints, clients=6) as work:
        links.cut(number_of(cluster, cluster.leader()), how)
        work.wait_for_answers(5)
        links.heal()
        work.wait_for_answers(5)

    assert work.failures() == []


def test_one_client_is_cut_off_from_all_members(cluster, links, at_work):
    """
    A client that reaches nobody fails within its deadline, whatever the others do; once
    it is back it goes on.
    """
    endpoints = [links.endpoints, *[cluster.endpoints] * 3]
    with at_work(endpoints, clients=4, read_timeout=2) as work:
        for number in range(3):
            links.cut(number, "silent")
        work.wait_for_failure()
        work.wait_for_answers(5, clients=["c1", "c2", "c3"])
        links.heal()
        work.wait_for_answers(5)
    failed = [one for one in work.operations() if one.raised]

    assert {one.client for one in failed} == {"c0"}
    assert all(one.seconds < 2.5 for one in failed)


def test_a_follower_is_cut_off_from_the_others(cluster, at_work):
    """
    A follower that hears of nobody answers nobody, not even with what it knows, and its
    clients go to the others.
    """
    leader = cluster.leader()
    number = next(n for n, one in enumerate(cluster.members) if one is not leader)
    alone = EtcdClient(cluster.endpoints[number], read_timeout=2)
    with at_work(cluster.endpoints, clients=4) as work:
        cluster.isolate(number)
        with pytest.raises(EtcdConnectionError):
            alone.get("any")
        work.wait_for_answers(5)
        cluster.heal()
        work.wait_for_answers(3)
    alone.close()

    assert work.failures() == []


def test_the_leader_is_cut_off_from_the_others(cluster, at_work):
    """
    A leader that hears of nobody is replaced, and neither wins nor reads anything
    any more.
    """
    leader = cluster.leader()
    with at_work(cluster.endpoints, clients=6) as work:
        cluster.isolate(number_of(cluster, leader))
        work.wait_for_answers(5)
        successor = cluster.leader()
        work.wait_for_answers(3)
        cluster.heal()
        work.wait_for_answers(3)

    assert successor is not leader
    assert work.failures() == []


def test_two_members_are_cut_off_from_each_other(cluster, at_work, run_id):
    """
    While two followers hear of each other only through the leader, or the leader of one
    follower only through the other, operations go on; a leader that is left is replaced
    in time.
    """
    leader = number_of(cluster, cluster.leader())
    with at_work(cluster.endpoints, clients=4, read_timeout=15) as work:
        cluster.cut((leader + 1) % 3, (leader + 2) % 3, "reset")
        work.wait_for_answers(5)
        cluster.cut(leader, (leader + 1) % 3, "reset")
        cluster.heal()
        cluster.cut(leader, (leader + 1) % 3, "reset")
        work.wait_for_answers(5)
        cluster.heal()
        work.wait_for_answers(3)

    assert work.failures() == []
    assert keys(cluster.members[0], run_id)
