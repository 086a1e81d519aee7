# SPDX-License-Identifier: BSD-3-Clause
"""
Certificates and names for servers and clients, in one object that is handed around.
"""

from __future__ import annotations

import base64
import dataclasses
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import trustme
import urllib3
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

#: Whoever is asked for must be granted what our keys need, and no more.
PREFIX = "/torch/elastic/rendezvous/"
ROOT_PASSWORD = "root's own"


@dataclass(frozen=True)
class Security:
    """
    How a client reaches etcd: by TLS or not, as somebody or as nobody.

    Attributes:
        scheme: "http" or "https".
        ca: The path of the authority's certificate.
        cert: The path of the client's certificate.
        key: The path of its key.
        user: The user.
        password: The password.
    """

    scheme: str = "http"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    user: str | None = None
    password: str | None = None

    def as_user(self, user: str, password: str) -> Security:
        """
        Return the same for a user.
        """
        return dataclasses.replace(self, user=user, password=password)

    def client_options(self) -> dict[str, Any]:
        """
        Return the arguments for an `EtcdClient`.
        """
        options = {
            "protocol": self.scheme,
            "ca_cert": self.ca,
            "cert": self.cert,
            "key": self.key,
            "user": self.user,
            "password": self.password,
        }
        return {name: value for name, value in options.items() if value is not None}

    def rdzv_conf(self) -> dict[str, object]:
        """
        Return the settings for torchrun's `--rdzv-conf`.
        """
        settings = {
            "protocol": self.scheme,
            "ca_cert": self.ca,
            "ssl_cert": self.cert,
            "ssl_cert_key": self.key,
        }
        return {name: value for name, value in settings.items() if value is not None}

    def environment(self) -> dict[str, str]:
        """
        Return the variables for an agent: who it is.
        """
        if self.user is None or self.password is None:
            return {}
        return {
            "ETCD_RENDEZVOUS_USER": self.user,
            "ETCD_RENDEZVOUS_PASSWORD": self.password,
        }

    def pool(self) -> urllib3.PoolManager:
        """
        Make a pool for requests of the test's own.
        """
        return urllib3.PoolManager(
            retries=False,
            ca_certs=self.ca,
            cert_file=self.cert,
            key_file=self.key,
            timeout=10,
        )


PLAIN = Security()


class Authority:
    """
    An authority, the servers' certificates and the clients', as files in a folder.

    Args:
        folder: Where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self._authority.cert_pem.write_to_path(self.ca)
        self.renew()

    def renew(self, *, seconds: float | None = None) -> None:
        """
        Issue new certificates in place of the old ones.

        Args:
            seconds: How long they are good. Default: for years.
        """
        until = None
        if seconds is not None:
            until = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        # A client's certificate has no common name: etcd's gateway refuses one with
        # a name once authentication is on.
        self._issue("server", until, "127.0.0.1", "localhost", "::1")
        self._issue("client", until, "client.test")

    def copy_of_client(self, name: str) -> Security:
        """
        Copy what a client has now, so that it outlives the next `renew`.
        """
        copy = self.security
        cert, key = (self._folder / f"{name}.{kind}" for kind in ("pem", "key"))
        shutil.copy(str(copy.cert), cert)
        shutil.copy(str(copy.key), key)
        return dataclasses.replace(copy, cert=str(cert), key=str(key))

    @property
    def server_arguments(self) -> list[str]:
        """
        The arguments for etcd: TLS, and only for clients with a certificate.
        """
        return [
            f"--cert-file={self._folder / 'server.pem'}",
            f"--key-file={self._folder / 'server.key'}",
            f"--trusted-ca-file={self.ca}",
            "--client-cert-auth",
        ]

    @property
    def security(self) -> Security:
        """
        What a client needs to have.
        """
        cert, key = (str(self._folder / f"client.{one}") for one in ("pem", "key"))
        return Security("https", self.ca, cert, key)

    def with_common_name(self, common_name: str) -> Security:
        """
        What a client has whose certificate has a CommonName.
        """
        self._issue("named", None, "client.test", common_name=common_name)
        cert, key = (str(self._folder / f"named.{one}") for one in ("pem", "key"))
        return dataclasses.replace(self.security, cert=cert, key=key)

    def _issue(
        self,
        name: str,
        until: datetime | None,
        *identities: str,
        common_name: str | None = None,
    ) -> None:
        issued = self._authority.issue_cert(
            *identities, common_name=common_name, not_after=until
        )
        key, cert = (self._folder / f"{name}.{kind}" for kind in ("key", "pem"))
        # Whoever looks now finds the old file or the new one, whole.
        for path, blobs in (
            (key, [issued.private_key_pem]),
            (cert, issued.cert_chain_pems),
        ):
            new = path.with_suffix(".new")
            new.write_bytes(b"".join(blob.bytes() for blob in blobs))
            new.replace(path)


def lock(key: str) -> str:
    """
    Write a private key anew, with a password; return the path.

    Args:
        key: The path of the key.
    """
    private = load_pem_private_key(Path(key).read_bytes(), None)
    locked = private.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"xyzzy-42")
    )
    path = Path(key).with_suffix(".locked")
    path.write_bytes(locked)
    return str(path)


def post(endpoint: str, path: str, body: object, security: Security = PLAIN) -> Any:
    """
    Send one request to a member, as root where the security names a user.

    Raises:
        AssertionError: It was refused.
    """
    with security.pool() as pool:
        base = f"{security.scheme}://{endpoint}/v3"
        headers = {}
        if security.user is not None:
            account = {"name": "root", "password": ROOT_PASSWORD}
            reply = pool.request("POST", f"{base}/auth/authenticate", json=account)
            assert reply.status == 200, reply.data
            headers["Authorization"] = reply.json()["token"]
        reply = pool.request("POST", f"{base}/{path}", json=body, headers=headers)
        assert reply.status == 200, reply.data
        return reply.json()


def switch_authentication_on(endpoint: str, security: Security) -> None:
    """
    Let a cluster ask who one is; the security's user may touch our keys only.

    Args:
        endpoint: A member.
        security: The user to make, and how to get there.
    """
    nobody = dataclasses.replace(security, user=None, password=None)
    key, end = _base64(PREFIX), _base64(PREFIX[:-1] + chr(ord("/") + 1))
    permission = {"permType": "READWRITE", "key": key, "range_end": end}
    for path, body in (
        ("user/add", {"name": "root", "password": ROOT_PASSWORD}),
        ("role/add", {"name": "root"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": security.user, "password": security.password}),
        ("role/add", {"name": "agent"}),
        ("role/grant", {"name": "agent", "perm": permission}),
        ("user/grant", {"user": security.user, "role": "agent"}),
        ("enable", {}),
    ):
        post(endpoint, f"auth/{path}", body, nobody)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
