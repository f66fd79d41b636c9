"""The watch over one target, on real connections: carries out what the availability machine decides.

All tasks belong to the task group of `AvailabilityRunner.run`, so that none can die unnoticed, and all of them hand
their facts to the machine in the same step in which they wake up. A task that was given up is cancelled before it can
do so, hence no fact ever comes late.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import secrets
import socket
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import TypeVar

from sidecar.core.availability.commands import (
    Adopt,
    Attempt,
    Beat,
    CheckWrite,
    Command,
    Discard,
    Drop,
    Record,
    Tell,
    Witness,
)
from sidecar.core.availability.facts import (
    AgeKnown,
    BeatAnswered,
    Connected,
    Fact,
    NotConnected,
    PooledLost,
    Resolved,
    RoleChanged,
    SessionEnded,
    Suspected,
    WriteAnswered,
)
from sidecar.core.availability.machine import AvailabilityMachine
from sidecar.core.availability.status import AvailabilityStatus
from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Aged, Disturbed, Outage
from sidecar.core.identity import Identity
from sidecar.probes.driver import Driver, WatchedConnection
from sidecar.probes.errors import CannotConnect, ConnectionEnded
from sidecar.settings.model import TargetSettings

_T = TypeVar("_T")

_log = logging.getLogger("sidecar.heartbeat")

_DEADLINES_TO_GIVE_UP = 3
"""A question is given up after so many deadlines even if the machine, which knows when we slept, forgot it."""


class AvailabilityRunner:
    """Watches one target as long as `run` runs.

    `on_outage` is told every version of every outage's record, `on_disturbed` when connections open now or lately
    testify to nothing, `on_aged` how old a session got that ended by itself; all inside the event loop. Nothing raises
    but faults in the program.
    """

    def __init__(
        self,
        name: str,
        target: TargetSettings,
        driver: Driver,
        *,
        on_outage: Callable[[Outage], None],
        on_disturbed: Callable[[Disturbed], None],
        on_aged: Callable[[Aged], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._target, self._driver, self._wall = name, target, driver, wall
        self._on_outage, self._on_disturbed, self._on_aged = on_outage, on_disturbed, on_aged
        self._loop = asyncio.get_running_loop()
        self._machine = AvailabilityMachine(
            name,
            every=target.heartbeat.every,
            deadline=target.heartbeat.deadline,
            reconnect_every=target.heartbeat.reconnect_every,
            run=secrets.token_hex(4),
            jitter=random.random,
            now=self._loop.time(),
            at=wall(),
        )
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup
        self._session: WatchedConnection | None = None
        self._session_tasks: set[asyncio.Task[None]] = set()  # those that wait for the session
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._answered: dict[int, WatchedConnection] = {}  # fresh connections, until the machine has said what for
        self._resolution: asyncio.Future[tuple[Sequence[str], float]] | None = None
        self._complaint: str | None = None  # the last one logged: each is logged once

    @property
    def status(self) -> AvailabilityStatus:
        """How things stand now."""
        return self._machine.status(self._loop.time())

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._answered) + (self._session is not None)

    def pooled_lost(self, loss: str, *, seconds_since_well: float) -> None:
        """To be told of other connections to this target that were lost (see `PooledLost`)."""
        self._observe(PooledLost(loss=loss, well_at=self._loop.time() - seconds_since_well))

    def suspect(self) -> None:
        """To be told of any other trouble with this target, a refused connection above all."""
        self._observe(Suspected())

    def age_known(self, proven_seconds: float | None) -> None:
        """To be told to what age connections live on this path (see `AgeKnown`)."""
        self._observe(AgeKnown(proven_seconds=proven_seconds))

    async def run(self) -> None:
        """Watch until cancelled; then drop all connections without waiting for anyone."""
        async with asyncio.TaskGroup() as self._group:
            try:
                while True:
                    self._wake.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(self._machine.next_deadline()):
                            await self._wake.wait()
                    self._carry_out(self._machine.handle_timer(self._loop.time()))
            finally:
                self._drop()

    def _observe(self, fact: Fact) -> None:
        self._carry_out(self._machine.observe(fact, self._loop.time()))
        self._wake.set()  # the next deadline may be another one now

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Beat():
                    self._start(self._beat)
                case CheckWrite():
                    self._start(self._check_write)
                case Attempt(number=number):
                    self._attempts[number] = self._group.create_task(
                        self._attempt(number), name=f"heartbeat-{self._name}-attempt-{number}"
                    )
                case Adopt(number=number):
                    session = self._answered.pop(number)
                    self._drop()
                    self._session = session
                    self._start(self._await_end)
                case Discard(number=number):
                    self._answered.pop(number).terminate()
                case Drop():
                    self._drop()
                case Record(outage=outage):
                    self._on_outage(outage)
                case Tell(disturbed=disturbed):
                    self._on_disturbed(disturbed)
                case Witness(aged=aged):
                    self._on_aged(aged)

    # The session

    def _start(self, work: Callable[[WatchedConnection], Coroutine[None, None, None]]) -> None:
        if self._session is not None:  # which the machine never forgets
            task = self._group.create_task(work(self._session), name=f"heartbeat-{self._name}")
            self._session_tasks.add(task)
            task.add_done_callback(self._session_tasks.discard)

    async def _await_end(self, session: WatchedConnection) -> None:
        # The only place to learn of an end, whether the session was resting or in use.
        self._observe(SessionEnded(ending=await asyncio.shield(session.ended)))

    async def _beat(self, session: WatchedConnection) -> None:
        with contextlib.suppress(ConnectionEnded):
            was_read_only = session.read_only
            await session.beat(self._target.heartbeat.deadline * _DEADLINES_TO_GIVE_UP)
            self._observe_role(session, was_read_only)
            self._observe(BeatAnswered(at=self._wall()))

    async def _check_write(self, session: WatchedConnection) -> None:
        with contextlib.suppress(ConnectionEnded):
            was_read_only = session.read_only
            answer = await session.check_write(self._target.heartbeat.deadline * _DEADLINES_TO_GIVE_UP)
            self._observe_role(session, was_read_only)
            self._observe(WriteAnswered(at=self._wall(), writable=answer.writable, timeline=answer.timeline))

    def _observe_role(self, session: WatchedConnection, was_read_only: bool) -> None:
        # The server reports a changed setting or role with its next answer, whatever was asked.
        if session.read_only != was_read_only:
            self._observe(RoleChanged(read_only=session.read_only))

    def _drop(self) -> None:
        """Give up the session and all attempts."""
        tasks = [*self._session_tasks, *self._attempts.values()]
        self._session_tasks.clear()
        self._attempts.clear()
        for connection in (self._session, *self._answered.values()):
            if connection is not None:
                connection.terminate()
        self._session = None
        self._answered.clear()
        for task in tasks:
            if task is not asyncio.current_task():  # which is about to end by itself
                task.cancel()

    # The connect path

    async def _attempt(self, number: int) -> None:
        fact = await self._try_to_connect(number)
        del self._attempts[number]  # before it can be given up: it has ended
        if isinstance(fact, Connected):
            self._complaint = None
        elif fact.error != self._complaint:
            self._complaint = fact.error
            _log.warning("cannot connect", extra={"target": self._name, "error": fact.error, "sqlstate": fact.sqlstate})
        self._observe(fact)

    async def _try_to_connect(self, number: int) -> Connected | NotConnected:
        deadline = self._target.heartbeat.deadline
        said = sqlstate = None
        try:
            async with asyncio.timeout(deadline):
                addresses, asked = await self._resolve()
                self._observe(Resolved(addresses=tuple(sorted(addresses)), asked=asked))
                connection, identity = await self._open_first(addresses)
        except CannotConnect as failure:
            error, name, said, sqlstate = failure.reason, failure.name, failure.said, failure.sqlstate
        except ConnectionEnded as end:
            error = end.ending.message or "the connection ended before its first answer"
            said, sqlstate = end.ending.said, end.ending.sqlstate
            name = end.ending.signal or end.ending.noticed
        except TimeoutError as timeout:
            error, name = f"{self._target.display} did not answer within {deadline:g} s", type(timeout).__name__
        except OSError as failure:
            error, name = f"cannot resolve {self._target.host}: {failure.strerror}", type(failure).__name__
        else:
            self._answered[number] = connection
            return Connected(
                attempt=number,
                at=self._wall(),
                identity=identity,
                addresses=tuple(sorted(addresses)),
                tells_role=connection.reports_role,
            )
        return NotConnected(attempt=number, error=error, name=name, said=said, sqlstate=sqlstate)

    async def _resolve(self) -> tuple[Sequence[str], float]:
        """The addresses behind the name, in the system's order of preference; when that was asked. Raises OSError."""
        host = self._target.host
        with contextlib.suppress(ValueError):
            return (str(ipaddress.ip_address(host)),), self._loop.time()
        # One look-up at a time: each holds a thread, and no attempt's deadline can end it.
        if self._resolution is None or self._resolution.done():
            self._resolution = asyncio.ensure_future(self._look_up(host))
            self._resolution.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(self._resolution)

    async def _look_up(self, host: str) -> tuple[Sequence[str], float]:
        asked = self._loop.time()
        found = await self._loop.getaddrinfo(host, self._target.port, type=socket.SOCK_STREAM)
        return tuple(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found)), asked

    async def _open_first(self, addresses: Sequence[str]) -> tuple[WatchedConnection, Identity]:
        """Try one address after the other, the next when all have failed or are slow; the first that answers counts."""
        if len(addresses) == 1:
            return await self._open(None)
        tasks: list[asyncio.Task[tuple[WatchedConnection, Identity]]] = []
        winner = None
        try:
            for address in addresses:
                tasks.append(asyncio.create_task(self._open(address), name=f"heartbeat-{self._name}-{address}"))
                patience = None if address == addresses[-1] else self._target.heartbeat.reconnect_every
                if (winner := await _first_success(tasks, patience)) is not None:
                    return winner.result()
            failures = [failure for task in tasks if (failure := task.exception()) is not None]
            raise max(failures, key=lambda failure: getattr(failure, "sqlstate", None) is not None)  # who spoke, if any
        finally:
            for task in tasks:
                task.cancel()
            for outcome in await asyncio.gather(
                *(task for task in tasks if task is not winner), return_exceptions=True
            ):
                if not isinstance(outcome, BaseException):
                    outcome[0].terminate()

    async def _open(self, address: str | None) -> tuple[WatchedConnection, Identity]:
        deadline = self._target.heartbeat.deadline
        connection = await self._driver.open(ConnectionRole.HEARTBEAT, deadline_seconds=deadline, host=address)
        try:
            return connection, await connection.use(deadline)
        except BaseException:
            connection.terminate()
            raise


async def _first_success(tasks: Collection[asyncio.Task[_T]], patience: float | None) -> asyncio.Task[_T] | None:
    """The first of them to succeed; None when all have failed, or `patience` seconds have passed."""
    pending = set(tasks)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None:
                        return task
    return None
