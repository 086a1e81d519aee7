# SPDX-License-Identifier: BSD-3-Clause
"""
Try what a job does: lease, watch, write, read and delete a probe key.

On v3 the key hangs on a lease of a few seconds, on v2 it and its folder have a time to
live: where the doctor is killed, nothing stays.
"""

from __future__ import annotations

import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from etcd_rendezvous._cli.doctor_facts import History, Probe
from etcd_rendezvous._cli.doctor_server import READS, READS_SECONDS, timed
from etcd_rendezvous._errors import EtcdError, EtcdProtocolError, EtcdReplyError
from etcd_rendezvous._runs.report import PROBE_RUN
from etcd_rendezvous._v3 import wire
from etcd_rendezvous._v3.client import EtcdClient
from etcd_rendezvous._v3.state_key import key_of_state

__all__ = ["history_of", "probe_v2", "probe_v3"]

_TTL_SECONDS: Final = 10
_WRITES: Final = 10
_WRITES_SECONDS: Final = 1.0
_LAST_SECONDS: Final = 2.0
_VALUE: Final = b"a probe of etcd-rendezvous doctor"


def probe_v3(client: EtcdClient, key_prefix: str, run_id: str, limit: float) -> Probe:
    """
    Try a probe key on v3, below ``doctor/`` of a run.

    Args:
        client: The client, as the plug-in makes it.
        key_prefix: Where the runs are.
        run_id: The run.
        limit: The most seconds for each step.
    """
    key = f"{key_of_state(key_prefix, run_id)}/doctor/{uuid.uuid4().hex}"
    probe = Probe(key)
    try:
        lease, ttl = client.grant_new(_TTL_SECONDS, timeout=limit)
    except EtcdError as error:
        return replace(probe, lease_error=error)
    probe = replace(probe, lease_seconds=ttl)
    try:
        return _with_the_key(client, probe, lease, limit)
    finally:
        with suppress(EtcdError):
            client.revoke(lease, timeout=_LAST_SECONDS)


def _with_the_key(client: EtcdClient, probe: Probe, lease: int, limit: float) -> Probe:
    key = probe.key
    try:
        probe = _watched(client, probe, lease, limit)
        client.put(key, _VALUE, lease=lease, timeout=limit)
        probe = replace(
            probe,
            writes=timed(
                lambda: client.put(key, _VALUE, lease=lease, timeout=limit),
                _WRITES,
                _WRITES_SECONDS,
            ),
        )
        if not client.keep_alive(lease, timeout=limit):
            raise EtcdReplyError("A lease that was just granted is not known.")
        if client.get(key, timeout=limit) != _VALUE:
            raise EtcdProtocolError(
                "What was read is not what was written; is a cache in between?"
            )
        client.delete(key, timeout=limit)
    except EtcdError as error:
        return replace(probe, write_error=error)
    return probe


def _watched(client: EtcdClient, probe: Probe, lease: int, limit: float) -> Probe:
    """
    Watch the key, write it, and see whether that is told.

    Raises:
        EtcdError: It could not be written.
    """
    refused: EtcdError | None = None
    probe = replace(probe, waited_seconds=limit)
    create = wire.watch_create(probe.key.encode(), watch_id=1)
    try:
        with client.watch([create], what="watch the probe key", timeout=limit) as watch:
            started = time.monotonic()
            try:
                client.put(probe.key, _VALUE, lease=lease, timeout=limit)
            except EtcdError as error:
                refused = error
            else:
                for _ in watch.events(limit):
                    told = time.monotonic() - started
                    return replace(probe, told_seconds=told)
    except EtcdError as error:
        return replace(probe, watch_error=error)
    if refused is not None:
        raise refused
    return probe


def history_of(client: EtcdClient, key: str, limit: float) -> History | None:
    """
    Find out whether history was ever compacted; None if a read fails.

    Args:
        client: The client.
        key: A key that it may read.
        limit: The most seconds for each step.
    """
    try:
        _, revision = client.range(key, keys_only=True, timeout=limit)
        if revision <= 1:
            return History(revision, False)  # Nothing was ever written.
        try:
            client.range(key, keys_only=True, revision=1, timeout=limit)
        except EtcdReplyError as error:
            if wire.COMPACTED not in error.text:
                raise
            return History(revision, True)
    except EtcdError:
        return None
    return History(revision, False)


def probe_v2(client: Any, key_prefix: str, limit: float) -> Probe:
    """
    Try a probe key on v2, in both of torch's paths.

    A key below that of a run would make a folder of it, so it is in one of its own.

    Args:
        client: python-etcd's client, as the plug-in makes it.
        key_prefix: Where the runs are.
        limit: The most seconds for each step.
    """
    import etcd
    from etcd_rendezvous._v2.requests import STORE_PATH, Requests, encode_name

    name = f"{PROBE_RUN}-{uuid.uuid4().hex}"
    folder = f"{key_prefix}/{name}"
    in_store = f"{STORE_PATH}/{encode_name(name.encode())}"
    probe = Probe(folder, checks_password=bool(client.username))
    requests = Requests(client, patient=False, clock=time.monotonic)
    text = _VALUE.decode()
    try:
        requests.run(
            lambda sender: sender.write(folder, None, _TTL_SECONDS, dir=True),
            f"make the folder '{folder}'",
            limit,
            writes=True,
        )
        writes = timed(
            lambda: requests.put(f"{folder}/probe", text, _TTL_SECONDS, limit),
            _WRITES,
            _WRITES_SECONDS,
        )
        probe = replace(probe, writes=writes)
        requests.put(in_store, text, _TTL_SECONDS, limit)
        for key in (f"{folder}/probe", in_store):
            stored = requests.look(key, limit).stored
            if stored is None or stored.value != _VALUE:
                raise EtcdProtocolError(
                    "What was read is not what was written; is a cache in between?"
                )
        reads = timed(
            lambda: requests.look(f"{folder}/probe", limit), READS, READS_SECONDS
        )
        probe = replace(probe, reads=reads)
        requests.run(
            lambda sender: sender.delete(in_store),
            f"delete the key '{in_store}'",
            limit,
            writes=True,
        )
        requests.run(
            lambda sender: sender.delete(folder, recursive=True),
            f"delete the folder '{folder}'",
            limit,
            writes=True,
        )
    except EtcdError as error:
        return replace(probe, write_error=error)
    except etcd.EtcdException as error:
        return replace(probe, write_error=EtcdReplyError(f"etcd's v2 says: {error}."))
    return probe
