"""One raw connection to PostgreSQL, watched closely: what came over the wire, when, and how it ended.

asyncpg notices FIN and RST on an idle connection but drops the FATAL message that said why, and under the simple
protocol it returns no rows. Both are on the wire, so a tap between the transport and asyncpg's protocol reads them:
it forwards everything and keeps what the measurement needs. The tap works for TLS too, because it sits above it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from math import inf
from typing import Any

import asyncpg

from sidecar.core.evidence import Ending, Keepalive, Noticed
from sidecar.core.identity import Identity
from sidecar.probes.postgresql.signals import signal_of

# Everything that can be known of a server without privileges. The second form is for servers that lack, or refuse,
# the control functions (poolers' consoles, PostgreSQL-compatible databases).
_IDENTITY = (
    "SELECT pg_backend_pid(), extract(epoch from pg_postmaster_start_time()), host(inet_server_addr()),"
    " inet_server_port(), pg_is_in_recovery(), current_setting('default_transaction_read_only')"
)
_IDENTITY_QUERIES = (
    _IDENTITY + ", s.system_identifier, c.timeline_id FROM pg_control_system() s, pg_control_checkpoint() c",
    _IDENTITY + ", NULL, NULL",
)
_BEAT = "SELECT 1"

# The event loop's clock stands still while the machine sleeps; that of a firewall does not. Where there is no such
# name (macOS), CLOCK_MONOTONIC goes on.
_SLEEPLESS_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def sleepless_time() -> float:
    """Monotonic seconds that go on while the machine is suspended: what rests are measured with."""
    return time.clock_gettime(_SLEEPLESS_CLOCK)


class ConnectionEnded(Exception):  # noqa: N818 - a fact, not an error
    """The connection is gone; `ending` holds everything seen of it."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.message or ending.signal or ending.noticed)
        self.ending = ending


class Tap(asyncio.Protocol):
    """Reads along between a transport and the driver's protocol; forwards every call.

    PostgreSQL messages are a type byte, a length (which counts itself) and a body; they may be split over any number
    of reads. The tap is put in when the driver has consumed a ReadyForQuery, so it starts at a message boundary.
    """

    def __init__(self, driver: asyncio.Protocol) -> None:
        self._driver = driver
        self._rest = bytearray()
        self.answered = True  # ReadyForQuery has come since this was last set to False
        self.row: tuple[str | None, ...] | None = None  # the last DataRow, text format
        self.error: dict[str, str] | None = None  # fields of the last ErrorResponse or warning, by field type
        self.parameters: dict[str, str] = {}  # ParameterStatus as far as seen since the tap was put in
        self.on_parameter: Callable[[str, str], None] | None = None
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
            if self.on_parameter is not None:
                self.on_parameter(name, value)

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


def _text_row(body: bytes) -> tuple[str | None, ...]:
    columns, position = [], 2
    for _ in range(int.from_bytes(body[0:2])):
        length = int.from_bytes(body[position : position + 4], signed=True)
        position += 4
        columns.append(None if length < 0 else body[position : position + length].decode("utf-8", "replace"))
        position += max(length, 0)
    return tuple(columns)


