# SPDX-License-Identifier: BSD-3-Clause
"""
torch's ``DynamicRendezvousHandler``, mended where any node, or etcd, may die.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from typing import Any

from torch.distributed import DistNetworkError, DistStoreError, Store
from torch.distributed.elastic.events import get_logging_handler
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousSettings,
    _BackendRendezvousStateHolder,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    create_handler as create_torch_handler,
)

from ._backend import CONNECTION_FAILED, EtcdRendezvousBackend
from ._clocks import ClockWatch
from ._guard import GuardedBackend
from ._log import BEAT_SECONDS, SlowBeat, SlowLog, log
from ._metrics import Metrics
from ._outages import Outages, absence, is_hopeless, listed, nodes, span
from ._settings import HANDLER_SETTINGS
from ._signals import signalled
from ._space import Growth

__all__ = ["EtcdRendezvousHandler", "settings_of_torch"]

# What a poll of the agent's loop may take, all in all, and how soon it tries again.
POLL_SECONDS = 3.0
POLL_AGAIN_SECONDS = 1.0
LEAST_BOOTSTRAP_SECONDS = 20.0
_RETRY_SECONDS = 0.5
# What an operation may take at the end of the time to join: to withdraw, too.
_LEAST_CALL_SECONDS = 1.0


def _raise_if_hopeless(error: Exception) -> None:
    """
    Raise what backend or store has met, if who is joining waits in vain.
    """
    cause = error.__cause__
    if is_hopeless(cause):
        log.error("%s", cause)
        raise RendezvousConnectionError(CONNECTION_FAILED) from cause


class EtcdRendezvousHandler(DynamicRendezvousHandler):
    """
    Set up a rendezvous among nodes, on a backend of this library.

    It is torch's handler with these faults of torch 2.13 mended:

    - With the shared TCPStore, which is the default, survivors of a dead rank 0 kept
      its address and port for the next round. Here every round has its own bootstrap
      store, and all agents of a round report the same one.
    - ``num_nodes_waiting()`` raised, and so ended a healthy agent, when etcd was away
      for a moment. Here it keeps the last answer, and holds the agent's loop up for
      at most a few seconds.
    - An etcd that was away did not age nodes, but looked as if it did: whoever came
      back first evicted the others. Here nobody is evicted before everybody has had
      the time to send a heartbeat again.
    - A rank 0 that died after its round was complete, but before it had said where to
      meet, cost the others the store's whole time-out, and then their lives. Here
      they join the next round.

    Joining waits for an etcd that is away until the join time-out.

    Args:
        made_by_torch: A handler made by torch's own ``create_handler``, which reads
            torch's own settings; its parts are taken over, and it is not to be used
            any more.
        backend: The backend that it was made with.
        name: The name that the launcher asked for.
        on_shutdown: Called when the rendezvous is shut down.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        made_by_torch: DynamicRendezvousHandler,
        backend: EtcdRendezvousBackend,
        name: str,
        on_shutdown: Callable[[], None] | None = None,
    ) -> None:
        self._holder = StateHolder(backend, made_by_torch.settings)
        super().__init__(
            made_by_torch._this_node,  # noqa: SLF001
            made_by_torch.settings,
            name,
            made_by_torch._store,  # noqa: SLF001
            self._holder,
        )
        if _events_are_discarded():
            # torch inspects the whole stack for each event's name before it looks
            # whether anybody listens: half of what a join costs.
            for part in (self, self._holder, self._op_executor):
                part._record = _discard  # noqa: SLF001
        self._backend = backend
        self._on_shutdown = on_shutdown
        self._last_waiting = 0
        self._poll_again_at = float("-inf")
        # One voice for one trouble: what the backend would say of its failures is said
        # here, with what it means for the job.
        backend.leave_reports_to_caller()
        self._beat = self._holder.beat
        self._log = SlowLog()
        settings = self.settings
        expiry = settings.keep_alive_interval * settings.keep_alive_max_attempt
        backend.watch_clocks(ClockWatch(expiry.total_seconds()))
        self._lookout = backend.lookout(settings.keep_alive_interval.total_seconds())
        self._metrics = Metrics(
            lost_swaps=lambda: backend.lost_swaps, failovers=lambda: backend.failovers
        )
        self._outages = Outages(self.settings.run_id, self._beat)

    @classmethod
    def create(
        cls,
        store: Store,
        backend: EtcdRendezvousBackend,
        params: RendezvousParameters,
        on_shutdown: Callable[[], None] | None = None,
    ) -> EtcdRendezvousHandler:
        """
        Create a handler from torch's rendezvous parameters.

        Args:
            store: The store to return as part of the rendezvous.
            backend: The backend to hold the state.
            params: The parameters; see torch's ``dynamic_rendezvous.create_handler``.
            on_shutdown: Called when the rendezvous is shut down.

        Raises:
            ValueError: A parameter can't be used.
        """
        made_by_torch = create_torch_handler(store, backend, params)
        return cls(made_by_torch, backend, params.backend, on_shutdown)

    def times_in_words(self) -> str:
        """
        List the times of torch's handler that take effect, for the log.
        """
        timeout = self.settings.timeout
        seconds = {
            f"{name}_timeout": getattr(timeout, name)
            for name in ("join", "last_call", "close", "heartbeat")
        }
        seconds["keep_alive_interval"] = self.settings.keep_alive_interval
        return ", ".join(
            [f"{name}={value.total_seconds():g} s" for name, value in seconds.items()]
            + [f"keep_alive_max_attempt={self.settings.keep_alive_max_attempt}"]
        )

    def next_rendezvous(self) -> RendezvousInfo:
        """
        Join the next round; see torch's ``RendezvousHandler``.

        Raises:
            RendezvousClosedError: The rendezvous is closed; says when its run id is
                free again.
            RendezvousConnectionError: etcd could not be reached until the join
                time-out; or, at once, a limit of etcd's is reached, or user, password
                or right are refused.
            RendezvousStateError: The state is corrupt.
            RendezvousTimeoutError: The round did not complete in time.
        """
        # torch builds the bootstrap store anew when it holds none. The last round's
        # server lives on until this round is formed: workers of other nodes may
        # still run, and a lost store would count as their failure.
        last_round: Any = self._shared_tcp_store_server  # type: ignore[has-type]
        self._bootstrap_store_info = None
        self._shared_tcp_store_server = None
        self._last_waiting = 0
        join_seconds = self.settings.timeout.join.total_seconds()
        deadline = time.monotonic() + join_seconds
        try:
            with (
                self._metrics.of_joining(),
                self._holder.joining(join_seconds),
                self._short_bootstrap(),
            ):
                while True:
                    try:
                        info = super().next_rendezvous()
                    except DistNetworkError as error:
                        _raise_if_hopeless(error)
                        if time.monotonic() >= deadline:
                            raise RendezvousConnectionError(
                                CONNECTION_FAILED
                            ) from error
                        self._outages.begin(str(error), absence(error.__cause__))
                        time.sleep(_RETRY_SECONDS)
                    except DistStoreError as error:
                        _raise_if_hopeless(error)
                        if time.monotonic() >= deadline:
                            raise
                        self._log.warning(
                            "Rank 0 of round %d of '%s' did not say in %g s where to "
                            "meet; joining the next round.",
                            self._holder.state.round,
                            self.settings.run_id,
                            self._bootstrap_seconds,
                        )
                    else:
                        self._metrics.put_nodes(info.world_size)
                        return info
        except RendezvousTimeoutError as error:
            # torch's has no text, and has withdrawn this node by now.
            state = describe(self._holder.state, self.settings, self._this_node)
            raise RendezvousTimeoutError(
                f"The rendezvous '{self.settings.run_id}' was not joined in "
                f"{join_seconds:g} s (join_timeout): {state}. Do all agents name the "
                "same backend, endpoint, run id and key_prefix?"
            ) from error
        except RendezvousClosedError:
            raise RendezvousClosedError(self._closed_in_words()) from None
        finally:
            self._backend.leave_queue()
            del last_round

    def _closed_in_words(self) -> str:
        left = None
        # It need not be said.
        with (
            suppress(RendezvousConnectionError),
            self._backend.time_limit(POLL_SECONDS),
        ):
            left = self._backend.seconds_left()
        run, closed_ttl = self.settings.run_id, self._backend.closed_ttl
        if left is None:
            when = f"{closed_ttl} s after the last of its agents has ended"
        else:
            when = (
                f"in {left} s if all its agents have ended, else {closed_ttl} s after "
                "the last has"
            )
        return (
            f"The rendezvous '{run}' is closed. Its run id is free again {when} "
            "(closed_ttl); or use another run id."
        )

    @property
    def _bootstrap_seconds(self) -> float:
        """
        How long rank 0 of a round may take to say where to meet.

        By then the others know whether it is dead.
        """
        settings = self.settings
        expiry = settings.keep_alive_interval * settings.keep_alive_max_attempt
        seconds: float = 2 * expiry.total_seconds()
        return max(seconds, LEAST_BOOTSTRAP_SECONDS)

    @contextmanager
    def _short_bootstrap(self) -> Iterator[None]:
        """
        Let the store wait no longer for a rank 0 than until it is known to be dead.
        """
        usual: timedelta = self._store.timeout
        self._store.set_timeout(timedelta(seconds=self._bootstrap_seconds))
        try:
            yield
        finally:
            self._store.set_timeout(usual)

    def num_nodes_waiting(self) -> int:
        """
        Return how many nodes wait for the next round.

        While etcd is away this is the last answer; the call takes at most
        ``POLL_SECONDS`` seconds and about a quarter.

        Raises:
            RendezvousStateError: The state is corrupt.
        """
        started = time.monotonic()
        if started < self._poll_again_at:
            return self._last_waiting
        # A heartbeat that waits for etcd holds the lock.
        if not self._heartbeat_lock.acquire(timeout=POLL_SECONDS):
            self._poll_again_at = time.monotonic() + POLL_AGAIN_SECONDS
            self._outages.begin(
                f"a heartbeat has waited for {POLL_SECONDS:g} s for an answer from "
                f"{self._where()}."
            )
            return self._last_waiting
        try:
            left = POLL_SECONDS - (time.monotonic() - started)
            with self._backend.time_limit(left):
                self._state_holder.sync()
            self._last_waiting = len(self._state_holder.state.wait_list)
            self._outages.end()
        except RendezvousConnectionError as error:
            self._poll_again_at = time.monotonic() + POLL_AGAIN_SECONDS
            self._outages.begin(str(error.__cause__ or error), absence(error.__cause__))
        finally:
            self._heartbeat_lock.release()
        return self._last_waiting

    def _where(self) -> str:
        client = getattr(self._store, "client", None)
        # Ours, or python-etcd's.
        where = getattr(client, "last_endpoint", getattr(client, "base_uri", "etcd"))
        return str(where)

    def shutdown(self) -> bool:
        """
        Close the rendezvous; see torch's ``RendezvousHandler``.

        Not for an agent that a signal ends: the others go on. (torch 2.6 calls this
        then, and every torch does at Ctrl-C while no workers run yet.)

        Returns:
            Whether that was written.
        """
        try:
            if signalled(sys.exc_info()[1]):
                self._stop_heartbeats()
                return False
            with self._backend.time_limit(self.settings.timeout.close.total_seconds()):
                return bool(super().shutdown())
        finally:
            self._backend.leave_queue()
            if self._on_shutdown is not None:
                self._on_shutdown()

    def _close(self) -> None:
        try:
            super()._close()
        except RendezvousConnectionError as error:
            # torch names neither the endpoint nor the reason.
            self._beat.warn(
                f"The rendezvous '{self.settings.run_id}' could not be closed: "
                f"{error.__cause__ or error}"
            )
            raise

    def _keep_alive(self) -> None:
        # Later than this the others take us for dead anyway.
        settings = self.settings
        limit = settings.keep_alive_interval * settings.keep_alive_max_attempt
        with self._backend.time_limit(limit.total_seconds()):
            super()._keep_alive()
        self._look_out()

    def _look_out(self) -> None:
        """
        Let the node of rank 0 look how full etcd is, and how quickly it is filled.
        """
        lookout, state = self._lookout, self._holder.state
        if lookout is None or not lookout.is_due or self._holder.is_away:
            return
        if state.participants.get(self._this_node) == 0:
            interval = self.settings.keep_alive_interval.total_seconds()
            beating = len(state.last_heartbeats)
            lookout.look(Growth(self._backend.state_bytes, beating, interval))


