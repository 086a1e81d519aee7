# SPDX-License-Identifier: BSD-3-Clause
"""
The handler of `etcd-live`, on a real etcd.
"""

import gc
import json
import logging
import os
import shutil
import signal
import socket
import threading
import time
from dataclasses import replace

import psutil
import pytest

pytestmark = pytest.mark.torch

from torch.distributed import TCPStore  # noqa: E402
from torch.distributed.elastic.rendezvous import (  # noqa: E402
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousGracefulExitError,
    RendezvousStateError,
    RendezvousTimeoutError,
)

from etcd_rendezvous import EtcdClient  # noqa: E402
from support.live import SOON, Nodes, agreed, wait_for_waiting  # noqa: E402
from support.torchrun import wait_until  # noqa: E402

TTL = 3
# Less than after what time all is looked at again in any case.
AT_ONCE = 8


@pytest.fixture
def nodes(etcd_server, run_id):
    """
    Nodes on each version of etcd.
    """
    with Nodes(etcd_server.get_endpoint(), run_id) as nodes:
        yield nodes


@pytest.fixture
def own_nodes(own_server, run_id):
    """
    Nodes on an etcd that may be treated badly.
    """
    with Nodes(own_server.get_endpoint(), run_id) as nodes:
        yield nodes


@pytest.fixture
def new_nodes(newest_etcd_binary, make_server, run_id):
    """
    Nodes on the newest etcd.
    """
    with Nodes(make_server().get_endpoint(), run_id) as nodes:
        yield nodes


def keys_of(nodes):
    """
    Return what stands in etcd for a run, without the path of the run.
    """
    path = f"/torch/elastic/rendezvous/{nodes.run_id}/live/"
    with EtcdClient(nodes.endpoint) as client:
        found, _ = client.range(path, path.encode()[:-1] + b"0")
    return {
        entry.key.decode().removeprefix(path): entry.value for entry in found.entries
    }


def live(nodes):
    """
    Return the nodes that etcd has, by id.
    """
    return {
        key.rpartition("/")[2]: json.loads(value)
        for key, value in keys_of(nodes).items()
        if key.startswith("n/")
    }


def closer_first(nodes, *processes):
    """
    Return processes, the closer's first.
    """
    keys = keys_of(nodes)
    pid = live(nodes)[keys["c/closer"].decode()]["pid"]
    return sorted(processes, key=lambda one: one.pid != pid)


# -- meeting ------------------------------------------------------------------------


def test_nodes_meet_and_agree(nodes):
    """
    All nodes of a round know the same, in the order of their addresses.
    """
    handlers = nodes.several(4)

    infos = nodes.meet(*reversed(handlers))

    assert [info.number for info in infos] == [0] * 4
    assert infos[0].bootstrap_store_info.master_addr == "127.0.0.1"
    assert [handler.num_nodes_waiting() for handler in handlers] == [0] * 4
    assert not any(handler.is_closed() for handler in handlers)
    infos[0].store.set("key", "value")
    assert infos[3].store.get("key") == b"value"


def test_no_transaction_only_reads(nodes, make_proxy):
    """
    Old releases of etcd end when such a one is given up, as happens under load.
    """
    proxy = make_proxy(nodes.endpoint)
    nodes.meet(*nodes.several(2, endpoint=proxy.endpoint))

    sent = [one.json for one in proxy.log if one.path == "/v3/kv/txn"]
    kinds = [
        {kind for op in [*one["success"], *one["failure"]] for kind in op}
        for one in sent
    ]
    assert any(len(one["success"]) == 4 for one in sent)  # What the closer reads.
    assert {"request_range"} not in kinds


def test_many_runs_one_after_the_other(new_nodes, run_id):
    """
    Whatever comes first, replies or what the watch tells, a round completes at once.
    """
    slowest = 0.0
    for number in range(40):
        with Nodes(new_nodes.endpoint, f"{run_id}-{number}") as nodes:
            handlers = nodes.several(3)
            started = time.monotonic()
            nodes.meet(*handlers)
            slowest = max(slowest, time.monotonic() - started)

    assert slowest < AT_ONCE


