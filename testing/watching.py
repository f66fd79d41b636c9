"""A watch run by a test, its records held against the truth, and what is done to the database meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg

from sidecar.core.availability.outages import over
from sidecar.core.availability.states import State
from sidecar.core.budget import SessionTable
from sidecar.core.evidence import Aged, Cause, Downtime, Interval, Outage
from sidecar.core.identity import Identity
from sidecar.core.signals import ServerSignal
from sidecar.probes.availability import AvailabilityRunner
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import Settings

EVERY, DEADLINE, RECONNECT = 0.4, 0.8, 0.25
DOOR = 1.0  # much more often than in earnest, so that tests of the connect path need not wait
PATIENCE = 60.0  # for what must happen; nothing is measured by it
TICK = 0.01  # the kernel's coarse clock, from which the truth about starts is taken
LOOK = 0.005  # how often the event loop's lag is measured
IDLE_LAG = 0.002  # no more than that is no sign of a busy machine
VISIBLE = RECONNECT + 0.05  # how wide the interval of what shows itself may be, in seconds
SILENT = EVERY + DEADLINE  # and of what only the next question finds


CULL = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


async def execute(url: str, *statements: str) -> None:
    driver = await asyncpg.connect(url)
    try:
        for statement in statements:
            await driver.execute(statement)
    finally:
        await driver.close()


async def demote(url: str) -> None:
    """What clients see of a demotion that leaves their connections open: no writes from one moment to the next."""
    await execute(url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")


async def reinstate(url: str) -> None:
    """Undo `demote`."""
    await execute(
        url,
        "SET default_transaction_read_only = off",
        "ALTER SYSTEM RESET default_transaction_read_only",
        "SELECT pg_reload_conf()",
    )


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - the watch has no event for every change
            await asyncio.sleep(0.005)


class Watched:
    """A watch, and what it told."""

    def __init__(self, url: str, **target: Any) -> None:
        heartbeat = {"every": EVERY, "deadline": DEADLINE, "reconnect_every": RECONNECT, "door_every": DOOR}
        target["heartbeat"] = heartbeat | target.get("heartbeat", {})
        settings = Settings.model_validate({"targets": {"db": {"url": url, **target}}})
        self.versions: list[Outage] = []
        self.causes: list[Cause] = []
        self.aged: list[Aged] = []
        self.tables: list[tuple[SessionTable, Identity]] = []
        self.refused: list[ServerSignal] = []
        self.lags: list[tuple[float, float]] = []  # wall clock, and by how much the event loop was late
        self.watch = AvailabilityRunner(
            "db",
            settings.targets["db"],
            PostgresDriver(settings.targets["db"]),
            on_outage=self.versions.append,
            on_disturbed=lambda disturbed: self.causes.append(disturbed.cause),
            on_aged=self.aged.append,
            on_table=lambda table, identity: self.tables.append((table, identity)),
            on_refused=self.refused.append,
        )

    async def measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK
            await asyncio.sleep(LOOK)
            if (lag := loop.time() - due) > IDLE_LAG:
                self.lags.append((time.time(), lag))

    def allowance(self, interval: Interval) -> float:
        """How much wider this interval may be on a busy machine: the lag then, and as much again for the server."""
        around = (interval.after - RECONNECT, interval.until + RECONNECT)
        return 2 * sum(lag for at, lag in self.lags if around[0] <= at <= around[1])

    @property
    def outages(self) -> list[Outage]:
        return list({outage.id: outage for outage in self.versions}.values())

    @property
    def state(self) -> State:
        return self.watch.status.state

    async def until(self, state: State) -> None:
        await eventually(lambda: self.state is state)

    async def recovered(self, kind: str) -> Outage:
        """The one outage that was, all being well again and staying so."""
        await eventually(lambda: self.versions and all(map(over, self.outages)) and self.state is State.HEALTHY)
        await asyncio.sleep(2 * EVERY)
        (outage,) = self.outages
        assert outage.kind == kind, outage
        assert over(outage)
        return outage

    def holds(
        self,
        downtime: Downtime | None,
        began: float | tuple[float, float],
        ended: float | tuple[float, float],
        *,
        widths: tuple[float, float] = (VISIBLE, VISIBLE),
    ) -> None:
        """The truth lies inside; and the intervals are not so wide that this says nothing.

        Of `began` and `ended` sometimes only earliest and latest are known. A single `began` is taken just before the
        database is told to go. `widths` are how wide beginning and end may be, in seconds.
        """
        assert downtime is not None
        assert downtime.ended is not None
        if isinstance(began, tuple):
            assert downtime.began.after <= began[1]
            assert downtime.began.until >= began[0]
        else:
            assert downtime.began.after <= began <= downtime.began.until
        earliest, latest = ended if isinstance(ended, tuple) else (ended, ended)
        assert downtime.ended.after - TICK <= latest
        assert downtime.ended.until + TICK >= earliest
        for interval, width in zip((downtime.began, downtime.ended), widths, strict=True):
            assert interval.width_seconds <= width + TICK + self.allowance(interval)


@contextlib.asynccontextmanager
async def watching(url: str, state: State = State.HEALTHY, **target: Any) -> AsyncIterator[Watched]:
    watched = Watched(url, **target)
    task = asyncio.create_task(watched.watch.run())
    lag = asyncio.create_task(watched.measure_lag())
    try:
        await watched.until(state)
        await asyncio.sleep(1.5 * EVERY)  # between two questions
        yield watched
        assert not task.done()
    finally:
        for running in (task, lag):
            running.cancel()
        await asyncio.gather(task, lag, return_exceptions=True)
