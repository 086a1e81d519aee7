# SPDX-License-Identifier: BSD-3-Clause
"""
create_backend and create_handler, on real servers and on what is none.
"""

from __future__ import annotations

import logging
import re
import ssl
import threading
import time

import psutil
import pytest
import trustme
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous import (
    etcd_rendezvous_backend as torchs_module,
)

import etcd
from etcd_rendezvous import (
    EtcdClient,
    EtcdConnectionError,
    EtcdProtocolError,
    EtcdRendezvousBackend,
    EtcdServer,
    EtcdStore,
    create_backend,
    create_handler,
)
from support.scripted import (
    ScriptedServer,
    close,
    raw,
    refused_endpoint,
    reply,
    silence,
    unanswered_endpoint,
)

pytestmark = pytest.mark.torch

PREFIX = "/torch/elastic/rendezvous"
CONNECTION_FAILED = (
    "The connection to etcd has failed. See inner exception for details."
)
V3_NAMES = ("etcd-v3", "etcd-rendezvous-v3")
AUTO_NAMES = ("etcd-auto", "etcd-rendezvous-auto")
OTHER_NAMES = ("etcd-v2", "dummy")
# What is refused at once is refused before anybody would have waited: 30 s at least.
AT_ONCE = 12.0


def parameters(backend, endpoint, run_id, *, most=2, **config):
    return RendezvousParameters(backend, endpoint, run_id, 1, most, **config)


@pytest.fixture
def warnings(caplog):
    """
    A function that returns the warnings so far.
    """
    caplog.set_level(logging.INFO, "etcd_rendezvous")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "etcd_rendezvous" and record.levelno == logging.WARNING
    ]


# --- Which API


@pytest.fixture(scope="module")
def v2_only_server(v2_binary):
    """
    A server with the v2 API alone: each version that can.
    """
    with EtcdServer(
        binary=v2_binary, extra_args=["--enable-grpc-gateway=false"]
    ) as server:
        yield server


@pytest.fixture(scope="module")
def v2_off_server(newest_v2_binary):
    """
    A server that knows the v2 API, but does not serve it.
    """
    with EtcdServer(binary=newest_v2_binary, extra_args=["--enable-v2=false"]) as one:
        yield one


@pytest.fixture(scope="module")
def mute_server(newest_v2_binary):
    """
    A server that serves neither API over HTTP.
    """
    arguments = ["--enable-grpc-gateway=false", "--enable-v2=false"]
    with EtcdServer(binary=newest_v2_binary, extra_args=arguments) as server:
        yield server


def speaks(params):
    """
    Create a backend and a store, use both; return the API that they speak.
    """
    backend, store = create_backend(params)
    assert backend.get_state() is None
    assert backend.set_state(b"state")[2] is True
    store.set(f"key-{params.run_id}", "value")
    assert store.get(f"key-{params.run_id}") == b"value"
    api = "v3" if isinstance(store.client, EtcdClient) else "v2"
    name = "etcd-v2" if params.backend == "etcd-v2" else f"etcd-{api}"
    assert name == backend.name
    return api


@pytest.mark.parametrize("name", [*V3_NAMES, *AUTO_NAMES, *OTHER_NAMES])
def test_server_with_both(v2_server, run_id, warnings, name):
    """
    Where both APIs are served, torch's name and unknown ones speak v2, and ours v3.
    """
    endpoint = v2_server.get_endpoint()
    expected = "v2" if name in OTHER_NAMES else "v3"

    assert expected == speaks(parameters(name, endpoint, run_id))
    assert warnings() == []


@pytest.mark.parametrize("name", [*V3_NAMES, *AUTO_NAMES, *OTHER_NAMES])
def test_server_with_v3_only(server_without_v2, v2_off_server, run_id, warnings, name):
    """
    Where v3 alone is served all speak it, with one warning if v2 was expected.
    """
    for server in (server_without_v2, v2_off_server):
        endpoint = server.get_endpoint()
        before = len(warnings())

        assert speaks(parameters(name, endpoint, run_id)) == "v3"
        new = warnings()[before:]
        assert (1 if name in OTHER_NAMES else 0) == len(new)
        assert all(name in text and endpoint in text for text in new)


