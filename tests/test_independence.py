"""Can one event have killed both? Small questions over a few times each."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import pytest

from sidecar.core.independence import (
    ONE_MOMENT_SECONDS,
    EndAtRest,
    fewest_events,
    in_company,
    no_instant_in_common,
    separate_moments,
)


@dataclass(frozen=True)
class Seen:
    """A death, or a life, known from `began` to `at`."""

    began: float
    at: float
    visible: bool = False


def shown(*times: float) -> list[Seen]:
    return [Seen(began=at, at=at, visible=True) for at in times]


def test_what_showed_in_one_moment_is_one() -> None:
    assert separate_moments([]) == 0
    assert separate_moments(shown(100.0, 100.0 + ONE_MOMENT_SECONDS)) == 1
    assert separate_moments(shown(102.0, 100.0)) == 2
    # Each is compared with the first of its moment, so that a moment does not grow.
    assert separate_moments(shown(100.0, 100.9, 101.8)) == 2


def test_what_was_found_on_use_counts_each() -> None:
    assert separate_moments([Seen(0.0, 100.0), Seen(0.0, 100.0)]) == 2
    assert separate_moments([Seen(0.0, 100.0), *shown(100.5)]) == 1, "but it opens a moment"


def test_many_with_an_instant_in_common_are_one_event() -> None:
    deaths = [Seen(0.0, 100.0), Seen(50.0, 150.0), Seen(90.0, 190.0)]
    assert fewest_events(deaths, [], many=2) == 1
    assert fewest_events(deaths, [], many=3) == 3, "so few are counted one by one"
    assert fewest_events([*deaths, Seen(100.0, 200.0)], [], many=2) == 2, "one that did not live then is another"


def test_who_rested_through_all_that_time_and_lives_is_an_alibi() -> None:
    deaths = [Seen(0.0, 100.0), Seen(50.0, 150.0), Seen(90.0, 190.0)]
    assert fewest_events(deaths, [Seen(90.0, 100.0)], many=2) == 3
    assert fewest_events(deaths, [Seen(91.0, 200.0), Seen(0.0, 99.0)], many=2) == 1, "it may have been spared"


@pytest.mark.parametrize(
    ("intervals", "separate"),
    [
        ([], False),
        ([(0.0, 10.0)], False),
        ([(0.0, 10.0), (9.0, 20.0)], False),
        ([(0.0, 10.0), (10.0, 20.0)], False),
        ([(11.0, 20.0), (0.0, 10.0)], True),
        ([(0.0, 10.0), (5.0, 12.0), (11.0, 20.0)], False),  # each of them with the next
        ([(0.0, 10.0), (-inf, inf)], False),
    ],
)
def test_no_single_event_without_an_instant_in_common(intervals: list[tuple[float, float]], separate: bool) -> None:
    assert no_instant_in_common([Seen(began, at) for began, at in intervals]) is separate


def rested(idle_seconds: float, age_seconds: float, at: float = 100.0) -> EndAtRest:
    return EndAtRest(at=at, idle_seconds=idle_seconds, age_seconds=age_seconds)


@pytest.mark.parametrize(
    ("other", "together"),
    [
        (rested(20.0, 20.0), True),
        (rested(20.0, 20.0, at=100.2), True),
        (rested(20.0, 20.0, at=100.3), False),  # another moment
        (rested(61.0, 20.0), False),  # one timer of rests ended both
        (rested(20.0, 590.0), False),  # one timer of ages did
    ],
)
def test_who_ended_in_the_same_moment_for_a_timer_of_neither_kind_is_company(other: EndAtRest, together: bool) -> None:
    one = rested(60.0, 600.0)
    assert in_company(one, [one, other], within_seconds=0.25) is together
    assert in_company(other, [one, other], within_seconds=0.25) is together
