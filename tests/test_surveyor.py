"""The hands of the idle-limit machine, on real servers and faulty paths: what they do to a target, and what they leave.

The limits they find are held against real middleboxes in the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import psycopg
import pytest
from facts.client import MakePath, until
from facts.wire import recording

from sidecar.core.budget import ConnectionRole, LeftSession
from sidecar.core.evidence import Cause, Death, Keepalive, Observation
from sidecar.core.idle.commands import Budget
from sidecar.core.idle.facts import Pooled
from sidecar.core.idle.machine import REST_SLACK_SECONDS, IdleMachine
from sidecar.core.signals import ServerSignal
from sidecar.demo.server import HOST, PostgresServer
from sidecar.probes.driver import WatchedConnection
from sidecar.probes.errors import CannotConnect
from sidecar.probes.idle import IdleProbeRunner
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import TargetSettings
from testing.poolers import pgbouncer

CONNECTIONS = 3
DEADLINE_SECONDS = 0.5


def driver_at(port: int, *, user: str = "postgres", **settings: object) -> PostgresDriver:
    tls = {"tls": {"mode": "disable"}, **settings}
    return PostgresDriver(TargetSettings(url=f"postgresql+asyncpg://{user}@{HOST}:{port}/postgres", **tls))  # type: ignore[arg-type]


class Survey:
    """A runner, and what it told."""

    def __init__(self, driver: PostgresDriver, *, floor: float = 0.3) -> None:
        self.machine = IdleMachine(
            target="t",
            run="r",
            epoch=0.0,
            connections=CONNECTIONS,
            floor=floor,
            cap=60.0,
            deadline_seconds=DEADLINE_SECONDS,
        )
        self.records: list[Observation] = []
        self.left: list[LeftSession] = []
        self.refused: list[ServerSignal] = []
        self.runner = IdleProbeRunner(
            self.machine,
            driver,
            deadline_seconds=DEADLINE_SECONDS,
            record=self.records.append,
            on_unseen_death=self.left.append,
            on_refused=self.refused.append,
        )

    @property
    def wire(self) -> list[WatchedConnection]:
        """The connections that are open."""
        return list(self.runner._connections.values())

    def died(self) -> list[Observation]:
        return [record for record in self.records if record.death is not None]


@asynccontextmanager
async def measuring(port: int, *, floor: float = 0.3, user: str = "postgres") -> AsyncIterator[Survey]:
    survey = Survey(driver_at(port, user=user), floor=floor)
    running = asyncio.create_task(survey.runner.run(Budget(connections=CONNECTIONS)))
    try:
        yield survey
        assert not running.done()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def open_files_and_tasks() -> tuple[int, int]:
    return psutil.Process().num_fds(), len(asyncio.all_tasks())


async def test_what_is_told_while_it_does_not_run_is_not_kept(postgres: PostgresServer, make_path: MakePath) -> None:
    """Where measuring is switched off nobody would ever take it."""
    path = await make_path(postgres)
    runner = Survey(driver_at(path.port)).runner
    runner.tell(Budget(connections=CONNECTIONS))
    runner.measure_afresh()
    running = asyncio.create_task(runner.run(Budget(connections=0)))
    await asyncio.sleep(0.3)  # some openings would have begun by then
    assert sum(runner.connections.values()) == 0
    assert runner.machine.status(0.0).regime == 1
    runner.tell(Budget(connections=CONNECTIONS))
    await until(lambda: path.connections == CONNECTIONS)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("fault", ["silent", "reset", "close"])
async def test_it_keeps_to_its_budget_and_leaves_nothing(
    postgres: PostgresServer, make_path: MakePath, fault: str
) -> None:
    path = await make_path(postgres, fault, idle_limit=1.0)
    most = 0
    async with measuring(path.port):  # whatever is opened once
        await until(lambda: path.accepted >= CONNECTIONS)
    await until(lambda: path.connections == 0)
    before, accepted = open_files_and_tasks(), path.accepted
    async with measuring(path.port) as survey:
        counts = survey.runner.connections

        def died_twice() -> bool:
            nonlocal most, counts
            counts = survey.runner.connections
            most = max(most, sum(counts.values()))
            return len(survey.died()) >= 2

        await until(died_twice, 20)
        opened = path.accepted - accepted
        leaving = time.monotonic()
    assert time.monotonic() - leaving < DEADLINE_SECONDS
    assert most == CONNECTIONS
    # Each rest is a connection; nothing else is opened, such as to cancel a query nobody answers.
    assert opened <= len(survey.records) + CONNECTIONS
    await until(lambda: path.connections == 0)
    await until(lambda: open_files_and_tasks() == before)
    expected = {"silent": Death.SILENT, "reset": Death.RESET_ON_USE, "close": Death.CLOSED}[fault]
    assert {(record.death, record.cause) for record in survey.died()} == {(expected, Cause.IDLE_LIMIT)}


async def test_leaving_waits_for_nobody(postgres: PostgresServer, make_path: MakePath) -> None:
    """Not for connections that are opening, resting or being used, on a path that swallows everything."""
    path = await make_path(postgres)
    before = open_files_and_tasks()[1]
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        path.pause()
        states = lambda: {probe.state for probe in survey.runner.machine.status(0.0).probes}  # noqa: E731
        await until(lambda: "using" in states())
        leaving = time.monotonic()
    assert time.monotonic() - leaving < DEADLINE_SECONDS / 2
    path.reset_all()
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_only_the_simple_protocol_is_spoken(postgres: PostgresServer) -> None:
    """A transaction pooler gives each query another backend, where nothing is prepared."""
    async with recording(HOST, postgres.port) as wire:
        connection = await driver_at(wire.port).open(ConnectionRole.PROBE, deadline_seconds=5)
        for _ in range(2):
            await connection.use(5)
        await connection.beat(5)
        connection.terminate()
        assert {kind for kind, _ in wire.messages} == {"Q"}


async def test_tcp_keepalive_is_off_unless_wanted(postgres: PostgresServer) -> None:
    """It would hold the path open, and the limit would never show."""
    for keepalive in (None, Keepalive(idle=7, interval=3, count=2)):
        driver = await driver_at(postgres.port).connect(ConnectionRole.PROBE, deadline_seconds=5, keepalive=keepalive)
        sock = driver._transport.get_extra_info("socket")
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is (keepalive is not None)
        if keepalive is not None and hasattr(socket, "TCP_KEEPIDLE"):
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [7, 3, 2]
        driver.terminate()


async def test_a_rest_is_as_long_as_it_was_however_late_the_loop(postgres: PostgresServer, make_path: MakePath) -> None:
    """A stalled process uses its connections late: the rest that was survived is the real one."""
    path = await make_path(postgres)
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        time.sleep(0.8)  # noqa: ASYNC251 - to stall the loop is the point
        await until(lambda: survey.records)
    assert survey.records[0].outcome == "survived"
    assert 0.75 < survey.records[0].idle_seconds < 2


async def test_a_rest_goes_on_while_the_machine_sleeps(
    postgres: PostgresServer, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the clock is made to jump: a suspended machine cannot be had here."""
    path = await make_path(postgres)
    clock_gettime = time.clock_gettime
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: clock_gettime(clock) + 100)
        await until(lambda: survey.records)
    assert survey.records[0].outcome == "survived"
    assert 100 <= survey.records[0].idle_seconds < 105


