"""The ground truth of every other test: servers that end as told, paths that fail as told and when told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest

from sidecar.demo.path import FaultyPath
from sidecar.demo.server import HOST, PostgresServer, ServerError

pytestmark = pytest.mark.real_time

LIMIT = 1.0  # seconds; rests of half of it must survive, rests of twice as much must not
PATIENCE = 60.0  # seconds; only a fault takes so long
SSL_REQUEST = struct.pack("!ii", 8, 80877103)  # answered by one byte, the shortest use there is
LOST = (OSError, asyncpg.ConnectionDoesNotExistError)


class Client:
    """A connection to the server through the path, and what it noticed at rest."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.used = time.monotonic()
        self.ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        connection.add_termination_listener(lambda _: self.ended.set_result(time.monotonic()))

    async def use(self, timeout: float = PATIENCE) -> int:
        """The port of the server that answers. TimeoutError: no answer. LOST: an answer, namely RST or FIN."""
        port = await asyncio.wait_for(self.connection.fetchval("SELECT inet_server_port()"), timeout)
        self.used = time.monotonic()
        return port

    async def rest(self, seconds: float) -> None:
        await asyncio.sleep(self.used + seconds - time.monotonic())


@pytest.fixture
async def connect():
    """`await connect(server, path)`: a Client."""
    opened: list[Client] = []

    async def connect(server: PostgresServer, path: FaultyPath) -> Client:
        opened.append(Client(await asyncpg.connect(server.url(port=path.port), timeout=PATIENCE)))
        return opened[-1]

    yield connect
    for client in opened:
        client.connection.terminate()


@pytest.mark.parametrize("fault", ["silent", "reset", "close"])
async def test_every_use_restarts_the_timer(postgres, make_path, connect, fault):
    client = await connect(postgres, await make_path(postgres, fault, idle_limit=LIMIT))
    for _ in range(4):
        await client.rest(LIMIT / 2)
        assert await client.use() == postgres.port
    assert not client.ended.done()


async def test_silent_shows_nothing_and_answers_nothing(postgres, make_path, connect):
    client = await connect(postgres, await make_path(postgres, "silent", idle_limit=LIMIT))
    await client.rest(LIMIT * 2)
    assert not client.ended.done()
    with pytest.raises(TimeoutError):
        await client.use(timeout=0.5)
    assert not client.ended.done()


async def test_silent_hides_the_end_of_the_server_side(postgres, make_path, connect):
    client = await connect(postgres, await make_path(postgres, "silent", idle_limit=LIMIT))
    pid = client.connection.get_server_pid()
    await client.rest(LIMIT * 2)
    await terminate(postgres, pid)
    await asyncio.sleep(0.2)
    assert not client.ended.done()


async def test_reset_shows_nothing_until_used(postgres, make_path, connect):
    client = await connect(postgres, await make_path(postgres, "reset", idle_limit=LIMIT))
    await client.rest(LIMIT * 2)
    assert not client.ended.done()
    with pytest.raises(LOST):
        await client.use()


@pytest.mark.parametrize(("fault", "ending"), [("reset", "rst"), ("close", "fin")])
async def test_rst_and_fin_are_what_goes_over_the_wire(postgres, make_path, fault, ending):
    path = await make_path(postgres, fault, idle_limit=LIMIT)
    reader, writer = await asyncio.open_connection(HOST, path.port)
    with contextlib.closing(writer):
        writer.write(SSL_REQUEST)
        assert await reader.readexactly(1) == b"N"
        await asyncio.sleep(LIMIT * 2)
        assert reader.at_eof() == (fault == "close")
        writer.write(SSL_REQUEST)
        try:
            answer = "fin" if await asyncio.wait_for(reader.read(), PATIENCE) == b"" else "data"
        except ConnectionResetError:
            answer = "rst"
        assert answer == ending


async def test_close_is_noticed_at_rest_at_the_limit(postgres, make_path, connect):
    client = await connect(postgres, await make_path(postgres, "close", idle_limit=LIMIT))
    await client.use()
    rested = await asyncio.wait_for(client.ended, PATIENCE) - client.used
    assert LIMIT - 0.05 < rested < LIMIT * 3  # generous above: the machine may be busy
    with pytest.raises(asyncpg.InterfaceError, match="closed"):
        await client.use()


