"""SQLAlchemy's pre-ping over asyncpg: what it sends, what it sees, what it misses, and what ends it."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, DisconnectionError

from sidecar.core.advice import ping_cost as latency
from sidecar.demo.server import HOST, PostgresServer

from .client import ASYNCPG, MakePath, MakeServer, borrow, engine_for, until
from .wire import recording

BEGIN, PARSE, EXECUTE, ROLLBACK = "Q", "PDH", "BES", "Q"
UNNAMED = "PBES"  # parse, bind and execute at once, the statement having no name to be found by later


async def pings(server: PostgresServer, count: int = 4, **arguments: Any) -> list[list[str]]:
    """What each of `count` checkouts of one connection, the first one opening it, puts on the wire before its use."""
    seen = []
    async with (
        recording(HOST, server.port) as wire,
        engine_for(server, wire.port, pool_pre_ping=True, **arguments) as engine,
    ):
        for _ in range(count):
            async with engine.connect():
                seen.append(wire.take())
            wire.take()
    return seen


class TestOnTheWire:
    """Counted flight by flight. Why there is a transaction around the ping: SQLAlchemy #10226."""

    async def test_a_ping_is_a_transaction_around_an_empty_query(self, postgres: PostgresServer) -> None:
        """Three round trips, and once on each connection a fourth, to parse; not the one `SELECT 1` often told of."""
        _opening, first, *later = await pings(postgres)
        assert first == [BEGIN, PARSE, EXECUTE, ROLLBACK]
        assert later == [[BEGIN, EXECUTE, ROLLBACK]] * 2
        assert len(later[0]) == latency.PING_ROUND_TRIPS

    async def test_what_is_executed_is_the_empty_query(self, postgres: PostgresServer) -> None:
        async with (
            recording(HOST, postgres.port) as wire,
            engine_for(postgres, wire.port, pool_pre_ping=True) as engine,
        ):
            await borrow(engine)
            wire.take()
            async with engine.connect():
                queries = [body.rstrip(b"\0") for kind, body in wire.messages if kind == "Q"]
                parsed = [body for kind, body in wire.messages if kind == "P"]
        assert queries == [b"BEGIN;", b"ROLLBACK;"]
        assert [body.split(b"\0")[1] for body in parsed] == [b";"]

    async def test_without_statement_caches_every_ping_parses(self, postgres: PostgresServer) -> None:
        """What poolers that swap backends need costs four round trips a ping, always."""
        _opening, *later = await pings(
            postgres, connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0}
        )
        assert later == [[BEGIN, PARSE, UNNAMED, ROLLBACK]] * 3
        assert len(later[0]) == latency.PING_ROUND_TRIPS_UNCACHED

    async def test_under_autocommit_a_ping_is_one_round_trip(self, postgres: PostgresServer) -> None:
        """There is no transaction then; two the first time."""
        _opening, first, *later = await pings(postgres, isolation_level="AUTOCOMMIT")
        assert first == [PARSE, EXECUTE]
        assert later == [[EXECUTE]] * 2
        assert len(later[0]) == latency.PING_ROUND_TRIPS_AUTOCOMMIT

    async def test_a_connection_just_opened_is_not_pinged(self, postgres: PostgresServer) -> None:
        """Opening sends as much with pre-ping as without."""
        (opening,) = await pings(postgres, count=1)
        async with (
            recording(HOST, postgres.port) as wire,
            engine_for(postgres, wire.port) as engine,
            engine.connect(),
        ):
            assert wire.take() == opening


