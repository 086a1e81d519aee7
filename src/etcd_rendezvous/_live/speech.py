# SPDX-License-Identifier: BSD-3-Clause
"""
What is said to who waits.
"""

from __future__ import annotations

from .._outages import listed, nodes, span
from .records import Progress, Round
from .rounds import Rules
from .view import View

__all__ = ["describe_wait"]


def describe_wait(view: View, rules: Rules, node: str, since: float) -> str:
    """
    Say how far the next round is.

    Args:
        view: What a node that waits knows.
        rules: What a round is to be like.
        node: The id of the node that waits.
        since: The seconds since it knows how far the round is.

    Returns:
        Words such as "2 joined (a, b), 3 to 4 needed for round 1".
    """
    last = view.round
    number = last.number + 1 if last else 0
    known = last is None or last.broken or last.waiting or view.progress
    if last is not None and not known and node not in last.members:
        return _running(last, rules)
    needed = span(rules.min_nodes, rules.max_nodes)
    said = view.progress
    if said is None:
        return f"{needed} nodes needed for round {number}"
    joined = f"{said.joined} joined" + listed(said.names, said.joined)
    if said.seconds is not None:
        left = max(said.seconds - since, 0.0)
        joined += (
            f", enough for round {number}, which begins in {left:.0f} s, or as soon as "
            f"there are {rules.max_nodes}"
        )
    else:
        joined += f", {needed} needed for round {number}"
    return joined + _missing(said, number - 1)


def _running(last: Round, rules: Rules) -> str:
    running = len(last.members)
    text = f"round {last.number} is running with {nodes(running)}; "
    if running >= rules.max_nodes:
        return text + "this node is a spare, and steps in when one of them is lost"
    return (
        text + "this node joins the next round, which begins when the running one ends "
        "or makes room"
    )


def _missing(said: Progress, number: int) -> str:
    if not said.missing_count:
        return ""
    are = "is" if said.missing_count == 1 else "are"
    return (
        f"; {said.missing_count} of round {number} {are} missing"
        f"{listed(said.missing, said.missing_count)}"
    )
