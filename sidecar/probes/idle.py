"""Carries out what the idle-limit machine commands: opens, rests, uses and drops raw connections.

The runner knows no strategy. It waits for a fact or for the machine's deadline, hands it over, and turns the commands
into tasks; every wait on the network has a deadline of its own, and dropping a connection waits for nobody.

A session that may still be there on the server although its connection is gone is told of (`on_unseen_death`), so that
another connection can end it: one that died unseen, one whose answer we do not wait for any longer, and one that we
dropped after a rest which nothing is known to live through. The server may take a moment to hear of the last, so that
is told a little later.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from sidecar.clock import boot_time
from sidecar.core.budget import ConnectionRole, LeftSession
from sidecar.core.evidence import Aged, Disturbed, Ending, Observation
from sidecar.core.identity import Identity
from sidecar.core.idle.commands import Budget, Close, Command, Open, Record, Use
from sidecar.core.idle.facts import ClockSet, Died, Fact, Opened, OpenFailed, Pooled, Survived
from sidecar.core.idle.machine import IdleMachine
from sidecar.core.signals import ServerSignal
from sidecar.probes.driver import Driver, WatchedConnection
from sidecar.probes.errors import CannotConnect, ConnectionEnded

_OPENING_JITTER_SHARE = 0.2
"""Of the pause before opening, added: many sidecars that failed together shall not come back together."""

DROPPED_GRACE_SECONDS = 2.0
"""After a connection was dropped at rest: a server that can be told of it has ended its session by then."""

_OPENING_JITTER_SECONDS = 0.05
"""Added at least, where there is no pause: one sidecar's own connections do not all call at once either."""


