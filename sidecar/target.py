"""One target: its parts wired together, and its state as others may see it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sidecar.catalogue import known_limits
from sidecar.core.advice.advice import Policy, advise, after_trials
from sidecar.core.advice.attribution import defaults
from sidecar.core.advice.ping_cost import PingCost, PingLedger, Spread
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.trials import Attempt, TrialResult, attempts, kept_alive
from sidecar.core.advice.verdict import Activity, ApplicationSettings
from sidecar.core.availability.outages import found_over, of_age, over
from sidecar.core.availability.readiness import Readiness, readiness
from sidecar.core.budget import LEAST, Declared, connections_to_spare
from sidecar.core.evidence import STALE_WRITER, Arm, Cause, Disturbed, Observation, Outage, OutageKind, Outcome
from sidecar.core.idle.commands import Budget
from sidecar.core.idle.machine import IdleMachine, IdleStatus, Stage
from sidecar.core.views import TargetView
from sidecar.metrics import Counts
from sidecar.probes.availability import AvailabilityRunner
from sidecar.probes.idle import IdleProbeRunner
from sidecar.probes.pool import CanaryPool, CannotWrite, CheckedOut, Closed, PoolFact, PrePinged, TurnFailed
from sidecar.probes.postgresql.endpoint import Endpoint
from sidecar.probes.postgresql.observer import keep_observing
from sidecar.probes.trial import Trials
from sidecar.settings.model import Settings

log = logging.getLogger("sidecar.target")

VIEW_SECONDS = 0.2  # a view may be this old: probes and dashboards ask more often than anything changes
CHECKOUTS_SECONDS = 10.0  # between two looks at how long checkouts take
PING_COST_SECONDS = 60.0  # between two looks at what a ping costs: its last digit is no news
REMEMBERED = 10_000  # observations and outages kept in memory, each

_T = TypeVar("_T", Observation, Outage)


class Target:
    """Measures one database over one path. Everything happens inside the event loop of `run`'s caller."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        *,
        metrics: Counts,
        keep: Callable[[Observation | Outage], None],
        observations: Sequence[Observation] = (),
        outages: Sequence[Outage] = (),
    ) -> None:
        self.name = name
        self._settings, self._target = settings, settings.targets[name]
        self._metrics, self._keep = metrics, keep
        self._loop = asyncio.get_running_loop()
        self._epoch = time.time() - self._loop.time()
        self.observations = {observation.id: observation for observation in observations}
        self.outages = {outage.id: outage for outage in outages}
        self._unfinished = [outage for outage in outages if not over(outage)]  # an earlier life did not see their end
        self._policy = Policy(
            safety=settings.policy.safety,
            max_pool_recycle=settings.policy.max_pool_recycle,
            ping_overhead=settings.policy.ping_overhead,
        )
        self._declared: Declared | None = None
        self._activity: Activity | None = None
        self._spare = 0  # connections the server can spare for measuring
        self._run = f"{time.time_ns():x}"
        self._kept_recorded = 0
        self._kept: dict[int, float] = {}  # regime -> the longest rest survived with TCP keepalive
        for observation in observations:
            self._note_kept(observation)
        told = self._target.application
        self._application = None if told is None else ApplicationSettings(**told.model_dump())
        self._ledger = PingLedger()
        self._ping: PingCost | None = None
        self._ping_looked_at = 0.0
        self._checkouts: tuple[Spread | None, Spread | None] = (None, None)  # without and with a ping
        self._checkouts_looked_at = 0.0
        self._measuring_since: float | None = None
        endpoint = Endpoint(self._target)
        idle = self._target.idle
        self._machine = IdleMachine(
            target=name,
            run=self._run,
            epoch=self._epoch,
            connections=idle.connections,
            floor=idle.floor,
            cap=idle.cap,
            defaults=defaults(known_limits()),
            history=observations,
        )
        self._surveyor = IdleProbeRunner(self._machine, endpoint, deadline_seconds=idle.deadline, record=self._observed)
        self._pool = CanaryPool(self._target, endpoint, self._pool_observed)
        self._watch = AvailabilityRunner(
            name,
            self._target,
            endpoint,
            on_outage=self._outage,
            on_disturbed=self._disturbed,
            on_aged=self._surveyor.tell,
        )
        self._trials = Trials(
            name,
            endpoint,
            due=self._due_trials,
            room=lambda: max(1, self._spare // 4) if self._spare else 0,
            began=self._share_connections,
            ended=self._trial_ended,
        )
        self._endpoint = endpoint
        self._recommendation, self._recommended_at = self._advise(), time.time()
        self._view, self._viewed_at = self._look(), self._loop.time()

    def tasks(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What is to be supervised, each with a name."""
        yield f"{self.name}/watch", self._watch.run()
        yield f"{self.name}/observer", keep_observing(self._endpoint, self._declares)
        yield f"{self.name}/pool", self._pool.run()
        if self._target.idle.enabled:
            # Nothing is opened before the server has said how much it can spare.
            yield f"{self.name}/idle", self._surveyor.run(Budget(connections=0))
        yield f"{self.name}/trials", self._trials.run()

    async def close(self) -> None:
        """Drop what the tasks leave open when they are cancelled."""
        await self._pool.close()

    def measure_afresh(self) -> None:
        """Open a new regime."""
        log.info("measuring afresh", extra={"target": self.name})
        self._measuring_since = None
        self._surveyor.measure_afresh()

    @property
    def view(self) -> TargetView:
        """The present state, at most a moment old."""
        now = self._loop.time()
        if now - self._viewed_at >= VIEW_SECONDS:
            self.refresh()
        return self._view

    def refresh(self) -> None:
        """Bring the advice and the view up to date, and let the pool follow the advice."""
        self._finish_outages()
        lifetime = self._idle().lifetime
        self._watch.age_known(None if lifetime is None else lifetime.proven_seconds)
        advice = self._advise()
        if advice != self._recommendation:
            if advice.status != self._recommendation.status:
                log.info(
                    "advice changed",
                    extra={
                        "target": self.name,
                        "status": str(advice.status),
                        "pool_recycle": advice.settings.pool_recycle,
                        "pool_pre_ping": advice.settings.pool_pre_ping,
                    },
                )
            self._recommendation, self._recommended_at = advice, time.time()
            self._pool.follow(advice)
        self._view, self._viewed_at = self._look(), self._loop.time()

    def try_again(self) -> None:
        """Renew every trial now instead of when it is due."""
        log.info("trying afresh", extra={"target": self.name})
        self._trials.renew()

    def _due_trials(self, results: Sequence[TrialResult], now_at: float) -> Iterator[Attempt]:
        return attempts(self._derived, self._application, results, now_at, longest_age=self._policy.max_pool_recycle)

    def _trial_ended(self, result: TrialResult) -> None:
        if kept_alive(result):
            # Evidence like any other, and as such it outlives this process.
            self._kept_recorded += 1
            self._observed(
                Observation(
                    id=f"{self._run}-kept-{self._kept_recorded}",
                    target=self.name,
                    at=result.at,
                    regime=self._idle().regime,
                    arm=Arm.KEEPALIVE,
                    outcome=Outcome.SURVIVED,
                    idle_seconds=result.idle_seconds,
                    age_seconds=result.idle_seconds,
                )
            )

    # -- what the parts tell --------------------------------------------------------------------------------------

    def _note_kept(self, observation: Observation) -> None:
        if observation.arm == Arm.KEEPALIVE and observation.outcome == Outcome.SURVIVED:
            known = self._kept.get(observation.regime, 0.0)
            self._kept[observation.regime] = max(known, observation.idle_seconds)

    def _observed(self, observation: Observation) -> None:
        self._note_kept(observation)
        known = observation.id in self.observations
        _remember(self.observations, observation.id, observation)
        self._keep(observation)
        if observation.arm == Arm.LIFETIME and observation.outcome == Outcome.DIED:
            for outage in [outage for outage in self.outages.values() if self._machine.explains(outage.id)]:
                self._outage(outage)
        if known:
            return  # judged anew, and counted before
        self._metrics.experiment_ended(self.name, observation.outcome)
        if observation.death is not None:
            self._metrics.connection_died(self.name, observation.death, observation.cause or Cause.UNKNOWN)
        log.debug(
            "rest ended",
            extra={
                "target": self.name,
                "arm": observation.arm,
                "outcome": observation.outcome,
                "idle_seconds": round(observation.idle_seconds, 3),
                "death": observation.death,
                "cause": observation.cause,
                "sqlstate": observation.sqlstate,
            },
        )

    def _declares(self, declared: Declared, activity: Activity | None) -> None:
        self._declared, self._activity = declared, activity
        if activity is not None:
            self._metrics.application_seen(self.name, activity.connections, activity.longest_idle_seconds)
        own = sum(self._connections().values())
        spare = connections_to_spare(declared, self._target.idle.connections, own)
        self._spare = spare
        if spare and self._measuring_since is None:
            self._measuring_since = self._loop.time()
            log.info("measuring", extra={"target": self.name, "database": self._target.display, "connections": spare})
        self._share_connections()

    def _share_connections(self) -> None:
        """Probes get what trials leave of the connections to spare, and always the two a measurement needs."""
        left = max(LEAST, self._spare - self._trials.running) if self._spare else 0
        self._surveyor.tell(Budget(connections=left))

    def _pool_observed(self, fact: PoolFact) -> None:
        match fact:
            case CheckedOut():
                self._metrics.checkout(self.name, fact.seconds, pre_ping=fact.pre_ping)
                if not fact.connected:
                    self._ledger.add_checkout(fact.seconds, pre_ping=fact.pre_ping)
                    self._ledger.add_turn(fact.seconds + fact.use_seconds, pre_ping=fact.pre_ping)
            case PrePinged(ok=True):
                self._metrics.pre_ping(self.name, fact.seconds)
                self._ledger.add_ping(fact.seconds)
            case PrePinged():
                self._metrics.pre_ping_failed(self.name)
            case TurnFailed():
                log.debug("checkout failed", extra={"target": self.name, "stage": fact.stage, "error": fact.error})
                self._watch.suspect()
            case CannotWrite():
                self._stale_writer(fact)
            case Closed():
                log.debug(
                    "pooled connection closed", extra={"target": self.name, "reason": fact.reason, "death": fact.death}
                )
                if fact.death is not None:
                    self._watch.pooled_lost(fact.death, seconds_since_well=fact.seconds_since_use)

    def _stale_writer(self, fact: CannotWrite) -> None:
        if not self._watch.status.writes_expected:
            return  # a replica: nobody meant to write there
        self._metrics.stale_writer_found(self.name)
        self._watch.pooled_lost(STALE_WRITER, seconds_since_well=fact.seconds_since_writable)
        log.warning("stale writer: answers every pre-ping, would refuse every write", extra={"target": self.name})

    def _outage(self, outage: Outage) -> None:
        before = self.outages.get(outage.id)
        if self._machine.explains(outage.id) or (before is not None and before.kind == OutageKind.LIFETIME):
            outage = of_age(outage)
        if outage == before:
            return
        _remember(self.outages, outage.id, outage)
        self._keep(outage)
        if before is None:
            log.warning("outage began", extra={"target": self.name, "outage": outage.id})
        if over(outage) and (before is None or not over(before)):
            spell = outage.connect or outage.read or outage.write
            seconds = spell.middle_seconds if spell is not None else None
            self._metrics.outage_ended(self.name, outage.kind, seconds)
            log.warning("outage ended", extra={"target": self.name, "kind": outage.kind, "seconds": seconds})

    def _finish_outages(self) -> None:
        """Close, on contact with the database, what an earlier life of this process left open."""
        status = self._watch.status
        if not self._unfinished or not status.reachable:
            return
        unfinished, self._unfinished = self._unfinished, []
        for outage in unfinished:
            found = found_over(outage, status.since_at, writable=bool(status.writable))
            if found != outage:
                self._outage(found)
            if not over(found):
                self._unfinished.append(found)

    def _disturbed(self, fact: Disturbed) -> None:
        if not self._machine.expects(fact):  # a session that has just reached the age at which all end disturbs nobody
            self._trials.disturbed()
        self._surveyor.tell(fact)

    # -- what others see ------------------------------------------------------------------------------------------

    def _advise(self) -> Recommendation:
        self._derived = self._derive()  # what is tried next, whatever trials say of it
        return after_trials(
            self._derived,
            self._trials.results,
            policy=self._policy,
            shortest_rest=self._target.idle.floor,
            application=self._application,
        )

    def _derive(self) -> Recommendation:
        now = self._loop.time()
        if self._ping is None or now - self._ping_looked_at >= PING_COST_SECONDS:
            self._ping, self._ping_looked_at = self._ledger.cost(), now
        idle = self._idle()
        self._trials.about(idle.regime)
        return advise(
            target=self.name,
            policy=self._policy,
            shortest_rest=self._target.idle.floor,
            idle=idle,
            declared=self._declared,
            ping=self._ping,
            outages=tuple(self.outages.values()),
            application=self._application,
            activity=self._activity,
            catalogue=known_limits(),
            kept_seconds=self._kept.get(idle.regime),
        )

    def _idle(self) -> IdleStatus:
        return self._machine.status(self._loop.time())

    def _look(self) -> TargetView:
        idle, status = self._idle(), self._watch.status
        if (now := self._loop.time()) - self._checkouts_looked_at >= CHECKOUTS_SECONDS:
            self._checkouts = self._ledger.checkouts(pre_ping=False), self._ledger.checkouts(pre_ping=True)
            self._checkouts_looked_at = now
        return TargetView(
            name=self.name,
            database=self._target.display,
            recommendation=self._recommendation,
            generated_at=self._recommended_at,
            readiness=self._readiness(),
            reachable=status.reachable,
            stage=idle.stage if self._target.idle.enabled else Stage.PAUSED,
            suspect=idle.suspect,
            regime=idle.regime,
            elapsed_seconds=0.0 if self._measuring_since is None else self._loop.time() - self._measuring_since,
            probes=idle.probes,
            connections=self._connections(),
            checkout=self._checkouts[0],
            checkout_with_ping=self._checkouts[1],
        )

    def _readiness(self) -> Readiness:
        wanted = self._settings.readiness
        return readiness(self._watch.status, depends_on=wanted.depends_on, grace_seconds=wanted.grace)

    def _connections(self) -> Mapping[tuple[str, str], int]:
        counts = {("pool", state): count for state, count in self._pool.connections.items()}
        counts |= {("probe", state): count for state, count in self._surveyor.connections.items()}
        counts["heartbeat", "open"] = self._watch.connections
        counts["trial", "open"] = self._trials.running
        return counts


def _remember(records: dict[str, _T], key: str, record: _T) -> None:
    records[key] = record
    if len(records) > REMEMBERED:
        del records[next(iter(records))]
