# SPDX-License-Identifier: BSD-3-Clause
"""
Who is compared: the backends, the stores, and the ways to count.
"""

from __future__ import annotations

C10D, TORCHS_V2, V3, LIVE = "c10d", "torch-etcd-v2", "etcd-v3", "etcd-live"
# Our backend in torch's own handler; "etcd-v3" is what torchrun gets.
V3_BARE = "etcd-v3-bare"
BACKENDS = (C10D, TORCHS_V2, V3, LIVE)
OURS = (V3, V3_BARE, LIVE)

OURS_V3, OURS_V2 = "ours, v3", "ours, v2"
TORCHS_STORE, TCP = "torch's EtcdStore", "TCPStore"
STORES = (TORCHS_STORE, OURS_V3, OURS_V2, TCP)

SWAP, CHILDREN, VERSION = "swap", "children", "version"
WAYS = (SWAP, CHILDREN, VERSION)

# Names as the tables and plots have them.
TITLES = {
    C10D: "`c10d`",
    TORCHS_V2: "torch's `etcd-v2`",
    V3: "`etcd-v3`",
    V3_BARE: "`etcd-v3` in torch's own handler",
    LIVE: "`etcd-live`",
    OURS_V3: "ours, v3",
    OURS_V2: "ours, v2",
    TORCHS_STORE: "torch's `EtcdStore`",
    TCP: "`TCPStore`",
    SWAP: "compare and swap",
    CHILDREN: "a key an add",
    VERSION: "version",
}
