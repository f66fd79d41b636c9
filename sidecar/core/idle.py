"""The idle-limit machine: finds, confirms, verifies and watches the idle limit of one path.

Theory of operation
===================

The machine owns at most `connections` probe connections. Each one rests until its goal and is then used once; the
answer, or its absence, is the evidence (see `knowledge`). Which rests to try is planned by `ladder`; what counts as an
idle death is judged by `deaths`. What is left is the course of the measurement, in stages:

    LADDER   all connections age towards the next untested rungs, until one dies
    REFINE   the staggered ages are used to narrow the bracket to a few percent      -> status `provisional`
    CONFIRM  a second, independent death just above the bracket                      -> status `confirmed`
    VOLLEY   fresh connections, all at once, just below the bracket                  -> status `verified`
    MONITOR  two fresh connections at a time: a guard just below the limit, and a ruler at fractions of it, which
             would meet a shorter limit early and a longer one at the end

A death is never believed on the spot. Its place is taken by a fresh connection, and only when that one has answered
(with the same server life, and after a moment in which other deaths may show) is the death judged. The replacement is
the control, so controls cost no connection beyond the budget.

A survival at or beyond a fatal rest voids the death at once and sends the machine back to the LADDER. In MONITOR a
contradiction opens a new *regime*: the limit has changed, older evidence is history. A guard that dies makes the limit
suspect at once; a fresh volley then tells an accident from a change.

Time is an argument (`now`, monotonic seconds). The machine is deterministic: the same facts at the same times give the
same commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf, sqrt

from sidecar.core.deaths import judge, moved
from sidecar.core.evidence import Observation
from sidecar.core.facts import Cause, Death, Died, Disturbed, Fact, Identity, Opened, OpenFailed, Survived
from sidecar.core.knowledge import Knowledge, Witness
from sidecar.core.ladder import Prior, best_test, has_sentinel, next_rung, rungs, settled
from sidecar.core.recommendation import Status
from sidecar.core.views import ProbeView

OPENING_SPACING_SECONDS = 0.1  # openings are spread out: no burst of handshakes on the target
SETTLE_SECONDS = 0.25  # after a death, so that others of the same moment can show before it is judged
RETRACT_SECONDS = 10.0  # a disturbance reported by others may come this late
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts to open
VOLLEY_REST = 0.98  # of the longest rest survived
CONFIRM_WITHIN = 1.03  # of the shortest fatal rest
SEVERAL_POPULATIONS_RATIO = 1.1  # bracket at which the search by volleys ends: each one costs a whole rest
RULER = (1 / 8, 1 / 4, 1 / 8, 1 / 2, 1 / 8, 1 / 4, 1 / 8, 1.0)  # of the shortest fatal rest


class Stage(StrEnum):
    LADDER = "ladder"
    REFINE = "refine"
    CONFIRM = "confirm"
    VOLLEY = "volley"
    MONITOR = "monitor"
    PAUSED = "paused"  # the budget allows no connections at the moment


class Arm(StrEnum):
    """What a connection is open for."""

    SEARCH = "search"
    SENTINEL = "sentinel"
    CONFIRM = "confirm"
    VOLLEY = "volley"
    GUARD = "guard"
    RULER = "ruler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Open a probe connection after a pause (the shell adds jitter), then report Opened or OpenFailed."""

    connection: int
    after_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Use a rested connection once, then report Survived or Died."""

    connection: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Drop a connection at once. Nothing is reported."""

    connection: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Keep this observation. One recorded before under the same id is replaced: it has been judged anew."""

    observation: Observation


Command = Open | Use | Close | Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many connections the target can spare now; 0 pauses the measurement."""

    connections: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleStatus:
    """What is known, and how far the measurement is. Rests in seconds; None where nothing is known."""

    status: Status
    stage: Stage
    suspect: bool
    regime: int
    proven_seconds: float | None
    dead_by_seconds: float | None
    estimate_seconds: float | None
    death: Death | None
    sqlstate: str | None
    several_populations: bool
    exhausted: bool  # past the cap, and nothing died
    fresh_survivals: int  # rests of fresh connections near the limit, and how many of them died: the safe
    fresh_deaths: int  # interval is bounded by their number, not by the wish
    probes: tuple[ProbeView, ...]


