"""What a family of databases must offer, so that whatever is measured here can be measured on it.

Theory of operation
===================

A `Driver` is the way to one target: it knows address, credentials and TLS, reads them afresh at every connect, and
opens two kinds of connections.

A `WatchedConnection` is for measuring: it tells when it was used, how it ended and what the server said before, and
offers the few questions the sidecar asks, each answered in the core's language. Several may ask at once, the observer
over the heartbeat's session above all: the connection asks one after the other, in the order they came. Each question
has a deadline, which runs from when the caller asked, whoever is in front; at its end the connection is taken for dead
if it has answered nobody since. So a heartbeat behind a slow question finds a dead path as soon as one that stands
alone, and a queue that moves kills nobody. A question ends in one of three ways. The server answers. It refuses, which
is an answer too: what could not be learnt is then None or empty. Or the connection is gone, which raises
ConnectionEnded with everything seen of the end. Nothing else is raised, and no question keeps a transaction open or
leaves anything behind on the server, but the limit on the session's own rest that `limit_rest` asks for.

A plain connection is the driver library's own object, as an application's pool would hold it. SQLAlchemy's dialect,
named by `sqlalchemy_url`, takes it from `connect`; to everybody here it is opaque, and what little must be known of it
(is it closed? has its server stopped taking writes?) is asked of the driver. What goes wrong with it reaches us through
SQLAlchemy and as the library's own errors: `errors` says which those are, and `failure_of` what one of them says.

Whoever measures knows this module and none of the families. Which one a target belongs to is decided where the target
is wired, by calling a constructor. What a family cannot know (a timeline, who it is, what it is short of) it leaves
None: absence is an answer that the core is used to. A question that comes to be asked is one more method here, and a
setting for our own sessions one more argument of `open`.

What is done to a session (limit its rest, end one that was left behind) is done to our own, and only where that is
certain. Behind a pooler it never is: what one sets there, another inherits. So nothing is done where `is_pooled` is
anything but False.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import ConnectionRole, Declared, LeftSession, SessionTable
from sidecar.core.evidence import Ending, Keepalive
from sidecar.core.identity import Identity

PlainConnection: TypeAlias = Any
"""A connection of the driver library. No type is shared by the libraries, and nobody but the driver looks into it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAnswer:
    """What a server answered that was asked whether it takes writes."""

    writable: bool
    timeline: int | None = None  # counts promotions, as of now; None where there is none, or nobody tells


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What an error that came out of a plain connection says."""

    text: str  # the driver's own error, without the statement that SQLAlchemy's would bring along
    sqlstate: str | None
    said_by_server: bool  # the server gave the reason itself; the driver alone would only know that it lost it


class WatchedConnection(Protocol):
    """An open connection that rests, is used, and ends.

    `opened_at`, `asked_at`, `used_at` and `ended_at` (infinite while it lives) are seconds of `boot_time`. The
    last question was sent at `asked_at` and its answer read at `used_at`; where this process was late to read it, the
    rest began before: a rest lasted at least from `used_at`, at most from `asked_at`. `ended` is done as soon as the
    end is noticed, with the `Ending` as its result; ends we bring about ourselves leave it pending.
    """

    @property
    def opened_at(self) -> float: ...
    @property
    def asked_at(self) -> float: ...
    @property
    def used_at(self) -> float: ...
    @property
    def ended_at(self) -> float: ...
    @property
    def ended(self) -> asyncio.Future[Ending]: ...

    @property
    def backend_pid(self) -> int | None:
        """What the server, or a pooler, said at the handshake that the pid of this session is."""

    @property
    def is_pooled(self) -> bool | None:
        """Whether somebody else answers than who shook hands. None before the first `use`, or where nobody tells."""

    @property
    def rest_limited_to_seconds(self) -> float | None:
        """After how long a rest the server ends the session because we said so; None where it has its own rule."""

    @property
    def reports_role(self) -> bool:
        """Whether the server tells with its next answer, unasked, that it has come to be primary or standby."""

    @property
    def read_only(self) -> bool:
        """Whether the server has told, unasked, that by its role or its settings nothing can be written."""

    @property
    def refusal(self) -> tuple[str, str] | None:
        """(SQLSTATE, message) of the last question, if the server refused it."""

    async def use(self, deadline_seconds: float) -> Identity:
        """Use the connection once, and learn who answered. A server that refuses has answered: as nobody known."""

    async def beat(self, deadline_seconds: float) -> None:
        """The cheapest proof of life."""

    async def check_write(self, deadline_seconds: float) -> WriteAnswer:
        """Ask whether a write would be taken, writing nothing. `deadline_seconds` are for each round trip it takes."""

    async def declared(self, deadline_seconds: float) -> Declared | None:
        """What the server says of its settings and of how full it is; None when it refuses (see `refusal`)."""

    async def activity(self, deadline_seconds: float) -> Activity | None:
        """What it shows of the application's sessions, none of ours among them; None when it refuses."""

    async def sessions(self, deadline_seconds: float) -> SessionTable | None:
        """Who holds the sessions of the server, and its limits on them; None when it refuses."""

    async def limit_rest(self, seconds: float, deadline_seconds: float) -> float | None:
        """Have the server end this session when it rests for longer: only ever sooner than is declared for it.

        To be asked before each rest: what is declared may have changed, and a shorter limit of our own is lengthened
        again. Answers `rest_limited_to_seconds`. Nothing is set through a pooler, on servers that have no such limit,
        and before the first `use`. The end it brings about is an `Ending` with `own_limit`.
        """

    async def end_session(self, left: LeftSession, deadline_seconds: float) -> bool:
        """End a session that another connection of this process left behind; whether it was told to.

        Spared is whatever is not certain to be just that: another server or backend, another role or database, work
        under way, anything that happened since we used it. Never through a pooler.
        """

    def left_behind(self) -> LeftSession | None:
        """What the server may still hold of this connection; to be asked when it has ended or was terminated.

        None where the server ended it or was told, behind a pooler, and where too little is known of it.
        """

    def terminate(self) -> None:
        """Drop the connection at once, without waiting for the peer."""


