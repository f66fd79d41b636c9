"""Carries out what the idle-limit machine commands: opens, rests, uses and drops raw connections.

The runner knows no strategy. It waits for a fact or for the machine's deadline, hands it over, and turns the commands
into tasks; every wait on the network has a deadline of its own, and dropping a connection waits for nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

from sidecar.clock import boot_time
from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Aged, Disturbed, Ending, Observation
from sidecar.core.idle.commands import Budget, Close, Command, Open, Record, Use
from sidecar.core.idle.facts import ClockSet, Died, Fact, Opened, OpenFailed, Pooled, Survived
from sidecar.core.idle.machine import IdleMachine
from sidecar.probes.driver import Driver, WatchedConnection
from sidecar.probes.errors import CannotConnect, ConnectionEnded

_OPENING_JITTER_SHARE = 0.2
"""Of the pause before opening, added: many sidecars that failed together shall not come back together."""

_OPENING_JITTER_SECONDS = 0.05
"""Added at least, where there is no pause: one sidecar's own connections do not all call at once either."""


class IdleProbeRunner:
    """Runs one machine against one target. `record` is told every observation, inside the event loop."""

    def __init__(
        self,
        machine: IdleMachine,
        driver: Driver,
        *,
        deadline_seconds: float,
        record: Callable[[Observation], None],
    ) -> None:
        self.machine = machine
        self._driver = driver
        self._deadline_seconds = deadline_seconds
        self._record = record
        self._facts: asyncio.Queue[Fact | Budget | None] = asyncio.Queue()
        self._running = False
        self._connections: dict[int, WatchedConnection] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_use: set[int] = set()

    @property
    def connections(self) -> dict[str, int]:
        """Probe connections by state."""
        return {"open": len(self._connections), "opening": len(self._tasks.keys() - self._connections.keys())}

    @property
    def pids(self) -> set[int]:
        """The pids of the sessions, as the server named them."""
        pids = (connection.backend_pid for connection in self._connections.values())
        return {pid for pid in pids if pid is not None}

    def tell(self, fact: Aged | Disturbed | ClockSet | Budget | Pooled) -> None:
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
            self._facts.put_nowait(OpenFailed(connection=number, error=error.reason, said=error.said))
            return
        try:
            identity = await connection.use(self._deadline_seconds)
        except ConnectionEnded as end:
            reason = end.ending.message or "the connection ended before its first answer"
            self._facts.put_nowait(OpenFailed(connection=number, error=reason, said=end.ending.said))
            return
        except BaseException:
            connection.terminate()
            raise
        self._connections[number] = connection
        self._facts.put_nowait(Opened(connection=number, identity=identity, seconds=loop.time() - started))
        connection.ended.add_done_callback(lambda ended: self._ended_at_rest(number, ended.result()))

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
        self._facts.put_nowait(
            Died(
                connection=number,
                idle_seconds=until - asked_at,
                age_seconds=until - connection.opened_at,
                ending=ending,
            )
        )

    def _close(self, number: int) -> None:
        if (task := self._tasks.pop(number, None)) is not None:
            task.cancel()
        self._drop(number)

    def _drop(self, number: int) -> None:
        self._in_use.discard(number)
        if (connection := self._connections.pop(number, None)) is not None:
            connection.terminate()
