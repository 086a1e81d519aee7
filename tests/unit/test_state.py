# SPDX-License-Identifier: BSD-3-Clause

"""
States that are not torch's, and would cost whoever reads them. No server, no torch.
"""

from __future__ import annotations

import pickle

import pytest

from etcd_rendezvous._state import StateRefusedError, check_opcodes


def nested_tuples():
    """
    Return a few bytes whose hash takes 2 ** 40 steps.
    """
    inner = (0, 0)
    for _ in range(40):
        inner = (inner, inner)
    # As a key, by hand: nobody could pickle a dictionary that has it.
    return pickle.dumps([inner])


@pytest.mark.parametrize(
    "state",
    [
        nested_tuples(),
        pickle.dumps({"round": 10**5000}),
        pickle.dumps({"round": 2**63 + 1}),
        b"\x80\x04}r\xff\xff\xff\x7f.",
        pickle.dumps([1]),
        pickle.dumps(frozenset({1})),
        pickle.dumps((1, 2)),
        b"",
        b"no pickle",
    ],
    ids=[
        *("nested tuples", "a huge number", "a large number", "a far memo", "a list"),
        *("a frozen set", "a tuple", "nothing", "text"),
    ],
)
def test_a_state_that_would_cost_much(state):
    """
    It is refused before anything of it is made.
    """
    with pytest.raises(StateRefusedError, match="not a pickle that torch's handler"):
        check_opcodes(state)


@pytest.mark.parametrize("protocol", [4, 5])
def test_what_torchs_states_are_made_of(protocol):
    """
    Dictionaries, sets, texts, numbers, times: all of that may pass.
    """
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc)
    state = {"a": {1: now}, "b": {"x", "y"}, "c": None, "d": True, 5: 2**62}

    assert None is check_opcodes(pickle.dumps(state, protocol=protocol))