class TestOnADeadPath:
    async def test_nothing_bounds_a_ping(self, postgres: PostgresServer, make_path: MakePath) -> None:
        """On a path that swallows packets it hangs; neither SQLAlchemy nor asyncpg has a deadline for it.

        Only the kernel gives up, after about 15 minutes (tcp_retries2 = 15 on Linux). Here the path heals before.
        """
        path = await make_path(postgres)
        async with engine_for(postgres, path.port, pool_pre_ping=True, pool_timeout=0.1) as engine:
            before = await borrow(engine)
            path.pause()
            checkout = asyncio.create_task(borrow(engine))
            await asyncio.sleep(1.5)
            assert not checkout.done()
            path.resume()
            assert await checkout == before

    @pytest.mark.skipif(ASYNCPG < (0, 32), reason="asyncpg 0.31 hangs all the same, as pinned below")
    async def test_command_timeout_turns_the_hang_into_an_error_of_the_application(
        self, postgres: PostgresServer, make_path: MakePath
    ) -> None:
        """asyncpg 0.32: after the time given, and as long again to cancel in vain (at most 2 s), a bare TimeoutError.

        It is no DBAPI error: the pool does not reconnect for this checkout, and does not doubt its other connections,
        so that each dead one costs a request.
        """
        path = await make_path(postgres, fault="silent", idle_limit=0.3)
        arguments = {"pool_pre_ping": True, "pool_size": 2, "connect_args": {"command_timeout": 0.5}}
        async with engine_for(postgres, path.port, **arguments) as engine:
            async with engine.connect(), engine.connect():
                pass
            await asyncio.sleep(0.6)
            started = time.monotonic()
            outcomes = await asyncio.gather(borrow(engine), borrow(engine), return_exceptions=True)
            assert [type(outcome) for outcome in outcomes] == [TimeoutError] * 2
            assert not isinstance(outcomes[0], DBAPIError)
            assert time.monotonic() - started >= 0.99
            assert await borrow(engine)  # both were discarded, so the third opens a new one

    @pytest.mark.skipif(ASYNCPG >= (0, 32), reason="from asyncpg 0.32 on it ends, as pinned above")
    async def test_command_timeout_does_not_end_the_hang(self, postgres: PostgresServer, make_path: MakePath) -> None:
        """asyncpg 0.31: the timeout passes, and what follows it waits for the server all the same."""
        path = await make_path(postgres)
        arguments = {"pool_pre_ping": True, "connect_args": {"command_timeout": 0.3}}
        async with engine_for(postgres, path.port, **arguments) as engine:
            await borrow(engine)
            path.pause()
            checkout = asyncio.create_task(borrow(engine))
            await asyncio.sleep(4)
            assert not checkout.done()
            checkout.cancel()
            await asyncio.gather(checkout, return_exceptions=True)

    @pytest.mark.parametrize("fault", ["reset", "close"])
    async def test_where_the_path_answers_a_ping_saves_the_checkout(
        self, postgres: PostgresServer, make_path: MakePath, fault: str
    ) -> None:
        """RST on use, or FIN while it rested: the connection is replaced, the application sees nothing."""
        path = await make_path(postgres, fault=fault, idle_limit=0.3)
        async with engine_for(postgres, path.port, pool_pre_ping=True) as engine:
            before = await borrow(engine)
            await asyncio.sleep(0.6)
            assert await borrow(engine) != before

    @pytest.mark.parametrize("fault", ["reset", "close"])
    async def test_without_a_ping_the_application_gets_the_error(
        self, postgres: PostgresServer, make_path: MakePath, fault: str
    ) -> None:
        path = await make_path(postgres, fault=fault, idle_limit=0.3)
        async with engine_for(postgres, path.port) as engine:
            await borrow(engine)
            await asyncio.sleep(0.6)
            with pytest.raises(DBAPIError) as raised:
                await borrow(engine)
        assert raised.value.connection_invalidated

    async def test_a_failed_ping_condemns_the_whole_pool(self, make_server: MakeServer) -> None:
        """One failed ping, and the other connections are replaced unasked: a restart costs each of them no error."""
        server = make_server()
        pings = 0
        async with engine_for(server, pool_pre_ping=True, pool_size=3) as engine:
            do_ping = engine.dialect.do_ping

            def counting(connection: Any) -> bool:
                nonlocal pings
                pings += 1
                return do_ping(connection)

            engine.dialect.do_ping = counting  # type: ignore[method-assign]
            async with engine.connect(), engine.connect(), engine.connect():
                pass
            await asyncio.to_thread(server.restart)
            async with engine.connect(), engine.connect(), engine.connect():
                pass
            assert pings == 1


