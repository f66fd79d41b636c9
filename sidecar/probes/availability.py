"""The watch over one target, on real connections: carries out what the availability machine decides.

While attempts are refused the files are watched that hold what we log in with: to look at them costs the server
nothing, and a rotated password is taken up at once.

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
from pathlib import Path
from typing import TypeVar

from sidecar.core.availability.commands import (
    Adopt,
    AskTable,
    Attempt,
    Beat,
    CheckWrite,
    Command,
    Discard,
    Drop,
    Look,
    Record,
    Tell,
    TellRefused,
    Witness,
)
from sidecar.core.availability.facts import (
    AgeKnown,
    BeatAnswered,
    Connected,
    CredentialsChanged,
    Fact,
    LoggedIn,
    NotConnected,
    PooledLost,
    Resolved,
    Resume,
    RoleChanged,
    SessionEnded,
    Suspected,
    Suspend,
    TableAnswered,
    Waits,
    WriteAnswered,
)
from sidecar.core.availability.machine import AvailabilityMachine
from sidecar.core.availability.status import AvailabilityStatus
from sidecar.core.budget import ConnectionRole, SessionTable
from sidecar.core.evidence import Aged, Disturbed, Noticed, Outage
from sidecar.core.identity import Identity
from sidecar.core.signals import ServerSignal
from sidecar.probes.driver import Driver, WatchedConnection
from sidecar.probes.errors import CannotConnect, ConnectionEnded, name_of
from sidecar.settings.model import TargetSettings

_T = TypeVar("_T")

_log = logging.getLogger("sidecar.heartbeat")

_DEADLINES_TO_GIVE_UP = 3
"""A question is given up after so many deadlines even if the machine, which knows when we slept, forgot it."""

_REST_AT_MOST_SECONDS = 300.0
"""After so long a rest the server may end our session: nothing of it stays behind on a path that forgot it."""

_QUEUE_SECONDS = 150.0
"""For so long an attempt may wait in a pooler's queue. PgBouncer's query_wait_timeout, 120 s unless set, comes before;
and no flow rests so long on a path that it would be forgotten."""

_CREDENTIALS_EVERY_SECONDS = 1.0
"""Between two looks at the files we log in with, while we are refused."""


class AvailabilityRunner:
    """Watches one target as long as `run` runs.

    `on_outage` is told every version of every outage's record, `on_disturbed` when connections open now or lately
    testify to nothing, `on_aged` how old a session got that ended by itself, `on_table` who holds the sessions of the
    server that is so identified, None where it does not show that, `on_refused` each time a fresh connection was
    refused; all inside the event loop.
    Nothing raises but faults in the program.
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
        on_table: Callable[[SessionTable | None, Identity], None] = lambda _table, _identity: None,
        on_refused: Callable[[ServerSignal], None] = lambda _said: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._name, self._target, self._driver, self._wall = name, target, driver, wall
        self._on_outage, self._on_disturbed, self._on_aged = on_outage, on_disturbed, on_aged
        self._on_table, self._on_refused = on_table, on_refused
        self._loop = asyncio.get_running_loop()
        self._machine = AvailabilityMachine(
            name,
            every=target.heartbeat.every,
            deadline=target.heartbeat.deadline,
            reconnect_every=target.heartbeat.reconnect_every,
            door_every=target.heartbeat.door_every,
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
        self._logged_in: set[int] = set()  # of the attempts, those that wait for their first answer
        self._answered: dict[int, WatchedConnection] = {}  # fresh connections, until the machine has said what for
        self._resolution: asyncio.Future[tuple[Sequence[str], float]] | None = None
        self._identities: dict[WatchedConnection, Identity] = {}  # of those that are open
        self._is_pooled: bool | None = None
        self._shares_backends = False
        tls = target.tls
        files = (target.password_file, tls.ca_file, tls.cert_file, tls.key_file)
        self._credentials = [Path(file) for file in files if file is not None]
        self._credentials_task: asyncio.Task[None] | None = None
        self._complaint: str | None = None  # the last one logged: each is logged once
        if not target.heartbeat.enabled:
            self.suspend(looks=True)

    @property
    def status(self) -> AvailabilityStatus:
        """How things stand now."""
        return self._machine.status(self._loop.time())

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._answered) + (self._session is not None)

    @property
    def session(self) -> WatchedConnection | None:
        """The connection that is kept open, for others to ask something over it."""
        return self._session

    @property
    def pids(self) -> set[int]:
        """What the server calls the open connections."""
        open_ones = [*self._answered.values(), *([] if self._session is None else [self._session])]
        return {connection.backend_pid for connection in open_ones if connection.backend_pid is not None}

    @property
    def shares_backends(self) -> bool:
        """Whether one process of the server has answered two of our connections that lived side by side.

        So it is in transaction mode that there is a pooler. A busy one may give each another process for a while.
        """
        return self._shares_backends

    @property
    def is_pooled(self) -> bool | None:
        """Whether a pooler stands between, as of the last connection that could tell; None where none could."""
        return self._is_pooled

    def suspend(self, *, looks: bool) -> None:
        """Give back every connection now, and hold none until `resume`; with `looks` a short one comes by now and then.

        To be told in any state, also before `run`.
        """
        self._observe(Suspend(looks=looks))

    def resume(self) -> None:
        """Hold a connection again, as far as the settings want one."""
        if not self._target.heartbeat.enabled:
            self.suspend(looks=True)
        elif self.status.suspended:
            self._observe(Resume())

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
        if self._credentials and self._machine.awaits_credentials and self._credentials_task is None:
            self._credentials_task = self._group.create_task(
                self._watch_credentials(), name=f"heartbeat-{self._name}-credentials"
            )
        self._wake.set()  # the next deadline may be another one now

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case Beat() | Look() | CheckWrite():
                    self._start({Beat: self._beat, Look: self._look, CheckWrite: self._check_write}[type(command)])
                case Attempt(number=number, role=role):
                    self._attempts[number] = self._group.create_task(
                        self._attempt(number, role), name=f"heartbeat-{self._name}-attempt-{number}"
                    )
                case AskTable(number=number):
                    self._attempts[number] = self._group.create_task(
                        self._ask_for_table(number), name=f"heartbeat-{self._name}-look-{number}"
                    )
                case Adopt(number=number):
                    session = self._answered.pop(number)
                    identity = self._identities[session]
                    self._drop()
                    self._session, self._identities[session] = session, identity
                    self._start(self._await_end)
                case Discard(number=number):
                    self._discard(number)
                case Drop():
                    self._drop()
                case Record(outage=outage):
                    self._on_outage(outage)
                case TellRefused(said=said):
                    self._on_refused(said)
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

    async def _look(self, session: WatchedConnection) -> None:
        deadline = self._target.heartbeat.deadline * _DEADLINES_TO_GIVE_UP
        with contextlib.suppress(ConnectionEnded):
            was_read_only = session.read_only
            table = await session.sessions(deadline)
            self._observe_role(session, was_read_only)
            self._observe(TableAnswered(at=self._wall()))
            if session is self._session:
                self._on_table(table, self._identities[session])
            # Not sooner: when writing was possible again is known no better than this takes.
            if session is self._session and session.rest_limited_to_seconds is None and session.is_pooled is False:
                await session.limit_rest(_REST_AT_MOST_SECONDS, deadline)

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
        self._identities.clear()
        for task in tasks:
            if task is not asyncio.current_task():  # which is about to end by itself
                task.cancel()

    # The connect path

    def _discard(self, number: int) -> None:
        connection = self._answered.pop(number)
        self._identities.pop(connection, None)
        connection.terminate()

    async def _ask_for_table(self, number: int) -> None:
        connection = self._answered[number]
        identity = self._identities[connection]
        try:
            table = await connection.sessions(self._target.heartbeat.deadline)
        except ConnectionEnded as end:
            del self._attempts[number]  # before it can be given up: it has ended
            self._discard(number)
            self._observe(_not_connected(number, end))
            return
        del self._attempts[number]
        self._observe(TableAnswered(at=self._wall()))
        self._on_table(table, identity)

    async def _attempt(self, number: int, role: ConnectionRole) -> None:
        try:
            fact = await self._try_to_connect(number, role)
        finally:
            self._logged_in.discard(number)
        del self._attempts[number]  # before it can be given up: it has ended
        if isinstance(fact, Connected):
            self._complaint = None
        else:
            self._complain(fact.error, fact.sqlstate)
        self._observe(fact)

    def _complain(self, error: str, sqlstate: str | None) -> None:
        if error != self._complaint:
            self._complaint = error
            _log.warning("cannot connect", extra={"target": self._name, "error": error, "sqlstate": sqlstate})

    async def _try_to_connect(self, number: int, role: ConnectionRole) -> Connected | NotConnected:
        deadline = self._target.heartbeat.deadline
        resolved = False
        try:
            async with asyncio.timeout(deadline) as limit:
                addresses, asked = await self._resolve()
                self._observe(Resolved(addresses=tuple(sorted(addresses)), asked=asked))
                resolved = True
                connection, identity = await self._open_first(addresses, number, role, limit)
        except (CannotConnect, ConnectionEnded) as failure:
            return _not_connected(number, failure)
        except TimeoutError as timeout:
            name = type(timeout).__name__
            return NotConnected(attempt=number, error=self._no_answer, name=name, hung=resolved)
        except OSError as failure:
            error = f"cannot resolve {self._target.host}: {failure.strerror}"
            return NotConnected(attempt=number, error=error, name=name_of(failure))
        self._answered[number], self._identities[connection] = connection, identity
        if connection.is_pooled is not None:
            self._is_pooled = connection.is_pooled
        if connection.is_pooled and self._session is not None and identity.backend_pid is not None:
            self._shares_backends |= identity.backend_pid == self._identities[self._session].backend_pid
        return Connected(
            attempt=number,
            at=self._wall(),
            identity=identity,
            addresses=tuple(sorted(addresses)),
            tells_role=connection.reports_role,
            pooled=connection.is_pooled,
        )

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

    @property
    def _no_answer(self) -> str:
        return f"{self._target.display} did not answer within {self._target.heartbeat.deadline:g} s"

    async def _open_first(
        self, addresses: Sequence[str], number: int, role: ConnectionRole, limit: asyncio.Timeout
    ) -> tuple[WatchedConnection, Identity]:
        """Try one address after the other, the next when all have failed or are slow; the first that answers counts.

        Who is refused by one goes no further, nor who is let in by one: an attempt is one login, and an application
        would not either.
        """
        if len(addresses) == 1:
            return await self._open(None, number, role, limit)
        tasks: list[asyncio.Task[tuple[WatchedConnection, Identity]]] = []
        winner = None
        try:
            for address in addresses:
                tasks.append(
                    asyncio.create_task(
                        self._open(address, number, role, limit), name=f"heartbeat-{self._name}-{address}"
                    )
                )
                patience = None if address == addresses[-1] else self._target.heartbeat.reconnect_every
                winner = await _first_success(tasks, patience)
                if winner is None and number in self._logged_in:
                    winner = await _first_success(tasks, None)
                if winner is not None:
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

    async def _open(
        self, address: str | None, number: int, role: ConnectionRole, limit: asyncio.Timeout
    ) -> tuple[WatchedConnection, Identity]:
        deadline = self._target.heartbeat.deadline
        connection = await self._driver.open(role, deadline_seconds=deadline, host=address)
        try:
            self._logged_in.add(number)
            if number in self._attempts:  # else it is about to be cancelled
                self._observe(LoggedIn(attempt=number))
            if self._is_pooled is not False:
                return connection, await self._wait_in_queue(connection, number, limit)
            return connection, await connection.use(deadline)
        except BaseException:
            connection.terminate()
            raise

    async def _wait_in_queue(self, connection: WatchedConnection, number: int, limit: asyncio.Timeout) -> Identity:
        """Ask what may have to wait in a pooler's queue. The attempt's own deadline is only told, not heeded."""
        deadline = limit.when()
        limit.reschedule(self._loop.time() + _QUEUE_SECONDS + self._target.heartbeat.deadline)
        # Told from outside the attempt, which may be given up for it.
        told = self._loop.call_at(deadline or self._loop.time(), self._tell_waiting, number)
        try:
            return await connection.use(_QUEUE_SECONDS)
        finally:
            told.cancel()

    def _tell_waiting(self, number: int) -> None:
        if number in self._attempts:
            self._complain(self._no_answer, None)
            self._observe(Waits(attempt=number, error=self._no_answer))

    # What we log in with

    async def _watch_credentials(self) -> None:
        """Tell when a file changes that we log in with, for as long as we are refused."""
        known = await asyncio.to_thread(_fingerprint, self._credentials)
        while self._machine.awaits_credentials:
            await asyncio.sleep(_CREDENTIALS_EVERY_SECONDS)
            if (found := await asyncio.to_thread(_fingerprint, self._credentials)) != known:
                known = found
                self._observe(CredentialsChanged())
        self._credentials_task = None


