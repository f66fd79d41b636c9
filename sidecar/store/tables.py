"""The tables, and how records become rows and rows records.

Times are double precision seconds since the Unix epoch, as in the records: they come back exactly, and SQLite, which
has no timestamps, orders them like PostgreSQL. Structures that are only ever read whole (identities, spells, counts)
are JSON. Everything a query selects by is a column of its own.

The tables may share a database with an application, hence their prefix, on Alembic's version table too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from sidecar.core.budget import PauseReason
from sidecar.core.evidence import Arm, Cause, Death, Downtime, Interval, Observation, Outage, Outcome
from sidecar.core.identity import Identity
from sidecar.core.pause import Pause

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _evidence(name: str, *columns: Column[Any]) -> Table:
    """A table of records of one kind.

    `seq` is the order of arrival: wall clocks step back, it does not. `target` and `database` together say what was
    measured: sidecars that share a store all call their target `default`, and a target may be pointed elsewhere. `id`
    counts within its target.
    """
    return Table(
        f"connection_health_{name}",
        metadata,
        Column("seq", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
        Column("target", Text, nullable=False),
        Column("database", Text, nullable=False),
        Column("id", Text, nullable=False),
        *columns,
        UniqueConstraint("target", "database", "id"),
        Index(None, "target", "database", "seq"),
    )


_json = JSON(none_as_null=True)

observations = _evidence(
    "observations",
    Column("at", Double, nullable=False),
    Column("regime", BigInteger, nullable=False),
    Column("arm", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("idle_seconds", Double, nullable=False),
    Column("age_seconds", Double, nullable=False),
    Column("death", Text),
    Column("cause", Text),
    Column("sqlstate", Text),
    Column("message", Text),
    Column("identity", _json, nullable=False),
)

outages = _evidence(
    "outages",
    Column("kind", Text, nullable=False),
    Column("detail", Text),
    Column("connect", _json),
    Column("read", _json),
    Column("write", _json),
    Column("before", _json),
    Column("after", _json),
    Column("addresses_before", _json, nullable=False),
    Column("addresses_after", _json, nullable=False),
    Column("connections_lost", _json, nullable=False),
    Column("errors", _json, nullable=False),
    Column("dns_changed", _json),
)

# The pause of a process, so that it outlives it. `process` tells those that share a store apart.
pauses = Table(
    "connection_health_pauses",
    metadata,
    Column("process", Text, primary_key=True),
    Column("since", Double, nullable=False),
    Column("until", Double, nullable=False),
    Column("reason", Text, nullable=False),
)

# Alembic's own table, declared as Alembic would create it. In a `MetaData` of its own: migrations do not manage it.
version = Table(
    "connection_health_alembic_version",
    MetaData(naming_convention={"pk": "%(table_name)s_pkc"}),
    Column("version_num", String(32), primary_key=True),
)


def observation_row(observation: Observation, *, database: str, regimes_before: int) -> dict[str, Any]:
    return {
        **_fields(observation),
        "database": database,
        "regime": observation.regime + regimes_before,
        "identity": asdict(observation.identity),
    }


def outage_row(outage: Outage, *, database: str) -> dict[str, Any]:
    structures = ("connect", "read", "write", "before", "after", "dns_changed")
    return {
        **_fields(outage),
        **{name: getattr(outage, name) and asdict(getattr(outage, name)) for name in structures},
        "database": database,
        "connections_lost": dict(outage.connections_lost),
        "errors": dict(outage.errors),
    }


def observation_of(row: Mapping[str, Any]) -> Observation:
    """Raises ValueError, TypeError or KeyError for a row of a vocabulary this version does not know."""
    return Observation(
        **{
            **_without_key(row),
            "arm": Arm(row["arm"]),
            "outcome": Outcome(row["outcome"]),
            "death": row["death"] and Death(row["death"]),
            "cause": row["cause"] and Cause(row["cause"]),
            "identity": Identity(**row["identity"]),
        }
    )


def outage_of(row: Mapping[str, Any]) -> Outage:
    """Raises ValueError, TypeError or KeyError for a row of a vocabulary this version does not know."""
    return Outage(
        **{
            **_without_key(row),
            **{name: row[name] and _spell(row[name]) for name in ("connect", "read", "write")},
            **{name: row[name] and Identity(**row[name]) for name in ("before", "after")},
            "dns_changed": row["dns_changed"] and Interval(**row["dns_changed"]),
            **{name: tuple(row[name]) for name in ("addresses_before", "addresses_after")},
        }
    )


def pause_row(pause: Pause, *, process: str) -> dict[str, Any]:
    return {"process": process, "since": pause.since, "until": pause.until, "reason": pause.reason}


def pause_of(row: Mapping[str, Any]) -> Pause:
    """Raises ValueError for a reason this version does not know."""
    return Pause(since=row["since"], until=row["until"], reason=PauseReason(row["reason"]))


def _fields(record: Observation | Outage) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in fields(record)}


def _without_key(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seq", "database")}


def _spell(stored: Mapping[str, Any]) -> Downtime:
    return Downtime(
        began=Interval(**stored["began"]),
        ended=stored["ended"] and Interval(**stored["ended"]),
        watched=stored.get("watched", True),  # not told before there was a word for it
    )
