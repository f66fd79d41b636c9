"""The table of sessions, read by an ordinary role from a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg
import pytest

from sidecar.core.budget import CeilingKind, SessionTable, ceilings
from sidecar.demo.server import HOST, PostgresServer
from sidecar.probes.postgresql import sessions


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer({"max_connections": 30, "superuser_reserved_connections": 3, "reserved_connections": 4}) as one:
        with psycopg.connect(one.url(), autocommit=True) as admin:
            for statement in (
                "CREATE ROLE app LOGIN CONNECTION LIMIT 10",
                "CREATE ROLE privileged LOGIN IN ROLE pg_use_reserved_connections",
                "CREATE DATABASE small CONNECTION LIMIT 6",
            ):
                admin.execute(statement)
        yield one


def look(server: PostgresServer, user: str, database: str = "postgres", activity: int = 0) -> SessionTable:
    url = f"postgresql://{user}@{HOST}:{server.port}/{database}"
    with psycopg.connect(url, autocommit=True, application_name="connhealth/look") as connection:
        row = connection.execute(sessions.queries("connhealth")[activity]).fetchone()
        assert row is not None
        return sessions.table([None if column is None else str(column) for column in row])


@pytest.mark.parametrize("activity", [0, 1])
def test_an_ordinary_role_sees_all_limits_that_bind_it(server: PostgresServer, activity: int) -> None:
    until = time.monotonic() + 10
    while (table := look(server, "app", activity=activity)).used > 1 and time.monotonic() < until:
        time.sleep(0.05)  # the session of the test before is about to end
    assert (table.usable, table.role, table.role_limit, table.database_limit) == (23, "app", 10, None)
    assert (table.used, table.role_used, table.database_used) == (1, 1, 1)
    assert [session.name for session in table.sidecars] == ["connhealth/look"]
    assert look(server, "app", "small").database_limit == 6
    assert look(server, "privileged").usable == 27


def test_a_superuser_is_bound_by_the_server_alone(server: PostgresServer) -> None:
    table = look(server, "postgres", "small")
    assert (table.usable, table.role_limit, table.database_limit) == (30, None, None)


def test_sessions_count_against_each_limit_above_them(server: PostgresServer) -> None:
    url = f"postgresql://app@{HOST}:{server.port}"
    with (
        psycopg.connect(f"{url}/small", application_name="connhealth/heartbeat a notice") as beating,
        psycopg.connect(f"{url}/small", application_name="connhealth/probe") as probe,
        psycopg.connect(f"{url}/postgres", application_name="connhealth/pool"),
        psycopg.connect(f"{url}/small", application_name="somebody"),
        psycopg.connect(server.url(), application_name="connhealth/probe") as foreign,
    ):
        table = look(server, "app", "small")
        found = ceilings(table, {beating.info.backend_pid, probe.info.backend_pid})
        foreign_pid = foreign.info.backend_pid
    assert [session.pid for session in table.sidecars if not session.own_role] == [foreign_pid]
    counted = [(each.kind, each.name, each.usable, each.used, each.heartbeats, each.measuring) for each in found]
    assert counted == [
        (CeilingKind.SERVER, "", 23, 6, 1, 3),  # of another role: usage, no more
        (CeilingKind.ROLE, "app", 10, 5, 1, 3),
        (CeilingKind.DATABASE, "small", 6, 4, 1, 2),
    ]
    assert {(each.our_heartbeats, each.ours) for each in found} == {(1, 1)}
