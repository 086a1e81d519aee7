# SPDX-License-Identifier: BSD-3-Clause
"""
The command ``etcd-rendezvous``.

Nothing but the standard library is imported here: without the extra ``[cli]`` the
command must still be able to say how to get it.
"""

from __future__ import annotations

import importlib
import io
import sys

__all__ = ["main"]


def main() -> None:
    """
    Run the command and exit with its status; 2 without the extra ``[cli]``.
    """
    try:
        app = importlib.import_module("etcd_rendezvous._cli.app")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.split(".")[0] not in ("click", "rich"):
            raise
        sys.stderr.write(
            "The command etcd-rendezvous needs more packages: "
            'pip install "etcd-rendezvous[cli]"\n'
        )
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        # Names of others may have characters that this locale has not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app.cli(prog_name="etcd-rendezvous")
