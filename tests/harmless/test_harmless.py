"""A sidecar does no harm: limits, poolers, refusals, a pause. Counted by a stranger (see `testing.counting`).

These are the short forms of the scenarios; `bench.harmless` runs them as long as they are promised for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from testing import harmless
from testing.harmless import Finding

pytestmark = pytest.mark.real_time

SCENARIOS: dict[str, Callable[[], Sequence[Finding]]] = {
    "limits of roles and a database": harmless.limits,
    "reserved connections": harmless.reserved,
    "ten targets on one server": harmless.many_targets,
    "an application that takes 95 %": harmless.greedy,
    "a session pooler": harmless.session_pooler,
    "a transaction pooler": harmless.transaction_pooler,
    "answered refusals": harmless.refusals,
    "a pause": harmless.pause,
    "a shutdown that takes its time": lambda: harmless.restart(seconds=5.0, late=0.4),
    "limits of one's own rest": harmless.own_limits,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_what_is_promised_is_kept(scenario: str) -> None:
    findings = SCENARIOS[scenario]()
    assert findings
    assert not [str(finding) for finding in findings if not finding.kept]
