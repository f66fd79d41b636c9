"""The service as anyone would run it: its public command, configured by environment, asked over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sidecar.demo.guardian import Guardian
from sidecar.demo.server import HOST, free_port
from sidecar.remote import Unreachable, ask

_STOP_SECONDS = 10.0
_LOG_TAIL_LINES = 15


class ServiceError(RuntimeError):
    """The service died, or did not do what it had to. The message ends with what it said itself."""


class Service:
    """A running service: where it answers, and what it said."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, log: Path) -> None:
        self._process = process
        self.address = address
        self.log = log

    def must_run(self) -> None:
        """Raises ServiceError if it does not."""
        if (status := self._process.poll()) is not None:
            raise self.failure(f"the service ended with status {status}")

    def failure(self, what: str) -> ServiceError:
        """The error to raise when something about it went wrong."""
        log = "\n".join(self.log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        return ServiceError(f"{what}. Its log:\n{log}")

    async def ask(self, route: str) -> Any:
        """What it answers, read as JSON; None while nobody answers."""
        try:
            reply = await asyncio.to_thread(ask, self.address, route)
        except Unreachable:
            return None
        return json.loads(reply.text) if reply.ok else None


@contextlib.contextmanager
def run_service(settings: Mapping[str, str]) -> Iterator[Service]:
    """Run it with these settings (environment variables without their prefix), its store and its log out of the way."""
    directory = Path(tempfile.mkdtemp(prefix="sidecar-demo-"))
    guardian = Guardian(directory, "TERM")
    try:
        port = free_port()
        environment = {
            "HTTP__HOST": HOST,
            "HTTP__PORT": str(port),
            "HTTP__ADMIN_PORT": "0",
            "STORE__URL": f"sqlite+aiosqlite:///{directory / 'evidence.db'}",
            "LOG__FORMAT": "console",
            **settings,
        }
        # Settings lying about in the caller's environment are for another sidecar.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        log = directory / "sidecar.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "run"],
                env=inherited | {f"SIDECAR_{name}": value for name, value in environment.items()},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends the service in order
            )
        try:
            guardian.watch(process.pid)
            yield Service(process, f"http://{HOST}:{port}", log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guardian.watch(None)
    finally:
        guardian.close()
