# SPDX-License-Identifier: BSD-3-Clause
"""
An etcd process that dies with whoever started it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from ._errors import EtcdServerError

__all__ = ["Process", "environment", "status_text", "stop_etcd"]

# A killed process is gone within milliseconds, unless the kernel waits for a disk.
_KILL_SECONDS: Final = 30.0
# A signal to stop reaches all threads of a process within milliseconds.
_STOP_SECONDS: Final = 5.0

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


def environment() -> dict[str, str]:
    """
    Return our environment without etcd's own settings, which are not for our server.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("ETCD_") or name == "ETCD_UNSUPPORTED_ARCH"
    }


class Process(threading.Thread):
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
                env=environment(),
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


def stop_etcd(
    subprocess: subprocess.Popen[bytes] | None, data_dir: str | None = None
) -> None:
    """
    Stop an etcd process and delete its data; torch's ``etcd_server.stop_etcd``.

    Args:
        subprocess: The process; None, or one that has ended, is let be.
        data_dir: The folder to delete.

    .. versionadded:: 0.1.0
    """
    if subprocess is not None and subprocess.poll() is None:
        subprocess.terminate()
        subprocess.wait()
    if data_dir:
        shutil.rmtree(data_dir, ignore_errors=True)


def status_text(status: int | None) -> str:
    if status is not None and status < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
