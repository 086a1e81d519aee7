# SPDX-License-Identifier: BSD-3-Clause
"""
What a type checker must find, each in the line that says so.
"""

from __future__ import annotations

from etcd_rendezvous import EtcdClient, EtcdServer
from etcd_rendezvous import EtcdClinet  # error: attr-defined

client = EtcdClient(2379)  # error: arg-type
client = EtcdClient("a:2379", read_timout=5)  # error: call-arg
revision: str = client.put("/key", "value")  # error: assignment
client.get("/key").decode()  # error: union-attr
client.lease(30)  # error: attr-defined
with EtcdServer(port="2379") as server:  # error: arg-type
    server.get_endpoint(1)  # error: call-arg
