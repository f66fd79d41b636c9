"""Connecting, and giving it up half-way."""

from __future__ import annotations

import asyncio
import gc
import logging
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sidecar.probes.postgresql.endpoint import CannotConnect, Endpoint, forgive_abandoned_connects
from sidecar.settings.model import TargetSettings


async def given_up_after_each_step(endpoint: Endpoint) -> None:
    """Cancel a connect after one step of the event loop, then one after two, … until well past the TCP handshake."""
    for steps in range(30):
        connecting = asyncio.create_task(endpoint.connect("probe", deadline_seconds=5))
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
    await given_up_after_each_step(Endpoint(mute))
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
        endpoint = Endpoint(TargetSettings.model_validate({"url": mute.url, **settings}))
        with pytest.raises(CannotConnect) as refused:
            await endpoint.connect("probe", deadline_seconds=60)
        assert complaint in refused.value.reason
        assert "0xff" not in refused.value.reason


def test_a_name_that_leads_nowhere_is_told() -> None:
    endpoint = Endpoint(TargetSettings(url="postgresql://app@db.internal/app"))
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert endpoint._cannot_connect(unknown, 1.0).reason == "cannot resolve db.internal: Name or service not known"
