"""The metrics, and the only importer of prometheus_client.

Gauges are read from `Source` when Prometheus asks, so they cannot lag behind what `/recommendation` says. Counters and
histograms are told of events. Every set of label values is known beforehand and starts at 0: `rate()` and
`increase()` then see the first event too, and nothing can make the labels explode. What is not known has no series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from sidecar import __version__
from sidecar.core.advice.recommendation import IdleLimit, LifetimeLimit, Recommendation, VerdictKind
from sidecar.core.budget import Hindrance
from sidecar.core.evidence import Cause, Death, Outage, OutageKind, Outcome, Status
from sidecar.core.views import Source

PREFIX = "connection_health"
OUTCOMES = tuple(Outcome)
OUTAGE_KINDS = tuple(OutageKind)
VERDICTS = tuple(VerdictKind)
SQLSTATES = ("08P01", "28000", "28P01", "3D000", "42501", "53300", "57P03")
"""With which logins are refused, by PostgreSQL or a pooler before it; what else there may be is counted as `other`."""
OTHER = "other"
# fmt: off
LATENCY_BUCKETS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0,
)
# fmt: on
"""Seconds: from a Unix socket to a black hole that a deadline ended."""
OUTAGE_BUCKETS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)
"""Seconds: from a restart on a fast disk, past managed failovers (30 to 120), to a bad afternoon."""


class Counts:
    """Counts events of `targets`.

    A target that was not named here raises KeyError, as does an outcome that is none.
    """

    def __init__(self, targets: Iterable[str]) -> None:
        # without this, each counter and histogram has one more series, which Prometheus does not need
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._application: dict[str, tuple[Mapping[str, int], float | None]] = {}
        names = tuple(targets)
        self._checkouts = self._histogram(
            "checkout_seconds",
            "Time from asking the held pool for a connection to having it.",
            LATENCY_BUCKETS,
            {"target": names, "pre_ping": ("true", "false")},
        )
        self._pings = self._histogram(
            "pre_ping_seconds", "Time of one pre-ping on the held pool.", LATENCY_BUCKETS, {"target": names}
        )
        self._ping_failures = self._counter(
            "pre_ping_failures", "Pre-pings that found the connection dead.", {"target": names}
        )
        self._stale_writers = self._counter(
            "stale_writers",
            "Connections of the held pool found to answer reads while they would refuse writes.",
            {"target": names},
        )
        self._deaths = self._counter(
            "connection_deaths",
            "Connections that ended, by how it showed and why.",
            {"target": names, "death": tuple(Death), "cause": tuple(Cause)},
        )
        self._experiments = self._counter(
            "experiments",
            "Rests of probe connections that ended, by outcome.",
            {"target": names, "outcome": OUTCOMES},
        )
        self._outages = self._counter("outages", "Outages, by kind.", {"target": names, "kind": OUTAGE_KINDS})
        self._outage_seconds = self._histogram(
            "outage_seconds",
            "How long outages lasted, by kind.",
            OUTAGE_BUCKETS,
            {"target": names, "kind": OUTAGE_KINDS},
        )

        self._sessions_ended = self._counter(
            "sessions_ended",
            "Sessions of the sidecar that died unseen, and that it had the server end.",
            {"target": names},
        )
        self._logins_refused = self._counter(
            "logins_refused",
            "Logins of the sidecar that were refused by an answer, by its SQLSTATE.",
            {"target": names, "sqlstate": (*SQLSTATES, OTHER)},
        )

    def session_ended(self, target: str) -> None:
        self._sessions_ended[target,].inc()

    def login_refused(self, target: str, sqlstate: str) -> None:
        self._logins_refused[target, sqlstate if sqlstate in SQLSTATES else OTHER].inc()

    def checkout(self, target: str, seconds: float, *, pre_ping: bool) -> None:
        self._checkouts[target, "true" if pre_ping else "false"].observe(seconds)

    def pre_ping(self, target: str, seconds: float) -> None:
        self._pings[target,].observe(seconds)

    def pre_ping_failed(self, target: str) -> None:
        self._ping_failures[target,].inc()

    def stale_writer_found(self, target: str) -> None:
        self._stale_writers[target,].inc()

    def connection_died(self, target: str, death: Death, cause: Cause) -> None:
        self._deaths[target, death, cause].inc()

    def experiment_ended(self, target: str, outcome: str) -> None:
        """`outcome` is an observation's: survived, died or censored."""
        self._experiments[target, outcome].inc()

    def outage_ended(self, target: str, kind: str, seconds: float | None) -> None:
        """To be told once per outage, when its kind is settled. `seconds` is None where the length is not known.

        A kind this module has not heard of counts as unknown.
        """
        key = (target, kind if kind in OUTAGE_KINDS else OutageKind.UNKNOWN)
        self._outages[key].inc()
        if seconds is not None:
            self._outage_seconds[key].observe(seconds)

    def application_seen(self, target: str, connections: Mapping[str, int], max_idle_seconds: float | None) -> None:
        """What the database shows of the application: connections by state (as in pg_stat_activity), longest rest."""
        self._application[target] = (dict(connections), max_idle_seconds)

    def _counter(self, name: str, text: str, labels: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], Counter]:
        family = Counter(f"{PREFIX}_{name}", text, tuple(labels), registry=self._registry)
        return {values: family.labels(*values) for values in product(*labels.values())}

    def _histogram(
        self, name: str, text: str, buckets: Sequence[float], labels: Mapping[str, Sequence[str]]
    ) -> dict[tuple[str, ...], Histogram]:
        family = Histogram(f"{PREFIX}_{name}", text, tuple(labels), registry=self._registry, buckets=buckets)
        return {values: family.labels(*values) for values in product(*labels.values())}


