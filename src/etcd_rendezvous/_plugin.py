# SPDX-License-Identifier: BSD-3-Clause
"""
Entry points of ``torchrun.handlers``.

torch loads them in the middle of its own import: nothing is imported at the top.
Each is a callable without arguments that returns a handler's creator.
"""

TYPE_CHECKING = False  # what typing's is; not even that is imported
if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.distributed.elastic.rendezvous import (
        RendezvousHandler,
        RendezvousParameters,
    )


_OFF = ("", "0", "false", "n", "no", "off")
_said: "list[bool]" = []  # whether a failure was


def etcd_v3() -> "Callable[[RendezvousParameters], RendezvousHandler]":
    """
    Return the creator of the handler `etcd-v3`.

    With ``ETCD_RENDEZVOUS_INSTALL=1`` it also takes over torch's name `etcd-v2`.
    """
    if takes_over():
        _take_over()
    return _create


def takes_over() -> bool:
    """
    Say whether the environment lets us take over torch's name `etcd-v2`.
    """
    import os

    return os.environ.get("ETCD_RENDEZVOUS_INSTALL", "0").strip().lower() not in _OFF


def _take_over() -> None:
    """
    Take over torch's name; if that fails, say so once, and leave ours as they are.
    """
    from ._log import log, log_under_torchrun

    log_under_torchrun()
    try:
        from . import install

        install()
    except Exception as error:  # noqa: BLE001 - torch must load, whatever is wrong here
        if not _said:
            _said.append(True)
            log.error(
                "torch's etcd-v2 could not be taken over (ETCD_RENDEZVOUS_INSTALL): %s",
                error,
            )


etcd_auto = etcd_live = etcd_v3
etcd_rendezvous_v3 = etcd_rendezvous_auto = etcd_rendezvous_live = etcd_v3


def _create(params: "RendezvousParameters") -> "RendezvousHandler":
    """
    Create a handler; ``params.backend`` says which API is asked for.
    """
    from . import create_handler
    from ._log import log_under_torchrun

    log_under_torchrun()
    _say_whose_names()
    return create_handler(params)


def _say_whose_names() -> None:
    """
    Warn of names that mean another's handler here: torch may take them one day.
    """
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry

    from ._log import log

    creators = getattr(rendezvous_handler_registry, "_registry", {})
    for name, longer in (
        ("etcd-v3", "etcd-rendezvous-v3"),
        ("etcd-auto", "etcd-rendezvous-auto"),
        ("etcd-live", "etcd-rendezvous-live"),
    ):
        creator = creators.get(name, _create)
        if creator is not _create:
            log.warning(
                "The rendezvous backend '%s' is not etcd-rendezvous here, but that of "
                "%s; '%s' is ours.",
                name,
                getattr(creator, "__module__", creator),
                longer,
            )