@pytest.mark.parametrize("name", [*AUTO_NAMES, *OTHER_NAMES])
def test_server_with_v2_only(v2_only_server, run_id, warnings, name):
    """
    Where v2 alone is served all speak it that do not ask for v3.
    """
    assert speaks(parameters(name, v2_only_server.get_endpoint(), run_id)) == "v2"
    assert warnings() == []


@pytest.mark.parametrize("name", V3_NAMES)
def test_v3_where_v2_alone_is_served(v2_only_server, run_id, name):
    """
    Who asks for v3 where v2 alone is served is refused at once, in a sentence.
    """
    endpoint = v2_only_server.get_endpoint()
    cause, seconds = refused(parameters(name, endpoint, run_id, startup_timeout=30))

    assert isinstance(cause, EtcdProtocolError)
    assert endpoint in str(cause)
    assert "does not serve etcd's v3 API" in str(cause)
    assert seconds < AT_ONCE


@pytest.mark.parametrize("name", [*AUTO_NAMES, *OTHER_NAMES])
def test_server_with_neither(mute_server, run_id, name):
    """
    Where neither API is served all are refused at once, in a sentence.
    """
    cause, seconds = refused(parameters(name, mute_server.get_endpoint(), run_id))

    assert isinstance(cause, EtcdProtocolError)
    assert "does not serve etcd's v3 API" in str(cause)
    assert seconds < AT_ONCE


def test_python_etcd_where_v2_is_off(server_without_v2, v2_off_server, run_id):
    """
    python-etcd's client of a server without v2 is refused in a sentence that says what
    to do, whatever is called first.
    """
    for server in (server_without_v2, v2_off_server):
        client = etcd.Client("localhost", server.get_port(), read_timeout=5)
        backend = EtcdRendezvousBackend(client, run_id, PREFIX)
        for call in (backend.get_state, lambda b=backend: b.set_state(b"x")):
            with pytest.raises(RendezvousConnectionError) as caught:
                call()

            assert str(caught.value) == CONNECTION_FAILED
            assert "does not serve etcd's v2 API" in str(caught.value.__cause__)
            assert "etcd-v3" in str(caught.value.__cause__)


def test_torchs_agents_and_ours_meet_on_v2(v2_only_server, run_id):
    """
    Torch's own etcd-v2 and our etcd-auto share state and store where v2 is spoken.
    """
    endpoint = v2_only_server.get_endpoint()
    ours, our_store = create_backend(parameters("etcd-auto", endpoint, run_id))
    theirs, their_store = torchs_module.create_backend(
        parameters("etcd-v2", endpoint, run_id)
    )
    _, token, _ = theirs.set_state(b"theirs")
    assert (b"theirs", token) == ours.get_state()
    assert (b"theirs", token, False) == ours.set_state(b"x", None)
    _, token, won = ours.set_state(b"ours", token)
    assert won
    assert (b"ours", token) == theirs.get_state()
    _, token, won = theirs.set_state(b"theirs again", token)
    assert won

    our_store.set(f"a-{run_id}", "1")
    assert their_store.get(f"a-{run_id}") == b"1"
    their_store.set(f"b-{run_id}", "2")
    assert our_store.get(f"b-{run_id}") == b"2"


# --- What the parameters mean


