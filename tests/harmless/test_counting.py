"""Who counts can count: what the other tests here rely on, tried with sessions whose number is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from sidecar.demo.server import PostgresServer
from testing.counting import (
    Application,
    Counter,
    aside,
    counted_server,
    create_database,
    create_role,
    execute,
    most_in,
    promise,
    read_log,
    url,
)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with counted_server({"max_connections": 30}) as server:
        create_role(server, "app")
        create_role(server, "four", limit=4)
        yield server


def until(counter: Counter, holds: int) -> None:
    deadline = time.monotonic() + 10.0
    while counter.now(lambda session: session.role is not None) != holds:
        assert time.monotonic() < deadline, counter.samples[-1:]
        time.sleep(0.02)


def test_what_is_promised() -> None:
    alone = promise(97, 0, 1)
    assert (alone.heartbeats, alone.rest, alone.together) == (9, 7, 95)
    assert promise(500, 0, 49).rest == 24
    assert (promise(30, 0, 1).rest, promise(49, 0, 1).rest, promise(50, 0, 1).rest) == (2, 3, 4)
    assert (promise(97, 77, 1).rest, promise(97, 87, 1).rest) == (2, 0)
    assert promise(4, 0, 1).together == 2


def test_sessions_are_counted_by_role_and_over_time(server: PostgresServer) -> None:
    where = url(server, user="app")
    with Counter(server, every=0.05) as counter, ExitStack() as sessions:
        for name in ("connhealth/heartbeat a notice", *["connhealth/probe"] * 3, "connection-health-sidecar/pool"):
            sessions.enter_context(psycopg.connect(where, application_name=name))
        sessions.enter_context(psycopg.connect(where, application_name="somebody/probe"))
        until(counter, 5)
        assert counter.peaks() == {"heartbeat": 1, "probe": 3, "pool": 1}
        (breach,) = counter.breaches(27)
        assert (breach.heartbeats, breach.rest) == (1, 4)
        assert breach.promised.rest == 2
        left = time.time()
        sessions.close()
        until(counter, 0)
        gone = counter.gone_after(left)
        assert gone is not None
        assert gone < 5.0
        assert counter.here_after(left + gone + 0.01, lambda session: session.role is not None) is None


def test_the_log_tells_who_was_refused_and_why(server: PostgresServer) -> None:
    create_database(server, "none", limit=0)
    create_role(server, "locked")
    execute(server, "ALTER ROLE locked NOLOGIN")
    refused = {
        "3D000": url(server, user="app", database="missing"),
        "28000": url(server, user="locked"),
        "53300": url(server, user="app", database="none"),
    }
    since = time.time() - 0.01
    for where in refused.values():
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(where)
    with psycopg.connect(url(server, user="app"), application_name="connhealth/look") as session:
        session.execute("SELECT\n'a question'")
    deadline = time.monotonic() + 10.0
    while (logins := read_log(server).foreign(since=since))[-1].ended_at is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [one.sqlstate for one in logins] == [*refused, None]
    assert (logins[-1].user, logins[-1].role, logins[-1].admitted) == ("app", "look", True)
    assert read_log(server).statements("a question", since=since)[0][0].pid == logins[-1].pid
    assert all(one.lines == 4 for one in logins), "received, authenticated, authorized, and an end of either kind"


def test_an_application_notes_what_it_is_denied(server: PostgresServer) -> None:
    with Application(aside(server, user="four")) as application:
        assert application.take(4)
        assert not application.refusals
        assert not application.take(1, patience=0.3)
        assert {code for _, code in application.refusals} == {"53300"}
        assert application.worst_delay >= 0.3
        application.give_back(1)
        assert application.take(1)
    assert not read_log(server).foreign(user="four"), "it comes through the Unix socket"


def test_the_worst_minute() -> None:
    assert most_in(60.0, [0.0, 10.0, 59.0, 60.0, 61.0, 200.0]) == 4
    assert most_in(60.0, []) == 0
