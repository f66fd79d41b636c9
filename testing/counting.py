"""What a sidecar holds on a server and how often it knocks, counted by somebody else.

A promise about connections is worth what a stranger counts. So nothing here asks the sidecar: a superuser's session
looks at `pg_stat_activity` a few times a second, as a DBA with psql would (`Counter`), and the server's own log tells
of every login, every refusal and every statement (`read_log`). Both come through the server's Unix socket, while the
sidecar comes over TCP: so the log tells whose a login is even where it was refused before it had a name. `Application`
stands for what has to be left in peace; it notes each refusal and each delay itself.

`promise` says how much may be held. It is written from the promise, and shares nothing with the rule in
`sidecar.core.budget`, which has to keep it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import psycopg
import yaml
from psycopg import conninfo, sql

from sidecar.demo.guardian import Guardian
from sidecar.demo.server import HOST, PostgresServer, free_port
from sidecar.remote import Reply, Unreachable, ask

SIDECAR_NAMES = ("connhealth/", "connection-health-sidecar/")
"""What sessions of a sidecar are called on the server: now, and formerly."""

LOOK_SECONDS = 2.0
"""So long it may take a sidecar to see what changed: a look comes after 1.6 to 2 s."""

MOMENT_SECONDS = 1.2
"""Never more than one connection too many, and that for so long at most: one is opened before its predecessor's end has
reached the server, and a heartbeat tries whether others can log in."""

SLACK_SECONDS = 0.6
"""To carry out what a look led to, and for the counting itself."""

LOGGING: Mapping[str, str | int] = {
    "log_connections": "on",
    "log_disconnections": "on",
    "log_statement": "all",
    "log_line_prefix": "%n|%p|%u|%d|%e|",
}
_LINE = re.compile(r"(\d+\.\d+)\|(\d+)\|([^|]*)\|([^|]*)\|([^|]*)\|([A-Z]+): {1,2}(.*)")
_REFUSING = ("28", "3D", "42501", "53300", "57P03")
"""SQLSTATEs, or their classes, with which a login is refused. Source: PostgreSQL, appendix A."""

_STATE = """
    SELECT pid, usename, datname, application_name, coalesce(state, '') FROM pg_stat_activity
    WHERE backend_type = 'client backend'
"""


def counted_server(settings: Mapping[str, str | int] | None = None, *, password: str | None = None) -> PostgresServer:
    """A server whose log tells all, not yet running; with a Unix socket for those who are not the sidecar."""
    server = PostgresServer({**LOGGING, **(settings or {})}, password=password)
    server.settings["unix_socket_directories"] = str(server.directory)
    return server


def aside(server: PostgresServer, *, user: str | None = None, database: str | None = None) -> str:
    """Connection parameters for the Unix socket, as a superuser unless told otherwise."""
    secret = {} if server.password is None else {"password": server.password}
    return conninfo.make_conninfo(
        "",
        host=str(server.directory),
        port=server.port,
        user=user or server.user,
        dbname=database or server.database,
        **secret,
    )


def execute(server: PostgresServer, *statements: str, database: str | None = None) -> None:
    """As a superuser, each in a transaction of its own."""
    with psycopg.connect(aside(server, database=database), autocommit=True, application_name="dba") as session:
        for statement in statements:
            session.execute(statement)


def create_role(server: PostgresServer, name: str, *, limit: int = -1, password: str | None = None) -> None:
    """An ordinary role that may log in and holds no privilege."""
    secret = "" if password is None else f" PASSWORD '{password}'"
    execute(server, f"CREATE ROLE {name} LOGIN CONNECTION LIMIT {limit}{secret}")


def create_database(server: PostgresServer, name: str, *, limit: int = -1) -> None:
    execute(server, f"CREATE DATABASE {name} CONNECTION LIMIT {limit}")


def shut_down(server: PostgresServer) -> None:
    """Begin a shutdown that waits until everybody has left, and answers everybody who comes meanwhile with 57P03."""
    pid = int((server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.3)


def url(
    server: PostgresServer, *, user: str, database: str = "postgres", port: int | None = None, password: str = ""
) -> str:
    """Where a sidecar connects to, over TCP."""
    secret = password and f":{quote(password, safe='')}"
    return f"postgresql://{user}{secret}@{HOST}:{port or server.port}/{database}"


# What is promised


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What all sidecars together may hold under one limit."""

    heartbeats: int
    rest: int
    together: int


