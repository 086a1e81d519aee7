# SPDX-License-Identifier: BSD-3-Clause
"""
Nodes of `etcd-live` that do what torch's agents do, and keep a diary of it.

Each is a handler and a thread in this process: it joins, "trains" until it is told that
somebody waits, and joins again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import defaultdict
from dataclasses import dataclass

from torch.distributed.elastic.rendezvous import RendezvousError

from support.live import Told, agreed, parameters
from support.torchrun import wait_until

#: What the next round may take at most, faults of one member included, on a machine
#: that is busy.
BOUND = 20.0
#: How long a node lives on that says nothing. Machines may be busy.
TTL = 6
CONFIG = {"keep_alive_interval": 2, "rejoin_last_call_timeout": 1}
_POLL = 0.02


@dataclass(frozen=True)
class Entry:
    """
    What a node noted down when it had joined a round.
    """

    told: Told
    asked: float
    joined: float


class Agent:
    """
    A node that does as torch's agents do.
    """

    def __init__(self, parameters):
        self.address = parameters.local_addr
        self.handler = None
        self._parameters = parameters
        self.diary = []
        self.error = None
        self.training = False
        self._again = threading.Event()
        self._ending = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        from etcd_rendezvous import create_handler

        try:
            self.handler = create_handler(self._parameters)
            while not self._ending:
                asked = time.monotonic()
                info = self.handler.next_rendezvous()
                told = Told(self.handler, info)
                self.diary.append(Entry(told, asked, time.monotonic()))
                self.training = True
                while not self._ending and not self._again.is_set():
                    if self.handler.num_nodes_waiting() > 0:
                        break
                    time.sleep(_POLL)
                self.training = False
                self._again.clear()
        except BaseException as error:
            self.error = error

    @property
    def number(self):
        """
        The round that it trains in; -1 while it is in none.
        """
        return self.diary[-1].told.number if self.training else -1

    def join_again(self):
        """
        Do as after the failure of a worker.
        """
        self._again.set()

    def stop(self):
        """
        Train no longer, once the round has begun.
        """
        self._ending = True

    def end(self):
        """
        Stop training, and close nothing.
        """
        self.stop()
        self._thread.join(5)
        if self.handler is not None:
            self.handler._node.withdraw(1.0)


class Agents:
    """
    The nodes of one run.

    Args:
        endpoint: Where etcd is.
        run_id: The run.
        least: The fewest nodes of a round.
        most: The most.
        config: More settings.
    """

    def __init__(self, endpoint, run_id, least=3, most=4, **config):
        self.run_id = run_id
        self._of_all = (run_id, least, most)
        self._endpoint = endpoint
        self._config = {**CONFIG, **config}
        self.all = []

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        for one in self.all:
            one.stop()
        for one in self.all:
            if one.number < 0 and one.handler is not None:
                with contextlib.suppress(RendezvousError):
                    one.handler.set_closed()  # Nobody waits any longer.
        for one in self.all:
            one.end()

    def start(self, count=1, *, endpoint=None):
        """
        Start nodes; return the last one.
        """
        for _ in range(count):
            address = f"127.0.0.{len(self.all) + 1}"
            told = parameters(
                endpoint or self._endpoint, *self._of_all, address, **self._config
            )
            self.all.append(Agent(told))
        return self.all[-1]

    @property
    def number(self):
        """
        The number of the last round that anybody was in.
        """
        return max(
            (one.diary[-1].told.number for one in self.all if one.diary), default=-1
        )

    def settle(self, *agents, after=-1, seconds=BOUND):
        """
        Wait until nodes, or all, train in one round; return its number.

        Args:
            agents: The nodes.
            after: A round that must be earlier.
            seconds: How long to wait.
        """
        nodes = agents or self.all

        def together():
            for one in nodes:
                if one.error is not None:
                    raise AssertionError(f"{one.address}: {one.error!r}")
            numbers = {one.number for one in nodes}
            number = numbers.pop()
            return (
                not numbers
                and number > after
                and {one.diary[-1].told.world_size for one in nodes} == {len(nodes)}
                and [number]
            )

        started = time.monotonic()
        try:
            (number,) = wait_until(
                "one round of all", together, seconds=seconds, every=_POLL
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None
        self.seconds = time.monotonic() - started
        return number

    def join_again(self, who=0, *, seconds=BOUND):
        """
        Let one node join again, and wait until all have; return the round's number.
        """
        last = self.number
        self.all[who].join_again()
        return self.settle(after=last, seconds=seconds)

    def judge(self):
        """
        See that all rounds were rounds: the same to all that were in them, each later
        than the one before.
        """
        rounds = defaultdict(list)
        for one in self.all:
            numbers = [entry.told.number for entry in one.diary]
            assert numbers == sorted(set(numbers)), self.story()
            for entry in one.diary:
                rounds[entry.told.number].append(entry.told)
        for number, told in rounds.items():
            ranks = sorted(one.rank for one in told)
            assert ranks == sorted(set(ranks)), (number, self.story())
            assert len({one.world_size for one in told}) == 1, (number, self.story())
            where = {
                (
                    one.bootstrap_store_info.master_addr,
                    one.bootstrap_store_info.master_port,
                )
                for one in told
            }
            assert len(where) == 1, (number, self.story())
            if len(told) == told[0].world_size:
                agreed(told)

    def story(self):
        """
        Tell what is known.
        """
        return "\n".join(
            f"{one.address} {'trains' if one.training else 'joins'} {one.error!r} "
            f"{one.handler and one.handler._node.view} "
            + ", ".join(
                f"{entry.told.number}: {entry.told.rank}/{entry.told.world_size} "
                f"after {entry.joined - entry.asked:.2f} s"
                for entry in one.diary
            )
            for one in self.all
        )
