"""The pool the sidecar holds on each target: what the application's own pool would see, measured.

Theory of operation
===================

The pool is SQLAlchemy's, under an ordinary `AsyncEngine`. Every few seconds one round checks out all its connections,
runs one query on each, and returns them, so that every connection is used and the pool stays full. Turns with and
without a pre-ping alternate on each connection; the difference is what a ping costs.

`pool_pre_ping` and `pool_recycle` themselves stay off, because of what they cannot do: change in a living pool, spread
the ages of connections opened together, end a ping that gets no answer. SQLAlchemy offers the same two decisions in the
open, at the same place: a `checkout` listener that raises DisconnectionError has the connection replaced before it is
handed out. So one listener does both, in SQLAlchemy's order, age first and then the ping, and it pings with the very
function that `pool_pre_ping` calls. A failed ping condemns the older connections of the whole pool, as it does there.

Nothing waits for ever. Whatever happens on a connection has a timer beside it that drops the connection: the operation
then fails as a disconnect, which SQLAlchemy knows how to treat, while a cancellation would have it close the connection
gracefully and wait two more seconds. For the same reason every connection is dropped before the pool closes it.

How many connections it holds is not the pool's to say: `resize` may be called at any moment. What is too much is
dropped at once, those at rest first, one that is just being opened included, and a turn that loses its connection so
has not failed. SQLAlchemy's pool keeps its size; a place in it may be empty, and is not filled beyond what may be held.

A demoted server answers every ping. What gives it away comes unasked: with any answer, PostgreSQL 14 and later report a
changed `in_hot_standby` or `default_transaction_read_only`, and the driver remembers both. So each use also tells
whether the connection could have written. The pool keeps such a connection, as the application's own would.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DisconnectionError, InvalidatePoolError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Death
from sidecar.probes.driver import Driver, PlainConnection
from sidecar.probes.errors import CannotConnect
from sidecar.settings.model import TargetSettings

ROUND_EVERY_SECONDS = 5.0
"""Pause between two rounds: often enough that no limit worth living with is reached meanwhile, seldom enough to cost
nothing."""

_ROUND_JITTER_SHARE = 0.2
"""Of that pause, up or down: many sidecars started together shall not call on the database together."""

_RECYCLE_JITTER_SHARE = 0.1
"""Of the age at which to recycle, at most, taken off: connections opened together shall not be replaced together."""

REST_AT_MOST_SECONDS = 300.0
"""After such a rest the server ends a connection of the pool by itself: should this process vanish, nothing stays."""

_PING_SHARE = 0.5
"""Of the time for a checkout; the rest is for connecting anew when the ping fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The pool opened a connection."""

    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrePinged:
    """A connection was pinged before it was handed out. When not `ok` the pool replaces it, and the older others."""

    seconds: float
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedOut:
    """One turn: a connection was checked out, used for one query, and left ready for check-in."""

    seconds: float  # from asking the pool to having the connection
    use_seconds: float  # BEGIN, one query, ROLLBACK
    pre_ping: bool
    connected: bool  # the connection was opened for this turn, at first or in place of another


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnFailed:
    """A turn that an application would have seen fail. `error` is fit for operators and holds no secret."""

    stage: str  # checkout | use
    seconds: float  # until it was known
    pre_ping: bool
    error: str
    sqlstate: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CannotWrite:
    """A connection answered a query and would have refused a write. Told once, until it can write again."""

    seconds_since_writable: float  # or since it was opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The pool gave a connection up.

    `death` is how a dead one had shown that it was, None where it was alive for all we know. What a server said before
    it closed a resting connection does not come through the driver: that is `closed` here.
    """

    # recycled (of age, or not as advised) | invalidated (found dead, or older than that) | given_back | disposed
    reason: str
    age_seconds: float
    death: Death | None
    seconds_since_use: float  # the last good one, or since it was opened


class _GivenBack(CannotConnect):
    """No connection is opened, because fewer are to be held."""

    def __init__(self) -> None:
        super().__init__("fewer connections are to be held", name="GivenBack")


PoolFact = Connected | PrePinged | CheckedOut | TurnFailed | CannotWrite | Closed


