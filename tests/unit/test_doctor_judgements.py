# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
What the doctor makes of what it has found out, and that its page lists all of it.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from etcd_rendezvous._cli import doctor_judgements, doctor_versions
from etcd_rendezvous._cli.doctor_facts import (
    Clock,
    History,
    Job,
    Look,
    Page,
    Probe,
    Status,
    Tls,
    decode_status,
)
from etcd_rendezvous._cli.doctor_findings import (
    CHECKS,
    Group,
    Level,
    as_json,
    exit_status,
    fail,
    good,
    unknown,
    verdict,
    warn,
)
from etcd_rendezvous._cli.doctor_judgements import (
    judge_backend,
    judge_cluster,
    judge_endpoint,
    judge_probe,
    judge_refusal,
    judge_who,
    percentile,
)
from etcd_rendezvous._cli.doctor_reach import clock_of, metrics_in
from etcd_rendezvous._cli.doctor_sizes import (
    bytes_of_request,
    history_bytes_per_second,
    in_words,
    judge_descriptors,
    judge_history,
    judge_request,
)
from etcd_rendezvous._cli.doctor_versions import judge_version
from etcd_rendezvous._errors import (
    EtcdAuthError,
    EtcdConnectionError,
    EtcdProtocolError,
    EtcdReplyError,
)
from etcd_rendezvous._v3.releases import dies_of_reads
from support import doctor
from support.pages import block

NOW = 1_800_000_000.0
DAY = 24 * 3600
MIB = 1024 * 1024
STATUS = Status(
    cluster=10, member=11, leader=11, term=2, revision=9, size=20_480, in_use=16_384
)
REST = {"quota": 2048 * MIB}
PAGE = Page(200, b'{"etcdserver":"3.7.3"}', Clock(-0.5, 0.5))
#: An endpoint with which all is well.
WELL = Look(
    "http://etcd1:2379",
    "etcd1",
    addresses=("10.0.0.7",),
    connect_seconds=0.0003,
    page=PAGE,
    version="3.7.3",
    has_v2=False,
    status=replace(STATUS, **REST),
    clock=Clock(-0.5, 0.5),
    reads=(0.001,) * 100,
)
JOB = Job("etcd-v3")
LIVE = Job("etcd-live", 100)
PROBE = Probe(
    "/p/run/doctor/1", lease_seconds=10, told_seconds=0.002, writes=(0.001, 0.002)
)


def error(kind, reason, *arguments, **attributes):
    """
    Return an error of the client's.
    """
    found = kind(f"Could not do it: {reason} (1 try in 0.1 s).", *arguments)
    found.reason = reason
    for name, value in attributes.items():
        setattr(found, name, value)
    return found


REFUSED = error(EtcdConnectionError, "connection refused; is etcd running there?")
SILENT = error(EtcdConnectionError, "no answer in time")
NO_LEADER = error(EtcdConnectionError, "etcdserver: no leader")
NO_V2 = "The server at X does not serve etcd's v2 API, so 'etcd-v2' speaks v3 here."
NO_V3 = error(EtcdProtocolError, "it does not serve v3", api_missing=True)
NO_ETCD = error(EtcdProtocolError, "something answered that is not etcd")
WANTS_TLS = error(EtcdProtocolError, "it speaks TLS; use protocol=https")
WHO = error(EtcdAuthError, "it wants a user and a password", 16)
DENIED = error(EtcdAuthError, "the user 'u' may not", 7)
LEARNS = error(EtcdConnectionError, "etcdserver: rpc not supported for learner")


def secure(**changes):
    """
    Return an endpoint that speaks TLS.
    """
    return replace(WELL, endpoint="https://etcd1:2379", is_secure=True, **changes)


def ending(seconds):
    return replace(PAGE, tls=Tls("TLSv1.3", NOW + seconds))


def with_status(**changes):
    return replace(WELL, status=replace(STATUS, **{**REST, **changes}))


def with_clock(low, high):
    return replace(WELL, clock=Clock(low, high))


