"""What a target remembers: observations, outages, and how its held pool fares. Everything is bounded.

Every record that is added is answered with what is news in it, so that whoever adds it can count, store and log that,
and nothing twice: an observation may be judged anew, and an outage comes in as many versions as more becomes known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import TypeVar

from sidecar.core.advice.ping_cost import PingCost, PingLedger, Spread
from sidecar.core.availability.outages import found_over, just_over, over, reconciled
from sidecar.core.evidence import Arm, Observation, Outage, Outcome

REMEMBERED = 10_000
"""Observations and outages kept in memory, each: some megabytes, and weeks of a measurement at rest."""

PING_COST_SECONDS = 60.0
"""Between two looks at what a ping costs: its last digit is no news."""

CHECKOUTS_SECONDS = 10.0
"""Between two looks at how long checkouts take."""

_T = TypeVar("_T", Observation, Outage)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutageNews:
    """A version of an outage's record that says more than the last one."""

    outage: Outage
    is_first: bool
    just_over: bool


class Records:
    """The observations and outages of one target; those given are what earlier lives left, oldest first."""

    def __init__(self, observations: Sequence[Observation] = (), outages: Sequence[Outage] = ()) -> None:
        self._observations: dict[str, Observation] = {}
        self._outages = {outage.id: outage for outage in outages}
        self._unfinished = [outage for outage in outages if not over(outage)]  # an earlier life did not see their end
        self._keepalive_survivals: dict[int, float] = {}  # by regime: the longest rest survived, in seconds
        for observation in observations:
            self.add_observation(observation)

    @property
    def observations(self) -> tuple[Observation, ...]:
        """Oldest first."""
        return tuple(self._observations.values())

    @property
    def outages(self) -> tuple[Outage, ...]:
        """Oldest first, the last version of each."""
        return tuple(self._outages.values())

    def keepalive_survival_seconds(self, regime: int) -> float | None:
        """The longest rest in that regime that a connection with TCP keepalive survived."""
        return self._keepalive_survivals.get(regime)

    def add_observation(self, observation: Observation) -> bool:
        """Remember it, in place of an earlier version; whether there was none."""
        if observation.arm == Arm.KEEPALIVE and observation.outcome == Outcome.SURVIVED:
            longest = self._keepalive_survivals.get(observation.regime, 0.0)
            self._keepalive_survivals[observation.regime] = max(longest, observation.idle_seconds)
        is_new = observation.id not in self._observations
        _remember(self._observations, observation)
        return is_new

    def add_outage(self, outage: Outage, *, is_lifetime_expiry: bool) -> OutageNews | None:
        """Remember it, in place of an earlier version; None where it is no news (see `reconciled`)."""
        before = self._outages.get(outage.id)
        record = reconciled(outage, before, is_lifetime_expiry=is_lifetime_expiry)
        if record is None:
            return None
        _remember(self._outages, record)
        return OutageNews(outage=record, is_first=before is None, just_over=just_over(record, before))

    def end_unfinished(self, well_at: float, *, writable: bool) -> list[Outage]:
        """End what earlier lives left open, as far as it can be told when the database is found well at `well_at`.

        Returns versions to be added (see `found_over`).
        """
        found = [(outage, found_over(outage, well_at, writable=writable)) for outage in self._unfinished]
        self._unfinished = [after for _, after in found if not over(after)]
        return [after for before, after in found if after != before]


class PoolFigures:
    """What turns on the held pool took. The figures are drawn anew by `refresh`, each in its own time."""

    def __init__(self) -> None:
        self.ledger = PingLedger()
        self.ping_cost: PingCost | None = None
        self.checkout: Spread | None = None  # without a pre-ping
        self.checkout_with_ping: Spread | None = None
        self._ping_cost_at = self._checkouts_at = -inf

    def refresh(self, now: float) -> None:
        """Draw what is due (monotonic seconds)."""
        if self.ping_cost is None or now - self._ping_cost_at >= PING_COST_SECONDS:
            self.ping_cost, self._ping_cost_at = self.ledger.cost(), now
        if now - self._checkouts_at >= CHECKOUTS_SECONDS:
            self.checkout = self.ledger.checkouts(pre_ping=False)
            self.checkout_with_ping = self.ledger.checkouts(pre_ping=True)
            self._checkouts_at = now


def _remember(records: dict[str, _T], record: _T) -> None:
    records[record.id] = record
    if len(records) > REMEMBERED:
        del records[next(iter(records))]
