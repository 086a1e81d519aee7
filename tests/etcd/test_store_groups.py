# SPDX-License-Identifier: BSD-3-Clause
"""
What torch builds on a store: process groups, and its own barriers of agents.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, PrefixStore
from torch.distributed.elastic.utils import store as store_util

from support.groups import Workers

pytestmark = pytest.mark.torch

GROUPS = 50


@pytest.fixture(scope="module")
def workers():
    """
    Four processes, which are expensive to start.
    """
    with Workers(4) as workers:
        yield workers


def sums(groups):
    """
    Return what each of four ranks has to report of its groups.
    """
    totals = [[10 + 4 * number] for number in range(groups)]
    return [[[10, part], *totals[1:]] for part in (1, 1, 5, 5)]


# --- Process groups


def test_groups_one_after_another(newest_served, workers, run_id):
    """
    Four processes make 50 gloo groups in a row, reduce over each, and end it.
    """
    answers = workers.run(
        api=newest_served.api,
        endpoint=newest_served.endpoint,
        prefix=newest_served.store(run_id).prefix,
        groups=GROUPS,
    )

    assert [answer["sums"] for answer in answers] == sums(GROUPS)


def test_groups_with_torchs_barrier(newest_served, workers, run_id):
    """
    Groups that torch begins with a barrier on the store are made as well.
    """
    store = newest_served.store(run_id)
    answers = workers.run(
        api=newest_served.api,
        endpoint=newest_served.endpoint,
        prefix=store.prefix,
        groups=10,
        init_barrier="1",
    )

    assert [answer["sums"] for answer in answers] == sums(10)
    # It has left its counter behind: the groups did begin with it.
    assert any("store_based_barrier" in key for key in store.list_keys())


# --- What agents do


def run_ranks(count, call):
    """
    Call something with each rank at the same time; return results and errors.
    """

    def one(rank):
        try:
            return call(rank)
        except DistStoreError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_synchronize(newest_served, run_id):
    """
    Agents that synchronize get each other's data, in the order of their ranks; and
    again, under another prefix.
    """
    kept = [newest_served.store(run_id) for _ in range(4)]
    stores = [PrefixStore(f"torch.rendezvous.{run_id}.0/", store) for store in kept]
    for prefix in ("one", "two"):
        found = run_ranks(
            4,
            lambda rank, prefix=prefix: store_util.synchronize(
                stores[rank], f"{prefix}-{rank}".encode(), rank, 4, prefix, timeout=20
            ),
        )

        assert found == [[f"{prefix}-{rank}".encode() for rank in range(4)]] * 4
    # The time limit was that of the call.
    assert [store.timeout for store in kept] == [timedelta(seconds=300)] * 4


def test_synchronize_again_and_again(newest_served, run_id):
    """
    None of 16 agents that synchronize 20 times is ever told late of another one's data.
    """
    slowest = 0.0
    for number in range(20):
        stores = [newest_served.store(f"{run_id}-{number}") for _ in range(16)]
        start = time.monotonic()
        found = run_ranks(
            16,
            lambda rank, stores=stores: store_util.synchronize(
                stores[rank], b"%d" % rank, rank, 16, "data-", timeout=60
            ),
        )
        slowest = max(slowest, time.monotonic() - start)

        assert found == [[b"%d" % rank for rank in range(16)]] * 16
    assert slowest < 10  # Who waits looks again after 15 s.


def test_synchronize_with_one_missing(newest_served, run_id):
    """
    Agents do not wait longer for another one's data than they said.
    """
    stores = [newest_served.store(run_id) for _ in range(2)]
    start = time.monotonic()
    found = run_ranks(
        2,
        lambda rank: store_util.synchronize(
            stores[rank], b"data", rank, 3, "data-", timeout=0.3
        ),
    )

    assert all(isinstance(one, DistStoreError) for one in found)
    assert all("data-2" in str(one) for one in found)
    assert 0.25 < time.monotonic() - start < 5


def test_barrier(newest_served, run_id):
    """
    Agents pass a barrier when the last one has come, and not before.
    """
    stores = [newest_served.store(run_id) for _ in range(4)]
    here = threading.Event()

    def arrive(rank):
        if rank == 3:
            time.sleep(0.3)
            here.set()
        store_util.barrier(stores[rank], 4, "barrier", barrier_timeout=20, rank=rank)
        return here.is_set()

    assert run_ranks(4, arrive) == [True] * 4


@pytest.mark.measures
def test_barrier_names_who_is_missing(newest_served, run_id):
    """
    A barrier that times out names the missing rank, and rank 0 is the one to ask.
    """
    stores = [newest_served.store(run_id) for _ in range(4)]

    def arrive(rank):
        if rank == 2:
            return None
        return store_util.barrier(
            stores[rank],
            4,
            "barrier",
            barrier_timeout=0.5,
            rank=rank,
            rank_tracing_decoder=lambda one: f"host-{one}",
            trace_timeout=0.3,
        )

    start = time.monotonic()
    told = [str(one) for one in run_ranks(4, arrive)]

    assert time.monotonic() - start < 10
    assert "missing_ranks=[host-2]" in told[0]
    for rank in (1, 3):
        assert "check rank 0 (host-0) for missing rank info" in told[rank]


def test_rounds_do_not_see_each_other(newest_served, run_id):
    """
    What was written in one round is not there in the next, nor in another run's.
    """
    store = newest_served.store(run_id)
    store.set_timeout(timedelta(seconds=0.02))
    rounds = [
        PrefixStore(f"torch.rendezvous.{run}.{number}/", store)
        for run, number in (("run", 0), ("run", 1), ("run", 10), ("run.1", 0))
    ]
    for number, one in enumerate(rounds):
        assert one.check(["MASTER_ADDR"]) is False
        with pytest.raises(DistStoreError, match="timeout"):
            one.get("MASTER_ADDR")
        assert one.compare_set("MASTER_ADDR", "", f"{number}") == b"%d" % number
        assert one.add("members", 1) == 1
        one.append("log", f"{number}")

    for number, one in enumerate(rounds):
        assert one.multi_get(["MASTER_ADDR", "members", "log"]) == [
            b"%d" % number,
            b"1",
            b"%d" % number,
        ]
    assert rounds[0].delete_key("MASTER_ADDR") is True
    assert [one.check(["MASTER_ADDR"]) for one in rounds] == [False] + [True] * 3
