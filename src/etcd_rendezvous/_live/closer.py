# SPDX-License-Identifier: BSD-3-Clause
"""
The closer: the one node that completes rounds, and says what has become of them.

Its thread reads a watch on all nodes, and acts on what it tells. When it is time for
something although nothing has happened, the node's own thread lets it act. Every write
is fenced: it does nothing unless all is still so as it was decided on. After any
failure everything is read again, and decided anew.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from .._errors import EtcdError
from .._log import log
from .._v3 import retry, wire
from .._v3.client import LeaseNotFoundError
from . import requests
from .mirror import Mirror
from .records import (
    NONE_LEFT,
    Node,
    Progress,
    Round,
    decode_names,
    decode_node,
    node_id,
)
from .rounds import Action, Decision, Roster, decide, progress, with_names
from .watching import has_missed, move

if TYPE_CHECKING:
    from .._settings import Endpoint
    from .._v3.watch import Watch
    from .node import LiveNode
    from .view import View

__all__ = ["Closer"]

_AGAIN_SECONDS: Final = 0.5
_WATCH_SECONDS: Final = 5.0
_MOST_REFUSALS: Final = 3
# Whether the watch has missed anything is looked at this often.
_GUARD_SECONDS: Final = 20.0
# How far the next round is, is first said after so long, and no more often.
_PROGRESS_SECONDS: Final = 5.0


class Closer:
    """
    One term of office.

    Args:
        node: The node that holds it.
        office: The revision that it took it at.
    """

    def __init__(self, node: LiveNode, office: int) -> None:
        self.office = office
        #: When to act although nothing has happened.
        self.wake_at = float("inf")
        self._node = node
        self._id = node.node.id
        self._own_lease = node.node.lease
        self._stopped = False
        # Said while ``node.changed`` is held: who finds that it has not ended may rely
        # on it.
        self._ended = False
        # Held while it decides and acts.
        self._acting = threading.Lock()
        self._nodes = Mirror(node.keys.nodes)
        self._roster = Roster({}, None)
        # Everything has to be read (again).
        self._stale = True
        # How many writes in a row were refused.
        self._refused = 0
        self._resumed = 0
        self._names: dict[str, str] = {}
        self._enough_since: float | None = None
        self._waiting_since: float | None = None
        # The round that ran, and what was said of the next one.
        self._said: tuple[int, Progress | None] = (NONE_LEFT, None)
        self._say_at = 0.0
        self._guard_at = node.clock() + _GUARD_SECONDS
        self._watch: Watch | None = None
        self.thread = threading.Thread(
            target=self._run, name="etcd-rendezvous closer", daemon=True
        )

    def start(self) -> None:
        """
        Begin.
        """
        self.thread.start()

    def serves(self, node: str, office: int) -> bool:
        """
        Say whether it is at work for a term of office.

        Args:
            node: The id of the node; in an etcd that has lost its data another node may
                take the office at the same revision.
            office: The revision that it took it at.
        """
        return (node, office) == (self._id, self.office) and not self._ended

    def stop(self) -> None:
        """
        End, without waiting for the end.
        """
        self._stopped = True
        watch = self._watch
        if watch is not None:
            watch.interrupt()

    def move_watch(self, where: Endpoint, *, anyway: bool) -> None:
        """
        Open the watch again, unless it comes from where calls are answered.

        Args:
            where: Where they are.
            anyway: Whether to open it again in any case.
        """
        move(self._watch, where, anyway=anyway)

    def on_duty(self) -> bool:
        """
        Say whether the node still holds the office, as far as is known.
        """
        view = self._node.view
        return (
            not self._stopped
            and self._node.registered
            and view.closer == self._id
            and view.office == self.office
        )

    # -- the watch --------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        try:
            while self._goes_on():
                try:
                    self._read_watch()
                except EtcdError as error:
                    log.debug("The closer's watch broke: %s", error)
                    self._node.pause(retry.pause_seconds(min(failures, 4)))
                    failures += 1
        except Exception:  # the run must not be left without a closer
            self._node.log.exception("The closer of '%s' ends.", self._node.run_id)
            self._stopped = True
            self._goes_on()
            self._resign()
        finally:
            self.wake_at = float("inf")

    def _goes_on(self) -> bool:
        """
        Say whether it is still on duty; if not, it has ended for good.
        """
        with self._node.changed:
            self._ended = not self.on_duty()
            return not self._ended

    def _read_watch(self) -> None:
        prefix = self._nodes.prefix
        create = wire.watch_create(prefix, wire.prefix_end(prefix), watch_id=1)
        what = f"watch the nodes below '{prefix.decode()}'"
        with self._node.client.watch(
            [create], what=what, timeout=_WATCH_SECONDS
        ) as watch:
            self._watch = watch
            if not self.on_duty():
                return
            with self._acting:
                self._stale = True
                self._act()
            for events in watch.batches(None):
                with self._acting:
                    if self._nodes.tell(events):
                        for event in events:
                            self._note(event.entry.key)
                        self._act()
                if not self.on_duty():
                    return

    def _note(self, key: bytes) -> None:
        """
        Bring what is known of a node into the roster.
        """
        entry = self._nodes.get(key)
        node = _node_of(entry) if entry else None
        if node is None:
            self._roster.drop(node_id(key))
        else:
            self._names[node.id] = node.address
            self._roster.put(node)

    # -- deciding, and acting ---------------------------------------------------------

    def wake(self) -> None:
        """
        Act because it is time, unless it is acting.
        """
        if not self._acting.acquire(blocking=False):
            self.wake_at = self._node.clock() + _AGAIN_SECONDS / 10
            return
        try:
            if self._node.clock() >= self._guard_at:
                self._look_after_watch()
            self._act()
        finally:
            self._acting.release()

    def _act(self) -> None:
        """
        Decide, and do it, until there is nothing to do.
        """
        node = self._node
        try:
            while self.on_duty() and not node.view.corrupt:
                if self._stale:
                    self._load()
                    continue
                view = node.view
                self._follow(view.round)
                self._roster.closed = view.closed
                now = node.clock()
                away = node.away_lately()
                decision = decide(
                    self._roster,
                    node.rules,
                    now,
                    self._enough_since,
                    gone_may_return=away,
                )
                self._enough_since = decision.enough_since
                if decision.action is not Action.WAIT:
                    self._refused = (
                        0 if self._write(decision, view) else self._refused + 1
                    )
                    if self._refused < _MOST_REFUSALS:
                        continue
                    # What is known can't be right, and may not become so at once.
                    self._wake_at(now + _AGAIN_SECONDS)
                    return
                self._say_progress(now, decision)
                due = [self._guard_at, decision.wake_at or float("inf"), self._say_at]
                if away and self._roster.gone:
                    due.append(now + _AGAIN_SECONDS)
                self._wake_at(min(due))
                return
            self._wake_at(float("inf"))
        except EtcdError as error:
            log.debug("The closer reads again: %s", error)
            self._stale = True
            self._wake_at(node.clock() + _AGAIN_SECONDS)

    def _follow(self, last: Round | None) -> None:
        """
        Let the roster be about the last round, as it was last written.
        """
        known = self._roster.round
        if (last and last.revision) == (known and known.revision):
            return
        if (last and last.number) != (known and known.number):
            self._enough_since = None
        self._roster = Roster(self._roster.nodes, last)

    def _wake_at(self, when: float) -> None:
        with self._node.changed:
            if when < self.wake_at:
                self._node.due.notify_all()
            self.wake_at = when

    def _load(self) -> None:
        """
        Read everything that it decides on.
        """
        node = self._node
        known, known_common = self._nodes.latest, node.mirror.latest
        reply = node.client.txn(
            *requests.load(node.keys),
            what=f"read the nodes below '{node.keys.nodes.decode()}'",
            timeout=node.call_seconds,
            writes=False,
        )
        nodes, common, names, resumed = reply.ranges
        if reply.revision < known:
            self._nodes.forget()
        self._nodes.load(nodes.entries, reply.revision)
        node.load(common.entries, reply.revision, known_common)
        self._resumed = resumed.entries[0].mod_revision if resumed.entries else 0
        found = [one for one in map(_node_of, self._nodes) if one is not None]
        view = node.view
        if names.entries and view.round is not None:
            self._names = dict(
                zip(
                    view.round.members,
                    decode_names(names.entries[0].value),
                    strict=False,
                )
            )
        self._names.update({one.id: one.address for one in found})
        self._roster = Roster({one.id: one for one in found}, view.round)
        self._stale = False

    def _write(self, decision: Decision, view: View) -> bool:
        """
        Complete a round, or mark the running one.

        Args:
            decision: Which round, and how.
            view: What was known when that was decided.

        Returns:
            Whether it was still so.
        """
        node = self._node
        new = decision.round
        assert new is not None  # noqa: S101 - there is one unless it waits
        keys = node.keys
        fence = requests.Fence(view.round_revision, self.office, self._resumed)
        lease = node.run_lease.current(
            node.call_seconds, probably_new=view.round_revision == 0
        )
        completes = decision.action is Action.COMPLETE
        what = f"complete round {new.number}" if completes else "mark the round"
        if completes:
            names = [self._names[member] for member in new.members]
            request = requests.complete(keys, fence, new, names, lease)
        else:
            if new.broken and not new.lost_count:
                new = with_names(new, self._roster.gone, self._names)
            request = requests.mark(keys, fence, new, lease)
        # What becomes of it, if that stays unknown, the next read tells.
        self._stale = True
        try:
            reply = node.client.txn(
                *request, what=f"{what} of '{node.run_id}'", timeout=node.call_seconds
            )
        except LeaseNotFoundError:
            node.run_lease.forget(lease)
            return False
        if not reply.succeeded:
            return False
        self._stale = False
        node.tell(requests.told(request, reply.revision))
        if completes:
            self._waiting_since = None
            self._names = {
                one: self._names[one] for one in (*new.members, *self._roster.nodes)
            }
        return True

    def _say_progress(self, now: float, decision: Decision) -> None:
        """
        Tell those who wait how far the next round is, after a while.
        """
        self._say_at = float("inf")
        roster, last = self._roster, self._roster.round
        forming = not roster.inside or (last and (last.broken or last.waiting))
        if roster.closed or not forming or not roster.nodes:
            self._waiting_since = None
            return
        if self._waiting_since is None:
            self._waiting_since = now
            self._say_at = now + _PROGRESS_SECONDS
            return
        if now < self._waiting_since + _PROGRESS_SECONDS:
            self._say_at = self._waiting_since + _PROGRESS_SECONDS
            return
        seconds = None if decision.wake_at is None else decision.wake_at - now
        rules = self._node.rules
        said = replace(
            progress(roster, self._names, seconds),
            least=rules.min_nodes,
            most=rules.max_nodes,
        )
        number, before = self._said
        # What was said of an earlier round went away with it.
        if number == roster.number and said.same_as(before):
            return
        self._said = (roster.number, said)
        self._waiting_since = now
        node = self._node
        node.client.txn(
            *requests.say_progress(node.keys, self.office, said, self._own_lease),
            what=f"say how far the next round of '{node.run_id}' is",
            timeout=node.call_seconds,
        )

    def _look_after_watch(self) -> None:
        """
        Open the watch again if it has missed anything.
        """
        self._guard_at = self._node.clock() + _GUARD_SECONDS
        nodes, seconds = self._nodes, self._node.call_seconds
        client = self._node.client
        if has_missed(client, nodes.prefix, nodes.latest, len(nodes), seconds):
            self._stale = True
            if self._watch is not None:
                self._watch.interrupt()

    def _resign(self) -> None:
        node = self._node
        with suppress(EtcdError):
            node.client.txn(
                *requests.resign(node.keys, self.office),
                what=f"resign as the closer of '{node.run_id}'",
                timeout=node.call_seconds,
            )


def _node_of(entry: wire.Entry) -> Node | None:
    """
    Return the node of an entry, or None if it is not one of ours.
    """
    try:
        return decode_node(entry)
    except ValueError as error:
        log.debug("The key %r is no node's: %s", entry.key, error)
        return None
