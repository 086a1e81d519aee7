# SPDX-License-Identifier: BSD-3-Clause
"""
The handler of `etcd-live`: torch's ``RendezvousHandler`` on a live node.
"""

from __future__ import annotations

import itertools
import os
import socket
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.elastic.events import NodeState, construct_and_record_rdzv_event
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

from .._backend import CONNECTION_FAILED
from .._errors import EtcdError
from .._log import log
from .._metrics import Metrics
from .._signals import heeding_sigterm, signalled
from .._v3.client import EtcdClient
from .node import (
    ClosedError,
    CorruptError,
    HopelessError,
    LiveNode,
    Seat,
    Times,
    TimeUpError,
)
from .records import Keys, Node
from .rounds import Rules
from .settings import LiveSettings
from .store import AgentStore

__all__ = ["EtcdLiveRendezvousHandler"]

# What an agent that ends may take for saying so.
_WITHDRAW_SECONDS: Final = 3.0
# What it may take to say that workers have finished; torch says it again at the end.
_FINISH_SECONDS: Final = 5.0
_BACKLOG: Final = 2048
# The first torch whose server on libuv takes a socket that listens already.
_LIBUV_TAKES_SOCKETS: Final = "2.8"
_slots: Final = itertools.count()


class EtcdLiveRendezvousHandler(RendezvousHandler):
    """
    Set up a rendezvous among nodes, told by etcd what happens instead of asking it.

    The counterpart of torch's ``DynamicRendezvousHandler`` (2.13), with the same
    settings and meanings, on etcd's v3 API:

    - A node is a key on a lease of its own. It is dead when etcd says that the lease
      has expired, and no other clock is asked.
    - A round completes by one transaction of one node, the closer; any node can be it,
      and another takes over when it dies.
    - Every node is told of each round, and of a lost node, by a watch.
      :meth:`num_nodes_waiting` and :meth:`is_closed` answer from memory.
    - A round that has lost a node is over (``on_node_loss=restart``): the survivors
      are told to join the next one, and need not wait for a collective's time-out.
    - An agent that a signal ends takes its node along, after its workers; it closes
      nothing.
    - An etcd that is away ends no running round, however long it takes; a node whose
      lease ran out meanwhile comes back into its round if nobody has ended that.

    Not promised: that a node which is cut off from etcd for longer than its lease
    stops at once. It may run beside the next round until its collectives fail, or it
    reaches etcd again.

    Args:
        client: The client, for etcd's v3 API.
        store: The store to return as part of the rendezvous; it tells when the agent
            has finished.
        run_key: The key of the run.
        params: torch's parameters.
        settings: The settings.
        on_shutdown: Called when the rendezvous is shut down.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        client: EtcdClient,
        store: AgentStore,
        run_key: str,
        params: RendezvousParameters,
        settings: LiveSettings,
        on_shutdown: Callable[[], None] | None = None,
    ) -> None:
        self._name: str = params.backend
        self._run_id: str = params.run_id
        self._store = store
        self._settings = settings
        self._on_shutdown = on_shutdown
        self._about = Node(
            id="",
            address=params.local_addr or socket.getfqdn(),
            port=0,
            pid=os.getpid(),
            slot=next(_slots),
            order=settings.rank_order,
        )
        self._node = LiveNode(
            client,
            params.run_id,
            Keys(run_key.encode()),
            store._hand_lease_over(),  # noqa: SLF001
            self._about,
            Rules(
                params.min_nodes,
                params.max_nodes,
                settings.last_call_timeout,
                settings.rejoin_last_call_timeout,
            ),
            Times(
                settings.keep_alive_interval,
                settings.ttl,
                settings.heartbeat_timeout,
            ),
            restart=settings.on_node_loss == "restart",
            on_beat=partial(_call, weakref.WeakMethod(self._record_beat)),
        )
        self._metrics = Metrics(failovers=lambda: client.failovers)
        self._server: Any = None
        # Whether this handler has closed the run, and not joined it since.
        self._is_shut = False
        store.on_finish = partial(_call, weakref.WeakMethod(self._has_finished))
        # The process may end without a shutdown, by a signal for example.
        weakref.finalize(self, self._node.withdraw, _WITHDRAW_SECONDS)

    def times_in_words(self) -> str:
        """
        List the settings of this handler that take effect, for the log.
        """
        return self._settings.in_words()

    def get_backend(self) -> str:
        """
        Return the name that the launcher asked for.
        """
        return self._name

    def get_run_id(self) -> str:
        """
        Return the run id.
        """
        return self._run_id

    @property
    def use_agent_store(self) -> bool:
        """
        Whether workers may use the store that the agent of rank 0 serves; see torch's.
        """
        return os.getenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "0") != "1"

    def next_rendezvous(self) -> RendezvousInfo:
        """
        Join the next round; see torch's ``RendezvousHandler``.

        The first joining starts two threads, of which one reads a watch; the closer has
        one more. Within ``join_timeout`` an etcd that is away is waited for. What a
        node waits as a spare, while a round with ``max_nodes`` runs, does not count.

        Returns:
            Store, rank, world size, and where the store of rank 0 is. That is known
            without a question to anybody: the round names it.

        Raises:
            RendezvousClosedError: The rendezvous is closed.
            RendezvousConnectionError: etcd could not be reached until the join
                time-out; or, at once, a limit of etcd's is reached, or user, password
                or right are refused.
            RendezvousGracefulExitError: The rendezvous was closed while this node was a
                spare.
            RendezvousStateError: A key of the run holds what is not ours.
            RendezvousTimeoutError: The round did not complete in time.
        """
        self._record(
            "next_rendezvous",
            f"The node '{self._this_node}' attempts to join the next round of the "
            f"rendezvous '{self._run_id}'.",
        )
        # The last round's server lives on until this round is formed: workers of other
        # nodes may still run, and a lost store would count as their failure.
        last_server, self._server = self._server, None
        self._is_shut = False
        try:
            listening = _listen()
            try:
                with self._metrics.of_joining(), heeding_sigterm():
                    seat = self._join(listening.getsockname()[1])
                    try:
                        self._serve(seat, listening)
                    except BaseException:
                        self._node.withdraw(_WITHDRAW_SECONDS)
                        raise
            finally:
                listening.close()
        except Exception as error:
            self._record_failure("next_rendezvous", error)
            raise
        finally:
            del last_server
        number, last = seat.round.number, seat.round
        self._metrics.put_nodes(len(last.members))
        self._record(
            "next_rendezvous",
            f"The node '{self._this_node}' has joined round {number} of the rendezvous "
            f"'{self._run_id}' as rank {seat.rank} in a world of size "
            f"{len(last.members)}.",
            rank=seat.rank,
        )
        # As in torch.
        store = PrefixStore(f"torch.rendezvous.{self._run_id}.{number}", self._store)
        return RendezvousInfo(
            store,
            seat.rank,
            len(last.members),
            RendezvousStoreInfo(master_addr=last.address, master_port=last.port),
        )

    def _join(self, port: int) -> Seat:
        settings = self._settings
        try:
            return self._node.join(port, settings.join_timeout)
        except ClosedError as error:
            if error.spare:
                log.warning(
                    "'%s' is closed: its job is over or ends, and this spare is not "
                    "needed any more.",
                    self._run_id,
                )
                # torch's words
                raise RendezvousGracefulExitError(
                    f"The rendezvous '{self._run_id}' is closed, terminating pending "
                    "rendezvous."
                ) from None
            raise RendezvousClosedError(
                f"The rendezvous '{self._run_id}' is closed. Its run id is free again "
                "when the last of its agents has ended; or use another run id."
            ) from None
        except CorruptError as error:
            raise RendezvousStateError(
                f"The key '{error}' of the rendezvous '{self._run_id}' holds something "
                "that etcd-live has not written; delete it, or use another run id."
            ) from None
        except HopelessError as error:
            log.error("%s", error)
            raise RendezvousConnectionError(CONNECTION_FAILED) from error.error
        except TimeUpError as error:
            if error.error is not None:
                log.error("%s", error.error)
                raise RendezvousConnectionError(CONNECTION_FAILED) from error.error
            raise RendezvousTimeoutError(
                f"The rendezvous '{self._run_id}' was not joined in "
                f"{settings.join_timeout:g} s (join_timeout): {error}. Do all agents "
                "name the same backend, endpoint, run id and key_prefix?"
            ) from None

    def _serve(self, seat: Seat, listening: socket.socket) -> None:
        """
        Serve the store that the workers of a round share, if this node is its rank 0.
        """
        if seat.rank == 0 and self.use_agent_store:
            self._server = self._create_tcp_store_server(seat.round.address, listening)

    def _create_tcp_store_server(self, address: str, listening: socket.socket) -> Any:
        port = listening.getsockname()[1]
        return TCPStore(
            host_name=address,
            port=port,
            is_master=True,
            multi_tenant=True,
            master_listen_fd=listening.detach(),
            use_libuv=bool(torch.__version__ >= _LIBUV_TAKES_SOCKETS),
        )

    def num_nodes_waiting(self) -> int:
        """
        Return how many nodes wait for the next round, from memory.

        It is positive, too, for a node that is out of its round, and in one that has
        lost a node. While etcd is away it is the last answer.
        """
        return self._node.waiting()

    def is_closed(self) -> bool:
        """
        Say whether the rendezvous is closed, from memory.
        """
        return self._node.closed

    def set_closed(self) -> None:
        """
        Close the rendezvous.

        Raises:
            RendezvousConnectionError: etcd could not be reached within
                ``close_timeout``, or refuses.
        """
        try:
            self._close()
        except Exception as error:
            self._record_failure("set_closed", error)
            raise

    def _close(self) -> None:
        try:
            self._node.close(self._settings.close_timeout)
        except EtcdError as error:
            self._node.log.warning(
                "The rendezvous '%s' could not be closed: %s", self._run_id, error
            )
            raise RendezvousConnectionError(CONNECTION_FAILED) from error
        self._record(
            "_close",
            f"The node '{self._this_node}' has closed the rendezvous '{self._run_id}'.",
            NodeState.SUCCEEDED,
        )

    def _has_finished(self) -> None:
        """
        Close the rendezvous when the agent's workers have succeeded.

        torch does so when all agents have finished. Until then somebody might come, or
        be lost, and the others would wait for this one, which does not join again.
        """
        try:
            self._node.close(_FINISH_SECONDS)
        except EtcdError as error:
            log.debug("'%s' is not closed yet: %s", self._run_id, error)

    def shutdown(self) -> bool:
        """
        Close the rendezvous, and end this node; see torch's ``RendezvousHandler``.

        Not closed by an agent that a signal ends: the others go on. (torch 2.6 calls
        this then, and every torch does at Ctrl-C while no workers run yet.)

        Returns:
            Whether it was closed.
        """
        closed = self._is_shut
        try:
            if not closed and not signalled(sys.exc_info()[1]):
                try:
                    self._close()
                    closed = self._is_shut = True
                except RendezvousConnectionError as error:
                    self._record_failure("shutdown", error)
            return closed
        finally:
            self._node.withdraw(_WITHDRAW_SECONDS)
            if self._on_shutdown is not None:
                self._on_shutdown()

    @property
    def _this_node(self) -> str:
        # As torch writes it.
        return f"{self._about.address}_{self._about.pid}_{self._about.slot}"

    def _record_beat(self, error: EtcdError | None) -> None:
        if error is None:
            self._record(
                "_keep_alive",
                f"The node '{self._this_node}' has sent a keep-alive heartbeat to the "
                f"rendezvous '{self._run_id}'.",
            )
        else:
            self._record_failure("_keep_alive", error)

    def _record_failure(self, where: str, error: BaseException) -> None:
        self._record(where, f"{type(error).__name__}: {error}", NodeState.FAILED)

    def _record(
        self,
        where: str,
        message: str,
        node_state: NodeState = NodeState.RUNNING,
        rank: int | None = None,
    ) -> None:
        """
        Record an event as torch's handler does.
        """
        try:
            construct_and_record_rdzv_event(
                name=f"{type(self).__name__}.{where}",
                run_id=self._run_id,
                message=message,
                node_state=node_state,
                hostname=self._about.address,
                pid=self._about.pid,
                local_id=self._about.slot,
                rank=rank,
            )
        except Exception as error:  # noqa: BLE001 - of a recorder anything may come
            log.debug("An event was not recorded: %r", error)


def _call(method: weakref.WeakMethod[Callable[..., None]], *args: Any) -> None:
    """
    Call a method of an object, if that is still there.
    """
    bound = method()
    if bound is not None:
        bound(*args)


def _listen() -> socket.socket:
    """
    Listen on a port of this machine's, for the store that rank 0 serves.

    So the port is known, and nobody else's, before there is a round.
    """
    if socket.has_dualstack_ipv6():
        try:
            return socket.create_server(
                ("::", 0),
                family=socket.AF_INET6,
                backlog=_BACKLOG,
                dualstack_ipv6=True,
            )
        except OSError:
            pass  # IPv6 is there, but switched off.
    return socket.create_server(("", 0), backlog=_BACKLOG)