def test_torchs_defaults(newest_v3, run_id, monkeypatch):
    """
    Without settings they are torch's: the etcd on this machine, 60 s for a read, two
    hours for the state, and torch's path.
    """
    assert torchs_module.EtcdRendezvousBackend._DEFAULT_TTL == 7200
    monkeypatch.setattr(
        "etcd_rendezvous._settings.DEFAULT_PORT", newest_v3.server.get_port()
    )
    for endpoint in ("", "localhost", "127.0.0.1"):
        backend, store = create_backend(parameters("etcd-v3", endpoint, run_id))
        host = endpoint or "localhost"

        assert store.client.endpoints == [
            f"http://{host}:{newest_v3.server.get_port()}"
        ]
        assert store.client.read_timeout == 60
        assert f"{PREFIX}/{run_id}" == backend.key
        found = backend.get_state()
        backend.set_state(b"state", found[1] if found else None)
        assert 7190 <= newest_v3.seconds_left(backend.key) <= 7200


@pytest.mark.parametrize("name", ["etcd-v3", "dummy"])
def test_settings_take_effect(v2_server, serve, run_id, name):
    """
    read_timeout, ttl and key_prefix take effect on both APIs, as texts too.
    """
    served = serve("v2" if name == "dummy" else "v3", v2_server)
    config = {"read_timeout": "7", "ttl": "40", "key_prefix": "elsewhere"}
    backend, store = create_backend(
        parameters(name, f"http://{served.endpoint}", run_id, **config)
    )
    backend.set_state(b"state")

    assert store.client.read_timeout == 7
    assert served.read(f"/elsewhere/{run_id}") == "c3RhdGU="
    assert 30 <= served.seconds_left(f"/elsewhere/{run_id}") <= 40


def test_list_of_endpoints(newest_v3, run_id):
    """
    The endpoint may be a list, of which one that answers is enough.
    """
    with refused_endpoint() as other:
        both = f"{other},{newest_v3.endpoint}"

        assert speaks(parameters("etcd-v3", both, f"{run_id}-a")) == "v3"


def test_list_of_endpoints_on_v2(newest_v2, run_id):
    """
    So it may on v2, and the one that does not answer may come first.
    """
    with refused_endpoint() as other:
        both = f"{other},{newest_v2.endpoint}"

        assert speaks(parameters("etcd-v2", both, f"{run_id}-a")) == "v2"


def test_choice_is_logged_once(newest_v3, run_id, caplog):
    """
    Which API is spoken, where, and with which values is logged in one line; a handler's
    are there too.
    """
    caplog.set_level(logging.INFO, "etcd_rendezvous")
    for create in create_backend, create_handler:
        caplog.clear()
        config = {"closed_ttl": "7", "keep_alive_interval": "2"}
        create(parameters("etcd-auto", newest_v3.endpoint, run_id, **config))

        (line,) = [text for text in caplog.messages if "API" in text]
        assert run_id in line
        assert f"v3 API at http://{newest_v3.endpoint} (etcd " in line
        assert f"(etcd {newest_v3.server.version} answers) with read_timeout" in line
        assert "closed_ttl=7 s" in line
    assert "join_timeout=600 s" in line
    assert "keep_alive_interval=2 s" in line


# --- What is refused


def refused(params, create=create_backend):
    """
    Create in vain; return the cause, and the seconds that it took.
    """
    start = time.monotonic()
    with pytest.raises(RendezvousConnectionError) as caught:
        create(params)
    seconds = time.monotonic() - start
    assert str(caught.value) == CONNECTION_FAILED
    cause = caught.value.__cause__
    assert cause is not None
    # One sentence, or two, on one line.
    assert str(cause)[0].isupper()
    assert str(cause).endswith(".")
    assert "\n" not in str(cause)
    return cause, seconds


def test_unresolved_host(run_id):
    """
    A host that does not resolve is refused at once, by its name, with operation, tries
    and time.
    """
    cause, seconds = refused(parameters("etcd-v3", "no-such-host.invalid", run_id))

    assert isinstance(cause, EtcdConnectionError)
    assert re.fullmatch(
        rf"Could not read the key '{PREFIX}/{run_id}' at "
        r"http://no-such-host\.invalid:2379: its host name can't be resolved "
        r"\(1 try in \d+\.\d s\)\.",
        str(cause),
    )
    assert seconds < AT_ONCE


