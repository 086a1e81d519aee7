# SPDX-License-Identifier: BSD-3-Clause

"""
What all tests share: etcd servers of every version, proxies, and a few guards.

A test that asks for `etcd_binary` or `etcd_server` runs once for each version, one
that asks for `v2_binary` or `v2_server` once for each that serves the v2 API. These
servers are shared: a test uses keys of its own (`run_id`), and neither stops nor
wipes them. For that there are `own_server`, `make_server` and `cluster`, which are
of the newest version unless told otherwise.

No etcd is an error, never a skip; so is a missing torch, unless `--without-torch`
says that its tests are to be left out.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib.metadata
import importlib.util
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import hypothesis
import psutil
import pytest

_TESTS = Path(__file__).parent
if str(_TESTS) not in sys.path:
    sys.path.insert(0, str(_TESTS))  # For `support`.

from support import etcds  # noqa: E402
from support.proxy import FaultProxy  # noqa: E402

_ETCD_FIXTURES = {"etcd_binary", "newest_etcd_binary", "v2_binary"}
_TORCH_FILE = re.compile(r"^pytestmark = .*\bpytest\.mark\.torch\b", re.MULTILINE)
_LEAK_SECONDS = 20.0
# The two parts in which tox runs what it was asked for.
_PARTS = ("measures", "not measures")

_without_torch = pytest.StashKey[list[str]]()

# On a machine that is busy any example may take its time, and to make one may, too.
hypothesis.settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("patient")


# -- options, header, collection ---------------------------------------------------


def pytest_addoption(parser):
    parser.addoption(
        "--without-torch",
        action="store_true",
        help="where torch is not installed, leave out the tests that need it: all of "
        "tests/torchrun, and files with a line 'pytestmark = pytest.mark.torch'",
    )
    parser.addoption(
        "--fault-seconds",
        type=float,
        default=6,
        metavar="SECONDS",
        help="how long each run of tests/faults lasts whose length is free "
        "(default: %(default)s; 'tox -e faults' takes 180)",
    )
    parser.addoption(
        "--live-seconds",
        type=float,
        default=6,
        metavar="SECONDS",
        help="how long the protocol of etcd-live is searched at random for what must "
        "not be (default: %(default)s)",
    )


def pytest_configure(config):
    config.stash[_without_torch] = []
    config.addinivalue_line("markers", "etcd: runs against a real etcd (set by itself)")
    config.addinivalue_line("markers", "v2: needs etcd's v2 API (set by itself)")
    config.addinivalue_line("markers", "torch: needs torch")


def pytest_report_header(config):
    try:
        versions = [
            binary.version + (" (v2 and v3)" if binary.knows_v2 else "")
            for binary in etcds.binaries()
        ]
        etcd = ", ".join(versions)
    except etcds.NoEtcdError as exc:
        etcd = f"none. {exc}"
    if _has_torch():
        torch = importlib.metadata.version("torch")
    elif config.getoption("--without-torch"):
        torch = "not installed, its tests are left out"
    else:
        torch = "not installed (--without-torch leaves out the tests that need it)"
    urllib3 = importlib.metadata.version("urllib3")
    return [f"etcd: {etcd}", f"torch: {torch}; urllib3: {urllib3}"]


def pytest_ignore_collect(collection_path, config):
    if not config.getoption("--without-torch") or _has_torch():
        return None
    if not collection_path.is_relative_to(_TESTS):
        return None
    relative = collection_path.relative_to(_TESTS)
    if relative.parts[:1] != ("torchrun",) and not (
        relative.match("test_*.py")
        and _TORCH_FILE.search(collection_path.read_text("utf-8"))
    ):
        return None
    config.stash[_without_torch].append(str(relative))
    return True


def pytest_generate_tests(metafunc):
    for fixture, found in (
        ("etcd_binary", etcds.binaries),
        ("v2_binary", etcds.v2_binaries),
    ):
        if fixture not in metafunc.fixturenames:
            continue
        try:
            params = [pytest.param(one.path, id=one.id) for one in found()]
        except etcds.NoEtcdError:
            # pytest_collection_modifyitems says so, once for all tests.
            params = [pytest.param(None, id="no-etcd")]
        metafunc.parametrize(fixture, params, indirect=True, scope="session")


def pytest_itemcollected(item):
    fixtures = set(getattr(item, "fixturenames", ()))
    if fixtures & _ETCD_FIXTURES:
        item.add_marker("etcd")
    if "v2_binary" in fixtures:
        item.add_marker("v2")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    if config.getoption("--without-torch") and not _has_torch():
        left_out = [item for item in items if item.get_closest_marker("torch")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    try:
        if any(item.get_closest_marker("etcd") for item in items):
            etcds.binaries()
        if any(item.get_closest_marker("v2") for item in items):
            etcds.v2_binaries()
    except etcds.NoEtcdError as exc:
        raise pytest.UsageError(str(exc)) from exc


def pytest_sessionfinish(session, exitstatus):
    # What was asked for may have nothing in one of the two parts.
    if (
        exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        and session.config.option.markexpr in _PARTS
    ):
        session.exitstatus = pytest.ExitCode.OK


def pytest_collection_finish(session):
    # All that was imported stays. The guards against leaks collect garbage after many
    # a test: looking through torch each time would take longer than the test.
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    left_out = config.stash[_without_torch]
    if left_out:
        names = ", ".join(sorted(left_out))
        terminalreporter.write_line(f"left out, as torch is not installed: {names}")


def _has_torch():
    return importlib.util.find_spec("torch") is not None


# -- guards ------------------------------------------------------------------------


class NetworkForbidden(AssertionError):
    """
    Raised when a test connects to an address that is not loopback.
    """


@pytest.fixture(scope="session", autouse=True)
def _only_loopback():
    """
    Let no Python socket of the tests' process leave this machine.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        yield


