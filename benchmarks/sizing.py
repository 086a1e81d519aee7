# SPDX-License-Identifier: BSD-3-Clause
"""
How large an etcd must be, by the number of nodes: the tables of `docs/operating.md`.

    python -m benchmarks.sizing             # print the tables
    python -m benchmarks.sizing --measure   # what the formulas behind them rest upon

The sizes are those of torch's own state and of the records of `etcd-live`, for nodes
with long names. What they make etcd write, send and hold is a formula of them;
`tests/etcd/test_sizing.py` holds the formulas against a real etcd.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import urllib3

from etcd_rendezvous import EtcdClient, EtcdServer
from etcd_rendezvous._live.records import (
    Keys,
    Node,
    Round,
    encode_names,
    encode_node,
    encode_round,
    encode_table,
)
from etcd_rendezvous._live.settings import LiveSettings

SIZES = (8, 64, 256, 1_000, 10_000)
# As pods of Kubernetes are called: 57 characters.
NAME = "job-worker-{:05}.job-headless.namespace.svc.cluster.local"
RUN = b"/torch/elastic/rendezvous/job-0123456789abcdef"

MIB, GIB = 2**20, 2**30

# torch's defaults: a heartbeat every 5 s; the agent's loop asks for the state once a
# second.
BEAT_SECONDS = 5
POLLS_A_MINUTE = 60
# A heartbeat is one swap; in a crowd each is lost once before it is won.
SWAPS_A_BEAT = 2

# What etcd's file grows by for a state, besides a tenth of it: what stands beside the
# value, the page that is not full, and the ticket of a swap that was lost.
BESIDE_A_STATE = 2_048
# The same for a key of `etcd-live`, and for a round.
BESIDE_A_KEY, BESIDE_A_ROUND = 160, 3_072

# etcd asks for 2 GiB unless told otherwise, and warns above 8 GiB.
QUOTAS = (2 * GIB, 4 * GIB, 8 * GIB)
# An hour's compaction, run hourly, leaves up to two hours of history; and a file is
# never quite full.
HISTORY_KEPT, SLACK = 2, 1.25
# Of a disk that does much else, and of a network: as much as one should ask for.
MOST_WRITTEN_A_SECOND = 20e6

# What a member needs for itself; for a node that is connected; for what it keeps of
# the log of changes in memory, which has 5,000 more than --snapshot-count, twice, since
# garbage is collected when there is as much of it.
BASE_MEMORY = 40e6
MEMORY_A_NODE = 250e3
SNAPSHOT_COUNT, KEPT_BESIDES = 5_000, 5_000
GARBAGE = 2

CONNECTIONS_A_NODE = 2


@dataclass(frozen=True)
class Swapped:
    """
    What a job of `etcd-v3` or `etcd-auto` needs while it runs.

    Attributes:
        nodes: The number of its nodes.
        state: The bytes of its state, as they stand in etcd.
    """

    nodes: int
    state: int

    @property
    def written_a_second(self) -> float:
        """
        The bytes that heartbeats add to etcd's file each second.
        """
        return self.nodes / BEAT_SECONDS * (1.1 * self.state + BESIDE_A_STATE)

    @property
    def requests_a_second(self) -> float:
        """
        The requests of all nodes.
        """
        beats = 60 / BEAT_SECONDS
        return self.nodes * (POLLS_A_MINUTE + SWAPS_A_BEAT * beats) / 60

    @property
    def sent_a_second(self) -> float:
        """
        The bytes that etcd sends: each node reads the state again once a second.

        On the wire it is base64 once more.
        """
        return self.nodes * self.state * 4 / 3

    @property
    def memory(self) -> float:
        """
        The bytes of memory that a member needs.
        """
        log = (SNAPSHOT_COUNT + KEPT_BESIDES) * self.state * GARBAGE
        return BASE_MEMORY + MEMORY_A_NODE * self.nodes + log

    @property
    def is_sensible(self) -> bool:
        """
        Whether etcd can bear it.
        """
        return self.written_a_second <= MOST_WRITTEN_A_SECOND

    def quota(self, minutes: float) -> int | None:
        """
        Return the least quota for a history of so many minutes; None if none is enough.
        """
        peak = self.written_a_second * minutes * 60 * HISTORY_KEPT * SLACK
        return next((quota for quota in QUOTAS if peak <= quota), None)


@dataclass(frozen=True)
class Live:
    """
    What a job of `etcd-live` needs.

    Attributes:
        nodes: The number of its nodes.
        keys: The bytes of all its keys and their values.
    """

    nodes: int
    keys: int

    @property
    def written_a_round(self) -> float:
        """
        The bytes that a round in which all join adds to etcd's file.
        """
        return 1.1 * self.keys + BESIDE_A_KEY * self.nodes + BESIDE_A_ROUND

    @property
    def rounds_in_the_quota(self) -> int:
        """
        How many rounds fit into the smallest quota without any compaction.
        """
        return int(QUOTAS[0] / SLACK / self.written_a_round)

    def requests_a_second(self, keep_alive_interval: float) -> float:
        """
        Return the requests of all nodes while a round runs.

        Each renews its lease, and looks twice a minute whether its watch is whole.
        """
        return self.nodes * (60 / keep_alive_interval + 2) / 60

    @property
    def connections(self) -> int:
        """
        The connections of all nodes, of which every other one is a watch.
        """
        return CONNECTIONS_A_NODE * self.nodes

    @property
    def memory(self) -> float:
        """
        The bytes of memory that all members need together.
        """
        return BASE_MEMORY + MEMORY_A_NODE * self.nodes


# -- the sizes of real states and records ----------------------------------------------


def torchs_state(nodes: int, beat: int = 0) -> bytes:
    """
    Return torch's state of a round that runs, pickled.

    Args:
        nodes: How many nodes it has.
        beat: Another number is another heartbeat.
    """
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
        _NodeDesc,
        _RendezvousState,
    )

    state = _RendezvousState()
    state.complete = True
    state.deadline = now = datetime.now(timezone.utc)
    for number in range(nodes):
        node = _NodeDesc(NAME.format(number), 100_000 + number, 0)
        state.participants[node] = number
        state.last_heartbeats[node] = now + timedelta(milliseconds=number + beat)
    return pickle.dumps(state)


def swapped(nodes: int) -> Swapped:
    """
    Return what so many nodes need with torch's handler.
    """
    return Swapped(nodes, (len(torchs_state(nodes)) + 2) // 3 * 4)


def live_records(nodes: int, left: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """
    Yield the keys of a run of `etcd-live` and their values.

    Args:
        nodes: How many nodes it has.
        left: The round that all have left.
    """
    keys = Keys(RUN)
    ids = tuple(f"node{number:04x}" for number in range(nodes))
    for number, one in enumerate(ids):
        node = Node(one, NAME.format(number), 40_000, 100_000, left=left)
        yield keys.node(f"{number:08x}", one), encode_node(node)
    entry = Round(left + 1, ids, NAME.format(0), 40_000)
    yield keys.closer, ids[0].encode()
    yield keys.round, encode_round(entry)
    yield keys.table, encode_table(entry)
    yield keys.names, encode_names([NAME.format(number) for number in range(nodes)])


def live(nodes: int) -> Live:
    """
    Return what so many nodes need with `etcd-live`.
    """
    return Live(nodes, sum(len(key) + len(value) for key, value in live_records(nodes)))


# -- the tables ------------------------------------------------------------------------


def amount(number: float) -> str:
    """
    Say a number of bytes, with two digits.
    """
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= size:
            return f"{rounded(number / size)} {unit}"
    return f"{number:.0f} B"


def rounded(number: float) -> str:
    """
    Say a number with two digits, and commas.
    """
    if number < 10:
        return f"{number:.1f}"
    digits = len(str(int(number))) - 2
    return f"{round(number, -digits):,.0f}"


def quota_in_words(quota: int | None) -> str:
    """
    Say a quota.
    """
    return "none is enough" if quota is None else f"{quota // GIB} GiB"


def swapped_row(one: Swapped) -> list[str]:
    """
    Return the cells of a job of torch's handler.
    """
    return [
        f"{one.nodes:,}",
        amount(one.state),
        amount(one.written_a_second * 3_600),
        quota_in_words(one.quota(60)),
        quota_in_words(one.quota(5)),
        rounded(one.requests_a_second),
        amount(one.sent_a_second),
        amount(one.memory),
        "yes" if one.is_sensible else "no: `etcd-live`",
    ]


def live_row(one: Live) -> list[str]:
    """
    Return the cells of a job of `etcd-live`.
    """
    return [
        f"{one.nodes:,}",
        amount(one.keys),
        amount(one.written_a_round),
        f"{rounded(one.rounds_in_the_quota)}",
        rounded(one.requests_a_second(LiveSettings().keep_alive_interval)),
        rounded(one.requests_a_second(BEAT_SECONDS)),
        f"{one.connections:,}",
        amount(one.memory),
    ]


SWAPPED_HEAD = (
    "nodes",
    "the state",
    "written an hour",
    "quota, history of an hour",
    "quota, history of 5 minutes",
    "requests a second",
    "sent a second",
    "memory of a member",
    "sensible",
)
LIVE_HEAD = (
    "nodes",
    "all its keys",
    "written for a round",
    "rounds until 2 GiB are full",
    "requests a second",
    "… with `keep_alive_interval=5`",
    "connections",
    "memory of all members",
)


def tables(sizes: Sequence[int] = SIZES) -> Iterator[list[list[str]]]:
    """
    Yield the two tables, each as rows of cells, the head first.
    """
    yield [list(SWAPPED_HEAD), *(swapped_row(swapped(nodes)) for nodes in sizes)]
    yield [list(LIVE_HEAD), *(live_row(live(nodes)) for nodes in sizes)]


def markdown(table: Sequence[Sequence[str]]) -> str:
    """
    Return a table as it stands in the page.
    """
    head, *rows = table
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace(
        "| --- |" + " --- |" * (len(head) - 1), "|" + "---|" * len(head)
    )


# -- the same of a real etcd -----------------------------------------------------------


def bytes_in_use(server: EtcdServer) -> int:
    """
    Return how much of etcd's file is in use.
    """
    # It is written down ten times a second.
    time.sleep(0.25)
    reply = urllib3.request(
        "POST",
        f"http://{server.get_endpoint()}/v3/maintenance/status",
        json={},
        timeout=10,
    )
    return int(reply.json()["dbSizeInUse"])


def growth_of_a_beat(server: EtcdServer, nodes: int, beats: int = 100) -> float:
    """
    Measure what a heartbeat adds to etcd's file, where every other one is lost once.

    Args:
        server: An etcd that nobody else uses, and that does not compact.
        nodes: How many nodes the state holds.
        beats: How many heartbeats to write.
    """
    from etcd_rendezvous import EtcdRendezvousBackend

    states = [torchs_state(nodes, beat) for beat in range(2)]
    with (
        EtcdClient(server.get_endpoint()) as first,
        EtcdClient(server.get_endpoint()) as second,
    ):
        quick, slow = (
            EtcdRendezvousBackend(client, f"sizing-{nodes}")
            for client in (first, second)
        )
        token = written(quick, states[0], None)
        before = bytes_in_use(server)
        for _ in range(beats // 2):
            written(quick, states[1], token)
            _, current, won = slow.set_state(states[0], token)
            if won:
                raise RuntimeError("a token counts twice")
            token = written(slow, states[0], current)
        return (bytes_in_use(server) - before) / beats


def written(backend: Any, state: bytes, token: Any) -> Any:
    """
    Write a state, and return its token.
    """
    _, token, won = backend.set_state(state, token)
    if not won:
        raise RuntimeError("somebody else uses this etcd")
    return token


def growth_of_a_round(server: EtcdServer, nodes: int, rounds: int = 5) -> float:
    """
    Measure what a round of `etcd-live` adds to etcd's file.

    Args:
        server: An etcd that nobody else uses, and that does not compact.
        nodes: How many nodes join.
        rounds: How many rounds to write.
    """
    with EtcdClient(server.get_endpoint()) as client:
        lease, _ = client.grant_new(600)
        before = bytes_in_use(server)
        for number in range(rounds):
            for key, value in live_records(nodes, number):
                client.put(key, value, lease=lease)
        return (bytes_in_use(server) - before) / rounds


def memory_of_nodes(server: EtcdServer, nodes: int) -> tuple[float, int]:
    """
    Measure what a member needs for nodes of `etcd-live` that are in a round.

    Returns:
        The bytes of memory, and the connections.
    """
    from .handlers import LIVE, crowd, join, leave, place

    process = Path(f"/proc/{server.pid}")

    def used() -> tuple[int, int]:
        line = next(
            line
            for line in (process / "status").read_text().splitlines()
            if line.startswith("VmRSS:")
        )
        return int(line.split()[1]) * 1_024, len(list((process / "fd").iterdir()))

    memory, files = used()
    with place(LIVE, server) as where, crowd(where, nodes, join_timeout=60) as members:
        if not members.do(join, limit=60).all_done:
            raise RuntimeError("they have not met")
        time.sleep(5)
        more_memory, more_files = used()
        members.do(leave, limit=60)
    return (more_memory - memory) / nodes, more_files - files


def measure(binary: str | None) -> None:
    """
    Print what the formulas say beside what a real etcd does. Linux only.
    """
    unlimited = [f"--quota-backend-bytes={8 * GIB}", "--auto-compaction-retention=0"]
    with EtcdServer(binary=binary, extra_args=unlimited) as server:
        print(f"etcd {server.version}: what its file grows by; formula, measured")
        for nodes in (8, 64, 256, 1_000):
            one = swapped(nodes)
            print(
                f"{nodes:>6} nodes, a heartbeat: "
                f"{amount(one.written_a_second * BEAT_SECONDS / nodes)}, "
                f"{amount(growth_of_a_beat(server, nodes))}; a round of etcd-live: "
                f"{amount(live(nodes).written_a_round)}, "
                f"{amount(growth_of_a_round(server, nodes))}"
            )
    for nodes in (64, 256, 1_000):
        with EtcdServer(binary=binary) as server:
            memory, connections = memory_of_nodes(server, nodes)
        print(
            f"{nodes:>6} nodes of etcd-live: memory for each {amount(MEMORY_A_NODE)}, "
            f"{amount(memory)}; connections {CONNECTIONS_A_NODE * nodes}, {connections}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="sizing.py", description="How large an etcd must be, by number of nodes."
    )
    parser.add_argument("--nodes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--measure", action="store_true", help="hold the formulas against an etcd"
    )
    parser.add_argument("--binary", help="the etcd to measure with")
    options = parser.parse_args()
    for table in tables(options.nodes):
        print(markdown(table), end="\n\n")
    if options.measure:
        measure(options.binary)


if __name__ == "__main__":
    main()
