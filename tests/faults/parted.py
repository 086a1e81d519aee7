# SPDX-License-Identifier: BSD-3-Clause
"""
A cluster whose members can be cut off from each other.

    with PartedCluster(binary=…) as cluster:
        cluster.cut(0, 1)   # These two members no longer hear each other.
        cluster.isolate(2)
        cluster.heal()
"""

from __future__ import annotations

import contextlib
from types import TracebackType

import psutil

from etcd_rendezvous import EtcdCluster
from support.links import Cut, Link


class PartedCluster(EtcdCluster):
    """
    A cluster whose members speak with each other over links that can be cut.
    """

    def __init__(self, size: int = 3, **options: object) -> None:
        super().__init__(size, **options)
        self._links = [
            Link(lambda to=member: ("127.0.0.1", to._peer_port), self._number_of)
            for member in self._members
        ]
        urls = [f"http://{link.endpoint}" for link in self._links]
        cluster = ",".join(f"member{number}={url}" for number, url in enumerate(urls))
        for member, url in zip(self._members, urls, strict=True):
            member._extra_args += (
                f"--initial-cluster={cluster}",
                f"--initial-advertise-peer-urls={url}",
            )

    def cut(self, one: int, other: int, how: Cut = "silent") -> None:
        """
        Let two members hear nothing of each other.
        """
        self._links[one].cut(how, other)
        self._links[other].cut(how, one)

    def isolate(self, number: int, how: Cut = "silent") -> None:
        """
        Let a member and all others hear nothing of each other.
        """
        for other in range(len(self._members)):
            if other != number:
                self.cut(number, other, how)

    def heal(self) -> None:
        """
        Mend all links.
        """
        for link in self._links:
            link.heal()

    def close_links(self) -> None:
        """
        Close the links; the cluster can't be used any more.
        """
        for link in self._links:
            link.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        self.close_links()

    def _number_of(self, port: int) -> object:
        """
        Return the number of the member that has a connection from this port.
        """
        for number, member in enumerate(self._members):
            pid = member.pid
            with contextlib.suppress(psutil.Error, OSError):
                sockets = psutil.Process(pid).net_connections("tcp") if pid else []
                if any(one.laddr.port == port for one in sockets):
                    return number
        return None
