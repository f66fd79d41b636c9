"""What trials say about the limit: proven, dead by, strays, scatter, populations, verification, change."""

from __future__ import annotations

from copy import copy
from dataclasses import astuple
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.evidence import Death, Status
from sidecar.core.idle.knowledge import BEYOND_RATIO, Knowledge, Trial
from sidecar.core.idle.lifetime import visible_resolution

VOLLEY, CAP = 7, 1000.0


class Evidence:
    """Trials one after the other, ten seconds apart unless told."""

    def __init__(self) -> None:
        self.known = Knowledge(volley=VOLLEY, cap=CAP)
        self.now = 0.0

    def lived(self, *rests: float) -> Evidence:
        for rest in rests:
            self._add(rest, None)
        return self

    def died(self, *rests: float, death: Death = Death.RESET_ON_USE, apart: float = 10.0) -> Evidence:
        for rest in rests:
            self._add(rest, death, apart)
        return self

    def _add(self, rest: float, death: Death | None, apart: float = 10.0) -> None:
        self.now += apart
        self.known.add(Trial(idle_seconds=rest, at=self.now, death=death))

    def confirmed(self) -> Evidence:
        """A limit of 100 s."""
        return self.lived(50.0, 99.0).died(101.0, 102.0, 103.0)

    def verified(self) -> Evidence:
        return self.confirmed().lived(*[self.known.volley_rest] * (VOLLEY - 1))


def test_nothing_is_known_of_nothing() -> None:
    known = Evidence().known
    assert (known.low, known.high, known.proven, known.estimate, known.witness) == (0.0, inf, 0.0, None, None)
    assert known.status is Status.MEASURING


def test_bracket_and_stages() -> None:
    evidence = Evidence().lived(10.0, 50.0)
    known = evidence.known
    assert (known.proven, known.high, known.estimate) == (50.0, inf, None)
    evidence.died(120.0)
    assert (known.proven, known.high, known.estimate, known.status) == (50.0, 120.0, 85.0, Status.MEASURING)
    evidence.lived(99.0).died(101.0)
    assert (known.estimate, known.status) == (100.0, Status.PROVISIONAL)
    evidence.died(102.0)
    assert known.status is Status.PROVISIONAL  # two that died might be two accidents
    evidence.died(109.0)
    assert known.status is Status.CONFIRMED
    assert known.needs_top
    evidence.died(BEYOND_RATIO * 101.0)
    assert not known.needs_top
    evidence.lived(*[known.volley_rest] * (VOLLEY - 2))  # the survival of 99 s counts as one of the volley
    assert known.status is Status.CONFIRMED
    evidence.lived(known.volley_rest)
    assert known.status is Status.VERIFIED
    assert (known.fresh_survivals, known.fresh_deaths) == (VOLLEY, 0)
    assert 97.0 < known.volley_rest < 98.0


def test_a_visible_death_shows_the_limit_exactly() -> None:
    known = Evidence().lived(40.0).died(100.0, death=Death.CLOSED).known
    assert (known.estimate, known.status) == (100.0, Status.PROVISIONAL)
    assert known.proven == 100.0 - visible_resolution(100.0)


def test_visible_deaths_of_one_moment_are_one_witness() -> None:
    known = Evidence().lived(40.0).died(100.0, 100.1, 100.2, 100.3, death=Death.CLOSED, apart=0.1).known
    assert known.status is Status.PROVISIONAL


def test_a_survival_voids_the_death_below_it_at_once() -> None:
    evidence = Evidence().lived(50.0).died(60.0).lived(80.0)
    known = evidence.known
    assert known.high == inf
    assert [stray.idle_seconds for stray in known.strays] == [60.0]
    assert known.proven == 50.0  # the advice must be safe before the death is explained
    assert known.low == 80.0


def test_a_death_below_what_was_survived_is_a_stray_from_the_start() -> None:
    known = Evidence().lived(10.0, 80.0).died(40.0).known
    assert (known.high, known.low, known.proven) == (inf, 80.0, 10.0)


def test_a_limit_that_scatters_a_little_stands() -> None:
    known = Evidence().lived(95.0).died(99.0, 100.0).lived(100.5).known
    assert (known.high, known.low, known.strays) == (99.0, 95.0, ())


def test_two_accidents_among_many_survivals_are_no_scatter() -> None:
    known = Evidence().lived(*[95.0] * 7).died(95.0, 95.0).lived(*[95.0] * 7, 97.0).known
    assert known.high == inf
    assert len(known.strays) == 2


def test_each_stray_costs_another_volley() -> None:
    evidence = Evidence().lived(20.0).died(30.0).confirmed()
    known = evidence.known
    assert (known.status, known.proven) == (Status.CONFIRMED, 20.0)
    rest = known.volley_rest
    evidence.lived(*[rest] * (VOLLEY + 1))
    assert (known.status, known.proven) == (Status.CONFIRMED, 20.0)
    evidence.lived(*[rest] * VOLLEY)
    assert (known.status, known.proven, known.strays) == (Status.VERIFIED, 99.0, ())
    assert known.fresh_deaths == 1


