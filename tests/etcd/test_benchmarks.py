# SPDX-License-Identifier: BSD-3-Clause
"""
The command that makes the figures, with the least that it can measure.
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.torch, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # For `benchmarks`, which is not installed.

from benchmarks.figures import Report  # noqa: E402
from benchmarks.names import STORES  # noqa: E402
from benchmarks.promises import STORE_AT_MOST  # noqa: E402


def benchmarks(*options):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *map(str, options)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def test_a_part(tmp_path, newest_etcd_binary):
    """
    A part is measured, kept in a file with the machine, and shown again from that.
    """
    path = tmp_path / "mine.json"
    done = benchmarks(
        *("--quick", "--binary", newest_etcd_binary, "--json", path),
        *("--parts", "meetings", "counters", "--backends", "c10d", "etcd-live"),
        *("--nodes", 2, "--adders", 4),
    )
    again = benchmarks("--show", path)

    assert done.stderr == ""
    assert "| 2 | 1 (" in done.stdout
    assert "Python |" in done.stdout
    assert again.stdout in done.stdout
    assert (again.returncode, again.stderr) == (0, "")


def test_stores(tmp_path, newest_v2_binary):
    """
    What is promised of the store is measured, of ours and of each rival.
    """
    path = tmp_path / "mine.json"
    done = benchmarks(
        *("--quick", "--binary", newest_v2_binary, "--json", path),
        *("--parts", "store", "--calls", 20, "--barriers", 64, "--agents", 4),
        *("--limit", 10),
    )
    found = {(one.name, one.backend): one for one in Report.load(path).figures}

    assert done.stderr == ""
    for name, store in itertools.product(STORE_AT_MOST, STORES):
        one = found[name, store]
        assert one.middle or one.unfinished


def test_pages_want_all():
    """
    Some parts alone are not for the pages.
    """
    done = benchmarks("--parts", "counters")

    assert done.returncode == 2
    assert "--json" in done.stdout


def test_etcd_without_v2(tmp_path, newest_etcd_binary):
    """
    A rival that can't be started is said, and no figure is made up.
    """
    path, etcd = tmp_path / "mine.json", tmp_path / "etcd"
    # Whatever it is, it does not say that it knows v2.
    command = f'{shlex.quote(str(newest_etcd_binary))} "$@" 2>&1 | grep -v enable-v2'
    etcd.write_text(f"#!/bin/sh\n{command}\n", "utf-8")
    etcd.chmod(0o700)

    done = benchmarks("--parts", "late", "store", "--binary", etcd, "--json", path)

    assert done.returncode == 1
    assert "late was not measured: This etcd does not serve v2" in done.stdout
    assert "store was not measured: etcd 3." in done.stdout
    assert "Not measured in this run." in done.stdout
    assert '"figures": [' in path.read_text("utf-8")