def test_a_store_for_every_round(nodes):
    """
    Each round has a store of its own, which rank 0 serves while the round lasts.
    """
    handlers = nodes.several(2)

    ports = []
    for number in range(3):
        first, second = nodes.meet(*handlers)
        assert first.number == second.number == number
        where = second.bootstrap_store_info
        store = TCPStore(where.master_addr, where.master_port, wait_for_workers=False)
        store.set("key", str(number))
        assert store.get("key") == str(number).encode()
        ports.append(where.master_port)

    assert len(set(ports)) == 3


def test_the_workers_own_store(nodes, monkeypatch):
    """
    Where workers don't share the agent's store, the port is free for them.
    """
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    handlers = nodes.several(2)

    info, _ = nodes.meet(*handlers)

    assert not any(handler.use_agent_store for handler in handlers)
    with socket.create_server(("", info.bootstrap_store_info.master_port)):
        pass


def test_numbers_in_addresses(nodes):
    """
    node7 comes before node66, as a person would sort them.
    """
    names = ["node66", "node7", "10.0.0.10", "10.0.0.9"]
    handlers = [nodes.make(4, 4, name) for name in names]
    for handler in handlers:
        handler._create_tcp_store_server = lambda *_: None

    ranks = [one.result(SOON).rank for one in nodes.joining(*handlers)]

    assert dict(zip(names, ranks, strict=True)) == {
        "10.0.0.9": 0,
        "10.0.0.10": 1,
        "node7": 2,
        "node66": 3,
    }


def test_an_order_of_ones_own(nodes, monkeypatch):
    """
    The setting `rank_order` sorts before the address, the variable where it is not set.
    """
    monkeypatch.setenv("ETCD_RENDEZVOUS_RANK_ORDER", "switch10")
    one = nodes.make(3, 3, "127.0.0.1")
    two = nodes.make(3, 3, "127.0.0.2", rank_order="switch9")
    monkeypatch.delenv("ETCD_RENDEZVOUS_RANK_ORDER")
    none = nodes.make(3, 3, "127.0.0.3")

    ranks = [one.result(SOON).rank for one in nodes.joining(none, one, two)]

    assert ranks == [2, 1, 0]


@pytest.mark.measures
def test_last_call(new_nodes):
    """
    With fewer than there may be a round waits for the last call; with all it does not.
    """
    handlers = [new_nodes.make(2, 3, last_call_timeout=2) for _ in range(3)]

    started = time.monotonic()
    assert len(new_nodes.meet(*handlers[:2])) == 2
    took = time.monotonic() - started
    assert 1.9 < took < 4

    started = time.monotonic()
    joining = new_nodes.joining(handlers[2])
    wait_for_waiting(handlers[0])
    joining += new_nodes.joining(*handlers[:2])
    assert len(agreed([one.result(SOON) for one in joining])) == 3
    assert time.monotonic() - started < 1.5


@pytest.mark.measures
def test_late_nodes_are_announced(new_nodes):
    """
    A node that is late is announced to all at once, and joins with the next round.
    """
    handlers = [new_nodes.make(2, 4) for _ in range(3)]
    new_nodes.meet(*handlers[:2])

    (late,) = new_nodes.joining(handlers[2])
    took = [wait_for_waiting(one) for one in handlers[:2]]

    assert max(took) < 1
    joined = new_nodes.joining(*handlers[:2])
    infos = agreed([one.result(SOON) for one in [late, *joined]])
    assert infos[0].number == 1


def test_a_late_node_that_gives_up_is_no_longer_announced(new_nodes):
    """
    When nobody waits any more, nobody is told so.
    """
    first, second = new_nodes.make(1, 2), new_nodes.make(1, 2, join_timeout=3)
    new_nodes.meet(first)

    (late,) = new_nodes.joining(second)
    wait_for_waiting(first)
    with pytest.raises(RendezvousTimeoutError):
        late.result(SOON)

    wait_until("the others to be told", lambda: first.num_nodes_waiting() == 0)