def _not_connected(number: int, failure: CannotConnect | ConnectionEnded) -> NotConnected:
    if isinstance(failure, CannotConnect):
        return NotConnected(
            attempt=number,
            error=failure.reason,
            name=failure.name,
            said=failure.said,
            sqlstate=failure.sqlstate,
            hung=failure.name == TimeoutError.__name__,
        )
    ending = failure.ending
    return NotConnected(
        attempt=number,
        error=ending.message or "the connection ended before its first answer",
        name=ending.signal or ending.noticed,
        said=ending.said,
        sqlstate=ending.sqlstate,
        hung=ending.noticed is Noticed.DEADLINE,
    )


def _fingerprint(files: Sequence[Path]) -> tuple[object, ...]:
    """Something that changes with the contents of files, by whatever means they are replaced; they may be missing."""
    marks: list[object] = []
    for file in files:
        try:
            status = file.stat()
            marks.append((status.st_ino, status.st_mtime_ns, status.st_size, hash(file.read_bytes())))
        except OSError as error:
            marks.append(error.errno)
    return tuple(marks)


def _refuses(failure: BaseException | None) -> bool:
    said = failure.said if isinstance(failure, CannotConnect) else None
    if isinstance(failure, ConnectionEnded):
        said = failure.ending.said
    return said is not None and said.is_refusal


async def _first_success(tasks: Collection[asyncio.Task[_T]], patience: float | None) -> asyncio.Task[_T] | None:
    """The first of them to succeed; None when all have failed, or `patience` seconds have passed.

    Raises what one has failed with that was refused.
    """
    pending = set(tasks)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(patience):
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    failure = task.exception()
                    if failure is None:
                        return task
                    if _refuses(failure):
                        raise failure
    return None
