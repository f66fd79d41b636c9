"""A `Source` that is plain data: what the service would show, set by a test as it needs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sidecar.core.advice.ping_cost import Spread
from sidecar.core.advice.recommendation import (
    FailoverFigures,
    IdleLimit,
    LifetimeLimit,
    LikelyCulprit,
    PoolSettings,
    PrePingCost,
    Quantiles,
    Recommendation,
    Remark,
    SetupName,
    SocketOptions,
    Trial,
    TrialOutcome,
    Verdict,
    VerdictKind,
    Verification,
    VerificationOutcome,
)
from sidecar.core.availability.readiness import Readiness
from sidecar.core.budget import BudgetStatus, CeilingKind, Grant
from sidecar.core.evidence import (
    Arm,
    Death,
    Downtime,
    Interval,
    Keepalive,
    Observation,
    Outage,
    OutageKind,
    Outcome,
    Status,
)
from sidecar.core.identity import Identity
from sidecar.core.idle.probes import ProbeView
from sidecar.core.journal import Journal
from sidecar.core.pause import Pause
from sidecar.core.views import TargetView

NOON = 1_795_521_600.0  # 2026-11-24T12:00:00Z


def measuring(target: str = "default") -> Recommendation:
    """Advice before anything is known."""
    return Recommendation(
        target=target,
        status=Status.MEASURING,
        settings=PoolSettings(pool_recycle=30, pool_pre_ping=True),
        socket=SocketOptions(keepalive=None, user_timeout_ms=None),
    )


def verified(target: str = "default", *, pool_recycle: int = 171) -> Recommendation:
    """Advice with everything known."""
    return Recommendation(
        target=target,
        status=Status.VERIFIED,
        settings=PoolSettings(pool_recycle=pool_recycle, pool_pre_ping=False, selective_pre_ping_after=60.0),
        socket=SocketOptions(keepalive=Keepalive(idle=114, interval=15, count=3), user_timeout_ms=5000),
        connect_args={"prepared_statement_cache_size": 0, "server_settings": {"application_name": "it's mine"}},
        idle_limit=IdleLimit(
            proven_seconds=343.0,
            dead_by_seconds=350.1,
            estimate_seconds=346.5,
            death=Death.SILENT,
            keepalive_helps=True,
            likely=(LikelyCulprit(id="firewall", component="a stateful firewall"),),
        ),
        lifetime_limit=LifetimeLimit(
            proven_seconds=3528.0, dead_by_seconds=3600.0, estimate_seconds=3600.0, death=Death.CLOSED
        ),
        pre_ping_cost=PrePingCost(round_trips=3, p50_ms=1.9, p99_ms=4.0, overhead_ratio=0.31),
        failover=FailoverFigures(
            outages=2, outage_seconds=Quantiles(p50=14.2, max=31.0), write_outage_seconds=Quantiles(p50=16.0, max=33.1)
        ),
        application=Verdict(verdict=VerdictKind.EXPOSED, because="its pool_recycle lies above the limit"),
        verification=Verification(outcome=VerificationOutcome.OK, idle_seconds=357.0, checkout_ms=6.1, at=NOON + 0.25),
        trials=(
            Trial(
                name=SetupName.DEFAULTS,
                pool_recycle=-1,
                pool_pre_ping=False,
                keepalive=False,
                outcome=TrialOutcome.HANG,
                idle_seconds=357.0,
                checkout_ms=None,
                reconnected=None,
                error="no answer within 15 s",
                at=NOON + 0.5,
            ),
        ),
        reasons=(
            Remark(
                code="idle_limit_measured",
                text="Connections die after 343 to 350 seconds of rest.",
                evidence=f"/evidence?target={target}&outcome=died",
            ),
        ),
        warnings=(Remark(code="silent_death", text="A pre-ping alone hangs."),),
    )


def target(name: str = "default", *, advice: Recommendation | None = None, ready: bool = True) -> TargetView:
    return TargetView(
        name=name,
        database="db.internal:5432/app",
        recommendation=advice or measuring(name),
        generated_at=NOON + 0.75,
        readiness=Readiness(
            ready=ready, reason="the database answers" if ready else "the database does not answer", since=NOON
        ),
        reachable=ready,
        stage="ladder",
        suspect=False,
        regime=0,
        elapsed_seconds=12.5,
        probes=(ProbeView(connection=1, arm=Arm.SENTINEL, state="resting", idle_seconds=12.0, until_seconds=None),),
        connections={("pool", "idle"): 2, ("probe", "resting"): 1},
        budget=BudgetStatus(
            usable=97,
            used=31,
            others=23,
            ceiling=CeilingKind.SERVER,
            joint=7,
            granted=Grant(heartbeat=True, probes=6, pool=1),
            wished=Grant(heartbeat=True, probes=8, pool=2),
            since_at=NOON,
        ),
        checkout=Spread(count=7, p50_seconds=0.00006, p99_seconds=None, max_seconds=0.0002),
        checkout_with_ping=None,
    )


def observation(serial: int, *, name: str = "default") -> Observation:
    return Observation(
        id=f"run-{serial}",
        target=name,
        at=NOON + serial,
        regime=0,
        arm=Arm.SEARCH,
        outcome=Outcome.SURVIVED,
        idle_seconds=float(serial),
        age_seconds=float(serial),
        identity=Identity(address="10.0.0.5:5432", started_at=NOON - 86400.5, in_recovery=False, backend_pid=4711),
    )


def outage(serial: int, *, name: str = "default") -> Outage:
    return Outage(
        id=f"outage-{serial}",
        target=name,
        kind=OutageKind.FAILOVER,
        connect=Downtime(
            began=Interval(after=NOON + serial, until=NOON + serial + 0.5),
            ended=Interval(after=NOON + serial + 10, until=NOON + serial + 10.1),
        ),
        write=Downtime(began=Interval(after=NOON + serial, until=NOON + serial + 0.25)),
        before=Identity(address="10.0.0.5:5432"),
        after=Identity(address="10.0.0.6:5432", started_at=NOON),
        addresses_before=("10.0.0.5",),
        connections_lost={Death.CLOSED: 3},
        errors={"57P01": 2},
    )


@dataclass
class Picture:
    views: dict[str, TargetView] = field(default_factory=lambda: {"default": target()})
    started: bool = True
    faults: Mapping[str, str] = field(default_factory=dict)
    store_pending_writes: int = 0
    store_warning: str | None = None
    seen: dict[str, list[Observation]] = field(default_factory=dict)
    disturbed: dict[str, list[Outage]] = field(default_factory=dict)
    measured_afresh: list[str] = field(default_factory=list)
    tried_again: list[str] = field(default_factory=list)
    left: bool = False
    paused: Pause | None = None
    journal: Journal = field(default_factory=lambda: Journal("life"))

    def targets(self) -> Mapping[str, TargetView]:
        return self.views

    def observations(self, target: str) -> Sequence[Observation]:
        return self.seen.get(target, [])

    def outages(self, target: str) -> Sequence[Outage]:
        return self.disturbed.get(target, [])

    def measure_afresh(self, target: str) -> None:
        self.measured_afresh.append(target)

    def try_again(self, target: str) -> None:
        self.tried_again.append(target)

    def pause(self, seconds: float) -> Pause:
        self.paused = Pause(since=NOON, until=NOON + seconds)
        return self.paused

    def resume(self) -> None:
        self.paused = None

    def quit(self) -> None:
        self.left = True
