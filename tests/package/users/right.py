# SPDX-License-Identifier: BSD-3-Clause
"""
What a user may write who has no torch: a type checker must find nothing here.
"""

from __future__ import annotations

import socket
from typing import assert_type

import etcd_rendezvous
from etcd_rendezvous import EtcdClient, EtcdError, EtcdServer, find_free_port


def main() -> None:
    assert_type(etcd_rendezvous.__version__, str)
    assert_type(find_free_port(), socket.socket)
    try:
        with EtcdServer() as server, EtcdClient(server.get_endpoint()) as client:
            assert_type(client.put("/key", b"value"), int)
            assert_type(client.get("/key"), bytes | None)
            assert_type(server.pid, int | None)
    except EtcdError as error:
        print(error)
