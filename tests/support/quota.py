# SPDX-License-Identifier: BSD-3-Clause

"""
An etcd whose quota is used up.
"""

from __future__ import annotations

import os
import time

from etcd_rendezvous import EtcdClient, EtcdLimitError

_SMALL = 4_194_304
# etcd counts what it has committed, which it does every tenth of a second.
_COMMIT_SECONDS = 0.12
SMALL_QUOTA = f"--quota-backend-bytes={_SMALL}"


def fill(endpoint: str, share: float, key: str = "/filling") -> None:
    """
    Write to a server with `SMALL_QUOTA` until so much of it is taken.
    """
    with EtcdClient(endpoint) as client:
        while int(client.status()["dbSize"]) < share * _SMALL:
            client.put(key, os.urandom(300_000))
            time.sleep(_COMMIT_SECONDS)


def use_up(endpoint: str, key: str = "/filling") -> EtcdLimitError:
    """
    Write to a server with `SMALL_QUOTA` until it takes no more; return what it says.
    """
    with EtcdClient(endpoint) as client:
        for _ in range(100):
            try:
                client.put(key, os.urandom(500_000))
            except EtcdLimitError as error:
                return error
    raise AssertionError("the quota has no end")
