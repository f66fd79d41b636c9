"""How to reach one target: address, credentials and TLS from the settings, read afresh at every connect.

Errors of the driver are translated here, and only here: a connection that could not be opened is a `CannotConnect`
that names what happened in words fit for an operator, without secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg

from sidecar.core.evidence import Keepalive
from sidecar.probes.postgresql.wire import ProbeConnection, set_socket_options
from sidecar.settings.model import TargetSettings

APPLICATION = "connection-health-sidecar"


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


# The driver trusts whoever answers: what no PostgreSQL would say makes it stumble.
_NOT_POSTGRESQL = (asyncpg.InternalClientError, AttributeError, LookupError)


class CannotConnect(Exception):  # noqa: N818 - reads better than CannotConnectError
    """No connection could be opened. `sqlstate` is None when no server answered."""

    def __init__(self, reason: str, sqlstate: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sqlstate = sqlstate


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
        raise CannotConnect(f"{key}: {file} cannot be used ({error.reason or error}): takes {takes}") from error


class Endpoint:
    """The way to one target database."""

    def __init__(self, settings: TargetSettings) -> None:
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self._context_changed: list[int] = []

    async def connect(
        self,
        role: str,
        *,
        deadline_seconds: float,
        host: str | None = None,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
        statement_cache_size: int = 100,
    ) -> asyncpg.Connection[Any]:
        """Open a driver connection under the application name `connection-health-sidecar/<role>`.

        Keepalive is off unless given: on a probe it would fake immortality. `host` replaces the configured one, for
        trying each address a name resolves to; TLS still verifies the configured name.
        Raises CannotConnect, after at most `deadline_seconds`.
        """
        target = self._settings
        try:
            async with asyncio.timeout(deadline_seconds):
                driver = await asyncpg.connect(
                    host=host or target.host,
                    port=target.port,
                    user=target.user,
                    database=target.database,
                    password=self._password(),
                    ssl=self._tls(),
                    timeout=deadline_seconds,
                    statement_cache_size=statement_cache_size,
                    server_settings={"application_name": f"{APPLICATION}/{role}"},
                )
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, *_NOT_POSTGRESQL) as error:
            raise self._cannot_connect(error, deadline_seconds) from error
        set_socket_options(driver, keepalive=keepalive, user_timeout_ms=user_timeout_ms)
        return driver

    async def open(
        self,
        role: str,
        *,
        deadline_seconds: float,
        host: str | None = None,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
    ) -> ProbeConnection:
        """Open a watched connection (see `ProbeConnection`). Raises CannotConnect."""
        driver = await self.connect(
            role, deadline_seconds=deadline_seconds, host=host, keepalive=keepalive, user_timeout_ms=user_timeout_ms,
            statement_cache_size=0,
        )  # fmt: skip
        return ProbeConnection(driver)

    def _password(self) -> str | None:
        # Read at every connect, so that a rotated credential is taken up without a restart.
        if self._settings.password_file is not None:
            try:
                return Path(self._settings.password_file).read_text("utf-8").rstrip("\r\n")
            except UnicodeDecodeError:  # its text tells the byte, which is a part of the secret
                fault = f"password_file: {self._settings.password_file} cannot be used: takes text in UTF-8"
                raise CannotConnect(fault) from None
        return None if self._settings.password is None else self._settings.password.get_secret_value()

    def _tls(self) -> ssl.SSLContext | str | bool:
        tls = self._settings.tls
        if tls.mode == "disable":
            return False
        if tls.mode == "prefer":
            return "prefer"
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

    def _cannot_connect(self, error: Exception, deadline_seconds: float) -> CannotConnect:
        where = self._settings.display
        if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.PostgresConnectionError):
            sqlstate = getattr(error, "sqlstate", None)
            return CannotConnect(f"{where} refused the connection: {error} (SQLSTATE {sqlstate})", sqlstate)
        if isinstance(error, TimeoutError):
            return CannotConnect(f"{where} did not answer within {deadline_seconds:g} s")
        if isinstance(error, FileNotFoundError | PermissionError) and error.filename:
            return CannotConnect(f"cannot read {error.filename}: {error.strerror}")
        if isinstance(error, _NOT_POSTGRESQL):
            return CannotConnect(f"{where} does not answer as PostgreSQL does")
        if isinstance(error, socket.gaierror):
            return CannotConnect(f"cannot resolve {self._settings.host}: {error.strerror}")
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.errno is not None:
            return CannotConnect(
                f"cannot connect to {where}: {os.strerror(error.errno)}"
            )  # asyncio's text is for itself
        return CannotConnect(f"cannot connect to {where}: {error}")
