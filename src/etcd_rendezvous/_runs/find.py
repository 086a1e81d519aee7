# SPDX-License-Identifier: BSD-3-Clause
"""
Find runs, in whichever of etcd's APIs they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

from .._connect import TORCH_NAME, V3_NAMES, client_of
from .._errors import EtcdError, EtcdProtocolError, EtcdSettingError
from .._requirements import require_python_etcd
from .._settings import Settings
from .in_v3 import read_run, run_ids
from .removal import RemovalV2, RemovalV3
from .report import Report, Run

__all__ = ["Finder"]


def _now() -> datetime:
    return datetime.now(timezone.utc)


class Finder:
    """
    Finds runs, again and again over the same connections.

    Both APIs are looked at where both are served, since each has keys of its own:
    without the name of a backend all that is there is wanted.

    Args:
        settings: Where etcd is.
        backend: The backend whose runs are wanted, None for any.
        silence: The seconds without a heartbeat after which a node of torch's handler
            counts as dead.
        now: The time, with a time zone.
    """

    def __init__(
        self,
        settings: Settings,
        backend: str | None,
        silence: float,
        now: Callable[[], datetime] = _now,
    ) -> None:
        self._settings = settings
        self._backend = backend
        self._silence = silence
        self._now = now
        self._client = client_of(settings)
        self._v2: Any = None

    def close(self) -> None:
        """
        Close the connections.
        """
        self._client.close()

    def find(self, run_id: str | None = None) -> Report:
        """
        Read all runs, or one.

        Args:
            run_id: The run; None for all.

        Raises:
            EtcdSettingError: The run id is empty.
            EtcdError: etcd can't be reached, or refuses.
        """
        if run_id == "":
            raise EtcdSettingError("The run id must not be empty.")
        runs: list[Run] = []
        notes: list[str] = []
        no_v3: EtcdError | None = None
        # Under torch's name v2 is what is spoken where it is served.
        torchs = self._backend == TORCH_NAME and self._serves_v2()
        if not torchs:
            try:
                runs += self._in_v3(run_id)
            except EtcdProtocolError as error:
                absent = error.api_missing and self._backend not in V3_NAMES
                if not (absent and self._serves_v2()):
                    raise
                no_v3 = error
        if torchs or no_v3 is not None or self._backend is None:
            try:
                if torchs or no_v3 is not None or self._serves_v2():
                    runs += self._in_v2(run_id)
            except (EtcdError, ModuleNotFoundError) as error:
                if torchs or no_v3 is not None:
                    raise
                notes.append(f"What is kept with etcd's v2 API was not read: {error}")
        return Report(
            endpoint=str(self._client.last_endpoint),
            key_prefix=self._settings.key_prefix,
            time=self._now(),
            runs=tuple(sorted(runs, key=lambda run: (run.run_id, run.api))),
            notes=tuple(notes),
        )

    def _in_v3(self, run_id: str | None) -> Iterator[Run]:
        prefix = self._settings.key_prefix
        ids = [run_id] if run_id is not None else run_ids(self._client, prefix)
        for one in ids:
            run = read_run(self._client, prefix, one, self._now(), self._silence)
            if run is not None:
                yield run

    def _serves_v2(self) -> bool:
        return self._client.serves_v2(timeout=self._settings.read_timeout)

    def removal(self, run: Run) -> RemovalV2 | RemovalV3:
        """
        Return what can delete a run.

        Args:
            run: The run, as it was found.
        """
        if run.api == "v2":
            return RemovalV2(self._v2_client(), run)
        return RemovalV3(self._client, run)

    def _v2_client(self) -> Any:
        require_python_etcd()
        from .._v2.requests import make_client

        if self._v2 is None:
            self._v2 = make_client(self._settings, self._client.last_endpoint)
        return self._v2

    def _in_v2(self, run_id: str | None) -> list[Run]:
        client = self._v2_client()
        from .in_v2 import read_runs

        prefix = self._settings.key_prefix
        runs = read_runs(client, prefix, self._now(), self._silence)
        return [run for run in runs if run_id in (None, run.run_id)]
