from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.catalogue import known_limits
from sidecar.core.advice import attribution
from sidecar.core.idle.ladder import (
    RESOLUTION_RATIO,
    SPARED_UNTIL_SECONDS,
    Prior,
    best_test,
    rungs,
    settled,
    spares_sentinel,
)

DEFAULTS = (60.0, 300.0, 340.0, 350.0, 600.0, 3600.0, 28800.0)
SECONDS = st.floats(min_value=1.0, max_value=1e5)


@given(floor=st.floats(0.5, 60.0), octaves=st.floats(0.1, 16.0), connections=st.integers(2, 40))
def test_ladder_ascends_from_floor_to_cap(floor: float, octaves: float, connections: int) -> None:
    cap = floor * 2**octaves
    ladder = rungs(floor, cap, connections, DEFAULTS)
    assert ladder[0] == floor
    assert all(low < high for low, high in pairwise(ladder))
    assert cap <= ladder[-1] <= cap * 1.02


def test_a_limit_left_at_its_default_dies_on_the_rung_made_for_it() -> None:
    """Defaults within 5 % of each other share the rung of the largest."""
    ladder = rungs(5.0, 86_400.0, 8, DEFAULTS)
    for default in DEFAULTS:
        neighbour = max(other for other in DEFAULTS if default <= other <= 1.05 * default)
        dies_on = min(rung for rung in ladder if rung > 1.015 * default)
        assert 1.015 * neighbour < dies_on <= 1.021 * neighbour


@pytest.mark.parametrize(("floor", "cap"), [(0.0, 10.0), (10.0, 10.0), (20.0, 10.0)])
def test_impossible_range_is_refused(floor: float, cap: float) -> None:
    with pytest.raises(ValueError, match="floor"):
        rungs(floor, cap, 8)


def test_more_connections_take_narrower_steps() -> None:
    lengths = [len(rungs(5.0, 86_400.0, connections)) for connections in (2, 4, 8, 16)]
    assert lengths == sorted(set(lengths))


def test_the_rungs_found_by_search_stand_between_the_well_known_defaults() -> None:
    known = attribution.defaults(known_limits())
    ladder = rungs(5.0, 86_400.0, 8, known)
    on_defaults = set(rungs(5.0, 86_400.0, 8, known, {8: (10.0,)})) & set(ladder)
    assert all(any(1.015 * d < rung < 1.07 * d for rung in on_defaults) for d in known if d <= 86_400.0)
    assert set(ladder) > on_defaults
    assert ladder != rungs(5.0, 86_400.0, 8, known, {})
    assert max(high / low for low, high in pairwise(ladder)) < 2.2


def test_where_the_found_rungs_leave_a_wide_gap_steps_are_even() -> None:
    """Other defaults, another floor: the search did not know of them."""
    assert rungs(100.0, 1600.0, 8, (), {8: (1500.0,)}) == pytest.approx(rungs(100.0, 1600.0, 8, (), {}))
    assert rungs(100.0, 400.0, 8, (), {8: (200.0,)}) == (100.0, 200.0, 400.0)
    assert rungs(100.0, 400.0, 8, (), {8: (102.0, 200.0, 399.0)}) == (100.0, 200.0, 400.0)


def test_a_sentinel_is_spared_by_those_who_can_and_while_much_can_show_on_it() -> None:
    assert [spares_sentinel(connections, 0.0) for connections in (2, 5, 6, 8)] == [False, False, True, True]
    assert spares_sentinel(8, SPARED_UNTIL_SECONDS - 1)
    assert not spares_sentinel(8, SPARED_UNTIL_SECONDS)


@settings(deadline=None)  # a plan may take a tenth of a second, and the machine may stand still meanwhile
@given(limit=SECONDS, spread=st.floats(1.05, 4.0), ages=st.lists(st.floats(0.0, 1e5), min_size=1, max_size=16))
def test_refinement_always_settles_around_the_limit(limit: float, spread: float, ages: list[float]) -> None:
    """Any ages, any bracket: the tests chosen end with the limit between low and high, in few steps."""
    low, high = limit / spread, limit * spread
    started = {connection: -age for connection, age in enumerate(ages)}
    prior, now, used = Prior(DEFAULTS), 0.0, 0
    while not settled(low, high):
        test = best_test(low, high, {connection: now - start for connection, start in started.items()}, prior)
        now = max(now, started[test.connection] + test.rest_seconds)
        rested = now - started[test.connection]
        if rested < limit:
            low = max(low, rested)
        else:
            high = min(high, rested)
        started[test.connection] = now
        used += 1
        assert used < 60
    assert low <= limit <= high


@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_no_test_is_spent_on_a_bracket_left_too_wide_by_a_hair(cells: int) -> None:
    """Deaths are noticed a little late: a bracket planned to be just settled would not be, and cost another rest."""
    start = 100.0
    for n in range(50 * cells):
        limit = start * (0.999 * RESOLUTION_RATIO) ** ((n + 0.5) / 50)
        low, high = start, start * (0.999 * RESOLUTION_RATIO) ** cells
        resting, now, used = set(range(7)), start, 0
        while not settled(low, high):
            test = best_test(low, high, dict.fromkeys(resting, now), Prior())
            now = max(now, test.rest_seconds)
            if now < limit:
                low = now
            else:
                high = 1.0005 * now
            resting.remove(test.connection)
            used += 1
        assert used < cells or used == 0
