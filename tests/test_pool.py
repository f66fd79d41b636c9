"""The held pool against a real server, straight and over paths that kill, stall and reset."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from facts.wire import recording
from sqlalchemy.ext.asyncio import create_async_engine

from sidecar.core.advice.ping_cost import PING_ROUND_TRIPS
from sidecar.core.advice.recommendation import PoolSettings, Recommendation
from sidecar.core.evidence import Death
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from sidecar.probes.pool import CanaryPool, CannotWrite, CheckedOut, Closed, Connected, PoolFact, PrePinged, TurnFailed
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import TargetSettings
from testing import pictures
from testing.watching import CULL, demote, execute, reinstate

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]


class Log:
    """The facts in order, and a way to wait for one."""

    def __init__(self, also: Callable[[PoolFact], None] | None) -> None:
        self.facts: list[PoolFact] = []
        self._also = also
        self._arrived = asyncio.Event()

    def __call__(self, fact: PoolFact) -> None:
        self.facts.append(fact)
        self._arrived.set()
        if self._also is not None:
            self._also(fact)

    def of(self, kind: type[Any]) -> list[Any]:
        return [fact for fact in self.facts if isinstance(fact, kind)]

    async def until(self, holds: Callable[[PoolFact], bool], count: int = 1) -> PoolFact:
        """The `count`-th fact from now on for which it `holds`."""
        seen = len(self.facts)
        async with asyncio.timeout(60):
            while True:
                for fact in self.facts[seen:]:
                    seen += 1
                    count -= holds(fact)
                    if not count:
                        return fact
                self._arrived.clear()
                await self._arrived.wait()


def advised(pool_recycle: int) -> Recommendation:
    return replace(pictures.measuring(), settings=PoolSettings(pool_recycle=pool_recycle, pool_pre_ping=True))


def turned(fact: PoolFact) -> bool:
    return isinstance(fact, CheckedOut)


def failed(fact: PoolFact) -> bool:
    return isinstance(fact, TurnFailed)


@asynccontextmanager
async def held(
    url: str, also: Callable[[PoolFact], None] | None = None, *, round_every_seconds: float = 0.05, **settings: Any
) -> AsyncIterator[tuple[CanaryPool, Log]]:
    """A pool that runs; every fact goes to the log and to `also`."""
    target = TargetSettings(url=url, tls={"mode": "disable"}, pool=settings)
    log = Log(also)
    pool = CanaryPool(target, PostgresDriver(target), log, round_every_seconds=round_every_seconds)
    running = asyncio.create_task(pool.run())
    try:
        yield pool, log
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await pool.close()
    assert running.cancelled()  # it did not die of anything else


async def test_holds_its_size_and_takes_turns_with_and_without_ping(postgres: PostgresServer) -> None:
    async with held(postgres.url(), size=3) as (pool, log):
        await log.until(turned, count=3 * 5)
        opened = log.of(Connected)
        kinds = Counter((fact.pre_ping, fact.connected) for fact in log.of(CheckedOut)[: 3 * 5])
        assert sum(pool.connections.values()) == 3
    assert len(opened) == 3
    assert kinds == {(False, True): 3, (True, False): 6, (False, False): 6}
    assert not log.of(TurnFailed)
    assert all(fact.ok for fact in log.of(PrePinged))
    assert [fact.reason for fact in log.of(Closed)] == ["disposed"] * 3
    assert pool.connections == {"checked_out": 0, "idle": 0}


async def test_turns_alternate_on_each_connection(postgres: PostgresServer) -> None:
    """Whatever order the pool hands them out in: else one connection might be pinged always and another never."""
    turns: dict[int | None, list[bool]] = {0: [], 1: []}
    async with recording(HOST, postgres.port) as wire:

        def note(fact: PoolFact) -> None:
            if isinstance(fact, CheckedOut) and not fact.connected:
                turns[wire.speaker].append(fact.pre_ping)

        async with held(postgres.url(port=wire.port), also=note, size=2) as (_, log):
            await log.until(turned, count=2 * 5)
    assert turns[0][:4] == [True, False, True, False]
    assert turns[1][:4] == [False, True, False, True]


async def test_pings_exactly_as_pool_pre_ping_does(postgres: PostgresServer) -> None:
    turns: dict[bool, list[list[str]]] = {True: [], False: []}
    async with recording(HOST, postgres.port) as wire:

        def note(fact: PoolFact) -> None:
            if isinstance(fact, CheckedOut):
                turns[fact.pre_ping].append(wire.take())

        async with held(postgres.url(port=wire.port), also=note, size=1) as (_, log):
            await log.until(turned, count=7)

    plain: list[list[str]] = []
    async with recording(HOST, postgres.port) as wire:
        engine = create_async_engine(
            postgres.url(port=wire.port, scheme="postgresql+asyncpg"), pool_pre_ping=True, pool_size=1
        )
        for _ in range(4):
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
                await connection.rollback()
            plain.append(wire.take())
        await engine.dispose()

    assert turns[True][:3] == plain[1:]  # the first ping of a connection parses, the later ones do not
    assert len(turns[True][-1]) - len(turns[False][-1]) == PING_ROUND_TRIPS


async def test_follows_the_advice_without_dropping_what_lives(postgres: PostgresServer) -> None:
    async with held(postgres.url(), size=2) as (pool, log):
        await log.until(turned, count=2)
        pool.follow(advised(1800))
        await log.until(turned, count=4)
        assert not log.of(Closed)
        pool.follow(advised(1))
        await log.until(lambda fact: isinstance(fact, Closed), count=2)
        await log.until(turned, count=2)
        assert sum(pool.connections.values()) == 2
        recycled = log.of(Closed)
    assert [(fact.reason, fact.death) for fact in recycled[:2]] == [("recycled", None)] * 2
    assert all(fact.age_seconds > 0.9 for fact in recycled)
    assert not log.of(TurnFailed)


async def test_an_age_fixed_by_the_settings_is_not_the_advice_s_to_change(postgres: PostgresServer) -> None:
    async with held(postgres.url(), size=1, recycle=1) as (pool, log):
        pool.follow(advised(1800))
        closed = await log.until(lambda fact: isinstance(fact, Closed))
    assert isinstance(closed, Closed)
    assert closed.reason == "recycled"


async def test_connections_opened_together_are_not_replaced_together(postgres: PostgresServer) -> None:
    random.seed(3)  # shares of the age from 0.90 to 0.99
    async with held(postgres.url(), size=6, recycle=2) as (_, log):
        await log.until(lambda fact: isinstance(fact, Closed), count=6)
        facts = list(log.facts)
    rounds, replaced = 0, Counter[int]()
    for fact in facts:
        rounds += isinstance(fact, CheckedOut)
        if isinstance(fact, Closed):
            replaced[rounds // 6] += 1
    assert len(replaced) > 1


async def test_a_silent_path_is_survived_and_costs_half_the_time_for_a_checkout(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    """A ping that gets no answer gives up in time to connect anew; a turn without one has nothing to protect it."""
    path = await make_path(postgres, fault="silent", idle_limit=0.4)
    longer_than_the_path_remembers = 1.0
    async with held(
        postgres.url(port=path.port), size=1, timeout=1, round_every_seconds=longer_than_the_path_remembers
    ) as (_, log):
        await log.until(lambda fact: isinstance(fact, PrePinged))
        outcome = await log.until(turned)
        unpinged = await log.until(failed)
    ping = log.of(PrePinged)[0]
    assert ping.ok is False
    assert 0.5 <= ping.seconds < 0.9
    assert isinstance(outcome, CheckedOut)
    assert (outcome.pre_ping, outcome.connected) == (True, True)
    assert (log.of(Closed)[0].reason, log.of(Closed)[0].death) == ("invalidated", Death.SILENT)
    assert log.of(Closed)[0].seconds_since_use >= 1.0
    assert isinstance(unpinged, TurnFailed)
    assert (unpinged.stage, unpinged.pre_ping) == ("use", False)
    assert unpinged.error == f"{HOST}:{path.port}/postgres did not answer within 1 s"


@pytest.mark.parametrize(("fault", "death"), [("reset", Death.RESET_ON_USE), ("close", Death.CLOSED)])
async def test_where_the_path_answers_the_ping_replaces_the_connection(
    postgres: PostgresServer, make_path: MakePath, fault: str, death: Death
) -> None:
    path = await make_path(postgres, fault=fault, idle_limit=0.4)
    async with held(postgres.url(port=path.port), size=1, round_every_seconds=0.8) as (_, log):
        await log.until(lambda fact: isinstance(fact, PrePinged) and not fact.ok)
        outcome = await log.until(turned)
    assert isinstance(outcome, CheckedOut)
    assert (outcome.pre_ping, outcome.connected) == (True, True)
    assert log.of(Closed)[0].death is death


async def test_starts_without_a_database_and_recovers(postgres: PostgresServer, make_path: MakePath) -> None:
    path = await make_path(postgres)
    path.refuse()
    async with held(postgres.url(port=path.port), size=2, timeout=1) as (pool, log):
        failure = await log.until(failed)
        assert pool.connections == {"checked_out": 0, "idle": 0}
        await path.accept()
        await log.until(turned, count=2)
        assert sum(pool.connections.values()) == 2
    assert isinstance(failure, TurnFailed)
    assert (failure.stage, failure.pre_ping, failure.sqlstate) == ("checkout", False, None)
    assert f"cannot connect to {HOST}:{path.port}/postgres" in failure.error


async def test_a_partition_is_a_series_of_bounded_failures(postgres: PostgresServer, make_path: MakePath) -> None:
    path = await make_path(postgres)
    async with held(postgres.url(port=path.port), size=2, timeout=0.6) as (pool, log):
        await log.until(turned, count=4)
        path.pause()
        await log.until(failed, count=3)
        path.resume()
        await log.until(turned, count=4)
        assert sum(pool.connections.values()) == 2
    answerless = rf"{HOST}:{path.port}/postgres did not answer within 0\.[1-6] s"
    assert all(re.fullmatch(answerless, fact.error) for fact in log.of(TurnFailed))
    assert all(fact.seconds < 3 for fact in log.of(TurnFailed))  # 0.6 s to check out, 0.6 s to use, and a slow machine


async def test_a_path_that_falls_silent_right_after_the_login_is_no_trap(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    """SQLAlchemy asks a new connection about types before it hands it out, and has no deadline for that."""
    path = await make_path(postgres)

    def fall_silent(fact: PoolFact) -> None:
        if isinstance(fact, Connected) and len(log.of(Connected)) == 1:
            path.pause()

    async with held(postgres.url(port=path.port), also=fall_silent, size=1, timeout=0.5) as (pool, log):
        failure = await log.until(failed)
        path.resume()
        await log.until(turned)
        assert sum(pool.connections.values()) == 1
    assert isinstance(failure, TurnFailed)
    assert failure.stage == "checkout"
    assert failure.error == f"{HOST}:{path.port}/postgres did not answer within 0.5 s"


async def test_a_restart_of_the_server_is_noticed_even_by_turns_without_ping(make_server: MakeServer) -> None:
    """The driver saw the connection end; to hand it out unpinged would be to fail on purpose."""
    server = make_server()
    async with held(server.url(), size=2) as (pool, log):
        await log.until(turned, count=4)
        await asyncio.to_thread(server.restart)
        await log.until(turned, count=4)
        assert sum(pool.connections.values()) == 2
    # While it was down, connecting failed; no connection that had ended was ever used.
    assert {fact.stage for fact in log.of(TurnFailed)} <= {"checkout"}
    # And one failed ping spoke for both connections, as with SQLAlchemy's own.
    assert [fact.ok for fact in log.of(PrePinged)].count(False) == 1
    assert [(fact.reason, fact.death) for fact in log.of(Closed)][:2] == [("invalidated", Death.CLOSED)] * 2


async def test_a_server_that_says_why_it_ends_a_query_is_heard(postgres: PostgresServer, make_path: MakePath) -> None:
    path = await make_path(postgres)
    async with held(postgres.url(port=path.port), size=1, timeout=60) as (_, log):
        await log.until(turned)
        path.pause()
        await asyncio.sleep(0.3)  # longer than a round takes: a query is under way
        await execute(postgres.url(), CULL)
        path.resume()
        closed = await log.until(lambda fact: isinstance(fact, Closed))
    assert isinstance(closed, Closed)
    assert closed.death is Death.FATAL


async def test_a_writer_demoted_under_its_connections_is_told_once_for_each(make_server: MakeServer) -> None:
    """Pings and queries go on to succeed; nothing but the server's own report gives it away."""
    server = make_server()
    async with held(server.url(), size=2) as (_, log):

        async def until_told(count: int) -> None:
            while len(log.of(CannotWrite)) < count:
                await log.until(turned)

        await log.until(turned, count=2)
        await demote(server.url())
        await until_told(2)
        await log.until(turned, count=6)
        assert len(log.of(CannotWrite)) == 2
        for _ in range(20):  # a reload reaches each backend in its own time, which nothing tells
            await reinstate(server.url())
            await log.until(turned, count=6)
            await demote(server.url())
            await log.until(turned, count=6)
            if len(log.of(CannotWrite)) > 2:
                break
        assert len(log.of(CannotWrite)) in (3, 4)
        assert all(fact.ok for fact in log.of(PrePinged))
    assert len(log.of(Connected)) == 2  # they are the connections that were opened at first
    assert not log.of(TurnFailed)


