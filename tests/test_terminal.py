"""The picture of a result, from fixed facts, against golden files.

`UPDATE_GOLDEN=1 pytest tests/test_terminal.py` writes them anew; look at the difference before you commit it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar import terminal
from sidecar.core.advice.attribution import KnownLimit
from sidecar.core.advice.recommendation import IdleLimit, Recommendation
from sidecar.core.advice.render.python import sqlalchemy
from sidecar.core.evidence import Cause, Death, Observation, Status
from sidecar.documents import TargetSummary
from testing.pictures import measuring, observation, target, verified

GOLDEN = Path(__file__).parent / "golden" / "terminal"


def known(name: str, seconds: float, limits: str = "idle") -> KnownLimit:
    return KnownLimit(
        id=name.lower().replace(" ", "_"),
        component=name,
        limits=limits,
        default_seconds=seconds,
        death="silent",
        tcp_keepalive_resets="yes",
        configurable=False,
    )


KNOWN = (
    known("Tiny Proxy", 10),
    known("Balancer", 240),
    known("Firewall", 350),
    known("Gateway", 350),
    known("Old Router", 350),
    known("New Router", 350),
    known("Recycler", 350, limits="lifetime"),
    known("Slow Balancer", 400),
    known("Tracker", 432000),
)


def rest(serial: int, seconds: float, outcome: str = "survived", arm: str = "search") -> Observation:
    died = outcome == "died"
    return replace(
        observation(serial),
        arm=arm,
        outcome=outcome,
        idle_seconds=seconds,
        death=Death.SILENT if died else None,
        cause=Cause.IDLE_LIMIT if died else None,
    )


RESTS = tuple(rest(serial, 5 * 1.5**serial) for serial in range(10))  # up to 192 s
FOUND = (
    *RESTS,
    *(rest(10 + serial, 336 + serial / 10, arm="volley") for serial in range(8)),
    rest(20, 343.0004),
    rest(21, 350.0996, "died"),
    rest(22, 350.4, "died"),
    rest(23, 389.3, "died"),
    rest(24, 12, "censored"),
    rest(25, 470, arm="keepalive"),
    replace(rest(26, 3), regime=-1),  # of an earlier regime: history
)


def limit(status: Status, idle_limit: IdleLimit | None) -> Recommendation:
    return replace(measuring(), status=status, idle_limit=idle_limit)


CASES: dict[str, tuple[Recommendation, Sequence[Observation]]] = {
    "nothing": (measuring(), ()),
    "growing": (limit(Status.MEASURING, IdleLimit(proven_seconds=192.217)), RESTS),
    "bracketed": (
        limit(Status.MEASURING, IdleLimit(proven_seconds=192.217, dead_by_seconds=432.5, death=Death.SILENT)),
        (*RESTS, rest(30, 432.4996, "died")),
    ),
    "no_limit": (
        limit(Status.VERIFIED, IdleLimit(proven_seconds=192.217)),
        (*RESTS, *(rest(40 + n, 191) for n in range(30))),
    ),
    "found": (verified(), FOUND),
}


def pictured(case: str, *, ascii_only: bool = False, width: int = 100) -> str:
    advice, observations = CASES[case]
    paper = io.StringIO()
    console = terminal.console(paper)
    console.width = width
    console.print(
        terminal.picture(
            TargetSummary.of(target(advice=advice)),
            advice,
            sqlalchemy(advice),
            observations,
            KNOWN,
            ascii_only=ascii_only,
        )
    )
    return "".join(f"{line.rstrip()}\n" for line in paper.getvalue().splitlines())


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    golden = GOLDEN / f"{case}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(pictured(case))
    assert pictured(case) == golden.read_text()


def test_where_only_ascii_can_be_shown_the_same_is_told_in_ascii() -> None:
    plain = pictured("found", ascii_only=True)
    assert plain.isascii()
    assert plain == pictured("found").translate(str.maketrans("●✕─", "ox-"))


@pytest.mark.parametrize("case", CASES)
def test_it_fits_a_narrow_terminal(case: str) -> None:
    assert max(map(len, pictured(case, width=60).splitlines())) <= 60


def test_every_rest_is_shown_once() -> None:
    marks = pictured("found").partition("Known")[0]
    tried = [each for each in FOUND if each.regime == 0 and each.arm != "keepalive"]
    assert marks.count("●") - 1 == sum(each.outcome == "survived" for each in tried)  # one is in the heading
    assert marks.count("✕") - 1 == sum(each.outcome == "died" for each in tried)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5400, "90 min"), (6000, "1.7 h"), (86400, "24.0 h")],
)
def test_about(seconds: float, told: str) -> None:
    assert terminal.about(seconds) == told
