"""Logins where TLS is preferred: how many of them a server sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.core.budget import ConnectionRole
from sidecar.demo.server import PostgresServer
from sidecar.probes.errors import CannotConnect
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import TargetSettings
from testing.tls import TlsServer, system_binaries

pytestmark = pytest.mark.real_time

LOGGED = {"log_connections": "on"}


@pytest.fixture
def tls_server() -> Iterator[TlsServer]:
    if system_binaries() is None:
        pytest.skip("needs a PostgreSQL of the system, which speaks TLS (Debian: postgresql)")
    with TlsServer(LOGGED, password="right") as server:
        yield server


def driver(server: PostgresServer, password: str = "right") -> PostgresDriver:
    url = server.url().replace(":right@", f":{password}@")
    return PostgresDriver(TargetSettings.model_validate({"url": url}))


def refusals(log: Path) -> int:
    return log.read_text().count("password authentication failed")


async def log_in(through: PostgresDriver) -> bool:
    """Whether TLS was used."""
    connection = await through.connect(ConnectionRole.PROBE, deadline_seconds=10)
    try:
        return bool(await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
    finally:
        connection.terminate()


async def refused(through: PostgresDriver) -> None:
    with pytest.raises(CannotConnect) as refusal:
        await through.connect(ConnectionRole.PROBE, deadline_seconds=10)
    assert refusal.value.sqlstate == "28P01"


async def test_a_refusal_is_one_login_once_tls_is_known_to_be_there(tls_server: TlsServer) -> None:
    wrong = driver(tls_server, "wrong")
    for _ in range(5):
        await refused(wrong)
    assert refusals(tls_server.log) == 6  # the first tried both


async def test_a_login_with_tls_shows_that_it_is_there(tls_server: TlsServer) -> None:
    right = driver(tls_server)
    assert await log_in(right)
    before = refusals(tls_server.log)
    right._settings = driver(tls_server, "wrong")._settings
    await refused(right)
    assert refusals(tls_server.log) == before + 1


async def test_a_server_that_comes_to_speak_no_tls_is_logged_in_to_without(tls_server: TlsServer) -> None:
    right = driver(tls_server)
    assert await log_in(right)
    tls_server.settings["ssl"] = "off"
    tls_server.restart()
    assert not await log_in(right)
    tls_server.settings["ssl"] = "on"
    tls_server.restart()
    assert await log_in(right)


async def test_an_entry_for_connections_without_tls_is_found_again(tls_server: TlsServer) -> None:
    right = driver(tls_server)
    assert await log_in(right)
    rules = tls_server.data / "pg_hba.conf"
    rules.write_text("hostnossl all all all scram-sha-256\n")
    tls_server.restart()
    with pytest.raises(CannotConnect, match="28000"):
        await right.connect(ConnectionRole.PROBE, deadline_seconds=10)
    assert not await log_in(right)


async def test_where_no_tls_is_offered_a_refusal_is_one_login(make_server: Callable[..., PostgresServer]) -> None:
    server = make_server(LOGGED, password="right")
    wrong = driver(server, "wrong")
    for _ in range(3):
        await refused(wrong)
    assert refusals(server.log) == 3
    assert not await log_in(driver(server))
