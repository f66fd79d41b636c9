"""The advice in the reader's own dialect: one pure function per format.

A new dialect is a function and a line in `FORMATS`. A function returns text, or, where the format is JSON, the object
to encode. (The full document, format `json`, is written by the web: it carries a wall-clock time.)

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

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render import code, files, python

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Format:
    content_type: str
    render: Callable[[Recommendation], object]


FORMATS: Mapping[str, Format] = {
    "sqlalchemy": Format(JSON, python.sqlalchemy),
    "python": Format(TEXT, python.snippet),
    "env": Format(TEXT, files.env),
    "psycopg": Format(TEXT, python.psycopg),
    "asyncpg": Format(TEXT, python.asyncpg),
    "django": Format(TEXT, python.django),
    "hikaricp": Format(TEXT, files.hikaricp),
    "pgx": Format(TEXT, code.pgx),
    "database-sql": Format(TEXT, code.database_sql),
    "node-postgres": Format(TEXT, code.node_postgres),
    "npgsql": Format(TEXT, code.npgsql),
    "rails": Format(TEXT, files.rails),
    "pgbouncer": Format(TEXT, files.pgbouncer),
}
