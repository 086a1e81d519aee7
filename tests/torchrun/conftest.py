# SPDX-License-Identifier: BSD-3-Clause
"""
Jobs of `torchrun` that leave nothing behind.
"""

from __future__ import annotations

import contextlib

import pytest

from support.torchrun import Job


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
