# SPDX-License-Identifier: BSD-3-Clause
"""
Many who swap one state at once: nothing is lost, and they take turns.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _RendezvousState

from etcd_rendezvous._v3.turns import STALL_SECONDS

pytestmark = pytest.mark.torch

PREFIX = "/torch/elastic/rendezvous"
THREADS = 12
# Alone, each of N would lose N - 1 swaps for each that it wins.
LOST_FOR_EACH_WON = 2.0


def add_ones(backend, times, wins=None):
    """
    Add one to the number in the state, as torch's handler does: a loser tries again
    at once, with what the lost swap told.

    Returns:
        How many swaps were lost.
    """
    found = backend.get_state()
    lost = 0
    while times:
        number, token = (int(found[0]), found[1]) if found else (0, None)
        found = backend.set_state(str(number + 1).encode(), token)
        if found is not None and found[2]:
            times -= 1
            if wins is not None:
                wins.append(number)
        else:
            lost += 1
    return lost


def at_once(backends, work):
    """
    Work with each backend in a thread of its own; return the results and the seconds.
    """
    barrier = threading.Barrier(len(backends) + 1)

    def run(backend):
        barrier.wait(30)
        return work(backend)

    with ThreadPoolExecutor(len(backends)) as pool:
        running = [pool.submit(run, backend) for backend in backends]
        barrier.wait(30)
        start = time.monotonic()
        results = [one.result(60) for one in running]
    return results, time.monotonic() - start


def tickets(served, backend):
    """
    Return how many wait for their turn.
    """
    end = f"{backend.key}/turn0".encode()  # "0" is what follows "/".
    found, _ = served.client().range(f"{backend.key}/turn/", end, count_only=True)
    return found.count


@pytest.mark.measures
def test_every_increment_counts(v3, run_id):
    """
    Twelve who add to one number lose none, lose few swaps, and leave no ticket.
    """
    backends = [v3.backend(run_id) for _ in range(THREADS)]
    lost, _ = at_once(backends, lambda backend: add_ones(backend, 10))

    assert str(THREADS * 10).encode() == v3.backend(run_id).get_state()[0]
    assert sum(lost) <= LOST_FOR_EACH_WON * THREADS * 10
    assert tickets(v3, backends[0]) == 0


# --- Nodes that die while they wait

VICTIM = """
import sys, threading
from etcd_rendezvous import EtcdClient, EtcdRendezvousBackend
endpoint, run_id, key_prefix, count = sys.argv[1:]

def work():
    backend = EtcdRendezvousBackend(EtcdClient(endpoint), run_id, key_prefix)
    found = backend.get_state()
    while True:
        found = backend.set_state(str(int(found[0]) + 1).encode(), found[1])

print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(count)):
    threading.Thread(target=work, daemon=True).start()
threading.Event().wait()
"""
DYING = 20
SURVIVORS = 6
EACH = 40
HELD_UP_SECONDS = 1.0
# A busy machine holds them up longer, never shorter.
TRIES = 3


@pytest.mark.measures
def test_nodes_killed_while_they_wait(newest_v3, run_id):
    """
    Nodes that are killed while they wait for their turn hold the others up for no more
    than a second in all, and their tickets do not remain.
    """
    told = []
    for number in range(TRIES):
        told.append(held_up(newest_v3, f"{run_id}-{number}"))
        if told[-1] <= HELD_UP_SECONDS:
            break

    assert min(told) <= HELD_UP_SECONDS, told


def held_up(served, run_id):
    """
    Kill a process whose nodes wait; return the seconds that the survivors took longer
    for what was left to them than they take for it alone.
    """
    command = [sys.executable, "-c", VICTIM, served.endpoint, run_id, PREFIX]
    victim = subprocess.Popen(
        [*command, str(DYING)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert victim.stdout.readline() == "ready\n"
        alone = [served.backend(f"{run_id}-alone") for _ in range(SURVIVORS)]
        _, seconds_alone = at_once(alone, lambda backend: add_ones(backend, EACH))

        backends = [served.backend(run_id) for _ in range(SURVIVORS)]
        backends[0].set_state(b"0")
        victim.stdin.write("go\n")
        victim.stdin.flush()
        wins = []
        killed = []

        def kill():
            deadline = time.monotonic() + 20
            while tickets(served, backends[0]) < DYING / 2:
                assert time.monotonic() < deadline, "they do not queue"
                time.sleep(0.01)
            victim.kill()
            victim.wait(10)
            killed.append((time.monotonic(), len(wins)))
            killed.append(tickets(served, backends[0]))

        at_once(
            [None, *backends],
            lambda backend: add_ones(backend, EACH, wins) if backend else kill(),
        )
        seconds = time.monotonic() - killed[0][0]
    finally:
        victim.kill()
        victim.wait(10)
        victim.stdout.close()
        victim.stdin.close()

    (_, done), left_behind = killed
    left = 1 - done / (SURVIVORS * EACH)
    assert left > 0.5
    assert left_behind > SURVIVORS
    assert tickets(served, backends[0]) == 0
    return seconds - left * seconds_alone


@pytest.mark.measures
def test_closed_state_is_not_queued_for(newest_v3, make_proxy, run_id):
    """
    Who loses to a closed state is told so at once: nobody writes to it again.
    """
    state = _RendezvousState()
    state.closed = True
    closed = pickle.dumps(state)
    proxy = make_proxy(newest_v3.endpoint)
    first = newest_v3.backend(run_id)
    losers = [newest_v3.backend(run_id, proxy) for _ in range(3)]
    _, old, _ = first.set_state(b"0")
    _, token, _ = first.set_state(closed, old)
    start = time.monotonic()
    for loser in losers:
        assert (closed, token, False) == loser.set_state(b"1", old)

    assert time.monotonic() - start < 0.4
    assert proxy.requests["/v3/watch"] == 0
    assert proxy.requests["/v3/kv/txn"] == 3


@pytest.mark.measures
def test_who_leaves_leaves_nothing(v3, run_id):
    """
    Who won't try again takes its tickets with it, also those of a lease that it had
    before, and the others go on at once.
    """
    first, loser = v3.backend(run_id), v3.backend(run_id, closed_ttl=30)
    first.set_state(b"one")
    assert not loser.set_state(b"x", 1)[2]
    loser.say_closed(True)
    started = time.monotonic()
    assert not loser.set_state(b"x", 1)[2]
    assert time.monotonic() - started < STALL_SECONDS
    assert tickets(v3, first) == 1
    loser.leave_queue()

    assert tickets(v3, first) == 0
    # There is nothing left to leave.
    loser.leave_queue()


def test_a_win_takes_old_tickets_with_it(v3, run_id):
    """
    So does who wins at last.
    """
    first, loser = v3.backend(run_id), v3.backend(run_id, closed_ttl=30)
    first.set_state(b"one")
    assert not loser.set_state(b"x", 1)[2]
    loser.say_closed(True)
    _, token, won = loser.set_state(b"x", 1)
    assert not won
    assert loser.set_state(b"x", token)[2]

    assert tickets(v3, first) == 0
