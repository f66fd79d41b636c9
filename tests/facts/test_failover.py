"""What a client can learn of the server behind its connection, and of a change of it, without privileges."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from sidecar.demo.server import PostgresServer
from sidecar.probes.postgresql.sockets import transport_of
from sidecar.probes.postgresql.wire import Tap

from .client import MakeServer, driver_for


def tapped(driver: Any) -> Tap:
    transport = transport_of(driver)
    tap = Tap(transport.get_protocol())
    transport.set_protocol(tap)
    return tap


async def nothing_arrives(tap: Tap, name: str, seconds: float = 0.5) -> None:
    await asyncio.sleep(seconds)
    assert name not in tap.parameters


async def use_until(driver: Any, holds: Callable[[], object]) -> None:
    """Signals between processes take a moment; a parameter comes with the answer to the first use after them."""
    async with asyncio.timeout(60):
        while not holds():
            await driver.execute("SELECT 1")
            await asyncio.sleep(0.01)


class TestParameterStatus:
    """PostgreSQL 14 and later report both parameters without being asked for them, but not at once: they come with the
    answer to the next query, whatever it is. A resting connection is told nothing."""

    async def test_a_change_to_read_only_comes_with_the_next_answer(self, make_server: MakeServer) -> None:
        server = make_server()
        async with driver_for(server) as driver, driver_for(server) as admin:
            tap = tapped(driver)
            await admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await admin.execute("SELECT pg_reload_conf()")
            await nothing_arrives(tap, "default_transaction_read_only")
            await use_until(driver, lambda: tap.parameters.get("default_transaction_read_only") == "on")

    async def test_a_promotion_comes_with_the_next_answer_and_keeps_the_connection(
        self, standby: PostgresServer
    ) -> None:
        """A standby's connections survive its promotion: for them, this parameter is the only sign of it."""
        async with driver_for(standby) as driver, driver_for(standby) as admin:
            assert driver.get_settings().in_hot_standby == "on"
            tap = tapped(driver)
            assert await admin.fetchval("SELECT pg_promote()")
            await nothing_arrives(tap, "in_hot_standby")
            await use_until(driver, lambda: tap.parameters.get("in_hot_standby") == "off")
            assert not await driver.fetchval("SELECT pg_is_in_recovery()")

    async def test_both_are_known_from_the_start(self, postgres: PostgresServer) -> None:
        async with driver_for(postgres) as driver:
            settings = driver.get_settings()
        assert (settings.in_hot_standby, settings.default_transaction_read_only) == ("off", "off")


class TestIdentity:
    @pytest.mark.parametrize(
        "expression",
        [
            "pg_postmaster_start_time()",
            "inet_server_addr()",
            "inet_server_port()",
            "pg_is_in_recovery()",
            "(SELECT system_identifier FROM pg_control_system())",
            "(SELECT timeline_id FROM pg_control_checkpoint())",
            "pg_backend_pid()",
        ],
    )
    async def test_anybody_may_ask_who_answers(self, postgres: PostgresServer, expression: str) -> None:
        async with driver_for(postgres) as driver:
            await driver.execute("BEGIN; CREATE ROLE nobody_in_particular; SET ROLE nobody_in_particular")
            assert await driver.fetchval(f"SELECT {expression}") is not None

    async def test_a_restart_changes_the_start_time_and_nothing_else(self, make_server: MakeServer) -> None:
        identity = (
            "SELECT system_identifier, timeline_id, pg_postmaster_start_time()"
            " FROM pg_control_system(), pg_control_checkpoint()"
        )
        server = make_server()
        async with driver_for(server) as driver:
            before = await driver.fetchrow(identity)
        await asyncio.to_thread(server.restart)
        async with driver_for(server) as driver:
            after = await driver.fetchrow(identity)
        assert before[:2] == after[:2]
        assert before[2] < after[2]

    async def test_a_promotion_changes_the_timeline(self, standby: PostgresServer) -> None:
        """Told from the control file, which the first checkpoint after the promotion writes."""
        timeline = "SELECT timeline_id FROM pg_control_checkpoint()"
        async with driver_for(standby) as driver:
            before = await driver.fetchval(timeline)
            await driver.execute("SELECT pg_promote()")
            await driver.execute("CHECKPOINT")
            assert await driver.fetchval(timeline) == before + 1


class TestWritability:
    """`SELECT pg_current_xact_id()` needs no table, and takes one transaction id."""

    QUERY = "SELECT pg_current_xact_id()"

    async def test_it_takes_one_transaction_id(self, postgres: PostgresServer) -> None:
        async with driver_for(postgres) as driver:
            await driver.execute("CREATE TEMP TABLE ids (id xid8)")
            taken = [int(await driver.fetchval(f"{self.QUERY}::text")) for _ in range(2)]
        assert taken[1] > taken[0]

    async def test_a_standby_refuses_it(self, standby: PostgresServer) -> None:
        async with driver_for(standby) as driver:
            with pytest.raises(asyncpg.PostgresError) as raised:
                await driver.execute(self.QUERY)
        assert raised.value.sqlstate == "25006"

    async def test_it_does_not_notice_a_primary_set_to_read_only(self, postgres: PostgresServer) -> None:
        """`default_transaction_read_only` stops writes to tables, not the handing out of transaction ids."""
        async with driver_for(postgres) as driver:
            await driver.execute("CREATE TABLE IF NOT EXISTS written (at timestamptz)")
            await driver.execute("SET default_transaction_read_only = on")
            await driver.execute(self.QUERY)
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await driver.execute("INSERT INTO written SELECT now()")
            assert await driver.fetchval("SHOW transaction_read_only") == "on"

    async def test_a_standby_says_so_too_when_asked_for_transaction_read_only(self, standby: PostgresServer) -> None:
        """One question that covers both cases; libpq's `target_session_attrs=read-write` asks it of old servers."""
        async with driver_for(standby) as driver:
            assert await driver.fetchval("SHOW transaction_read_only") == "on"


class TestRefusals:
    """The database is up, and says so by refusing."""

    async def test_a_wrong_password_is_28p01(self, make_server: MakeServer) -> None:
        server = make_server(password="rotated")
        with pytest.raises(asyncpg.InvalidPasswordError) as raised:
            await asyncpg.connect(server.url().replace("rotated", "former"), ssl=False)
        assert raised.value.sqlstate == "28P01"

    async def test_too_many_connections_is_53300(self, make_server: MakeServer) -> None:
        server = make_server({"max_connections": 2, "superuser_reserved_connections": 0, "reserved_connections": 0})
        async with driver_for(server), driver_for(server):
            with pytest.raises(asyncpg.TooManyConnectionsError) as raised:
                await asyncpg.connect(server.url(), ssl=False)
        assert raised.value.sqlstate == "53300"
