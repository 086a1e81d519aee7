# SPDX-License-Identifier: BSD-3-Clause
"""
What the doctor knows before it judges: the job, each endpoint, and what probes met.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from etcd_rendezvous._connect import LIVE_NAMES, TORCH_NAME, V3_NAMES
from etcd_rendezvous._errors import EtcdAuthError, EtcdError
from etcd_rendezvous._settings import DEFAULT_REQUEST_LIMIT

__all__ = [
    "METRICS",
    "Clock",
    "History",
    "Job",
    "Look",
    "Page",
    "Probe",
    "Status",
    "Tls",
    "decode_status",
]

_QUOTA: Final = "etcd_server_quota_backend_bytes"
_MOST_FILES: Final = "process_max_fds"
_OPEN_FILES: Final = "process_open_fds"
#: What is looked for in ``/metrics``.
METRICS: Final = (_QUOTA, _MOST_FILES, _OPEN_FILES)


@dataclass(frozen=True)
class Job:
    """
    What the etcd is to be good for.

    Attributes:
        backend: The name of the job's backend; None if it is not known.
        nodes: How many nodes it has at most.
        name_length: How many characters this machine's name has.
        beat: The seconds between two heartbeats of torch's handler.
        silence: The seconds without one after which it takes a node for dead.
        request_limit: The most bytes of a request.
        takes_over: Whether our library is to serve torch's name `etcd-v2`.
    """

    backend: str | None = None
    nodes: int = 2
    name_length: int = 10
    beat: int = 5
    silence: int = 15
    request_limit: int = DEFAULT_REQUEST_LIMIT
    takes_over: bool = False

    @property
    def is_live(self) -> bool:
        """
        Whether it is etcd-live, which has neither state nor clocks.
        """
        return self.backend in LIVE_NAMES

    @property
    def may_speak_v2(self) -> bool:
        """
        Whether an etcd will do that serves v2 alone.
        """
        return self.backend not in V3_NAMES

    @property
    def is_torchs(self) -> bool:
        """
        Whether its backend has the name of torch's own.
        """
        return self.backend == TORCH_NAME

    @property
    def nodes_in_words(self) -> str:
        """
        How many nodes, for people.
        """
        return "1 node" if self.nodes == 1 else f"{self.nodes:,} nodes"

    def __str__(self) -> str:
        return f"{self.backend or 'a job'} with {self.nodes_in_words}"


@dataclass(frozen=True)
class Clock:
    """
    How far a member's clock is ahead of this machine's: between the two, in seconds.
    """

    low: float
    high: float

    @property
    def middle(self) -> float:
        """
        The likeliest difference.
        """
        return (self.low + self.high) / 2

    @property
    def least(self) -> float:
        """
        What they differ by at least, whichever is ahead.
        """
        return max(self.low, -self.high, 0.0)

    def narrowed(self, other: Clock | None) -> Clock:
        """
        Return what two looks say together.
        """
        if other is None:
            return self
        low, high = max(self.low, other.low), min(self.high, other.high)
        # Where they contradict each other a clock was set meanwhile.
        return Clock(low, high) if low <= high else other


@dataclass(frozen=True)
class Tls:
    """
    What was agreed on in a TLS handshake.

    Attributes:
        version: Such as ``TLSv1.3``.
        ends: When the server's certificate ends, in seconds since 1970.
    """

    version: str
    ends: float


@dataclass(frozen=True)
class Page:
    """
    A plain page of an endpoint, and what came with it.

    Attributes:
        status: The HTTP status.
        body: What it says.
        clock: What its date says of the clocks; None where it has none.
        tls: What was agreed on; None without TLS.
    """

    status: int
    body: bytes
    clock: Clock | None = None
    tls: Tls | None = None


@dataclass(frozen=True)
class Status:
    """
    What a member says of itself.

    Attributes:
        cluster: The identifier of its cluster.
        member: Its own.
        leader: That of the member that leads; 0 for none.
        term: How many elections there have been.
        revision: The revision that it knows.
        is_learner: Whether it has no vote, and serves no linearizable reads.
        size: The bytes of its database.
        in_use: How many of them hold something; None where it does not say.
        quota: How many they may be; None where it does not say.
        errors: Its alarms, and what else is wrong with it, in its words.
    """

    cluster: int
    member: int
    leader: int
    term: int
    revision: int
    is_learner: bool = False
    size: int = 0
    in_use: int | None = None
    quota: int | None = None
    errors: tuple[str, ...] = ()


def decode_status(reply: Mapping[str, Any]) -> Status | None:
    """
    Parse a member's status; None where it is not etcd's.
    """

    def number(name: str) -> int | None:
        return int(reply[name]) if name in reply else None

    try:
        header = reply["header"]
        return Status(
            cluster=int(header["cluster_id"]),
            member=int(header["member_id"]),
            leader=int(reply.get("leader", 0)),
            term=int(header.get("raft_term", 0)),
            revision=int(header.get("revision", 0)),
            is_learner=bool(reply.get("isLearner", False)),
            size=int(reply.get("dbSize", 0)),
            in_use=number("dbSizeInUse"),
            quota=number("dbSizeQuota") or None,
            errors=tuple(map(str, reply.get("errors", ()))),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Look:
    """
    One endpoint, as far as it could be looked at; each look needs those before it.

    Attributes:
        endpoint: The endpoint as a URL.
        host: Its host.
        is_secure: Whether it is named as https.
        addresses: What its host name resolves to; empty if it does not.
        resolve_seconds: How long that took.
        resolve_hung: Whether there was no answer in time.
        connect_seconds: How long a TCP connect took; None if there was none.
        error: What a linearizable read failed with, if it did.
        speaks_the_other: Whether it speaks TLS where it is named as http.
        page: Its page ``/version``.
        version: The version that stands there.
        has_v2: Whether it answers on the v2 API; None if that is not known.
        is_for_peers: Whether it is etcd's port for its peers.
        status: What it says of itself.
        metrics: The numbers of its page ``/metrics`` that matter, by name; empty where
            that can't be read, or was not needed.
        clock: What the dates of its pages say.
        reads: How long each of some reads took, in seconds.
    """

    endpoint: str
    host: str
    is_secure: bool = False
    addresses: tuple[str, ...] = ()
    resolve_seconds: float = 0.0
    resolve_hung: bool = False
    connect_seconds: float | None = None
    error: EtcdError | None = None
    speaks_the_other: bool = False
    page: Page | None = None
    version: str | None = None
    has_v2: bool | None = None
    is_for_peers: bool = False
    status: Status | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    clock: Clock | None = None
    reads: tuple[float, ...] = ()

    @property
    def has_v3(self) -> bool:
        """
        Whether it answers on the v3 API; it may refuse the user.
        """
        answered = self.error is None or isinstance(self.error, EtcdAuthError)
        return bool(self.addresses) and answered

    @property
    def quota(self) -> int | None:
        """
        How many bytes the database may have; None where that is not told.
        """
        own = self.status.quota if self.status else None
        return own or int(self.metrics.get(_QUOTA, 0)) or None

    @property
    def free_descriptors(self) -> int | None:
        """
        How many more files the member may open; None where that is not told.
        """
        if _MOST_FILES not in self.metrics:
            return None
        return int(self.metrics[_MOST_FILES] - self.metrics.get(_OPEN_FILES, 0))

    def will_do(self, job: Job) -> bool:
        """
        Say whether the job could go through it.
        """
        return self.has_v3 or bool(job.may_speak_v2 and self.has_v2)


@dataclass(frozen=True)
class Probe:
    """
    What became of a probe key.

    Attributes:
        key: The key.
        write_error: What writing, reading or deleting it failed with, if anything.
        lease_error: What the lease failed with that it was to hang on.
        lease_seconds: The time to live of that lease.
        watch_error: Why there was no watch.
        told_seconds: How soon a watch told of a write; None if it did not.
        waited_seconds: How long that was waited for.
        writes: How long each of some writes took, in seconds.
        reads: The same of reads, where that was not looked at for each endpoint.
        checks_password: Whether each of them had a password with it, as v2 wants it:
            checking that takes longer than all the rest.
    """

    key: str
    write_error: EtcdError | None = None
    lease_error: EtcdError | None = None
    lease_seconds: int = 0
    watch_error: EtcdError | None = None
    told_seconds: float | None = None
    waited_seconds: float = 0.0
    writes: tuple[float, ...] = ()
    reads: tuple[float, ...] = ()
    checks_password: bool = False


@dataclass(frozen=True)
class History:
    """
    How much history etcd holds.

    Attributes:
        revision: The newest revision, the number of writes ever.
        compacted: Whether any of it was ever dropped.
    """

    revision: int
    compacted: bool