def promise(usable: int, others: int, heartbeats: int) -> Promise:
    """What is promised where `usable` sessions may be, and `others` and `heartbeats` are."""
    most_heartbeats = max(1, usable * 10 // 100)
    rest = min(24, max(2 if usable < 50 else 4, usable * 8 // 100))
    if others + heartbeats > 0.9 * usable:
        most_heartbeats, rest = 1, 0
    elif others + heartbeats > 0.8 * usable:
        rest = 2
    return Promise(heartbeats=most_heartbeats, rest=rest, together=max(0, usable - 2 - others))


# Sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    pid: int
    user: str
    database: str
    name: str
    state: str

    @property
    def role(self) -> str | None:
        """What a sidecar holds it for; None for a session that is not a sidecar's."""
        return role_of(self.name)


def role_of(name: str) -> str | None:
    for prefix in SIDECAR_NAMES:
        if name.startswith(prefix):
            return name.removeprefix(prefix).partition(" ")[0]
    return None


@dataclass(frozen=True, slots=True)
class Sample:
    """Who was there at one moment (wall clock)."""

    at: float
    sessions: tuple[Session, ...]


@dataclass(frozen=True, slots=True)
class Breach:
    """From when on, and for how long, more was held than promised; at the worst moment of it."""

    since: float
    seconds: float
    excess: int
    heartbeats: int
    rest: int
    others: int
    promised: Promise

    def __str__(self) -> str:
        return (
            f"{self.heartbeats}+{self.rest} beside {self.others} others where {self.promised.heartbeats}+"
            f"{self.promised.rest}, together {self.promised.together}, is promised, for {self.seconds:.1f} s"
        )


class Counter:
    """Looks at all sessions of a server a few times a second, from a session of its own that counts as a stranger's.

    A context manager. A server that goes away leaves a gap, and is looked at again when it is back.
    """

    def __init__(self, server: PostgresServer, *, every: float = 0.2) -> None:
        self.samples: list[Sample] = []
        self._parameters = aside(server)
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(psycopg.OperationalError):
                self._watch()
            self._over.wait(self._every)

    def _watch(self) -> None:
        with psycopg.connect(self._parameters, autocommit=True, application_name="counter") as session:
            while not self._over.wait(self._every):
                at = time.time()
                rows = session.execute(_STATE).fetchall()
                keys = ("pid", "user", "database", "name", "state")
                found = (Session(**dict(zip(keys, row, strict=True))) for row in rows)
                self.samples.append(Sample(at, tuple(found)))

    def since(self, at: float, until: float = float("inf")) -> list[Sample]:
        return [sample for sample in self.samples if at <= sample.at <= until]

    def now(self, match: Callable[[Session], object]) -> int:
        """How many there were at the last look."""
        return sum(1 for session in self.samples[-1].sessions if match(session)) if self.samples else 0

    def ours(
        self, roles: Collection[str] | None = None, *, since: float = 0.0, match: Callable[[Session], object] = bool
    ) -> list[int]:
        """How many sessions of sidecars there were, look by look."""
        return [
            sum(
                1
                for session in sample.sessions
                if session.role is not None and (roles is None or session.role in roles) and match(session)
            )
            for sample in self.since(since)
        ]

    def peaks(self, *, since: float = 0.0) -> dict[str, int]:
        """The most sessions of each role at one moment."""
        most: dict[str, int] = {}
        for sample in self.since(since):
            for role, count in Tally(session.role for session in sample.sessions if session.role).items():
                most[role] = max(most.get(role, 0), count)
        return most

    def breaches(
        self,
        usable: int,
        match: Callable[[Session], object] = bool,
        *,
        since: float = 0.0,
        until: float = float("inf"),
    ) -> list[Breach]:
        """Where more was held of the sessions that `match`, which count against a limit of `usable`, than promised.

        A look is a session of a moment and not counted; nor is a single connection too many, for a moment.
        """
        found: list[Breach] = []
        worst: Breach | None = None
        for sample in self.since(since, until):
            under = [session for session in sample.sessions if match(session)]
            beating = sum(session.role == "heartbeat" for session in under)
            rest = sum(session.role not in (None, "heartbeat", "look") for session in under)
            others = sum(session.role is None for session in under)
            allowed = promise(usable, others, beating)
            excess = max(beating - allowed.heartbeats, rest - allowed.rest, beating + rest - allowed.together)
            if excess > 0 and beating + rest:
                now = Breach(sample.at, 0.0, excess, beating, rest, others, allowed)
                if worst is None:
                    found.append(now)
                    worst = now
                worst = now if excess > worst.excess else worst
                found[-1] = replace(worst, since=found[-1].since, seconds=sample.at - found[-1].since)
            elif worst is not None:
                found[-1] = replace(found[-1], seconds=sample.at - found[-1].since)
                worst = None
        return [each for each in found if each.excess > 1 or each.seconds > MOMENT_SECONDS]

    def gone_after(self, at: float, match: Callable[[Session], object] = bool) -> float | None:
        """How many seconds after `at` the last session of a sidecar was seen; None when they are still there."""
        held = [
            sample.at
            for sample in self.since(at)
            if any(each.role is not None and match(each) for each in sample.sessions)
        ]
        if not held:
            return 0.0
        return None if held[-1] >= self.samples[-1].at else held[-1] - at

    def here_after(self, at: float, match: Callable[[Session], object]) -> float | None:
        """How many seconds after `at` the first session that matches was seen; None if there was none."""
        first = (sample.at for sample in self.since(at) if any(map(match, sample.sessions)))
        return next((seen - at for seen in first), None)


# The server's log


@dataclass(slots=True, kw_only=True)
class Login:
    """Somebody knocked (wall clock). `sqlstate` is what refused him, None where he was let in or left."""

    at: float
    pid: int
    is_local: bool  # through the Unix socket: nobody's but ours who count
    user: str = ""
    database: str = ""
    name: str = ""
    sqlstate: str | None = None
    refused_at: float | None = None
    admitted: bool = False
    ended_at: float | None = None
    ended_by: str | None = None
    statements: list[tuple[float, str]] = field(default_factory=list)
    lines: int = 0

    @property
    def role(self) -> str | None:
        return role_of(self.name)


@dataclass(slots=True)
class ServerLog:
    """What the server's log tells."""

    logins: list[Login] = field(default_factory=list)

    def foreign(self, *, since: float = 0.0, user: str | None = None) -> list[Login]:
        """Logins over TCP, those refused among them: the sidecar's, where nobody else comes that way."""
        return [
            each
            for each in self.logins
            if not each.is_local and each.at >= since and (user is None or each.user == user)
        ]

    def statements(self, pattern: str, *, since: float = 0.0) -> list[tuple[Login, str]]:
        """Statements that came over TCP and in which the pattern is found."""
        return [
            (login, statement)
            for login in self.logins
            if not login.is_local
            for at, statement in login.statements
            if at >= since and re.search(pattern, statement)
        ]


def read_log(server: PostgresServer) -> ServerLog:
    """All that the server wrote since it was started."""
    log = ServerLog()
    by_pid: dict[int, Login] = {}
    speaking: Login | None = None
    for line in server.log.read_text(errors="replace").splitlines():
        if (match := _LINE.match(line)) is None:
            if speaking is not None and line.startswith("\t"):  # the next line of a statement
                at_first, statement = speaking.statements[-1]
                speaking.statements[-1] = (at_first, f"{statement}\n{line[1:]}")
            continue
        at, pid, user, database, code, level, text = match.groups()
        speaking = None
        if text.startswith("connection received:"):
            by_pid[int(pid)] = Login(at=float(at), pid=int(pid), is_local="host=[local]" in text, lines=1)
            log.logins.append(by_pid[int(pid)])
        elif (login := by_pid.get(int(pid))) is not None:
            login.lines += not text.startswith(("statement:", "execute "))
            _tell(login, float(at), user, database, code, level, text)
            speaking = login if login.statements and login.statements[-1][0] == float(at) else None
    return log


def _tell(login: Login, at: float, user: str, database: str, code: str, level: str, text: str) -> None:
    if user not in ("", "[unknown]"):
        login.user, login.database = user, database
    if text.startswith("connection authorized:"):
        login.admitted = True
        name = re.search(r"application_name=(.*?)(?: SSL enabled.*)?$", text)
        login.name = name[1] if name else ""
    elif level == "FATAL" and code.startswith(_REFUSING):
        login.refused_at = at
        login.admitted, login.sqlstate = False, code  # which the server may say after it has logged who is authorized
    elif level == "FATAL":
        login.ended_by = code
    elif text.startswith("disconnection:"):
        login.ended_at = at
    elif text.startswith(("statement:", "execute ")):
        login.statements.append((at, text.partition(": ")[2]))


def most_in(seconds: float, times: Sequence[float]) -> int:
    """The most of these that fall into any stretch of so many seconds."""
    ordered = sorted(times)
    most = first = 0
    for last, at in enumerate(ordered):
        while at - ordered[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


# The application


class Application:
    """Wants connections, and holds them, each in a transaction, so that a pooler cannot take it back meanwhile.

    A context manager; at its end all are closed.
    """

    RETRY_SECONDS = 0.05

    def __init__(self, parameters: str, *, name: str = "application") -> None:
        self._parameters = conninfo.make_conninfo(parameters, application_name=name, connect_timeout=20)
        self.held: list[psycopg.Connection[Any]] = []
        self.refusals: list[tuple[float, str]] = []
        self.delays: list[float] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.give_back()

    @property
    def worst_delay(self) -> float:
        return max(self.delays, default=0.0)

    def take(self, more: int, *, patience: float = 10.0) -> bool:
        """Get so many more; whether they came within `patience`. Refused, it asks again and again."""
        for _ in range(more):
            wanted = time.monotonic()
            while not self._open():
                if time.monotonic() - wanted > patience:
                    self.delays.append(time.monotonic() - wanted)
                    return False
                time.sleep(self.RETRY_SECONDS)
            self.delays.append(time.monotonic() - wanted)
        return True

    def give_back(self, fewer: int | None = None) -> None:
        """So many, or all."""
        for _ in range(len(self.held) if fewer is None else fewer):
            self.held.pop().close()

    def _open(self) -> bool:
        try:
            connection = psycopg.connect(self._parameters)
        except psycopg.OperationalError as error:
            self.refusals.append((time.time(), _sqlstate(error)))
            return False
        try:
            connection.execute("SELECT 1")
        except psycopg.OperationalError as error:
            self.refusals.append((time.time(), _sqlstate(error)))
            connection.close()
            return False
        self.held.append(connection)
        return True


def _sqlstate(error: psycopg.OperationalError) -> str:
    """libpq keeps no code of what refused a login, only the words."""
    text = str(error)
    return error.sqlstate or ("53300" if "too many" in text or "slots are reserved" in text else text.strip())


# The sidecar


class Sidecar:
    """A running `sidecar run`."""

    def __init__(self, process: subprocess.Popen[bytes], base: str, admin: str, log: Path) -> None:
        self.process, self.base, self.admin, self._log = process, base, admin, log
        self.started_at = time.time()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def ask(self, route: str, method: str = "GET", *, admin: bool = False) -> Reply:
        return ask(self.admin if admin else self.base, route, method=method)

    def json(self, route: str) -> Any:
        return json.loads(self.ask(route).text)

    def until(self, route: str, holds: Callable[[Any], object], seconds: float = 30.0) -> Any:
        """The first answer of which this holds; raises TimeoutError with the last one."""
        deadline = time.monotonic() + seconds
        answer = None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the sidecar ended with status {self.process.returncode}:\n{self.log[-3000:]}")
            with contextlib.suppress(Unreachable, ValueError):
                if holds(answer := self.json(route)):
                    return answer
            time.sleep(0.1)
        raise TimeoutError(f"{route}: {answer}\n{self.log[-3000:]}")

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def sidecar(settings: Mapping[str, Any]) -> Iterator[Sidecar]:
    """Run it with these settings, as in a YAML file; what it listens on and where it stores is added."""
    directory = Path(tempfile.mkdtemp(prefix="sidecar-counted-"))
    guardian = Guardian(directory, "KILL")
    try:
        port, admin_port = free_port(), free_port()
        config = directory / "sidecar.yaml"
        own = {
            "http": {"host": HOST, "port": port, "admin_port": admin_port},
            "store": {"url": f"sqlite+aiosqlite:///{directory / 'evidence.db'}"},
        }
        config.write_text(yaml.safe_dump({**own, **settings}))
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
        log = directory / "sidecar.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "run", "--config", str(config)],
                env=inherited,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        guardian.watch(process.pid)
        running = Sidecar(process, f"http://{HOST}:{port}", f"http://127.0.0.1:{admin_port}", log)
        try:
            running.until("/startupz", lambda answer: answer.get("started"))
            yield running
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            guardian.watch(None)
    finally:
        guardian.close()


# A pooler's own table


class PoolerCounter:
    """Samples PgBouncer's table of clients over its console: who is served, and who waits."""

    def __init__(self, base: str, *, every: float = 0.2) -> None:
        self.samples: list[tuple[float, tuple[tuple[str, str], ...]]] = []  # at, (name, state) of each client
        self._base, self._every = base, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pooler-counter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with psycopg.connect(f"{self._base}pgbouncer", autocommit=True, prepare_threshold=None) as console:
            while not self._over.wait(self._every):
                cursor = psycopg.ClientCursor(console)
                cursor.execute(sql.SQL("SHOW CLIENTS"))
                columns = [column.name for column in cursor.description or ()]
                rows = [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]
                seen = tuple((row["application_name"] or "", row["state"]) for row in rows)
                self.samples.append((time.time(), seen))

    def ours(self, state: str | None = None, *, since: float = 0.0) -> list[int]:
        """Clients of sidecars, in this state where one is given, look by look."""
        return [
            sum(1 for name, is_in in seen if role_of(name) is not None and state in (None, is_in))
            for at, seen in self.samples
            if at >= since
        ]

    def longest_above(self, count: int, state: str, *, since: float = 0.0) -> float:
        """For how many seconds at a stretch more clients of sidecars than this were in that state."""
        longest, began = 0.0, None
        for at, seen in self.samples:
            above = at >= since and sum(1 for name, is_in in seen if role_of(name) and is_in == state) > count
            began = (at if began is None else began) if above else None
            longest = max(longest, 0.0 if began is None else at - began)
        return longest
