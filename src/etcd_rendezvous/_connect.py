# SPDX-License-Identifier: BSD-3-Clause
"""
From settings to a client of the API that the server serves. No torch.
"""

from __future__ import annotations

import re
import time
from contextlib import closing
from dataclasses import replace
from typing import Any, Final

from ._errors import (
    EtcdConnectionError,
    EtcdError,
    EtcdProtocolError,
    EtcdReplyError,
)
from ._log import SlowBeat, log
from ._requirements import require_python_etcd
from ._settings import Settings, parse_endpoints
from ._v3.client import EtcdClient
from ._v3.state_key import key_of_state

__all__ = ["choose", "client_of", "who_answers"]

# Both names of each plug-in: torch may take the short one some day.
LIVE_NAMES: Final = frozenset({"etcd-live", "etcd-rendezvous-live"})
V3_NAMES: Final = frozenset({"etcd-v3", "etcd-rendezvous-v3"}) | LIVE_NAMES
AUTO_NAMES: Final = frozenset({"etcd-auto", "etcd-rendezvous-auto"})
TORCH_NAME: Final = "etcd-v2"

# With the pause in between, one probe for each line of the beat.
_PROBE_SECONDS: Final = 9.5
_PROBE_AGAIN_SECONDS: Final = 0.5
_LEAST_PROBE_SECONDS: Final = 2.0
_VERSION_SECONDS: Final = 2.0
_VERSION: Final = re.compile(r"[0-9A-Za-z.+-]{1,40}")


def client_of(settings: Settings) -> EtcdClient:
    """
    Return a client of the v3 API. It asks nothing yet.

    Args:
        settings: The settings.
    """
    who = settings.credentials
    return EtcdClient(
        settings.endpoints,
        cert=settings.tls.cert,
        key=settings.tls.key,
        ca_cert=settings.tls.ca,
        user=who.user if who else None,
        password=who.password() if who and not who.password_file else None,
        password_file=who.password_file if who else None,
        read_timeout=settings.read_timeout,
        connect_timeout=settings.connect_timeout,
    )


def choose(name: str, run_id: str, settings: Settings) -> tuple[Any, str]:
    """
    Return a client for the API to speak, by name and by the server's own answer.

    An etcd that is not up yet is waited for, as ``startup_timeout`` says.

    Args:
        name: The name of the backend.
        run_id: The run.
        settings: The settings.

    Returns:
        An ``EtcdClient`` and ``v3``, or python-etcd's ``etcd.Client`` and ``v2``.

    Raises:
        EtcdError: etcd can't be reached, or does not serve what was asked for.
    """
    client = client_of(settings)
    no_v3: EtcdError | None
    try:
        no_v3 = _wait_for_etcd(client, run_id, settings)
    except EtcdReplyError as error:
        if name in V3_NAMES | AUTO_NAMES:
            raise
        no_v3 = error  # The users of v2 are others than those of v3.
    if name in V3_NAMES and no_v3 is not None:
        raise no_v3
    if name in V3_NAMES | AUTO_NAMES and no_v3 is None:
        _note_v3(client, settings)
        return client, "v3"
    if client.serves_v2(timeout=settings.read_timeout):
        require_python_etcd()
        from ._v2.requests import make_client

        return make_client(settings, client.last_endpoint), "v2"
    if no_v3 is not None:
        raise no_v3
    log.warning(
        "The server at %s does not serve etcd's v2 API, so '%s' speaks v3 here. Agents "
        "with torch's own etcd-v2 can't take part.",
        client.last_endpoint,
        name,
    )
    _note_v3(client, settings)
    return client, "v3"


def who_answers(client: Any, settings: Settings) -> str:
    """
    Say which member answers, and its version if it tells that soon.

    Args:
        client: The client, of either API.
        settings: The settings that it was made with.

    Returns:
        Words such as "etcd 3.5.35 answers at http://etcd0:2379"; where there is one
        endpoint, without it.
    """
    if isinstance(client, EtcdClient):
        endpoint, version = client.last_endpoint, _version(client)
    else:
        # python-etcd would keep what it is told.
        (endpoint,) = parse_endpoints(client.base_uri)
        with closing(client_of(replace(settings, endpoints=(endpoint,)))) as other:
            version = _version(other)
    known = f"etcd {version}" if _VERSION.fullmatch(version) else "etcd"
    where = f" at {endpoint}" if len(settings.endpoints) > 1 else ""
    return f"{known} answers{where}"


def _version(client: EtcdClient) -> str:
    try:
        return client.version(timeout=_VERSION_SECONDS)
    except EtcdError as error:
        # A proxy may hand on no more than the API.
        log.debug("The version of etcd is not known: %s", error)
        return ""


def _note_v3(client: EtcdClient, settings: Settings) -> None:
    """
    Warn of a user that etcd does not ask for.
    """
    if settings.credentials is not None and client.user is None:
        log.warning(
            "The user '%s' is not used, since the v3 API of the etcd at %s does not "
            "authenticate: whoever reaches it can read and change everything in it "
            "('etcdctl auth enable' ends that; users of v2 are others).",
            settings.credentials.user,
            client.last_endpoint,
        )


def _wait_for_etcd(
    client: EtcdClient, run_id: str, settings: Settings
) -> EtcdProtocolError | None:
    """
    Wait until etcd answers a v3 read of the run's state.

    Returns:
        None, or the error that says that the server does not serve v3.

    Raises:
        EtcdError: Nothing answered in time, or it is nothing to wait for.
    """
    # A user needs no rights but on the run's own keys.
    key = key_of_state(settings.key_prefix, run_id)
    started = time.monotonic()
    deadline = started + settings.startup_timeout
    # What connects, but does not answer, has this long although nothing was to be
    # waited for.
    patience = min(_PROBE_SECONDS, settings.read_timeout)
    silent_until = max(deadline, started + patience)
    beat = SlowBeat()
    beat.hold()
    while True:
        probed = time.monotonic()
        limit = max(min(silent_until - probed, _PROBE_SECONDS), _LEAST_PROBE_SECONDS)
        limit = min(limit, settings.read_timeout)
        try:
            client.range(key, keys_only=True, timeout=limit)
        except EtcdProtocolError as error:
            if error.api_missing:
                return error
            raise
        except EtcdConnectionError as error:
            silent = time.monotonic() - probed >= limit
            left = (silent_until if silent else deadline) - time.monotonic()
            if left <= 0:
                raise _gave_up(error, settings) from error.__cause__
            beat.warn(f"Waiting for etcd, {left:.0f} s left: {error}")
            time.sleep(min(_PROBE_AGAIN_SECONDS, left))
        else:
            return None


def _gave_up(error: EtcdConnectionError, settings: Settings) -> EtcdConnectionError:
    if not settings.startup_timeout:
        return error
    return EtcdConnectionError(
        f"{error} It was tried again for {settings.startup_timeout} s "
        "(startup_timeout)."
    )
