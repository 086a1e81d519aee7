# SPDX-License-Identifier: BSD-3-Clause
"""
Sizes: requests, histories and databases against the limits of etcd.

The sizes of torch's state are those that ``docs/guarantees.md`` counts: a node with a
name of L characters takes some 55 + L bytes of the pickle, which is stored in base64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from etcd_rendezvous._cli.doctor_facts import History, Job, Look
from etcd_rendezvous._cli.doctor_findings import Finding, fail, good, unknown, warn
from etcd_rendezvous._limits import remedy_of
from etcd_rendezvous._settings import DEFAULT_REQUEST_LIMIT
from etcd_rendezvous._space import DEFAULT_QUOTA, Space

__all__ = [
    "bytes_of_request",
    "history_bytes_per_second",
    "in_words",
    "judge_database",
    "judge_descriptors",
    "judge_history",
    "judge_request",
]

# Of a node in torch's state, besides its name.
_NODE_BYTES: Final = 55
_FIXED_BYTES: Final = 330
# Of a node in the request of etcd-live that completes a round, besides its name: its
# id with a space, the name's quotes and comma.
_LIVE_NODE_BYTES: Final = 12
_LIVE_FIXED_BYTES: Final = 500
_LONG_NAME: Final = 63  # the longest that one part of a host name may be
_V2_LIMIT: Final = 10 * 1024 * 1024
# Of base64 in the body of a form: two of its 64 characters take three bytes.
_FORM: Final = 1 + 2 * 2 / 64

_FULL: Final = 0.8
_OLD_HISTORY: Final = 100_000
_SOON_SECONDS: Final = 7 * 24 * 3600

_NOSPACE: Final = "NOSPACE"
_CORRUPT: Final = "CORRUPT"


def in_words(size: float) -> str:
    """
    Return a number of bytes for people.
    """
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    digits = 0 if unit == "bytes" or size >= 100 else 1
    return f"{size:.{digits}f} {unit}"


def bytes_of_request(nodes: int, name_length: int, *, live: bool = False) -> int:
    """
    Return the bytes of the largest request that a job sends.

    That is torch's state, or for etcd-live what completes a round.

    Args:
        nodes: How many nodes it has.
        name_length: How many characters their names have.
        live: Whether it is etcd-live.
    """
    if live:
        return _LIVE_FIXED_BYTES + nodes * (_LIVE_NODE_BYTES + name_length)
    return (_FIXED_BYTES + nodes * (_NODE_BYTES + name_length)) * 4 // 3


def judge_request(job: Job, api: str) -> Finding:
    """
    Judge whether the largest request of a job is one that etcd takes.

    Args:
        job: The job.
        api: The API that is spoken, ``v2`` or ``v3``.
    """
    check = "requests"
    limit, name = job.request_limit, "request_limit"
    remedy = (
        "raise --max-request-bytes on every member of etcd, and request_limit with it; "
        "or take etcd-live, which has no such state"
    )
    if api == "v2":
        limit, name = int(_V2_LIMIT / _FORM), "etcd's v2"
        remedy = "use etcd-v3 or etcd-live"
    if job.is_live:
        limit, name = DEFAULT_REQUEST_LIMIT, "etcd's default"
        remedy = "raise --max-request-bytes on every member of etcd"
    what = "what completes a round" if job.is_live else "the state"
    needed = bytes_of_request(job.nodes, job.name_length, live=job.is_live)
    longer = bytes_of_request(
        job.nodes, max(_LONG_NAME, job.name_length), live=job.is_live
    )
    one_more = bytes_of_request(2, job.name_length, live=job.is_live)
    one_more -= bytes_of_request(1, job.name_length, live=job.is_live)
    fit = limit // max(one_more, 1)
    says = (
        f"{what} takes {in_words(needed)} for {job.nodes_in_words} with names of "
        f"{job.name_length} characters, of {in_words(limit)} ({name}): {fit:,} would "
        "fit"
    )
    values = {"bytes": needed, "limit": limit, "nodes": job.nodes, "fit": fit}
    if needed >= limit:
        return fail(check, says, remedy, **values)
    if longer >= limit:
        says += f", though not with names of {_LONG_NAME} characters"
        return warn(check, says, remedy, **values)
    return good(check, says, **values)


def judge_descriptors(job: Job, looks: Sequence[Look]) -> Finding | None:
    """
    Judge whether a member could serve all nodes of etcd-live.

    Args:
        job: The job.
        looks: The endpoints.

    Returns:
        The line; None where it does not matter, or the metrics can't be read.
    """
    told = [look.free_descriptors for look in looks]
    room = [number for number in told if number is not None]
    if not (job.is_live and room):
        return None
    needed = 2 * job.nodes + 2
    says = (
        f"etcd needs some {needed:,} file descriptors for {job.nodes_in_words}, and "
        f"the member with the fewest has {min(room):,} left"
    )
    if needed > min(room):
        # The nodes are shared out among the members.
        enough = len(room) < len(looks) or needed <= sum(room)
        return (warn if enough else fail)(
            "descriptors",
            says,
            "raise the limit of etcd's process (ulimit -n, LimitNOFILE=)",
            needed=needed,
            left=min(room),
        )
    return good("descriptors", says, needed=needed, left=min(room))


def judge_database(look: Look) -> Finding:
    """
    Judge how full a member's database is, and its alarms.
    """
    check, status = "database", look.status
    if status is None:
        return unknown(check, "it does not tell us its size")
    quota = look.quota
    size = in_words(status.size)
    if status.in_use is not None:
        size += f", {in_words(status.in_use)} of it in use"
    values = {"bytes": status.size, "in_use": status.in_use, "quota": quota}
    of_quota = f"{size}, of {in_words(quota)} (quota)" if quota else size
    alarms = " ".join(status.errors)
    if _CORRUPT in alarms:
        return fail(
            check,
            f"{of_quota}; the alarm CORRUPT is on: its members hold different data",
            "take no chances: replace the member that differs, or restore a snapshot",
            **values,
        )
    if _NOSPACE in alarms:
        remedy = remedy_of("database space exceeded") or ""
        return fail(
            check,
            f"{of_quota}; the alarm NOSPACE is on, so that it takes no writes",
            remedy,
            **values,
        )
    if quota is None:
        return unknown(
            check,
            f"{size}; its quota is unknown: an etcd before 3.6 tells it only at "
            "/metrics, which can't be read here",
            **values,
        )
    if status.size >= _FULL * quota:
        return warn(
            check,
            f"{of_quota}: it is nearly full, and then takes no writes",
            "compact and defragment every member, or raise --quota-backend-bytes",
            **values,
        )
    return good(check, of_quota, **values)


def history_bytes_per_second(job: Job) -> float:
    """
    Return what the heartbeats of torch's handler write: each rewrites the state.
    """
    if job.is_live:
        return 0.0
    beats = job.nodes / job.beat
    return beats * bytes_of_request(job.nodes, job.name_length)


def judge_history(job: Job, history: History | None, looks: Sequence[Look]) -> Finding:
    """
    Judge whether old revisions go away before they fill etcd.

    Args:
        job: The job.
        history: What etcd holds; None if that is not known.
        looks: The endpoints.
    """
    check = "history"
    if history is None:
        return unknown(check, "whether old revisions are compacted can't be told")
    values = {"revision": history.revision, "compacted": history.compacted}
    if history.compacted:
        says = f"old revisions were compacted; the newest is {history.revision:,}"
        return good(check, says, **values)
    never = f"nothing was ever compacted, at revision {history.revision:,}"
    remedy = (
        "start every member with --auto-compaction-mode=periodic "
        "--auto-compaction-retention=5m (or more), unless they are and have just begun"
    )
    rate = history_bytes_per_second(job)
    if rate:
        room = min((_room(look) for look in looks), default=DEFAULT_QUOTA)
        seconds = room / rate
        values |= {"bytes_per_hour": round(rate * 3600), "seconds_left": round(seconds)}
        never += (
            f"; the heartbeats of {job.nodes_in_words} write {in_words(rate * 3600)} "
            f"an hour, which would use up the {in_words(room)} left of etcd's quota in "
            f"{_duration(seconds)}"
        )
        if seconds < _SOON_SECONDS:
            return warn(check, never, remedy, **values)
    if history.revision >= _OLD_HISTORY:
        return warn(check, never, remedy, **values)
    return good(check, never, **values)


def _room(look: Look) -> int:
    """
    Return how many bytes a member's database may still grow by.
    """
    size = look.status.size if look.status else 0
    return Space(size=size, quota=look.quota or 0).left


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 120:
        return f"{minutes:.0f} min"
    if minutes < 48 * 60:
        return f"{minutes / 60:.0f} h"
    return f"{minutes / 60 / 24:,.0f} days"
