# SPDX-License-Identifier: BSD-3-Clause
"""
The options that say which etcd, and as whom; a torchrun command line has the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

import click

from etcd_rendezvous._connect import AUTO_NAMES, LIVE_NAMES, TORCH_NAME, V3_NAMES
from etcd_rendezvous._errors import EtcdSettingError
from etcd_rendezvous._live.settings import parse_live_settings
from etcd_rendezvous._settings import Settings, parse_settings, whole_number

__all__ = ["NORMALIZED", "Target", "target_options"]

# torchrun takes --rdzv_endpoint as well as --rdzv-endpoint.
NORMALIZED: Final = {"token_normalize_func": lambda text: text.replace("_", "-")}

# A person waits for the answer: less than the plug-in's.
_READ_TIMEOUT: Final = 10

# Those of --rdzv-conf that have an option of their own, with what the help says.
_SETTINGS: Final = {
    "protocol": ("http|https", "For endpoints that are no URLs. Default: http."),
    "ca_cert": ("FILE", "The authority that signed the server's certificate."),
    "ssl_cert": ("FILE", "The client's certificate."),
    "ssl_cert_key": ("FILE", "The client's private key."),
    "user": ("NAME", "The user of etcd. Default: ETCD_RENDEZVOUS_USER."),
    "password_file": (
        "FILE",
        (
            "The file of their password. Default: ETCD_RENDEZVOUS_PASSWORD_FILE; the "
            "password itself may be in ETCD_RENDEZVOUS_PASSWORD."
        ),
    ),
    "key_prefix": ("PATH", "Where the runs are. Default: /torch/elastic/rendezvous."),
    "read_timeout": (
        "SECONDS",
        f"For one operation, all its attempts together. Default: {_READ_TIMEOUT}.",
    ),
    "connect_timeout": ("SECONDS", "For one TCP connect. Default: 3."),
}


@dataclass(frozen=True)
class Target:
    """
    Which etcd is meant, and what of it.

    Attributes:
        settings: Where it is, and as whom we come.
        backend: The name of the backend whose runs are meant; None for all.
        beat: The seconds between two heartbeats of torch's handler.
        silence: The seconds without one after which it takes a node for dead.
    """

    settings: Settings
    backend: str | None
    beat: int
    silence: int

    @property
    def endpoints(self) -> str:
        """
        The endpoints, for people.
        """
        return ", ".join(map(str, self.settings.endpoints))


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """
    Give a command the options that say which etcd; it is called with a ``target``.

    Args:
        command: The command, before click makes one of it.
    """

    @wraps(command)
    def with_target(
        *args: Any,
        rdzv_endpoint: str | None,
        rdzv_backend: str | None,
        rdzv_conf: str | None,
        **others: Any,
    ) -> Any:
        given = {name: others.pop(name) for name in _SETTINGS}
        target = _target(rdzv_endpoint, rdzv_backend, rdzv_conf, given)
        return command(*args, target=target, **others)

    options = [
        click.option(
            "--rdzv-endpoint",
            "--endpoint",
            envvar="PET_RDZV_ENDPOINT",
            metavar="ENDPOINT",
            help="Where etcd listens, as for torchrun: HOST:PORT or a URL, or several "
            "with commas. Default: PET_RDZV_ENDPOINT, localhost:2379.",
        ),
        click.option(
            "--rdzv-backend",
            "--backend",
            envvar="PET_RDZV_BACKEND",
            metavar="NAME",
            help="The job's backend, as for torchrun. Default: PET_RDZV_BACKEND, or "
            "whatever is there.",
        ),
        click.option(
            "--rdzv-conf",
            envvar="PET_RDZV_CONF",
            metavar="NAME=VALUE,…",
            help="The job's settings, as for torchrun. Default: PET_RDZV_CONF. The "
            "following options win over it.",
        ),
        *(
            click.option(f"--{name.replace('_', '-')}", metavar=metavar, help=text)
            for name, (metavar, text) in _SETTINGS.items()
        ),
    ]
    for option in reversed(options):
        with_target = option(with_target)
    return with_target


def _target(
    endpoint: str | None,
    backend: str | None,
    conf: str | None,
    given: dict[str, str | None],
) -> Target:
    names = V3_NAMES | AUTO_NAMES | {TORCH_NAME}
    if backend and backend not in names:
        raise EtcdSettingError(
            f"The backend '{backend}' (--rdzv-backend or PET_RDZV_BACKEND) keeps "
            "nothing in etcd that this command knows; it knows "
            f"{', '.join(sorted(names))}."
        )
    config: dict[str, Any] = {"read_timeout": _READ_TIMEOUT}
    config |= _pairs(conf or "")
    config |= {name: value for name, value in given.items() if value is not None}
    live = backend in LIVE_NAMES
    settings = parse_settings(endpoint, config, startup_timeout=0, live=live)
    if live:
        parse_live_settings(config)  # which refuses what its handler would
    beat = whole_number(config, "keep_alive_interval", 5)
    attempts = whole_number(config, "keep_alive_max_attempt", 3)
    return Target(settings, backend or None, beat, beat * attempts)


def _pairs(conf: str) -> dict[str, str]:
    """
    Read ``--rdzv-conf`` as torchrun does.
    """
    found = {}
    parts = filter(None, (part.strip() for part in conf.split(",")))
    for number, part in enumerate(parts, 1):
        name, equals, value = part.partition("=")
        if not equals:
            # It is not shown: it may be the rest of a password.
            raise EtcdSettingError(
                f"Entry {number} of --rdzv-conf (or PET_RDZV_CONF) is not of the form "
                "NAME=VALUE."
            )
        found[name.strip()] = value.strip()
    return found
