"""A pause: for a while nothing is held on any server, because somebody needs it so (a maintenance, DROP DATABASE).

It has an end from the beginning, because a sidecar that is forgotten in a pause would measure nothing for ever; and it
is told by the wall clock, because it outlives the process. And it has a longest duration, which holds for what is read
back as well: a clock that was set back while nothing ran must not make a year of ten minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sidecar.core.budget import PauseReason

SHORTEST, LONGEST = "1s", "24h"
"""How long a pause may be."""

UNLESS_TOLD = "10m"
"""How long a pause is otherwise: a migration, not a night."""

LONGEST_SECONDS, UNLESS_TOLD_SECONDS = 86400.0, 600.0
"""The same as `LONGEST` and `UNLESS_TOLD`, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Everything was given back, and nothing is opened before `until`. Both are wall-clock times."""

    since: float
    until: float
    reason: PauseReason = PauseReason.BY_HAND

    def remaining_seconds(self, now_at: float) -> float:
        """How long it still lasts; 0 when it is over."""
        return max(0.0, self.until - now_at)

    def taken_up(self, now_at: float) -> Pause | None:
        """What is left of it for who reads it back at this time; None where that is nothing."""
        remaining = min(self.remaining_seconds(now_at), LONGEST_SECONDS)
        return replace(self, since=min(self.since, now_at), until=now_at + remaining) if remaining > 0 else None
