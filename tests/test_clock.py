"""The one clock: what is stamped by it goes with the system's wall clock, and never bends meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from sidecar.clock import TOLERANCE_SECONDS, Clock, boot_time

HOUR = 3600.0


class System:
    """A machine whose wall clock can be set."""

    ahead_seconds = 0.0

    def read_wall(self) -> float:
        return time.time() + self.ahead_seconds


@pytest.mark.parametrize("step", [HOUR, -HOUR, 3 * TOLERANCE_SECONDS])
def test_a_step_is_taken_up_when_asked_for_and_not_before(step: float) -> None:
    system = System()
    clock = Clock(read_wall=system.read_wall)
    assert clock.wall() == pytest.approx(time.time(), abs=0.5)
    offset = clock.offset_seconds
    system.ahead_seconds = step
    assert clock.offset_seconds == offset
    assert clock.wall() == pytest.approx(time.time(), abs=0.5)
    clock.follow_wall()
    assert clock.offset_seconds - offset == pytest.approx(step, abs=TOLERANCE_SECONDS)
    assert clock.wall() == pytest.approx(system.read_wall(), abs=0.5)


def test_slewing_below_the_tolerance_is_no_news() -> None:
    system = System()
    clock = Clock(read_wall=system.read_wall)
    offset = clock.offset_seconds
    system.ahead_seconds = TOLERANCE_SECONDS / 2
    clock.follow_wall()
    assert clock.offset_seconds == offset


def test_time_lost_between_two_readings_is_no_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended by the scheduler after either of them."""
    ticks = iter([100.0, 100.0, 107.0, 108.0, 108.0])
    walls = iter([1000.0, 1003.0])
    monkeypatch.setattr(Clock, "monotonic", lambda _: next(ticks))
    clock = Clock(read_wall=_next(walls))
    assert clock.offset_seconds == 900.0
    clock.follow_wall()  # read at 1003, some time between 100 and 107
    assert clock.offset_seconds == 900.0


def _next(readings: Iterator[float]) -> Callable[[], float]:
    return lambda: next(readings)


def test_no_two_lives_have_the_same_id() -> None:
    assert len({Clock().run_id() for _ in range(3)}) > 1
    assert int(Clock().run_id(), 16) == pytest.approx(time.time_ns(), rel=1e-6)


def test_boot_time_never_goes_back() -> None:
    readings = [boot_time() for _ in range(100)]
    assert readings == sorted(readings)
