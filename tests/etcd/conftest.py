# SPDX-License-Identifier: BSD-3-Clause
"""
Both APIs of real servers, behind one face: backends, stores, an independent reader.

A test that asks for `served` runs once for each API of each version, one that asks
for `newest_served` once for each API. These servers are the shared ones.
"""

from __future__ import annotations

import base64
import contextlib

import pytest
import urllib3

from etcd_rendezvous import EtcdClient
from support import etcds

PREFIX = "/torch/elastic/rendezvous"


def pytest_generate_tests(metafunc):
    for fixture, only_newest in (("served", False), ("newest_served", True)):
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, _params(only_newest), indirect=True)


def _params(only_newest):
    try:
        found = [("v3", etcds.binaries()), ("v2", etcds.v2_binaries())]
    except etcds.NoEtcdError:
        # The other conftest says so, once for all tests.
        return [pytest.param(None, id="no-etcd", marks=pytest.mark.etcd)]
    return [
        pytest.param(
            (api, one.path),
            id=f"{api}-{one.version}",
            marks=[pytest.mark.etcd] + [pytest.mark.v2] * (api == "v2"),
        )
        for api, binaries in found
        for one in (binaries[-1:] if only_newest else binaries)
    ]


def pytest_itemcollected(item):
    if {"newest_v2", "own"} & set(getattr(item, "fixturenames", ())):
        item.add_marker("etcd")
        item.add_marker("v2")


class Served:
    """
    One API of a running server.
    """

    def __init__(self, api, server, run_etcdctl, stack):
        self.api = api
        self.server = server
        self._run_etcdctl = run_etcdctl
        self._stack = stack

    @property
    def endpoint(self):
        return self.server.get_endpoint()

    # -- what is tested

    def client(self, through=None, *, read_timeout=10):
        """
        A client as users make it, of the server itself or of a proxy.
        """
        endpoint = self.endpoint if through is None else through.endpoint
        if self.api == "v3":
            client = EtcdClient(endpoint, read_timeout=read_timeout)
            self._stack.callback(client.close)
            return client
        import etcd

        host, port = endpoint.rsplit(":", 1)
        return etcd.Client(host, int(port), read_timeout=read_timeout)

    def backend(
        self, run_id, through=None, *, read_timeout=10, key_prefix=PREFIX, **settings
    ):
        from etcd_rendezvous import EtcdRendezvousBackend

        client = self.client(through, read_timeout=read_timeout)
        return EtcdRendezvousBackend(client, run_id, key_prefix, **settings)

    def store(self, run_id, through=None, *, read_timeout=10, timeout=None):
        from etcd_rendezvous import EtcdStore

        client = self.client(through, read_timeout=read_timeout)
        return EtcdStore(client, f"{PREFIX}/{run_id}/store", timeout)

    def is_swap(self, method, path, body):
        """
        For the proxy: whether a request is a compare-and-swap.
        """
        if self.api == "v3":
            return path == "/v3/kv/txn" and b'"compare":[{' in body
        return method == "PUT" and b"prev" in body

    # -- an independent look: etcdctl, or python-etcd

    def read(self, key):
        """
        The text under a key; None if there is none.
        """
        if self.api == "v3":
            found = self._run_etcdctl(self.endpoint, "get", "--", key).get("kvs")
            if not found:
                return None
            return base64.b64decode(found[0].get("value", "")).decode()
        import etcd

        try:
            return self.client().read(key).value
        except etcd.EtcdKeyNotFound:
            return None

    def write(self, key, text):
        if self.api == "v3":
            self._run_etcdctl(self.endpoint, "put", "--", key, text)
        else:
            self.client().write(key, text)

    def delete(self, key):
        if self.api == "v3":
            self._run_etcdctl(self.endpoint, "del", "--", key)
        else:
            self.client().delete(key)

    def compact(self):
        """
        Drop all history of v3.
        """
        newest = self._run_etcdctl(self.endpoint, "get", "--", "/")["header"]
        with urllib3.PoolManager(retries=False) as pool:
            url = f"http://{self.endpoint}/v3/kv/compaction"
            reply = pool.request("POST", url, json={"revision": newest["revision"]})
            assert reply.status == 200, reply.data

    def seconds_left(self, key):
        """
        The seconds until a key goes away.
        """
        if self.api == "v2":
            return self.client().read(key).ttl
        (found,) = self._run_etcdctl(self.endpoint, "get", "--", key)["kvs"]
        lease = self._run_etcdctl(
            self.endpoint, "lease", "timetolive", f"{found['lease']:x}"
        )
        return lease["ttl"]


@pytest.fixture
def serve(run_etcdctl):
    """
    A function that puts one API of a server behind that face.
    """
    with contextlib.ExitStack() as stack:

        def make(api, server):
            return Served(api, server, run_etcdctl, stack)

        yield make


@pytest.fixture
def served(request, serve, _shared_servers):
    """
    Each API of each version in turn.
    """
    api, binary = request.param
    return serve(api, _shared_servers(binary))


@pytest.fixture
def newest_served(request, serve, _shared_servers):
    """
    Each API in turn, of the newest version that has it.
    """
    api, binary = request.param
    return serve(api, _shared_servers(binary))


@pytest.fixture
def v3(serve, etcd_server):
    """
    The v3 API: each version in turn.
    """
    return serve("v3", etcd_server)


@pytest.fixture
def newest_v3(serve, newest_etcd_binary, _shared_servers):
    """
    The v3 API of the newest version.
    """
    return serve("v3", _shared_servers(newest_etcd_binary))


@pytest.fixture(scope="session")
def newest_v2_binary():
    """
    The path of the newest etcd binary that knows the v2 API.
    """
    return etcds.v2_binaries()[-1].path


@pytest.fixture
def newest_v2(serve, newest_v2_binary, _shared_servers):
    """
    The v2 API of the newest version that has it.
    """
    return serve("v2", _shared_servers(newest_v2_binary))
