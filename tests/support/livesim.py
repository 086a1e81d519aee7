# SPDX-License-Identifier: BSD-3-Clause

"""
`etcd-live` in small: random steps of a few processes over the model of etcd.

The transactions, the mirrors and the decisions are the library's own. What is
modelled is what its threads do with them, each thread as a generator that yields what
it waits for. After some steps with faults come steps without, until nothing moves any
more; what must hold is asked of the whole history (`History`) and of the rest.

    Run(seed).play()  # raises Violation
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from etcd_rendezvous._live import mirror as mirrors
from etcd_rendezvous._live import records, requests, rounds, view
from etcd_rendezvous._live.records import Keys, Node, Progress, Round
from etcd_rendezvous._v3 import wire

from .etcdmodel import Commit, EtcdModel, ModelWatch, RefusedError

KEYS = Keys(b"/run")
RUN_LEASE = 1
TTL = 10.0
LIMITS = [(3, 3), (2, 3), (3, 4), (2, 4), (2, 2), (1, 2), (4, 4)]
_MOST_STEPS = 6000
_MOST_CALMS = 20

#: How often each fault is tried, of 1,000 steps.
FAULTS = {
    "lose": 40,
    "late": 25,
    "cut": 15,
    "tick": 40,
    "crash": 8,
    "start": 40,
    "pause": 6,
    "expire": 10,
    "lapse": 5,
    "away": 3,
    "restart": 12,
    "close": 2,
    "due": 40,
    "reload": 10,
    "resign": 2,
}

Json = dict[str, Any]
Thread = Generator[Any, Any, Any]


class Violation(AssertionError):
    """
    What must not be.
    """


class UnknownOutcome(Exception):
    """
    What a client has of a request whose reply does not come.
    """


@dataclass(eq=False)
class Call:
    """
    A request on its way, or its reply.

    Attributes:
        send: What happens when it arrives.
        author: The node that sent it.
        awaited: Whether somebody still waits for its reply.
        done: Whether it has arrived.
        reply: What it gave.
    """

    send: Callable[[], Any]
    author: str
    awaited: bool = True
    done: bool = False
    reply: Any = None


@dataclass(eq=False)
class Running:
    """
    A thread, and what it waits for: a call, a condition, or nothing.
    """

    thread: Thread
    waits: Any = None


@dataclass(eq=False)
class Watching:
    """
    A watch, and who is told.
    """

    watch: ModelWatch
    process: Process
    tell: Callable[[list[wire.Event]], None]
    cut: bool = False


# -- what must hold -----------------------------------------------------------------


def must(holds: object, what: str) -> None:
    if not holds:
        raise Violation(what)


class History:
    """
    All that has ever been in etcd, and who has accepted what.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rounds: list[Round] = []
        self.broken = False
        self.accepted: set[tuple[str, int]] = set()
        self.ranks: dict[tuple[int, int], str] = {}
        self.left: dict[str, int] = {}

    def commit(self, commit: Commit) -> None:
        self.run.note_commit(commit)
        changed = {event.entry.key: event for event in commit.events}
        nodes = self._nodes(commit.before)
        for key, event in changed.items():
            if key.startswith(KEYS.nodes) and not event.deleted:
                self._node(records.decode_node(event.entry))
        if (event := changed.get(KEYS.closed)) and event.deleted:
            must(not nodes, "a closed run with live nodes was opened again")
        if (event := changed.get(KEYS.closer)) and not event.deleted:
            must(
                KEYS.closer not in commit.before, "an office was taken from its holder"
            )
        if event := changed.get(KEYS.round):
            must(not event.deleted, "the round was deleted")
            self._round(commit, event.entry, changed.get(KEYS.table), nodes)
        else:
            must(KEYS.table not in changed, "a table without its round")
        if (event := changed.get(KEYS.resumed)) and not event.deleted:
            node = event.entry.value.decode()
            must(not self.broken, "a node came back into a broken round")
            must(
                node in self.rounds[-1].members,
                "a node came back into a round that is over",
            )

    def _nodes(self, entries: dict[bytes, wire.Entry]) -> dict[str, Node]:
        found = [
            records.decode_node(entry)
            for key, entry in entries.items()
            if key.startswith(KEYS.nodes)
        ]
        return {node.id: node for node in found}

    def _node(self, node: Node) -> None:
        before = self.left.get(node.id, records.NONE_LEFT)
        must(node.left >= before, f"what {node.id} has left fell to {node.left}")
        self.left[node.id] = node.left

    def _round(
        self,
        commit: Commit,
        entry: wire.Entry,
        table: wire.Event | None,
        nodes: dict[str, Node],
    ) -> None:
        office = commit.before.get(KEYS.closer)
        holder = office.value.decode() if office else None
        must(self.run.author == holder, f"{self.run.author} is not the closer")
        if table is None:
            # Marked.
            text = records.encode_table(self.rounds[-1]).decode()
            marked = records.decode_round(entry, text.encode())
            must(marked is not None, "a mark changed the number")
            last = self.rounds[-1]
            same = replace(marked, broken=False, waiting=0, revision=0)
            must(same == last, "a mark changed the round")
            must(marked.broken or not self.broken, "a broken round was mended")
            if marked.broken and not self.broken:
                must(
                    any(member not in nodes for member in last.members),
                    "a round broke with all of its members there",
                )
            self.broken = marked.broken
            return
        new = records.decode_round(entry, table.entry.value)
        must(new is not None, "the table of another round")
        last = self.rounds[-1] if self.rounds else None
        must(new.number == len(self.rounds), f"round {new.number} completed again")
        must(KEYS.closed not in commit.before, "a round of a closed run completed")
        least, most = self.run.limits
        must(least <= len(new.members) <= most, "too few or too many members")
        must(len(set(new.members)) == len(new.members), "a member twice")
        must(not new.broken and not new.waiting, "a new round is not new")
        for member in last.members if last else ():
            must(
                member not in nodes or nodes[member].left >= last.number,
                f"round {new.number} completed while {member} was in the last one",
            )
        self.rounds.append(replace(new, revision=0))
        self.broken = False

    def accept(self, process: Process, accepted: Round) -> None:
        node, number = process.node, accepted.number
        must(number < len(self.rounds), "a round was accepted that is none")
        plain = replace(accepted, broken=False, waiting=0, revision=0)
        must(plain == self.rounds[number], "a round was accepted that is another")
        must((node.id, number) not in self.accepted, "a round was accepted twice")
        must(number > process.last, "an older round was accepted")
        must(
            node.lease in self.run.etcd.leases, "a round was accepted by one who is out"
        )
        self.accepted.add((node.id, number))
        process.last = number
        rank = accepted.members.index(node.id)
        must((number, rank) not in self.ranks, "a rank was given twice")
        self.ranks[number, rank] = node.id

    def rest(self) -> None:
        """
        Ask what must hold once nothing moves any more.
        """
        run = self.run
        live = [one for one in run.processes.values() if one.alive]
        nodes = self._nodes(run.etcd.entries)
        expected = sorted(one.node.id if one.node else "none" for one in live)
        must(sorted(nodes) == expected, f"keys of {sorted(nodes)}, live are {expected}")
        for one in live:
            must(not one.must_rejoin(), f"{one} was told, and does nothing")
            known = {entry.key: entry for entry in one.mirror}
            there = {
                key: entry
                for key, entry in run.etcd.entries.items()
                if key.startswith(KEYS.common)
            }
            must(
                {key: entry.value for key, entry in known.items()}
                == {key: entry.value for key, entry in there.items()},
                f"{one} does not know what there is",
            )
        inside = {one.node.id: one for one in live if one.inside is not None}
        waiting = [one for one in live if one.inside is None]
        closer = run.etcd.entries.get(KEYS.closer)
        if live:
            must(closer and closer.value.decode() in nodes, "nobody is the closer")
        else:
            must(closer is None, "the closer is dead")
        if KEYS.closed in run.etcd.entries:
            must(not waiting, "a node waits for a closed run")
            return
        least, most = run.limits
        if len(live) < least:
            must(not inside, "a round of too few is not told so")
            return
        must(self.rounds, "no round, though there are enough")
        last = self.rounds[-1]
        must(not self.broken, "the round stays broken")
        must(
            set(last.members) == set(inside),
            f"{sorted(inside)} are inside, of the members {sorted(last.members)}",
        )
        for one in inside.values():
            must(one.inside == last.number, f"{one} is in round {one.inside}")
        must(
            len(inside) == min(len(live), most),
            f"{len(inside)} of {len(live)} are in, of {most} at most",
        )


