# SPDX-License-Identifier: BSD-3-Clause
"""
The protocol of `etcd-live`, searched at random for what must not be. No server.

`--live-seconds` says for how long. To repeat a run that failed, pass its seed:
`python -m support.livesim SEED` in `tests` tells what happened in it.
"""

from __future__ import annotations

import random
import time

from support.livesim import Run, Violation


def test_nothing_that_must_not_be_is_found(pytestconfig):
    """
    Whatever gets lost, comes late, dies or sleeps: the rounds are what they must be,
    and once all is well again they come to rest.
    """
    end = time.monotonic() + pytestconfig.getoption("--live-seconds")
    seed = random.getrandbits(32)
    completed = 0
    while time.monotonic() < end:
        seed += 1
        run = Run(seed)
        try:
            run.play()
        except Violation as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        completed += len(run.history.rounds)

    assert completed > 20
