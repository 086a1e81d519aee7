# SPDX-License-Identifier: BSD-3-Clause
"""
Look at one endpoint: all that can be learned of it without writing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Final

from etcd_rendezvous._cli.doctor_facts import (
    METRICS,
    Job,
    Look,
    Status,
    decode_status,
)
from etcd_rendezvous._cli.doctor_reach import Pages, connect, metrics_in, resolve
from etcd_rendezvous._connect import client_of
from etcd_rendezvous._errors import EtcdError, EtcdProtocolError, EtcdReplyError
from etcd_rendezvous._settings import Endpoint, Settings
from etcd_rendezvous._v3.client import EtcdClient, is_of_v2
from etcd_rendezvous._v3.scheme import speaks_the_other

__all__ = ["READS", "READS_SECONDS", "look_at", "step_seconds", "timed"]

#: How often reads are timed, and for how many seconds at most.
READS: Final = 100
READS_SECONDS: Final = 1.0

_LONGEST_STEP_SECONDS: Final = 5.0
_PAGE_SECONDS: Final = 2.0


def step_seconds(settings: Settings) -> float:
    """
    Return the most seconds that one step may take.
    """
    return min(_LONGEST_STEP_SECONDS, settings.read_timeout)


def look_at(
    endpoint: Endpoint,
    settings: Settings,
    job: Job,
    key: str,
    one_at_a_time: AbstractContextManager[object],
) -> Look:
    """
    Look at one endpoint; each step is taken only where the one before got through.

    Args:
        endpoint: The endpoint.
        settings: How it is reached, and as whom.
        job: What it is to be good for.
        key: A key that the job may read.
        one_at_a_time: Held while times are taken, which others would make longer.
    """
    limit = step_seconds(settings)
    look = Look(str(endpoint), endpoint.host, endpoint.scheme == "https")
    started = time.monotonic()
    try:
        found = resolve(endpoint, limit)
    except TimeoutError:
        return replace(look, resolve_hung=True, resolve_seconds=limit)
    look = replace(
        look,
        resolve_seconds=time.monotonic() - started,
        addresses=tuple(dict.fromkeys(str(one[4][0]) for one in found)),
    )
    if not found:
        return look
    look = replace(look, connect_seconds=connect(found, settings.connect_timeout))
    with (
        client_of(replace(settings, endpoints=(endpoint,))) as client,
        Pages(endpoint, settings.tls, settings.connect_timeout) as pages,
    ):
        try:
            client.range(key, keys_only=True, timeout=limit)
        except EtcdError as error:
            look = replace(look, error=error)
            if look.connect_seconds is None and not look.has_v3:
                return look
        look = _with_pages(look, pages, min(limit, _PAGE_SECONDS))
        if isinstance(look.error, EtcdProtocolError) and not look.is_secure:
            look = replace(look, speaks_the_other=speaks_the_other(endpoint, limit))
        if look.has_v3 or isinstance(look.error, EtcdReplyError):
            look = replace(look, status=_status(client, limit))
        if look.has_v3:
            look = _with_metrics(look, pages, job, min(limit, _PAGE_SECONDS))
        if look.error is None:
            with one_at_a_time:
                reads = timed(
                    lambda: client.range(key, keys_only=True, timeout=limit),
                    READS,
                    READS_SECONDS,
                )
            look = replace(look, reads=reads)
            again = pages.get("/version", min(limit, _PAGE_SECONDS))
            if again is not None and again.clock is not None:
                look = replace(look, clock=again.clock.narrowed(look.clock))
    return look


def _with_pages(look: Look, pages: Pages, limit: float) -> Look:
    page = pages.get("/version", limit)
    if page is None:
        return look
    version = None
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        version = str(json.loads(page.body)["etcdserver"])
    has_v2, for_peers = None, False
    if version is not None:
        v2 = pages.get("/v2/keys", limit)
        has_v2 = v2 is not None and is_of_v2(v2.status, v2.body)
        if not (look.has_v3 or has_v2):
            members = pages.get("/members", limit)
            for_peers = members is not None and members.status == 200
    return replace(
        look,
        page=page,
        version=version,
        has_v2=has_v2,
        is_for_peers=for_peers,
        clock=page.clock,
    )


def _with_metrics(look: Look, pages: Pages, job: Job, limit: float) -> Look:
    told = look.status is not None and look.status.quota is not None
    if told and not job.is_live:
        return look
    page = pages.get("/metrics", limit)
    if page is None or page.status != 200:
        return look
    found = metrics_in(page.body.decode("utf-8", "replace"), METRICS)
    return replace(look, metrics=found)


def _status(client: EtcdClient, limit: float) -> Status | None:
    try:
        return decode_status(client.status(timeout=limit))
    except EtcdError:
        return None


def timed(call: Callable[[], object], times: int, seconds: float) -> tuple[float, ...]:
    """
    Time a call again and again; it ends early when one fails.

    Args:
        call: What is timed.
        times: How often at most.
        seconds: How long at most.

    Returns:
        The seconds that each took.
    """
    took: list[float] = []
    until = time.monotonic() + seconds
    with suppress(EtcdError):
        while len(took) < times and time.monotonic() < until:
            started = time.monotonic()
            call()
            took.append(time.monotonic() - started)
    return tuple(took)
