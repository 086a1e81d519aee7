# SPDX-License-Identifier: BSD-3-Clause
"""
The package, installed without any extra.
"""

from __future__ import annotations

import pytest

from support.package import run


@pytest.mark.parametrize("words", [("--version",), ("serve",)])
def test_without_the_extra(bare, words):
    """
    Without the extra [cli] the command says how to get it, by either name.
    """
    for command in (
        [bare.with_name("etcd-rendezvous")],
        [bare, "-m", "etcd_rendezvous"],
    ):
        done = run(*command, *words, check=False)

        assert (done.returncode, done.stdout) == (2, "")
        assert 'pip install "etcd-rendezvous[cli]"' in done.stderr
        assert len(done.stderr.splitlines()) == 1
