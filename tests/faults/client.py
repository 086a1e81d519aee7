# SPDX-License-Identifier: BSD-3-Clause
"""
Clients that read and write one state, each in a process of its own.

    python client.py

It imports torch once. Each line on its standard input is a JSON object that says what
some clients are to do; they are forked, and write every operation down as it ends. An
empty line ends them, and is answered on standard output with their exit statuses; the
end of the input ends everything.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousStateError,
)

from etcd_rendezvous import EtcdClient, EtcdRendezvousBackend
from faults.history import FAILED, LOST, READ, UNKNOWN, WON, Operation

READS = 0.3


class Worker:
    """
    One client: what it knows of the state, and the file of what it did.
    """

    def __init__(self, name, order):
        self.name = name
        self.pause = order["pause"]
        client = EtcdClient(order["endpoints"], **order["options"])
        self.backend = EtcdRendezvousBackend(client, order["run_id"], order["prefix"])
        self.random = random.Random(name)
        self.token = None
        self.number = 0
        self.lost = False
        self.file = Path(order["folder"], f"{name}.jsonl").open("a", encoding="utf-8")  # noqa: SIM115

    def once(self):
        """
        Read, or write upon what was read or written last.
        """
        wrote = given = None
        # Who lost has been told what holds, and now it is its turn.
        if self.lost or (self.number and self.random.random() > READS):
            wrote, given = f"{self.name}-{self.number}", self.token
        self.number += 1
        self.lost = False
        start = time.monotonic()
        try:
            if wrote is None:
                found, outcome = self.backend.get_state() or (None, None), READ
            else:
                *found, won = self.backend.set_state(wrote.encode(), given) or (
                    None,
                    None,
                    False,
                )
                outcome = WON if won else LOST
        except (RendezvousConnectionError, RendezvousStateError) as error:
            end = time.monotonic()
            outcome = FAILED if wrote is None else UNKNOWN
            self.note(start, end, outcome, wrote, given, error=repr(error.__cause__))
            return
        end = time.monotonic()
        state, self.token = found
        self.lost = outcome == LOST
        self.note(start, end, outcome, wrote, given, state and state.decode())

    def note(self, start, end, outcome, wrote, given, found=None, error=""):
        token = None if found is None else int(self.token)
        given = given and int(given)
        operation = Operation(
            self.name, start, end, outcome, wrote, given, found, token, error
        )
        print(operation.to_json(), file=self.file, flush=True)


def work(name, order):
    """
    Be one client until SIGTERM comes; it ends what it has begun.
    """
    ended = []
    signal.signal(signal.SIGTERM, lambda *_: ended.append(True))
    worker = Worker(name, order)
    while not ended:
        worker.once()
        if not worker.lost:
            time.sleep(worker.random.uniform(0, 2 * worker.pause))
    # Others wait for us otherwise, until they find out.
    worker.backend.leave_queue()


def fork(name, order):
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # Whoever waits for the end of our parent's output must not wait for us.
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        work(name, order)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main():
    print(json.dumps("ready"), flush=True)
    pids = []
    try:
        for line in sys.stdin:
            if line.strip():
                order = json.loads(line)
                pids += [fork(name, order) for name in order["names"]]
                print(json.dumps(pids), flush=True)
                continue
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            statuses = [
                os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids
            ]
            pids.clear()
            print(json.dumps(statuses), flush=True)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
