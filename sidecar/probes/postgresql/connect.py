"""The way to one PostgreSQL target: address, credentials and TLS from the settings, read afresh at every connect."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Keepalive
from sidecar.probes.driver import Failure, PlainConnection
from sidecar.probes.errors import PASSWORD_FILE, Attempt, CannotConnect, translated
from sidecar.probes.postgresql import queries
from sidecar.probes.postgresql.errors import CANNOT_CONNECT, ERRORS, failure_of
from sidecar.probes.postgresql.sockets import set_socket_options, transport_of
from sidecar.probes.postgresql.wire import PostgresConnection, ask, pid_of, reported, takes_no_writes, timeout_ms
from sidecar.settings.model import TargetSettings

STATEMENTS_CACHED = 100
"""Prepared statements kept on a connection, asyncpg's own default."""


def forgive_abandoned_connects(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An exception handler for the event loop that leaves out what asyncpg leaves behind.

    Where a connect is given up in the moment its TCP connection stands, asyncpg never awaits the future that is then
    told of the loss, and asyncio reports that as an error. Whoever gave it up knows; all else is reported as ever.
    """
    lost = isinstance(context.get("exception"), ConnectionError)
    if not (
        lost and isinstance(context.get("future"), asyncio.Future) and not isinstance(context["future"], asyncio.Task)
    ):
        loop.default_exception_handler(context)


LogIn = Callable[..., Awaitable["asyncpg.Connection[Any]"]]
"""`asyncpg.connect` with all it needs but `ssl`."""

_DECLINED = "rejected SSL upgrade"
"""What asyncpg says where a server speaks no TLS; it has no type of error for that."""


def _unverified() -> ssl.SSLContext:
    """TLS with whoever answers: what `prefer` asks for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


class _NamedContext(ssl.SSLContext):
    """Verifies the configured name whatever address was dialled: the driver would verify the address."""

    server_name: str

    def wrap_bio(self, incoming: Any, outgoing: Any, server_side: bool = False, server_hostname: Any = None,
                 session: Any = None) -> ssl.SSLObject:  # fmt: skip
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name, session)


@contextlib.contextmanager
def _naming(key: str, file: Path, takes: str) -> Iterator[None]:
    """What OpenSSL says of a file names neither it nor the setting."""
    try:
        yield
    except ssl.SSLError as error:
        reason = f"{key}: {file} cannot be used ({error.reason or error}): takes {takes}"
        raise CannotConnect(reason, name=type(error).__name__) from error


