"""Server-sent events: what happens, as it happens.

Theory of operation
===================

Two things are told. *Records* (observations, outages) are told each, in order, with an id by which a reader that lost
its connection goes on where it was (`Last-Event-ID`). *State* (a target's advice, and how it stands) is told as it is
on connecting and then whenever it has changed; a reader that missed a version in between has missed nothing, so state
has no id and is never kept for anybody.

Nothing is queued for a reader. It holds the number of the last record it was given and the versions of the state it
knows, and what is new to it is looked up when it can take more. So a slow reader costs no more memory than a fast one,
and one that falls behind the journal is told so by a `reset`: what it holds is incomplete, fetch it anew. The same
event opens every stream that cannot be resumed, so that readers need one rule only.

Nothing is computed while nobody listens: the state is looked at only then, and everything told is encoded once for all
readers. They are woken a few at a time, so that whoever asks something else meanwhile waits for a few of them, not for
all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus

from sidecar import documents
from sidecar.core.evidence import Observation
from sidecar.core.journal import Entry
from sidecar.core.views import Source, TargetView
from sidecar.documents import dumps
from sidecar.web.answers import Problem

MAX_READERS = 256
"""At a time, of all targets together."""
LOOK_SECONDS = 1.0
"""Between two looks at the state."""
HEARTBEAT_SECONDS = 10.0
"""Of silence, after which something is said all the same: a proxy that would cut a silent stream is kept from it, and a
reader that hears nothing for longer knows that its stream is gone. An event rather than a comment, since browsers do
not show comments to the page."""
RETRY_MS = 2000
"""How long a browser waits before it connects again."""
_ENCODED = 64
"""Records kept in the form they are told in."""
_WOKEN_AT_ONCE = 8
"""Readers; telling all of them takes less than a millisecond."""
_PORTION = 16
"""Records told before looking again: a slow reader shall learn of the state, and of a gap, in between."""


@dataclass(slots=True)
class _Reader:
    """One reader: whom it asks about (None = all), and what it has been told."""

    target: str | None
    serial: int | None  # of the last record it was given; None = it has to begin anew
    known: dict[tuple[str, str], int] = field(default_factory=dict)  # versions of the state


@dataclass(slots=True)
class _Told:
    """One part of the state of one target, as it was last told."""

    basis: object = None  # what it was made of
    version: int = 0
    chunk: bytes = b""


class Feed:
    """What is told of `source`, to all readers."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._journal = source.journal
        self._journal.follow(self._wake)
        self._news = 0  # counts up
        self._waiting: dict[asyncio.Future[None], None] = {}  # readers that have been told everything, in order
        self._to_wake: deque[asyncio.Future[None]] = deque()
        self._looking: asyncio.Task[None] | None = None
        self._state: dict[tuple[str, str], _Told] = {}  # by target and part
        self._encoded: dict[int, bytes] = {}  # records by serial number
        self.readers = 0  # at present
        self._closed = False

    def close(self) -> None:
        """End all streams, at once, and those begun later."""
        self._closed = True
        self._wake()

    async def read(self, last_event_id: str | None, target: str | None) -> AsyncGenerator[bytes]:
        """One reader's stream, of all targets or of one; to be closed when the reader is gone.

        Raises Problem before the first chunk when there are too many readers.
        """
        if self.readers >= MAX_READERS:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"There are {MAX_READERS} readers of /events already; /targets tells how things stand when asked",
                kind="too-many-readers",
                title="Too many readers",
                headers={"Retry-After": "10"},
            )
        self.readers += 1
        try:
            yield b"retry: %d\n\n" % RETRY_MS
            if self._looking is None:
                self._look()
                self._looking = asyncio.create_task(self._keep_looking(), name="events")
            reader = _Reader(target, self._serial(last_event_id))
            while not self._closed:
                news = self._news  # taken before looking: what comes meanwhile is not missed
                for chunk in self._new_to(reader):
                    yield chunk
                if news != self._news or reader.serial != self._journal.last:
                    continue
                try:
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await self._more()
                except TimeoutError:
                    yield _event("heartbeat", dumps(documents.Heartbeat(at=time.time())))
        finally:
            self.readers -= 1
            if not self.readers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def _serial(self, last_event_id: str | None) -> int | None:
        run, _, serial = (last_event_id or "").rpartition("-")
        ours = run == self._journal.run and serial.isascii() and serial.isdecimal() and len(serial) <= 15
        return int(serial) if ours else None

    def _new_to(self, reader: _Reader) -> Iterator[bytes]:
        """What this reader has not been told yet. Each piece counts as told once the next is asked for."""
        entries = None if reader.serial is None else self._journal.after(reader.serial, _PORTION)
        if entries is None:
            serial = self._journal.last
            yield _event("reset", b"{}", self._id(serial))
            reader.serial, entries = serial, ()
            reader.known.clear()
        for entry in entries:
            if reader.target in (None, entry.record.target):
                yield self._record(entry)
            reader.serial = entry.serial
        for key, told in tuple(self._state.items()):
            if reader.target in (None, key[0]) and reader.known.get(key) != told.version:
                reader.known[key] = told.version
                yield told.chunk

    def _record(self, entry: Entry) -> bytes:
        chunk = self._encoded.get(entry.serial)
        if chunk is None:
            name = "observation" if isinstance(entry.record, Observation) else "outage"
            chunk = self._encoded[entry.serial] = _event(name, dumps(entry.record), self._id(entry.serial))
            if len(self._encoded) > _ENCODED:
                del self._encoded[next(iter(self._encoded))]
        return chunk

    def _id(self, serial: int) -> str:
        return f"{self._journal.run}-{serial}"

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._look():
                self._wake()

    def _look(self) -> bool:
        """Bring the state up to date; whether any of it has changed."""
        changed = False
        for name, view in self._source.targets().items():
            changed |= self._tell(name, "target", _standing(view), partial(documents.TargetSummary.of, view))
            advice = (view.recommendation, view.generated_at)
            changed |= self._tell(name, "recommendation", advice, partial(documents.recommendation, view))
        return changed

    def _tell(self, target: str, part: str, basis: object, document: Callable[[], object]) -> bool:
        told = self._state.setdefault((target, part), _Told())
        if told.basis == basis:
            return False
        told.basis, told.version, told.chunk = basis, told.version + 1, _event(part, dumps(document()))
        return True

    async def _more(self) -> None:
        """Wait for news."""
        woken = asyncio.get_running_loop().create_future()
        self._waiting[woken] = None
        try:
            await woken
        finally:
            self._waiting.pop(woken, None)

    def _wake(self) -> None:
        self._news += 1
        if not self._to_wake and self._waiting:
            asyncio.get_running_loop().call_soon(self._wake_some)
        self._to_wake.extend(self._waiting)
        self._waiting.clear()

    def _wake_some(self) -> None:
        for _ in range(min(_WOKEN_AT_ONCE, len(self._to_wake))):
            if not (woken := self._to_wake.popleft()).done():  # else its reader has given up waiting
                woken.set_result(None)
        if self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_some)


def _standing(view: TargetView) -> object:
    """What of a view is news when it changes: not that time passes, nor that the pool goes its rounds."""
    advice = view.recommendation
    probes = tuple((probe.connection, probe.arm, probe.state, probe.until_seconds) for probe in view.probes)
    return (
        *(advice.status, advice.settings, advice.idle_limit),
        *(view.readiness, view.reachable, view.stage, view.suspect, view.regime, probes),
        *(view.checkout, view.checkout_with_ping),
        *(view.paused, None if view.budget is None else (view.budget.granted, view.budget.hindrance)),
    )


def _event(name: str, data: bytes, event_id: str | None = None) -> bytes:
    """One event. Encoded JSON has no line break, so its data is one line."""
    head = b"" if event_id is None else b"id: %s\n" % event_id.encode()
    return b"%sevent: %s\ndata: %s\n\n" % (head, name.encode(), data)
