# SPDX-License-Identifier: BSD-3-Clause
"""
The protocol of `etcd-live`, searched at random for what must not be. No server.

`--live-seconds` says for how long. To see a run that failed, pass its seed to
`python -m support.livesim SEED` in the folder `tests`.

That the search finds what it is there for is shown by seeded faults: each is left out
of the protocol or put into it, and must be found.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace

import pytest

from etcd_rendezvous._live import mirror, records, requests, rounds, view
from etcd_rendezvous._v3 import wire
from support.livesim import FAULTS as USUAL
from support.livesim import KEYS, RUN_LEASE, TTL, Process, Run, Tenure, Violation

MOST_RUNS = 20_000


def search(runs, seconds, wanted="", **settings):
    """
    Play runs until one finds what must not be, in certain words, or the time is up.

    Returns:
        How many, and what was found; "" if nothing.
    """
    end = time.process_time() + seconds
    seed = random.getrandbits(32)
    for number in range(1, runs + 1):
        try:
            Run(seed + number, **settings).play()
        except Violation as error:
            if re.search(wanted, str(error)):
                return number, f"{error} (seed {seed + number})"
        except Exception:
            # Where a guard is taken away, anything may break.
            if not wanted:
                raise
        if time.process_time() > end:
            break
    return number, ""


def test_nothing_that_must_not_be_is_found(pytestconfig):
    """
    Whatever gets lost, comes late, dies or sleeps: the rounds are what they must be,
    and once all is well again they come to rest.
    """
    runs, found = search(10**9, pytestconfig.getoption("--live-seconds"))

    assert found == ""
    assert runs > 10


# -- an outage ---------------------------------------------------------------------


def all_inside(seed):
    """
    A run whose nodes are all in one round.
    """
    run = Run(seed, steps=0, limits=(3, 3), slots=3)
    run.play()
    assert all(process.inside == 0 for process in run.processes.values())
    return run


def outage(seed):
    """
    A round whose nodes all lose their leases at once, and come back in any order.
    """
    run = all_inside(seed)
    run._let_expire(*sorted(run.etcd.leases - {RUN_LEASE}))
    for process in run.processes.values():
        process.gap = process.due = True
    run.settle()
    run.now += TTL
    run.calm()
    run.history.rest()
    return run.history


def test_a_round_outlives_an_outage_that_ends_all_leases():
    """
    All leases expire at once while etcd is away; all nodes come back in time, in any
    order: the round goes on, and nobody is told anything.
    """
    for seed in range(60):
        history = outage(seed)

        assert len(history.rounds) == 1
        assert not history.broken


def test_a_closer_that_does_not_wait_for_those_who_may_return_is_found(monkeypatch):
    """
    It breaks the round, and a second one follows.
    """
    monkeypatch.setattr(Tenure, "gone_may_return", lambda self: False)

    assert {1, 2} <= {len(outage(seed).rounds) for seed in range(60)}


# -- seeded faults -----------------------------------------------------------------

FAULTS = {}

# What is found once nothing moves any more, or if that is never so.
AT_REST = (
    "keys of|know what|was told|the closer|closed run|too few is not|no round|stays broken"
    r"|are inside|is in round|are in, of|rests?\b"
)


def fault(expected, **settings):
    """
    Make a function that patches something, or that returns a process, a seeded fault.
    """

    def add(function):
        FAULTS[function.__name__] = (function, expected, settings)
        return function

    return add


def compares(request, *keys):
    """
    A transaction without its comparisons of keys.
    """
    names = {wire._b64(key) for key in keys}
    kept = [one for one in request.compare if one["key"] not in names]
    return request._replace(compare=kept)


def patched(patch, name, change):
    """
    Have a transaction built, and changed.
    """
    build = getattr(requests, name)
    patch.setattr(requests, name, lambda *given: change(build(*given), *given))


# Of transactions.


@fault("completed again|was in the last one")
def a_round_completes_whatever_the_last_one_is(patch):
    patched(patch, "complete", lambda request, *_: compares(request, KEYS.round))


def only(formed=1, **faults):
    """
    Settings that make a fault likely: no others, and often in a round that is up.
    """
    return {"formed": formed, "faults": {**dict.fromkeys(USUAL, 0), **faults}}


COMES_BACK = only(lapse=40, restart=80)


@fault("was in the last one", **COMES_BACK)
def a_round_completes_though_a_node_came_back(patch):
    patched(patch, "complete", lambda request, *_: compares(request, KEYS.resumed))


@fault("broke with all of its members there", **COMES_BACK)
def a_round_breaks_though_a_node_came_back(patch):
    patched(patch, "mark", lambda request, *_: compares(request, KEYS.resumed))


@fault("is not the closer")
def a_closer_writes_out_of_office(patch):
    for name in ("complete", "mark"):
        patched(patch, name, lambda request, *_: compares(request, KEYS.closer))


@fault(
    "of a closed run", limits=(2, 2), slots=3, **only(lapse=60, restart=40, close=60)
)
def a_round_completes_though_the_run_is_closed(patch):
    patched(patch, "complete", lambda request, *_: compares(request, KEYS.closed))


@fault(AT_REST)
def a_node_leaves_without_its_lease(patch):
    build = requests.leave
    patch.setattr(
        requests, "leave", lambda k, p, node: build(k, p, replace(node, lease=0))
    )


@fault(
    "fell to", limits=(2, 2), slots=2, steps=250, **only(restart=60, lose=30, late=4)
)
def a_late_copy_takes_back_what_a_node_has_left(patch):
    build = requests.leave
    patch.setattr(
        requests, "leave", lambda k, p, node: build(k, p, replace(node, modified=0))
    )


@fault(
    f"{AT_REST}|fell to",
    limits=(2, 2),
    slots=2,
    steps=200,
    **only(formed=0, lose=60, late=10, restart=40),
)
def a_late_registration_writes_over_the_node(patch):
    patched(
        patch,
        "register",
        lambda request, keys, place, node: compares(request, keys.node(place, node.id)),
    )


@fault("opened again", faults={"close": 30, "start": 120, "crash": 20})
def a_closed_run_is_opened_while_nodes_live(patch):
    patched(patch, "reopen", lambda request, *_: request._replace(compare=[]))


@fault("taken from its holder")
def an_office_is_taken_that_is_held(patch):
    patched(patch, "take_office", lambda request, *_: compares(request, KEYS.closer))


@fault("that is over|a broken round", **COMES_BACK)
def a_node_comes_back_into_a_round_that_is_over(patch):
    patched(patch, "resume", lambda request, *_: compares(request, KEYS.round))


@fault(
    f"{AT_REST}|fell to",
    limits=(2, 2),
    slots=2,
    steps=200,
    **only(lapse=30, restart=20, lose=60, late=30),
)
def a_late_return_writes_over_the_node(patch):
    patched(
        patch,
        "resume",
        lambda request, keys, place, node, *_: compares(
            request, keys.node(place, node.id)
        ),
    )


# Of decisions.


@fault("was in the last one")
def a_round_completes_while_members_are_inside(patch):
    decide = rounds.decide

    def change(snapshot, *given, **named):
        nodes = {
            one.id: replace(one, left=max(one.left, snapshot.number))
            for one in snapshot.nodes.values()
        }
        return decide(replace_nodes(snapshot, nodes), *given, **named)

    patch.setattr(rounds, "decide", change)


def replace_nodes(snapshot, nodes):
    return rounds.Snapshot(nodes, snapshot.round, snapshot.closed)


def amended(patch, amend):
    """
    Have a decision made, and changed.
    """
    decide = rounds.decide
    patch.setattr(
        rounds, "decide", lambda *given, **named: amend(decide(*given, **named), *given)
    )


def without_marks(patch, unwanted):
    def amend(decision, snapshot, *_):
        if decision.action is rounds.Action.MARK and unwanted(decision, snapshot):
            return rounds.Decision()
        return decision

    amended(patch, amend)


@fault(AT_REST)
def a_broken_round_is_not_marked(patch):
    without_marks(patch, lambda decision, snapshot: decision.round.broken)


@fault("are in, of|are inside", limits=(2, 3), slots=3)
def who_waits_is_not_announced(patch):
    without_marks(patch, lambda decision, snapshot: decision.round.waiting)


@fault("rest|told", limits=(2, 2), slots=3)
def spares_are_announced(patch):
    decide = rounds.decide

    def change(snapshot, known, *given, **named):
        found = decide(snapshot, known, *given, **named)
        if found.action is rounds.Action.COMPLETE:
            return found
        wider = replace(known, max_nodes=known.max_nodes + 1)
        wide = decide(snapshot, wider, *given, **named)
        return wide if wide.action is rounds.Action.MARK else found

    patch.setattr(rounds, "decide", change)


@fault("too few or too many")
def a_round_has_more_than_the_most(patch):
    decide = rounds.decide
    patch.setattr(
        rounds,
        "decide",
        lambda snapshot, rules, *given, **named: decide(
            snapshot, replace(rules, max_nodes=rules.max_nodes + 1), *given, **named
        ),
    )


@fault("too few or too many")
def a_round_has_fewer_than_the_least(patch):
    decide = rounds.decide
    patch.setattr(
        rounds,
        "decide",
        lambda snapshot, rules, *given, **named: decide(
            snapshot, replace(rules, min_nodes=rules.min_nodes - 1), *given, **named
        ),
    )


@fault("a member twice")
def a_member_is_in_a_round_twice(patch):
    def amend(decision, *_):
        if decision.action is rounds.Action.COMPLETE:
            first = decision.round.members[0]
            members = (*decision.round.members[:-1], first)
            return replace(decision, round=replace(decision.round, members=members))
        return decision

    amended(patch, amend)


@fault("completed again")
def a_number_is_left_out(patch):
    def amend(decision, *_):
        if decision.action is rounds.Action.COMPLETE and decision.round.number:
            number = decision.round.number + 1
            return replace(decision, round=replace(decision.round, number=number))
        return decision

    amended(patch, amend)


@fault("a mark changed")
def a_mark_changes_the_round(patch):
    def amend(decision, *_):
        if decision.action is rounds.Action.MARK:
            return replace(decision, round=replace(decision.round, port=1))
        return decision

    amended(patch, amend)


@fault(AT_REST)
def a_missed_round_is_ignored(patch):
    standing = rounds.standing

    def change(*given):
        found = standing(*given)
        return rounds.Standing.WAITS if found is rounds.Standing.MISSED else found

    patch.setattr(rounds, "standing", change)


@fault(f"{AT_REST}|accepted twice")
def what_a_node_has_left_is_ignored(patch):
    standing = rounds.standing
    patch.setattr(rounds, "standing", lambda last, node, left: standing(last, node, -1))


@fault("another")
def a_round_is_read_wrongly(patch):
    decode = view.decode_round

    def change(entry, table):
        found = decode(entry, table)
        return found and replace(found, members=found.members[::-1])

    patch.setattr(view, "decode_round", change)


# Of what is known.


@fault(f"{AT_REST}|accepted|completed")
def old_news_are_believed(patch):
    def tell(self, events):
        for event in events:
            if event.deleted:
                self._entries.pop(event.entry.key, None)
            else:
                self._entries[event.entry.key] = event.entry
        return True

    patch.setattr(mirror.Mirror, "tell", tell)


@fault(f"{AT_REST}|accepted|completed")
def an_old_read_is_believed(patch):
    def load(self, entries, revision):
        self._entries = {entry.key: entry for entry in entries}
        self.read = max(revision, self.read)
        return True

    patch.setattr(mirror.Mirror, "load", load)


@fault(AT_REST)
def a_read_does_not_tell_what_is_gone(patch):
    load = mirror.Mirror.load

    def change(self, entries, revision):
        found = {entry.key: entry for entry in entries}
        kept = [entry for entry in self if entry.key not in found]
        return load(self, [*kept, *found.values()], revision)

    patch.setattr(mirror.Mirror, "load", change)


# Of what the threads do.


@fault(AT_REST)
def the_watch_is_opened_after_the_registration(patch):
    class Late(Process):
        def first_watch(self):
            yield from ()

        def register(self):
            found = yield from super().register()
            if self.watch is None:
                self.watch = yield from self.open_watch(KEYS.common, self.tell)
            return found

    return Late


@fault(AT_REST)
def a_watch_is_replaced_after_the_read(patch):
    class ReadFirst(Process):
        def rewatch(self):
            yield from self.read_common()
            self.watch = yield from self.open_watch(KEYS.common, self.tell)

    return ReadFirst


@fault(AT_REST)
def the_closer_reads_before_it_watches(patch):
    class ReadFirst(Tenure):
        def serve(self):
            yield from self.load()
            self.loaded = True
            yield from super().serve()

        def load(self):
            if getattr(self, "loaded", False):
                self.loaded = False
                return True
            return (yield from super().load())

    return with_tenure(ReadFirst)


def with_tenure(tenure):
    return type("Changed", (Process,), {"in_office": tenure})


@fault(AT_REST)
def only_the_reply_starts_the_closer(patch):
    class ByReply(Process):
        by_reply = None

        def load_common(self, found, revision):
            before = self.view.office
            super().load_common(found, revision)
            if self.view.office != before:
                self.by_reply = self.view.office

        def is_closer(self):
            return super().is_closer() and self.by_reply == self.view.office

    return ByReply


@fault(
    "nobody is the closer",
    limits=(2, 2),
    slots=3,
    steps=40,
    **only(cut=60, pause=60, crash=15, expire=30),
)
def only_events_tell_that_the_office_is_empty(patch):
    class ByEvent(Process):
        told = False

        def tell(self, events):
            for event in events:
                if event.entry.key == KEYS.closer:
                    self.told = event.deleted
            super().tell(events)

        def office_is_empty(self):
            return super().office_is_empty() and self.told

    return ByEvent


@fault(f"{AT_REST}|accepted|was in the last|fell to|came back|broke with")
def an_id_is_not_random(patch):
    class Same(Process):
        def new_id(self):
            return f"same{self.slot}"

    return Same


@fault("by one who is out")
def a_round_is_accepted_by_who_is_out(patch):
    class Trusting(Process):
        def check_lease(self):
            yield from ()
            return True

    return Trusting


@fault(AT_REST)
def a_lost_lease_is_not_noticed(patch):
    class Careless(Process):
        def lease_is_lost(self, node):
            yield from ()

    return Careless


@fault("that is over|broken round", **COMES_BACK)
def a_return_is_fenced_by_what_is_known_later(patch):
    class Later(Process):
        asked = 0

        def may_resume(self):
            # It is asked before the lease is granted only.
            self.asked += 1
            return self.asked % 2 == 0 or super().may_resume()

    return Later


@fault(
    "completed again|was in the last one|is not the closer",
    limits=(2, 2),
    slots=3,
    steps=400,
    **only(lose=60, late=30, restart=40),
)
def a_fence_is_of_a_later_view(patch):
    class Later(Tenure):
        def write(self, request):
            yield None
            fresh = self.fence(self.process.view).compare(KEYS)
            yield from ()
            compare = [*fresh, *request.compare[len(fresh) :]]
            return (yield from super().write(request._replace(compare=compare)))

    return with_tenure(Later)


@fault("rest")
def a_failed_write_is_not_followed_by_a_read(patch):
    class Trusting(Tenure):
        def write(self, request):
            yield from super().write(request)
            return True

    return with_tenure(Trusting)


@fault(
    f"{AT_REST}|fell to|came back|broke with",
    **only(lose=120, late=20, expire=60, due=40),
)
def a_lease_is_named_by_its_node(patch):
    class Named(Process):
        def grant(self):
            lease = self.run.next_number()
            while True:
                try:
                    yield from self.post(wire.GRANT, {"TTL": "10", "ID": str(lease)})
                except Exception as error:
                    if "exists" not in str(error):
                        continue
                return lease

    return Named


@fault(AT_REST)
def a_registration_is_sent_again_under_another_id(patch):
    class Anew(Process):
        def txn(self, request, *, again=True):
            if (len(request.success), len(request.failure)) != (4, 2):
                return (yield from super().txn(request, again=again))
            while True:
                try:
                    return (yield from super().txn(request, again=False))
                except Exception:
                    lease = int(request.success[0]["request_put"]["lease"])
                    node = records.Node(
                        self.new_id(), self.place, 1, self.pid, lease=lease
                    )
                    request = requests.register(KEYS, self.place, node)

    return Anew


@fault("waits for a closed run|are in|rest", faults={"close": 30})
def who_waits_does_not_see_that_the_run_is_closed(patch):
    see = view.view_of
    patch.setattr(view, "view_of", lambda *given: replace(see(*given), closed=False))


@fault(AT_REST)
def who_is_told_does_not_join_again(patch):
    class Deaf(Process):
        def must_rejoin(self):
            return False

    return Deaf


@pytest.mark.parametrize("name", FAULTS)
def test_a_seeded_fault_is_found(name, monkeypatch):
    """
    What the protocol guards against happens, and is seen, if the guard is taken away.

    It may show in other ways, too; only a run that shows this one counts.
    """
    change, expected, settings = FAULTS[name]
    process = change(monkeypatch) or Process
    runs, found = search(MOST_RUNS, 30, expected, process=process, **settings)

    assert found, f"'{expected}' not in {runs} runs"
