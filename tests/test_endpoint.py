"""Connecting, and giving it up half-way."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from sidecar.core.budget import ConnectionRole
from sidecar.probes.errors import Attempt, CannotConnect, translated
from sidecar.probes.postgresql.connect import PostgresDriver, forgive_abandoned_connects
from sidecar.probes.postgresql.errors import CANNOT_CONNECT
from sidecar.settings.model import TargetSettings


async def given_up_after_each_step(driver: PostgresDriver) -> None:
    """Cancel a connect after one step of the event loop, then one after two, … until well past the TCP handshake."""
    for steps in range(30):
        connecting = asyncio.create_task(driver.connect(ConnectionRole.PROBE, deadline_seconds=5))
        for _ in range(steps):
            await asyncio.sleep(0)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await asyncio.sleep(0.01)  # the loss is told to whoever holds the connection
        gc.collect()


@pytest.fixture
async def mute() -> Any:
    """A port that takes connections and says nothing."""
    writers = []
    async with await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0) as server:
        yield TargetSettings(url=f"postgresql://app@127.0.0.1:{server.sockets[0].getsockname()[1]}/app")
        for writer in writers:
            writer.close()


async def test_a_connect_given_up_at_any_moment_is_no_news(
    mute: TargetSettings, caplog: pytest.LogCaptureFixture
) -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    await given_up_after_each_step(PostgresDriver(mute))
    assert reported, "asyncpg has mended it: the handler can go"
    for context in reported:
        forgive_abandoned_connects(loop, context)
    assert caplog.records == []


async def test_all_other_troubles_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(forgive_abandoned_connects)

    async def lose() -> None:
        raise ConnectionError("of a task of ours")

    loop.create_future().set_exception(ValueError("no loss of a connection"))
    failing = asyncio.create_task(lose())
    await asyncio.wait({failing})
    del failing
    gc.collect()
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info and record.levelno == logging.ERROR]
    assert sorted(told) == ["no loss of a connection", "of a task of ours"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
async def test_a_file_that_cannot_be_used_is_named(mute: TargetSettings, tmp_path: Path) -> None:
    """OpenSSL's own words would not tell which; and it would ask for an encrypted key's password on the terminal."""
    key, certificate, text = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "text"
    made = f"openssl req -x509 -subj /CN=app -newkey rsa:2048 -passout pass:x -keyout {key} -out {certificate}"
    await asyncio.to_thread(subprocess.run, made.split(), check=True, capture_output=True)
    text.write_bytes(b"no PEM \xff")
    encrypted = {"mode": "require", "cert_file": certificate, "key_file": key}
    for settings, complaint in (
        ({"tls": {"mode": "verify-full", "ca_file": text}}, f"tls.ca_file: {text} cannot be used"),
        ({"tls": {"mode": "require", "cert_file": text}}, f"tls.cert_file: {text} cannot be used"),
        ({"tls": encrypted}, f"tls.cert_file: {certificate} cannot be used"),
        ({"password_file": text}, f"password_file: {text} cannot be used: takes text in UTF-8"),
    ):
        driver = PostgresDriver(TargetSettings.model_validate({"url": mute.url, **settings}))
        with pytest.raises(CannotConnect) as refused:
            await driver.connect(ConnectionRole.PROBE, deadline_seconds=60)
        assert complaint in refused.value.reason
        assert "0xff" not in refused.value.reason


ATTEMPT = Attempt(where="db.internal:5432/app", host="db.internal", deadline_seconds=1.5)


def told(error: Exception) -> CannotConnect:
    with pytest.raises(CannotConnect) as failed, translated(CANNOT_CONNECT, ATTEMPT):
        raise error
    assert failed.value.__cause__ is error
    return failed.value


def test_a_name_that_leads_nowhere_is_told() -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert told(unknown).reason == "cannot resolve db.internal: Name or service not known"


@pytest.mark.parametrize(
    ("error", "reason", "name", "sqlstate"),
    [
        (TimeoutError(), "db.internal:5432/app did not answer within 1.5 s", "TimeoutError", None),
        (
            ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 5432)"),
            "cannot connect to db.internal:5432/app: Connection refused",
            "ConnectionRefusedError",
            None,
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/run/password"),
            "cannot read /run/password: No such file or directory",
            "PasswordFile",
            None,
        ),
        (
            PermissionError(errno.EPERM, "of a socket"),
            "cannot connect to db.internal:5432/app: Operation not permitted",
            "PermissionError",
            None,
        ),
        (
            ssl.SSLCertVerificationError(1, "self-signed certificate"),
            "cannot connect to db.internal:5432/app: self-signed certificate",
            "SSLCertVerificationError",
            None,
        ),
        (OSError("two"), "cannot connect to db.internal:5432/app: two", "OSError", None),
        (
            asyncpg.InvalidPasswordError("password authentication failed"),
            "db.internal:5432/app refused the connection: password authentication failed (SQLSTATE 28P01)",
            "InvalidPasswordError",
            "28P01",
        ),
        (
            asyncpg.ConnectionDoesNotExistError("connection was closed"),
            "cannot connect to db.internal:5432/app: connection was closed",
            "ConnectionDoesNotExistError",
            None,
        ),
        (
            asyncpg.InternalClientError("?"),
            "db.internal:5432/app does not answer as PostgreSQL does",
            "InternalClientError",
            None,
        ),
        (KeyError("R"), "db.internal:5432/app does not answer as PostgreSQL does", "KeyError", None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_is_told_by_the_row_of_its_nearest_base(
    error: Exception, reason: str, name: str, sqlstate: str | None
) -> None:
    failure = told(error)
    assert (failure.reason, failure.name, failure.sqlstate) == (reason, name, sqlstate)


def test_a_fault_in_the_program_passes_through() -> None:
    with pytest.raises(TypeError), translated(CANNOT_CONNECT, ATTEMPT):
        raise TypeError


def test_what_a_server_said_is_told_apart_from_what_the_driver_concluded() -> None:
    """Under SQLAlchemy's error is its dialect's, and under that the driver's; only a server's own has a severity."""
    said = asyncpg.PostgresError.new({"C": "57P01", "S": "FATAL", "V": "FATAL", "M": "terminating connection"})
    for own, by_server in ((said, True), (asyncpg.ConnectionDoesNotExistError("closed"), False)):
        adapted = RuntimeError("the dialect's words")
        adapted.__cause__ = own
        wrapped = DBAPIError("SELECT 1", {}, adapted)
        wrapped.__cause__ = adapted
        failure = PostgresDriver(TargetSettings(url="postgresql://app@db.internal/app")).failure_of(wrapped)
        assert (failure.text, failure.sqlstate) == (f"{type(own).__name__}: {own}", own.sqlstate)
        assert failure.said_by_server is by_server
