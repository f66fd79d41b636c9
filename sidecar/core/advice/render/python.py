"""Dialects that are Python: SQLAlchemy's arguments, and modules that run as printed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from string import Template

from sidecar.core.advice.recommendation import Recommendation, SocketOptions
from sidecar.core.advice.render.common import (
    check_after,
    comment,
    libpq,
    plain,
    preamble,
    swept,
    wrapped,
)

_SQLALCHEMY_ONLY = ("prepared_statement_cache_size", "prepared_statement_name_func")
"""Connect arguments that SQLAlchemy's dialect takes for itself and asyncpg does not know."""

_SNIPPET = Template('''\
$about
import asyncio
import os
${imports}from collections.abc import Awaitable, Callable
from typing import TypeVar

from sqlalchemy import event, make_url, text
from sqlalchemy.exc import $errors
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

engine = create_async_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"),
    pool_recycle=$recycle,  # seconds since connect, looked at only at checkout
    pool_pre_ping=$pre_ping,
$connect_args)


${listeners}@event.listens_for(engine.sync_engine, "close")
def drop(dbapi_connection, connection_record):
    """Say goodbye, but wait for nobody: where nothing answers, a graceful close takes 2 s of a checkout."""
    dbapi_connection.driver_connection.terminate()


@event.listens_for(engine.sync_engine, "handle_error")
def leave_the_demoted_primary(context):
    """A server that no longer takes writes (25006) still answers pings: have the pool connect anew.

    Not for an engine that is meant to read from a standby.
    """
    if getattr(context.original_exception, "sqlstate", None) == "25006":
        context.is_disconnect = True


T = TypeVar("T")


async def run(work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Do `work` in a transaction; when its connection is lost, once more on another.

    Only for work that may be done twice: of a connection lost during COMMIT nobody knows whether it was done.
    """
    try:
        async with engine.begin() as connection:
            return await work(connection)
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
    async with engine.begin() as connection:
        return await work(connection)


async def main() -> None:
    print(await run(lambda connection: connection.scalar(text("SELECT now()"))))
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
''')

_ON_CONNECT = Template('''\
$options

@event.listens_for(engine.sync_engine, "connect")
def set_socket_options(dbapi_connection, connection_record):
    """Neither SQLAlchemy nor asyncpg takes socket options."""
    sock = dbapi_connection.driver_connection._transport.get_extra_info("socket")
$set

''')

_SELECTIVE_PRE_PING = Template('''\
@event.listens_for(engine.sync_engine, "checkin")
def note_the_time(dbapi_connection, connection_record):
    connection_record.info["resting_since"] = time.monotonic()


@event.listens_for(engine.sync_engine, "checkout")
def ping_the_rested(dbapi_connection, connection_record, connection_proxy):
    """Pre-ping, but only after $after s of rest. On this error, as on its own, SQLAlchemy replaces the connection."""
    rested = time.monotonic() - connection_record.info.get("resting_since", time.monotonic())
    if rested > $after:
        try:
            dbapi_connection.ping()
        except Exception as error:
            raise InvalidatePoolError("pre-ping failed") from error


''')

_SET_OPTIONS = """\
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_OPTIONS.items():
        if hasattr(socket, name):  # Linux has them all, other systems some
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
"""

_PSYCOPG = Template('''\
$about
import os
import threading
import time

from psycopg_pool import ConnectionPool

pool = ConnectionPool(
    os.environ["DATABASE_URL"],
$arguments    open=False,
)


def keep_fresh() -> None:
    while True:
        time.sleep($period)
        if pool.closed:
            return
        pool.check()  # replaces what is dead or too old, pings the others


def open_pool() -> None:
    """To be called when the application starts; pool.close() when it ends."""
    pool.open()
    threading.Thread(target=keep_fresh, daemon=True).start()
''')

_ASYNCPG = Template("""\
$about
import os
${import_socket}
import asyncpg
$socket_options

async def create_pool():
    return await asyncpg.create_pool(
        os.environ["DATABASE_URL"],
        min_size=0,
        max_inactive_connection_lifetime=$recycle,  # seconds since the last use
$arguments    )
""")

_INIT = Template('''
$options

async def set_socket_options(connection):
    """asyncpg takes no socket options."""
    sock = connection._transport.get_extra_info("socket")
$set''')

_DJANGO = Template("""\
${about}DATABASES["default"].update(
    CONN_MAX_AGE=$recycle,  # seconds since connect, looked at as a request begins and ends
    CONN_HEALTH_CHECKS=$checks,  # one round trip a request
$cursors)
DATABASES["default"].setdefault("OPTIONS", {}).update(
$options)
""")


def sqlalchemy(advice: Recommendation) -> dict[str, object]:
    """Keyword arguments for `create_async_engine`, and nothing else.

    The socket options are not among them: SQLAlchemy and asyncpg take none, they need a `connect` listener.
    """
    arguments: dict[str, object] = {
        "pool_recycle": advice.settings.pool_recycle,
        "pool_pre_ping": advice.settings.pool_pre_ping,
    }
    if advice.connect_args:
        arguments["connect_args"] = advice.connect_args
    return arguments


