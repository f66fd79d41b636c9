"""What a new version of an outage's record adds to what is known of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.core.availability.outages import found_over
from sidecar.core.availability.reconciliation import just_over, reconciled
from sidecar.core.evidence import Downtime, Interval, Outage, OutageKind

BEGAN = Interval(after=100.0, until=101.0)
ENDED = Interval(after=101.0, until=102.0)

LASTING = Outage(id="x-1", target="db", kind=OutageKind.UNKNOWN, read=Downtime(began=BEGAN))
OVER = replace(LASTING, kind=OutageKind.CULL, read=Downtime(began=BEGAN, ended=ENDED))
OF_AGE = replace(OVER, kind=OutageKind.LIFETIME)
GROWN = replace(OVER, connections_lost={"silent": 1})


@pytest.mark.parametrize(
    ("outage", "before", "is_lifetime_expiry", "kept"),
    [
        (LASTING, None, False, LASTING),
        (OVER, LASTING, False, OVER),
        (OVER, None, False, OVER),  # over before it was first told of
        (LASTING, LASTING, False, None),
        (OVER, OVER, False, None),
        (GROWN, OVER, False, GROWN),
        # A limit on age has become known that explains it.
        (OVER, OVER, True, OF_AGE),
        (OF_AGE, OF_AGE, True, None),
        (OVER, LASTING, True, OF_AGE),
        (LASTING, None, True, LASTING),  # nobody knows what it will be
        # The kind is for good, even if the limit is forgotten.
        (GROWN, OF_AGE, False, replace(GROWN, kind=OutageKind.LIFETIME)),
        (OVER, OF_AGE, False, None),
    ],
)
def test_what_is_kept_of_a_version(
    outage: Outage, before: Outage | None, is_lifetime_expiry: bool, kept: Outage | None
) -> None:
    assert reconciled(outage, before, is_lifetime_expiry=is_lifetime_expiry) == kept


def test_where_connecting_failed_age_was_not_all() -> None:
    refused = replace(OVER, connect=OVER.read)
    assert reconciled(refused, OVER, is_lifetime_expiry=True) == refused


@pytest.mark.parametrize(
    ("outage", "before", "just"),
    [
        (LASTING, None, False),
        (LASTING, LASTING, False),
        (OVER, None, True),
        (OVER, LASTING, True),
        (GROWN, OVER, False),
        (OF_AGE, OVER, False),
    ],
)
def test_an_outage_is_over_once(outage: Outage, before: Outage | None, just: bool) -> None:
    assert just_over(outage, before) is just


def test_what_an_earlier_life_left_open_is_over_at_the_next_contact() -> None:
    """Writing only where it is possible; and then it is closed once, whatever contacts follow."""
    left_open = replace(LASTING, write=Downtime(began=BEGAN))
    readable = reconciled(found_over(left_open, 500.0, writable=False), left_open, is_lifetime_expiry=False)
    assert readable is not None
    assert readable.read == Downtime(began=BEGAN, ended=Interval(after=101.0, until=500.0), watched=False)
    assert not just_over(readable, left_open)
    assert reconciled(found_over(readable, 600.0, writable=False), readable, is_lifetime_expiry=False) is None
    closed = reconciled(found_over(readable, 600.0, writable=True), readable, is_lifetime_expiry=False)
    assert closed is not None
    assert closed.read == readable.read
    assert just_over(closed, readable)
    assert reconciled(found_over(closed, 700.0, writable=True), closed, is_lifetime_expiry=False) is None
