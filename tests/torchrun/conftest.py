# SPDX-License-Identifier: BSD-3-Clause
"""
Jobs of `torchrun` that leave nothing behind.
"""

from __future__ import annotations

import contextlib

import pytest

from support.launched import Nodes
from support.torchrun import Job


@pytest.fixture
def nodes(tmp_path, own_server, run_id):
    """
    Nodes that any launcher starts, at an etcd of the test's own.
    """
    endpoint = own_server.get_endpoint()
    with contextlib.closing(Nodes(tmp_path, endpoint, run_id)) as found:
        yield found


@pytest.fixture
def make_job(tmp_path, run_id):
    """
    A function that returns a `Job` on an etcd server: the server, and `Job`'s arguments.

    What is left of the job when the test ends is killed.
    """
    with contextlib.ExitStack() as stack:

        def make(server=None, *, backend="etcd-v3", **options):
            folder = tmp_path / f"job-{len(made)}"
            options.setdefault("run_id", run_id)
            options.setdefault("endpoint", server.get_endpoint() if server else None)
            made.append(stack.enter_context(Job(folder, backend, **options)))
            return made[-1]

        made: list[Job] = []
        yield make
