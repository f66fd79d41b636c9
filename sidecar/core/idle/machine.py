"""The idle-limit machine: finds, confirms, verifies and watches the idle limit of one path.

Theory of operation
===================

The machine owns at most `connections` probe connections. Each is opened, rests until its goal, is used once and given
up; the answer, or its absence, is the evidence (see `knowledge`). Which rests to try is planned by `ladder`; what
counts as an idle death is judged by `deaths`. What is left is the course of the measurement. Its stage follows from the
knowledge alone:

    LADDER   all connections age towards the next untested rungs, until one dies
    REFINE   the staggered ages are used to narrow the bracket to a few percent      -> status `provisional`
    CONFIRM  a second, independent death just above the bracket                      -> status `confirmed`
    VOLLEY   as many connections as there are rest just below the bracket, one above -> status `verified`
    MONITOR  two connections at a time: a guard just below the limit, and a ruler at fractions of it, which would
             meet a shorter limit early and a longer one at the end

Once the limit is verified, a connection with TCP keepalive well below it rests beyond it. If it lives, keepalive helps,
and the limit belongs to something that looks at packets; if such connections die, to something that counts bytes.

Beside these, one connection is used all the time and grows old: if such connections die at one age, it is a limit on
age (see `lifetime`). The heartbeat's session testifies to that, too; where only two connections are allowed it is left
to that, until one has died: then a busy connection and the ruler take turns. Where resting connections died no sooner
than busy ones, there is no sign of an idle limit; what has been proven of rests holds all the same.

A change of stage closes nothing: connections were never used, so whatever their age, they serve the next stage too.
Only a new *regime* starts afresh: when a verified limit is contradicted, it has changed, and older evidence is history.
A guard that dies makes the limit suspect at once; a volley then tells an accident from a change.

A death is never believed on the spot. Its place is taken by a fresh connection, and only when that one has answered
(with the same server life, and after a moment in which other deaths may show) is the death judged. The replacement is
the control, so controls cost no connection beyond the budget.

Where a use gets no answer, waiting for its deadline would delay the search; after a moment it is planned as if the
connection had died, but believed only when it has.

Time is an argument (`now`, monotonic seconds). The machine is deterministic: the same facts at the same times give the
same commands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf

from sidecar.core.evidence import Aged, Arm, Cause, Death, Disturbed, Keepalive, Observation, Outcome, Status
from sidecar.core.identity import Identity
from sidecar.core.idle.commands import Budget, Close, Command, Open, Record, Use
from sidecar.core.idle.deaths import Case, PendingDeaths
from sidecar.core.idle.facts import ClockSet, Died, Fact, Opened, OpenFailed, Survived
from sidecar.core.idle.knowledge import BEYOND, CONFIRM_WITHIN, Knowledge, Trial, visible_resolution
from sidecar.core.idle.ladder import SAME, Prior, best_test, rungs, settled, spares_sentinel
from sidecar.core.idle.lifetime import AgeLimit, Life
from sidecar.core.idle.probes import ProbeView

OPENING_SPACING_SECONDS = 0.1  # openings are spread out: no burst of handshakes on the target
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)  # between attempts to open one connection
PATIENCE_SECONDS = 1.0  # a use not answered by then is planned as a death
RETRACT_SECONDS = 10.0  # a disturbance reported by others may come this late
SMALLEST_VOLLEY = 5
TOO_OLD = 1.03  # a connection that rested this much more than the rest in question says little about it
RULER = (1 / 8, 1 / 4, 1 / 8, 1 / 2, 1 / 8, 1 / 4, 1 / 8, 1.01 * BEYOND)  # of the shortest fatal rest
KEEPALIVE_SHARE = 0.3  # of the longest rest survived: one lost keepalive must not matter
KEPT_REST = 1.3  # of the shortest fatal rest: where a connection kept alive shows that it is
BUSY_SHARE = 0.3  # of the longest rest survived: what a busy connection rests at most
BUSY_STEP = 0.02  # of its age: how exactly its death tells the limit
BUSY_LEAST_SECONDS = 1.0

_SERVER_STOPPED = ("57P01", "57P02", "57P03")


class Stage(StrEnum):
    LADDER = "ladder"
    REFINE = "refine"
    CONFIRM = "confirm"
    VOLLEY = "volley"
    MONITOR = "monitor"
    PAUSED = "paused"  # the budget allows no connections at the moment


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
    keepalive_helps: bool | None  # whether TCP keepalive holds connections open beyond the limit
    transaction_pooler: bool  # several backends answered one connection, or one backend several at a time
    probes: tuple[ProbeView, ...]
    lifetime: AgeLimit | None = None  # the age at which busy connections die, once that has repeated itself
    suspected_age_seconds: float | None = None  # what is proven of ages while it has not
    busy_seconds: float | None = None  # the greatest age at which a busy connection was seen alive


@dataclass(slots=True)
class _Probe:
    """One connection's life as the machine knows it: opening, resting, using, overdue (used, and no answer yet)."""

    connection: int
    arm: Arm = Arm.SEARCH
    goal: float | None = None  # rest to reach, then use; None = only rest
    state: str = "opening"
    opened_at: float = 0.0
    since: float = 0.0  # when it was opened, or used
    rested: float = 0.0  # before it was used
    recorded_age: float = 0.0  # of a busy one
    failures: int = 0
    identity: Identity = field(default_factory=Identity)
    doubt: Cause | None = None  # something happened while it was open: its death testifies to nothing

    def idle(self, now: float) -> float:
        return now - self.since if self.state == "resting" else self.rested


