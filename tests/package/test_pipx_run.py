# SPDX-License-Identifier: BSD-3-Clause
"""
The command, as pipx runs it from the wheel without installing it.
"""

from __future__ import annotations


def test_pipx_run(pipx, built):
    """
    `pipx run --spec` runs the command from the wheel with its extra.
    """
    spec = f"{built.wheel}[cli]"
    version = built.wheel.name.split("-")[1]

    said = pipx.run("run", "--spec", spec, "etcd-rendezvous", "--version")
    helped = pipx.run("run", "--spec", spec, "etcd-rendezvous", "serve", "--help")

    assert f"etcd-rendezvous, version {version}\n" == said.stdout
    assert helped.stdout.startswith("Usage: etcd-rendezvous serve")
