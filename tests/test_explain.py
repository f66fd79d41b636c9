"""Error texts made by real drivers on real servers, and what is made of them.

`UPDATE_GOLDEN=1 pytest tests/test_explain.py` writes docs/errors.md anew.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import psycopg_pool
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sidecar.core.explain.explain import as_markdown, as_text, mask, root_cause
from sidecar.core.explain.known_errors import KNOWN_ERRORS
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from testing.poolers import pgbouncer

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]

ROOT = Path(__file__).parent.parent
SECRET = "hunter2"


def cause(text: str) -> str:
    """The name of the root cause."""
    explanation = root_cause(text)
    assert explanation is not None, text
    assert SECRET not in as_text(explanation)
    return explanation.error.name


async def told(attempt: Awaitable[Any]) -> str:
    """The traceback of a failure, as a log would have it."""
    try:
        await attempt
    except Exception:
        return traceback.format_exc()
    raise AssertionError("it did not fail")


async def told_by_psycopg(attempt: Callable[[], Any]) -> str:
    return await told(asyncio.to_thread(attempt))


def terminate(server: PostgresServer) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()


@asynccontextmanager
async def engine_for(server: PostgresServer, port: int | None = None, **arguments: Any) -> AsyncIterator[AsyncEngine]:
    url = server.url(port=port, scheme="postgresql+asyncpg")
    engine = create_async_engine(url, **{"pool_size": 1, "max_overflow": 0, **arguments})
    try:
        yield engine
    finally:
        await engine.dispose()


async def executed(engine: AsyncEngine, *statements: str) -> None:
    """Each in a transaction of its own, all on one connection."""
    async with engine.connect() as connection:
        for statement in statements:
            await connection.execute(text(statement))
            await connection.commit()


class TestSqlalchemyOnAsyncpg:
    async def test_ended_at_work(self, postgres: PostgresServer) -> None:
        """The FATAL is three exceptions deep."""
        async with engine_for(postgres) as engine, engine.connect() as connection:
            query = asyncio.create_task(connection.execute(text("SELECT pg_sleep(30)")))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(terminate, postgres)
            log = await told(query)
        explanation = root_cause(log)
        assert explanation is not None
        assert explanation.error.sqlstates == ("57P01",)
        assert explanation.line == log.splitlines()[explanation.line_number - 1]
        assert [other.sqlstates for other in explanation.others] == [("08003",)]

    async def test_ended_at_rest(self, postgres: PostgresServer) -> None:
        """asyncpg drops the reason; nobody can know it."""
        async with engine_for(postgres) as engine:
            await executed(engine, "SELECT 1")
            await asyncio.to_thread(terminate, postgres)
            await asyncio.sleep(0.1)
            assert cause(await told(executed(engine, "SELECT 1"))) == "connection is closed"

    @pytest.mark.parametrize(
        ("steps", "code"),
        [
            (["SET transaction_timeout = 100", "SELECT pg_sleep(30)"], "25P04"),
            (["SET default_transaction_read_only = on", "CREATE TABLE made ()"], "25006"),
            (["PREPARE twice AS SELECT 1", "PREPARE twice AS SELECT 1"], "42P05"),
            (["SELECT 7", "DEALLOCATE ALL", "SELECT 7"], "26000"),
        ],
    )
    async def test_refused_by_the_server(self, postgres: PostgresServer, steps: list[str], code: str) -> None:
        async with engine_for(postgres) as engine:
            assert code in cause(await told(executed(engine, *steps))).partition(":")[0].split()

    @pytest.mark.parametrize(
        ("fault", "name"),
        [("reset", "connection reset by peer (ECONNRESET)"), ("close", "connection is closed")],
    )
    async def test_dead_after_a_rest(
        self, postgres: PostgresServer, make_path: MakePath, fault: str, name: str
    ) -> None:
        path = await make_path(postgres, fault=fault, idle_limit=0.2)
        async with engine_for(postgres, path.port) as engine:
            await executed(engine, "SELECT 1")
            await asyncio.sleep(0.5)
            assert cause(await told(executed(engine, "SELECT 1"))) == name

    async def test_stopped(self, make_server: MakeServer) -> None:
        server = make_server()
        async with engine_for(server, pool_pre_ping=True) as engine:
            await executed(engine, "SELECT 1")
            await asyncio.to_thread(server.stop)
            assert cause(await told(executed(engine, "SELECT 1"))) == "connection refused"

    async def test_command_timeout(self, postgres: PostgresServer) -> None:
        async with engine_for(postgres, connect_args={"command_timeout": 0.1}) as engine:
            log = await told(executed(engine, "SELECT pg_sleep(30)"))
        assert log.endswith("\nTimeoutError\n")
        assert cause(log) == "TimeoutError from command_timeout"

    async def test_exhausted(self, postgres: PostgresServer) -> None:
        async with engine_for(postgres, pool_timeout=0.1) as engine, engine.connect():
            assert cause(await told(executed(engine, "SELECT 1"))).startswith("QueuePool limit reached")

    async def test_pre_ping_failed(self, postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.DEBUG, "sqlalchemy.pool"):
            async with engine_for(postgres, pool_pre_ping=True) as engine:
                await executed(engine, "SELECT 1")
                await asyncio.to_thread(terminate, postgres)
                await executed(engine, "SELECT 1")
        assert cause(caplog.text).startswith("pre-ping failed")


class TestAsyncpg:
    async def test_no_password_is_shown(self, make_server: MakeServer) -> None:
        server = make_server(password="right")
        wrong = server.url().replace("right", SECRET)
        log = await told(asyncpg.connect(wrong))
        assert cause(f"connecting to {wrong}\n{log}") == cause(log)
        assert cause(log).startswith("28P01")
        # And where it stands in the very line that is recognised.
        assert cause(f"password authentication failed for {wrong}") == cause(log)

    async def test_full(self, postgres: PostgresServer) -> None:
        administrator = await asyncpg.connect(postgres.url())
        await administrator.execute("CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        log = await told(asyncpg.connect(postgres.url(), user="crowded"))
        await administrator.execute("DROP ROLE crowded")
        await administrator.close()
        assert cause(log).startswith("53300")

    async def test_no_such_name(self) -> None:
        assert cause(await told(asyncpg.connect(f"postgresql://app:{SECRET}@nosuch.invalid/app"))) == (
            "the host name cannot be resolved"
        )

    async def test_nobody_answers(self, postgres: PostgresServer, make_path: MakePath) -> None:
        """A TimeoutError as well; the frames tell it from that of a query."""
        path = await make_path(postgres)
        path.pause()
        log = await told(asyncpg.connect(postgres.url(port=path.port), timeout=0.2))
        assert cause(log) == "connecting timed out"

    async def test_shutting_down(self, make_server: MakeServer) -> None:
        server = make_server()
        session = await asyncpg.connect(server.url())
        stopping = asyncio.create_task(asyncio.to_thread(server.stop, "smart"))
        await asyncio.sleep(0.3)
        log = await told(asyncpg.connect(server.url()))
        await session.close()
        await stopping
        assert cause(log).startswith("57P03")

    async def test_used_after_its_end(self, postgres: PostgresServer) -> None:
        async with asyncpg.create_pool(postgres.url(), min_size=0) as pool, pool.acquire() as connection:

            async def use() -> None:
                await connection.fetch("SELECT 1")

            await asyncio.to_thread(terminate, postgres)
            await asyncio.sleep(0.1)
            assert cause(await told(use())) == "connection is closed"


class TestPsycopg:
    @pytest.mark.parametrize(
        ("steps", "code"),
        [
            (["SET idle_session_timeout = 50"], "57P05"),
            (["SET idle_in_transaction_session_timeout = 50", "BEGIN"], "25P03"),
            (["SET transaction_timeout = 50", "BEGIN"], "25P04"),
            (["SET default_transaction_read_only = on", "CREATE TABLE made ()"], "25006"),
        ],
    )
    async def test_refused_by_the_server(self, postgres: PostgresServer, steps: list[str], code: str) -> None:
        def attempt() -> None:
            with psycopg.connect(postgres.url(), autocommit=True) as connection:
                for step in steps:
                    connection.execute(step)
                time.sleep(0.3)
                connection.execute("SELECT 1")

        assert cause(await told_by_psycopg(attempt)).startswith(code)

    async def test_ended_at_rest(self, postgres: PostgresServer) -> None:
        connection = psycopg.connect(postgres.url())
        terminate(postgres)
        assert cause(await told_by_psycopg(lambda: connection.execute("SELECT 1"))).startswith("57P01")
        assert cause(await told_by_psycopg(lambda: connection.execute("SELECT 1"))) == "connection is closed"
        connection.close()

    async def test_a_crash(self, make_server: MakeServer) -> None:
        """The reason comes as a notice."""
        server = make_server()
        notices: list[str] = []
        with psycopg.connect(server.url()) as connection, psycopg.connect(server.url()) as victim:
            connection.add_notice_handler(lambda diag: notices.append(f"{diag.severity}: {diag.message_primary}"))
            os.kill(victim.info.backend_pid, signal.SIGKILL)
            log = await told_by_psycopg(lambda: connection.execute("SELECT pg_sleep(10)"))
            victim.close()
        assert cause(log).startswith("08006 server closed the connection unexpectedly")
        assert cause(f"{log}{notices[0]}").startswith("57P02")

    @pytest.mark.parametrize("fault", ["reset", "close"])
    async def test_dead_after_a_rest(self, postgres: PostgresServer, make_path: MakePath, fault: str) -> None:
        path = await make_path(postgres, fault=fault, idle_limit=0.2)

        def attempt() -> None:
            with psycopg.connect(postgres.url(port=path.port), autocommit=True) as connection:
                time.sleep(0.5)
                connection.execute("SELECT 1")

        assert cause(await told_by_psycopg(attempt)) == "08006 server closed the connection unexpectedly"

    async def test_wrong_password(self, make_server: MakeServer) -> None:
        server = make_server(password="right")
        log = await told_by_psycopg(lambda: psycopg.connect(server.url().replace("right", SECRET)))
        assert cause(log).startswith("28P01")

    async def test_full(self, make_server: MakeServer) -> None:
        few = {"superuser_reserved_connections": 0, "max_wal_senders": 0, "autovacuum_worker_slots": 1}
        server = make_server({"max_connections": 1, **few})
        with psycopg.connect(server.url()):
            log = await told_by_psycopg(lambda: psycopg.connect(server.url()))
        assert cause(log).startswith("53300")

    async def test_nobody_there(self, postgres: PostgresServer, make_path: MakePath) -> None:
        path = await make_path(postgres)
        log = await told_by_psycopg(lambda: psycopg.connect(f"host=nosuch.invalid password={SECRET}"))
        assert cause(log) == "the host name cannot be resolved"
        path.pause()
        log = await told_by_psycopg(lambda: psycopg.connect(postgres.url(port=path.port), connect_timeout=1))
        assert cause(log) == "connecting timed out"
        path.refuse()
        log = await told_by_psycopg(lambda: psycopg.connect(postgres.url(port=path.port)))
        assert cause(log) == "connection refused"

    async def test_exhausted(self, postgres: PostgresServer) -> None:
        with psycopg_pool.ConnectionPool(postgres.url(), min_size=1, max_size=1, open=True) as pool, pool.connection():
            log = await told_by_psycopg(lambda: pool.getconn(timeout=0.1))
        assert cause(log).startswith("QueuePool limit reached")

    async def test_cut_under_tls(self, postgres: PostgresServer, tmp_path: Path) -> None:
        """By somebody who does not say goodbye, as TLS would have it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert(HOST).configure_cert(context)
        cut = asyncio.Event()

        async def carry(client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
            await client.readexactly(8)  # SSLRequest
            back.write(b"S")
            await back.start_tls(context)
            server, forth = await asyncio.open_connection(HOST, postgres.port)
            ways = [asyncio.create_task(pump(client, forth)), asyncio.create_task(pump(server, back))]
            await cut.wait()
            back.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            forth.close()
            back.transport.abort()

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)

        def attempt() -> None:
            with psycopg.connect(postgres.url(port=port) + "?sslmode=require", autocommit=True) as connection:
                loop.call_soon_threadsafe(cut.set)
                time.sleep(0.3)
                connection.execute("SELECT 1")

        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(carry, HOST, 0) as relay:
            port = relay.sockets[0].getsockname()[1]
            log = await told_by_psycopg(attempt)
        assert cause(log) == "SSL SYSCALL error: EOF detected"


