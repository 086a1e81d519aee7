# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
`docs/logs.md` has every line that the library logs, at its level, and no others.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import etcd_rendezvous
from etcd_rendezvous import _clocks, _limits, _space

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "logs.md"
ERRORS = ROOT / "docs" / "errors.md"
SOURCE = Path(etcd_rendezvous.__file__).parent
LEVELS = {
    "info": "INFO",
    "warn": "WARNING",
    "warning": "WARNING",
    "error": "ERROR",
    "exception": "ERROR",
}
# What says more than one thing, and where all of these stand.
WORDS = (
    _clocks.ClockWatch.look,
    _limits.near_in_words,
    _space.Growth.in_words,
    _space.Space.in_words,
)
# Between two of these anything may stand.
GAP = re.compile(r"%[sdgr]")


def rows():
    """
    Return the level and the text of each row of the page that has one.
    """
    return re.findall(
        r"^\| ([A-Z]+) \| `(.*?)` \|", PAGE.read_text("utf-8"), re.MULTILINE
    )


def parts_of(node):
    """
    Return the pieces of a text in the source that always stand in what is said; none if
    it is not written there.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [part for part in GAP.split(node.value) if part]
    if isinstance(node, ast.JoinedStr):
        return [
            one.value
            for one in node.values
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
    return []


def lines_of_source():
    """
    Return where a line is logged, its level, and the pieces of its text.
    """
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        if path.parent.name == "_cli":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and "error" not in (ast.unparse(node.func.value), "failover")
                and node.args
            ):
                level = LEVELS[node.func.attr]
                where = f"{path.name}:{node.lineno}"
                found.append((where, level, parts_of(node.args[0])))
    return found


def has(said, parts):
    """
    Say whether a text has these pieces, in their order.
    """
    at = 0
    for part in parts:
        at = said.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


LINES = [line for line in lines_of_source() if "".join(line[2]).strip()]


@pytest.mark.parametrize(
    ("where", "level", "parts"), LINES, ids=lambda one: str(one)[:30]
)
def test_every_line_is_on_the_page(where, level, parts):
    """
    What is logged anywhere stands there, with its level.
    """
    assert [] != [said for of, said in rows() if of == level and has(said, parts)], (
        where
    )


@pytest.mark.parametrize("function", WORDS, ids=lambda one: one.__qualname__)
def test_the_words_of_warnings(function):
    """
    So do those warnings whose words are made elsewhere, and on the page of errors.
    """
    (longest,) = [
        parts_of(node)
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function))))
        if isinstance(node, ast.JoinedStr) and len(ast.unparse(node)) > 150
    ]

    for page in (PAGE, ERRORS):
        said = re.findall(r"^\|.*?`(.+?)` \|", page.read_text("utf-8"), re.MULTILINE)
        assert [] != [text for text in said if has(text, longest)], page.name


def test_no_other_line_is_on_the_page():
    """
    What stands there is logged.
    """
    texts = [parts for _, _, parts in LINES]
    made = (
        "Waiting to join",
        "This machine's clock",
        "The rendezvous state",
        "The etcd at",
        "The heartbeats of",
    )
    extra = [
        said
        for _, said in rows()
        if not said.startswith(made) and not any(has(said, parts) for parts in texts)
    ]

    assert [] == extra
    assert 30 < len(rows())


def test_metrics():
    """
    The page has all metrics, in their group.
    """
    source = "".join(
        (SOURCE / name).read_text("utf-8")
        for name in ("_metrics.py", "_handler.py", "_live/handler.py")
    )
    table = PAGE.read_text("utf-8").split("| metric |")[1].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_.]+)`(?=[,\s|]+)", table))
    put = set(re.findall(r'_put\("([a-z_.]+)"', source))
    counted = set(re.findall(r"(\w+)=lambda: \w+\.\w+", source))
    outcomes = {f"next_rendezvous.{one}" for one in ("success", "failure")}

    assert put | counted | outcomes == named
    assert 'METRIC_GROUP: Final = "etcd_rendezvous"' in source
    assert "group `etcd_rendezvous`" in PAGE.read_text("utf-8")
