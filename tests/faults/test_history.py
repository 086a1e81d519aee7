# SPDX-License-Identifier: BSD-3-Clause
"""
The checker of histories finds what is wrong, and nothing where all is well.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults import history
from faults.history import FAILED, LOST, READ, UNKNOWN, WON, Operation


def won(client, start, end, wrote, given, token):
    return Operation(client, start, end, WON, wrote, given, wrote, token)


def read(client, start, end, found, token):
    return Operation(client, start, end, READ, found=found, token=token)


def lost(client, start, end, wrote, given, found, token):
    return Operation(client, start, end, LOST, wrote, given, found, token)


def unknown(client, start, end, wrote, given):
    return Operation(client, start, end, UNKNOWN, wrote, given, error="no answer")


#: Two clients, a lost write, and one of unknown outcome that was applied.
GOOD = (
    read("a", 0, 1, None, None),
    won("a", 1, 2, "a1", None, 5),
    lost("b", 1, 3, "b1", None, "a1", 5),
    won("b", 3, 4, "b2", 5, 7),
    unknown("a", 4, 9, "a2", 7),
    read("b", 5, 6, "b2", 7),
    read("b", 6, 8, "a2", 8),
    won("b", 8, 10, "b3", 8, 11),
    Operation("a", 10, 12, FAILED, error="no answer"),
)


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        pytest.param(
            history.no_two_wins_from_one_token,
            [*GOOD, won("c", 4, 9, "c1", 7, 12)],
            id="two-wins-from-one-token",
        ),
        pytest.param(
            history.no_two_wins_from_one_token,
            [*GOOD, won("c", 0, 12, "c1", None, 12)],
            id="two-first-writes",
        ),
        pytest.param(
            history.wins_form_one_chain,
            [*GOOD, won("c", 11, 13, "c1", 9, 13)],
            id="a-win-from-a-token-that-nobody-has",
        ),
        pytest.param(
            history.wins_form_one_chain,
            [won("a", 0, 1, "a1", 3, 5)],
            id="a-first-write-upon-something",
        ),
        pytest.param(
            history.wins_form_one_chain,
            # It is the unknown write that was applied upon the wrong one.
            [*GOOD, unknown("c", 9, 11, "c1", 7), read("c", 12, 13, "c1", 13)],
            id="an-unknown-write-upon-an-old-token",
        ),
        pytest.param(
            history.reads_return_what_was_written,
            [*GOOD, read("c", 11, 12, "b2", 11)],
            id="a-token-with-the-bytes-of-another",
        ),
        pytest.param(
            history.reads_return_what_was_written,
            [*GOOD, read("c", 11, 12, "rubbish", 12)],
            id="bytes-that-nobody-wrote",
        ),
        pytest.param(
            history.reads_return_what_was_written,
            [*GOOD, Operation("c", 11, 12, WON, "c1", 11, "b3", 11)],
            id="a-win-of-somebody-else's-bytes",
        ),
        pytest.param(
            history.real_time_is_respected,
            [*GOOD, read("c", 11, 12, "a2", 8)],
            id="an-old-read",
        ),
        pytest.param(
            history.real_time_is_respected,
            [*GOOD, read("c", 11, 12, None, None)],
            id="a-read-of-nothing",
        ),
        pytest.param(
            history.real_time_is_respected,
            [*GOOD, lost("c", 11, 12, "c1", 5, "b2", 7)],
            id="a-lost-write-that-is-told-something-old",
        ),
        pytest.param(
            history.real_time_is_respected,
            [*GOOD, read("c", 0.5, 0.9, "a1", 5)],
            id="a-read-of-what-is-yet-to-be-written",
        ),
        pytest.param(
            history.real_time_is_respected,
            [*GOOD, read("c", 11, 12, "c1", 12), unknown("d", 13, 14, "c1", 11)],
            id="a-read-of-an-unknown-write-that-is-yet-to-come",
        ),
        pytest.param(
            history.writes_appear_at_most_once,
            [*GOOD, read("c", 11, 12, "a2", 12)],
            id="an-unknown-write-twice",
        ),
        pytest.param(
            history.writes_appear_at_most_once,
            [*GOOD, read("c", 11, 12, "b3", 12)],
            id="a-won-write-twice",
        ),
        pytest.param(
            history.lost_writes_never_appear,
            [*GOOD, read("c", 11, 12, "b1", 12)],
            id="a-lost-write-that-was-applied",
        ),
        pytest.param(
            history.lost_writes_never_appear,
            [*GOOD, lost("c", 11, 12, "c1", 11, "b3", 11)],
            id="a-write-that-was-lost-to-nobody",
        ),
    ],
)
def test_each_rule_fires(rule, broken):
    """
    Each rule finds something in a history that breaks it.
    """
    assert rule(broken)
    assert set(rule(broken)) <= set(history.check(broken))


def test_each_rule_is_shown_to_fire():
    """
    No rule is left out of these tests.
    """
    (mark,) = test_each_rule_fires.pytestmark

    assert set(history.RULES) == {one.values[0] for one in mark.args[1]}


def test_nothing_is_found_where_all_is_well():
    """
    No rule finds anything in a good history, whatever its order.
    """
    assert history.check(GOOD) == []
    assert history.check(GOOD[::-1]) == []


def test_unknown_writes_may_come_late_or_never():
    """
    A write of unknown outcome may be applied after it has raised, or not at all.
    """
    late = [*GOOD, unknown("c", 11, 12, "c1", 11), unknown("d", 11, 12, "d1", 11)]

    assert history.check(late) == []
    assert history.check([*late, read("e", 12, 13, "b3", 11)]) == []
    assert history.check([*late, read("e", 13, 14, "c1", 15)]) == []


def test_history_survives_its_file(tmp_path):
    """
    What is written as lines is read as it was, in the order of the ends; half a line is
    not yet read.
    """
    halves = GOOD[::2], GOOD[1::2]
    files = [tmp_path / "a", tmp_path / "b"]
    for file, half in zip(files, halves, strict=True):
        file.write_text("".join(f"{one.to_json()}\n" for one in half) + '{"client":')

    assert history.read_history(files) == sorted(GOOD, key=lambda one: one.end)


# --- Histories of a register that is right


def simulated(rng, clients=4, steps=80):
    """
    Let clients use a register that is right, through a network that is not.

    Requests take any time, replies are lost, and a request whose client gave up may
    still arrive.
    """
    clock, revision = 0.0, 10
    current = None
    known = dict.fromkeys(range(clients))
    pending, late, operations = {}, [], []

    def apply(wrote, upon):
        nonlocal revision, current
        if wrote is None or (current[1] if current else None) != upon:
            return False
        revision += rng.randint(1, 3)
        current = (wrote, revision)
        return True

    for step in range(steps):
        clock += rng.random()
        if late and rng.random() < 0.3:
            apply(*late.pop())
            continue
        client = rng.randrange(clients)
        if client not in pending:
            wrote = f"{client}-{step}" if rng.random() < 0.7 else None
            pending[client] = [clock, wrote, known[client] if wrote else None, None]
            continue
        start, wrote, upon, answer = pending[client]
        if answer is None and rng.random() < 0.6:
            won_it = apply(wrote, upon)
            pending[client][3] = (won_it, *(current or (None, None)))
            continue
        del pending[client]
        if answer is None or rng.random() < 0.2:
            outcome = FAILED if wrote is None else UNKNOWN
            operations.append(
                Operation(str(client), start, clock, outcome, wrote, upon, error="lost")
            )
            if answer is None and wrote is not None:
                late.append((wrote, upon))
            continue
        won_it, found, token = answer
        outcome = READ if wrote is None else WON if won_it else LOST
        known[client] = token
        operations.append(
            Operation(str(client), start, clock, outcome, wrote, upon, found, token)
        )
    for client, (start, wrote, upon, _) in pending.items():
        outcome = FAILED if wrote is None else UNKNOWN
        operations.append(Operation(str(client), start, clock, outcome, wrote, upon))
    return operations


@settings(max_examples=200)
@given(st.randoms(use_true_random=False))
def test_nothing_is_found_in_histories_of_a_register_that_is_right(rng):
    """
    Whatever the network does to requests and replies, a right register stays so.
    """
    assert history.check(simulated(rng)) == []


def _one_of(operations, rng, *outcomes):
    found = [one for one in operations if one.outcome in outcomes and one.token]
    return rng.choice(found) if found else None


def _win_again(operations, rng):
    """
    Tell somebody else, too, that his write was won from the same token.
    """
    one = _one_of(operations, rng, WON)
    last = max(other.token or 0 for other in operations)
    again = dataclasses.replace(one, wrote="twice", found="twice", token=last + 1)
    return [*operations, again]


def _win_what_was_lost(operations, rng):
    """
    Tell a client that its lost write was won, where another one's is known to be.
    """
    used = {one.given for one in operations if one.outcome == WON}
    lost = [one for one in operations if one.outcome == LOST and one.given in used]
    if not lost:
        return None
    one = rng.choice(lost)
    last = max(other.token or 0 for other in operations)
    told = dataclasses.replace(one, outcome=WON, found=one.wrote, token=last + 1)
    return [told if other is one else other for other in operations]


def _read_what_is_old(operations, rng):
    """
    Answer a late read with what was there before the last win.
    """
    wins = sorted((one.token, one) for one in operations if one.outcome == WON)
    if len(wins) < 2:
        return None
    (token, old), (_, newer) = wins[-2:]
    at = newer.end + 0.5
    return [*operations, read("late", at, at + 1, old.found, token)]


def _apply_again(operations, rng):
    """
    Let a write appear a second time.
    """
    one = _one_of(operations, rng, WON)
    end = max(other.end for other in operations)
    last = max(other.token or 0 for other in operations)
    return [*operations, read("late", end + 1, end + 2, one.found, last + 1)]


def _read_wrong_bytes(operations, rng):
    """
    Answer a read with other bytes than were written.
    """
    one = _one_of(operations, rng, READ)
    if one is None:
        return None
    told = dataclasses.replace(one, found=f"not {one.found}")
    return [told if other is one else other for other in operations]


def _lose_to_nobody(operations, rng):
    """
    Tell a client that its write was lost, though its token was the newest.
    """
    one = _one_of(operations, rng, WON)
    told = dataclasses.replace(
        one, outcome=LOST, wrote="unlucky", given=one.token, start=one.end
    )
    return [*operations, told]


@pytest.mark.parametrize(
    "break_it",
    [
        _win_again,
        _win_what_was_lost,
        _read_what_is_old,
        _apply_again,
        _read_wrong_bytes,
        _lose_to_nobody,
    ],
)
@settings(max_examples=100)
@given(seed=st.integers(0, 2**32))
def test_a_single_lie_is_found(break_it, seed):
    """
    One wrong answer in a long history is enough.
    """
    rng = random.Random(seed)
    operations = []
    broken = None
    while broken is None:
        operations = simulated(rng, steps=200)
        if any(one.outcome == WON for one in operations):
            broken = break_it(operations, rng)

    assert history.check(operations) == []
    assert history.check(broken)