def test_refused_connection(run_id):
    """
    Where nobody listens it is refused at once.
    """
    for name in ("etcd-v3", "etcd-auto", "etcd-v2"):
        with refused_endpoint() as endpoint:
            cause, seconds = refused(parameters(name, endpoint, run_id))

        assert isinstance(cause, EtcdConnectionError)
        assert f"http://{endpoint}" in str(cause)
        assert "connection refused" in str(cause)
        assert "1 try in" in str(cause)
        assert seconds < AT_ONCE


def test_no_connection(run_id):
    """
    Where nobody answers a connect it is refused after connect_timeout.
    """
    with unanswered_endpoint() as endpoint:
        cause, seconds = refused(
            parameters("etcd-v3", endpoint, run_id, connect_timeout=1)
        )

    assert endpoint in str(cause)
    assert 0.9 < seconds < 1 + AT_ONCE


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-auto", "etcd-v2"])
@pytest.mark.parametrize(
    "step",
    [
        reply(200, "<html>Welcome to nginx</html>"),
        reply(200, {"hello": "world"}),
        reply(404, "404 page not found\n"),
        reply(403, "Forbidden"),
        reply(405, "Method not allowed"),
        raw(b"220 mail.example ESMTP\r\n", close()),
        raw(b"\x00\x01\x02 binary\r\n", close()),
    ],
    ids=["html", "json", "404", "403", "405", "smtp", "binary"],
)
def test_not_an_etcd(run_id, name, step):
    """
    What answers and is no etcd is refused at once, although etcd would be waited for.
    """
    with ScriptedServer(lambda exchange: step) as server:
        cause, seconds = refused(
            parameters(name, server.endpoint, run_id, startup_timeout=30)
        )

    assert isinstance(cause, EtcdProtocolError)
    assert server.endpoint in str(cause)
    assert seconds < AT_ONCE


def test_silent_server(run_id):
    """
    What takes connections and never answers is given up at read_timeout at the latest.
    """
    with ScriptedServer(lambda exchange: silence()) as server:
        cause, seconds = refused(
            parameters("etcd-v3", server.endpoint, run_id, read_timeout=2)
        )

    assert isinstance(cause, EtcdConnectionError)
    assert server.endpoint in str(cause)
    assert seconds < 12


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"protocol": "gopher"}, r"^The protocol must be HTTP or HTTPS\.$"),
        ({"read_timeout": 0}, r"^The read timeout must be a positive integer\.$"),
        ({"read_timeout": -1}, r"^The read timeout must be a positive integer\.$"),
        ({"raed_timeout": 5}, "'raed_timeout' is unknown; did you mean 'read_timeout'"),
        ({"password": "geheim"}, "'password' is refused"),
        ({"ca_cert": "/no/such/file"}, "/no/such/file"),
    ],
)
@pytest.mark.parametrize("create", [create_backend, create_handler])
@pytest.mark.measures
def test_refused_settings(run_id, create, config, words):
    """
    A setting that can't be used is a ValueError at once, in one sentence, and a secret
    is not repeated.
    """
    with refused_endpoint() as endpoint:
        start = time.monotonic()
        with pytest.raises(ValueError, match=words) as caught:
            create(parameters("etcd-v3", endpoint, run_id, **config))

    assert time.monotonic() - start < 1
    assert "geheim" not in str(caught.value)
    assert "\n" not in str(caught.value)


# --- TLS