class TestDemotedPrimary:
    """A server that takes connections and answers pings, but no longer takes writes (Django #37075, gpustack #6105)."""

    async def demote(self, server: PostgresServer) -> None:
        """What a client sees of a demotion that leaves its connection open: read-only from one moment to the next."""
        driver = await asyncpg.connect(server.url())
        await driver.execute("CREATE TABLE written (at timestamptz)")
        await driver.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await driver.execute("SELECT pg_reload_conf()")
        await driver.close()

    async def write(self, engine: Any) -> None:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO written SELECT now()")

    async def refusal(self, engine: Any, seconds: float = 60) -> DBAPIError:
        """The first write refused; the reload takes a moment to reach the backend."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await self.write(engine)
                except DBAPIError as error:
                    return error
                await asyncio.sleep(0.02)

    async def test_pings_pass_and_every_write_fails_on_the_same_connection(self, make_server: MakeServer) -> None:
        server = make_server()
        async with engine_for(server, pool_pre_ping=True) as engine:
            before = await borrow(engine)
            await self.demote(server)
            for _ in range(3):
                error = await self.refusal(engine)
                assert error.orig.sqlstate == "25006"  # type: ignore[union-attr]
                assert not error.connection_invalidated
            assert await borrow(engine) == before

    async def test_a_handle_error_listener_makes_it_a_disconnect(self, make_server: MakeServer) -> None:
        """One write fails; the next checkout opens a connection, which may lead to the new primary."""
        server = make_server()
        async with engine_for(server, pool_pre_ping=True) as engine:

            @event.listens_for(engine.sync_engine, "handle_error")
            def stale_writer(context: Any) -> None:
                if getattr(context.original_exception, "sqlstate", None) == "25006":
                    context.is_disconnect = True

            before = await borrow(engine)
            await self.demote(server)
            error = await self.refusal(engine)
            assert error.connection_invalidated
            assert await borrow(engine) != before


class TestSelectively:
    """Pinging only what rested longer than a threshold, in a `checkout` listener."""

    def ping_after(self, engine: Any, seconds: float, failure: type[Exception]) -> list[float]:
        """The rests after which it pinged."""
        pinged = []

        @event.listens_for(engine.sync_engine, "checkin")
        def note(_connection: Any, entry: Any) -> None:
            entry.info["rests_since"] = time.monotonic()

        @event.listens_for(engine.sync_engine, "checkout")
        def check(connection: Any, entry: Any, _proxy: Any) -> None:
            rested = time.monotonic() - entry.info.get("rests_since", time.monotonic())
            if rested > seconds:
                pinged.append(rested)
                try:
                    connection.ping()
                except Exception as error:
                    raise failure("ping failed") from error

        return pinged

    async def test_it_pings_the_rested_and_spares_the_busy(self, postgres: PostgresServer) -> None:
        async with recording(HOST, postgres.port) as wire, engine_for(postgres, wire.port) as engine:
            pinged = self.ping_after(engine, 0.3, DisconnectionError)
            await borrow(engine)
            wire.take()
            async with engine.connect():
                assert wire.take() == []
            await asyncio.sleep(0.4)
            async with engine.connect():
                assert wire.take() == [BEGIN, PARSE, EXECUTE, ROLLBACK]  # the same ping, for the first time
            assert len(pinged) == 1

    @pytest.mark.parametrize("fault", ["reset", "close"])
    async def test_a_disconnection_error_has_the_connection_replaced(
        self, postgres: PostgresServer, make_path: MakePath, fault: str
    ) -> None:
        """And the new one starts with empty `info`: the time of check-in goes with the connection it belongs to."""
        path = await make_path(postgres, fault=fault, idle_limit=0.3)
        async with engine_for(postgres, path.port) as engine:
            pinged = self.ping_after(engine, 0.4, DisconnectionError)
            before = await borrow(engine)
            await asyncio.sleep(0.6)
            assert await borrow(engine) != before
            assert len(pinged) == 1

    async def test_any_other_exception_reaches_the_application(
        self, postgres: PostgresServer, make_path: MakePath
    ) -> None:
        path = await make_path(postgres, fault="close", idle_limit=0.3)
        async with engine_for(postgres, path.port) as engine:
            self.ping_after(engine, 0.4, ConnectionError)
            await borrow(engine)
            await asyncio.sleep(0.6)
            with pytest.raises(ConnectionError, match="ping failed"):
                await borrow(engine)


class TestStatementCaches:
    """A pooler that swaps backends loses the prepared statements of a session. Here the backend forgets them itself."""

    CACHES = pytest.mark.parametrize(("asyncpg_cache", "sqlalchemy_cache"), [(0, 0), (0, 100), (100, 0), (100, 100)])

    @CACHES
    async def test_only_asyncpg_s_cache_decides_whether_statements_have_names(
        self, postgres: PostgresServer, asyncpg_cache: int, sqlalchemy_cache: int
    ) -> None:
        """Without a name a statement is parsed again wherever it is executed, so no backend needs to remember it."""
        caches = {"statement_cache_size": asyncpg_cache, "prepared_statement_cache_size": sqlalchemy_cache}
        async with (
            recording(HOST, postgres.port) as wire,
            engine_for(postgres, wire.port, pool_pre_ping=True, connect_args=caches) as engine,
        ):
            await borrow(engine)
            wire.take()
            await borrow(engine)
            names = {body.split(b"\0")[0] != b"" for kind, body in wire.messages if kind == "P"}
        assert names == {asyncpg_cache > 0}

    @CACHES
    async def test_a_forgotten_statement_fails_the_next_checkout(
        self, postgres: PostgresServer, asyncpg_cache: int, sqlalchemy_cache: int
    ) -> None:
        """Even in the ping, and there it is no disconnect: the application gets 26000."""
        caches = {"statement_cache_size": asyncpg_cache, "prepared_statement_cache_size": sqlalchemy_cache}
        async with engine_for(postgres, pool_pre_ping=True, connect_args=caches) as engine:
            await borrow(engine)
            async with engine.connect() as connection:
                raw = await connection.get_raw_connection()
                await raw.driver_connection.execute("DEALLOCATE ALL")
            if asyncpg_cache == 0:
                await borrow(engine)
                return
            with pytest.raises(DBAPIError) as raised:
                await borrow(engine)
        assert raised.value.orig.sqlstate == "26000"  # type: ignore[union-attr]
        assert not raised.value.connection_invalidated


async def test_the_driver_knows_of_a_close_before_the_ping_does(postgres: PostgresServer, make_path: MakePath) -> None:
    """asyncpg reads while a connection rests: the ping then fails without sending anything."""
    path = await make_path(postgres, fault="close", idle_limit=0.3)
    async with recording(HOST, path.port) as wire, engine_for(postgres, wire.port) as engine:
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            driver = raw.driver_connection
        wire.take()
        await until(driver.is_closed)
        with pytest.raises(DBAPIError):
            await borrow(engine)
        assert wire.take() == []
