"""How the end of a resting connection shows: what is noticed, when, by whom, and in which words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from sidecar.demo.server import PostgresServer
from sidecar.probes.postgresql.sockets import transport_of
from sidecar.probes.postgresql.wire import Tap

from .client import MakePath, MakeServer, driver_for, until


class Witness:
    """What the two public listeners of asyncpg, and a tap beside them, get to see of one connection."""

    def __init__(self, driver: Any) -> None:
        self.terminated = False
        self.logged: list[Any] = []
        driver.add_termination_listener(self._terminated)
        driver.add_log_listener(self._logged)
        transport = transport_of(driver)
        self.tap = Tap(transport.get_protocol())
        transport.set_protocol(self.tap)

    def _terminated(self, _driver: Any) -> None:
        self.terminated = True

    def _logged(self, _driver: Any, message: Any) -> None:
        self.logged.append(message)

    @property
    def last_words(self) -> tuple[str, str, str]:
        """Severity, SQLSTATE and text of the last ErrorResponse or warning on the wire."""
        error = self.tap.error or {}
        return error.get("V", ""), error.get("C", ""), error.get("M", "")


@asynccontextmanager
async def resting(
    server: PostgresServer, port: int | None = None, **settings: str
) -> AsyncIterator[tuple[Any, Witness]]:
    async with driver_for(server, port, server_settings=settings) as driver:
        witness = Witness(driver)
        # A backend told to die while it still finishes the last answer dies without a word (1 of 25 trials on a busy
        # machine): last words are best effort, and the facts here are about connections at rest.
        await asyncio.sleep(0.2)
        yield driver, witness


class TestFatal:
    """The server says why, then FIN; asyncpg notices at once and forgets what was said."""

    async def test_the_reason_is_on_the_wire_and_nowhere_else(self, postgres: PostgresServer) -> None:
        """57P05, the one true idle limit of PostgreSQL. The log listener, meant for messages, does not get it."""
        async with resting(postgres, idle_session_timeout="300") as (driver, witness):
            await until(lambda: witness.terminated)
            assert driver.is_closed()
            assert witness.last_words == (
                "FATAL",
                "57P05",
                "terminating connection due to idle-session timeout",
            )
            await asyncio.sleep(0.1)
            assert witness.logged == []
            with pytest.raises(asyncpg.InterfaceError, match="connection is closed"):
                await driver.execute("SELECT 1")

    async def test_the_log_listener_works_for_lesser_messages(self, postgres: PostgresServer) -> None:
        async with resting(postgres) as (driver, witness):
            await driver.execute("DO $$ BEGIN RAISE WARNING 'heard'; END $$")
            await until(lambda: witness.logged)
        assert witness.logged[0].message == "heard"

    async def test_pg_terminate_backend_is_57p01(self, postgres: PostgresServer) -> None:
        async with resting(postgres) as (driver, witness), driver_for(postgres) as admin:
            await admin.execute(f"SELECT pg_terminate_backend({driver.get_server_pid()})")
            await until(lambda: witness.terminated)
        assert witness.last_words == ("FATAL", "57P01", "terminating connection due to administrator command")

    async def test_a_fast_stop_is_the_same_57p01(self, make_server: MakeServer) -> None:
        """Nothing tells it from a terminated backend but that connecting fails afterwards."""
        server = make_server()
        async with resting(server) as (_, witness):
            await asyncio.to_thread(server.stop, "fast")
            await until(lambda: witness.terminated)
        assert witness.last_words == ("FATAL", "57P01", "terminating connection due to administrator command")

    async def test_an_immediate_stop_is_a_warning_57p01(self, make_server: MakeServer) -> None:
        server = make_server()
        async with resting(server) as (_, witness):
            await asyncio.to_thread(server.stop, "immediate")
            await until(lambda: witness.terminated)
        severity, sqlstate, text = witness.last_words
        assert (severity, sqlstate) == ("WARNING", "57P01")
        assert "immediate shutdown command" in text

    async def test_the_crash_of_another_backend_is_a_warning_57p02(self, make_server: MakeServer) -> None:
        server = make_server()
        async with resting(server) as (_, witness), driver_for(server) as victim:
            os.kill(victim.get_server_pid(), signal.SIGKILL)
            await until(lambda: witness.terminated)
        severity, sqlstate, text = witness.last_words
        assert (severity, sqlstate) == ("WARNING", "57P02")
        assert "crash of another server process" in text

    async def test_connecting_while_the_server_stops_is_57p03(self, make_server: MakeServer) -> None:
        """A smart stop waits for the sessions there are and refuses new ones."""
        server = make_server()
        async with driver_for(server):
            stopping = asyncio.create_task(asyncio.to_thread(server.stop, "smart"))
            await until(lambda: "received smart shutdown request" in server.log.read_text())
            with pytest.raises(asyncpg.CannotConnectNowError) as raised:
                await asyncpg.connect(server.url(), ssl=False)
        await stopping
        assert raised.value.sqlstate == "57P03"
        assert "the database system is shutting down" in str(raised.value)

    @pytest.mark.parametrize(
        ("setting", "sqlstate"),
        [("idle_in_transaction_session_timeout", "25P03"), ("transaction_timeout", "25P04")],
    )
    async def test_25p03_and_25p04_end_transactions_not_rests(
        self, postgres: PostgresServer, setting: str, sqlstate: str
    ) -> None:
        async with (
            resting(postgres, **{setting: "300"}) as (idle, _),
            resting(postgres, **{setting: "300"}) as (in_transaction, witness),
        ):
            await in_transaction.execute("BEGIN")
            await until(lambda: witness.terminated)
            assert witness.last_words[:2] == ("FATAL", sqlstate)
            await idle.execute("SELECT 1")


class TestOnThePath:
    async def test_a_fin_is_noticed_at_once(self, postgres: PostgresServer, make_path: MakePath) -> None:
        path = await make_path(postgres, fault="close", idle_limit=0.4)
        async with resting(postgres, path.port) as (driver, witness):
            await until(lambda: witness.terminated)
            assert driver.is_closed()
        assert witness.tap.error is None

    async def test_a_reset_is_noticed_at_once(self, postgres: PostgresServer, make_path: MakePath) -> None:
        path = await make_path(postgres)
        async with resting(postgres, path.port) as (driver, witness):
            path.reset_all()
            await until(lambda: witness.terminated)
            assert driver.is_closed()

    async def test_reset_on_use_is_found_only_by_using(self, postgres: PostgresServer, make_path: MakePath) -> None:
        path = await make_path(postgres, fault="reset", idle_limit=0.4)
        async with resting(postgres, path.port) as (driver, witness):
            await asyncio.sleep(0.5)
            assert not witness.terminated
            with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionResetError)):
                await driver.execute("SELECT 1")
            assert driver.is_closed()

    async def test_silence_is_found_only_by_a_deadline(self, postgres: PostgresServer, make_path: MakePath) -> None:
        path = await make_path(postgres, fault="silent", idle_limit=0.4)
        async with resting(postgres, path.port) as (driver, witness):
            await asyncio.sleep(0.5)
            use = asyncio.create_task(driver.execute("SELECT 1"))
            done, _ = await asyncio.wait({use}, timeout=1)
            assert not done
            assert not witness.terminated
            driver.terminate()  # nothing less ends it at once
            with pytest.raises(asyncpg.ConnectionDoesNotExistError):
                await asyncio.wait_for(use, 0.5)

    async def test_a_graceful_close_waits_where_terminate_does_not(
        self, postgres: PostgresServer, make_path: MakePath
    ) -> None:
        path = await make_path(postgres)
        async with driver_for(postgres, path.port) as waiting, driver_for(postgres, path.port) as dropped:
            path.pause()
            with pytest.raises(TimeoutError):
                await waiting.close(timeout=0.3)
            dropped.terminate()
            assert dropped.is_closed()


async def test_readable_data_is_not_death(postgres: PostgresServer) -> None:
    """A server may speak to a resting connection, here by a notification; some poolers do so every minute."""
    heard = asyncio.Event()
    async with resting(postgres) as (driver, witness), driver_for(postgres) as other:
        await driver.add_listener("news", lambda *_: heard.set())
        await other.execute("NOTIFY news")
        await asyncio.wait_for(heard.wait(), 60)
        assert not witness.terminated
        assert await driver.fetchval("SELECT 1") == 1


class TestTap:
    """`set_protocol` with a protocol that forwards everything is how the message can be had."""

    async def test_the_driver_works_on_behind_it(self, postgres: PostgresServer) -> None:
        """Answers larger than one read and a COPY that has writing paused and resumed go through unharmed."""
        async with resting(postgres) as (driver, _):
            assert len(await driver.fetchval("SELECT repeat('x', 3000000)")) == 3_000_000
            await driver.execute("CREATE TEMP TABLE kept (body text)")
            await driver.copy_records_to_table("kept", records=[("y" * 10_000,) for _ in range(500)])
            assert await driver.fetchval("SELECT count(*) FROM kept") == 500
            with contextlib.suppress(asyncpg.PostgresError):
                await driver.execute("SELECT 1/0")
            assert await driver.fetchval("SELECT 1") == 1

    def test_it_works_under_uvloop(self, make_server: MakeServer) -> None:
        uvloop = pytest.importorskip("uvloop")
        server = make_server()

        async def trial() -> tuple[str, str, str]:
            async with resting(server, idle_session_timeout="300") as (_, witness):
                await until(lambda: witness.terminated)
                return witness.last_words

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            assert runner.run(trial())[:2] == ("FATAL", "57P05")