class Certificates:
    """
    An authority, a server's and a client's certificate, and those of a stranger.
    """

    def __init__(self, folder):
        self.folder = folder
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca, self.other_ca = self.path("ca.pem"), self.path("other.pem")
        authority.cert_pem.write_to_path(self.ca)
        stranger.cert_pem.write_to_path(self.other_ca)
        self.server = self._issue(authority, "server", "localhost", "127.0.0.1")
        self.client = self._issue(authority, "client", "client.example")
        self.stranger = self._issue(stranger, "stranger", "client.example")

    def path(self, name):
        return str(self.folder / name)

    def _issue(self, authority, name, *identities):
        certificate = authority.issue_cert(*identities)
        certificate.private_key_pem.write_to_path(self.path(f"{name}.key"))
        certificate.cert_chain_pems[0].write_to_path(self.path(f"{name}.crt"))
        certificate.private_key_and_cert_chain_pem.write_to_path(
            self.path(f"{name}.both")
        )
        return self.path(f"{name}.crt"), self.path(f"{name}.key")

    @property
    def arguments(self):
        certificate, key = self.server
        return [
            f"--cert-file={certificate}",
            f"--key-file={key}",
            f"--trusted-ca-file={self.ca}",
        ]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """
    Throw-away certificates.
    """
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=["v3", "v2"])
def tls(request, certificates, newest_etcd_binary, newest_v2_binary):
    """
    Each API of a server that speaks TLS and wants a client's certificate, and the name
    that asks for it.
    """
    binary = newest_etcd_binary if request.param == "v3" else newest_v2_binary
    arguments = [*certificates.arguments, "--client-cert-auth"]
    with EtcdServer(binary=binary, extra_args=arguments) as server:
        yield server.get_endpoint(), {"v3": "etcd-v3", "v2": "etcd-v2"}[request.param]


@pytest.fixture(scope="module")
def tls_without_client(certificates, newest_etcd_binary):
    """
    The endpoint of a server that speaks TLS and asks for nothing.
    """
    with EtcdServer(
        binary=newest_etcd_binary, extra_args=certificates.arguments[:2]
    ) as server:
        yield server.get_endpoint()


def test_client_certificate(tls, certificates, run_id):
    """
    With torch's parameters both APIs are spoken over TLS, with a client's certificate;
    so is they with the names of torch's older backend, a URL, or one file for both.
    """
    endpoint, name = tls
    certificate, key = certificates.client
    ca = certificates.ca
    for number, (where, config) in enumerate(
        [
            (
                endpoint,
                {"protocol": "https", "ssl_cert": certificate, "ssl_cert_key": key},
            ),
            (endpoint, {"protocol": "HTTPS", "cert": certificate, "key": key}),
            (f"https://{endpoint}", {"ssl_cert": certificates.path("client.both")}),
        ]
    ):
        params = parameters(name, where, f"{run_id}-{number}", ca_cert=ca, **config)

        assert speaks(params) == ("v2" if name == "etcd-v2" else "v3")


def test_server_certificate(tls_without_client, certificates, run_id):
    """
    Where the server asks for no certificate its own is checked against ca_cert.
    """
    config = {"protocol": "https", "ca_cert": certificates.ca}

    assert speaks(parameters("etcd-v3", tls_without_client, run_id, **config)) == "v3"


@pytest.mark.parametrize("given", ["none", "of another"])
def test_client_certificate_that_is_wanted(tls, certificates, run_id, given):
    """
    Who comes without the certificate that is wanted, or with a stranger's, is refused
    at once, in a sentence that names the setting.
    """
    endpoint, name = tls
    config = {"protocol": "https", "ca_cert": certificates.ca}
    if given != "none":
        config["ssl_cert"], config["ssl_cert_key"] = certificates.stranger
    cause, seconds = refused(
        parameters(name, endpoint, run_id, startup_timeout=30, **config)
    )

    assert isinstance(cause, EtcdProtocolError)
    assert "ssl_cert" in str(cause)
    assert endpoint in str(cause)
    assert seconds < AT_ONCE