#: Endpoints by what is to be seen of them: the line's check and level.
ENDPOINTS = {
    "an address": (replace(WELL, host="10.0.0.7"), "name", "ok"),
    "a name": (WELL, "name", "ok"),
    "a slow name": (replace(WELL, resolve_seconds=4.2), "name", "warn"),
    "no such name": (replace(WELL, addresses=()), "name", "fail"),
    "a name service that hangs": (
        replace(WELL, addresses=(), resolve_hung=True, resolve_seconds=5.0),
        "name",
        "fail",
    ),
    "connected": (WELL, "tcp", "ok"),
    "connected late": (replace(WELL, connect_seconds=None), "tcp", "ok"),
    "refused": (replace(WELL, connect_seconds=None, error=REFUSED), "tcp", "fail"),
    "plain": (WELL, "tls", "ok"),
    "certificate": (secure(page=ending(300 * DAY)), "tls", "ok"),
    "certificate that ends": (secure(page=ending(3 * DAY)), "tls", "warn"),
    "no page by TLS": (secure(page=None), "tls", "unknown"),
    "TLS fails": (secure(page=None, error=NO_ETCD), "tls", "fail"),
    "http for https": (
        replace(WELL, error=WANTS_TLS, speaks_the_other=True, version=None),
        "tls",
        "fail",
    ),
    "version": (WELL, "version", "ok"),
    "no version": (replace(WELL, version=None), "version", "unknown"),
    "v3 alone": (WELL, "api", "ok"),
    "v3 and v2": (replace(WELL, has_v2=True), "api", "ok"),
    "no gateway": (replace(WELL, error=NO_V3), "api", "fail"),
    "peers": (replace(WELL, error=NO_V3, is_for_peers=True), "api", "fail"),
    "no gateway, but v2": (replace(WELL, error=NO_V3, has_v2=True), "api", "fail"),
    "no etcd": (replace(WELL, error=NO_ETCD, version=None), "api", "fail"),
    "silent": (
        replace(WELL, error=SILENT, version=None, page=None, reads=()),
        "api",
        "fail",
    ),
    "it leads": (WELL, "leader", "ok"),
    "it follows": (with_status(leader=12), "leader", "ok"),
    "election": (with_status(leader=0), "leader", "warn"),
    "leader not told": (replace(WELL, status=None, error=WHO), "leader", "unknown"),
    "learner": (
        replace(with_status(is_learner=True), error=LEARNS),
        "leader",
        "fail",
    ),
    "no leader": (replace(WELL, error=NO_LEADER, status=None), "leader", "fail"),
    "room": (WELL, "database", "ok"),
    "quota in metrics": (
        replace(
            with_status(quota=None), metrics={"etcd_server_quota_backend_bytes": 2.0e9}
        ),
        "database",
        "ok",
    ),
    "no quota": (with_status(quota=None), "database", "unknown"),
    "size not told": (replace(WELL, status=None, error=WHO), "database", "unknown"),
    "nearly full": (with_status(size=81, quota=100), "database", "warn"),
    "full": (
        with_status(errors=("memberID:11 alarm:NOSPACE ",)),
        "database",
        "fail",
    ),
    "corrupt": (
        with_status(errors=("memberID:11 alarm:CORRUPT ",)),
        "database",
        "fail",
    ),
    "same clock": (WELL, "clock", "ok"),
    "nearly the same clock": (with_clock(1.0, 2.0), "clock", "ok"),
    "clock behind": (with_clock(20.0, 21.0), "clock", "warn"),
    "clock ahead": (with_clock(-9.0, -8.0), "clock", "warn"),
    "no date": (replace(WELL, clock=None), "clock", "unknown"),
    "near": (WELL, "reads", "ok"),
    "far": (replace(WELL, reads=(0.15,) * 10), "reads", "warn"),
    "now and then far": (replace(WELL, reads=(0.01,) * 50 + (1.5,)), "reads", "warn"),
}

