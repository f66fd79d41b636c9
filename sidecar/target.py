"""One target: its parts wired together.

The parts tell what happens to them: it is put on record (`recorder`), and told on to the parts whom it concerns. What
records and statuses come to is assessed elsewhere (`assessment`), and taken up in one place: `refresh`, which the
housekeeping calls. Who asks for the `view` changes nothing.

How many connections each part may hold is decided elsewhere, too (`sharing`), for all targets together, from what they
wish and what was seen of the server: `apply` passes it on. Before the first word of it nobody opens any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sidecar.assessment import Assessment, Terms, assess, view_of
from sidecar.catalogue import known_limits
from sidecar.clock import Clock
from sidecar.core.advice.attribution import defaults
from sidecar.core.advice.trials import Attempt, TrialResult, attempts, kept_alive
from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import (
    BudgetStatus,
    ConnectionRole,
    Declared,
    Grant,
    Hindrance,
    PauseReason,
    SessionTable,
    Wish,
)
from sidecar.core.evidence import STALE_WRITER, Arm, Disturbed, Observation, Outage, Outcome, Status
from sidecar.core.identity import Identity
from sidecar.core.idle.commands import Budget
from sidecar.core.idle.facts import ClockSet, Pooled
from sidecar.core.idle.machine import IdleMachine, IdleStatus
from sidecar.core.server_budget import Circumstances
from sidecar.core.signals import ServerSignal
from sidecar.core.views import ConnectionState, TargetView
from sidecar.metrics import Counts
from sidecar.probes.availability import AvailabilityRunner
from sidecar.probes.idle import IdleProbeRunner
from sidecar.probes.observer import keep_observing
from sidecar.probes.orphans import Orphans
from sidecar.probes.pool import ROUND_EVERY_SECONDS, CanaryPool, CannotWrite, Closed, PoolFact, TurnFailed
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.probes.refusals import TellingDriver
from sidecar.probes.trial import Trials
from sidecar.recorder import Recorder
from sidecar.settings.model import Settings
from sidecar.sharing import Sharing

log = logging.getLogger("sidecar.target")


class Target:
    """Measures one database over one path. Everything happens inside the event loop of its maker."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        metrics: Counts,
        clock: Clock,
        sharing: Sharing,
        keep: Callable[[Observation | Outage], None],
        observations: Sequence[Observation] = (),
        outages: Sequence[Outage] = (),
        pool_round_every_seconds: float = ROUND_EVERY_SECONDS,
    ) -> None:
        self.name = name
        self._target, self._terms, self._clock = settings.targets[name], Terms.of(name, settings), clock
        run, idle = clock.run_id(), self._target.idle
        self._recorder = Recorder(name, run=run, metrics=metrics, keep=keep, observations=observations, outages=outages)
        self.records = self._recorder.records  # to look at
        self._figures = self._recorder.figures
        self._declared: Declared | None = None
        self._activity: Activity | None = None
        self._sharing = sharing
        self._budget: BudgetStatus | None = None
        self._budget_advised: BudgetStatus | None = None  # as of its last change: the advice is no counter
        self._paused: PauseReason | None = None
        self._told_pooled: Pooled | None = None
        self._measuring_since: float | None = None
        self._offset_seconds = clock.offset_seconds  # as the idle machine was told
        self._machine = IdleMachine(
            target=name,
            run=run,
            epoch=self._offset_seconds,
            connections=idle.connections,
            floor=idle.floor,
            cap=idle.cap,
            defaults=defaults(known_limits()),
            history=observations,
            deadline_seconds=idle.deadline,
        )
        self._driver = driver = TellingDriver(PostgresDriver(self._target), self._login_refused)
        self._probes = IdleProbeRunner(
            self._machine,
            driver,
            deadline_seconds=idle.deadline,
            record=self._observed,
            on_unseen_death=lambda left: self._orphans.add(left),
            on_refused=self._refused,
        )
        self._pool = CanaryPool(self._target, driver, self._pool_observed, round_every_seconds=pool_round_every_seconds)
        self._availability = AvailabilityRunner(
            name,
            self._target,
            driver,
            on_outage=self._outage_observed,
            on_disturbed=self._disturbed,
            on_aged=self._probes.tell,
            on_table=self._looked,
            on_refused=lambda said: sharing.refused(name, said),
            wall=clock.wall,
        )
        self._orphans = Orphans(lambda: self._availability.session, ended=self._recorder.session_ended)
        self._trials = Trials(
            name,
            driver,
            due=self._due_trials,
            room=lambda: self._granted.trials,
            began=sharing.draw,
            ended=self._trial_ended,
            wall=clock.wall,
        )
        self._assessment, self._advised_at = self._assess(), clock.wall()
        self._pool.resize(0)
        sharing.join(self)

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What is to be supervised, each with a name."""
        yield f"{self.name}/watch", self._availability.run()
        yield (
            f"{self.name}/observer",
            keep_observing(
                self._driver,
                self._server_declared,
                session=lambda: self._availability.session,
                may_connect=self._may_look_in,
            ),
        )
        yield f"{self.name}/orphans", self._orphans.run()
        yield f"{self.name}/pool", self._pool.run()
        if self._target.idle.enabled:
            yield f"{self.name}/idle", self._probes.run(Budget(connections=self._granted.probes))
        yield f"{self.name}/trials", self._trials.run()

    async def close(self) -> None:
        """Drop what the tasks leave open when they are cancelled."""
        await self._pool.close()

    def measure_afresh(self) -> None:
        """Open a new regime."""
        log.info("measuring afresh", extra={"target": self.name})
        self._measuring_since = None
        self._probes.measure_afresh()

    def try_again(self) -> None:
        """Renew every trial now instead of when it is due."""
        log.info("trying afresh", extra={"target": self.name})
        self._trials.renew()

    def pause(self, reason: PauseReason) -> None:
        """Give every connection back, at once, until `resume`."""
        self._paused = reason
        self._sharing.draw()

    def resume(self) -> None:
        """Take up again."""
        self._paused = None
        self._sharing.draw()

    # -- what it shares (see `sharing.Member`) -----------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        return (self._target.host, self._target.port)

    @property
    def wish(self) -> Wish:
        idle = self._idle()
        return Wish(
            target=self.name,
            heartbeat=self._target.heartbeat.enabled,
            searching=idle.status is not Status.VERIFIED,
            probes=idle.wished_connections if self._target.idle.enabled else 0,
            pool=self._target.pool.size,
            trials=self._trials.wished,
        )

    @property
    def circumstances(self) -> Circumstances:
        status = self._availability.status
        return Circumstances(
            refused=status.refused is not None or status.queued or status.exhausted,
            pooled=self._availability.is_pooled is True,
            paused=self._paused is not None,
        )

    @property
    def pids(self) -> set[int]:
        return self._availability.pids | self._probes.pids | self._pool.pids | self._trials.pids

    @property
    def _granted(self) -> Grant:
        return Grant() if self._budget is None else self._budget.granted

    def apply(self, status: BudgetStatus) -> None:
        before, self._budget = self._budget, status
        if before is not None and (before.granted, before.hindrance) == (status.granted, status.hindrance):
            return
        self._budget_advised = status
        granted = status.granted
        if granted.heartbeat:
            self._availability.resume()
        else:
            self._availability.suspend(looks=self._may_look_in())
        if granted.probes and self._measuring_since is None:
            self._measuring_since = self._clock.monotonic()
        self._probes.tell(Budget(connections=granted.probes))
        self._pool.resize(granted.pool)
        self._trials.fit()
        self._recorder.budget(status, before)

    def _may_look_in(self) -> bool:
        """Whether short connections may be opened where no heartbeat stands."""
        if self._budget is None or self._budget.granted.heartbeat:
            return False
        waits_for_another = self._target.heartbeat.enabled and self._budget.hindrance is Hindrance.NOT_LOOKED_YET
        return self._budget.hindrance is not Hindrance.PAUSED and not waits_for_another

    # -- what others see, and what it comes to --------------------------------------------------------------------

    @property
    def view(self) -> TargetView:
        """The state as it is now, with the advice as of the last `refresh`."""
        since, availability = self._measuring_since, self._availability.status
        if self._paused is None:  # who waits for another's look is not paused by anybody
            availability = replace(availability, paused=False)
        return view_of(
            self._terms,
            advice=self._assessment.advice,
            generated_at=self._advised_at,
            idle=self._idle(),
            availability=availability,
            elapsed_seconds=0.0 if since is None else self._clock.monotonic() - since,
            connections=self._connections(),
            checkout=self._figures.checkout,
            checkout_with_ping=self._figures.checkout_with_ping,
            budget=self._budget,
            paused=self._paused,
        )

    def refresh(self) -> None:
        """Take up what has happened. For the housekeeping, and nobody else."""
        if self._offset_seconds != self._clock.offset_seconds:
            self._offset_seconds = self._clock.offset_seconds
            self._probes.tell(ClockSet(offset_seconds=self._offset_seconds))
        availability = self._availability.status
        if availability.reachable:
            writable = bool(availability.writable)
            for outage in self.records.end_unfinished(availability.since_at, writable=writable):
                self._outage_observed(outage)
        lifetime = self._idle().lifetime
        self._availability.age_known(None if lifetime is None else lifetime.proven_seconds)
        self._figures.refresh(self._clock.monotonic())
        before, self._assessment = self._assessment.advice, self._assess()
        if (advice := self._assessment.advice) != before:
            self._advised_at = self._clock.wall()
            self._pool.follow(advice)
            if advice.status != before.status:
                self._recorder.advice(advice)

    def _assess(self) -> Assessment:
        idle = self._idle()
        self._trials.about(idle.regime)
        return assess(
            self._terms,
            idle=idle,
            outages=self.records.outages,
            keepalive_survival_seconds=self.records.keepalive_survival_seconds(idle.regime),
            trials=self._trials.results,
            declared=self._declared,
            activity=self._activity,
            ping_cost=self._figures.ping_cost,
            budget=self._budget_advised,
        )

    def _idle(self) -> IdleStatus:
        return self._machine.status(self._clock.monotonic())

    def _connections(self) -> Mapping[tuple[ConnectionRole, ConnectionState], int]:
        pooled, probing = self._pool.connections, self._probes.connections
        return {
            **{(ConnectionRole.POOL, ConnectionState(state)): count for state, count in pooled.items()},
            **{(ConnectionRole.PROBE, ConnectionState(state)): count for state, count in probing.items()},
            (ConnectionRole.HEARTBEAT, ConnectionState.OPEN): self._availability.connections,
            (ConnectionRole.TRIAL, ConnectionState.OPEN): self._trials.running,
        }

    # -- what the parts tell --------------------------------------------------------------------------------------

    def _observed(self, observation: Observation) -> None:
        self._recorder.observed(observation)
        if observation.arm == Arm.LIFETIME and observation.outcome == Outcome.DIED:
            for outage in self.records.outages:  # those of such deaths, before that could be known
                if self._machine.is_lifetime_expiry(outage.id):
                    self._outage_observed(outage)

    def _outage_observed(self, outage: Outage) -> None:
        self._recorder.outage(outage, is_lifetime_expiry=self._machine.is_lifetime_expiry(outage.id))

    def _disturbed(self, fact: Disturbed) -> None:
        # A session that has just reached the age at which all end disturbs nobody.
        if not self._machine.is_expected_expiry(fact):
            self._trials.disturbed()
        self._probes.tell(fact)

    def _pool_observed(self, fact: PoolFact) -> None:
        self._recorder.pool(fact)
        match fact:
            case TurnFailed():
                self._availability.suspect()
            case CannotWrite() if self._availability.status.writes_expected:  # else nobody meant to write there
                self._availability.pooled_lost(STALE_WRITER, seconds_since_well=fact.seconds_since_writable)
                self._recorder.stale_writer()
            case Closed(death=death) if death is not None:
                self._availability.pooled_lost(death, seconds_since_well=fact.seconds_since_use)

    def _server_declared(self, declared: Declared, activity: Activity | None) -> None:
        self._declared, self._activity = declared, activity
        if activity is not None:
            self._recorder.application(activity)

    def _looked(self, table: SessionTable | None, identity: Identity) -> None:
        is_pooled = self._availability.is_pooled is True
        pooled = Pooled(transaction=self._availability.shares_backends) if is_pooled else None
        if pooled is not None and pooled != self._told_pooled:
            self._told_pooled = pooled
            self._probes.tell(pooled)
        self._sharing.looked(self.name, None if is_pooled else table, identity)

    def _login_refused(self, role: ConnectionRole, said: ServerSignal, sqlstate: str) -> None:
        self._recorder.login_refused(sqlstate)
        if role not in (ConnectionRole.HEARTBEAT, ConnectionRole.LOOK):  # else the availability machine tells
            self._refused(said)

    def _refused(self, said: ServerSignal) -> None:
        if said.is_refusal:
            self._sharing.refused(self.name, said)
            self._availability.suspect()

    def _due_trials(self, results: Sequence[TrialResult], now_at: float) -> Iterator[Attempt]:
        longest_age, application = self._terms.policy.max_pool_recycle, self._terms.application
        return attempts(self._assessment.derived, application, results, now_at, longest_age=longest_age)

    def _trial_ended(self, result: TrialResult) -> None:
        if kept_alive(result):
            self._recorder.kept_alive(result, regime=self._idle().regime)
