"""Which server answered: the same life, another life, another server, and in which respect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.identity import Comparison, Identity, Kinship, compare

HERE = Identity(address="10.0.0.1:5432", started_at=1.0, system_identifier="7", timeline=2)
UNTOLD = Identity(address="10.0.0.1:5432")
ANONYMOUS = Identity()

SAME_LIFE = Comparison(Kinship.SAME_LIFE)
ANOTHER_LIFE = Comparison(Kinship.ANOTHER_LIFE)
UNKNOWN = Comparison(Kinship.UNKNOWN)


def another(respect: str) -> Comparison:
    return Comparison(Kinship.ANOTHER_SERVER, respect)


@pytest.mark.parametrize(
    ("before", "after", "comparison"),
    [
        (HERE, HERE, SAME_LIFE),
        (HERE, replace(HERE, backend_pid=7, in_recovery=True), SAME_LIFE),
        # An equal start time is proof, whatever else differs.
        (HERE, replace(HERE, address="[::1]:5432"), SAME_LIFE),
        (HERE, replace(HERE, timeline=3), SAME_LIFE),
        (HERE, replace(HERE, started_at=2.0), ANOTHER_LIFE),
        (HERE, replace(HERE, started_at=2.0, system_identifier="8", timeline=3), another("another cluster")),
        (HERE, replace(HERE, started_at=2.0, timeline=3, address="10.0.0.2:5432"), another("timeline 2 to 3")),
        (HERE, replace(HERE, started_at=2.0, address="10.0.0.2:5432"), another("another server")),
        # What a server tells of its timeline may lag behind.
        (HERE, replace(HERE, started_at=2.0, timeline=1), ANOTHER_LIFE),
        # Nothing follows from what only one of them tells.
        (HERE, Identity(address="10.0.0.1:5432", started_at=2.0), ANOTHER_LIFE),
        (Identity(started_at=1.0), replace(HERE, started_at=2.0), ANOTHER_LIFE),
        (HERE, UNTOLD, UNKNOWN),
        (UNTOLD, UNTOLD, UNKNOWN),
        (UNTOLD, replace(UNTOLD, address="10.0.0.2:5432"), another("another server")),
        (HERE, ANONYMOUS, UNKNOWN),
        (ANONYMOUS, ANONYMOUS, UNKNOWN),
        (None, HERE, UNKNOWN),
        (HERE, None, UNKNOWN),
    ],
)
def test_two_answers_are_compared(before: Identity | None, after: Identity | None, comparison: Comparison) -> None:
    assert compare(before, after) == comparison
