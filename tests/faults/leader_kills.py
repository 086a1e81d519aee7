# SPDX-License-Identifier: BSD-3-Clause
"""
The leader of a cluster is killed every five seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from faults.crew import median_seconds

EVERY = 5.0
#: A run of so many seconds is a long one.
LONG = 60
#: Of the operations that are hit by a kill.
LONGEST_MEDIAN = 3.0
#: The same where there were so few kills that chance decides what is in the middle.
LONGEST_MEDIAN_OF_FEW = 6.0
FEW = 5


@dataclass
class Kills:
    """
    When leaders were killed, and when there was another.
    """

    times: list[tuple[float, float]] = field(default_factory=list)

    def hit(self, operations):
        """
        List the operations that were going on at a kill, or were begun by a client
        that had nothing going on then before there was another leader.
        """
        found = []
        for killed, led in self.times:
            hit = {}
            for one in sorted(operations, key=lambda one: one.start):
                if one.end >= killed and one.start < led:
                    hit.setdefault(one.client, one)
            found += hit.values()
        return found

    def judge(self, work, report):
        """
        Hold what the clients did against what was promised; report the figures.
        """
        operations = work.operations()
        hit = self.hit(operations)
        elections = sorted(led - killed for killed, led in self.times)
        seconds = sorted(one.seconds for one in hit)
        report(
            f"{len(work.pids)} clients, {len(self.times)} leaders killed: "
            f"{len(operations)} operations, {len(work.failures())} failed; "
            f"a new leader after {elections[len(elections) // 2]:.2f} s "
            f"(median; at most {elections[-1]:.2f} s); "
            f"{len(hit)} operations hit took {median_seconds(hit):.2f} s (median; "
            f"90 % up to {seconds[len(seconds) * 9 // 10]:.2f} s, "
            f"at most {seconds[-1]:.2f} s)"
        )

        assert work.failures() == []
        # Every client was hit by every kill.
        assert len(hit) == len(work.pids) * len(self.times)
        assert len(operations) > 5 * len(hit)
        few = len(self.times) <= FEW
        assert median_seconds(hit) < (LONGEST_MEDIAN_OF_FEW if few else LONGEST_MEDIAN)


def kill_leaders(cluster, seconds):
    """
    Kill the leader every five seconds, as long as there are seconds left.

    Each is started again as soon as another leads, and operations are under way
    whenever the next is killed.
    """
    kills = Kills()
    end = time.monotonic() + seconds
    while True:
        started = time.monotonic()
        leader = cluster.leader()
        killed = time.monotonic()
        leader.kill()
        cluster.leader()
        kills.times.append((killed, time.monotonic()))
        leader.restart()
        if started + EVERY >= end:
            return kills
        time.sleep(max(started + EVERY - time.monotonic(), 0))