async def test_a_refused_login_is_a_fact_that_keeps_the_secret(make_server: MakeServer) -> None:
    server = make_server(password="right")
    url = server.url().replace("right", "wr0ng-secret")
    async with held(url, size=1) as (_, log):
        failure = await log.until(failed)
    assert isinstance(failure, TurnFailed)
    assert failure.sqlstate == "28P01"
    assert "wr0ng-secret" not in repr(log.facts)


async def test_a_living_server_s_refusal_is_reported_with_its_sqlstate(make_server: MakeServer) -> None:
    server = make_server({"max_connections": 4, "superuser_reserved_connections": 0, "reserved_connections": 0})
    async with held(server.url(), size=8) as (pool, log):
        failure = await log.until(failed)
        held_on_to = sum(pool.connections.values())
    assert isinstance(failure, TurnFailed)
    assert (failure.stage, failure.sqlstate) == ("checkout", "53300")
    assert held_on_to == 4


@pytest.mark.parametrize("ping_under_way", [True, False])
async def test_ends_at_once_on_a_path_that_answers_nothing(
    postgres: PostgresServer, make_path: MakePath, ping_under_way: bool
) -> None:
    """`held` cancels and closes; nothing of it may wait for the ping, the goodbye, or the timeout of 60 s."""
    path = await make_path(postgres)
    async with asyncio.timeout(40):
        async with held(postgres.url(port=path.port), size=2, timeout=60) as (pool, log):
            await log.until(turned, count=4)
            path.pause()
            if ping_under_way:
                await asyncio.sleep(0.3)
    assert pool.connections == {"checked_out": 0, "idle": 0}


