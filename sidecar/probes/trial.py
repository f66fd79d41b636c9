"""Runs one trial: a SQLAlchemy engine with exactly the given settings, on the very path.

Nothing is simulated: it is the engine an application would build, down to the socket options. Only two things differ,
and neither changes what is observed: the wait for a hang ends after `patience_seconds` instead of a quarter of an hour,
and what is left over is dropped instead of closed gracefully.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sidecar.core.trials import Setup, TrialResult
from sidecar.probes.endpoint import CannotConnect, Endpoint

CONNECT_SECONDS = 10.0
PATIENCE_SECONDS = 15.0  # longer than TCP_USER_TIMEOUT and asyncpg's graceful close together

CHECKOUT_FAILED = (SQLAlchemyError, CannotConnect, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


class NotBegun(Exception):  # noqa: N818 - no trial, no error
    """Not even the first checkout worked: nothing was tried."""


class _Hang(Exception):  # noqa: N818 - what an application would call its quarter of an hour
    """Nobody answered, and nothing ended the wait."""


async def try_out(
    endpoint: Endpoint, setup: Setup, rest_seconds: float, *, patience_seconds: float = PATIENCE_SECONDS
) -> TrialResult:
    """Check out, use, rest, check out again and use.

    Raises NotBegun when not even the first checkout worked.
    """
    opened: list[asyncpg.Connection[Any]] = []

    async def connect() -> asyncpg.Connection[Any]:
        driver = await endpoint.connect(
            "trial",
            deadline_seconds=CONNECT_SECONDS,
            keepalive=setup.keepalive,
            user_timeout_ms=setup.user_timeout_ms,
        )
        opened.append(driver)
        return driver

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_size=1,
        max_overflow=0,
        pool_recycle=int(setup.pool_recycle),
        pool_pre_ping=setup.pool_pre_ping,
    )
    loop = asyncio.get_running_loop()
    try:
        try:
            await _query(engine, patience_seconds)
        except (_Hang, *CHECKOUT_FAILED) as failure:
            raise NotBegun(str(failure)) from failure
        before, rested_from = len(opened), loop.time()
        await asyncio.sleep(rest_seconds)
        asked = loop.time()
        outcome, error = "ok", None
        try:
            await _query(engine, patience_seconds)
        except _Hang:
            outcome, error = "hang", f"no answer within {patience_seconds:g} s"
        except CHECKOUT_FAILED as failure:
            cause = getattr(failure, "orig", None) or failure
            outcome, error = "error", f"{type(cause.__cause__ or cause).__name__}: {cause.__cause__ or cause}"
        return TrialResult(
            setup=setup,
            at=time.time(),
            idle_seconds=asked - rested_from,
            outcome=outcome,
            checkout_seconds=loop.time() - asked if outcome == "ok" else None,
            reconnected=len(opened) > before if outcome == "ok" else None,
            error=error,
        )
    finally:
        for driver in opened:
            driver.terminate()
        await engine.dispose(close=False)


async def _query(engine: AsyncEngine, patience_seconds: float) -> None:
    """One checkout with one query, as an application does it. One that hangs is left to its fate."""
    task = asyncio.create_task(_checkout_and_query(engine), name="trial")
    done, _ = await asyncio.wait({task}, timeout=patience_seconds)
    if not done:
        task.cancel()
        raise _Hang
    await task


async def _checkout_and_query(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT 1")
        await connection.rollback()
