"""One target with all its parts, against a real server: what each sees of an outage comes together in one record."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sidecar.clock import Clock
from sidecar.core.availability.outages import over
from sidecar.core.evidence import Observation, Outage
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import PostgresServer
from sidecar.metrics import Metrics
from sidecar.settings.model import Settings
from sidecar.sharing import Sharing
from sidecar.target import Target
from testing.pictures import Picture
from testing.watching import CULL, demote, eventually, execute, reinstate

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]

POOLED = 3
PROBES = 4  # what a server of a hundred connections has left for them beside the pool


class Running:
    """A target whose tasks run, and what it has kept."""

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        settings = {
            "url": url,
            "pool": {"size": POOLED},
            "idle": {"connections": PROBES, "floor": 60, "deadline": 5},  # no rest ends while a test lasts
            "heartbeat": {"every": 0.3, "deadline": 5, "reconnect_every": 0.1},
        }
        self.records: list[Observation | Outage] = []
        self._metrics = Metrics(Picture({}), ["db"])
        clock = clock or Clock()
        self.sharing = Sharing(cap=None, monotonic=clock.monotonic, wall=clock.wall)
        self.target = Target(
            "db",
            Settings.model_validate({"targets": {"db": settings}}),
            metrics=self._metrics,
            clock=clock,
            sharing=self.sharing,
            keep=self.records.append,
            pool_round_every_seconds=0.3,
        )

    @property
    def versions(self) -> list[Outage]:
        return [record for record in self.records if isinstance(record, Outage)]

    @property
    def observations(self) -> list[Observation]:
        return [record for record in self.records if isinstance(record, Observation)]

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

    @property
    def probing(self) -> int:
        return sum(probe.state == "resting" for probe in self.target.view.probes)

    async def pool_turned(self) -> None:
        """Each connection has been used some more times."""
        await eventually(lambda: self.counted("pre_ping_seconds_count") > POOLED)

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
async def running(url: str, clock: Clock | None = None) -> AsyncIterator[Running]:
    one = Running(url, clock)
    works = (*one.target.tasks(), ("sharing", one.sharing.run()))
    tasks = [asyncio.create_task(work, name=name) for name, work in works]
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


async def test_evidence_and_outages_are_stamped_alike_when_the_wall_clock_is_set(make_server: MakeServer) -> None:
    """Set by an hour, as by hand. An end of all sessions then makes records of both kinds."""
    hour, ahead = 3600.0, 0.0
    clock = Clock(read_wall=lambda: time.time() + ahead)
    server = await asyncio.to_thread(make_server)
    async with running(server.url(), clock) as one:
        await eventually(lambda: one.probing == PROBES)
        ahead = hour
        clock.follow_wall()
        one.target.refresh()  # as the housekeeping does
        await eventually(lambda: one.target.view.readiness.since > time.time() + hour / 2)  # an answer has come since
        set_at = clock.wall()
        assert set_at > time.time() + hour - 1
        await execute(server.url(), CULL)
        outage = await one.recovered()
        await eventually(lambda: one.observations)
        until = clock.wall()
    assert outage.read is not None
    assert set_at - 1 < outage.read.began.until < until
    for observation in one.observations:
        assert set_at - 1 < observation.at < until


async def test_who_looks_changes_nothing(postgres: PostgresServer) -> None:
    async with running(postgres.url()) as one:
        seen = one.target.view
        await one.pool_turned()
        assert one.target.view.checkout is seen.checkout
        assert one.target.view.recommendation is seen.recommendation
        assert one.target.view.generated_at == seen.generated_at
        one.target.refresh()
        assert one.target.view.checkout is not None
        assert one.target.view.recommendation != seen.recommendation, "what a ping costs is known by now"