# -- how many it holds ------------------------------------------------------------------------------------------------


async def sessions_of_the_pool(url: str) -> set[int]:
    """Their pids, as the server sees them."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'connhealth/pool'")
        return {row["pid"] for row in rows}
    finally:
        await connection.close()


async def test_holds_no_more_than_it_is_told_from_one_moment_to_the_next(postgres: PostgresServer) -> None:
    async with held(postgres.url(), size=3, round_every_seconds=0.02) as (pool, log):
        await log.until(turned, count=6)
        assert await sessions_of_the_pool(postgres.url()) == pool.pids
        assert len(pool.pids) == 3
        for size in (1, 3, 2, 0):
            pool.resize(size)
            await asyncio.sleep(0.2)
            assert len(await sessions_of_the_pool(postgres.url())) == sum(pool.connections.values()) == size
            seen = len(log.facts)
            await asyncio.sleep(0.2)
            turns = [fact for fact in log.facts[seen:] if isinstance(fact, CheckedOut)]
            assert bool(turns) == bool(size)
        pool.resize(3)
        await log.until(turned, count=6)
        assert len(pool.pids) == 3
    assert not log.of(TurnFailed)
    assert all(fact.ok for fact in log.of(PrePinged))
    assert {fact.reason for fact in log.of(Closed)} == {"given_back", "disposed"}
    assert all(fact.death is None for fact in log.of(Closed))


async def test_what_is_given_back_in_the_midst_of_a_turn_is_gone_at_once_and_no_failure(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    """Over a path that answers nothing any more: in use, in a ping, or just being opened."""
    path = await make_path(postgres)
    async with held(postgres.url(port=path.port), size=2, timeout=10) as (pool, log):
        await log.until(turned, count=4)
        path.pause()
        await asyncio.sleep(0.3)
        pool.resize(0)
        assert sum(pool.connections.values()) <= 1
        await asyncio.sleep(0.3)
        assert sum(pool.connections.values()) == 0
        pool.resize(1)
        await asyncio.sleep(0.3)  # it hangs in opening a new one
        pool.resize(0)
        await asyncio.sleep(0.3)
        assert sum(pool.connections.values()) == 0
    assert not log.of(TurnFailed)
    assert all(fact.ok for fact in log.of(PrePinged))
