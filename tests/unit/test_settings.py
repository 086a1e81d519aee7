# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
From what people write to endpoints and settings. No server.
"""

from __future__ import annotations

import os
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_rendezvous import _settings
from etcd_rendezvous._errors import EtcdSettingError
from etcd_rendezvous._settings import (
    HANDLER_SETTINGS,
    Endpoint,
    Settings,
    TlsFiles,
    parse_endpoints,
    parse_settings,
)

# The same examples each time, on a machine that may be busy.
examples = settings(derandomize=True, max_examples=200)

LOCAL = Endpoint("http", "localhost", 2379)


def parse(endpoint=None, startup_timeout=0, /, **config):
    return parse_settings(endpoint, config, startup_timeout=startup_timeout)


def refusal(call, *args, **kwargs):
    """
    Return the one sentence that something is refused with.
    """
    with pytest.raises(EtcdSettingError) as caught:
        call(*args, **kwargs)

    assert isinstance(caught.value, ValueError)
    text = str(caught.value)
    assert text.endswith((".", "?"))
    return text


# -- endpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "  "])
def test_no_endpoint(text):
    """
    Without an endpoint it is torch's: localhost:2379.
    """
    assert (LOCAL,) == parse_endpoints(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("host", Endpoint("http", "host", 2379)),
        ("host:1", Endpoint("http", "host", 1)),
        (" host:1 ", Endpoint("http", "host", 1)),
        ("a-b.c_d.example.", Endpoint("http", "a-b.c_d.example.", 2379)),
        ("10.0.0.1:65535", Endpoint("http", "10.0.0.1", 65535)),
        ("localhost:0", Endpoint("http", "localhost", 0)),
        ("::1", Endpoint("http", "::1", 2379)),
        ("[::1]", Endpoint("http", "::1", 2379)),
        ("[::1]:80", Endpoint("http", "::1", 80)),
        ("::ffff:10.0.0.1", Endpoint("http", "::ffff:10.0.0.1", 2379)),
        ("[fe80::1%eth0]:80", Endpoint("http", "fe80::1%eth0", 80)),
        ("http://host", Endpoint("http", "host", 2379)),
        ("https://host:80/", Endpoint("https", "host", 80)),
        ("HTTPS://host:80", Endpoint("https", "host", 80)),
        ("https://[::1]:80", Endpoint("https", "::1", 80)),
        ("http://::1", Endpoint("http", "::1", 2379)),
    ],
)
def test_an_endpoint(text, expected):
    """
    An endpoint is a host, with or without port, or a URL.
    """
    assert (expected,) == parse_endpoints(text)


@pytest.mark.parametrize(
    ("protocol", "scheme"),
    [(None, "http"), ("http", "http"), ("https", "https"), (" HTTPS ", "https")],
)
def test_protocol(protocol, scheme):
    """
    The protocol is for endpoints that are no URLs, and for the default.
    """
    assert (Endpoint(scheme, "host", 2379),) == parse_endpoints("host", protocol)
    assert (Endpoint(scheme, "localhost", 2379),) == parse_endpoints("", protocol)


@pytest.mark.parametrize("text", [None, "host"])
def test_no_such_protocol(text):
    """
    A protocol that there isn't is refused in torch's words.
    """
    assert "The protocol must be HTTP or HTTPS." == refusal(
        parse_endpoints, text, "ftp"
    )


def test_protocol_contradicts_url():
    """
    A URL whose scheme is not the protocol is refused; the same scheme is not.
    """
    assert (
        "The endpoint 'http://host' contradicts the setting protocol=https; leave one "
        "of them out."
    ) == refusal(parse_endpoints, "a,http://host", "https")
    assert (Endpoint("https", "host", 2379),) == parse_endpoints(
        "https://host", "https"
    )


def test_a_list():
    """
    Commas separate endpoints, which keep their order; each is there once.
    """
    expected = (
        Endpoint("http", "b", 2379),
        Endpoint("https", "a", 1),
        Endpoint("http", "::1", 2),
    )

    assert expected == parse_endpoints("b, https://a:1 ,[::1]:2,b:2379")


@pytest.mark.parametrize("text", ["a,", ",a", "a,,b", ",", " , "])
def test_an_empty_entry(text):
    """
    A list with an empty entry is refused, and shown.
    """
    assert (
        f"The endpoint list '{text.strip()}' has an empty entry; separate endpoints with one comma each."
        == refusal(parse_endpoints, text)
    )


@pytest.mark.parametrize(
    "text",
    [
        "a b",
        "-a",
        "a-",
        "a..b",
        ".a",
        "http://",
        "http:///",
        "https://host\n/",
        "[host]:80",
        "[]",
        "[::1",
        "[::1]80",
        "::1]",
        "[::1\n]:80",
        "[::1%]:80",
        "1:2:3",
        "10.0.0.1:2379:80",
        "host:80:80",
        "::g",
        "hôte",
        "x" * 64,
        ".".join(["x" * 63] * 4),
    ],
)
def test_no_endpoint_at_all(text):
    """
    What is no endpoint is refused with what one looks like.
    """
    assert (
        f"The endpoint '{text}' can't be read; write HOST, HOST:PORT, [IPV6]:PORT or "
        "a URL."
    ) == refusal(parse_endpoints, text)


@pytest.mark.parametrize(
    "text", ["http://host?x=geheim", "http://h:1/?password=geheim", "h:1#geheim"]
)
def test_a_query(text):
    """
    What follows an endpoint is refused unseen: it may be a secret.
    """
    assert (
        "An endpoint must end after its host or port. What was given is not shown: it "
        "may hold a secret."
    ) == refusal(parse_endpoints, text)


@pytest.mark.parametrize("text", ["a/b", "h:1/p", "http://host/path", "https://h:1/v3"])
def test_a_path(text):
    """
    A path is refused, as one.
    """
    assert (
        f"The endpoint '{text}' has a path; leave it out: those of etcd are fixed."
    ) == refusal(parse_endpoints, text)


@pytest.mark.parametrize(
    "text",
    [
        "h:",
        "h:65536",
        "h:-1",
        "h:+1",
        "h:x",
        "h:1 ",
        "h:٣",
        "h:000080",
        "[::1]:x",
    ],
)
def test_no_port(text):
    """
    A port is a number from 0 to 65535 in plain digits.
    """
    written = f"http://{text}/"

    assert (
        f"The port of the endpoint '{written}' must be a number from 0 to 65535."
    ) == refusal(parse_endpoints, written)


@pytest.mark.parametrize(
    "text", ["ftp://host", "://host", "etcd://host:1", "h ttp://h"]
)
def test_no_scheme(text):
    """
    Of URLs only http and https are known.
    """
    assert f"The endpoint '{text}' must start with http:// or https://." == refusal(
        parse_endpoints, text
    )


SECRETS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'"),
    min_size=3,
).map(lambda text: f"S{text}")


@given(
    SECRETS, SECRETS, st.sampled_from(["{}", "http://{}", "a,https://{},b", "ftp://{}"])
)
@examples
def test_users_are_refused_unseen(user, password, form):
    """
    A user or a password in an endpoint is refused and not shown, in no part.
    """
    text = form.format(f"{user}:{password}@host:2379")

    assert (
        "An endpoint must not hold a user or a password: endpoints are logged."
    ) == refusal(parse_endpoints, text)


LABELS = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,5}[A-Za-z0-9_])?", fullmatch=True)
NAMES = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
ADDRESSES = st.ip_addresses(v=6).map(str)
HOSTS = NAMES | st.ip_addresses(v=4).map(str) | ADDRESSES
ENDPOINTS = st.builds(
    Endpoint, st.sampled_from(["http", "https"]), HOSTS, st.integers(0, 65535)
)


@given(ENDPOINTS)
@examples
def test_round_trip(endpoint):
    """
    What an endpoint is shown as can be parsed, and is the same.
    """
    assert (endpoint,) == parse_endpoints(str(endpoint))


@given(st.lists(ENDPOINTS, min_size=1, unique=True))
@examples
def test_round_trip_of_lists(endpoints):
    """
    Lists of endpoints can be written and parsed, too.
    """
    assert tuple(endpoints) == parse_endpoints(", ".join(map(str, endpoints)))


@given(ENDPOINTS, st.booleans())
@examples
def test_short_forms(endpoint, with_port):
    """
    Scheme and port may be left out; only a port needs brackets around IPv6.
    """
    host, port = endpoint.host, 2379
    if with_port:
        port = endpoint.port
        host = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    assert (Endpoint(endpoint.scheme, endpoint.host, port),) == parse_endpoints(
        host, endpoint.scheme
    )


@given(
    st.text()
    | st.text("[]:/.,%@ \n09afhtps-_")
    | st.lists(
        st.sampled_from(["http", "://", ":", "[", "]", "::1", "a", "80", "/", "%", ","])
    ).map("".join)
)
@examples
def test_any_text(text):
    """
    Whatever is written, it is endpoints that can be shown and connected to, or refused.
    """
    refused = ""
    endpoints = ()
    try:
        endpoints = parse_endpoints(text)
    except EtcdSettingError as error:
        refused = str(error)

    assert bool(endpoints) is not refused.endswith(".")
    for endpoint in endpoints:
        assert endpoint.scheme in ("http", "https")
        assert 0 <= endpoint.port <= 65535
        assert endpoint.host.encode("idna")
        assert not set(endpoint.host) & set(string.whitespace + "/@,[]")
    if endpoints:
        assert endpoints == parse_endpoints(",".join(map(str, endpoints)))


# -- settings ----------------------------------------------------------------------


def test_defaults():
    """
    Without settings they are torch's, and ours where torch has none.
    """
    expected = Settings(
        endpoints=(LOCAL,),
        tls=TlsFiles(None, None, None),
        read_timeout=60,
        connect_timeout=3,
        startup_timeout=0,
        key_prefix="/torch/elastic/rendezvous",
        ttl=7200,
        closed_ttl=60,
        request_limit=1_572_864,
    )

    assert expected == parse()
    assert () == parse().notes


def test_all_settings(tmp_path):
    """
    Every setting has its effect; numbers may be texts.
    """
    paths = {}
    for name in ("ssl_cert", "ssl_cert_key", "ca_cert"):
        paths[name] = str(tmp_path / name)
        (tmp_path / name).touch()
    expected = Settings(
        endpoints=(Endpoint("https", "host", 1),),
        tls=TlsFiles(paths["ssl_cert"], paths["ssl_cert_key"], paths["ca_cert"]),
        read_timeout=10,
        connect_timeout=11,
        startup_timeout=12,
        key_prefix="/jobs/mine",
        ttl=13,
        closed_ttl=14,
        request_limit=15,
    )
    found = parse(
        "host:1",
        protocol="HTTPS",
        read_timeout="10",
        connect_timeout=11,
        startup_timeout="12",
        key_prefix="jobs/mine/",
        ttl="13",
        closed_ttl=14,
        request_limit="15",
        **paths,
    )

    assert expected == found
    assert () == found.notes


def test_startup_timeout():
    """
    The time to wait for an etcd has a default that depends on who asks.
    """
    assert 60 == parse(None, 60).startup_timeout
    assert 0 == parse(None, 60, startup_timeout="0").startup_timeout


@pytest.mark.parametrize("value", ["0", "-10", 0, -1])
def test_no_read_timeout(value):
    """
    A read timeout that isn't positive is refused in torch's words.
    """
    assert "The read timeout must be a positive integer." == refusal(
        parse, read_timeout=value
    )


@pytest.mark.parametrize("value", ["x", "", "1.5", [], float("inf"), float("nan")])
def test_no_number_for_torch(value):
    """
    A read timeout that is no number is refused in torch's words.
    """
    assert (
        "The rendezvous configuration option 'read_timeout' does not represent a valid "
        "integer value."
    ) == refusal(parse, read_timeout=value)


@pytest.mark.parametrize(
    "name", ["connect_timeout", "startup_timeout", "ttl", "closed_ttl"]
)
@pytest.mark.parametrize("value", ["x", "", "1.5", [], float("inf"), float("nan")])
def test_no_number(name, value):
    """
    A setting of ours that is no number is named with its value.
    """
    assert (
        f"The setting '{name}' must be a whole number of seconds, not {value!r}."
    ) == refusal(parse, **{name: value})


@pytest.mark.parametrize(
    ("name", "least"),
    [("connect_timeout", 1), ("startup_timeout", 0), ("ttl", 2), ("closed_ttl", 2)],
)
def test_too_small(name, least):
    """
    A setting below its least value, as etcd's least TTL of 2 s, is refused.
    """
    assert least == getattr(parse(**{name: str(least)}), name)
    assert f"The setting '{name}' must be {least} s or more, not {least - 1} s." == (
        refusal(parse, **{name: str(least - 1)})
    )


def test_request_limit():
    """
    The limit of a request is a whole number of bytes, and at least one.
    """
    assert "The setting 'request_limit' must be a whole number, not '1.5 MiB'." == (
        refusal(parse, request_limit="1.5 MiB")
    )
    assert "The setting 'request_limit' must be 1 or more, not 0." == (
        refusal(parse, request_limit=0)
    )


@pytest.mark.parametrize("value", ["ftp", "", "httpss", 5])
def test_wrong_protocol(value):
    """
    A protocol that there isn't is refused in torch's words.
    """
    assert "The protocol must be HTTP or HTTPS." == refusal(parse, protocol=value)


def test_protocol_contradicts_endpoint():
    """
    A protocol that contradicts the endpoint's URL is refused.
    """
    assert "contradicts the setting protocol=http" in refusal(
        parse, "https://host", protocol="http"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "/torch/elastic/rendezvous"),
        ("", "/torch/elastic/rendezvous"),
        ("/a", "/a"),
        ("a", "/a"),
        ("a/b/", "/a/b"),
        ("/a//", "/a"),
        (7, "/7"),
    ],
)
def test_key_prefix(value, expected):
    """
    A missing leading slash of the key prefix is added, a trailing one is dropped.
    """
    assert expected == parse(key_prefix=value).key_prefix


@pytest.mark.parametrize("value", ["/", "//"])
def test_no_key_prefix(value):
    """
    The root is no key prefix.
    """
    assert "The setting 'key_prefix' must name a path." == refusal(
        parse, key_prefix=value
    )


# -- certificates ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ssl_cert", "ssl_cert_key", "ca_cert"])
def test_a_certificate_that_is_not_there(name, tmp_path):
    """
    A certificate that can't be read is refused at once, with setting and path.
    """
    path = tmp_path / "missing.pem"

    assert (
        f"The file of the setting '{name}' can't be read: {path} (No such file or "
        "directory)."
    ) == refusal(parse, "https://host", **{name: path})


def test_a_certificate_that_is_a_folder(tmp_path):
    """
    So is one that is a folder.
    """
    assert f"{tmp_path} (Is a directory)." in refusal(parse, ca_cert=str(tmp_path))


@pytest.mark.parametrize("name", ["ssl_cert", "ssl_cert_key", "ca_cert"])
def test_a_certificate_that_can_be_read_once_alone(name, tmp_path):
    """
    So is a pipe, which is not waited for.
    """
    path = tmp_path / "pipe"
    os.mkfifo(path)

    assert f"{path} (it is no regular file)." in refusal(parse, **{name: str(path)})


def test_a_key_without_certificate(tmp_path):
    """
    A private key is nothing without its certificate.
    """
    (tmp_path / "key").touch()

    assert (
        "The setting 'ssl_cert_key' needs 'ssl_cert', the certificate of the key."
    ) == refusal(parse, "https://host", ssl_cert_key=tmp_path / "key")


@pytest.mark.parametrize("name", ["ssl_cert", "ca_cert"])
@pytest.mark.parametrize(
    ("endpoint", "warned"),
    [("host", True), ("http://a,http://b", True), ("http://a,https://b", False)],
)
def test_certificates_without_https(tmp_path, name, endpoint, warned):
    """
    Certificates that no endpoint uses deserve a warning.
    """
    (tmp_path / "file").touch()
    expected = (
        (
            "Certificates are set, but the protocol is http: they are not used. Set "
            "protocol=https."
        ),
    )
    found = parse(endpoint, **{name: tmp_path / "file"})

    assert (expected if warned else ()) == found.notes


# -- settings of others ------------------------------------------------------------


def test_names_of_the_older_etcd_backend(tmp_path):
    """
    The settings of torch's older `etcd` backend take effect.
    """
    paths = {}
    for name in ("cert", "key", "cacert"):
        paths[name] = str(tmp_path / name)
        (tmp_path / name).touch()
    found = parse("host", protocol="https", etcd_prefix="/x", **paths)

    assert TlsFiles(paths["cert"], paths["key"], paths["cacert"]) == found.tls
    assert "/x" == found.key_prefix
    assert () == found.notes


def test_given_twice():
    """
    Two names of one setting may be given together, with the same value only.
    """
    assert "/x" == parse(key_prefix="/x", etcd_prefix="/x").key_prefix
    assert (
        "The setting 'key_prefix' is given twice, once as 'etcd_prefix', with "
        "different values."
    ) == refusal(parse, key_prefix="/x", etcd_prefix="/y")
    assert "once as 'etcd_prefix'" in refusal(parse, etcd_prefix="/y", key_prefix="/x")


@pytest.mark.parametrize("name", ["ttl", "closed_ttl", "store_ttl", "join_timeout"])
def test_too_large(name):
    """
    What etcd has no lease for, or no clock goes to, is refused before a job waits.
    """
    assert (
        f"The setting '{name}' must be 1000000000 s or less, not 1000000001 s."
    ) == refusal(parse, **{name: 1_000_000_001})


def test_too_many():
    """
    So are heartbeats without end.
    """
    assert (
        "The setting 'keep_alive_max_attempt' must be 10000 or less, not 10001."
    ) == refusal(parse, keep_alive_max_attempt=10_001)


def test_names_of_c10d():
    """
    The settings of c10d are named in one note.
    """
    found = parse(use_libuv="0", is_host="true", store_type="file")

    assert (
        (
            "The setting(s) is_host, store_type, use_libuv belong to torch's c10d backend "
            "and have no effect here."
        ),
    ) == found.notes
    assert parse() == found


def test_what_others_read():
    """
    What the launcher adds and what torch's handler reads passes without a word.
    """
    launcher = {
        "rank": 0,
        "timeout": 900,
        "local_world_size": 2,
        "role": "default",
        "nproc_per_node": 2,
    }
    found = parse(**launcher, **dict.fromkeys(HANDLER_SETTINGS, "30"))

    assert (parse(), ()) == (found, found.notes)


def test_what_the_handler_reads():
    """
    These are the settings of torch's dynamic rendezvous handler.
    """
    assert {
        "join_timeout",
        "last_call_timeout",
        "close_timeout",
        "heartbeat_timeout",
        "keep_alive_interval",
        "keep_alive_max_attempt",
    } == HANDLER_SETTINGS


@pytest.mark.parametrize("name", sorted(HANDLER_SETTINGS))
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0", "must be 1"),
        ("-4", "must be 1"),
        ("x", "a whole number"),
        ("1.5", "whole"),
    ],
)
def test_what_the_handler_could_not_use(name, value, words):
    """
    A time or count that torch's handler can't use, or hangs with, is refused by name.
    """
    text = refusal(parse, **{name: value})

    assert f"The setting '{name}' " in text
    assert words in text
    assert ("attempt" in name) != (" s or more" in text or "of seconds" in text)


def test_what_an_older_handler_does_not_read():
    """
    A setting of torch's handler that the installed one does not know is named in a
    warning; one that only the installed one knows passes.
    """
    found = parse_settings(
        None,
        {"join_timeout": 1, "heartbeat_timeout": 2, "brand_new": 3},
        startup_timeout=0,
        handler_settings={"join_timeout", "brand_new"},
    )

    assert (
        (
            "The setting(s) heartbeat_timeout have no effect here: the handler of the "
            "installed PyTorch does not read them."
        ),
    ) == found.notes


def test_values_in_words():
    """
    What takes effect is told with units, and only what there is.
    """
    words = parse("https://a", 60, closed_ttl="7", ca_cert=__file__).in_words("v2")

    assert (
        "read_timeout=60 s, connect_timeout=3 s, startup_timeout=60 s, ttl=7200 s, "
        "closed_ttl=7 s, store_ttl=86400 s, key_prefix=/torch/elastic/rendezvous, "
        f"ca_cert={__file__}"
    ) == words
    assert (
        "store_ttl=7200 s, request_limit=1572864 bytes, key_prefix="
        in parse().in_words("v3")
    )


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"timeout": 900}, False),
        ({"timeout": "900"}, False),
        ({"timeout": "30", "join_timeout": "30"}, False),
        ({"timeout": 30}, True),
        ({"timeout": "30"}, True),
    ],
)
def test_timeout(config, warned):
    """
    Who sets `timeout` and no `join_timeout` is told that torch reads the latter.
    """
    expected = (
        (
            "The setting timeout=30 has no effect: torch's dynamic rendezvous reads "
            "join_timeout (600 s by default)."
        ),
    )

    assert (expected if warned else ()) == parse(**config).notes


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("readtimeout", "read_timeout"),
        ("read-timeout", "read_timeout"),
        ("Protocol", "protocol"),
        ("ssl_certificate", "ssl_cert"),
        ("ssl_ca_cert", "ca_cert"),
        ("etcd_read_timeout", "read_timeout"),
        ("ssl-cert-key", "ssl_cert_key"),
        ("etcd_ssl_cert_key", "ssl_cert_key"),
        ("cacert_", "cacert"),
        ("jointimeout", "join_timeout"),
        ("tll", "ttl"),
        ("request_limits", "request_limit"),
        ("max_request_bytes", "request_limit"),
        ("JOIN_TIMEOUT", "join_timeout"),
    ],
)
def test_a_near_miss(name, near):
    """
    An unknown setting is refused with the nearest right spelling.
    """
    assert f"The setting '{name}' is unknown; did you mean '{near}'?" == refusal(
        parse, **{name: "1"}
    )


def test_nothing_near():
    """
    An unknown setting that is like no other is refused with all that there are.
    """
    text = refusal(parse, zzz="1")

    assert text.startswith("The setting 'zzz' is unknown; known are: ")
    for name in ("read_timeout", "startup_timeout", "join_timeout", "etcd_prefix"):
        assert re.search(rf"\b{name}\b", text)


@given(st.sampled_from(["password", "passwd", "token", "PASSWORD"]), SECRETS)
@examples
def test_secrets_are_refused_unseen(name, secret):
    """
    A secret among the settings is refused and not shown.
    """
    text = refusal(parse, **{name: secret})

    assert text.startswith(f"The setting '{name}' is refused")
    assert "ETCD_RENDEZVOUS_PASSWORD" in text
    assert "password_file" in text
    assert secret not in text


KNOWN = [
    "read_timeout",
    "connect_timeout",
    "startup_timeout",
    "protocol",
    "ssl_cert",
    "ssl_cert_key",
    "ca_cert",
    "key_prefix",
    "ttl",
    "closed_ttl",
    "request_limit",
    "cert",
    "etcd_prefix",
    "is_host",
    "timeout",
    "rank",
    "join_timeout",
]
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["60", "http", "https", "a\0b"])
)


def _unknown_to_all(config):
    """
    Return the names that no setting has; hypothesis finds names in the source, too.
    """
    return (
        set(config)
        - _settings._OUR_SETTINGS
        - set(_settings._ALIASES)
        - _settings.HANDLER_SETTINGS
        - _settings._LAUNCHER_SETTINGS
        - _settings._C10D_SETTINGS
    )


@given(
    st.dictionaries(st.sampled_from(KNOWN) | st.text(), VALUES, max_size=4),
    st.sampled_from([None, "host", "https://host", "host:1,[::1]"]),
)
@examples
def test_any_settings(config, endpoint):
    """
    Whatever is set, it can be used, or is refused with a setting's name.
    """
    try:
        found = parse_settings(endpoint, config, startup_timeout=0)
    except EtcdSettingError as error:
        found, refused = None, str(error)

    if found is None:
        assert re.search(
            "setting '|setting proto|read timeout|protocol must|option '", refused
        )
        return
    assert _unknown_to_all(config) == set()
    assert found.read_timeout >= 1
    assert found.connect_timeout >= 1
    assert found.startup_timeout >= 0
    assert min(found.ttl, found.closed_ttl) >= 2
    assert found.request_limit >= 1
    assert found.key_prefix.startswith("/")
    assert not found.key_prefix.endswith("/")


@given(st.text())
@examples
def test_any_endpoint_in_settings(text):
    """
    Settings have the endpoints that their text has, or none at all.
    """
    try:
        expected = parse_endpoints(text)
    except EtcdSettingError:
        with pytest.raises(EtcdSettingError):
            parse(text)
        return

    assert expected == parse(text).endpoints
