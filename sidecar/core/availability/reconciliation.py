"""One record, many versions: what a new version of an outage's record adds to what is known of it.

An outage's record grows while it lasts, and for a while afterwards: connections of others are found dead at their next
use. Versions come from the machine that follows the availability; from the next contact with the database, for an
outage whose end an earlier life of this process did not see (`found_over`); and once more as they are, when a limit on
age becomes known that explains them. Whoever keeps records passes each version through here:

- The kind `lifetime` is for good. It is given when the outage was no more than the end of a session at the age at which
  all end, and stays with the later versions, of which the machine does not know that.
- A version that says nothing else than the last is no news, and not kept again.
- An outage is over once: later versions may add to it, but do not end it again.
"""

from __future__ import annotations

from sidecar.core.availability.outages import of_age, over
from sidecar.core.evidence import Outage, OutageKind


def reconciled(outage: Outage, before: Outage | None, *, is_lifetime_expiry: bool) -> Outage | None:
    """The version to keep of an outage's record; None where it is no news.

    `before` is the version kept last, None if there is none. `is_lifetime_expiry` tells whether the outage is known to
    have begun with the end of a session at the age at which all end.
    """
    if is_lifetime_expiry or (before is not None and before.kind == OutageKind.LIFETIME):
        outage = of_age(outage)
    return None if outage == before else outage


def just_over(outage: Outage, before: Outage | None) -> bool:
    """Whether the outage is over with this version, and was not with the one kept `before`."""
    return over(outage) and (before is None or not over(before))