# -- a process ----------------------------------------------------------------------


class Process:
    """
    A process with one handler, and the agent that uses it.

    Args:
        run: The run that it takes part in.
        slot: Which of the hosts it is on.
    """

    def __init__(self, run: Run, slot: int) -> None:
        self.run = run
        self.random = run.random
        self.slot = slot
        self.pid = run.next_number()
        self.place = f"host{slot}"
        self.alive = True
        self.paused = False
        self.mirror = mirrors.Mirror(KEYS.common)
        self.view = view.View()
        self.node: Node | None = None
        #: The round that its workers run in.
        self.inside: int | None = None
        self.last = records.NONE_LEFT
        self.resuming = False
        self.wish = ""
        self.due = False
        self.gap = False
        self.gap_end = 0.0
        self.watch: Watching | None = None
        self.dirty = True
        self.reload = False
        self.resigns = False
        self.nodes_watch: Watching | None = None
        self.threads = [
            Running(thread)
            for thread in (
                self.caller(),
                self.watcher(),
                self.keeper(),
                self.candidate(),
                self.closer(),
            )
        ]

    def __repr__(self) -> str:
        name = self.node.id if self.node else "none"
        return f"<{self.place}.{self.pid} {name}>"

    # -- calls

    def post(self, path: str, message: Json) -> Thread:
        return (yield from self.call(lambda: self.run.etcd.post(path, message)))

    def call(self, send: Callable[[], Any]) -> Thread:
        call = Call(send, self.node.id if self.node else "")
        self.run.calls.append(call)
        return (yield call)

    def txn(self, request: requests.Request, *, again: bool = True) -> Thread:
        """
        Send a transaction; if its outcome is unknown, the same again.
        """
        body = wire.txn(*request)
        while True:
            try:
                reply = yield from self.post(wire.TXN, body)
            except UnknownOutcome:
                if not again:
                    raise
            else:
                return wire.decode_txn(reply)

    def grant(self) -> Thread:
        """
        Take a lease that etcd names: a copy that arrives late makes another one, and
        does not bring an expired one back.
        """
        while True:
            try:
                reply = yield from self.post(wire.GRANT, {"TTL": "10"})
            except UnknownOutcome:
                continue
            return int(reply["ID"])

    def open_watch(
        self, prefix: bytes, tell: Callable[[list[wire.Event]], None]
    ) -> Thread:
        create = wire.watch_create(prefix, wire.prefix_end(prefix), watch_id=1)

        def send() -> Watching:
            watching = Watching(self.run.etcd.watch(create), self, tell)
            self.run.watchings.append(watching)
            return watching

        while True:
            try:
                return (yield from self.call(send))
            except UnknownOutcome:
                continue

    # -- what is known

    def tell(self, events: list[wire.Event]) -> None:
        if self.mirror.tell(events):
            self.look()

    def load_common(self, found: wire.RangeReply, revision: int) -> None:
        if self.mirror.load(found.entries, revision):
            self.look()

    def look(self) -> None:
        self.view = view.view_of(self.mirror, KEYS)
        self.dirty = True

    def tell_own(self, request: requests.Request, revision: int) -> None:
        """
        Take in what a transaction of its own has changed.
        """
        events = requests.told(request, revision)
        self.tell([one for one in events if one.entry.key.startswith(KEYS.common)])

    # -- the caller

    def caller(self) -> Thread:
        yield from self.first_watch()
        while (accepted := (yield from self.next_rendezvous())) is not None:
            self.run.history.accept(self, accepted)
            self.inside = accepted.number
            self.run.note(f"{self} accepts {accepted.number}")
            yield lambda: self.must_rejoin() or self.wish
            if self.wish == "close":
                yield from self.close()
                break
            self.wish = ""
        yield from self.withdraw()
        self.run.end(self)

    def first_watch(self) -> Thread:
        self.watch = yield from self.open_watch(KEYS.common, self.tell)

    def must_rejoin(self) -> bool:
        if self.inside is None:
            return False
        return self.node is None or bool(
            rounds.nodes_waiting(
                self.view.round,
                closed=self.view.closed,
                number=self.inside,
                restart=True,
            )
        )

    def next_rendezvous(self) -> Thread:
        if self.inside is not None:
            yield lambda: not self.resuming
            number, self.inside = self.inside, None
            if self.node is not None:
                yield from self.leave(number)
        while True:
            if self.node is None and not (yield from self.register()):
                return None
            if self.node is None:
                continue
            seen = self.view
            if seen.closed:
                return None
            where = self.standing()
            if where is rounds.Standing.MISSED:
                yield from self.leave(seen.round.number)
            elif where is rounds.Standing.IN:
                if (yield from self.check_lease()) and self.node is not None:
                    seen = self.view
                    if self.standing() is rounds.Standing.IN and not seen.closed:
                        return seen.round
            else:
                yield lambda seen=seen: self.view is not seen or self.node is None

    def standing(self) -> rounds.Standing:
        return rounds.standing(self.view.round, self.node.id, self.node.left)

    def check_lease(self) -> Thread:
        """
        Say whether its last good keepalive was sent lately enough, or send one.
        """
        lease = self.node.lease
        if self.random.random() < 0.5 and lease in self.run.etcd.leases:
            return True
        if not (yield from self.keep_alive()):
            return False
        return lease in self.run.etcd.leases

    def new_id(self) -> str:
        return f"id{self.run.next_number()}"

    def register(self) -> Thread:
        """
        Register; say whether there is a point in going on.
        """
        lease = yield from self.grant()
        node = Node(self.new_id(), self.place, self.pid, self.pid, lease=lease)
        for build in (requests.register, requests.reopen):
            try:
                reply = yield from self.txn(build(KEYS, self.place, node))
            except RefusedError:
                return True
            own, common = reply.ranges
            self.load_common(common, reply.revision)
            if self.take(node, own) or not self.view.closed:
                return True
        return False

    def take(self, node: Node, own: wire.RangeReply) -> bool:
        """
        Be a node that is among those of its place; say whether it is.
        """
        for entry in own.entries:
            if records.node_id(entry.key) == node.id:
                self.node = replace(
                    node,
                    created=entry.create_revision,
                    modified=entry.mod_revision,
                    lease=entry.lease,
                )
                self.dirty = True
                return True
        return False

    def leave(self, number: int) -> Thread:
        old = self.node
        node = replace(old, left=number)
        try:
            reply = yield from self.txn(requests.leave(KEYS, self.place, node))
        except RefusedError:
            self.lose(old)
        else:
            left = requests.has_left(reply, node)
            if left is None:
                self.lose(old)
            elif self.node is old:
                self.node = left

    def lose(self, node: Node) -> None:
        """
        Be out.
        """
        if self.node is node:
            self.run.note(f"{self} is out")
            self.node = None

    def close(self) -> Thread:
        node = self.node
        if node is None:
            return
        key = KEYS.node(self.place, node.id)
        revision = self.view.round_revision
        yield from self.txn(requests.close(KEYS, key, node, revision, RUN_LEASE))

    def withdraw(self) -> Thread:
        yield lambda: not self.resuming
        node, self.node, self.inside = self.node, None, None
        if node is not None:
            with contextlib.suppress(UnknownOutcome, RefusedError):
                yield from self.post(wire.REVOKE, {"ID": str(node.lease)})

    # -- other threads

    def watcher(self) -> Thread:
        """
        Replace a watch that broke: a new one first, then a read.
        """
        while True:
            yield lambda: self.watch is not None and self.watch.cut
            yield from self.rewatch()

    def rewatch(self) -> Thread:
        self.watch = yield from self.open_watch(KEYS.common, self.tell)
        yield from self.read_common()

    def read_common(self) -> Thread:
        message = wire.range_message(KEYS.common, wire.prefix_end(KEYS.common))
        while True:
            try:
                reply = yield from self.post(wire.RANGE, message)
            except UnknownOutcome:
                continue
            self.load_common(wire.decode_range(reply), wire.header_revision(reply))
            return

    def keeper(self) -> Thread:
        while True:
            yield lambda: self.due and self.node is not None and not self.resuming
            self.due = False
            yield from self.keep_alive()

    def keep_alive(self) -> Thread:
        """
        Renew the lease once; say whether it was there.
        """
        node = self.node
        try:
            reply = yield from self.post(wire.KEEP_ALIVE, {"ID": str(node.lease)})
        except UnknownOutcome:
            self.due = True
            return False
        if "TTL" in reply["result"]:
            self.note_gap()
            return True
        yield from self.lease_is_lost(node)
        return False

    def lease_is_lost(self, node: Node) -> Thread:
        if self.node is not node or self.resuming:
            return
        if self.inside is None:
            self.lose(node)
        else:
            self.resuming = True
            yield from self.resume(node)
            self.resuming = False

    def note_gap(self) -> None:
        if self.gap:
            self.gap = False
            self.gap_end = self.run.now + TTL
            self.dirty = True

    def may_resume(self) -> bool:
        last = self.view.round
        return last is not None and last.number == self.inside and not last.broken

    def resume(self, old: Node) -> Thread:
        """
        Come back into the round after the lease was lost.
        """
        while self.may_resume():
            lease = yield from self.grant()
            if not self.may_resume():
                break
            node = replace(old, lease=lease)
            request = requests.resume(
                KEYS, self.place, node, self.view.round_revision, RUN_LEASE
            )
            try:
                reply = yield from self.txn(request, again=False)
            except (UnknownOutcome, RefusedError):
                # Tried again after the next renewal, with a new lease.
                self.due = True
                return
            own, common = reply.ranges
            self.load_common(common, reply.revision)
            if self.take(node, own):
                self.run.note(f"{self} is back in {self.inside}")
                self.gap = True
                self.note_gap()
                return
        self.lose(old)

    def candidate(self) -> Thread:
        while True:
            yield lambda: self.node is not None and self.office_is_empty()
            yield None
            node = self.node
            if node is None or not self.office_is_empty():
                continue
            key = KEYS.node(self.place, node.id)
            request = requests.take_office(KEYS, key, node)
            try:
                reply = yield from self.txn(request)
            except RefusedError:
                self.due = True
                continue
            if reply.succeeded:
                self.tell_own(request, reply.revision)
            else:
                self.load_common(reply.ranges[0], reply.revision)
                # It may have been the own key that was missing.
                self.due = True

    def office_is_empty(self) -> bool:
        return self.view.closer is None

    # -- the closer

    def is_closer(self) -> bool:
        return self.node is not None and self.view.closer == self.node.id

    def closer(self) -> Thread:
        while True:
            yield self.is_closer
            yield from self.in_office(self).serve()