#: The same for what is not about one endpoint, or is about another job.
OTHERS = {
    "v2 alone": (
        judge_endpoint(
            replace(WELL, error=NO_V3, has_v2=True), Job("etcd-auto"), now=NOW
        ),
        "api",
        "ok",
    ),
    "clocks do not matter": (
        judge_endpoint(with_clock(20.0, 21.0), LIVE, now=NOW),
        "clock",
        "ok",
    ),
    "old": ([judge_version("3.3.27", v3=True)], "version", "fail"),
    "old, and v2": ([judge_version("3.3.27", v3=False)], "version", "warn"),
    "new": ([judge_version("3.8.0", v3=True)], "version", "warn"),
    "faulty": ([judge_version("3.5.1", v3=True)], "version", "warn"),
    "note": ([warn("settings", "Certificates are set.")], "settings", "warn"),
    "one cluster": ([judge_cluster([WELL, WELL])], "cluster", "ok"),
    "two clusters": (
        [judge_cluster([WELL, with_status(cluster=99)])],
        "cluster",
        "fail",
    ),
    "two APIs": (
        [judge_cluster([WELL, replace(WELL, error=NO_V3, has_v2=True, status=None)])],
        "cluster",
        "fail",
    ),
    "behind": (
        [judge_cluster([WELL, with_status(member=12, revision=5_000)])],
        "cluster",
        "warn",
    ),
    "v3 spoken": (
        judge_backend(JOB, "v3", []),
        "backend",
        "ok",
    ),
    "any backend": (
        judge_backend(Job(), "v3", []),
        "backend",
        "ok",
    ),
    "torch's name, and no v2": (
        judge_backend(Job("etcd-v2"), "v3", [NO_V2]),
        "backend",
        "fail",
    ),
    "the same, taken over": (
        judge_backend(Job("etcd-v2", takes_over=True), "v3", [NO_V2]),
        "backend",
        "warn",
    ),
    "of no use": ([judge_refusal(NO_V3)], "backend", "fail"),
    "no python-etcd": ([fail("installed", "etcd's v2 …")], "installed", "fail"),
    "user": ([judge_who("u", given=True)], "authentication", "ok"),
    "nobody": ([judge_who(None, given=False)], "authentication", "ok"),
    "for nothing": ([judge_who(None, given=True)], "authentication", "ok"),
    "no user": ([judge_refusal(WHO)], "authentication", "fail"),
    "no right to read": ([judge_refusal(DENIED)], "rights", "fail"),
    "lease": (judge_probe(PROBE, "v3"), "lease", "ok"),
    "no lease": (
        judge_probe(Probe("/p", lease_error=SILENT), "v3"),
        "lease",
        "fail",
    ),
    "rights": (judge_probe(PROBE, "v3"), "rights", "ok"),
    "no right to write": (
        judge_probe(replace(PROBE, write_error=DENIED), "v3"),
        "rights",
        "fail",
    ),
    "told": (judge_probe(PROBE, "v3"), "watch", "ok"),
    "not told": (
        judge_probe(replace(PROBE, told_seconds=None, waited_seconds=5.0), "v3"),
        "watch",
        "fail",
    ),
    "no watch": (
        judge_probe(
            replace(PROBE, told_seconds=None, waited_seconds=5.0, watch_error=SILENT),
            "v3",
        ),
        "watch",
        "fail",
    ),
    "watch refused": (
        judge_probe(replace(PROBE, told_seconds=None, watch_error=LEARNS), "v3"),
        "watch",
        "fail",
    ),
    "quick disk": (judge_probe(PROBE, "v3"), "writes", "ok"),
    "slow disk": (
        judge_probe(replace(PROBE, writes=(0.2, 0.3)), "v3"),
        "writes",
        "warn",
    ),
    "reads on v2": (judge_probe(replace(PROBE, reads=(0.1,)), "v2"), "reads", "ok"),
    "writes with a password": (
        judge_probe(replace(PROBE, writes=(0.2,), checks_password=True), "v2"),
        "writes",
        "ok",
    ),
    "reads with a password": (
        judge_probe(replace(PROBE, reads=(0.2,), checks_password=True), "v2"),
        "reads",
        "ok",
    ),
    "compacted": (
        [judge_history(JOB, History(41_310, True), [WELL])],
        "history",
        "ok",
    ),
    "young": ([judge_history(JOB, History(14, False), [WELL])], "history", "ok"),
    "young and live": (
        [judge_history(LIVE, History(14, False), [WELL])],
        "history",
        "ok",
    ),
    "never compacted": (
        [judge_history(LIVE, History(100_000, False), [WELL])],
        "history",
        "warn",
    ),
    "full in hours": (
        [judge_history(Job("etcd-v3", 100), History(14, False), [WELL])],
        "history",
        "warn",
    ),
    "history not told": ([judge_history(JOB, None, [])], "history", "unknown"),
    "few nodes": ([judge_request(JOB, "v3")], "requests", "ok"),
    "many nodes": (
        [judge_request(Job("etcd-v3", 20_000), "v3")],
        "requests",
        "fail",
    ),
    "many long names": (
        [judge_request(Job("etcd-v3", 12_000), "v3")],
        "requests",
        "warn",
    ),
    "descriptors": (
        [
            judge_descriptors(
                LIVE,
                [
                    replace(
                        WELL, metrics={"process_max_fds": 9e3, "process_open_fds": 9}
                    )
                ],
            )
        ],
        "descriptors",
        "ok",
    ),
    "too few descriptors": (
        [
            judge_descriptors(
                Job("etcd-live", 600),
                [replace(WELL, metrics={"process_max_fds": 1024})],
            )
        ],
        "descriptors",
        "fail",
    ),
    "too few descriptors for the nodes of another member": (
        [
            judge_descriptors(
                Job("etcd-live", 600),
                [replace(WELL, metrics={"process_max_fds": 1024})] * 2,
            )
        ],
        "descriptors",
        "warn",
    ),
}


