# SPDX-License-Identifier: BSD-3-Clause
"""
One job script, and no change but the name of the backend.
"""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.torch


def meet(job, **second):
    job.start("a")
    job.start("b", **second)
    world = job.wait_for_world({"a", "b"})
    job.finish()

    assert world.size == 2
    assert world.master[0] == job.agents["a"].address
    return world


def test_etcd_v3(etcd_server, make_job):
    """
    Two agents meet on `etcd-v3`, on every version of etcd.
    """
    meet(make_job(etcd_server, backend="etcd-v3"))
