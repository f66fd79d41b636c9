"""The watch against real servers: what is done to them must be what is recorded, once, with the truth inside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import psycopg
import pytest
from psycopg.rows import dict_row

from sidecar.core.availability.outages import over
from sidecar.core.availability.readiness import readiness
from sidecar.core.availability.states import State
from sidecar.core.evidence import Cause
from sidecar.core.signals import ServerSignal
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from sidecar.demo.standby import StandbyServer
from testing.poolers import pgbouncer
from testing.watching import (
    CULL,
    DEADLINE,
    EVERY,
    PATIENCE,
    RECONNECT,
    SILENT,
    VISIBLE,
    Watched,
    demote,
    eventually,
    execute,
    reinstate,
    watching,
)

pytestmark = pytest.mark.real_time

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a second loopback address by itself")

FIRST_PAUSES = 2.4 + VISIBLE
"""Seconds: how well the end of a refusal is known that has just begun (see `pacing`)."""

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]


def ready_at(server: PostgresServer) -> float:
    """When the server last began to take connections: the postmaster then writes so into this file."""
    return (server.directory / "data" / "postmaster.pid").stat().st_mtime


@contextlib.asynccontextmanager
async def exhausted(server: PostgresServer, watched: Watched) -> AsyncIterator[float]:
    """All connections are taken, and the watch has noticed. Tells when the last one was."""
    async with contextlib.AsyncExitStack() as hogs:
        taken_at = 0.0
        async with asyncio.timeout(PATIENCE):
            while watched.state is not State.CONNECT_BLOCKED:
                try:
                    hogs.push_async_callback((await asyncpg.connect(server.url())).close)
                    taken_at = time.time()
                except asyncpg.TooManyConnectionsError:
                    await asyncio.sleep(0.005)
        yield taken_at


@pytest.mark.parametrize(
    ("mode", "detail", "sqlstate"),
    [("fast", "fast", "57P01"), ("immediate", "immediate", "57P01"), ("crash", "crash", "57P01")],
)
async def test_restart(make_server: MakeServer, mode: str, detail: str, sqlstate: str) -> None:
    server = await asyncio.to_thread(make_server)
    async with watching(server.url()) as watched:
        began = time.time()
        await asyncio.to_thread(server.stop, mode)
        await asyncio.sleep(RECONNECT)
        await asyncio.to_thread(server.start)
        outage = await watched.recovered("restart")
    assert outage.detail == detail
    for spell in (outage.connect, outage.read, outage.write):
        watched.holds(spell, began, ready_at(server))
    assert outage.before is not None
    assert outage.after is not None
    assert outage.before.address == outage.after.address
    assert outage.before.started_at < outage.after.started_at
    assert outage.errors[sqlstate] == 1
    assert outage.errors["ConnectionRefusedError"] >= 1
    assert outage.connections_lost == {"fatal": 1}
    assert watched.causes == [Cause.RESTART]


async def test_crash_of_another_backend(make_server: MakeServer) -> None:
    """The postmaster lives on, but ends all sessions and recovers."""
    server = await asyncio.to_thread(make_server)
    async with watching(server.url()) as watched:
        victim = await asyncpg.connect(server.url())
        pid = victim.get_server_pid()
        began = time.time()
        os.kill(pid, signal.SIGKILL)
        outage = await watched.recovered("restart")
        with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await victim.close()
    assert outage.detail == "crash"
    watched.holds(outage.read, began, (began, time.time()))
    assert outage.errors["57P02"] == 1
    assert outage.before is not None
    assert outage.after is not None
    assert outage.before.started_at == outage.after.started_at


async def test_cull_of_all_sessions(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    async with watching(server.url()) as watched:
        driver = await asyncpg.connect(server.url())
        began = time.time()
        await driver.execute(CULL)
        culled = time.time()
        outage = await watched.recovered("cull")
        await driver.close()
    assert outage.detail == "57P01"
    assert outage.connect is None
    for spell in (outage.read, outage.write):
        watched.holds(spell, began, (began, culled))
    assert outage.errors == {"57P01": 1}


async def test_partition(postgres: PostgresServer, make_path: MakePath) -> None:
    path = await make_path(postgres)
    async with watching(postgres.url(port=path.port)) as watched:
        began = time.time()
        path.pause()
        await asyncio.sleep(EVERY + 2.5 * DEADLINE)
        assert watched.watch.status.reachable is False
        ended = time.time()
        path.resume()
        outage = await watched.recovered("partition")
    assert outage.detail == "silent"
    for spell in (outage.connect, outage.read, outage.write):
        watched.holds(spell, began, ended, widths=(SILENT, SILENT))
    assert outage.connections_lost == {"silent": 1}
    assert watched.causes == [Cause.PARTITION]


async def test_a_path_that_cuts_and_refuses_is_a_partition_too(postgres: PostgresServer, make_path: MakePath) -> None:
    path = await make_path(postgres)
    async with watching(postgres.url(port=path.port)) as watched:
        began = time.time()
        path.refuse()
        path.reset_all()
        await asyncio.sleep(2 * RECONNECT)
        ended = time.time()
        await path.accept()
        outage = await watched.recovered("partition")
    assert outage.detail == "ConnectionRefusedError"
    for spell in (outage.connect, outage.read, outage.write):
        watched.holds(spell, began, ended)
    assert outage.connections_lost in ({"closed": 1}, {"reset_on_use": 1})  # it may just have been asked something


async def test_max_connections_exhausted(make_server: MakeServer) -> None:
    """The session lives on: only the regular look at the door can tell."""
    server = await asyncio.to_thread(make_server, {"max_connections": 8, "superuser_reserved_connections": 0})
    async with watching(server.url()) as watched:
        async with exhausted(server, watched) as began:
            status = watched.watch.status
            assert (status.reachable, status.writable, status.kind, status.sqlstate) == (True, True, "refusal", "53300")
            await asyncio.sleep(RECONNECT)
            freeing = time.time()
        freed = time.time()
        outage = await watched.recovered("refusal")
    assert set(outage.downtimes) == {"connect"}
    watched.holds(outage.connect, began, (freeing, freed), widths=(SILENT, FIRST_PAUSES))
    assert outage.errors.keys() == {"53300"}
    assert set(watched.refused) == {ServerSignal.FULL}
    assert outage.connections_lost == {}
    assert watched.causes == []  # resting connections are untouched


async def test_password_rotated(make_server: MakeServer, tmp_path: Path) -> None:
    server = await asyncio.to_thread(make_server, password="the old one")
    password = tmp_path / "password"
    password.write_text("the old one\n")
    url = f"postgresql://{server.user}@{HOST}:{server.port}/{server.database}"
    async with watching(url, password_file=str(password)) as watched:
        began = time.time()
        await execute(server.url(), "ALTER ROLE postgres PASSWORD 'the new one'")
        await watched.until(State.CONNECT_BLOCKED)
        status = watched.watch.status
        assert (status.reachable, status.kind, status.sqlstate) == (True, "authentication", "28P01")
        assert "the old one" not in str(status.error)
        ended = time.time()
        password.write_text("the new one\n")
        outage = await watched.recovered("authentication")
    assert set(outage.downtimes) == {"connect"}
    watched.holds(outage.connect, began, ended, widths=(SILENT, FIRST_PAUSES))
    assert outage.errors.keys() == {"28P01"}


async def test_password_file_gone(make_server: MakeServer, tmp_path: Path) -> None:
    server = await asyncio.to_thread(make_server, password="secret")
    password = tmp_path / "password"
    password.write_text("secret")
    url = f"postgresql://{server.user}@{HOST}:{server.port}/{server.database}"
    async with watching(url, password_file=str(password)) as watched:
        password.unlink()
        await watched.until(State.CONNECT_BLOCKED)
        assert str(password) in str(watched.watch.status.error)
        password.write_text("secret")
        outage = await watched.recovered("authentication")
    assert outage.detail == "PasswordFile"


async def test_starts_without_a_database(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    await asyncio.to_thread(server.stop)
    watched = Watched(server.url())
    task = asyncio.create_task(watched.watch.run())
    await eventually(lambda: watched.watch.status.error)
    status = watched.watch.status
    assert (status.state, status.reachable, status.writable) == (State.UNKNOWN, False, None)
    await asyncio.to_thread(server.start)
    await watched.until(State.HEALTHY)
    assert watched.watch.status.error is None
    assert watched.versions == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# A primary and its standby


@pytest.fixture
async def pair(make_server: MakeServer) -> AsyncIterator[tuple[PostgresServer, StandbyServer]]:
    primary = await asyncio.to_thread(make_server)
    standby = await asyncio.to_thread(StandbyServer, primary)
    try:
        await asyncio.to_thread(standby.start)
        yield primary, standby
    finally:
        await asyncio.to_thread(standby.close)


async def test_promotion_with_relay_switch(pair: tuple[PostgresServer, StandbyServer], make_path: MakePath) -> None:
    """The primary dies; the relay leads to the standby before that is promoted."""
    primary, standby = pair
    path = await make_path(primary)
    async with watching(primary.url(port=path.port)) as watched:
        began = time.time()
        await asyncio.to_thread(primary.stop, "crash")
        await asyncio.sleep(2 * RECONNECT)
        readable = time.time()
        path.retarget(HOST, standby.port)
        await watched.until(State.READ_ONLY)
        await asyncio.sleep(2 * RECONNECT)
        promoting = time.time()
        await asyncio.to_thread(standby.promote)
        promoted = time.time()
        outage = await watched.recovered("failover")
    assert outage.detail == "timeline 1 to 2"
    for spell in (outage.connect, outage.read):
        watched.holds(spell, began, readable)
    watched.holds(outage.write, began, (promoting, promoted))
    assert outage.after is not None
    assert (outage.after.address, outage.after.in_recovery) == (f"{HOST}:{standby.port}", False)


async def test_switchover(pair: tuple[PostgresServer, StandbyServer], make_path: MakePath) -> None:
    """The primary is stopped in good order; the relay leads to the standby once that is promoted."""
    primary, standby = pair
    path = await make_path(primary)
    async with watching(primary.url(port=path.port)) as watched:
        began = time.time()
        await asyncio.to_thread(primary.stop, "fast")
        await asyncio.to_thread(standby.promote)
        ended = time.time()
        path.retarget(HOST, standby.port)
        outage = await watched.recovered("switchover")
    assert outage.detail == "timeline 1 to 2"
    for spell in (outage.connect, outage.read, outage.write):
        watched.holds(spell, began, ended)


async def test_promotion_while_the_session_lives_on_at_the_old_primary(
    pair: tuple[PostgresServer, StandbyServer], make_path: MakePath
) -> None:
    """The old primary is fenced off from writing, and only new connections are led to the new one."""
    primary, standby = pair
    path = await make_path(primary)
    async with watching(primary.url(port=path.port)) as watched:
        began = time.time()
        await demote(primary.url())
        await watched.until(State.READ_ONLY)
        await asyncio.to_thread(standby.promote)
        ended = time.time()
        path.retarget(HOST, standby.port)
        outage = await watched.recovered("role_flip")
    assert set(outage.downtimes) == {"write"}
    watched.holds(outage.write, began, ended, widths=(SILENT, VISIBLE))
    assert outage.after is not None
    assert outage.after.address == f"{HOST}:{standby.port}"
    assert watched.causes == [Cause.FAILOVER]


@ON_LINUX
async def test_promotion_with_name_change(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    primary = await asyncio.to_thread(make_server)
    standby = await asyncio.to_thread(StandbyServer, primary, {"listen_addresses": "127.0.0.2"})
    standby.port = primary.port
    leads_to = ["127.0.0.1"]
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def lookup(host: str, *arguments: Any, **more: Any) -> Any:
        # The one thing not real here: a name server cannot be had without privileges.
        return await resolve(leads_to[0] if host == "db.internal" else host, *arguments, **more)

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    try:
        await asyncio.to_thread(standby.start)
        async with watching(f"postgresql://postgres@db.internal:{primary.port}/postgres") as watched:
            began = time.time()
            await asyncio.to_thread(primary.stop, "crash")
            await asyncio.to_thread(standby.promote)
            await asyncio.sleep(RECONNECT)
            changed = time.time()
            leads_to[0] = "127.0.0.2"
            outage = await watched.recovered("failover")
    finally:
        await asyncio.to_thread(standby.close)
    for spell in (outage.connect, outage.read, outage.write):
        watched.holds(spell, began, changed)
    assert (outage.addresses_before, outage.addresses_after) == (("127.0.0.1",), ("127.0.0.2",))
    assert outage.dns_changed is not None
    assert outage.dns_changed.after <= changed <= outage.dns_changed.until
    allowed = VISIBLE + watched.allowance(outage.dns_changed)
    assert outage.dns_changed.width_seconds <= allowed
    assert outage.dns_lag_seconds == pytest.approx(changed - began, abs=allowed)


async def test_demoted_writer_that_stays_connected(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    async with watching(server.url()) as watched:
        earliest = time.time()
        await demote(server.url())
        began = (earliest, time.time())
        await watched.until(State.READ_ONLY)
        assert (watched.watch.status.reachable, watched.watch.status.kind) == (True, "role_flip")
        await asyncio.sleep(2 * RECONNECT)
        ending = time.time()
        await reinstate(server.url())
        outage = await watched.recovered("role_flip")
    assert set(outage.downtimes) == {"write"}
    assert outage.connections_lost == {}
    watched.holds(outage.write, began, (ending, time.time()), widths=(SILENT, VISIBLE))
    assert watched.causes == []


async def test_a_replica_owes_no_writes(pair: tuple[PostgresServer, StandbyServer]) -> None:
    _, standby = pair
    async with watching(standby.url(), State.READ_ONLY) as watched:
        await asyncio.sleep(2 * EVERY)
        assert watched.watch.status.out_since_at is None
        await asyncio.to_thread(standby.promote)
        await watched.until(State.HEALTHY)
        assert watched.versions == []


# Names and addresses


@ON_LINUX
@pytest.mark.parametrize("first", ["refuses", "is silent"])
async def test_tries_every_address_of_the_name(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    loop = asyncio.get_running_loop()
    resolve = loop.getaddrinfo

    async def lookup(host: str, *arguments: Any, **more: Any) -> Any:
        hosts = ("127.0.0.9", "127.0.0.1") if host == "db.internal" else (host,)
        return [found for host in hosts for found in await resolve(host, *arguments, **more)]

    monkeypatch.setattr(loop, "getaddrinfo", lookup)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.9", postgres.port))
        if first == "is silent":
            deaf.listen()
        async with watching(f"postgresql://postgres@db.internal:{postgres.port}/postgres") as watched:
            assert watched.versions == []


async def test_a_name_that_does_not_resolve_is_told() -> None:
    watched = Watched("postgresql://app@nowhere.invalid/app")
    task = asyncio.create_task(watched.watch.run())
    await eventually(lambda: watched.watch.status.error)
    assert "nowhere.invalid" in watched.watch.status.error
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


# What others tell


async def test_trouble_of_others_has_the_door_tried_at_once(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server, {"max_connections": 8, "superuser_reserved_connections": 0})
    slow = {"every": 60, "deadline": 60, "reconnect_every": RECONNECT, "door_every": 60}
    async with watching(server.url(), heartbeat=slow) as watched:

        async def keep_suspecting() -> None:
            while True:
                watched.watch.suspect()
                await asyncio.sleep(RECONNECT)

        others = asyncio.create_task(keep_suspecting())
        async with exhausted(server, watched):
            assert watched.watch.status.kind == "refusal"
        others.cancel()
        await watched.until(State.HEALTHY)


# Answers are answers


async def test_a_refusal_is_not_asked_for_again_and_again(make_server: MakeServer, tmp_path: Path) -> None:
    """With and without a session: counted in the server's own log."""
    logging = {"log_connections": "on", "log_line_prefix": "<%u/%d> "}
    server = await asyncio.to_thread(make_server, logging, password="secret")
    for role in ("nologin", "rotated", "limited"):
        await execute(server.url(), f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
    await execute(server.url(), "CREATE DATABASE doomed")
    password = tmp_path / "password"
    password.write_text("secret")
    targets = {
        "nologin": ("nologin", "postgres", "ALTER ROLE nologin NOLOGIN", "authentication", "28000"),
        "rotated": ("rotated", "postgres", "ALTER ROLE rotated PASSWORD 'new'", "authentication", "28P01"),
        "limited": ("limited", "postgres", "ALTER ROLE limited CONNECTION LIMIT 0", "refusal", "53300"),
        "doomed": ("postgres", "doomed", "DROP DATABASE doomed WITH (FORCE)", "refusal", "3D000"),
    }
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'"
    async with contextlib.AsyncExitStack() as stack:
        watches: dict[tuple[str, bool], Watched] = {}
        for name, (user, database, *_) in targets.items():
            for session_lives in (True, False) if name != "doomed" else (False,):
                url = f"postgresql://{user}@{HOST}:{server.port}/{database}"
                watch = watching(url, password_file=str(password), heartbeat={"door_every": 5})
                watches[name, session_lives] = await stack.enter_async_context(watch)
        before = server.log.read_text()
        for name, (user, _, spoil, *_) in targets.items():
            await execute(server.url(), spoil)
            if (name, False) in watches and name != "doomed":
                living = watches[name, True].watch.pids
                await execute(server.url(), end.format(user) + f" AND pid <> {next(iter(living))}")
        await asyncio.sleep(20)
        log = server.log.read_text()[len(before) :]
        for (name, session_lives), watched in watches.items():
            *_, kind, sqlstate = targets[name]
            (outage,) = watched.outages
            assert (outage.kind, outage.detail) == (kind, sqlstate), name
            assert watched.watch.status.reachable == session_lives
            assert watched.watch.status.refused is not None
        for user, database, *_ in targets.values():
            refused = sum(f"<{user}/{database}> FATAL" in line for line in log.splitlines())
            shared = 1 if database == "doomed" else 2
            assert 3 * shared <= refused <= 7 * shared + 1, (user, refused)  # one more tells of the session's end
        password.write_text("new")
        mended = time.monotonic()
        await watches["rotated", True].until(State.HEALTHY)
        await watches["rotated", False].until(State.HEALTHY)
        assert time.monotonic() - mended < 2


async def test_the_table_of_sessions_is_told(postgres: PostgresServer) -> None:
    async with watching(postgres.url()) as watched:
        await asyncio.sleep(5)
        (pid,) = watched.watch.pids
        assert 2 <= len(watched.tables) <= 4
        table, identity = watched.tables[-1]
        assert pid in {session.pid for session in table.sidecars}
        assert identity.started_at is not None
        assert watched.watch.session is not None
        assert watched.watch.session.rest_limited_to_seconds == 300
        assert watched.watch.is_pooled is False


async def connections_of_ours(server: PostgresServer) -> list[str]:
    driver = await asyncpg.connect(server.url())
    try:
        rows = await driver.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE application_name ~ '^connhealth/'"
        )
        return sorted(row["application_name"] for row in rows)
    finally:
        await driver.close()


