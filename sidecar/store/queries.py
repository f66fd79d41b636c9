"""The statements, each about the evidence of one target on one database."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Delete, Insert, ScalarSelect, Select, Table, delete, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from sidecar.store.tables import observations, outages, pauses

LOADED_NEWEST = 1_000  # records of a kind, of any regime
LOADED_OF_REGIME = 1_000  # observations of each arm and outcome, of the current regime
KEPT_OBSERVATIONS = 100_000  # some 30 MB
KEPT_OUTAGES = 10_000

_KEY = ("target", "database", "id")


def upsert(table: Table, dialect: str) -> Insert:
    """Insert a record, or replace the version of it already there."""
    insert = postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)
    replaced = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in (*_KEY, "seq")}
    return insert.on_conflict_do_update(index_elements=_KEY, set_=replaced)


def pause_of(process: str) -> Select[tuple[object, ...]]:
    """The pause that this process was told to make; no row where it was not."""
    return select(pauses).where(pauses.c.process == process)


def no_pause(process: str) -> Delete:
    """Forget the pause of this process."""
    return delete(pauses).where(pauses.c.process == process)


def last_regime(target: str, database: str) -> ScalarSelect[int | None]:
    """The highest regime stored; NULL where nothing is."""
    return select(func.max(observations.c.regime)).where(_of(observations, target, database)).scalar_subquery()


def recent_observations(target: str, database: str) -> Select[tuple[object, ...]]:
    """The newest, and those of the current regime from its beginning on; in the order of their arrival."""
    wanted = or_(_is_newest(observations, target, database), _carries_state(target, database))
    return select(observations).where(wanted).order_by(observations.c.seq)


def recent_outages(target: str, database: str) -> Select[tuple[object, ...]]:
    """The newest, in the order of their arrival."""
    return select(outages).where(_is_newest(outages, target, database)).order_by(outages.c.seq)


def surplus_observations(target: str, database: str) -> Delete:
    """Observations beyond the number kept, but none that a restart builds upon."""
    return _beyond(observations, target, database, KEPT_OBSERVATIONS).where(~_carries_state(target, database))


def surplus_outages(target: str, database: str) -> Delete:
    """Outages beyond the number kept."""
    return _beyond(outages, target, database, KEPT_OUTAGES)


def _of(table: Table, target: str, database: str) -> ColumnElement[bool]:
    return (table.c.target == target) & (table.c.database == database)


def _is_newest(table: Table, target: str, database: str) -> ColumnElement[bool]:
    newest = select(table.c.seq).where(_of(table, target, database)).order_by(table.c.seq.desc())
    return table.c.seq.in_(newest.limit(LOADED_NEWEST))


def _carries_state(target: str, database: str) -> ColumnElement[bool]:
    """The current regime, of which only routine repetitions are cut: monitoring repeats the same tests for months."""
    rank = func.row_number().over(
        partition_by=(observations.c.arm, observations.c.outcome), order_by=observations.c.seq.desc()
    )
    of_regime = _of(observations, target, database) & (observations.c.regime == last_regime(target, database))
    ranked = select(observations.c.seq, rank.label("rank")).where(of_regime).subquery()
    return observations.c.seq.in_(select(ranked.c.seq).where(ranked.c.rank <= LOADED_OF_REGIME))


def _beyond(table: Table, target: str, database: str, kept: int) -> Delete:
    oldest_kept = select(table.c.seq).where(_of(table, target, database)).order_by(table.c.seq.desc())
    bound = oldest_kept.offset(kept - 1).limit(1).scalar_subquery()  # NULL, and nothing is less, while there are fewer
    return delete(table).where(_of(table, target, database), table.c.seq < bound)