def snippet(advice: Recommendation) -> str:
    """A module with an engine (SQLAlchemy on asyncpg), its listeners, and a narrow retry."""
    selective = check_after(advice) or None
    sockets = _tcp_options(advice.socket)
    listeners = _ON_CONNECT.substitute(options=sockets, set=_SET_OPTIONS) if sockets else ""
    if selective:
        listeners += _SELECTIVE_PRE_PING.substitute(after=f"{selective:g}")
    return _SNIPPET.substitute(
        about=_docstring(
            *preamble(advice), "Set DATABASE_URL. Use `engine` and `run`; started as a program, it asks for the time."
        ),
        imports=("import socket\n" if sockets else "") + ("import time\n" if selective else ""),
        errors="DBAPIError, InvalidatePoolError" if selective else "DBAPIError",
        recycle=plain(advice.age_with_keepalive),
        pre_ping=advice.settings.pool_pre_ping,
        connect_args=_argument("connect_args", advice.connect_args),
        listeners=listeners,
    )


def psycopg(advice: Recommendation) -> str:
    """A module with a psycopg_pool. Source: psycopg_pool, pool.py."""
    recycle, after = advice.age_with_keepalive, check_after(advice)
    age, period = swept(recycle)
    statements = {"prepare_threshold": None} if advice.forgets_statements else {}
    arguments = _argument("kwargs", {**libpq(advice), **statements})
    arguments += f"    max_lifetime={plain(age)},  # seconds since connect\n"
    if after == 0:
        arguments += "    check=ConnectionPool.check_connection,  # one round trip before a connection is handed out\n"
    return _PSYCOPG.substitute(
        about=_docstring(
            *preamble(advice),
            "psycopg_pool looks at max_lifetime only when a connection comes back, and max_idle only shrinks the pool"
            " to min_size. So keep_fresh looks after those at rest: max_lifetime and its period together are the"
            f" {plain(recycle)} s advised. Where several connections died at once, a checkout meets them one by one,"
            " from the second on a second or more apart (psycopg_pool 3.3). With AsyncConnectionPool, make keep_fresh a"
            " task.",
        ),
        arguments=arguments,
        period=plain(min(period, after or period)),
    )


def asyncpg(advice: Recommendation) -> str:
    """A module that creates an asyncpg pool. Source: asyncpg, pool.py."""
    recycle = plain(advice.age_with_keepalive)
    sockets = _tcp_options(advice.socket)
    arguments = {name: _literal(value) for name, value in advice.connect_args.items() if name not in _SQLALCHEMY_ONLY}
    if sockets:
        arguments["init"] = "set_socket_options"
    return _ASYNCPG.substitute(
        about=_docstring(
            *preamble(advice),
            "asyncpg's pool tests no connection; it replaces those it saw closing. Resting ones it closes by a true"
            " idle timer, but from asyncpg 0.32 on not the last min_size of them, hence 0. It knows no maximum age;"
            f" pool.expire_connections() every {recycle} s would make one.",
        ),
        import_socket="import socket\n" if sockets else "",
        socket_options=_INIT.substitute(options=sockets, set=_SET_OPTIONS) if sockets else "",
        recycle=recycle,
        arguments="".join(f"        {name}={value},\n" for name, value in arguments.items()),
    )


def django(advice: Recommendation) -> str:
    """Lines to stand below DATABASES in Django's settings. Source: Django documentation, Databases."""
    return _DJANGO.substitute(
        about=comment(
            "#",
            *preamble(advice),
            "For settings.py, below DATABASES; psycopg or psycopg2. Django looks at its connections only around"
            " requests: elsewhere (workers, commands) call django.db.close_old_connections() between jobs. Under ASGI"
            ' Django advises against persistent connections, and with its own pool ("pool" in OPTIONS) CONN_MAX_AGE'
            " must stay 0.",
        ),
        recycle=plain(advice.age_with_keepalive),
        checks=check_after(advice) is not None,
        cursors="    DISABLE_SERVER_SIDE_CURSORS=True,  # a pooler on the path swaps servers\n"
        if advice.forgets_statements
        else "",
        options="".join(f"    {name}={value},\n" for name, value in libpq(advice).items()),
    )


def _docstring(*paragraphs: str) -> str:
    text = "\n\n".join("\n".join(wrapped(paragraph, 3)) for paragraph in paragraphs)
    return '"""' + text.replace("\\", r"\\").replace('"""', r"\"\"\"") + '\n"""\n'


def _tcp_options(options: SocketOptions) -> str:
    lines = ""
    if options.keepalive is not None:
        lines += (
            f'    "TCP_KEEPIDLE": {options.keepalive.idle},  # seconds of silence before the first keepalive\n'
            f'    "TCP_KEEPINTVL": {options.keepalive.interval},  # seconds between two\n'
            f'    "TCP_KEEPCNT": {options.keepalive.count},\n'
        )
    if options.user_timeout_ms is not None:
        lines += f'    "TCP_USER_TIMEOUT": {options.user_timeout_ms},  # milliseconds without an acknowledgement\n'
    return lines and f"TCP_OPTIONS = {{\n{lines}}}\n"


def _argument(name: str, value: Mapping[str, object]) -> str:
    entries = "".join(f"        {json.dumps(key)}: {_literal(entry)},\n" for key, entry in value.items())
    return entries and f"    {name}={{\n{entries}    }},\n"


def _literal(value: object) -> str:
    """Python source of plain data, strings in double quotes."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