def all_findings():
    """
    Return every line that is brought about here.
    """
    found = []
    for look, _, _ in ENDPOINTS.values():
        found += judge_endpoint(look, JOB, now=NOW)
    for findings, _, _ in OTHERS.values():
        found += findings
    return found


# -- levels ------------------------------------------------------------------------


@pytest.mark.parametrize("what", ENDPOINTS)
def test_lines_of_an_endpoint(what):
    """
    Each thing that may be wrong with an endpoint is a line of its own level.
    """
    look, check, level = ENDPOINTS[what]

    levels = [
        one.level.value
        for one in judge_endpoint(look, JOB, now=NOW)
        if one.check == check
    ]

    assert [level] == levels


@pytest.mark.parametrize("what", OTHERS)
def test_other_lines(what):
    """
    So is what is about all endpoints, or about another kind of job.
    """
    findings, check, level = OTHERS[what]

    assert [level] == [one.level.value for one in findings if one.check == check]


def test_all_is_well():
    """
    Where nothing is wrong, every line is ok, in the order of the page.
    """
    found = judge_endpoint(WELL, JOB, now=NOW)

    assert {Level.OK} == {one.level for one in found}
    assert list(CHECKS[:9]) == [one.check for one in found]


@pytest.mark.parametrize(
    "what", ["no such name", "refused", "TLS fails", "http for https", "silent"]
)
def test_nothing_after_what_fails(what):
    """
    What can't be looked at after a failure is left out.
    """
    look, check, _ = ENDPOINTS[what]

    found = judge_endpoint(look, JOB, now=NOW)

    assert check == found[-1].check
    assert {Level.OK} >= {one.level for one in found[:-1]}


@pytest.mark.parametrize(
    ("what", "level"),
    [
        ("no such name", "warn"),
        ("refused", "warn"),
        ("silent", "warn"),
        ("no leader", "warn"),
        ("no gateway", "fail"),
        ("TLS fails", "fail"),
        ("learner", "warn"),
    ],
)
def test_what_others_make_up_for(what, level):
    """
    Where another endpoint serves, what the client goes round is a warning; what it does
    not go round stays a failure.
    """
    look, check, _ = ENDPOINTS[what]

    found = judge_endpoint(look, JOB, now=NOW, others_serve=True)

    assert [level] == [one.level.value for one in found if one.check == check]


# -- the page ----------------------------------------------------------------------


