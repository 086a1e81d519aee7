# SPDX-License-Identifier: BSD-3-Clause
"""
Agents whose work is done at different times.

Those that a signal ends, or that die, are in `test_node_death.py`.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from support.state import keys
from support.torchrun import wait_until

pytestmark = [pytest.mark.torch, pytest.mark.timeout(240)]

ONCE = Path(__file__).with_name("once.py")
APART = 30.0


def test_agents_that_finish_far_apart(make_job, own_server, run_id):
    """
    Of three agents the first is done half a minute before the last, and all end well;
    then nothing of their job stays in etcd longer than its settings say.
    """
    # On a busy machine nobody may get to renew a shorter one in time.
    conf = {"closed_ttl": 2, "store_ttl": 6}
    job = make_job(own_server, nnodes="3", conf=conf, worker=(ONCE, APART))
    started = time.monotonic()
    for name in "abc":
        job.start(name)

    assert job.wait() == {"a": 0, "b": 0, "c": 0}
    assert time.monotonic() - started > APART
    wait_until("an empty etcd", lambda: not keys(own_server, run_id), seconds=30)
