"""What a target remembers, and what of it is news."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar import records as records_module
from sidecar.core.evidence import Arm, Downtime, Interval, Observation, Outage, OutageKind, Outcome
from sidecar.records import PING_COST_SECONDS, PoolFigures, Records


def rest(number: int, **changes: object) -> Observation:
    made = Observation(
        id=f"run-{number}",
        target="db",
        at=float(number),
        regime=1,
        arm=Arm.SEARCH,
        outcome=Outcome.SURVIVED,
        idle_seconds=10.0,
        age_seconds=10.0,
    )
    return replace(made, **changes)


BEGAN = Interval(after=100.0, until=101.0)
OPEN = Outage(id="run-1", target="db", kind=OutageKind.UNKNOWN, read=Downtime(began=BEGAN), write=Downtime(began=BEGAN))
OVER = replace(
    OPEN,
    kind=OutageKind.CULL,
    read=Downtime(began=BEGAN, ended=Interval(after=101.0, until=102.0)),
    write=Downtime(began=BEGAN, ended=Interval(after=101.0, until=102.0)),
)


def test_an_observation_judged_anew_replaces_the_former_and_is_not_new() -> None:
    records = Records([rest(1)])
    assert records.add_observation(rest(2))
    assert not records.add_observation(rest(1, outcome=Outcome.CENSORED))
    assert [(seen.id, seen.outcome) for seen in records.observations] == [("run-1", "censored"), ("run-2", "survived")]


def test_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "REMEMBERED", 3)
    records = Records([rest(1), rest(2)])
    for number in (3, 4, 5):
        records.add_observation(rest(number))
        records.add_outage(replace(OVER, id=f"run-{number}"), is_lifetime_expiry=False)
        records.add_outage(replace(OVER, id=f"next-{number}"), is_lifetime_expiry=False)
    assert [seen.id for seen in records.observations] == ["run-3", "run-4", "run-5"]
    assert [seen.id for seen in records.outages] == ["next-4", "run-5", "next-5"]


def test_of_an_outage_each_version_that_says_more_is_news_and_its_end_once() -> None:
    records = Records()
    news = [records.add_outage(version, is_lifetime_expiry=False) for version in (OPEN, OPEN, OVER, OVER)]
    assert [each and (each.is_first, each.just_over) for each in news] == [(True, False), None, (False, True), None]
    more = records.add_outage(replace(OVER, connections_lost={"closed": 1}), is_lifetime_expiry=False)
    assert more is not None
    assert (more.is_first, more.just_over) == (False, False)
    assert records.outages == (more.outage,)


def test_that_it_was_a_session_of_age_is_known_once_and_for_all() -> None:
    records = Records()
    records.add_outage(OVER, is_lifetime_expiry=False)
    known = records.add_outage(OVER, is_lifetime_expiry=True)
    assert known is not None
    assert known.outage.kind == OutageKind.LIFETIME
    assert records.add_outage(OVER, is_lifetime_expiry=False) is None
    assert records.outages[0].kind == OutageKind.LIFETIME


def test_what_an_earlier_life_left_open_ends_on_contact_writing_when_that_is_possible() -> None:
    records = Records(outages=[OVER, replace(OPEN, id="run-2")])
    (reading,) = records.end_unfinished(200.0, writable=False)
    assert reading.read == Downtime(began=BEGAN, ended=Interval(after=101.0, until=200.0), watched=False)
    assert reading.write is not None
    assert reading.write.ended is None
    assert records.end_unfinished(200.0, writable=False) == []
    (whole,) = records.end_unfinished(210.0, writable=True)
    assert whole.read == reading.read
    assert whole.write == Downtime(began=BEGAN, ended=Interval(after=101.0, until=210.0), watched=False)
    assert records.end_unfinished(220.0, writable=True) == []


def test_the_longest_rest_that_keepalive_survived_is_known_for_each_regime() -> None:
    def alive(number: int, seconds: float, regime: int) -> Observation:
        return rest(number, arm=Arm.KEEPALIVE, idle_seconds=seconds, regime=regime)

    records = Records([alive(1, 70.0, 1), alive(2, 60.0, 1), rest(3, idle_seconds=900.0)])
    assert records.keepalive_survival_seconds(1) == 70.0
    assert records.keepalive_survival_seconds(2) is None
    records.add_observation(alive(4, 50.0, 2))
    records.add_observation(rest(5, arm=Arm.KEEPALIVE, outcome=Outcome.DIED, idle_seconds=99.0, regime=2))
    assert records.keepalive_survival_seconds(2) == 50.0


def test_figures_of_the_pool_are_drawn_in_their_time() -> None:
    figures = PoolFigures()
    figures.refresh(0.0)
    assert figures.ping_cost is figures.checkout is figures.checkout_with_ping is None
    figures.ledger.add_ping(0.001)
    figures.ledger.add_checkout(0.002, pre_ping=False)
    figures.refresh(1.0)
    assert figures.ping_cost is not None, "the first is news"
    assert figures.checkout is None
    figures.ledger.add_ping(0.001)
    figures.refresh(PING_COST_SECONDS)
    assert figures.checkout is not None
    assert figures.ping_cost.pings == 1
    figures.refresh(1.0 + PING_COST_SECONDS)
    assert figures.ping_cost.pings == 2
