"""The cost of a pre-ping, from samples whose true figures are known."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.advice.ping_cost import PingLedger, median_interval, quantile


@pytest.mark.parametrize(
    ("q", "expected"),
    [(0.01, 1), (0.5, 50), (0.501, 51), (0.99, 99), (1.0, 100)],
)
def test_quantile_is_a_sample_by_nearest_rank(q: float, expected: int) -> None:
    assert quantile(range(1, 101), q) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0.001, 1))
def test_quantile_leaves_the_right_share_on_either_side(samples: list[float], q: float) -> None:
    value = quantile(sorted(samples), q)
    assert sum(sample <= value for sample in samples) >= q * len(samples)
    assert sum(sample < value for sample in samples) < q * len(samples)


def test_median_interval_misses_the_true_median_no_more_often_than_promised() -> None:
    chance = random.Random(20)  # a skewed distribution, like latencies: its median is ln 2
    for n in (10, 25, 100):
        missed = 0
        for _ in range(2000):
            bounds = median_interval(sorted(chance.expovariate(1) for _ in range(n)))
            assert bounds is not None
            missed += not bounds[0] <= 0.6931 <= bounds[1]
        assert missed / 2000 <= 0.03, n  # 2.5 % and what chance adds to 2,000 trials


def test_nothing_is_claimed_before_there_is_enough_to_claim_it_from() -> None:
    ledger = PingLedger()
    assert ledger.cost() is None
    for _ in range(9):
        ledger.add_ping(0.002)
        ledger.add_turn(0.006, pre_ping=True)
        ledger.add_turn(0.004, pre_ping=False)
    cost = ledger.cost()
    assert cost is not None
    assert cost.p50_seconds == 0.002
    assert (cost.p99_seconds, cost.overhead_ratio, cost.overhead_low, cost.overhead_high) == (None,) * 4


def test_overhead_is_the_share_of_a_turn_and_its_interval_holds_the_truth() -> None:
    chance, ledger = random.Random(7), PingLedger()
    for _ in range(300):
        ping, rest = chance.gauss(0.003, 0.0005), chance.gauss(0.006, 0.001)
        ledger.add_ping(ping)
        ledger.add_turn(ping + rest, pre_ping=True)
        ledger.add_turn(chance.gauss(0.006, 0.001), pre_ping=False)
    cost = ledger.cost()
    assert cost is not None
    assert cost.p99_seconds is not None
    assert cost.p50_seconds < cost.p99_seconds
    assert cost.overhead_low is not None
    assert cost.overhead_ratio is not None
    assert cost.overhead_high is not None
    assert cost.overhead_low < 1 / 3 < cost.overhead_high
    assert cost.overhead_low < cost.overhead_ratio < cost.overhead_high < 0.5


def test_old_samples_are_forgotten() -> None:
    ledger = PingLedger()
    for seconds in (1.0, 0.002):
        for _ in range(1000):
            ledger.add_ping(seconds)
    cost = ledger.cost()
    assert cost is not None
    assert cost.p99_seconds == 0.002
    assert cost.pings < 1000


def test_a_ping_never_costs_less_than_nothing() -> None:
    ledger = PingLedger()
    for _ in range(20):
        ledger.add_ping(0.001)
        ledger.add_turn(0.004, pre_ping=True)
        ledger.add_turn(0.009, pre_ping=False)
    cost = ledger.cost()
    assert cost is not None
    assert cost.overhead_ratio == cost.overhead_low == cost.overhead_high == 0
