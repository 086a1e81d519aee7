# SPDX-License-Identifier: BSD-3-Clause
"""
Taking over torch's own names: a job that says ``etcd-v2`` runs through ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousParameters,
    etcd_rendezvous_backend,
    etcd_server,
    etcd_store,
    rendezvous_handler_registry,
)

from . import _backend, _connect, _factory, _server, _store
from ._log import log, log_under_torchrun
from ._ports import find_free_port
from ._process import stop_etcd

__all__ = ["install", "uninstall"]

_NAME: Final = _connect.TORCH_NAME

# What gives torch its own back, while installed.
_undo: list[Callable[[], object]] = []


def install() -> None:
    """
    Let torch's own name ``etcd-v2`` stand for this library, in this process.

    The public names of torch's modules ``etcd_rendezvous_backend``, ``etcd_store`` and
    ``etcd_server`` become ours, and so does the creator of the handler ``etcd-v2``: a
    job that names it runs through ours, against servers with v2 and without, unchanged.
    What is created then is an instance of torch's classes, too, whenever those were
    imported. Doing it twice is doing it once. The environment variable
    ``ETCD_RENDEZVOUS_INSTALL=1`` does it wherever torch loads the plug-in.

    Names that a module has imported from torch's before are torch's still.

    Raises:
        RuntimeError: This torch's registry has no creator to put ours in the place of.

    .. versionadded:: 0.1.0
    """
    if _undo:
        return
    creators = _creators()
    for module, names in _OURS:
        for name, ours in names.items():
            _undo.append(partial(setattr, module, name, getattr(module, name)))
            setattr(module, name, ours)
    _undo.append(
        partial(creators.__setitem__, _NAME, creators[_NAME])
        if _NAME in creators
        else partial(creators.pop, _NAME)
    )
    creators[_NAME] = _create_handler
    log.info("torch's rendezvous backend etcd-v2 is served by etcd-rendezvous now.")


def uninstall() -> None:
    """
    Undo :func:`install`: torch's own names are back. Without it this does nothing.

    What was created meanwhile goes on as it is.

    .. versionadded:: 0.1.0
    """
    while _undo:
        _undo.pop()()


def _creators() -> dict[str, Any]:
    # torch has no public way to replace one.
    creators: dict[str, Any] | None = getattr(
        rendezvous_handler_registry, "_registry", None
    )
    if creators is None:
        raise RuntimeError(
            "This version of torch keeps its rendezvous handlers elsewhere, so that "
            "etcd-v2 can't be taken over: name etcd-v3 or etcd-auto instead."
        )
    return creators


# -- instances of these are instances of torch's classes, too --------------------------


class EtcdRendezvousBackend(
    _backend.EtcdRendezvousBackend, etcd_rendezvous_backend.EtcdRendezvousBackend
):
    __doc__ = _backend.EtcdRendezvousBackend.__doc__


class EtcdStore(_store.EtcdStore, etcd_store.EtcdStore):
    __doc__ = _store.EtcdStore.__doc__


class EtcdServer(_server.EtcdServer, etcd_server.EtcdServer):
    __doc__ = _server.EtcdServer.__doc__


_TYPES: Final = _factory.Types(EtcdRendezvousBackend, EtcdStore)


def create_backend(
    params: RendezvousParameters,
) -> tuple[EtcdRendezvousBackend, EtcdStore]:
    return _factory.backend_of(params, _TYPES)


def _create_handler(params: RendezvousParameters) -> RendezvousHandler:
    log_under_torchrun()
    return _factory.handler_of(params, _TYPES)


create_backend.__doc__ = _factory.create_backend.__doc__

_OURS: Final = (
    (
        etcd_rendezvous_backend,
        {
            "EtcdRendezvousBackend": EtcdRendezvousBackend,
            "create_backend": create_backend,
            "_create_etcd_client": _factory._create_etcd_client,  # noqa: SLF001
        },
    ),
    (etcd_store, {"EtcdStore": EtcdStore}),
    (
        etcd_server,
        {
            "EtcdServer": EtcdServer,
            "find_free_port": find_free_port,
            "stop_etcd": stop_etcd,
        },
    ),
)
