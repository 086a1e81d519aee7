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
import importlib
import importlib.util
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import urllib3
from urllib3.exceptions import HTTPError

from ._errors import EtcdServerError, EtcdServerTimeoutError, PortTakenError
from ._etcd_binary import ask_binary, find_etcd_binary
from ._ports import bind_error, bracketed, free_ports, is_any, listen_addresses, url
from ._process import Process, status_text
from ._requirements import require_python_etcd

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

# How long a server that is asked to stop may take: etcd waits up to 7 s for open
# watches.
_GRACE_SECONDS: Final = 10.0
# A port that was ours a moment ago may need this long to be free again.
_PORT_SECONDS: Final = 5.0
# The history that is kept: much longer than any retry, short enough that heartbeats
# don't fill the disk.
_HISTORY: Final = "10m"


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
        self._binary = ask_binary(find_etcd_binary(binary))
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
        self._process: Process | None = None
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
        Whether the v2 API is served, as it is wherever the binary knows it.
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
        return "localhost" if is_any(self._host) else self._host

    def get_port(self) -> int:
        """
        Return the port for clients; -1 before the first start.
        """
        return self._port

    def get_endpoint(self) -> str:
        """
        Return the endpoint for clients, as host:port.
        """
        return f"{bracketed(self.get_host())}:{self._port}"

    def get_client(self) -> Any:
        """
        Make a client for this server.

        Returns:
            An ``etcd.Client`` of python-etcd where the v2 API is served, else an
            `EtcdClient`.

        Raises:
            ModuleNotFoundError: If the v2 API is served and python-etcd is missing.
        """
        if self.serves_v2:
            require_python_etcd()
            return importlib.import_module("etcd").Client(
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
            state = status_text(self._etcd_proc.returncode)
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
        self._addresses = listen_addresses(self._host)
        for address in self._addresses:
            error = bind_error(address, self._wanted_port)
            if error is not None:
                raise self._listen_error(error, address, self._wanted_port)
        with free_ports(1, self._addresses) as ports:
            self._port = self._wanted_port or ports[0]
            with free_ports(2, ["127.0.0.1"]) as others:
                self._peer_port = self._wanted_peer_port or others[0]
                self._plain_port = others[1] if self._by_tls else self._port

    @staticmethod
    def _listen_error(error: OSError, address: str, port: int) -> EtcdServerError:
        if error.errno == errno.EADDRINUSE:
            return PortTakenError(
                f"Port {port} is taken: another program listens on "
                f"{bracketed(address)}:{port}.",
                port,
            )
        where = f"{bracketed(address)}:{port}" if port else address
        reason = error.strerror or str(error)
        return EtcdServerError(f"Can't listen on {where}: {reason}.")

    def _arguments(self, data_dir: Path) -> list[str]:
        scheme = "https" if self._by_tls else "http"
        listen = [url(scheme, address, self._port) for address in self._addresses]
        if is_any(self._host):
            advertise = url(scheme, socket.gethostname(), self._port)
        else:
            advertise = listen[0]
        peer = url("http", "127.0.0.1", self._peer_port)
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
            wanted["--listen-metrics-urls"] = url("http", "127.0.0.1", self._plain_port)
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
                self._data_dir = self._make_temporary_dir()
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
            self._process = Process(command, stdout, stderr)
            self._etcd_proc = self._process.launch()

    @staticmethod
    def _make_temporary_dir() -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix="etcd-rendezvous-data-"))
        except OSError as exc:
            msg = (
                "No temporary folder for etcd's data can be made "
                f"({exc.strerror or exc}); name a folder that can be written to with "
                "the environment variable TMPDIR."
            )
            raise EtcdServerError(msg) from exc

    @staticmethod
    def _make_kept_dir(path: Path) -> None:
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            msg = f"The data folder {path} can't be made: {exc.strerror}; name another."
            raise EtcdServerError(msg) from exc
        if not os.access(path, os.W_OK | os.X_OK):
            msg = f"The data folder {path} can't be written to; name another."
            raise EtcdServerError(msg)

    def _wait_for_ports(self) -> None:
        deadline = time.monotonic() + _PORT_SECONDS
        for address in self._addresses:
            while (error := bind_error(address, self._port)) is not None:
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
            error = bind_error(address, port)
            if error is not None:
                raise self._listen_error(error, address, port)
        if "address already in use" in tail:
            msg = f"A port of etcd was taken for a moment{tail}"
            raise PortTakenError(msg)
        end = status_text(status)
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
        if is_any(address):
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
        The endpoint of each member, as ``host:port``.
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
        addresses = listen_addresses("localhost")
        with free_ports(3 * size, addresses) as ports:
            for index, member in enumerate(self._members):
                member._name = f"member{index}"
                member._addresses = addresses
                member._port, member._peer_port, plain = ports[3 * index :][:3]
                member._plain_port = plain if member._by_tls else member._port
        peers = ",".join(
            f"{member._name}={url('http', '127.0.0.1', member._peer_port)}"
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
