# SPDX-License-Identifier: BSD-3-Clause
"""
Settings: from what people write to frozen dataclasses, with one parser.

No network and no torch. Refusals name the setting, and the nearest right spelling.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ._credentials import (
    PASSWORD_VARIABLE,
    Credentials,
    find_credentials,
    refuse_pipe,
)
from ._errors import EtcdSettingError

__all__ = ["Endpoint", "Settings", "TlsFiles", "parse_endpoints", "parse_settings"]

DEFAULT_PORT: Final = 2379
DEFAULT_KEY_PREFIX: Final = "/torch/elastic/rendezvous"
DEFAULT_STATE_TTL: Final = 7200
DEFAULT_CLOSED_TTL: Final = 60
DEFAULT_STORE_TTL: Final = 7200
DEFAULT_STORE_TTL_V2: Final = 24 * 60 * 60
LEAST_TTL: Final = 2  # etcd's own
MOST_SECONDS: Final = 10**9  # 31 years: no lease or date of that length overflows
_MOST_ATTEMPTS: Final = 10_000  # nor so many of them
DEFAULT_READ_TIMEOUT: Final = 60
DEFAULT_CONNECT_TIMEOUT: Final = 3
DEFAULT_REQUEST_LIMIT: Final = 1_572_864  # etcd's own, 1.5 MiB
LAUNCHER_TIMEOUT: Final = 900

# What torch's DynamicRendezvousHandler reads (2.9 to 2.14). The caller says what the
# installed one does.
HANDLER_SETTINGS: Final = frozenset(
    {
        "join_timeout",
        "last_call_timeout",
        "close_timeout",
        "heartbeat_timeout",
        "keep_alive_interval",
        "keep_alive_max_attempt",
    }
)
_LAUNCHER_SETTINGS: Final = frozenset(
    {"rank", "timeout", "local_world_size", "role", "nproc_per_node"}
)
_C10D_SETTINGS: Final = frozenset({"is_host", "store_type", "use_libuv"})
# torch's older `etcd` backend called them so.
_ALIASES: Final = {
    "cert": "ssl_cert",
    "key": "ssl_cert_key",
    "cacert": "ca_cert",
    "etcd_prefix": "key_prefix",
}
_OUR_SETTINGS: Final = frozenset(
    {
        "read_timeout",
        "connect_timeout",
        "startup_timeout",
        "protocol",
        "ssl_cert",
        "ssl_cert_key",
        "ca_cert",
        "user",
        "password_file",
        "key_prefix",
        "ttl",
        "closed_ttl",
        "store_ttl",
        "request_limit",
    }
)
# What the handler of `etcd-live` reads besides torch's.
_LIVE_SETTINGS: Final = frozenset(
    {"rejoin_last_call_timeout", "on_node_loss", "rank_order"}
)
# What concerns the state, which it does not have.
_NOT_OF_LIVE: Final = frozenset({"ttl", "closed_ttl", "request_limit"})
_COUNTS: Final = frozenset({"keep_alive_max_attempt", "request_limit"})  # no seconds
_SECRETS: Final = frozenset({"password", "passwd", "token"})

_LABEL: Final = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")
_SCOPE: Final = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Endpoint:
    """
    Where one member of etcd listens for clients.

    Attributes:
        scheme: ``http`` or ``https``.
        host: A host name, an IPv4 address, or an IPv6 address without brackets.
        port: The TCP port.
    """

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True)
class TlsFiles:
    """
    The paths of certificates.

    Attributes:
        cert: The client's certificate, or certificate and key in one file.
        key: The client's private key.
        ca: The authority that signed the server's certificate; None for the
            machine's own list of authorities.
    """

    cert: str | None = None
    key: str | None = None
    ca: str | None = None


@dataclass(frozen=True)
class Settings:
    """
    What a rendezvous on etcd can be told.

    Attributes:
        endpoints: Where etcd listens.
        tls: Certificates.
        credentials: Who we are to etcd; None for nobody.
        read_timeout: The seconds for one operation, all its attempts together.
        connect_timeout: The seconds for one TCP connect.
        startup_timeout: The seconds to wait for an etcd that is not up yet.
        key_prefix: The path that the state is stored under.
        ttl: The seconds after which a state that nobody writes goes away.
        closed_ttl: The same, for the state of a closed rendezvous.
        store_ttl: The seconds after which the store's keys go away: on v3 from the
            end of the run's last process, on v2 from a key's own last write. None for
            the API's default.
        request_limit: The most bytes of a request that writes the state (v3).
        notes: Sentences worth a warning, each said once.
    """

    endpoints: tuple[Endpoint, ...]
    tls: TlsFiles = TlsFiles()
    credentials: Credentials | None = None
    read_timeout: int = DEFAULT_READ_TIMEOUT
    connect_timeout: int = DEFAULT_CONNECT_TIMEOUT
    startup_timeout: int = 0
    key_prefix: str = DEFAULT_KEY_PREFIX
    ttl: int = DEFAULT_STATE_TTL
    closed_ttl: int = DEFAULT_CLOSED_TTL
    store_ttl: int | None = None
    request_limit: int = DEFAULT_REQUEST_LIMIT
    notes: tuple[str, ...] = field(default=(), compare=False)

    def in_words(self, api: str, *, live: bool = False) -> str:
        """
        List the values that take effect, for the log.

        Args:
            api: The API that is spoken, ``v2`` or ``v3``.
            live: Whether it is the handler of `etcd-live`.
        """
        default = DEFAULT_STORE_TTL_V2 if api == "v2" else DEFAULT_STORE_TTL
        who = self.credentials
        seconds = {
            "read_timeout": self.read_timeout,
            "connect_timeout": self.connect_timeout,
            "startup_timeout": self.startup_timeout,
            "ttl": self.ttl,
            "closed_ttl": self.closed_ttl,
            "store_ttl": self.store_ttl or default,
        }
        if live:
            del seconds["ttl"], seconds["closed_ttl"]
        has_limit = api == "v3" and not live
        limit = f"{self.request_limit} bytes" if has_limit else None
        texts = {
            "request_limit": limit,
            "key_prefix": self.key_prefix,
            "ssl_cert": self.tls.cert,
            "ssl_cert_key": self.tls.key,
            "ca_cert": self.tls.ca,
            "user": who.user if who else None,
            "password_file": who.password_file if who else None,
        }
        return ", ".join(
            [f"{name}={value} s" for name, value in seconds.items()]
            + [f"{name}={value}" for name, value in texts.items() if value]
        )


def parse_endpoints(
    text: str | None, protocol: str | None = None
) -> tuple[Endpoint, ...]:
    """
    Parse a list of endpoints.

    Args:
        text: Hosts, ``host:port``, IPv6 addresses (in brackets where a port
            follows) or URLs, separated by commas. The port defaults to 2379. None
            or empty: ``localhost:2379``, as in torch.
        protocol: ``http`` or ``https`` for endpoints that are no URLs; None for
            ``http``.

    Returns:
        The endpoints in the order given, each once.

    Raises:
        EtcdSettingError: An endpoint can't be read, or contradicts ``protocol``.
    """
    protocol = _protocol(protocol)
    whole = (text or "").strip()
    if not whole:
        return (Endpoint(protocol or "http", "localhost", DEFAULT_PORT),)
    if "@" in whole:
        # Nothing of it is shown: where a password ends can't be told.
        raise EtcdSettingError(
            "An endpoint must not hold a user or a password: endpoints are logged."
        )
    if "?" in whole or "#" in whole:
        raise EtcdSettingError(
            "An endpoint must end after its host or port. What was given is not shown: "
            "it may hold a secret."
        )
    found: dict[Endpoint, None] = {}
    for part in whole.split(","):
        if not part.strip():
            raise EtcdSettingError(
                f"The endpoint list '{whole}' has an empty entry; separate endpoints "
                "with one comma each."
            )
        found[_parse_endpoint(part.strip(), protocol)] = None
    return tuple(found)


def _parse_endpoint(text: str, protocol: str | None) -> Endpoint:
    scheme = protocol or "http"
    rest = text
    if "://" in text:
        scheme, rest = text.split("://", 1)
        scheme = scheme.lower()
        if scheme not in ("http", "https"):
            raise EtcdSettingError(
                f"The endpoint '{text}' must start with http:// or https://."
            )
        if protocol is not None and scheme != protocol:
            raise EtcdSettingError(
                f"The endpoint '{text}' contradicts the setting "
                f"protocol={protocol}; leave one of them out."
            )
        rest = rest.removesuffix("/")
    if "/" in rest:
        raise EtcdSettingError(
            f"The endpoint '{text}' has a path; leave it out: those of etcd are fixed."
        )
    host, port_text = _split_port(rest)
    if not _is_host(host):
        raise EtcdSettingError(
            f"The endpoint '{text}' can't be read; write HOST, HOST:PORT, "
            "[IPV6]:PORT or a URL."
        )
    port = DEFAULT_PORT
    if port_text is not None:
        if not re.fullmatch(r"[0-9]{1,5}", port_text) or int(port_text) > 65535:
            raise EtcdSettingError(
                f"The port of the endpoint '{text}' must be a number from 0 to 65535."
            )
        port = int(port_text)
    return Endpoint(scheme, host, port)


def _is_host(text: str) -> bool:
    if ":" not in text:
        return len(text) <= 253 and _HOST.fullmatch(text) is not None
    address, percent, scope = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or _SCOPE.fullmatch(scope) is not None


def _split_port(text: str) -> tuple[str, str | None]:
    """
    Split off the port: only brackets let a port follow an IPv6 address.
    """
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")) or ":" not in host:
            return "", None
        return host, rest[1:] if rest else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, port
    return text, None


def parse_settings(
    endpoint: str | None,
    config: Mapping[str, Any],
    *,
    startup_timeout: int,
    handler_settings: AbstractSet[str] = HANDLER_SETTINGS,
    live: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """
    Parse an endpoint and rendezvous settings (torch's ``--rdzv-conf``).

    Args:
        endpoint: torch's endpoint; see :func:`parse_endpoints`.
        config: The settings by name; values as texts or what they stand for.
        startup_timeout: The default of that setting, in seconds.
        handler_settings: The settings that the handler reads of torch's.
        live: Whether it is the handler of `etcd-live`.
        environ: The environment variables, where the password may be.

    Returns:
        The settings, with the warnings they deserve.

    Raises:
        EtcdSettingError: A setting is unknown or has a value that can't be used.
            It is a ``ValueError`` too, and where torch has a text for the case,
            it is torch's.
    """
    notes: list[str] = []
    values = _known(config, handler_settings, notes, live=live)
    read_timeout = _integer(values, "read_timeout", DEFAULT_READ_TIMEOUT)
    if read_timeout <= 0:
        # torch's words
        raise EtcdSettingError("The read timeout must be a positive integer.")
    protocol = _protocol(values.get("protocol"))
    tls = TlsFiles(
        _path(values, "ssl_cert"),
        _path(values, "ssl_cert_key"),
        _path(values, "ca_cert"),
    )
    if tls.key and not tls.cert:
        raise EtcdSettingError(
            "The setting 'ssl_cert_key' needs 'ssl_cert', the certificate of the key."
        )
    endpoints = parse_endpoints(endpoint, protocol)
    for name in HANDLER_SETTINGS:
        # torch takes a keep_alive_interval of 0, and then never begins.
        whole_number(config, name, 1)
    if any((tls.cert, tls.ca)) and all(e.scheme == "http" for e in endpoints):
        notes.append(
            "Certificates are set, but the protocol is http: they are not used. "
            "Set protocol=https."
        )
    credentials = find_credentials(
        _text(values, "user"), _text(values, "password_file"), environ
    )
    if credentials is not None and any(
        e.scheme == "http" and not _is_loopback(e.host) for e in endpoints
    ):
        notes.append(
            "The password goes to etcd in clear text, since the protocol is http. Use "
            "https."
        )
    return Settings(
        endpoints=endpoints,
        tls=tls,
        credentials=credentials,
        read_timeout=read_timeout,
        connect_timeout=whole_number(
            values, "connect_timeout", DEFAULT_CONNECT_TIMEOUT
        ),
        startup_timeout=whole_number(
            values, "startup_timeout", startup_timeout, least=0
        ),
        key_prefix=_key_prefix(values.get("key_prefix")),
        ttl=whole_number(values, "ttl", DEFAULT_STATE_TTL, least=LEAST_TTL),
        closed_ttl=whole_number(
            values, "closed_ttl", DEFAULT_CLOSED_TTL, least=LEAST_TTL
        ),
        store_ttl=(
            None
            if values.get("store_ttl") is None
            else whole_number(values, "store_ttl", DEFAULT_STORE_TTL, least=LEAST_TTL)
        ),
        request_limit=whole_number(values, "request_limit", DEFAULT_REQUEST_LIMIT),
        notes=tuple(notes),
    )


def _known(
    config: Mapping[str, Any],
    handler_settings: AbstractSet[str],
    notes: list[str],
    *,
    live: bool,
) -> dict[str, Any]:
    """
    Sort settings by whose they are; refuse what is nobody's.
    """
    values: dict[str, Any] = {}
    foreign: list[str] = []
    too_new: list[str] = []
    of_others = _NOT_OF_LIVE if live else _LIVE_SETTINGS
    for name, value in config.items():
        if name.lower() in _SECRETS:
            raise EtcdSettingError(
                f"The setting '{name}' is refused: rendezvous settings are logged and "
                f"stand on the command line. Set {PASSWORD_VARIABLE}, or name a file "
                "with 'password_file'."
            )
        ours = _ALIASES.get(name, name)
        if ours in _OUR_SETTINGS:
            if ours in values and values[ours] != value:
                other = next(one for one in _ALIASES if _ALIASES[one] == ours)
                raise EtcdSettingError(
                    f"The setting '{ours}' is given twice, once as '{other}', with "
                    "different values."
                )
            values[ours] = value
        elif name in _LIVE_SETTINGS:
            pass  # The handler parses them.
        elif name in _C10D_SETTINGS:
            foreign.append(name)
        elif name in HANDLER_SETTINGS - handler_settings:
            too_new.append(name)
        elif name not in handler_settings and name not in _LAUNCHER_SETTINGS:
            raise EtcdSettingError(_unknown(name))
    if foreign:
        notes.append(
            f"The setting(s) {', '.join(sorted(foreign))} belong to torch's c10d "
            "backend and have no effect here."
        )
    misplaced = sorted(of_others.intersection(config))
    if misplaced:
        whose = "etcd-v3 and etcd-auto" if live else "etcd-live"
        notes.append(
            f"The setting(s) {', '.join(misplaced)} have no effect here: they are for "
            f"{whose}."
        )
    if too_new:
        notes.append(
            f"The setting(s) {', '.join(sorted(too_new))} have no effect here: the "
            "handler of the installed PyTorch does not read them."
        )
    if (
        "timeout" in config
        and "join_timeout" not in config
        and str(config["timeout"]) != str(LAUNCHER_TIMEOUT)
    ):
        notes.append(
            f"The setting timeout={config['timeout']} has no effect: torch's dynamic "
            "rendezvous reads join_timeout (600 s by default)."
        )
    return values


def _unknown(name: str) -> str:
    known = sorted(_OUR_SETTINGS | HANDLER_SETTINGS | _LIVE_SETTINGS | set(_ALIASES))
    written = name.lower().replace("-", "_")
    # Somebody else's prefix to one of ours is nearer than another of ours.
    within = [one for one in known if "_" in one and one in written]
    near = sorted(within, key=len, reverse=True) or difflib.get_close_matches(
        written, known, n=1, cutoff=0.6
    )
    if near:
        return f"The setting '{name}' is unknown; did you mean '{near[0]}'?"
    return f"The setting '{name}' is unknown; known are: {', '.join(known)}."


def _integer(values: Mapping[str, Any], name: str, default: int) -> int:
    value = values.get(name)
    if value is None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        of_seconds = " of seconds" if name not in _COUNTS else ""
        message = (
            f"The setting '{name}' must be a whole number{of_seconds}, not {value!r}."
        )
        if name == "read_timeout":
            # torch's words
            message = (
                f"The rendezvous configuration option '{name}' does not represent a "
                "valid integer value."
            )
        raise EtcdSettingError(message) from None


def whole_number(
    values: Mapping[str, Any], name: str, default: int, *, least: int = 1
) -> int:
    """
    Return a setting that is a whole number, of seconds mostly.

    Args:
        values: The settings by name.
        name: The setting.
        default: What it is if it is not set.
        least: The smallest that it may be.

    Raises:
        EtcdSettingError: It is none, or smaller, or more seconds than anybody waits.
    """
    number = _integer(values, name, default)
    unit = " s" if name not in _COUNTS else ""
    if number < least:
        raise EtcdSettingError(
            f"The setting '{name}' must be {least}{unit} or more, not {number}{unit}."
        )
    most = _MOST_ATTEMPTS if name in _COUNTS else MOST_SECONDS
    if name != "request_limit" and number > most:
        raise EtcdSettingError(
            f"The setting '{name}' must be {most}{unit} or less, not {number}{unit}."
        )
    return number


def _protocol(value: Any) -> str | None:
    if value is None:
        return None
    protocol = str(value).strip().lower()
    if protocol not in ("http", "https"):
        # torch's words
        raise EtcdSettingError("The protocol must be HTTP or HTTPS.")
    return protocol


def _path(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    if not value:
        return None
    path = str(value)
    try:
        refuse_pipe(path)
        with Path(path).open("rb"):
            pass
    except (OSError, ValueError) as error:
        raise EtcdSettingError(
            f"The file of the setting '{name}' can't be read: {path} "
            f"({getattr(error, 'strerror', None) or error})."
        ) from error
    return path


def check_text(text: str, what: str) -> None:
    """
    Refuse a text that has no form in UTF-8.

    Args:
        text: The text, such as a run id with bytes in it that were none.
        what: What it is, for errors: "key".

    Raises:
        EtcdSettingError: It has none.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise EtcdSettingError(f"The {what} {text!r} is no text in UTF-8.") from None


def _text(values: Mapping[str, Any], name: str) -> str | None:
    value = values.get(name)
    return None if value is None else str(value)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def _key_prefix(value: Any) -> str:
    if not value:
        return DEFAULT_KEY_PREFIX
    prefix = str(value).rstrip("/")
    if not prefix:
        raise EtcdSettingError("The setting 'key_prefix' must name a path.")
    return prefix if prefix.startswith("/") else f"/{prefix}"
