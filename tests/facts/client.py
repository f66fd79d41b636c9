"""Small shortcuts to what the tests of the facts do over and over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import PostgresServer

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]

ASYNCPG = tuple(int(part) for part in asyncpg.__version__.split(".")[:2])


@asynccontextmanager
async def engine_for(server: PostgresServer, port: int | None = None, **arguments: Any) -> AsyncIterator[AsyncEngine]:
    """An engine with a pool of one, or as the `arguments` say. At the end its connections are dropped, not closed."""
    url = server.url(port=port, scheme="postgresql+asyncpg")
    engine = create_async_engine(url, **{"pool_size": 1, "max_overflow": 0, **arguments})

    @event.listens_for(engine.sync_engine, "close")
    def _drop(_connection: Any, entry: Any) -> None:
        if leaving:
            entry.driver_connection.terminate()

    leaving = False
    try:
        yield engine
    finally:
        leaving = True
        await engine.dispose()


@asynccontextmanager
async def driver_for(server: PostgresServer, port: int | None = None, **arguments: Any) -> AsyncIterator[Any]:
    """A bare driver connection, terminated at the end."""
    driver = await asyncpg.connect(server.url(port=port), ssl=False, **arguments)
    try:
        yield driver
    finally:
        driver.terminate()


async def borrow(engine: AsyncEngine) -> int:
    """Check out, ask for the backend's pid, check in."""
    async with engine.connect() as connection:
        return int((await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one())


async def until(holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait for something that happens elsewhere. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
