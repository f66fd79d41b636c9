"""The two databases a store may live in: how to reach them, and how to read their complaints."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import URL, Connection, NullPool, event
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sidecar.core.budget import ConnectionRole

_SQLITE_BUSY_SECONDS = 1.0  # waiting for another process to release its lock

_SQLITE_ADVICE = {
    sqlite3.SQLITE_FULL: "free some space there",
    sqlite3.SQLITE_READONLY: "make it writable, or name another file in store.url",
    sqlite3.SQLITE_CANTOPEN: "its folder must exist and be writable, or name another file in store.url",
    sqlite3.SQLITE_BUSY: "another process holds a lock on it",
    sqlite3.SQLITE_CORRUPT: "move the file away, and a new one is made",
    sqlite3.SQLITE_NOTADB: "name another file in store.url",
}


def create_engine(url: URL) -> AsyncEngine:
    """An engine that holds no connection at rest, save for a database in memory, which *is* its connection."""
    if url.get_backend_name() == "postgresql":
        return create_async_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={
                "server_settings": {"application_name": ConnectionRole.STORE.session_name},
                # A connection lives for one batch: nothing to cache, and transaction poolers do not mind.
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
            },
        )
    engine = create_async_engine(
        url,
        poolclass=None if _is_in_memory(url) else NullPool,
        hide_parameters=True,
        connect_args={"timeout": _SQLITE_BUSY_SECONDS},
    )

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Connection) -> None:
        # sqlite3 by itself begins no transaction for a CREATE TABLE. And lock first: who has read already may not wait
        # for a writer any more. (A read-only file is read all the same.)
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def place(url: URL) -> str:
    """The store's name for people: without user, password and parameters."""
    if url.get_backend_name() == "postgresql":
        return f"{url.host}:{url.port or 5432}/{url.database}"
    return ":memory:" if _is_in_memory(url) else str(Path(url.database or "").absolute())


def _is_in_memory(url: URL) -> bool:
    return url.database in (None, "", ":memory:")


def refuses_content(error: Exception) -> bool:
    """Whether the database is well, and what it was given is wrong (SQLSTATE 22 data exception, 23 constraint)."""
    sqlstate = getattr(getattr(error, "orig", None), "sqlstate", None) or ""
    return isinstance(error, IntegrityError | DataError | UnicodeError) or sqlstate[:2] in ("22", "23")


def complaint(error: Exception) -> str:
    """What the driver said, in one line, and what to do where that is not plain."""
    cause = getattr(error, "orig", None) or error
    silence = "no answer in time" if isinstance(error, TimeoutError) else type(cause).__name__
    text = " ".join(str(cause).split()) or silence
    code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the primary code; the higher bits are details
    return f"{text}: {_SQLITE_ADVICE[code]}" if code in _SQLITE_ADVICE else text