def test_a_spare_is_not_announced_and_steps_in(new_nodes):
    """
    A node beyond the maximum waits, longer than it may join, until one is lost.
    """
    one, two = new_nodes.process(2, 2), new_nodes.process(2, 2)
    new_nodes.meet(one, two)
    spare = new_nodes.make(2, 2, join_timeout=5)
    (waiting,) = new_nodes.joining(spare)
    time.sleep(6)
    assert not waiting.done()
    assert one.num_nodes_waiting() == two.num_nodes_waiting() == 0

    two.kill()
    wait_for_waiting(one)
    joined = new_nodes.joining(one)

    assert len(agreed([waiting.result(SOON), joined[0].result(SOON)])) == 2


# -- losing nodes -------------------------------------------------------------------


@pytest.mark.parametrize("which", ["the closer", "another"])
def test_a_killed_node(nodes, which):
    """
    The survivors are told, and meet again.
    """
    config = {"rejoin_last_call_timeout": 1, "last_call_timeout": 60}
    first = nodes.process(3, 3, "127.0.0.1", **config)
    others = [nodes.process(3, 3, f"127.0.0.{n}", **config) for n in (2, 3)]
    nodes.meet(first, *others)
    victim, *survivors = closer_first(nodes, first, *others)
    if which == "another":
        victim, survivors[0] = survivors[0], victim

    victim.kill()
    for one in survivors:
        assert wait_for_waiting(one) < 3 * TTL
    replacement = nodes.process(3, 3, "127.0.0.4")
    assert len(nodes.meet(replacement, *survivors)) == 3


@pytest.mark.measures
def test_how_soon_a_killed_node_is_missed(new_nodes):
    """
    The survivors know within the time to live and two seconds.
    """
    victim, *survivors = [new_nodes.process(3, 3, f"127.0.0.{n}") for n in (1, 2, 3)]
    new_nodes.meet(victim, *survivors)

    victim.kill()
    took = max(wait_for_waiting(one) for one in survivors)

    assert took < TTL + 2


def test_a_round_after_a_loss_has_a_last_call_of_its_own(new_nodes, caplog):
    """
    `rejoin_last_call_timeout` counts instead of `last_call_timeout` then.
    """
    config = {"last_call_timeout": 60, "rejoin_last_call_timeout": 0}
    survivor = new_nodes.make(1, 2, **config)
    victim = new_nodes.process(1, 2, **config)
    new_nodes.meet(survivor, victim)

    victim.kill()
    wait_for_waiting(survivor)

    assert len(new_nodes.meet(survivor, seconds=30)) == 1
    lines = [line for line in caplog.messages if "has lost" in line]
    assert lines == [
        (
            f"Round 0 of '{new_nodes.run_id}' has lost 1 of its 2 nodes (127.0.0.1); its "
            "other nodes meet again (on_node_loss=restart)."
        )
    ]


def test_lost_nodes_ignored(new_nodes, caplog):
    """
    With `on_node_loss=ignore` a lost node alone is no reason, as in torch.
    """
    # So that neither begins without the other.
    config = {"last_call_timeout": 5}
    survivor = new_nodes.make(1, 3, on_node_loss="ignore", **config)
    victim = new_nodes.process(1, 3, **config)
    new_nodes.meet(survivor, victim)

    victim.kill()
    wait_until("its end", lambda: len(live(new_nodes)) == 1)
    said = "1 of its 2 nodes (127.0.0.1); it goes on (on_node_loss=ignore)"
    wait_until("a line", lambda: said in caplog.text)
    time.sleep(1)

    assert survivor.num_nodes_waiting() == 0
    late = new_nodes.joining(new_nodes.make(1, 3, **config))
    wait_for_waiting(survivor)
    late += new_nodes.joining(survivor)
    agreed([one.result(SOON) for one in late])


