# SPDX-License-Identifier: BSD-3-Clause

"""
Torch's states as each Python's own pickler writes them. No server, no torch.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
from datetime import datetime, timedelta, timezone

import pytest

from etcd_rendezvous._state import State, read_state

TORCHS = "torch.distributed.elastic.rendezvous.dynamic_rendezvous"
NOW = datetime(2026, 11, 27, 3, 4, 5, 678, tzinfo=timezone.utc)


class NodeDesc:
    """
    What torch's class of that name is to a pickle.
    """

    __module__ = TORCHS
    __qualname__ = "_NodeDesc"

    def __init__(self, addr, pid, local_id):
        vars(self).update(addr=addr, pid=pid, local_id=local_id)


class RendezvousState:
    """
    Likewise, of a state.
    """

    __module__ = TORCHS
    __qualname__ = "_RendezvousState"


@pytest.fixture(autouse=True)
def torchs_module(monkeypatch):
    """
    A module in which a pickler finds the two.
    """
    module = types.ModuleType(TORCHS)
    for one in (NodeDesc, RendezvousState):
        setattr(module, one.__qualname__, one)
    monkeypatch.setitem(sys.modules, TORCHS, module)
    # Picklers import what is left of the first dot, too.
    torch = sys.modules.get("torch", types.ModuleType("torch"))
    monkeypatch.setitem(sys.modules, "torch", torch)


def written_by(pickler, state, protocol):
    file = io.BytesIO()
    pickler(file, protocol).dump(state)
    return file.getvalue()


@pytest.mark.parametrize("pickler", [pickle.Pickler, pickle._Pickler])
@pytest.mark.parametrize("protocol", [4, 5, pickle.DEFAULT_PROTOCOL])
@pytest.mark.parametrize("nodes", [0, 1, 2000])
def test_a_state(pickler, protocol, nodes):
    """
    All that torch puts into one is read, however many nodes there are.
    """
    names = [
        "n" * 255,
        "m" * 70_000,
        "",
        "\N{GRINNING FACE}",
        "o" * 256,
        *(f"node-{n}" for n in range(nodes)),
    ]
    made = RendezvousState()
    made.round, made.complete, made.closed = 2**40, True, False
    made.deadline = NOW.astimezone(timezone(timedelta(hours=-3), "west"))
    made.wait_list = {NodeDesc(name, 2**22, 0) for name in names[:2]}
    made.redundancy_list = {NodeDesc(names[2], 1, 70_000)}
    made.participants = {NodeDesc(name, 2**33, n): n for n, name in enumerate(names)}
    made.last_heartbeats = {
        NodeDesc(name, 5, n): NOW + timedelta(seconds=n) for n, name in enumerate(names)
    }
    found = read_state(written_by(pickler, made, protocol))

    assert type(found) is State
    for name in ("round", "complete", "closed", "deadline"):
        assert getattr(found, name) == getattr(made, name)
    for name in ("participants", "last_heartbeats"):
        assert [
            (vars(node), value) for node, value in getattr(found, name).items()
        ] == [(vars(node), value) for node, value in getattr(made, name).items()]
    for name in ("wait_list", "redundancy_list"):
        assert {one.id for one in getattr(found, name)} == {
            f"{one.addr}_{one.pid}_{one.local_id}" for one in getattr(made, name)
        }