async def test_a_lifetime_limit_ends_a_connection_however_busy(postgres, make_path, connect):
    client = await connect(postgres, await make_path(postgres, "close", idle_limit=60, lifetime_limit=LIMIT))
    opened = time.monotonic()
    with contextlib.suppress(*LOST, asyncpg.InterfaceError):  # met between two uses, or by one
        while not client.ended.done():
            await client.use()
    assert LIMIT - 0.1 < await asyncio.wait_for(client.ended, PATIENCE) - opened < LIMIT * 3


async def test_two_populations_behind_one_address(postgres, make_path, connect):
    path = await make_path(postgres, "close", idle_limit=lambda number: LIMIT if number % 2 else 60)
    lucky, unlucky, another_lucky = [await connect(postgres, path) for _ in range(3)]
    await asyncio.wait_for(unlucky.ended, PATIENCE)
    assert not lucky.ended.done()
    assert not another_lucky.ended.done()
    assert path.accepted == 3


async def test_a_changed_limit_holds_for_new_connections_only(postgres, make_path, connect):
    path = await make_path(postgres, "close", idle_limit=60)
    old = await connect(postgres, path)
    path.idle_limit = LIMIT
    new = await connect(postgres, path)
    await asyncio.wait_for(new.ended, PATIENCE)
    assert await old.use() == postgres.port


async def test_retarget_leads_new_connections_elsewhere(postgres, make_server, make_path, connect):
    other = make_server()
    path = await make_path(postgres)
    old = await connect(postgres, path)
    path.retarget(HOST, other.port)
    new = await connect(postgres, path)
    assert await old.use() == postgres.port
    assert await new.use() == other.port


async def test_pause_holds_everything_back_and_resume_delivers_it(postgres, make_path, connect):
    path = await make_path(postgres)
    client, doomed = await connect(postgres, path), await connect(postgres, path)
    path.pause()
    answer = asyncio.ensure_future(client.use())
    newcomer = asyncio.ensure_future(connect(postgres, path))
    await terminate(postgres, doomed.connection.get_server_pid())
    await asyncio.sleep(0.3)
    assert not answer.done()
    assert not newcomer.done()
    assert not doomed.ended.done()
    path.resume()
    assert await answer == postgres.port
    assert await (await newcomer).use() == postgres.port
    await asyncio.wait_for(doomed.ended, PATIENCE)


async def test_a_paused_path_still_forgets_what_rests_too_long(postgres, make_path, connect):
    path = await make_path(postgres, "silent", idle_limit=LIMIT)
    client = await connect(postgres, path)
    path.pause()
    await client.rest(LIMIT * 2)
    path.resume()
    with pytest.raises(TimeoutError):
        await client.use(timeout=0.5)


async def test_refuse_and_accept_on_the_same_port(postgres, make_path, connect):
    path = await make_path(postgres)
    client = await connect(postgres, path)
    path.refuse()
    with pytest.raises(ConnectionRefusedError):
        await connect(postgres, path)
    assert await client.use() == postgres.port
    await path.accept()
    assert await (await connect(postgres, path)).use() == postgres.port


async def test_reset_all_is_noticed_at_rest(postgres, make_path, connect):
    path = await make_path(postgres)
    clients = [await connect(postgres, path) for _ in range(3)]
    path.reset_all()
    await asyncio.wait_for(asyncio.gather(*(client.ended for client in clients)), PATIENCE)
    assert path.connections == 0


async def test_a_server_that_is_down_shows_as_a_reset(make_server, make_path, connect):
    server = make_server()
    path = await make_path(server)
    server.stop()
    with pytest.raises(ConnectionError):
        await connect(server, path)


async def test_a_taken_port_is_given_up_for_another(postgres):
    path = FaultyPath(HOST, postgres.port)
    path.port = postgres.port
    async with path:
        assert path.port != postgres.port


