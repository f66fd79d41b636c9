"""What may become of a probe connection: the table, and that nothing else can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sidecar.core.evidence import Arm, Cause
from sidecar.core.identity import Identity
from sidecar.core.idle.probes import PATIENCE_SECONDS, TRANSITIONS, IllegalEventError, Probe, ProbeEvent, ProbeState

HERE = Identity(address="10.0.0.1:5432")
HAPPENS: dict[ProbeEvent, Callable[[Probe], None]] = {
    ProbeEvent.OPENED: lambda probe: probe.opened(HERE, 50.0),
    ProbeEvent.OPEN_FAILED: lambda probe: probe.open_failed(),
    ProbeEvent.ASKED: lambda probe: probe.asked(50.0),
    ProbeEvent.UNANSWERED: lambda probe: probe.unanswered(),
    ProbeEvent.ANSWERED: lambda probe: probe.answered(50.0),
}


def probe_that_is(state: ProbeState) -> Probe:
    return Probe(connection=1, arm=Arm.SEARCH, state=state, goal_seconds=30.0, opened_at=10.0, since=20.0)


@pytest.mark.parametrize("state", ProbeState)
@pytest.mark.parametrize("event", ProbeEvent)
def test_the_table_holds_and_an_illegal_event_changes_nothing(state: ProbeState, event: ProbeEvent) -> None:
    probe = probe_that_is(state)
    before = replace(probe)
    if event in TRANSITIONS[state]:
        assert probe.accepts(event)
        HAPPENS[event](probe)
        assert probe.state is TRANSITIONS[state][event]
    else:
        assert not probe.accepts(event)
        with pytest.raises(IllegalEventError, match=event):
            HAPPENS[event](probe)
        assert probe == before


def test_a_rest_ends_when_it_is_used_and_begins_anew_when_it_answers() -> None:
    probe = Probe(connection=1, arm=Arm.LIFETIME)
    assert (probe.deadline, probe.idle_seconds(5.0)) == (None, 0.0)
    probe.opened(HERE, 10.0)
    assert (probe.deadline, probe.idle_seconds(15.0)) == (None, 5.0)
    probe.goal_seconds = 30.0
    assert probe.deadline == 40.0
    probe.asked(41.0)
    probe.doubt = Cause.PARTITION
    assert (probe.deadline, probe.idle_seconds(99.0)) == (41.0 + PATIENCE_SECONDS, 31.0)
    probe.unanswered()
    assert (probe.deadline, probe.idle_seconds(99.0), probe.age_when_asked_seconds) == (None, 31.0, 31.0)
    probe.answered(44.0)
    assert (probe.goal_seconds, probe.doubt, probe.idle_seconds(50.0)) == (None, None, 6.0)
    assert probe.view(50.0).state is ProbeState.RESTING
