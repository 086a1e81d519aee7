# SPDX-License-Identifier: BSD-3-Clause
"""
The public API as a user writes it. mypy checks this file; nothing runs it.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import Store
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousParameters,
)

import etcd_rendezvous
from etcd_rendezvous import (
    EtcdAuthError,
    EtcdClient,
    EtcdCluster,
    EtcdConnectionError,
    EtcdError,
    EtcdLimitError,
    EtcdLiveRendezvousHandler,
    EtcdOutcomeUnknownError,
    EtcdProtocolError,
    EtcdRendezvousBackend,
    EtcdRendezvousHandler,
    EtcdReplyError,
    EtcdServer,
    EtcdServerError,
    EtcdServerTimeoutError,
    EtcdSettingError,
    EtcdStore,
    EtcdStoreTimeoutError,
    PortTakenError,
    create_backend,
    create_handler,
    find_free_port,
    install,
    stop_etcd,
    uninstall,
)

version: str = etcd_rendezvous.__version__


def use_parameters(params: RendezvousParameters) -> None:
    pair: tuple[EtcdRendezvousBackend, EtcdStore] = create_backend(params)
    backend, store = pair
    handler: RendezvousHandler = create_handler(params)
    ours: EtcdRendezvousHandler = EtcdRendezvousHandler.create(store, backend, params)
    waiting: int = ours.num_nodes_waiting()
    if isinstance(handler, EtcdLiveRendezvousHandler):
        waiting = handler.num_nodes_waiting()
    closed: bool = handler.shutdown()
    creator: Callable[[RendezvousParameters], RendezvousHandler] = create_handler
    print(waiting, closed, creator)


def use_backend(client: EtcdClient) -> None:
    backend = EtcdRendezvousBackend(client, "run")
    backend = EtcdRendezvousBackend(client, "run", "/prefix", 3600)
    backend = EtcdRendezvousBackend(
        client, run_id="run", key_prefix=None, ttl=None, closed_ttl=60, name="mine"
    )
    name: str = backend.name
    key: str = backend.key
    closed_ttl: int = backend.closed_ttl
    with backend.time_limit(2.5):
        got: tuple[bytes, Any] | None = backend.get_state()
    token = got[1] if got is not None else None
    swap: tuple[bytes, Any, bool] | None = backend.set_state(b"state", token)
    swap = backend.set_state(b"state")
    print(name, key, closed_ttl, swap)


def use_store(client: EtcdClient) -> None:
    store = EtcdStore(client, "/prefix")
    store = EtcdStore(client, etcd_store_prefix="/prefix", timeout=timedelta(seconds=5))
    torchs: Store = store
    store.set("key", "value")
    store.set("key", b"value")
    value: bytes = store.get("key")
    total: int = store.add("count", 1)
    there: bool = store.check(["key"])
    store.wait(["key"])
    store.wait(["key"], timedelta(seconds=1))
    store.multi_set(["a", "b"], [b"1", "2"])
    values: list[bytes] = store.multi_get(["a", "b"])
    prefix: str = store.prefix
    print(torchs, value, total, there, values, prefix)


def use_client() -> None:
    client = EtcdClient()
    client = EtcdClient("a:2379,b:2379")
    client = EtcdClient(
        ["a:2379", "https://b"],
        protocol="https",
        cert="client.pem",
        key="client.key",
        ca_cert="ca.pem",
        read_timeout=5,
        connect_timeout=0.5,
    )
    with client as entered:
        same: EtcdClient = entered
    revision: int = client.put("/key", "value", lease=0, timeout=1.5)
    value: bytes | None = client.get(b"/key")
    deleted: int = client.delete("/", prefix=True)
    client.grant(30, 12345)
    lease_seconds: int = client.keep_alive(12345)
    lease_seconds = client.seconds_left(12345)
    client.revoke(12345)
    server_version: str = client.version()
    status: dict[str, Any] = client.status()
    endpoints: list[str] = client.endpoints
    seconds: float = client.read_timeout
    client.close()
    print(same, revision, value, deleted, lease_seconds)
    print(server_version, status, endpoints, seconds)


def use_servers(folder: Path) -> None:
    with EtcdServer() as server:
        host: str = server.get_host()
        port: int = server.get_port()
        endpoint: str = server.get_endpoint()
        pid: int | None = server.pid
        serves_v2: bool = server.serves_v2
        server.get_client()
        server.pause()
        server.resume()
        server.kill()
        server.restart(timeout=10)
        status: int | None = server.wait(timeout=0)
    server = EtcdServer(str(folder))
    server = EtcdServer(
        folder,
        binary=folder / "etcd",
        host="127.0.0.1",
        port=2379,
        extra_args=["--quota-backend-bytes=8388608"],
    )
    server.start(60, 3, subprocess.DEVNULL)
    server.stop()
    with EtcdCluster(3, unsafe_no_fsync=True) as cluster:
        leader: EtcdServer = cluster.leader()
        members: list[EtcdServer] = cluster.members
        endpoints: str = cluster.get_endpoint()
    print(host, port, endpoint, pid, serves_v2, status, leader, members, endpoints)


def use_names_of_torch(process: subprocess.Popen[bytes]) -> None:
    with find_free_port() as free:
        listening: socket.socket = free
    install()
    uninstall()
    stop_etcd(process, data_dir="/tmp/etcd")
    stop_etcd(None)
    print(listening)


def use_errors(error: EtcdError) -> str:
    if isinstance(error, EtcdReplyError):
        code: int = error.code
        return f"{code}: {error.text}"
    if isinstance(error, EtcdProtocolError):
        return str(error.api_missing)
    return str(error)


every_error: list[type[EtcdError]] = [
    EtcdAuthError,
    EtcdConnectionError,
    EtcdLimitError,
    EtcdOutcomeUnknownError,
    EtcdProtocolError,
    EtcdReplyError,
    EtcdServerError,
    EtcdServerTimeoutError,
    EtcdSettingError,
    PortTakenError,
]
reply_errors: list[type[EtcdReplyError]] = [EtcdAuthError, EtcdLimitError]
port_error: type[EtcdServerError] = PortTakenError
server_timeout: type[TimeoutError] = EtcdServerTimeoutError
setting_error: type[ValueError] = EtcdSettingError
server_error: type[RuntimeError] = EtcdServerError
timeout_error: type[LookupError] = EtcdStoreTimeoutError
