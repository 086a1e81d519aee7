# SPDX-License-Identifier: BSD-3-Clause
"""
How values and counters stand in etcd. No server.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from etcd_rendezvous._v3 import values
from etcd_rendezvous._v3.wire import Entry

examples = settings(derandomize=True, max_examples=200)

OURS = b"\0etcd-rendezvous "
VALUES = st.binary() | st.builds(OURS.__add__, st.binary())
LOW, HIGH = values.COUNTERS


def entry(stored, version=1):
    return Entry(b"k", stored, 1, 1, version, 0)


@given(VALUES, st.integers(1, 1000))
@example(b"", 1)
@example(OURS, 1)
@example(OURS + b"counter: version+5", 3)
@example(OURS + b"value: x", 3)
@examples
def test_every_value_comes_back(value, version):
    """
    What was written is read, whatever it looks like; it is never taken for a counter.
    """
    stored = values.encode(value)

    assert value == values.decode(entry(stored, version))
    assert not LOW < stored < HIGH


@pytest.mark.parametrize("value", [b"", b"text", b"10", b"\0", b"\xff", OURS[:-1]])
def test_values_stand_as_they_are(value):
    """
    What doesn't look like ours is stored unchanged, and so can be read by anybody.
    """
    assert value == values.encode(value)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 10**6), st.integers(0, 1000))
@examples
def test_counters(number, version, touches):
    """
    A counter is its number when it is written, and one more for each later version.
    """
    stored = values.counter(number, version)

    assert LOW < stored < HIGH
    assert b"%d" % (number + touches) == values.decode(entry(stored, version + touches))


@pytest.mark.parametrize(
    ("number", "version", "stored"),
    [
        (1, 1, b"counter: version+0"),
        (10, 3, b"counter: version+7"),
        (0, 1, b"counter: version-1"),
        (-5, 2, b"counter: version-7"),
    ],
)
def test_what_a_counter_looks_like(number, version, stored):
    """
    The stored text says how the number is had.
    """
    assert OURS + stored == values.counter(number, version)
