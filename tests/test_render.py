"""Every dialect, read by the tool it is for, where that is at hand; the others against golden files.

`UPDATE_GOLDEN=1 pytest tests/test_render.py` writes the golden files anew; look at the difference before you commit it.
"""

from __future__ import annotations

import asyncio
import configparser
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import psycopg
import pytest
import yaml
from facts.wire import recording
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from sidecar.core.advice.recommendation import IdleLimit, PoolSettings, Recommendation, Remark, SocketOptions
from sidecar.core.advice.render import FORMATS
from sidecar.core.evidence import Death, Keepalive, Status
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from testing.poolers import pgbouncer

MakeServer = Callable[..., PostgresServer]
MakePath = Callable[..., Awaitable[FaultyPath]]
Load = Callable[..., ModuleType]

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"

ADVICES = {
    "silent": Recommendation(
        target="default",
        status=Status.VERIFIED,
        settings=PoolSettings(pool_recycle=171, pool_pre_ping=True),
        socket=SocketOptions(keepalive=Keepalive(idle=120, interval=15, count=3), user_timeout_ms=5000),
        idle_limit=IdleLimit(
            proven_seconds=343.2,
            dead_by_seconds=350.2,
            estimate_seconds=346.7,
            death=Death.SILENT,
            keepalive_helps=True,
        ),
        warnings=(Remark(code="silent_death", text="Pre-ping alone does not protect: the ping itself hangs."),),
    ),
    "fatal": Recommendation(
        target="default",
        status=Status.CONFIRMED,
        settings=PoolSettings(pool_recycle=9, pool_pre_ping=False, selective_pre_ping_after=2.5),
        socket=SocketOptions(keepalive=Keepalive(idle=7, interval=7, count=3), user_timeout_ms=5000),
        connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0},
        forgets_statements=True,
        idle_limit=IdleLimit(
            proven_seconds=19.5,
            dead_by_seconds=20.1,
            estimate_seconds=20.0,
            death=Death.FATAL,
            sqlstate="57P05",
            keepalive_helps=False,
        ),
    ),
    "measuring": Recommendation(
        target="default",
        status=Status.MEASURING,
        settings=PoolSettings(pool_recycle=2, pool_pre_ping=True),
        socket=SocketOptions(keepalive=Keepalive(idle=30, interval=15, count=3), user_timeout_ms=5000),
    ),
}
SILENT = ADVICES["silent"]

GOLDEN_FILES = {
    "hikaricp": "hikari.properties",
    "pgx": "pgx.go",
    "database-sql": "database_sql.go",
    "node-postgres": "node_postgres.mjs",
    "npgsql": "Npgsql.cs",
    "rails": "database.yml",
}

every_advice = pytest.mark.parametrize("advice", ADVICES.values(), ids=ADVICES)


def rendered(name: str, advice: Recommendation) -> str:
    text = FORMATS[name].render(advice)
    assert isinstance(text, str)
    return text


