"""One raw connection to PostgreSQL, watched closely: what came over the wire, when, and how it ended.

asyncpg notices FIN and RST on an idle connection but drops the FATAL message that said why, and under the simple
protocol it returns no rows. Both are on the wire, so a tap between the transport and asyncpg's protocol reads them:
it forwards everything and keeps what the measurement needs. The tap works for TLS too, because it sits above it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import asyncpg

from sidecar.clock import boot_time
from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import Declared
from sidecar.core.evidence import Ending, Noticed
from sidecar.core.identity import Identity
from sidecar.probes.driver import WriteAnswer
from sidecar.probes.errors import ConnectionEnded
from sidecar.probes.postgresql import queries
from sidecar.probes.postgresql.sockets import acknowledge, transport_of


class Tap(asyncio.Protocol):
    """Reads along between a transport and the driver's protocol; forwards every call.

    PostgreSQL messages are a type byte, a length (which counts itself) and a body; they may be split over any number
    of reads. The tap is put in when the driver has consumed a ReadyForQuery, so it starts at a message boundary.
    """

    def __init__(self, driver: asyncio.Protocol) -> None:
        self._driver = driver
        self._rest = bytearray()
        self.answered = True  # ReadyForQuery has come since this was last set to False
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
            self.answered = True
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
        self._identity_level = 0
        self.opened_at = self.asked_at = self.used_at = boot_time()
        self.ended_at = inf
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
        while True:
            row = await self._simple(queries.IDENTITY[self._identity_level], deadline_seconds)
            if row is not None or self._identity_level + 1 == len(queries.IDENTITY):
                return queries.identity(row)
            self._identity_level += 1

    async def beat(self, deadline_seconds: float) -> None:
        await self._simple(queries.BEAT, deadline_seconds)

    async def check_write(self, deadline_seconds: float) -> WriteAnswer:
        row = None
        for check in queries.WRITE_CHECKS:
            row = await self._simple(check, deadline_seconds)
            if row is not None or (self.refusal or ("",))[0] == queries.READ_ONLY_TRANSACTION:
                break
        return queries.write_answer(row)

    async def declared(self, deadline_seconds: float) -> Declared | None:
        return queries.declared(await self._simple(queries.DECLARED, deadline_seconds))

    async def activity(self, deadline_seconds: float) -> Activity | None:
        return queries.activity(await self._simple(queries.ACTIVITY, deadline_seconds))

    async def _simple(self, sql: str, deadline_seconds: float) -> queries.Row | None:
        """The last row of a simple query, as text; None when the server refused it (see `refusal`)."""
        await self._settle()
        if self.ended.done():
            raise ConnectionEnded(self.ended.result())
        self._tap.row = self._tap.error = None
        self._tap.answered = False
        self.asked_at = boot_time()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._driver.execute(sql)
        except TimeoutError:
            # Our own deadline, or the kernel's TCP_USER_TIMEOUT (an OSError that is a TimeoutError). When this process
            # was late itself, the answer has come all the same.
            if not self.ended.done() and not self._tap.answered:
                self._end(Ending(noticed=Noticed.DEADLINE))
        except asyncpg.PostgresError:
            await self._settle()  # else refused, not dead
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            await self._settle()
            if not self.ended.done():  # the driver gave it up although the transport stands
                self._end(Ending(noticed=Noticed.USING))
        finally:
            acknowledge(self._driver)
            self.used_at = boot_time()
        if self.ended.done() and not self._tap.answered:
            self.terminate()
            raise ConnectionEnded(self.ended.result())
        return self._tap.row

    async def _settle(self) -> None:
        """Let an end that is under way arrive: after a FATAL the FIN is at most a moment behind."""
        if not self._tap.announced_end and not self._transport.is_closing():
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.ended), 1.0)
        if not self.ended.done():
            self._end(self._ending(None))

    def terminate(self) -> None:
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
        return Ending(
            noticed=Noticed.READING if self._tap.answered else Noticed.USING,
            signal=signal,
            severity=error.get("V"),
            sqlstate=error.get("C"),
            message=error.get("M"),
        )

    def _end(self, ending: Ending) -> None:
        self.ended_at = boot_time()
        self.ended.set_result(ending)


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