def test_a_paused_node_knows_that_it_is_out(new_nodes):
    """
    Who sleeps for longer than its lease says that it is out, and joins as a new node.
    """
    survivor = new_nodes.make(2, 2)
    sleeper = new_nodes.process(2, 2)
    new_nodes.meet(survivor, sleeper)
    before = live(new_nodes)

    with sleeper.paused():
        wait_for_waiting(survivor)
    wait_until("the sleeper to know", lambda: sleeper.num_nodes_waiting() == 1)
    wait_until(
        "its words",
        lambda: [line for line in sleeper.said() if "This node is out" in line],
    )

    infos = new_nodes.meet(survivor, sleeper)
    assert infos[0].number == 1
    assert len(set(live(new_nodes)) - set(before)) == 1


def test_a_node_that_starts_again_in_its_place(new_nodes):
    """
    Who starts where another was killed need not wait until its lease expires.
    """
    config = {"keep_alive_interval": 20}
    survivor = new_nodes.make(2, 2, "127.0.0.1", **config)
    victim = new_nodes.process(2, 2, "127.0.0.2", **config)
    new_nodes.meet(survivor, victim)

    victim.kill()
    (again,) = new_nodes.joining(new_nodes.process(2, 2, "127.0.0.2", **config))
    assert wait_for_waiting(survivor) < 30
    (joined,) = new_nodes.joining(survivor)

    assert len(agreed([again.result(SOON), joined.result(SOON)])) == 2


def test_nodes_that_live_in_one_place(new_nodes):
    """
    Nodes that have all in common but live don't take each other for dead.
    """
    handlers = [new_nodes.process(3, 3) for _ in range(3)]
    new_nodes.meet(*handlers)
    spare = new_nodes.process(3, 3)
    new_nodes.joining(spare)

    wait_until("the spare", lambda: len(live(new_nodes)) == 4)
    time.sleep(1)

    assert [one.num_nodes_waiting() for one in handlers] == [0, 0, 0]
    assert len(live(new_nodes)) == 4


# -- ending -------------------------------------------------------------------------


def test_who_finishes_has_not_died(new_nodes):
    """
    After one has closed the run the others go on, with nobody waiting.
    """
    handlers = new_nodes.several(3)
    new_nodes.meet(*handlers)

    assert handlers[0].shutdown()
    time.sleep(TTL + 1)

    assert [one.num_nodes_waiting() for one in handlers[1:]] == [0, 0]
    assert all(one.is_closed() for one in handlers[1:])
    late = new_nodes.make(1, 4)
    assert late.is_closed()
    with pytest.raises(RendezvousClosedError, match="free again when the last"):
        late.next_rendezvous()
    assert all(one.shutdown() for one in handlers[1:])


def test_an_agent_that_has_finished_closes_the_run(new_nodes):
    """
    When an agent begins to wait for the others at its end, nobody else joins any more.
    """
    handlers = new_nodes.several(2, most=3)
    info, _ = new_nodes.meet(*handlers)

    info.store.add("torchelastic/agent/terminal_state/num_members", 1)

    wait_until("all to know", lambda: all(one.is_closed() for one in handlers))
    with pytest.raises(RendezvousClosedError):
        new_nodes.make(2, 3).next_rendezvous()
    assert [one.num_nodes_waiting() for one in handlers] == [0, 0]
    assert all(one.shutdown() for one in handlers)


def test_a_closed_run_without_nodes_is_a_leftover(nodes):
    """
    The id of a run is free when its last node has ended; numbers go on.
    """
    handlers = nodes.several(2)
    nodes.meet(*handlers)
    assert all(one.shutdown() for one in handlers)
    assert "c/closed" in keys_of(nodes)

    again = nodes.several(2)

    assert nodes.meet(*again)[0].number == 1
    assert "c/closed" not in keys_of(nodes)