def test_every_line_is_on_the_page():
    """
    The page lists every line that there may be, and what to do where there is
    something to do.
    """
    listed = doctor.rows()

    for one in all_findings():
        fitting = [r for r in listed if r.fits(one.check, one.level.value, one.says)]
        assert fitting, one
        assert not one.remedy or any(row.remedy for row in fitting), one


def test_every_line_of_the_page_is_brought_about():
    """
    There is no row on the page without a line that it is about.
    """
    found = [(one.check, one.level.value, one.says) for one in all_findings()]

    for row in doctor.rows():
        assert any(row.fits(*one) for one in found), row


def test_the_example_of_the_page():
    """
    The example on the page has lines that are listed there, and their verdict.
    """
    example = block("doctor.md", "Doctor", 1).text
    lines = re.findall(r"^  (\w+) +(\w+) +(.+)$", example, re.MULTILINE)
    listed = doctor.rows()
    warned = sum(level == "warn" for level, _, _ in lines)

    assert 16 < len(lines)
    for level, check, says in lines:
        assert any(row.fits(check, level, says) for row in listed), says
    group = Group(None, [warn("clock", "")] * warned)
    assert verdict([group], "etcd-v3 with 4 nodes") == example.splitlines()[-1]


def test_order_of_the_page():
    """
    The page has the checks in the order of the lines.
    """
    listed = list(dict.fromkeys(row.check for row in doctor.rows()))

    assert list(CHECKS) == listed


def test_every_check_is_named():
    """
    There are no checks but those that are named, and none of these is never made.
    """
    assert set(CHECKS) == {one.check for one in all_findings()}


def test_what_else_is_warned_of():
    """
    What the library warns of when it chooses is a line each.
    """
    found = judge_backend(JOB, "v3", ["The user 'u' is not used."])

    assert ["ok", "warn"] == [one.level.value for one in found]
    assert "The user 'u' is not used." == found[1].says


# -- versions ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        ("3.5.0", "3.5.28"),
        ("3.5.2", "3.5.28"),
        ("3.5.27", "3.5.28"),
        ("3.4.41", "3.4.42"),
        ("3.6.8", "3.6.9"),
        ("3.6.0-rc.1", "3.6.9"),
    ],
)
def test_faulty_versions(version, remedy):
    """
    A release with known faults is warned of, with the first that has none of them.
    """
    found = judge_version(version, v3=True)

    assert Level.WARN is found.level
    assert f"update every member to {remedy} or later" == found.remedy


@pytest.mark.parametrize("version", ["3.4.42", "3.5.28", "3.6.9", "3.6.16", "3.7.0"])
def test_sound_versions(version):
    """
    One without is ok.
    """
    assert Level.OK is judge_version(version, v3=True).level


def test_data_loss_is_named():
    """
    Of 3.5.0 to 3.5.2 it is said that data may be lost, of 3.5.3 it isn't.
    """
    said = [judge_version(f"3.5.{patch}", v3=True).says for patch in (0, 2, 3)]

    assert [True, True, False] == ["lose or corrupt" in one for one in said]
    assert all(fault.first < fault.fixed for fault in doctor_versions.FAULTS)


def test_releases_that_die_of_reads():
    """
    Below the two that mended it, transactions that only read are not to be sent.
    """
    dying = ["3.4.0", "3.4.22", "3.5.0", "3.5.1", "3.5.6", "3.5.0-rc.1"]
    others = ["3.4.23", "3.5.7", "3.5.35", "3.6.0", "3.7.3", "unknown", ""]

    assert all(map(dies_of_reads, dying))
    assert not any(map(dies_of_reads, others))
    said = judge_version("3.5.6", v3=True).says
    assert "it may end when a read is given up" in said


# -- numbers -----------------------------------------------------------------------


def test_percentiles():
    """
    A percentile is the smallest value that so many do not exceed.
    """
    values = [float(number) for number in range(100, 0, -1)]

    assert [50.0, 99.0, 100.0] == [percentile(values, p) for p in (50, 99, 100)]
    assert 7.0 == percentile([7.0], 99)