class Tenure:
    """
    A process in office.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.run = process.run
        self.node = process.node
        self.office = process.view.office
        self.nodes = mirrors.Mirror(KEYS.nodes)
        self.roster = rounds.Roster({}, None)
        self.resumed = 0
        self.since: float | None = None

    def lasts(self) -> bool:
        process = self.process
        return process.is_closer() and process.view.office == self.office

    def tell(self, events: list[wire.Event]) -> None:
        if not self.nodes.tell(events):
            return
        self.process.dirty = True
        for event in events:
            entry = self.nodes.get(event.entry.key)
            if entry is None:
                self.roster.drop(records.node_id(event.entry.key))
            else:
                self.roster.put(records.decode_node(entry))

    def serve(self) -> Thread:
        process, watch, loaded = self.process, None, False
        try:
            while self.lasts():
                if watch is None or watch.cut:
                    watch = yield from self.process.open_watch(KEYS.nodes, self.tell)
                    loaded = False
                    continue
                if process.resigns:
                    process.resigns = False
                    request = requests.resign(KEYS, self.office)
                    reply = yield from process.txn(request)
                    if reply.succeeded:
                        process.tell_own(request, reply.revision)
                    continue
                if not loaded or process.reload:
                    process.reload = False
                    loaded = yield from self.load()
                    continue
                process.dirty = False
                decision, request = self.decide()
                self.since = decision.enough_since
                if request is not None:
                    loaded = yield from self.write(request)
                    continue
                wake = decision.wake_at
                if self.run.now < process.gap_end:
                    wake = min(process.gap_end, wake or process.gap_end)
                yield (
                    lambda wake=wake, watch=watch: (
                        process.dirty
                        or process.reload
                        or process.resigns
                        or watch.cut
                        or not self.lasts()
                        or (wake is not None and self.run.now >= wake)
                    )
                )
        finally:
            if watch is not None:
                self.run.end_watch(watch)

    def load(self) -> Thread:
        try:
            reply = yield from self.process.txn(requests.load(KEYS), again=False)
        except UnknownOutcome:
            return False
        found, common, _, resumed = reply.ranges
        self.nodes.load(found.entries, reply.revision)
        self.process.load_common(common, reply.revision)
        self.resumed = resumed.entries[0].mod_revision if resumed.entries else 0
        nodes = map(records.decode_node, self.nodes)
        self.roster = rounds.Roster(
            {one.id: one for one in nodes}, self.process.view.round
        )
        self.process.dirty = True
        return True

    def gone_may_return(self) -> bool:
        return self.process.gap or self.run.now < self.process.gap_end

    def decide(self) -> tuple[rounds.Decision, requests.Request | None]:
        seen = self.process.view
        nodes = {node.id: node for node in map(records.decode_node, self.nodes)}
        if self.roster.round != seen.round:
            if self.roster.number != (seen.round.number if seen.round else -1):
                self.since = None
            self.roster = rounds.Roster(self.roster.nodes, seen.round)
        self.roster.closed = seen.closed
        decision, same = (
            rounds.decide(
                known,
                self.run.rules,
                self.run.now,
                self.since,
                gone_may_return=self.gone_may_return(),
            )
            for known in (
                rounds.Snapshot(nodes, seen.round, seen.closed),
                self.roster,
            )
        )
        must(decision == same, "a roster says what its snapshot does not")
        fence = self.fence(seen)
        if decision.action is rounds.Action.COMPLETE:
            request = requests.complete(KEYS, fence, decision.round, [], RUN_LEASE)
        elif decision.action is rounds.Action.MARK:
            request = requests.mark(KEYS, fence, decision.round, RUN_LEASE)
        elif self.run.says_progress():
            request = requests.say_progress(
                KEYS, self.office, Progress(len(nodes)), self.node.lease
            )
        else:
            request = None
        return decision, request

    def fence(self, seen: view.View) -> requests.Fence:
        return requests.Fence(seen.round_revision, self.office, self.resumed)

    def write(self, request: requests.Request) -> Thread:
        """
        Write; say whether what was loaded before can still be relied on.
        """
        try:
            reply = yield from self.process.txn(request, again=False)
        except (UnknownOutcome, RefusedError):
            return False
        if reply.succeeded:
            self.process.tell_own(request, reply.revision)
        return reply.succeeded


Process.in_office = Tenure


# -- the scheduler ------------------------------------------------------------------


@dataclass
class Run:
    """
    One run of a few processes.

    Args:
        seed: What it is made of.
        steps: How many steps with faults there are.
        limits: The fewest and the most nodes; None for any.
        slots: How many hosts there are; None for any number.
        formed: How often a run begins with a round that is up.
        faults: How often which fault comes, where it is not as usual.
        process: What makes a process.
    """

    seed: int
    steps: int = 120
    limits: tuple[int, int] | None = None
    slots: int | None = None
    formed: float = 0.5
    faults: dict[str, int] = field(default_factory=dict)
    process: type[Process] = Process

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.limits = self.limits or self.random.choice(LIMITS)
        least, most = self.limits
        self.rules = rounds.Rules(least, most, last_call=4.0, rejoin_last_call=7.0)
        self.hosts = range(self.slots or self.random.randint(least, most + 1))
        self.numbers = 100
        self.now = 0.0
        self.fair = False
        self.author = ""
        self.history = History(self)
        self.etcd = EtcdModel(self.history.commit)
        self.etcd.leases.add(RUN_LEASE)
        self.calls: list[Call] = []
        self.late: list[Call] = []
        self.watchings: list[Watching] = []
        self.processes: dict[int, Process] = {}
        self.notes: list[str] | None = None
        self.taken = 0
        for slot in self.hosts:
            self.start(slot)
        weights = {**FAULTS, **self.faults}
        self.faulty = [getattr(self, f"_{name}") for name in weights]
        self.weights = list(weights.values())

    def next_number(self) -> int:
        self.numbers += 1
        return self.numbers

    def note(self, text: str) -> None:
        if self.notes is not None:
            self.notes.append(f"{self.taken:4d} rev {self.etcd.revision}: {text}")

    def note_commit(self, commit: Commit) -> None:
        if self.notes is None:
            return
        for event in commit.events:
            name = event.entry.key.removeprefix(KEYS.common[:-2]).decode()
            value = "gone" if event.deleted else event.entry.value.decode()
            self.note(f"{name} = {value}  (by {self.author or 'etcd'})")

    def says_progress(self) -> bool:
        return not self.fair and self.random.random() < 0.1

    # -- the life of processes

    def start(self, slot: int) -> None:
        self.processes[slot] = process = self.process(self, slot)
        self.note(f"{process} starts")

    def end(self, process: Process) -> None:
        """
        End a process, at once.
        """
        self.note(f"{process} ends")
        process.alive = False
        for running in process.threads:
            if isinstance(running.waits, Call):
                self._abandon(running.waits)
        process.threads = []
        for watching in [one for one in self.watchings if one.process is process]:
            self.end_watch(watching)

    def end_watch(self, watching: Watching) -> None:
        if not watching.cut:
            watching.cut = True
            self.etcd.end_watch(watching.watch)
            self.watchings.remove(watching)

    def _abandon(self, call: Call) -> None:
        """
        Let nobody wait for a call any more; it may arrive all the same.
        """
        call.awaited = False
        if call in self.calls:
            self.calls.remove(call)
            if not call.done and not self.fair:
                self.late.append(call)

    # -- single steps

    def enabled(self) -> list[Callable[[], None]]:
        found: list[Callable[[], None]] = []
        for process in self.processes.values():
            if process.paused:
                continue
            found.extend(
                lambda p=process, r=running: self._step(p, r)
                for running in process.threads
                if self._ready(running)
            )
        found.extend(lambda c=c: self._arrive(c) for c in self.calls if not c.done)
        found.extend(
            lambda w=w: self._tell(w)
            for w in self.watchings
            if w.watch.messages and not w.process.paused
        )
        return found

    def _ready(self, running: Running) -> bool:
        waits = running.waits
        if waits is None:
            return True
        return waits.done if isinstance(waits, Call) else bool(waits())

    def _step(self, process: Process, running: Running) -> None:
        waits, running.waits = running.waits, None
        try:
            if not isinstance(waits, Call):
                running.waits = next(running.thread)
                return
            if waits in self.calls:
                self.calls.remove(waits)
            if isinstance(waits.reply, Exception):
                running.waits = running.thread.throw(waits.reply)
            else:
                running.waits = running.thread.send(waits.reply)
        except StopIteration:
            if running in process.threads:
                process.threads.remove(running)

    def _arrive(self, call: Call) -> None:
        self.author = call.author
        try:
            reply = call.send()
        except RefusedError as error:
            reply = error
        self.author = ""
        if call.awaited:
            call.done, call.reply = True, reply
        elif isinstance(reply, Watching):
            self.end_watch(reply)

    def _tell(self, watching: Watching) -> None:
        message = wire.decode_watch(watching.watch.messages.popleft())
        watching.tell(message.events)

    # -- faults

    def _one_alive(self) -> Process | None:
        alive = [one for one in self.processes.values() if one.alive]
        return self.random.choice(alive) if alive else None

    def _lose(self) -> None:
        """
        Lose a request or a reply; the client takes notice.
        """
        if self.calls:
            call = self.random.choice(self.calls)
            if isinstance(call.reply, Watching):
                return
            if not call.done and self.random.random() < 0.6:
                # It arrives later, or in vain.
                self.late.append(Call(call.send, call.author, awaited=False))
            elif call.done and self.random.random() < 0.5:
                # It is sent twice on its way.
                self.late.append(Call(call.send, call.author, awaited=False))
            call.done, call.reply = True, UnknownOutcome()

    def _late(self) -> None:
        if self.late:
            self._arrive(self.late.pop(self.random.randrange(len(self.late))))

    def _cut(self) -> None:
        if self.watchings:
            self.end_watch(self.random.choice(self.watchings))

    def _tick(self) -> None:
        self.now += self.random.choice([1.0, 3.0, 8.0])

    def _crash(self) -> None:
        if process := self._one_alive():
            self.end(process)

    def _start(self) -> None:
        slot = self.random.choice(self.hosts)
        if not self.processes[slot].alive:
            self.start(slot)

    def _pause(self) -> None:
        if process := self._one_alive():
            process.paused = not process.paused

    def _expire(self) -> None:
        """
        Let any lease expire, of the dead and of the living.
        """
        leases = sorted(self.etcd.leases - {RUN_LEASE})
        if leases:
            self._let_expire(self.random.choice(leases))

    def _lapse(self) -> None:
        """
        Let a node in a round lose its lease, and take notice.
        """
        if (
            (process := self._one_alive())
            and process.node
            and process.inside is not None
        ):
            self._let_expire(process.node.lease)
            process.due = True

    def _away(self) -> None:
        """
        Let etcd be away so long that all leases expire at once, or some.
        """
        leases = sorted(self.etcd.leases - {RUN_LEASE})
        if self.random.random() < 0.4:
            leases = [one for one in leases if self.random.random() < 0.6]
        self.random.shuffle(leases)
        self._let_expire(*leases)
        for process in self.processes.values():
            process.gap = process.due = True

    def _let_expire(self, *leases: int) -> None:
        leases = tuple(one for one in leases if one in self.etcd.leases)
        self.note(f"leases expire: {leases}")
        self.etcd.expire(*leases)

    def _restart(self) -> None:
        if (process := self._one_alive()) and process.inside is not None:
            process.wish = process.wish or "restart"

    def _close(self) -> None:
        if (process := self._one_alive()) and process.inside is not None:
            process.wish = process.wish or "close"

    def _due(self) -> None:
        if process := self._one_alive():
            process.due = True

    def _reload(self) -> None:
        if process := self._one_alive():
            process.reload = True

    def _resign(self) -> None:
        if (process := self._one_alive()) and process.is_closer():
            process.resigns = True

    # -- the whole

    def play(self) -> None:
        """
        Take all steps, and ask what must hold in the end.
        """
        if self.random.random() < self.formed:
            # Begin with a round that is up.
            self.settle()
            self.now += TTL
            self.settle()
        for _ in range(self.steps):
            self.taken += 1
            if self.random.random() < 0.22:
                self.random.choices(self.faulty, self.weights)[0]()
            else:
                enabled = self.enabled()
                if enabled:
                    self.random.choice(enabled)()
        self.calm()
        self.history.rest()

    def calm(self) -> None:
        """
        Take steps without faults until nothing moves any more.
        """
        self.random.shuffle(self.late)
        while self.late:
            call = self.late.pop()
            if self.random.random() < 0.5:
                self._arrive(call)
        self.fair = True
        for slot, process in self.processes.items():
            process.paused = False
            process.wish = ""
            if not process.alive and self.random.random() < 0.6:
                self.start(slot)
        before, same = 0, 0
        for _ in range(_MOST_CALMS):
            self.settle()
            same = same + 1 if before == self.etcd.revision else 0
            if same == 4:
                return
            before = self.etcd.revision
            held = {RUN_LEASE}
            for process in self.processes.values():
                process.due = True
                if process.alive and process.node:
                    held.add(process.node.lease)
            self._let_expire(*sorted(self.etcd.leases - held))
            self.now += TTL
        raise Violation("it never rests")

    def settle(self) -> None:
        for _ in range(_MOST_STEPS):
            enabled = self.enabled()
            if not enabled:
                return
            self.taken += 1
            self.random.choice(enabled)()
        raise Violation("it does not rest")


def main() -> None:
    """
    Play one run, and tell what happened.
    """
    run = Run(int(sys.argv[1]))
    run.notes = []
    try:
        run.play()
    finally:
        print(f"limits {run.limits}", *run.notes, sep="\n")


if __name__ == "__main__":
    main()
