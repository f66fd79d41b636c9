"""What each box really does to a connection, seen through a plain socket; later tests build on these facts.

All rests that say something about limits are taken at the same time.
"""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from typing import Any, Literal

import asyncpg
import pytest

from testing.lab import Endpoint, Lab, LabUnavailable, Path, boxes

pytestmark = pytest.mark.lab
if sys.platform != "linux":
    pytest.skip("the lab is made of Linux network namespaces", allow_module_level=True)

LIMIT = 4  # seconds
SHORT, LONG = LIMIT - 1, LIMIT + 1

SocketOptions = Sequence[tuple[int, int, int]]
KEEPALIVE: SocketOptions = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
]
USER_TIMEOUT: SocketOptions = [(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 3000)]
SERVER_KEEPALIVE = "-c tcp_keepalives_idle=1 -c tcp_keepalives_interval=1"


def pooled_idle_session_timeout(
    path: Path, limit_seconds: float, *, pool_mode: Literal["session", "transaction"]
) -> Endpoint:
    """A pooler without a limit of its own before a database with one."""
    limited = boxes.idle_session_timeout(path, limit_seconds)
    return replace(boxes.pgbouncer(path, 0, pool_mode=pool_mode), database=limited.database)


BOXES: Mapping[str, Callable[[Path, int], Endpoint]] = {
    "none": lambda path, _: path.endpoint,
    "conntrack drop": partial(boxes.conntrack, answer="drop"),
    "conntrack reset": partial(boxes.conntrack, answer="reset"),
    "haproxy timeout client": partial(boxes.haproxy, timeout="client"),
    "haproxy timeout server": partial(boxes.haproxy, timeout="server"),
    "nginx": boxes.nginx,
    "haproxy before conntrack": boxes.haproxy_before_conntrack,
    "pgbouncer transaction": partial(boxes.pgbouncer, pool_mode="transaction"),
    "pgbouncer session": partial(boxes.pgbouncer, pool_mode="session"),
    "idle_session_timeout": boxes.idle_session_timeout,
    "session pooler before idle_session_timeout": partial(pooled_idle_session_timeout, pool_mode="session"),
    "transaction pooler before idle_session_timeout": partial(pooled_idle_session_timeout, pool_mode="transaction"),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What came over a connection, and when, counted from its last use."""

    how: str  # answer | silence | fin | rst | timeout (the kernel gave up)
    seconds: float
    messages: tuple[tuple[str, str, str], ...] = ()  # severity, SQLSTATE, text


class Client:
    """As much of PostgreSQL's protocol as it takes to ask something, on a socket with nothing else around it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._used = time.monotonic()

    async def rest(self, seconds: float) -> Seen:
        """Listen until `seconds` after the last use, or the end."""
        return await self._listen(self._used + seconds)

    async def ask(self, deadline: float = 2) -> Seen:
        """Send a query and await the answer."""
        self._used = time.monotonic()
        return await self._exchange(_message(b"Q", b"SELECT 1\0"), deadline)

    async def start(self, database: str, options: str) -> Seen:
        words = ["user", "postgres", "database", database, *(["options", options] if options else []), ""]
        return await self._exchange(_message(b"", b"\0\3\0\0" + "\0".join(words).encode() + b"\0"), 10)

    async def _exchange(self, request: bytes, deadline: float) -> Seen:
        await asyncio.get_running_loop().sock_sendall(self._socket, request)
        seen = await self._listen(time.monotonic() + deadline)
        if seen.how == "answer":
            self._used = time.monotonic()
        return seen

    async def _listen(self, until: float) -> Seen:
        how, received = "", b""
        while not how:
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    data = await asyncio.get_running_loop().sock_recv(self._socket, 65536)
            except ConnectionResetError:
                how = "rst"
            except TimeoutError as error:
                how = "timeout" if error.errno == errno.ETIMEDOUT else "silence"
            else:
                received += data
                if not data:
                    how = "fin"
                elif received.endswith(b"Z\0\0\0\5I"):
                    how = "answer"
        return Seen(how, time.monotonic() - self._used, tuple(_errors(received)))


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _errors(received: bytes) -> Iterable[tuple[str, str, str]]:
    while received:
        kind, size = received[:1], int.from_bytes(received[1:5], "big")
        if kind == b"E":
            fields = {field[:1]: field[1:].decode() for field in received[5 : size + 1].split(b"\0")}
            yield fields[b"S"], fields[b"C"], fields[b"M"]
        received = received[size + 1 :]


@asynccontextmanager
async def connected(
    endpoint: Endpoint, socket_options: SocketOptions = (), options: str = "", *, asked: bool = True
) -> AsyncIterator[Client]:
    with socket.socket() as sock:
        sock.setblocking(False)
        for option in socket_options:
            sock.setsockopt(*option)
        async with asyncio.timeout(60):
            await asyncio.get_running_loop().sock_connect(sock, (endpoint.host, endpoint.port))
        client = Client(sock)
        assert (await client.start(endpoint.database, options)).how == "answer"
        if asked:
            assert (await client.ask()).how == "answer"
        yield client


AGEING: Mapping[str, Callable[[Path, int], Endpoint]] = {
    "lifetime drop": partial(boxes.lifetime, answer="drop"),
    "lifetime reset": partial(boxes.lifetime, answer="reset"),
}

Lives = Mapping[tuple[str, str], list[Seen]]


@pytest.fixture(scope="module")
def lives(lab: Lab) -> Lives:
    """What connections lived through, by box and by what was done to them, all at the same time."""
    server = lab.postgres()
    endpoints = {name: box(lab.path(server), LIMIT) for name, box in {**BOXES, **AGEING}.items()}

    async def live(box: str, *rests: float, deadline: float = 2, **connection: Any) -> list[Seen]:
        """Rest and ask in turn, until the end of the connection."""
        seen = []
        async with connected(endpoints[box], **connection) as client:
            for seconds in rests:
                seen.append(await client.rest(seconds))
                if seen[-1].how != "silence":
                    break
                seen.append(await client.ask(deadline))
                if seen[-1].how != "answer":
                    break
        return seen

    async def live_all() -> Lives:
        lives = {
            **{("twice short", box): live(box, SHORT, SHORT) for box in BOXES},
            **{("long", box): live(box, LONG) for box in BOXES},
            **{("long with keepalive", box): live(box, LONG, socket_options=KEEPALIVE) for box in BOXES},
            **{
                ("long with user timeout", box): live(box, LONG, deadline=6, socket_options=USER_TIMEOUT)
                for box in ("conntrack drop", "haproxy before conntrack")
            },
            ("long with server keepalive", "conntrack drop"): live("conntrack drop", LONG, options=SERVER_KEEPALIVE),
            ("long, never asked", "pgbouncer session"): live("pgbouncer session", LONG, asked=False),
            **{("busy", box): live(box, *[LIMIT / 10] * 20) for box in AGEING},
        }
        return dict(zip(lives, await asyncio.gather(*lives.values()), strict=True))

    return asyncio.run(live_all())


@pytest.mark.parametrize("box", BOXES)
def test_rests_below_the_limit_are_survived_and_each_use_starts_the_timer_anew(lives: Lives, box: str) -> None:
    assert [seen.how for seen in lives["twice short", box]] == ["silence", "answer"] * 2


@pytest.mark.parametrize(
    ("box", "seen_in_turn"),
    [
        ("none", ["silence", "answer"]),
        ("conntrack drop", ["silence", "silence"]),
        ("conntrack reset", ["silence", "rst"]),
        ("haproxy before conntrack", ["silence", "silence"]),
        # While a server connection is linked to it, PgBouncer does not look at the client's idle time, and in session
        # mode the first query links it for good.
        ("pgbouncer session", ["silence", "answer"]),
        # The pooler loses its server connection and takes another: what SHOW declares is not the client's limit.
        ("transaction pooler before idle_session_timeout", ["silence", "answer"]),
    ],
)
def test_beyond_the_limit_only_use_tells(lives: Lives, box: str, seen_in_turn: list[str]) -> None:
    assert [seen.how for seen in lives["long", box]] == seen_in_turn


@pytest.mark.parametrize(
    ("box", "messages"),
    [
        ("haproxy timeout client", ()),
        ("haproxy timeout server", ()),
        ("nginx", ()),
        ("pgbouncer transaction", (("FATAL", "08P01", "client_idle_timeout"),)),
        ("idle_session_timeout", (("FATAL", "57P05", "terminating connection due to idle-session timeout"),)),
        (
            "session pooler before idle_session_timeout",
            (
                ("FATAL", "57P05", "terminating connection due to idle-session timeout"),
                ("FATAL", "08P01", "server conn crashed?"),
            ),
        ),
    ],
)
def test_at_the_limit_the_end_is_seen_at_rest(lives: Lives, box: str, messages: tuple[object, ...]) -> None:
    (seen,) = lives["long", box]
    assert (seen.how, seen.messages) == ("fin", messages)
    assert seen.seconds == pytest.approx(LIMIT, abs=0.8)  # PgBouncer looks three times a second


def test_in_session_mode_the_limit_of_the_pooler_is_for_clients_that_never_asked(lives: Lives) -> None:
    (seen,) = lives["long, never asked", "pgbouncer session"]
    assert (seen.how, seen.messages) == ("fin", (("FATAL", "08P01", "client_idle_timeout"),))
    assert seen.seconds == pytest.approx(LIMIT, abs=0.8)


@pytest.mark.parametrize(("box", "end"), [("lifetime drop", "silence"), ("lifetime reset", "rst")])
def test_a_lifetime_limit_ends_a_connection_however_busy(lives: Lives, box: str, end: str) -> None:
    *_, last = seen = lives["busy", box]
    assert [seen.how for seen in seen[:-1]] == ["silence", "answer"] * (len(seen) // 2 - 1) + ["silence"]
    assert last.how == end
    age = sum(rest.seconds for rest in seen[::2])
    assert age == pytest.approx(LIMIT, abs=0.8)


@pytest.mark.parametrize("box", BOXES)
def test_tcp_keepalive_holds_a_forgetful_router_open_and_changes_nothing_elsewhere(lives: Lives, box: str) -> None:
    seen = [seen.how for seen in lives["long with keepalive", box]]
    if box in ("conntrack drop", "conntrack reset"):
        assert seen == ["silence", "answer"]
    else:
        assert seen == [seen.how for seen in lives["long", box]]


def test_keepalives_of_the_server_hide_the_limit(lives: Lives) -> None:
    assert [seen.how for seen in lives["long with server keepalive", "conntrack drop"]] == ["silence", "answer"]


def test_tcp_user_timeout_ends_the_hang_unless_a_proxy_acknowledges(lives: Lives) -> None:
    at_rest, in_use = lives["long with user timeout", "conntrack drop"]
    assert (at_rest.how, in_use.how) == ("silence", "timeout")
    assert 3 <= in_use.seconds < 5
    assert [seen.how for seen in lives["long with user timeout", "haproxy before conntrack"]] == ["silence"] * 2


async def test_a_partition_is_silent_and_can_be_healed(lab: Lab) -> None:
    path = lab.path(lab.postgres())
    connection = await asyncpg.connect(path.endpoint.dsn)
    async with connected(path.endpoint) as client:
        path.cut()
        assert (await client.ask(deadline=0.5)).how == "silence"
        with pytest.raises(TimeoutError):
            await asyncpg.connect(path.endpoint.dsn, timeout=0.5)
        with pytest.raises(TimeoutError):  # it waits for the server's goodbye
            await asyncio.wait_for(connection.close(), timeout=0.5)
        assert path.server.sql("SELECT 1") == "1"
        path.heal()
        assert (await client.rest(10)).how == "answer"
    await (await asyncpg.connect(path.endpoint.dsn, timeout=2)).close()


async def test_a_moved_address_leads_to_the_other_server_and_resets_old_connections(lab: Lab) -> None:
    primary, other = lab.postgres(cluster_name="primary"), lab.postgres(cluster_name="other")
    path = lab.path(primary, other)
    async with connected(path.endpoint) as client:
        await client.rest(0.2)  # the kernel's delayed acknowledgement of the last answer must not reach the other one
        path.move(other)
        assert (await client.rest(0.5)).how == "silence"
        assert (await client.ask()).how == "rst"
    connection = await asyncpg.connect(path.endpoint.dsn)
    assert await connection.fetchval("SHOW cluster_name") == "other"
    await connection.close()


async def test_aborted_connections_learn_of_it_at_rest(lab: Lab) -> None:
    path = lab.path(lab.postgres())
    async with connected(path.endpoint) as client:
        path.server.namespace.abort_connections()
        assert (await client.rest(2)).how == "rst"
    await (await asyncpg.connect(path.endpoint.dsn)).close()


async def test_a_transaction_pooler_betrays_itself_by_changing_backends(lab: Lab) -> None:
    endpoint = pooled_idle_session_timeout(lab.path(lab.postgres()), 60, pool_mode="transaction")
    caching = await asyncpg.connect(endpoint.dsn)
    plain, other = [await asyncpg.connect(endpoint.dsn, statement_cache_size=0) for _ in range(2)]
    which = "SELECT pg_backend_pid()"
    first = await plain.fetchval(which)
    assert await caching.fetchval(which) == first
    async with other.transaction():
        assert await other.fetchval(which) == first
        assert await plain.fetchval(which) != first
        with pytest.raises(asyncpg.InvalidSQLStatementNameError):  # prepared, but over there
            await caching.fetchval(which)
        await caching.execute(which)  # the simple protocol prepares nothing
    assert await plain.fetchval("SHOW idle_session_timeout") == "1min"  # the client outlives it, as seen above
    for connection in caching, plain, other:
        await connection.close()


@pytest.mark.usefixtures("lab")  # to be skipped without one
def test_tests_that_are_killed_leave_nothing_running() -> None:
    script = """
import os, signal
from testing.lab import Lab, boxes
lab = Lab()
path = lab.path(lab.postgres())
boxes.haproxy(path, 60, timeout="client")
namespaces = [os.stat(str(namespace)).st_ino for namespace in (path.router, path.server.namespace)]
print(lab.directory, path.name, *namespaces, flush=True)
signal.pause()
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as tests:
        assert tests.stdout is not None
        directory, name, *namespaces = tests.stdout.readline().split()
        there = [name in interfaces(), *(bool(processes_in(int(inode))) for inode in namespaces)]
        tests.kill()
    shutil.rmtree(directory)
    assert there == [True, True, True]
    deadline = time.monotonic() + 10
    while name in interfaces() or any(processes_in(int(inode)) for inode in namespaces):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


def processes_in(namespace: int) -> list[str]:
    found = []
    for process in FilePath("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if (process / "ns" / "net").stat().st_ino == namespace:
                found.append(process.name)
    return found


def test_a_lab_that_cannot_be_built_says_why(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(lab.directory))
    with pytest.raises(LabUnavailable, match="not installed: ip, ss, "):
        Lab()
    os.seteuid(65534)
    try:
        with pytest.raises(LabUnavailable, match="root"):
            Lab()
    finally:
        os.seteuid(0)
