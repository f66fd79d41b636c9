"""One target: its parts wired together.

The parts tell what happens to them: it is put on record (`recorder`), and told on to the parts whom it concerns. What
records and statuses come to is assessed elsewhere (`assessment`), and taken up in one place: `refresh`, which the
housekeeping calls. Who asks for the `view` changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from sidecar.assessment import Assessment, Terms, assess, view_of
from sidecar.catalogue import known_limits
from sidecar.clock import Clock
from sidecar.core.advice.attribution import defaults
from sidecar.core.advice.trials import Attempt, TrialResult, attempts, kept_alive
from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import LEAST, Declared, connections_to_spare
from sidecar.core.evidence import STALE_WRITER, Arm, Disturbed, Observation, Outage, Outcome
from sidecar.core.idle.commands import Budget
from sidecar.core.idle.facts import ClockSet
from sidecar.core.idle.machine import IdleMachine, IdleStatus
from sidecar.core.views import ConnectionRole, ConnectionState, TargetView
from sidecar.metrics import Counts
from sidecar.probes.availability import AvailabilityRunner
from sidecar.probes.idle import IdleProbeRunner
from sidecar.probes.observer import keep_observing
from sidecar.probes.pool import ROUND_EVERY_SECONDS, CanaryPool, CannotWrite, Closed, PoolFact, TurnFailed
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.probes.trial import Trials
from sidecar.recorder import Recorder
from sidecar.settings.model import Settings

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
        self._spare = 0  # connections the server can spare for measuring
        self._suspended = False
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
        )
        self._driver = driver = PostgresDriver(self._target)
        self._probes = IdleProbeRunner(self._machine, driver, deadline_seconds=idle.deadline, record=self._observed)
        self._pool = CanaryPool(self._target, driver, self._pool_observed, round_every_seconds=pool_round_every_seconds)
        self._availability = AvailabilityRunner(
            name,
            self._target,
            driver,
            on_outage=self._outage_observed,
            on_disturbed=self._disturbed,
            on_aged=self._probes.tell,
            wall=clock.wall,
        )
        self._trials = Trials(
            name,
            driver,
            due=self._due_trials,
            room=lambda: max(1, self._spare // 4) if self._spare else 0,
            began=self._share_connections,
            ended=self._trial_ended,
            wall=clock.wall,
        )
        self._assessment, self._advised_at = self._assess(), clock.wall()

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What is to be supervised, each with a name."""
        yield f"{self.name}/watch", self._availability.run()
        yield f"{self.name}/observer", keep_observing(self._driver, self._server_declared)
        yield f"{self.name}/pool", self._pool.run()
        if self._target.idle.enabled:
            # Nothing is opened before the server has said how much it can spare.
            yield f"{self.name}/idle", self._probes.run(Budget(connections=0))
        yield f"{self.name}/trials", self._trials.run()

    async def close(self) -> None:
        """Drop what the tasks leave open when they are cancelled."""
        await self._pool.close()

    def suspend(self) -> None:
        """Give every connection back at once, and open none before `resume`; also before anything was opened."""
        self._suspended = True
        self._share_connections()

    def resume(self) -> None:
        """Take up again."""
        self._suspended = False
        self._share_connections()

    def measure_afresh(self) -> None:
        """Open a new regime."""
        log.info("measuring afresh", extra={"target": self.name})
        self._measuring_since = None
        self._probes.measure_afresh()

    def try_again(self) -> None:
        """Renew every trial now instead of when it is due."""
        log.info("trying afresh", extra={"target": self.name})
        self._trials.renew()

    # -- what others see, and what it comes to --------------------------------------------------------------------

    @property
    def view(self) -> TargetView:
        """The state as it is now, with the advice as of the last `refresh`."""
        since = self._measuring_since
        return view_of(
            self._terms,
            advice=self._assessment.advice,
            generated_at=self._advised_at,
            idle=self._idle(),
            availability=self._availability.status,
            elapsed_seconds=0.0 if since is None else self._clock.monotonic() - since,
            connections=self._connections(),
            checkout=self._figures.checkout,
            checkout_with_ping=self._figures.checkout_with_ping,
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
        own = sum(self._connections().values())
        self._spare = connections_to_spare(declared, self._target.idle.connections, own)
        if self._spare and self._measuring_since is None:
            self._measuring_since = self._clock.monotonic()
            about = {"target": self.name, "database": self._target.display, "connections": self._spare}
            log.info("measuring", extra=about)
        self._share_connections()

    def _share_connections(self) -> None:
        """Probes get what trials leave of the connections to spare, and always the two a measurement needs."""
        left = max(LEAST, self._spare - self._trials.running) if self._spare and not self._suspended else 0
        self._probes.tell(Budget(connections=left))

    def _due_trials(self, results: Sequence[TrialResult], now_at: float) -> Iterator[Attempt]:
        longest_age, application = self._terms.policy.max_pool_recycle, self._terms.application
        return attempts(self._assessment.derived, application, results, now_at, longest_age=longest_age)

    def _trial_ended(self, result: TrialResult) -> None:
        if kept_alive(result):
            self._recorder.kept_alive(result, regime=self._idle().regime)
