"""Trying settings out: what is left behind when it is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.core.advice.recommendation import SetupName
from sidecar.core.advice.trials import Attempt, Setup
from sidecar.demo.server import PostgresServer
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.probes.trial import AT_A_TIME, Trials, try_out
from sidecar.settings.model import TargetSettings


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():  # noqa: ASYNC110 - nobody else tells
            await asyncio.sleep(0.01)


def querying() -> bool:
    return any(task.get_name() == "trial" for task in asyncio.all_tasks())


async def test_given_up_while_a_ping_hangs_it_leaves_no_connection(postgres: PostgresServer, make_path: Any) -> None:
    path = await make_path(postgres, "silent", idle_limit=0.5)
    driver = PostgresDriver(TargetSettings.model_validate({"url": postgres.url(port=path.port)}))
    setup = Setup(name="pre_ping_only", pool_recycle=-1, pool_pre_ping=True)
    trying = asyncio.create_task(try_out(driver, setup, 1.0, patience_seconds=60))
    await until(lambda: path.accepted > 0 and not querying())
    await until(querying)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    # The dropped connection fails the ping, and a pool left to itself would go on to open another.
    await until(lambda: path.connections == 0 and not querying())


async def test_a_trial_for_which_there_is_no_room_any_more_is_void_at_once(postgres: PostgresServer) -> None:
    """And due again: it is run anew as soon as there is room."""
    driver = PostgresDriver(TargetSettings.model_validate({"url": postgres.url()}))
    attempts = [
        Attempt(setup=Setup(name=name, pool_recycle=-1, pool_pre_ping=False), rest_seconds=60)
        for name in (SetupName.DEFAULTS, SetupName.RECOMMENDED, SetupName.PRE_PING_ONLY)
    ]
    room, ended = 2, []
    trials = Trials("db", driver, due=lambda _results, _now: attempts, room=lambda: room, began=lambda: None,
                    ended=ended.append)  # fmt: skip
    running = asyncio.create_task(trials.run())
    try:
        await until(lambda: len(trials.pids) == 2)
        assert (trials.running, trials.wished) == (2, AT_A_TIME)
        kept = trials.pids
        room = 1
        trials.fit()
        assert len(trials.pids) == trials.running == 1
        assert trials.pids < kept
        room = 0
        trials.fit()
        assert (trials.running, trials.pids) == (0, set())
        room = 1
        await until(lambda: len(trials.pids) == 1)
        assert not running.done()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert not ended
