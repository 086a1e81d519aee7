# SPDX-License-Identifier: BSD-3-Clause
"""
``python -m etcd_rendezvous``: the command ``etcd-rendezvous``.
"""

from __future__ import annotations

from etcd_rendezvous._cli import main

if __name__ == "__main__":
    main()
