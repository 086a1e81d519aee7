# SPDX-License-Identifier: BSD-3-Clause
"""
Runs as they stand in etcd, made by torch's classes and ours; and the command's words.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

SCHEMA = Path(__file__).parents[2] / "docs" / "status.schema.json"


class Done(NamedTuple):
    """
    What a call of the command came to.
    """

    status: int
    out: str
    err: str


def call(*arguments: object, **environment: str) -> Done:
    """
    Call the command ``etcd-rendezvous`` in this process.
    """
    from etcd_rendezvous._cli.app import cli

    done = CliRunner().invoke(cli, [*map(str, arguments)], env=environment)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def check(text: str) -> dict[str, Any]:
    """
    Return what ``status --json`` printed, if it is as the schema has it, and no more.
    """
    import jsonschema

    found = json.loads(text)
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft202012Validator(schema).validate(found)
    run, node = (schema["$defs"][name]["properties"] for name in ("run", "node"))
    assert set(found) == set(schema["properties"])
    for one in found["runs"]:
        assert set(one) == set(run)
        for member in (*one["participants"], *one["waiting"], *one["spares"]):
            assert set(member) == set(node)
    return found


def torchs_state(
    ages: Mapping[str, float],
    *,
    waiting: Iterable[str] = (),
    spares: Iterable[str] = (),
    **parts: Any,
) -> bytes:
    """
    Return a state of torch's handler, pickled.

    Args:
        ages: The seconds since the last heartbeats, by the nodes' addresses.
        waiting: Which of the nodes wait.
        spares: Which of them are spares; the others take part, ranked as they stand.
        parts: What is set besides.
    """
    from torch.distributed.elastic.rendezvous import dynamic_rendezvous as torchs

    state = torchs._RendezvousState()
    now = datetime.now(timezone.utc)
    for number, (address, age) in enumerate(ages.items()):
        node, twin = (torchs._NodeDesc(address, 100 + number, 0) for _ in range(2))
        # As torch's own states, they have one node in two objects.
        state.last_heartbeats[twin] = now - timedelta(seconds=age)
        if address in waiting:
            state.wait_list.add(node)
        elif address in spares:
            state.redundancy_list.add(node)
        else:
            state.participants[node] = len(state.participants)
    for name, value in parts.items():
        setattr(state, name, value)
    return pickle.dumps(state)
