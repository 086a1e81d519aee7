# SPDX-License-Identifier: BSD-3-Clause
"""
The verdict on the demo: what the workers' records must show.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from etcd_rendezvous._cli.demo_records import (
    Record,
    find_phases,
    find_worlds,
    judge,
    parse_record,
)

STEPS = 60


def make_world(name, start, nodes, steps, *, resumed_from=0, every=20, end=False):
    """
    Make the records of one world that trains `steps` (first and last).
    """
    records = []
    for rank, node in enumerate(nodes):
        common = {"node": node, "pid": 1000 + int(start) + rank, "world": name}
        environment = {
            "world_size": len(nodes),
            "rank": rank,
            "group_rank": rank,
            "master_addr": "127.0.0.1",
            "master_port": 29000 + int(start),
        }
        records.append(Record("begun", start, **{**common, "world": ""}, **environment))
        records.append(
            Record(
                "joined",
                start + 1,
                **common,
                **environment,
                newest=resumed_from,
                resumed_from=resumed_from,
            )
        )
        first, last = steps
        for step in range(first, last + 1):
            time = start + 1 + step / 10
            records.append(Record("step", time, **common, rank=rank, step=step))
            if rank == 0 and (step % every == 0 or step == STEPS):
                records.append(
                    Record(
                        "checkpoint",
                        time,
                        **common,
                        rank=rank,
                        step=step,
                        accuracy=0.9 + step / 1000,
                    )
                )
        if end:
            time = start + 1 + last / 10
            records.append(
                Record("ended", time, **common, rank=rank, step=last, accuracy=0.96)
            )
    return records


@pytest.fixture
def good():
    """
    A run as it should be: three worlds, by name.
    """
    return {
        "a": make_world("a", 100.0, ["n0", "n1", "n2"], (1, 27)),
        "b": make_world("b", 200.0, ["n1", "n2"], (21, 47), resumed_from=20),
        "c": make_world(
            "c", 300.0, ["n1", "n2", "n3"], (41, STEPS), resumed_from=40, end=True
        ),
    }


def verdict(worlds, killed="n0"):
    records = [record for world in worlds.values() for record in world]
    return judge(records, 3, killed)


def change(world, condition, **values):
    return [replace(r, **values) if condition(r) else r for r in world]


def test_a_good_run_has_no_problem(good):
    """
    Worlds of 3, 2 and 3 that go on from the newest checkpoint are what is promised.
    """
    assert verdict(good) == []


def test_the_order_of_the_records_does_not_matter(good):
    """
    Each worker writes its own file, so the records come in any order.
    """
    records = [record for world in good.values() for record in world]

    assert judge(reversed(records), 3, "n0") == []


def test_a_missing_newcomer_is_named(good):
    """
    Training that ends with two nodes is not what was promised.
    """
    del good["c"]
    good["b"] = make_world(
        "b", 200.0, ["n1", "n2"], (21, STEPS), resumed_from=20, end=True
    )

    assert verdict(good) == ["The third world of 3 never formed."]


def test_survivors_that_do_not_meet_again_are_named(good):
    """
    Without a second world there is no end of training either.
    """
    del good["b"], good["c"]

    expected = [
        "The second world of 2 never formed.",
        "Training did not come to its end: it stopped at step 27.",
    ]
    assert expected == verdict(good)


def test_no_records_at_all():
    """
    A job that never trained has formed no world.
    """
    assert judge([], 3, "") == [
        "The first world of 3 never formed.",
        "No node was killed.",
    ]


def test_a_world_that_never_trained_does_not_count(good):
    """
    To be part of a world is not enough, a step must be done.
    """
    good["c"] = [r for r in good["c"] if r.kind in ("begun", "joined")]

    assert "The third world of 3 never formed." in verdict(good)


def test_a_wrong_size_is_named(good):
    """
    Each size has its place.
    """
    good["b"] = make_world("b", 200.0, ["n1"], (21, 47), resumed_from=20)

    assert verdict(good) == ["The worlds had the sizes 3, 1, 3 instead of 3, 2, 3."]


def test_a_world_too_many_is_named(good):
    """
    Losing one more node at the end is not what was promised.
    """
    good["c"] = make_world("c", 300.0, ["n1", "n2", "n3"], (41, 50), resumed_from=40)
    good["d"] = make_world(
        "d", 400.0, ["n1", "n2"], (41, STEPS), resumed_from=40, end=True
    )

    assert verdict(good) == ["The worlds had the sizes 3, 2, 3, 2 instead of 3, 2, 3."]


def test_nodes_that_come_in_late_are_no_problem(good):
    """
    Before the first full world a smaller one may have trained.
    """
    early = make_world("0", 50.0, ["n0", "n1"], (1, 3))

    assert verdict({"0": early, **good}) == []


def test_a_world_that_forms_twice_counts_once(good):
    """
    A hiccup may make the same nodes meet again.
    """
    good["b"] = make_world("b", 200.0, ["n1", "n2"], (21, 44), resumed_from=20)
    good["b2"] = make_world("b2", 250.0, ["n1", "n2"], (41, 47), resumed_from=40)

    assert verdict(good) == []
    worlds = find_worlds([record for world in good.values() for record in world])
    assert [len(phase) for phase in find_phases(worlds, 3)] == [1, 2, 1]


def test_a_start_from_scratch_is_named(good):
    """
    A world that overlooks the checkpoints has lost work.
    """
    good["b"] = make_world("b", 200.0, ["n1", "n2"], (1, 47))

    expected = (
        "A world of 2 began with step 1, while the newest checkpoint on disk was that "
        "of step 20."
    )
    assert [expected] == verdict(good)


def test_an_older_checkpoint_is_named_even_if_the_worker_saw_no_newer(good):
    """
    What earlier worlds have saved counts, not only what a worker says it found.
    """
    good["c"] = make_world(
        "c", 300.0, ["n1", "n2", "n3"], (21, STEPS), resumed_from=20, end=True
    )

    expected = (
        "A world of 3 began with step 21, while the newest checkpoint on disk was that "
        "of step 40."
    )
    assert [expected] == verdict(good)


def test_a_checkpoint_whose_record_was_lost_counts(good):
    """
    A worker may be killed after it saved a checkpoint and before it said so.
    """
    good["a"] = [r for r in good["a"] if r.kind != "checkpoint"]

    assert verdict(good) == []


def test_a_skipped_step_is_named(good):
    """
    The first step is the one after the checkpoint, no later one.
    """
    good["b"] = [r for r in good["b"] if not (r.kind == "step" and r.step == 21)]

    expected = (
        "A world of 2 began with step 22, while the newest checkpoint on disk was that "
        "of step 20."
    )
    assert [expected] == verdict(good)


def test_a_restart_without_any_checkpoint_is_named(good):
    """
    To begin again shows nothing.
    """
    good["a"] = make_world("a", 100.0, ["n0", "n1", "n2"], (1, 7))
    good["b"] = make_world("b", 200.0, ["n1", "n2"], (1, 47))

    assert verdict(good) == ["No checkpoint was on disk when a world of 2 formed."]


def test_a_checkpoint_from_nowhere_is_named(good):
    """
    A checkpoint of another run on the disk would make the rest worthless.
    """
    good["b"] = make_world("b", 200.0, ["n1", "n2"], (41, 47), resumed_from=40)

    expected = (
        "A checkpoint of step 40 was on disk, but no worker had gone further than "
        "step 27."
    )
    assert [expected] == verdict(good)


def test_different_masters_are_named(good):
    """
    All workers of a world meet at one place.
    """
    good["b"] = change(good["b"], lambda r: r.node == "n2", master_port=1)

    expected = (
        "In the world of 2 that began with step 21 the workers disagree on MASTER_ADDR "
        "and MASTER_PORT: 127.0.0.1:1 and 127.0.0.1:29200."
    )
    assert [expected] == verdict(good)


def test_a_missing_member_is_named(good):
    """
    The records of every rank are there.
    """
    good["b"] = [r for r in good["b"] if r.node != "n2"]

    assert verdict(good) == [
        "In the world of 2 that began with step 21 the ranks were 0."
    ]


def test_different_checkpoints_are_named(good):
    """
    All workers of a world go on from one checkpoint.
    """
    good["c"] = change(good["c"], lambda r: r.node == "n3", resumed_from=20)

    assert verdict(good) == [
        (
            "In the world of 3 that began with step 41 the workers loaded different "
            "checkpoints."
        )
    ]


def test_a_wrong_victim_is_named(good):
    """
    It is the node of rank 0 that must die.
    """
    assert verdict(good, killed="n1") == [
        "The killed node was n1, but rank 0 was on n0.",
        "The killed node n1 took part in a later world.",
    ]


def test_a_victim_that_lives_is_named(good):
    """
    The newcomer is another node than the killed one.
    """
    good["c"] = change(good["c"], lambda r: r.node == "n3", node="n0")

    assert verdict(good) == ["The killed node n0 took part in a later world."]


def test_no_victim_is_named(good):
    """
    Worlds that change size for another reason don't show what was promised.
    """
    assert verdict(good, killed="") == ["No node was killed."]


def test_a_poor_accuracy_is_named(good):
    """
    Training has to get somewhere, on each worker.
    """
    good["c"] = change(
        good["c"], lambda r: r.kind == "ended" and r.rank == 2, accuracy=0.9499
    )

    assert verdict(good) == [
        "The accuracy on the held-out digits was 0.9499, less than 0.95."
    ]


def test_an_end_that_a_worker_missed_is_named(good):
    """
    All workers of the last world train to the end.
    """
    good["c"] = [r for r in good["c"] if not (r.kind == "ended" and r.rank == 1)]

    assert verdict(good) == ["Training did not come to its end: it stopped at step 60."]


def test_every_problem_gets_its_sentence(good):
    """
    One problem does not hide another.
    """
    good["b"] = make_world("b", 200.0, ["n1", "n2"], (1, 47))
    good["c"] = change(good["c"], lambda r: r.kind == "ended", accuracy=0.5)
    good["c"] = change(good["c"], lambda r: r.node == "n3", master_addr="elsewhere")

    assert len(verdict(good)) == 3


def test_a_record_is_read_as_it_was_written(good):
    """
    The reader takes the worker's lines.
    """
    record = good["b"][1]

    assert record == parse_record(json.dumps(asdict(record)))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[1, 2]",
        '"step"',
        "{}",
        '{"kind": "step", "time": 1.0, "node": "n0"}',
        '{"kind": "step", "time": 1.0, "node": "n0", "pid": "7"}',
        '{"kind": "step", "time": 1.0, "node": "n0", "pid": 7, "colour": "red"}',
        '{"kind": "step", "time": null, "node": "n0", "pid": 7}',
    ],
)
def test_what_is_not_a_record_is_refused(line):
    """
    A file of anything else is not taken for records.
    """
    with pytest.raises(ValueError, match="record"):
        parse_record(line)
