"""Keeps evidence, and never stands in the way of those who produce it.

Theory of operation
===================

`add` puts a record into a queue in memory and returns. One writer (`run`) takes batches from its head, and removes them
only when they are committed; what arrives meanwhile makes the next batch. Every record has an id, and storing one again
replaces it: so a batch whose commit got no answer is simply written again, and each record arrives exactly once, in
order.

A store that does not take a batch, for whatever reason, is *unavailable*: that is logged once, told by `warning`, and
the writer tries again with growing pauses until it is back. Meanwhile the queue grows, up to a bound; beyond it the
oldest records are given up and counted. The one exception is a record whose content the database refuses: it would be
refused for ever and hold up the rest, so it is isolated by halving the batch, logged and left out.

A pause is kept beside the evidence, and by the same writer: the latest wish is written with the next batch, or alone,
and is read back with the history, before anything is opened.

Between batches no connection is held. The store's path may have an idle limit too, a file may be replaced or its
volume remounted, and at rest nothing costs memory or time. (So SQLite's write-ahead log would gain nothing: the last
connection to close checkpoints it and removes it. The rollback journal, unlike it, works on network volumes and lets a
read-only volume be read.)
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import Row, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sidecar.core.evidence import Observation, Outage
from sidecar.core.pause import Pause
from sidecar.store import queries, schema, tables
from sidecar.store.engine import complaint, create_engine, place, refuses_content

log = logging.getLogger("sidecar.store")

Record = Observation | Outage
_R = TypeVar("_R", Observation, Outage, Pause)

LARGEST_BATCH = 500  # records in one transaction
PRUNED_EVERY = 10_000  # records written; and with the first batch


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What is remembered of one target, oldest first.

    Of outages the newest thousand. Of observations the newest thousand, and the current regime from its beginning on;
    of that only routine repetitions are cut, to the newest thousand of each arm and outcome.
    """

    observations: tuple[Observation, ...] = ()
    outages: tuple[Outage, ...] = ()


