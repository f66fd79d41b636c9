"""One target with all its parts, against a real server: what each sees of an outage comes together in one record."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from sidecar.core.availability.outages import over
from sidecar.core.evidence import Observation, Outage
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import PostgresServer
from sidecar.metrics import Metrics
from sidecar.probes import pool as pool_module
from sidecar.settings.model import Settings
from sidecar.target import Target
from testing.pictures import Picture
from testing.watching import CULL, demote, eventually, execute, reinstate

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]

POOLED = 3


@pytest.fixture(autouse=True)
def _quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "ROUND_EVERY_SECONDS", 0.3)


class Running:
    """A target whose tasks run, and what it has kept."""

    def __init__(self, url: str) -> None:
        settings = {
            "url": url,
            "pool": {"size": POOLED},
            "idle": {"floor": 60, "deadline": 5},  # no rest ends while a test lasts
            "heartbeat": {"every": 0.3, "deadline": 5, "reconnect_every": 0.1},
        }
        self.records: list[Observation | Outage] = []
        self._metrics = Metrics(Picture({}), ["db"])
        self.target = Target(
            "db",
            Settings.model_validate({"targets": {"db": settings}}),
            metrics=self._metrics,
            keep=self.records.append,
        )

    @property
    def versions(self) -> list[Outage]:
        return [record for record in self.records if isinstance(record, Outage)]

    @property
    def outages(self) -> list[Outage]:
        return list({outage.id: outage for outage in self.versions}.values())

    @property
    def healthy(self) -> bool:
        """Whether writing is possible, and all connections of the pool are open."""
        view = self.target.view
        return view.readiness.reason == "the database is reachable" and self.pooled == POOLED

    @property
    def pooled(self) -> int:
        return sum(count for (role, _), count in self.target.view.connections.items() if role == "pool")

    def counted(self, metric: str) -> float:
        exposition = self._metrics.render("")[0].decode()
        found = re.search(rf'^connection_health_{metric}{{target="db"}} (\S+)$', exposition, re.M)
        assert found is not None
        return float(found[1])

    async def recovered(self) -> Outage:
        """The one outage that was."""
        await eventually(lambda: self.versions and all(map(over, self.outages)) and self.healthy)
        (outage,) = self.outages
        return outage


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Running]:
    one = Running(url)
    tasks = [asyncio.create_task(work, name=name) for name, work in one.target.tasks()]
    try:
        await eventually(lambda: one.healthy)
        yield one
        assert not any(task.done() for task in tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await one.target.close()


async def test_stale_writers_are_counted_and_the_advice_warns_of_them(make_server: MakeServer) -> None:
    """Every pooled connection goes on to answer, and none could write: no ping finds them, the report does."""
    server = await asyncio.to_thread(make_server)
    async with running(server.url()) as one:
        assert one.counted("stale_writers_total") == 0
        await demote(server.url())
        await eventually(lambda: one.counted("stale_writers_total") == POOLED)
        assert one.pooled == POOLED
        assert one.counted("pre_ping_failures_total") == 0
        await reinstate(server.url())
        outage = await one.recovered()
        assert outage.kind == "role_flip"
        assert outage.connections_lost == {"stale_writer": POOLED}
        one.target.refresh()
        warnings = {remark.code: remark.text for remark in one.target.view.recommendation.warnings}
        assert f"({POOLED} so far)" in warnings["stale_writer"]
        assert "handle_error listener" in warnings["stale_writer"]


async def test_a_recovery_costs_each_connection_one_opening(postgres: PostgresServer, make_path: MakePath) -> None:
    """Nobody tries again while it is already back, and nobody opens more than is held."""
    path = await make_path(postgres)
    async with running(postgres.url(port=path.port)) as one:
        await eventually(lambda: path.connections == sum(one.target.view.connections.values()))
        held = path.connections
        path.refuse()
        path.reset_all()
        await eventually(lambda: one.versions)
        await asyncio.sleep(1)  # some rounds of vain attempts
        before = path.accepted
        await path.accept()
        await one.recovered()
        await eventually(lambda: path.connections >= held)
        opened = path.accepted - before
    # Beside them: looks at the door, and of attempts under way together all but the first.
    assert held <= opened <= 2 * held


async def test_connections_of_the_pool_lost_in_an_outage_are_in_its_record(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    async with running(server.url()) as one:
        await execute(server.url(), CULL)
        # The pool finds its own only when it next uses them, and the record of what is over grows by them.
        await eventually(lambda: one.outages and sum(one.outages[0].connections_lost.values()) == 1 + POOLED)
        outage = await one.recovered()
    assert outage.kind == "cull"
    # The session heard why. So does the pool of a connection in use; of one at rest the driver keeps it to itself.
    assert outage.connections_lost["fatal"] >= 1
    assert outage.connections_lost.keys() <= {"fatal", "closed"}
