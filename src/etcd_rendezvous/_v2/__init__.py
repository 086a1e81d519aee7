# SPDX-License-Identifier: BSD-3-Clause
"""
etcd's v2 API, through python-etcd.

The layout is torch's, so that agents with torch's ``etcd-v2`` and with ours share a
run. python-etcd builds and parses the requests; when to send again is decided by
our own retry table, with urllib3's silent repeats switched off.
"""
