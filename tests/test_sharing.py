"""A process's targets and a real server: what they hold, counted by somebody else in the server's own table."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from sidecar.clock import Clock
from sidecar.core.availability.machine import TABLE_SECONDS
from sidecar.core.budget import BudgetStatus, CeilingKind, Grant, Hindrance, PauseReason, SessionTable, Wish
from sidecar.core.identity import Identity
from sidecar.core.server_budget import Circumstances
from sidecar.core.signals import ServerSignal
from sidecar.demo.server import PostgresServer
from sidecar.metrics import Metrics
from sidecar.settings.model import Settings
from sidecar.sharing import Sharing
from sidecar.target import Target
from testing.pictures import Picture
from testing.watching import eventually, execute

MakeServer = Callable[..., PostgresServer]

COUNT = """
    SELECT application_name, count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() GROUP BY 1
"""


class Counted:
    """The sessions of a server, sampled by a superuser some fifty times a second."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # of each name
        self.most_ours = 0
        self.least_free = 10_000

    async def run(self, url: str, usable: int) -> None:
        connection = await asyncpg.connect(url)
        try:
            while True:
                self.now = Counter({row[0]: row[1] for row in await connection.fetch(COUNT)})
                for name, count in self.now.items():
                    self.most[name] = max(self.most[name], count)
                self.most_ours = max(self.most_ours, self.ours)
                if self.ours:
                    self.least_free = min(self.least_free, usable - self.now.total())
                await asyncio.sleep(0.02)
        finally:
            connection.terminate()

    @property
    def ours(self) -> int:
        return sum(count for name, count in self.now.items() if name.startswith("connhealth/"))

    @property
    def measuring(self) -> int:
        return self.ours - self.now["connhealth/heartbeat"] - self.now["connhealth/look"]


class Process:
    """Targets that share, as in one sidecar."""

    def __init__(self, urls: dict[str, str], cap: int | None = None, **target: Any) -> None:
        heartbeat = {"every": 0.3, "deadline": 2, "reconnect_every": 0.1}
        common = {"heartbeat": heartbeat, "idle": {"floor": 60, "deadline": 5}, **target}
        settings = Settings.model_validate({"targets": {name: {"url": url, **common} for name, url in urls.items()}})
        clock = Clock()
        self.metrics = Metrics(Picture({}), urls)
        self.sharing = Sharing(cap=cap, monotonic=clock.monotonic, wall=clock.wall)
        self.targets = {
            name: Target(
                name, settings, metrics=self.metrics, clock=clock, sharing=self.sharing, keep=lambda record: None,
                pool_round_every_seconds=0.5,
            )
            for name in urls
        }  # fmt: skip

    def budget(self, name: str = "db") -> BudgetStatus:
        status = self.targets[name].view.budget
        return BudgetStatus() if status is None else status


@asynccontextmanager
async def running(
    server: PostgresServer, urls: dict[str, str], *, usable: int, **settings: Any
) -> AsyncIterator[tuple[Process, Counted]]:
    process, counted = Process(urls, **settings), Counted()
    async with AsyncExitStack() as ending:
        works = [work for target in process.targets.values() for _, work in target.tasks()]
        tasks = [asyncio.create_task(counted.run(server.url(), usable))]
        ending.push_async_callback(_end, tasks, process)
        await asyncio.sleep(0.1)
        tasks += [asyncio.create_task(work) for work in (*works, process.sharing.run())]
        yield process, counted
        assert not any(task.done() for task in tasks)


async def _end(tasks: list[asyncio.Task[None]], process: Process) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(target.close() for target in process.targets.values()))


def role_url(server: PostgresServer, role: str, database: str = "postgres") -> str:
    return server.url().replace("postgresql://postgres@", f"postgresql://{role}@").replace("/postgres", f"/{database}")


@pytest.fixture
async def server(make_server: MakeServer) -> PostgresServer:
    return await asyncio.to_thread(make_server, {"max_connections": 100, "superuser_reserved_connections": 3})


@pytest.mark.parametrize(
    ("limit", "measuring", "hindrance"),
    [(4, 0, Hindrance.FEW_SLOTS), (10, 2, Hindrance.FEW_SLOTS), (20, 2, Hindrance.FEW_SLOTS)],
)
async def test_the_limit_of_a_role(server: PostgresServer, limit: int, measuring: int, hindrance: Hindrance) -> None:
    await execute(server.url(), f"CREATE ROLE app LOGIN CONNECTION LIMIT {limit}")
    async with running(server, {"db": role_url(server, "app")}, usable=limit) as (process, counted):
        await eventually(lambda: process.budget().usable is not None and counted.measuring == measuring)
        await asyncio.sleep(5)
        assert counted.measuring == measuring
        assert counted.most_ours <= 1 + measuring + 1  # a look of a moment
        assert counted.least_free >= 2
        status = process.budget()
    assert (status.ceiling, status.usable, status.hindrance) == (CeilingKind.ROLE, limit, hindrance)


