# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
Of every block of code on README and docs it is known what becomes of it.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re

import pytest

from etcd_rendezvous._settings import parse_settings
from support.account import ACCOUNT, fate_of
from support.pages import PAGES, ROOT, block, blocks

TESTS = ROOT / "tests"
# Sphinx runs them; `tox -e docs` fails if one does not do.
DIRECTIVE = re.compile(r"\{[\w-]+\}")
BLOCKS = [
    one
    for page in PAGES
    for one in blocks(page)
    if not DIRECTIVE.fullmatch(one.language)
]
FATES = {
    fate for headings in ACCOUNT.values() for one in headings.values() for fate in one
}
HOW = "say in tests/support/account.py which test runs it, or why none does"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_accounted_for(page):
    """
    A test runs it, or a reason says why none does.
    """
    unknown = [str(one) for one in BLOCKS if one.page == page.name and not fate_of(one)]

    assert [] == unknown, HOW


def test_the_account_names_no_block_that_is_gone():
    """
    The account has nothing but blocks that are there.
    """
    listed = {
        (page, heading, number)
        for page, headings in ACCOUNT.items()
        for heading, fates in headings.items()
        for number in range(len(fates))
    }

    assert listed == {(one.page, one.heading, one.number) for one in BLOCKS}


def test_every_block_has_a_language():
    """
    Each says what it is written in, so that it is shown as that.
    """
    assert [] == [str(one) for one in BLOCKS if not one.language]


@pytest.mark.parametrize("fate", sorted(FATES, key=str), ids=lambda fate: fate.test)
def test_a_fate_is_what_it_says(fate):
    """
    The test that is named is there; what is not run as it stands has a reason.
    """
    assert fate.test or fate.reason
    assert not fate.reason or fate.reason[-1] == "."
    if fate.test:
        file, _, function = fate.test.partition("::")
        tree = ast.parse((TESTS / file).read_text("utf-8"))
        assert function in {
            node.name for node in tree.body if isinstance(node, ast.FunctionDef)
        }


def test_who_runs_a_block_reads_it_from_the_page():
    """
    A test that runs a block as it stands names its page, or takes it from the account.
    """
    for one in BLOCKS:
        fate = fate_of(one)
        if fate is None or fate.reason:
            continue
        code = (TESTS / fate.test.partition("::")[0]).read_text("utf-8")
        assert one.page in code or "taken_by" in code, str(one)


# -- what needs a cluster ----------------------------------------------------------


def test_the_job_for_kubeflow():
    """
    The policy of the job names a backend of ours, and settings that there are.
    """
    import yaml

    job = yaml.safe_load(block("kubernetes.md", "PyTorchJob").text)
    policy = job["spec"]["elasticPolicy"]
    ours = importlib.metadata.entry_points(group="torchrun.handlers").names
    config = {one["key"]: one["value"] for one in policy["rdzvConf"]}
    parse_settings(
        f"{policy['rdzvHost']}:{policy['rdzvPort']}", config, startup_timeout=0
    )

    assert "PyTorchJob" == job["kind"]
    assert policy["rdzvBackend"] in ours
    assert (
        policy["minReplicas"]
        <= job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
    )
