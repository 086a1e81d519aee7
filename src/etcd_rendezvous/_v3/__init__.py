# SPDX-License-Identifier: BSD-3-Clause
"""
etcd's v3 API over urllib3 and etcd's own JSON gateway.
"""