@dataclass(frozen=True, slots=True)
class _Lesson:
    """An observation learned lately, and what was known before: a disturbance reported late takes deaths back."""

    at: float
    observation: Observation
    before: Knowledge


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
        self._inquest = PendingDeaths()
        self._lately: list[_Lesson] = []
        self._serial = self._recorded = 0
        self._next_opening = -inf
        self._ruler_step = 0
        self._busy_next = False  # whether the ruler has made its round: where it shares its place, a busy one is next
        self._climbed = 0.0  # the longest rest survived since all connections were young: they climb anew from there
        self._pooled = False
        self._stage = Stage.LADDER
        self._regime = max((observation.regime for observation in history), default=1)
        self._known = self._nothing_known()
        # A busy connection's record is older than what it says last: what that refutes must be known before.
        for observation in sorted(
            history, key=lambda each: each.arm == Arm.LIFETIME and each.outcome == Outcome.SURVIVED
        ):
            if observation.regime == self._regime:
                self._learn(observation)
        if self._known.changed:
            self._regime += 1
            self._known = self._nothing_known()
        self._stage = self._stage_by_knowledge()

    # -- the machine's face ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called next; None while only facts can move the machine."""
        due = [self._inquest.next_deadline, *(_deadline(probe) for probe in self._probes.values())]
        return min((deadline for deadline in due if deadline is not None), default=None)

    def handle_timer(self, now: float) -> list[Command]:
        """Use what has rested enough, judge what has settled."""
        commands: list[Command] = []
        fatal_age = inf if self._known.high <= self._known.fatal_age else self._known.fatal_age
        for case, cause in self._inquest.verdicts(now, fatal_age=fatal_age):
            commands += self._record(self._death_certificate(case, cause), now)
        for probe in self._probes.values():
            deadline = _deadline(probe)
            if deadline is None or now < deadline:
                continue
            if probe.state == "using":
                probe.state = "overdue"
                continue
            probe.state, probe.since, probe.rested = "using", now, now - probe.since
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
            case Aged():
                commands = self._aged(fact, now)
            case Disturbed():
                commands = [] if self.expects(fact) else self._disturbed(fact.cause, now)
            case ClockSet():
                self._epoch, commands = fact.offset_seconds, []
            case Budget():
                commands = self._budgeted(min(fact.connections, self._wanted))
        return commands + self._plan(now)

    def measure_afresh(self, now: float) -> list[Command]:
        """Open a new regime: what was measured becomes history."""
        return self._new_regime(now) + self._plan(now)

    def status(self, now: float) -> IdleStatus:
        """What is known and how far the measurement is; cheap, changes nothing."""
        known = self._known
        witness = None if known.too_old_to_rest else known.witness
        lifetime = self._age_limit()
        return IdleStatus(
            status=known.status,
            stage=self._stage,
            suspect=known.suspect,
            regime=self._regime,
            proven_seconds=known.proven or None,
            dead_by_seconds=None if witness is None else witness.idle_seconds,
            estimate_seconds=None if witness is None else known.estimate,
            death=None if witness is None else witness.death,
            sqlstate=None if witness is None else witness.sqlstate,
            several_populations=known.several_populations,
            exhausted=known.exhausted,
            fresh_survivals=known.fresh_survivals,
            fresh_deaths=known.fresh_deaths,
            keepalive_helps=None if witness is None else known.keepalive_helps,
            transaction_pooler=self._pooled,
            lifetime=lifetime,
            suspected_age_seconds=None if lifetime is not None else known.lifetimes.proven,
            busy_seconds=known.busy_seconds or None,
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

    def expects(self, fact: Disturbed) -> bool:
        """Whether all that was seen is a busy connection's death at an age at which they die anyway."""
        return fact.aged is not None and self._known.lifetimes.expects(_life_of_session(fact.aged))

    def explains(self, outage: str) -> bool:
        """Whether the outage of this id was no more than a session's end at the age at which all end."""
        lifetimes = self._known.lifetimes
        return lifetimes.known and any(life.id == outage for life in lifetimes.witnesses)

    def _age_limit(self) -> AgeLimit | None:
        lifetimes = self._known.lifetimes
        if not lifetimes.known:
            return None
        proven, witness = lifetimes.proven or 0.0, lifetimes.witness
        visible = witness.death is not None and witness.death.visible
        return AgeLimit(
            proven_seconds=proven,
            dead_by_seconds=witness.age_seconds,
            estimate_seconds=witness.age_seconds if visible else (proven + witness.age_seconds) / 2,
            death=witness.death,
            sqlstate=witness.sqlstate,
        )

    # -- regimes and their evidence -------------------------------------------------------------------------------

    def _nothing_known(self) -> Knowledge:
        return Knowledge(volley=max(SMALLEST_VOLLEY, self._wanted - 1), cap=self._cap)

    def _new_regime(self, now: float) -> list[Command]:
        commands = self._close_all(now)
        self._regime += 1
        self._known = self._nothing_known()
        self._lately.clear()
        return commands

    def _learn(self, observation: Observation) -> None:
        """Take an observation of the present regime into the knowledge, now or when history is read."""
        died, at = observation.outcome == Outcome.DIED, observation.at - self._epoch
        if not died and observation.outcome != Outcome.SURVIVED:
            return
        busy = observation.arm == Arm.LIFETIME
        if not died or (busy and observation.cause is Cause.LIFETIME_LIMIT):
            self._known.add_life(_life_of(observation, at))
        if busy and observation.cause is not Cause.IDLE_LIMIT:
            return
        # What a rest meets at a fatal age limits rests, too, so far as connections that are never used are concerned.
        take = self._known.add_kept_alive if observation.arm == Arm.KEEPALIVE else self._known.add
        take(
            Trial(
                idle_seconds=observation.idle_seconds,
                at=at,
                death=observation.death if died else None,
                sqlstate=observation.sqlstate,
            )
        )

    def _record(self, observation: Observation, now: float) -> list[Command]:
        """Learn from an observation and keep it."""
        self._lately = [lesson for lesson in self._lately if now - lesson.at < 2 * RETRACT_SECONDS]
        self._lately.append(_Lesson(observation.at - self._epoch, observation, copy(self._known)))
        self._learn(observation)
        if not self._known.changed:
            return [Record(observation=observation)]
        commands = self._new_regime(now)
        if (
            observation.outcome == Outcome.SURVIVED
        ):  # the limit was lifted: this is the first evidence of the new regime
            observation = replace(observation, regime=self._regime)
            self._learn(observation)
        return [Record(observation=observation), *commands]

    def _stage_by_knowledge(self) -> Stage:
        known = self._known
        if known.status is Status.VERIFIED:
            return Stage.MONITOR
        if known.suspect or known.confirmed or known.several_populations or known.exhausted:
            return Stage.VOLLEY
        if known.found:
            return Stage.CONFIRM
        return Stage.REFINE if known.high < inf else Stage.LADDER

    # -- facts ----------------------------------------------------------------------------------------------------

    def _budgeted(self, connections: int) -> list[Command]:
        if connections != self._budget:
            self._budget = connections
            self._ladder = rungs(self._floor, self._cap, max(2, connections), self._defaults)
        return []

    def _opened(self, fact: Opened, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state != "opening":
            return [] if probe else [Close(connection=fact.connection)]
        probe.state, probe.since, probe.identity = "resting", now, fact.identity
        probe.opened_at = now
        cause = self._inquest.answered(fact.identity)
        if cause is None:
            return []
        # A new life of the server: what was opened in an earlier one is lost, whether it shows or not.
        commands = self._retract(cause, now)
        self._climbed = 0.0
        for other in self._open_probes():
            if other.identity.key != fact.identity.key:
                commands += self._censor(other, cause, now)
        return commands

    def _open_failed(self, fact: OpenFailed, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state != "opening":
            return []
        probe.failures += 1
        if fact.sqlstate is None or fact.sqlstate in _SERVER_STOPPED:
            # Nobody gets through: whatever dies now, or is found dead later, may have died of this.
            self._cast_doubt(Cause.PARTITION)
        return [self._open_command(probe, now)]

    def _survived(self, fact: Survived, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state not in ("using", "overdue"):
            return []
        self._pooled = self._pooled or self._betrays_pooler(probe, fact.identity)
        if probe.arm is Arm.LIFETIME:
            return self._grew_older(probe, fact, now)
        self._climbed = max(self._climbed, fact.idle_seconds)
        commands = self._drop(probe)
        observation = self._observation(
            now,
            arm=probe.arm,
            outcome=Outcome.SURVIVED,
            idle_seconds=fact.idle_seconds,
            age_seconds=fact.idle_seconds,
            identity=fact.identity,
        )
        return commands + self._record(observation, now)

    def _grew_older(self, probe: _Probe, fact: Survived, now: float) -> list[Command]:
        """A busy connection has answered. Its age is recorded now and then, each time in place of the last."""
        age = probe.since - probe.opened_at  # when it was asked
        probe.doubt = None  # whatever it was, it lived through it
        commands: list[Command] = []
        enough = min(BEYOND * self._cap, self._known.lifetimes.refuted_by)  # to say all that is asked
        if age >= min(enough, max(self._floor, BEYOND * probe.recorded_age)):
            probe.recorded_age = age
            observation = self._observation(
                now,
                id=f"{self._run}-age-{probe.connection}",
                arm=probe.arm,
                outcome=Outcome.SURVIVED,
                idle_seconds=fact.idle_seconds,
                age_seconds=age,
                identity=fact.identity,
            )
            commands = self._record(observation, now)
        if age >= enough and probe.connection in self._probes:
            return commands + self._drop(probe)
        probe.state, probe.since, probe.rested, probe.goal = "resting", now, 0.0, None
        return commands

    def _aged(self, fact: Aged, now: float) -> list[Command]:
        """Somebody else's busy connection has ended, and nothing else was amiss."""
        rest = fact.age_seconds - fact.lived_seconds
        if not 0 <= rest < self._known.low or _life_of_session(fact).vague:
            return []
        observation = self._observation(
            now,
            id=fact.outage,
            arm=Arm.LIFETIME,
            outcome=Outcome.DIED,
            idle_seconds=rest,
            age_seconds=fact.age_seconds,
            identity=fact.identity,
            death=fact.ending.death,
            cause=Cause.LIFETIME_LIMIT,
            sqlstate=fact.ending.sqlstate,
            message=fact.ending.message,
        )
        return self._record(observation, now)

    def _betrays_pooler(self, probe: _Probe, answered: Identity) -> bool:
        """Whether a connection was answered by two backends, or shares its backend with another connection.

        A quiet transaction pooler serves everybody with one backend. The other must have been answered while this one,
        which is alive, was open: of a connection that died unseen the backend may have passed on.
        """
        if None in (probe.identity.backend_pid, answered.backend_pid):
            return False
        return probe.identity.backend_pid != answered.backend_pid or any(
            other is not probe
            and other.opened_at > probe.opened_at
            and (other.identity.key, other.identity.backend_pid) == (answered.key, answered.backend_pid)
            for other in self._open_probes()
        )

    def _died(self, fact: Died, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or probe.state == "opening":
            return []
        del self._probes[probe.connection]
        doubt, busy = probe.doubt, False
        if probe.arm is Arm.LIFETIME:
            busy = fact.idle_seconds < self._known.low
            if not busy or _dead("", fact.age_seconds, fact.idle_seconds, fact.ending.death, None, now).vague:
                doubt = doubt or Cause.UNKNOWN  # it was left to rest for once, or hardly lived at all
        self._inquest.report(fact, arm=probe.arm, identity=probe.identity, doubt=doubt, now=now, busy=busy)
        return []

    def _disturbed(self, cause: Cause, now: float) -> list[Command]:
        commands = self._retract(cause, now)
        self._cast_doubt(cause)
        if cause in (Cause.RESTART, Cause.FAILOVER):
            for probe in self._open_probes():
                commands += self._censor(probe, cause, now)
        return commands

    def _cast_doubt(self, cause: Cause) -> None:
        self._inquest.cast_doubt(cause)
        for probe in self._open_probes():
            probe.doubt = probe.doubt or cause

    # -- judgement ------------------------------------------------------------------------------------------------

    def _retract(self, cause: Cause, now: float) -> list[Command]:
        """Take back the deaths believed in the last moments: the disturbance that caused them was reported late."""
        lessons, self._lately = self._lately, []
        commands: list[Command] = []
        for lesson in lessons:
            if lesson.observation.outcome == Outcome.DIED and lesson.at >= now - RETRACT_SECONDS:
                if not commands:
                    self._known = lesson.before
                commands.append(Record(observation=replace(lesson.observation, outcome=Outcome.CENSORED, cause=cause)))
            elif commands:
                self._learn(lesson.observation)
        return commands

    # -- planning -------------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Command]:
        """Bring connections and goals in line with the stage the knowledge asks for."""
        if self._budget < 2:
            self._stage = Stage.PAUSED
            return self._close_all(now)
        self._stage = self._stage_by_knowledge()
        if self._stage is Stage.MONITOR:
            return self._plan_monitor(now)
        commands: list[Command] = []
        for probe in list(self._probes.values()):
            if probe.arm in (Arm.KEEPALIVE, Arm.LIFETIME):  # they rest like no other, and cannot stand in for any
                commands += self._drop(probe)
        commands += self._trim(now)
        if self._stage is Stage.VOLLEY:
            commands += self._plan_volley(now)
        else:
            self._plan_search(now)
        while len(self._probes) < self._budget:
            commands += self._open_new(Arm.SEARCH, now)
        return commands

    def _plan_search(self, now: float) -> None:
        known = self._known
        unanswered = [probe.rested for probe in self._probes.values() if probe.state == "overdue"]
        high = min([known.high, *(rest for rest in unanswered if rest > known.low)])
        if high == inf:
            self._goals_on_the_ladder()
        elif not self._inquest.waiting:
            self._goals_in_the_bracket(known.low, high, now)

    def _goals_on_the_ladder(self) -> None:
        """The older a connection, the lower its rung: so each rung is reached as soon as can be."""
        low = min(self._climbed, self._known.low)
        probes = sorted(self._probes.values(), key=lambda probe: probe.since)
        sentinel = None
        if spares_sentinel(self._budget, low) and probes:
            # When the last sentinel was asked, the connection with the least rest behind it takes its place.
            sentinel = next((probe for probe in probes if probe.arm is Arm.SENTINEL), None)
            sentinel = sentinel or max(probes, key=lambda probe: (probe.goal is None, probe.since))
            sentinel.arm, sentinel.goal = Arm.SENTINEL, None
        asked = {probe.goal for probe in probes if probe.state in ("using", "overdue")}
        free = (rung for rung in self._ladder if rung > SAME * low and rung not in asked)
        for probe in probes:
            if probe.state == "resting" and probe is not sentinel:
                probe.arm, probe.goal = Arm.SEARCH, next(free, None)

    def _goals_in_the_bracket(self, low: float, high: float, now: float) -> None:
        resting = {probe.connection: probe for probe in self._probes.values() if probe.state == "resting"}
        sentinel = next((probe for probe in resting.values() if probe.arm is Arm.SENTINEL), None)
        for probe in resting.values():
            probe.goal = None
        if sentinel is not None and sentinel.idle(now) >= high:
            sentinel.goal = sentinel.idle(now)  # the witness is asked at once
            sentinel.arm = Arm.CONFIRM
            return
        if not resting or any(probe.state == "using" for probe in self._probes.values()):
            return  # the answer decides what is worth asking next
        ages = {connection: probe.idle(now) for connection, probe in resting.items()}
        if self._stage is Stage.CONFIRM:
            for connection, age in ages.items():
                # Who is too old to testify there is asked at once: it may contradict, and its place is needed.
                goal = (1 + CONFIRM_WITHIN) / 2 * high
                resting[connection].arm = Arm.CONFIRM
                resting[connection].goal = max(age, goal)
        elif not settled(low, high):
            test = best_test(low, high, ages, self._prior)
            resting[test.connection].goal = test.rest_seconds

    def _plan_volley(self, now: float) -> list[Command]:
        known, rest, commands = self._known, self._known.volley_rest, list[Command]()
        resting = sorted(
            (probe for probe in self._probes.values() if probe.state == "resting"), key=lambda probe: probe.since
        )
        top = BEYOND * known.high
        wants_top = known.needs_top and not any(
            probe.arm is Arm.CONFIRM and probe.state != "resting" for probe in self._probes.values()
        )
        for probe in resting:
            age = probe.idle(now)
            if wants_top and age <= TOO_OLD * top:
                # Should it survive, the limit is void at once.
                probe.arm, probe.goal, wants_top = Arm.CONFIRM, max(age, top), False
            elif age <= TOO_OLD * rest:
                probe.arm, probe.goal = Arm.VOLLEY, max(age, rest)
            else:
                commands += self._drop(probe)
        return commands

    def _plan_monitor(self, now: float) -> list[Command]:
        commands: list[Command] = []
        known = self._known
        arms = [Arm.GUARD, Arm.RULER, Arm.LIFETIME]
        in_question = known.high < inf and not known.several_populations and known.keepalive_helps is None
        if in_question and BEYOND * known.high < known.fatal_age:
            arms.insert(1, Arm.KEEPALIVE)
        arms = arms[: self._budget]
        if arms == [Arm.GUARD, Arm.RULER] and known.lifetimes.suspected and self._turn_of_the_busy():
            arms = [Arm.GUARD, Arm.LIFETIME]
        for probe in list(self._probes.values()):
            if probe.arm not in arms:
                commands += self._drop(probe)
        for arm in arms:
            if not any(probe.arm is arm for probe in self._probes.values()):
                commands += self._open_new(arm, now)
        for probe in self._probes.values():
            if probe.state == "resting" and probe.goal is None:
                if probe.arm is Arm.GUARD:
                    probe.goal = known.volley_rest
                elif probe.arm is Arm.KEEPALIVE:
                    probe.goal = min(KEPT_REST * known.high, known.fatal_age)
                elif probe.arm is Arm.LIFETIME:
                    self._busy_next = False
                    step = max(BUSY_LEAST_SECONDS, BUSY_STEP * (now - probe.opened_at))
                    probe.goal = min(step, BUSY_SHARE * (known.low or self._floor))
                else:
                    limit = known.high if known.high < inf else known.longest
                    probe.goal = max(self._floor, RULER[self._ruler_step % len(RULER)] * limit)
                    self._ruler_step += 1
                    self._busy_next = self._ruler_step % len(RULER) == 0
        return commands

    def _turn_of_the_busy(self) -> bool:
        """Whether a busy connection has the ruler's place: after each of the ruler's rounds, for one life."""
        held_by = {probe.arm for probe in self._probes.values()}
        return Arm.LIFETIME in held_by or (self._busy_next and Arm.RULER not in held_by)

    # -- connections ----------------------------------------------------------------------------------------------

    def _open_probes(self) -> list[_Probe]:
        return [probe for probe in self._probes.values() if probe.state != "opening"]

    def _open_new(self, arm: Arm, now: float) -> list[Command]:
        self._serial += 1
        probe = self._probes[self._serial] = _Probe(self._serial, arm)
        return [self._open_command(probe, now)]

    def _open_command(self, probe: _Probe, now: float) -> Open:
        pause = BACKOFF_SECONDS[min(probe.failures, len(BACKOFF_SECONDS)) - 1] if probe.failures else 0.0
        self._next_opening = max(self._next_opening + OPENING_SPACING_SECONDS, now)
        keepalive = None
        if probe.arm is Arm.KEEPALIVE:
            idle = max(1, int(KEEPALIVE_SHARE * self._known.low))
            keepalive = Keepalive(idle=idle, interval=idle, count=3)
        after = self._next_opening - now + pause
        return Open(connection=probe.connection, after_seconds=after, keepalive=keepalive)

    def _drop(self, probe: _Probe) -> list[Command]:
        del self._probes[probe.connection]
        return [Close(connection=probe.connection)]

    def _censor(self, probe: _Probe, cause: Cause, now: float) -> list[Command]:
        """Give up a connection whose rest can no longer testify."""
        observation = self._observation(
            now,
            arm=probe.arm,
            outcome=Outcome.CENSORED,
            idle_seconds=probe.idle(now),
            age_seconds=now - probe.opened_at,
            identity=probe.identity,
            cause=cause,
        )
        return [Record(observation=observation), *self._drop(probe)]

    def _close_all(self, now: float) -> list[Command]:
        """Drop everything. Deaths not judged yet stay unexplained."""
        self._climbed = 0.0
        commands: list[Command] = [
            Record(observation=self._death_certificate(case, Cause.UNKNOWN)) for case in self._inquest.adjourn()
        ]
        for probe in list(self._probes.values()):
            commands += self._drop(probe)
        return commands

    def _trim(self, now: float) -> list[Command]:
        """Close the youngest connections beyond the budget."""
        surplus = len(self._probes) - self._budget
        youngest = sorted(self._probes.values(), key=lambda probe: probe.idle(now))[: max(0, surplus)]
        return [command for probe in youngest for command in self._drop(probe)]

    # -- observations ---------------------------------------------------------------------------------------------

    def _death_certificate(self, case: Case, cause: Cause) -> Observation:
        died = case.died
        return self._observation(
            case.at,
            arm=case.arm,
            outcome=Outcome.DIED if cause.testifies else Outcome.CENSORED,
            idle_seconds=died.idle_seconds,
            age_seconds=died.age_seconds,
            identity=case.identity,
            death=died.ending.death,
            cause=cause,
            sqlstate=died.ending.sqlstate,
            message=died.ending.message,
        )

    def _observation(
        self,
        when: float,
        *,
        arm: Arm,
        outcome: Outcome,
        idle_seconds: float,
        age_seconds: float,
        identity: Identity,
        death: Death | None = None,
        cause: Cause | None = None,
        sqlstate: str | None = None,
        message: str | None = None,
        id: str | None = None,  # noqa: A002 - as it is called in the observation
    ) -> Observation:
        if id is None:
            self._recorded += 1
            id = f"{self._run}-{self._recorded}"  # noqa: A001
        return Observation(
            id=id,
            target=self._target,
            at=when + self._epoch,
            regime=self._regime,
            arm=arm,
            outcome=outcome,
            idle_seconds=idle_seconds,
            age_seconds=age_seconds,
            death=death,
            cause=cause,
            sqlstate=sqlstate,
            message=message,
            identity=identity,
        )


def _life_of(observation: Observation, at: float) -> Life:
    """The life that a record tells of, `at` the time it ended or was last seen."""
    age, death = observation.age_seconds, observation.death
    if observation.outcome != Outcome.DIED or death is None:
        busy = observation.arm == Arm.LIFETIME
        return Life(id=observation.id, lived_seconds=age, age_seconds=age, at=at, busy=busy)
    return _dead(observation.id, age, observation.idle_seconds, death, observation.sqlstate, at)


def _life_of_session(aged: Aged) -> Life:
    """The life of somebody else's connection; when it ended does not matter."""
    rest = aged.age_seconds - aged.lived_seconds
    return _dead("session", aged.age_seconds, rest, aged.ending.death, aged.ending.sqlstate, at=inf)


def _dead(id: str, age: float, rest: float, death: Death, sqlstate: str | None, at: float) -> Life:  # noqa: A002
    """A life that ended after a last rest, all in seconds."""
    lived = age - rest
    if death.visible:  # it had lived until just before
        lived = max(lived, age - visible_resolution(age))
    return Life(id=id, lived_seconds=lived, age_seconds=age, at=at, busy=True, death=death, sqlstate=sqlstate)


def _deadline(probe: _Probe) -> float | None:
    """When this connection wants attention: its goal is reached, or its answer is overdue."""
    if probe.state == "resting" and probe.goal is not None:
        return probe.since + probe.goal
    return probe.since + PATIENCE_SECONDS if probe.state == "using" else None
