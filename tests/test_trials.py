"""Trials of pools with given settings, on paths that really fail, and when they are due."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.trials import AFTER_FAILURE_SECONDS, EVERY_SECONDS, Setup, TrialResult, attempts, recommended
from sidecar.core.advice.verdict import ApplicationSettings
from sidecar.core.evidence import Keepalive, Status
from sidecar.demo.path import FaultyPath
from sidecar.demo.server import PostgresServer
from sidecar.probes.postgresql.connect import PostgresDriver
from sidecar.probes.trial import TrialVoid, try_out
from sidecar.settings import TargetSettings
from testing import pictures

MakePath = Callable[..., Awaitable[FaultyPath]]

SETUPS = {
    "recommended": Setup(
        name="recommended",
        pool_recycle=1,
        pool_pre_ping=True,
        keepalive=Keepalive(idle=1, interval=1, count=3),
        user_timeout_ms=5000,
        drops=True,
    ),
    "selective": Setup(name="selective", pool_recycle=-1, pool_pre_ping=False, selective_pre_ping_after=0.2),
    "defaults": Setup(name="defaults", pool_recycle=-1, pool_pre_ping=False),
    "pre_ping_only": Setup(name="pre_ping_only", pool_recycle=-1, pool_pre_ping=True),
    "recycle_only": Setup(name="recycle_only", pool_recycle=1, pool_pre_ping=False),
}
REST = 2.2  # more than a second of age, as SQLAlchemy counts it, and more than the path's limit


def driver(server: PostgresServer, path: FaultyPath) -> PostgresDriver:
    return PostgresDriver(TargetSettings(url=server.url(port=path.port), tls={"mode": "disable"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fault", "outcomes"),
    [
        ("close", ("ok", "ok", "error", "ok", "ok")),
        ("reset", ("ok", "ok", "error", "ok", "ok")),
        ("silent", ("ok", "hang", "hang", "hang", "ok")),  # nobody answers a ping either
    ],
)
async def test_each_pool_lives_through_what_its_settings_lead_to(
    postgres: PostgresServer, make_path: MakePath, fault: str, outcomes: tuple[str, ...]
) -> None:
    path = await make_path(postgres, fault=fault, idle_limit=0.6)
    target = driver(postgres, path)
    results = await asyncio.gather(*(try_out(target, setup, REST, patience_seconds=8) for setup in SETUPS.values()))
    assert tuple(result.outcome for result in results) == outcomes
    for result in results:
        assert result.idle_seconds >= REST
        assert result.reconnected is (True if result.outcome == "ok" else None)
        assert (result.error is None) is (result.outcome == "ok")
        assert (result.checkout_seconds is None) is (result.outcome != "ok")


async def test_without_a_limit_nothing_is_opened_anew(postgres: PostgresServer, make_path: MakePath) -> None:
    path = await make_path(postgres)
    result = await try_out(driver(postgres, path), SETUPS["defaults"], 0.1)
    assert (result.outcome, result.reconnected, path.accepted) == ("ok", False, 1)


async def test_a_failure_counts_only_where_a_fresh_connection_works(
    postgres: PostgresServer, make_path: MakePath
) -> None:
    path = await make_path(postgres)
    trial = asyncio.create_task(try_out(driver(postgres, path), SETUPS["defaults"], 0.8))
    async with asyncio.timeout(60):
        while not path.accepted:  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.4)
    path.refuse()
    path.reset_all()
    with pytest.raises(TrialVoid):
        await trial
    with pytest.raises(TrialVoid):
        await try_out(driver(postgres, path), SETUPS["defaults"], 0.1)


# --- when -------------------------------------------------------------------------------------------------------------

ADVICE = pictures.verified()
APPLICATION = ApplicationSettings(pool_recycle=1800.0, pool_pre_ping=True)


def due(advice: Recommendation, *results: TrialResult, now: float = 0.0) -> list[str]:
    return [attempt.setup.name for attempt in attempts(advice, APPLICATION, results, now_at=now, longest_age=1800.0)]


def tried(setup: Setup, outcome: str = "ok") -> TrialResult:
    return TrialResult(
        setup=setup, at=0.0, idle_seconds=1e4, outcome=outcome, checkout_seconds=None, reconnected=None, error=None
    )


def test_what_is_advised_is_tried_first_and_only_once_the_limit_is_verified() -> None:
    everything = ["recommended", "keepalive_only", "defaults", "pre_ping_only", "recycle_only", "application"]
    assert due(ADVICE) == everything
    assert due(replace(ADVICE, status=Status.CONFIRMED)) == []
    assert due(replace(ADVICE, idle_limit=None, lifetime_limit=None)) == []


def test_it_is_tried_anew_once_a_day_and_sooner_after_a_failure() -> None:
    setup = recommended(ADVICE)
    for outcome, pause in (("ok", EVERY_SECONDS), ("error", AFTER_FAILURE_SECONDS)):
        assert "recommended" not in due(ADVICE, tried(setup, outcome), now=pause - 1)
        assert "recommended" in due(ADVICE, tried(setup, outcome), now=pause)
    assert "recommended" in due(ADVICE, tried(replace(setup, pool_recycle=7)))  # other settings are another trial
