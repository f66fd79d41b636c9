"""The idle-limit machine: finds, confirms, verifies and watches the idle limit of one path.

Theory of operation
===================

The machine owns at most `connections` probe connections. Each is opened, rests until its goal, is used once and given
up; the answer, or its absence, is the evidence (see `knowledge`). What a connection may go through is told by `probes`,
what it is for by `planning`, which rests are worth trying by `ladder`; what counts as an idle death is judged by
`deaths`, and taken back by `retraction`. What is left, and lies here, is the course of the measurement: each fact is
turned into evidence, each piece of evidence into knowledge, and after each the connections are planned anew.

Where resting connections died no sooner than busy ones, there is no sign of an idle limit; what has been proven of
rests holds all the same.

Only a new *regime* starts afresh: when a verified limit is contradicted, it has changed, and older evidence is history.
A guard that dies makes the limit suspect at once; a volley then tells an accident from a change.

A death is never believed on the spot. Its place is taken by a fresh connection, and only when that one has answered
(with the same server life, and after a moment in which other deaths may show) is the death judged. The replacement is
the control, so controls cost no connection beyond the budget.

Nothing of ours may stay behind on the server where a connection dies unseen. So each session is told, when it is
opened, to end by itself after a rest that is never to be reached: `REST_SLACK_SECONDS` and a deadline beyond the
longest one planned. Where such an end is seen all the same it is nobody's doing but ours, and testifies to nothing.

Behind a pooler nothing can be set, and who asks anything takes one of the pooler's connections away. There two probes
log in and rest without a word: what they measure is the pooler, and the path to it.

Time is an argument (`now`, monotonic seconds). The machine is deterministic: the same facts at the same times give the
same commands. Only records carry the time of the wall clock; where that is set, `ClockSet` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import inf

from sidecar.core.evidence import Aged, Arm, Cause, Death, Disturbed, Keepalive, Noticed, Observation, Outcome, Status
from sidecar.core.identity import Identity
from sidecar.core.idle.commands import Budget, Close, Command, Open, Record, Use
from sidecar.core.idle.deaths import PendingDeath, PendingDeaths
from sidecar.core.idle.facts import ClockSet, Died, Fact, Opened, OpenFailed, Pooled, Survived
from sidecar.core.idle.knowledge import BEYOND_RATIO, Knowledge
from sidecar.core.idle.ladder import Prior, rungs, spared_rest
from sidecar.core.idle.lifetime import AgeLimit, Life
from sidecar.core.idle.planning import (
    LEAST_CONNECTIONS,
    MonitorRound,
    Plan,
    Search,
    Stage,
    longest_rest,
    monitor_arms,
    monitor_plan,
    search_plan,
    stage_of,
)
from sidecar.core.idle.probes import Probe, ProbeEvent, ProbeState, ProbeView
from sidecar.core.idle.retraction import LearnedObservation, RecentLearning

OPENING_SPACING_SECONDS = 0.1
"""Between two openings: no burst of handshakes on the target."""

BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Between attempts to open one connection, the last again and again."""

SMALLEST_VOLLEY = 5
"""Connections that must live near the limit at least, however few may be open at a time."""

POOLED_CONNECTIONS = 2
"""Behind a pooler, whose own connections nobody tells us the number of: what it takes to measure at all."""

REST_SLACK_SECONDS = 60.0
"""A session may rest this much longer than it is expected to, and its use may take the deadline besides, before the
server ends it: so late that it never meets a rest under way, so early that what died unseen is soon gone."""

DEADLINE_SECONDS = 10.0
"""What a use may take unless told otherwise: as the setting has it."""

KEEPALIVE_SHARE = 0.3
"""Of the longest rest survived: when TCP keepalive begins, and its interval. One lost keepalive must not matter."""

KEEPALIVE_COUNT = 3
"""TCP_KEEPCNT: unanswered keepalives after which the kernel gives a connection up."""


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
    wished_connections: int = 0  # that it could use now, were they granted
    stray_seconds: float | None = None  # the shortest fatal rest that others outlived, while that is not explained
    earlier_dead_by_seconds: float | None = None  # of the regime before, while no longer rest was survived in this one

    @property
    def resting_connections(self) -> int:
        """How many rest at the moment: where none does, nothing is to be called resting."""
        return sum(probe.state == ProbeState.RESTING for probe in self.probes)


