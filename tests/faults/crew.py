# SPDX-License-Identifier: BSD-3-Clause
"""
The tests' hold on the processes of `client.py`.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from faults import history
from support.security import PLAIN, PREFIX
from support.torchrun import clean_environment, wait_until

SCRIPT = Path(__file__).with_name("client.py")


class Crew:
    """
    A process that has imported torch, and forks clients when it is told to.
    """

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        self._answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()

    @contextlib.contextmanager
    def at_work(self, folder, endpoints, run_id, **options):
        """
        Let clients work in this context, and end them with it; see `Work`.
        """
        work = Work(self, folder, endpoints, run_id, **options)
        try:
            yield work
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                self.tell("")
            raise
        work.end()

    def tell(self, line):
        """
        Send a line, and return what is answered.
        """
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        return json.loads(self._process.stdout.readline())


class Work:
    """
    Clients of one state, and what they have done so far.

    Args:
        crew: Who forks them.
        folder: Where they write down what they do.
        endpoints: Where they find etcd; a list, or one list for each client.
        run_id: Whose state it is.
        clients: How many there are.
        security: How they reach etcd.
        read_timeout: The deadline of each operation, in seconds.
        pause: How long each rests between two operations, on average.
    """

    def __init__(
        self,
        crew,
        folder,
        endpoints,
        run_id,
        *,
        clients=5,
        security=PLAIN,
        read_timeout=20,
        pause=0.02,
    ):
        self._crew = crew
        self._folder = folder
        self.pids = []
        names = [f"c{number}" for number in range(clients)]
        order = {
            "folder": str(folder),
            "run_id": run_id,
            "prefix": PREFIX.rstrip("/"),
            "options": {"read_timeout": read_timeout, **security.client_options()},
            "pause": pause,
        }
        if isinstance(endpoints[0], str):
            endpoints = [endpoints] * clients
        for name, own in zip(names, endpoints, strict=True):
            line = json.dumps({**order, "names": [name], "endpoints": own})
            self.pids = crew.tell(line)
        self.wait_for_answers(1)

    def operations(self, since=0.0):
        """
        What has been done, in the order of its end.

        Args:
            since: Only what ended later than this.
        """
        files = self._folder.glob("*.jsonl")
        return [one for one in history.read_history(files) if one.end > since]

    def wait_for_answers(self, count, *, seconds=40, clients=None):
        """
        Wait until each client has got so many more answers; return how long it took.

        Only what was begun from now on counts.

        Args:
            count: How many.
            seconds: How long to wait.
            clients: Which clients; default: all.
        """
        begun = time.monotonic()
        wanted = clients or [f"c{number}" for number in range(len(self.pids))]

        def answered():
            new = [
                one.client
                for one in self.operations(begun)
                if one.start >= begun and not one.raised
            ]
            return all(new.count(name) >= count for name in wanted)

        wait_until(f"{count} answers to {wanted}", answered, seconds=seconds)
        return time.monotonic() - begun

    def wait_for_failure(self, *, seconds=40):
        """
        Wait until an operation that was begun from now on fails.
        """
        begun = time.monotonic()
        wait_until(
            "an operation to fail",
            lambda: any(one.raised and one.start >= begun for one in self.operations()),
            seconds=seconds,
        )

    def end(self):
        """
        End the clients, and hold what they did against the rules.
        """
        statuses = self._crew.tell("")
        assert statuses == [0] * len(self.pids)
        found = history.check(self.operations())
        assert found == [], "\n".join(found[:10])

    def failures(self, since=0.0):
        """
        What raised an error, in words.
        """
        return [str(one) for one in self.operations(since) if one.raised]


def median_seconds(operations):
    """
    Return the median of how long operations took.
    """
    return statistics.median(one.seconds for one in operations)
