"""The hands of the idle-limit machine, on real servers and faulty paths: what they do to a target, and what they leave.

The limits they find are held against real middleboxes in the lab.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
from facts.client import MakePath, until
from facts.wire import recording

from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Cause, Death, Keepalive, Observation
from sidecar.core.idle.commands import Budget
from sidecar.core.idle.machine import IdleMachine
from sidecar.demo.server import HOST, PostgresServer
from sidecar.probes.errors import CannotConnect
from sidecar.probes.idle import IdleProbeRunner
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.settings.model import TargetSettings

CONNECTIONS = 3
DEADLINE_SECONDS = 0.5


def driver_at(port: int, **settings: object) -> PostgresDriver:
    tls = {"tls": {"mode": "disable"}, **settings}
    return PostgresDriver(TargetSettings(url=f"postgresql+asyncpg://postgres@{HOST}:{port}/postgres", **tls))  # type: ignore[arg-type]


class Survey:
    """A runner, and what it recorded."""

    def __init__(self, driver: PostgresDriver) -> None:
        machine = IdleMachine(target="t", run="r", epoch=0.0, connections=CONNECTIONS, floor=0.3, cap=60.0)
        self.records: list[Observation] = []
        self.runner = IdleProbeRunner(machine, driver, deadline_seconds=DEADLINE_SECONDS, record=self.records.append)

    def died(self) -> list[Observation]:
        return [record for record in self.records if record.death is not None]


@asynccontextmanager
async def measuring(port: int) -> AsyncIterator[Survey]:
    survey = Survey(driver_at(port))
    running = asyncio.create_task(survey.runner.run(Budget(connections=CONNECTIONS)))
    try:
        yield survey
        assert not running.done()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def open_files_and_tasks() -> tuple[int, int]:
    return psutil.Process().num_fds(), len(asyncio.all_tasks())


async def test_what_is_told_while_it_does_not_run_is_not_kept(postgres: PostgresServer, make_path: MakePath) -> None:
    """Where measuring is switched off nobody would ever take it."""
    path = await make_path(postgres)
    runner = Survey(driver_at(path.port)).runner
    runner.tell(Budget(connections=CONNECTIONS))
    runner.measure_afresh()
    running = asyncio.create_task(runner.run(Budget(connections=0)))
    await asyncio.sleep(0.3)  # some openings would have begun by then
    assert sum(runner.connections.values()) == 0
    assert runner.machine.status(0.0).regime == 1
    runner.tell(Budget(connections=CONNECTIONS))
    await until(lambda: path.connections == CONNECTIONS)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


@pytest.mark.parametrize("fault", ["silent", "reset", "close"])
async def test_it_keeps_to_its_budget_and_leaves_nothing(
    postgres: PostgresServer, make_path: MakePath, fault: str
) -> None:
    path = await make_path(postgres, fault, idle_limit=1.0)
    most = 0
    async with measuring(path.port):  # whatever is opened once
        await until(lambda: path.accepted >= CONNECTIONS)
    await until(lambda: path.connections == 0)
    before, accepted = open_files_and_tasks(), path.accepted
    async with measuring(path.port) as survey:
        counts = survey.runner.connections

        def died_twice() -> bool:
            nonlocal most, counts
            counts = survey.runner.connections
            most = max(most, sum(counts.values()))
            return len(survey.died()) >= 2

        await until(died_twice, 20)
        opened = path.accepted - accepted
        leaving = time.monotonic()
    assert time.monotonic() - leaving < DEADLINE_SECONDS
    assert most == CONNECTIONS
    # Each rest is a connection; nothing else is opened, such as to cancel a query nobody answers.
    assert opened <= len(survey.records) + CONNECTIONS
    await until(lambda: path.connections == 0)
    await until(lambda: open_files_and_tasks() == before)
    expected = {"silent": Death.SILENT, "reset": Death.RESET_ON_USE, "close": Death.CLOSED}[fault]
    assert {(record.death, record.cause) for record in survey.died()} == {(expected, Cause.IDLE_LIMIT)}


async def test_leaving_waits_for_nobody(postgres: PostgresServer, make_path: MakePath) -> None:
    """Not for connections that are opening, resting or being used, on a path that swallows everything."""
    path = await make_path(postgres)
    before = open_files_and_tasks()[1]
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        path.pause()
        states = lambda: {probe.state for probe in survey.runner.machine.status(0.0).probes}  # noqa: E731
        await until(lambda: "using" in states())
        leaving = time.monotonic()
    assert time.monotonic() - leaving < DEADLINE_SECONDS / 2
    path.reset_all()
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_only_the_simple_protocol_is_spoken(postgres: PostgresServer) -> None:
    """A transaction pooler gives each query another backend, where nothing is prepared."""
    async with recording(HOST, postgres.port) as wire:
        connection = await driver_at(wire.port).open(ConnectionRole.PROBE, deadline_seconds=5)
        for _ in range(2):
            await connection.use(5)
        await connection.beat(5)
        connection.terminate()
        assert {kind for kind, _ in wire.messages} == {"Q"}


async def test_tcp_keepalive_is_off_unless_wanted(postgres: PostgresServer) -> None:
    """It would hold the path open, and the limit would never show."""
    for keepalive in (None, Keepalive(idle=7, interval=3, count=2)):
        driver = await driver_at(postgres.port).connect(ConnectionRole.PROBE, deadline_seconds=5, keepalive=keepalive)
        sock = driver._transport.get_extra_info("socket")
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is (keepalive is not None)
        if keepalive is not None and hasattr(socket, "TCP_KEEPIDLE"):
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [7, 3, 2]
        driver.terminate()


async def test_a_rest_is_as_long_as_it_was_however_late_the_loop(postgres: PostgresServer, make_path: MakePath) -> None:
    """A stalled process uses its connections late: the rest that was survived is the real one."""
    path = await make_path(postgres)
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        time.sleep(0.8)  # noqa: ASYNC251 - to stall the loop is the point
        await until(lambda: survey.records)
    assert survey.records[0].outcome == "survived"
    assert 0.75 < survey.records[0].idle_seconds < 2


async def test_a_rest_goes_on_while_the_machine_sleeps(
    postgres: PostgresServer, make_path: MakePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the clock is made to jump: a suspended machine cannot be had here."""
    path = await make_path(postgres)
    clock_gettime = time.clock_gettime
    async with measuring(path.port) as survey:
        await until(lambda: survey.runner.connections["open"] == CONNECTIONS)
        monkeypatch.setattr(time, "clock_gettime", lambda clock: clock_gettime(clock) + 100)
        await until(lambda: survey.records)
    assert survey.records[0].outcome == "survived"
    assert 100 <= survey.records[0].idle_seconds < 105


GREETINGS = {
    "an HTTP server": b"HTTP/1.1 400 Bad Request\r\nServer: nobody\r\n\r\n",
    "nothing but noise": bytes(range(256)),
    "an impossible length": b"R\xff\xff\xff\xff",
    "an unknown way to authenticate": b"R\0\0\0\x08\0\0\0\x63",
    "ready without authentication": b"Z\0\0\0\x05I",
    "an error without fields": b"E\0\0\0\x05\0",
    "an empty answer": b"",
}


# asyncpg's own finalizer stumbles over a connection that its constructor did not finish.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("greeting", GREETINGS)
async def test_whoever_answers_there_a_failed_probe_is_a_fact(greeting: str) -> None:
    """Not PostgreSQL, or not any more: the operator reads who did not answer properly; no task dies of it."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(GREETINGS[greeting])
        with contextlib.suppress(OSError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(greet, HOST, 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(CannotConnect, match=f"{HOST}:{port}"):
            await driver_at(port).open(ConnectionRole.PROBE, deadline_seconds=1)
