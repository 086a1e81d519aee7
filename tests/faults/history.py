# SPDX-License-Identifier: BSD-3-Clause
"""
What clients did to one state, and whether a single register could have answered so.

Every state that is written is unique, and every token names one write. So the tokens
order all writes, and the rules are simple:

- no two writes are won from one token;
- the writes form one chain, from the first write on;
- who reads a token reads what its writer wrote;
- what begins after something else has ended sees nothing older;
- a write whose outcome is unknown appears once at most, one that was lost never.

Times are of `time.monotonic`, which all processes of a Linux machine share.
"""

from __future__ import annotations

import dataclasses
import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from support.torchrun import whole_lines

#: What became of an operation. A read that raised has failed; whether a write that
#: raised was applied is unknown.
READ, WON, LOST, UNKNOWN, FAILED = "read", "won", "lost", "unknown", "failed"


@dataclass(frozen=True)
class Operation:
    """
    One call of one client.

    Attributes:
        client: Who called.
        start: When the call began.
        end: When it returned or raised.
        outcome: What became of it.
        wrote: The state that it was to write; None for a read.
        given: The token that the write was given; None for the first write.
        found: The state that it was told; None for none.
        token: The token of that state; None for none.
        error: What it raised, in words.
    """

    client: str
    start: float
    end: float
    outcome: str
    wrote: str | None = None
    given: int | None = None
    found: str | None = None
    token: int | None = None
    error: str = ""

    @property
    def seconds(self) -> float:
        """
        How long it took.
        """
        return self.end - self.start

    @property
    def raised(self) -> bool:
        """
        Whether it raised an error.
        """
        return self.outcome in (UNKNOWN, FAILED)

    def to_json(self) -> str:
        """
        Return it as one line, without what is not set.
        """
        fields = dataclasses.asdict(self)
        return json.dumps(
            {name: one for name, one in fields.items() if one is not None}
        )

    @classmethod
    def from_json(cls, line: str) -> Operation:
        """
        Make one of a line.
        """
        return cls(**json.loads(line))

    def __str__(self) -> str:
        words = [f"{self.client} at {self.start:.3f} to {self.end:.3f}"]
        if self.wrote is not None:
            words.append(f"wrote {self.wrote!r} upon {self.given or 'nothing'}:")
        words.append(self.outcome)
        if not self.raised:
            told = (
                "nothing" if self.token is None else f"{self.found!r} at {self.token}"
            )
            words.append(f"and was told {told}")
        return f"[{' '.join(words)}{self.error and ': '}{self.error}]"


def read_history(files: Iterable[Path]) -> list[Operation]:
    """
    Read the operations that clients have written down, in the order of their ends.

    A line that is still being written is left out.
    """
    lines = [line for file in files for line in whole_lines(file.read_text("utf-8"))]
    return sorted(map(Operation.from_json, lines), key=lambda one: one.end)


def check(operations: Sequence[Operation]) -> list[str]:
    """
    Return what one register can't have answered, in words; nothing if all is well.
    """
    return [finding for rule in RULES for finding in rule(operations)]


def no_two_wins_from_one_token(operations: Sequence[Operation]) -> list[str]:
    """
    A token is good for one write; so is none, for the first write.
    """
    wins = [one for one in operations if one.outcome == WON]
    unknown = [one for one in _applied(operations).values() if one.outcome == UNKNOWN]
    upon = defaultdict(list)
    for one in wins + unknown:
        upon[one.given or 0].append(one)
    return [
        f"Several writes were applied upon the token {given}: {_all(found)}"
        for given, found in upon.items()
        if len(found) > 1
    ]