class IdleMachine:
    """See the module's theory of operation.

    `run` and `target` name the observations, `epoch` is what turns `now` into wall-clock seconds, until a `ClockSet`
    tells otherwise. `history` holds earlier observations of this path, oldest first: those of the latest regime are
    taken up where they stopped. `deadline_seconds` is what a use may take.
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
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._target, self._run, self._wall_offset_seconds = target, run, epoch
        self._budget = self._granted = self._wanted = connections
        self._floor, self._cap, self._deadline_seconds = floor, cap, deadline_seconds
        self._defaults = tuple(defaults)
        self._ladder = rungs(floor, cap, connections, self._defaults)
        self._ladder_floor_seconds = 0.0  # the longest rest survived since all connections were young
        self._prior = Prior(self._defaults)
        self._probes: dict[int, Probe] = {}
        self._pending_deaths = PendingDeaths()
        self._recent_learning = RecentLearning()
        self._outgrown_seconds = 0.0  # the longest rest of this stage that a connection was too short-lived for
        self._serial = self._recorded = 0
        self._next_opening = -inf
        self._monitor_round = MonitorRound()
        self._behind_pooler = self._transaction_pooler = False
        self._regime = max((observation.regime for observation in history), default=1)
        self._known = self._known_of(self._regime, history)
        regimes = sorted({observation.regime for observation in history} - {self._regime}, reverse=True)
        fatal = (_fatal_rest(self._known_of(regime, history)) for regime in regimes)
        self._earlier_death_seconds = next((seconds for seconds in fatal if seconds is not None), None)
        if self._known.changed:
            self._begin_regime(self._known)
        self._stage = stage_of(self._known)

    # -- the machine's face ---------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called next; None while only facts can move the machine."""
        due = [self._pending_deaths.next_deadline, *(self._deadline_of(probe) for probe in self._probes.values())]
        return min((deadline for deadline in due if deadline is not None), default=None)

    def handle_timer(self, now: float) -> list[Command]:
        """Use what has rested enough, judge what has settled."""
        commands: list[Command] = []
        fatal_age = inf if self._known.high <= self._known.fatal_age else self._known.fatal_age
        for pending, cause in self._pending_deaths.judge_ripe(now, fatal_age_seconds=fatal_age):
            commands += self._record(self._observation_of(pending, cause), pending.at, now)
        for probe in list(self._probes.values()):
            deadline = self._deadline_of(probe)
            if deadline is None or now < deadline:
                continue
            if probe.state == ProbeState.USING:
                probe.unanswered()
            elif probe.goal_seconds is None:
                commands += self._drop(probe)  # it rests for nothing in particular, and may not for any longer
            else:
                probe.asked(now)
                commands.append(Use(connection=probe.connection))
        return commands + self._plan(now)

    def observe(self, fact: Fact | Budget, now: float) -> list[Command]:
        """Take a fact. Facts about connections the machine has given up are ignored: they crossed its command."""
        commands: list[Command] = []
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
                commands = [] if self.is_expected_expiry(fact) else self._disturbed(fact.cause, now)
            case ClockSet():
                self._wall_offset_seconds = fact.offset_seconds
                return []  # rests are measured by the monotonic clock: nothing is to be planned anew
            case Budget():
                self._granted = fact.connections
                self._budgeted()
            case Pooled():
                commands = self._pooled(fact)
        return commands + self._plan(now)

    def measure_afresh(self, now: float) -> list[Command]:
        """Open a new regime: what was measured becomes history."""
        return self._new_regime(self._known) + self._plan(now)

    def status(self, now: float) -> IdleStatus:
        """What is known and how far the measurement is; cheap, changes nothing."""
        known = self._known
        witness = None if known.too_old_to_rest else known.witness
        lifetime = known.lifetimes.limit
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
            transaction_pooler=self._transaction_pooler,
            lifetime=lifetime,
            suspected_age_seconds=None if lifetime is not None else known.lifetimes.proven,
            busy_seconds=known.busy_seconds or None,
            wished_connections=self._wished,
            stray_seconds=known.strays[0].idle_seconds if known.strays else None,
            earlier_dead_by_seconds=self._earlier_death(),
            probes=tuple(probe.view(now) for probe in self._probes.values()),
        )

    @property
    def _wished(self) -> int:
        if stage_of(self._known) is not Stage.MONITOR:
            return self._useful
        probes = self._probes.values()
        return len(monitor_arms(self._known, probes, self._monitor_round, self._useful, pooled=self._behind_pooler))

    def is_expected_expiry(self, fact: Disturbed) -> bool:
        """Whether all that was seen is a busy connection's death at an age at which they die anyway."""
        return fact.aged is not None and self._known.lifetimes.is_expected(Life.of_session(fact.aged))

    def is_lifetime_expiry(self, outage: str) -> bool:
        """Whether the outage of this id was no more than a session's end at the age at which all end."""
        lifetimes = self._known.lifetimes
        return lifetimes.known and any(life.id == outage for life in lifetimes.witnesses)

    # -- regimes and their evidence -------------------------------------------------------------------------------

    def _known_of(self, regime: int, history: Sequence[Observation]) -> Knowledge:
        """What these observations come to for the regime."""
        known = self._nothing_known()
        seen = [observation for observation in history if observation.regime == regime]
        # A busy connection's record is older than what it says last: what that refutes must be known before.
        for observation in sorted(seen, key=lambda each: each.arm == Arm.LIFETIME and each.outcome == Outcome.SURVIVED):
            known.learn(observation, observation.at - self._wall_offset_seconds)
        return known

    def _nothing_known(self) -> Knowledge:
        return Knowledge(volley=max(SMALLEST_VOLLEY, self._wanted - 1), cap=self._cap)

    def _new_regime(self, former: Knowledge) -> list[Command]:
        """`former` is what its observations come to."""
        commands = self._close_all()
        self._begin_regime(former)
        self._recent_learning.forget()
        return commands

    def _earlier_death(self) -> float | None:
        """Of the regime before, in seconds of rest; None once a rest as long was survived in this one."""
        earlier = self._earlier_death_seconds
        return None if earlier is None or self._known.proven >= earlier else earlier

    def _begin_regime(self, former: Knowledge) -> None:
        fatal = _fatal_rest(former)
        if fatal is not None:
            self._earlier_death_seconds = fatal
        self._regime += 1
        self._known = self._nothing_known()

    def _record(self, observation: Observation, at: float, now: float) -> list[Command]:
        """Learn from an observation made at `at`, monotonic, and keep it."""
        learned = LearnedObservation(observation=observation, at=at, known_before=copy(self._known))
        self._recent_learning.remember(learned, now)
        self._known.learn(observation, at)
        if not self._known.changed:
            return [Record(observation=observation)]
        lifted = observation.outcome == Outcome.SURVIVED
        commands = self._new_regime(learned.known_before if lifted else self._known)
        if lifted:
            # The limit was lifted: this is the first evidence of the new regime.
            observation = replace(observation, regime=self._regime)
            self._known.learn(observation, at)
        return [Record(observation=observation), *commands]

    def _retract(self, cause: Cause, now: float) -> list[Command]:
        """Take back the deaths believed in the last moments: the disturbance that caused them was reported late."""
        retraction = self._recent_learning.take_back(cause, now)
        if retraction is None:
            return []
        self._known = retraction.known_before
        for learned in retraction.standing:
            self._known.learn(learned.observation, learned.at)
        return [Record(observation=observation) for observation in retraction.censored]

    # -- facts ----------------------------------------------------------------------------------------------------

    def _budgeted(self) -> None:
        connections = min(self._granted, self._useful)
        if connections != self._budget:
            self._budget = connections
            self._ladder = rungs(self._floor, self._cap, max(LEAST_CONNECTIONS, connections), self._defaults)

    @property
    def _useful(self) -> int:
        """How many connections may be of use at all."""
        return min(self._wanted, POOLED_CONNECTIONS) if self._behind_pooler else self._wanted

    def _pooled(self, fact: Pooled) -> list[Command]:
        """Rest without a server's session from now on: those who asked may hold one."""
        self._transaction_pooler = self._transaction_pooler or fact.transaction
        if self._behind_pooler:
            return []
        self._behind_pooler = True
        self._budgeted()
        self._ladder_floor_seconds = 0.0
        commands: list[Command] = []
        for probe in list(self._probes.values()):
            commands += self._drop(probe)
        return commands

    def _opened(self, fact: Opened, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None:
            return [Close(connection=fact.connection)]
        if not probe.accepts(ProbeEvent.OPENED):
            return []
        probe.opened(fact.identity, now)
        if not probe.asks:
            self._pending_deaths.logged_in()
            return []
        if self._behind_pooler:
            commands = self._answered(fact.identity, now)
            return [*commands, *self._drop(probe)] if probe.connection in self._probes else commands
        return self._answered(fact.identity, now)

    def _answered(self, identity: Identity, now: float) -> list[Command]:
        """Somebody answered a fresh connection."""
        cause = self._pending_deaths.answered(identity)
        if cause is None:
            return []
        # A new life of the server: what was opened in an earlier one is lost, whether it shows or not.
        commands = self._retract(cause, now)
        self._ladder_floor_seconds = 0.0
        for other in self._open_probes():
            if other.identity.key != identity.key:
                commands += self._censor(other, cause, now)
        return commands

    def _open_failed(self, fact: OpenFailed, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or not probe.accepts(ProbeEvent.OPEN_FAILED):
            return []
        probe.open_failed()
        if fact.said is None or fact.said.out_of_service or (self._behind_pooler and probe.asks):
            # Nobody gets through: whatever dies now, or is found dead later, may have died of this.
            self._cast_doubt(Cause.PARTITION)
        return [self._open_command(probe, now)]

    def _survived(self, fact: Survived, now: float) -> list[Command]:
        probe = self._probes.get(fact.connection)
        if probe is None or not probe.accepts(ProbeEvent.ANSWERED):
            return []
        self._transaction_pooler = self._transaction_pooler or self._betrays_pooler(probe, fact.identity)
        if probe.arm is Arm.LIFETIME:
            return self._grew_older(probe, fact, now)
        self._ladder_floor_seconds = max(self._ladder_floor_seconds, fact.idle_seconds)
        commands = self._drop(probe)
        observation = self._observation(
            now,
            arm=probe.arm,
            outcome=Outcome.SURVIVED,
            idle_seconds=fact.idle_seconds,
            age_seconds=fact.idle_seconds,
            identity=fact.identity,
        )
        return commands + self._record(observation, now, now)

    def _grew_older(self, probe: Probe, fact: Survived, now: float) -> list[Command]:
        """A busy connection has answered. Its age is recorded now and then, each time in place of the last."""
        age = probe.age_when_asked_seconds
        probe.answered(now)
        commands: list[Command] = []
        enough = min(BEYOND_RATIO * self._cap, self._known.lifetimes.refuted_by)  # to say all that is asked
        if age >= min(enough, max(self._floor, BEYOND_RATIO * probe.recorded_age_seconds)):
            probe.recorded_age_seconds = age
            observation = self._observation(
                now,
                id=f"{self._run}-age-{probe.connection}",
                arm=probe.arm,
                outcome=Outcome.SURVIVED,
                idle_seconds=fact.idle_seconds,
                age_seconds=age,
                identity=fact.identity,
            )
            commands = self._record(observation, now, now)
        if age >= enough and probe.connection in self._probes:
            commands += self._drop(probe)
        return commands

    def _aged(self, fact: Aged, now: float) -> list[Command]:
        """Somebody else's busy connection has ended, and nothing else was amiss."""
        rest = fact.age_seconds - fact.lived_seconds
        if not 0 <= rest < self._known.low or Life.of_session(fact).vague:
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
        return self._record(observation, now, now)

    def _betrays_pooler(self, probe: Probe, answered: Identity) -> bool:
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
        if probe is None or not probe.is_open:
            return []
        if fact.ending.own_limit:
            return self._ended_by_ourselves(probe, fact, now)
        del self._probes[probe.connection]
        doubt, busy = probe.doubt, False
        if probe.arm is Arm.LIFETIME:
            busy = fact.idle_seconds < self._known.low
            if not busy or Life.of_end(fact.ending, age_seconds=fact.age_seconds, idle_seconds=fact.idle_seconds).vague:
                doubt = doubt or Cause.UNKNOWN  # it was left to rest for once, or hardly lived at all
        if self._behind_pooler and fact.ending.noticed == Noticed.USING and fact.ending.said is not None:
            doubt = doubt or Cause.UNKNOWN  # the pooler answered, so the connection lived: it had nobody to serve it
        self._pending_deaths.report(
            fact,
            arm=probe.arm,
            identity=probe.identity,
            doubt=doubt,
            now=now,
            busy=busy,
            pooled=self._behind_pooler,
        )
        return []

    def _ended_by_ourselves(self, probe: Probe, fact: Died, now: float) -> list[Command]:
        """Its session ended because we had told it to: that says nothing of the path, nor of what else has died."""
        del self._probes[probe.connection]
        pending = PendingDeath(died=fact, arm=probe.arm, identity=probe.identity, at=now, doubt=None)
        return [Record(observation=self._observation_of(pending, Cause.UNKNOWN))]

    def _disturbed(self, cause: Cause, now: float) -> list[Command]:
        commands = self._retract(cause, now)
        self._cast_doubt(cause)
        if cause in (Cause.RESTART, Cause.FAILOVER):
            for probe in self._open_probes():
                commands += self._censor(probe, cause, now)
        return commands

    def _cast_doubt(self, cause: Cause) -> None:
        self._pending_deaths.cast_doubt(cause)
        for probe in self._open_probes():
            probe.doubt = probe.doubt or cause

    # -- planning -------------------------------------------------------------------------------------------------

    def _plan(self, now: float) -> list[Command]:
        """Bring connections and goals in line with the stage the knowledge asks for."""
        if self._budget < LEAST_CONNECTIONS:
            self._stage = Stage.PAUSED
            return self._close_all()
        before, self._stage = self._stage, stage_of(self._known)
        if before is not self._stage:
            self._outgrown_seconds = 0.0
        probes = tuple(self._probes.values())
        if self._stage is Stage.MONITOR:
            plan, self._monitor_round = monitor_plan(
                self._known,
                probes,
                self._monitor_round,
                connections=self._budget,
                pooled=self._behind_pooler,
                floor_seconds=self._floor,
                now=now,
            )
        else:
            plan = search_plan(self._stage, self._known, probes, self._search, now)
        return self._carry_out(plan, now)

    @property
    def _search(self) -> Search:
        return Search(
            connections=self._budget,
            ladder=self._ladder,
            prior=self._prior,
            ladder_floor_seconds=self._ladder_floor_seconds,
            deaths_pending=self._pending_deaths.waiting,
        )

    def _carry_out(self, plan: Plan, now: float) -> list[Command]:
        commands: list[Command] = []
        outgrown: list[Command] = []
        for connection in plan.drop:
            commands += self._drop(self._probes[connection])
        for arm in plan.open:
            commands.append(self._open_new(arm, now))
        for assigned in plan.assign:
            probe = self._probes[assigned.connection]
            probe.arm, probe.goal_seconds = assigned.arm, assigned.goal_seconds
            if probe.is_resting and probe.outgrown(now):
                # What was known when it was opened has changed so much that its session would not rest for so long.
                self._outgrown_seconds = max(self._outgrown_seconds, probe.goal_seconds or 0.0)
                outgrown += self._drop(probe)
        # A fresh one, which is told of the longer rest, comes into the plan from the start.
        return commands + outgrown + (self._plan(now) if outgrown else [])

    # -- connections ----------------------------------------------------------------------------------------------

    def _deadline_of(self, probe: Probe) -> float | None:
        """When it wants attention. Behind a pooler one at a time is asked: it may have to queue for its answer."""
        if self._behind_pooler and probe.is_resting and any(other.state.asked for other in self._probes.values()):
            return None
        return probe.deadline

    def _open_probes(self) -> list[Probe]:
        return [probe for probe in self._probes.values() if probe.is_open]

    def _open_new(self, arm: Arm, now: float) -> Open:
        self._serial += 1
        probe = self._probes[self._serial] = Probe(connection=self._serial, arm=arm)
        return self._open_command(probe, now)

    def _open_command(self, probe: Probe, now: float) -> Open:
        failures = probe.failed_openings
        pause = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1] if failures else 0.0
        self._next_opening = max(self._next_opening + OPENING_SPACING_SECONDS, now)
        keepalive = None
        if probe.arm is Arm.KEEPALIVE:
            idle = max(1, int(KEEPALIVE_SHARE * self._known.low))
            keepalive = Keepalive(idle=idle, interval=idle, count=KEEPALIVE_COUNT)
        after = self._next_opening - now + pause
        if self._behind_pooler:
            # One at a time may come to wait in the pooler's queue, and only where something follows from its answer.
            asking = any(other.asks and not other.is_open for other in self._probes.values() if other is not probe)
            probe.asks, probe.longest_goal_seconds = self._pending_deaths.needs_answer and not asking, inf
            return Open(connection=probe.connection, after_seconds=after, keepalive=keepalive, ask=probe.asks)
        probe.asks, probe.longest_goal_seconds = True, self._longest_goal(probe)
        return Open(
            connection=probe.connection,
            after_seconds=after,
            keepalive=keepalive,
            rest_at_most_seconds=probe.longest_goal_seconds + self._deadline_seconds,
        )

    def _longest_goal(self, probe: Probe) -> float:
        """How long a connection opened now may rest: a while longer than it is expected to be asked for."""
        goal = longest_rest(
            self._stage,
            probe.arm,
            self._known,
            self._search,
            sentinel_spared=any(
                other.arm is Arm.SENTINEL or other.longest_goal_seconds >= spared_rest(self._ladder)
                for other in self._probes.values()
                if other is not probe
            ),
            floor_seconds=self._floor,
        )
        return max(goal, self._outgrown_seconds) + REST_SLACK_SECONDS

    def _drop(self, probe: Probe) -> list[Command]:
        del self._probes[probe.connection]
        return [Close(connection=probe.connection)]

    def _censor(self, probe: Probe, cause: Cause, now: float) -> list[Command]:
        """Give up a connection whose rest can no longer testify."""
        observation = self._observation(
            now,
            arm=probe.arm,
            outcome=Outcome.CENSORED,
            idle_seconds=probe.idle_seconds(now),
            age_seconds=now - probe.opened_at,
            identity=probe.identity,
            cause=cause,
        )
        return [Record(observation=observation), *self._drop(probe)]

    def _close_all(self) -> list[Command]:
        """Drop everything. Deaths not judged yet stay unexplained."""
        self._ladder_floor_seconds = 0.0
        commands: list[Command] = [
            Record(observation=self._observation_of(pending, Cause.UNKNOWN)) for pending in self._pending_deaths.drain()
        ]
        for probe in list(self._probes.values()):
            commands += self._drop(probe)
        return commands

    # -- observations ---------------------------------------------------------------------------------------------

    def _observation_of(self, pending: PendingDeath, cause: Cause) -> Observation:
        died = pending.died
        return self._observation(
            pending.at,
            arm=pending.arm,
            outcome=Outcome.DIED if cause.testifies else Outcome.CENSORED,
            idle_seconds=died.idle_seconds,
            age_seconds=died.age_seconds,
            identity=pending.identity,
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
            at=when + self._wall_offset_seconds,
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


def _fatal_rest(known: Knowledge) -> float | None:
    """The shortest rest that killed, in seconds; None where none did, or age explains it."""
    return None if known.witness is None or known.too_old_to_rest else known.witness.idle_seconds