async def test_suspended_and_resumed(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    async with watching(server.url()) as watched:
        watched.watch.suspend(looks=False)
        assert watched.watch.connections == 0
        await asyncio.sleep(1)
        assert await connections_of_ours(server) == []
        await asyncio.sleep(2 * SILENT)
        assert (watched.state, watched.watch.connections) == (State.SUSPENDED, 0)
        told = len(watched.tables)
        watched.watch.suspend(looks=True)
        await eventually(lambda: len(watched.tables) > told)
        assert watched.watch.status.reachable
        assert watched.watch.connections == 0
        watched.watch.resume()
        async with asyncio.timeout(2):
            await watched.until(State.HEALTHY)
        assert watched.versions == []


async def test_without_a_heartbeat_a_look_tells_how_things_are(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    watched = Watched(server.url(), heartbeat={"enabled": False})
    task = asyncio.create_task(watched.watch.run())
    await eventually(lambda: watched.tables)
    assert watched.watch.status.reachable
    for change in (watched.watch.resume, lambda: watched.watch.suspend(looks=False), watched.watch.resume):
        change()
        await asyncio.sleep(0.2)
    await eventually(lambda: len(watched.tables) == 2)
    assert (watched.state, watched.watch.connections) == (State.SUSPENDED, 0)
    assert await connections_of_ours(server) == []
    await asyncio.to_thread(server.stop)
    watched.watch.suspend(looks=False)
    watched.watch.suspend(looks=True)
    await eventually(lambda: watched.watch.status.reachable is False)
    assert watched.versions == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_poolers_no_is_an_answer(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    with pgbouncer(server, "[pgbouncer]\npool_mode = transaction\nmax_client_conn = 2") as url:
        async with watching(f"{url}postgres") as watched:
            application = await asyncpg.connect(f"{url}postgres", statement_cache_size=0)
            await watched.until(State.CONNECT_BLOCKED)
            await asyncio.sleep(4)
            assert 2 <= len(watched.refused) <= 4
            assert set(watched.refused) == {ServerSignal.FULL}
            await application.close()
            outage = await watched.recovered("refusal")
    assert outage.connect is not None
    assert outage.read is None


@pytest.mark.parametrize(("mode", "shares"), [("transaction", True), ("session", False)])
async def test_a_transaction_pooler_betrays_itself_by_its_backends(
    make_server: MakeServer, mode: str, shares: bool
) -> None:
    server = await asyncio.to_thread(make_server)
    with pgbouncer(server, f"[pgbouncer]\npool_mode = {mode}") as url:
        async with watching(f"{url}postgres") as watched:
            watched.watch.suspect()  # a fresh connection at once, beside the session
            await asyncio.sleep(2)
            assert watched.watch.is_pooled
            assert watched.watch.shares_backends is shares


async def test_a_full_session_pooler_has_one_of_ours_in_its_queue(make_server: MakeServer) -> None:
    server = await asyncio.to_thread(make_server)
    settings = "[pgbouncer]\npool_mode = session\ndefault_pool_size = 3\nquery_wait_timeout = 60"
    with pgbouncer(server, settings) as url:
        async with watching(f"{url}postgres") as watched, contextlib.AsyncExitStack() as application:
            assert watched.watch.is_pooled
            console = await psycopg.AsyncConnection.connect(
                f"{url}pgbouncer", autocommit=True, cursor_factory=psycopg.AsyncClientCursor, row_factory=dict_row
            )
            application.push_async_callback(console.close)
            for _ in range(2):
                held = await asyncpg.connect(f"{url}postgres")
                await held.execute("SELECT 1")
                application.push_async_callback(held.close)
            waiting = []

            async def watch_the_queue() -> None:
                while True:
                    pools = await (await console.execute("SHOW POOLS")).fetchall()
                    waiting.append(max(pool["cl_waiting"] for pool in pools))
                    await asyncio.sleep(0.05)

            counting = asyncio.create_task(watch_the_queue())
            await watched.until(State.CONNECT_BLOCKED)
            await asyncio.sleep(5)
            counting.cancel()
            await asyncio.wait([counting])
            status = watched.watch.status
            assert (status.reachable, status.kind, status.queued) == (True, "refusal", True)
            assert set(watched.refused) == {ServerSignal.QUEUED}
            assert max(waiting) == 1
            verdict = readiness(status, depends_on="database", grace_seconds=0)
            assert (verdict.ready, "pooler" in verdict.reason) == (True, True)
            await application.aclose()
            outage = await watched.recovered("refusal")
    assert outage.detail == "queue"
    assert set(outage.downtimes) == {"connect"}


# Leaving nothing behind


async def test_leaves_at_once_although_nobody_answers(postgres: PostgresServer, make_path: MakePath) -> None:
    process = psutil.Process()
    path = await make_path(postgres)
    tasks, descriptors = len(asyncio.all_tasks()), process.num_fds()
    watched = Watched(postgres.url(port=path.port))
    task = asyncio.create_task(watched.watch.run())
    await watched.until(State.HEALTHY)
    path.pause()
    await watched.until(State.SUSPECT)  # with attempts under way that hang
    await asyncio.sleep(2 * RECONNECT)
    task.cancel()
    await asyncio.wait([task], timeout=DEADLINE / 2)
    assert task.done()
    assert watched.watch.connections == 0
    path.resume()
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks and process.num_fds() <= descriptors)


async def test_twenty_outages_in_a_row(make_server: MakeServer, make_path: MakePath) -> None:
    """None missed, none invented, nothing left behind."""
    numbers = random.Random(20)
    server = await asyncio.to_thread(make_server)
    path = await make_path(server)
    process = psutil.Process()

    async def restart(mode: str) -> None:
        await asyncio.to_thread(server.restart, mode)

    async def cull() -> None:
        await execute(server.url(), CULL)

    async def partition() -> None:
        path.pause()
        await asyncio.sleep(numbers.uniform(1, 1.5) * (EVERY + DEADLINE))
        path.resume()

    async def cut() -> None:
        path.refuse()
        path.reset_all()
        await asyncio.sleep(numbers.uniform(0.5, 2) * RECONNECT)
        await path.accept()

    happenings: list[tuple[str, Callable[[], Awaitable[None]]]] = [
        *(("restart", lambda mode=mode: restart(mode)) for mode in ("fast", "immediate", "crash") for _ in range(2)),
        *[("cull", cull)] * 6,
        *[("partition", partition)] * 4,
        *[("partition", cut)] * 4,
    ]
    numbers.shuffle(happenings)
    async with watching(server.url(port=path.port)) as watched:
        tasks, descriptors = len(asyncio.all_tasks()), process.num_fds()
        for count, (_, happen) in enumerate(happenings, start=1):
            await asyncio.sleep(numbers.uniform(0.1, EVERY))
            await happen()
            await eventually(lambda count=count: len(watched.outages) == count and over(watched.outages[-1]))
        await asyncio.sleep(2 * (EVERY + DEADLINE))
        assert [outage.kind for outage in watched.outages] == [kind for kind, _ in happenings]
        await eventually(lambda: len(asyncio.all_tasks()) <= tasks and process.num_fds() <= descriptors)