def test_a_spare_ends_in_good_order(new_nodes):
    """
    When the run is closed a spare ends with torch's words for that.
    """
    member, spare = (new_nodes.make(1, 1) for _ in range(2))
    new_nodes.meet(member)
    (waiting,) = new_nodes.joining(spare)
    wait_until("the spare", lambda: len(live(new_nodes)) == 2)

    member.set_closed()

    with pytest.raises(RendezvousGracefulExitError, match="is closed, terminating"):
        waiting.result(SOON)


def test_who_joins_again_is_no_spare(new_nodes):
    """
    Who has left a full round before the others is told that the run is closed.
    """
    leaving, closing = handlers = new_nodes.several(2)
    new_nodes.meet(*handlers)
    (joining,) = new_nodes.joining(leaving)
    wait_for_waiting(closing)
    closing.set_closed()

    with pytest.raises(RendezvousClosedError):
        joining.result(SOON)


def test_who_waits_is_told_of_the_end(new_nodes):
    """
    Who waits for a round when the run is closed gets an error at once.
    """
    waiting, closing = (new_nodes.make(2, 2) for _ in range(2))
    (joining,) = new_nodes.joining(waiting)
    wait_until("the node", lambda: live(new_nodes))

    closing.set_closed()

    with pytest.raises(RendezvousClosedError):
        joining.result(AT_ONCE)
    wait_until("its end", lambda: not live(new_nodes))


def test_nobody_else_comes(new_nodes):
    """
    When the time is up the error says how far it got, and the node is gone.
    """
    handler = new_nodes.make(2, 3, join_timeout=5)

    with pytest.raises(
        RendezvousTimeoutError,
        match=r"was not joined in 5 s \(join_timeout\): .*2 to 3 .*round 0",
    ):
        handler.next_rendezvous()

    assert not live(new_nodes)


def test_what_stays_goes_away_with_the_store(new_nodes):
    """
    What a job leaves behind hangs on the lease of its store.
    """
    handlers = new_nodes.several(2, store_ttl=6)
    new_nodes.meet(*handlers)
    assert all(one.shutdown() for one in handlers)
    assert set(keys_of(new_nodes)) == {"c/closed", "c/round", "c/table", "names"}

    wait_until("the keys to go away", lambda: not keys_of(new_nodes))


def test_a_job_outlives_the_time_to_live_of_its_store(new_nodes):
    """
    While a node lives what it has stored does, too.
    """
    handlers = new_nodes.several(2, store_ttl=5)
    info, _ = new_nodes.meet(*handlers)
    info.store.set("key", "value")

    time.sleep(8)

    assert info.store.check(["key"])
    assert "c/round" in keys_of(new_nodes)


def test_a_handler_that_nobody_holds(new_nodes, no_leaked_threads, no_leaked_sockets):
    """
    With the handler its node ends, and its threads and sockets.
    """
    from etcd_rendezvous import create_handler
    from support.live import parameters

    config = {"keep_alive_interval": 20}
    handler = create_handler(
        parameters(new_nodes.endpoint, new_nodes.run_id, 1, 1, **config)
    )
    client = handler._node.client
    handler.next_rendezvous()
    assert len(live(new_nodes)) == 1

    del handler
    gc.collect()

    # A thread may have held it just then.
    wait_until("its end", lambda: not live(new_nodes), seconds=10)
    client.close()


def test_a_handler_that_is_used_again(
    no_leaked_threads, no_leaked_sockets, new_nodes, make_proxy
):
    """
    What a join has begun that gave up ends, also if the handler joins again.
    """
    from etcd_rendezvous import create_handler
    from support.live import parameters

    proxy = make_proxy(new_nodes.endpoint)
    handler = create_handler(
        parameters(proxy.endpoint, new_nodes.run_id, 1, 1, join_timeout=1)
    )
    slow = proxy.delay(3.0, match="/v3/watch")
    with pytest.raises((RendezvousConnectionError, RendezvousTimeoutError)):
        handler.next_rendezvous()
    slow.cancel()

    handler._settings = replace(handler._settings, join_timeout=20)
    handler.next_rendezvous()
    handler.shutdown()
    handler._node.client.close()
    handler._server = None  # What was logged may hold the handler still.