class IdleProbeRunner:
    """Runs one machine against one target, and tells what it meets, inside the event loop.

    `record` is told every observation, `on_unseen_death` what the server may still hold of a connection that is gone,
    `on_refused` what it said when it did not want one.
    """

    def __init__(
        self,
        machine: IdleMachine,
        driver: Driver,
        *,
        deadline_seconds: float,
        record: Callable[[Observation], None],
        on_unseen_death: Callable[[LeftSession], None] = lambda left: None,
        on_refused: Callable[[ServerSignal], None] = lambda said: None,
    ) -> None:
        self.machine = machine
        self._driver = driver
        self._deadline_seconds = deadline_seconds
        self._record = record
        self._on_unseen_death, self._on_refused = on_unseen_death, on_refused
        self._facts: asyncio.Queue[Fact | Budget | None] = asyncio.Queue()
        self._running = False
        self._connections: dict[int, WatchedConnection] = {}
        self._not_answered: set[WatchedConnection] = set()  # open, and asked for the first time
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_use: set[int] = set()

    @property
    def connections(self) -> dict[str, int]:
        """Probe connections by state."""
        return {"open": len(self._connections), "opening": len(self._tasks.keys() - self._connections.keys())}

    @property
    def pids(self) -> set[int]:
        """Of the server's sessions that are open here. What a pooler calls ours is no pid of the server."""
        direct = (connection for connection in self._connections.values() if connection.is_pooled is False)
        pids = (connection.backend_pid for connection in (*direct, *self._not_answered))
        return {pid for pid in pids if pid is not None}

    def tell(self, fact: Aged | Disturbed | ClockSet | Pooled | Budget) -> None:
        """Hand a fact from outside to the machine. Nothing is kept for one that does not run, which it may never do."""
        if self._running:
            self._facts.put_nowait(fact)

    def measure_afresh(self) -> None:
        """Open a new regime and measure from the start, if it runs."""
        if self._running:
            self._facts.put_nowait(None)

    async def run(self, budget: Budget) -> None:
        """Measure until cancelled; then drop everything."""
        loop = asyncio.get_running_loop()
        self._running = True
        async with asyncio.TaskGroup() as group:
            try:
                self._obey(self.machine.observe(budget, loop.time()), group)
                while True:
                    deadline = self.machine.next_deadline()
                    try:
                        async with asyncio.timeout_at(deadline):
                            fact = await self._facts.get()
                    except TimeoutError:
                        commands = self.machine.handle_timer(loop.time())
                    else:
                        commands = (
                            self.machine.measure_afresh(loop.time())
                            if fact is None
                            else self.machine.observe(fact, loop.time())
                        )
                    self._obey(commands, group)
            finally:
                self._running = False
                for number in list(self._tasks.keys() | self._connections.keys()):
                    self._close(number)

    def _obey(self, commands: list[Command], group: asyncio.TaskGroup) -> None:
        for command in commands:
            match command:
                case Open():
                    self._start(command.connection, self._open(command), group)
                case Use():
                    self._begin_use(command.connection, group)
                case Close():
                    self._close(command.connection)
                case Record():
                    self._record(command.observation)

    def _start(self, number: int, work: Coroutine[Any, Any, None], group: asyncio.TaskGroup) -> None:
        task = group.create_task(work, name=f"probe-{number}")
        self._tasks[number] = task
        task.add_done_callback(lambda done: self._tasks.pop(number) if self._tasks.get(number) is done else None)

    async def _open(self, command: Open) -> None:
        loop, number = asyncio.get_running_loop(), command.connection
        jitter = max(_OPENING_JITTER_SECONDS, _OPENING_JITTER_SHARE * command.after_seconds)
        await asyncio.sleep(command.after_seconds + random.uniform(0, jitter))  # noqa: S311 - no secret
        started = loop.time()
        try:
            connection = await self._driver.open(
                ConnectionRole.PROBE, deadline_seconds=self._deadline_seconds, keepalive=command.keepalive
            )
        except CannotConnect as error:
            self._open_failed(number, error.reason, error.said)
            return
        if command.ask:
            self._not_answered.add(connection)
        try:
            identity = await self._first_answer(connection, command)
        except ConnectionEnded as end:
            self._tell_left(connection)
            reason = end.ending.message or "the connection ended before its first answer"
            self._open_failed(number, reason, end.ending.said)
            return
        except BaseException:
            connection.terminate()
            raise
        finally:
            self._not_answered.discard(connection)
        self._connections[number] = connection
        self._facts.put_nowait(Opened(connection=number, identity=identity, seconds=loop.time() - started))
        connection.ended.add_done_callback(lambda ended: self._ended_at_rest(number, ended.result()))

    async def _first_answer(self, connection: WatchedConnection, command: Open) -> Identity:
        """Who answered; nobody, where nobody is to be asked. The rest begins after the last question here."""
        if not command.ask:
            return Identity()
        identity = await connection.use(self._deadline_seconds)
        if command.rest_at_most_seconds is not None:
            await connection.limit_rest(command.rest_at_most_seconds, self._deadline_seconds)
        return identity

    def _open_failed(self, number: int, reason: str, said: ServerSignal | None) -> None:
        self._facts.put_nowait(OpenFailed(connection=number, error=reason, said=said))
        if said is not None and said.is_refusal:
            self._on_refused(said)

    def _ended_at_rest(self, number: int, ending: Ending) -> None:
        """Ends that show while it is in use are reported by `_use`, which knows how long it had rested."""
        connection = self._connections.get(number)
        if connection is not None and number not in self._in_use:
            self._report_death(number, connection, connection.asked_at, connection.ended_at, ending)

    def _begin_use(self, number: int, group: asyncio.TaskGroup) -> None:
        if (connection := self._connections.get(number)) is not None:  # else its death is already among the facts
            self._in_use.add(number)
            self._start(number, self._use(number, connection), group)

    async def _use(self, number: int, connection: WatchedConnection) -> None:
        asked_at, used_at, started = connection.asked_at, connection.used_at, boot_time()
        try:
            identity = await connection.use(self._deadline_seconds)
        except ConnectionEnded as end:
            rested_until = min(started, connection.ended_at)
            self._report_death(number, connection, asked_at, rested_until, end.ending)
            return
        self._facts.put_nowait(
            Survived(
                connection=number,
                idle_seconds=started - used_at,  # what it really rested: a late timer makes it longer
                seconds=boot_time() - started,
                identity=identity,
            )
        )
        self._in_use.discard(number)
        if connection.ended.done():  # it answered, and was gone before we came to read it
            self._ended_at_rest(number, connection.ended.result())

    def _report_death(
        self, number: int, connection: WatchedConnection, asked_at: float, until: float, ending: Ending
    ) -> None:
        self._drop(number)
        self._tell_left(connection)
        self._facts.put_nowait(
            Died(
                connection=number,
                idle_seconds=until - asked_at,
                age_seconds=until - connection.opened_at,
                ending=ending,
            )
        )
        if ending.said is not None and ending.said.is_exhaustion:  # a pooler had nobody to serve it with
            self._on_refused(ending.said)

    def _close(self, number: int) -> None:
        """Drop a connection, whatever it is doing. Whether it still lived, nobody knows then."""
        connection, in_use = self._connections.get(number), number in self._in_use
        if (task := self._tasks.pop(number, None)) is not None:
            task.cancel()
        self._drop(number)
        if connection is None:
            return
        if in_use:
            self._tell_left(connection)
        elif self._running and boot_time() - connection.used_at > self._proven_seconds:
            asyncio.get_running_loop().call_later(DROPPED_GRACE_SECONDS, self._tell_left, connection)

    @property
    def _proven_seconds(self) -> float:
        return self.machine.status(asyncio.get_running_loop().time()).proven_seconds or 0.0

    def _tell_left(self, connection: WatchedConnection) -> None:
        if (left := connection.left_behind()) is not None:
            self._on_unseen_death(left)

    def _drop(self, number: int) -> None:
        self._in_use.discard(number)
        if (connection := self._connections.pop(number, None)) is not None:
            connection.terminate()
