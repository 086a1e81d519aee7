# SPDX-License-Identifier: BSD-3-Clause
"""
``etcd-rendezvous serve``: a local etcd in the foreground.
"""

from __future__ import annotations

import ipaddress
import shlex
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from etcd_rendezvous._cli.app import console
from etcd_rendezvous._server import EtcdServer, PortTakenError

__all__ = ["serve"]


class _Asked(BaseException):
    """
    Raised in the main thread by a signal that asks us to end.
    """


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """
    Take a signal, and do nothing.

    One that is ignored while it is under way is told as an error by Python.
    """


def _ask(number: int, _frame: FrameType | None) -> None:
    # A second signal must not interrupt the stopping.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _nothing)
    raise _Asked(number)


@contextmanager
def _until_asked() -> Iterator[None]:
    """
    End the block quietly at Ctrl-C, SIGTERM and SIGHUP.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    # Under nohup it is ignored, and stays so.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = [(number, signal.getsignal(number)) for number in numbers]
    try:
        for number in numbers:
            signal.signal(number, _ask)
        yield
    except _Asked:
        pass
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


def _public_endpoint(host: str, server: EtcdServer) -> str:
    """
    Return the endpoint for the machines that are to use the server.
    """
    address = _address(host)
    if address is not None and address.is_unspecified:
        return f"{socket.gethostname()}:{server.get_port()}"
    return server.get_endpoint()


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="The address to listen on; 0.0.0.0: every address of this machine.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=2379,
    show_default=True,
    help="The port for clients; 0: a free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder for the data, which is kept. Default: a temporary folder.",
)
@click.option(
    "--binary",
    type=click.Path(path_type=Path),
    help="The etcd binary. Default: TORCHELASTIC_ETCD_BINARY_PATH, PATH, the one of "
    "the extra [etcd].",
)
def serve(host: str, port: int, data_dir: Path | None, binary: Path | None) -> None:
    """
    Run a local etcd in the foreground, until Ctrl-C or SIGTERM.

    For one machine, or a few that trust each other: it is a single member without
    authentication or TLS. It prints the torchrun command line that uses it.
    """
    out = console()
    server = EtcdServer(data_dir, binary=binary, host=host, port=port)
    with _until_asked():
        try:
            try:
                server.start()
            except PortTakenError as exc:
                if not port:
                    raise
                msg = f"{exc} Choose another with --port (0: a free one)."
                raise click.ClickException(msg) from exc
            _announce(server, host, data_dir)
            # In slices: a signal that another thread takes does not wake this one.
            while (status := server.wait(0.5)) is None:
                pass
            end = f"exit status {status}"
            if status < 0:
                end = f"signal {-status}"
            msg = f"etcd ended by itself ({end})."
            raise click.ClickException(msg)
        finally:
            server.stop()
    out.print("etcd is stopped.")


def _announce(server: EtcdServer, host: str, data_dir: Path | None) -> None:
    out = console()
    endpoint = _public_endpoint(host, server)
    if not _is_loopback(host):
        console(stderr=True).print(
            f"Warning: there is no authentication on {host}: anyone who reaches port "
            f"{server.get_port()} can read and change the state of every rendezvous, "
            "and so end or mislead its job.",
            style="yellow",
        )
    kept = "is deleted at the end" if data_dir is None else "is kept"
    out.print(f"etcd {server.version} serves {endpoint}; its data {kept}. Use it with:")
    out.print()
    words = [
        "torchrun",
        "--nnodes=2:4",
        "--max-restarts=10",
        "--rdzv-backend=etcd-live",
        f"--rdzv-endpoint={endpoint}",
        "--rdzv-id=JOB",
        "train.py",
    ]
    out.print(f"  {shlex.join(words)}", style="bold")
    out.print()
    out.print("Ctrl-C stops it.")
