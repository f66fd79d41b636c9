"""`pool_recycle`: an age, looked at only when a connection is handed out."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sidecar.demo.server import PostgresServer

from .client import MakePath, borrow, engine_for


@pytest.mark.parametrize("recycle", [1, 0.6])
async def test_it_counts_age_not_idleness(postgres: PostgresServer, recycle: float) -> None:
    """A connection that never rests longer than a fraction of it is replaced all the same, once it is that old; and a
    fraction of a second is not taken for 0, which would replace at every checkout.
    """
    async with engine_for(postgres, pool_recycle=recycle) as engine:
        opened = time.time()
        first = await borrow(engine)
        busy = []
        while (pid := await borrow(engine)) == first:
            busy.append(pid)
            await asyncio.sleep(0.1)
        replaced_after = time.time() - opened
    assert len(busy) > 2
    assert recycle <= replaced_after < 5


async def test_it_closes_nothing_by_itself(postgres: PostgresServer) -> None:
    """A connection past its age stays open on both sides until somebody asks for it, and only then is replaced."""
    async with engine_for(postgres, pool_recycle=1) as engine:
        first = await borrow(engine)
        await asyncio.sleep(1.2)
        async with engine_for(postgres) as other, other.connect() as connection:
            alive = await connection.exec_driver_sql(f"SELECT state FROM pg_stat_activity WHERE pid = {first}")
            assert alive.scalar_one() == "idle"
        assert await borrow(engine) != first


async def test_a_connection_in_use_is_left_alone(postgres: PostgresServer) -> None:
    """Age does not end a long transaction."""
    async with engine_for(postgres, pool_recycle=1) as engine, engine.connect() as connection:
        before = (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()
        await asyncio.sleep(1.2)
        assert (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one() == before


async def test_below_the_idle_limit_it_is_proof_against_idle_death(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    """No ping, rests on both sides of the limit, no error: what is handed out is younger than the limit."""
    path = await make_path(postgres, fault="reset", idle_limit=1.5)
    async with engine_for(postgres, path.port, pool_recycle=1) as engine:
        await borrow(engine)
        for rest_seconds in (0.6, 1.8):
            await asyncio.sleep(rest_seconds)
            await borrow(engine)


async def test_above_the_idle_limit_lies_a_window_of_errors(postgres: PostgresServer, make_path: MakePath) -> None:
    """A rest longer than the limit with an age below `pool_recycle` hands out what is dead."""
    path = await make_path(postgres, fault="reset", idle_limit=0.3)
    async with engine_for(postgres, path.port, pool_recycle=60) as engine:
        await borrow(engine)
        await asyncio.sleep(0.6)
        with pytest.raises(DBAPIError):
            await borrow(engine)


@pytest.mark.parametrize("pre_ping", [True, False])
async def test_replacing_a_silently_dropped_connection_waits_two_seconds_for_a_goodbye(
    postgres: PostgresServer, make_path: MakePath, pre_ping: bool
) -> None:
    """At checkout, before the new connection is opened: SQLAlchemy closes gracefully, with 2 s for it.

    Pre-ping changes nothing, age being looked at first.
    """
    path = await make_path(postgres, fault="silent", idle_limit=0.3)
    async with engine_for(postgres, path.port, pool_recycle=1, pool_pre_ping=pre_ping) as engine:
        before = await borrow(engine)
        await asyncio.sleep(1.2)
        started = time.monotonic()
        assert await borrow(engine) != before
        assert time.monotonic() - started >= 2


async def test_a_close_listener_that_drops_the_connection_saves_the_two_seconds(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    """The pool tells before it closes; a driver connection dropped by then has nothing left to wait for."""
    path = await make_path(postgres, fault="silent", idle_limit=0.3)
    async with engine_for(postgres, path.port, pool_recycle=1) as engine:

        @event.listens_for(engine.sync_engine, "close")
        def drop(_connection: Any, entry: Any) -> None:
            entry.driver_connection.terminate()

        before = await borrow(engine)
        await asyncio.sleep(1.2)
        async with asyncio.timeout(1.9):
            assert await borrow(engine) != before


async def test_what_was_opened_together_is_replaced_together(postgres: PostgresServer) -> None:
    """There is no jitter (PostHog #49745): a pool filled by a burst pays for all its connections in one later burst."""
    async with engine_for(postgres, pool_size=4, pool_recycle=1) as engine:

        async def burst() -> set[int]:
            connections = [await engine.connect() for _ in range(4)]
            pid = "SELECT pg_backend_pid()"
            pids = {(await connection.exec_driver_sql(pid)).scalar_one() for connection in connections}
            for connection in connections:
                await connection.close()
            return pids

        first = kept = await burst()
        kept_after = []
        while kept:
            await asyncio.sleep(0.02)
            kept = first & await burst()
            kept_after.append(len(kept))
    assert len([count for count in kept_after if count < 4]) <= 2  # at most one burst fell between two ages


async def test_an_exhausted_pool_is_cured_by_neither_setting(postgres: PostgresServer) -> None:
    """Connections not given back, or held by slow work: the limit is reached whatever is pinged or recycled."""
    arguments = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.2, "pool_pre_ping": True, "pool_recycle": 1}
    async with engine_for(postgres, **arguments) as engine, engine.connect(), engine.connect():
        with pytest.raises(PoolTimeoutError, match="QueuePool limit of size 1 overflow 1 reached"):
            await borrow(engine)