@dataclass(slots=True)
class _Probe:
    """One connection's life as the machine knows it. `since` is when its present rest began."""

    connection: int
    arm: Arm
    goal: float | None = None  # rest to reach, then use; None = only rest
    state: str = "opening"
    opened: float = 0.0
    since: float = 0.0
    identity: Identity = field(default_factory=Identity)
    doubt: Cause | None = None  # something happened while it was open: its death testifies to nothing

    def idle(self, now: float) -> float:
        return now - self.since if self.state in ("resting", "using") else 0.0


@dataclass(slots=True)
class _Suspicion:
    """A death that waits for its judgement."""

    died: Died
    probe: _Probe
    at: float
    answered: bool = False  # a fresh connection was opened since

    @property
    def settled_at(self) -> float:
        """When others of the same moment would have shown. Only ends noticed at rest have a moment in common."""
        return self.at + (SETTLE_SECONDS if self.died.ending.noticed == "reading" else 0.0)


class IdleMachine:
    """See the module's theory of operation.

    `run` and `target` name the observations, `epoch` is what turns `now` into wall-clock seconds. `history` holds
    earlier observations of this path, oldest first: those of the latest regime are taken up where they stopped.
    """

    def __init__(
        self,
        *,
        target: str,
        run: str,
        epoch: float,
        connections: int,
        floor: float,
        cap: float,
        defaults: Iterable[float] = (),
        history: Sequence[Observation] = (),
    ) -> None:
        self._target, self._run, self._epoch = target, run, epoch
        self._budget = self._wanted = connections
        self._floor, self._cap = floor, cap
        self._defaults = tuple(defaults)
        self._ladder = rungs(floor, cap, connections, self._defaults)
        self._prior = Prior(self._defaults)
        self._probes: dict[int, _Probe] = {}
        self._suspicions: list[_Suspicion] = []
        self._accepted: list[tuple[float, Observation]] = []  # deaths that may still be retracted
        self._lives: dict[tuple[str | None, float | None], Identity] = {}  # server lives seen, the last one last
        self._visible_ends: list[tuple[float, float]] = []  # (when, after which rest) of ends noticed at rest
        self._serial = self._recorded = 0
        self._failures = 0
        self._next_opening = -inf
        self._ruler_step = 0
        self._regime = 1
        self._stage = Stage.LADDER
        self._begin_regime()
        self._resume(history)

    # -- the machine's face ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called next; None while only facts can move the machine."""
        due = [
            probe.since + probe.goal
            for probe in self._probes.values()
            if probe.state == "resting" and probe.goal is not None
        ]
        due += [suspicion.settled_at for suspicion in self._suspicions if suspicion.answered]
        return min(due, default=None)

    def handle_timer(self, now: float) -> list[Command]:
        """Use what has rested enough, judge what has settled."""
        commands: list[Command] = []
        for suspicion in [s for s in self._suspicions if s.answered and now >= s.settled_at]:
            self._suspicions.remove(suspicion)
            commands += self._judge(suspicion, now)
        for probe in self._probes.values():
            if probe.state == "resting" and probe.goal is not None and now >= probe.since + probe.goal:
                probe.state = "using"
                commands.append(Use(connection=probe.connection))
        return commands + self._plan(now)

    def observe(self, fact: Fact | Budget, now: float) -> list[Command]:
        """Take a fact. Facts about connections the machine has given up are ignored: they crossed its command."""
        match fact:
            case Opened():
                commands = self._opened(fact, now)
            case OpenFailed():
                commands = self._open_failed(fact, now)
            case Survived():
                commands = self._survived(fact, now)
            case Died():
                commands = self._died(fact, now)
            case Disturbed():
                commands = self._disturbed(fact, now)
            case Budget():
                commands = self._budgeted(min(fact.connections, self._wanted))
        return commands + self._plan(now)

    def measure_afresh(self, now: float) -> list[Command]:
        """Open a new regime: what was measured becomes history."""
        return self._new_regime(now) + self._plan(now)

    def status(self, now: float) -> IdleStatus:
        """What is known and how far the measurement is; cheap, changes nothing."""
        known = self._known
        high = known.high if known.high < inf else None
        witness = known.witness
        proven = known.proven or None
        estimate = None
        if high is not None and witness is not None:
            visible = witness.death in (Death.CLOSED, Death.FATAL) and not known.several_populations
            estimate = high if visible else (known.low + high) / 2 if known.low else None
        return IdleStatus(
            status=self._status(),
            stage=self._stage,
            suspect=self._suspect,
            regime=self._regime,
            proven_seconds=proven,
            dead_by_seconds=high,
            estimate_seconds=estimate,
            death=witness.death if witness and high else None,
            sqlstate=witness.sqlstate if witness and high else None,
            several_populations=known.several_populations,
            exhausted=high is None and known.longest >= self._cap,
            fresh_survivals=self._fresh_survivals,
            fresh_deaths=self._fresh_deaths,
            probes=tuple(
                ProbeView(
                    connection=probe.connection,
                    arm=probe.arm,
                    state=probe.state,
                    idle_seconds=probe.idle(now),
                    until_seconds=probe.goal,
                )
                for probe in self._probes.values()
            ),
        )

    # -- regimes and their evidence -------------------------------------------------------------------------------

    def _begin_regime(self) -> None:
        self._known = Knowledge()
        self._stage = Stage.LADDER
        self._verified = self._suspect = False
        self._fresh_survivals = self._fresh_deaths = 0
        self._volley_rest: float | None = None
        self._volley_open = 0
        self._volley_losses: list[float] = []
        self._volley_passes = 0
        self._volley_tries = 0

    def _new_regime(self, now: float) -> list[Command]:
        self._regime += 1
        self._begin_regime()
        return self._close_all(now)

    def _resume(self, history: Sequence[Observation]) -> None:
        """Rebuild the knowledge from the observations of the latest regime.

        Whether a volley had passed is read from its members: enough fresh survivals near the limit found.
        """
        self._regime = max((observation.regime for observation in history), default=1)
        last_death = -inf
        for observation in history:
            if observation.regime != self._regime or observation.outcome == "censored":
                continue
            if observation.outcome == "survived":
                self._known.survived(observation.idle_seconds)
            elif observation.cause is Cause.IDLE_LIMIT and observation.death is not None:
                witness = _witness(observation, observation.at - self._epoch)
                self._known.died(witness, visible=_is_visible(observation))
                last_death = observation.at
        known = self._known
        if known.strays:
            # Which volley they belong to is not recorded; a volley passed after the last of them explains them.
            volley = [o for o in history if o.regime == self._regime and o.arm == Arm.VOLLEY and o.at > last_death]
            if len(volley) >= max(1, self._wanted - 1) and all(o.outcome == "survived" for o in volley):
                known.explained()
        if known.high < inf and (settled(known.low, known.high) or self._visible_limit()):
            near = [o for o in history if o.regime == self._regime and o.arm == Arm.VOLLEY]
            survived = sum(o.outcome == "survived" and o.idle_seconds >= 0.97 * known.low for o in near)
            self._verified = self._confirmed() and not known.strays and survived >= max(1, self._wanted - 1)
            self._fresh_survivals = survived if self._verified else 0
        self._stage = self._stage_by_knowledge()

    def _status(self) -> Status:
        if self._suspect:
            return Status.PROVISIONAL
        if self._verified:
            return Status.VERIFIED
        if self._confirmed():
            return Status.CONFIRMED
        if self._found() or self._exhausted():
            return Status.PROVISIONAL
        return Status.MEASURING

    def _found(self) -> bool:
        known = self._known
        if known.high == inf:
            return False
        if known.several_populations:
            return known.low > 0 and known.high <= known.low * SEVERAL_POPULATIONS_RATIO
        return settled(known.low, known.high) or self._visible_limit()

    def _confirmed(self) -> bool:
        return self._found() and self._known.independent_deaths(CONFIRM_WITHIN) >= 2

    def _visible_limit(self) -> bool:
        witness = self._known.witness
        return witness is not None and witness.death in (Death.CLOSED, Death.FATAL)

    def _exhausted(self) -> bool:
        return self._known.high == inf and self._known.longest >= self._cap

    def _stage_by_knowledge(self) -> Stage:
        if self._verified and not self._suspect:
            return Stage.MONITOR
        if self._suspect or self._confirmed() or self._known.several_populations or self._exhausted():
            return Stage.VOLLEY
        if self._found():
            return Stage.CONFIRM
        return Stage.REFINE if self._known.high < inf else Stage.LADDER

    # -- facts ----------------------------------------------------------------------------------------------------

    def _budgeted(self, connections: int) -> list[Command]:
        if connections != self._budget:
            self._budget = connections
            self._ladder = rungs(self._floor, self._cap, max(2, connections), self._defaults)
            self._abandon_volley()
        return []

    def _opened(self, fact: Opened, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state != "opening":
            return [Close(connection=fact.connection)]
        self._failures = 0
        probe.state, probe.opened, probe.since, probe.identity = "resting", now, now, fact.identity
        commands: list[Command] = []
        for suspicion in self._suspicions:
            suspicion.answered = True  # any fresh connection tells about all the dead
        last = next(reversed(self._lives.values()), None)
        cause = None if last is None else moved(last, fact.identity, self._lives)
        if cause is not None:
            commands += self._server_changed(cause, fact.connection, now)
        return commands

    def _server_changed(self, cause: Cause, witness: int, now: float) -> list[Command]:
        """A new life of the server: what was opened in an earlier one is lost, whether it shows or not."""
        commands = self._retract(now, cause)
        for suspicion in self._suspicions:
            suspicion.probe.doubt = cause
        for probe in list(self._probes.values()):
            if probe.connection != witness and probe.state != "opening":
                commands += self._censor(probe, cause, now)
        return commands

    def _open_failed(self, fact: OpenFailed, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state != "opening":
            return []
        self._failures += 1
        if fact.sqlstate is None or fact.sqlstate in ("57P01", "57P02", "57P03"):
            # Nobody gets through: whatever dies now, or is found dead later, may have died of this.
            for suspicion in self._suspicions:
                suspicion.probe.doubt = suspicion.probe.doubt or Cause.PARTITION
            for other in self._probes.values():
                if other.state in ("resting", "using"):
                    other.doubt = other.doubt or Cause.PARTITION
        return [self._open_command(probe.connection, now)]

    def _survived(self, fact: Survived, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state != "using":
            return []
        age = now - probe.opened
        observation = self._observation(probe, now, "survived", fact.idle_seconds, age, fact.identity)
        commands: list[Command] = []
        probe.state, probe.since, probe.goal, probe.doubt = "resting", now, None, None
        contradiction = self._known.survived(fact.idle_seconds) and not self._known.several_populations
        if contradiction and self._stage is Stage.MONITOR:
            # The limit was lifted. What just survived is the first evidence of the new regime.
            commands += self._new_regime(now)
            self._known.survived(fact.idle_seconds)
            return [Record(observation=replace(observation, regime=self._regime)), *commands]
        commands.append(Record(observation=observation))
        if contradiction:
            self._verified = False
            self._abandon_volley()
        elif probe.arm in (Arm.VOLLEY, Arm.GUARD):
            self._fresh_survivals += 1
        if self._stage in (Stage.VOLLEY, Stage.MONITOR):
            commands += self._drop(probe)  # only fresh connections testify here
        return commands + self._volley_member_done(probe, now)

    def _died(self, fact: Died, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state == "opening":
            return []
        if fact.ending.noticed == "reading":
            self._visible_ends = [end for end in self._visible_ends if now - end[0] < 10 * SETTLE_SECONDS]
            self._visible_ends.append((now, fact.idle_seconds))
        del self._probes[probe.connection]
        probe.state = "dead"
        replacement = self._new_probe(self._arm_of_replacement(probe))
        self._suspicions.append(_Suspicion(fact, probe, now))
        return [self._open_command(replacement.connection, now)]

    def _arm_of_replacement(self, probe: _Probe) -> Arm:
        # The members of a volley are counted: a replacement is none of them.
        return Arm.SEARCH if self._stage is Stage.VOLLEY else probe.arm

    def _disturbed(self, fact: Disturbed, now: float) -> list[Command]:
        commands = self._retract(now, fact.cause)
        for suspicion in self._suspicions:
            suspicion.probe.doubt = fact.cause
        for probe in list(self._probes.values()):
            if probe.state == "opening":
                continue
            if fact.cause in (Cause.RESTART, Cause.FAILOVER):
                commands += self._censor(probe, fact.cause, now)
            else:
                probe.doubt = fact.cause
        return commands

    # -- judgement ------------------------------------------------------------------------------------------------

    def _judge(self, suspicion: _Suspicion, now: float) -> list[Command]:
        died, probe = suspicion.died, suspicion.probe
        in_company = died.ending.noticed == "reading" and any(
            abs(when - suspicion.at) <= SETTLE_SECONDS and not 0.9 < rest / max(died.idle_seconds, 1e-9) < 1.1
            for when, rest in self._visible_ends
        )
        cause = judge(died.ending, doubt=probe.doubt, in_company=in_company)
        observation = self._observation(
            probe,
            suspicion.at,
            "died" if cause.testifies else "censored",
            died.idle_seconds,
            died.age_seconds,
            probe.identity,
            death=died.ending.death,
            cause=cause,
            sqlstate=died.ending.sqlstate,
            message=died.ending.message,
        )
        commands: list[Command] = [Record(observation=observation)]
        if cause is not Cause.IDLE_LIMIT:
            return commands + self._volley_member_done(probe, now, censored=True)
        self._accepted = [entry for entry in self._accepted if now - entry[0] < RETRACT_SECONDS]
        self._accepted.append((suspicion.at, observation))
        below_limit = died.idle_seconds < 0.99 * self._found_at()
        self._known.died(_witness(observation, suspicion.at), visible=_is_visible(observation))
        if probe.arm in (Arm.VOLLEY, Arm.GUARD):
            self._fresh_deaths += 1
        if self._stage is Stage.MONITOR and below_limit:
            # A fresh connection died below the limit: an accident, or the limit is no longer what it was.
            self._suspect = True
        if self._volley_rest is not None and (probe.arm is Arm.VOLLEY or died.idle_seconds < self._volley_rest):
            self._volley_losses.append(died.idle_seconds)
        return commands + self._volley_member_done(probe, now)

    def _found_at(self) -> float:
        return self._known.high if self._known.high < inf else self._known.longest

    def _retract(self, now: float, cause: Cause) -> list[Command]:
        """Take back the deaths accepted in the last moments: the disturbance that caused them was reported late."""
        since = now - RETRACT_SECONDS
        retracted = [observation for when, observation in self._accepted if when >= since]
        if not retracted:
            return []
        self._accepted.clear()
        self._known.retract(since)
        return [Record(observation=replace(o, outcome="censored", cause=cause)) for o in retracted]

    def _remember_life(self, identity: Identity) -> None:
        self._lives.pop(identity.key, None)
        self._lives[identity.key] = identity
        while len(self._lives) > 32:
            del self._lives[next(iter(self._lives))]

    # -- planning -------------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Command]:
        """Bring connections and goals in line with the stage the knowledge asks for."""
        for probe in self._probes.values():
            if probe.state == "resting":
                self._remember_life(probe.identity)
        if self._budget < 2:
            commands = self._close_all(now)
            self._stage = Stage.PAUSED
            return commands
        stage = self._stage_by_knowledge()
        commands = []
        if stage is not self._stage:
            if Stage.VOLLEY in (stage, self._stage) or Stage.MONITOR in (stage, self._stage):
                commands += self._close_all(now)
                self._abandon_volley()
            self._stage = stage
        if stage is Stage.VOLLEY:
            return commands + self._plan_volley(now)
        if stage is Stage.MONITOR:
            return commands + self._plan_monitor(now)
        return commands + self._plan_search(now)

    def _plan_search(self, now: float) -> list[Command]:
        commands = self._trim(now)
        while len(self._probes) < self._budget:
            sentinel = has_sentinel(self._budget) and not any(p.arm is Arm.SENTINEL for p in self._probes.values())
            commands += self._open_new(Arm.SENTINEL if sentinel else Arm.SEARCH, now)
        if self._stage is Stage.LADDER:
            self._goals_on_the_ladder()
        elif not self._suspicions:
            self._goals_in_the_bracket(now)
        return commands

    def _goals_on_the_ladder(self) -> None:
        low = self._known.low
        seekers = list(self._probes.values())
        if has_sentinel(self._budget):
            # When the last sentinel was asked, the connection with the least rest behind it takes its place.
            sentinel = next((probe for probe in seekers if probe.arm is Arm.SENTINEL), None)
            sentinel = sentinel or max(seekers, key=lambda probe: (probe.goal is None, probe.since))
            sentinel.arm, sentinel.goal = Arm.SENTINEL, None
            seekers.remove(sentinel)
        taken = {probe.goal for probe in seekers if probe.goal is not None}
        for probe in seekers:
            probe.arm = Arm.SEARCH
            if probe.state == "resting" and (probe.goal is None or probe.goal <= low):
                probe.goal = next_rung(self._ladder, low, taken)
                if probe.goal is not None:
                    taken.add(probe.goal)

    def _goals_in_the_bracket(self, now: float) -> None:
        low, high = self._known.low, self._known.high
        resting = {probe.connection: probe for probe in self._probes.values() if probe.state == "resting"}
        sentinel = next((probe for probe in resting.values() if probe.arm is Arm.SENTINEL), None)
        for probe in resting.values():
            probe.goal = None
        if sentinel is not None and sentinel.idle(now) >= high:
            sentinel.goal = sentinel.idle(now)  # the witness is asked at once
            sentinel.arm = Arm.CONFIRM
            return
        if any(probe.state == "using" for probe in self._probes.values()):
            return  # its answer decides what is worth asking next
        if not resting:
            return
        ages = {connection: probe.idle(now) for connection, probe in resting.items()}
        if self._stage is Stage.CONFIRM:
            for connection, age in ages.items():
                if age <= CONFIRM_WITHIN * high:
                    resting[connection].goal = max(age, (1 + CONFIRM_WITHIN) / 2 * high)
                    resting[connection].arm = Arm.CONFIRM
                else:  # too old to testify there: start it over
                    resting[connection].goal = age
            return
        test = best_test(low, high, ages, self._prior)
        resting[test.connection].goal = max(test.rest_seconds, 0.0)

    def _plan_monitor(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for arm in (Arm.GUARD, Arm.RULER):
            if not any(probe.arm is arm for probe in self._probes.values()):
                commands += self._open_new(arm, now)
        for probe in list(self._probes.values()):
            if probe.arm not in (Arm.GUARD, Arm.RULER):
                commands += self._drop(probe)
            elif probe.state == "resting" and probe.goal is None:
                if probe.arm is Arm.GUARD:
                    probe.goal = VOLLEY_REST * self._known.low
                else:
                    probe.goal = max(self._floor, RULER[self._ruler_step % len(RULER)] * self._found_at())
                    self._ruler_step += 1
        return commands

    # -- volleys --------------------------------------------------------------------------------------------------

    def _plan_volley(self, now: float) -> list[Command]:
        if self._volley_rest is None:
            commands = self._close_all(now)
            self._volley_rest = self._next_volley_rest()
            self._volley_losses = []
            self._volley_open = self._budget
            top = [Arm.CONFIRM] if self._with_top() else []
            for arm in top + [Arm.VOLLEY] * (self._budget - len(top)):
                commands += self._open_new(arm, now)
            return commands
        for probe in self._probes.values():
            if probe.state == "resting" and probe.goal is None:
                if probe.arm is Arm.VOLLEY:
                    probe.goal = self._volley_rest
                elif probe.arm is Arm.CONFIRM:
                    probe.goal = (1 + CONFIRM_WITHIN) / 2 * self._known.high
        return []

    def _with_top(self) -> bool:
        """One connection rests up to the fatal rest: should it survive, the limit is void at once."""
        return not self._known.several_populations and self._known.high < inf and not self._suspect

    def _next_volley_rest(self) -> float:
        known = self._known
        if not known.several_populations:
            return VOLLEY_REST * known.low
        if known.low == 0:
            return known.high / 2
        if self._found():
            return VOLLEY_REST * known.low
        return sqrt(known.low * known.high)

    def _abandon_volley(self) -> None:
        self._volley_rest = None
        self._volley_losses = []
        self._volley_passes = self._volley_tries = 0

    def _volley_member_done(self, probe: _Probe, now: float, *, censored: bool = False) -> list[Command]:
        if self._volley_rest is None or probe.arm not in (Arm.VOLLEY, Arm.CONFIRM):
            return []
        if censored:
            self._volley_rest = None  # not a fair trial: fire it again
            return self._close_all(now)
        self._volley_open -= 1
        if self._volley_open:
            return []
        rest, self._volley_rest = self._volley_rest, None
        if self._volley_losses:
            self._volley_lost(rest)
        else:
            self._volley_passed(rest)
        if self._suspect and self._known.several_populations:
            # Suspicion confirmed: the limit changed. The losses are the first evidence of the new regime.
            high = self._known.unsafe
            witnesses = [w for w in self._known.strays if w.idle_seconds <= high * CONFIRM_WITHIN]
            commands = self._new_regime(now)
            for witness in witnesses:
                self._known.died(witness, visible=False)
            return commands
        return self._close_all(now)

    def _volley_lost(self, rest: float) -> None:
        # One loss in a whole volley may be an accident, and another volley tells; two are none.
        self._volley_tries += 1
        if len(self._volley_losses) == 1 and self._volley_tries < 3:
            return
        self._known.volley_failed(min(*self._volley_losses, rest))
        self._volley_passes = self._volley_tries = 0

    def _volley_passed(self, rest: float) -> None:
        known = self._known
        self._volley_tries = 0
        self._volley_passes += 1
        # After a stray a second volley is asked for: with half the paths worse, one in 128 passes by luck.
        needed = 2 if known.strays or known.several_populations else 1
        if known.several_populations:
            searching = not self._found()
            known.volley_survived(rest)
            if searching:
                self._volley_passes = 0
                return
        if self._volley_passes >= needed:
            self._volley_passes = 0
            self._suspect = False
            self._verified = True
            if not known.several_populations:
                known.explained()

    # -- connections ----------------------------------------------------------------------------------------------

    def _new_probe(self, arm: Arm) -> _Probe:
        self._serial += 1
        probe = _Probe(connection=self._serial, arm=arm)
        self._probes[probe.connection] = probe
        return probe

    def _open_new(self, arm: Arm, now: float) -> list[Command]:
        return [self._open_command(self._new_probe(arm).connection, now)]

    def _open_command(self, connection: int, now: float) -> Open:
        pause = BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS)) - 1] if self._failures else 0.0
        self._next_opening = max(self._next_opening + OPENING_SPACING_SECONDS, now + pause)
        return Open(connection=connection, after_seconds=self._next_opening - now)

    def _drop(self, probe: _Probe) -> list[Command]:
        del self._probes[probe.connection]
        return [Close(connection=probe.connection)]

    def _censor(self, probe: _Probe, cause: Cause, now: float) -> list[Command]:
        """Give up a connection whose rest can no longer testify."""
        observation = self._observation(
            probe, now, "censored", probe.idle(now), now - probe.opened, probe.identity, cause=cause
        )
        return [
            Record(observation=observation),
            *self._drop(probe),
            *self._volley_member_done(probe, now, censored=True),
        ]

    def _close_all(self, now: float) -> list[Command]:
        self._suspicions.clear()
        return [command for probe in list(self._probes.values()) for command in self._drop(probe)]

    def _trim(self, now: float) -> list[Command]:
        """Close the youngest connections beyond the budget."""
        surplus = len(self._probes) - self._budget
        youngest = sorted(self._probes.values(), key=lambda probe: probe.idle(now))[: max(0, surplus)]
        return [command for probe in youngest for command in self._drop(probe)]

    def _observation(
        self,
        probe: _Probe,
        when: float,
        outcome: str,
        idle_seconds: float,
        age_seconds: float,
        identity: Identity,
        *,
        death: Death | None = None,
        cause: Cause | None = None,
        sqlstate: str | None = None,
        message: str | None = None,
    ) -> Observation:
        self._recorded += 1
        return Observation(
            id=f"{self._run}-{self._recorded}",
            target=self._target,
            at=when + self._epoch,
            regime=self._regime,
            arm=probe.arm,
            outcome=outcome,
            idle_seconds=idle_seconds,
            age_seconds=age_seconds,
            death=death,
            cause=cause,
            sqlstate=sqlstate,
            message=message,
            identity=identity,
        )


def _witness(observation: Observation, at: float) -> Witness:
    assert observation.death is not None  # noqa: S101 - for the type checker: a death has a kind
    return Witness(idle_seconds=observation.idle_seconds, death=observation.death, sqlstate=observation.sqlstate, at=at)


def _is_visible(observation: Observation) -> bool:
    return observation.death in (Death.CLOSED, Death.FATAL)
