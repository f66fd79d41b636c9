"""Every sentence of the advice, from sample values: the one place where wording is asserted.

Elsewhere tests assert codes and values. `UPDATE_GOLDEN=1 pytest tests/test_remarks.py` writes the sentences anew; look
at the difference before you commit it: people read them, and some of them search for them.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from textwrap import indent

import pytest

from sidecar.core.advice.deaths_told import DEATHS_TOLD
from sidecar.core.advice.findings import Code, Finding, Ground, Judgement, WhyPing, WhyWaiting, found, judged
from sidecar.core.advice.ping_cost import PingCost
from sidecar.core.advice.recommendation import TrialOutcome, VerdictKind
from sidecar.core.advice.remarks import EVIDENCE, GROUNDS, REMARKS, remark, verdict
from sidecar.core.budget import CeilingKind, Hindrance
from sidecar.core.evidence import Death, Status
from sidecar.web import page

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"

PRICE = PingCost(
    p50_seconds=0.0018, p99_seconds=0.0041, overhead_ratio=0.3, overhead_low=0.28, overhead_high=0.333, pings=700
)
FEW = PingCost(
    p50_seconds=0.0018, p99_seconds=None, overhead_ratio=None, overhead_low=None, overhead_high=None, pings=7
)
BRACKET = {"proven_seconds": 343.27, "dead_by_seconds": 350.12}
TRIPS = {"round_trips": 3, "round_trips_autocommit": 1}

IN_USE = {"used": 84, "usable": 97}
LITTLE, NOTHING = {"granted": 2, "wished": 11, "beats": True}, {"granted": 0, "wished": 11, "beats": False}

FINDINGS: tuple[Finding, ...] = (
    *(found(Code.MEASURING, proven_seconds=None, waiting=waiting) for waiting in (None, *WhyWaiting)),
    found(Code.MEASURING, proven_seconds=343.27, waiting=None),
    found(Code.LIMIT_BRACKETED, **BRACKET),
    *(
        found(
            Code.IDLE_LIMIT_MEASURED,
            estimate_seconds=346.74,
            **BRACKET,
            status=status,
            fresh_survivals=8,
            fresh_deaths=1,
        )
        for status in (Status.PROVISIONAL, Status.CONFIRMED, Status.VERIFIED)
    ),
    found(
        Code.IDLE_LIMIT_MEASURED,
        estimate_seconds=0.7052,
        proven_seconds=0.7,
        dead_by_seconds=0.71044,
        status=Status.CONFIRMED,
        fresh_survivals=0,
        fresh_deaths=0,
    ),
    found(Code.NO_LIMIT_SEEN, proven_seconds=86400.0, age_ends_them=False),
    found(Code.NO_LIMIT_SEEN, proven_seconds=343.27, age_ends_them=True),
    *(found(Code.of_death(death), death=death) for death in Death),
    *(
        found(Code.LIFETIME_LIMIT_MEASURED, estimate_seconds=346.74, **BRACKET, death=death)
        for death in (Death.SILENT, Death.FATAL)
    ),
    found(Code.NO_LIFETIME_LIMIT_SEEN, age_seconds=7200.55),
    found(Code.SHARE_OF_PROVEN, safety=0.5, proven_seconds=343.27),
    found(Code.SHARE_OF_LIFETIME, safety=0.5, age_seconds=3528.0),
    found(Code.LIFETIME_SUSPECTED, safety=0.5, age_seconds=99.0),
    found(Code.CAPPED_BY_POLICY, proven_seconds=86400.0, pool_recycle=1800),
    found(Code.RAISED_BY_POLICY, proven_seconds=7.31, pool_recycle=30),
    found(Code.NOTHING_PROVEN, safety=0.5, shortest_rest_seconds=5.0, raised_to_seconds=30),
    found(Code.NOTHING_PROVEN, safety=0.5, shortest_rest_seconds=120.0, raised_to_seconds=None),
    found(Code.DECLARED_LIMIT, safety=0.5, declared_seconds=3.0, proven_seconds=None),
    found(Code.DECLARED_LIMIT, safety=0.5, declared_seconds=40.0, proven_seconds=7.31),
    found(Code.KEPT_BY_KEEPALIVE, keepalive_survival_seconds=1800.25, dead_by_seconds=350.12, pool_recycle=1800),
    found(Code.PRE_PING_COST, cost=PRICE, **TRIPS, parsed_anew=False),
    found(Code.PRE_PING_COST, cost=FEW, round_trips=4, round_trips_autocommit=2, parsed_anew=True),
    *(found(Code.PRE_PING_KEPT, why=why, outages=0) for why in WhyPing if why is not WhyPing.OUTAGES),
    *(found(Code.PRE_PING_KEPT, why=WhyPing.OUTAGES, outages=outages) for outages in (1, 3)),
    found(Code.PRE_PING_SELECTIVE, after_seconds=1.95, **TRIPS, overhead_ratio=0.5, overhead_allowed=0.1),
    found(Code.PRE_PING_SELECTIVE, after_seconds=30.0, **TRIPS, p99_seconds=0.009, p99_allowed_seconds=0.005),
    found(Code.TRIAL_FAILED, pool_recycle=171, rested_seconds=367.6, error="ConnectionDoesNotExistError: closed"),
    found(Code.SILENT_DEATH, user_timeout_ms=5000),
    found(Code.LIMIT_SUSPECT),
    found(Code.SEVERAL_POPULATIONS),
    found(Code.TRANSACTION_POOLER),
    found(Code.TOO_SHORT_TO_POOL, dead_by_seconds=0.71, pool_recycle=0.35),
    found(Code.TOO_SHORT_TO_POOL, dead_by_seconds=1.9, pool_recycle=0.9),
    found(Code.MASKED_BY_SERVER_KEEPALIVE, keepalive_seconds=120.0),
    found(Code.NOT_THE_SERVER, declared_seconds=0.0, measured_seconds=346.74),
    found(Code.NOT_THE_SERVER, declared_seconds=3600.0, measured_seconds=346.74),
    found(Code.STALE_WRITER, stale_writers=3, role_changes=2),
    found(Code.STALE_WRITER, stale_writers=0, role_changes=2),
    found(Code.STALE_WRITER, stale_writers=0, role_changes=1),
    found(Code.POOL_EXHAUSTED, sessions=5, in_transaction_seconds=61.2),
    found(Code.IDLE_IN_TRANSACTION, in_transaction_seconds=61.2),
    found(Code.APPLICATION_RESTS_TOO_LONG, rested_seconds=412.7, dead_by_seconds=350.12),
    found(Code.APPLICATION_LEAVES_SESSIONS, rested_seconds=2412.7, dead_by_seconds=350.12, sessions=23, resting=17),
    found(Code.APPLICATION_LEAVES_SESSIONS, rested_seconds=2412.7, dead_by_seconds=350.12, sessions=None, resting=None),
    *(
        found(Code.MEASURING_IS_PAUSED, hindrance=hindrance, ceiling=CeilingKind.SERVER, **IN_USE, **NOTHING)
        for hindrance in Hindrance
    ),
    *(
        found(Code.MEASURING_IS_SMALL, hindrance=Hindrance.CROWDED, ceiling=ceiling, **IN_USE, **LITTLE)
        for ceiling in CeilingKind
    ),
    found(Code.MEASURING_IS_SMALL, hindrance=Hindrance.REFUSED, ceiling=None, used=None, usable=None, **LITTLE),
    found(
        Code.MEASURING_IS_SMALL,
        hindrance=Hindrance.NO_SEAT,
        ceiling=None,
        used=None,
        usable=None,
        granted=0,
        wished=0,
        beats=False,
    ),
)

HANDED_OUT = {"pool_recycle": 1800.0, "beyond_seconds": 343.27, "of_age": False}
TRIED = {"rested_seconds": 367.6, "untried": "What was said before."}

JUDGEMENTS: tuple[Judgement, ...] = (
    judged(VerdictKind.UNKNOWN, Ground.NOTHING_PROVEN),
    judged(VerdictKind.PROTECTED, Ground.YOUNG_ENOUGH, pool_recycle=120.0, proven_seconds=343.27),
    *(
        judged(VerdictKind.UNKNOWN, Ground.NO_DEATH_SEEN, pool_recycle=recycle, proven_seconds=343.27)
        for recycle in (1800.0, -1.0, None)
    ),
    *(
        judged(VerdictKind.UNKNOWN, Ground.SETTING_UNKNOWN, setting=setting)
        for setting in ("pool_recycle", "pool_pre_ping")
    ),
    *(judged(VerdictKind.EXPOSED, Ground.UNPINGED, **HANDED_OUT, death=death) for death in Death),
    judged(
        VerdictKind.EXPOSED,
        Ground.UNPINGED,
        pool_recycle=-1.0,
        beyond_seconds=350.12,
        of_age=True,
        death=Death.CLOSED,
    ),
    judged(VerdictKind.EXPOSED, Ground.PING_HANGS, **HANDED_OUT),
    judged(VerdictKind.PROTECTED, Ground.PING_FINDS, **HANDED_OUT),
    judged(VerdictKind.UNKNOWN, Ground.NO_SESSION_SEEN),
    *(
        judged(VerdictKind.EXPOSED, Ground.SESSION_DEAD, dead_by_seconds=350.12, death=death, keepalive_helps=helps)
        for death, helps in ((Death.CLOSED, None), (Death.SILENT, True), (Death.RESET_ON_USE, False))
    ),
    judged(VerdictKind.UNKNOWN, Ground.SESSIONS_YOUNG),
    judged(VerdictKind.PROTECTED, Ground.TRIAL_SUCCEEDED, rested_seconds=367.6, checkout_seconds=0.0123),
    judged(VerdictKind.EXPOSED, Ground.TRIAL_FAILED, **TRIED, outcome=TrialOutcome.ERROR, error="closed"),
    judged(VerdictKind.EXPOSED, Ground.TRIAL_FAILED, **TRIED, outcome=TrialOutcome.HANG, error="no answer within 15 s"),
)


def remarks() -> Iterator[str]:
    for finding in FINDINGS:
        said = remark(finding, "db")
        yield f"{said.code}  {said.evidence}\n{indent(said.text, '    ')}\n"


def verdicts() -> Iterator[str]:
    for judgement in JUDGEMENTS:
        said = verdict(judgement)
        yield f"{judgement.ground}: {said.verdict}\n{indent(said.because, '    ')}\n"


def deaths() -> Iterator[str]:
    for death, told in DEATHS_TOLD.items():
        places = (told.label, told.in_sentence, told.in_comment, told.by_itself, told.next_query)
        yield f"{death}\n" + "".join(f"    {words}\n" for words in places)


@pytest.mark.parametrize("sentences", [remarks, verdicts, deaths], ids=lambda sentences: sentences.__name__)
def test_the_wording(sentences: object) -> None:
    assert callable(sentences)
    golden, said = GOLDEN / "remarks" / f"{sentences.__name__}.txt", "\n".join(sentences())
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(said)
    assert said == golden.read_text()


def test_every_code_has_a_sentence_an_address_and_a_sample() -> None:
    assert set(REMARKS) == set(EVIDENCE) == {finding.code for finding in FINDINGS} == set(Code)
    assert set(GROUNDS) == {judgement.ground for judgement in JUDGEMENTS} == set(Ground)
    assert set(DEATHS_TOLD) == set(Death)


def test_every_code_is_explained() -> None:
    page = (ROOT / "docs" / "recommendation.md").read_text()
    assert {"silent_death", "death_silent"} <= set(Code)
    assert sorted(code for code in Code if f"`{code}`" not in page) == []


def test_addresses_lead_to_the_evidence_of_the_target() -> None:
    def address(finding: Finding) -> str | None:
        return remark(finding, "orders").evidence

    assert address(found(Code.LIMIT_SUSPECT)) == "/evidence?target=orders&outcome=died"
    assert address(found(Code.TRANSACTION_POOLER)) == "/evidence?target=orders"
    assert address(found(Code.IDLE_IN_TRANSACTION, in_transaction_seconds=61.0)) == "/metrics", "of all targets"
    for outages, path in ((0, "/evidence"), (1, "/outages")):
        kept = found(Code.PRE_PING_KEPT, why=WhyPing.NOT_VERIFIED, outages=outages)
        assert address(kept) == f"{path}?target=orders"


def test_what_hangs_is_told_with_its_quarter_of_an_hour_once() -> None:
    dead = judged(
        VerdictKind.EXPOSED, Ground.SESSION_DEAD, dead_by_seconds=0.25, death=Death.SILENT, keepalive_helps=None
    )
    assert verdict(dead).because.count("15 minutes") == 1
    assert (
        "pre-ping does not help: it hangs"
        in verdict(judged(VerdictKind.EXPOSED, Ground.PING_HANGS, **HANDED_OUT)).because
    )


def test_keepalive_is_not_called_too_late_where_one_comes_in_time() -> None:
    for dead_by, late in ((0.71, True), (2.0, False)):
        said = remark(found(Code.TOO_SHORT_TO_POOL, dead_by_seconds=dead_by, pool_recycle=0.35), "db").text
        assert ("TCP keepalive" in said) is late


def test_the_page_is_handed_these_words() -> None:
    script = page.asset("words.js").body.decode()
    (statuses,), (told,) = (
        re.findall(rf"^export const {name} = (.*);$", script, re.M) for name in ("STATUSES", "DEATHS")
    )
    assert json.loads(statuses) == list(Status)
    assert json.loads(told) == {
        death: {"label": words.label, "byItself": words.by_itself} for death, words in DEATHS_TOLD.items()
    }
