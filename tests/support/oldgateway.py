# SPDX-License-Identifier: BSD-3-Clause

"""
The gateway of an etcd before 3.4.17, which passes on no reply over 4 MiB.

None that is old enough can be had ready to run. So this stands between the client and
a real etcd, and says of a reply that is too large what such a gateway said
(etcd-io/etcd#14997).
"""

from __future__ import annotations

from typing import Any

import urllib3

from .scripted import ScriptedServer, json_reply, reply

LARGEST_REPLY = 4 * 1024 * 1024


def old_gateway(endpoint: str) -> ScriptedServer:
    """
    Return a server in front of an etcd; use it as a context manager.
    """
    pool = urllib3.PoolManager(retries=False)

    def step(exchange: Any) -> Any:
        request = exchange.request
        answer = pool.request(
            request.method,
            f"http://{endpoint}{request.path}",
            body=request.body,
            headers={"Content-Type": "application/json"},
        )
        # Nearly all of a large reply are values, in base64.
        size = len(answer.data) * 3 // 4
        if size > LARGEST_REPLY:
            text = (
                f"grpc: received message larger than max ({size} vs. {LARGEST_REPLY})"
            )
            return json_reply({"error": text, "message": text, "code": 8}, 429)
        return reply(answer.status, answer.data, {"Content-Type": "application/json"})

    return ScriptedServer(step)