def test_a_rank_0_that_can_not_serve(new_nodes):
    """
    Who fails after its round has completed leaves it to the others.
    """
    # So that neither begins without the other.
    one, two = new_nodes.several(2, least=1, last_call_timeout=20)

    def fail(*_):
        raise OSError("no store today")

    one._create_tcp_store_server = fail
    joining = new_nodes.joining(one, two)
    with pytest.raises(OSError, match="no store today"):
        joining[0].result(SOON)
    assert joining[1].result(SOON).world_size == 2

    wait_for_waiting(two)


def test_who_is_not_in_the_run_asks_etcd(new_nodes):
    """
    A handler that does not watch the run remembers nothing of it.
    """
    first, other, again = (new_nodes.make(1, 1) for _ in range(3))
    new_nodes.meet(first)
    other.set_closed()
    assert other.is_closed()
    assert first.shutdown()
    new_nodes.meet(again)

    assert not other.is_closed()
    assert not first.is_closed()
    assert first.shutdown()  # Once more: that closes nobody else's run.
    assert not again.is_closed()
    other.set_closed()
    wait_until("the end", again.is_closed)


def test_a_fork_ends_nothing(new_nodes):
    """
    A child that ends as Python does leaves its parent's node alone.
    """
    handler = new_nodes.make(1, 1)
    new_nodes.meet(handler)
    before = live(new_nodes)

    pid = os.fork()
    if pid == 0:
        try:
            handler._node.withdraw(1.0)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    assert live(new_nodes) == before
    assert handler.num_nodes_waiting() == 0


