# SPDX-License-Identifier: BSD-3-Clause

"""
An etcd whose quota is used up.
"""

from __future__ import annotations

import os

from etcd_rendezvous import EtcdClient, EtcdLimitError

SMALL_QUOTA = "--quota-backend-bytes=4194304"


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