def wins_form_one_chain(operations: Sequence[Operation]) -> list[str]:
    """
    Each write that was applied stands upon the one before it, the first upon nothing.

    Whoever writes upon a write was told its token. So only the last of the chain
    may be missing here, where its outcome is unknown and nobody has read it.
    """
    applied = sorted(_applied(operations).items())
    findings = [
        f"The first write at {token} stands upon {one.given}: {one}"
        for token, one in applied[:1]
        if one.given
    ]
    findings += [
        f"The write at {token} stands upon {one.given or 'nothing'}, not upon {before}: "
        f"{one}"
        for (before, _), (token, one) in pairwise(applied)
        if one.given != before
    ]
    return findings


def reads_return_what_was_written(operations: Sequence[Operation]) -> list[str]:
    """
    Whoever is told of a token is told what its writer wrote, and nobody else's.
    """
    writers = {one.wrote: one for one in operations if one.wrote is not None}
    first: dict[int, Operation] = {}
    findings = []
    for one in operations:
        if one.raised:
            continue
        if one.outcome == WON and (one.found != one.wrote or one.token is None):
            findings.append(f"A write was won, but not what was written: {one}")
        if one.token is None:
            continue
        if one.found not in writers:
            findings.append(f"Nobody wrote what was found: {one}")
        known = first.setdefault(one.token, one)
        if known.found != one.found:
            findings.append(
                f"The token {one.token} has two states: {_all([known, one])}"
            )
    return findings


def real_time_is_respected(operations: Sequence[Operation]) -> list[str]:
    """
    What begins after something has ended sees at least that, and what ends before a
    write has begun does not see the write.
    """
    findings = []
    told = sorted(
        (one for one in operations if not one.raised), key=lambda one: one.end
    )
    ends = [one.end for one in told]
    # The newest that was told to whoever had ended by then.
    newest: list[Operation] = []
    for one in told:
        last = newest[-1] if newest else one
        newest.append(max(last, one, key=lambda op: op.token or 0))
    for one in told:
        ended = bisect_left(ends, one.start)
        if not ended:
            continue
        before, token = newest[ended - 1], one.token or 0
        known = before.token or 0
        if token < known or (one.outcome == WON and token == known):
            findings.append(f"Something older came later: {_all([before, one])}")
    writers = {one.wrote: one for one in operations if one.wrote is not None}
    for one in told:
        writer = writers.get(one.found) if one.token is not None else None
        if writer is not None and one.end < writer.start:
            findings.append(f"It was seen before it was written: {_all([one, writer])}")
    return findings


def writes_appear_at_most_once(operations: Sequence[Operation]) -> list[str]:
    """
    No write has two tokens, whether its outcome is known or not.
    """
    tokens: dict[str, set[int]] = defaultdict(set)
    for one in operations:
        if one.found is not None and one.token is not None:
            tokens[one.found].add(one.token)
    return [
        f"What was written once appeared at {sorted(found)}: {one}"
        for one in operations
        if one.wrote is not None and len(found := tokens[one.wrote]) > 1
    ]


def lost_writes_never_appear(operations: Sequence[Operation]) -> list[str]:
    """
    A write is lost only to another one, and then nobody ever reads it.
    """
    applied = _applied(operations)
    findings = [
        f"It was lost, but is there at {token}: {one}"
        for token, one in applied.items()
        if one.outcome == LOST
    ]
    findings += [
        f"It was lost to nobody: {one}"
        for one in operations
        if one.outcome == LOST and one.token == one.given
    ]
    return findings


#: All rules, each a function from a history to what it finds.
RULES: tuple[Callable[[Sequence[Operation]], list[str]], ...] = (
    no_two_wins_from_one_token,
    wins_form_one_chain,
    reads_return_what_was_written,
    real_time_is_respected,
    writes_appear_at_most_once,
    lost_writes_never_appear,
)


def _applied(operations: Sequence[Operation]) -> dict[int, Operation]:
    """
    Return the writes that somebody saw, or was told to have won, by token.
    """
    writers = {one.wrote: one for one in operations if one.wrote is not None}
    return {
        one.token: writers[one.found]
        for one in operations
        if one.token is not None and one.found in writers
    }


def _all(operations: Iterable[Operation]) -> str:
    return ", ".join(map(str, operations))