def test_several_populations_publish_the_lowest() -> None:
    """Limits of 20 and 100 s: single survivals no longer count, only the rest at which a double volley lived."""
    evidence = Evidence().lived(10.0, 15.0).died(22.0).lived(30.0, 50.0).died(45.0, 60.0, 70.0)
    known = evidence.known
    assert not known.several_populations
    evidence.lived(99.0).died(80.0, 90.0)
    assert known.several_populations
    assert known.proven == 0.0
    assert known.high == 22.0
    while not known.verified:
        rest = known.volley_rest
        if rest < 20.0:
            evidence.lived(rest)
        else:
            evidence.died(rest).lived(rest)
    assert 18.0 < known.proven < 20.0 < known.high <= 22.0
    assert known.status is Status.VERIFIED


def test_the_cap_is_an_answer_too() -> None:
    evidence = Evidence().lived(500.0, CAP)
    known = evidence.known
    assert known.exhausted
    assert known.status is Status.PROVISIONAL
    evidence.lived(*[known.volley_rest] * (VOLLEY - 1))
    assert (known.status, known.estimate, known.proven) == (Status.VERIFIED, None, CAP)


def test_a_guards_death_makes_suspect_and_a_volley_clears_it() -> None:
    evidence = Evidence().verified().lived(12.0, 25.0).died(97.0)
    known = evidence.known
    assert (known.suspect, known.status) == (True, Status.PROVISIONAL)
    assert known.proven == 25.0  # only what was survived lately
    evidence.lived(*[known.volley_rest] * (VOLLEY - 1))
    assert known.suspect
    evidence.lived(known.volley_rest)
    assert (known.suspect, known.status, known.changed, known.proven) == (False, Status.VERIFIED, False, 99.0)
    assert known.fresh_deaths == 1


def test_a_shorter_limit_is_a_change() -> None:
    evidence = Evidence().verified()
    evidence.died(97.0, apart=100.0)
    assert not evidence.known.changed
    evidence.died(97.0, apart=100.0)
    assert evidence.known.changed


def test_deaths_of_all_that_was_open_at_one_time_are_one_event() -> None:
    """A gateway that forgets its table: the many strays together are one accident."""
    evidence = Evidence().lived(10.0, 20.0).died(*[60.0] * 5, apart=1.0)
    evidence.now += 100.0
    known = evidence.lived(90.0).known
    assert len(known.strays) == 5
    assert not known.several_populations
    evidence.died(70.0, 70.0, 70.0, apart=100.0)
    assert known.several_populations


def test_a_longer_limit_is_a_change() -> None:
    evidence = Evidence().verified()
    evidence.lived(101.5)
    assert not evidence.known.changed  # within the scatter
    evidence.lived(1.01 * BEYOND_RATIO * 101.0)
    assert evidence.known.changed


def test_guards_count() -> None:
    evidence = Evidence().verified()
    evidence.lived(12.0, 97.0, 25.0, 97.0)
    assert evidence.known.fresh_survivals == VOLLEY + 2


@pytest.mark.parametrize("death", [Death.SILENT, Death.RESET_ON_USE])
def test_a_ruler_that_dies_at_the_end_changes_nothing(death: Death) -> None:
    evidence = Evidence().verified()
    before = (evidence.known.proven, evidence.known.high, evidence.known.status)
    for _ in range(50):
        evidence.lived(97.0).died(1.01 * BEYOND_RATIO * 101.0, death=death)
    assert (evidence.known.proven, evidence.known.high, evidence.known.status) == before


TRIALS = st.lists(
    st.tuples(st.floats(1.0, 2000.0), st.sampled_from([None, Death.SILENT, Death.CLOSED]), st.floats(0.0, 50.0)),
    max_size=60,
)


@given(TRIALS)
def test_any_trials_in_any_order_leave_the_numbers_in_order(trials: list[tuple[float, Death | None, float]]) -> None:
    known, now, longest = Knowledge(volley=3, cap=CAP), 0.0, 0.0
    for rest, death, apart in trials:
        now += apart
        snapshot = copy(known)
        before = [astuple(trial) for trial in snapshot.deaths + snapshot.strays], snapshot.proven
        known.add(Trial(idle_seconds=rest, at=now, death=death))
        assert ([astuple(trial) for trial in snapshot.deaths + snapshot.strays], snapshot.proven) == before
        longest = max(longest, rest)
        assert 0.0 <= known.low <= known.high
        assert known.proven <= longest
        assert known.proven <= known.high
        assert all(known.proven <= stray.idle_seconds for stray in known.strays) or known.several_populations