def _guarded(connect):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0].split("%")[0]
            try:
                ip = ipaddress.ip_address(host)
            except ValueError:
                ip = ipaddress.ip_address(socket.gethostbyname(host))
            # 0.0.0.0 and :: mean this machine too.
            if not (ip.is_loopback or ip.is_unspecified):
                self.close()  # Not every caller expects such an exception.
                raise NetworkForbidden(f"a test connects to {address}")
        return connect(self, address)

    return guarded


@pytest.fixture
def no_leaked_sockets():
    """
    Fail if the test leaves internet sockets of this process open.

    What fixtures asked for after this one close is closed by then.
    """
    before = _open_sockets()
    yield
    leaked = _settled(lambda: _open_sockets() - before)

    assert not leaked, f"sockets left open: {sorted(map(str, leaked))}"


@pytest.fixture
def no_leaked_threads():
    """
    Fail if the test leaves threads behind.
    """
    before = set(threading.enumerate())
    yield
    leaked = _settled(lambda: set(threading.enumerate()) - before)

    assert not leaked, f"threads left behind: {sorted(map(str, leaked))}"


def _open_sockets():
    return {
        (one.fd, one.laddr, one.raddr)
        for one in psutil.Process().net_connections(kind="inet")
    }


def _settled(leaked):
    gc.collect()
    deadline = time.monotonic() + _LEAK_SECONDS
    while (left := leaked()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


# -- names -------------------------------------------------------------------------


@pytest.fixture
def run_id(request):
    """
    A run id that no other test has, now or in another run.
    """
    name = re.sub(r"\W+", "-", request.node.originalname or request.node.name)
    return f"{name[:40]}-{uuid.uuid4().hex[:12]}"


# -- etcd --------------------------------------------------------------------------


@pytest.fixture(scope="session")
def etcd_binary(request):
    """
    The path of an etcd binary: each version in turn.
    """
    return request.param


@pytest.fixture(scope="session")
def v2_binary(request):
    """
    The path of an etcd binary that knows the v2 API: each version in turn.
    """
    return request.param


@pytest.fixture(scope="session")
def newest_etcd_binary():
    """
    The path of the newest etcd binary.
    """
    return etcds.binaries()[-1].path


@pytest.fixture(scope="session")
def _shared_servers():
    """
    Start a shared server of a binary at its first use, and stop all in the end.
    """
    from etcd_rendezvous._server import EtcdServer

    servers = {}
    with contextlib.ExitStack() as stack:

        def get(binary):
            if binary not in servers:
                servers[binary] = stack.enter_context(EtcdServer(binary=binary))
            assert servers[binary].pid is not None, "a test ended the shared server"
            return servers[binary]

        yield get


@pytest.fixture(scope="session")
def etcd_server(etcd_binary, _shared_servers):
    """
    A running server that all tests share: each version in turn.
    """
    return _shared_servers(etcd_binary)


@pytest.fixture(scope="session")
def v2_server(v2_binary, _shared_servers):
    """
    A running server with the v2 API that all tests share: each version in turn.
    """
    server = _shared_servers(v2_binary)
    assert server.serves_v2
    return server


@pytest.fixture
def make_server(newest_etcd_binary):
    """
    A function that starts a server of the test's own: `EtcdServer`'s arguments.
    """
    from etcd_rendezvous._server import EtcdServer

    with contextlib.ExitStack() as stack:

        def make(*, binary=None, **kwargs):
            server = EtcdServer(binary=binary or newest_etcd_binary, **kwargs)
            return stack.enter_context(server)

        yield make


@pytest.fixture
def own_server(make_server):
    """
    A running server of the newest version, which the test may kill or pause.
    """
    return make_server()


@pytest.fixture
def server_without_v2(make_server):
    """
    A running server of the newest version, which does not serve the v2 API.
    """
    return make_server(extra_args=etcds.binaries()[-1].without_v2)


@pytest.fixture
def make_cluster(newest_etcd_binary):
    """
    A function that starts a cluster of the test's own: `EtcdCluster`'s arguments.
    """
    from etcd_rendezvous._server import EtcdCluster

    with contextlib.ExitStack() as stack:

        def make(size=3, *, binary=None, **kwargs):
            cluster = EtcdCluster(size, binary=binary or newest_etcd_binary, **kwargs)
            return stack.enter_context(cluster)

        yield make


@pytest.fixture
def cluster(make_cluster):
    """
    Three running members of the newest version, which the test may kill or pause.
    """
    return make_cluster()


# -- between client and server -----------------------------------------------------


@pytest.fixture
def make_proxy():
    """
    A function that puts a `FaultProxy` in front of an endpoint.
    """
    proxies = []
    with contextlib.ExitStack() as stack:

        def make(endpoint):
            proxies.append(stack.enter_context(FaultProxy.to(endpoint)))
            return proxies[-1]

        yield make


@pytest.fixture
def proxy(etcd_server, make_proxy):
    """
    A `FaultProxy` in front of `etcd_server`: each version in turn.
    """
    return make_proxy(etcd_server.get_endpoint())


# -- an independent reader ---------------------------------------------------------


@pytest.fixture(scope="session")
def etcdctl():
    """
    The path of an etcdctl.
    """
    return etcds.etcdctl()


@pytest.fixture(scope="session")
def run_etcdctl(etcdctl):
    """
    A function (endpoint, *arguments) that returns what etcdctl prints, parsed.
    """
    env = {name: text for name, text in os.environ.items() if name[:4] != "ETCD"}

    def run(endpoint, *arguments):
        done = subprocess.run(
            [etcdctl, f"--endpoints={endpoint}", "--write-out=json", *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=30,
            check=False,
        )

        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return json.loads(done.stdout or "null")

    return run


@pytest.fixture(scope="session")
def etcdctl_get(run_etcdctl):
    """
    A function (endpoint, key) that returns a key's value, None if it is absent.
    """

    def get(endpoint, key, *flags):
        found = run_etcdctl(endpoint, "get", *flags, "--", key).get("kvs")
        return base64.b64decode(found[0].get("value", "")) if found else None

    return get
