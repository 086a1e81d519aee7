# SPDX-License-Identifier: BSD-3-Clause
"""
Nodes of `etcd-live`: handlers in this process, and such in processes that can be killed.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from .torchrun import wait_until

#: Seconds within which what is to happen happens, on a machine that is busy.
SOON = 60.0


def parameters(endpoint, run_id, least=1, most=2, address="127.0.0.1", **config):
    """
    Return parameters of quick nodes: lost after 3 s, and with a last call of 1 s.
    """
    from torch.distributed.elastic.rendezvous import RendezvousParameters

    config = {"last_call_timeout": 1, "keep_alive_interval": 1, **config}
    return RendezvousParameters(
        "etcd-live", endpoint, run_id, least, most, address, **config
    )


class Nodes:
    """
    Nodes of one run; what is left of them ends with this.

    Args:
        endpoint: Where etcd is.
        run_id: The run.
    """

    def __init__(self, endpoint, run_id):
        self.endpoint = endpoint
        self.run_id = run_id
        self._stack = contextlib.ExitStack()
        self._pool = self._stack.enter_context(ThreadPoolExecutor(64))

    def __enter__(self):
        return self

    def __exit__(self, *failure):
        self._stack.close()

    def make(self, least=1, most=2, address="127.0.0.1", *, endpoint=None, **config):
        """
        Make a handler in this process.
        """
        from etcd_rendezvous import create_handler

        handler = create_handler(
            parameters(
                endpoint or self.endpoint, self.run_id, least, most, address, **config
            )
        )
        self._stack.callback(handler._node.withdraw, 1.0)
        return handler

    def several(self, count, **config):
        """
        Make handlers of a round that all of them are needed for.
        """
        config = {"least": count, "most": count, **config}
        return [
            self.make(address=f"127.0.0.{number + 1}", **config)
            for number in range(count)
        ]

    def process(self, least=1, most=2, address="127.0.0.1", *, endpoint=None, **config):
        """
        Start a process with a node.
        """
        process = NodeProcess(
            endpoint or self.endpoint, self.run_id, least, most, address, config
        )
        self._stack.callback(process.kill)
        return process

    def joining(self, *handlers) -> list[Future[Any]]:
        """
        Let handlers and processes join; return what they will.
        """
        return [self._pool.submit(_joined, one) for one in handlers]

    def meet(self, *handlers, seconds=SOON):
        """
        Let handlers and processes join, and return what each got, in the order of ranks.
        """
        infos = [one.result(seconds) for one in self.joining(*handlers)]
        return agreed(infos)


def agreed(infos):
    """
    Return what nodes of one round got, by rank, once they agree.
    """
    infos = sorted(infos, key=lambda info: info.rank)
    assert [info.rank for info in infos] == list(range(len(infos)))
    assert {info.world_size for info in infos} == {len(infos)}
    assert len({info.number for info in infos}) == 1
    where = {
        (info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port)
        for info in infos
    }
    assert len(where) == 1
    return infos


class Told:
    """
    What a node got; what torch's ``RendezvousInfo`` says, and the number of the round.
    """

    def __init__(self, handler, info):
        self.number = handler._node._seat.round.number
        self.rank = info.rank
        self.world_size = info.world_size
        self.bootstrap_store_info = info.bootstrap_store_info


def _joined(one):
    told = one.next_rendezvous()
    if isinstance(told, Told):
        return told  # by a process
    answer = Told(one, told)
    answer.store = told.store
    return answer


class NodeProcess:
    """
    A process with one node, which does as it is told.
    """

    def __init__(self, endpoint, run_id, least, most, address, config):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["etcd_rendezvous._factory"])
        self._ours, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve,
            args=(theirs, endpoint, run_id, least, most, address, config),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        assert self._answer(30) == "ready"

    @property
    def pid(self):
        return self._process.pid

    def _answer(self, seconds):
        assert self._ours.poll(seconds), "the process does not answer"
        answer = self._ours.recv()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def tell(self, what, seconds=60.0):
        """
        Call a method of the handler, and return what that returns.
        """
        self._ours.send(what)
        return self._answer(seconds)

    def next_rendezvous(self):
        return self.tell("next_rendezvous")

    def num_nodes_waiting(self):
        return self.tell("num_nodes_waiting")

    def shutdown(self):
        return self.tell("shutdown")

    def said(self):
        """
        Return the warnings of its log so far.
        """
        return self.tell("said")

    def signal(self, number):
        os.kill(self._process.pid, number)

    @contextlib.contextmanager
    def paused(self):
        """
        Stop it for a while.
        """
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    def kill(self):
        """
        Kill it, and wait for its end.
        """
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._ours.close()


class _Lines(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def _serve(pipe, endpoint, run_id, least, most, address, config):
    lines = _Lines()
    logging.getLogger("etcd_rendezvous").addHandler(lines)
    from etcd_rendezvous import create_handler

    handler = create_handler(
        parameters(endpoint, run_id, least, most, address, **config)
    )
    pipe.send("ready")
    while True:
        try:
            what = pipe.recv()
        except EOFError:
            return
        try:
            answer = lines.lines if what == "said" else getattr(handler, what)()
            pipe.send(Told(handler, answer) if what == "next_rendezvous" else answer)
        except Exception as error:
            pipe.send(error)


def wait_for_waiting(handler, seconds=SOON):
    """
    Wait until a node is told that others wait; return how long that took.
    """
    started = time.monotonic()
    wait_until(
        "nodes that wait",
        lambda: handler.num_nodes_waiting() > 0,
        seconds=seconds,
        every=0.005,
    )
    return time.monotonic() - started