class ProbeConnection:
    """An open connection that rests, is used, and ends.

    `opened_at`, `asked_at`, `used_at` and `ended_at` are seconds of `sleepless_time`. The last query
    was sent at `asked_at` and its answer read at `used_at`; where this process was late to read it, the rest began
    before: a rest lasted at least from `used_at`, at most from `asked_at`. `ended` is done as soon as the end is
    noticed, with the `Ending` as its result; ends we bring about ourselves leave it pending.
    """

    def __init__(self, driver: asyncpg.Connection[Any]) -> None:
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._transport = transport_of(driver)
        self._tap = Tap(self._transport.get_protocol())
        self._tap.on_lost = self._lost
        self._transport.set_protocol(self._tap)
        self._identity_level = 0
        self.opened_at = self.asked_at = self.used_at = sleepless_time()
        self.ended_at = inf
        self.ended: asyncio.Future[Ending] = self._loop.create_future()
        if self._transport.is_closing():  # it died between the driver's last read and the tap
            self._lost(None)

    @property
    def parameters(self) -> dict[str, str]:
        """ParameterStatus values seen since the connection opened (later ones replace earlier ones)."""
        return {**reported(self._driver), **self._tap.parameters}

    def on_parameter(self, callback: Callable[[str, str], None]) -> None:
        """Call back at every later ParameterStatus, with its name and value."""
        self._tap.on_parameter = callback

    async def use(self, deadline_seconds: float) -> Identity:
        """Use the connection with one simple query and return who answered.

        A server that refuses the query has answered all the same: the Identity is then empty where it is not known.
        Raises ConnectionEnded when the connection is gone or does not answer within `deadline_seconds`.
        """
        while True:
            row = await self._simple(_IDENTITY_QUERIES[self._identity_level], deadline_seconds)
            if row is not None or self._identity_level + 1 == len(_IDENTITY_QUERIES):
                return _identity(row)
            self._identity_level += 1

    async def beat(self, deadline_seconds: float) -> None:
        """The cheapest proof of life. Raises ConnectionEnded as `use` does."""
        await self._simple(_BEAT, deadline_seconds)

    async def query(self, sql: str, deadline_seconds: float) -> tuple[str | None, ...] | None:
        """The last row of a simple query, as text; None when the server refused it (see `refusal`)."""
        return await self._simple(sql, deadline_seconds)

    @property
    def refusal(self) -> tuple[str, str] | None:
        """(SQLSTATE, message) of the last query the server refused."""
        return None if self._tap.error is None else (self._tap.error.get("C", ""), self._tap.error.get("M", ""))

    async def _simple(self, sql: str, deadline_seconds: float) -> tuple[str | None, ...] | None:
        await self._settle()
        if self.ended.done():
            raise ConnectionEnded(self.ended.result())
        self._tap.row = self._tap.error = None
        self._tap.answered = False
        self.asked_at = sleepless_time()
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
            self.used_at = sleepless_time()
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
        """Drop the connection at once, without waiting for the peer."""
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
            said=signal_of(error.get("C"), error.get("M")),
            severity=error.get("V"),
            sqlstate=error.get("C"),
            message=error.get("M"),
        )

    def _end(self, ending: Ending) -> None:
        self.ended_at = sleepless_time()
        self.ended.set_result(ending)


_REPORTED = (
    "server_version",
    "in_hot_standby",
    "default_transaction_read_only",
    "is_superuser",
    "session_authorization",
)


def reported(driver: asyncpg.Connection[Any]) -> dict[str, str]:
    """The latest ParameterStatus values that reached the driver. The server sends a change with its next answer."""
    settings = driver.get_settings()
    return {name: getattr(settings, name) for name in _REPORTED if hasattr(settings, name)}


def takes_no_writes(parameters: Mapping[str, str]) -> bool:
    """Whether the server reports, by its role or its settings, that nothing can be written. PostgreSQL 14 and later."""
    return "on" in (parameters.get("in_hot_standby"), parameters.get("default_transaction_read_only"))


def transport_of(driver: asyncpg.Connection[Any]) -> Any:
    """The transport under a driver connection. asyncpg has no public way to it (asyncpg #606); only this line knows."""
    return driver._transport


def set_socket_options(
    driver: asyncpg.Connection[Any], *, keepalive: Keepalive | None, user_timeout_ms: int | None
) -> None:
    """Set, or clear, TCP keepalive and the user timeout on a driver connection. Unix sockets have neither."""
    sock = _tcp_socket(driver)
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(keepalive is not None))
    if keepalive is not None:
        # macOS calls the idle time TCP_KEEPALIVE.
        idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE")  # noqa: B009
        sock.setsockopt(socket.IPPROTO_TCP, idle, keepalive.idle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, keepalive.interval)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, keepalive.count)
    if user_timeout_ms is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)


def acknowledge(driver: asyncpg.Connection[Any]) -> None:
    """Acknowledge at once what was received, so that the rest begins now.

    Linux would wait up to 40 ms for data to send it with, and for a firewall the rest begins with the last packet.
    """
    sock = _tcp_socket(driver)
    if sock is not None and hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):  # closed a moment ago: the end will be noticed elsewhere
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _tcp_socket(driver: asyncpg.Connection[Any]) -> Any:
    sock = transport_of(driver).get_extra_info("socket")
    return sock if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6) else None


def _identity(row: tuple[str | None, ...] | None) -> Identity:
    if row is None:
        return Identity()
    pid, started_at, address, port, in_recovery, _read_only, system_identifier, timeline = row
    return Identity(
        address=None if address is None else f"{address}:{port}",
        started_at=None if started_at is None else float(started_at),
        system_identifier=system_identifier,
        timeline=None if timeline is None else int(timeline),
        in_recovery=None if in_recovery is None else in_recovery == "t",
        backend_pid=None if pid is None else int(pid),
    )
