"""What the driver does with sessions on real servers: whose they are, what is set for them, and what is ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from math import inf
from typing import Any

import asyncpg
import pytest

from sidecar.clock import boot_time
from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import ConnectionRole, LeftSession
from sidecar.core.evidence import Ending, Noticed
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from sidecar.probes.errors import CannotConnect, ConnectionEnded
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.probes.postgresql.wire import PostgresConnection
from sidecar.settings.model import TargetSettings
from testing.poolers import pgbouncer

MODES = ("session", "transaction")


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as one:
        asyncio.run(_prepare(one))
        yield one


async def _prepare(server: PostgresServer) -> None:
    admin = await asyncpg.connect(server.url())
    for statement in ("CREATE ROLE app LOGIN", "CREATE ROLE another LOGIN", "CREATE DATABASE elsewhere"):
        await admin.execute(statement)
    await admin.close()


@pytest.fixture
async def admin(server: PostgresServer) -> AsyncIterator[asyncpg.Connection[Any]]:
    connection = await asyncpg.connect(server.url())
    yield connection
    await connection.close()


def driver_to(port: int, user: str = "app", database: str = "postgres") -> PostgresDriver:
    url = f"postgresql://{user}@{HOST}:{port}/{database}"
    return PostgresDriver(TargetSettings.model_validate({"url": url, "tls": {"mode": "disable"}}))


@contextlib.asynccontextmanager
async def opened(
    driver: PostgresDriver, role: ConnectionRole = ConnectionRole.PROBE
) -> AsyncIterator[PostgresConnection]:
    """A watched connection that has been used once."""
    connection = await driver.open(role, deadline_seconds=5)
    try:
        await connection.use(5)
        yield connection
    finally:
        connection.terminate()


async def direct(server: PostgresServer, stack: contextlib.AsyncExitStack, **arguments: Any) -> PostgresConnection:
    return await stack.enter_async_context(opened(driver_to(server.port, **arguments)))


async def lives(admin: asyncpg.Connection[Any], pid: int | None) -> bool:
    return bool(await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid))


async def is_gone(admin: asyncpg.Connection[Any], pid: int | None) -> None:
    async with asyncio.timeout(10):
        while await lives(admin, pid):  # noqa: ASYNC110 - another server's table has no event
            await asyncio.sleep(0.02)


# Whose sessions


async def test_a_session_bears_the_name_of_its_role(server: PostgresServer, admin: asyncpg.Connection[Any]) -> None:
    for role in ConnectionRole:
        async with opened(driver_to(server.port), role) as connection:
            name = await admin.fetchval(
                "SELECT application_name FROM pg_stat_activity WHERE pid = $1", connection.backend_pid
            )
            assert name == f"connhealth/{role}" == role.session_name


async def test_a_direct_connection_is_no_pooled_one(server: PostgresServer) -> None:
    connection = await driver_to(server.port).open(ConnectionRole.PROBE, deadline_seconds=5)
    assert connection.is_pooled is None, "nothing was asked yet"
    assert await connection.limit_rest(60, 5) is None
    identity = await connection.use(5)
    assert connection.is_pooled is False
    assert connection.backend_pid == identity.backend_pid
    connection.terminate()


@pytest.mark.parametrize("mode", MODES)
async def test_a_pooler_shows_at_the_first_use_and_nothing_is_done_through_it(
    server: PostgresServer, mode: str
) -> None:
    with pgbouncer(server, f"[pgbouncer]\npool_mode = {mode}") as url:
        driver = PostgresDriver(TargetSettings.model_validate({"url": f"{url}small", "tls": {"mode": "disable"}}))
        async with opened(driver) as connection:
            identity = await connection.use(5)
            assert connection.is_pooled is True
            assert connection.backend_pid != identity.backend_pid
            assert await connection.limit_rest(0.5, 5) is None
            assert connection.rest_limited_to_seconds is None
            assert await connection._ask("SELECT current_setting('idle_session_timeout'), NULL", 5) == ("0", None)
            assert connection.left_behind() is None
            assert identity.backend_pid is not None
            assert identity.started_at is not None
            left = LeftSession(
                pid=identity.backend_pid, server_started_at=identity.started_at, last_used_by=identity.started_at * 2
            )
            assert not await connection.end_session(left, 5)
        plain = await driver.connect(ConnectionRole.POOL, deadline_seconds=5, statement_cache=False)
        assert await driver.limit_rest_of(plain, 0.5, 5) is None
        await plain.execute("DO $$ BEGIN ASSERT current_setting('idle_session_timeout') = '0'; END $$")
        plain.terminate()


# What limits a rest


async def seconds_in_force(connection: PostgresConnection) -> float:
    row = await connection._ask("SELECT setting, NULL FROM pg_settings WHERE name = 'idle_session_timeout'", 5)
    assert row is not None
    return int(row[0] or "") / 1000


async def limited_to(connection: PostgresConnection, wanted: float, seconds: float | None) -> None:
    """Ask until a reloaded configuration has reached the session."""
    async with asyncio.timeout(10):
        while await connection.limit_rest(wanted, 5) != seconds:  # noqa: ASYNC110 - a reload tells nobody when it is done
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def declared(admin: asyncpg.Connection[Any], declaration: str) -> AsyncIterator[None]:
    """`ALTER … SET idle_session_timeout`, for a while."""
    await admin.execute(f"{declaration} SET idle_session_timeout = '10s'")
    await admin.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        await admin.execute(f"{declaration} RESET idle_session_timeout")
        await admin.execute("SELECT pg_reload_conf()")


@pytest.mark.parametrize("declaration", ["ALTER SYSTEM", "ALTER ROLE app", "ALTER DATABASE postgres"])
async def test_a_rest_is_only_ever_limited_to_less_than_is_declared(
    server: PostgresServer, admin: asyncpg.Connection[Any], declaration: str
) -> None:
    async with declared(admin, declaration), opened(driver_to(server.port)) as connection:
        for wanted, ours, in_force in ((20, None, 10), (4, 4.0, 4), (7.25, 7.25, 7.25), (10, None, 10), (9, 9, 9)):
            assert await connection.limit_rest(wanted, 5) == connection.rest_limited_to_seconds == ours
            assert await seconds_in_force(connection) == in_force
            told = await connection.declared(5)
            assert told is not None
            assert told.idle_session_timeout == 10, "our own value is no declaration"


async def test_where_nothing_is_declared_any_limit_is_shorter(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        assert await connection.limit_rest(3600, 5) == 3600
        assert await seconds_in_force(connection) == 3600
        assert await connection.limit_rest(1e9, 5) == pytest.approx(2**31 / 1000), "the greatest there is"
        assert await connection.limit_rest(0, 5) == 0.001, "zero would be none"


async def test_a_declaration_that_comes_while_we_rest_is_heeded_by_the_next_rest(
    server: PostgresServer, admin: asyncpg.Connection[Any]
) -> None:
    async with opened(driver_to(server.port)) as connection:
        assert await connection.limit_rest(20, 5) == 20
        async with declared(admin, "ALTER SYSTEM"):
            await limited_to(connection, 20, None)
            assert await seconds_in_force(connection) == 10
        await limited_to(connection, 20, 20)


async def test_an_end_at_our_own_limit_says_so(server: PostgresServer, admin: asyncpg.Connection[Any]) -> None:
    async with opened(driver_to(server.port)) as connection:
        await connection.limit_rest(0.3, 5)
        ending = await asyncio.wait_for(connection.ended, 10)
        assert (ending.sqlstate, ending.noticed, ending.own_limit) == ("57P05", Noticed.READING, True)
        assert connection.left_behind() is None, "the server ended it itself"
    await admin.execute("ALTER ROLE app SET idle_session_timeout = '300ms'")
    try:
        async with opened(driver_to(server.port)) as connection:
            await connection.limit_rest(60, 5)
            ending = await asyncio.wait_for(connection.ended, 10)
            assert (ending.sqlstate, ending.own_limit) == ("57P05", False), "the declared one"
    finally:
        await admin.execute("ALTER ROLE app RESET idle_session_timeout")


async def test_an_end_long_before_our_own_limit_is_somebody_elses(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        await connection.limit_rest(60, 5)
        fields = b"SFATAL\0VFATAL\0C57P05\0Mof a proxy on the path\0\0"
        connection._tap._message(b"E", fields)
        connection._lost(None)
        assert connection.ended.result().sqlstate == "57P05"
        assert not connection.ended.result().own_limit


async def test_a_plain_connection_is_limited_too_and_works_on(server: PostgresServer) -> None:
    driver = driver_to(server.port)
    plain = await driver.connect(ConnectionRole.POOL, deadline_seconds=5)
    assert driver.pid_of(plain) == await plain.fetchval("SELECT pg_backend_pid()")
    assert await driver.limit_rest_of(plain, 300, 5) == 300
    assert await plain.fetchval("SHOW idle_session_timeout") == "5min"
    plain.terminate()


async def test_a_plain_connection_that_does_not_answer_is_dropped(server: PostgresServer) -> None:
    async with FaultyPath(HOST, server.port) as path:
        driver = driver_to(path.port)
        plain = await driver.connect(ConnectionRole.POOL, deadline_seconds=5)
        path.pause()
        with pytest.raises(CannotConnect, match=r"did not answer within 0.2 s"):
            await driver.limit_rest_of(plain, 300, 0.2)
        assert driver.is_closed(plain)


# What is ended


class LeavingPath(FaultyPath):
    """Silent as a firewall that forgot the flow: when the client has gone, the server does not hear of that either."""

    async def _fail(self, fault: Any, from_client: Any, client: Any) -> None:
        await asyncio.Event().wait()


async def died_unseen(path: FaultyPath, connection: PostgresConnection) -> Ending:
    await asyncio.sleep(path.idle_limit * 1.5)  # type: ignore[operator]
    with pytest.raises(ConnectionEnded) as ended:
        await connection.use(0.3)
    return ended.value.ending


async def test_what_died_unseen_is_ended_over_another_session_of_ours(
    server: PostgresServer, admin: asyncpg.Connection[Any]
) -> None:
    async with (
        LeavingPath(HOST, server.port, idle_limit=0.4) as path,
        opened(driver_to(path.port)) as connection,
        opened(driver_to(server.port), ConnectionRole.HEARTBEAT) as heartbeat,
    ):
        assert await connection.limit_rest(60, 5) == 60
        assert (await died_unseen(path, connection)).noticed == Noticed.DEADLINE
        left = connection.left_behind()
        assert left is not None
        assert left.pid == connection.backend_pid
        assert left.backend_started_at is not None
        assert await lives(admin, left.pid)
        assert await heartbeat.end_session(left, 5)
        await is_gone(admin, left.pid)
        assert not await heartbeat.end_session(left, 5), "there is none any more"


@pytest.mark.parametrize("question", ["use", "beat", "declared", "activity", "sessions", "check_write"])
async def test_after_any_question_the_session_can_be_ended(
    server: PostgresServer, admin: asyncpg.Connection[Any], question: str
) -> None:
    """Its own state changed no later than we know; and not by much later either."""
    async with contextlib.AsyncExitStack() as stack:
        connection, heartbeat = await direct(server, stack), await direct(server, stack)
        await getattr(connection, question)(5)
        left = connection.left_behind()
        assert left is not None
        changed = await admin.fetchval(
            "SELECT extract(epoch FROM state_change)::float8 FROM pg_stat_activity WHERE pid = $1", left.pid
        )
        assert 0 <= left.last_used_by - changed < 1
        assert await heartbeat.end_session(left, 5)
        assert (await asyncio.wait_for(connection.ended, 5)).sqlstate == "57P01"


async def test_whoever_used_it_after_us_is_spared(server: PostgresServer, admin: asyncpg.Connection[Any]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        connection, heartbeat = await direct(server, stack), await direct(server, stack)
        left = connection.left_behind()
        assert left is not None
        stranger = connection._driver  # as who had been given our backend: under our name, by no question of ours
        await stranger.execute("SELECT 1")
        assert not await heartbeat.end_session(left, 5)
        await stranger.execute("BEGIN")
        for known in (left, replace(left, last_used_by=left.last_used_by + 1e6)):
            assert not await heartbeat.end_session(known, 5)
        sleeping = asyncio.create_task(stranger.execute("SELECT pg_sleep(0.5)"))
        await asyncio.sleep(0.1)
        assert not await heartbeat.end_session(replace(left, last_used_by=left.last_used_by + 1e6), 5)
        await sleeping
        assert await lives(admin, left.pid)


async def test_what_is_not_certain_to_be_ours_is_spared(server: PostgresServer) -> None:
    async with contextlib.AsyncExitStack() as stack:
        connection, heartbeat = await direct(server, stack), await direct(server, stack)
        await connection.limit_rest(60, 5)
        left = connection.left_behind()
        assert left is not None
        assert left.backend_started_at is not None
        assert not await heartbeat.end_session(replace(left, server_started_at=left.server_started_at + 0.001), 5)
        assert not await heartbeat.end_session(replace(left, backend_started_at=left.backend_started_at + 0.001), 5)
        assert not await heartbeat.end_session(replace(left, last_used_by=left.last_used_by - 1), 5)
        assert not await (await direct(server, stack, user="another")).end_session(left, 5)
        assert not await (await direct(server, stack, user="postgres")).end_session(left, 5)
        assert not await (await direct(server, stack, database="elsewhere")).end_session(left, 5)
        own = heartbeat.left_behind()
        assert own is not None
        assert not await heartbeat.end_session(own, 5)
        assert await heartbeat.end_session(replace(left, backend_started_at=None), 5)


async def test_a_session_under_another_name_is_spared(server: PostgresServer) -> None:
    application = await asyncpg.connect(f"postgresql://app@{HOST}:{server.port}/postgres")
    async with opened(driver_to(server.port)) as heartbeat:
        own = heartbeat.left_behind()
        assert own is not None
        theirs = replace(own, pid=application.get_server_pid(), last_used_by=own.last_used_by + 1e6)
        assert not await heartbeat.end_session(theirs, 5)
    assert await application.fetchval("SELECT 1") == 1
    application.terminate()


async def test_an_applications_transaction_behind_a_pooler_is_spared(server: PostgresServer) -> None:
    """The backend that we left was passed on: with its pid, its start and its old name in the table."""
    with pgbouncer(server, "[pgbouncer]\npool_mode = transaction") as url:
        driver = PostgresDriver(TargetSettings.model_validate({"url": f"{url}small", "tls": {"mode": "disable"}}))
        async with (
            opened(driver) as connection,
            opened(driver_to(server.port, user="postgres"), ConnectionRole.HEARTBEAT) as heartbeat,
        ):
            identity = await connection.use(5)
            assert connection._last_used_by is not None
            assert identity.backend_pid is not None
            assert identity.started_at is not None
            assert connection.left_behind() is None
            left = LeftSession(
                pid=identity.backend_pid,
                server_started_at=identity.started_at,
                last_used_by=connection._last_used_by,
            )
            application = await asyncpg.connect(f"{url}small", statement_cache_size=0)
            async with application.transaction():
                assert await application.fetchval("SELECT pg_backend_pid()") == left.pid
                assert not await heartbeat.end_session(left, 5)
                assert await application.fetchval("SELECT pg_backend_pid()") == left.pid
            assert not await heartbeat.end_session(left, 5)
            await application.close()


async def test_after_an_answer_without_the_servers_time_nothing_may_be_ended(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        assert connection.left_behind() is not None
        assert await connection._ask("SELECT 1/0", 5) is None
        assert connection.left_behind() is None
        await connection.beat(5)
        assert connection.left_behind() is not None


@pytest.mark.parametrize("fault", ["close", "reset"])
async def test_where_the_end_was_told_to_us_by_fin_the_server_was_told_too(server: PostgresServer, fault: Any) -> None:
    async with FaultyPath(HOST, server.port, fault, idle_limit=0.3) as path, opened(driver_to(path.port)) as connection:
        await asyncio.sleep(0.6)
        with pytest.raises(ConnectionEnded) as ended:
            await connection.use(1)
        assert (ended.value.ending.signal == "fin") is (fault == "close")
        assert (connection.left_behind() is None) is (fault == "close")


# What is asked


async def test_the_table_of_sessions_is_read_as_far_as_the_server_lets_us(server: PostgresServer) -> None:
    rights = await asyncpg.connect(server.url())
    async with contextlib.AsyncExitStack() as stack:
        connection = await direct(server, stack)
        table = await connection.sessions(5)
        assert table is not None
        assert (table.usable, table.role, table.database) == (297, "app", "postgres")
        assert [(session.pid, session.name) for session in table.sidecars] == [
            (connection.backend_pid, "connhealth/probe")
        ]
        try:
            await rights.execute("REVOKE SELECT ON pg_stat_activity FROM PUBLIC")
            assert await connection.sessions(5) == table
            assert isinstance(await connection.activity(5), Activity)
            await rights.execute("REVOKE EXECUTE ON FUNCTION pg_stat_get_activity FROM PUBLIC")
            assert await connection.sessions(5) is None
            assert connection.refusal is not None
            assert connection.refusal[0] == "42501"
            assert await connection.activity(5) is None
            assert await connection.limit_rest(30, 5) == 30, "without the start of the backend"
            own = connection.left_behind()
            assert own is not None
            assert own.backend_started_at is None
        finally:
            await rights.execute("GRANT EXECUTE ON FUNCTION pg_stat_get_activity TO PUBLIC")
            await rights.execute("GRANT SELECT ON pg_stat_activity TO PUBLIC")
            await rights.close()


async def test_what_was_refused_for_the_moment_is_asked_again(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        await connection._driver.execute("SET statement_timeout = '50ms'")
        forms = ("SELECT pg_sleep(0.2), 'first', NULL", "SELECT 'second', NULL")
        assert await connection._first("question", forms, 5) == ("second", None)
        await connection._driver.execute("RESET statement_timeout")
        assert await connection._first("question", forms, 5) == ("", "first", None)
        assert await connection._first("other", ("SELECT nothing", "SELECT 'second', NULL"), 5) == ("second", None)
        assert connection._levels["other"] == 1


async def test_several_may_ask_at_once(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        for _ in range(20):
            identity, _, told, table, activity, write = await asyncio.gather(
                connection.use(5),
                connection.beat(5),
                connection.declared(5),
                connection.sessions(5),
                connection.activity(5),
                connection.check_write(5),
            )
            assert identity.backend_pid == connection.backend_pid
            assert told is not None
            assert told.max_connections == 300
            assert table is not None
            assert table.role == "app"
            assert activity is not None
            assert activity.role_sessions == 0
            assert write.writable


async def test_behind_a_question_that_is_not_answered_ones_own_deadline_runs(server: PostgresServer) -> None:
    async with FaultyPath(HOST, server.port) as path, opened(driver_to(path.port)) as connection:
        path.pause()
        slow = asyncio.create_task(connection.declared(30))
        await asyncio.sleep(0.2)
        began = boot_time()
        with pytest.raises(ConnectionEnded) as ended:
            await connection.beat(0.4)
        assert 0.39 <= boot_time() - began < 1
        assert ended.value.ending.noticed == Noticed.DEADLINE
        with pytest.raises(ConnectionEnded) as in_front:
            await slow
        assert in_front.value.ending == ended.value.ending
        assert connection.ended_at < inf


async def test_a_queue_that_moves_kills_nobody(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        slow = [connection._ask("SELECT pg_sleep(0.4), NULL", 0.8) for _ in range(4)]
        await asyncio.gather(*slow, connection.beat(0.8))
        assert not connection.ended.done()


async def test_who_gives_up_waiting_takes_nothing_away(server: PostgresServer) -> None:
    async with opened(driver_to(server.port)) as connection:
        slow = asyncio.create_task(connection._ask("SELECT pg_sleep(0.5), NULL", 5))
        waiting = asyncio.create_task(connection.beat(5))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await slow
        await connection.beat(5)


async def test_who_gives_up_his_own_question_leaves_the_connection_to_the_others(
    server: PostgresServer, admin: asyncpg.Connection[Any]
) -> None:
    async with FaultyPath(HOST, server.port) as path, opened(driver_to(path.port)) as connection:
        slow = asyncio.create_task(connection._ask("SELECT pg_sleep(0.5), NULL", 5))
        await asyncio.sleep(0.1)
        waiting = asyncio.create_task(connection.sessions(5))
        slow.cancel()
        table = await waiting
        assert table is not None
        assert connection.refusal is None
        assert path.accepted == 1, "no other one was opened to cancel the query"
        assert not connection.ended.done()
        under_way = asyncio.create_task(connection._ask("SELECT pg_sleep(5), NULL", 5))
        await asyncio.sleep(0.1)
        connection.terminate()
        under_way.cancel()
        with pytest.raises(asyncio.CancelledError):
            await under_way
        await asyncio.sleep(0.1)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "question"]
        assert not connection.ended.done(), "an end that we bring about is none to be reported"
        with pytest.raises(ConnectionEnded):
            await connection.beat(5)


async def test_the_applications_sessions_are_counted_wherever_they_come_from(
    make_server: type[PostgresServer],
) -> None:
    server = make_server()
    server.settings["unix_socket_directories"] = str(server.directory)
    await asyncio.to_thread(server.restart)
    local = {"host": str(server.directory), "port": server.port, "user": "postgres", "database": "postgres"}
    async with contextlib.AsyncExitStack() as stack:
        connection = await direct(server, stack, user="postgres")
        sessions = [await asyncpg.connect(server.url()), await asyncpg.connect(**local), await asyncpg.connect(**local)]
        for session in sessions:
            stack.callback(session.terminate)
            await session.execute("SELECT 1")
        await sessions[-1].execute("BEGIN")
        await asyncio.sleep(0.3)
        seen = await connection.activity(5)
        assert seen is not None
        assert seen.connections == {"active": 0, "idle": 1, "idle_in_transaction": 0}
        assert (seen.role_sessions, seen.role_resting) == (3, 2)
        assert seen.role_longest_rest_seconds is not None
        assert 0.3 <= seen.role_longest_rest_seconds < 30

        await sessions[0].execute("SET track_activities = off")
        unseen = await connection.activity(5)
        assert unseen is not None
        assert (unseen.role_sessions, unseen.role_resting) == (3, None)
