# SPDX-License-Identifier: BSD-3-Clause
"""
Processes that make process groups of torch, again and again, on a store of etcd.

    with Workers(4) as workers:
        workers.run(api="v3", endpoint=…, prefix=…, first=0, last=50)

Run as a script it is such a process: it reads orders on standard input and answers on
standard output, one line of JSON each.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

_LIMIT = timedelta(seconds=30)


class Workers:
    """
    Some processes, each with a rank, that do the same at the same time.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        from support.torchrun import clean_environment

        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, str(rank), str(size)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=clean_environment(),
            )
            for rank in range(size)
        ]

    def run(self, seconds: float = 110.0, **order: Any) -> list[dict[str, Any]]:
        """
        Give all of them an order, and return their answers.

        Raises:
            AssertionError: One has failed, or they do not answer in time; then all
                are killed.
        """
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        lines: queue.Queue[tuple[int, str]] = queue.Queue()
        threads = [
            threading.Thread(target=_read, args=(rank, process, lines))
            for rank, process in enumerate(self._processes)
        ]
        for thread in threads:
            thread.start()
        try:
            told = dict(lines.get(timeout=seconds) for _ in threads)
        except queue.Empty:
            self.close()
            raise AssertionError(f"No answer within {seconds:.0f} s.") from None
        finally:
            for thread in threads:
                thread.join(10)
        answers = [
            json.loads(told[rank] or f'{{"error": "Rank {rank} has ended."}}')
            for rank in sorted(told)
        ]
        for answer in answers:
            assert "error" not in answer, answer["error"]
        return answers

    def close(self) -> None:
        """
        Kill them.
        """
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _read(
    rank: int, process: subprocess.Popen[str], lines: queue.Queue[tuple[int, str]]
) -> None:
    lines.put((rank, process.stdout.readline()))


# -- what they run -------------------------------------------------------------------


def work(order: dict[str, Any], rank: int, size: int) -> dict[str, Any]:
    """
    Make and end process groups one after another, and sum over each.
    """
    from etcd_rendezvous import EtcdClient, EtcdStore

    os.environ["TORCH_DIST_INIT_BARRIER"] = order.get("init_barrier", "0")
    if order["api"] == "v3":
        client = EtcdClient(order["endpoint"], read_timeout=20)
    else:
        import etcd

        host, port = order["endpoint"].rsplit(":", 1)
        client = etcd.Client(host, int(port), read_timeout=20)
    store = EtcdStore(client, order["prefix"], _LIMIT)
    try:
        sums = [
            make_group(store, number, rank, size) for number in range(order["groups"])
        ]
    finally:
        if order["api"] == "v3":
            client.close()
    return {"sums": sums}


def make_group(store: Any, number: int, rank: int, size: int) -> list[int]:
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        store=dist.PrefixStore(str(number), store),
        rank=rank,
        world_size=size,
        timeout=_LIMIT,
    )
    total = torch.tensor([rank + 1 + number])
    dist.all_reduce(total)
    dist.barrier()
    told = [int(total)]
    if number == 0:
        # Another group on the same store, and all that names ranks.
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        part = torch.tensor([rank])
        dist.all_reduce(part, group=pairs[rank // 2])
        told.append(int(part))
        dist.monitored_barrier(timeout=_LIMIT)
    dist.destroy_process_group()
    return told


def main() -> None:
    rank, size = map(int, sys.argv[1:])
    # What torch says on standard output is not an answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = work(json.loads(line), rank, size)
        except Exception:
            answer = {"error": f"Rank {rank}: {traceback.format_exc()}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