async def test_the_limit_of_a_database(server: PostgresServer) -> None:
    await execute(server.url(), "CREATE ROLE app LOGIN", "CREATE DATABASE small CONNECTION LIMIT 6")
    async with running(server, {"db": role_url(server, "app", "small")}, usable=6) as (process, counted):
        await eventually(lambda: counted.measuring == 2)
        await asyncio.sleep(3)
        assert counted.least_free >= 2
        assert (process.budget().ceiling, process.budget().usable) == (CeilingKind.DATABASE, 6)


async def test_a_server_of_twelve_of_which_six_are_reserved(make_server: MakeServer) -> None:
    settings = {"max_connections": 12, "superuser_reserved_connections": 3, "reserved_connections": 3}
    server = await asyncio.to_thread(make_server, settings)
    await execute(server.url(), "CREATE ROLE app LOGIN")
    async with running(server, {"db": role_url(server, "app")}, usable=6) as (process, counted):
        await eventually(lambda: counted.measuring == 1)  # who counts has one of the six, too
        await asyncio.sleep(3)
        assert counted.measuring == 1
        assert counted.least_free - 1 >= 2
        assert process.budget().usable == 6


async def test_ten_targets_on_one_server_hold_what_one_would(server: PostgresServer) -> None:
    await execute(server.url(), "CREATE ROLE app LOGIN")
    urls = {f"t{n}": role_url(server, "app") for n in range(10)}
    async with running(server, urls, usable=97) as (process, counted):
        await eventually(lambda: counted.now["connhealth/heartbeat"] == 9 and counted.measuring == 7)
        await asyncio.sleep(5)
        assert counted.measuring == 7
        assert counted.most["connhealth/heartbeat"] <= 9
        assert counted.most_ours <= 9 + 7 + 2
        granted = [process.budget(name).granted for name in urls]
        assert sum(one.measuring for one in granted) == 7
        assert sum(one.heartbeat for one in granted) == 9
        assert process.budget("t9").hindrance is Hindrance.NO_SEAT


async def test_an_application_that_takes_nearly_all_is_given_way_at_once(server: PostgresServer) -> None:
    await execute(server.url(), "CREATE ROLE app LOGIN")
    async with running(server, {"db": role_url(server, "app")}, usable=97) as (process, counted):
        await eventually(lambda: counted.measuring == 7)
        async with AsyncExitStack() as application:
            refused_since, longest = None, 0.0
            loop = asyncio.get_running_loop()
            for _ in range(92):
                while True:
                    try:
                        one = await asyncpg.connect(role_url(server, "app"))
                    except asyncpg.TooManyConnectionsError:
                        refused_since = refused_since or loop.time()
                        await asyncio.sleep(0.02)
                    else:
                        break
                if refused_since is not None:
                    longest, refused_since = max(longest, loop.time() - refused_since), None
                application.callback(one.terminate)
            assert longest <= 1.2 * TABLE_SECONDS + 0.5, "until the next look"
            await eventually(lambda: counted.measuring == 0)
            status = process.budget()
            assert (status.granted, status.hindrance) == (Grant(heartbeat=True), Hindrance.CROWDED)
            assert status.others is not None
            assert status.others >= 85
            rendered = process.targets["db"].view
            assert rendered.stage == "paused"
        await asyncio.sleep(6)
        assert counted.measuring == 0, "nothing is taken again before a calm minute is over"


async def test_a_refused_login_gives_back_all_but_the_heartbeat_within_a_second(server: PostgresServer) -> None:
    await execute(server.url(), "CREATE ROLE app LOGIN")
    async with running(server, {"db": role_url(server, "app")}, usable=97, pool={"size": 1}) as (process, counted):
        await eventually(lambda: counted.measuring == 7)
        await execute(server.url(), "ALTER ROLE app NOLOGIN")
        process.targets["db"]._availability.suspect()  # what the next look at the connect path would find
        await eventually(lambda: process.budget().hindrance is Hindrance.REFUSED)
        await asyncio.sleep(1)
        assert counted.measuring == 0
        assert counted.now["connhealth/heartbeat"] == 1
        await execute(server.url(), "ALTER ROLE app LOGIN")
        await eventually(lambda: counted.measuring == 7)
    exposition = process.metrics.render("")[0].decode()
    assert 'connection_health_logins_refused_total{sqlstate="28000",target="db"} 0.0' not in exposition


