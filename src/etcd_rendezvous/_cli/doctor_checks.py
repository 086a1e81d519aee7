# SPDX-License-Identifier: BSD-3-Clause
"""
The whole examination: each endpoint, then all of them as the job's backend uses them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from etcd_rendezvous._background import Later
from etcd_rendezvous._cli.doctor_facts import Job, Look
from etcd_rendezvous._cli.doctor_findings import Finding, Group, fail, warn
from etcd_rendezvous._cli.doctor_judgements import (
    judge_backend,
    judge_cluster,
    judge_endpoint,
    judge_probe,
    judge_refusal,
    judge_who,
)
from etcd_rendezvous._cli.doctor_rights import history_of, probe_v2, probe_v3
from etcd_rendezvous._cli.doctor_server import look_at, step_seconds
from etcd_rendezvous._cli.doctor_sizes import (
    judge_descriptors,
    judge_history,
    judge_request,
)
from etcd_rendezvous._connect import choose
from etcd_rendezvous._errors import EtcdConnectionError, EtcdError
from etcd_rendezvous._failover import FAILED_OVER
from etcd_rendezvous._log import log
from etcd_rendezvous._settings import Endpoint, Settings
from etcd_rendezvous._v3.client import EtcdClient
from etcd_rendezvous._v3.state_key import key_of_state

__all__ = ["examine"]

# Whatever hangs in whatever way.
_ENDPOINT_SECONDS: Final = 60.0
# What is spoken where no backend is named: v3, or v2 where that alone is served.
_ANY_BACKEND: Final = "etcd-auto"


def examine(settings: Settings, job: Job, run_id: str) -> tuple[list[Group], str]:
    """
    Examine every endpoint, and then all of them together.

    Args:
        settings: Where etcd is, and as whom we come.
        job: What it is to be good for.
        run_id: The run that the probe key belongs to.

    Returns:
        The lines, and the API that is spoken, ``v2`` or ``v3``.
    """
    looks = _look_at_all(settings, job, run_id)
    serve = [look.will_do(job) for look in looks]
    now = time.time()
    groups = [
        Group(
            look.endpoint,
            judge_endpoint(
                look,
                job,
                now=now,
                others_serve=any(serve[:number] + serve[number + 1 :]),
            ),
        )
        for number, look in enumerate(looks)
    ]
    findings = [warn("settings", note) for note in settings.notes]
    cluster = judge_cluster(looks)
    if cluster is not None:
        findings.append(cluster)
    api = "v3"
    if any(serve):
        more, api = _use(settings, job, run_id, looks)
        findings += more
    findings.append(judge_request(job, api))
    descriptors = judge_descriptors(job, looks)
    if descriptors is not None:
        findings.append(descriptors)
    return [*groups, Group(None, findings)], api


def _look_at_all(settings: Settings, job: Job, run_id: str) -> list[Look]:
    key = key_of_state(settings.key_prefix, run_id)

    one_at_a_time = threading.Lock()

    def look(endpoint: Endpoint) -> Later[Look]:
        return Later(lambda: look_at(endpoint, settings, job, key, one_at_a_time))

    under_way = [(endpoint, look(endpoint)) for endpoint in settings.endpoints]
    until = time.monotonic() + _ENDPOINT_SECONDS
    looks = []
    for endpoint, later in under_way:
        try:
            looks.append(later.result(until - time.monotonic()))
        except TimeoutError:
            error = EtcdConnectionError(
                f"It was looked at for {_ENDPOINT_SECONDS:.0f} s without an end."
            )
            looks.append(
                Look(str(endpoint), endpoint.host, addresses=("?",), error=error)
            )
    return looks


def _use(
    settings: Settings, job: Job, run_id: str, looks: Sequence[Look]
) -> tuple[list[Finding], str]:
    """
    Use the etcd as the plug-in does.
    """
    name = job.backend or _ANY_BACKEND
    limit = step_seconds(settings)
    with _warnings() as said:
        try:
            client, api = choose(name, run_id, settings)
        except EtcdError as error:
            return [judge_refusal(error)], "v3"
        except ModuleNotFoundError as error:
            return [fail("installed", str(error).rstrip("."))], "v2"
        findings = judge_backend(job, api, said)
        if api == "v2":
            probe = probe_v2(client, settings.key_prefix, limit)
            return [*findings, *judge_probe(probe, api)], api
        given = settings.credentials is not None
        findings.append(judge_who(client.user, given=given))
        findings += _probe(client, settings, job, run_id, looks)
    return findings, api


def _probe(
    client: EtcdClient,
    settings: Settings,
    job: Job,
    run_id: str,
    looks: Sequence[Look],
) -> list[Finding]:
    limit = step_seconds(settings)
    with client:
        probe = probe_v3(client, settings.key_prefix, run_id, limit)
        key = key_of_state(settings.key_prefix, run_id)
        history = history_of(client, key, limit)
    return [*judge_probe(probe, "v3"), judge_history(job, history, looks)]


class _Kept(logging.Handler):
    """
    Keep what is logged.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        # A member that fails has lines of its own.
        if not said.startswith(FAILED_OVER):
            self.said.append(said)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """
    Keep what the library warns of, which becomes lines of ours.
    """
    kept = _Kept()
    log.addHandler(kept)
    try:
        yield kept.said
    finally:
        log.removeHandler(kept)
