"""Runs trials: a SQLAlchemy engine with exactly the given settings, on the very path.

Nothing is simulated: it is the engine an application would build, down to the socket options and listeners. Only two
things differ, and neither changes what is observed: the wait for a hang ends after `patience_seconds` instead of a
quarter of an hour, and what is left over at the end is dropped instead of closed gracefully.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sidecar.core.advice.recommendation import SetupName, TrialOutcome
from sidecar.core.advice.trials import Attempt, Setup, TrialResult
from sidecar.core.budget import ConnectionRole
from sidecar.core.idle.machine import REST_SLACK_SECONDS
from sidecar.probes.driver import Driver, PlainConnection
from sidecar.probes.errors import CannotConnect

log = logging.getLogger("sidecar.trial")

LOOK_EVERY_SECONDS = 1.0
"""Between two looks at what is due."""

PAUSE_SECONDS = 5.0
"""After a failure, before it is believed or tried again."""

AT_A_TIME = 2
"""Trials that are run side by side where there is room: with more, little is gained and much is opened together."""

RESULTS_REMEMBERED = 50
"""More than there are setups to try on one limit."""

CONNECT_SECONDS = 10.0
"""For opening one connection."""

PATIENCE_SECONDS = 15.0
"""After which a checkout hangs: longer than TCP_USER_TIMEOUT and a driver's graceful close take together."""


class TrialVoid(Exception):  # noqa: N818 - no trial, no error
    """Nothing was tried: the database could not be reached before or after the rest."""


class _Hang(Exception):  # noqa: N818 - what an application would call its quarter of an hour
    """Nobody answered, and nothing ended the wait."""