class TestPgbouncer:
    async def test_what_it_says(self, postgres: PostgresServer) -> None:
        limits = (
            "[pgbouncer]\nclient_idle_timeout = 1\nquery_wait_timeout = 1\nmax_client_conn = 3\npool_mode = session"
        )
        with pgbouncer(postgres, limits) as url:

            def rest() -> None:
                with psycopg.connect(url + "postgres", autocommit=True) as connection:
                    time.sleep(1.6)
                    connection.execute("SELECT 1")

            def wait() -> None:
                with psycopg.connect(url + "small") as holder, psycopg.connect(url + "small") as waiter:
                    holder.execute("SELECT 1")
                    waiter.execute("SELECT pg_sleep(2)")

            assert cause(await told_by_psycopg(rest)).startswith("client_idle_timeout")
            assert cause(await told_by_psycopg(wait)).startswith("query_wait_timeout")
            assert cause(await told_by_psycopg(lambda: psycopg.connect(url + "nosuch"))).startswith("08P01")
            crowd = [psycopg.connect(url + "pgbouncer") for _ in range(3)]
            assert cause(await told_by_psycopg(lambda: psycopg.connect(url + "postgres"))).startswith("53300")
            for connection in crowd:
                connection.close()

    async def test_swapped_servers(self, postgres: PostgresServer) -> None:
        """The statement was prepared where somebody else is at work now."""
        with pgbouncer(postgres, "[pgbouncer]\npool_mode = transaction") as url:
            one, other = [await asyncpg.connect(url + "postgres") for _ in range(2)]
            await one.fetchval("SELECT 7")
            async with other.transaction():
                log = await told(one.fetchval("SELECT 7"))
            one.terminate()
            other.terminate()
        assert cause(log).startswith("26000 42P05")