GREETINGS = {
    "an HTTP server": b"HTTP/1.1 400 Bad Request\r\nServer: nobody\r\n\r\n",
    "nothing but noise": bytes(range(256)),
    "an impossible length": b"R\xff\xff\xff\xff",
    "an unknown way to authenticate": b"R\0\0\0\x08\0\0\0\x63",
    "ready without authentication": b"Z\0\0\0\x05I",
    "an error without fields": b"E\0\0\0\x05\0",
    "an empty answer": b"",
}


# asyncpg's own finalizer stumbles over a connection that its constructor did not finish.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("greeting", GREETINGS)
async def test_whoever_answers_there_a_failed_probe_is_a_fact(greeting: str) -> None:
    """Not PostgreSQL, or not any more: the operator reads who did not answer properly; no task dies of it."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(GREETINGS[greeting])
        with contextlib.suppress(OSError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(greet, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(CannotConnect, match=f"{HOST}:{port}"):
            await driver_at(port).open(ConnectionRole.PROBE, deadline_seconds=1)


# -- what the server still holds --------------------------------------------------------------------------------------


def sessions_of(server: PostgresServer) -> set[int]:
    """The pids of all probes, as the server's own table has them."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        found = connection.execute("select pid from pg_stat_activity where application_name = 'connhealth/probe'")
        return {pid for (pid,) in found}


