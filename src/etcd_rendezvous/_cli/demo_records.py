# SPDX-License-Identifier: BSD-3-Clause
"""
Read what the demo's workers wrote down, and judge it.

Everything here is a pure function of the records.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any

LEAST_ACCURACY = 0.95

_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class Record:
    """
    One line that a worker wrote.

    Attributes:
        kind: `begun` (the process started), `joined` (it is part of a world and has
            loaded a checkpoint), `step`, `checkpoint` or `ended` (training is done).
        time: When, in seconds since the epoch.
        node: The name of its node.
        pid: Its process id.
        world: The number that rank 0 of its process group gave to all of them.
        world_size: How many workers the world has.
        rank: Its rank in the world.
        group_rank: The rank of its agent.
        restart: torchrun's count of restarts after failures.
        master_addr: The address where the world's workers meet.
        master_port: The port there.
        newest: The step of the newest checkpoint it found on disk, 0 for none.
        resumed_from: The step stored in the checkpoint it loaded, 0 for none.
        step: The step that it finished.
        accuracy: The share of the held-out digits that the model tells right, 0 to 1.
    """

    kind: str
    time: float
    node: str
    pid: int
    world: str = ""
    world_size: int = 0
    rank: int = -1
    group_rank: int = -1
    restart: int = 0
    master_addr: str = ""
    master_port: int = 0
    newest: int = 0
    resumed_from: int = 0
    step: int = 0
    accuracy: float = 0.0


_TYPES = {
    item.name: {"str": (str,), "int": (int,), "float": (int, float)}[str(item.type)]
    for item in fields(Record)
}


def parse_record(line: str) -> Record:
    """
    Read one line of a worker's records.

    Raises:
        ValueError: The line is not such a record.
    """
    try:
        values: Any = json.loads(line)
        record = Record(**values)
    except (TypeError, ValueError):
        raise ValueError(f"This is not a record of a worker: {line!r}") from None
    wrong = [
        name
        for name, types in _TYPES.items()
        if not isinstance(getattr(record, name), types)
    ]
    if wrong:
        raise ValueError(f"The {wrong[0]} in a worker's record is wrong: {line!r}")
    return record


@dataclass
class World:
    """
    A process group that trained: all who shared one `world` number.

    Attributes:
        members: One `joined` record for each worker, by rank.
        first_steps: The first step of each rank.
        first_time: When the first step was finished, in seconds since the epoch.
        last_step: The last step that any worker finished.
        last_time: When that was, in seconds since the epoch.
        checkpoints: The checkpoints made here: step and accuracy.
        ended: The accuracy that each rank found at the end of training.
    """

    members: list[Record] = field(default_factory=list)
    first_steps: dict[int, int] = field(default_factory=dict)
    first_time: float = 0.0
    last_step: int = 0
    last_time: float = 0.0
    checkpoints: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """
        How many workers the world was said to have.
        """
        return self.members[0].world_size

    @property
    def nodes(self) -> list[str]:
        """
        The names of the nodes, by rank.
        """
        return [member.node for member in self.members]

    @property
    def leader(self) -> str:
        """
        The node of rank 0.
        """
        return self.nodes[0]

    @property
    def resumed_from(self) -> int:
        """
        The step of the checkpoint that rank 0 loaded, 0 for none.
        """
        return self.members[0].resumed_from


def find_worlds(records: Iterable[Record]) -> list[World]:
    """
    Gather records into the worlds that trained at least one step, oldest first.
    """
    worlds: dict[str, World] = {}
    for record in sorted(records, key=lambda record: record.time):
        if not record.world:
            continue
        world = worlds.setdefault(record.world, World())
        if record.kind == "joined":
            world.members.append(record)
        elif record.kind == "step":
            if not world.first_steps:
                world.first_time = record.time
            world.first_steps.setdefault(record.rank, record.step)
            world.last_step = max(world.last_step, record.step)
            world.last_time = record.time
        elif record.kind == "checkpoint":
            world.checkpoints[record.step] = record.accuracy
        elif record.kind == "ended":
            world.ended[record.rank] = record.accuracy
    found = [world for world in worlds.values() if world.members and world.first_steps]
    for world in found:
        world.members.sort(key=lambda member: member.rank)
    return sorted(found, key=lambda world: min(m.time for m in world.members))


def judge(records: Iterable[Record], nodes: int, killed: str) -> list[str]:
    """
    Say what the records fail to show, one plain sentence for each thing.

    Worlds smaller than `nodes` before the first full one are the nodes still coming
    in, and a world that formed twice with the same size counts once.

    Args:
        records: What the workers wrote.
        nodes: How many nodes the job has when it is complete.
        killed: The name of the node that was killed, "" if none was.

    Returns:
        The sentences; none if all is as it should be.
    """
    worlds = find_worlds(records)
    problems = _judge_sizes(worlds, nodes)
    problems += _judge_places(worlds, nodes, killed)
    for world in worlds:
        problems += _judge_members(world)
    for place in range(1, len(worlds)):
        problems += _judge_restart(worlds[:place], worlds[place], nodes)
    problems += _judge_end(worlds)
    return problems


def find_phases(worlds: Sequence[World], nodes: int) -> list[list[World]]:
    """
    Group consecutive worlds of the same size, from the first full one on.
    """
    start = next(
        (place for place, world in enumerate(worlds) if world.size >= nodes),
        len(worlds),
    )
    same_size = groupby(worlds[start:], key=lambda world: world.size)
    return [list(group) for _, group in same_size]


def _judge_sizes(worlds: Sequence[World], nodes: int) -> list[str]:
    found = [phase[0].size for phase in find_phases(worlds, nodes)]
    expected = [nodes, nodes - 1, nodes]
    if found == expected:
        return []
    if found == expected[: len(found)]:
        place = len(found)
        return [f"The {_ORDINALS[place]} world of {expected[place]} never formed."]
    sizes = ", ".join(str(size) for size in found)
    wanted = ", ".join(str(size) for size in expected)
    return [f"The worlds had the sizes {sizes} instead of {wanted}."]


def _judge_places(worlds: Sequence[World], nodes: int, killed: str) -> list[str]:
    if not killed:
        return ["No node was killed."]
    phases = find_phases(worlds, nodes)
    problems = []
    if phases and phases[0][-1].leader != killed:
        leader = phases[0][-1].leader
        problems.append(f"The killed node was {killed}, but rank 0 was on {leader}.")
    later = [world for phase in phases[1:] for world in phase]
    if any(killed in world.nodes for world in later):
        problems.append(f"The killed node {killed} took part in a later world.")
    return problems


def _judge_members(world: World) -> list[str]:
    name = f"the world of {world.size} that began with step {_first_step(world)}"
    problems = []
    ranks = [member.rank for member in world.members]
    if ranks != list(range(world.size)):
        listed = ", ".join(str(rank) for rank in ranks) or "nobody"
        problems.append(f"In {name} the ranks were {listed}.")
    if len(set(world.nodes)) != len(world.nodes):
        problems.append(f"In {name} a node had two places.")
    if len({member.world_size for member in world.members}) > 1:
        problems.append(f"In {name} the workers disagree on its size.")
    masters = {f"{item.master_addr}:{item.master_port}" for item in world.members}
    if len(masters) > 1:
        listed = " and ".join(sorted(masters))
        problems.append(
            f"In {name} the workers disagree on MASTER_ADDR and MASTER_PORT: {listed}."
        )
    if len({member.resumed_from for member in world.members}) > 1:
        problems.append(f"In {name} the workers loaded different checkpoints.")
    return problems


def _judge_restart(earlier: Sequence[World], world: World, nodes: int) -> list[str]:
    made = [step for other in earlier for step in other.checkpoints]
    reached = max(other.last_step for other in earlier)
    newest = max([*made, *(member.newest for member in world.members)])
    if newest == 0 and any(other.size >= nodes for other in earlier):
        return [f"No checkpoint was on disk when a world of {world.size} formed."]
    if newest > reached:
        problem = (
            f"A checkpoint of step {newest} was on disk, but no worker had gone "
            f"further than step {reached}."
        )
        return [problem]
    first = set(world.first_steps.values())
    if first != {newest + 1}:
        listed = " and ".join(str(step) for step in sorted(first))
        problem = (
            f"A world of {world.size} began with step {listed}, while the newest "
            f"checkpoint on disk was that of step {newest}."
        )
        return [problem]
    return []


def _judge_end(worlds: Sequence[World]) -> list[str]:
    if not worlds:
        return []
    last = worlds[-1]
    if sorted(last.ended) != list(range(last.size)):
        return [
            f"Training did not come to its end: it stopped at step {last.last_step}."
        ]
    worst = min(last.ended.values())
    if worst < LEAST_ACCURACY:
        problem = (
            f"The accuracy on the held-out digits was {worst:.4f}, "
            f"less than {LEAST_ACCURACY}."
        )
        return [problem]
    return []


def _first_step(world: World) -> int:
    return min(world.first_steps.values())
