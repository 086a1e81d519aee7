# SPDX-License-Identifier: BSD-3-Clause
"""
What an etcd holds of runs, for people and programs that look on. No torch.

Everything here only reads, but for ``removal``.
"""