async def test_each_session_ends_by_itself_a_minute_after_its_longest_rest(postgres: PostgresServer) -> None:
    async with measuring(postgres.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        assert sessions_of(postgres) == survey.runner.pids
        limits = [connection.rest_limited_to_seconds for connection in survey.wire]
        planned = [probe.longest_goal_seconds for probe in survey.machine._probes.values()]
        assert limits == [pytest.approx(goal + DEADLINE_SECONDS, abs=0.001) for goal in planned]
        assert all(REST_SLACK_SECONDS < limit < REST_SLACK_SECONDS + 10.0 for limit in limits if limit is not None)
    await until(lambda: survey.runner.pids == set())


async def test_what_died_unseen_is_told_and_can_be_ended(
    make_server: Callable[..., PostgresServer], make_path: MakePath
) -> None:
    """The path forgets, and the server hears nothing of it: its session would stay."""
    server = make_server()
    path = await make_path(server)
    heartbeat = await driver_at(server.port).open(ConnectionRole.HEARTBEAT, deadline_seconds=5)
    await heartbeat.use(5)
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        pids = survey.runner.pids
        path.pause()
        await until(lambda: survey.left, 20)
        left = survey.left[0]
        assert left.pid in pids - survey.runner.pids
        assert left.pid in sessions_of(server), "or nothing is shown"
        assert await heartbeat.end_session(left, 5)
        await until(lambda: left.pid not in sessions_of(server))
        path.resume()
    heartbeat.terminate()


async def test_one_that_is_given_up_while_its_answer_is_late_is_told_too(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    path = await make_path(postgres)
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        pids = survey.runner.pids
        path.pause()
        await until(lambda: any(probe.state == "using" for probe in survey.machine.status(0.0).probes))
        survey.runner.tell(Budget(connections=0))
        await until(lambda: survey.runner.connections["open"] == 0)
        assert {left.pid for left in survey.left} <= pids
        assert survey.left
        path.resume()


async def test_who_answered_or_was_told_by_the_server_is_no_unseen_death(
    make_server: Callable[..., PostgresServer],
) -> None:
    server = make_server({"idle_session_timeout": "1200ms"})
    async with measuring(server.port) as survey:
        await until(lambda: len(survey.died()) >= 2 and len(survey.records) > 3, 20)
    assert survey.left == []


# -- limits that are declared -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "declare",
    [
        "alter system set idle_session_timeout = 1500",
        "alter database postgres set idle_session_timeout = 1500",
        "alter role postgres set idle_session_timeout = 1500",
    ],
)
async def test_a_declared_limit_is_measured_as_it_is(make_server: Callable[..., PostgresServer], declare: str) -> None:
    """Ours is only ever longer: the server ends the session when it would have, and says so."""
    server = make_server()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(declare)
        connection.execute("select pg_reload_conf()")
    async with measuring(server.port, floor=1.0) as survey:
        await until(lambda: survey.died(), 20)
    assert [(record.cause, record.sqlstate) for record in survey.died()[:1]] == [(Cause.IDLE_LIMIT, "57P05")]
    assert survey.died()[0].idle_seconds == pytest.approx(1.5, abs=0.15)


async def test_a_limit_declared_while_a_rest_is_under_way_is_met_by_the_next(
    make_server: Callable[..., PostgresServer],
) -> None:
    server = make_server()
    async with measuring(server.port, floor=1.0) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        first = survey.runner.pids
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("alter system set idle_session_timeout = 800")
            connection.execute("select pg_reload_conf()")
        await until(lambda: survey.died(), 20)
        assert len([record for record in survey.records if record.outcome == "survived"]) <= len(first)
    assert (survey.died()[0].sqlstate, survey.died()[0].cause) == ("57P05", Cause.IDLE_LIMIT)
    assert survey.died()[0].idle_seconds == pytest.approx(0.8, abs=0.15)


# -- refusals and poolers ---------------------------------------------------------------------------------------------


async def test_a_refusal_is_told_and_a_budget_of_none_ends_the_attempts_that_wait(
    make_server: Callable[..., PostgresServer], make_path: MakePath
) -> None:
    server = make_server()
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("create role locked nologin")
    path = await make_path(server)
    async with measuring(path.port, user="locked") as survey:
        await until(lambda: survey.refused)
        assert set(survey.refused) == {ServerSignal.LOGIN_REFUSED}
        survey.runner.tell(Budget(connections=0))
        await until(lambda: sum(survey.runner.connections.values()) == 0)
        await asyncio.sleep(0.2)  # whatever was under way has ended
        accepted = path.accepted
        await asyncio.sleep(2.5)  # the pauses begun would all have ended by then
        assert path.accepted == accepted


SESSION_POOLER = "[pgbouncer]\npool_mode = session\nclient_idle_timeout = 2\ndefault_pool_size = 3"


async def test_two_that_rest_behind_a_session_pooler_hold_none_of_its_connections(
    make_server: Callable[..., PostgresServer],
) -> None:
    server = make_server()
    with pgbouncer(server, SESSION_POOLER) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        survey = Survey(driver_at(port), floor=1.0)
        running = asyncio.create_task(survey.runner.run(Budget(connections=0)))
        await asyncio.sleep(0)
        survey.runner.tell(Pooled())
        survey.runner.tell(Budget(connections=CONNECTIONS))
        try:
            await until(lambda: survey.runner.connections["open"] == 2)
            assert survey.runner.pids == set(), "what a pooler calls them is nobody's pid"
            assert sessions_of(server) == set()
            assert pool_of(url)["sv_active"] == 0
            assert (pool_of(url)["cl_active"], pool_of(url)["cl_waiting"]) == (2, 0)
            await until(lambda: survey.machine.status(0.0).dead_by_seconds is not None, 20)
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
    death = survey.died()[0]
    assert (death.death, death.cause) == (Death.FATAL, Cause.IDLE_LIMIT)
    # PgBouncer looks at its timers three times a second.
    assert death.idle_seconds == pytest.approx(2.2, abs=0.4)


def pool_of(url: str) -> dict[str, int]:
    """The row that PgBouncer's own console shows of the pool."""
    with psycopg.connect(url + "pgbouncer", autocommit=True) as console:
        cursor = console.execute("show pools")
        names = [column.name for column in cursor.description or ()]
        return next(
            row for row in (dict(zip(names, row, strict=True)) for row in cursor) if row["database"] == "postgres"
        )