def test_sizes_in_words():
    """
    Sizes are told in the units that etcd's settings are thought in.
    """
    sizes = (512, 20_480, 1_572_864, 2 * 1024**3, 500 * 1024**3)

    assert ["512 bytes", "20.0 KiB", "1.5 MiB", "2.0 GiB", "500 GiB"] == [
        in_words(size) for size in sizes
    ]


def test_clock_of_a_date():
    """
    A date, rounded down to a second, tells the difference to a second and the time that
    the reply took.
    """
    date = "Fri, 15 Jan 2027 08:00:20 GMT"  # 20 s after NOW

    found = clock_of(date, NOW, NOW + 0.5)

    assert Clock(19.5, 21.0) == found
    assert 19.5 == found.least
    assert Clock(19.5, 20.25) == found.narrowed(Clock(19.25, 20.25))
    assert 0.0 == Clock(-0.5, 0.5).least
    assert [None, None] == [clock_of(one, NOW, NOW) for one in (None, "yesterday")]


def test_warning_of_clocks_follows_the_settings():
    """
    With a longer keep-alive the clocks may differ by more.
    """
    look = with_clock(20.0, 21.0)
    patient = replace(JOB, beat=30, silence=90)

    (said,) = [
        one for one in judge_endpoint(look, patient, now=NOW) if one.check == "clock"
    ]

    assert Level.OK is said.level


def test_metrics():
    """
    Numbers are found by name, whatever stands around them.
    """
    text = "# HELP process_max_fds x\nprocess_max_fds 1.048576e+06\nother{a=1} 2\n"

    assert {"process_max_fds": 1_048_576.0} == metrics_in(
        text, ["process_max_fds", "o"]
    )


def test_what_a_history_grows_by():
    """
    A hundred nodes' heartbeats write some 0.2 MB a second, those of etcd-live nothing.
    """
    assert 0.15e6 < history_bytes_per_second(Job("etcd-v3", 100)) < 0.25e6
    assert 0 == history_bytes_per_second(LIVE)


def test_how_many_nodes_fit():
    """
    So many nodes fit as `docs/guarantees.md` says.
    """
    text = (doctor.PAGE.parent / "guarantees.md").read_text("utf-8")
    limit = Job().request_limit

    assert (
        "18,100 nodes with names of 10 characters, or 10,500 with names of 57" in text
    )
    for nodes, length in ((18_100, 10), (10_500, 57)):
        assert 0.98 < bytes_of_request(nodes, length) / limit < 1.02


@pytest.mark.parametrize("reply", [{}, {"header": 7}, {"header": {"cluster_id": "x"}}])
def test_status_of_something_else(reply):
    """
    What is no status of etcd's is none.
    """
    assert decode_status(reply) is None


# -- verdict -----------------------------------------------------------------------


def test_verdict_and_exit_status():
    """
    One failure is a no; warnings are not, unless they are to count.
    """
    fine = [Group(None, [good("name", "x"), unknown("tls", "x")])]
    warned = [Group(None, [good("name", "x"), warn("tls", "x"), warn("api", "x")])]
    failed = [*warned, Group(None, [fail("api", "x")])]
    job = str(Job("etcd-v3", 4))

    assert [
        "Yes: this machine can use that etcd for etcd-v3 with 4 nodes.",
        "Yes: this machine can use that etcd for etcd-v3 with 4 nodes, with 2 warnings.",
        (
            "No: this machine can't use that etcd for etcd-v3 with 4 nodes; 1 check "
            "fails, 2 warnings besides."
        ),
    ] == [verdict(groups, job) for groups in (fine, warned, failed)]
    assert [0, 0, 1] == [exit_status(g, strict=False) for g in (fine, warned, failed)]
    assert [0, 1, 1] == [exit_status(g, strict=True) for g in (fine, warned, failed)]
    assert ["ok", "warn", "fail"] == [
        as_json(groups)["level"] for groups in (fine, warned, failed)
    ]


def test_reasons_are_the_clients():
    """
    The client's own words are told without what it was doing, and where.
    """
    bare = EtcdReplyError("It was just not to be.")

    assert "no answer in time" == doctor_judgements.reason_of(SILENT)
    assert "It was just not to be" == doctor_judgements.reason_of(bare)
