"""One raw connection to PostgreSQL, watched closely: what came over the wire, when, and how it ended.

asyncpg notices FIN and RST on an idle connection but drops the FATAL message that said why, and under the simple
protocol it returns no rows. Both are on the wire, so a tap between the transport and asyncpg's protocol reads them:
it forwards everything and keeps what the measurement needs. The tap works for TLS too, because it sits above it.

A connection knows two pids: that of the handshake (BackendKeyData), and that of whoever answers. Where they differ, a
pooler is between, and what is said of our session would be said of somebody else's: then nothing is set and nothing
ended.

Of a session left behind it must be known until when whatever it did was done by us. Each answer brings the server's own
time, taken after we sent the question; the session is at rest again before we have read the answer. So it last changed
its state no later than that time and our own time from sending to reading. After an answer without a time, nothing is
known and nothing may be ended. After a question without an answer, what the last answer said still holds: if the
question did reach the server, that session has changed since, and is spared.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import asyncpg

from sidecar.clock import boot_time
from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import Declared, LeftSession, SessionTable
from sidecar.core.evidence import Ending, Noticed
from sidecar.core.identity import Identity
from sidecar.probes.driver import WriteAnswer
from sidecar.probes.errors import ConnectionEnded
from sidecar.probes.postgresql import queries, sessions
from sidecar.probes.postgresql.signals import signal_of
from sidecar.probes.postgresql.sockets import acknowledge, transport_of

OWN_LIMIT_SLACK_SECONDS = 1.0
"""By which a rest that the server ended may seem to fall short of the timeout we had set, and still be ended by it."""

_IDLE_SESSION_TIMEOUT = "57P05"
"""SQLSTATE idle_session_timeout. Source: PostgreSQL, appendix A."""


class Tap(asyncio.Protocol):
    """Reads along between a transport and the driver's protocol; forwards every call.

    PostgreSQL messages are a type byte, a length (which counts itself) and a body; they may be split over any number
    of reads. The tap is put in when the driver has consumed a ReadyForQuery, so it starts at a message boundary.
    """

    def __init__(self, driver: asyncio.Protocol) -> None:
        self._driver = driver
        self._rest = bytearray()
        self.answered = True  # ReadyForQuery has come since this was last set to False
        self.answered_at = boot_time()  # when it last came
        self.row: queries.Row | None = None  # the last DataRow, text format
        self.error: dict[str, str] | None = None  # fields of the last ErrorResponse or warning, by field type
        self.parameters: dict[str, str] = {}  # ParameterStatus as far as seen since the tap was put in
        self.on_lost: Callable[[Exception | None], None] | None = None

    def data_received(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= 5:
            end = 1 + int.from_bytes(self._rest[1:5])
            if end < 5 or len(self._rest) < end:
                break
            self._message(bytes(self._rest[0:1]), bytes(self._rest[5:end]))
            del self._rest[:end]
        self._driver.data_received(data)

    def _message(self, kind: bytes, body: bytes) -> None:
        if kind in (b"E", b"N"):
            fields = {
                part[:1].decode("ascii", "replace"): part[1:].decode("utf-8", "replace")
                for part in body.split(b"\0")
                if part
            }
            # V is the severity untranslated (PostgreSQL 9.6+); S may be in the server's language.
            fields["V"] = fields.get("V", fields.get("S", ""))
            # Of several the first FATAL is the cause: a pooler adds its own when the server has hung up on it.
            if not self.announced_end and (kind == b"E" or fields["V"] == "WARNING"):
                self.error = fields
        elif kind == b"D":
            self.row = _text_row(body)
        elif kind == b"Z":
            self.answered, self.answered_at = True, boot_time()
        elif kind == b"S":
            name, value, *_ = body.decode("utf-8", "replace").split("\0")
            self.parameters[name] = value

    @property
    def announced_end(self) -> bool:
        """Whether the peer has said that it is about to close. An immediate stop or a crash says so in a WARNING."""
        error = self.error or {}
        return error.get("V") in ("FATAL", "PANIC") or error.get("C", "").startswith("57P")

    def eof_received(self) -> bool | None:
        return self._driver.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._driver.connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost(exc)

    def pause_writing(self) -> None:
        self._driver.pause_writing()

    def resume_writing(self) -> None:
        self._driver.resume_writing()


def _text_row(body: bytes) -> queries.Row:
    columns, position = [], 2
    for _ in range(int.from_bytes(body[0:2])):
        length = int.from_bytes(body[position : position + 4], signed=True)
        position += 4
        columns.append(None if length < 0 else body[position : position + length].decode("utf-8", "replace"))
        position += max(length, 0)
    return tuple(columns)


class PostgresConnection:
    """A `sidecar.probes.driver.WatchedConnection` over asyncpg's."""

    def __init__(self, driver: asyncpg.Connection[Any]) -> None:
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._transport = transport_of(driver)
        self._tap = Tap(self._transport.get_protocol())
        self._tap.on_lost = self._lost
        self._transport.set_protocol(self._tap)
        self._levels: dict[str, int] = {}  # by question, the form that is asked
        self._turn = asyncio.Lock()  # held by the question under way
        self.backend_pid = pid_of(driver)
        self.is_pooled: bool | None = None
        self.rest_limited_to_seconds: float | None = None
        self._rested_from = -inf  # when the question before the last was sent, of boot time
        self._server_started_at: float | None = None
        self._backend_started_at: float | None = None
        self._last_used_by: float | None = None  # the server's time; see the module
        self.opened_at = self.asked_at = self.used_at = boot_time()
        self.ended_at = inf
        self._terminated = False
        self.ended: asyncio.Future[Ending] = self._loop.create_future()
        if self._transport.is_closing():  # it died between the driver's last read and the tap
            self._lost(None)

    @property
    def parameters(self) -> dict[str, str]:
        """ParameterStatus values seen since the connection opened (later ones replace earlier ones)."""
        return {**reported(self._driver), **self._tap.parameters}

    @property
    def reports_role(self) -> bool:
        return "in_hot_standby" in self.parameters

    @property
    def read_only(self) -> bool:
        return takes_no_writes(self.parameters)

    @property
    def refusal(self) -> tuple[str, str] | None:
        return None if self._tap.error is None else (self._tap.error.get("C", ""), self._tap.error.get("M", ""))

    async def use(self, deadline_seconds: float) -> Identity:
        identity = queries.identity(await self._first("identity", queries.IDENTITY, deadline_seconds))
        if identity.backend_pid is not None and self.backend_pid is not None:
            # Once another backend has answered there is a pooler, whoever answers later.
            self.is_pooled = bool(self.is_pooled) or identity.backend_pid != self.backend_pid
        if identity.started_at is not None:
            self._server_started_at = identity.started_at
        return identity

    async def beat(self, deadline_seconds: float) -> None:
        await self._first("beat", queries.BEAT, deadline_seconds)

    async def check_write(self, deadline_seconds: float) -> WriteAnswer:
        row = None
        for check in queries.WRITE_CHECKS:
            row = await self._ask(check, deadline_seconds)
            if row is not None or (self.refusal or ("",))[0] == queries.READ_ONLY_TRANSACTION:
                break
        return queries.write_answer(row)

    async def declared(self, deadline_seconds: float) -> Declared | None:
        return queries.declared(await self._ask(queries.DECLARED, deadline_seconds))

    async def activity(self, deadline_seconds: float) -> Activity | None:
        return queries.activity(await self._first("activity", queries.ACTIVITY, deadline_seconds))

    async def sessions(self, deadline_seconds: float) -> SessionTable | None:
        row = await self._first("sessions", queries.SESSIONS, deadline_seconds)
        try:
            return None if row is None else sessions.table(row[:-1])
        except ValueError:  # who answers so is no PostgreSQL
            return None

    async def limit_rest(self, seconds: float, deadline_seconds: float) -> float | None:
        if self.is_pooled is not False or self.backend_pid is None:
            return None
        milliseconds = timeout_ms(seconds)
        statements = queries.limits_of_rest(self.backend_pid, milliseconds)
        if (row := await self._first("limit", statements, deadline_seconds)) is not None:
            self.rest_limited_to_seconds = queries.own_limit(row, milliseconds)
            self._backend_started_at = queries.backend_start(row) or self._backend_started_at
        return self.rest_limited_to_seconds

    async def end_session(self, left: LeftSession, deadline_seconds: float) -> bool:
        if self.is_pooled is not False or left.pid == self.backend_pid:
            return False
        return queries.terminated(await self._ask(queries.terminate(left), deadline_seconds))

    def left_behind(self) -> LeftSession | None:
        ending = self.ended.result() if self.ended.done() else None
        server_knows = ending is not None and (ending.sqlstate is not None or ending.signal == "fin")
        if self.is_pooled is not False or self.backend_pid is None or server_knows:
            return None
        if self._server_started_at is None or self._last_used_by is None:
            return None
        return LeftSession(
            pid=self.backend_pid,
            server_started_at=self._server_started_at,
            last_used_by=self._last_used_by,
            backend_started_at=self._backend_started_at,
        )

    async def _first(self, question: str, forms: Sequence[str], deadline_seconds: float) -> queries.Row | None:
        """The answer to the first form of a question that the server does not refuse, None when it refuses all.

        What it refused is not tried again, unless its reason was one that passes. `deadline_seconds` are for each form.
        """
        for level in range(self._levels.get(question, 0), len(forms)):
            if (row := await self._ask(forms[level], deadline_seconds)) is not None:
                return row
            refused_for_good = not (self.refusal or ("",))[0].startswith(queries.PASSING)
            if refused_for_good and level + 1 < len(forms):
                self._levels[question] = level + 1
        return None

    async def _ask(self, sql: str, deadline_seconds: float) -> queries.Row | None:
        """The last row of a simple query, as text; None when the server refused it (see `refusal`).

        One question is under way at a time, and the deadline runs while others are in front: at its end the connection
        is dead if nothing at all was answered since this was asked. Who asked may be cancelled; what is under way goes
        on, since asyncpg would open another connection to stop it, and the next one may be asking already.
        """
        asked_at = boot_time()
        await self._wait_for_turn(asked_at, deadline_seconds)
        patience_seconds = self._patience(asked_at, deadline_seconds)
        if patience_seconds <= 0:  # this process itself was late to take its turn
            patience_seconds = deadline_seconds
        exchange = self._loop.create_task(self._exchange(sql, patience_seconds), name="question")
        answer = asyncio.shield(exchange)  # first: who asked looks at what came before the next one asks
        exchange.add_done_callback(self._end_turn)
        return await answer

    def _end_turn(self, exchange: asyncio.Task[queries.Row | None]) -> None:
        self._turn.release()
        if not exchange.cancelled():
            exchange.exception()  # seen, even where nobody waits for it any more

    async def _wait_for_turn(self, asked_at: float, deadline_seconds: float) -> None:
        while True:
            patience_seconds = self._patience(asked_at, deadline_seconds)
            try:
                async with asyncio.timeout(patience_seconds):
                    await self._turn.acquire()
                    return
            except TimeoutError:
                if self._patience(asked_at, deadline_seconds) > 0:
                    continue  # somebody in front was answered meanwhile
                if not self._is_gone():
                    self._end(Ending(noticed=Noticed.DEADLINE))
                self.terminate()  # which ends the wait of whoever is in front, too
                raise self._end_of_question() from None

    def _patience(self, asked_at: float, deadline_seconds: float) -> float:
        """Seconds for which we still wait: counted from our asking, or from the latest answer to others since."""
        return max(asked_at, self._tap.answered_at) + deadline_seconds - boot_time()

    async def _exchange(self, sql: str, deadline_seconds: float) -> queries.Row | None:
        await self._settle()
        if self._is_gone():
            raise self._end_of_question()
        self._tap.row = self._tap.error = None
        self._tap.answered = False
        self._rested_from, self.asked_at = self.asked_at, boot_time()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._driver.execute(sql)
        except TimeoutError:
            # Our own deadline, or the kernel's TCP_USER_TIMEOUT (an OSError that is a TimeoutError). When this process
            # was late itself, the answer has come all the same.
            if not self._is_gone() and not self._tap.answered:
                self._end(Ending(noticed=Noticed.DEADLINE))
        except asyncpg.PostgresError:
            await self._settle()  # else refused, not dead
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await self._settle()
            if not self._is_gone():  # the driver gave it up although the transport stands
                self._end(Ending(noticed=Noticed.USING))
        finally:
            acknowledge(self._driver)
            self.used_at = boot_time()
        if self._is_gone() and not self._tap.answered:
            self.terminate()
            raise self._end_of_question()
        at = queries.server_time(self._tap.row)
        self._last_used_by = None if at is None else at + (self.used_at - self.asked_at)
        return self._tap.row

    async def _settle(self) -> None:
        """Let an end that is under way arrive: after a FATAL the FIN is at most a moment behind."""
        if self._terminated or not (self._tap.announced_end or self._transport.is_closing()):
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), 1.0)
        if not self._is_gone():
            self._end(self._ending(None))

    def _is_gone(self) -> bool:
        return self._terminated or self.ended.done()

    def _end_of_question(self) -> ConnectionEnded:
        # An end that we brought about ourselves is told to who was asking, and is none to be reported.
        return ConnectionEnded(self.ended.result() if self.ended.done() else Ending(noticed=Noticed.USING))

    def terminate(self) -> None:
        self._terminated = True
        self._tap.on_lost = None
        self._driver.terminate()

    def _lost(self, exc: Exception | None) -> None:
        if self.ended.done():
            return
        if isinstance(exc, TimeoutError):
            self._end(Ending(noticed=Noticed.DEADLINE))
        else:
            self._end(self._ending("fin" if exc is None else "rst"))

    def _ending(self, signal: str | None) -> Ending:
        error = self._tap.error or {}
        # Of a rest that a use found ended, that use is not the beginning.
        rested_seconds = boot_time() - (self.asked_at if self._tap.answered else self._rested_from)
        own = self.rest_limited_to_seconds
        return Ending(
            noticed=Noticed.READING if self._tap.answered else Noticed.USING,
            signal=signal,
            said=signal_of(error.get("C"), error.get("M")),
            severity=error.get("V"),
            sqlstate=error.get("C"),
            message=error.get("M"),
            own_limit=error.get("C") == _IDLE_SESSION_TIMEOUT
            and own is not None
            and rested_seconds >= own - OWN_LIMIT_SLACK_SECONDS,
        )

    def _end(self, ending: Ending) -> None:
        self.ended_at = boot_time()
        self.ended.set_result(ending)


