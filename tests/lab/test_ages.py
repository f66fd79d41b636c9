"""Limits on age on real paths, found by the whole service, which is told nothing about them.

All paths are measured at the same time, so the module takes little longer than the slowest of them.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from sidecar.core.evidence import Death
from sidecar.demo.service import Service, run_service
from testing.lab import Endpoint, Lab, Path, boxes

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]  # what is waited for together counts for the first test
if sys.platform != "linux":
    pytest.skip("the lab is made of Linux network namespaces", allow_module_level=True)

AGE, REST = 8.0, 3
AT_MOST_SECONDS = 180.0
SETTINGS = {
    "TARGETS__DEFAULT__IDLE__FLOOR": "1s",
    "TARGETS__DEFAULT__IDLE__CAP": "120s",
    "TARGETS__DEFAULT__IDLE__DEADLINE": "2s",
    "TARGETS__DEFAULT__HEARTBEAT__EVERY": "300ms",
    "TARGETS__DEFAULT__HEARTBEAT__DEADLINE": "1s",
}


def forgetful(path: Path) -> Endpoint:
    """It forgets resting connections, and busy ones too when they are old."""
    boxes.conntrack(path, REST, answer="drop")
    return boxes.lifetime(path, AGE, answer="drop")


@dataclass(frozen=True, slots=True)
class Ageing:
    box: Callable[[Path], Endpoint]
    death: Death
    rest_seconds: int | None = None


PATHS: Mapping[str, Ageing] = {
    "drop": Ageing(partial(boxes.lifetime, limit_seconds=AGE, answer="drop"), Death.SILENT),
    "reset": Ageing(partial(boxes.lifetime, limit_seconds=AGE, answer="reset"), Death.RESET_ON_USE),
    "after a shorter limit on rest": Ageing(forgetful, Death.SILENT, rest_seconds=REST),
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What the service answered when it knew."""

    advice: Any
    aged: Any
    outages: Any


async def learn(service: Service, rest_seconds: int | None) -> Learned:
    advice = None
    async with asyncio.timeout(AT_MOST_SECONDS):
        while advice is None or not knows(advice, rest_seconds):
            await asyncio.sleep(0.5)
            service.must_run()
            advice = await service.ask("/recommendation")
    aged = (await service.ask("/evidence?arm=lifetime&outcome=died"))["observations"]
    return Learned(advice, aged, (await service.ask("/outages"))["outages"])


def knows(advice: Any, rest_seconds: int | None) -> bool:
    if advice["lifetime_limit"] is None or advice["status"] == "measuring":
        return False
    return rest_seconds is None or advice["idle_limit"]["estimate_seconds"] is not None


@pytest.fixture(scope="module")
def learned(lab: Lab) -> Mapping[str, Learned]:
    """Every path, measured once, each by a service of its own."""
    server = lab.postgres(max_connections=200)
    endpoints = [ageing.box(lab.path(server)) for ageing in PATHS.values()]

    async def one(endpoint: Endpoint, ageing: Ageing) -> Learned:
        with run_service({"TARGET_URL": endpoint.url, **SETTINGS}) as service:
            try:
                return await learn(service, ageing.rest_seconds)
            except TimeoutError:
                raise service.failure("the limit was not found") from None

    async def all_of_them() -> Mapping[str, Learned]:
        return dict(zip(PATHS, await asyncio.gather(*map(one, endpoints, PATHS.values())), strict=True))

    return asyncio.run(all_of_them())


paths = pytest.mark.parametrize(("name", "ageing"), PATHS.items(), ids=PATHS)


@paths
def test_the_age_is_found(learned: Mapping[str, Learned], name: str, ageing: Ageing) -> None:
    limit = learned[name].advice["lifetime_limit"]
    # The firewall counts from the first packet, the service from the first answer; and it asks now and then.
    assert limit["proven_seconds"] <= AGE
    assert limit["dead_by_seconds"] >= AGE - 1
    assert limit["estimate_seconds"] == pytest.approx(AGE, abs=1)
    assert (limit["death"], limit["sqlstate"]) == (ageing.death, None)


@paths
def test_a_rest_is_told_apart(learned: Mapping[str, Learned], name: str, ageing: Ageing) -> None:
    rests = learned[name].advice["idle_limit"]
    if ageing.rest_seconds is None:
        assert rests["proven_seconds"] <= AGE
        assert (rests["dead_by_seconds"], rests["estimate_seconds"], rests["death"]) == (None, None, None)
    else:
        assert rests["proven_seconds"] <= REST <= rests["dead_by_seconds"]
        assert rests["estimate_seconds"] == pytest.approx(REST, abs=0.3)


@paths
def test_the_advice_stays_below_both(learned: Mapping[str, Learned], name: str, ageing: Ageing) -> None:
    advice = learned[name].advice
    assert 0 < advice["settings"]["pool_recycle"] <= (ageing.rest_seconds or AGE) / 2
    assert "lifetime_limit_measured" in {reason["code"] for reason in advice["reasons"]}
    silent = "silent_death" in {warning["code"] for warning in advice["warnings"]}
    assert silent is (ageing.death is Death.SILENT)


@paths
def test_only_ends_at_that_age_are_evidence(learned: Mapping[str, Learned], name: str, ageing: Ageing) -> None:
    seen = learned[name]
    assert len(seen.aged) >= 2
    assert {each["cause"] for each in seen.aged} == {"lifetime_limit"}
    limit = seen.advice["lifetime_limit"]
    for each in seen.aged:
        assert each["death"] == ageing.death
        assert limit["dead_by_seconds"] - 0.001 <= each["age_seconds"] <= AGE + 3  # the next question came later


@paths
def test_the_sessions_that_died_of_it_are_no_outages(learned: Mapping[str, Learned], name: str, ageing: Ageing) -> None:
    seen = learned[name]
    kinds = {outage["id"]: outage["kind"] for outage in seen.outages}
    sessions = [each["id"] for each in seen.aged if each["id"] in kinds]
    assert sessions
    assert {kinds[session] for session in sessions} == {"lifetime"}
    figures = seen.advice["failover"]
    assert (0 if figures is None else figures["outages"]) <= len(kinds) - len(sessions)
