"""`sidecar measure` as its user runs it, against a real server behind paths that kill what rests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from jsonschema import Draft202012Validator

from sidecar.core.budget import BudgetStatus, CeilingKind, Hindrance
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import PostgresServer
from sidecar.measure import _waits
from sidecar.web.openapi import document
from sidecar.web.routes import ADMIN, PUBLIC

MakePath = Callable[..., Awaitable[FaultyPath]]
MakeServer = Callable[..., PostgresServer]

SECRET = "hunter2"
LIMIT = 3.0  # seconds
QUICK = ("--floor", "1s", "--cap", "60s", "--deadline", "1s")


async def start(*arguments: str, **environ: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sidecar", "measure", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")} | environ,
    )


async def measure(*arguments: str, **environ: str) -> tuple[int | None, str, str]:
    process = await start(*arguments, **environ)
    output, progress = await process.communicate()
    assert b"Traceback" not in progress, progress
    return process.returncode, output.decode(), progress.decode()


class TestFinds:
    async def test_a_script_gets_one_document(self, postgres: PostgresServer, make_path: MakePath) -> None:
        path = await make_path(postgres, "reset", idle_limit=LIMIT)
        url = postgres.url(port=path.port)
        status, output, progress = await measure(url, *QUICK, "--json", "--for", "confirmed", "--format", "hikaricp")
        assert status == 0, progress
        advice = json.loads(output)
        schema = {"$ref": "#/components/schemas/Recommendation", "components": document(PUBLIC, ADMIN)["components"]}
        Draft202012Validator(schema).validate(advice)
        assert advice["status"] in ("confirmed", "verified")
        limit = advice["idle_limit"]
        assert limit["death"] == "reset_on_use"
        # The bounds hold whatever the load; how close they come is the discovery's matter.
        assert limit["proven_seconds"] < LIMIT * 1.02
        assert limit["dead_by_seconds"] > LIMIT * 0.98
        measurement = advice["measurement"]
        assert (measurement["end"], measurement["because"], measurement["goal"]) == ("reached", None, "confirmed")
        assert measurement["database"] == f"127.0.0.1:{path.port}/postgres"
        assert "maxLifetime=" in measurement["snippet"]["text"]
        died = [each["idle_seconds"] for each in measurement["observations"] if each["outcome"] == "died"]
        assert min(died) == pytest.approx(limit["dead_by_seconds"], abs=0.002)
        # Without a terminal: lines, each of which says how it stands.
        lines = progress.splitlines()
        assert len(lines) > 3
        assert all(re.match(r" *\d+\.\d s   (ladder|refine|confirm|volley|monitor) ", line) for line in lines), progress
        assert "if the limit is 50 s, the next well-known one" in progress
        assert "\x1b" not in output + progress

    async def test_a_terminal_shows_how_it_goes_and_then_the_picture(
        self, postgres: PostgresServer, make_path: MakePath
    ) -> None:
        path = await make_path(postgres, "close", idle_limit=LIMIT)
        async with on_a_terminal(postgres.url(port=path.port), *QUICK) as (process, shown):
            assert await process.wait() == 0
        screen = await shown
        assert "\x1b[" in screen
        assert "━" in screen  # bars that grow
        assert re.search(r"\d s to go", screen)
        assert "create_async_engine(" in screen
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
        result = plain[plain.rindex(f"127.0.0.1:{path.port}/postgres: idle limit ") :]
        assert "proven to live" in result
        assert "dead by" in result
        assert "closed at the limit" in re.sub(r"\s+", " ", result)
        assert "pool_recycle=1" in result
        assert "Traceback" not in screen

    async def test_a_path_without_a_limit_up_to_the_cap(self, postgres: PostgresServer) -> None:
        status, output, progress = await measure(
            postgres.url(), "--floor", "500ms", "--cap", "1500ms", "--connections", "4", "--format", "env"
        )
        assert status == 0
        assert "if the limit is" not in progress  # none known is that short
        advised = float(output.removeprefix("POOL_RECYCLE=").partition("\n")[0])
        assert advised == 30  # nothing shorter shows, however little was survived
        assert re.search(r"no idle limit found; connections survived 1\.\d s of rest \(verified\)", output)


class TestEndsEarly:
    async def test_out_of_time_is_1_and_what_is_proven_is_told(self, postgres: PostgresServer) -> None:
        status, output, complaint = await measure(
            postgres.url(), "--floor", "500ms", "--budget", "3s", PYTHONIOENCODING="ascii"
        )
        assert status == 1
        assert complaint.splitlines()[-1] == "not verified within 3 s: a longer --budget looks further"
        assert "no idle limit found; connections survived" in output
        assert "o lived  x died" in output  # and no traceback where a mark cannot be printed
        assert output.isascii()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    async def test_interrupted_it_tells_what_is_proven(self, postgres: PostgresServer, number: signal.Signals) -> None:
        process = await start(postgres.url(), "--floor", "500ms", "--connections", "4", "--json")
        assert process.stderr is not None
        while not re.search(rb"proven +\d", await process.stderr.readline()):
            pass
        connection = await asyncpg.connect(postgres.url())
        used = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'connhealth/%'"
        )
        await connection.close()
        assert used <= 4 + 4  # the probes; a pooled one, a watch and its attempt, an observer
        began = time.monotonic()
        process.send_signal(number)
        output, complaint = await process.communicate()
        assert process.returncode == 130
        assert time.monotonic() - began < 5
        assert json.loads(output)["idle_limit"]["proven_seconds"] >= 0.5
        assert json.loads(output)["measurement"]["end"] == "interrupted"
        assert complaint.decode().splitlines()[-1].startswith("interrupted after ")
        assert b"Traceback" not in complaint

    async def test_interrupted_before_anybody_answered(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            process = await start(f"postgresql://app@127.0.0.1:{silent.getsockname()[1]}/app")
            accepted, _ = await asyncio.to_thread(silent.accept)
            with accepted:
                process.send_signal(signal.SIGINT)
                output, complaint = await process.communicate()
        assert (process.returncode, output) == (130, b"")
        assert re.fullmatch(rb"interrupted after \d s: nothing was measured yet\n", complaint)


class TestCannot:
    async def test_nobody_there(self) -> None:
        status, output, complaint = await measure(f"postgresql://app:{SECRET}@127.0.0.1:1/app")
        assert (status, output) == (1, "")
        assert complaint == "cannot connect to 127.0.0.1:1/app: Connection refused\n"
        assert SECRET not in complaint

    async def test_the_password_may_come_from_where_others_do_not_see_it(
        self, make_server: MakeServer, tmp_path: Path
    ) -> None:
        server = make_server(password=SECRET)
        open_url = server.url().replace(f":{SECRET}", "")
        file = tmp_path / "password"
        file.write_text(f"{SECRET}\n")
        short = ("--floor", "500ms", "--budget", "1500ms", "--json")
        by_environment, by_file, wrong, none = await asyncio.gather(
            measure(open_url, *short, PGPASSWORD=SECRET),
            measure(open_url, *short, "--password-file", str(file)),
            measure(open_url, *short, PGPASSWORD="guess"),
            measure(open_url, *short, HOME=str(tmp_path)),
        )
        for status, output, progress in (by_environment, by_file):
            assert status == 1, progress
            assert json.loads(output)["measurement"]["end"] == "out_of_time"
            assert SECRET not in output + progress
        for status, output, complaint in (wrong, none):
            assert (status, output, complaint.count("\n")) == (1, "", 1)
            assert "password" in complaint

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ((f"mysql://app:{SECRET}@db.internal/app",), "URL: unknown scheme: takes postgresql+asyncpg://"),
            (("postgresql://app@db/app?sslmode=of-course",), "URL: what it says of tls.mode: unknown word: takes "),
            (("postgresql://app@db/app", "--connections", "1"), "--connections: out of range: takes a whole number"),
            (("postgresql://app@db/app", "--floor", "1d"), "--cap: too short: takes more than floor, 1d"),
            (("postgresql://app@db/app", "--cap", "soon"), "--cap: not a duration: takes 20ms to 30d"),
            (("postgresql://app@db/app", "--format", "toml"), "--format: unknown word: takes sqlalchemy, python, "),
            (
                (f"postgresql://app:{SECRET}@db/app", "--password-file", "x"),
                "--password-file: the URL holds a password",
            ),
        ],
    )
    async def test_bad_usage_is_2_and_named_as_it_was_typed(self, arguments: tuple[str, ...], complaint: str) -> None:
        status, output, told = await measure(*arguments)
        assert (status, output) == (2, "")
        assert told.startswith(complaint)
        assert told.count("\n") == 1
        assert SECRET not in told


@contextlib.asynccontextmanager
async def on_a_terminal(
    *arguments: str,
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Future[str]]]:
    """The command with both its outputs on a pseudo-terminal, and what that has shown in the end."""
    ours, theirs = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sidecar", "measure", *arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environ | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", "PYTHONIOENCODING": "utf-8"},
        )
    finally:
        os.close(theirs)

    def read() -> str:
        shown = b""
        with contextlib.suppress(OSError):  # how Linux says that the other end is closed
            while more := os.read(ours, 65536):
                shown += more
        os.close(ours)
        return shown.decode()

    shown = asyncio.ensure_future(asyncio.to_thread(read))
    try:
        yield process, shown
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await shown


def test_says_why_it_waits_with_the_numbers() -> None:
    crowded = BudgetStatus(usable=97, used=84, others=83, ceiling=CeilingKind.SERVER, hindrance=Hindrance.CROWDED)
    assert _waits(crowded) == "waits: 84 of 97 in use"
    few = BudgetStatus(usable=4, used=1, others=0, ceiling=CeilingKind.ROLE, hindrance=Hindrance.FEW_SLOTS)
    assert _waits(few) == "waits: 1 of 4 in use under the limit of the role"
    assert _waits(None) == "waits for a look at who holds the server's connections"
    assert _waits(BudgetStatus(hindrance=Hindrance.REFUSED)) == "waits: a connection was refused"