def advised(recycle: int, *, ping: bool = True, after: float | None = None) -> Recommendation:
    return replace(
        SILENT, settings=PoolSettings(pool_recycle=recycle, pool_pre_ping=ping, selective_pre_ping_after=after)
    )


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`load(format, advice, url)`: import the module that is rendered."""

    def load(name: str, advice: Recommendation, url: str) -> ModuleType:
        monkeypatch.setenv("DATABASE_URL", url)
        (file := tmp_path / "advised.py").write_text(rendered(name, advice))
        spec = importlib.util.spec_from_file_location("advised", file)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module

    return load


def socket_options(fileno: int) -> dict[str, int]:
    """What is set on a socket, by the names of libpq."""
    with socket.socket(fileno=os.dup(fileno)) as sock:
        return {
            "keepalives": sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            "keepalives_idle": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            "keepalives_interval": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            "keepalives_count": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
            "tcp_user_timeout": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        }


def options_advised(advice: Recommendation) -> dict[str, int | None]:
    keepalive = advice.socket.keepalive
    assert keepalive is not None
    return {
        "keepalives": 1,
        "keepalives_idle": keepalive.idle,
        "keepalives_interval": keepalive.interval,
        "keepalives_count": keepalive.count,
        "tcp_user_timeout": advice.socket.user_timeout_ms,
    }


def terminate(server: PostgresServer) -> int:
    """End all sessions but our own; how many there were."""
    with psycopg.connect(server.url(), autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return len(ended.fetchall())


def backend(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_the_formats_are_those_promised() -> None:
    assert set(FORMATS) == {
        *("sqlalchemy", "python", "env", "psycopg", "asyncpg", "django", "hikaricp", "pgx", "database-sql"),
        *("node-postgres", "npgsql", "rails", "pgbouncer"),
    }


def test_every_format_is_explained() -> None:
    page = (ROOT / "docs" / "recommendation.md").read_text()
    assert [name for name in ("json", *FORMATS) if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", GOLDEN_FILES)
@pytest.mark.parametrize("advice", ADVICES)
def test_golden(name: str, advice: str) -> None:
    golden = GOLDEN / advice / GOLDEN_FILES[name]
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(rendered(name, ADVICES[advice]))
    assert rendered(name, ADVICES[advice]) == golden.read_text()


KEPT = replace(SILENT, settings=PoolSettings(pool_recycle=171, pool_pre_ping=True, pool_recycle_with_keepalive=1213))


@pytest.mark.parametrize("name", FORMATS)
def test_only_who_sets_the_keepalive_may_rely_on_it(name: str) -> None:
    rendering = FORMATS[name].render(KEPT)
    code = [line for line in str(rendering).splitlines() if "TCP keepalive holds this path" not in line]
    ages = {"psycopg": "1153", "pgx": "1038 *", "rails": "1153"}  # 60 s for the sweep, a tenth for the jitter
    if name in ("sqlalchemy", "hikaricp", "pgbouncer"):
        assert "1213" not in "".join(code)
        assert "171" in "".join(code)
    elif name == "env":
        assert {"POOL_RECYCLE=171", "POOL_RECYCLE_WITH_KEEPALIVE=1213"} <= set(code)
    else:
        assert re.search(rf"\b{re.escape(ages.get(name, '1213'))}", "\n".join(code))
    without = replace(KEPT, socket=replace(KEPT.socket, keepalive=None))
    if name not in ("sqlalchemy", "env"):
        assert not re.search(r"\b1[12][0-9]{2}\b", str(FORMATS[name].render(without)))


class TestSqlalchemy:
    @every_advice
    async def test_create_async_engine_takes_them(self, postgres: PostgresServer, advice: Recommendation) -> None:
        arguments = FORMATS["sqlalchemy"].render(advice)
        assert isinstance(arguments, dict)
        engine = create_async_engine(postgres.url(scheme="postgresql+asyncpg"), **arguments)
        assert engine.pool._recycle == advice.settings.pool_recycle
        assert engine.pool._pre_ping is advice.settings.pool_pre_ping
        async with engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        await engine.dispose()

    @pytest.mark.parametrize("advised", [True, False])
    async def test_behind_a_transaction_pooler_only_the_connect_args_advised_work(
        self, postgres: PostgresServer, advised: bool
    ) -> None:
        """Somebody else is at work on the server process that knows the statements; the pooler gives us another."""
        arguments = FORMATS["sqlalchemy"].render(ADVICES["fatal"])
        assert isinstance(arguments, dict)
        if not advised:
            del arguments["connect_args"]
        with pgbouncer(postgres, "[pgbouncer]\npool_mode = transaction") as url:
            address = url.replace("postgresql:", "postgresql+asyncpg:") + "postgres"
            engine = create_async_engine(address, pool_size=1, max_overflow=0, **arguments)
            other = await asyncpg.connect(url + "postgres", statement_cache_size=0)

            async def work() -> None:
                async with engine.connect() as connection:
                    assert await connection.scalar(text("SELECT 7")) == 7

            try:
                await work()
                async with other.transaction():
                    if advised:
                        await work()
                    else:
                        with pytest.raises(DBAPIError) as refused:
                            await work()
                        assert refused.value.orig is not None
                        assert refused.value.orig.sqlstate == "26000"
            finally:
                other.terminate()
                await engine.dispose()


class TestPython:
    """The snippet: printed, run, and put through what it is there for."""

    @every_advice
    def test_it_runs_as_printed(self, postgres: PostgresServer, tmp_path: Path, advice: Recommendation) -> None:
        (file := tmp_path / "advised.py").write_text(rendered("python", advice))
        for url in (postgres.url(), postgres.url(scheme="postgresql+asyncpg")):
            done = subprocess.run(
                [sys.executable, "-W", "error", file],
                env=os.environ | {"DATABASE_URL": url},
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+\+00:00\n", done.stdout)

    async def test_replacing_a_connection_waits_for_nobody(
        self, postgres: PostgresServer, make_path: MakePath, load: Load
    ) -> None:
        """On a path that fell silent SQLAlchemy alone would take 2 s for the goodbye (tests/facts)."""
        path = await make_path(postgres, fault="silent", idle_limit=0.3)
        engine = load("python", advised(1), postgres.url(port=path.port)).engine
        async with engine.connect() as connection:
            await connection.scalar(text("SELECT 1"))
        await asyncio.sleep(1.2)
        async with asyncio.timeout(1.9), engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
        assert path.accepted == 2
        await engine.dispose()

    @every_advice
    async def test_the_socket_options_are_set(
        self, postgres: PostgresServer, load: Load, advice: Recommendation
    ) -> None:
        engine = load("python", advice, postgres.url()).engine
        async with engine.connect() as connection:
            driver = (await connection.get_raw_connection()).driver_connection
            options = socket_options(driver._transport.get_extra_info("socket").fileno())
        assert options == options_advised(advice)
        await engine.dispose()

    @every_advice
    @pytest.mark.parametrize("when", ["at rest", "at work"])
    async def test_it_survives_the_end_of_its_sessions(
        self, make_server: MakeServer, load: Load, advice: Recommendation, when: str
    ) -> None:
        server = make_server()
        module = load("python", advice, server.url())
        pids = []

        async def work(connection: AsyncConnection) -> None:
            pids.append(await connection.scalar(text("SELECT pg_backend_pid()")))
            if when == "at work" and len(pids) == 2:
                assert await asyncio.to_thread(terminate, server) == 1
                await connection.execute(text("SELECT 1"))

        await module.run(work)
        if when == "at rest":
            assert await asyncio.to_thread(terminate, server) == 1
        await module.run(work)
        assert pids[-1] != pids[0]
        assert len(pids) == (2 if when == "at rest" else 3)
        await module.engine.dispose()

    async def test_work_is_repeated_once_and_only_for_a_lost_connection(
        self, postgres: PostgresServer, load: Load
    ) -> None:
        module = load("python", SILENT, postgres.url())
        tries = 0

        async def wrong(connection: AsyncConnection) -> None:
            nonlocal tries
            tries += 1
            await connection.execute(text("SELEC 1"))

        async def hopeless(connection: AsyncConnection) -> None:
            nonlocal tries
            tries += 1
            await asyncio.to_thread(terminate, postgres)
            await connection.execute(text("SELECT 1"))

        with pytest.raises(ProgrammingError):
            await module.run(wrong)
        assert tries == 1
        with pytest.raises(DBAPIError) as lost:
            await module.run(hopeless)
        assert tries == 3
        assert lost.value.connection_invalidated
        await module.engine.dispose()

    @every_advice
    async def test_it_leaves_a_demoted_primary(
        self, make_server: MakeServer, make_path: MakePath, load: Load, advice: Recommendation
    ) -> None:
        """A name that leads to a new primary, and a pool that still holds a connection to the old one."""
        old, new = make_server(), make_server()
        for server in (old, new):
            with psycopg.connect(server.url(), autocommit=True) as connection:
                connection.execute("CREATE TABLE written (at timestamptz)")
        path = await make_path(old)
        module = load("python", advice, old.url(port=path.port))
        tries = 0

        async def write(connection: AsyncConnection) -> int:
            nonlocal tries
            tries += 1
            await connection.execute(text("INSERT INTO written SELECT now()"))
            return int(await connection.scalar(text("SELECT count(*) FROM written")))

        assert await module.run(write) == 1
        with psycopg.connect(old.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            connection.execute("SELECT pg_reload_conf()")
            while connection.execute("SHOW default_transaction_read_only").fetchone() != ("on",):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        path.retarget(HOST, new.port)
        while await module.run(write) != 1:  # noqa: ASYNC110 - the reload reaches the old session in its own time
            await asyncio.sleep(0.02)
        await module.engine.dispose()
        with psycopg.connect(new.url()) as connection:
            assert connection.execute("SELECT count(*) FROM written").fetchone() == (1,)

    async def test_it_pings_what_rested_and_spares_what_did_not(self, postgres: PostgresServer, load: Load) -> None:
        async with recording(HOST, postgres.port) as wire:
            engine = load("python", advised(171, ping=False, after=0.3), postgres.url(port=wire.port)).engine
            async with engine.connect():
                pass
            wire.take()
            async with engine.connect():
                assert wire.take() == []
            await asyncio.sleep(0.4)
            async with engine.connect():
                assert wire.take() != []
            await engine.dispose()

    async def test_a_dead_connection_is_replaced_before_it_is_handed_out(
        self, postgres: PostgresServer, make_path: MakePath, load: Load
    ) -> None:
        path = await make_path(postgres, fault="reset", idle_limit=0.3)
        engine = load("python", advised(171, ping=False, after=0.2), postgres.url(port=path.port)).engine
        for _ in range(2):
            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT 1")) == 1
            await asyncio.sleep(0.6)
        assert path.accepted == 2
        await engine.dispose()

    @every_advice
    @pytest.mark.parametrize("name", ["python", "psycopg", "asyncpg", "django"])
    def test_it_is_written_as_one_would(self, name: str, advice: Recommendation) -> None:
        ignored = "F821" if name == "django" else "E999"  # DATABASES is the reader's
        for arguments in (("check", "--select=E,F,W,I,B", f"--ignore={ignored}"), ("format", "--check")):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", *arguments, "--isolated", "--line-length=120", "-"],
                input=rendered(name, advice),
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


class TestPsycopg:
    @every_advice
    def test_the_pool_is_built_and_used(self, postgres: PostgresServer, load: Load, advice: Recommendation) -> None:
        module = load("psycopg", advice, postgres.url())
        module.open_pool()
        with module.pool as pool, pool.connection() as connection:
            assert backend(connection) > 0
            assert socket_options(connection.pgconn.socket) == options_advised(advice)
            prepares = connection.prepare_threshold is not None
            assert prepares == ("statement_cache_size" not in advice.connect_args)

    async def test_what_rests_is_pinged_and_what_is_old_replaced(
        self, postgres: PostgresServer, make_path: MakePath, load: Load
    ) -> None:
        """The path swallows what rested 2 s; a checkout after 6 s finds a connection that is younger than 4 s."""
        path = await make_path(postgres, idle_limit=2)
        module = load("psycopg", advised(4), postgres.url(port=path.port))

        def rest() -> float:
            module.open_pool()
            with module.pool as pool:
                time.sleep(6)
                began = time.monotonic()
                with pool.connection() as connection:
                    backend(connection)
                return time.monotonic() - began

        assert await asyncio.to_thread(rest) < 1
        # Each replaced once; on a busy machine one may meet the limit of this path while it is still being opened.
        assert 2 * module.pool.min_size <= path.accepted < 3 * module.pool.min_size

    @pytest.mark.parametrize(("ping", "after"), [(True, None), (False, 0.1)])
    def test_what_died_otherwise_is_replaced(
        self, postgres: PostgresServer, load: Load, ping: bool, after: float | None
    ) -> None:
        """By the check before use, or, where that is not to cost every checkout, by those at rest."""
        module = load("psycopg", advised(171, ping=ping, after=after), postgres.url())
        module.open_pool()
        with module.pool as pool:
            with pool.connection() as connection:
                before = backend(connection)
            pool.resize(1, 1)
            terminate(postgres)
            time.sleep(0 if ping else 0.5)
            with pool.connection() as connection:
                assert backend(connection) != before


class TestAsyncpg:
    @every_advice
    async def test_the_pool_is_built_and_used(
        self, postgres: PostgresServer, load: Load, advice: Recommendation
    ) -> None:
        async with await load("asyncpg", advice, postgres.url()).create_pool() as pool, pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
            fileno = connection._transport.get_extra_info("socket").fileno()
            assert socket_options(fileno) == options_advised(advice)

    async def test_what_rests_too_long_is_closed_to_the_last(
        self, postgres: PostgresServer, make_path: MakePath, load: Load
    ) -> None:
        path = await make_path(postgres, idle_limit=1.5)
        pool = await load("asyncpg", advised(1), postgres.url(port=path.port)).create_pool()
        async with pool.acquire(), pool.acquire():
            assert pool.get_size() == 2
        await asyncio.sleep(1.2)
        assert pool.get_size() == 0
        async with asyncio.timeout(60), pool.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        await pool.close()


class TestDjango:
    PROGRAM = """
