"""Bringing the store's schema up to date, whatever it was before.

A store without tables gets them from the declarations at once; an older one is migrated by Alembic. A test holds both
ways to the same result. So Alembic, which costs some 10 MB of memory for as long as the process lives, is imported only
by the first start of a new version that changes the schema.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, func, insert, inspect, select

from sidecar.store import tables

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0003"  # the newest revision under migrations/versions

# Taken in PostgreSQL while the schema changes, so that sidecars that start together do it once. Any number nobody else
# uses; this one spells "conhlth".
_ADVISORY_LOCK = int.from_bytes(b"conhlth")


class UnknownSchemaError(Exception):
    """The store was last used by a newer version of the sidecar."""


def revision(connection: Connection) -> str | None:
    """The revision of the schema found; None where there is none."""
    if not inspect(connection).has_table(tables.version.name):
        return None
    return connection.scalar(select(tables.version.c.version_num))


def bring_to_head(connection: Connection) -> None:
    """Create or migrate the schema within the transaction that `connection` is in: as a whole or not at all."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_ADVISORY_LOCK)))
    found = revision(connection)
    if found is None:
        tables.metadata.create_all(connection)
        tables.version.create(connection, checkfirst=True)
        connection.execute(insert(tables.version).values(version_num=HEAD))
    elif found != HEAD:
        _migrate(connection, found)


def _migrate(connection: Connection, found: str) -> None:
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(alembic_config(connection), "head")
    except CommandError as error:
        raise UnknownSchemaError(
            f"its schema, revision {found}, is not known to this version: update the sidecar, or name another store"
        ) from error


def alembic_config(connection: Connection) -> Config:
    """What Alembic's commands need to work on this connection. There is no alembic.ini, and logging is left alone."""
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "sidecar.store:migrations")
    config.set_main_option("path_separator", "os")
    return config