class Metrics(Counts):
    """Renders the counts together with the state of `source`."""

    def __init__(self, source: Source, targets: Iterable[str]) -> None:
        super().__init__(targets)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Gauges(source, self._application))

    def render(self, accept: str) -> tuple[bytes, str]:
        """The exposition and its content type, OpenMetrics or Prometheus text as the Accept header has it."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # it compares the version asked for with numbers, even where it is none
            encode, content_type = choose_encoder("")
        return encode(self._registry), content_type


class _Gauges(Collector):
    """The state at the moment of the scrape."""

    def __init__(self, source: Source, application: Mapping[str, tuple[Mapping[str, int], float | None]]) -> None:
        self._source = source
        self._application_seen = application

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily(f"{PREFIX}_build", "The version that runs.", {"version": __version__})
        views = self._source.targets()
        up = _gauge("up", "Whether the database can be reached; absent until first tried.")
        ready = _gauge("ready", "Whether /health says ready for this target.")
        limit = _gauge("idle_limit_seconds", "What is known of the path's idle limit.", "bound")
        lifetime = _gauge(
            "lifetime_limit_seconds", "What is known of the age at which connections die however busy.", "bound"
        )
        recycle = _gauge("recommended_pool_recycle_seconds", "The pool_recycle recommended.")
        pre_ping = _gauge("recommended_pool_pre_ping", "Whether pool_pre_ping is recommended.")
        status = _gauge("recommendation_status", "How far the evidence reaches: 1 for the current status.", "status")
        verdict = _gauge(
            "application_verdict",
            "Whether the settings the application runs with survive this path: 1 for the current verdict.",
            "verdict",
        )
        regime = _gauge(
            "regime", "Rises by one when the idle limit is found to have changed, or is measured afresh on demand."
        )
        connections = _gauge("connections", "Connections the sidecar holds.", "role", "state")
        last_outage = _gauge(
            "last_outage_timestamp_seconds", "When the latest outage was seen first, not counting kind lifetime."
        )
        budget = _gauge(
            "budget_connections",
            "Connections beside heartbeats that may be held on the server: by all sidecars together, by this one.",
            "scope",
        )
        paused = _gauge("paused", "Why nothing is measured at the moment: 1 for what holds.", "reason")
        reduced = _gauge("reduced", "Why less is measured than is wished for: 1 for what holds.", "reason")
        dead = _gauge("dead_tasks", "Supervised tasks that died, those that all targets share included.")
        pending = _gauge("store_pending_writes", "Records waiting in memory for the store, which all targets share.")
        for name, view in views.items():
            advice = view.recommendation
            _set(up, view.reachable, name)
            _set(ready, view.readiness.ready, name)
            for bound, seconds in _bounds(advice.idle_limit).items():
                _set(limit, seconds, name, bound)
            for bound, seconds in _bounds(advice.lifetime_limit).items():
                _set(lifetime, seconds, name, bound)
            _set(recycle, advice.settings.pool_recycle, name)
            _set(pre_ping, advice.settings.pool_pre_ping, name)
            for possible in Status:
                _set(status, advice.status is possible, name, possible)
            for possible_verdict in VERDICTS:
                _set(verdict, _verdict(advice) == possible_verdict, name, possible_verdict)
            _set(regime, view.regime, name)
            for (role, state), count in view.connections.items():
                _set(connections, count, name, role, state)
            if view.budget is not None:
                _set(budget, view.budget.joint, name, "joint")
                _set(budget, view.budget.granted.measuring, name, "own")
                hindrance = view.budget.hindrance
                for reason in Hindrance:
                    _set(paused, hindrance is reason and view.budget.is_pausing, name, reason)
                    _set(reduced, hindrance is reason and not view.budget.is_pausing, name, reason)
            _set(last_outage, _last_outage_at(self._source.outages(name)), name)
            _set(dead, _dead_tasks(self._source.faults, name), name)
            _set(pending, self._source.store_pending_writes, name)
        yield from (up, ready, limit, lifetime, recycle, pre_ping, status, verdict, regime)
        yield from (connections, budget, paused, reduced, last_outage, dead, pending)
        yield from self._application()

    def _application(self) -> Iterator[Metric]:
        connections = _gauge("application_connections", "Connections of the application, by state.", "state")
        rest = _gauge("application_max_idle_seconds", "The longest present rest of a connection of the application.")
        for name, (by_state, max_idle_seconds) in self._application_seen.items():
            for state, count in by_state.items():
                _set(connections, count, name, state)
            _set(rest, max_idle_seconds, name)
        yield from (connections, rest)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=("target", *labels))


def _set(family: GaugeMetricFamily, value: float | None, *labels: str) -> None:
    """Add a series, unless the value is not known."""
    if value is not None:
        family.add_metric(labels, value)


def _bounds(limit: IdleLimit | LifetimeLimit | None) -> dict[str, float | None]:
    if limit is None:
        return {}
    return {
        "proven": limit.proven_seconds,
        "dead_by": limit.dead_by_seconds,
        "estimate": limit.estimate_seconds,
    }


def _verdict(advice: Recommendation) -> VerdictKind:
    return VerdictKind.UNKNOWN if advice.application is None else advice.application.verdict


def _dead_tasks(faults: Iterable[str], target: str) -> int:
    """How many of these tasks this target misses: its own are named after it, the shared ones after no target."""
    return sum(1 for task in faults if "/" not in task or task.rpartition("/")[0] == target)


def _last_outage_at(outages: Sequence[Outage]) -> float | None:
    for outage in reversed(outages):
        if outage.kind == OutageKind.LIFETIME:
            continue  # a session that was too old: the database was there
        if downtimes := outage.downtimes.values():
            return min(downtime.began.until for downtime in downtimes)
    return None
