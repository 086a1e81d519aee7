# SPDX-License-Identifier: BSD-3-Clause
"""
Let PyTorch elastic jobs meet through etcd.

Everything here is loaded at its first use: importing this package imports neither
torch nor python-etcd nor urllib3.
"""

TYPE_CHECKING = False  # what typing's is; importing that takes longer than all else
if TYPE_CHECKING:
    from typing import Any

    from ._backend import EtcdRendezvousBackend
    from ._errors import (
        EtcdAuthError,
        EtcdConnectionError,
        EtcdError,
        EtcdLimitError,
        EtcdOutcomeUnknownError,
        EtcdProtocolError,
        EtcdReplyError,
        EtcdServerError,
        EtcdServerTimeoutError,
        EtcdSettingError,
        PortTakenError,
    )
    from ._factory import create_backend, create_handler
    from ._handler import EtcdRendezvousHandler
    from ._install import install, uninstall
    from ._live.handler import EtcdLiveRendezvousHandler
    from ._ports import find_free_port
    from ._process import stop_etcd
    from ._server import EtcdCluster, EtcdServer
    from ._store import EtcdStore, EtcdStoreTimeoutError
    from ._v3.client import EtcdClient

    __version__: str

__all__ = [
    "EtcdAuthError",
    "EtcdClient",
    "EtcdCluster",
    "EtcdConnectionError",
    "EtcdError",
    "EtcdLimitError",
    "EtcdLiveRendezvousHandler",
    "EtcdOutcomeUnknownError",
    "EtcdProtocolError",
    "EtcdRendezvousBackend",
    "EtcdRendezvousHandler",
    "EtcdReplyError",
    "EtcdServer",
    "EtcdServerError",
    "EtcdServerTimeoutError",
    "EtcdSettingError",
    "EtcdStore",
    "EtcdStoreTimeoutError",
    "PortTakenError",
    "__version__",
    "create_backend",
    "create_handler",
    "find_free_port",
    "install",
    "stop_etcd",
    "uninstall",
]

_HOMES = {
    "EtcdClient": "_v3.client",
    "EtcdCluster": "_server",
    "EtcdLiveRendezvousHandler": "_live.handler",
    "EtcdRendezvousBackend": "_backend",
    "EtcdRendezvousHandler": "_handler",
    "EtcdServer": "_server",
    "EtcdStore": "_store",
    "EtcdStoreTimeoutError": "_store",
    "create_backend": "_factory",
    "create_handler": "_factory",
    "find_free_port": "_ports",
    "install": "_install",
    "stop_etcd": "_process",
    "uninstall": "_install",
}
_NEED_TORCH = (
    "_backend",
    "_factory",
    "_handler",
    "_install",
    "_live.handler",
    "_store",
)


# Not for type checkers: for them any name would be there, misspelt ones too.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> "Any":
        if name == "__version__":
            from importlib.metadata import version

            return version("etcd-rendezvous")
        if name not in __all__:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        from importlib import import_module

        home = _HOMES.get(name, "_errors")
        if home != "_errors":
            from ._requirements import require_torch, require_urllib3

            require_urllib3()
            if home in _NEED_TORCH:
                require_torch(f"etcd_rendezvous.{name}")
                # torch loads our plug-in at its end, which may take over torch's names:
                # before any module of ours is half imported.
                import_module("torch.distributed.elastic.rendezvous")
        return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> "list[str]":
    return sorted(__all__)
