# SPDX-License-Identifier: BSD-3-Clause
"""
From torch's rendezvous parameters to backend, store and handler.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from torch.distributed.elastic.events import NodeState, construct_and_record_rdzv_event
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
)

from ._backend import CONNECTION_FAILED, EtcdRendezvousBackend
from ._connect import LIVE_NAMES, TORCH_NAME, choose, who_answers
from ._errors import EtcdError, EtcdSettingError
from ._handler import EtcdRendezvousHandler, settings_of_torch
from ._live.handler import EtcdLiveRendezvousHandler
from ._live.settings import parse_live_settings
from ._live.store import AgentStore
from ._log import log
from ._settings import HANDLER_SETTINGS, Settings, check_text, parse_settings
from ._store import EtcdStore
from ._v3.state_key import key_of_state

if TYPE_CHECKING:
    from ._server import EtcdServer
    from ._v3.client import EtcdClient

__all__ = ["create_backend", "create_handler"]

BACKEND_STARTUP_TIMEOUT: Final = 0  # torch's: an error at once
PLUGIN_STARTUP_TIMEOUT: Final = 60
# As people write it for c10d.
_ANY_PORT: Final = ("localhost:0", "127.0.0.1:0", "[::1]:0")


class Types(NamedTuple):
    """
    The classes of what is created.
    """

    backend: type[EtcdRendezvousBackend]
    store: type[EtcdStore]


OURS: Final = Types(EtcdRendezvousBackend, EtcdStore)


def create_backend(
    params: RendezvousParameters,
) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    """
    Create a backend and a store from torch's rendezvous parameters.

    The counterpart of torch's ``etcd_rendezvous_backend.create_backend`` (2.13), with
    its parameters and defaults: ``read_timeout`` (60 s), ``protocol`` ("http"),
    ``ssl_cert``, ``ssl_cert_key``, ``ca_cert``; without an endpoint it is
    ``localhost:2379``. Ours are ``connect_timeout`` (3 s), ``startup_timeout`` (0 s:
    an etcd that is not there is an error at once), ``key_prefix``
    (``/torch/elastic/rendezvous``), ``ttl`` (7200 s), ``closed_ttl`` (60 s),
    ``request_limit`` (1.5 MiB, etcd's own) and an endpoint that may be a list.
    ``read_timeout`` is the total for an operation.

    Which API is spoken depends on ``params.backend`` and on the server's own answer,
    never on a failure: ``etcd-v3`` (and ``etcd-rendezvous-v3``) v3; ``etcd-auto``
    (and ``etcd-rendezvous-auto``) v3 where it is served, else v2; ``etcd-v2`` or any
    other name v2 where it is served, since torch's own agents may be there, else v3
    with a warning.

    Args:
        params: The parameters.

    Returns:
        The backend and the store.

    Raises:
        RendezvousConnectionError: etcd can't be reached, or does not serve what was
            asked for; the ``__cause__`` says which in a sentence.
        ValueError: A parameter is unknown, or can't be used; or ``etcd-live`` is named,
            whose handler has no backend.
    """
    return backend_of(params, OURS)


def backend_of(
    params: RendezvousParameters, types: Types
) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    """
    Do what :func:`create_backend` does, with classes of the caller's choice.
    """
    if params.backend in LIVE_NAMES:
        raise EtcdSettingError(
            f"'{params.backend}' is a handler without a backend of torch's kind; call "
            "create_handler, or name another backend."
        )
    settings = _settings(params, params.endpoint, BACKEND_STARTUP_TIMEOUT)
    backend, store, api = _create(params, settings, types)
    _say_what_is_spoken(params, settings, store.client, api)
    return backend, store


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """
    Create a handler from torch's rendezvous parameters; what the plug-ins do.

    As :func:`create_backend`, but an etcd that is not up yet is waited for
    (``startup_timeout``, 60 s), and a job of one node (``max_nodes`` 1) without an
    endpoint, or with ``localhost:0``, gets an etcd of its own that ends with it.

    Args:
        params: The parameters.

    Raises:
        RendezvousConnectionError: As of :func:`create_backend`.
        ValueError: A parameter is unknown or can't be used, or several nodes are to
            meet and no endpoint is named.
        EtcdServerError: The job's own etcd can't be found or started.
    """
    return handler_of(params, OURS)


def handler_of(params: RendezvousParameters, types: Types) -> RendezvousHandler:
    """
    Do what :func:`create_handler` does, with classes of the caller's choice.
    """
    server = _embedded(params)
    endpoint = params.endpoint if server is None else server.get_endpoint()
    try:
        settings = _settings(params, endpoint, PLUGIN_STARTUP_TIMEOUT)
        if params.run_id == "none" and server is None:
            log.warning(
                "The run id is 'none', torchrun's default: all such jobs on this etcd "
                "are one job. Give each its own with --rdzv-id."
            )
        on_shutdown = server.stop if server is not None else None
        handler: EtcdRendezvousHandler | EtcdLiveRendezvousHandler
        if params.backend in LIVE_NAMES:
            handler, client, api = _create_live(params, settings, on_shutdown)
        else:
            backend, store, api = _create(params, settings, types)
            client = store.client
            handler = EtcdRendezvousHandler.create(store, backend, params, on_shutdown)
        _say_what_is_spoken(params, settings, client, api, handler.times_in_words())
        return handler
    except BaseException as error:
        if server is not None:
            server.stop()
        # As of torch's creators. Whoever records it may fail, too.
        with suppress(Exception):
            construct_and_record_rdzv_event(
                run_id=params.run_id,
                message=f"{type(error).__name__}: {error}",
                node_state=NodeState.FAILED,
            )
        raise


def _create_etcd_client(params: RendezvousParameters) -> Any:
    """
    Create the client alone; torch's private name, which tests of its users call.

    Returns:
        An ``EtcdClient``, or python-etcd's ``etcd.Client`` where v2 is spoken.
    """
    settings = _settings(params, params.endpoint, BACKEND_STARTUP_TIMEOUT)
    return _client(params, settings)[0]


def _settings(
    params: RendezvousParameters, endpoint: str | None, startup_timeout: int
) -> Settings:
    check_text(params.run_id, "run id")
    live = params.backend in LIVE_NAMES
    settings = parse_settings(
        endpoint,
        params.config,
        startup_timeout=startup_timeout,
        handler_settings=HANDLER_SETTINGS if live else settings_of_torch(),
        live=live,
    )
    for one in settings.endpoints:
        if one.port == 0:
            raise EtcdSettingError(
                f"The endpoint {one} has port 0, on which nobody listens; name etcd's "
                "(only under a launcher localhost:0 starts one, for a job of one node)."
            )
    return settings


def _client(params: RendezvousParameters, settings: Settings) -> tuple[Any, str]:
    for note in settings.notes:
        log.warning("%s", note)
    try:
        return choose(params.backend, params.run_id, settings)
    except EtcdError as error:
        log.error("%s", error)
        raise RendezvousConnectionError(CONNECTION_FAILED) from error


def _create(
    params: RendezvousParameters, settings: Settings, types: Types
) -> tuple[EtcdRendezvousBackend, EtcdStore, str]:
    """
    Create backend and store; return them, and the API that is spoken.
    """
    client, api = _client(params, settings)
    backend = types.backend(
        client,
        params.run_id,
        settings.key_prefix,
        settings.ttl,
        closed_ttl=settings.closed_ttl,
        request_limit=settings.request_limit,
        name=TORCH_NAME if params.backend == TORCH_NAME else None,
    )
    if api == "v2":
        from ._v2.requests import STORE_PATH  # python-etcd is needed for v2 only

        prefix = STORE_PATH
    else:
        prefix = f"{backend.key}/store"
    store = types.store(client, prefix, ttl=settings.store_ttl)
    return backend, store, api


def _create_live(
    params: RendezvousParameters,
    settings: Settings,
    on_shutdown: Callable[[], None] | None,
) -> tuple[EtcdLiveRendezvousHandler, EtcdClient, str]:
    """
    Create the handler of `etcd-live`; return it, its client, and the API.
    """
    own = parse_live_settings(params.config)
    client, api = _client(params, settings)
    key = key_of_state(settings.key_prefix, params.run_id)
    store = AgentStore(client, f"{key}/store", ttl=settings.store_ttl)
    handler = EtcdLiveRendezvousHandler(client, store, key, params, own, on_shutdown)
    return handler, client, api


def _say_what_is_spoken(
    params: RendezvousParameters,
    settings: Settings,
    client: Any,
    api: str,
    times: str = "",
) -> None:
    """
    Say once which API is spoken, with whom, and with which settings.

    Args:
        params: torch's parameters.
        settings: The settings.
        client: The client, of that API.
        api: The API.
        times: The settings of the handler that take effect, in words.
    """
    if not log.isEnabledFor(logging.INFO):
        return  # It costs a request.
    live = params.backend in LIVE_NAMES
    log.info(
        "The rendezvous '%s' (%s) speaks etcd's %s API at %s (%s) with %s.",
        params.run_id,
        params.backend,
        api,
        ", ".join(map(str, settings.endpoints)),
        who_answers(client, settings),
        ", ".join(filter(None, [settings.in_words(api, live=live), times])),
    )


def _embedded(params: RendezvousParameters) -> EtcdServer | None:
    """
    Start an etcd for a job of one node, where no endpoint is named.
    """
    endpoint = (params.endpoint or "").strip()
    # Under torch's name no endpoint means localhost:2379, as in torch.
    if endpoint not in _ANY_PORT and (endpoint or params.backend == TORCH_NAME):
        return None
    if params.max_nodes > 1:
        raise EtcdSettingError(
            f"Up to {params.max_nodes} nodes are to meet, so --rdzv-endpoint must name "
            "an etcd that they all reach, such as HOST:2379; 'etcd-rendezvous serve' "
            "starts one."
        )
    from ._server import EtcdServer

    server = EtcdServer()
    server.start()
    log.info("Started an etcd for this job at %s.", server.get_endpoint())
    return server
