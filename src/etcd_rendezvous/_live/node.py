# SPDX-License-Identifier: BSD-3-Clause
"""
One node of a run: what it has in etcd, and the two threads that keep it.

One thread reads the watch on the keys that all nodes watch. The other one renews the
lease, looks now and then whether the watch has missed anything, and takes the office of
the closer when nobody holds it. Who joins does so in a thread of the caller's. Whatever
tells news, the same rules are applied to all that is known (see ``rounds``).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from .._errors import EtcdConnectionError, EtcdError
from .._log import SlowBeat, SlowLog, log
from .._lookout import Lookout
from .._outages import Outages, absence, is_hopeless, listed
from .._v3 import retry, wire
from .._v3.client import EtcdClient, LeaseNotFoundError
from .._v3.lease import SharedLease
from .._v3.watch import Watch
from . import requests
from .closer import Closer
from .mirror import Mirror
from .place import Place
from .records import NONE_LEFT, Keys, Node, Round, node_id
from .rounds import Rules, Standing, nodes_waiting, standing
from .speech import describe_wait
from .view import View, view_of
from .watching import has_missed, move

__all__ = [
    "ClosedError",
    "CorruptError",
    "HopelessError",
    "LiveNode",
    "Seat",
    "TimeUpError",
    "Times",
]

_AGAIN_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 5.0
# Whether the watch has missed anything is looked at this often, somewhat jittered.
_GUARD_SECONDS: Final = 30.0
_LEAST_CALL_SECONDS: Final = 0.5
_WATCH_SECONDS: Final = 5.0
# What an operation may take while somebody joins.
_CALL_SECONDS: Final = 10.0
_SPEAK_AGAIN_SECONDS: Final = 30.0
_PATIENCE_SECONDS: Final = 10.0
# Whoever finds the office empty waits so long at most, and so much more a node.
_OFFICE_SECONDS: Final = 0.02
_OFFICE_SECONDS_A_NODE: Final = 0.002
_FRESH_PART_OF_TTL: Final = 2 / 3
_RESUME_TRIES: Final = 3


class ClosedError(Exception):
    """
    Raised when the run is closed.

    Attributes:
        spare: Whether the node was a spare of a round that is full.
    """

    def __init__(self, *, spare: bool) -> None:
        super().__init__("closed")
        self.spare = spare


class CorruptError(Exception):
    """
    Raised when a key of the run holds what nobody of us has written.
    """


class TimeUpError(Exception):
    """
    Raised when the time to join is up.

    Attributes:
        error: What kept etcd from us, if that is why.
    """

    def __init__(self, message: str, error: EtcdError | None) -> None:
        super().__init__(message)
        self.error = error


class HopelessError(Exception):
    """
    Raised when etcd refuses what waiting won't mend.
    """

    def __init__(self, error: EtcdError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Times:
    """
    How a node keeps its lease. In seconds.

    Attributes:
        interval: The time between renewals.
        ttl: The time to live.
        call: The most that one renewal may take.
    """

    interval: float
    ttl: int
    call: float


@dataclass(frozen=True)
class Seat:
    """
    A place in a round.

    Attributes:
        round: The round.
        rank: The node's rank.
    """

    round: Round
    rank: int


class LiveNode:
    """
    A node of a run.

    Safe for threads; one at a time may join.

    Args:
        client: The client.
        run_id: The run, for messages.
        keys: Its keys.
        run_lease: The lease of the run; it is kept alive from here.
        about: The node: address, process, slot and order.
        rules: What a round is to be like.
        times: How the lease is kept.
        restart: Whether a lost node is a reason to form the next round.
        on_beat: Called after each renewal, with what kept etcd from us, or None.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        client: EtcdClient,
        run_id: str,
        keys: Keys,
        run_lease: SharedLease,
        about: Node,
        rules: Rules,
        times: Times,
        *,
        restart: bool = True,
        on_beat: Callable[[EtcdError | None], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.keys = keys
        self.run_lease = run_lease
        self.rules = rules
        self.times = times
        self.clock = clock
        self.beat = SlowBeat(clock)
        self.log = SlowLog(clock)
        self._restart = restart
        self._on_beat = on_beat
        self._place = Place(about.address)
        self._pid = os.getpid()
        lock = threading.RLock()
        #: Held while anything below changes; told when it concerns who waits.
        self.changed = threading.Condition(lock)
        #: The same lock; told when something is due earlier than the keeper knows.
        self.due = threading.Condition(lock)
        self.mirror = Mirror(keys.common)
        self.view = View()
        self._node = about
        self._key = b""
        self._registered = False
        # The lease is gone, and with it the node.
        self._lost = False
        # The round that it is in; None while it waits for one.
        self._seat: Seat | None = None
        self._ttl: float = times.ttl
        # When the last renewal was sent that succeeded.
        self._renewed = float("-inf")
        self._away_until = float("-inf")
        self._away_error: EtcdError | None = None
        self._outages = Outages(run_id, self.beat)
        self._progress_at = 0.0
        self._watch: Watch | None = None
        self._watch_error: EtcdError | None = None
        self._running = False
        self._threads: list[threading.Thread] = []
        self._closer: Closer | None = None
        self._office_at: float | None = None
        # Held by whoever changes what the node has in etcd.
        self._registering = threading.Lock()
        self._lookout = Lookout(client, keys.common, times.interval, clock=clock)

    # -- what is asked without asking etcd ------------------------------------------

    @property
    def closed(self) -> bool:
        """
        Whether the run is closed, as far as is known; asked for if nobody watches it.
        """
        if not self._running:
            try:
                return (
                    self.client.get(self.keys.closed, timeout=_WATCH_SECONDS)
                    is not None
                )
            except EtcdError as error:
                log.debug("Whether '%s' is closed is not known: %s", self.run_id, error)
        return self.view.closed

    @property
    def node(self) -> Node:
        """
        The node as it is registered.
        """
        return self._node

    @property
    def registered(self) -> bool:
        """
        Whether it has a key in etcd, as far as is known.
        """
        return self._registered and not self._lost

    def waiting(self) -> int:
        """
        Say how many nodes wait for the next round; see ``rounds.nodes_waiting``.
        """
        with self.changed:
            if self._seat is None:
                return self.view.round.waiting if self.view.round else 0
            if self._lost and not self.view.closed:
                return 1
            return nodes_waiting(
                self.view.round,
                closed=self.view.closed,
                number=self._seat.round.number,
                restart=self._restart,
            )

    def away_lately(self) -> bool:
        """
        Say whether etcd was away so lately that others may have lost their leases.
        """
        now = self.clock()
        return self._is_late(now) or now < self._away_until

    def _is_late(self, now: float) -> bool:
        """
        Say whether the last renewal is longer ago than if etcd had answered since.
        """
        return now - self._renewed > self._interval * 1.5 + _AGAIN_SECONDS

    @property
    def seconds_of_grace(self) -> float:
        """
        How long who lost its lease has to come back, after etcd was away.
        """
        return self._ttl

    @property
    def _interval(self) -> float:
        # So that one renewal may get lost.
        return min(self.times.interval, self._ttl / 3)

    # -- joining ----------------------------------------------------------------------

    def join(self, port: int, seconds: float) -> Seat:
        """
        Leave the round that the node is in, and wait for the next one.

        Args:
            port: The port of the store that it serves if it becomes rank 0.
            seconds: The most seconds that it takes.

        Raises:
            ClosedError: The run is closed.
            CorruptError: A key of the run is not ours.
            HopelessError: etcd refuses what waiting won't mend.
            TimeUpError: There was no round in time.
        """
        started = self.clock()
        wait = _Wait(self, started, seconds)
        try:
            self._start()
            with self.changed:
                seat, self._seat = self._seat, None
                self._node = replace(self._node, port=port)
            if seat is not None:
                number = seat.round.number
                if self.view.round is None or self.view.round.number < number:
                    self._lose("etcd no longer has its round")
                wait.until_done(lambda left: self._leave(number, left))
            while True:
                if not self.registered:
                    wait.until_done(self._watching)
                    wait.until_done(self._register)
                found = self._wait_for_round(wait)
                if found is None:
                    continue
                if not self._is_fresh() and not wait.until_done(self._renew_now):
                    continue
                with self.changed:
                    if self._lost:
                        continue
                    self._seat = found
                self._say_in(found)
                return found
        except BaseException:
            self.withdraw(min(self.times.call, _WATCH_SECONDS))
            raise

    def _wait_for_round(self, wait: _Wait) -> Seat | None:
        """
        Wait for a round with this node in it.

        Returns:
            The place in it; None if the node has to register anew.
        """
        while True:
            with self.changed:
                while True:
                    self.check_running()
                    if self._lost:
                        return None
                    view = self.view
                    wait.look_at(view)
                    stands = standing(view.round, self._node.id, self._node.left)
                    if stands is not Standing.WAITS:
                        break
                    self.changed.wait(wait.seconds_to_next())
                    wait.speak()
            last = view.round
            assert last is not None  # noqa: S101 - whoever does not wait is in one
            if stands is Standing.IN:
                return Seat(last, last.members.index(self._node.id))
            number = last.number
            wait.until_done(lambda left: self._leave(number, left))  # noqa: B023

    def _watching(self, seconds: float) -> bool:
        """
        Wait until the watch is there.
        """
        deadline = self.clock() + seconds
        if not self._node.lease or self._lost:
            # Meanwhile.
            self._grant(seconds)
        with self.changed:
            left = max(deadline - self.clock(), 0.0)
            # An old error, told again and again, would be a loop without a rest.
            self._watch_error = None
            self.changed.wait_for(lambda: self._watch or self._watch_error, left)
            if self._watch is None:
                raise self._trouble_of_watch()
        return True

    def _trouble_of_watch(self) -> EtcdError:
        return self._watch_error or EtcdConnectionError(
            f"Could not {self.watching_what}: it took too long."
        )

    @property
    def watching_what(self) -> str:
        """
        The watch, in words.
        """
        return f"watch the keys below '{self.keys.common.decode()}'"

    def _grant(self, seconds: float) -> None:
        """
        Take a new identity, and a lease for it.
        """
        with self._registering:
            sent = self.clock()
            old = self._node.lease
            lease, ttl = self.client.grant_new(self.times.ttl, timeout=seconds)
            with self.changed:
                self._become(secrets.token_urlsafe(6), lease, ttl, sent)
            if old:
                self._revoke(old, seconds)

    def _revoke(self, lease: int, seconds: float) -> None:
        """
        Revoke a lease; at worst it expires.
        """
        try:
            self.client.revoke(lease, timeout=seconds)
        except EtcdError as error:
            log.debug("A lease was not revoked: %s", error)

    def _become(self, node: str, lease: int, ttl: int, sent: float) -> None:
        self._place.hold(node)
        self._node = replace(
            self._node, id=node, lease=lease, created=0, modified=0, left=NONE_LEFT
        )
        self._key = self.keys.node(self._place.name, node)
        self._ttl = ttl or self.times.ttl
        self._registered = self._lost = False
        self._renewed = sent
        self.due.notify_all()

    def _register(self, seconds: float) -> bool:
        """
        Register the node.
        """
        if not self._node.lease or self._lost:
            self._grant(seconds)
        with self._registering:
            for build in (requests.register, requests.reopen):
                known = self.mirror.latest
                reply = self._send(
                    build(self.keys, self._place.name, self._node),
                    f"register the node '{self._key.decode()}'",
                    seconds,
                )
                registered = self._take_in(reply, known)
                if registered or not self.view.closed:
                    break
        if not registered:
            if self.view.closed:
                raise ClosedError(spare=False)
            self._lose("its lease ended while it joined")
            return True
        self._evict_the_dead(reply.ranges[0].entries, seconds)
        return True

    def _evict_the_dead(self, entries: list[wire.Entry], seconds: float) -> None:
        """
        End the leases of nodes of the same place that are sure to be dead.
        """
        for entry in entries:
            node = node_id(entry.key)
            if entry.key == self._key or not self._place.is_dead(node):
                continue
            self.log.info(
                "The node %s of this place is dead; its lease ends now.", node
            )
            self._revoke(entry.lease, seconds)

    def _take_in(self, reply: wire.TxnReply, known: int) -> bool:
        """
        Take in the reply of a transaction that may have registered the node.

        Args:
            reply: The reply.
            known: See :meth:`load`.

        Returns:
            Whether it is registered.
        """
        place, common = reply.ranges
        found = False
        with self.changed:
            for entry in place.entries:
                if entry.key == self._key:
                    found = self._registered = True
                    self._lost = False
                    self._node = replace(
                        self._node,
                        created=entry.create_revision,
                        modified=entry.mod_revision,
                        lease=entry.lease,
                    )
            self.load(common.entries, reply.revision, known)
            # The watch may have told all of it before this node knew itself.
            self._see_to_office()
        return found

    def _leave(self, number: int, seconds: float) -> bool:
        """
        Leave a round; whoever is gone by then has to register anew.
        """
        with self._registering:
            if not self.registered:
                return True
            node = replace(self._node, left=max(number, self._node.left))
            try:
                reply = self._send(
                    requests.leave(self.keys, self._place.name, node),
                    f"leave round {number} with the node '{self._key.decode()}'",
                    seconds,
                )
                left = requests.has_left(reply, node)
            except LeaseNotFoundError:
                left = None
            if left is None:
                self._lose(f"its lease ended before it left round {number}")
                return True
            with self.changed:
                self._node = left
        return True

    def _is_fresh(self) -> bool:
        return self.clock() - self._renewed < self._ttl * _FRESH_PART_OF_TTL

    def _renew_now(self, seconds: float) -> bool:
        """
        Renew the lease; say whether it was there.
        """
        sent = self.clock()
        ttl = self.client.keep_alive(self._node.lease, timeout=seconds)
        if not ttl:
            self._lose("its lease has ended")
            return False
        self._has_renewed(sent, ttl)
        return True

    def _say_in(self, seat: Seat) -> None:
        self.log.info(
            "Round %d of '%s' has %d nodes; this one is rank %d.",
            seat.round.number,
            self.run_id,
            len(seat.round.members),
            seat.rank,
        )

    def check_running(self) -> None:
        """
        Raise ``ClosedError`` if somebody has ended the node meanwhile.
        """
        if not self._running:
            raise ClosedError(spare=False)

    # -- leaving ----------------------------------------------------------------------

    def close(self, seconds: float) -> None:
        """
        Close the run.

        Args:
            seconds: The most seconds to take.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        deadline = self.clock() + seconds
        patient = self.client.patiently()
        own = self.registered
        if not self._running:
            # What was known once may be long ago.
            self._reload(seconds)
        while not self.view.closed:
            left = max(deadline - self.clock(), _LEAST_CALL_SECONDS)
            lease = self.run_lease.current(left)
            known = self.mirror.latest
            request = requests.close(
                self.keys,
                self._key if own else None,
                self._node,
                self.view.round_revision,
                lease,
            )
            try:
                reply = patient.txn(
                    *request, what=f"close the run '{self.run_id}'", timeout=left
                )
            except LeaseNotFoundError:
                self.run_lease.forget(lease)
                if self.clock() >= deadline:
                    raise
                continue
            if reply.succeeded:
                self.tell(requests.told(request, reply.revision))
                return
            self.load(reply.ranges[0].entries, reply.revision, known)
            own = False
            if self.clock() >= deadline and not self.view.closed:
                raise EtcdConnectionError(
                    f"Could not close the run '{self.run_id}': it changes all the time."
                )

    def withdraw(self, seconds: float) -> None:
        """
        End the node: its lease, and the threads. Joining registers anew.

        Nothing is raised: at worst the lease expires.

        Args:
            seconds: The most seconds that etcd may take.
        """
        if self._pid != os.getpid():
            return  # What a fork has inherited is not its own.
        with self.changed:
            lease, self._node = self._node.lease, replace(self._node, lease=0)
            self._running = self._registered = False
            self._seat = None
            watch, closer = self._watch, self._closer
            self._closer = None
            self.changed.notify_all()
            self.due.notify_all()
        if watch is not None:
            watch.interrupt()
        if closer is not None:
            closer.stop()
        if lease:
            self._revoke(lease, seconds)
        self._place.release()
        current = threading.current_thread()
        for thread in [*self._threads, *([closer.thread] if closer else [])]:
            if thread is not current and thread.is_alive():
                thread.join(_AGAIN_SECONDS)

    # -- what tells news --------------------------------------------------------------

    def tell(self, events: list[wire.Event]) -> None:
        """
        Take in changes of the common keys.
        """
        with self.changed:
            if self.mirror.tell(events):
                self._apply_rules()

    def load(self, entries: list[wire.Entry], revision: int, known: int) -> None:
        """
        Take in what a read of the common keys has found.

        Args:
            entries: The keys.
            revision: The revision of the read.
            known: What ``mirror.latest`` was before it. A read that is older is one of
                an etcd that has lost its data.
        """
        with self.changed:
            # Unless another reply has told so before.
            lost_data = revision < known <= self.mirror.latest
            if lost_data:
                self.mirror.forget()
                if self._watch is not None:
                    # What it has told meanwhile was taken for old news.
                    self._watch.interrupt()
            if self.mirror.load(entries, revision) or lost_data:
                self._apply_rules()

    def _apply_rules(self) -> None:
        """
        Do what follows from all that is known; called whenever it has changed.
        """
        before, view = self.view, view_of(self.mirror, self.keys)
        if view.corrupt:
            # Whoever joins is told. A running round does without.
            view = replace(
                view, round=before.round, round_revision=before.round_revision
            )
        self.view = view
        self._say_news(before.round, view)
        if self.view.progress != before.progress:
            self._progress_at = self.clock()
        self._see_to_office()
        closer, office = self.view.closer, self.view.office
        if replace(before, closer=closer, office=office) != self.view:
            # Each thread that is woken costs: not for who closes.
            self.changed.notify_all()

    def _say_news(self, before: Round | None, view: View) -> None:
        """
        Say what has become of the round that this node is in.
        """
        seat, last = self._seat, view.round
        if seat is None or last is None or before is None or view.closed:
            return
        if not last.number == before.number == seat.round.number:
            return
        if last.broken and not before.broken:
            then = "its other nodes meet again" if self._restart else "it goes on"
            self.log.warning(
                "Round %d of '%s' has lost %d of its %d nodes%s; %s (on_node_loss=%s).",
                last.number,
                self.run_id,
                last.lost_count,
                len(last.members),
                listed(last.lost, last.lost_count),
                then,
                "restart" if self._restart else "ignore",
            )
        elif last.waiting and not before.waiting:
            self.log.info(
                "Others want to join '%s': its nodes meet again.", self.run_id
            )

    def _see_to_office(self) -> None:
        """
        Run the closer if this node is it; see to it that there is one.
        """
        view = self.view
        if not self._running or not self.registered:
            self._office_at = None
            return
        if view.closer == self._node.id:
            self._office_at = None
            closer, me = self._closer, self._node.id
            if closer is None or not closer.serves(me, view.office):
                if closer is not None:
                    closer.stop()
                self._closer = Closer(self, view.office)
                self._closer.start()
        elif view.closer is not None or not self.mirror.read:
            self._office_at = None
        elif self._office_at is None:
            size = len(view.round.members) if view.round else 0
            longest = _OFFICE_SECONDS + _OFFICE_SECONDS_A_NODE * size
            self._office_at = self.clock() + retry.RANDOM.uniform(0, longest)
            self.due.notify_all()

    def _lose(self, why: str) -> None:
        """
        Take note that the lease is gone.
        """
        with self.changed:
            if self._lost or not self._running:
                return
            self._lost = True
            if self._registered:
                self._registered = False
                self.log.warning(
                    "This node is out of '%s', since %s: it was paused or cut off for "
                    "longer than %g s (keep_alive_interval x keep_alive_max_attempt), "
                    "or the run was deleted, or etcd lost its data. It joins the next "
                    "round.",
                    self.run_id,
                    why,
                    self._ttl,
                )
            self._see_to_office()
            self.changed.notify_all()

    def _send(
        self, request: requests.Request, what: str, seconds: float
    ) -> wire.TxnReply:
        return self.client.txn(*request, what=what, timeout=seconds)

    # -- the threads ------------------------------------------------------------------

    def _start(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("A handler can't be used in a child after fork.")
        with self.changed:
            if self._running:
                return
            self._running = True
            self._watch = self._watch_error = None
            self.mirror.forget()
            self.view = View()
            self._threads = [
                threading.Thread(
                    target=self._guarded,
                    args=(work,),
                    name=f"etcd-rendezvous {name}",
                    daemon=True,
                )
                for work, name in (
                    (self._read_watch, "watch"),
                    (self._keep, "keep-alive"),
                )
            ]
            for thread in self._threads:
                thread.start()

    def _has(self, thread: threading.Thread) -> bool:
        """
        Say whether a thread is one of this node's now, and not of an earlier time.
        """
        return self._running and thread in self._threads

    def _guarded(self, work: Callable[[], None]) -> None:
        """
        Do a thread's work, again if it ends in what nobody has foreseen.
        """
        me = threading.current_thread()
        while self._has(me):
            try:
                work()
            except Exception:  # the node's life hangs on this thread
                self.log.exception("A thread of '%s' is started again.", self.run_id)
                self.pause(_AGAIN_SECONDS)

    def _read_watch(self) -> None:
        """
        Read the watch for as long as the node runs; open it again when it breaks.
        """
        me = threading.current_thread()
        # Whether anything was known before the watch.
        again = self.mirror.read > 0
        failures = 0
        end = wire.prefix_end(self.keys.common)
        create = wire.watch_create(self.keys.common, end, watch_id=1)
        while self._has(me):
            try:
                with self.client.watch(
                    [create], what=self.watching_what, timeout=_WATCH_SECONDS
                ) as watch:
                    if again:
                        self._reload()
                    with self.changed:
                        if not self._has(me):
                            return
                        self._watch, self._watch_error = watch, None
                        self.changed.notify_all()
                    for events in watch.batches(None):
                        failures = 0
                        self.tell(events)
            except EtcdError as error:
                with self.changed:
                    if not self._has(me):
                        return
                    self._watch, self._watch_error = None, error
                    self.changed.notify_all()
                log.debug("The watch of '%s' broke: %s", self.run_id, error)
            again = True
            if self._running:
                self.pause(retry.pause_seconds(min(failures, 4)))
            failures += 1

    def _reload(self, seconds: float = _WATCH_SECONDS) -> None:
        """
        Read all common keys.

        Args:
            seconds: The most seconds to take.

        Raises:
            EtcdError: etcd can't be reached, or refuses.
        """
        known = self.mirror.latest
        end = wire.prefix_end(self.keys.common)
        found, revision = self.client.range(self.keys.common, end, timeout=seconds)
        self.load(found.entries, revision, known)

    def _keep(self) -> None:
        """
        Renew the leases, look after the watch, and take the office if it is empty.
        """
        me = threading.current_thread()
        guard_at = self.clock() + _guard_seconds()
        run_at = self.clock() + min(
            self.run_lease.seconds_between_beats, _WATCH_SECONDS
        )
        retry_at = float("-inf")
        while True:
            with self.changed:
                if not self._has(me):
                    return
                now = self.clock()
                has_lease = bool(self._node.lease) and not self._lost
                beat_at = max(self._renewed + self._interval, retry_at)
                due = [guard_at, run_at]
                due += [beat_at] if has_lease else []
                due += [self._office_at] if self._office_at is not None else []
                closer = self._closer
                due += [closer.wake_at] if closer is not None else []
                if min(due) > now:
                    self.due.wait(min(due) - now)
                    continue
                office = self._office_at is not None and self._office_at <= now
            if has_lease and beat_at <= now:
                if not self._beat_once():
                    retry_at = self.clock() + _AGAIN_SECONDS
            elif office:
                self._take_office()
            elif closer is not None and closer.wake_at <= now:
                closer.wake()
            elif run_at <= now:
                answered = self.run_lease.beat(self.call_seconds)
                between = self.run_lease.seconds_between_beats
                again = between if answered else min(between, _GUARD_SECONDS) / 3
                run_at = self.clock() + again
            elif guard_at <= now:
                guard_at = self.clock() + _guard_seconds()
                self._look_after_watch()
                self._look_out()

    @property
    def call_seconds(self) -> float:
        """
        The most that a request of the node's own threads may take.

        No longer than the time between renewals, which one of them sends.
        """
        longest = min(self.times.call, self._interval)
        return max(longest, _LEAST_CALL_SECONDS)

    def _beat_once(self) -> bool:
        """
        Renew the lease once; move the watch to where that succeeded.

        Returns:
            Whether etcd answered.
        """
        lease = self._node.lease
        sent = self.clock()
        failed = self._away_error is not None
        try:
            ttl = self.client.keep_alive(lease, timeout=self.call_seconds)
        except EtcdError as error:
            self._has_failed(error)
            return False
        if ttl:
            self._has_renewed(sent, ttl)
        elif not self._come_back(lease):
            return False
        where = self.client.last_endpoint
        move(self._watch, where, anyway=failed)
        closer = self._closer
        if closer is not None:
            closer.move_watch(where, anyway=failed)
        return True

    def _has_renewed(self, sent: float, ttl: int) -> None:
        with self.changed:
            if self._is_late(sent):
                self._away_until = self.clock() + self.seconds_of_grace
            self._renewed = max(self._renewed, sent)
            self._ttl = ttl
        self._is_back()

    def _is_back(self) -> None:
        self._away_error = None
        self._outages.end()
        self._on_beat(None)

    def _has_failed(self, error: EtcdError) -> None:
        self._away_error = error
        self._on_beat(error)
        if self._seat is not None:  # Whoever joins says so by itself.
            self._outages.begin(str(error), absence(error))

    def _come_back(self, lease: int) -> bool:
        """
        Do what there is to do for a node whose lease is gone.

        Returns:
            False if that has to be tried again.
        """
        with self._registering:
            if self._node.lease != lease or self._lost:
                return True
            seat = self._seat
            try:
                for _ in range(_RESUME_TRIES):
                    last = self.view.round
                    if seat is None or last is None or not _goes_on(seat.round, last):
                        break
                    if self._resume(last):
                        return True
                else:
                    return False
            except LeaseNotFoundError:
                return False
            except EtcdError as error:
                self._has_failed(error)
                return False
            self._lose("its lease has ended")
        return True

    def _resume(self, last: Round) -> bool:
        """
        Come back into the running round, which nobody has ended.

        Args:
            last: The round, as it is known.

        Returns:
            Whether it was so; if not, the view tells why.
        """
        sent = self.clock()
        seconds = self.call_seconds
        lease, ttl = self.client.grant_new(self.times.ttl, timeout=seconds)
        run_lease = self.run_lease.current(seconds)
        node = replace(self._node, lease=lease, created=0)
        known = self.mirror.latest
        reply = self._send(
            requests.resume(
                self.keys, self._place.name, node, last.revision, run_lease
            ),
            f"come back with the node '{self._key.decode()}'",
            seconds,
        )
        if not self._take_in(reply, known):
            return False
        if not self._running:
            self._revoke(lease, seconds)
            return True
        with self.changed:
            self._away_until = self.clock() + self.seconds_of_grace
            self._renewed, self._ttl = sent, ttl or self.times.ttl
        self.log.warning(
            "The lease of this node had ended while etcd was away; it is back in round "
            "%d of '%s', which goes on.",
            last.number,
            self.run_id,
        )
        self._is_back()
        return True

    def _take_office(self) -> None:
        with self.changed:
            self._office_at = None
            if not self.registered or self.view.closer is not None:
                return
            known = self.mirror.latest
            request = requests.take_office(self.keys, self._key, self._node)
        try:
            reply = self._send(
                request,
                f"write the key '{self.keys.closer.decode()}'",
                self.call_seconds,
            )
        except LeaseNotFoundError:
            return  # The next renewal tells.
        except EtcdError as error:
            log.debug("The office of '%s' was not taken: %s", self.run_id, error)
            with self.changed:
                self._office_at = self.clock() + _AGAIN_SECONDS
            return
        if reply.succeeded:
            self.tell(requests.told(request, reply.revision))
        else:
            self.load(reply.ranges[0].entries, reply.revision, known)

    def _look_after_watch(self) -> None:
        """
        Open the watch again if it has missed anything.
        """
        with self.changed:
            self._see_to_office()
            watch = self._watch
            known = self.mirror.latest
            count = len(self.mirror)
        if watch is not None and has_missed(
            self.client, self.keys.common, known, count, self.call_seconds
        ):
            watch.interrupt()

    def _look_out(self) -> None:
        """
        Let the closer look how full etcd is.
        """
        if self.view.closer == self._node.id and self._away_error is None:
            self._lookout.look()

    def pause(self, seconds: float) -> None:
        """
        Sleep, unless the node ends.
        """
        with self.changed:
            if self._running:
                self.changed.wait_for(lambda: not self._running, seconds)


class _Wait:
    """
    One node's wait for a round.

    Args:
        node: The node.
        started: When it began.
        seconds: The most seconds that it takes, those as a spare apart.
    """

    def __init__(self, node: LiveNode, started: float, seconds: float) -> None:
        self._node = node
        self._seconds = seconds
        self._deadline = started + seconds
        self._is_spare = False
        # Whether it was a spare, with no room for it, at the last look.
        self._had_no_room = False
        self._speak_from = started + _PATIENCE_SECONDS
        self._said = ""
        self._said_at = float("-inf")

    def until_done(self, work: Callable[[float], bool]) -> bool:
        """
        Try something until etcd has answered it.

        Args:
            work: Is called with the seconds that it may take.

        Returns:
            What it returns.
        """
        failures = 0
        while True:
            self._node.check_running()
            left = self._deadline - self._node.clock()
            try:
                return work(min(max(left, _LEAST_CALL_SECONDS), _CALL_SECONDS))
            except LeaseNotFoundError:
                self._node._lose("its lease ended while it joined")  # noqa: SLF001
                return True
            except EtcdError as error:
                if is_hopeless(error):
                    raise HopelessError(error) from error
                if self._node.clock() >= self._deadline:
                    raise TimeUpError(str(error), error) from error
                self._speak(f"{absence(error)}: {error}")
            left = self._deadline - self._node.clock()
            pause = min(retry.pause_seconds(min(failures, 4)), _LONGEST_PAUSE_SECONDS)
            time.sleep(max(min(pause, left), 0.0))
            failures += 1

    def look_at(self, view: View) -> None:
        """
        Raise what ends the wait.
        """
        last, most = view.round, self._node.rules.max_nodes
        # Not so who was in it, and waits until the others have left it, too.
        self._is_spare = (
            last is not None
            and not last.broken
            and len(last.members) >= most
            and self._node.node.id not in last.members
        )
        if view.closed:
            raise ClosedError(spare=self._is_spare)
        if view.corrupt:
            raise CorruptError(view.corrupt)
        has_no_room = self._is_spare and not (last and last.waiting)
        if has_no_room or self._had_no_room:
            # It has as long as anybody else once there is room.
            self._deadline = self._node.clock() + self._seconds
        self._had_no_room = has_no_room
        if self._node.clock() >= self._deadline:
            raise TimeUpError(self._state(), self._node._away_error)  # noqa: SLF001

    def seconds_to_next(self) -> float:
        """
        Return how long to wait for news at most.
        """
        now = self._node.clock()
        speak_at = max(self._speak_from, self._said_at + _PATIENCE_SECONDS)
        return max(min(self._deadline, speak_at) - now, 0.001)

    def speak(self) -> None:
        """
        Say what is waited for, if it has changed, or was not said for long.
        """
        node = self._node
        now = node.clock()
        if now < max(self._speak_from, self._said_at + _PATIENCE_SECONDS):
            return
        away = node._away_error or node._watch_error  # noqa: SLF001
        state = f"{absence(away)}: {away}" if away else self._state()
        # Seconds that go by are no change.
        timeless = state if away else self._state(0.0)
        if timeless == self._said and now < self._said_at + _SPEAK_AGAIN_SECONDS:
            self._speak_from = now + 1
            return
        self._speak(state, timeless)

    def _speak(self, state: str, timeless: str | None = None) -> None:
        now = self._node.clock()
        if now < self._speak_from:
            return
        left = max(self._deadline - now, 0.0)
        until = "" if self._is_spare else f", {left:.0f} s left"
        said = self._node.beat.warn(
            f"Waiting to join '{self._node.run_id}'{until}: {state}"
        )
        if said:
            self._said, self._said_at = timeless or state, now
        else:
            self._speak_from = now + 1

    def _state(self, since: float | None = None) -> str:
        node = self._node
        if since is None:
            since = node.clock() - node._progress_at  # noqa: SLF001
        return describe_wait(node.view, node.rules, node.node.id, since)


def _goes_on(mine: Round, last: Round) -> bool:
    """
    Say whether the last round is still the one that a node is in.
    """
    same = last.number == mine.number and last.members == mine.members
    return same and not last.broken


def _guard_seconds() -> float:
    return _GUARD_SECONDS * retry.RANDOM.uniform(0.85, 1.15)