# -- what etcd may suffer -----------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_an_etcd_that_is_away_ends_no_round(own_server, own_nodes, how, caplog):
    """
    Longer than any lease: the round goes on, no node is told to join again.
    """
    handlers = own_nodes.several(3)
    own_nodes.meet(*handlers)
    before = live(own_nodes)
    waiting = set()

    def watch(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            started = time.monotonic()
            waiting.update(one.num_nodes_waiting() for one in handlers)
            assert time.monotonic() - started < 3  # Asking etcd would take longer.
            time.sleep(0.1)

    if how == "killed":
        own_server.kill()
        watch(TTL + 3)
        own_server.restart()
    else:
        own_server.pause()
        watch(TTL + 3)
        own_server.resume()
    watch(TTL + 2)

    assert waiting == {0}
    assert set(live(own_nodes)) == set(before)
    assert [line for line in caplog.messages if "etcd is away; the running" in line]
    wait_until(
        "a line",
        lambda: [
            line for line in caplog.messages if "answers" in line or "is back" in line
        ],
    )
    assert own_nodes.meet(*handlers)[0].number == 1


def test_a_node_that_is_lost_while_etcd_is_away(own_server, own_nodes):
    """
    After an outage those who do not come back in time are lost.
    """
    handlers = own_nodes.several(3)
    survivors, victim = handlers[:2], own_nodes.process(3, 3, "127.0.0.9")
    own_nodes.meet(*survivors, victim)

    own_server.pause()
    time.sleep(TTL + 2)
    victim.kill()
    resumed = time.monotonic()
    own_server.resume()

    for one in survivors:
        wait_for_waiting(one)
        assert time.monotonic() - resumed > 0.5


def test_an_etcd_that_lost_its_data(own_server, own_nodes):
    """
    The nodes know that they are out, and meet again.
    """
    handlers = own_nodes.several(2)
    own_nodes.meet(*handlers)

    own_server.kill()
    shutil.rmtree(own_server.data_dir / "member")
    own_server.restart()

    for one in handlers:
        assert wait_for_waiting(one) < 20
    assert own_nodes.meet(*handlers)[0].number == 0


def test_an_etcd_that_is_restored(own_server, own_nodes, tmp_path):
    """
    What etcd had when it was saved counts again: the nodes meet again, a late one, too.
    """
    handlers = own_nodes.several(2, most=3)
    own_nodes.meet(*handlers)
    own_server.kill()
    shutil.copytree(own_server.data_dir / "member", tmp_path / "saved")
    own_server.restart()
    for _ in range(3):
        last = own_nodes.meet(*handlers)[0].number

    own_server.kill()
    shutil.rmtree(own_server.data_dir / "member")
    shutil.copytree(tmp_path / "saved", own_server.data_dir / "member")
    own_server.restart()
    joining = own_nodes.joining(own_nodes.make(2, 3, "127.0.0.7"))
    for one in handlers:
        assert wait_for_waiting(one) < 20
    joining += own_nodes.joining(*handlers)

    assert agreed([one.result(SOON) for one in joining])[0].number < last


def test_what_somebody_else_writes_ends_no_round(new_nodes):
    """
    The running round does without a key that was spoilt.
    """
    handlers = new_nodes.several(2)
    new_nodes.meet(*handlers)

    path = f"/torch/elastic/rendezvous/{new_nodes.run_id}/live/c/round"
    with EtcdClient(new_nodes.endpoint) as client:
        client.put(path, "[]")
    wait_until("all to see it", lambda: all(h._node.view.corrupt for h in handlers))

    assert [one.num_nodes_waiting() for one in handlers] == [0, 0]


def test_joining_waits_for_etcd(own_server, own_nodes):
    """
    Who joins while etcd is away waits for it; until its time is up.
    """
    late = own_nodes.make(1, 1, join_timeout=30)
    hasty = own_nodes.make(1, 1, join_timeout=2)
    own_server.kill()

    (joining,) = own_nodes.joining(late)
    with pytest.raises(RendezvousConnectionError) as caught:
        hasty.next_rendezvous()
    assert "connection refused" in str(caught.value.__cause__)
    own_server.restart()

    assert joining.result(SOON).rank == 0


def test_a_lost_leader_in_mid_round(make_cluster, run_id):
    """
    The round completes although etcd's leader is killed while nodes join.
    """
    cluster = make_cluster()
    with Nodes(cluster.get_endpoint(), run_id) as nodes:
        handlers = nodes.several(3)
        joining = nodes.joining(*handlers[:2])
        wait_until("two nodes", lambda: len(live(nodes)) == 2)
        cluster.leader().kill()
        joining += nodes.joining(handlers[2])

        agreed([one.result(30) for one in joining])
        assert [one.num_nodes_waiting() for one in handlers] == [0, 0, 0]


def test_what_is_not_ours(new_nodes):
    """
    A round that somebody else has written is refused in a sentence.
    """
    path = f"/torch/elastic/rendezvous/{new_nodes.run_id}/live/c"
    with EtcdClient(new_nodes.endpoint) as client:
        client.put(f"{path}/round", "theirs")
        client.put(f"{path}/table", "theirs")

    with pytest.raises(RendezvousStateError, match="c/round' of the rendezvous"):
        new_nodes.make(1, 1).next_rendezvous()


# -- what it costs ------------------------------------------------------------------


def test_an_idle_round_writes_nothing(new_nodes):
    """
    Nothing grows in etcd, and a node has two threads and two sockets, the closer more.
    """
    before = set(threading.enumerate())
    one = new_nodes.make(2, 2, "127.0.0.1", keep_alive_interval=1)
    two = new_nodes.process(2, 2, "127.0.0.2", keep_alive_interval=1)
    (joining,) = new_nodes.joining(one)
    wait_until("the closer", lambda: "c/closer" in keys_of(new_nodes))
    (other,) = new_nodes.joining(two)
    agreed([joining.result(SOON), other.result(SOON)])
    with EtcdClient(new_nodes.endpoint) as client:
        _, started = client.range("key")
        time.sleep(5)
        _, ended = client.range("key")

    assert ended == started
    ours = {
        thread.name
        for thread in set(threading.enumerate()) - before
        if thread.name.startswith("etcd-rendezvous")
    }
    assert ours == {f"etcd-rendezvous {n}" for n in ("watch", "keep-alive", "closer")}
    port = int(new_nodes.endpoint.rpartition(":")[2])
    for pid, most in ((os.getpid(), 4), (two.pid, 2)):
        sockets = [
            found
            for found in psutil.Process(pid).net_connections(kind="tcp")
            if found.raddr and found.raddr.port == port
        ]
        assert len(sockets) <= most


# -- what is said -------------------------------------------------------------------


def test_who_waits_says_what_for(new_nodes, caplog):
    """
    Whoever waits for more than 10 s says who is there, and what is missing.
    """
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    handlers = new_nodes.several(3)
    joining = new_nodes.joining(*handlers[:2])

    wait_until(
        "a line",
        lambda: [one for one in caplog.records if "Waiting to join" in one.message],
    )

    lines = [one.message for one in caplog.records if "Waiting to join" in one.message]
    assert all(
        "2 joined (127.0.0.1, 127.0.0.2), 3 needed for round 0" in line
        for line in lines
    )
    assert "s left" in lines[0]
    joining += new_nodes.joining(handlers[2])
    agreed([one.result(SOON) for one in joining])


def test_who_is_missing_of_the_last_round(new_nodes, caplog):
    """
    After a loss whoever waits says who was there and is missing; after the loss of the
    same node again, too.
    """
    caplog.set_level(logging.WARNING, "etcd_rendezvous")
    survivor = new_nodes.make(2, 2, "127.0.0.1")
    victim = new_nodes.process(2, 2, "127.0.0.2")
    new_nodes.meet(survivor, victim)
    said = []
    for _ in range(2):
        caplog.clear()
        victim.kill()
        wait_for_waiting(survivor)
        (joining,) = new_nodes.joining(survivor)
        said += wait_until(
            "a line",
            lambda: [one.message for one in caplog.records if "Waiting" in one.message],
        )[:1]
        victim = new_nodes.process(2, 2, "127.0.0.2")
        (other,) = new_nodes.joining(victim)
        agreed([joining.result(SOON), other.result(SOON)])

    for number, line in enumerate(said):
        assert f"1 joined (127.0.0.1), 2 needed for round {number + 1}" in line
        assert f"1 of round {number} is missing (127.0.0.2)" in line


def test_events_are_recorded_as_torch_records_them(new_nodes, monkeypatch):
    """
    Whoever listens to torch's events of the rendezvous hears of ours.
    """
    from etcd_rendezvous._live import handler as module

    events = []
    monkeypatch.setattr(
        module, "construct_and_record_rdzv_event", lambda **event: events.append(event)
    )
    handler = new_nodes.make(1, 1)

    new_nodes.meet(handler)
    wait_until("a heartbeat", lambda: len(events) > 2)
    handler.shutdown()

    said = [event["message"] for event in events]
    assert "attempts to join the next round" in said[0]
    assert "has joined round 0 of the rendezvous" in said[1]
    assert "as rank 0 in a world of size 1" in said[1]
    assert "keep-alive heartbeat" in said[2]
    assert "has closed the rendezvous" in said[-1]
    assert events[1]["rank"] == 0
    assert {event["run_id"] for event in events} == {new_nodes.run_id}


def test_a_signal_closes_nothing(new_nodes):
    """
    An agent that a signal ends takes its node along, and closes nothing.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    handlers = new_nodes.several(2)
    new_nodes.meet(*handlers)

    try:
        raise SignalException("signal", signal.SIGTERM)
    except SignalException:
        assert not handlers[0].shutdown()

    assert len(live(new_nodes)) == 1
    wait_for_waiting(handlers[1])
    assert not handlers[1].is_closed()
