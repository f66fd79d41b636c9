"""The public schema in both directions: what is served, read back, is what it was made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar import documents
from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.evidence import Death, Observation, Outage
from testing.pictures import NOON, measuring, observation, outage, target, verified


def served(body: object) -> Any:
    return json.loads(documents.dumps(body))


@pytest.mark.parametrize(
    "body",
    [
        documents.TargetSummary.of(target(advice=verified())),
        documents.TargetSummary.of(target(ready=False)),
        documents.Evidence(target="default", observations=(observation(1), observation(2)), next=None),
        documents.Outages(target="default", outages=(outage(1),), next="/outages?before=outage-1"),
        documents.Health(ready=True, targets={"default": target().readiness}),
        observation(3),
        outage(4),
    ],
    ids=lambda body: type(body).__name__,
)
def test_what_is_served_reads_back_the_same(body: Any) -> None:
    assert documents.read(type(body), served(body)) == body


@pytest.mark.parametrize("advice", [measuring(), verified()], ids=["measuring", "verified"])
def test_advice_reads_back_the_same(advice: Recommendation) -> None:
    document = served(documents.recommendation(target(advice=advice)))
    assert documents.read(Recommendation, document) == advice


def test_words_and_instants_come_back_as_what_they_are() -> None:
    advice = documents.read(Recommendation, served(documents.recommendation(target(advice=verified()))))
    assert advice.idle_limit is not None
    assert advice.idle_limit.death is Death.SILENT
    assert advice.verification is not None
    assert advice.verification.at == NOON + 0.25
    (lost,) = documents.read(Outage, served(outage(1))).connections_lost
    assert lost == "closed"


def test_a_later_version_may_say_more_but_not_less() -> None:
    document = served(observation(1))
    assert documents.read(Observation, document | {"mood": "fine"}) == observation(1)
    del document["arm"]
    with pytest.raises(LookupError, match="arm"):
        documents.read(Observation, document)
