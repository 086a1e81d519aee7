# SPDX-License-Identifier: BSD-3-Clause
"""
A run whose agents have the handler of `etcd-live`: from its keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from .._live.mirror import Mirror
from .._live.records import Keys, Node, Round, decode_names, decode_node
from .._live.rounds import Snapshot, progress, rank_key
from .._live.view import View, view_of
from .._v3.wire import Entry
from .report import Member, Phase, Run

__all__ = ["run_of_live"]


def run_of_live(
    run: Run,
    entries: Iterable[Entry],
    revision: int,
    lease_ages: Mapping[int, float],
) -> Run:
    """
    Return a run with what its keys say.

    Args:
        run: What is known of it besides; its ``key`` is where the keys are below.
        entries: All keys below ``…/live/``, read at once.
        revision: The revision that they were read at.
        lease_ages: The seconds since leases were renewed, by their ids. One that is
            not there has ended.
    """
    keys = Keys(run.key.encode())
    entries = list(entries)
    mirror = Mirror(keys.common)
    mirror.load((one for one in entries if one.key.startswith(keys.common)), revision)
    view = view_of(mirror, keys)
    corrupt, nodes, names = view.corrupt, {}, []
    for entry in entries:
        if entry.key == keys.names:
            names = decode_names(entry.value)
        elif entry.key.startswith(keys.nodes):
            try:
                node = decode_node(entry)
            except ValueError:
                corrupt = entry.key.decode(errors="backslashreplace")
            else:
                nodes[node.id] = node
    run = replace(
        run,
        handler="live",
        revision=max((one.mod_revision for one in entries), default=0),
    )
    if corrupt:
        return replace(
            run,
            phase=Phase.UNREADABLE,
            problem=f"the key '{corrupt}' holds what etcd-live has not written",
        )
    members = view.round.members if view.round else ()
    addresses = dict(zip(members, names, strict=False))
    snapshot = Snapshot(nodes, view.round, view.closed)

    def member(node: Node, rank: int | None = None) -> Member:
        return Member(
            id=node.id,
            address=node.address,
            pid=node.pid,
            rank=rank,
            heartbeat_age=lease_ages.get(node.lease),
        )

    def participant(node: str, rank: int) -> Member:
        if node in nodes:
            return member(nodes[node], rank)
        address = addresses.get(node, "?")
        return Member(id=node, address=address, pid=0, rank=rank, alive=False)

    waiting = tuple(map(member, sorted(snapshot.waiting, key=rank_key)))
    phase = _phase(snapshot, view)
    if phase is Phase.FORMING:
        far = progress(snapshot, addresses, None)
        told = view.progress
        return replace(
            run,
            phase=phase,
            round=snapshot.number + 1,
            participants=waiting,
            missing=far.missing,
            min_nodes=(told and told.least) or None,
            max_nodes=(told and told.most) or None,
            last_call=told.seconds if told else None,
        )
    ranked = tuple(participant(node, rank) for rank, node in enumerate(members))
    spare = phase is Phase.COMPLETE and not _wants(view.round)
    return replace(
        run,
        phase=phase,
        round=view.round.number if view.round else None,
        participants=ranked,
        waiting=() if spare else waiting,
        spares=waiting if spare else (),
    )


def _phase(snapshot: Snapshot, view: View) -> Phase:
    if view.closed:
        return Phase.CLOSED
    if not snapshot.nodes:
        return Phase.ABANDONED
    if view.round is None or not snapshot.inside:
        return Phase.FORMING
    return Phase.BROKEN if view.round.broken else Phase.COMPLETE


def _wants(running: Round | None) -> bool:
    """
    Say whether a round that runs has room for those who wait.
    """
    return running is not None and bool(running.waiting)
