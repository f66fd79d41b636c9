"""The advice in the reader's own dialect: one pure function per format.

A new dialect is a name, a function and a line in `FORMATS`. A function returns text, or, where the format is JSON, the
object to encode. (The full document, format `json`, is written by the web: it carries a wall-clock time.)

What all of them keep to:

- No connection shall be handed out that rested longer, or in most pools is older, than `pool_recycle`. Where a pool
  looks at its connections only now and then, its limit and that delay together stay within the advice.
- A setting that only shrinks a pool to its minimum protects nothing at the minimum. Rendered instead is what holds for
  every connection: a maximum age, a ping at rest, or a check.
- What a pool cannot do, and where its own minimum is longer than the advice, is said in the text it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render import code, files, python

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


class FormatName(StrEnum):
    """What `?format=` takes."""

    JSON = "json"  # the full document
    SQLALCHEMY = "sqlalchemy"
    PYTHON = "python"
    ENV = "env"
    PSYCOPG = "psycopg"
    ASYNCPG = "asyncpg"
    DJANGO = "django"
    HIKARICP = "hikaricp"
    PGX = "pgx"
    DATABASE_SQL = "database-sql"
    NODE_POSTGRES = "node-postgres"
    NPGSQL = "npgsql"
    RAILS = "rails"
    PGBOUNCER = "pgbouncer"


@dataclass(frozen=True, slots=True)
class Format:
    content_type: str
    render: Callable[[Recommendation], object]


FORMATS: Mapping[str, Format] = {
    FormatName.SQLALCHEMY: Format(JSON, python.sqlalchemy),
    FormatName.PYTHON: Format(TEXT, python.snippet),
    FormatName.ENV: Format(TEXT, files.env),
    FormatName.PSYCOPG: Format(TEXT, python.psycopg),
    FormatName.ASYNCPG: Format(TEXT, python.asyncpg),
    FormatName.DJANGO: Format(TEXT, python.django),
    FormatName.HIKARICP: Format(TEXT, files.hikaricp),
    FormatName.PGX: Format(TEXT, code.pgx),
    FormatName.DATABASE_SQL: Format(TEXT, code.database_sql),
    FormatName.NODE_POSTGRES: Format(TEXT, code.node_postgres),
    FormatName.NPGSQL: Format(TEXT, code.npgsql),
    FormatName.RAILS: Format(TEXT, files.rails),
    FormatName.PGBOUNCER: Format(TEXT, files.pgbouncer),
}
"""By name; all but `json`."""
