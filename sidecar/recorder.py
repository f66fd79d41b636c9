"""What happens at a target, put on record: remembered, and what is news of it stored, counted and logged.

It decides nothing and knows none of the target's parts; so every count and every line of the log has one place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.trials import TrialResult
from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import BudgetStatus, Hindrance
from sidecar.core.evidence import Arm, Cause, Observation, Outage, Outcome
from sidecar.metrics import Counts
from sidecar.probes.pool import CheckedOut, Closed, PoolFact, PrePinged, TurnFailed
from sidecar.records import PoolFigures, Records

log = logging.getLogger("sidecar.target")


class Recorder:
    """Records what happens at one target. `keep` is told every record that is to outlive this process.

    `run` is this life's part of the ids given here; `observations` and `outages` are what earlier lives left.
    """

    def __init__(
        self,
        target: str,
        *,
        run: str,
        metrics: Counts,
        keep: Callable[[Observation | Outage], None],
        observations: Sequence[Observation] = (),
        outages: Sequence[Outage] = (),
    ) -> None:
        self._target, self._run, self._metrics, self._keep = target, run, metrics, keep
        self.records = Records(observations, outages)
        self.figures = PoolFigures()
        self._keepalive_survivals = 0

    def observed(self, observation: Observation) -> None:
        """A rest has ended, or one that had was judged anew."""
        is_new = self.records.add_observation(observation)
        self._keep(observation)
        if not is_new:
            return  # counted before
        self._metrics.experiment_ended(self._target, observation.outcome)
        if observation.death is not None:
            self._metrics.connection_died(self._target, observation.death, observation.cause or Cause.UNKNOWN)
        log.debug(
            "rest ended",
            extra={
                "target": self._target,
                "arm": observation.arm,
                "outcome": observation.outcome,
                "idle_seconds": round(observation.idle_seconds, 3),
                "death": observation.death,
                "cause": observation.cause,
                "sqlstate": observation.sqlstate,
            },
        )

    def kept_alive(self, result: TrialResult, *, regime: int) -> None:
        """A trial's connection outlived its rest by TCP keepalive: evidence like any other, which is to last."""
        self._keepalive_survivals += 1
        self.observed(
            Observation(
                id=f"{self._run}-kept-{self._keepalive_survivals}",
                target=self._target,
                at=result.at,
                regime=regime,
                arm=Arm.KEEPALIVE,
                outcome=Outcome.SURVIVED,
                idle_seconds=result.idle_seconds,
                age_seconds=result.idle_seconds,
            )
        )

    def outage(self, outage: Outage, *, is_lifetime_expiry: bool) -> None:
        """An outage, or more of it (see `reconciled`)."""
        news = self.records.add_outage(outage, is_lifetime_expiry=is_lifetime_expiry)
        if news is None:
            return
        outage = news.outage
        self._keep(outage)
        if news.is_first:
            log.warning("outage began", extra={"target": self._target, "outage": outage.id})
        if news.just_over:
            downtime = outage.connect or outage.read or outage.write
            seconds = None if downtime is None else downtime.middle_seconds
            self._metrics.outage_ended(self._target, outage.kind, seconds)
            log.warning("outage ended", extra={"target": self._target, "kind": outage.kind, "seconds": seconds})

    def pool(self, fact: PoolFact) -> None:
        """What the held pool lived through."""
        match fact:
            case CheckedOut():
                self._metrics.checkout(self._target, fact.seconds, pre_ping=fact.pre_ping)
                if not fact.connected:
                    self.figures.ledger.add_checkout(fact.seconds, pre_ping=fact.pre_ping)
                    self.figures.ledger.add_turn(fact.seconds + fact.use_seconds, pre_ping=fact.pre_ping)
            case PrePinged(ok=True):
                self._metrics.pre_ping(self._target, fact.seconds)
                self.figures.ledger.add_ping(fact.seconds)
            case PrePinged():
                self._metrics.pre_ping_failed(self._target)
            case TurnFailed():
                log.debug("checkout failed", extra={"target": self._target, "stage": fact.stage, "error": fact.error})
            case Closed():
                about = {"target": self._target, "reason": fact.reason, "death": fact.death}
                log.debug("pooled connection closed", extra=about)

    def stale_writer(self) -> None:
        """A pooled connection could write once, and cannot any more."""
        self._metrics.stale_writer_found(self._target)
        log.warning("stale writer: answers every pre-ping, would refuse every write", extra={"target": self._target})

    def session_ended(self) -> None:
        """A session of ours that died unseen was ended on the server."""
        self._metrics.session_ended(self._target)
        log.debug("session left behind was ended", extra={"target": self._target})

    def login_refused(self, sqlstate: str) -> None:
        """The server, or a pooler before it, refused a connection by an answer."""
        self._metrics.login_refused(self._target, sqlstate)

    def budget(self, status: BudgetStatus, before: BudgetStatus | None) -> None:
        """Another number of connections may be held. Where the target itself wished for another, that is no news."""
        granted = status.granted
        hindrances = {status.hindrance, None if before is None else before.hindrance} - {Hindrance.NOT_LOOKED_YET}
        log.log(
            logging.INFO if hindrances != {None} else logging.DEBUG,
            "connections granted",
            extra={
                "target": self._target,
                "hindrance": status.hindrance,
                "heartbeat": granted.heartbeat,
                "probes": granted.probes,
                "pool": granted.pool,
                "trials": granted.trials,
                "ceiling": status.ceiling,
                "usable": status.usable,
                "used": status.used,
                "others": status.others,
            },
        )

    def application(self, activity: Activity) -> None:
        """What the database shows of the application."""
        self._metrics.application_seen(self._target, activity.connections, activity.longest_idle_seconds)

    def advice(self, advice: Recommendation) -> None:
        """The advice has another status."""
        log.info(
            "advice changed",
            extra={
                "target": self._target,
                "status": str(advice.status),
                "pool_recycle": advice.settings.pool_recycle,
                "pool_pre_ping": advice.settings.pool_pre_ping,
            },
        )