@pytest.mark.parametrize("authority", [None, "another"])
def test_untrusted_server(tls_without_client, certificates, run_id, authority):
    """
    A server whose certificate is signed by nobody that is trusted is refused at once.
    """
    config = {"protocol": "https"}
    if authority:
        config["ca_cert"] = certificates.other_ca
    cause, seconds = refused(
        parameters("etcd-v3", tls_without_client, run_id, startup_timeout=30, **config)
    )

    assert isinstance(cause, EtcdProtocolError)
    assert "ca_cert" in str(cause)
    assert seconds < AT_ONCE


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-auto", "etcd-v2"])
def test_http_for_https(tls_without_client, tls, run_id, name):
    """
    Plain HTTP to a server that speaks TLS is refused at once, with what to set.
    """
    for endpoint in (tls_without_client, tls[0]):
        cause, seconds = refused(parameters(name, endpoint, run_id, startup_timeout=30))

        assert isinstance(cause, EtcdProtocolError)
        assert "protocol=https" in str(cause)
        assert endpoint in str(cause)
        assert seconds < AT_ONCE + 2


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-auto", "etcd-v2"])
def test_https_for_http(v2_server, run_id, name):
    """
    TLS to a server that speaks plain HTTP is refused at once, with what to set.
    """
    endpoint = v2_server.get_endpoint()
    cause, seconds = refused(
        parameters(name, endpoint, run_id, startup_timeout=30, protocol="https")
    )

    assert isinstance(cause, EtcdProtocolError)
    assert "protocol=http" in str(cause)
    assert endpoint in str(cause)
    assert seconds < AT_ONCE


