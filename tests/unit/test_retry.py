# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
The retry table of etcd's failures, and the loop that obeys it. No server, no clock.
"""

from __future__ import annotations

import contextlib
import http.client
import logging
import socket
import ssl

import pytest
import urllib3.exceptions as urllib3_errors

from etcd_rendezvous import _failover
from etcd_rendezvous._errors import (
    EtcdConnectionError,
    EtcdError,
    EtcdProtocolError,
    EtcdReplyError,
)
from etcd_rendezvous._failover import Failover, Trouble
from etcd_rendezvous._settings import Endpoint
from etcd_rendezvous._v3 import retry
from etcd_rendezvous._v3.retry import Failure, Step
from support.lines import Lines

A, B, C = (Endpoint("http", host, 2379) for host in ("a", "b", "c"))

NOT_SENT, TLS, REJECTED, AMBIGUOUS, FINAL = (
    Failure.NOT_SENT,
    Failure.TLS,
    Failure.REJECTED,
    Failure.AMBIGUOUS,
    Failure.FINAL,
)


# -- what a failure says -----------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (14, "etcdserver: no leader"),
        (2, "etcdserver: no leader"),
        (8, "etcdserver: too many requests"),
        (9, "etcdserver: rpc not supported for learner"),
        (14, "rpc error: code = Unavailable desc = etcdserver: no leader"),
    ],
)
def test_refused_before_anything_was_proposed(code, text):
    """
    These say that nothing was proposed, and another member may serve.
    """
    assert REJECTED is retry.failure_of_reply(code, text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (2, "etcdserver: request timed out"),  # 3.4
        (14, "etcdserver: request timed out"),
        (14, "etcdserver: request timed out, possibly due to previous leader failure"),
        (14, "etcdserver: request timed out, possibly due to connection lost"),
        (4, "context deadline exceeded"),
        (2, "context deadline exceeded"),
        (4, "DeadlineExceeded: Deadline Exceeded"),
        (14, "etcdserver: leader changed"),
        (14, "etcdserver: server stopped"),
        (14, "stream terminated by RST_STREAM with error code: CANCEL"),
        (2, "stream terminated by RST_STREAM with error code: CANCEL"),
        (1, "context canceled"),
        (2, "context canceled"),
        (14, "error reading from server: EOF"),
        (14, "transport is closing"),
        (1, "an unknown text"),
        (4, "an unknown text"),
        (14, "an unknown text"),
        (14, ""),
    ],
)
def test_may_have_been_applied(code, text):
    """
    Whatever came of a proposal is unknown after a time-out, told by text or code.
    """
    assert AMBIGUOUS is retry.failure_of_reply(code, text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (3, "etcdserver: request is too large"),
        (3, "etcdserver: too many operations in txn request"),
        (3, "etcdserver: duplicate key given in txn request"),
        (3, "etcdserver: authentication failed, invalid user ID or password"),
        (9, "etcdserver: authentication is not enabled"),
        (7, "etcdserver: permission denied"),
        (5, "etcdserver: requested lease not found"),
        (9, "etcdserver: lease already exists"),
        (8, "etcdserver: mvcc: database space exceeded"),
        (8, "grpc: received message larger than max (2097200 vs. 2097152)"),
        (11, "etcdserver: mvcc: required revision has been compacted"),
        (12, "Method Not Allowed"),
        (2, "an unknown text"),
        (2, ""),
    ],
)
def test_the_last_word(code, text):
    """
    Anything else is the server's last word.
    """
    assert FINAL is retry.failure_of_reply(code, text)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (3, "etcdserver: user name is empty"),
        (16, "etcdserver: invalid auth token"),
        (3, "etcdserver: revision of auth store is old"),
        # The words of a watch that is refused.
        (2, "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"),
        (16, ""),
    ],
)
def test_a_token_that_is_refused(code, text):
    """
    Nothing was applied, and a new token may do.
    """
    assert retry.Failure.UNAUTHENTICATED is retry.failure_of_reply(code, text)


def test_the_message_decides_before_the_code():
    """
    A message that is known outweighs the code, whichever that is.
    """
    codes = range(17)

    assert {REJECTED} == {retry.failure_of_reply(c, "no leader") for c in codes}
    assert {AMBIGUOUS} == {retry.failure_of_reply(c, "leader changed") for c in codes}


def broken(error):
    return urllib3_errors.ProtocolError("Connection aborted.", error)


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (urllib3_errors.NewConnectionError(None, "refused"), NOT_SENT),
        (
            urllib3_errors.NameResolutionError(
                "h", None, socket.gaierror(-2, "Name or service not known")
            ),
            NOT_SENT,
        ),
        (urllib3_errors.ConnectTimeoutError(None, "timed out"), NOT_SENT),
        (urllib3_errors.SSLError(ssl.SSLCertVerificationError("untrusted")), TLS),
        (urllib3_errors.SSLError(ssl.SSLError(1, "wrong version number")), TLS),
        (urllib3_errors.SSLError("Client private key is encrypted"), TLS),
        (broken(FileNotFoundError(2, "No such file or directory")), TLS),
        (broken(PermissionError(13, "Permission denied")), TLS),
        (urllib3_errors.SSLError(ssl.SSLEOFError(8, "EOF")), AMBIGUOUS),
        (urllib3_errors.SSLError(ssl.SSLZeroReturnError(6, "closed")), AMBIGUOUS),
        (urllib3_errors.ReadTimeoutError(None, "/", "timed out"), AMBIGUOUS),
        (broken(ConnectionResetError(104, "reset")), AMBIGUOUS),
        (broken(PermissionError(1, "Operation not permitted")), AMBIGUOUS),
        (broken(BrokenPipeError(32, "broken pipe")), AMBIGUOUS),
        (broken(http.client.RemoteDisconnected("no response")), AMBIGUOUS),
        (urllib3_errors.IncompleteRead(10, 10), AMBIGUOUS),
        (OSError(5, "anything"), AMBIGUOUS),
        (broken(http.client.BadStatusLine("SSH-2.0-OpenSSH_9.2")), FINAL),
        (urllib3_errors.LocationParseError("a..b"), FINAL),
    ],
    ids=repr,
)
def test_exceptions(error, failure):
    """
    What urllib3 raises says whether the request can have reached anybody.
    """
    assert failure is retry.failure_of_exception(error)


# -- what to do about it -----------------------------------------------------------


def step(failure, *, all_unreachable=False, patient=False, time_left=1.0):
    return retry.decide(
        failure,
        all_unreachable=all_unreachable,
        patient=patient,
        time_left=time_left,
    )


@pytest.mark.parametrize("failure", [NOT_SENT, TLS, REJECTED, AMBIGUOUS])
def test_next_endpoint(failure):
    """
    While there is time and anybody may be reached, the next endpoint is asked.
    """
    assert Step.NEXT is step(failure)


@pytest.mark.parametrize("failure", list(Failure))
@pytest.mark.parametrize("patient", [False, True])
def test_no_time_left(failure, patient):
    """
    After the deadline there is no next endpoint, however patient the caller.
    """
    assert Step.RAISE is step(failure, patient=patient, time_left=0.0)


@pytest.mark.parametrize("patient", [False, True])
def test_the_last_word_is_not_questioned(patient):
    """
    What the server refused is not asked for again.
    """
    assert Step.RAISE is step(FINAL, patient=patient)


@pytest.mark.parametrize(
    ("failure", "patient", "expected"),
    [
        (NOT_SENT, False, Step.RAISE),
        (NOT_SENT, True, Step.NEXT),
        (TLS, False, Step.RAISE),
        (TLS, True, Step.RAISE),
    ],
)
def test_nobody_can_be_reached(failure, patient, expected):
    """
    Who is patient waits for an etcd that is away, but not for TLS to mend.
    """
    assert expected is step(failure, all_unreachable=True, patient=patient)


# -- how long ----------------------------------------------------------------------


def test_attempts_double():
    """
    Attempts take 2, 4, 8 … seconds: short ones turn a stall into an overload.
    """
    assert [2.0, 4.0, 8.0, 16.0, 32.0] == [
        retry.attempt_seconds(timeouts, 1e9) for timeouts in range(5)
    ]


@pytest.mark.parametrize(("timeouts", "left"), [(0, 0.5), (1, 3.0), (2000, 60.0)])
def test_attempts_end_with_the_deadline(timeouts, left):
    """
    No attempt takes longer than what is left of the operation's time.
    """
    assert left == retry.attempt_seconds(timeouts, left)


def test_pauses_double():
    """
    Pauses are 25 ms after the first round, and double up to 500 ms.
    """
    longest = [
        retry.pause_seconds(rounds, lambda _, high: high)
        for rounds in (1, 2, 3, 4, 5, 6, 7, 5000)
    ]

    assert [0.025, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5] == longest


def test_pauses_have_full_jitter():
    """
    A pause may be as short as nothing.
    """
    assert 0.0 == retry.pause_seconds(6, lambda low, _: low)
    assert all(0.0 <= retry.pause_seconds(6) <= 0.5 for _ in range(50))


# -- the loop ----------------------------------------------------------------------


class World:
    """
    A clock, a sleep and scripted attempts; each attempt may take its time.
    """

    def __init__(self, *endpoints, first=0):
        self.now = 1000.0
        self.slept = []
        self.asked = []
        self.limits = []
        self.failover = Failover(endpoints, clock=lambda: self.now, sleep=self.sleep)
        self.failover._current = first

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds

    def run(self, *script, timeout=60.0, writes=False, patient=False):
        """
        Run an operation; each attempt takes the next of the script, the last one
        again and again: an answer, a failure, or (failure, seconds).
        """
        steps = iter(script)

        def attempt(endpoint, limit):
            self.asked.append(endpoint.host)
            self.limits.append(limit)
            result = next(steps, script[-1])
            if isinstance(result, tuple):
                result, seconds = result
                self.now += min(seconds, limit)
            if isinstance(result, Failure):
                return Trouble(result, "it said so")
            return result

        return self.failover.run(
            attempt, what="do it", timeout=timeout, writes=writes, patient=patient
        )


@pytest.fixture
def full_pauses(monkeypatch):
    """
    No jitter: what is slept can be foreseen.
    """
    pause = retry.pause_seconds
    monkeypatch.setattr(
        _failover.retry, "pause_seconds", lambda n: pause(n, lambda _, high: high)
    )


def test_starts_anywhere():
    """
    The endpoint to begin with is chosen at random, so that load spreads.
    """
    first = {Failover([A, B, C]).current for _ in range(200)}

    assert {A, B, C} == first


def test_stays_with_the_last_good_endpoint():
    """
    What answered is asked first from then on.
    """
    world = World(A, B, C)
    world.run(NOT_SENT, NOT_SENT, "yes")
    world.run("yes")
    world.run("yes")

    assert ["a", "b", "c", "c", "c"] == world.asked
    assert C == world.failover.last_good


def test_a_refusal_is_an_answer_too():
    """
    An endpoint that answered with an error stays the one to ask.
    """
    world = World(A, B)
    with pytest.raises(EtcdReplyError):
        world.run(NOT_SENT, FINAL)
    world.run("yes")

    assert ["a", "b", "b"] == world.asked


def test_answer():
    """
    An answer says what it is, and whose.
    """
    answer = World(A, B, first=1).run("yes")

    assert ("yes", B, False) == (answer.value, answer.endpoint, answer.maybe_earlier)


def test_move_on():
    """
    Leaving an endpoint chooses the next, unless another has been chosen already.
    """
    failover = Failover([A, B])
    failover._current = 0
    failover.move_on(A)
    failover.move_on(A)

    assert B == failover.current

    failover.move_on(B)

    assert A == failover.current


# -- what is said of it --------------------------------------------------------------


@pytest.fixture
def said(caplog):
    """
    A function that returns the warnings so far.
    """
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    return lambda: caplog.messages


def test_a_failover_is_said(said):
    """
    When an operation has gone elsewhere one line names both, and the first reason.
    """
    world = World(A, B, C)
    world.run("yes")
    assert [] == said()
    world.run(NOT_SENT, REJECTED, "yes")
    world.run("yes")

    assert [
        f"Operations go to etcd at {C} now, since {A} failed (it said so)."
    ] == said()
    assert 1 == world.failover.moves


def test_what_is_no_failover(said):
    """
    Nothing is said where the same endpoint answers in the end, or where none does.
    """
    world = World(A, B)
    world.run(AMBIGUOUS, AMBIGUOUS, "yes")
    with pytest.raises(EtcdConnectionError):
        world.run(NOT_SENT, NOT_SENT)
    alone = World(A)
    alone.run(AMBIGUOUS, "yes")
    with pytest.raises(EtcdConnectionError):
        alone.run(NOT_SENT)
    alone.run("yes")

    assert [] == said()
    assert 0 == world.failover.moves


def test_a_failover_in_two_operations(said):
    """
    Where one operation fails at an endpoint and the next succeeds at another, that is
    said too; and where a stream broke. Who only looks elsewhere says nothing.
    """
    world = World(A, B)
    with pytest.raises(EtcdProtocolError):
        world.run(Trouble(FINAL, "it said so", not_etcd=True))
    world.run("yes")
    assert [
        f"Operations go to etcd at {B} now, since {A} failed (it said so)."
    ] == said()

    world.now += 10
    world.failover.move_on(B, "a watch broke")
    world.run("yes")
    assert (
        f"Operations go to etcd at {A} now, since {B} failed (a watch broke)."
        == said()[-1]
    )

    world.now += 10
    world.failover.move_on(A)
    world.run("yes")
    assert B == world.failover.last_good
    assert 2 == len(said()) == world.failover.moves


@pytest.mark.parametrize("ends", [False, True])
def test_who_failed_first_is_named(said, ends):
    """
    Where others fail before one answers, as all do when the leader is lost, the line
    names the first: it is the one to look after.
    """
    world = World(A, B, C)
    world.failover.move_on(A, "a watch broke")
    if ends:
        with pytest.raises(EtcdProtocolError):
            world.run(Trouble(FINAL, "it said so", not_etcd=True))
        world.run("yes")
    else:
        world.run(REJECTED, "yes")

    assert [
        f"Operations go to etcd at {C} now, since {A} failed (a watch broke)."
    ] == said()
    assert 1 == world.failover.moves


def test_failovers_of_operations_at_the_same_time(said):
    """
    Where another operation has moved there before, that is one failover.
    """
    world = World(A, B)

    def attempt(endpoint, limit):
        if endpoint == A:
            return Trouble(NOT_SENT, "it said so")
        # What another thread's does meanwhile.
        world.failover._stay_with(1, {A: "it said so"})
        return "yes"

    world.failover.run(attempt, what="do it", timeout=60.0, writes=False)

    assert 1 == len(said()) == world.failover.moves


@pytest.mark.parametrize("last", [Trouble(FINAL, "hm", not_etcd=True), "yes"])
def test_an_operation_that_ends_after_another_has_moved(said, last):
    """
    Whatever becomes of it, operations stay where the other one has gone; and who is
    left for that next is named.
    """
    world = World(A, B)

    def attempt(endpoint, limit):
        # What another thread's does meanwhile.
        world.failover._stay_with(1, {A: "it said so"})
        return last

    with contextlib.suppress(EtcdProtocolError):
        world.failover.run(attempt, what="do it", timeout=60.0, writes=False)
    assert B == world.failover.current
    assert 1 == len(said()) == world.failover.moves

    world.now += 10
    world.run(REJECTED, "yes")
    assert (
        f"Operations go to etcd at {A} now, since {B} failed (it said so)."
        == said()[-1]
    )
    assert 2 == world.failover.moves


def test_endpoints_that_come_and_go(said):
    """
    However often operations move, one line in ten seconds says so, and counts them.
    """
    world = World(A, B)
    with Lines(lambda: world.now) as lines:
        for _ in range(60):
            world.run(REJECTED, "yes")
            world.now += 1

    assert [] == lines.repeated(10)
    assert 6 == len(lines.texts)
    assert "(9 more like this since the last line)" in lines.texts[1]
    assert 60 == world.failover.moves


def test_a_full_round_before_any_sleep(full_pauses):
    """
    It sleeps after each full round of the endpoints only, longer each time.
    """
    world = World(A, B, C)
    world.run(*[REJECTED] * 7, "yes")

    assert ["a", "b", "c", "a", "b", "c", "a", "b"] == world.asked
    assert [0.025, 0.05] == world.slept


def test_attempts_grow_by_timeouts_only():
    """
    An attempt without an answer lets the next take twice as long; no other does.
    """
    world = World(A, B)
    world.run(NOT_SENT, REJECTED, AMBIGUOUS, REJECTED, AMBIGUOUS, AMBIGUOUS, "yes")

    assert [2.0, 2.0, 2.0, 4.0, 4.0, 8.0, 16.0] == world.limits


def test_one_deadline(full_pauses):
    """
    All attempts and pauses together keep to the one time limit.
    """
    world = World(A, B)
    with pytest.raises(EtcdConnectionError):
        world.run((AMBIGUOUS, 100.0), timeout=10.0)

    assert ["a", "b", "a"] == world.asked
    assert [2.0, 4.0] == world.limits[:2]
    assert 10.0 - 6.0 - 0.025 == pytest.approx(world.limits[2])
    assert 1010.0 == pytest.approx(world.now)


def test_pauses_keep_to_the_deadline(full_pauses):
    """
    No pause goes beyond the time limit.
    """
    world = World(A)
    with pytest.raises(EtcdConnectionError):
        world.run(REJECTED, timeout=0.06)

    assert 0.06 == pytest.approx(world.now - 1000.0)
    assert [0.025, 0.035] == pytest.approx(world.slept)


@pytest.mark.parametrize("failure", [NOT_SENT, TLS])
def test_raises_once_all_are_unreachable(failure):
    """
    It gives up after one round in which every endpoint was unreachable.
    """
    world = World(A, B, C)
    with pytest.raises(EtcdError):
        world.run(failure)

    assert ["a", "b", "c"] == world.asked
    assert [] == world.slept


def test_reachable_once_is_reachable():
    """
    An endpoint that said anything between starts the count anew.
    """
    world = World(A, B)
    with pytest.raises(EtcdConnectionError):
        world.run(NOT_SENT, REJECTED, REJECTED, NOT_SENT, NOT_SENT)

    assert ["a", "b", "a", "b", "a"] == world.asked


def test_patience():
    """
    Who is patient goes on although nobody can be reached, and sees etcd come back.
    """
    world = World(A, B)
    answer = world.run(*[NOT_SENT] * 20, "yes", patient=True)

    assert "yes" == answer.value
    assert 21 == len(world.asked)


def test_patience_ends():
    """
    Who is patient is so until the time limit.
    """
    world = World(A, B)
    with pytest.raises(EtcdConnectionError):
        world.run(NOT_SENT, patient=True, timeout=5.0)

    assert 5.0 == pytest.approx(world.now - 1000.0)


def test_patience_has_limits():
    """
    Patience does not extend to TLS on one side only.
    """
    world = World(A, B)
    with pytest.raises(EtcdProtocolError):
        world.run(TLS, patient=True)

    assert ["a", "b"] == world.asked


@pytest.mark.parametrize(
    ("script", "writes", "expected"),
    [
        (["yes"], True, False),
        ([NOT_SENT, "yes"], True, False),
        ([TLS, "yes"], True, False),
        ([REJECTED, "yes"], True, False),
        ([AMBIGUOUS, "yes"], True, True),
        ([AMBIGUOUS, NOT_SENT, REJECTED, "yes"], True, True),
        ([AMBIGUOUS, "yes"], False, False),
    ],
)
def test_maybe_earlier(script, writes, expected):
    """
    Only a write that had no answer may have been applied before.
    """
    answer = World(A, B).run(*script, writes=writes)

    assert expected is answer.maybe_earlier


def test_a_write_of_unknown_outcome_is_worth_the_wait():
    """
    A write that may have been applied is resolved though nobody can be reached now.
    """
    world = World(A, B)
    answer = world.run(AMBIGUOUS, *[NOT_SENT] * 9, "yes", writes=True)

    assert answer.maybe_earlier
    assert 11 == len(world.asked)


def test_a_read_is_not_worth_that_wait():
    """
    A read without an answer is given up once nobody can be reached.
    """
    world = World(A, B)
    with pytest.raises(EtcdConnectionError):
        world.run(AMBIGUOUS, NOT_SENT)

    assert ["a", "b", "a"] == world.asked


# -- errors ------------------------------------------------------------------------


def test_error_of_one_try():
    """
    An error names operation, endpoint, reason, tries and time, in one sentence.
    """
    with pytest.raises(EtcdConnectionError) as caught:
        World(A).run((NOT_SENT, 1.26))

    expected = "Could not do it at http://a:2379: it said so (1 try in 1.3 s)."
    assert expected == str(caught.value)


def test_error_of_many_tries():
    """
    After several tries it names all endpoints.
    """
    with pytest.raises(EtcdConnectionError) as caught:
        World(A, B).run((AMBIGUOUS, 9.0), timeout=3.0)

    assert (
        "Could not do it at http://a:2379, http://b:2379: it said so (2 tries in 3.0 s)."
    ) == str(caught.value)


@pytest.mark.parametrize("last", [NOT_SENT, TLS, REJECTED, AMBIGUOUS, FINAL])
def test_error_of_a_write_without_an_answer(last):
    """
    A write that may have been applied says so, whatever its last attempt met.
    """
    with pytest.raises(EtcdError, match=r"It may or may not have been applied\.$"):
        World(A, B).run(AMBIGUOUS, (last, 9.0), timeout=1.0, writes=True)


@pytest.mark.parametrize("last", [NOT_SENT, TLS, REJECTED, FINAL])
def test_error_of_a_write_that_was_not_applied(last):
    """
    A write that reached nobody leaves no doubt.
    """
    with pytest.raises(EtcdError) as caught:
        World(A, B).run(REJECTED, (last, 9.0), timeout=1.0, writes=True)

    assert "applied" not in str(caught.value)


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (Trouble(NOT_SENT, "w"), EtcdConnectionError),
        (Trouble(AMBIGUOUS, "w"), EtcdConnectionError),
        (Trouble(REJECTED, "w"), EtcdConnectionError),
        (Trouble(TLS, "w"), EtcdProtocolError),
        (Trouble(FINAL, "w"), EtcdReplyError),
        (Trouble(FINAL, "w", not_etcd=True), EtcdProtocolError),
    ],
)
def test_error_classes(trouble, kind):
    """
    The class tells whether waiting may help, and whether etcd itself refused.
    """
    with pytest.raises(EtcdError) as caught:
        World(A).run((trouble, 99.0), timeout=1.0)

    assert kind is type(caught.value)


def test_error_of_etcd():
    """
    A refusal of etcd is there in its own words and code, with its cause.
    """
    cause = ValueError("below")
    with pytest.raises(EtcdReplyError) as caught:
        World(A).run(Trouble(FINAL, "permission denied", cause, code=7))

    error = caught.value
    assert (7, "permission denied", cause) == (error.code, error.text, error.__cause__)


@pytest.mark.parametrize("missing", [False, True])
def test_error_of_a_missing_api(missing):
    """
    Whether it was the API's page that is missing can be asked.
    """
    trouble = Trouble(FINAL, "not found", not_etcd=True, api_missing=missing)
    with pytest.raises(EtcdProtocolError) as caught:
        World(A).run(trouble)

    assert missing is caught.value.api_missing