class StateHolder(_BackendRendezvousStateHolder):
    """
    torch's holder of the shared state, which rides out an etcd that is away.

    Args:
        backend: The backend.
        settings: The settings of the rendezvous.
        clock: A monotonic clock, in seconds.
        sleep: What to sleep with.
    """

    def __init__(
        self,
        backend: EtcdRendezvousBackend,
        settings: RendezvousSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(GuardedBackend(backend), settings)
        self._etcd = backend
        self._clock = clock
        self._sleep = sleep
        self._join_since = 0.0
        self._join_until: float | None = None
        self.beat = SlowBeat(clock)
        self._say_progress_at = float("-inf")
        self._last_contact: float | None = None
        self._was_away = False
        self._evict_from = float("-inf")

    @property
    def is_away(self) -> bool:
        """
        Whether etcd did not answer last.
        """
        return self._was_away

    @contextmanager
    def joining(self, seconds: float) -> Iterator[None]:
        """
        Ride out an etcd that is away, and speak of long waits, while joining.

        Args:
            seconds: The join time-out.
        """
        self._join_since = self._clock()
        self._join_until = self._join_since + seconds
        try:
            yield
        finally:
            self._join_until = None

    def sync(self) -> bool | None:
        """
        Read or write the shared state; see torch's.

        Raises:
            RendezvousConnectionError: etcd can't be reached; while joining, not
                until the join time-out, but at once if a limit of etcd's is reached
                or user, password or right are refused.
            RendezvousStateError: The state is corrupt.
        """
        while True:
            if self._dirty:
                self._etcd.say_closed(self._state.closed)
            try:
                with self._within_join():
                    has_set: bool | None = super().sync()
            except RendezvousConnectionError as error:
                self._was_away = True
                if self._join_until is None or self._clock() >= self._join_until:
                    raise
                _raise_if_hopeless(error)
                self._speak(f"{absence(error.__cause__)}: {error.__cause__ or error}")
                self._sleep(_RETRY_SECONDS)
            else:
                self._speak("")
                return has_set

    @contextmanager
    def _within_join(self) -> Iterator[None]:
        if self._join_until is None:
            yield
        else:
            left = self._join_until - self._clock()
            with self._etcd.time_limit(max(left, _LEAST_CALL_SECONDS)):
                yield

    def _sanitize(self) -> None:
        """
        Remove dead nodes, unless etcd was away too short a time ago to tell.

        Whoever comes anew can't know whether it was: it may find old heartbeats of
        nodes that live, and have not yet been able to send another.
        """
        now = self._clock()
        interval = self._settings.keep_alive_interval.total_seconds()
        attempts = self._settings.keep_alive_max_attempt
        # A shorter gap can't have aged anybody who lives by more than one heartbeat.
        harmless = max(interval * (attempts - 1), interval * 1.5, 2.0)
        last = self._last_contact
        if self._was_away or last is None or now - last > harmless:
            self._evict_from = now + interval * attempts
        self._was_away = False
        self._last_contact = now
        # Whoever is evicted from a round that still forms adds itself again.
        if now < self._evict_from and self._state.complete:
            self._dead_nodes: list[Any] = []
            return
        super()._sanitize()

    def _speak(self, trouble: str) -> None:
        """
        Say at a slow beat what a long join waits for.
        """
        now = self._clock()
        if self._join_until is None or now - self._join_since < BEAT_SECONDS:
            return
        run = self._settings.run_id
        left = max(self._join_until - now, 0.0)
        if trouble:
            self.beat.warn(f"Waiting to join '{run}', {left:.0f} s left: {trouble}")
            return
        if now < self._say_progress_at:
            return
        self._say_progress_at = now + BEAT_SECONDS
        self.beat.warn(
            f"Waiting to join '{run}', {left:.0f} s left: "
            f"{describe(self._state, self._settings)}"
        )


def settings_of_torch() -> frozenset[str]:
    """
    Name the settings that the handler of the installed torch reads.

    torch lists them nowhere, but its ``create_handler`` looks up each by its name, or
    by what stands before ``_timeout``.
    """
    constants = create_torch_handler.__code__.co_consts
    names = {text for text in constants if isinstance(text, str)}
    short = {name: name.removesuffix("_timeout") for name in HANDLER_SETTINGS}
    known = {name for name in HANDLER_SETTINGS if short[name] in names}
    newer = {name for name in names.difference(short.values()) if name.isidentifier()}
    return frozenset(known | newer)


def _events_are_discarded() -> bool:
    return isinstance(get_logging_handler("dynamic_rendezvous"), logging.NullHandler)


def _discard(*_: Any, **__: Any) -> None:
    """
    Take the place of a method that records events, where nobody listens.
    """


def describe(state: Any, settings: RendezvousSettings, also: Any = None) -> str:
    """
    Say how far a round is.

    Args:
        state: torch's rendezvous state.
        settings: The settings of the rendezvous.
        also: A node to count with the participants.

    Returns:
        Words such as "2 joined (a, b), 3 to 4 needed".
    """
    there = set(state.participants)
    if also is not None and not state.complete:
        there.add(also)
    names = sorted(node.addr for node in there)
    needed = span(settings.min_nodes, settings.max_nodes)
    joined = f"{len(names)} joined{listed(names, len(names))}"
    if state.complete:
        return (
            f"round {state.round} is running with {nodes(len(names))}"
            f"{listed(names, len(names))}; this node joins the next round, which "
            "begins when the running one ends or makes room"
        )
    if state.deadline is not None and len(names) >= settings.min_nodes:
        left = (state.deadline - datetime.now(timezone.utc)).total_seconds()
        return (
            f"{joined}, enough for round {state.round}, which begins in "
            f"{max(left, 0):.0f} s, or as soon as there are {settings.max_nodes}"
        )
    return f"{joined}, {needed} needed for round {state.round}"
