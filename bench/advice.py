"""What the advice is worth: real pools that rest longer than connections live. `make bench-advice`; about two minutes.

Each row is something that ends or spoils resting connections, each column a way to set up the pool, each cell twenty
and more rounds: a new engine checks out, uses its connection, rests beyond the limit, and checks out again. The client
is SQLAlchemy on asyncpg and nothing else: no retry, no helper. What differs between columns is the engine alone.

The column `ours` is not written here. The real service measures every row's path first, is told nothing about it, and
the engine is what `/recommendation?format=python` then says, executed as printed.

A limit of 350 s, as on many clouds, is scaled down to a few seconds, and by the same factor the settings that are fixed
times: the 1800 s of the article everybody copies, and the service's own `policy.max_pool_recycle`.

Needs root, for its network namespaces: netfilter, HAProxy and PgBouncer are the real ones. What stands in for an
address that moves to the promoted standby is a relay in this process, because established connections must stay where
they are. An attempt that has not ended after fifteen seconds is a hang; in life it lasts about fifteen minutes. The
exit status is 1 when a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer
from sidecar.demo.service import Service, run_service
from sidecar.demo.standby import StandbyServer
from sidecar.remote import ask
from testing.lab import Lab, LabUnavailable, boxes

REAL_LIMIT_SECONDS = 350.0  # AWS NLB and NAT gateway, EC2 connection tracking, AWS Network Firewall
REST = 1.1  # of the limit
PATIENCE_SECONDS = 15.0  # of an attempt, before it counts as a hang
ATTEMPTS = 3  # at the same work, until one succeeds
WAVES = 2
SPREAD_SECONDS = 3.0  # over which the engines of a wave start, so that they do not measure each other
MEASURING_SECONDS = 150.0  # at most
GOAL_MS_OVER_CONNECT = 100.0

READ, WRITE = "SELECT 1", "INSERT INTO written SELECT now()"
DEMOTE = "ALTER SYSTEM SET default_transaction_read_only = on"

Url = str
Setup = Callable[[Url], AsyncEngine]
Upset = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Row:
    """Something that ends or spoils resting connections. `upset` is called in the middle of every wave's rest."""

    name: str
    url: Url
    work: str = READ
    upset: Upset | None = None
    limited: bool = True  # else no rest kills, and the advice can only be about what has survived
    keepalive_holds: bool = False


@dataclass(slots=True)
class Cell:
    connects: list[float] = field(default_factory=list)  # seconds to the first answer of the first checkout
    checkouts: list[float] = field(default_factory=list)  # the same after the rest, of attempts that succeeded
    errors: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)  # writes refused with 25006, by round
    hangs: int = 0
    reconnects: int = 0

    def __str__(self) -> str:
        took = f"{1000 * max(self.checkouts):.0f} ms" if self.checkouts and not self.hangs else "-"
        wrong = f"{len(self.errors)} errors" if self.errors else ""
        hung = f"{self.hangs} hangs" if self.hangs else ""
        return f"{', '.join(filter(None, (wrong, hung))) or '0'}; {took}; {self.reconnects}"


# -- columns ----------------------------------------------------------------------------------------------------------


def static(**arguments: Any) -> Setup:
    """An engine with these arguments and nothing else."""

    def make(url: Url) -> AsyncEngine:
        caches = {"statement_cache_size": 0, "prepared_statement_cache_size": 0} if "6432" in url else {}
        return create_async_engine(url, connect_args=caches, **arguments)

    return make


def advised(module: str) -> Setup:
    """The engine of a module as `/recommendation?format=python` prints it."""

    def make(url: Url) -> AsyncEngine:
        os.environ["DATABASE_URL"] = url
        names: dict[str, Any] = {"__name__": "advised"}
        exec(compile(module, "<advice>", "exec"), names)
        engine: AsyncEngine = names["engine"]
        return engine

    return make


# -- one round --------------------------------------------------------------------------------------------------------


class Hang(Exception):  # noqa: N818 - what an application would call its quarter of an hour
    """An attempt did not end."""


async def take_round(setup: Setup, row: Row, rest_seconds: float, cell: Cell) -> None:
    engine = setup(row.url)
    opened: list[Any] = []
    event.listen(engine.sync_engine, "connect", lambda connection, _: opened.append(connection.driver_connection))
    try:
        cell.connects.append(await attempt(engine, row.work, opened))
        before = len(opened)
        await asyncio.sleep(rest_seconds)
        refused = 0  # of this round: others of the same cell go on meanwhile
        for _ in range(ATTEMPTS):
            try:
                cell.checkouts.append(await attempt(engine, row.work, opened))
                break
            except Hang:
                cell.hangs += 1
                break  # the application is gone
            except (SQLAlchemyError, OSError) as error:
                code = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
                refused += code == "25006"
                cell.errors.append(code or type(getattr(error, "orig", error)).__name__)
        cell.refused.append(refused)
        cell.reconnects += len(opened) - before
    finally:
        for driver in opened:
            driver.terminate()
        await engine.dispose(close=False)