def test_foreign_tls_server(certificates, run_id):
    """
    Plain HTTP to a TLS server that is no etcd is refused, too.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificates.server)
    with ScriptedServer(ssl_context=context) as server:
        params = parameters("etcd-v3", server.endpoint, run_id, read_timeout=2)
        cause, _ = refused(params)

    assert server.endpoint in str(cause)
    assert "protocol=https" in str(cause)


# --- Waiting for an etcd that is not up


@pytest.mark.parametrize("name", ["etcd-v3", "etcd-auto"])
def test_etcd_that_comes_up_late(own_server, run_id, warnings, monkeypatch, name):
    """
    With startup_timeout an etcd that is not up yet is waited for, with a warning at a
    slow beat that says for what.
    """
    monkeypatch.setattr("etcd_rendezvous._log.BEAT_SECONDS", 0.5)
    own_server.kill()
    timer = threading.Timer(1.2, own_server.restart)
    started = time.monotonic()
    timer.start()
    try:
        params = parameters(name, own_server.get_endpoint(), run_id, startup_timeout=30)

        assert speaks(params) == "v3"
    finally:
        timer.join()
    beats = (time.monotonic() - started) / 0.5
    waited = [text for text in warnings() if "Waiting for etcd" in text]
    assert 1 <= len(waited) <= 1 + beats
    assert own_server.get_endpoint() in waited[0]
    assert "s left" in waited[0]


def test_etcd_that_does_not_come_up(run_id):
    """
    After startup_timeout it is given up, and the sentence says how long it was.
    """
    with refused_endpoint() as endpoint:
        cause, seconds = refused(
            parameters("etcd-v3", endpoint, run_id, startup_timeout=2)
        )

    assert isinstance(cause, EtcdConnectionError)
    assert endpoint in str(cause)
    assert "startup_timeout" in str(cause)
    assert 1.9 < seconds < 2 + AT_ONCE


def test_create_handler_waits_by_default(own_server, run_id):
    """
    The plug-ins wait without being told to.
    """
    own_server.kill()
    timer = threading.Timer(1.0, own_server.restart)
    timer.start()
    try:
        handler = create_handler(
            parameters("etcd-v3", own_server.get_endpoint(), run_id)
        )
    finally:
        timer.join()

    assert handler.get_backend() == "etcd-v3"


# --- A closed state


def test_closed_state_goes_away(newest_served, run_id):
    """
    A state that is said to be closed goes away closed_ttl after the last write, and a
    write of another backend that says so renews it.
    """
    name = {"v3": "etcd-v3", "v2": "etcd-v2"}[newest_served.api]
    one, other = (
        create_backend(parameters(name, newest_served.endpoint, run_id, closed_ttl=5))[
            0
        ]
        for _ in range(2)
    )
    _, token, _ = one.set_state(b"open")
    assert newest_served.seconds_left(one.key) > 7000
    one.say_closed(True)
    other.say_closed(True)
    closed = time.monotonic()
    _, token, won = one.set_state(b"closed", token)
    assert won
    assert newest_served.seconds_left(one.key) <= 5
    time.sleep(max(closed + 3 - time.monotonic(), 0))
    renewed = time.monotonic()
    _, token, won = other.set_state(b"closed too", token)
    assert won
    # What the first write gave would be over by now.
    time.sleep(max(renewed + 3 - time.monotonic(), 0))
    assert (b"closed too", token) == one.get_state()
    while one.get_state() is not None:
        assert time.monotonic() - renewed < 20
        time.sleep(0.1)

    assert time.monotonic() - renewed > 4.7
    assert one.set_state(b"late", token) is None


def test_closed_state_that_is_opened_again(newest_v3, run_id):
    """
    Once it is said not to be closed the next write has the full time to live again.
    """
    backend, _ = create_backend(parameters("etcd-v3", newest_v3.endpoint, run_id))
    backend.say_closed(True)
    _, token, _ = backend.set_state(b"closed")
    assert 50 <= newest_v3.seconds_left(backend.key) <= 60
    assert backend.closed_ttl == 60
    backend.say_closed(False)
    backend.set_state(b"open", token)

    assert newest_v3.seconds_left(backend.key) > 7000


# --- A state that begins anew


def test_new_state_has_an_empty_store(newest_served, run_id):
    """
    After a state has gone away, the next one of the run finds nothing of the rounds
    before in the store; other runs lose nothing, nor does a state that lives on.
    """
    name = {"v3": "etcd-v3", "v2": "etcd-v2"}[newest_served.api]
    endpoint = newest_served.endpoint
    backend, store = create_backend(parameters(name, endpoint, run_id))
    neighbour, kept = create_backend(parameters(name, endpoint, f"{run_id}1"))
    _, dotted = create_backend(parameters(name, endpoint, f"{run_id}.1"))
    key = f"torch.rendezvous.{run_id}.0/MASTER_ADDR"
    counter = f"torch.rendezvous.{run_id}.0/count"
    theirs = f"torch.rendezvous.{run_id}1.0/MASTER_ADDR"
    neighbour.set_state(b"neighbour")
    kept.set(theirs, "there")
    dotted.set(f"torch.rendezvous.{run_id}.1.0/MASTER_ADDR", "there")
    _, token, _ = backend.set_state(b"one")
    store.set(key, "old")
    assert store.add(counter, 7) == 7
    _, token, _ = backend.set_state(b"two", token)
    assert store.check([key, counter]) is True
    assert backend.set_state(b"lost", None)[2] is False
    assert store.check([key, counter]) is True

    newest_served.delete(backend.key)
    assert store.check([key, counter]) is True
    assert backend.set_state(b"new")[2] is True
    assert store.check([key]) is False
    assert store.add(counter, 1) == 1
    assert kept.get(theirs) == b"there"
    assert dotted.get(f"torch.rendezvous.{run_id}.1.0/MASTER_ADDR") == b"there"


# --- Handlers


@pytest.mark.parametrize("name", [*V3_NAMES, *AUTO_NAMES])
def test_handler_has_the_name_asked_for(newest_v3, run_id, name):
    """
    The registry insists on it.
    """
    handler = create_handler(parameters(name, newest_v3.endpoint, run_id))

    assert name == handler.get_backend()
    assert run_id == handler.get_run_id()


def test_handler_on_v2_has_the_name_asked_for(v2_only_server, run_id):
    """
    The same where v2 is spoken.
    """
    handler = create_handler(
        parameters("etcd-auto", v2_only_server.get_endpoint(), run_id)
    )

    assert handler.get_backend() == "etcd-auto"


def test_default_run_id_is_warned_of(newest_v3, warnings):
    """
    Who names an etcd and no run id may meet another job there, with one node too.
    """
    for most in (2, 1):
        before = len(warnings())
        create_handler(parameters("etcd-v3", newest_v3.endpoint, "none", most=most))

        assert len([t for t in warnings()[before:] if "--rdzv-id" in t]) == 1


@pytest.fixture
def embedded(monkeypatch, newest_etcd_binary):
    """
    A function that returns the etcd processes that this one has started meanwhile.
    """
    monkeypatch.setenv("TORCHELASTIC_ETCD_BINARY_PATH", newest_etcd_binary)
    before = {child.pid for child in psutil.Process().children()}
    return lambda: [
        child
        for child in psutil.Process().children()
        if child.pid not in before and child.status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize("endpoint", ["", "localhost:0", "127.0.0.1:0", "[::1]:0"])
def test_one_node_has_an_etcd_of_its_own(embedded, run_id, endpoint):
    """
    A job of one node needs no endpoint: it has an etcd of its own, on loopback, that
    ends with it.
    """
    handler = create_handler(parameters("etcd-v3", endpoint, run_id, most=1))
    try:
        (process,) = embedded()
        where = {
            one.laddr.ip for one in process.net_connections() if one.status == "LISTEN"
        }
        assert where <= {"127.0.0.1", "::1"}
        info = handler.next_rendezvous()
        assert (info.rank, info.world_size) == (0, 1)
    finally:
        assert handler.shutdown() is True

    assert embedded() == []


def test_two_jobs_of_one_node_do_not_meet(embedded):
    """
    Not even under torchrun's default run id.
    """
    handlers = [
        create_handler(parameters("etcd-v3", "localhost:0", "none", most=1))
        for _ in range(2)
    ]
    try:
        assert len(embedded()) == 2
        assert [one.next_rendezvous().world_size for one in handlers] == [1, 1]
    finally:
        for handler in handlers:
            handler.shutdown()

    assert embedded() == []


def test_etcd_of_ones_own_ends_with_a_refusal(embedded, run_id):
    """
    Where the handler can't be created, its etcd does not stay.
    """
    with pytest.raises(ValueError, match="no_such_setting"):
        create_handler(parameters("etcd-v3", "", run_id, most=1, no_such_setting=1))

    assert embedded() == []


@pytest.mark.parametrize("endpoint", ["", "localhost:0", "127.0.0.1:0", "[::1]:0"])
def test_many_nodes_need_an_endpoint(embedded, run_id, endpoint):
    """
    More nodes are told in one sentence what to name, and how to start an etcd.
    """
    with pytest.raises(ValueError, match=r"--rdzv-endpoint.*etcd-rendezvous serve"):
        create_handler(parameters("etcd-v3", endpoint, run_id, most=2))

    assert embedded() == []


def test_create_backend_starts_no_etcd(embedded, run_id, monkeypatch):
    """
    create_backend has torch's meaning of no endpoint: the etcd on this machine.
    """
    with refused_endpoint() as endpoint:
        port = int(endpoint.rsplit(":", 1)[1])
        monkeypatch.setattr("etcd_rendezvous._settings.DEFAULT_PORT", port)
        cause, _ = refused(parameters("etcd-v3", "", run_id, most=1))

    assert f"localhost:{port}" in str(cause)
    assert embedded() == []


def test_store_is_the_runs_own_on_v3(newest_v3, run_id):
    """
    On v3 the store of a run is below the state's key, and no other run's.
    """
    one, other = (
        create_backend(parameters("etcd-v3", newest_v3.endpoint, f"{run_id}{suffix}"))
        for suffix in ("", "0")
    )
    one[1].set("key", "value")

    assert isinstance(one[1], EtcdStore)
    assert newest_v3.read(f"{PREFIX}/{run_id}/store/key") == "value"
    assert other[1].check(["key"]) is False
