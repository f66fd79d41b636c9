"""What the observations of one regime say about the idle limit.

Theory of operation
===================

Evidence is asymmetric. A survival cannot be false: a connection that rested s seconds and then answered proves that
its own path holds s. A death may have any cause, so it is only as good as its witnesses.

From this follow two numbers that are never merged. *proven* is the longest rest survived with no unexplained death at
or below it; *dead by* is the shortest rest that killed and was never contradicted. Three things may happen between
them:

- A survival at or beyond a death contradicts it at once. The death becomes a *stray*: an unrelated kill, or the mark of
  a second population of paths with a shorter limit. Nobody can tell from one stray.
- A death at or below a rest already survived is a stray from the start.
- While strays are unexplained, proven counts only below the shortest of them: the advice must be safe now, the
  explanation may come later. It comes from a volley of fresh connections: when a whole volley survives, the strays were
  accidents.

When volleys of fresh connections themselves lose members, there are several populations. Survivals of single
connections then prove only their own path and no longer count; what counts is the longest rest a whole volley
survived (`safe`) against the shortest at which one lost a member (`unsafe`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from sidecar.core.facts import Death

_REMEMBERED_SURVIVALS = 1000
_REMEMBERED_DEATHS = 100
SCATTER = 1.05
"""How far the limits of two rests on one path may lie apart: timers are coarse and checked now and then."""
ONE_MOMENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """One accepted death: how long the connection rested, how it died, and when (monotonic seconds)."""

    idle_seconds: float
    death: Death
    sqlstate: str | None
    at: float


def visible_resolution(idle_seconds: float) -> float:
    """How far below a visible death the limit may lie, in seconds.

    A timer that closes by itself shows the limit exactly, but poolers look at their timers only now and then
    (PgBouncer three times a second) and other servers round to seconds.
    """
    return max(0.5, 0.02 * idle_seconds)


class Knowledge:
    """The evidence of one regime, as numbers. All rests are in seconds."""

    def __init__(self) -> None:
        self.deaths: tuple[Witness, ...] = ()  # not contradicted, shortest rest first
        self.strays: tuple[Witness, ...] = ()  # contradicted and not explained yet
        self.safe: float | None = None  # volleys: None until one has lost a member
        self.unsafe = inf
        self._survivals: list[float] = []  # ascending
        self._witnesses: list[Witness] = []  # in order of time

    @property
    def longest(self) -> float:
        """The longest rest any connection survived; 0 when none did."""
        return self._survivals[-1] if self._survivals else 0.0

    @property
    def several_populations(self) -> bool:
        return self.safe is not None

    @property
    def low(self) -> float:
        """The lower end of the bracket being searched."""
        return self._survived_below(self.high) if self.safe is None else self.safe

    @property
    def high(self) -> float:
        """The upper end of the bracket being searched; infinite while nothing died."""
        shortest = self.deaths[0].idle_seconds if self.deaths else inf
        return shortest if self.safe is None else min(shortest, self.unsafe)

    @property
    def proven(self) -> float:
        """The rest that may be relied on: survived, and shorter than every unexplained death."""
        doubt = min((stray.idle_seconds for stray in self.strays), default=inf)
        if self.low < doubt:
            return self.low
        return self._survived_below(doubt) if self.safe is None else 0.0

    @property
    def witness(self) -> Witness | None:
        """The death that marks the upper end of the bracket."""
        candidates = self.deaths if self.safe is None else (*self.deaths, *self.strays)
        return min(candidates, key=lambda death: death.idle_seconds, default=None)

    def survived(self, idle_seconds: float) -> bool:
        """Take a survival; True when it contradicts a death held true so far."""
        insort(self._survivals, idle_seconds)
        del self._survivals[: max(0, len(self._survivals) - _REMEMBERED_SURVIVALS)]
        before = len(self.strays)
        self._weigh()
        return len(self.strays) > before

    def died(self, witness: Witness, *, visible: bool) -> None:
        """Take a death by idleness. A visible one happened when it was seen: it had survived until just before."""
        self._witnesses = [*self._witnesses, witness][-_REMEMBERED_DEATHS:]
        if visible and witness.idle_seconds > self.longest:
            insort(self._survivals, witness.idle_seconds - visible_resolution(witness.idle_seconds))
        self._weigh()

    def retract(self, since: float) -> None:
        """Forget the deaths taken after `since`: something else turned out to have happened."""
        self._witnesses = [witness for witness in self._witnesses if witness.at < since]
        self._weigh()

    def explained(self) -> None:
        """A whole volley of fresh connections survived: the strays were accidents."""
        self._witnesses = [witness for witness in self._witnesses if witness not in self.strays]
        self._weigh()

    def _weigh(self) -> None:
        """Tell strays from deaths that stand.

        A longer survival contradicts a death, except where the limit itself scatters a little: then some rests near it
        are survived and others are not, and at least two deaths lie close together.
        """
        deaths: list[Witness] = []
        strays: list[Witness] = []
        for witness in sorted(self._witnesses, key=lambda witness: witness.idle_seconds):
            close = [other for other in self._witnesses if _ratio(other, witness) <= SCATTER]
            scatters = self.longest <= SCATTER * witness.idle_seconds and _independent(close) >= 2
            (deaths if witness.idle_seconds > self.longest or scatters else strays).append(witness)
        self.deaths, self.strays = tuple(deaths), tuple(strays)

    def _survived_below(self, idle_seconds: float) -> float:
        below = bisect_left(self._survivals, idle_seconds)
        return self._survivals[below - 1] if below else 0.0

    def volley_survived(self, idle_seconds: float) -> None:
        """A whole volley rested this long and lived; counts when there are several populations."""
        self.safe = max(self.safe or 0.0, idle_seconds)
        self._witnesses = [witness for witness in self._witnesses if witness.idle_seconds > idle_seconds]
        self._weigh()

    def volley_failed(self, idle_seconds: float) -> None:
        """A volley lost members after this rest: from now on only volleys count."""
        self.unsafe = min(self.unsafe, idle_seconds)
        if self.safe is None or self.safe >= self.unsafe:
            self.safe = 0.0

    def independent_deaths(self, within: float) -> int:
        """How many deaths at most `within` times the shortest fatal rest were of separate moments."""
        return _independent(death for death in self.deaths if death.idle_seconds <= within * self.high)


def _independent(witnesses: Iterable[Witness]) -> int:
    """How many separate moments there were: connections that died together may have died of one event."""
    count, latest = 0, -inf
    for witness in sorted(witnesses, key=lambda witness: witness.at):
        if witness.at - latest > ONE_MOMENT_SECONDS:
            count, latest = count + 1, witness.at
    return count


def _ratio(one: Witness, other: Witness) -> float:
    shorter, longer = sorted((one.idle_seconds, other.idle_seconds))
    return longer / max(shorter, 1e-9)