async def test_a_cap_by_hand(server: PostgresServer) -> None:
    async with running(server, {"a": server.url(), "b": server.url()}, usable=100, cap=5) as (process, counted):
        await eventually(lambda: counted.ours == 4)
        await asyncio.sleep(3)
        assert counted.most_ours <= 5
        assert process.budget("a").granted == Grant(heartbeat=True, probes=2)
        assert process.budget("a").hindrance is Hindrance.CAPPED
        assert process.budget("b").granted == Grant(heartbeat=True)


async def test_a_pause_gives_every_connection_back(server: PostgresServer) -> None:
    async with running(server, {"db": server.url()}, usable=100) as (process, counted):
        await eventually(lambda: counted.measuring >= 7)
        process.targets["db"].pause(PauseReason.BY_HAND)
        await asyncio.sleep(1)
        assert counted.ours == 0
        view = process.targets["db"].view
        assert (view.paused, view.readiness.ready) == (PauseReason.BY_HAND, True)
        process.targets["db"].resume()
        await eventually(lambda: counted.measuring >= 7)


# -- which targets lead to one server, without any -----------------------------------------------------------------


class Someone:
    """A member of which nothing but this is known."""

    def __init__(self, name: str, host: str) -> None:
        self.name, self.address = name, (host, 5432)
        self.pids: set[int] = set()
        self.circumstances = Circumstances()
        self.granted = Grant()

    @property
    def wish(self) -> Wish:
        return Wish(target=self.name, probes=8, pool=2)

    def apply(self, status: BudgetStatus) -> None:
        self.granted = status.granted


EMPTY = SessionTable(
    usable=97, used=2, role="r", role_limit=None, role_used=2, database="d", database_limit=None, database_used=2
)


def shared(*members: Someone) -> Sharing:
    sharing = Sharing(cap=None, monotonic=lambda: 100.0, wall=lambda: 100.0)
    for one in members:
        sharing.join(one)
    sharing.draw()
    return sharing


def test_two_names_of_one_server_share_it() -> None:
    a, b = Someone("a", "db"), Someone("b", "alias")
    sharing = shared(a, b)
    for one in (a, b):
        sharing.looked(one.name, EMPTY, Identity(address="10.0.0.1:5432", system_identifier="1"))
    assert a.granted.measuring + b.granted.measuring == 7


def test_two_servers_do_not() -> None:
    a, b = Someone("a", "db"), Someone("b", "other")
    sharing = shared(a, b)
    sharing.looked("a", EMPTY, Identity(address="10.0.0.1:5432", system_identifier="1"))
    sharing.looked("b", EMPTY, Identity(address="10.0.0.2:5432", system_identifier="1"))  # its standby
    assert a.granted.measuring == b.granted.measuring == 7


def test_one_address_is_one_server_until_it_proves_to_be_another() -> None:
    a, b = Someone("a", "db"), Someone("b", "db")
    sharing = shared(a, b)
    assert (a.granted.heartbeat, b.granted.heartbeat) == (True, False)
    sharing.looked("a", EMPTY, Identity(address="10.0.0.1:5432", system_identifier="1"))
    assert (a.granted.measuring, b.granted) == (7, Grant(heartbeat=True))
    sharing.looked("b", EMPTY, Identity(address="10.0.0.2:5432", system_identifier="1"))
    assert b.granted.measuring == 7
    sharing.refused("b", ServerSignal.FULL)
    assert (a.granted.measuring, b.granted.measuring) == (7, 0)


def test_who_is_led_elsewhere_by_a_failover_shares_there() -> None:
    a, b = Someone("a", "db"), Someone("b", "db")
    sharing = shared(a, b)
    before, after = Identity(address="10.0.0.1:5432"), Identity(address="10.0.0.2:5432")
    sharing.looked("a", EMPTY, before)
    sharing.looked("b", EMPTY, before)
    assert a.granted.measuring + b.granted.measuring == 7
    sharing.looked("b", EMPTY, after)
    assert a.granted.measuring == b.granted.measuring == 7
    sharing.looked("a", EMPTY, after)
    assert a.granted.measuring + b.granted.measuring == 7