def test_a_connection_dropped_silently() -> None:
    """In the words of the system; the kernel's patience is beyond a test's."""
    error = OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    assert cause("".join(traceback.format_exception(error))) == "connection timed out in use (ETIMEDOUT)"
    libpq = f"psycopg.OperationalError: consuming input failed: could not receive data from server: {error.strerror}"
    assert cause(libpq) == "connection timed out in use (ETIMEDOUT)"


class TestReading:
    @pytest.mark.parametrize("error", KNOWN_ERRORS, ids=lambda error: error.title)
    def test_every_error_is_known_by_its_code_and_by_its_title(self, error: Any) -> None:
        for code in error.sqlstates:
            for form in (f"{code}", f"SQLSTATE: {code}", f"ERROR:  {code}: oh", f"(sqlstate='{code}')", f"[{code}]"):
                assert cause(form) == error.name
        explanation = root_cause(error.title)
        assert explanation is None or explanation.error == error

    @pytest.mark.parametrize("sign", ["57P05", "QueuePool limit", "client_idle_timeout", "Broken pipe " * 100])
    def test_it_fits_a_terminal(self, sign: str) -> None:
        explanation = root_cause(sign)
        assert explanation is not None
        assert max(map(len, as_text(explanation).splitlines())) <= 92

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "hello",
            "DELETE 26000",
            "listening on port 53300",
            "connected from 10.0.0.5:25006",
            "took 0.08006 s",
            "TimeoutError: the cache did not answer",
            'Traceback (most recent call last):\n  File "cache.py", line 1, in get\n    await answer\nTimeoutError',
        ],
    )
    def test_what_only_looks_alike(self, text: str) -> None:
        assert root_cause(text) is None

    LOG = """\
Traceback (most recent call last):
  File "asyncpg/connection.py", line 1, in _check_open
    raise exceptions.InterfaceError('connection is closed')  # SSL SYSCALL error
          ^^^^^^^^^^^^^^^^^^^^^^^^^
ConnectionResetError: [Errno 104] Connection reset by peer

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "app.py", line 7, in main
    raise TimeoutError
OSError: FATAL:  terminating connection due to idle-session timeout
"""

    def test_the_deepest_wins_and_quoted_source_does_not_count(self) -> None:
        explanation = root_cause(self.LOG)
        assert explanation is not None
        assert explanation.error.sqlstates == ("57P05",)
        assert explanation.line_number == 12
        assert [other.title for other in explanation.others] == ["connection reset by peer (ECONNRESET)"]

    def test_of_equally_deep_ones_the_first_wins(self) -> None:
        log = "FATAL: 57P03: the database system is starting up"
        assert cause(f"57P01\n{log}").startswith("57P01")
        assert cause(f"{log}\n57P01").startswith("57P03")

    @pytest.mark.parametrize("prefix", ["  | ", "    | ", "web-1  | ", "web-1  |   | "])
    def test_prefixed_lines(self, prefix: str) -> None:
        log = "".join(f"{prefix}{line}\n" for line in self.LOG.splitlines())
        assert cause(log).startswith("57P05")
        assert cause(log.replace("idle-session", "no")) == "connection reset by peer (ECONNRESET)"

    def test_a_traceback_in_one_line(self) -> None:
        assert cause(self.LOG.replace("\n", "\\n")).startswith("57P05")

    def test_a_long_line_is_shortened_around_the_find(self) -> None:
        explanation = root_cause("x" * 5000 + " terminating connection due to idle-session timeout " + "y" * 5000)
        assert explanation is not None
        assert "idle-session timeout" in explanation.line
        assert len(explanation.line) < 300


