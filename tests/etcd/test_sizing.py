# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
How large an etcd must be: the tables of `docs/operating.md`, and the formulas behind them.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from etcd_rendezvous._live import node as live_node
from etcd_rendezvous._live.settings import LiveSettings
from etcd_rendezvous._settings import parse_settings

pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "operating.md"


@pytest.fixture
def sizing(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.sizing")


def test_tables_are_those_of_the_formulas(sizing):
    """
    The page has both tables as the command prints them, but for the last digit.
    """
    text = PAGE.read_text("utf-8")
    tables = [
        [
            [cell.strip() for cell in line[1:-1].split("|")]
            for line in table.splitlines()
            if not re.fullmatch(r"[|-]+", line)
        ]
        for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    ]
    said = [table for table in tables if "nodes" == table[0][0]]

    assert [table[0] for table in sizing.tables()] == [table[0] for table in said]
    for made, written in zip(sizing.tables(), said, strict=True):
        for expected, actual in zip(made[1:], written[1:], strict=True):
            for one, other in zip(expected, actual, strict=True):
                assert number(other) == pytest.approx(number(one), rel=0.06), expected
                assert re.sub(r"[\d.,]", "", one) == re.sub(r"[\d.,]", "", other)


def number(cell):
    """
    Return the number that a cell begins with; 0 if there is none.
    """
    found = re.match(r"[\d.,]+", cell)
    return float(found[0].replace(",", "")) if found else 0.0


def test_the_formulas_rest_upon_the_settings(sizing):
    """
    What they take for granted are the defaults of torch, of `etcd-live` and ours, and
    the names that the page on guarantees speaks of.
    """
    import inspect

    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
        DynamicRendezvousHandler,
    )

    defaults = inspect.signature(DynamicRendezvousHandler.from_backend).parameters
    largest = sizing.swapped(10_000).state
    live = sizing.live(60)

    assert defaults["keep_alive_interval"].default == sizing.BEAT_SECONDS
    assert 57 == len(sizing.NAME.format(0))
    assert largest < parse_settings(None, {}, startup_timeout=0).request_limit
    assert 60 / LiveSettings().keep_alive_interval + 60 / live_node._GUARD_SECONDS == (
        live.requests_a_second(LiveSettings().keep_alive_interval)
    )


@pytest.mark.parametrize("nodes", [8, 64])
def test_the_formulas_hold(sizing, make_server, nodes):
    """
    A real etcd grows by no more than the formulas say, and by no less than half of it:
    by a heartbeat of which every other one was lost once, and by a round of `etcd-live`.
    """
    server = make_server(extra_args=["--auto-compaction-retention=0"])
    one = sizing.swapped(nodes)
    said = one.written_a_second * sizing.BEAT_SECONDS / nodes
    beat = sizing.growth_of_a_beat(server, nodes)
    whole_round = sizing.growth_of_a_round(server, nodes)

    assert said / 2 < beat < 1.1 * said
    assert sizing.live(nodes).written_a_round / 2 < whole_round
    assert whole_round < 1.1 * sizing.live(nodes).written_a_round
