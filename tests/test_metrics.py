"""The exposition, read back by the parsers of prometheus_client and checked by promtool where it is installed."""

from __future__ import annotations

import dataclasses
import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from sidecar import __version__
from sidecar.core.advice.recommendation import IdleLimit
from sidecar.core.advice.verdict import ApplicationSettings, judge_application
from sidecar.core.budget import Grant, Hindrance
from sidecar.core.evidence import Cause, Death, Status
from sidecar.metrics import OUTAGE_KINDS, OUTCOMES, VERDICTS, Metrics
from testing.pictures import NOON, Picture, observation, outage, target, verified

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

PROMISED = {
    "build_info": {"version"},
    "up": {"target"},
    "ready": {"target"},
    "idle_limit_seconds": {"target", "bound"},
    "lifetime_limit_seconds": {"target", "bound"},
    "recommended_pool_recycle_seconds": {"target"},
    "recommended_pool_pre_ping": {"target"},
    "recommendation_status": {"target", "status"},
    "checkout_seconds_count": {"target", "pre_ping"},
    "pre_ping_seconds_count": {"target"},
    "pre_ping_failures_total": {"target"},
    "stale_writers_total": {"target"},
    "application_verdict": {"target", "verdict"},
    "regime": {"target"},
    "connections": {"target", "role", "state"},
    "connection_deaths_total": {"target", "death", "cause"},
    "experiments_total": {"target", "outcome"},
    "outages_total": {"target", "kind"},
    "outage_seconds_count": {"target", "kind"},
    "last_outage_timestamp_seconds": {"target"},
    "application_connections": {"target", "state"},
    "application_max_idle_seconds": {"target"},
    "budget_connections": {"target", "scope"},
    "paused": {"target", "reason"},
    "reduced": {"target", "reason"},
    "sessions_ended_total": {"target"},
    "logins_refused_total": {"target", "sqlstate"},
    "dead_tasks": {"target"},
    "store_pending_writes": {"target"},
}


def families(metrics: Metrics) -> list[Metric]:
    body, content_type = metrics.render("")
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return list(parse_text(body.decode()))


