# SPDX-License-Identifier: BSD-3-Clause
"""
The event-driven rendezvous, `etcd-live`.

Leases tell who lives, watches tell what happens, and one transaction completes a
round. ``rounds`` holds the decisions and ``mirror`` what is known, both without any
input or output; ``records`` what stands in etcd, ``requests`` the transactions;
``node`` and ``closer`` are what runs; ``handler`` is what torch sees.
"""
