"""A real standby, for the facts about promotion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from sidecar.demo.server import PostgresServer


async def promoted(server: PostgresServer) -> bool | None:
    """Whether it is; None while it takes no connections."""
    try:
        driver = await asyncpg.connect(server.url(), ssl=False)
    except (OSError, asyncpg.CannotConnectNowError):
        return None
    try:
        return not await driver.fetchval("SELECT pg_is_in_recovery()")
    finally:
        driver.terminate()


@pytest.fixture
async def standby(servers_directory: Path | None) -> AsyncIterator[PostgresServer]:
    """A server in recovery that takes connections, free to be promoted. It follows nobody: no fact needs that."""
    server = PostgresServer(under=servers_directory)
    try:
        (server.directory / "data" / "standby.signal").touch()
        # `start` waits for a server that takes writes, so it returns with the promotion.
        starting = asyncio.create_task(asyncio.to_thread(server.start))
        async with asyncio.timeout(60):
            while await promoted(server) is None:  # noqa: ASYNC110 - what is waited for has no event
                await asyncio.sleep(0.02)
        yield server
        if not await promoted(server):
            driver = await asyncpg.connect(server.url(), ssl=False)
            await driver.execute("SELECT pg_promote()")
            await driver.close()
        await starting
    finally:
        await asyncio.to_thread(server.close)