async def attempt(engine: AsyncEngine, work: str, opened: list[Any]) -> float:
    """Check out, do the work in a transaction, check in; the seconds to its answer. Raises Hang."""
    task = asyncio.create_task(check_out_and_work(engine, work))
    done, _ = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
    if not done:
        for driver in opened:
            driver.terminate()  # a cancelled checkout would close gracefully, and wait again
        task.cancel()
        await asyncio.wait({task})
        raise Hang
    return task.result()


async def check_out_and_work(engine: AsyncEngine, work: str) -> float:
    asked = time.perf_counter()
    async with engine.begin() as connection:
        await connection.exec_driver_sql(work)
        answered = time.perf_counter()
    return answered - asked


# -- rows -------------------------------------------------------------------------------------------------------------


class Promotion:
    """An address that leads to a primary, and from a promotion on to its standby; established connections stay."""

    def __init__(self, path: FaultyPath, primary: PostgresServer, servers: AsyncExitStack) -> None:
        self._path, self._primary, self._servers = path, primary, servers
        self._standby: StandbyServer | None = None

    @classmethod
    async def begin(cls, servers: AsyncExitStack) -> Promotion:
        primary = await asyncio.to_thread(PostgresServer, {"max_connections": 300})
        servers.push_async_callback(asyncio.to_thread, primary.close)
        await asyncio.to_thread(primary.start)
        await execute(primary, "CREATE TABLE written (at timestamptz)")
        promotion = cls(await servers.enter_async_context(FaultyPath(HOST, primary.port)), primary, servers)
        await promotion.prepare()
        return promotion

    @property
    def url(self) -> Url:
        return self._primary.url(port=self._path.port, scheme="postgresql+asyncpg")

    async def prepare(self) -> None:
        """Have a standby follow the present primary."""
        self._standby = await asyncio.to_thread(StandbyServer, self._primary, {"max_connections": 300})
        self._servers.push_async_callback(asyncio.to_thread, self._standby.close)
        await asyncio.to_thread(self._standby.start)

    async def upset(self) -> None:
        """Promote the standby. The old primary ends no connection, and takes no more writes."""
        assert self._standby is not None
        await asyncio.to_thread(self._standby.promote)
        self._path.retarget(HOST, self._standby.port)
        await execute(self._primary, DEMOTE, "SELECT pg_reload_conf()")
        self._primary, self._standby = self._standby, None


async def execute(server: PostgresServer, *statements: str) -> None:
    engine = create_async_engine(server.url(scheme="postgresql+asyncpg"), isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)
    await engine.dispose()


def build(lab: Lab, limit: int, promotion: Promotion) -> list[Row]:
    server, restarted = lab.postgres(max_connections=600), lab.postgres(max_connections=300)
    modes = iter(("fast", "immediate") * WAVES)

    async def restart() -> None:
        await asyncio.to_thread(restarted.restart, next(modes))

    limiting: Mapping[str, Callable[..., Any]] = {
        "silent drop (conntrack)": partial(boxes.conntrack, answer="drop"),
        "reset on use (conntrack)": partial(boxes.conntrack, answer="reset"),
        "HAProxy closes": partial(boxes.haproxy, timeout="client"),
        "PgBouncer `client_idle_timeout`": partial(boxes.pgbouncer, pool_mode="transaction"),
        "`idle_session_timeout`": boxes.idle_session_timeout,
    }
    return [
        *(
            Row(name, box(lab.path(server), limit).url, keepalive_holds="conntrack" in name)
            for name, box in limiting.items()
        ),
        Row("restart during the rest", lab.path(restarted).endpoint.url, upset=restart, limited=False),
        Row("promotion, stale writer", promotion.url, work=WRITE, upset=promotion.upset, limited=False),
    ]


# -- measuring --------------------------------------------------------------------------------------------------------


async def measure(rows: list[Row], limit: int) -> list[str]:
    """What the service advises for each row, as the format `python`."""
    scale = limit / REAL_LIMIT_SECONDS
    longest = int(1800 * scale)
    settings = {"POLICY__MAX_POOL_RECYCLE": f"{longest}s", "LOG__LEVEL": "warning"}
    for number, row in enumerate(rows):
        settings |= {
            f"TARGETS__ROW{number}__{name}": value
            for name, value in {
                "URL": row.url,
                "TLS__MODE": "disable",
                "IDLE__FLOOR": "1.5s",
                "IDLE__CAP": f"{3 * limit}s",
                "IDLE__DEADLINE": "2s",
            }.items()
        }
    with run_service(settings) as service:
        began = time.monotonic()
        while not all([await settled(service, number, row) for number, row in enumerate(rows)]):
            if time.monotonic() - began > MEASURING_SECONDS:
                print("not every path was measured to the end:", file=sys.stderr)
                break
            await asyncio.sleep(1)
        print(f"measured in {time.monotonic() - began:.0f} s", file=sys.stderr)
        modules = []
        for number, row in enumerate(rows):
            route = f"/recommendation?target=row{number}"
            modules.append((await asyncio.to_thread(ask, service.address, f"{route}&format=python")).text)
            advice = await service.ask(route)
            advised = ", ".join(f"{name} {value}" for name, value in advice["settings"].items() if value is not None)
            print(f"{row.name}: {advice['status']}, {advised}", file=sys.stderr)
        return modules


