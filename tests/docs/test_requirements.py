# SPDX-License-Identifier: BSD-3-Clause
"""
The page on what users ran into answers all of it, with tests that there are.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "requirements.md"
ANSWERS = dict(
    re.findall(
        r"^\*\*(\d+)\. (.*?)(?=^\*\*\d+\. |^## |\Z)",
        PAGE.read_text("utf-8"),
        re.MULTILINE | re.DOTALL,
    )
)
HOW_FAR = re.compile(r"\*\*(Solved|In\s+part|Not\s+ours)\b")


def test_all_are_answered():
    """
    There are 31, in their order.
    """
    assert [str(number) for number in range(1, 32)] == list(ANSWERS)


@pytest.mark.parametrize("number", ANSWERS)
def test_an_answer(number):
    """
    It says where the complaint is from, how far the answer goes, which page has more,
    and which tests show it; these are there.
    """
    answer = ANSWERS[number]
    complaint, _, shown = answer.partition("Shown by ")
    tests = re.findall(r"`([\w/]+\.py)::(\w+)`", shown)

    assert re.search(r"\(`[\w-]+#\d+`|\(seen |\(`urllib3`", complaint)
    assert HOW_FAR.search(complaint)
    assert re.search(r"\]\((?:\.\./)?\w[\w-]*\.md(?:#|\))", complaint)
    assert tests
    for file, function in tests:
        tree = ast.parse((TESTS / file).read_text("utf-8"))
        functions = {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef)
        }
        assert function in functions, f"{file}::{function}"
