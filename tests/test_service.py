"""The service as it is run: a process, real databases, and the ends it must survive or meet in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import pytest

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer, free_port
from sidecar.probes.idle import IdleProbeRunner
from sidecar.remote import Reply, Unreachable, ask
from sidecar.service import Service
from sidecar.settings.model import Settings
from sidecar.store.tables import observations
from sidecar.target import Target
from sidecar.web.routes import PUBLIC

pytestmark = pytest.mark.real_time

LEAVES_WITHIN_SECONDS = 20.0  # it promises 5; a busy machine may take longer

# Short rests and short deadlines, so that a limit of two seconds is found in five.
QUICK = {
    "IDLE__FLOOR": "300ms",
    "IDLE__DEADLINE": "500ms",
    "HEARTBEAT__EVERY": "200ms",
    "HEARTBEAT__DEADLINE": "500ms",
}


SIDECAR_RUN = (sys.executable, "-m", "sidecar", "run")


class Sidecar:
    """A running `sidecar run`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.base = f"http://{HOST}:{port}"
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.splitlines(keepends=True) if line.endswith("\n")]

    async def ask(self, route: str, method: str = "GET", base: str | None = None) -> Reply:
        return await asyncio.to_thread(ask, base or self.base, route, method=method)

    async def overhear(self, route: str, seconds: float = 1.0) -> str:
        """What a stream, which never ends, says at its beginning."""

        def listen() -> str:
            heard, until = b"", time.monotonic() + seconds
            with socket.create_connection((HOST, int(self.base.rpartition(":")[2])), timeout=seconds) as connection:
                connection.sendall(f"GET {route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                with contextlib.suppress(TimeoutError):
                    while time.monotonic() < until and (part := connection.recv(65536)):
                        heard += part
            return heard.decode()

        return await asyncio.to_thread(listen)

    async def json(self, route: str) -> Any:
        return json.loads((await self.ask(route)).text)

    async def admin(self) -> str:
        listening = next(record for record in self.records if record["message"] == "listening")
        return f"http://127.0.0.1:{listening['admin_port']}"

    async def until(self, route: str, holds: Callable[[Any], object], seconds: float = 60.0) -> Any:
        """The first answer of which this holds."""
        deadline = time.monotonic() + seconds
        answer = None
        while True:
            assert self.process.poll() is None, self.log
            with contextlib.suppress(Unreachable):
                if holds(answer := await self.json(route)):
                    return answer
            assert time.monotonic() < deadline, (answer, self.log)
            await asyncio.sleep(0.05)

    async def until_ready(self) -> None:
        await self.until("/health", lambda health: health.get("ready"))

    async def until_found(self, target: str = "default") -> Any:
        """The advice, once the limit is bracketed."""
        return await self.until(
            f"/recommendation?target={target}",
            lambda advice: advice.get("status", "measuring") != "measuring",
            seconds=100,
        )

    async def left(self) -> int:
        return await asyncio.to_thread(self.process.wait, LEAVES_WITHIN_SECONDS)

    async def leave(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status, after a signal."""
        self.process.send_signal(number)
        return await self.left()


Start = Callable[..., Awaitable[Sidecar]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """`await start(URL or {target: URL}, KEY="value")`: a running sidecar that answers, its store in `tmp_path`."""
    processes: list[subprocess.Popen[bytes]] = []

    async def begin(urls: str | Mapping[str, str], **settings: str) -> Sidecar:
        port = free_port()
        environment = {
            "HTTP__HOST": HOST,
            "HTTP__PORT": str(port),
            "HTTP__ADMIN_PORT": "0",
            "STORE__URL": f"sqlite+aiosqlite:///{tmp_path / 'evidence.db'}",
        }
        for name, url in ({"default": urls} if isinstance(urls, str) else urls).items():
            environment[f"TARGETS__{name}__URL".upper()] = url
            environment |= {f"TARGETS__{name}__{key}".upper(): value for key, value in QUICK.items()}
        log = tmp_path / f"sidecar-{len(processes)}.log"
        process = spawn({f"SIDECAR_{name}": value for name, value in (environment | settings).items()}, tmp_path, log)
        processes.append(process)
        sidecar = Sidecar(process, port, log)
        await sidecar.until("/livez", lambda liveness: liveness["alive"])
        return sidecar

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def spawn(
    environment: Mapping[str, str], directory: Path, log: Path, command: Sequence[str] = SIDECAR_RUN
) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            env={**inherited, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def is_free(port: int) -> bool:
    with socket.socket() as trial, contextlib.suppress(OSError):
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind((HOST, port))
        return True
    return False


# Starting


async def test_two_variables_are_all_it_needs(postgres: PostgresServer, tmp_path: Path) -> None:
    if not is_free(9091):
        pytest.skip("something listens on 9091, the admin port unless told otherwise")
    port, log = free_port(), tmp_path / "log"
    environment = {"SIDECAR_TARGET_URL": postgres.url(scheme="postgresql+asyncpg"), "SIDECAR_HTTP__PORT": str(port)}
    with spawn(environment, tmp_path, log) as process:
        try:
            sidecar = Sidecar(process, port, log)
            await sidecar.until_ready()
            assert (await sidecar.json("/recommendation"))["status"] == "measuring"
            assert await sidecar.leave() == 0
        finally:
            process.kill()
    assert (tmp_path / "evidence.db").exists()


async def test_without_a_database_it_lives_and_recovers_when_one_comes(
    make_server: Callable[..., PostgresServer], start: Start
) -> None:
    server = make_server()
    server.stop()
    sidecar = await start(server.url())
    await sidecar.until("/startupz", lambda startup: startup.get("started"))
    health = await sidecar.ask("/health")
    assert health.status == 503
    await sidecar.until("/health", lambda health: f"cannot connect to {HOST}:{server.port}" in health["detail"])
    advice = await sidecar.json("/recommendation")
    assert advice["status"] == "measuring"
    assert advice["idle_limit"] is advice["pre_ping_cost"] is advice["failover"] is None
    assert {reason["code"] for reason in advice["reasons"]} >= {"nothing_proven", "measuring"}
    assert (await sidecar.ask("/livez")).status == 200

    await asyncio.to_thread(server.start)
    await sidecar.until_ready()
    await sidecar.until("/recommendation", lambda advice: advice["idle_limit"] is not None)
    assert (await sidecar.ask("/livez")).status == 200


@pytest.mark.parametrize("key", ["http.port", "http.admin_port"])
def test_a_port_in_use_is_told_in_one_line(key: str, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as occupant:
        port = occupant.getsockname()[1]
        environment = {
            "SIDECAR_TARGET_URL": f"postgresql://app@{HOST}/app",
            "SIDECAR_HTTP__HOST": HOST,
            "SIDECAR_HTTP__PORT": "0",
            "SIDECAR_HTTP__ADMIN_PORT": "0",
            f"SIDECAR_{key.replace('.', '__').upper()}": str(port),
        }
        with spawn(environment, tmp_path, tmp_path / "log") as process:
            assert process.wait(20) == 2
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert line.startswith(f"{key}: cannot listen on {HOST}, port {port}: Address already in use: takes ")


# Leaving


async def test_sigterm_and_quitquitquit_end_it_in_order(postgres: PostgresServer, start: Start) -> None:
    told, asked, interrupted = await asyncio.gather(*(start(postgres.url()) for _ in range(3)))
    for sidecar in (told, asked, interrupted):
        await sidecar.until_ready()
    assert (await asked.ask("/quitquitquit", "POST")).status == 404, "not for everybody"
    assert (await asked.ask("/quitquitquit", "POST", await asked.admin())).status == 202
    assert await asked.left() == 0
    assert await told.leave() == 0
    assert await interrupted.leave(signal.SIGINT) == 130
    for sidecar in (told, asked, interrupted):
        assert sidecar.records[-1]["message"] == "leaving", sidecar.log


async def test_a_database_that_hangs_does_not_keep_it(
    postgres: PostgresServer, make_path: Callable[..., Awaitable[FaultyPath]], start: Start
) -> None:
    path = await make_path(postgres)
    established = await start(postgres.url(port=path.port))
    await established.until("/targets", lambda targets: targets["targets"][0]["probes"])
    path.pause()
    connecting = await start(postgres.url(port=path.port))
    await established.until("/targets", lambda targets: not targets["targets"][0]["reachable"])
    assert await asyncio.gather(established.leave(), connecting.leave()) == [0, 0]
    assert "lost" not in established.log


# In a network of its own, with a name server that takes every question and answers none: a socket nobody reads.
SILENT_NAME_SERVER = """
import os, socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 53))
server.set_inheritable(True)
os.execv(sys.executable, [sys.executable, "-m", "sidecar", "run"])
"""


@pytest.mark.lab
def test_a_name_server_that_keeps_silent_does_not_keep_it(tmp_path: Path) -> None:
    resolv_conf, log = tmp_path / "resolv.conf", tmp_path / "log"
    resolv_conf.write_text("nameserver 127.0.0.1\n")
    namespace = f"ip link set lo up && mount --bind {resolv_conf} /etc/resolv.conf"
    unshare = ["unshare", "--net", "--mount", "sh", "-c"]
    if subprocess.run(["env", *unshare, namespace], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace here: takes root, unshare and ip")
    environment = {
        "SIDECAR_TARGET_URL": "postgresql://app@database.example/app",
        "SIDECAR_TARGETS__DEFAULT__HEARTBEAT__DEADLINE": "500ms",
        "SIDECAR_HTTP__PORT": "0",
        "SIDECAR_HTTP__ADMIN_PORT": "0",
    }
    inside = [*unshare, f'{namespace} && exec "$@"', "-", sys.executable, "-c", SILENT_NAME_SERVER]
    with spawn(environment, tmp_path, log, inside) as process:
        try:
            sidecar = Sidecar(process, 0, log)
            while "did not answer within" not in sidecar.log:
                assert process.poll() is None, sidecar.log
                time.sleep(0.05)
            process.terminate()
            assert process.wait(LEAVES_WITHIN_SECONDS) == 0
        finally:
            process.kill()


async def test_a_store_that_is_locked_does_not_keep_it(postgres: PostgresServer, start: Start, tmp_path: Path) -> None:
    sidecar = await start(postgres.url())
    await sidecar.until("/evidence", lambda evidence: len(evidence["observations"]) > 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "evidence.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        await sidecar.until("/targets", lambda targets: targets["store"]["pending_writes"])
        assert await sidecar.leave() == 0
        lost = sidecar.records[-1]
    assert lost["message"].startswith("evidence lost")
    assert lost["records"] > 0


async def test_a_store_that_hangs_at_the_start_does_not_keep_it(
    postgres: PostgresServer, make_path: Callable[..., Awaitable[FaultyPath]], start: Start
) -> None:
    path = await make_path(postgres)
    path.pause()
    sidecar = await start(postgres.url(), STORE__URL=postgres.url(port=path.port, scheme="postgresql+asyncpg"))
    assert not (await sidecar.json("/startupz"))["started"]
    assert await sidecar.leave() == 0


# Evidence


async def test_a_restart_resumes_what_was_proven(
    postgres: PostgresServer, make_path: Callable[..., Awaitable[FaultyPath]], start: Start
) -> None:
    path = await make_path(postgres, "reset", idle_limit=2.0)
    first = await start(postgres.url(port=path.port))
    found = await first.until_found()
    assert await first.leave() == 0

    path.refuse()  # what is known now cannot have been measured anew
    second = await start(postgres.url(port=path.port))
    await second.until("/startupz", lambda startup: startup.get("started"))
    resumed = await second.json("/recommendation")
    assert resumed["status"] != "measuring"
    assert resumed["idle_limit"]["death"] == "reset_on_use"
    assert resumed["idle_limit"]["proven_seconds"] >= found["idle_limit"]["proven_seconds"]
    assert resumed["idle_limit"]["dead_by_seconds"] <= found["idle_limit"]["dead_by_seconds"]
    assert resumed["settings"]["pool_recycle"] == found["settings"]["pool_recycle"]


async def test_an_outage_left_open_by_an_earlier_life_is_closed_on_contact(
    make_server: Callable[..., PostgresServer], start: Start
) -> None:
    server = await asyncio.to_thread(make_server)
    first = await start(server.url())
    await first.until_ready()
    await first.until(
        "/targets", lambda answer: answer["targets"][0]["readiness"]["reason"] == "the database is reachable"
    )
    await asyncio.to_thread(server.stop)
    left_open = (await first.until("/outages", lambda answer: answer.get("outages")))["outages"][0]
    assert left_open["write"]["ended"] is None
    assert await first.leave() == 0

    await asyncio.to_thread(server.start)
    second = await start(server.url())

    def closed(answer: Any) -> bool:
        return bool(answer.get("outages")) and all(
            answer["outages"][0][what]["ended"] for what in ("connect", "read", "write")
        )

    (outage,) = (await second.until("/outages", closed))["outages"]
    assert outage["id"] == left_open["id"]
    for what in ("connect", "read", "write"):
        assert outage[what]["began"] == left_open[what]["began"]
        assert outage[what]["ended"]["after"] == outage[what]["began"]["until"]
        assert outage[what]["longest_seconds"] > 0
        assert outage[what]["watched"] is False
    # Its length is mostly that of the sidecar's own absence, and no figure for a runbook.
    figures = await second.until("/recommendation", lambda advice: advice["failover"])
    assert figures["failover"] == {"outages": 1, "outage_seconds": None, "write_outage_seconds": None}


@pytest.mark.parametrize("mode", ["crash", "fast", "immediate"])
async def test_a_restart_of_the_database_changes_no_limit_found(
    mode: str, make_server: Callable[..., PostgresServer], make_path: Callable[..., Awaitable[FaultyPath]], start: Start
) -> None:
    server = make_server()
    path = await make_path(server, "close", idle_limit=2.5)
    # The path runs in this process: when that is late it must not be taken for a partition.
    sidecar = await start(server.url(port=path.port), TARGETS__DEFAULT__HEARTBEAT__DEADLINE="10s")
    await sidecar.until(
        "/recommendation", lambda advice: advice["idle_limit"] and advice["idle_limit"]["proven_seconds"] > 0.5
    )
    await asyncio.to_thread(server.restart, mode)
    limit = (await sidecar.until_found())["idle_limit"]
    assert limit["proven_seconds"] < 2.5 + 0.05
    assert limit["dead_by_seconds"] == pytest.approx(2.5, rel=0.05)
    evidence = (await sidecar.json("/evidence?limit=1000"))["observations"]
    assert any(rest["outcome"] == "censored" for rest in evidence)
    (outage,) = (await sidecar.json("/outages"))["outages"]
    assert outage["kind"] == "restart"
    assert min(rest["idle_seconds"] for rest in evidence if rest["outcome"] == "died") > 2.4


class InspectingPath(FaultyPath):
    """Closes at its idle limit; and, while `cuts`, resets the connections of trials as they ask their first question.

    Such a trial fails, although the control beside it connects: what `sidecar.probes.trial` takes for the settings' own
    fault.
    """

    cuts = False
    trials = 0  # connections of trials that got as far as asking

    async def _forward(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, used: Callable[[], None]
    ) -> None:
        of_a_trial, asked = False, False
        while data := await source.read(65536):
            if of_a_trial and not asked:
                asked = True
                if self.cuts:
                    raise ConnectionResetError
                self.trials += 1
            # Of the client's first message only: the server repeats the name, not the database.
            of_a_trial |= b"connhealth/trial" in data and b"\0database\0" in data
            used()
            sink.write(data)
            await sink.drain()
        sink.write_eof()


async def test_a_trial_that_fails_withdraws_the_advice_and_one_that_succeeds_restores_it(
    postgres: PostgresServer, start: Start
) -> None:
    async with InspectingPath(HOST, postgres.port, "close", idle_limit=3.5) as path:
        # So near to the limit that the advice differs from the cautious setting.
        sidecar = await start(postgres.url(port=path.port), POLICY__SAFETY="0.9")

        async def advice_after_trial(outcome: str) -> Any:
            return await sidecar.until(
                "/recommendation",
                lambda advice: (advice.get("verification") or {}).get("outcome") == outcome,
                seconds=60,
            )

        held = await advice_after_trial("ok")
        recycle = held["settings"]["pool_recycle"]
        assert held["status"] == "verified"
        assert recycle > 1
        assert held["verification"]["idle_seconds"] > held["idle_limit"]["dead_by_seconds"]
        assert [warning["code"] for warning in held["warnings"]].count("trial_failed") == 0

        withdrawn = None
        while withdrawn is None:  # on a machine that stands still the cut may come too late
            begun = path.trials
            await sidecar.ask("/trial?target=default", method="POST", base=await sidecar.admin())
            # Two run side by side: the cut is meant for neither's beginning, or nothing would be tried at all.
            await sidecar.until("/livez", lambda _, begun=begun: path.trials > begun + 1, seconds=60)
            path.cuts = True
            with contextlib.suppress(AssertionError):
                withdrawn = await sidecar.until(
                    "/recommendation", lambda advice: advice["verification"]["outcome"] == "failed", seconds=20
                )
            path.cuts = False
        assert withdrawn["status"] == "provisional"
        cautious = 0.9 * 0.3  # the policy's share of the shortest rest tested
        assert withdrawn["settings"]["pool_recycle"] == pytest.approx(cautious)
        assert withdrawn["settings"]["pool_pre_ping"] is True
        why = withdrawn["warnings"][0]
        assert why["code"] == "trial_failed"
        assert f"pool_recycle = {recycle} s) is withdrawn" in why["text"]
        assert "closed in the middle of operation" in why["text"]
        (tried,) = [trial for trial in withdrawn["trials"] if trial["name"] == "recommended"]
        assert (tried["outcome"], tried["pool_recycle"]) == ("error", recycle)
        arguments = await sidecar.json("/recommendation?format=sqlalchemy")
        assert arguments == {"pool_recycle": pytest.approx(cautious), "pool_pre_ping": True}

        await sidecar.ask("/trial?target=default", method="POST", base=await sidecar.admin())
        restored = await advice_after_trial("ok")
        assert (restored["status"], restored["settings"]) == ("verified", held["settings"])
        assert [warning["code"] for warning in restored["warnings"]].count("trial_failed") == 0


async def test_targets_are_measured_side_by_side_each_with_its_own_limit(
    postgres: PostgresServer, make_path: Callable[..., Awaitable[FaultyPath]], start: Start
) -> None:
    limits = {"silent": 1.5, "reset": 2.0, "close": 2.5}
    paths = {fault: await make_path(postgres, fault, idle_limit=limit) for fault, limit in limits.items()}
    # The paths run in this process: half a second late on a busy machine, and not to be taken for silent.
    patience = {"silent": "2s", "reset": "30s", "close": "30s"}
    patient = {f"TARGETS__{fault.upper()}__IDLE__DEADLINE": patience[fault] for fault in limits}
    sidecar = await start({fault: postgres.url(port=path.port) for fault, path in paths.items()}, **patient)
    found = dict(zip(limits, await asyncio.gather(*map(sidecar.until_found, limits)), strict=True))
    deaths = {"silent": "silent", "reset": "reset_on_use", "close": "closed"}
    for fault, advice in found.items():
        assert advice["target"] == fault
        assert advice["idle_limit"]["estimate_seconds"] == pytest.approx(limits[fault], rel=0.08), fault
        assert advice["idle_limit"]["death"] == deaths[fault]
        assert ("silent_death" in {warning["code"] for warning in advice["warnings"]}) == (fault == "silent")
    assert (await sidecar.ask("/recommendation")).status == 400, "which one?"


async def test_a_store_that_takes_no_writes_is_told_and_nothing_stops(
    postgres: PostgresServer, start: Start, tmp_path: Path
) -> None:
    folder = tmp_path / "volume"
    sidecar = await start(postgres.url(), STORE__URL=f"sqlite+aiosqlite:///{folder / 'evidence.db'}")
    await sidecar.until("/evidence", lambda evidence: len(evidence["observations"]) >= 3)
    store = (await sidecar.json("/targets"))["store"]
    assert str(folder) in store["warning"]
    assert store["pending_writes"] >= 3
    pending = re.search(r"^connection_health_store_pending_writes\S* (\S+)", (await sidecar.ask("/metrics")).text, re.M)
    assert float(pending[1]) >= 3
    assert any(
        record["level"] == "warning" and record["logger"] == "sidecar.store" and str(folder) in record["store"]
        for record in sidecar.records
    )
    assert (await sidecar.ask("/health")).status == 200

    folder.mkdir()
    await sidecar.until("/targets", lambda targets: targets["store"]["warning"] is None)
    seen = {rest["id"] for rest in (await sidecar.json("/evidence?limit=1000"))["observations"]}
    assert await sidecar.leave() == 0
    with contextlib.closing(sqlite3.connect(folder / "evidence.db")) as kept:
        assert seen <= {record for (record,) in kept.execute(f"SELECT id FROM {observations.name}")}


# A pause


async def told(sidecar: Sidecar, route: str) -> Any:
    reply = await sidecar.ask(route, method="POST", base=await sidecar.admin())
    assert reply.ok, reply.text
    return json.loads(reply.text)


async def sessions(server: PostgresServer) -> list[str]:
    """What sidecars hold on the server, as it shows it to somebody else."""
    connection = await asyncpg.connect(server.url())
    try:
        held = await connection.fetch(
            "SELECT application_name FROM pg_stat_activity WHERE application_name LIKE 'connhealth/%'"
        )
    finally:
        await connection.close()
    return [name for (name,) in held]


def reason(health: Any) -> str:
    return str(health["targets"]["default"]["reason"])


async def test_a_pause_is_told_holds_over_a_restart_and_can_be_ended(postgres: PostgresServer, start: Start) -> None:
    first = await start(postgres.url())
    await first.until_ready()
    paused = await told(first, "/pause?for=1h")
    began = time.monotonic()
    while await sessions(postgres):
        assert time.monotonic() - began < 1.0
        await asyncio.sleep(0.02)
    health = await first.until("/health", lambda health: "paused until" in reason(health))
    assert health["ready"] is True
    await first.until("/targets", lambda targets: targets["store"]["pending_writes"] == 0)
    first.process.kill()  # so that it says nothing more
    await first.left()

    second = await start(postgres.url())
    await second.until("/startupz", lambda startup: startup.get("started"))
    assert (await second.json("/targets"))["paused"]["until"][:19] == paused["until"][:19]
    health = await second.json("/health")
    assert (health["ready"], reason(health)[:12]) == (True, "paused until")
    for _ in range(30):
        assert await sessions(postgres) == [], "nothing is opened by who begins in a pause"
        await asyncio.sleep(0.05)
    assert 'connection_health_paused{reason="paused",target="default"} 1.0' in (await second.ask("/metrics")).text
    warnings = (await second.json("/recommendation"))["warnings"]
    assert "measuring_is_paused" in [warning["code"] for warning in warnings]
    assert await told(second, "/resume") == {"paused": False}
    await second.until("/health", lambda health: reason(health) == "the database is reachable")
    assert await second.leave() == 0

    third = await start(postgres.url())
    await third.until_ready()
    assert (await third.json("/targets"))["paused"] is None


async def test_a_pause_ends_by_itself_and_needs_no_store(
    postgres: PostgresServer, start: Start, tmp_path: Path
) -> None:
    sidecar = await start(postgres.url(), STORE__URL=f"sqlite+aiosqlite:///{tmp_path / 'missing' / 'evidence.db'}")
    await sidecar.until_ready()
    await told(sidecar, "/pause?for=1s")
    assert "paused until" in reason(await sidecar.json("/health"))
    await sidecar.until("/targets", lambda targets: targets["paused"] is None, seconds=20)
    await sidecar.until("/health", lambda health: reason(health) == "the database is reachable")
    messages = [record["message"] for record in sidecar.records]
    assert (messages.count("paused"), messages.count("resumed")) == (1, 1)


# Secrets


async def test_no_secret_is_ever_shown(
    make_server: Callable[..., PostgresServer], start: Start, tmp_path: Path
) -> None:
    right, wrong, stored = "right/s3cret&1", "wrong:s3cret?2", "stored@s3cret#3"
    server = make_server(password=right)
    await asyncio.to_thread(execute, server.url(), f"CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{stored}'")
    password_file = tmp_path / "password"
    password_file.write_text(right + "\n")
    place = server.url().rpartition("@")[2]
    settings = {
        "TARGETS__BY_FILE__PASSWORD_FILE": str(password_file),
        "STORE__URL": f"postgresql+asyncpg://keeper:{quote(stored, safe='')}@{place}",
        "LOG__LEVEL": "debug",
    }
    urls = {
        "in_url": server.url(),
        "by_file": f"postgresql://{server.user}@{place}",
        "refused": f"postgresql://{server.user}:{quote(wrong, safe='')}@{place}",
    }
    sidecar = await start(urls, **settings)
    await sidecar.until("/health", lambda health: "28P01" in health["detail"])
    await asyncio.to_thread(server.restart, "immediate")
    await sidecar.until(
        "/targets", lambda all_of_them: [t["reachable"] for t in all_of_them["targets"][:2]] == [True] * 2
    )
    stream = "/events"
    answering = [route.path for route in PUBLIC if route.path != stream]
    shown = [(await sidecar.ask(path)).text for path in answering]
    shown.append(await sidecar.overhear(stream))
    assert "event: " in shown[-1]
    for query in ("?target=in_url", "?target=refused&limit=1000", "?target=nobody", "?nothing=here", "?format=env"):
        shown += [(await sidecar.ask(path + query)).text for path in answering]
    assert await sidecar.leave() == 0
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    environment |= {f"SIDECAR_TARGETS__{name}__URL".upper(): url for name, url in urls.items()}
    environment |= {f"SIDECAR_{name}": value for name, value in settings.items()}
    checked = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "sidecar", "check-config"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stderr
    everything = "\n".join([*shown, sidecar.log, checked.stdout, checked.stderr])
    assert "password authentication failed" in everything, "the very place where a secret might slip in"
    assert '"level":"debug"' in everything
    for secret in (right, wrong, stored):
        for form in (secret, quote(secret, safe=""), quote(secret), "s3cret"):
            assert form not in everything


async def test_a_rotated_password_is_taken_up_without_a_restart(
    make_server: Callable[..., PostgresServer], start: Start, tmp_path: Path
) -> None:
    server = make_server(password="before")
    file = tmp_path / "password"
    file.write_text("before")
    url = f"postgresql://{server.user}@{HOST}:{server.port}/{server.database}"
    sidecar = await start(url, TARGETS__DEFAULT__PASSWORD_FILE=str(file), READINESS__GRACE="0s")
    await sidecar.until_ready()
    await asyncio.to_thread(execute, server.url(), "ALTER ROLE postgres PASSWORD 'after'")
    await asyncio.to_thread(server.restart, "fast")
    refused = await sidecar.until("/health", lambda health: "28P01" in health.get("detail", ""))
    assert "password file" in refused["detail"]
    file.write_text("after")
    await sidecar.until_ready()


def execute(url: str, sql: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(run())


# Supervision


async def test_a_part_that_dies_takes_livez_down_with_its_name(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In this process, since nothing in the program lets one part be killed from outside."""
    service = in_this_process(postgres, tmp_path)
    serving = asyncio.create_task(service.run())
    await until(lambda: service.started)
    base = f"http://{HOST}:{service.http.port}"
    assert (await asyncio.to_thread(ask, base, "/livez")).status == 200

    def fault(_: Target) -> None:
        raise ZeroDivisionError("of which nobody thought")

    with caplog.at_level(logging.CRITICAL, "sidecar.service"):
        monkeypatch.setattr(Target, "refresh", fault)
        await until(lambda: service.faults)
        monkeypatch.undo()
    liveness = await asyncio.to_thread(ask, base, "/livez")
    assert liveness.status == 503
    assert json.loads(liveness.text)["faults"] == {"housekeeping": "died of ZeroDivisionError"}
    assert "of which nobody thought" not in liveness.text
    (record,) = caplog.records
    assert (record.message, record.task) == ("task died", "housekeeping")
    assert record.exc_info is not None
    assert (await asyncio.to_thread(ask, base, "/recommendation")).status == 200, "the others go on until the restart"
    service.quit()
    assert await serving == 0


async def test_of_a_part_that_runs_tasks_of_its_own_the_error_inside_is_told(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fault(*_: object) -> None:
        raise ValueError("of which nobody thought")

    service = in_this_process(postgres, tmp_path)
    monkeypatch.setattr(IdleProbeRunner, "_open", fault)
    with caplog.at_level(logging.CRITICAL, "sidecar.service"):
        serving = asyncio.create_task(service.run())
        await until(lambda: service.faults)
    liveness = await asyncio.to_thread(ask, f"http://{HOST}:{service.http.port}", "/livez")
    assert liveness.status == 503
    assert json.loads(liveness.text)["faults"] == {"default/idle": "died of ValueError"}
    (record,) = caplog.records
    assert (record.message, record.task) == ("task died", "default/idle")
    assert "of which nobody thought" in caplog.text
    service.quit()
    assert await serving == 0


def in_this_process(postgres: PostgresServer, directory: Path) -> Service:
    return Service(
        Settings.model_validate(
            {
                "targets": {"default": {"url": postgres.url()}},
                "http": {"host": HOST, "port": 0, "admin_port": 0},
                "store": {"url": f"sqlite+aiosqlite:///{directory / 'evidence.db'}"},
            }
        )
    )


async def until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
