# SPDX-License-Identifier: BSD-3-Clause
"""
Links are cut: between clients and a member, and between members.
"""

from __future__ import annotations

import pytest

from etcd_rendezvous import EtcdClient, EtcdConnectionError

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]


def number_of(cluster, member):
    return cluster.members.index(member)


@pytest.mark.parametrize("how", ["reset", "silent"])
def test_clients_are_cut_off_from_one_member(cluster, links, at_work, how):
    """
    Clients that no longer reach one of the members go on with the others, and are told
    truly what became of the operations that they had under way.
    """
    with at_work(links.endpoints) as work:
        cut = links.links[links.busiest].connections
        links.cut(links.busiest, how)
        work.wait_for_answers(3)
        links.heal()
        work.wait_for_answers(1)

    assert cut
    assert work.failures() == []


@pytest.mark.measures
def test_one_client_is_cut_off_from_all_members(cluster, links, at_work):
    """
    A client that reaches nobody fails within its deadline, whatever the others do; once
    it is back it goes on.
    """
    endpoints = [links.endpoints, *[cluster.endpoints] * 3]
    with at_work(endpoints, clients=4, read_timeout=4) as work:
        for number in range(3):
            links.cut(number, "silent")
        work.wait_for_failure()
        work.wait_for_answers(5, clients=["c1", "c2", "c3"])
        links.heal()
        work.wait_for_answers(1)
    failed = [one for one in work.operations() if one.raised]

    assert {one.client for one in failed} == {"c0"}
    assert all(one.seconds < 6 for one in failed)


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
        work.wait_for_answers(3)
        cluster.heal()
        work.wait_for_answers(1)
    alone.close()

    assert work.failures() == []


def test_the_leader_is_cut_off_from_the_others(cluster, at_work):
    """
    A leader that hears of nobody is replaced, and neither wins nor reads anything
    any more.
    """
    leader = cluster.leader()
    with at_work(cluster.endpoints) as work:
        cluster.isolate(number_of(cluster, leader))
        work.wait_for_answers(1)
        successor = cluster.leader()
        work.wait_for_answers(1)
        cluster.heal()
        work.wait_for_answers(1)

    assert successor is not leader
    assert work.failures() == []


def test_the_leader_and_a_follower_are_cut_off_from_each_other(cluster, at_work):
    """
    A follower that no longer hears the leader sends its clients away, and does not
    overthrow a leader whom another one hears.
    """
    leader = cluster.leader()
    number = number_of(cluster, leader)
    alone = EtcdClient(cluster.endpoints[(number + 1) % 3], read_timeout=2)
    with at_work(cluster.endpoints, clients=4) as work:
        cluster.cut(number, (number + 1) % 3, "reset")
        with pytest.raises(EtcdConnectionError):
            alone.get("any")
        work.wait_for_answers(3)
        led = cluster.leader()
        cluster.heal()
        work.wait_for_answers(1)
    alone.close()

    assert led is leader
    assert work.failures() == []
