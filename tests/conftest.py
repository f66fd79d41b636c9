"""What the tests share: real PostgreSQL servers and faulty paths to them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server of this test process, for tests that leave it running. Trusts everyone."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def make_server() -> Iterator[Callable[..., PostgresServer]]:
    """`make_server(settings=None, password=None)`: a running server for this test alone, to stop, crash or restart.

    Blocks for about half a second. Ends with the test.
    """
    with contextlib.ExitStack() as servers:

        def make(settings: dict[str, str | int] | None = None, *, password: str | None = None) -> PostgresServer:
            return servers.enter_context(PostgresServer(settings, password=password))

        yield make


@pytest.fixture
async def make_path() -> AsyncIterator[Callable[..., Awaitable[FaultyPath]]]:
    """`await make_path(server, fault="silent", idle_limit=…, lifetime_limit=…)`: a path to it, run by the test's loop.

    Connect with `server.url(port=path.port)`. Ends with the test.
    """
    async with contextlib.AsyncExitStack() as paths:

        async def make(server: PostgresServer, fault: str = "silent", **limits: object) -> FaultyPath:
            return await paths.enter_async_context(FaultyPath(HOST, server.port, fault, **limits))

        yield make
