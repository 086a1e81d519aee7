# SPDX-License-Identifier: BSD-3-Clause
"""
A backend that is handed any token and any state, on real servers.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.torch

examples = settings(
    max_examples=60,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)


class NoTruth:
    """
    Like an array of numbers: neither true nor false.
    """

    def __bool__(self):
        raise ValueError("The truth value is ambiguous.")

    def __repr__(self):
        return "NoTruth()"


SIMPLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**62, 2**66),
    st.floats(),
    st.complex_numbers(),
    st.text(),
    st.binary(),
    st.just(NoTruth()),
)
TOKENS = (
    SIMPLE | st.lists(SIMPLE) | st.tuples(SIMPLE) | st.dictionaries(st.text(), SIMPLE)
)


@given(st.data())
@examples
def test_a_token_that_is_none_of_ours(newest_served, data):
    """
    Where there is a state, a token that is not its own is a lost swap, whatever it is;
    the state is returned, and stays.
    """
    backend = newest_served.backend("fuzzed-tokens")
    found = backend.get_state()
    if found is None:
        backend.set_state(b"the state")
        found = backend.get_state()
    state, own = found
    token = data.draw(TOKENS.filter(lambda token: token != own))

    assert (state, own, False) == backend.set_state(b"another", token)
    assert found == backend.get_state()


@given(st.binary(max_size=3000))
@examples
def test_any_state(newest_served, state):
    """
    Any bytes come back as they were.
    """
    backend = newest_served.backend("fuzzed-states")
    found = backend.get_state()
    kept, token, won = backend.set_state(state, found[1] if found else None)

    assert (state, True) == (kept, won)
    assert (state, token) == backend.get_state()
    assert (state, token) == newest_served.backend("fuzzed-states").get_state()
