# SPDX-License-Identifier: BSD-3-Clause
# ruff: noqa: SIM300 - asserts are written `expected == actual`
"""
``etcd-rendezvous purge``, on a real etcd: what it deletes, and when it refuses to.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import threading

import pytest

from etcd_rendezvous import EtcdClient
from etcd_rendezvous._runs.removal import ChangedError
from support.live import Nodes
from support.runs import call, check, torchs_state
from support.torchrun import clean_environment

pytestmark = pytest.mark.torch

OLD = {"n0": 99.0, "n1": 98.0}
# A job whose heartbeats are a second apart.
QUICK = "--rdzv-conf=keep_alive_interval=1"


@pytest.fixture
def prefix(run_id):
    """
    A prefix with no runs but a test's own.
    """
    return f"/tests/{run_id}"


def where(served, prefix):
    return (
        *("--endpoint", served.endpoint, "--key-prefix", prefix),
        *("--rdzv-backend", f"etcd-{served.api}"),
    )


def ids(served, prefix):
    done = call("status", *where(served, prefix), "--json")
    return [run["run_id"] for run in check(done.out)["runs"]]


def keys_of(served, prefix):
    with EtcdClient(served.endpoint) as client:
        found, _ = client.range(prefix, prefix.encode() + b"0", keys_only=True)
    return [entry.key.decode() for entry in found.entries]


def run_with_keys(served, run_id, prefix, ages=OLD):
    """
    Make a run of torch's handler that has keys in its store.
    """
    from torch.distributed import PrefixStore

    from etcd_rendezvous import EtcdStore

    backend = served.backend(run_id, key_prefix=prefix)
    _, token, _ = backend.set_state(torchs_state(ages, complete=True))
    path = f"{backend.key}/store" if served.api == "v3" else "/torch/elastic/store"
    store = EtcdStore(served.client(), path)
    PrefixStore(f"torch.rendezvous.{run_id}.0", store).set("MASTER_ADDR", "n0")
    return backend, store, token


def test_a_run_that_is_over_is_deleted(served, prefix, run_id):
    """
    All of it, and nothing of the runs beside it whose names begin alike.
    """
    names = [run_id, f"{run_id}-1", f"{run_id}.1"]
    stores = [run_with_keys(served, name, prefix)[1] for name in names]

    done = call("purge", run_id, *where(served, prefix), QUICK, "--yes")

    assert 0 == done.status, done
    assert f"  {prefix}/{run_id}\n" in done.out
    assert f"torch.rendezvous.{run_id}.0/MASTER_ADDR\n" in done.out
    assert f"Deleted 2 keys; the run id '{run_id}' is free.\n" in done.out
    assert sorted(names[1:]) == ids(served, prefix)
    for name, store in zip(names[1:], stores[1:], strict=True):
        assert b"n0" == store.get(f"torch.rendezvous.{name}.0/MASTER_ADDR")
    assert not stores[0].check([f"torch.rendezvous.{run_id}.0/MASTER_ADDR"])


def test_it_asks(newest_v3, prefix):
    """
    Without --yes it asks; without an answer, or with another than yes, nothing goes.
    """
    run_with_keys(newest_v3, "job", prefix)
    command = [sys.executable, "-m", "etcd_rendezvous", "purge", "job", QUICK]
    said = {}
    for answer in ("", "n\n", "y\n"):
        done = subprocess.run(
            [*command, *where(newest_v3, prefix)],
            input=answer,
            capture_output=True,
            text=True,
            env=clean_environment(),
            timeout=60,
            check=False,
        )
        said[answer] = (done.returncode, "Deleted" in done.stdout)
        assert "Delete 2 keys? [y/N]: " in done.stdout

    assert {"": (1, False), "n\n": (1, False), "y\n": (0, True)} == said
    assert [] == ids(newest_v3, prefix)


def test_nodes_that_were_heard_of_lately_are_alive(newest_served, prefix, run_id):
    """
    Then it refuses, and names them; --force deletes all the same.
    """
    run_with_keys(newest_served, run_id, prefix, {"n0": 1.0, "n1": 99.0})

    refused = call("purge", run_id, *where(newest_served, prefix), "--yes")
    forced = call("purge", run_id, *where(newest_served, prefix), "--yes", "--force")

    assert 1 == refused.status
    assert (
        f"Error: Nothing was deleted: nodes of '{run_id}' are alive (n0). End its job "
        "first; or add --force, and they will have to meet again.\n"
    ) == refused.err
    assert 0 == forced.status
    assert f"the nodes of '{run_id}' that live will meet again.\n" in forced.out
    assert [] == ids(newest_served, prefix)


@contextlib.contextmanager
def again_and_again(write):
    """
    Write all the while, so that it does not matter when others look.
    """
    over = threading.Event()

    def work():
        while not over.wait(0.2):
            write()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_nodes_whose_clocks_are_wrong_are_alive(newest_served, prefix, run_id):
    """
    Whoever writes while it looks is alive, whatever the age of the heartbeats seems.
    """
    backend, _, token = run_with_keys(newest_served, run_id, prefix)
    beat = torchs_state({"n0": 3600.0}, complete=True)

    def write():
        nonlocal token
        _, token, _ = backend.set_state(beat, token)

    with again_and_again(write):
        done = call("purge", run_id, *where(newest_served, prefix), QUICK, "--yes")

    assert 1 == done.status
    assert "Looking for heartbeats for 2 s" in done.out
    assert f"nodes of '{run_id}' are alive." in done.err
    assert [run_id] == ids(newest_served, prefix)


def test_a_live_run(newest_v3, run_id):
    """
    While a node's lease lives it refuses; afterwards all of it goes at once.
    """
    place = where(newest_v3, "/torch/elastic/rendezvous")
    with Nodes(newest_v3.endpoint, run_id) as nodes:
        handlers = nodes.several(2)
        nodes.meet(*handlers)
        refused = call("purge", run_id, *place, "--yes")
    done = call("purge", run_id, *place, "--yes")

    assert "are alive (127.0.0.1, 127.0.0.2)" in refused.err
    assert 0 == done.status, done
    assert "Looking for heartbeats" not in done.out
    left = keys_of(newest_v3, f"/torch/elastic/rendezvous/{run_id}")
    assert [] == left


def test_a_node_that_comes_meanwhile(newest_v3, prefix):
    """
    A run that changes between the look and the deletion stays as it is.
    """
    from etcd_rendezvous._runs.find import Finder
    from etcd_rendezvous._settings import parse_settings

    settings = parse_settings(
        newest_v3.endpoint, {"key_prefix": prefix}, startup_timeout=0
    )
    backend, _, token = run_with_keys(newest_v3, "torchs", prefix)
    with EtcdClient(newest_v3.endpoint) as client:
        client.put(f"{prefix}/live/live/c/closed", b"")
        finder = Finder(settings, None, 15)
        live, torchs = finder.find().runs
        backend.set_state(torchs_state({"n0": 0.0}), token)
        client.put(f"{prefix}/live/live/n/here/id", b"{}")
        for run in (live, torchs):
            with pytest.raises(ChangedError):
                finder.removal(run).remove(force=False)
        kept = keys_of(newest_v3, prefix)
        finder.removal(torchs).remove(force=True)
        finder.close()

    assert 4 == len(kept)
    assert [f"{prefix}/live/live/c/closed", f"{prefix}/live/live/n/here/id"] == (
        keys_of(newest_v3, prefix)
    )


def test_what_is_below_a_run_may_be_another_teams(newest_v3, prefix):
    """
    Runs under a key prefix that is the key of a run stay as they are, living or not.
    """
    run_with_keys(newest_v3, "team", prefix)
    below = f"{prefix}/team"
    run_with_keys(newest_v3, "job", below, {"n0": 0.0})
    run_with_keys(newest_v3, "store.1", below)
    kept = set(keys_of(newest_v3, f"{below}/job"))
    kept |= set(keys_of(newest_v3, f"{below}/store.1"))

    done = call("purge", "team", *where(newest_v3, prefix), QUICK, "--yes")
    again = call("purge", "team", *where(newest_v3, prefix), QUICK, "--yes")

    assert (0, 1) == (done.status, again.status)
    assert "Deleted 2 keys" in done.out
    assert 4 == len(kept)
    assert kept == set(keys_of(newest_v3, prefix))
    assert [] == ids(newest_v3, prefix)


def test_stores_of_v2_have_one_place(newest_v2, run_id):
    """
    What may be another run's key stays: one with a longer name, or of the same name
    under the usual key prefix.
    """
    usual = "/torch/elastic/rendezvous"
    longer = f"{run_id}.1/x"
    store = run_with_keys(newest_v2, longer, usual, {"n0": 0.0})[1]
    run_with_keys(newest_v2, run_id, usual, {"n0": 0.0})
    run_with_keys(newest_v2, run_id, f"/tests/{run_id}")

    done = call("purge", run_id, *where(newest_v2, f"/tests/{run_id}"), QUICK, "--yes")
    forced = call("purge", run_id, *where(newest_v2, usual), "--yes", "--force")

    assert "Deleted 1 key;" in done.out
    assert "Deleted 2 keys;" in forced.out
    assert b"n0" == store.get(f"torch.rendezvous.{longer}.0/MASTER_ADDR")


@pytest.mark.parametrize("odd", "?#%")
def test_names_that_v2_would_not_keep(newest_v2, odd, run_id):
    """
    What python-etcd would send as another key's name is refused.
    """
    from urllib.parse import quote

    import urllib3

    prefix, name = f"/tests/{run_id}", f"x{odd}41"
    url = f"http://{newest_v2.endpoint}/v2/keys{quote(f'{prefix}/{name}')}"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    urllib3.request("PUT", url, body="value=odd", headers=form)

    done = call("purge", name, *where(newest_v2, prefix), "--yes", "--force")

    assert 1 == done.status
    assert f"'{odd}' ends or changes the name of a key" in done.err
    assert [name] == ids(newest_v2, prefix)


def test_a_run_that_can_not_be_read_is_written(newest_v3, prefix):
    """
    Whoever writes what is not torch's state lives, too.
    """
    newest_v3.write(f"{prefix}/job", "odd")
    with (
        newest_v3.client() as client,
        again_and_again(lambda: client.put(f"{prefix}/job", "even")),
    ):
        done = call("purge", "job", *where(newest_v3, prefix), QUICK, "--yes")

    assert 1 == done.status
    assert "nodes of 'job' are alive" in done.err
    assert ["job"] == ids(newest_v3, prefix)


def test_a_run_that_changes_while_it_asks(newest_served, prefix, run_id):
    """
    What has changed since it was shown is left alone, whatever is answered.
    """
    backend, _, token = run_with_keys(newest_served, run_id, prefix)
    place = where(newest_served, prefix)
    process = subprocess.Popen(
        [sys.executable, "-m", "etcd_rendezvous", "purge", run_id, *place, QUICK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(PYTHONUNBUFFERED="1"),
    )
    shown = ""
    while "[y/N]" not in shown:
        shown += process.stdout.read(1)
    backend.set_state(torchs_state({"n0": 0.0}), token)
    _, err = process.communicate("y\n", timeout=30)

    assert 1 == process.returncode
    assert f"The run '{run_id}' has changed meanwhile, so that its state was" in err
    assert [run_id] == ids(newest_served, prefix)


def test_the_same_id_in_both_apis(newest_v2, serve, prefix, run_id):
    """
    Both are deleted; what has only a store in one of them does not count as new.
    """
    v3 = serve("v3", newest_v2.server)
    run_with_keys(newest_v2, run_id, prefix)
    with EtcdClient(v3.endpoint) as client:
        client.put(f"{prefix}/{run_id}/store/key", "x")
    both = ("--endpoint", v3.endpoint, "--key-prefix", prefix)

    done = call("purge", run_id, *both, QUICK, "--yes")
    left = call("status", *both, "--json")

    assert 0 == done.status, done
    assert "Deleted 3 keys" in done.out
    assert [] == check(left.out)["runs"]


def test_a_reply_that_is_lost(newest_v3, make_proxy, prefix):
    """
    A deletion whose reply is lost is told as what it was.
    """
    run_with_keys(newest_v3, "job", prefix)
    proxy = make_proxy(newest_v3.endpoint)
    with proxy.expect_swallowed(1):
        proxy.swallow(1, lambda _method, _path, body: b"delete_range" in body)
        done = call(
            *("purge", "job", "--endpoint", proxy.endpoint, "--key-prefix", prefix),
            *(QUICK, "--yes"),
        )

    assert 0 == done.status, done
    assert "Deleted 2 keys" in done.out
    assert [] == keys_of(newest_v3, prefix)


def test_no_such_run(newest_v3, prefix):
    """
    There is nothing to delete, and that is an error.
    """
    done = call("purge", "nobody", *where(newest_v3, prefix), "--yes")

    assert 1 == done.status
    assert re.match(r"Error: There is no run 'nobody' under ", done.err)