class Driver(Protocol):
    """The way to one target."""

    @property
    def sqlalchemy_url(self) -> str:
        """The URL that has SQLAlchemy choose the dialect for the connections of `connect`; it leads nowhere."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the driver library raises where a plain connection fails, as far as SQLAlchemy lets it through."""

    async def open(
        self,
        role: ConnectionRole,
        *,
        deadline_seconds: float,
        host: str | None = None,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
    ) -> WatchedConnection:
        """Open a watched connection under its role's name (see `ConnectionRole`).

        Keepalive is off unless given: on a probe it would fake immortality. `host` replaces the configured one, for
        trying each address a name resolves to; TLS still verifies the configured name.
        Raises CannotConnect, after at most `deadline_seconds`.
        """

    async def connect(
        self,
        role: ConnectionRole,
        *,
        deadline_seconds: float,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
        statement_cache: bool = True,
    ) -> PlainConnection:
        """Open a plain connection, as `open` does; without `statement_cache` it keeps no prepared statement."""

    def pid_of(self, connection: PlainConnection) -> int | None:
        """The `backend_pid` of a plain connection."""

    async def limit_rest_of(self, connection: PlainConnection, seconds: float, deadline_seconds: float) -> float | None:
        """What `limit_rest` does, for a plain connection that was just opened and that nobody uses yet.

        Raises CannotConnect where nobody answers; the connection is then dropped.
        """

    def is_closed(self, connection: PlainConnection) -> bool:
        """Whether a plain connection is known to be dead."""

    def takes_no_writes(self, connection: PlainConnection) -> bool:
        """Whether the server has told on a plain connection that nothing can be written (see `read_only`)."""

    def terminate(self, connection: PlainConnection) -> None:
        """Drop a plain connection at once, without waiting for the peer."""

    def failure_of(self, error: BaseException) -> Failure:
        """What an error says that came from the driver library or, through SQLAlchemy, from its dialect."""
