# SPDX-License-Identifier: BSD-3-Clause
"""
Types, as a type checker sees them that finds the installed wheel.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import etcd_rendezvous
from support.package import ROOT, run

USERS = Path(__file__).parent / "users"
# The types of torch are Any, here as there: it is not installed.
CONFIG = "[mypy]\nstrict = true\n[mypy-torch.*]\nignore_missing_imports = true\n"


@pytest.fixture
def mypy(bare, tmp_path):
    """
    What checks files outside of the checkout; it returns the lines of what was found.
    """
    config = tmp_path / "mypy.ini"
    config.write_text(CONFIG, "utf-8")

    def check(*paths):
        done = run(
            *(sys.executable, "-m", "mypy", f"--config-file={config}"),
            *(f"--python-executable={bare}", "--no-error-summary", *paths),
            cwd=tmp_path,
            check=False,
        )
        assert done.stderr == ""
        return done.stdout.splitlines()

    return check


def test_right_use(mypy):
    """
    Users' files that are right have no error, strictly: py.typed is heard.
    """
    assert mypy(USERS / "right.py", ROOT / "tests" / "typing" / "api.py") == []


def test_the_checked_file_has_all():
    """
    The file that is checked uses every public name.
    """
    code = ast.parse((ROOT / "tests" / "typing" / "api.py").read_text("utf-8"))
    used = {one.id for one in ast.walk(code) if isinstance(one, ast.Name)}
    used |= {one.attr for one in ast.walk(code) if isinstance(one, ast.Attribute)}

    assert set(etcd_rendezvous.__all__) - used == set()


def expected():
    """
    Return the lines that are wrong, each with the kind of its error for mypy.
    """
    lines = (USERS / "wrong.py").read_text("utf-8").splitlines()
    return {
        number: found[1]
        for number, line in enumerate(lines, 1)
        if (found := re.search(r"# error: ([a-z-]+)$", line))
    }


def test_wrong_use(mypy):
    """
    Each wrong use is an error, of the kind that stands beside it, and nothing else is.
    """
    lines = mypy(USERS / "wrong.py")
    found = {
        int(one[1]): one[2]
        for line in lines
        if (one := re.search(r"wrong\.py:(\d+): error: .*\[([a-z-]+)\]$", line))
    }

    assert expected() == found, "\n".join(lines)


def test_pyright(bare, tmp_path):
    """
    Pyright finds the same.
    """
    config = tmp_path / "pyrightconfig.json"
    config.write_text('{"typeCheckingMode": "strict"}', "utf-8")

    done = run(
        *(sys.executable, "-m", "basedpyright", "--outputjson", "--project", config),
        *("--pythonpath", bare, USERS / "right.py", USERS / "wrong.py"),
        check=False,
    )
    errors = json.loads(done.stdout)["generalDiagnostics"]
    found = {
        (Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in errors
    }

    assert {("wrong.py", number) for number in expected()} == found, done.stdout