class CanaryPool:
    """The canary pool of one target. `observe` is told every fact, at once, inside the event loop.

    `run` is to be supervised; after it was cancelled, `close` ends the connections.
    """

    def __init__(
        self,
        target: TargetSettings,
        driver: Driver,
        observe: Callable[[PoolFact], None],
        *,
        round_every_seconds: float = ROUND_EVERY_SECONDS,
    ) -> None:
        self._target = target
        self._driver = driver
        self._observe = observe
        self._round_every_seconds = round_every_seconds
        self._turn_errors: tuple[type[Exception], ...] = (SQLAlchemyError, CannotConnect, *driver.errors)
        self._recycle_seconds = None if target.pool.recycle == "auto" else float(target.pool.recycle)
        self._size = target.pool.size
        self._grown = asyncio.Event()
        self._entries: set[ConnectionPoolEntry] = set()  # with an open connection each
        self._connecting: asyncio.Task[PlainConnection] | None = None
        self._closing = False
        self._statement_cache = True
        self._begins_with_ping = False
        # Of the turn under way: turns are taken one after the other.
        self._deadline = 0.0
        self._pinged = self._connected = self._unanswered = self._server_said_why = False
        self._setup_timer: asyncio.TimerHandle | None = None
        self._engine = create_async_engine(
            driver.sqlalchemy_url,
            async_creator=self._connect,
            pool_size=target.pool.size,
            max_overflow=0,
            pool_timeout=target.pool.timeout,
        )
        for name, listener in (
            ("connect", self._on_connect),
            ("checkout", self._on_checkout),
            ("checkin", self._on_checkin),
            ("close", self._on_close),
        ):
            event.listen(self._engine.sync_engine, name, listener)

    @property
    def connections(self) -> Mapping[str, int]:
        """Open connections by state."""
        in_use = sum(entry.in_use for entry in self._entries)
        return {"checked_out": in_use, "idle": len(self._entries) - in_use}

    @property
    def pids(self) -> set[int]:
        """The pids of the sessions behind the open connections, as the server named them."""
        pids = (self._driver.pid_of(entry.driver_connection) for entry in self._entries)
        return {pid for pid in pids if pid is not None}

    def resize(self, size: int) -> None:
        """Hold at most so many connections from now on; none and no rounds at 0. Never more than the settings say."""
        grown, self._size = size > self._size, min(size, self._target.pool.size)
        if grown:
            self._grown.set()
        by_use = sorted(self._entries, key=lambda entry: entry.in_use)
        for entry in by_use[: max(0, len(by_use) - self._size)]:
            entry.info["reason"] = "given_back"
            if entry.in_use:
                self._driver.terminate(entry.driver_connection)  # the turn finds out, and leaves it
            else:
                entry.invalidate()
        if self._connecting is not None and len(self._entries) >= self._size:
            self._connecting.cancel()

    def follow(self, advice: Recommendation) -> None:
        """Recycle at the age advised from the next checkout on, unless the settings fix another one.

        Where the path forgets prepared statements, connections without a cache for them replace the others.
        """
        if self._target.pool.recycle == "auto":
            self._recycle_seconds = float(advice.settings.pool_recycle)
        if advice.forgets_statements:
            self._statement_cache = False

    async def run(self) -> None:
        """Take rounds until cancelled. A failed turn is a fact; only faults in the program raise."""
        while True:
            self._grown.clear()
            if self._size:
                await self._round()
            spread = random.uniform(1 - _ROUND_JITTER_SHARE, 1 + _ROUND_JITTER_SHARE)  # noqa: S311 - no secret
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._round_every_seconds * spread):
                    await self._grown.wait()

    async def close(self) -> None:
        """Drop all connections, waiting for nobody."""
        self._closing = True
        await self._engine.dispose()

    async def _round(self) -> None:
        """One turn on every connection. They are returned together: one by one, the pool would only ever use one."""
        held: list[tuple[AsyncConnection, Mapping[str, Any]]] = []
        async with AsyncExitStack() as stack:
            for _ in range(self._target.pool.size):  # some places may be empty
                if len(held) >= self._size:
                    break
                try:
                    turned = await self._turn(stack)
                except _GivenBack:
                    continue
                if turned is None:
                    break  # the others would most likely fail the same way; the next round will tell
                held.append(turned)
            for connection, info in held:
                if info.get("reason") == "given_back":
                    await connection.invalidate()  # its check-in would send a ROLLBACK

    async def _turn(self, stack: AsyncExitStack) -> tuple[AsyncConnection, Mapping[str, Any]] | None:
        """Check out, use, and leave the connection in `stack`. None when it failed.

        Raises _GivenBack where the connection is none to be held (any more).
        """
        loop = asyncio.get_running_loop()
        asked = loop.time()
        self._deadline = asked + self._target.pool.timeout
        self._pinged = self._connected = self._unanswered = self._server_said_why = False
        connection: AsyncConnection | None = None
        info: dict[str, Any] = {}
        try:
            connection = await stack.enter_async_context(self._engine.connect())
            handed_over = loop.time()
            raw = await connection.get_raw_connection()
            info = raw.info
            with self._dropped_after(self._target.pool.timeout, raw.driver_connection):
                await connection.exec_driver_sql("SELECT 1")
                await connection.rollback()
        except _GivenBack:
            raise
        except self._turn_errors as error:
            text, sqlstate = self._describe(error)
            self._server_said_why = self._driver.failure_of(error).said_by_server
            given_back = info.get("reason") == "given_back"
            if connection is not None:
                await connection.invalidate()  # its check-in would send a ROLLBACK nobody watches
            if given_back:
                raise _GivenBack from None
            self._observe(
                TurnFailed(
                    stage="checkout" if connection is None else "use",
                    seconds=loop.time() - asked,
                    pre_ping=self._pinged,
                    error=text,
                    sqlstate=sqlstate,
                )
            )
            return None
        self._used(raw.info, raw.driver_connection)
        self._observe(
            CheckedOut(
                seconds=handed_over - asked,
                use_seconds=loop.time() - handed_over,
                pre_ping=self._pinged,
                connected=self._connected,
            )
        )
        return connection, raw.info

    def _used(self, info: dict[str, Any], connection: PlainConnection) -> None:
        """Note that a connection was used well, and whether it could have written."""
        now = asyncio.get_running_loop().time()
        info.update(used_at=now, in_use=False)
        if not self._driver.takes_no_writes(connection):
            info.update(writable_at=now, known_read_only=False)
        elif not info["known_read_only"]:
            info["known_read_only"] = True
            self._observe(CannotWrite(seconds_since_writable=now - info["writable_at"]))

    async def _connect(self) -> PlainConnection:
        if len(self._entries) >= self._size:
            raise _GivenBack
        loop = asyncio.get_running_loop()
        started = loop.time()
        # A ping that got no answer leaves time for this; the floor only matters if the loop itself was stopped.
        # Rounded, because operators are told when it passes.
        remaining = max(round(self._deadline - started, 1), 0.1)
        self._connecting = asyncio.create_task(self._open(remaining), name="pool-connect")
        try:
            connection = await self._connecting
        except asyncio.CancelledError:
            if len(self._entries) < self._size:
                raise  # it was us who were cancelled, not the task
            raise _GivenBack from None
        finally:
            self._connecting.cancel()
            self._connecting = None
        # Between here and `_on_connect` the dialect asks the server about types, with no deadline of its own.
        self._setup_timer = loop.call_later(remaining, self._drop_unanswered, connection)
        return connection

    async def _open(self, deadline_seconds: float) -> PlainConnection:
        loop = asyncio.get_running_loop()
        started = loop.time()
        connection = await self._driver.connect(
            ConnectionRole.POOL, deadline_seconds=deadline_seconds, statement_cache=self._statement_cache
        )
        self._observe(Connected(seconds=loop.time() - started))
        try:
            await self._driver.limit_rest_of(connection, REST_AT_MOST_SECONDS, deadline_seconds)
        except BaseException:
            self._driver.terminate(connection)
            raise
        return connection

    def _on_connect(self, _connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        if self._setup_timer is not None:
            self._setup_timer.cancel()
        self._entries.add(entry)
        self._connected, self._unanswered = True, False
        self._begins_with_ping = not self._begins_with_ping  # of two connections one is pinged while the other is not
        now = asyncio.get_running_loop().time()
        entry.info.update(
            opened_at=now,
            used_at=now,
            writable_at=now,
            known_read_only=False,
            recycle_share=1 - random.uniform(0, _RECYCLE_JITTER_SHARE),  # noqa: S311 - no secret
            fresh=True,
            statement_cache=self._statement_cache,
            ping_next=self._begins_with_ping,
        )

    def _on_checkout(
        self, connection: DBAPIConnection, entry: ConnectionPoolEntry, _proxy: PoolProxiedConnection
    ) -> None:
        info = entry.info
        info["in_use"] = not self._is_closed(entry)
        if info.pop("fresh", False):
            return
        if self._recycle_seconds is not None and _age(entry) > self._recycle_seconds * info["recycle_share"]:
            info["reason"] = "recycled"
            raise DisconnectionError("of age")
        if info["statement_cache"] != self._statement_cache:
            info["reason"] = "recycled"
            raise DisconnectionError("it would prepare statements")
        wanted, info["ping_next"] = info["ping_next"], not info["ping_next"]
        # What the driver knows to be dead is pinged even in a turn meant to go without: measuring costs no protection.
        if wanted or (self._target.pool.pre_ping and self._is_closed(entry)):
            self._ping(connection, entry)

    def _ping(self, connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        """SQLAlchemy's pre-ping with a deadline. Raises what makes the pool treat a failure as its own pre-ping's."""
        loop = asyncio.get_running_loop()
        self._pinged = True
        started = loop.time()
        dialect = self._engine.dialect
        try:
            with self._dropped_after(self._target.pool.timeout * _PING_SHARE, entry.driver_connection):
                dialect.do_ping(connection)
        except (dialect.loaded_dbapi.Error, OSError) as error:
            if entry.info.get("reason") == "given_back":
                raise DisconnectionError("fewer are to be held") from error
            self._observe(PrePinged(seconds=loop.time() - started, ok=False))
            self._server_said_why = self._driver.failure_of(error).said_by_server
            if not self._is_closed(entry):
                raise  # a refusal by a living server: the pool would hand it to the application too
            raise InvalidatePoolError("pre-ping failed") from error
        self._observe(PrePinged(seconds=loop.time() - started, ok=True))

    def _on_close(self, _connection: DBAPIConnection, entry: ConnectionPoolEntry) -> None:
        self._entries.discard(entry)
        info, death = entry.info, self._death(entry)
        self._driver.terminate(entry.driver_connection)  # says goodbye to the server, but does not wait for it
        reason = "disposed" if self._closing else info.get("reason", "invalidated")
        since_use = asyncio.get_running_loop().time() - info["used_at"]
        self._observe(Closed(reason=reason, age_seconds=_age(entry), death=death, seconds_since_use=since_use))

    def _death(self, entry: ConnectionPoolEntry) -> Death | None:
        """How a connection about to be closed was seen to have died; None where it was not."""
        if self._closing or entry.info.get("reason") == "given_back" or not self._is_closed(entry):
            return None
        if not entry.info.get("in_use", False):
            return Death.CLOSED
        if self._unanswered:
            return Death.SILENT
        return Death.FATAL if self._server_said_why else Death.RESET_ON_USE

    @contextmanager
    def _dropped_after(self, seconds: float, connection: PlainConnection) -> Iterator[None]:
        timer = asyncio.get_running_loop().call_later(seconds, self._drop_unanswered, connection)
        try:
            yield
        finally:
            timer.cancel()

    def _drop_unanswered(self, connection: PlainConnection) -> None:
        self._unanswered = True
        self._driver.terminate(connection)

    def _on_checkin(self, _connection: DBAPIConnection | None, entry: ConnectionPoolEntry) -> None:
        if len(self._entries) > self._size and entry in self._entries:
            entry.info["reason"] = "given_back"
            entry.invalidate()

    def _is_closed(self, entry: ConnectionPoolEntry) -> bool:
        return self._driver.is_closed(entry.driver_connection)

    def _describe(self, error: Exception) -> tuple[str, str | None]:
        if isinstance(error, CannotConnect):
            return error.reason, error.sqlstate
        if self._unanswered:
            return f"{self._target.display} did not answer within {self._target.pool.timeout:g} s", None
        failure = self._driver.failure_of(error)
        return failure.text, failure.sqlstate


def _age(entry: ConnectionPoolEntry) -> float:
    return float(asyncio.get_running_loop().time() - entry.info["opened_at"])