class Trials:
    """The trials of one target: runs what is due, a connection each, and holds the latest result of each setup.

    `due` is asked with the results and the wall clock, `room` for how many may run at once; `began` is told whenever
    `running` or `wished` changes, `ended` every result that counts.
    """

    def __init__(
        self,
        target: str,
        driver: Driver,
        *,
        due: Callable[[Sequence[TrialResult], float], Iterable[Attempt]],
        room: Callable[[], int],
        began: Callable[[], None],
        ended: Callable[[TrialResult], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._target, self._driver, self._wall = target, driver, wall
        self._due, self._room, self._began, self._ended = due, room, began, ended
        self._running: dict[asyncio.Task[None], str] = {}  # the longest first
        self._opened: dict[str, list[PlainConnection]] = {}  # by setup's name, of the trials under way
        self._regime = 0
        self._renew_before = 0.0  # wall clock; older results no longer keep a trial from being due
        self._disturbed_at = 0.0
        self.results: tuple[TrialResult, ...] = ()
        self.wished = 0  # trials that would be run side by side if there were room for all that are due

    @property
    def pids(self) -> set[int]:
        """The pids of the sessions of trials, as the server named them."""
        opened = [one for each in self._opened.values() for one in each if not self._driver.is_closed(one)]
        return {pid for one in opened if (pid := self._driver.pid_of(one)) is not None}

    @property
    def running(self) -> int:
        """Trials under way: so many connections."""
        return len(self._running)

    def about(self, regime: int) -> None:
        """Which regime's limit is on trial; results about an earlier one are forgotten."""
        if regime != self._regime:
            self._regime, self.results = regime, ()

    def fit(self) -> None:
        """Abandon what there is no `room` for any more, the latest first: void, and due again."""
        for task, name in list(self._running.items())[self._room() :]:
            log.debug("trial void", extra={"target": self._target, "setup": name, "reason": "no room"})
            task.cancel()
            for connection in self._opened.pop(name, ()):
                self._driver.terminate(connection)
            del self._running[task]

    def renew(self) -> None:
        """Have every setup tried anew now."""
        self._renew_before = self._wall()

    def disturbed(self) -> None:
        """The database was restarted, moved or away: a trial that fails now says nothing about its settings."""
        self._disturbed_at = asyncio.get_running_loop().time()

    async def run(self) -> None:
        """Run what is due, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                await asyncio.sleep(LOOK_EVERY_SECONDS)
                before = (self.running, self.wished)
                self._running = {task: name for task, name in self._running.items() if not task.done()}
                fresh = [result for result in self.results if result.at >= self._renew_before]
                due = list(self._due(fresh, self._wall()))
                names = {attempt.setup.name for attempt in due} | set(self._running.values())
                self.wished = min(len(names), AT_A_TIME)
                for attempt in due:
                    if self.running >= min(self._room(), AT_A_TIME):
                        break
                    if attempt.setup.name not in self._running.values():
                        task = group.create_task(self._try(attempt), name=f"trial-{attempt.setup.name}")
                        self._running[task] = attempt.setup.name
                if (self.running, self.wished) != before:
                    self._began()

    async def _try(self, attempt: Attempt) -> None:
        name, began, regime = attempt.setup.name, asyncio.get_running_loop().time(), self._regime
        opened = self._opened[name] = []
        try:
            result = await try_out(self._driver, attempt.setup, attempt.rest_seconds, wall=self._wall, opened=opened)
        except TrialVoid as reason:
            log.debug("trial void", extra={"target": self._target, "setup": name, "reason": str(reason)})
            await asyncio.sleep(PAUSE_SECONDS)
            return
        finally:
            if self._opened.get(name) is opened:
                del self._opened[name]
        if result.outcome != TrialOutcome.OK:
            await asyncio.sleep(PAUSE_SECONDS)  # what the heartbeat saw of it may still be on its way
            if self._disturbed_at >= began:
                log.debug("trial void", extra={"target": self._target, "setup": name, "reason": "an outage"})
                return
        if regime != self._regime:
            return
        self.results = (*(other for other in self.results if other.setup != attempt.setup), result)[
            -RESULTS_REMEMBERED:
        ]
        self._ended(result)
        log.log(
            logging.WARNING if name == SetupName.RECOMMENDED and result.outcome != TrialOutcome.OK else logging.INFO,
            "trial ended",
            extra={"target": self._target, "setup": name, "outcome": result.outcome, "error": result.error},
        )


async def try_out(
    driver: Driver,
    setup: Setup,
    rest_seconds: float,
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    wall: Callable[[], float] = time.time,
    opened: list[PlainConnection] | None = None,
) -> TrialResult:
    """Check out, use, rest, check out again and use. `opened` comes to hold every connection opened for it.

    A failure counts only when a fresh connection works at that moment. Raises TrialVoid when none does, or when not
    even the first checkout worked.
    """
    checkout_errors: tuple[type[Exception], ...] = (SQLAlchemyError, CannotConnect, *driver.errors)
    hang_or_error: tuple[type[Exception], ...] = (_Hang, *checkout_errors)
    opened = [] if opened is None else opened

    async def connect() -> PlainConnection:
        connection = await driver.connect(
            ConnectionRole.TRIAL,
            deadline_seconds=CONNECT_SECONDS,
            keepalive=setup.keepalive,
            user_timeout_ms=setup.user_timeout_ms,
            statement_cache=setup.statement_caches,
        )
        opened.append(connection)
        if not rested:  # should it die unseen, its session must not stay on the server
            most = rest_seconds + patience_seconds + REST_SLACK_SECONDS
            await driver.limit_rest_of(connection, most, CONNECT_SECONDS)
        return connection

    engine, rested = _engine(driver, setup, connect), False
    loop = asyncio.get_running_loop()
    try:
        try:
            await _query(engine, patience_seconds)
        except hang_or_error as failure:
            raise TrialVoid(str(failure)) from failure
        before, rested_from = len(opened), loop.time()
        await asyncio.sleep(rest_seconds)
        asked, rested = loop.time(), True
        outcome, error = TrialOutcome.OK, None
        try:
            await _query(engine, patience_seconds)
        except _Hang:
            outcome, error = TrialOutcome.HANG, f"no answer within {patience_seconds:g} s"
        except checkout_errors as failure:
            outcome, error = TrialOutcome.ERROR, driver.failure_of(failure).text
        took = loop.time() - asked
        if outcome != TrialOutcome.OK:
            await _control(driver)
        return TrialResult(
            setup=setup,
            at=wall(),
            idle_seconds=asked - rested_from,
            outcome=outcome,
            checkout_seconds=took if outcome == TrialOutcome.OK else None,
            reconnected=len(opened) > before if outcome == TrialOutcome.OK else None,
            error=error,
        )
    finally:
        for connection in opened:
            driver.terminate(connection)
        await engine.dispose(close=False)


def _engine(driver: Driver, setup: Setup, connect: Callable[[], Awaitable[PlainConnection]]) -> AsyncEngine:
    """The engine, with the listeners the format `python` has for what SQLAlchemy has no argument for."""
    engine = create_async_engine(
        driver.sqlalchemy_url,
        async_creator=connect,
        pool_size=1,
        max_overflow=0,
        pool_recycle=setup.pool_recycle,
        pool_pre_ping=setup.pool_pre_ping,
    )
    if setup.drops:

        def drop(_connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
            driver.terminate(entry.driver_connection)

        event.listen(engine.sync_engine, "close", drop)
    after = setup.selective_pre_ping_after
    if after is not None:

        def ping_the_rested(
            connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection
        ) -> None:
            now = time.monotonic()
            if now - entry.info.get("resting_since", now) > after:
                try:
                    engine.dialect.do_ping(connection)
                except Exception as error:
                    raise InvalidatePoolError("pre-ping failed") from error

        event.listen(engine.sync_engine, "checkin", _note_the_time)
        event.listen(engine.sync_engine, "checkout", ping_the_rested)
    return engine


def _note_the_time(_connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
    entry.info["resting_since"] = time.monotonic()


async def _control(driver: Driver) -> None:
    try:
        connection = await driver.connect(ConnectionRole.TRIAL, deadline_seconds=CONNECT_SECONDS)
    except CannotConnect as failure:
        raise TrialVoid(failure.reason) from failure
    driver.terminate(connection)


async def _query(engine: AsyncEngine, patience_seconds: float) -> None:
    """One checkout with one query, as an application does it. One that hangs is left to its fate."""
    task = asyncio.create_task(_checkout_and_query(engine), name="trial")
    try:
        done, _ = await asyncio.wait({task}, timeout=patience_seconds)
    finally:
        task.cancel()  # also when we are cancelled ourselves: a ping that then fails would have the pool connect anew
    if not done:
        raise _Hang
    await task


async def _checkout_and_query(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.exec_driver_sql("SELECT 1")
        await connection.rollback()