import json, os, sys
import django
from django.core.signals import request_finished, request_started
from django.db import connection

django.setup()

def request():
    request_started.send("test")
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    request_finished.send("test")
    return pid

pids = [request()]
print(json.dumps({"fileno": connection.connection.pgconn.socket, "settings": connection.settings_dict}, default=str))
sys.stdout.flush()
sys.stdin.readline()
print(json.dumps([*pids, request()]))
"""

    @every_advice
    def test_settings_are_loaded_and_obeyed(
        self, make_server: MakeServer, tmp_path: Path, advice: Recommendation
    ) -> None:
        server = make_server()
        (tmp_path / "settings.py").write_text(
            'DATABASES = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres",'
            f' "USER": "postgres", "HOST": "{HOST}", "PORT": {server.port}}}}}\n' + rendered("django", advice)
        )
        program = subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM],
            env=os.environ | {"DJANGO_SETTINGS_MODULE": "settings", "PYTHONPATH": str(tmp_path)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with program:
            assert program.stdout is not None
            used = json.loads(program.stdout.readline())
            assert used["settings"]["CONN_MAX_AGE"] == advice.settings.pool_recycle
            assert used["settings"]["CONN_HEALTH_CHECKS"] is True
            assert used["settings"]["OPTIONS"] == options_advised(advice)
            terminate(server)
            answer, _ = program.communicate("\n", timeout=30)
        before, after = json.loads(answer)
        assert before != after
        assert program.returncode == 0


class TestPgbouncer:
    @every_advice
    def test_it_is_an_ini_file(self, advice: Recommendation) -> None:
        parser = configparser.ConfigParser()
        parser.read_string(rendered("pgbouncer", advice))
        (section,) = parser.sections()
        assert section == "pgbouncer"
        assert parser["pgbouncer"]["server_idle_timeout"] == str(advice.settings.pool_recycle)

    @every_advice
    def test_pgbouncer_takes_it(self, postgres: PostgresServer, advice: Recommendation) -> None:
        asked = configparser.ConfigParser()
        asked.read_string(rendered("pgbouncer", advice))
        with pgbouncer(postgres, rendered("pgbouncer", advice)) as url:
            # The console speaks the simple protocol only.
            with psycopg.connect(url + "pgbouncer", autocommit=True, cursor_factory=psycopg.ClientCursor) as console:
                effective = {row[0]: row[1] for row in console.execute("SHOW CONFIG")}
            with psycopg.connect(url + "postgres") as connection:
                assert backend(connection) > 0
        assert {name: effective[name] for name in asked["pgbouncer"]} == dict(asked["pgbouncer"])


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}")
    return found


class TestElsewhere:
    @every_advice
    @pytest.mark.parametrize("name", ["pgx", "database-sql"])
    def test_go_is_formatted(self, name: str, advice: Recommendation) -> None:
        source = rendered(name, advice)
        done = subprocess.run([program("gofmt")], input=source, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        assert done.stdout == source

    @every_advice
    def test_node_parses_it(self, tmp_path: Path, advice: Recommendation) -> None:
        (file := tmp_path / "pool.mjs").write_text(rendered("node-postgres", advice))
        done = subprocess.run([program("node"), "--check", file], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")

    @every_advice
    def test_rails_gets_yaml(self, advice: Recommendation) -> None:
        settings = yaml.safe_load(rendered("rails", advice))["connection_health"]
        assert {name: settings[name] for name in options_advised(advice)} == options_advised(advice)
        assert settings.get("prepared_statements", True) is ("statement_cache_size" not in advice.connect_args)

    @every_advice
    def test_npgsql_gets_a_connection_string(self, advice: Recommendation) -> None:
        string = "".join(re.findall(r'^ {4}"(.*)"(?: \+|;)$', rendered("npgsql", advice), re.MULTILINE))
        settings = dict(part.split("=") for part in string.removesuffix(";").split(";"))
        assert settings["Connection Lifetime"] == str(advice.settings.pool_recycle)
        assert settings["Tcp Keepalive Time"] == str(options_advised(advice)["keepalives_idle"])


seconds = st.integers(1, 100_000)
ages = seconds | st.integers(1, 999).map(lambda milliseconds: milliseconds / 1000)
advices = st.builds(
    Recommendation,
    target=st.just("default"),
    status=st.sampled_from(Status),
    settings=st.builds(
        PoolSettings,
        pool_recycle=ages,
        pool_pre_ping=st.booleans(),
        selective_pre_ping_after=st.none() | st.floats(0.1, 1e5),
    ),
    socket=st.builds(
        SocketOptions,
        keepalive=st.none() | st.builds(Keepalive, idle=seconds, interval=seconds, count=st.integers(1, 10)),
        user_timeout_ms=st.none() | st.integers(1, 100_000),
    ),
    connect_args=st.just({}) | st.just({"statement_cache_size": 0, "server_settings": {"application_name": "it's"}}),
    forgets_statements=st.booleans(),
    idle_limit=st.none() | st.builds(IdleLimit, proven_seconds=st.just(0.0) | ages),
    warnings=st.tuples(st.builds(Remark, code=st.just("any"), text=st.text())),
)


class TestAnyAdvice:
    """Whatever is advised, and whatever the sentences in it say."""

    @given(advices)
    def test_sentences_stay_comments(self, advice: Recommendation) -> None:
        silenced = replace(advice, warnings=())
        for name, mark in {"hikaricp": "#", "rails": "#", "pgbouncer": ";", "pgx": "//", "npgsql": "//"}.items():
            code = [
                [line for line in rendered(name, each).splitlines() if not line.lstrip().startswith(mark)]
                for each in (advice, silenced)
            ]
            assert code[0] == code[1]
        for name in ("python", "psycopg", "asyncpg", "django"):
            compile(rendered(name, advice), name, "exec")

    @given(advices)
    def test_hikaricp_would_correct_nothing(self, advice: Recommendation) -> None:
        """HikariConfig.validateNumerics replaces what it does not like by defaults, with a warning in the log."""
        lines = [line for line in rendered("hikaricp", advice).splitlines() if line and not line.startswith("#")]
        properties = dict(line.split("=") for line in lines)
        lifetime, keepalive = int(properties["maxLifetime"]), int(properties["keepaliveTime"])
        assert lifetime >= 30_000
        assert keepalive == 0 or 30_000 <= keepalive < lifetime
        assert int(properties["validationTimeout"]) >= 250

    @given(advices)
    def test_delays_count_towards_the_advice(self, advice: Recommendation) -> None:
        recycle = advice.settings.pool_recycle
        pool = yaml.safe_load(rendered("rails", advice))["connection_health"]
        assert pool["idle_timeout"] + pool["reaping_frequency"] <= recycle * 1.00001
        assert pool["keepalive"] <= pool["idle_timeout"]
        # Rails takes the whole seconds of max_age, and none of them for no limit.
        assert pool.get("max_age") == (pool["idle_timeout"] if pool["idle_timeout"] >= 1 else None)

        durations = dict(
            re.findall(
                r"config\.(MaxConnLifetime|MaxConnLifetimeJitter|HealthCheckPeriod) = (.*)", rendered("pgx", advice)
            )
        )
        milliseconds = {"time.Second": 1000, "time.Millisecond": 1, "time.Microsecond": 0.001}
        lengths = [int(number) * milliseconds[unit] for number, unit in (d.split(" * ") for d in durations.values())]
        assert len(lengths) == 3
        assert min(lengths) > 0
        assert sum(lengths) <= recycle * 1000 * 1.001

    @given(advices)
    def test_pgbouncer_keeps_no_connection_beyond_the_proof(self, advice: Recommendation) -> None:
        parser = configparser.ConfigParser()
        parser.read_string(rendered("pgbouncer", advice))
        lifetime = float(parser["pgbouncer"]["server_lifetime"])
        proven = advice.idle_limit.proven_seconds if advice.idle_limit else 0
        assert 0 < lifetime <= advice.settings.pool_recycle
        assert 2 * lifetime <= max(proven, advice.settings.pool_recycle)