class TestSecrets:
    @pytest.mark.parametrize(
        "text",
        [
            f"postgresql://app:{SECRET}@db/app",
            f"postgresql+asyncpg://app:{SECRET}@x@db/app?ssl=require",
            f"postgres://:{SECRET}@db",
            f"'postgres://app:{SECRET}@db'",
            f"host=db password={SECRET} user=app",
            f"host=db password='{SECRET} b' user=app",
            f'{{"password": "{SECRET}"}}',
            f"PGPASSWORD={SECRET} psql",
            f"postgresql://db/app?password={SECRET}&user=app",
            f"connect(password='{SECRET}')",
        ],
    )
    def test_they_are_masked(self, text: str) -> None:
        assert SECRET not in mask(text)
        assert "***" in mask(text)

    @pytest.mark.parametrize(
        "text", ['password authentication failed for user "app"', "InvalidPasswordError: no", "http://localhost:8080/"]
    )
    def test_the_rest_stays(self, text: str) -> None:
        assert mask(text) == text

    @settings(deadline=None)
    @given(st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters="'\""), min_size=12))
    def test_no_password_in_a_url_gets_through(self, password: str) -> None:
        explanation = root_cause(f"Connection refused: postgresql://app:{password}@db.internal:5432/app")
        assert explanation is not None
        assert password not in explanation.line


def test_the_page_tells_the_same() -> None:
    page = ROOT / "docs" / "errors.md"
    if os.environ.get("UPDATE_GOLDEN"):
        page.write_text(as_markdown())
    assert page.read_text() == as_markdown()


class TestCommand:
    def explain(self, argument: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "sidecar", "explain", argument],
            input=stdin,
            capture_output=True,
            timeout=30,
            check=False,
        )

    def test_known(self) -> None:
        done = self.explain(f"FATAL: password authentication failed, postgresql://app:{SECRET}@db")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout.startswith(b"28P01 invalid_password")
        assert SECRET.encode() not in done.stdout

    def test_from_standard_input(self) -> None:
        done = self.explain("-", b"caf\xe9\r\nFATAL:  57P05\r\n")
        assert done.returncode == 0
        assert b"Recognised in line 2: FATAL:  57P05\n" in done.stdout

    def test_unknown(self) -> None:
        done = self.explain("-", f"nothing of note, password={SECRET}".encode())
        assert (done.returncode, done.stdout) == (1, b"")
        complaint = done.stderr.decode()
        assert all(error.name in complaint for error in KNOWN_ERRORS)
        assert SECRET not in complaint
