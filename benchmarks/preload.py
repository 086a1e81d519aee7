# SPDX-License-Identifier: BSD-3-Clause
"""
What every process of a benchmark needs, imported once.
"""

import torch.distributed.elastic.rendezvous.c10d_rendezvous_backend
import torch.distributed.elastic.rendezvous.etcd_rendezvous_backend
import torch.distributed.elastic.rendezvous.registry
import torch.distributed.elastic.utils.store  # noqa: F401

import etcd_rendezvous._factory
import etcd_rendezvous._v2.store_keys
import etcd_rendezvous._v3.store_keys  # noqa: F401