class EvidenceStore:
    """The store at `url`: `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`.

    `databases` tells for each target which database it means, as `host:port/dbname`: evidence counts only for the same
    target and the same database, so a target pointed elsewhere starts afresh, and applications can share a store.
    `process` tells whose pause is kept: the same after a restart, and another for every sidecar that shares the store.

    `max_pending` bounds the records kept in memory while the store is unavailable. An operation is given up after
    `deadline_seconds`, and letting go of its connection takes at most two more (asyncpg says good-bye for that long;
    SQLite cannot be interrupted while it waits for a lock, but waits no longer than a second). `retry_seconds` are the
    first and the longest pause between attempts.

    All methods belong to one event loop. Nothing is opened before `load` or the first record.
    """

    def __init__(
        self,
        url: str,
        *,
        databases: Mapping[str, str],
        process: str = "",
        max_pending: int = 50_000,
        deadline_seconds: float = 10.0,
        retry_seconds: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        parsed = make_url(url)
        self._place = place(parsed)
        self._engine = create_engine(parsed)
        self._databases = databases
        self._process = process
        self._max_pending = max_pending
        self._deadline_seconds = deadline_seconds
        self._retry_seconds = retry_seconds

        self._pending: deque[Record] = deque()
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()  # one batch at a time, whether `run` or `close` writes it
        self._batch_size = LARGEST_BATCH
        self._dropped = 0
        self._overflowing = False
        self._unavailable_because: str | None = None
        self._schema_checked = False
        self._until_pruning = 0
        self._pause_kept: Pause | None = None
        self._pause_unwritten = False
        self._regimes_before: Mapping[str, int] | None = None  # per target, added to what is stored; None = not known

    @property
    def pending_writes(self) -> int:
        """Records that are in memory only, as yet; the wish to pause is one."""
        return len(self._pending) + self._pause_unwritten

    @property
    def pause(self) -> Pause | None:
        """The pause that an earlier life was told to make, once `load` has read it; or what was kept since."""
        return self._pause_kept

    @property
    def dropped_writes(self) -> int:
        """Records given up for lack of memory, or refused by the database, since the start."""
        return self._dropped

    @property
    def warning(self) -> str | None:
        """Why evidence is in memory only, and what to do; None while the store takes writes. Holds no secret."""
        if self._unavailable_because is None:
            return None
        waiting = f"{len(self._pending)} records wait in memory and are written when it works again"
        dropped = f"; {self._dropped} were given up" if self._dropped else ""
        return f"evidence is not stored in {self._place}: {self._unavailable_because} ({waiting}{dropped})"

    def add(self, record: Record) -> None:
        """Keep a record, or a new version of it. Returns at once and never raises."""
        self._pending.append(record)
        self._wake.set()
        if len(self._pending) > self._max_pending:
            self._pending.popleft()
            self._dropped += 1
            if not self._overflowing:
                self._overflowing = True
                log.error("store backlog full, giving up the oldest records", extra={"kept": self._max_pending})

    def keep_pause(self, pause: Pause | None) -> None:
        """Have the pause outlive the process, None: have none. Returns at once and never raises."""
        self._pause_kept, self._pause_unwritten = pause, True
        self._wake.set()

    async def load(self) -> dict[str, History]:
        """What earlier lives left behind, for every target. To be called once, before `run`.

        Never raises: if the store does not answer in time, every history is empty and `warning` says why. What is
        measured from then on is stored as later regimes than those that could not be read.
        """
        try:
            async with self._lock, asyncio.timeout(self._deadline_seconds):
                await self._check_schema()
                async with self._engine.connect() as connection:
                    histories = {key[0]: await self._history(connection, *key) for key in self._databases.items()}
                    if not self._pause_unwritten:  # else it is newer
                        self._pause_kept = await self._stored_pause(connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, the service must start
            self._unavailable(error)
            return {target: History() for target in self._databases}
        self._regimes_before = {}
        return histories

    async def run(self) -> None:
        """Write what is added, until cancelled. While nothing is pending and the store is well, no timer runs."""
        while True:
            await self._wake.wait()
            failures = 0
            while self._pending or self._pause_unwritten or self._unavailable_because:
                if await self._write():
                    failures = 0
                else:
                    await asyncio.sleep(self._pause(failures))
                    failures += 1
            self._wake.clear()

    async def close(self, deadline_seconds: float) -> None:
        """Write what is pending and let go of the store. What is still pending after `deadline_seconds` is lost."""
        try:
            async with asyncio.timeout(deadline_seconds):
                while self._pending or self._pause_unwritten:
                    if not await self._write():
                        await asyncio.sleep(0.1)
                await self._engine.dispose()
        except TimeoutError:
            log.error(  # noqa: TRY400 - the cause was logged when the store became unavailable
                "evidence lost, the store did not take it before the end",
                extra={"store": self._place, "records": len(self._pending), "error": self._unavailable_because},
            )
        if self._unavailable_because:
            # aiosqlite does not wait for the thread of a failed attempt, which then complains that the loop is closed.
            await asyncio.sleep(0.05)

    async def _write(self) -> bool:
        """Write the next batch, if there is one. False when the store is unavailable; then nothing has changed."""
        async with self._lock:
            batch = list(islice(self._pending, self._batch_size))
            pause, pause_unwritten = self._pause_kept, self._pause_unwritten
            try:
                async with asyncio.timeout(self._deadline_seconds):
                    await self._check_schema()
                    if pause_unwritten:  # first: a process that is told to pause may be ended soon
                        await self._write_pause(pause)
                        self._pause_unwritten = self._pause_kept is not pause
                    if batch:  # not so while waiting for a store that could not be loaded from
                        await self._insert(batch)
            except Exception as error:  # noqa: BLE001 - whatever it is, the records stay and the writer lives
                if not self._schema_checked or not refuses_content(error):
                    self._unavailable(error)
                    return False
                if len(batch) > 1:
                    self._batch_size = len(batch) // 2
                    return True
                refused = {"store": self._place, "id": batch[0].id, "error": complaint(error)}
                log.error("record refused by the store and left out", extra=refused)  # noqa: TRY400 - known cause
                self._dropped += 1
            self._batch_size = min(LARGEST_BATCH, self._batch_size * 2)
            for record in batch:  # the first ones are no longer there if the queue overflowed in the meantime
                if self._pending and self._pending[0] is record:
                    self._pending.popleft()
            self._available()
            return True

    async def _check_schema(self) -> None:
        """Once, and again after every failure: the file may be another one by now."""
        if self._schema_checked:
            return
        async with self._engine.connect() as connection:
            found = await connection.run_sync(schema.revision)
        if found != schema.HEAD:
            async with self._engine.begin() as connection:
                await connection.run_sync(schema.bring_to_head)
        self._schema_checked = True

    async def _insert(self, batch: Sequence[Record]) -> None:
        async with self._engine.begin() as connection:
            if self._regimes_before is None:
                self._regimes_before = await self._stored_regimes(connection)
            observations, outages = [], []
            for record in batch:
                database = self._databases.get(record.target, "")
                if isinstance(record, Outage):
                    outages.append(tables.outage_row(record, database=database))
                else:
                    before = self._regimes_before.get(record.target, 0)
                    observations.append(tables.observation_row(record, database=database, regimes_before=before))
            for table, rows in ((tables.observations, observations), (tables.outages, outages)):
                if rows:
                    await connection.execute(queries.upsert(table, connection.dialect.name), rows)
            if prune := self._until_pruning <= 0:
                await self._prune(connection)
        self._until_pruning = (PRUNED_EVERY if prune else self._until_pruning) - len(batch)

    async def _write_pause(self, pause: Pause | None) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(queries.no_pause(self._process))
            if pause is not None:
                await connection.execute(insert(tables.pauses), tables.pause_row(pause, process=self._process))

    async def _stored_pause(self, connection: AsyncConnection) -> Pause | None:
        row = (await connection.execute(queries.pause_of(self._process))).first()
        pauses = [] if row is None else _parsed((row,), tables.pause_of)
        return pauses[0] if pauses else None

    async def _stored_regimes(self, connection: AsyncConnection) -> Mapping[str, int]:
        """The last regime of each target that has been stored.

        A sidecar that could not read them when it started counts its own from one. Stored behind the others they are
        the current ones, as they should be, and are not mixed up with the first of long ago.
        """
        regimes = {}
        for target, database in self._databases.items():
            regimes[target] = await connection.scalar(select(queries.last_regime(target, database))) or 0
        return regimes

    async def _history(self, connection: AsyncConnection, target: str, database: str) -> History:
        observations = await connection.execute(queries.recent_observations(target, database))
        outages = await connection.execute(queries.recent_outages(target, database))
        return History(
            observations=_parsed(observations, tables.observation_of),
            outages=_parsed(outages, tables.outage_of),
        )

    async def _prune(self, connection: AsyncConnection) -> None:
        for key in self._databases.items():
            await connection.execute(queries.surplus_observations(*key))
            await connection.execute(queries.surplus_outages(*key))

    def _unavailable(self, error: Exception) -> None:
        reason = complaint(error)
        if self._unavailable_because is None:
            log.warning("store unavailable, keeping evidence in memory", extra={"store": self._place, "error": reason})
        self._unavailable_because = reason
        self._schema_checked = False
        self._wake.set()

    def _available(self) -> None:
        if self._unavailable_because is not None:
            log.info("store available again", extra={"store": self._place, "dropped": self._dropped})
        self._unavailable_because = None
        self._overflowing = False

    def _pause(self, failures: int) -> float:
        """Doubled by every failure; with jitter, since sidecars that share a store lose it together."""
        first, longest = self._retry_seconds
        return min(longest, first * 2.0 ** min(failures, 30)) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def _parsed(rows: Iterable[Row[Any]], parse: Callable[[Mapping[str, Any]], _R]) -> tuple[_R, ...]:
    """The records that can be understood; another version of the sidecar may have written what this one cannot."""
    records: list[_R] = []
    unknown = 0
    for row in rows:
        try:
            records.append(parse(row._asdict()))
        except (KeyError, TypeError, ValueError):
            unknown += 1
    if unknown:
        log.warning("evidence of another version left unread", extra={"records": unknown})
    return tuple(records)
