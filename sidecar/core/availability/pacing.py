"""When to try again, after an answer that was no success.

Theory of operation
===================

A database that says within milliseconds that it wants no connection is there: it has too many, or does not know the
password, the role, the database. Asking ten times a second would be answered ten times a second, fill its log, and get
addresses banned. Nothing is timed by it either, for the database is not away. So attempts come with growing pauses,
counted from the beginning of one to that of the next, as long as the answer stays a refusal.

Where nobody answers, or somebody says that it is only starting, none of this holds: it will be back, and when it is
back is what is measured (see `machine`).
"""

from __future__ import annotations

from dataclasses import dataclass

PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
"""After the first refusal, after the second, … and after each from the last on."""

PATIENCE_SECONDS = 600.0
"""For so long whoever refuses may be mended any minute."""

LATER_SECONDS = 300.0
"""The pause after that."""

SPREAD = 0.2
"""Of a pause: by so much it may be shorter or longer, so that many sidecars do not call in step."""

TAKEN_UP_WITHIN_SECONDS = 62.0
"""No pause is longer while there is patience: what was mended is taken up in about a minute."""


def pause_after(refusals: int, *, lasted_seconds: float, jitter: float) -> float:
    """Seconds from the beginning of the attempt that was refused to that of the next.

    `refusals` counts them in a row, `lasted_seconds` for how long they have gone on, `jitter` from [0, 1).
    """
    impatient = lasted_seconds < PATIENCE_SECONDS
    pause = PAUSES_SECONDS[min(refusals, len(PAUSES_SECONDS)) - 1] if impatient else LATER_SECONDS
    longest = (1 + SPREAD) * pause
    if impatient:
        longest = min(longest, TAKEN_UP_WITHIN_SECONDS)
    shortest = (1 - SPREAD) * pause
    return shortest + (longest - shortest) * jitter


@dataclass(slots=True)
class Refusals:
    """The refusals in a row, and what pause follows from them. Times are monotonic seconds."""

    count: int = 0
    _since: float = 0.0
    _heard: float = 0.0

    def add(self, begun: float, now: float) -> bool:
        """An attempt begun at that time was refused. Whether that is news: of several under way only one counts."""
        if self.count and begun < self._heard:
            return False
        if not self.count:
            self._since = begun
        self.count += 1
        self._heard = now
        return True

    def pause(self, now: float, jitter: float) -> float:
        return pause_after(max(1, self.count), lasted_seconds=now - self._since, jitter=jitter)

    def clear(self) -> None:
        self.count = 0
