# SPDX-License-Identifier: BSD-3-Clause
"""
How often the same is said, of whatever happens to a real etcd. With a shorter beat.
"""

from __future__ import annotations

import itertools
import threading
import time

import pytest
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters

from etcd_rendezvous import create_handler
from support.lines import Lines
from support.live import Nodes, wait_for_waiting

pytestmark = pytest.mark.torch

BEAT = 1.0


@pytest.fixture(autouse=True)
def _shorter_beat(monkeypatch):
    for name, seconds in {
        "_log.BEAT_SECONDS": BEAT,
        "_handler.BEAT_SECONDS": BEAT,
        "_live.node._PATIENCE_SECONDS": BEAT,
        "_live.node._SPEAK_AGAIN_SECONDS": 3 * BEAT,
        "_live.closer._PROGRESS_SECONDS": 0.3,
    }.items():
        monkeypatch.setattr(f"etcd_rendezvous.{name}", seconds)


class Crew:
    """
    Of each backend one node in a round, and one that waits for another.
    """

    def __init__(self, endpoint, run_id):
        self.ends = threading.Event()
        self.running, self.waiting = [], []
        self.threads = []
        for name in ("etcd-v3", "etcd-live"):
            for handlers, least, work in (
                (self.running, 1, self.poll),
                (self.waiting, 2, self.wait),
            ):
                params = RendezvousParameters(
                    name,
                    endpoint,
                    f"{run_id}-{name}-{work.__name__}",
                    least,
                    least,
                    "127.0.0.1",
                    join_timeout=20,
                    keep_alive_interval=1,
                )
                handlers.append(create_handler(params))
                thread = threading.Thread(target=work, args=handlers[-1:])
                self.threads.append(thread)
        for handler in self.running:
            handler.next_rendezvous()
        for thread in self.threads:
            thread.start()

    def poll(self, handler):
        while not self.ends.wait(0.1):
            handler.num_nodes_waiting()

    def wait(self, handler):
        with pytest.raises(RendezvousError):
            handler.next_rendezvous()

    def end(self):
        self.ends.set()
        for handler in self.waiting:
            handler.set_closed()
        for thread in self.threads:
            thread.join(10)
        for handler in self.running:
            handler.shutdown()


@pytest.mark.measures
def test_an_etcd_that_comes_and_goes(own_server, run_id):
    """
    Whoever waits or runs says what is wrong, that it is well again, and how far the next
    round is; but no line comes twice in a beat, whatever its numbers.
    """
    with Lines() as lines:
        crew = Crew(own_server.get_endpoint(), run_id)
        time.sleep(1.5 * BEAT)
        for _ in range(2):
            own_server.pause()
            time.sleep(3 * BEAT)
            own_server.resume()
            time.sleep(0.7 * BEAT)
        own_server.kill()
        time.sleep(1.5 * BEAT)
        own_server.restart()
        time.sleep(1.5 * BEAT)
        crew.end()

    # A line is written a moment after it was decided to say it.
    assert lines.repeated(0.8 * BEAT) == []
    for name in ("etcd-v3", "etcd-live"):
        running, waiting = f"'{run_id}-{name}-poll'", f"'{run_id}-{name}-wait'"
        for words in (
            f"etcd is away; the running round of {running} goes on",
            f"etcd answers {running} again.",
            f"Waiting to join {waiting}, ",
        ):
            assert [one for one in lines.texts if words in one], (words, lines.texts)
        said = [one for one in lines.said if f"Waiting to join {waiting}" in one[1]]
        assert any("etcd is away: " in text for _, text in said)
        assert any("1 joined" in text for _, text in said)
        times = [when for when, _ in said]
        assert min(b - a for a, b in itertools.pairwise(times)) > 0.8 * BEAT


def test_news_of_a_round_that_comes_and_goes(own_server, run_id, monkeypatch):
    """
    Of nodes that are lost one after the other, and rounds that last no longer than that,
    each kind of line comes once in a beat; the others are counted.
    """
    # All of it has to fit into one.
    beat = 5.0
    monkeypatch.setattr("etcd_rendezvous._log.BEAT_SECONDS", beat)
    with Nodes(own_server.get_endpoint(), run_id) as nodes:
        one, other = nodes.several(2)
        # What the other says is another node's.
        other._node.log.info = other._node.log.warning = lambda *_: None
        with Lines() as lines:
            for _ in range(6):
                nodes.meet(one, other)
                other._node.withdraw(1.0)
                wait_for_waiting(one)
            time.sleep(beat)
            nodes.meet(one, other)

    assert lines.repeated(0.8 * beat) == []
    assert "has lost 1 of its 2 nodes (127.0.0.2)" in " ".join(lines.texts)
    assert "(5 more like this since the last line)" in lines.texts[-1]
