"""The one clock of a process: made by the composition root, handed to everyone who stamps a record.

Theory of operation
===================

It has three hands, because no single one is fit for everything:

- *monotonic*: what timers run on and what the machines of the core are told. It never steps, and stands still while the
  machine sleeps. It is that of the event loop: asyncio's loops run on `time.monotonic`.
- *boot time*: monotonic too, and goes on while the machine sleeps. Rests are measured with it, since a firewall on the
  path does not sleep. It is the same for everyone and cannot be set, so it is a function.
- *wall*: seconds since the Unix epoch, for records and people. It may step, by hand, by NTP, or because we slept.

The wall clock is not read each time something is stamped: it is made of monotonic time and an offset that is held here.
So two records of one moment agree, whoever stamped them. What the system's wall clock does meanwhile is taken up by
`follow_wall`, for all at once; whoever keeps an offset of its own asks for `offset_seconds` afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable

TOLERANCE_SECONDS = 0.005
"""By which the wall clock may differ from what is held here. Less is no step: NTP slews by as much in ten seconds
(adjtime(3): 500 ppm at most)."""

# Where there is no such name (macOS), CLOCK_MONOTONIC goes on while the machine sleeps.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_time() -> float:
    """Monotonic seconds that go on while the machine is suspended: what rests are measured with."""
    return time.clock_gettime(_BOOT_CLOCK)


class Clock:
    """See the module. `read_wall` tells what the system holds for the time: seconds since the Unix epoch."""

    def __init__(self, *, read_wall: Callable[[], float] = time.time) -> None:
        self._read_wall = read_wall
        self._offset_seconds = read_wall() - self.monotonic()

    def monotonic(self) -> float:
        """Seconds of the event loop's clock."""
        return time.monotonic()

    def wall(self) -> float:
        """Seconds since the Unix epoch, as of the last `follow_wall`."""
        return self.monotonic() + self._offset_seconds

    @property
    def offset_seconds(self) -> float:
        """What turns monotonic into wall-clock seconds."""
        return self._offset_seconds

    def follow_wall(self) -> None:
        """Take up what the system's wall clock has become, if it differs by more than the tolerance.

        We may be suspended between two readings: only what lies outside of both is a difference.
        """
        before, wall, after = self.monotonic(), self._read_wall(), self.monotonic()
        if not before - TOLERANCE_SECONDS <= wall - self._offset_seconds <= after + TOLERANCE_SECONDS:
            self._offset_seconds = wall - (before + after) / 2

    def run_id(self) -> str:
        """What tells this life of the process from all others: no two begin in the same nanoseconds."""
        return f"{int(self.wall() * 1e9):x}"
