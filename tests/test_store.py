"""The evidence store, on real SQLite files and a real PostgreSQL: what goes in comes out, whatever happens between."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import psutil
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, Table, insert, inspect, make_url, text

from sidecar.core.evidence import Cause, Death, Downtime, Interval, Observation, Outage
from sidecar.core.identity import Identity
from sidecar.core.pause import Pause
from sidecar.demo.server import PostgresServer
from sidecar.store import EvidenceStore, History, queries, schema, tables
from sidecar.store.engine import create_engine

DATABASE = "db.example:5432/app"
_databases = itertools.count()

SERVER = Identity(
    address="10.0.0.7:5432",
    started_at=1_763_990_000.123456,
    system_identifier="7575999999999999999",
    timeline=2**32 - 1,
    in_recovery=False,
    backend_pid=4_194_304,
)
FULL_OBSERVATION = Observation(
    id="run-1",
    target="default",
    at=1_763_990_123.1 + 0.2,
    regime=1,
    arm="search",
    outcome="died",
    idle_seconds=350.00000000000006,
    age_seconds=1e-9,
    death=Death.FATAL,
    cause=Cause.IDLE_LIMIT,
    sqlstate="57P05",
    message='terminating connection due to "idle-session" timeout — beëindigd\n\t🐘',
    identity=SERVER,
)
FULL_OUTAGE = Outage(
    id="outage-1",
    target="default",
    kind="failover",
    detail="crash",
    connect=Downtime(began=Interval(after=0.1, until=0.30000000000000004), ended=Interval(after=14.2, until=14.3)),
    read=Downtime(began=Interval(after=1.0, until=1.5)),
    write=Downtime(
        began=Interval(after=1.0, until=1.5), ended=Interval(after=15.9, until=math.nextafter(16, 17)), watched=False
    ),
    before=SERVER,
    after=dataclasses.replace(SERVER, address="10.0.0.8:5432", timeline=3, in_recovery=None),
    addresses_before=("10.0.0.7",),
    addresses_after=("10.0.0.8", "fd00::8"),
    dns_changed=Interval(after=1_763_990_140.6, until=1_763_990_140.7),
    connections_lost={"closed": 5, "silent": 2},
    errors={"57P03": 7, "ConnectionRefusedError": 40},
)


def survival(number: int, **changes: Any) -> Observation:
    plain = Observation(
        id=f"run-{number}",
        target="default",
        at=1_763_990_000.0 - number,  # a clock that runs backwards must not upset the order
        regime=1,
        arm="guard",
        outcome="survived",
        idle_seconds=10.0 + number,
        age_seconds=20.0 + number,
    )
    return dataclasses.replace(plain, **changes)


def store_at(url: str, **options: Any) -> EvidenceStore:
    options = {"databases": {"default": DATABASE}, "retry_seconds": (0.05, 0.1), **options}
    return EvidenceStore(url, **options)


def sqlite_url(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


@pytest.fixture(autouse=True)
async def _no_thread_is_left() -> AsyncIterator[None]:
    before = store_threads()
    yield
    await until(lambda: store_threads() <= before)


def store_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")}


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store nobody has used yet."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "evidence.db")
    return await fresh_database(request.getfixturevalue("postgres"))


async def fresh_database(server: PostgresServer) -> str:
    name = f"store_{os.getpid()}_{next(_databases)}"
    connection = await asyncpg.connect(server.url())
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    return make_url(server.url(scheme="postgresql+asyncpg")).set(database=name).render_as_string(hide_password=False)


@contextlib.asynccontextmanager
async def running(store: EvidenceStore) -> AsyncIterator[EvidenceStore]:
    writer = asyncio.create_task(store.run())
    try:
        yield store
    finally:
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writer
        await store.close(5)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - nobody tells of these conditions
            await asyncio.sleep(0.01)


async def written(store: EvidenceStore) -> None:
    await until(lambda: not store.pending_writes)


async def keep(url: str, records: Iterable[Observation | Outage], **options: Any) -> None:
    """A whole life of a sidecar that records this."""
    store = store_at(url, **options)
    await store.load()
    for record in records:
        store.add(record)
    await store.close(30)
    assert store.pending_writes == 0


async def recall(url: str, **options: Any) -> History:
    """What the next life finds."""
    store = store_at(url, **options)
    history = (await store.load())["default"]
    assert store.warning is None
    await store.close(5)
    return history


def ids(history: History) -> list[str]:
    return [observation.id for observation in history.observations]


def numbered(numbers: Iterable[int]) -> list[str]:
    return [f"run-{number}" for number in numbers]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sidecar.store")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "sidecar.store"]


# -- a pause ---------------------------------------------------------------------------------------------------------

PAUSE = Pause(since=1_795_521_600.25, until=1_795_522_200.25)


async def paused(url: str, **options: Any) -> Pause | None:
    """The pause that the next life finds."""
    store = store_at(url, **options)
    await store.load()
    await store.close(5)
    return store.pause


async def test_a_pause_outlives_the_process_and_is_that_of_one_alone(url: str) -> None:
    store = store_at(url, process="pod-1:9091")
    await store.load()
    assert store.pause is None
    async with running(store):
        store.keep_pause(PAUSE)
    assert await paused(url, process="pod-1:9091") == PAUSE
    assert await paused(url, process="pod-2:9091") is None
    store = store_at(url, process="pod-1:9091")
    await store.load()
    longer = dataclasses.replace(PAUSE, until=PAUSE.until + 60.0)
    store.keep_pause(longer)
    store.add(survival(1))
    await store.close(5)
    assert await paused(url, process="pod-1:9091") == longer
    assert ids(await recall(url)) == numbered([1])
    async with running(store_at(url, process="pod-1:9091")) as store:
        await store.load()
        store.keep_pause(None)
    assert await paused(url, process="pod-1:9091") is None


async def test_a_pause_that_cannot_be_written_is_written_when_the_store_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    store = store_at(sqlite_url(folder / "evidence.db"), retry_seconds=(0.05, 0.1))
    await store.load()
    async with running(store):
        store.keep_pause(PAUSE)
        await asyncio.sleep(0.2)
        assert store.warning is not None
        assert store.pause == PAUSE, "which holds all the same"
        folder.mkdir()
        await until(lambda: store.warning is None)
    assert await paused(sqlite_url(folder / "evidence.db")) == PAUSE


def test_a_clock_set_back_makes_no_pause_longer_than_a_day() -> None:
    assert PAUSE.taken_up(PAUSE.since) == PAUSE
    assert PAUSE.taken_up(PAUSE.until) is None
    taken_up = PAUSE.taken_up(0.0)
    assert taken_up is not None
    assert (taken_up.since, taken_up.until) == (0.0, 86400.0)


# -- what goes in comes out -------------------------------------------------------------------------------------------


async def test_every_field_of_every_record_comes_back(url: str) -> None:
    plain = survival(2)
    bare = Outage(id="outage-2", target="default", kind="unknown")
    for record in (FULL_OBSERVATION, FULL_OUTAGE):
        defaults = {f.name: f.default for f in dataclasses.fields(record)}
        unset = [name for name, default in defaults.items() if getattr(record, name) == default]
        assert not unset, "the record that stands for all fields leaves some at their default"

    await keep(url, [FULL_OBSERVATION, FULL_OUTAGE, plain, bare])

    assert await recall(url) == History(observations=(FULL_OBSERVATION, plain), outages=(FULL_OUTAGE, bare))


def test_every_word_of_the_vocabulary_survives_a_row() -> None:
    for death, cause in itertools.product(Death, Cause):
        observation = dataclasses.replace(FULL_OBSERVATION, death=death, cause=cause)
        row = tables.observation_row(observation, database=DATABASE, regimes_before=0)
        assert tables.observation_of(row) == observation


async def test_storing_a_record_again_replaces_it_where_it_stands(url: str) -> None:
    later = dataclasses.replace(FULL_OUTAGE, read=FULL_OUTAGE.write, errors={"57P03": 9})
    revised = survival(1, cause=Cause.CULL, outcome="died")
    second = Outage(id="outage-2", target="default", kind="cull")

    await keep(url, [survival(1), FULL_OUTAGE, survival(2), second, later, survival(2)])
    await keep(url, [revised, later])

    assert await recall(url) == History(observations=(revised, survival(2)), outages=(later, second))


async def test_order_of_arrival_is_kept_over_batches_and_lives(url: str) -> None:
    await keep(url, (survival(number) for number in range(700)))
    await keep(url, (survival(number) for number in range(700, 900)))

    assert ids(await recall(url)) == numbered(range(900))


async def test_the_writer_takes_what_comes_while_it_runs(url: str) -> None:
    store = store_at(url)
    async with running(store):
        for number in range(30):
            store.add(survival(number))
            if number % 10 == 9:
                await written(store)
        assert store.warning is None

    assert ids(await recall(url)) == numbered(range(30))


async def test_equal_ids_of_different_targets_are_different_records(url: str) -> None:
    databases = {"default": DATABASE, "replica": "replica.example:5432/app"}
    mine, theirs = survival(1), survival(1, target="replica", idle_seconds=99.0)

    await keep(url, [mine, theirs], databases=databases)

    store = store_at(url, databases=databases)
    histories = await store.load()
    assert {target: history.observations for target, history in histories.items()} == {
        "default": (mine,),
        "replica": (theirs,),
    }
    await store.close(5)


async def test_a_target_pointed_at_another_database_starts_afresh_and_finds_the_old_evidence_on_return(
    url: str,
) -> None:
    elsewhere = {"databases": {"default": "other.example:5432/app"}}
    await keep(url, [survival(1), FULL_OUTAGE])

    assert await recall(url, **elsewhere) == History()
    await keep(url, [survival(2)], **elsewhere)

    assert ids(await recall(url, **elsewhere)) == ["run-2"]
    assert await recall(url) == History(observations=(survival(1),), outages=(FULL_OUTAGE,))


async def test_a_store_in_memory_works_while_it_lives(caplog: pytest.LogCaptureFixture) -> None:
    store = store_at("sqlite+aiosqlite://")
    assert (await store.load())["default"] == History()
    async with running(store):
        store.add(survival(1))
        await written(store)
    assert store.warning is None
    assert not messages(caplog)


# -- how much is loaded, how much is kept -----------------------------------------------------------------------------


async def test_of_the_current_regime_only_routine_repetitions_are_cut(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LOADED_NEWEST", 4)
    monkeypatch.setattr(queries, "LOADED_OF_REGIME", 6)
    await keep(
        url,
        [
            survival(0, arm="search", regime=1),
            survival(1, arm="search", regime=2),
            survival(2, arm="search", regime=2, outcome="died"),
            *(survival(number, regime=2) for number in range(3, 20)),
            *(Outage(id=f"outage-{number}", target="default", kind="cull") for number in range(9)),
        ],
    )

    history = await recall(url)

    assert ids(history) == numbered([1, 2, *range(14, 20)])
    assert [outage.id for outage in history.outages] == [f"outage-{number}" for number in range(5, 9)]


async def test_the_newest_are_loaded_whatever_their_regime(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "LOADED_NEWEST", 4)
    await keep(url, [*(survival(number, regime=1) for number in range(9)), survival(9, regime=2)])

    assert ids(await recall(url)) == numbered(range(6, 10))


async def test_what_is_pruned_is_old_and_not_what_a_restart_builds_upon(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "LOADED_OF_REGIME", 2)
    monkeypatch.setattr(queries, "KEPT_OBSERVATIONS", 5)
    monkeypatch.setattr(queries, "KEPT_OUTAGES", 3)
    other = {"databases": {"default": "other.example:5432/app"}}
    await keep(url, [survival(0)], **other)
    await keep(
        url,
        [
            survival(0, regime=1),
            survival(1, regime=2, arm="search"),
            *(survival(number, regime=2) for number in range(2, 20)),
            *(Outage(id=f"outage-{number}", target="default", kind="cull") for number in range(9)),
        ],
    )
    monkeypatch.setattr(queries, "LOADED_NEWEST", 1000)

    history = await recall(url)

    assert ids(history) == numbered([1, *range(15, 20)])
    assert [outage.id for outage in history.outages] == [f"outage-{number}" for number in range(6, 9)]
    assert ids(await recall(url, **other)) == ["run-0"]


async def test_records_in_words_of_another_version_are_left_out_and_the_others_read(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await keep(url, [survival(1), survival(2), survival(3), FULL_OUTAGE])
    async with connection_to(url) as connection:
        await connection.execute(text("UPDATE connection_health_observations SET death = 'haunted' WHERE id = 'run-2'"))

    history = await recall(url)

    assert ids(history) == ["run-1", "run-3"]
    assert history.outages == (FULL_OUTAGE,)
    assert [r.records for r in caplog.records if r.message == "evidence of another version left unread"] == [1]


# -- the schema -------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connection_to(url: str) -> AsyncIterator[Any]:
    engine = create_engine(make_url(url))
    async with engine.begin() as connection:
        yield connection
    await engine.dispose()


def differences(connection: Connection) -> list[Any]:
    options = {"version_table": tables.version.name, "compare_type": True, "compare_server_default": False}
    return compare_metadata(MigrationContext.configure(connection, opts=options), tables.metadata)


def reflected(connection: Connection) -> Mapping[str, Any]:
    """Everything the database itself says about its tables."""
    look = inspect(connection)
    return {
        name: (
            [{**column, "type": str(column["type"])} for column in look.get_columns(name)],
            look.get_pk_constraint(name),
            look.get_unique_constraints(name),
            look.get_indexes(name),
        )
        for name in look.get_table_names()
    }


async def test_declarations_and_migrations_agree(url: str) -> None:
    logging_before = logging_configuration()
    async with connection_to(url) as connection:
        await connection.run_sync(lambda c: command.upgrade(schema.alembic_config(c), "head"))
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(schema.revision) == schema.HEAD
        migrated = await connection.run_sync(reflected)

        await connection.run_sync(lambda c: command.downgrade(schema.alembic_config(c), "base"))
        assert list(await connection.run_sync(reflected)) == [tables.version.name]

        await connection.run_sync(schema.bring_to_head)
        assert await connection.run_sync(differences) == []
        assert await connection.run_sync(reflected) == migrated
    assert logging_configuration() == logging_before


@pytest.mark.parametrize(
    "make",
    [schema.bring_to_head, lambda connection: command.upgrade(schema.alembic_config(connection), "head")],
    ids=["declared", "migrated"],
)
async def test_a_schema_change_happens_as_a_whole_or_not_at_all(url: str, make: Callable[[Connection], None]) -> None:
    async with connection_to(url) as connection:
        await connection.run_sync(make)
        assert len(await connection.run_sync(reflected)) == 4
        await connection.rollback()
    async with connection_to(url) as connection:
        assert await connection.run_sync(reflected) == {}


async def test_an_outage_stored_by_an_earlier_version_is_read(url: str) -> None:
    row = tables.outage_row(FULL_OUTAGE, database=DATABASE)
    for structure in ("connect", "read", "write"):
        row[structure].pop("watched")  # for which there was no word
    del row["dns_changed"]
    async with connection_to(url) as connection:
        await connection.run_sync(lambda c: command.upgrade(schema.alembic_config(c), "0001"))
        earlier = await connection.run_sync(lambda c: Table(tables.outages.name, MetaData(), autoload_with=c))
        await connection.execute(insert(earlier).values(**row, dns_changed_at=1_763_990_140.7))
    store = store_at(url)
    (outage,) = (await store.load())["default"].outages
    await store.close(5)
    assert FULL_OUTAGE.write is not None
    write = dataclasses.replace(FULL_OUTAGE.write, watched=True)
    assert outage == dataclasses.replace(FULL_OUTAGE, dns_changed=None, write=write)


def logging_configuration() -> tuple[object, ...]:
    root, ours = logging.getLogger(), logging.getLogger("sidecar.store")
    return (root.level, tuple(root.handlers), ours.level, tuple(ours.handlers), ours.disabled, ours.propagate)


def test_the_known_revision_is_the_last_migration() -> None:
    scripts = ScriptDirectory.from_config(schema.alembic_config(None))  # type: ignore[arg-type]
    assert scripts.get_current_head() == schema.HEAD


async def test_a_store_of_a_newer_version_is_left_alone(url: str) -> None:
    await keep(url, [survival(1)])
    async with connection_to(url) as connection:
        await connection.execute(text(f"UPDATE {tables.version.name} SET version_num = '9999'"))

    store = store_at(url)
    assert (await store.load())["default"] == History()
    store.add(survival(2))
    await store.close(0.5)

    assert store.pending_writes == 1
    assert "revision 9999, is not known to this version: update the sidecar" in (store.warning or "")


async def test_sidecars_that_start_together_share_a_new_store(url: str, caplog: pytest.LogCaptureFixture) -> None:
    stores = [store_at(url) for _ in range(6)]
    await asyncio.gather(*(store.load() for store in stores))
    for number, store in enumerate(stores):
        store.add(survival(number))
    await asyncio.gather(*(store.close(20) for store in stores))

    assert not messages(caplog)
    assert sorted(ids(await recall(url))) == numbered(range(6))


def test_alembic_is_not_imported_when_there_is_nothing_to_migrate(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from sidecar.store import EvidenceStore
async def live():
    store = EvidenceStore(sys.argv[1], databases={"default": "d"})
    assert await store.load() and store.warning is None, store.warning
    await store.close(5)
asyncio.run(live())
print([name for name in sys.modules if name.split(".")[0] in ("alembic", "mako")])
"""
    arguments = [sys.executable, "-c", script, sqlite_url(tmp_path / "evidence.db")]
    for life in ("first", "second"):
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]", life