async def test_a_path_leaves_no_task_and_no_descriptor(postgres):
    async def forward_and_fail(*faults: str) -> None:
        async with contextlib.AsyncExitStack() as paths:
            clients = []
            for fault in faults:
                path = await paths.enter_async_context(FaultyPath(HOST, postgres.port, fault, idle_limit=LIMIT))
                clients += [await asyncpg.connect(postgres.url(port=path.port)) for _ in range(3)]
                paths.callback(path.pause)
            await asyncio.sleep(LIMIT * 2)
        for client in clients:
            client.terminate()
        await asyncio.sleep(0.1)

    await forward_and_fail("silent")  # whatever is imported or opened once
    before = psutil.Process().num_fds(), len(asyncio.all_tasks())
    await forward_and_fail("silent", "reset", "close")
    assert (psutil.Process().num_fds(), len(asyncio.all_tasks())) == before


@pytest.mark.parametrize(
    ("mode", "farewell", "greeting"),
    [
        ("fast", "received fast shutdown request", "database system was shut down"),
        ("immediate", "received immediate shutdown request", "database system was not properly shut down"),
        ("crash", "", "database system was not properly shut down"),
    ],
)
async def test_a_server_ends_as_told_and_comes_back_where_it_was(make_server, mode, farewell, greeting):
    server = make_server({"idle_session_timeout": "7s"})
    port = server.port
    await ask(server, "CREATE TABLE kept AS SELECT pg_postmaster_start_time() AS started")
    server.stop(mode)
    assert not server.running
    assert farewell in server.log.read_text()
    with pytest.raises(ConnectionRefusedError):
        await ask(server, "SELECT 1")
    server.start()
    assert server.running
    assert greeting in server.log.read_text()
    assert server.port == port
    assert await ask(server, "SELECT started < pg_postmaster_start_time() FROM kept")
    assert await ask(server, "SHOW idle_session_timeout") == "7s"


async def test_changed_settings_take_effect_at_a_restart(make_server):
    server = make_server()
    server.settings["idle_session_timeout"] = "3s"
    server.restart()
    assert await ask(server, "SHOW idle_session_timeout") == "3s"


async def test_a_password_is_demanded(make_server):
    server = make_server(password="s3cret/with:odd@characters")
    assert await ask(server, "SELECT 1") == 1
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=HOST, port=server.port, user=server.user, password="wrong", database="postgres")
    assert "s3cret" not in "".join(
        path.name + path.read_text() for path in server.directory.iterdir() if path.is_file()
    )


async def test_a_server_that_finds_its_port_taken_looks_for_another(postgres):
    server = PostgresServer()
    server.port = postgres.port
    with server:
        assert server.port != postgres.port
        assert await ask(server, "SELECT inet_server_port()") == server.port


def test_a_server_that_cannot_start_says_why_and_leaves_nothing():
    server = PostgresServer({"shared_buffers": "a lot"})
    with pytest.raises(ServerError, match=r'invalid value for parameter "shared_buffers"'), server:
        pass
    assert not server.directory.exists()


def test_closing_removes_everything():
    with PostgresServer() as server:
        assert postgres_processes(server.directory)
    assert not server.directory.exists()
    assert not postgres_processes(server.directory)


def test_nothing_remains_of_a_server_whose_owner_was_killed():
    script = """if True:
        import time
        from sidecar.demo.server import PostgresServer
        with PostgresServer() as server:
            print(server.directory, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        directory = Path(owner.stdout.readline().strip())
        assert postgres_processes(directory)
        os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while directory.exists() or postgres_processes(directory):
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def ask(server: PostgresServer, query: str) -> object:
    connection = await asyncpg.connect(server.url(), timeout=PATIENCE)
    try:
        return await connection.fetchval(query)
    finally:
        connection.terminate()


async def terminate(server: PostgresServer, pid: int) -> None:
    assert await ask(server, f"SELECT pg_terminate_backend({pid}, 5000)")


def postgres_processes(directory: Path) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(argument.startswith(str(directory)) for argument in process.cmdline()):
                found.append(process.pid)
    return found
