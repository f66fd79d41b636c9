"""SQLAlchemy's pool over asyncpg behind a firewall that forgets: what pre-ping does there, what socket options change.

A relay in user space acknowledges what it swallows, so only the lab can tell. Everything is tried at the same time.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from lab.test_lab import KEEPALIVE, SERVER_KEEPALIVE, SocketOptions
from testing.lab import Endpoint, Lab, boxes

pytestmark = pytest.mark.lab
if sys.platform != "linux":
    pytest.skip("the lab is made of Linux network namespaces", allow_module_level=True)

LIMIT = 3  # seconds
USER_TIMEOUT_SECONDS = 1.5
USER_TIMEOUT: SocketOptions = [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(USER_TIMEOUT_SECONDS * 1000))]
PATIENCE = 5.0  # after which a checkout is said to hang; the kernel alone takes about 15 minutes


@dataclass(frozen=True, slots=True)
class Checkout:
    """Of a connection that rested beyond the limit."""

    seconds: float
    same_connection: bool = False
    error: BaseException | None = None


async def checkout_after_rest(
    endpoint: Endpoint,
    *,
    socket_options: SocketOptions = (),
    connect_args: Mapping[str, Any] | None = None,
    **pool: object,
) -> Checkout:
    engine = create_async_engine(
        endpoint.url, pool_size=1, max_overflow=0, connect_args={"ssl": False, **(connect_args or {})}, **pool
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_socket_options(_connection: Any, entry: Any) -> None:
        sock = entry.driver_connection._transport.get_extra_info("socket")
        for option in socket_options:
            sock.setsockopt(*option)

    opened: list[Any] = []
    event.listen(engine.sync_engine, "connect", lambda _connection, entry: opened.append(entry.driver_connection))

    async def borrow() -> Any:
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql("SELECT pg_backend_pid()")).scalar_one()

    before = await borrow()
    await asyncio.sleep(LIMIT + 1)
    started = time.monotonic()
    try:
        async with asyncio.timeout(PATIENCE) as patience:
            same = await borrow() == before
    except Exception as error:
        hung = patience.expired()
        return Checkout(time.monotonic() - started, error=None if hung else error)
    else:
        return Checkout(time.monotonic() - started, same_connection=same)
    finally:
        for driver in opened:
            driver.terminate()
        await engine.dispose()


@pytest.fixture(scope="module")
def checkouts(lab: Lab) -> Mapping[str, Checkout]:
    path = lab.path(lab.postgres())
    endpoint = boxes.conntrack(path, LIMIT, answer="drop")

    async def try_all() -> Mapping[str, Checkout]:
        trials = {
            "pre-ping": checkout_after_rest(endpoint, pool_pre_ping=True),
            "user timeout": checkout_after_rest(endpoint, pool_pre_ping=True, socket_options=USER_TIMEOUT),
            "user timeout, no ping": checkout_after_rest(endpoint, socket_options=USER_TIMEOUT),
            "keepalive": checkout_after_rest(endpoint, socket_options=KEEPALIVE),
            "keepalive of the server": checkout_after_rest(
                endpoint, connect_args={"server_settings": _settings(SERVER_KEEPALIVE.split()[1::2])}
            ),
            "recycle": checkout_after_rest(endpoint, pool_recycle=LIMIT, pool_pre_ping=True),
        }
        return dict(zip(trials, await asyncio.gather(*trials.values()), strict=True))

    return asyncio.run(try_all())


def _settings(assignments: Sequence[str]) -> dict[str, str]:
    return dict(assignment.split("=") for assignment in assignments)


def test_pre_ping_alone_hangs(checkouts: Mapping[str, Checkout]) -> None:
    assert checkouts["pre-ping"].seconds >= PATIENCE


def test_with_tcp_user_timeout_pre_ping_saves_the_checkout(checkouts: Mapping[str, Checkout]) -> None:
    """The kernel gives the connection up, SQLAlchemy takes it for a disconnect, and opens another."""
    found = checkouts["user timeout"]
    assert (found.error, found.same_connection) == (None, False)
    assert USER_TIMEOUT_SECONDS <= found.seconds < PATIENCE


def test_without_a_ping_tcp_user_timeout_ends_the_hang_by_an_error(checkouts: Mapping[str, Checkout]) -> None:
    found = checkouts["user timeout, no ping"]
    assert found.error is not None
    assert USER_TIMEOUT_SECONDS <= found.seconds < PATIENCE


@pytest.mark.parametrize("whose", ["keepalive", "keepalive of the server"])
def test_keepalives_below_the_limit_hold_the_connection_and_nothing_happens(
    checkouts: Mapping[str, Checkout], whose: str
) -> None:
    """Either side's do: the server's hide the limit from a measurement, and protect the application too."""
    assert checkouts[whose].same_connection
    assert checkouts[whose].seconds < 1


def test_recycling_what_was_dropped_waits_two_seconds_for_a_goodbye(checkouts: Mapping[str, Checkout]) -> None:
    found = checkouts["recycle"]
    assert (found.error, found.same_connection) == (None, False)
    assert 2 <= found.seconds < PATIENCE


@pytest.mark.parametrize("cached", [True, False])
async def test_behind_a_transaction_pooler_only_without_statement_caches(lab: Lab, cached: bool) -> None:
    """What one backend has prepared, another is asked to execute."""
    endpoint = boxes.pgbouncer(lab.path(lab.postgres()), 0, pool_mode="transaction")
    caches = {} if cached else {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    engine = create_async_engine(endpoint.url, pool_size=5, pool_pre_ping=True, connect_args={"ssl": False, **caches})

    async def work() -> int:
        failed = 0
        for n in range(10):
            try:
                async with engine.connect() as connection:
                    await connection.exec_driver_sql(f"SELECT {n % 3}")
            except DBAPIError:
                failed += 1
        return failed

    async with asyncio.timeout(30):
        failures = sum(await asyncio.gather(*(work() for _ in range(5))))
    await engine.dispose()
    assert (failures > 0) is cached
