# SPDX-License-Identifier: BSD-3-Clause
"""
Members of a cluster are killed, stopped and restarted while clients work.

No operation fails that had a quorum within its deadline, and the histories are those of
one register.
"""

from __future__ import annotations

import time

import pytest

from faults.leader_kills import LONG, kill_leaders

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]


def followers_of(cluster):
    leader = cluster.leader()
    return [member for member in cluster.members if member is not leader]


def test_a_follower_is_killed_and_another_stopped(cluster, at_work):
    """
    One follower less, killed or stopped in its tracks, is noticed by nobody.
    """
    killed, stopped = followers_of(cluster)
    with at_work(cluster.endpoints) as work:
        killed.kill()
        work.wait_for_answers(3)
        killed.restart()
        stopped.pause()
        work.wait_for_answers(3)
        stopped.resume()
        work.wait_for_answers(1)

    assert work.failures() == []


def test_the_leader_is_stopped(cluster, at_work):
    """
    A leader that is stopped in its tracks is replaced, and when it goes on it has
    nothing to say: what it still believes is read by nobody.
    """
    leader = cluster.leader()
    with at_work(cluster.endpoints, clients=4) as work:
        leader.pause()
        work.wait_for_answers(1)
        leader.resume()
        work.wait_for_answers(1)

    assert work.failures() == []


def test_all_members_are_restarted_one_by_one(cluster, at_work):
    """
    A rolling restart is noticed by nobody.
    """
    pids = {member.pid for member in cluster.members}
    with at_work(cluster.endpoints) as work:
        for member in cluster.members:
            member.restart()
            work.wait_for_answers(1)

    assert work.failures() == []
    assert pids.isdisjoint({member.pid for member in cluster.members})


@pytest.mark.measures
def test_the_quorum_is_lost_and_comes_back(cluster, at_work):
    """
    Without a quorum nothing is answered, operations wait until their deadline, and
    all is well once the quorum is back.
    """
    one, other = followers_of(cluster)
    with at_work(cluster.endpoints, read_timeout=4) as work:
        one.kill()
        other.pause()
        lost = time.monotonic()
        work.wait_for_failure()
        back = time.monotonic()
        other.resume()
        one.restart()
        work.wait_for_answers(1)
        mended = time.monotonic()
        work.wait_for_answers(3)
    begun_without = [
        one for one in work.operations() if lost + 1 < one.start and one.end < back
    ]

    assert all(one.raised for one in begun_without)
    assert all(one.seconds < 6 for one in work.operations() if one.raised)
    assert not [one for one in work.operations() if one.raised and one.start > mended]


@pytest.mark.measures
def test_the_leader_is_killed_again_and_again(cluster, at_work, fault_seconds, report):
    """
    With the leader killed every 5 s no operation fails, and those that are hit take
    less than 3 s, in the middle (of a short run: less than 6 s).
    """
    clients = 16 if fault_seconds > LONG else 8
    with at_work(cluster.endpoints, clients=clients, read_timeout=15) as work:
        kills = kill_leaders(cluster, fault_seconds)
        work.wait_for_answers(1)
    kills.judge(work, report)