async def settled(service: Service, number: int, row: Row) -> bool:
    """Whether the advice for a row is as good as it gets."""
    advice = await service.ask(f"/recommendation?target=row{number}")
    if advice is None or advice["status"] != "verified":
        return False
    if not row.limited:
        return True
    verified = advice["verification"] is not None and advice["verification"]["outcome"] == "ok"
    kept = advice["settings"]["pool_recycle_with_keepalive"]
    return verified and (not row.keepalive_holds or kept is not None)


# -- the bench --------------------------------------------------------------------------------------------------------


async def bench(limit: int, rounds: int) -> bool:
    scale = limit / REAL_LIMIT_SECONDS
    async with AsyncExitStack() as servers:
        promotion = await Promotion.begin(servers)
        lab = servers.enter_context(Lab())
        rows = await asyncio.to_thread(build, lab, limit, promotion)
        modules = await measure(rows, limit)
        columns: dict[str, Callable[[int], Setup]] = {
            "defaults": lambda _: static(),
            "pre-ping only": lambda _: static(pool_pre_ping=True),
            "pre-ping, recycle 1800 s": lambda _: static(pool_pre_ping=True, pool_recycle=int(1800 * scale)),
            "pre-ping, half the limit": lambda _: static(pool_pre_ping=True, pool_recycle=limit // 2),
            "ours": lambda number: advised(modules[number]),
        }
        cells = {(row.name, column): Cell() for row in rows for column in columns}
        for wave in range(WAVES):
            async with asyncio.TaskGroup() as group:
                for number, row in enumerate(rows):
                    for column, setup in columns.items():
                        for _ in range(-(-rounds // WAVES)):
                            group.create_task(
                                spread(partial(take_round, setup(number), row, REST * limit, cells[row.name, column]))
                            )
                    if row.upset is not None:
                        group.create_task(later(SPREAD_SECONDS + 1.0, row.upset))
            if wave + 1 < WAVES:
                await promotion.prepare()
    show(rows, list(columns), cells, limit)
    return judge(rows, cells)


async def spread(work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.sleep(random.uniform(0, SPREAD_SECONDS))
    await work()


async def later(seconds: float, work: Upset) -> None:
    await asyncio.sleep(seconds)
    await work()


def show(rows: list[Row], columns: list[str], cells: Mapping[tuple[str, str], Cell], limit: int) -> None:
    rounds = len(cells[rows[0].name, columns[0]].connects)
    scale = limit / REAL_LIMIT_SECONDS
    print(
        f"Limit {limit} s for {REAL_LIMIT_SECONDS:.0f} s, so 1800 s is {int(1800 * scale)} s;"
        f" rest {REST * limit:.1f} s; {rounds} rounds a cell. In each cell: errors that reached the"
        " application; longest checkout with its query; reconnects.\n"
    )
    print(f"| | {' | '.join(columns)} | one connect |")
    print(f"| --- |{' --- |' * (len(columns) + 1)}")
    for row in rows:
        shown = " | ".join(str(cells[row.name, column]) for column in columns)
        print(f"| {row.name} | {shown} | {1000 * connect_seconds(row, cells):.0f} ms |")


def connect_seconds(row: Row, cells: Mapping[tuple[str, str], Cell]) -> float:
    """The median of the first checkouts with what was advised, the opening of the connection included."""
    return statistics.median(cells[row.name, "ours"].connects)


def judge(rows: list[Row], cells: Mapping[tuple[str, str], Cell]) -> bool:
    """Whether the goals for `ours` are reached; says which are not."""
    missed = []
    for row in rows:
        cell = cells[row.name, "ours"]
        refusals = sum(cell.refused) if row.work == WRITE and max(cell.refused) <= 1 else 0
        if len(cell.errors) - refusals or cell.hangs:
            missed.append(f"{row.name}: {cell.hangs} hangs, errors {sorted(set(cell.errors))}")
        over = 1000 * (max(cell.checkouts, default=0.0) - connect_seconds(row, cells))
        if over > GOAL_MS_OVER_CONNECT:
            missed.append(f"{row.name}: the longest checkout took {over:.0f} ms more than one connect")
        if row.keepalive_holds and cell.reconnects:
            missed.append(f"{row.name}: {cell.reconnects} reconnects where keepalive holds the path")
    print("\nGoals for `ours`:", "; ".join(missed) or "all reached")
    return not missed


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limit", type=int, default=6, help="the idle limit in seconds (6)")
    parser.add_argument("--rounds", type=int, default=20, help="rounds a cell (20)")
    options = parser.parse_args()
    try:
        return 0 if asyncio.run(bench(options.limit, options.rounds)) else 1
    except LabUnavailable as reason:
        print(f"no lab here: {reason}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
