"""What has just been observed, in order, for those who follow it live.

Every record gets a serial number, and only the latest are kept. Who follows holds no more than the number of the last
record it has taken: nothing is queued for anybody, so a slow reader costs nothing, and one that falls behind what is
kept can be told so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from sidecar.core.evidence import Observation, Outage


@dataclass(frozen=True, slots=True)
class Entry:
    serial: int  # counts up from 1
    record: Observation | Outage


class Journal:
    """The latest `kept` records. `run` tells this journal from those of earlier lives of the process."""

    def __init__(self, run: str, kept: int = 512) -> None:
        self.run = run
        self.last = 0  # the serial number of the latest record
        self._entries: deque[Entry] = deque(maxlen=kept)
        self._listeners: list[Callable[[], None]] = []

    def add(self, record: Observation | Outage) -> None:
        """The same record may be added again as more becomes known of it."""
        self.last += 1
        self._entries.append(Entry(self.last, record))
        for listener in self._listeners:
            listener()

    def follow(self, listener: Callable[[], None]) -> None:
        """Call `listener`, which must not raise, after every record from now on."""
        self._listeners.append(listener)

    def after(self, serial: int, at_most: int) -> tuple[Entry, ...] | None:
        """The next ones after this number; None if they are no longer known, or the number was never given."""
        missed = self.last - serial
        if missed < 0 or missed > len(self._entries) or serial < 0:
            return None
        first = len(self._entries) - missed
        return tuple(islice(self._entries, first, first + at_most))
