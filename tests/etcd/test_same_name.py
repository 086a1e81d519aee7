# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
A node that comes again under the name, and the process id, of one that is gone.
"""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
)

from etcd_rendezvous import create_handler
from support.torchrun import wait_until

pytestmark = pytest.mark.torch


def test_a_node_that_comes_again_under_the_same_name(own_server, run_id, monkeypatch):
    """
    With torch's handler it leaves its predecessor's round and waits, which the others
    are told: all meet in a new one.
    """
    # What tells nodes of one process apart.
    names = DynamicRendezvousHandler._node_desc_generator
    params = RendezvousParameters(
        "etcd-v3", own_server.get_endpoint(), run_id, 2, 2, "localhost"
    )
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(2) as pool:

        def make():
            handler = create_handler(params)
            stack.callback(handler._stop_heartbeats)
            return handler

        survivor = make()
        number = names._local_id
        gone = make()
        first = list(pool.map(lambda one: one.next_rendezvous(), [survivor, gone]))
        gone._stop_heartbeats()
        with monkeypatch.context() as patch:
            patch.setattr(names, "_local_id", number)
            again = make()

        joining = pool.submit(again.next_rendezvous)
        wait_until("the survivor to be told", survivor.num_nodes_waiting)
        rejoined = survivor.next_rendezvous()

        assert gone._this_node == again._this_node
        assert {0, 1} == {one.rank for one in first}
        assert {0, 1} == {rejoined.rank, joining.result(60).rank}
        assert 1 == survivor._holder.state.round