def pid_of(driver: asyncpg.Connection[Any]) -> int | None:
    """The pid of the handshake (BackendKeyData), None where the server named none."""
    return driver.get_server_pid() or None


def timeout_ms(seconds: float) -> int:
    """As idle_session_timeout takes it. Zero would switch it off."""
    return min(max(1, round(seconds * 1000)), queries.LONGEST_TIMEOUT_MS)


async def ask(driver: asyncpg.Connection[Any], sql: str, deadline_seconds: float) -> queries.Row | None:
    """The last row of a simple query on a connection that nobody watches and nobody uses; None when it was refused.

    Raises what asyncpg raises, or TimeoutError; the connection is then dropped.
    """
    transport = transport_of(driver)
    untapped = transport.get_protocol()
    tap = Tap(untapped)
    transport.set_protocol(tap)
    try:
        async with asyncio.timeout(deadline_seconds):
            await driver.execute(sql)
    except BaseException as error:
        if isinstance(error, asyncpg.PostgresError) and tap.answered and not tap.announced_end:
            return None
        driver.terminate()
        raise
    finally:
        transport.set_protocol(untapped)
    return tap.row


_REPORTED = (
    "server_version",
    "in_hot_standby",
    "default_transaction_read_only",
    "is_superuser",
    "session_authorization",
)
"""What PostgreSQL reports in ParameterStatus, as far as it may be of use."""


def reported(driver: asyncpg.Connection[Any]) -> dict[str, str]:
    """The latest ParameterStatus values that reached the driver. The server sends a change with its next answer."""
    settings = driver.get_settings()
    return {name: getattr(settings, name) for name in _REPORTED if hasattr(settings, name)}


def takes_no_writes(parameters: Mapping[str, str]) -> bool:
    """Whether the server reports, by its role or its settings, that nothing can be written. PostgreSQL 14 and later."""
    return "on" in (parameters.get("in_hot_standby"), parameters.get("default_transaction_read_only"))
