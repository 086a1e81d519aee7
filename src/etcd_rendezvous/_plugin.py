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


_OFF = ("", "0", "false", "no", "off")


def etcd_v3() -> "Callable[[RendezvousParameters], RendezvousHandler]":
    """
    Return the creator of the handler `etcd-v3`.

    With ``ETCD_RENDEZVOUS_INSTALL=1`` it also takes over torch's name `etcd-v2`.
    """
    import os

    if os.environ.get("ETCD_RENDEZVOUS_INSTALL", "0").lower() not in _OFF:
        from ._install import install
        from ._log import log_under_torchrun

        log_under_torchrun()
        install()
    return _create


etcd_auto = etcd_rendezvous_v3 = etcd_rendezvous_auto = etcd_v3


def _create(params: "RendezvousParameters") -> "RendezvousHandler":
    """
    Create a handler; ``params.backend`` says which API is asked for.
    """
    from ._factory import create_handler
    from ._log import log_under_torchrun

    log_under_torchrun()
    return create_handler(params)
