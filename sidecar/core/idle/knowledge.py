"""What the rests of one regime say about the idle limit.

Theory of operation
===================

The evidence are *trials*: each is one rest of one fresh connection, ended by use or by death. Connections are not used
twice, because one that survived has shown to be on a lucky path: where a path is drawn for every connection (several
gateways, proxies, replicas), only fresh ones tell what the next connection will meet.

Evidence is asymmetric. A survival cannot be false. A death may have any cause, so it is only as good as its witnesses.
From this follow two numbers that are never merged. *proven* is the longest rest survived with no unexplained death at
or below it; *dead by* is the shortest rest that killed and was never contradicted.

A survival at or beyond a death contradicts it at once, and the death becomes a *stray*: an unrelated kill, or the mark
of a second population of paths with a shorter limit. While strays are unexplained, proven counts only below the
shortest of them: the advice must be safe now, the explanation may come later. It comes from the number of trials:

    accidents            as many survivals near the limit as a volley has members, and again as many for each stray
    several populations  more strays than accidents would leave, were every 33rd connection killed in each rest
    a changed limit      the same, where the limit was verified before; or a survival clearly beyond it

With several populations a survival proves only its own path. What counts then is the longest rest at which a double
volley lived without loss (`low`), against the shortest fatal one (`high`).

Everything here is a function of the trials in their order. A restarted sidecar that reads them back knows what its
predecessor knew.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from math import inf, sqrt

from sidecar.core.evidence import Arm, Cause, Death, Observation, Outcome, Status
from sidecar.core.idle.ladder import settled
from sidecar.core.idle.lifetime import Life, Lifetimes, visible_resolution
from sidecar.core.independence import fewest_events, separate_moments

VOLLEY_SHARE = 0.98
"""Where fresh connections must live: this share of the longest rest survived."""

CONFIRM_RATIO = 1.03
"""Deaths within this factor of the shortest fatal rest are witnesses of the same limit."""

SCATTER_RATIO = 1.02
"""How far the limits of two rests on one path may lie apart: timers are coarse and checked now and then."""

BEYOND_RATIO = 1.05
"""A survival at this factor of the shortest fatal rest is more than scatter."""

JUST_BEYOND_RATIO = 1.01 * BEYOND_RATIO
"""A rest meant to be beyond is a little longer, once it is used."""

WITNESSES = 2
"""Independent deaths that confirm a limit, with one more nearby. Another that died beyond is needed to verify it."""

NEARBY_RATIO = 1.1
"""A death within this factor of the shortest fatal rest is nearby."""

ACCIDENT_RATE = 0.03
"""The most unrelated kills that are taken for normal, per rest."""

BEYOND_CHANCE = 1e-4
"""More strays than accidents explain: when so many, or more, had less than this probability."""

CHANGE_CHANCE = 2e-3
"""The same where the limit was verified: measuring afresh in vain costs less than a false limit."""

SCATTER_CHANCE = 0.003
"""The same for deaths among survivals within SCATTER_RATIO, where a scattered limit is likelier than a kill."""

SEVERAL_POPULATIONS_RATIO = 1.08
"""The bracket at which the search with several populations ends: each step costs a whole volley."""

_NEAR_SHARE = 0.97
"""Who rested this share of the rest in question, or longer, has lived or died near it. A little less than
VOLLEY_SHARE, which is what a volley is asked for."""

_REMEMBERED = 500
"""Trials, deaths and survivals kept, each: far more than any question here takes to be answered."""

_REMEMBERED_WITNESSES = 20
"""Deaths kept once the limit is verified: the shortest rests, which mark it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One rest of a fresh connection, seconds; `at` is monotonic. `death` is None when it survived."""

    idle_seconds: float
    at: float
    death: Death | None = None
    sqlstate: str | None = None

    @property
    def visible(self) -> bool:
        """Whether the end showed by itself, at the moment the timer fired."""
        return self.death is not None and self.death.visible

    @property
    def began(self) -> float:
        """When the rest began: the connection is known to have lived then."""
        return self.at - self.idle_seconds


class Knowledge:
    """The evidence of one regime, as numbers. All rests are in seconds.

    `volley` is how many fresh connections must live near the limit before it counts as verified, `cap` the rest beyond
    which no limit is looked for. A shallow copy is a snapshot: collections are replaced, never changed.
    """

    def __init__(self, *, volley: int, cap: float) -> None:
        self._volley, self._cap = volley, cap
        self.several_populations = False
        self.verified = False  # once true it stays: doubts make it suspect, contradictions end the regime
        self.changed = False  # what was verified holds no longer: a new regime must begin
        self.deaths: tuple[Trial, ...] = ()  # not contradicted, shortest rest first
        self.strays: tuple[Trial, ...] = ()  # contradicted and not explained yet, shortest rest first
        self.fresh_survivals = 0  # near the verified limit, and how many did not: the safe interval is bounded by
        self.fresh_deaths = 0  # their number, not by the wish
        self.lifetimes = Lifetimes()
        self.fatal_age = inf  # from which connections die however busy they are; infinite while no such limit is known
        self.busy_seconds = 0.0  # the greatest age at which a busy connection answered
        self._with_keepalive: list[Trial] = []  # rests beyond the limit with TCP keepalive
        self._safe = 0.0  # with several populations: the longest rest at which a double volley lived
        self._guarded = 0.0  # once verified: the rest at which guards must live, and no death is scatter
        self._outlived = 0  # once verified: survivals beyond the limit since one last died there
        self._survivals: list[float] = []  # ascending
        self._deaths: list[Trial] = []  # unexplained, in order of time
        self._recent: list[Trial] = []  # the trials that bear on what is in question now

    # -- the numbers ----------------------------------------------------------------------------------------------

    @property
    def longest(self) -> float:
        """The longest rest any connection survived; 0 when none did."""
        return self._survivals[-1] if self._survivals else 0.0

    @property
    def low(self) -> float:
        """The lower end of the bracket being searched; 0 while nothing survived."""
        return self._safe if self.several_populations else self._survived_below(self.high)

    @property
    def high(self) -> float:
        """The upper end of the bracket being searched; infinite while nothing died."""
        witness = self.witness
        return inf if witness is None else witness.idle_seconds

    @property
    def witness(self) -> Trial | None:
        """The death that marks the upper end of the bracket."""
        return self.deaths[0] if self.deaths else None

    @property
    def proven(self) -> float:
        """The rest that may be relied on; 0 when there is none."""
        if not self.strays or (self.several_populations and not self.verified):
            return self.low
        doubt = self.strays[0].idle_seconds
        # What was survived before a verified limit came into doubt may be of the past.
        return max((t.idle_seconds for t in self._recent if t.death is None and t.idle_seconds < doubt), default=0.0)

    @property
    def estimate(self) -> float | None:
        """The most likely limit; a visible death shows it exactly."""
        if self.witness is None:
            return None
        if self.witness.visible and not self.several_populations:
            return self.high
        return (self.low + self.high) / 2 if self.low else None

    # -- what they are worth --------------------------------------------------------------------------------------

    @property
    def suspect(self) -> bool:
        """Whether fresh connections died below a verified limit and the reason is not known yet."""
        return self.verified and bool(self.strays)

    @property
    def found(self) -> bool:
        """Whether the bracket is narrow enough."""
        if self.witness is None:
            return False
        if self.several_populations:
            return self.low > 0 and self.high <= self.low * SEVERAL_POPULATIONS_RATIO
        return self.witness.visible or settled(self.low, self.high)

    @property
    def exhausted(self) -> bool:
        """Whether connections outlive the cap and nothing died."""
        return self.witness is None and self.longest >= self._cap

    @property
    def confirmed(self) -> bool:
        """Whether enough independent deaths witness the limit found."""
        return self.found and self._witnesses(CONFIRM_RATIO) >= WITNESSES and self._witnesses(NEARBY_RATIO) > WITNESSES

    @property
    def needs_top(self) -> bool:
        """Whether verification still wants a rest clearly beyond the limit, which has to die."""
        return not self.several_populations and self.confirmed and self._witnesses(JUST_BEYOND_RATIO) <= WITNESSES

    @property
    def status(self) -> Status:
        """How far the evidence reaches."""
        if self.verified and not self.suspect:
            return Status.VERIFIED
        if self.suspect or self.found or self.exhausted:
            return Status.CONFIRMED if self.confirmed and not self.suspect else Status.PROVISIONAL
        return Status.MEASURING

    @property
    def volley_rest(self) -> float:
        """How long fresh connections should rest next to settle what is open."""
        if self.verified:
            return self._guarded
        if not self.several_populations or self.found:
            return VOLLEY_SHARE * self.low
        if self.low > 0:
            return sqrt(self.low * self.high)
        return max(VOLLEY_SHARE * self._survived_below(self.high), self.high / 2)

    @property
    def keepalive_helps(self) -> bool | None:
        """A survival beyond the limit proves it; one death may be an accident, two are none."""
        if any(trial.death is None for trial in self._with_keepalive):
            return True
        # Who got too old died of that, whatever keepalive did.
        died = [trial for trial in self._with_keepalive if trial.idle_seconds < self.fatal_age]
        return False if len(died) >= 2 else None

    @property
    def too_old_to_rest(self) -> bool:
        """Whether the rests that killed were no shorter than the ages that do: age explains them all."""
        return self.fatal_age < self.high < inf

    # -- taking evidence ------------------------------------------------------------------------------------------

    def learn(self, observation: Observation, at: float) -> None:
        """Take an observation of this regime, whatever it testifies to; `at` is its time, monotonic."""
        died = observation.outcome == Outcome.DIED
        if not died and observation.outcome != Outcome.SURVIVED:
            return
        busy = observation.arm == Arm.LIFETIME
        if not died or (busy and observation.cause == Cause.LIFETIME_LIMIT):
            self.add_life(Life.of(observation, at))
        if busy and observation.cause != Cause.IDLE_LIMIT:
            return
        # What a rest meets at a fatal age limits rests, too, so far as connections that are never used are concerned.
        take = self.add_with_keepalive if observation.arm == Arm.KEEPALIVE else self.add
        take(
            Trial(
                idle_seconds=observation.idle_seconds,
                at=at,
                death=observation.death if died else None,
                sqlstate=observation.sqlstate,
            )
        )

    def add(self, trial: Trial) -> None:
        """Take a trial. A death must have been judged to be by idleness."""
        beyond = self.high
        self._recent = [*self._recent, trial][-_REMEMBERED:]
        if trial.death is None:
            self._remember_survival(trial.idle_seconds)
        else:
            self._deaths = [*self._deaths, trial][-_REMEMBERED:]
            if trial.visible and trial.idle_seconds > self.longest:  # it had lived until just before
                self._remember_survival(trial.idle_seconds - visible_resolution(trial.idle_seconds))
        self._weigh()
        if self.verified:
            self._watch(trial, beyond)
        else:
            self._conclude()

    def add_life(self, life: Life) -> None:
        """Take the age a connection reached. Only busy ones testify to a limit; any other can refute it."""
        self.lifetimes = self.lifetimes.add(life)
        self.fatal_age = (self.lifetimes.proven or 0.0) if self.lifetimes.known else inf
        if life.busy:
            self.busy_seconds = max(self.busy_seconds, life.lived_seconds)

    def add_with_keepalive(self, trial: Trial) -> None:
        """Take a trial with TCP keepalive, meant to outlive the limit."""
        self._with_keepalive = [*self._with_keepalive, trial]

    def _remember_survival(self, idle_seconds: float) -> None:
        self._survivals = sorted([*self._survivals, idle_seconds])[-_REMEMBERED:]

    def _weigh(self) -> None:
        """Tell strays from deaths that stand.

        A longer survival contradicts a death, except where the limit itself scatters a little: then some rests near it
        are survived and others are not, and at least two deaths lie close together.
        """
        ordered = sorted(self._deaths, key=lambda trial: trial.idle_seconds)
        standing = (n for n, trial in enumerate(ordered) if self._stands(trial))
        first = next(standing, len(ordered))
        self.strays, self.deaths = tuple(ordered[:first]), tuple(ordered[first:])

    def _stands(self, trial: Trial) -> bool:
        if self.several_populations:
            return trial.idle_seconds > self._safe
        return trial.idle_seconds > self.longest or self._scatters(trial)

    def _scatters(self, trial: Trial) -> bool:
        rest = trial.idle_seconds
        if self.longest > SCATTER_RATIO * rest or rest <= self._guarded:
            return False
        close = [t for t in self._deaths if 1 / SCATTER_RATIO <= t.idle_seconds / rest <= SCATTER_RATIO]
        beyond = sum(t.idle_seconds >= rest for t in close)
        lived = self._lived(rest)
        unlikely = _chance_of_at_least(beyond, beyond + lived) < SCATTER_CHANCE
        return separate_moments(close) >= 2 and unlikely and lived <= 2 * beyond

    def _conclude(self) -> None:
        """Before verification: are there several populations, is the limit verified?"""
        if self.several_populations or self._more_than_accidents():
            self.several_populations = True
            self._safe = self._longest_safe()
            self._weigh()
            if self.found:
                self._verify()
        elif (self.exhausted or (self.confirmed and not self.needs_top)) and self._volley_lived():
            self._verify()

    def _longest_safe(self) -> float:
        """With several populations: the longest rest at which a double volley lived, and one more for each loss.

        Survivals of much longer rests do not count: of all who tried those, only the lucky can be told to have lived
        at this one.
        """
        lived = sorted(trial.idle_seconds for trial in self._recent if trial.death is None)
        died = sorted(trial.idle_seconds for trial in self._deaths)
        for n in range(len(lived), 0, -1):
            rest = lived[n - 1]
            losses = bisect_right(died, rest)
            if n - bisect_left(lived, _NEAR_SHARE * rest) >= self._volley * (2 + losses):
                return rest
        return 0.0

    def _verify(self) -> None:
        rest = self._guarded = self.volley_rest
        self.verified = True
        self.fresh_survivals = self._lived(_NEAR_SHARE * rest)
        self.fresh_deaths += sum(t.death is not None and t.idle_seconds <= rest for t in self._recent)
        self._settle()

    def _settle(self) -> None:
        """Nothing is in question any more: what strays there were, were accidents."""
        self._deaths = list(self.deaths[:_REMEMBERED_WITNESSES])
        self._recent = []
        self._weigh()

    def _watch(self, trial: Trial, beyond: float) -> None:
        """After verification: does the limit still hold? `beyond` is what was fatal before this trial."""
        near = _NEAR_SHARE * self._guarded <= trial.idle_seconds < beyond
        if trial.death is None:
            self.fresh_survivals += near
            self._outlived += trial.idle_seconds >= BEYOND_RATIO * beyond
        elif trial.idle_seconds >= beyond:
            self._outlived = 0
        else:
            self.fresh_deaths += trial.idle_seconds <= self._guarded
        if self._outlived >= (2 * self._volley if self.several_populations else 1) or self._more_than_accidents():
            self.changed = True
        elif near and (not self.strays or self._volley_lived()):
            self._settle()

    # -- counting -------------------------------------------------------------------------------------------------

    def _volley_lived(self) -> bool:
        """Whether enough fresh connections survived near the limit, the strays considered."""
        needed = self._volley * (self._events() + (not self.verified))
        return self._lived(_NEAR_SHARE * self.volley_rest) >= needed

    def _more_than_accidents(self) -> bool:
        """Whether so many deaths at rests that others survived can hardly be accidents."""
        if not self.strays:
            return False
        lived = self._lived(_NEAR_SHARE * self.strays[0].idle_seconds)
        events = self._events()
        return _chance_of_at_least(events, events + lived) < (CHANGE_CHANCE if self.verified else BEYOND_CHANCE)

    def _events(self) -> int:
        """How many accidents explain the strays: a gateway that forgets its table kills all that is open, unseen."""
        lived = (trial for trial in self._recent if trial.death is None)
        return fewest_events(self.strays, lived, many=self._volley / 2)

    def _lived(self, rest: float) -> int:
        return sum(trial.death is None and trial.idle_seconds >= rest for trial in self._recent)

    def _survived_below(self, idle_seconds: float) -> float:
        below = bisect_left(self._survivals, idle_seconds)
        return self._survivals[below - 1] if below else 0.0

    def _witnesses(self, within: float) -> int:
        """How many deaths at most `within` times the shortest fatal rest were of separate moments."""
        return separate_moments(trial for trial in self.deaths if trial.idle_seconds <= within * self.high)


def _chance_of_at_least(deaths: int, trials: int) -> float:
    """The probability of so many accidents among so many rests."""
    fewer, term = 0.0, (1 - ACCIDENT_RATE) ** trials
    for k in range(deaths):
        fewer += term
        term *= (trials - k) / (k + 1) * ACCIDENT_RATE / (1 - ACCIDENT_RATE)
    return 1 - fewer
