# SPDX-License-Identifier: BSD-3-Clause
"""
Judge what was found out: one endpoint, all of them together, and the probe key.

Pure functions. Where the client has words for a fault, they are its words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Final

from etcd_rendezvous._cli.doctor_facts import Job, Look, Probe
from etcd_rendezvous._cli.doctor_findings import (
    Finding,
    Level,
    fail,
    good,
    unknown,
    warn,
)
from etcd_rendezvous._cli.doctor_sizes import judge_database
from etcd_rendezvous._cli.doctor_versions import judge_version
from etcd_rendezvous._errors import (
    EtcdAuthError,
    EtcdConnectionError,
    EtcdError,
    EtcdProtocolError,
    EtcdReplyError,
)
from etcd_rendezvous._v3 import retry
from etcd_rendezvous._v3.error_texts import UNRESOLVED

__all__ = [
    "judge_backend",
    "judge_cluster",
    "judge_endpoint",
    "judge_probe",
    "judge_reads",
    "judge_refusal",
    "judge_who",
    "percentile",
    "reason_of",
]

_SLOW_NAME_SECONDS: Final = 1.0
_SOON_ENDS_SECONDS: Final = 14 * 24 * 3600
# Nodes that join do so one after the other, and etcd's own members beat each 100 ms.
_SLOW_READ_SECONDS: Final = 0.1
_SLOW_WRITE_SECONDS: Final = 0.1
# etcd's election timeout.
_LATE_SECONDS: Final = 1.0
# As many revisions a member may be behind the others without a word.
_BEHIND: Final = 1_000

_MEND_THE_NAME: Final = "mend the name, or this machine's name service"


def reason_of(error: EtcdError) -> str:
    """
    Return why an operation failed, without what and where.
    """
    return error.reason or str(error).rstrip(".")


# -- one endpoint ------------------------------------------------------------------


def judge_endpoint(
    look: Look, job: Job, *, now: float, others_serve: bool = False
) -> list[Finding]:
    """
    Judge one endpoint, as far as it was looked at.

    Args:
        look: The endpoint.
        job: The job.
        now: The time, in seconds since 1970.
        others_serve: Whether the job could go through another one: then what the client
            goes round is a warning.
    """
    found = [*_judge_way(look, now)]
    if found[-1].level is not Level.FAIL:
        found += _judge_server(look, job)
    if others_serve and _is_gone_round(look):
        found = [
            replace(one, level=Level.WARN) if one.level is Level.FAIL else one
            for one in found
        ]
    return found


def _is_gone_round(look: Look) -> bool:
    """
    Say whether the client tries another endpoint in place of this one.
    """
    unresolved = not look.addresses
    return unresolved or isinstance(look.error, EtcdConnectionError)


def _judge_way(look: Look, now: float) -> list[Finding]:
    found = [_judge_name(look)]
    if not look.addresses:
        return found
    found.append(_judge_connect(look))
    if found[-1].level is not Level.FAIL:
        found.append(_judge_tls(look, now))
    return found


def _judge_name(look: Look) -> Finding:
    check = "name"
    seconds = round(look.resolve_seconds, 3)
    if look.resolve_hung:
        says = f"its host name was not resolved in {look.resolve_seconds:.0f} s"
        return fail(check, says, _MEND_THE_NAME)
    if not look.addresses:
        return fail(check, UNRESOLVED, _MEND_THE_NAME)
    if look.addresses == (look.host,):
        return good(check, "is an address; there is nothing to resolve")
    shown = ", ".join(look.addresses)
    if look.resolve_seconds > _SLOW_NAME_SECONDS:
        return warn(
            check,
            f"{shown}, which took {look.resolve_seconds:.1f} s to resolve",
            "mend this machine's name service: each new connection waits for it",
            seconds=seconds,
        )
    return good(check, shown, seconds=seconds)


def _judge_connect(look: Look) -> Finding:
    check = "tcp"
    if look.connect_seconds is not None:
        took = f"connected in {_milliseconds(look.connect_seconds)}"
        return good(check, took, seconds=round(look.connect_seconds, 6))
    if look.has_v3 or look.error is None:
        return good(check, "connected, at the second try")
    return fail(
        check,
        reason_of(look.error),
        "start etcd there; let it listen on an address that this machine reaches "
        "(--listen-client-urls); let firewalls pass it; or mend the endpoint",
    )


def _judge_tls(look: Look, now: float) -> Finding:
    check = "tls"
    broken = isinstance(look.error, EtcdProtocolError) and not look.error.api_missing
    if look.error is not None and (
        (look.is_secure and broken and look.page is None) or look.speaks_the_other
    ):
        return fail(check, reason_of(look.error))
    if not look.is_secure:
        return good(check, "is not used (http)")
    if look.page is None or look.page.tls is None:
        return unknown(check, "whether its certificate is in order can't be told")
    tls = look.page.tls
    end = datetime.fromtimestamp(tls.ends, timezone.utc).date().isoformat()
    says = f"{tls.version}; the server's certificate ends on {end}"
    if tls.ends - now < _SOON_ENDS_SECONDS:
        return warn(check, says, "renew it", ends=end)
    return good(check, says, ends=end)


def _judge_server(look: Look, job: Job) -> list[Finding]:
    found = [_judge_api(look, job)]
    if look.version is not None or look.has_v3:
        speaks_v3 = look.has_v3 or not job.may_speak_v2
        found.insert(0, judge_version(look.version, v3=speaks_v3))
    if look.has_v3 or look.version is not None:
        found += _judge_member(look)
    if look.page is not None:
        found.append(judge_clock(look, job))
    if look.reads:
        found.append(judge_reads(look.reads))
    return found


def _judge_api(look: Look, job: Job) -> Finding:
    check = "api"
    if look.has_v3 or _is_about_the_member(look):
        both = " and v2" if look.has_v2 else ""
        return good(check, f"etcd's v3 API over HTTP{both}")
    if look.is_for_peers:
        return fail(
            check,
            "it is etcd's port for its peers",
            "name the one for its clients, usually 2379",
        )
    error = look.error
    reason = reason_of(error) if error is not None else "it is not known"
    missing = isinstance(error, EtcdProtocolError) and error.api_missing
    if missing and look.has_v2:
        if job.may_speak_v2:
            return good(check, "etcd's v2 API alone")
        return fail(check, reason, "v2 is served there, which etcd-auto would speak")
    remedy = ""
    if look.page is not None and look.version is None:
        remedy = "mend what answers there, or name etcd itself"
    elif missing and look.version is not None:
        remedy = "start that etcd without --enable-grpc-gateway=false"
    elif isinstance(error, EtcdConnectionError):
        remedy = (
            "see whether that etcd is stopped or overloaded, and whether this is the "
            "port for its clients, usually 2379"
        )
    return fail(check, reason, remedy)


def _is_about_the_member(look: Look) -> bool:
    """
    Say whether it is an etcd, which can't serve a linearizable read now.
    """
    is_learner = look.status is not None and look.status.is_learner
    silent = isinstance(look.error, EtcdConnectionError) and look.version is not None
    return silent or is_learner


def _judge_member(look: Look) -> list[Finding]:
    check, status = "leader", look.status
    if status is not None and status.is_learner:
        leader = fail(
            check,
            "it is a learner, which serves no linearizable reads",
            "name voting members only, or promote it (etcdctl member promote)",
        )
    elif isinstance(look.error, EtcdConnectionError):
        leader = fail(
            check,
            reason_of(look.error),
            "see that a majority of its cluster's members run and reach each other",
        )
    elif not look.has_v3:
        return []
    elif status is None:
        leader = unknown(check, "it does not tell us who leads")
    elif not status.leader:
        leader = warn(check, "it says that nobody leads, as in an election; try again")
    else:
        leads = status.leader == status.member
        says = "it leads" if leads else f"it follows {status.leader:x}"
        leader = good(
            check,
            f"{says} (member {status.member:x}, term {status.term})",
            member=f"{status.member:x}",
            leader=f"{status.leader:x}",
            term=status.term,
            revision=status.revision,
        )
    return [leader, judge_database(look)] if look.has_v3 else [leader]


def judge_clock(look: Look, job: Job) -> Finding:
    """
    Judge how far this machine's clock and a member's are apart.
    """
    check, clock = "clock", look.clock
    if clock is None:
        return unknown(check, "its pages have no date")
    values = {"seconds": round(clock.middle, 2), "least": round(clock.least, 2)}
    if not clock.least:
        says = "no difference between this machine and the member can be seen"
        return good(check, says, **values)
    side = "behind" if clock.middle > 0 else "ahead of"
    says = (
        f"this machine is {abs(clock.middle):.1f} s {side} the member, give or take "
        f"{(clock.high - clock.low) / 2:.1f} s"
    )
    if job.is_live:
        return good(check, f"{says}; etcd-live compares no clocks", **values)
    if clock.least > job.silence / 3:
        return warn(
            check,
            says,
            f"keep the clocks of all nodes in step: those that differ by "
            f"{job.silence} s evict each other (keep_alive_interval x "
            "keep_alive_max_attempt); etcd-live compares no clocks",
            **values,
        )
    return good(check, says, **values)


def judge_reads(reads: Sequence[float]) -> Finding:
    """
    Judge how long linearizable reads took.
    """
    middle, late = percentile(reads, 50), percentile(reads, 99)
    says = (
        f"p50 {_milliseconds(middle)}, p99 {_milliseconds(late)} ({len(reads)} "
        "linearizable reads on one connection)"
    )
    values = {"p50": round(middle, 6), "p99": round(late, 6), "count": len(reads)}
    if middle > _SLOW_READ_SECONDS or late > _LATE_SECONDS:
        return warn(
            "reads",
            says,
            "name an etcd that is nearer, or look why it is slow: nodes that join wait "
            "for each other's round trips",
            **values,
        )
    return good("reads", says, **values)


# -- all endpoints together ----------------------------------------------------------


def judge_cluster(looks: Sequence[Look]) -> Finding | None:
    """
    Judge whether the endpoints are members of one cluster, and at one revision.

    Returns:
        The line; None where fewer than two say who they are.
    """
    check = "cluster"
    v3 = [look.endpoint for look in looks if look.has_v3]
    v2 = [look.endpoint for look in looks if look.has_v2 and not look.has_v3]
    if v2 and v3:
        return fail(
            check,
            f"v3 is served by {', '.join(v3)}, and v2 alone by {', '.join(v2)}: these "
            "are separate keys, so that nodes may not meet",
            "serve the same API on every member",
        )
    told = [(look.endpoint, look.status) for look in looks if look.status is not None]
    statuses = [status for _, status in told]
    if len(told) < 2:
        return None
    clusters: dict[int, list[str]] = {}
    for endpoint, status in told:
        clusters.setdefault(status.cluster, []).append(endpoint)
    if len(clusters) > 1:
        whose = "; ".join(
            f"{', '.join(endpoints)} to {cluster:x}"
            for cluster, endpoints in clusters.items()
        )
        return fail(
            check,
            f"the endpoints belong to {len(clusters)} clusters: {whose}",
            "name the members of one cluster only, or nodes will not meet",
        )
    cluster = f"{statuses[0].cluster:x}"
    members = len({status.member for status in statuses})
    newest = max(status.revision for status in statuses)
    late = [
        f"{endpoint} ({newest - status.revision:,} revisions)"
        for endpoint, status in told
        if newest - status.revision > _BEHIND
    ]
    if late:
        return warn(
            check,
            f"behind the others of cluster {cluster}: {', '.join(late)}",
            "see whether that member is overloaded, or its disk slow",
            cluster=cluster,
        )
    one = "one member" if members == 1 else f"{members} members"
    says = f"{len(told)} endpoints lead to {one} of cluster {cluster}"
    return good(check, says, cluster=cluster, members=members)


def judge_backend(job: Job, api: str, said: Sequence[str]) -> list[Finding]:
    """
    Say which API is spoken; for torch's name, whether torch's own agents could, too.

    Args:
        job: The job.
        api: The API, ``v2`` or ``v3``.
        said: What the library has warned of when it chose.
    """
    check = "backend"
    no_v2 = next((one for one in said if "etcd's v2 API" in one), None)
    if job.is_torchs and no_v2 is not None:
        said = [one for one in said if one is not no_v2]
        if job.takes_over:
            remedy = "let all agents use this library"
            first = warn(check, no_v2, remedy, api=api)
        else:
            remedy = (
                "set ETCD_RENDEZVOUS_INSTALL=1 on every node: without it the name is "
                "torch's own, which fails here; or name etcd-v3"
            )
            first = fail(check, no_v2, remedy, api=api)
    elif job.backend is None:
        first = good(check, f"none is named; {api} can be spoken", api=api)
    else:
        first = good(check, f"{job.backend} speaks {api} here", api=api)
    return [first, *(warn(check, one) for one in said)]


def judge_who(user: str | None, *, given: bool) -> Finding:
    """
    Say as whom etcd takes us.

    Args:
        user: Who etcd has authenticated us as; None for nobody.
        given: Whether a user is among the settings.
    """
    check = "authentication"
    if user is not None:
        return good(check, f"as the user '{user}'", user=user)
    if given:
        return good(check, "etcd does not ask who we are, so the user is not used")
    return good(check, "etcd does not ask who we are")


_ONE_RUN: Final = (
    "or name the job's run with --rdzv-id, if the user may touch that one alone"
)


def judge_refusal(error: EtcdError) -> Finding:
    """
    Say why the client that the plug-in would use is of no use.
    """
    if isinstance(error, EtcdAuthError):
        denied = error.code == retry.PERMISSION_DENIED
        if denied:
            return fail("rights", reason_of(error), _ONE_RUN)
        return fail("authentication", reason_of(error))
    return fail("backend", reason_of(error))


def judge_probe(probe: Probe, api: str) -> list[Finding]:
    """
    Judge what became of the probe key.

    Args:
        probe: The probe.
        api: The API that was spoken, ``v2`` or ``v3``.
    """
    if probe.lease_error is not None:
        return [fail("lease", reason_of(probe.lease_error))]
    found = []
    if api == "v3":
        seconds = probe.lease_seconds
        found.append(good("lease", f"granted for {seconds} s", seconds=seconds))
    if probe.write_error is not None:
        found.append(fail("rights", reason_of(probe.write_error), _ONE_RUN))
        return found
    folder = probe.key.rsplit("/", 1)[0]
    found.append(
        good(
            "rights",
            f"a probe key was written, read and deleted in {folder}",
            key=probe.key,
        )
    )
    if api == "v3":
        found.append(_judge_watch(probe))
    times = [_judge_writes(probe.writes)] if probe.writes else []
    times += [judge_reads(probe.reads)] if probe.reads else []
    if probe.checks_password:
        times = [
            good(
                one.check, f"{one.says}; v2 checks the password each time", **one.values
            )
            for one in times
        ]
    return [*found, *times]


def _judge_watch(probe: Probe) -> Finding:
    check = "watch"
    told = probe.told_seconds
    if told is not None:
        says = f"told of a write within {_milliseconds(told)}"
        return good(check, says, seconds=round(told, 6))
    if isinstance(probe.watch_error, EtcdReplyError):
        return fail(check, reason_of(probe.watch_error))
    why = f" ({reason_of(probe.watch_error)})" if probe.watch_error else ""
    return fail(
        check,
        f"a watch did not tell of a write within {probe.waited_seconds:.0f} s, though "
        f"requests are answered{why}",
        "let what stands in between (a proxy, a load balancer, an ingress) pass on "
        "replies as they come, unbuffered and without an end; or name etcd itself",
    )


def _judge_writes(writes: Sequence[float]) -> Finding:
    middle, most = percentile(writes, 50), max(writes)
    says = (
        f"p50 {_milliseconds(middle)}, at most {_milliseconds(most)} ({len(writes)} "
        "writes)"
    )
    values = {"p50": round(middle, 6), "max": round(most, 6), "count": len(writes)}
    if middle > _SLOW_WRITE_SECONDS:
        return warn(
            "writes",
            says,
            "give etcd a disk of its own that is quick to sync (an SSD): a write waits "
            "for the disks of a majority of its members",
            **values,
        )
    return good("writes", says, **values)


# -- numbers -------------------------------------------------------------------------


def percentile(values: Sequence[float], percent: int) -> float:
    """
    Return the smallest value that so many percent of them do not exceed.

    Args:
        values: At least one value.
        percent: 1 to 100.
    """
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1000
    digits = 0 if milliseconds >= 100 else 1
    return f"{milliseconds:.{digits}f} ms"