# -- a store that does not take evidence ------------------------------------------------------------------------------


async def test_what_a_missing_folder_delayed_arrives_when_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "volume"
    store = store_at(sqlite_url(folder / "evidence.db"))

    assert await store.load() == {"default": History()}
    assert store.warning == (
        f"evidence is not stored in {folder / 'evidence.db'}: unable to open database file: its folder must exist and "
        "be writable, or name another file in store.url (0 records wait in memory and are written when it works again)"
    )
    async with running(store):
        for number in range(5):
            store.add(survival(number))
            await asyncio.sleep(0.06)  # several attempts
        assert store.pending_writes == 5
        assert "5 records wait" in (store.warning or "")
        folder.mkdir()
        await written(store)
        assert store.warning is None

    assert ids(await recall(sqlite_url(folder / "evidence.db"))) == numbered(range(5))
    assert messages(caplog) == ["store unavailable, keeping evidence in memory", "store available again"]


async def test_a_relative_path_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_at("sqlite+aiosqlite:///missing/evidence.db")
    await store.load()
    assert (store.warning or "").startswith(f"evidence is not stored in {tmp_path / 'missing' / 'evidence.db'}: ")


async def test_a_store_that_could_not_be_loaded_is_noticed_when_it_is_back_without_a_record(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    path.mkdir()
    store = store_at(sqlite_url(path))
    await store.load()
    assert store.warning is not None

    async with running(store):
        path.rmdir()
        await until(lambda: store.warning is None)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 256 KiB."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("needs root to mount a small file system")
    path = tmp_path / "volume"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def remount(volume: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", volume], check=True)


async def test_a_full_disk_delays_evidence_and_loses_none(volume: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = sqlite_url(volume / "evidence.db")
    ballast = volume / "ballast"
    ballast.write_bytes(bytes(150 * 1024))
    store = store_at(url)
    await store.load()
    records = [survival(number, message="x" * 100) for number in range(400)]

    async with running(store):
        for record in records[:10]:
            store.add(record)
        await written(store)
        for record in records[10:]:
            store.add(record)
        await until(lambda: store.warning is not None)
        assert "database or disk is full: free some space there" in (store.warning or "")
        assert store.pending_writes == 390
        ballast.unlink()
        await written(store)

    assert (await recall(url)).observations == tuple(records)
    assert messages(caplog) == ["store unavailable, keeping evidence in memory", "store available again"]


async def test_a_disk_full_from_the_start_is_only_a_delay(volume: Path) -> None:
    url = sqlite_url(volume / "evidence.db")
    ballast = volume / "ballast"
    ballast.write_bytes(bytes(240 * 1024))  # leaves room for the file, but not for the tables
    store = store_at(url)
    await store.load()
    assert "full" in (store.warning or "")

    async with running(store):
        store.add(survival(1))
        ballast.unlink()
        await written(store)

    assert ids(await recall(url)) == ["run-1"]


async def test_a_read_only_volume_is_read_and_evidence_waits(volume: Path) -> None:
    url = sqlite_url(volume / "evidence.db")
    await keep(url, [survival(1)])
    remount(volume, "ro")
    store = store_at(url)

    assert ids((await store.load())["default"]) == ["run-1"]
    assert store.warning is None
    async with running(store):
        store.add(survival(2))
        await until(lambda: store.warning is not None)
        assert "make it writable, or name another file" in (store.warning or "")
        remount(volume, "rw")
        await written(store)

    assert ids(await recall(url)) == ["run-1", "run-2"]


async def test_a_lock_held_by_another_process_delays_evidence(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    await keep(sqlite_url(path), [survival(0)])
    store = store_at(sqlite_url(path))
    await store.load()

    with holding_a_lock(path) as release:
        async with running(store):
            for number in range(1, 50):
                store.add(survival(number))
            await until(lambda: store.warning is not None)
            assert "database is locked: another process holds a lock on it" in (store.warning or "")
            release()
            await written(store)

    assert ids(await recall(sqlite_url(path))) == numbered(range(50))


async def test_a_store_that_cannot_be_waited_for_is_given_up_in_time(tmp_path: Path) -> None:
    """The deadline is shorter than SQLite's own patience with the lock, which cannot be interrupted."""
    path = tmp_path / "evidence.db"
    await keep(sqlite_url(path), [survival(0)])
    store = store_at(sqlite_url(path), deadline_seconds=0.2)

    with holding_a_lock(path) as release:
        assert await store.load() == {"default": History()}
        assert "no answer in time" in (store.warning or "")
        release()


@contextlib.contextmanager
def holding_a_lock(path: Path) -> Iterator[Callable[[], None]]:
    script = f"""
import sqlite3
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"locked\n"
            yield holder.stdin.close
        finally:
            holder.kill()


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"this is a letter, not a database" * 50, "file is not a database: name another file in store.url"),
        (None, "database disk image is malformed: move the file away"),
    ],
    ids=["foreign", "damaged"],
)
async def test_a_file_that_is_no_store_is_named(tmp_path: Path, content: bytes | None, advice: str) -> None:
    path = tmp_path / "evidence.db"
    if content is None:
        await keep(sqlite_url(path), (survival(number) for number in range(500)))
        content = path.read_bytes()
        content = content[:4096] + bytes(b ^ 0xFF for b in content[4096:])
    path.write_bytes(content)

    store = store_at(sqlite_url(path))

    assert await store.load() == {"default": History()}
    assert (store.warning or "").startswith(f"evidence is not stored in {path}: {advice}")
    assert path.read_bytes() == content
    await store.close(5)


async def test_a_file_deleted_under_the_writer_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    store = store_at(sqlite_url(path))
    async with running(store):
        store.add(survival(1))
        await written(store)
        path.unlink()
        store.add(survival(2))
        await written(store)

    assert ids(await recall(sqlite_url(path))) == ["run-2"]


async def test_what_memory_cannot_hold_is_the_oldest_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "volume"
    url = sqlite_url(folder / "evidence.db")
    store = store_at(url, max_pending=10)
    await store.load()
    async with running(store):
        for number in range(25):
            store.add(survival(number))
        assert (store.pending_writes, store.dropped_writes) == (10, 15)
        assert "10 records wait in memory and are written when it works again; 15 were given up" in (
            store.warning or ""
        )
        folder.mkdir()
        await written(store)

    assert ids(await recall(url)) == numbered(range(15, 25))
    assert messages(caplog) == [
        "store unavailable, keeping evidence in memory",
        "store backlog full, giving up the oldest records",
        "store available again",
    ]


async def test_an_overflow_while_a_batch_is_being_written_costs_no_other_record(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    await keep(sqlite_url(path), [])
    store = store_at(sqlite_url(path), max_pending=5)
    await store.load()
    with holding_a_lock(path) as release:
        async with running(store):
            for number in range(5):
                store.add(survival(number))
            await asyncio.sleep(0.2)  # the batch of five now waits for the lock
            for number in range(5, 8):
                store.add(survival(number))
            assert (store.pending_writes, store.dropped_writes) == (5, 3)
            release()
            await written(store)

    assert ids(await recall(sqlite_url(path))) == numbered(range(8)), "the batch arrived after all"


@pytest.mark.parametrize(
    ("backend", "poison"),
    [
        ("sqlite", {"at": math.nan}),  # stored as NULL, which the column refuses
        ("sqlite", {"message": "\udcff"}),
        ("postgresql", {"message": "nul \0"}),
        ("postgresql", {"message": "\udcff"}),
        ("postgresql", {"identity": Identity(started_at=math.nan)}),
    ],
)
async def test_a_record_the_database_refuses_does_not_hold_up_the_rest(
    backend: str,
    poison: Mapping[str, Any],
    tmp_path: Path,
    postgres: PostgresServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = sqlite_url(tmp_path / "evidence.db") if backend == "sqlite" else await fresh_database(postgres)
    records = [survival(number) for number in range(40)]
    records[17] = dataclasses.replace(records[17], **poison)

    store = store_at(url)
    await store.load()
    for record in records:
        store.add(record)
    await store.close(20)

    assert (store.pending_writes, store.dropped_writes, store.warning) == (0, 1, None)
    assert ids(await recall(url)) == numbered(number for number in range(40) if number != 17)
    refused = [record for record in caplog.records if record.message == "record refused by the store and left out"]
    assert [record.id for record in refused] == ["run-17"]


async def test_regimes_counted_by_a_sidecar_that_could_not_read_come_after_those_stored(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    url = sqlite_url(path)
    await keep(url, [survival(1, regime=1), survival(2, regime=2), survival(3, regime=3)])
    path.rename(tmp_path / "aside")
    path.mkdir()
    blind = store_at(url)
    await blind.load()
    assert blind.warning is not None
    path.rmdir()
    (tmp_path / "aside").rename(path)
    async with running(blind):
        for record in (survival(11, regime=1), survival(12, regime=2)):
            blind.add(record)
            await written(blind)

    regimes = {observation.id: observation.regime for observation in (await recall(url)).observations}

    assert regimes == {"run-1": 1, "run-2": 2, "run-3": 3, "run-11": 4, "run-12": 5}


# -- a PostgreSQL store that goes away --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate", "crash"])
async def test_evidence_outlives_a_restart_of_the_store(
    make_server: Callable[..., PostgresServer], mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = await asyncio.to_thread(make_server)
    url = server.url(scheme="postgresql+asyncpg")
    numbers = itertools.count()
    store = store_at(url)
    await store.load()

    async def produce() -> None:
        for number in numbers:
            store.add(survival(number))
            await asyncio.sleep(0.002)

    async with running(store):
        producer = asyncio.create_task(produce())
        await asyncio.sleep(0.3)
        await asyncio.to_thread(server.stop, mode)
        await until(lambda: store.warning is not None)
        await asyncio.to_thread(server.start)
        await until(lambda: store.warning is None)
        producer.cancel()
        await written(store)

    found = ids(await recall(url))
    assert found == numbered(range(len(found)))
    assert len(found) == next(numbers)
    assert messages(caplog) == ["store unavailable, keeping evidence in memory", "store available again"]


async def test_a_store_that_freezes_holds_up_nobody_and_gets_everything_when_it_thaws(
    make_server: Callable[..., PostgresServer],
) -> None:
    server = await asyncio.to_thread(make_server)
    url = server.url(scheme="postgresql+asyncpg")
    await keep(url, [survival(0)])
    store = store_at(url, deadline_seconds=0.5)
    await store.load()

    with frozen(server):
        async with running(store):
            store.add(survival(1))
            await until(lambda: store.warning is not None)
            assert "no answer in time" in (store.warning or "")
            late = store_at(url, deadline_seconds=0.5)
            async with asyncio.timeout(30):
                assert await late.load() == {"default": History()}
            thaw(server)
            await written(store)

    assert ids(await recall(url)) == ["run-0", "run-1"]


@contextlib.contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    try:
        for process in processes_of(server):
            with contextlib.suppress(psutil.NoSuchProcess):  # a session that had just ended
                process.suspend()
        yield
    finally:
        thaw(server)


def thaw(server: PostgresServer) -> None:
    for process in processes_of(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


def processes_of(server: PostgresServer) -> list[psutil.Process]:
    pid = int((server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    postmaster = psutil.Process(pid)
    return [postmaster, *postmaster.children()]


async def test_closing_a_store_that_does_not_answer_ends_in_time_and_says_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    released = asyncio.Event()

    async def listen_only(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()
        writer.close()

    server = await asyncio.start_server(listen_only, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = store_at(f"postgresql+asyncpg://u@127.0.0.1:{port}/d")
    for number in range(7):
        store.add(survival(number))

    async with asyncio.timeout(60):
        await store.close(0.3)

    lost = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [(record.records, record.store) for record in lost] == [(7, f"127.0.0.1:{port}/d")]
    released.set()
    server.close()
    await server.wait_closed()


async def test_closing_writes_what_is_pending_even_while_the_writer_pauses(tmp_path: Path) -> None:
    folder = tmp_path / "volume"
    url = sqlite_url(folder / "evidence.db")
    store = store_at(url, retry_seconds=(1000, 1000))
    async with running(store):
        store.add(survival(1))
        await until(lambda: store.warning is not None)
        folder.mkdir()
        await store.close(5)

    assert ids(await recall(url)) == ["run-1"]


# -- what nobody may see, and what nobody should pay for --------------------------------------------------------------


async def test_the_password_is_nowhere(
    make_server: Callable[..., PostgresServer], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    right, wrong = "kept/secret@1", "guessed+secret"
    server = await asyncio.to_thread(make_server, password=right)
    good = server.url(scheme="postgresql+asyncpg")
    bad = make_url(good).set(password=wrong).render_as_string(hide_password=False)
    shown = []

    for url in (good, bad, good.replace("/postgres", "/missing"), bad.replace(str(server.port), "1")):
        store = store_at(url)
        await store.load()
        store.add(survival(1))
        await store.close(0.5)
        shown += [store.warning or "", repr(store), str(vars(store))]
    await asyncio.to_thread(server.stop)
    store = store_at(good)
    await store.load()
    shown += [store.warning or ""]

    assert "password authentication failed" in shown[3]
    shown += [str(record.__dict__) + record.getMessage() for record in caplog.records]
    shown += capfd.readouterr()
    assert len(caplog.records) > 5
    for secret in (right, quote(right, safe=""), wrong, quote(wrong)):
        assert not [words for words in shown if secret in words]


async def test_at_rest_the_store_holds_no_connection_no_file_and_no_thread(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    threads = store_threads()
    stores = [store_at(sqlite_url(tmp_path / "evidence.db")), store_at(await fresh_database(postgres))]
    async with contextlib.AsyncExitStack() as stack:
        for store in stores:
            await store.load()
            await stack.enter_async_context(running(store))
            store.add(survival(1))
            await written(store)

        process = psutil.Process()
        await until(lambda: store_threads() == threads)
        await until(lambda: not [file for file in process.open_files() if "evidence.db" in file.path])
        await until(
            lambda: not [c for c in process.net_connections("tcp") if c.raddr and c.raddr.port == postgres.port]
        )


async def test_postgresql_is_told_who_is_writing(make_server: Callable[..., PostgresServer]) -> None:
    server = await asyncio.to_thread(make_server, {"log_connections": "all", "log_line_prefix": "[%a] "})
    await keep(server.url(scheme="postgresql+asyncpg"), [survival(1)])
    assert "[connhealth/store]" in server.log.read_text()


def test_the_file_can_be_read_with_the_sqlite3_shell_while_the_sidecar_rests(tmp_path: Path) -> None:
    path = tmp_path / "evidence.db"
    asyncio.run(keep(sqlite_url(path), [FULL_OBSERVATION, FULL_OUTAGE]))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT idle_seconds, death FROM connection_health_observations").fetchall()
    assert rows == [(FULL_OBSERVATION.idle_seconds, "fatal")]