class PostgresDriver:
    """A `sidecar.probes.driver.Driver` for PostgreSQL and what speaks its protocol, poolers included."""

    sqlalchemy_url = "postgresql+asyncpg://"
    errors = ERRORS

    def __init__(self, settings: TargetSettings) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self._context_changed: list[int] = []
        # Mode `prefer`: whether the server is taken to offer TLS (None: not known), and whether a login has shown it.
        self._offers_tls: bool | None = None
        self._offer_seen = False

    async def open(
        self,
        role: ConnectionRole,
        *,
        deadline_seconds: float,
        host: str | None = None,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
    ) -> PostgresConnection:
        plain = await self.connect(
            role, deadline_seconds=deadline_seconds, host=host, keepalive=keepalive, user_timeout_ms=user_timeout_ms,
            statement_cache=False,
        )  # fmt: skip
        return PostgresConnection(plain)

    async def connect(
        self,
        role: ConnectionRole,
        *,
        deadline_seconds: float,
        host: str | None = None,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
        statement_cache: bool = True,
    ) -> asyncpg.Connection[Any]:
        target, name = self._settings, role.session_name
        with translated(CANNOT_CONNECT, self._attempt(deadline_seconds)):
            async with asyncio.timeout(deadline_seconds):
                log_in = partial(
                    asyncpg.connect,
                    host=host or target.host,
                    port=target.port,
                    user=target.user,
                    database=target.database,
                    password=self._password(),
                    timeout=deadline_seconds,
                    statement_cache_size=STATEMENTS_CACHED if statement_cache else 0,
                    server_settings={"application_name": name},
                )
                connection = await (
                    self._prefer_tls(log_in) if target.tls.mode == "prefer" else log_in(ssl=self._tls())
                )
        set_socket_options(connection, keepalive=keepalive, user_timeout_ms=user_timeout_ms)
        return connection

    def pid_of(self, connection: PlainConnection) -> int | None:
        return pid_of(connection)

    async def limit_rest_of(self, connection: PlainConnection, seconds: float, deadline_seconds: float) -> float | None:
        pid, milliseconds = pid_of(connection), timeout_ms(seconds)
        if pid is None:
            return None
        with translated(CANNOT_CONNECT, self._attempt(deadline_seconds)):
            row = await ask(connection, queries.limits_of_rest(pid, milliseconds)[-1], deadline_seconds)
        return queries.own_limit(row, milliseconds)

    def is_closed(self, connection: PlainConnection) -> bool:
        return bool(connection.is_closed())

    def takes_no_writes(self, connection: PlainConnection) -> bool:
        return takes_no_writes(reported(connection))

    def terminate(self, connection: PlainConnection) -> None:
        connection.terminate()

    def failure_of(self, error: BaseException) -> Failure:
        return failure_of(error)

    def _attempt(self, deadline_seconds: float) -> Attempt:
        target = self._settings
        return Attempt(where=target.display, host=target.host, deadline_seconds=deadline_seconds)

    def _password(self) -> str | None:
        # Read at every connect, so that a rotated credential is taken up without a restart.
        if self._settings.password_file is not None:
            try:
                return Path(self._settings.password_file).read_text("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:  # its text tells the byte, which is a part of the secret
                fault = f"password_file: {self._settings.password_file} cannot be used: takes text in UTF-8"
                raise CannotConnect(fault, name=PASSWORD_FILE) from None
        return None if self._settings.password is None else self._settings.password.get_secret_value()

    async def _prefer_tls(self, log_in: LogIn) -> asyncpg.Connection[Any]:
        """Log in with TLS where the server offers it, without where it does not, and once where it refuses.

        asyncpg, like libpq, tries again without TLS whatever was refused: each refusal would be two in the server's
        log, and two for whatever counts failed logins there. So once it is known that there is TLS it is asked for
        alone. A first refusal was of both; from then on TLS is taken for granted until the server declines it. After
        logins with TLS, `pg_hba.conf` may come to ask for none: then both are tried again.
        """
        if self._offers_tls:
            try:
                return await log_in(ssl=_unverified())
            except asyncpg.InvalidAuthorizationSpecificationError as refused:
                if self._offer_seen and not isinstance(refused, asyncpg.InvalidPasswordError):
                    self._offers_tls, self._offer_seen = None, False
                raise
            except ConnectionError as declined:
                if _DECLINED not in str(declined):
                    raise
                self._offers_tls = self._offer_seen = False
        try:
            connection = await log_in(ssl="prefer")
        except asyncpg.PostgresError:
            if self._offers_tls is None:
                self._offers_tls = True
            raise
        self._offers_tls = self._offer_seen = transport_of(connection).get_extra_info("ssl_object") is not None
        return connection

    def _tls(self) -> ssl.SSLContext | bool:
        tls = self._settings.tls
        if tls.mode == "disable":
            return False
        # Building a context parses every CA of the system: it is kept until one of its files changes.
        files = [Path(name) for name in (tls.ca_file, tls.cert_file, tls.key_file) if name is not None]
        changed = [file.stat().st_mtime_ns for file in files]
        if self._context is None or changed != self._context_changed:
            self._context, self._context_changed = self._build_context(), changed
        return self._context

    def _build_context(self) -> ssl.SSLContext:
        tls = self._settings.tls
        context = _NamedContext(ssl.PROTOCOL_TLS_CLIENT)
        context.server_name = self._settings.host
        if tls.ca_file is None:
            context.load_default_certs()
        else:
            with _naming("tls.ca_file", tls.ca_file, "certificates in PEM"):
                context.load_verify_locations(tls.ca_file)
        if tls.mode == "require":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif tls.mode == "verify-ca":
            context.check_hostname = False
        if tls.cert_file is not None:
            # Without a password OpenSSL asks for that of an encrypted key on the terminal, and all stands still.
            with _naming("tls.cert_file", tls.cert_file, "a certificate in PEM and its key, not encrypted"):
                context.load_cert_chain(tls.cert_file, tls.key_file, password="")
        return context
