"""The other half of the story: a database fails over, and is later demoted under living connections. Both are timed.

Everything is done to real servers, behind an address that moves by means of a relay. The service, again a process of
its own, is told nothing; at the end its records are held against what was done, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from rich.console import Console
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sidecar.core.availability.readiness import Readiness
from sidecar.core.evidence import Downtime, Interval, Outage, OutageKind
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from sidecar.demo.service import Service, run_service
from sidecar.demo.standby import StandbyServer
from sidecar.documents import read

# How exactly the end of an outage is timed. The service's own default is a tenth of a second, which asks more of a
# laptop that runs two databases, a service and an application at once.
_RECONNECT_EVERY = "250ms"

_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 60.0
_PAUSE_SECONDS = 1.5  # between two steps, so that one can follow them
_WRITE_EVERY_SECONDS = 0.1
_CLOCK_SECONDS = 0.02  # what is done takes effect so much earlier or later than the call that does it


async def tell(console: Console, primary: PostgresServer, standby: StandbyServer, *, once: bool) -> bool:
    """Tell it; whether every record is the right one and has the truth inside. Stays until cancelled unless `once`.

    Raises ServiceError if the service dies or does not notice.
    """
    async with FaultyPath(HOST, primary.port) as path:
        url = primary.url(port=path.port, scheme="postgresql+asyncpg")
        with run_service(
            {"TARGET_URL": url, "TARGETS__DEFAULT__HEARTBEAT__RECONNECT_EVERY": _RECONNECT_EVERY}
        ) as service:
            console.print(
                f"A primary on port {primary.port}, a standby that streams from it on port {standby.port}. The address"
                f" known to clients is {HOST}:{path.port}.\nThe service watches that address and is told nothing of"
                f" what happens. It answers at {service.address}\n"
            )
            told = _Told(console, service)
            await told.until(lambda: told.ready)
            async with _application(url) as application:
                acts = (
                    await _failover(told, application, primary, standby, path),
                    await _demotion(told, application, standby),
                )
            console.print()
            right = [told.conclude(act, outage) for act, outage in zip(acts, told.outages, strict=False)]
            right.append(len(told.outages) == len(acts))
            if not once:
                console.print(f"Look around at {service.address}/outages; Ctrl-C ends everything.\n")
                await told.until(lambda: False, patience_seconds=None)
            return all(right)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Act:
    """What was done, and what it must have been recorded as. Wall-clock times."""

    title: str
    kind: OutageKind
    began: float
    ended: Mapping[str, tuple[float, float]]  # what was out -> when it was possible again, at the earliest and latest
    application: str  # what one with pre-ping lived through


async def _failover(
    told: _Told, application: _Application, primary: PostgresServer, standby: StandbyServer, path: FaultyPath
) -> _Act:
    began = told.announce("kill -9 of the primary")
    await asyncio.to_thread(primary.stop, "crash")
    await told.pause()
    moved = told.announce("the address leads to the standby, which can only be read")
    path.retarget(HOST, standby.port)
    await told.pause()
    promoting = told.announce("the standby is promoted")
    await asyncio.to_thread(standby.promote)
    promoted = time.time()
    await told.until_over(1)
    return _Act(
        title="The primary was killed, and its standby promoted",
        kind=OutageKind.FAILOVER,
        began=began,
        ended={"connect": (moved, moved), "read": (moved, moved), "write": (promoting, promoted)},
        application=application.met(since=began),
    )


async def _demotion(told: _Told, application: _Application, server: PostgresServer) -> _Act:
    await told.pause()
    began = told.announce("the server takes no more writes, but ends no connection")
    await _configure(server, "ALTER SYSTEM SET default_transaction_read_only = on")
    await told.pause()
    await told.pause()
    ending = told.announce("it takes writes again")
    await _configure(
        server, "SET default_transaction_read_only = off", "ALTER SYSTEM RESET default_transaction_read_only"
    )
    ended = time.time()
    await told.until_over(2)
    return _Act(
        title="The server was demoted, and connections lived on",
        kind=OutageKind.ROLE_FLIP,
        began=began,
        ended={"write": (ending, ended)},
        application=application.met(since=began),
    )


async def _configure(server: PostgresServer, *statements: str) -> None:
    engine = create_async_engine(server.url(scheme="postgresql+asyncpg"), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            for statement in (*statements, "SELECT pg_reload_conf()"):
                await connection.execute(text(statement))
    finally:
        await engine.dispose()


class _Told:
    """What was done and what the service says of it, told live."""

    def __init__(self, console: Console, service: Service) -> None:
        self._console, self._service = console, service
        self._began = time.time()
        self._reason: str | None = None
        self.ready = False
        self.outages: list[Outage] = []  # oldest first

    def announce(self, what: str) -> float:
        """Tell what is done next; when that is."""
        now = time.time()
        self._say(now, f">>> {what}")
        return now

    async def pause(self) -> None:
        end = time.monotonic() + _PAUSE_SECONDS
        await self.until(lambda: time.monotonic() >= end)

    async def until_over(self, count: int) -> None:
        """Until there were so many outages, and the last one is over."""
        await self.until(lambda: len(self.outages) >= count and self.ready and _is_over(self.outages[-1]))

    async def until(self, done: Callable[[], bool], patience_seconds: float | None = _PATIENCE_SECONDS) -> None:
        """Ask the service and tell what is new, until done. Raises ServiceError when it dies, or that does not come."""
        try:
            async with asyncio.timeout(patience_seconds):
                while not done():
                    self._service.must_run()
                    await self._look()
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise self._service.failure(f"waited for {patience_seconds:g} s in vain") from None

    async def _look(self) -> None:
        targets, outages = await self._service.ask("/targets"), await self._service.ask("/outages")
        if targets is None or outages is None:
            return
        self.outages = [read(Outage, outage) for outage in reversed(outages["outages"])]
        readiness = read(Readiness, targets["targets"][0]["readiness"])
        self.ready = readiness.ready
        if readiness.reason != self._reason:
            self._reason = readiness.reason
            self._say(time.time(), f"{'ready' if self.ready else 'not ready'}: {self._reason}")

    def _say(self, at: float, what: str) -> None:
        self._console.print(f"{at - self._began:6.1f} s   {what}")

    def conclude(self, act: _Act, outage: Outage) -> bool:
        """Hold a record against what was done; whether it is right."""
        detail = f" ({outage.detail})" if outage.detail else ""
        right = outage.kind is act.kind
        self._console.print(f"{act.title}. Recorded as: {outage.kind}{detail}")
        for what, downtime in _downtimes(outage).items():
            if (downtime is None) != (what not in act.ended):
                right = False
            if downtime is None:
                self._console.print(f"  {what:<8}was possible all the while")
                continue
            earliest, latest = act.ended.get(what, (act.began, act.began))
            inside = _holds(downtime.began, act.began, act.began) and _holds(downtime.ended, earliest, latest)
            right &= inside
            truth = _seconds(earliest - act.began, latest - act.began)
            self._console.print(
                f"  {what:<8}out from {_told(downtime.began, act.began)} to {_told(downtime.ended, act.began)};"
                f" in truth from 0.00 s to {truth}{'' if inside else '   NOT INSIDE'}"
            )
        self._console.print(f"  A pool with pre-ping: {act.application}\n")
        return right


def _downtimes(outage: Outage) -> Mapping[str, Downtime | None]:
    return {"connect": outage.connect, "read": outage.read, "write": outage.write}


def _is_over(outage: Outage) -> bool:
    return all(downtime is None or downtime.ended is not None for downtime in _downtimes(outage).values())


def _holds(interval: Interval | None, earliest: float, latest: float) -> bool:
    if interval is None:
        return False
    return latest >= interval.after - _CLOCK_SECONDS and earliest <= interval.until + _CLOCK_SECONDS


def _told(interval: Interval | None, began: float) -> str:
    return "?" if interval is None else _seconds(interval.after - began, interval.until - began)


def _seconds(low: float, high: float) -> str:
    return f"{low:.2f} s" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}..{high:.2f} s"


@contextlib.asynccontextmanager
async def _application(url: str) -> AsyncIterator[_Application]:
    engine = create_async_engine(url, pool_pre_ping=True, pool_size=1, connect_args={"timeout": 2})
    application = _Application(engine)
    working = asyncio.create_task(application.work())
    try:
        yield application
    finally:
        working.cancel()
        await asyncio.wait([working])
        await engine.dispose()


class _Application:
    """A program like any other, which writes several times a second through SQLAlchemy's pool, with pre-ping."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._turns: list[tuple[float, str | None]] = []  # when they began, and how they failed

    async def work(self) -> None:
        created = False
        while True:
            began, failure = time.time(), None
            stage = "no connection could be had"
            try:
                async with self._engine.connect() as connection:
                    stage = "the write failed on a connection that had passed its ping"
                    if not created:
                        await connection.execute(text("CREATE TABLE written (at timestamptz NOT NULL)"))
                    await connection.execute(text("INSERT INTO written VALUES (now())"))
                    await connection.commit()
                    created = True
            except (DBAPIError, OSError) as error:
                cause = getattr(error, "orig", None) or error
                sqlstate = getattr(cause, "sqlstate", None)
                failure = f"{stage} ({f'SQLSTATE {sqlstate}' if sqlstate else type(cause).__name__})"
            self._turns.append((began, failure))
            await asyncio.sleep(_WRITE_EVERY_SECONDS)

    def met(self, *, since: float) -> str:
        """What became of its writes since then."""
        failures = [failure for began, failure in self._turns if began >= since]
        counts = Counter(failure for failure in failures if failure is not None)
        if not counts:
            return f"all {len(failures)} writes were done"
        told = "; ".join(f"{count} times {failure}" for failure, count in counts.most_common())
        return f"{counts.total()} of {len(failures)} writes failed: {told}"