def series(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of ours by its name without the prefix, and its labels without the target."""
    return {
        (
            sample.name.removeprefix("connection_health_"),
            frozenset((k, v) for k, v in sample.labels.items() if k != "target"),
        ): sample.value
        for family in families(metrics)
        for sample in family.samples
        if sample.name.startswith("connection_health_")
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return series(metrics).get((name, frozenset(labels.items())))


@pytest.fixture
def picture() -> Picture:
    return Picture()


@pytest.fixture
def metrics(picture: Picture) -> Metrics:
    return Metrics(picture, ["default"])


def full() -> Metrics:
    """Everything known, every event seen."""
    picture = Picture(
        views={"default": target(advice=verified()), "orders": target("orders", advice=verified("orders"))},
        disturbed={name: [outage(0, name=name)] for name in ("default", "orders")},
        seen={"default": [observation(0)]},
    )
    metrics = Metrics(picture, picture.views)
    for name in picture.views:
        metrics.checkout(name, 0.002, pre_ping=True)
        metrics.pre_ping(name, 0.0004)
        metrics.pre_ping_failed(name)
        metrics.stale_writer_found(name)
        metrics.connection_died(name, Death.SILENT, Cause.IDLE_LIMIT)
        metrics.experiment_ended(name, "survived")
        metrics.outage_ended(name, "failover", 14.0)
        metrics.session_ended(name)
        metrics.login_refused(name, "53300")
        metrics.application_seen(name, {"idle in transaction": 2}, 61.5)
    return metrics


def test_every_promised_name_with_its_labels() -> None:
    found: dict[str, set[str]] = {}
    for name, labels in series(full()):
        found.setdefault(name, set()).update(key for key, _ in labels)
    for name, labels in PROMISED.items():
        assert found[name] == labels - {"target"}, name


def test_every_series_of_ours_but_the_build_names_its_target() -> None:
    for family in families(full()):
        for sample in family.samples:
            if sample.name.startswith("connection_health_") and sample.name != "connection_health_build_info":
                assert sample.labels["target"] in ("default", "orders"), sample


def test_nothing_is_exposed_that_is_not_promised() -> None:
    names = {re.sub(r"_(bucket|sum)$", "_count", name) for name, _ in series(full())}
    assert names == set(PROMISED)


# --- the state --------------------------------------------------------------------------------------------------------


def test_what_is_not_known_has_no_series(metrics: Metrics, picture: Picture) -> None:
    picture.views = {"default": dataclasses.replace(target(), reachable=None)}
    names = {name for name, _ in series(metrics)}
    for unknown in (
        "up",
        "idle_limit_seconds",
        "lifetime_limit_seconds",
        "last_outage_timestamp_seconds",
        "application_connections",
        "application_max_idle_seconds",
    ):
        assert unknown not in names
    assert value(metrics, "ready") == 1
    assert value(metrics, "build_info", version=__version__) == 1


def test_the_state_is_that_of_the_scrape(metrics: Metrics, picture: Picture) -> None:
    assert value(metrics, "up") == 1
    assert value(metrics, "recommended_pool_recycle_seconds") == 30
    assert value(metrics, "recommended_pool_pre_ping") == 1
    assert value(metrics, "connections", role="pool", state="idle") == 2
    picture.views = {"default": target(advice=verified(), ready=False)}
    picture.store_pending_writes = 7
    assert value(metrics, "up") == 0
    assert value(metrics, "ready") == 0
    assert value(metrics, "recommended_pool_recycle_seconds") == 171
    assert value(metrics, "recommended_pool_pre_ping") == 0
    assert value(metrics, "store_pending_writes") == 7


def test_the_bounds_are_told_apart(metrics: Metrics, picture: Picture) -> None:
    picture.views = {"default": target(advice=verified())}
    assert [value(metrics, "idle_limit_seconds", bound=bound) for bound in ("proven", "dead_by", "estimate")] == [
        343.0,
        350.1,
        346.5,
    ]
    assert [value(metrics, "lifetime_limit_seconds", bound=bound) for bound in ("proven", "dead_by", "estimate")] == [
        3528.0,
        3600.0,
        3600.0,
    ]
    only_proven = dataclasses.replace(verified(), idle_limit=IdleLimit(proven_seconds=100.0))
    picture.views = {"default": target(advice=only_proven)}
    assert [value(metrics, "idle_limit_seconds", bound=bound) for bound in ("proven", "dead_by", "estimate")] == [
        100.0,
        None,
        None,
    ]


def test_exactly_one_status_holds(metrics: Metrics, picture: Picture) -> None:
    picture.views = {"default": target(advice=verified())}
    assert {status: value(metrics, "recommendation_status", status=status) for status in Status} == {
        Status.MEASURING: 0,
        Status.PROVISIONAL: 0,
        Status.CONFIRMED: 0,
        Status.VERIFIED: 1,
    }


def test_exactly_one_verdict_holds(metrics: Metrics, picture: Picture) -> None:
    def verdicts() -> dict[str, float | None]:
        return {verdict: value(metrics, "application_verdict", verdict=verdict) for verdict in VERDICTS}

    assert verdicts() == {"protected": 0, "exposed": 0, "unknown": 1}
    picture.views = {"default": target(advice=verified())}
    assert verdicts() == {"protected": 0, "exposed": 1, "unknown": 0}


def test_every_verdict_there_is_has_its_series() -> None:
    silent = IdleLimit(proven_seconds=100.0, dead_by_seconds=110.0, death=Death.SILENT)
    given = {
        judge_application(settings, silent).verdict
        for settings in (
            None,
            ApplicationSettings(pool_recycle=50, pool_pre_ping=False),
            ApplicationSettings(pool_recycle=1800, pool_pre_ping=True),
        )
    }
    assert given == set(VERDICTS)


def test_a_dead_task_is_counted_for_every_target_that_misses_it(picture: Picture) -> None:
    picture.views = {"default": target(), "orders": target("orders")}
    picture.faults = {"orders/watch": "died of OSError", "store": "ended by itself"}
    body, _ = Metrics(picture, picture.views).render("")
    assert 'connection_health_dead_tasks{target="default"} 1.0' in body.decode()
    assert 'connection_health_dead_tasks{target="orders"} 2.0' in body.decode()


def test_the_last_outage_is_dated_by_its_first_sign(metrics: Metrics, picture: Picture) -> None:
    undated = dataclasses.replace(outage(200), connect=None, write=None)
    picture.disturbed["default"] = [outage(0), outage(100), undated]
    assert value(metrics, "last_outage_timestamp_seconds") == NOON + 100.25


def test_the_application(metrics: Metrics) -> None:
    metrics.application_seen("default", {"active": 1, "idle": 4}, 61.5)
    metrics.application_seen("default", {"idle": 5}, None)
    assert value(metrics, "application_connections", state="idle") == 5
    assert value(metrics, "application_connections", state="active") is None
    assert value(metrics, "application_max_idle_seconds") is None


# --- events -----------------------------------------------------------------------------------------------------------


def test_every_counter_starts_at_zero(metrics: Metrics) -> None:
    for death in Death:
        for cause in Cause:
            assert value(metrics, "connection_deaths_total", death=death, cause=cause) == 0
    for outcome in OUTCOMES:
        assert value(metrics, "experiments_total", outcome=outcome) == 0
    for kind in OUTAGE_KINDS:
        assert value(metrics, "outages_total", kind=kind) == 0
        assert value(metrics, "outage_seconds_count", kind=kind) == 0
    for pre_ping in ("true", "false"):
        assert value(metrics, "checkout_seconds_count", pre_ping=pre_ping) == 0
    assert value(metrics, "pre_ping_seconds_count") == 0
    assert value(metrics, "pre_ping_failures_total") == 0


def test_events_are_counted_where_they_belong(metrics: Metrics) -> None:
    before = series(metrics)
    metrics.connection_died("default", Death.RESET_ON_USE, Cause.IDLE_LIMIT)
    metrics.experiment_ended("default", "censored")
    metrics.pre_ping_failed("default")
    metrics.outage_ended("default", "restart", None)
    changed = {key: count for key, count in series(metrics).items() if count != before[key]}
    assert changed == {
        ("connection_deaths_total", frozenset({("death", "reset_on_use"), ("cause", "idle_limit")})): 1,
        ("experiments_total", frozenset({("outcome", "censored")})): 1,
        ("pre_ping_failures_total", frozenset()): 1,
        ("outages_total", frozenset({("kind", "restart")})): 1,
    }


def test_times_fall_into_their_buckets(metrics: Metrics) -> None:
    metrics.checkout("default", 0.0004, pre_ping=True)
    metrics.checkout("default", 15.0, pre_ping=False)
    metrics.outage_ended("default", "failover", 45.0)
    assert value(metrics, "checkout_seconds_bucket", pre_ping="true", le="0.00025") == 0
    assert value(metrics, "checkout_seconds_bucket", pre_ping="true", le="0.0005") == 1
    assert value(metrics, "checkout_seconds_bucket", pre_ping="false", le="10.0") == 0
    assert value(metrics, "checkout_seconds_bucket", pre_ping="false", le="20.0") == 1
    assert value(metrics, "outage_seconds_sum", kind="failover") == 45.0
    assert value(metrics, "outages_total", kind="failover") == 1


def test_labels_cannot_explode(metrics: Metrics) -> None:
    before = series(metrics).keys()
    metrics.outage_ended("default", "meteorite", 1.0)
    assert value(metrics, "outages_total", kind="unknown") == 1
    for event in (
        lambda: metrics.experiment_ended("default", "exploded"),
        lambda: metrics.checkout("elsewhere", 0.1, pre_ping=True),
        lambda: metrics.pre_ping("elsewhere", 0.1),
    ):
        with pytest.raises(KeyError):
            event()
    assert series(metrics).keys() == before


# --- the exposition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/html", "text/plain; version=0.0.4"),
        ("text/plain;version=1.0.0", "text/plain; version=1.0.0"),
        ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
        ('application/openmetrics-text;version="1.0.0"', "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=latest", "text/plain; version=0.0.4"),
        ("text/plain;version=", "text/plain; version=0.0.4"),
    ],
)
def test_the_format_is_negotiated(metrics: Metrics, accept: str, kind: str) -> None:
    body, content_type = metrics.render(accept)
    assert content_type.startswith(kind)
    assert body.endswith(b"# EOF\n") == kind.startswith("application/openmetrics-text")


def test_openmetrics_is_valid_and_says_the_same() -> None:
    metrics = full()
    body, _ = metrics.render(OPENMETRICS)
    ours = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(body.decode())
        for sample in family.samples
        if sample.name.startswith("connection_health_")
    }
    assert ours == {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families(metrics)
        for sample in family.samples
        if sample.name.startswith("connection_health_")
    }


def test_the_process_is_exposed_and_no_creation_times(metrics: Metrics) -> None:
    names = {sample.name for family in families(metrics) for sample in family.samples}
    assert {"process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"} <= names
    assert not [name for name in names if name.endswith("_created")]


def test_names_follow_the_conventions() -> None:
    for family in families(full()):
        if not family.name.startswith("connection_health_"):
            continue
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", family.name)
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type == "gauge":
            assert not family.name.endswith(("_total", "_count", "_sum", "_bucket"))
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


def test_promtool_has_no_complaint() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package `prometheus`)")
    text, _ = full().render("")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_what_may_be_held_and_why_it_is_not_more(picture: Picture, metrics: Metrics) -> None:
    assert value(metrics, "budget_connections", scope="joint") == 7
    assert value(metrics, "budget_connections", scope="own") == 7
    assert value(metrics, "reduced", reason="crowded") == 0
    view = picture.views["default"]
    assert view.budget is not None
    crowded = replace(view.budget, joint=2, granted=Grant(heartbeat=True, probes=2), hindrance=Hindrance.CROWDED)
    picture.views["default"] = replace(view, budget=crowded)
    assert (value(metrics, "reduced", reason="crowded"), value(metrics, "paused", reason="crowded")) == (1, 0)
    assert value(metrics, "budget_connections", scope="own") == 2
    picture.views["default"] = replace(view, budget=replace(crowded, joint=0, granted=Grant(heartbeat=True)))
    assert (value(metrics, "reduced", reason="crowded"), value(metrics, "paused", reason="crowded")) == (0, 1)
    # Others have what there is: this target waits, and measuring goes on.
    waits = replace(crowded, joint=7, granted=Grant(heartbeat=True), hindrance=Hindrance.FEW_SLOTS)
    picture.views["default"] = replace(view, budget=waits)
    assert (value(metrics, "reduced", reason="few_slots"), value(metrics, "paused", reason="few_slots")) == (1, 0)


def test_a_refused_login_has_one_of_the_known_labels(metrics: Metrics) -> None:
    metrics.login_refused("default", "28P01")
    metrics.login_refused("default", "XX000")
    assert value(metrics, "logins_refused_total", sqlstate="28P01") == 1
    assert value(metrics, "logins_refused_total", sqlstate="other") == 1
    assert value(metrics, "logins_refused_total", sqlstate="53300") == 0
