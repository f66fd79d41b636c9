"""The availability machine: its table, its kinds, its clocks, and its intervals against a simulated world."""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.core.advice.advice import Policy, advise
from sidecar.core.advice.recommendation import FailoverFigures, Quantiles, Recommendation
from sidecar.core.availability.commands import (
    Adopt,
    AskTable,
    Attempt,
    Beat,
    CheckWrite,
    Command,
    Discard,
    Drop,
    Look,
    Record,
    Tell,
    TellRefused,
    Witness,
)
from sidecar.core.availability.facts import (
    AgeKnown,
    BeatAnswered,
    Connected,
    CredentialsChanged,
    Fact,
    LoggedIn,
    NotConnected,
    PooledLost,
    Resolved,
    Resume,
    RoleChanged,
    SessionEnded,
    Suspected,
    Suspend,
    TableAnswered,
    Waits,
    WriteAnswered,
)
from sidecar.core.availability.machine import IN_FLIGHT, LOOK_SECONDS, AvailabilityMachine
from sidecar.core.availability.outages import found_over, of_age, over, took_the_database_away
from sidecar.core.availability.pacing import TAKEN_UP_WITHIN_SECONDS, pause_after
from sidecar.core.availability.states import TRANSITIONS, Event, IllegalEvent, State, diagram
from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import STALE_WRITER, Cause, Death, Disturbed, Downtime, Ending, Interval, Outage, OutageKind
from sidecar.core.identity import Identity
from sidecar.core.idle.machine import IdleMachine
from sidecar.core.signals import EXHAUSTED, ServerSignal
from sidecar.probes.postgresql.signals import signal_of
from testing.endings import ending, fatal

EVERY, DEADLINE, RECONNECT = 1.0, 2.0, 0.1
DOOR = EVERY + DEADLINE  # much more often than ever, for the sake of those tests that count on it
EPOCH = 1_790_000_000.0  # wall clock minus monotonic clock

PRIMARY = Identity(address="10.0.0.1:5432", started_at=1.0, system_identifier="7", timeline=1, in_recovery=False)
RESTARTED = replace(PRIMARY, started_at=2.0)
STANDBY = replace(PRIMARY, address="10.0.0.2:5432", started_at=1.5, in_recovery=True)
PROMOTED = replace(STANDBY, timeline=2, in_recovery=False)
RESCHEDULED = replace(PRIMARY, address="10.0.0.3:5432", started_at=3.0)
REBUILT = replace(PRIMARY, started_at=4.0, system_identifier="8")
ANONYMOUS = Identity()

FAST = fatal("57P01", "… administrator command")
IMMEDIATE = ending("reading", signal="fin", severity="WARNING", sqlstate="57P01", message="… immediate shutdown")
BACKEND_CRASH = ending("reading", signal="fin", severity="WARNING", sqlstate="57P02", message="… crash of another")
ORPHANED = fatal("57P01", "terminating connection due to unexpected postmaster exit")
SILENT = Ending(noticed="deadline")
RESET = Ending(noticed="reading", signal="rst")
CLOSED = Ending(noticed="reading", signal="fin")
IDLE_SESSION = fatal("57P05", "… idle-session")


def advised(outages: Sequence[Outage]) -> Recommendation:
    """The advice where nothing but these is known."""
    machine = IdleMachine(target="db", run="run", epoch=EPOCH, connections=8, floor=5.0, cap=3600.0)
    policy = Policy(safety=0.5, max_pool_recycle=1800.0, min_pool_recycle=30.0, ping_overhead=0.1)
    return advise(target="db", policy=policy, shortest_rest=5.0, idle=machine.status(0.0), outages=outages)


def make(now: float = 100.0, at: float | None = None, jitter: Callable[[], float] = lambda: 0.0) -> AvailabilityMachine:
    return AvailabilityMachine(
        "db",
        every=EVERY,
        deadline=DEADLINE,
        reconnect_every=RECONNECT,
        door_every=DOOR,
        run="run",
        jitter=jitter,
        now=now,
        at=now + EPOCH if at is None else at,
    )


def not_connected(attempt: int, sqlstate: str | None, name: str, *, error: str = "no") -> NotConnected:
    """What becomes of an attempt that a server refuses with this code; without one, none answered."""
    return NotConnected(attempt=attempt, error=error, name=name, said=signal_of(sqlstate), sqlstate=sqlstate)


class Script:
    """Plays facts to a machine, `step` seconds apart, and keeps what came back."""

    def __init__(self, step: float = 0.01) -> None:
        self.now, self.step, self.wall_offset = 100.0, step, EPOCH
        self.machine = make(self.now)
        self.commands: list[Command] = []
        self.attempt = 0

    @property
    def state(self) -> State:
        return self.machine.status(self.now).state

    @property
    def at(self) -> float:
        return self.now + self.wall_offset

    @property
    def records(self) -> dict[str, Outage]:
        return {command.outage.id: command.outage for command in self.commands if isinstance(command, Record)}

    @property
    def outage(self) -> Outage:
        (outage,) = self.records.values()
        return outage

    @property
    def told(self) -> list[Cause]:
        return [command.disturbed.cause for command in self.commands if isinstance(command, Tell)]

    def take(self, commands: Iterable[Command]) -> None:
        for command in commands:
            self.commands.append(command)
            if isinstance(command, Attempt):
                self.attempt = command.number

    def see(self, fact: Fact, after: float | None = None) -> None:
        self.now += self.step if after is None else after
        self.take(self.machine.observe(fact, self.now))

    def timer(self) -> None:
        due = self.machine.next_deadline()
        assert due is not None
        self.now = max(self.now, due)
        self.take(self.machine.handle_timer(self.now))

    def timer_until(self, command: type[Command]) -> None:
        """Let time pass until the machine commands this. Beats on the way are answered."""
        for _ in range(200):
            seen = len(self.commands)
            self.timer()
            if any(isinstance(new, command) for new in self.commands[seen:]):
                return
            if command is not Drop:
                self.answer(self.commands[seen:])
        raise AssertionError(f"no {command.__name__} within 200 timers")

    def answer(self, commands: Iterable[Command]) -> None:
        """Answer a sign of life that was asked for."""
        for command in commands:
            if isinstance(command, Beat | Look):
                self.see(BeatAnswered(at=self.at) if isinstance(command, Beat) else TableAnswered(at=self.at))

    def connect(self, identity: Identity = PRIMARY, **more: Any) -> None:
        self.timer_until(Attempt)
        self.see(Connected(attempt=self.attempt, at=self.at, identity=identity, **more))

    def fail(self, sqlstate: str | None = None, name: str = "ConnectionRefusedError") -> None:
        self.timer_until(Attempt)
        self.see(not_connected(self.attempt, sqlstate, name, error=f"no: {sqlstate}"))

    def write(self, writable: bool = True, timeline: int | None = None) -> None:
        self.see(WriteAnswered(at=self.at, writable=writable, timeline=timeline))

    def beat(self) -> None:
        self.timer_until(Beat)
        self.see(BeatAnswered(at=self.at))

    def healthy(self, identity: Identity = PRIMARY, **more: Any) -> Script:
        self.connect(identity, **more)
        self.write()
        self.beat()
        return self


def in_state(state: State) -> Script:
    script = Script()
    match state:
        case State.UNKNOWN:
            return script
        case State.HEALTHY:
            return script.healthy()
        case State.SUSPECT:
            script.healthy().see(SessionEnded(ending=RESET))
        case State.CONNECT_BLOCKED:
            script.healthy().fail("53300")
        case State.DOWN:
            script.healthy().see(SessionEnded(ending=RESET))
            script.fail()
        case State.READ_ONLY:
            script.connect()
            script.write(writable=False)
        case State.SUSPENDED:
            script.healthy().see(Suspend(looks=True))
    assert script.state is state
    return script


# The table


def fact_of(event: Event, script: Script) -> Fact:
    """The fact that means this event, with the question or attempt it answers brought about where that is possible."""
    has_session = script.state in (State.HEALTHY, State.CONNECT_BLOCKED, State.READ_ONLY)
    match event:
        case Event.ANSWERED:
            if has_session:
                script.timer_until(Beat)
            return BeatAnswered(at=script.at)
        case Event.LOST:
            return SessionEnded(ending=RESET)
        case Event.CONNECTED:
            script.timer_until(Attempt)
            return Connected(attempt=script.attempt, at=script.at, identity=PRIMARY)
        case Event.NOT_CONNECTED:
            script.timer_until(Attempt)
            return NotConnected(attempt=script.attempt, error="no", name="ConnectionRefusedError")
        case Event.WRITABLE:
            if has_session:
                script.see(RoleChanged(read_only=True))
                script.see(RoleChanged(read_only=False))
                if not isinstance(script.commands[-1], CheckWrite):  # a beat is out
                    script.answer([Beat()])
            return WriteAnswered(at=script.at, writable=True)
        case Event.NOT_WRITABLE:
            return RoleChanged(read_only=True)
        case Event.SUSPENDED:
            return Suspend(looks=False)
        case Event.RESUMED:
            return Resume()


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_follows_the_table_and_nothing_else(state: State, event: Event) -> None:
    script = in_state(state)
    fact = fact_of(event, script)
    before = script.state  # READ_ONLY where a write had to be refused first
    expected = TRANSITIONS[before].get(event)
    frozen = copy.deepcopy(vars(script.machine))
    if expected is None:
        with pytest.raises(IllegalEvent):
            script.see(fact)
        assert vars(script.machine) == frozen
    else:
        script.see(fact)
        assert script.state is expected


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    "fact",
    [
        BeatAnswered(at=0),
        WriteAnswered(at=0, writable=True, timeline=9),
        Connected(attempt=99, at=0, identity=ANONYMOUS),
        NotConnected(attempt=99, error="no", name="OSError"),
    ],
    ids=lambda fact: type(fact).__name__,
)
def test_an_answer_without_a_question_is_illegal(state: State, fact: Fact) -> None:
    script = in_state(state)
    frozen = copy.deepcopy(vars(script.machine))
    with pytest.raises(IllegalEvent):
        script.see(fact)
    assert vars(script.machine) == frozen


def test_every_state_can_be_reached_and_left_for_good_health() -> None:
    def reachable(start: State) -> set[State]:
        found, edge = {start}, {start}
        while edge:
            edge = {to for state in edge for to in TRANSITIONS[state].values()} - found
            found |= edge
        return found

    assert reachable(State.UNKNOWN) == set(State)
    assert all(State.HEALTHY in reachable(state) for state in State)


def test_the_diagram_of_the_documentation_is_the_generated_one() -> None:
    page = (Path(__file__).parents[1] / "docs" / "failover.md").read_text()
    assert f"```mermaid\n{diagram()}```" in page


def test_an_outage_nobody_saw_the_end_of_ended_some_time_since() -> None:
    began = Interval(after=100.0, until=101.0)
    done = Downtime(began=began, ended=Interval(after=102.0, until=103.0))
    outage = Outage(
        id="x-1", target="db", kind="unknown", connect=done, read=Downtime(began=began), write=Downtime(began=began)
    )
    readable = found_over(outage, 500.0, writable=False)
    assert readable.connect == done
    assert readable.read == Downtime(began=began, ended=Interval(after=101.0, until=500.0), watched=False)
    assert not over(readable)
    closed = found_over(readable, 600.0, writable=True)
    assert over(closed)
    assert closed.read == readable.read
    assert closed.write is not None
    assert (closed.write.shortest_seconds, closed.write.longest_seconds) == (0, 500)
    assert closed.write.middle_seconds is None  # most of that time nobody was there to look


def test_an_outage_nobody_saw_the_end_of_counts_but_lends_no_figure() -> None:
    downtime = Downtime(began=Interval(after=100.0, until=101.0), ended=Interval(after=103.0, until=104.0))
    watched = Outage(id="x-1", target="db", kind="restart", connect=downtime, read=downtime, write=downtime)
    left_open = replace(watched, id="x-2", connect=None, write=replace(downtime, ended=None))
    figures = advised([watched, found_over(left_open, 5000.0, writable=True)]).failover
    assert figures == FailoverFigures(
        outages=2, outage_seconds=Quantiles(p50=3.0, max=3.0), write_outage_seconds=Quantiles(p50=3.0, max=3.0)
    )
    lost = replace(watched, connect=None, read=replace(downtime, ended=None), write=replace(downtime, ended=None))
    assert advised([found_over(lost, 5000.0, writable=True)]).failover == FailoverFigures(
        outages=1, outage_seconds=None, write_outage_seconds=None
    )


def test_a_refusal_beside_a_living_session_took_no_database_away() -> None:
    downtime = Downtime(began=Interval(after=100.0, until=101.0), ended=Interval(after=103.0, until=104.0))
    refused = Outage(id="x-1", target="db", kind="refusal", detail="53300", connect=downtime)
    assert not took_the_database_away(refused)
    assert took_the_database_away(replace(refused, read=downtime))
    assert took_the_database_away(replace(refused, write=downtime))
    assert all(took_the_database_away(replace(refused, kind=kind)) for kind in OutageKind if kind != "refusal")


def test_the_diagram_shows_every_transition() -> None:
    drawn = {tuple(line.split(":")[0].split(" --> ")) for line in diagram().splitlines() if " --> " in line}
    edges = {
        (f"    {state}", str(to)) for state, ways in TRANSITIONS.items() for to in ways.values() if to is not state
    }
    assert drawn - {("    [*]", "unknown")} == edges


# The kinds


def outage_of(
    ending: Ending | None,
    failures: Iterable[tuple[str | None, str]],
    after: Identity,
    before: Identity = PRIMARY,
    timeline: int | None = None,
) -> Script:
    """One outage from beginning to end."""
    script = Script().healthy(before)
    if ending is SILENT:
        script.timer_until(Beat)
        script.timer_until(Drop)
    elif ending is not None:
        script.see(SessionEnded(ending=ending))
    for sqlstate, name in failures:
        script.fail(sqlstate, name)
    script.connect(after)
    script.write(timeline=timeline)
    return script


REFUSED = (None, "ConnectionRefusedError")
TIMEOUT = (None, "TimeoutError")
STOPPING = ("57P03", "")
FULL = ("53300", "")
WRONG_PASSWORD = ("28P01", "")

KINDS = [
    ("restart", "fast", FAST, [STOPPING, REFUSED, STOPPING], RESTARTED),
    ("restart", "fast", FAST, [], RESTARTED),  # over before the first attempt
    ("restart", "fast", FAST, [REFUSED, FULL, FULL, FULL], RESTARTED),  # everybody comes back at once
    ("restart", "immediate", IMMEDIATE, [REFUSED], RESTARTED),
    ("restart", "crash", ORPHANED, [REFUSED, REFUSED], RESTARTED),
    ("restart", "crash", BACKEND_CRASH, [STOPPING], PRIMARY),  # the postmaster lived on
    ("restart", "crash", RESET, [REFUSED], RESTARTED),
    ("restart", "silent", SILENT, [TIMEOUT, REFUSED], RESTARTED),  # the host went
    ("restart", "fast", FAST, [STOPPING, REFUSED], ANONYMOUS),  # nothing but words to go by
    ("restart", "fast", FAST, [REFUSED], ANONYMOUS),
    ("failover", "timeline 1 to 2", SILENT, [TIMEOUT], PROMOTED),
    ("failover", "timeline 1 to 2", RESET, [], PROMOTED),
    ("failover", "timeline 1 to 2", ORPHANED, [REFUSED], PROMOTED),
    ("switchover", "timeline 1 to 2", FAST, [STOPPING, REFUSED], PROMOTED),
    ("failover", "another server", CLOSED, [REFUSED], RESCHEDULED),
    ("failover", "another cluster", SILENT, [TIMEOUT], REBUILT),
    ("cull", "57P01", FAST, [], PRIMARY),
    ("cull", "57P05", IDLE_SESSION, [], PRIMARY),
    ("cull", "rst", RESET, [], PRIMARY),
    ("cull", "fin", CLOSED, [], ANONYMOUS),
    ("cull", "57P01", FAST, [], replace(PRIMARY, address="[::1]:5432")),  # the same life by another address
    ("partition", "silent", SILENT, [TIMEOUT, TIMEOUT], PRIMARY),
    ("partition", "this connection only", SILENT, [], PRIMARY),
    ("partition", "ConnectionRefusedError", RESET, [REFUSED], PRIMARY),  # a proxy restarted
    ("partition", "gaierror", None, [(None, "gaierror")], PRIMARY),
    ("partition", "08P01", None, [("08P01", "")], PRIMARY),  # a pooler that cannot reach the server
    ("refusal", "53300", None, [FULL, FULL], PRIMARY),
    ("refusal", "53300", FAST, [FULL], PRIMARY),
    ("refusal", "3D000", None, [("3D000", "")], PRIMARY),
    ("authentication", "28P01", None, [WRONG_PASSWORD], PRIMARY),
    ("authentication", "28000", FAST, [("28000", "")], PRIMARY),
    ("authentication", "PasswordFile", None, [(None, "PasswordFile")], PRIMARY),
    ("authentication", "SSLCertVerificationError", RESET, [(None, "SSLCertVerificationError")], PRIMARY),
]


@pytest.mark.parametrize(("kind", "detail", "ending", "failures", "after"), KINDS)
def test_tells_kinds_apart(
    kind: str, detail: str, ending: Ending | None, failures: list[tuple[str | None, str]], after: Identity
) -> None:
    outage = outage_of(ending, failures, after).outage
    assert (outage.kind, outage.detail) == (kind, detail)
    assert over(outage)
    assert set(outage.downtimes) == ({"connect"} if failures else set()) | ({"read", "write"} if ending else set())


def test_a_timeline_that_lags_behind_is_corrected_by_the_server_that_writes() -> None:
    outage = outage_of(SILENT, [TIMEOUT], replace(PROMOTED, timeline=1), timeline=2).outage
    assert (outage.kind, outage.detail) == ("failover", "timeline 1 to 2")
    assert outage.after == PROMOTED


def test_errors_and_losses_are_counted() -> None:
    script = Script().healthy()
    script.see(PooledLost(loss=Death.FATAL, well_at=script.now - 0.5))  # noticed before our own
    script.see(SessionEnded(ending=FAST))
    script.see(PooledLost(loss=Death.CLOSED, well_at=script.now - 0.5))
    script.fail("57P03", "")
    script.fail()
    script.fail()
    script.connect(RESTARTED)
    script.write()
    well_at = script.now - 5
    script.see(PooledLost(loss=Death.SILENT, well_at=well_at), after=60.0)  # found dead at its next use
    assert script.outage.errors == {"57P01": 1, "57P03": 1, "ConnectionRefusedError": 2}
    assert script.outage.connections_lost == {"fatal": 2, "closed": 1, "silent": 1}
    script.see(PooledLost(loss=Death.SILENT, well_at=script.now - 1))  # well since: not of that outage
    assert script.outage.connections_lost == {"fatal": 2, "closed": 1, "silent": 1}


def test_names_that_move_are_followed() -> None:
    script = Script()
    old, new = ("10.0.0.1",), ("10.0.0.2", "10.0.0.3")

    def look_up(addresses: tuple[str, ...]) -> tuple[float, float]:
        """When it was asked and answered, monotonic."""
        asked = script.now
        script.see(Resolved(addresses=addresses, asked=asked))
        return asked, script.now

    look_up(old)
    script.healthy(addresses=old)
    script.see(SessionEnded(ending=RESET))
    began = script.now
    script.timer()
    last_old, _ = look_up(old)
    script.see(NotConnected(attempt=script.attempt, error="no", name="TimeoutError"))
    script.fail(None, "gaierror")
    script.timer()
    _, first_new = look_up(new)
    script.see(NotConnected(attempt=script.attempt, error="no", name="TimeoutError"), after=1.0)
    script.see(Resolved(addresses=old, asked=last_old))  # of an attempt that was late to hear it
    script.timer()
    look_up(new)
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PROMOTED, addresses=new))
    script.write()
    assert (script.outage.addresses_before, script.outage.addresses_after) == (old, new)
    changed, read = script.outage.dns_changed, script.outage.read
    assert changed is not None
    assert read is not None
    assert changed.width_seconds == pytest.approx(first_new - last_old, abs=1e-5)
    assert changed.after - read.began.until == pytest.approx(last_old - began, abs=1e-5)
    longest = changed.until - read.began.after
    assert script.outage.dns_lag_seconds == pytest.approx((last_old - began + longest) / 2, abs=1e-5)


def test_a_name_that_moved_before_anything_broke_did_not_lag() -> None:
    """The regular look at the connect path is the first to be led to the new server, which does not answer yet."""
    script = Script()
    script.see(Resolved(addresses=("10.0.0.1",), asked=script.now))
    script.healthy(addresses=("10.0.0.1",))
    script.timer_until(Attempt)
    script.see(Resolved(addresses=("10.0.0.2",), asked=script.now))
    script.see(NotConnected(attempt=script.attempt, error="no", name="ConnectionRefusedError"))
    script.connect(PROMOTED, addresses=("10.0.0.2",))
    script.write()
    assert script.outage.addresses_before == ("10.0.0.1",)
    assert script.outage.dns_changed is not None
    assert script.outage.connect is not None
    assert script.outage.dns_changed.until <= script.outage.connect.began.until
    # No lag at the least, and at most what the outage may have lasted by then.
    assert script.outage.dns_lag_seconds == pytest.approx(
        (script.outage.dns_changed.until - script.outage.connect.began.after) / 2
    )


@pytest.mark.parametrize("meanwhile", [(), (("10.0.0.2",),)], ids=["stayed", "came back"])
def test_a_name_that_leads_to_where_it_led_has_no_lag(meanwhile: tuple[tuple[str, ...], ...]) -> None:
    script = Script()
    old = ("10.0.0.1",)
    script.see(Resolved(addresses=old, asked=script.now))
    script.healthy(addresses=old)
    script.see(SessionEnded(ending=FAST))
    for addresses in (*meanwhile, old):
        script.fail()
        script.see(Resolved(addresses=addresses, asked=script.now))
    script.connect(RESTARTED, addresses=old)
    script.write()
    assert script.outage.dns_changed is None
    assert script.outage.dns_lag_seconds is None


def test_a_name_that_moved_in_quiet_times_belongs_to_no_outage() -> None:
    script = Script()
    script.see(Resolved(addresses=("10.0.0.1",), asked=script.now))
    script.healthy(addresses=("10.0.0.1",))
    script.see(Resolved(addresses=("10.0.0.2",), asked=script.now))
    script.connect(addresses=("10.0.0.2",))
    script.beat()
    script.see(SessionEnded(ending=FAST))
    script.connect(RESTARTED, addresses=("10.0.0.2",))
    script.write()
    assert (script.outage.addresses_before, script.outage.addresses_after) == (("10.0.0.2",), ("10.0.0.2",))
    assert script.outage.dns_lag_seconds is None


# Roles


def test_a_writer_demoted_under_a_living_session_is_a_role_flip() -> None:
    script = Script().healthy()
    script.timer_until(Beat)
    script.see(RoleChanged(read_only=True))
    script.see(BeatAnswered(at=script.at))
    assert script.state is State.READ_ONLY
    for _ in range(3):  # fresh connections lead to the same
        script.connect()
        script.write(writable=False)
    script.connect()
    script.write()
    assert script.state is State.HEALTHY
    assert script.outage.kind == "role_flip"
    assert set(script.outage.downtimes) == {"write"}
    assert script.told == []  # resting connections are not touched by it


def test_a_stale_session_is_left_for_the_server_the_name_leads_to() -> None:
    script = Script().healthy()
    script.see(RoleChanged(read_only=True))
    script.connect(PROMOTED)
    script.write()
    assert (script.outage.kind, script.outage.before, script.outage.after) == ("role_flip", PRIMARY, PROMOTED)
    assert script.told == [Cause.FAILOVER]


def test_writing_is_not_expected_of_a_replica() -> None:
    script = Script()
    script.connect(STANDBY)
    script.write(writable=False)
    status = script.machine.status(script.now)
    assert (status.state, status.writable, status.out_since_at) == (State.READ_ONLY, False, None)
    script.beat()
    script.see(SessionEnded(ending=FAST))
    script.connect(STANDBY)
    script.write(writable=False)
    assert set(script.outage.downtimes) == {"read"}
    assert over(script.outage)


def test_a_promoted_replica_becomes_healthy_without_an_outage() -> None:
    script = Script()
    script.connect(STANDBY)
    script.write(writable=False)
    script.timer_until(Beat)
    script.see(RoleChanged(read_only=False))
    script.see(BeatAnswered(at=script.at))  # one question at a time
    assert isinstance(script.commands[-1], CheckWrite)
    script.write()
    assert script.state is State.HEALTHY
    assert script.records == {}


def test_promoted_while_it_was_asked_whether_it_can_write() -> None:
    script = Script()
    script.connect(STANDBY)
    script.see(RoleChanged(read_only=False))
    script.write(writable=False)  # answered before the promotion, told after it
    assert isinstance(script.commands[-1], CheckWrite)


def test_demoted_while_it_was_asked_whether_it_can_write() -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=FAST))
    script.connect()
    script.see(RoleChanged(read_only=True))
    script.write(writable=True)
    assert script.state is State.READ_ONLY
    assert not over(script.outage)


def test_a_pooler_that_hides_a_changed_role_is_seen_through() -> None:
    script = Script().healthy(tells_role=False)
    healthy_at = script.now
    script.connect(STANDBY)  # the regular look at the connect path
    assert [type(command) for command in script.commands[-2:]] == [Discard, CheckWrite]
    script.write(writable=False)
    assert script.outage.kind == "role_flip"
    assert script.outage.write is not None
    # Beats prove nothing about writing here: only the check at the beginning does.
    assert script.outage.write.began.after < healthy_at + EPOCH - EVERY / 2


# Suspicion


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (FAST, Cause.RESTART),
        (IMMEDIATE, Cause.RESTART),
        (BACKEND_CRASH, Cause.RESTART),
        (SILENT, Cause.PARTITION),
        (RESET, Cause.UNKNOWN),
        (IDLE_SESSION, Cause.UNKNOWN),
    ],
)
def test_others_are_told_at_once(ending: Ending, cause: Cause) -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=ending))
    assert script.told == [cause]


def test_trouble_of_others_is_looked_into_at_once() -> None:
    script = Script().healthy()
    script.see(Suspected(), after=0.3)
    seen = len(script.commands)
    script.timer()
    assert {type(command) for command in script.commands[seen:]} in ({Beat, Attempt}, {Look, Attempt})
    script.see(not_connected(script.attempt, "53300", ""))
    assert script.state is State.CONNECT_BLOCKED


def test_nothing_is_recorded_before_the_first_contact() -> None:
    script = Script()
    script.see(Suspected())
    for _ in range(5):
        script.fail()
    status = script.machine.status(script.now)
    assert (status.state, status.reachable, status.error) == (State.UNKNOWN, False, "no: None")
    assert status.out_seconds == pytest.approx(script.now - 100.0)
    script.connect()
    script.write()
    assert script.records == {}
    status = script.machine.status(script.now)
    assert (status.reachable, status.writable, status.out_since_at, status.error) == (True, True, None, None)


# Clocks


def test_a_step_of_the_wall_clock_bends_no_duration() -> None:
    script = Script().healthy()
    began = script.now
    script.see(SessionEnded(ending=FAST))
    script.wall_offset += 3600
    script.fail()
    script.connect(RESTARTED)
    script.write()
    (downtime,) = {script.outage.read}
    assert downtime is not None
    assert downtime.longest_seconds == pytest.approx(script.now - began, abs=0.2)
    assert downtime.began.until == pytest.approx(began + 0.01 + EPOCH)
    script.beat()
    script.see(SessionEnded(ending=FAST))  # from here on the new time holds
    assert script.records["run-2"].read.began.until == pytest.approx(script.now + EPOCH + 3600)


def test_having_slept_is_no_outage() -> None:
    script = Script().healthy()
    script.timer_until(Beat)
    script.now += 60  # the host was suspended: the timer fires a minute late, before the answer is read
    script.take(script.machine.handle_timer(script.now))
    script.see(BeatAnswered(at=script.at))
    assert script.state is State.HEALTHY
    assert isinstance(script.commands[-1], Attempt)  # the look at the connect path, overdue as well
    script.see(NotConnected(attempt=script.attempt, error="no answer", name="TimeoutError"), after=60.0)
    assert script.state is State.HEALTHY
    assert script.records == {}


def test_a_silent_session_is_given_up_although_the_host_slept() -> None:
    script = Script().healthy()
    script.timer_until(Beat)
    script.now += 60
    script.take(script.machine.handle_timer(script.now))
    script.timer()
    assert script.state is State.SUSPECT


def test_timers_are_harmless_when_nothing_is_due() -> None:
    script = in_state(State.HEALTHY)
    frozen = copy.deepcopy(vars(script.machine))
    assert script.machine.handle_timer(script.now) == []
    assert vars(script.machine) == frozen


# Pace


def test_a_long_outage_is_looked_at_less_often_but_never_less_than_beats() -> None:
    script = in_state(State.DOWN)
    spacings = {}
    for elapsed in (1, 60, 500, 100_000):
        script.now = 100.0 + elapsed
        script.fail()
        begun = script.now - script.step
        script.timer_until(Attempt)
        script.see(NotConnected(attempt=script.attempt, error="no", name="OSError"))
        spacings[elapsed] = script.now - script.step - begun
    assert spacings == {
        1: pytest.approx(RECONNECT),
        60: pytest.approx(RECONNECT),
        500: pytest.approx(0.5, rel=0.01),
        100_000: pytest.approx(EVERY),
    }


def test_attempts_that_hang_do_not_pile_up() -> None:
    script = in_state(State.SUSPECT)
    seen, begun = len(script.commands), []
    for _ in range(IN_FLIGHT):
        script.timer()
        begun.append(script.now)
    assert sum(isinstance(command, Attempt) for command in script.commands[seen:]) == IN_FLIGHT
    assert script.machine.next_deadline() is None
    # No heal of the path waits longer than the widest gap, and none is wider at the end of the deadline.
    gaps = [after - before for before, after in itertools.pairwise([*begun, begun[0] + DEADLINE])]
    assert max(gaps) <= DEADLINE / 4 + 1e-9
    assert gaps[:3] == pytest.approx([RECONNECT] * 3)


def test_jitter_makes_attempts_earlier_never_later() -> None:
    numbers = random.Random(7)
    machine = make(jitter=numbers.random)
    now, begun = 100.0, []
    for number in range(1, 50):
        due = machine.next_deadline()
        assert due is not None
        now = max(now, due)
        assert machine.handle_timer(now) == [Attempt(number=number)]
        machine.observe(NotConnected(attempt=number, error="no", name="OSError"), now)
        begun.append(now)
    spacings = [after - before for before, after in itertools.pairwise(begun)]
    assert all(0.8 * RECONNECT - 1e-9 <= spacing <= RECONNECT + 1e-9 for spacing in spacings)
    assert len({round(spacing, 6) for spacing in spacings}) > 40


def test_many_watches_do_not_come_back_together() -> None:
    """They all lose the same server in the same moment; each comes back soon, and no moment has a crowd."""
    watches, back_at = 200, 3.0
    returns = []
    for seed in range(watches):
        script = Script()
        script.machine = make(script.now, jitter=random.Random(seed).random)
        script.healthy()
        script.see(SessionEnded(ending=FAST))
        lost = script.now
        while True:
            script.timer_until(Attempt)
            if script.now >= lost + back_at:
                break
            script.see(NotConnected(attempt=script.attempt, error="no", name="ConnectionRefusedError"), after=0.0)
        returns.append(script.now - lost)
    assert max(returns) <= back_at + RECONNECT + 1e-6
    crowd = max(sum(moment <= other < moment + 0.01 for other in returns) for moment in returns)
    assert crowd <= watches * 0.25  # in 10 ms; on time to the tick they would all come within one


def test_a_server_that_ends_every_session_at_once_is_not_stormed() -> None:
    script = Script().healthy()
    for _ in range(20):
        script.see(SessionEnded(ending=RESET), after=0.001)
        begun_before = script.now
        script.connect()
        script.write()
    assert script.now - begun_before < 2 * RECONNECT
    assert script.now > 100 + EVERY + 19 * RECONNECT


def test_a_connect_path_that_opened_again_is_not_said_to_have_shut_with_a_later_session() -> None:
    script = Script()
    script.timer()
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY), after=0.0)
    script.see(SessionEnded(ending=FAST), after=0.0)  # in the moment the connect path was last seen open
    for _ in range(3):  # two of which get no answer
        script.timer()
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY), after=0.001)
    script.timer_until(Drop)  # the new session answers nothing
    downtime = script.outage.connect
    assert downtime is not None
    assert downtime.ended is not None
    assert downtime.began.after <= downtime.ended.after


def test_others_that_cannot_write_any_more_are_stale_writers_of_that_outage() -> None:
    script = Script().healthy()
    script.see(PooledLost(loss=STALE_WRITER, well_at=script.now - 0.5))  # seen before our own session was told
    assert isinstance(script.machine.handle_timer(script.now)[0], Beat)
    script.see(RoleChanged(read_only=True))
    script.see(PooledLost(loss=STALE_WRITER, well_at=script.now - 1))
    script.see(BeatAnswered(at=script.at))
    script.connect(PROMOTED)
    script.write()
    script.see(PooledLost(loss=STALE_WRITER, well_at=script.now - 5), after=4.0)  # at its next use
    assert script.outage.kind == "role_flip"
    assert script.outage.connections_lost == {STALE_WRITER: 3}
    (warning,) = advised([script.outage]).warnings
    assert warning.code == "stale_writer"
    assert "(3 so far)" in warning.text


def test_a_replica_has_no_stale_writers() -> None:
    script = Script()
    script.connect(STANDBY)
    script.write(writable=False)
    assert not script.machine.status(script.now).writes_expected
    script.see(PooledLost(loss=STALE_WRITER, well_at=script.now - 1))
    script.beat()
    script.see(SessionEnded(ending=FAST))
    assert script.outage.connections_lost == {"fatal": 1}


# Limits on age


def look_at_connect_path(script: Script, identity: Identity = PRIMARY) -> Command:
    """What becomes of the next fresh connection."""
    script.connect(identity)
    return next(command for command in reversed(script.commands) if isinstance(command, Adopt | Discard))


def aged(script: Script, identity: Identity = PRIMARY, *, proven: float | None = 100.0) -> Script:
    """The session is nearly as old as `proven`, which is known only now."""
    until = script.now + 90
    while script.now < until:
        assert isinstance(look_at_connect_path(script, identity), Discard)
    script.see(AgeKnown(proven_seconds=proven))
    return script


def test_a_session_is_renewed_before_it_is_too_old() -> None:
    script = Script().healthy()
    script.see(AgeKnown(proven_seconds=100.0))
    opened = script.now
    while isinstance(look_at_connect_path(script), Discard):
        pass
    assert 49 <= script.now - opened < 50 + EVERY + DEADLINE + 1
    script.write()
    assert script.state is State.HEALTHY
    assert isinstance(look_at_connect_path(script), Discard), "the new one is young"
    assert not script.records
    assert not script.told


@pytest.mark.parametrize("proven", [None, 1000.0])
def test_a_session_is_kept_while_it_is_not_known_to_grow_too_old(proven: float | None) -> None:
    assert isinstance(look_at_connect_path(aged(Script().healthy(), proven=proven)), Discard)
    lifted = aged(Script().healthy())
    lifted.see(AgeKnown(proven_seconds=None))
    assert isinstance(look_at_connect_path(lifted), Discard)


def test_a_session_that_is_asked_is_not_renewed() -> None:
    """Its silence would never be noticed."""
    script = aged(Script().healthy())
    script.timer_until(Attempt)
    script.see(Suspected())
    script.take(script.machine.handle_timer(script.now))
    assert isinstance(script.commands[-1], Beat)
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY))
    assert script.commands[-1] == Discard(number=script.attempt)


@pytest.mark.parametrize("other", [RESTARTED, PROMOTED, RESCHEDULED])
def test_a_session_is_not_renewed_by_another_server(other: Identity) -> None:
    assert isinstance(look_at_connect_path(aged(Script().healthy()), other), Discard)


def test_a_replica_renews_its_session_in_peace() -> None:
    script = Script()
    script.connect(STANDBY)
    script.write(writable=False)
    assert isinstance(look_at_connect_path(aged(script, STANDBY), STANDBY), Adopt)
    script.write(writable=False)
    assert (script.state, script.records) == (State.READ_ONLY, {})


def test_what_a_renewed_session_goes_through_is_recorded_as_ever() -> None:
    script = aged(Script().healthy())
    assert isinstance(look_at_connect_path(script), Adopt)
    script.write()
    script.beat()
    script.see(SessionEnded(ending=FAST))
    script.fail("57P03", name="")
    script.connect(RESTARTED)
    script.write()
    assert (script.outage.kind, script.outage.detail) == ("restart", "fast")
    assert script.outage.before == PRIMARY


@pytest.mark.parametrize("ending", [SILENT, RESET, CLOSED])
def test_the_end_of_one_session_may_have_been_its_age(ending: Ending) -> None:
    script = outage_of(ending, [], PRIMARY)
    (witness,) = (command.aged for command in script.commands if isinstance(command, Witness))
    assert witness.outage == script.outage.id
    assert of_age(script.outage) == replace(script.outage, kind=OutageKind.LIFETIME)
    figures = advised([script.outage, of_age(replace(script.outage, id="other"))]).failover
    assert figures is not None
    assert figures.outages == 1
    assert advised([of_age(script.outage)]).failover is None


@pytest.mark.parametrize(("ending", "failures"), [(None, [FULL]), (RESET, [REFUSED]), (RESET, [FULL])])
def test_where_connecting_failed_age_was_not_all(ending: Ending | None, failures: list[tuple[str | None, str]]) -> None:
    outage = outage_of(ending, failures, PRIMARY).outage
    assert of_age(outage) == outage


def test_where_writing_stayed_out_age_was_not_all() -> None:
    script = in_state(State.SUSPECT)
    assert of_age(script.outage) == script.outage, "nobody knows what it will be"
    script.connect()
    assert of_age(script.outage) == script.outage
    script.write(writable=False)
    script.connect()
    script.write()
    assert over(script.outage)
    assert of_age(script.outage) == script.outage


# Answers are answers


def refused_for(script: Script, seconds: float, sqlstate: str) -> list[float]:
    """Every attempt is refused for so long; when each was begun, in seconds from now."""
    began, begun = script.now, []
    while True:
        seen = len(script.commands)
        due = script.machine.next_deadline()
        assert due is not None
        if due >= began + seconds:
            script.now = began + seconds
            return begun
        script.timer()
        script.answer(script.commands[seen:])
        if any(isinstance(command, Attempt) for command in script.commands[seen:]):
            begun.append(script.now - began)
            script.see(not_connected(script.attempt, sqlstate, ""), after=0.002)


@given(refusals=st.integers(1, 50), lasted=st.floats(0, 1e5), jitter=st.floats(0, 1, exclude_max=True))
def test_pauses_grow_and_are_spread(refusals: int, lasted: float, jitter: float) -> None:
    nominal = min(2.0 ** min(refusals - 1, 10), 60.0) if lasted < 600 else 300.0
    pause = pause_after(refusals, lasted_seconds=lasted, jitter=jitter)
    assert 0.8 * nominal - 1e-9 <= pause <= 1.2 * nominal + 1e-9
    assert pause <= TAKEN_UP_WITHIN_SECONDS or lasted >= 600


@pytest.mark.parametrize("sqlstate", ["53300", "28P01", "28000", "3D000", "42501"])
@pytest.mark.parametrize("start", [State.UNKNOWN, State.HEALTHY, State.SUSPECT])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_two_minutes_of_refusals_are_nine_logins_at_most(sqlstate: str, start: State, jitter: float) -> None:
    script = in_state(start)
    script.machine._jitter = lambda: jitter
    begun = refused_for(script, 120.0, sqlstate)
    assert 5 <= len(begun) <= 9
    pauses = [after - before for before, after in itertools.pairwise(begun)]
    assert pauses == sorted(pauses)
    assert max(pauses) <= TAKEN_UP_WITHIN_SECONDS + 0.01
    status = script.machine.status(script.now)
    assert status.refused is signal_of(sqlstate)
    told = {command.said for command in script.commands if isinstance(command, TellRefused)}
    assert told == {signal_of(sqlstate)}


def test_a_lost_session_is_one_more_reason_to_look_once() -> None:
    script = in_state(State.CONNECT_BLOCKED)
    begun = refused_for(script, 60.0, "28000")
    script.see(SessionEnded(ending=FAST))
    begun += refused_for(script, 60.0, "28000")
    assert len(begun) <= 8  # beside the first
    assert (script.outage.kind, script.outage.detail) == ("authentication", "28000")


def test_after_ten_minutes_there_is_no_hurry() -> None:
    script = in_state(State.CONNECT_BLOCKED)
    refused_for(script, 900.0, "53300")
    begun = refused_for(script, 3600.0, "53300")
    assert 3600 / 360 - 1 <= len(begun) <= 3600 / 240 + 1


def test_a_success_ends_the_pauses() -> None:
    script = in_state(State.CONNECT_BLOCKED)
    refused_for(script, 100.0, "53300")
    script.connect()
    script.write()
    status = script.machine.status(script.now)
    assert (status.state, status.refused, status.queued) == (State.HEALTHY, None, False)
    script.fail("53300")
    first = script.now
    script.timer_until(Attempt)
    assert script.now - first <= 1.2


@pytest.mark.parametrize("start", [State.UNKNOWN, State.CONNECT_BLOCKED, State.DOWN])
def test_changed_credentials_are_tried_at_once(start: State) -> None:
    script = in_state(start)
    refused_for(script, 100.0, "28P01")
    script.see(CredentialsChanged())
    changed = script.now
    script.timer_until(Attempt)
    assert script.now == changed
    assert script.machine.awaits_credentials
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY))
    assert not script.machine.awaits_credentials
    due = script.machine.next_deadline()
    script.see(CredentialsChanged())
    assert script.machine.next_deadline() == due, "nobody is refused"


def test_a_return_after_a_minute_of_starting_is_found_within_the_ordinary_pace() -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=FAST))
    began, begun = script.now, []
    while script.now < began + 60.0:
        script.timer_until(Attempt)
        begun.append(script.now)
        script.see(not_connected(script.attempt, "57P03", ""), after=0.002)
    assert max(after - before for before, after in itertools.pairwise(begun)) <= RECONNECT + 0.05
    assert not any(isinstance(command, TellRefused) for command in script.commands)
    script.connect(RESTARTED)
    script.write()
    assert script.outage.kind == "restart"
    assert script.outage.read is not None
    assert script.outage.read.ended is not None
    assert script.outage.read.ended.width_seconds <= RECONNECT + 0.05


def test_nobody_answering_between_refusals_is_timed_as_ever() -> None:
    script = in_state(State.CONNECT_BLOCKED)
    refused_for(script, 100.0, "53300")
    script.see(SessionEnded(ending=FAST))
    script.fail()
    failed = script.now
    script.fail()
    assert script.now - failed <= RECONNECT + 0.05
    assert script.machine.status(script.now).refused is None


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [("28P01", "authentication"), ("28000", "authentication"), ("3D000", "refusal"), ("53300", "refusal")],
)
@pytest.mark.parametrize("ending", [FAST, IMMEDIATE, RESET, SILENT])
def test_what_is_answered_counts_whatever_ended_the_session(sqlstate: str, kind: str, ending: Ending) -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=ending))
    script.fail()  # somebody in between was restarted, too
    refused_for(script, 30.0, sqlstate)
    status = script.machine.status(script.now)
    assert (status.kind, status.sqlstate) == (kind, sqlstate)
    script.connect()
    script.write()
    assert (script.outage.kind, script.outage.detail) == (kind, sqlstate)


def test_a_server_that_was_restarted_was_restarted_whatever_it_refused_then() -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=FAST))
    refused_for(script, 30.0, "28P01")
    assert script.outage.kind == "authentication"  # as far as anyone can tell
    script.connect(RESTARTED)
    script.write()
    assert (script.outage.kind, script.outage.detail) == ("restart", "fast")


def test_a_crowd_that_comes_back_after_a_partition_does_not_make_it_a_refusal() -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=RESET))
    for _ in range(100):
        script.fail()
    script.fail("53300", "")
    script.connect()
    script.write()
    assert (script.outage.kind, script.outage.detail) == ("partition", "ConnectionRefusedError")


def test_having_nothing_left_ourselves_is_a_refusal_that_nobody_gave() -> None:
    script = Script().healthy()
    script.fail(None, EXHAUSTED)
    status = script.machine.status(script.now)
    assert (status.kind, status.exhausted, status.refused) == ("refusal", True, None)
    paused_at = script.now
    script.timer_until(Attempt)
    assert script.now - paused_at >= 0.7


# A queue


def beats_for(script: Script, seconds: float) -> None:
    """The session answers what it is asked, and no attempt is begun."""
    until = script.now + seconds
    while (due := script.machine.next_deadline()) is not None and due < until:
        seen = len(script.commands)
        script.timer()
        assert not any(isinstance(command, Attempt) for command in script.commands[seen:])
        script.answer(script.commands[seen:])
    script.now = until


def hang(script: Script, *, logged_in: bool = True) -> None:
    """An attempt gets no answer, while the session answers all it is asked."""
    script.timer_until(Attempt)
    begun = script.now
    if logged_in:
        script.see(LoggedIn(attempt=script.attempt), after=0.001)
    while True:
        due = script.machine.next_deadline()
        if due is None or due >= begun + DEADLINE:
            break
        seen = len(script.commands)
        script.timer()
        script.answer(script.commands[seen:])
        assert not any(isinstance(command, Attempt) for command in script.commands[seen:]), "two in a queue"
    script.now = begun + DEADLINE
    seen = len(script.commands)
    if logged_in:
        script.see(Waits(attempt=script.attempt, error="no answer"), after=0.0)
    else:
        script.see(NotConnected(attempt=script.attempt, error="no answer", name="TimeoutError", hung=True), after=0.0)
    script.answer(script.commands[seen:])


@pytest.mark.parametrize("logged_in", [True, False])
def test_a_connect_that_hangs_beside_a_living_session_stands_in_a_queue(logged_in: bool) -> None:
    script = Script().healthy(pooled=True)
    hang(script, logged_in=logged_in)
    status = script.machine.status(script.now)
    assert (status.state, status.kind, status.queued) == (State.CONNECT_BLOCKED, "refusal", True)
    assert (status.said, status.refused) == (ServerSignal.QUEUED, ServerSignal.QUEUED)
    assert isinstance(script.commands[-1], TellRefused)
    begun = []
    said = signal_of("08P01", "query_wait_timeout")
    gave_up = NotConnected(attempt=0, error="query_wait_timeout", name="fin", said=said, sqlstate="08P01")
    for _ in range(5):
        if logged_in:  # the pooler gives up, not we
            beats_for(script, 20.0)
            script.see(replace(gave_up, attempt=script.attempt))
        before = script.now
        hang(script, logged_in=logged_in)
        begun.append(script.now - DEADLINE - before)
    assert begun == sorted(begun)
    assert begun[0] >= 0.7  # to give back what is held takes a moment
    assert begun[-1] >= 12
    if logged_in:
        beats_for(script, 20.0)
        script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY, pooled=True))
    else:
        script.connect()
    script.write()
    assert script.outage.connect is not None
    assert script.outage.connect.ended is not None
    assert not logged_in or script.outage.connect.ended.width_seconds <= RECONNECT + 0.01, "served at last"
    assert (script.outage.kind, script.outage.detail) == ("refusal", "queue")
    assert set(script.outage.downtimes) == {"connect"}
    assert not took_the_database_away(script.outage)


def test_a_pooler_that_gives_up_waiting_says_that_there_is_a_queue() -> None:
    script = Script().healthy()
    script.timer_until(Attempt)
    said = signal_of("08P01", "query_wait_timeout")
    script.see(
        NotConnected(attempt=script.attempt, error="query_wait_timeout", name="fin", said=said, sqlstate="08P01")
    )
    assert (script.outage.kind, script.outage.detail) == ("refusal", "queue")
    assert script.machine.status(script.now).queued


def test_a_hang_is_judged_by_a_session_that_is_asked_for_the_purpose() -> None:
    """It was asked nothing in all that time: beats come every minute only."""
    script = Script()
    script.machine = AvailabilityMachine(
        "db", every=60.0, deadline=DEADLINE, reconnect_every=RECONNECT, door_every=DOOR, run="run",
        jitter=lambda: 0.9, now=script.now, at=script.at,
    )  # fmt: skip
    script.connect()
    script.write()
    script.timer_until(Attempt)
    script.see(NotConnected(attempt=script.attempt, error="no", name="TimeoutError", hung=True), after=DEADLINE)
    assert isinstance(script.commands[-1], Beat | Look)
    assert script.records == {}
    script.answer(script.commands[-1:])
    assert (script.outage.kind, script.outage.detail) == ("refusal", "queue")


def test_a_hang_beside_a_session_that_is_silent_too_is_a_partition() -> None:
    script = Script().healthy()
    script.timer_until(Attempt)
    script.see(NotConnected(attempt=script.attempt, error="no", name="TimeoutError", hung=True), after=DEADLINE)
    while script.state is not State.SUSPECT:
        script.timer()
    assert not any(isinstance(command, TellRefused) for command in script.commands)
    assert (script.outage.kind, script.outage.detail) == ("partition", "silent")
    assert script.outage.errors == {"TimeoutError": 1}
    hurried = script.now
    script.timer_until(Attempt)
    assert script.now - hurried <= RECONNECT


@pytest.mark.parametrize(("pooled", "queued"), [(None, True), (True, True), (False, False)])
def test_who_is_let_in_and_left_alone_waits_in_a_queue_unless_there_is_no_pooler(
    pooled: bool | None, queued: bool
) -> None:
    script = Script() if pooled is None else Script().healthy(pooled=pooled)
    if pooled is not None:
        script.see(SessionEnded(ending=CLOSED))
    script.timer_until(Attempt)
    script.see(LoggedIn(attempt=script.attempt))
    assert (script.machine.next_deadline() is None) == (pooled is not False), "one in a queue at a time"
    if pooled is False:
        script.see(NotConnected(attempt=script.attempt, error="no", name="TimeoutError", hung=True), after=DEADLINE)
    else:
        script.see(Waits(attempt=script.attempt, error="no"), after=DEADLINE)
        assert script.machine.next_deadline() is None, "it goes on waiting"
    assert script.machine.status(script.now).queued == queued


# Looks at the server's sessions


def test_the_session_is_asked_for_the_table_every_two_seconds() -> None:
    script = Script()
    script.machine = make(script.now, jitter=random.Random(3).random)
    script.healthy()
    began, looks, questions = script.now, 0, 0
    while script.now < began + 600:
        seen = len(script.commands)
        script.timer()
        script.answer(script.commands[seen:])
        looks += sum(isinstance(command, Look) for command in script.commands[seen:])
        questions += sum(isinstance(command, Look | Beat) for command in script.commands[seen:])
        for command in script.commands[seen:]:
            if isinstance(command, Attempt):
                script.see(Connected(attempt=command.number, at=script.at, identity=PRIMARY))
    assert 600 / 2.4 <= looks <= 600 / 1.5
    assert questions <= 600 / EVERY * 1.2, "a beat that is due is replaced by a look"


def test_a_look_that_is_not_answered_is_a_session_lost() -> None:
    script = Script().healthy()
    script.timer_until(Look)
    asked = script.now
    while script.state is State.HEALTHY:
        script.timer()
    assert script.state is State.SUSPECT
    assert script.now - asked <= DEADLINE + 1e-6


def test_fresh_connections_are_looked_for_seldom_and_at_once_on_suspicion() -> None:
    script = Script()
    script.machine = AvailabilityMachine(
        "db", every=EVERY, deadline=DEADLINE, reconnect_every=RECONNECT, door_every=20.0, run="run",
        jitter=random.Random(5).random, now=script.now, at=script.at,
    )  # fmt: skip
    script.healthy()
    began, begun = script.now, []
    while script.now < began + 600:
        seen = len(script.commands)
        script.timer()
        script.answer(script.commands[seen:])
        for command in script.commands[seen:]:
            if isinstance(command, Attempt):
                begun.append(script.now)
                script.see(Connected(attempt=command.number, at=script.at, identity=PRIMARY))
    assert 30 <= len(begun) <= 40  # at most four a minute
    script.see(Suspected(), after=1.0)
    suspected = script.now
    script.timer_until(Attempt)
    assert script.now - suspected <= RECONNECT


# Suspended


@pytest.mark.parametrize("start", State)
@pytest.mark.parametrize("looks", [True, False])
def test_suspending_gives_everything_back_at_once(start: State, looks: bool) -> None:
    script = in_state(start)
    seen = len(script.commands)
    script.see(Suspend(looks=looks))
    if start is not State.SUSPENDED or not looks:
        assert isinstance(script.commands[seen], Drop)
    status = script.machine.status(script.now)
    assert (status.state, status.suspended, status.paused) == (State.SUSPENDED, True, not looks)
    assert status.kind is None
    assert (script.machine.next_deadline() is None) == (not looks)
    script.see(Resume())
    resumed = script.now
    script.timer_until(Attempt)
    assert script.now == resumed, "connects at once"
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY))
    script.write()
    assert script.state is State.HEALTHY
    assert all(over(outage) for outage in script.records.values())


def test_an_outage_nobody_watched_any_more_is_closed_when_somebody_answers() -> None:
    script = in_state(State.DOWN)
    script.see(Suspend(looks=False))
    assert not over(script.outage)
    script.see(Resume(), after=600.0)
    script.connect(RESTARTED)
    script.write()
    assert over(script.outage)
    assert script.outage.kind == "restart"
    assert all(not downtime.watched for downtime in script.outage.downtimes.values())
    assert advised([script.outage]).failover == FailoverFigures(
        outages=1, outage_seconds=None, write_outage_seconds=None
    )


def test_looks_tell_whether_the_database_is_there() -> None:
    script = in_state(State.DOWN)
    script.see(Suspend(looks=True))
    assert script.machine.status(script.now).reachable is False
    script.timer_until(Attempt)
    assert script.commands[-1] == Attempt(number=script.attempt, role=ConnectionRole.LOOK)
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY))
    assert script.commands[-1] == AskTable(number=script.attempt)
    assert over(script.outage), "left open until somebody answered"
    script.see(TableAnswered(at=script.at))
    assert script.commands[-1] == Discard(number=script.attempt)
    status = script.machine.status(script.now)
    assert (status.reachable, status.out_since_at) == (True, None)
    looked = script.now
    script.timer_until(Attempt)
    assert 0.8 * LOOK_SECONDS - 1 <= script.now - looked <= 1.2 * LOOK_SECONDS
    script.see(NotConnected(attempt=script.attempt, error="no", name="ConnectionRefusedError"))
    status = script.machine.status(script.now)
    assert (status.reachable, status.error) == (False, "no")
    assert len(script.records) == 1, "nothing is recorded by looks"


def test_a_session_that_was_heard_of_need_not_be_looked_for_at_once() -> None:
    script = in_state(State.HEALTHY)
    script.see(Suspend(looks=True))
    assert script.machine.status(script.now).reachable
    due = script.machine.next_deadline()
    assert due is not None
    assert due - script.now >= 0.8 * LOOK_SECONDS - 1


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    start=st.sampled_from(State),
    outcomes=st.lists(
        st.sampled_from(["ok", "53300", "28P01", "57P03", "hangs", "refused", "no table"]), min_size=1, max_size=6
    ),
)
def test_suspended_never_opens_more_than_the_looks(seed: int, start: State, outcomes: list[str]) -> None:
    script = in_state(start)
    numbers = random.Random(seed)
    script.machine._jitter = numbers.random
    script.see(Suspend(looks=True))
    records, begun = len(script.records), []
    began, turn = script.now, itertools.cycle(outcomes)
    while script.now < began + 3600:
        script.see(Suspected())
        script.see(PooledLost(loss=Death.SILENT, well_at=script.now))
        seen = len(script.commands)
        script.timer()
        new = script.commands[seen:]
        assert not any(isinstance(command, Beat | Look | CheckWrite | Adopt) for command in new)
        if not any(isinstance(command, Attempt) for command in new):
            continue
        begun.append(script.now)
        match next(turn):
            case "ok" | "no table" as outcome:
                script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY))
                assert script.commands[-1] == AskTable(number=script.attempt)
                if outcome == "ok":
                    script.see(TableAnswered(at=script.at))
                    assert script.commands[-1] == Discard(number=script.attempt)
                else:
                    script.see(NotConnected(attempt=script.attempt, error="no", name="deadline", hung=True), after=2.0)
            case "hangs":
                script.see(LoggedIn(attempt=script.attempt))
                script.see(NotConnected(attempt=script.attempt, error="no", name="TimeoutError", hung=True), after=2.0)
            case "refused":
                script.see(NotConnected(attempt=script.attempt, error="no", name="ConnectionRefusedError"))
            case sqlstate:
                script.see(not_connected(script.attempt, sqlstate, ""))
    pauses = [after - before for before, after in itertools.pairwise(begun)]
    assert all(0.8 * LOOK_SECONDS - 1e-6 <= pause <= 1.2 * 300 + 3 for pause in pauses)
    assert len(script.records) == records


def test_a_session_ended_by_our_own_limit_is_no_outage() -> None:
    """The host slept for so long that the server did what we had asked it to."""
    script = Script().healthy()
    script.see(SessionEnded(ending=replace(IDLE_SESSION, own_limit=True)), after=600.0)
    assert script.commands[-1] == Drop()
    lost = script.now
    script.timer_until(Attempt)
    assert script.now - lost <= RECONNECT
    script.see(Connected(attempt=script.attempt, at=script.at, identity=PRIMARY))
    script.write()
    assert (script.state, script.records, script.told) == (State.HEALTHY, {}, [])


def test_what_is_found_after_our_own_limit_is_recorded() -> None:
    script = Script().healthy()
    script.see(SessionEnded(ending=replace(IDLE_SESSION, own_limit=True)), after=600.0)
    script.fail()
    script.connect(RESTARTED)
    script.write()
    assert (script.outage.kind, set(script.outage.downtimes)) == ("restart", {"connect", "read", "write"})


# Ground truth


@dataclass
class Disturbance:
    """What happens to the database, when, for how long, and what the machine must say of it."""

    what: str
    after_seconds: float  # since all was well again
    lasting_seconds: float
    until_writable_seconds: float  # of a failover, beyond that


@dataclass(kw_only=True)
class Truth:
    kind: str
    began: float
    ended: dict[str, float]  # by downtime
    visible: bool = False  # sessions tell of it
    silent: bool = False  # attempts are not answered
    seen: bool = True  # so long that it cannot have been missed


class World:
    """A server, a path to it and a shell, in simulated time. Timers are a little late, everything takes its time."""

    TRIP = 0.002  # at most, for a round trip or the lateness of a timer
    CONNECT = 0.03  # at most

    def __init__(self, seed: int, *, age: float = inf, dies: Ending = CLOSED) -> None:
        self.random = random.Random(seed)
        self.age, self.dies = age, dies  # of sessions: when they end, and how
        self.now = 100.0
        self.machine = make(self.now, jitter=self.random.random)
        self.queue: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.identity = PRIMARY
        self.up = self.reachable = True
        self.refusing = self.read_only = False
        self.cuts = 0  # how often the path was cut: what was under way meanwhile is lost
        self.session, self.session_lives, self.knows_read_only = 0, False, False
        self.attempts: dict[int, float] = {}
        self.answered: set[int] = set()
        self.records: dict[str, Outage] = {}

    def later(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self.queue, (self.now + seconds, next(self.serial), then))

    def run_until(self, end: float) -> None:
        while True:
            due = self.machine.next_deadline()
            timer = end if due is None else max(due + self.random.uniform(0, self.TRIP), self.now)
            happening = self.queue[0][0] if self.queue else end
            if min(timer, happening) >= end:
                self.now = end
                return
            self.now = min(timer, happening)
            if happening <= timer:
                heapq.heappop(self.queue)[2]()
            else:
                self.obey(self.machine.handle_timer(self.now))

    def see(self, fact: Fact) -> None:
        self.obey(self.machine.observe(fact, self.now))

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Beat() | Look() | CheckWrite():
                    self.ask(type(command))
                case Attempt(number=number):
                    self.attempts[number] = self.now
                    self.begin(number)
                case Adopt():
                    self.session += 1
                    self.session_lives = True
                    self.attempts.clear()
                    self.knows_read_only = self.read_only
                    if self.age < inf:
                        self.later(self.age - self.CONNECT, lambda session=self.session: self.grow_too_old(session))
                case Drop():
                    self.session += 1
                    self.attempts.clear()
                case Record(outage=outage):
                    self.records[outage.id] = outage
                case Discard() | Tell() | TellRefused() | Witness():
                    pass

    def ask(self, question: type[Command]) -> None:
        trip = self.random.uniform(0, self.TRIP)
        session, cuts = self.session, self.cuts
        read_only = self.read_only
        if not (self.reachable and self.session_lives):
            return

        def answer() -> None:
            if (session, cuts) != (self.session, self.cuts) or not self.session_lives:
                return
            if read_only != self.knows_read_only:
                self.knows_read_only = read_only
                self.see(RoleChanged(read_only=read_only))
            at = self.now + EPOCH
            answers = {Beat: BeatAnswered(at=at), Look: TableAnswered(at=at)}
            self.see(answers.get(question) or WriteAnswered(at=at, writable=not read_only))

        self.later(trip, answer)

    def begin(self, number: int) -> None:
        cuts, identity = self.cuts, self.identity
        if not self.reachable:
            self.later(DEADLINE, lambda: self.fail(number, None, "TimeoutError"))
        elif not self.up:
            self.later(self.random.uniform(0, self.TRIP), lambda: self.fail(number, None, "ConnectionRefusedError"))
        elif self.refusing:
            self.later(self.random.uniform(0, self.TRIP), lambda: self.fail(number, "53300", ""))
        else:
            begun = self.now

            def done() -> None:
                if cuts != self.cuts:
                    self.later(DEADLINE - (self.now - begun), lambda: self.fail(number, None, "TimeoutError"))
                elif not self.up or identity != self.identity:
                    self.fail(number, "57P03", "")
                elif number in self.attempts:
                    del self.attempts[number]
                    self.see(Connected(attempt=number, at=self.now + EPOCH, identity=identity))

            self.later(self.random.uniform(0.001, self.CONNECT), done)

    def fail(self, number: int, sqlstate: str | None, name: str) -> None:
        if number in self.attempts:
            del self.attempts[number]
            self.see(not_connected(number, sqlstate, name))

    def end_session(self, ending: Ending) -> None:
        session, self.session_lives = self.session, False

        def noticed() -> None:
            if session == self.session:
                self.see(SessionEnded(ending=ending))

        self.later(self.random.uniform(0, RECONNECT), noticed)

    def grow_too_old(self, session: int) -> None:
        if session != self.session or not self.session_lives:
            return
        if self.dies is SILENT:
            self.session_lives = False  # and whoever asks gets no answer
        else:
            self.end_session(self.dies)

    def cut(self) -> None:
        self.reachable, self.session_lives = False, False
        self.cuts += 1

    def undergo(self, disturbance: Disturbance) -> Truth:
        """Let it happen, now."""
        began, lasting = self.now, disturbance.lasting_seconds
        long = lasting > EVERY + DEADLINE + 2 * self.TRIP
        match disturbance.what:
            case "restart":
                self.up = False
                self.end_session(FAST)
                self.run_until(began + lasting)
                self.up, self.identity = True, replace(self.identity, started_at=self.now)
                ended = dict.fromkeys(("connect", "read", "write"), self.now)
                return Truth(kind="restart", began=began, ended=ended, visible=True)
            case "cull":
                self.end_session(FAST)
                return Truth(kind="cull", began=began, ended={"read": began, "write": began}, visible=True)
            case "partition":
                self.cut()
                self.run_until(began + lasting)
                self.reachable = True
                ended = dict.fromkeys(("connect", "read", "write"), self.now)
                return Truth(kind="partition", began=began, ended=ended, silent=True, seen=long)
            case "refusal":
                self.refusing = True
                self.run_until(began + lasting)
                self.refusing = False
                return Truth(kind="refusal", began=began, ended={"connect": self.now}, seen=long)
            case "role_flip":
                self.read_only = True
                self.run_until(began + lasting)
                self.read_only = False
                return Truth(kind="role_flip", began=began, ended={"write": self.now}, seen=long)
            case "failover":  # the old primary is fenced; the standby answers first, and can be written to later
                self.cut()
                self.run_until(began + EVERY + DEADLINE + lasting)
                self.reachable = self.read_only = True
                self.identity = replace(PROMOTED, address=f"10.0.1.{self.now}", started_at=self.now)
                ended = dict.fromkeys(("connect", "read"), self.now)
                self.run_until(self.now + disturbance.until_writable_seconds)
                self.read_only = False
                return Truth(kind="failover", began=began, ended={**ended, "write": self.now}, silent=True)
        raise AssertionError(disturbance)


def check(outage: Outage, truth: Truth) -> None:
    assert outage.kind == truth.kind
    assert over(outage)
    patience = 4 * World.CONNECT + 2 * RECONNECT
    # Over before a first attempt could come to nothing: then only the session bears witness.
    conclusive = max(downtime.began.until for downtime in outage.downtimes.values()) + patience
    if truth.seen and (missing := truth.ended.keys() - outage.downtimes.keys()):
        assert missing == {"connect"}
        assert truth.ended["connect"] + EPOCH < conclusive
    slack = 2 * World.TRIP + World.CONNECT
    for name, downtime in outage.downtimes.items():
        began, ended = truth.began + EPOCH, truth.ended[name] + EPOCH
        assert downtime.ended is not None
        assert downtime.began.after <= began <= downtime.began.until, name
        assert downtime.ended.after <= ended <= downtime.ended.until, name
        width = RECONNECT if truth.visible else EVERY + DEADLINE
        if truth.silent and outage.read is None:  # found by an attempt alone, which was silent for its whole time
            width += DEADLINE
        assert downtime.began.width_seconds <= width + slack, name
        width = 2 * RECONNECT
        if truth.kind == "refusal":  # the pauses have grown with it
            width += 1.5 * (truth.ended["connect"] - truth.began) + 1.2
        if truth.silent:  # of one that was over when it was noticed, the end is known no better than the beginning
            width = EVERY + DEADLINE + patience if ended < conclusive else DEADLINE / 4
        assert downtime.ended.width_seconds <= width + RECONNECT + slack, name


DISTURBANCES = st.builds(
    Disturbance,
    what=st.sampled_from(["restart", "cull", "partition", "refusal", "role_flip", "failover"]),
    after_seconds=st.floats(4.0, 30.0),
    lasting_seconds=st.one_of(st.floats(0.001, 1.0), st.floats(1.0, 40.0)),
    until_writable_seconds=st.floats(0.0, 10.0),
)


@settings(max_examples=200, deadline=None)
@given(
    disturbances=st.lists(DISTURBANCES, min_size=1, max_size=6),
    seed=st.integers(0, 2**32),
    age=st.one_of(st.none(), st.floats(8.0, 60.0)),
)
def test_the_truth_lies_inside_the_intervals(disturbances: list[Disturbance], seed: int, age: float | None) -> None:
    """With sessions that are renewed in the midst of it, too."""
    world = World(seed)
    world.see(AgeKnown(proven_seconds=age))
    for disturbance in disturbances:
        known = set(world.records)
        world.run_until(world.now + disturbance.after_seconds)
        assert set(world.records) == known, "an outage was invented"
        truth = world.undergo(disturbance)
        world.run_until(world.now + 2 * (EVERY + DEADLINE))
        if truth.kind == "refusal":
            world.run_until(world.now + TAKEN_UP_WITHIN_SECONDS)
        new = [outage for id_, outage in world.records.items() if id_ not in known]
        assert len(new) == 1 or (not new and not truth.seen)
        for outage in new:
            check(outage, truth)
        status = world.machine.status(world.now)
        assert (status.state, status.out_since_at) == (State.HEALTHY, None)


@settings(max_examples=60, deadline=None)
@given(
    age=st.floats(3 * (EVERY + DEADLINE), 400.0),
    dies=st.sampled_from([SILENT, RESET, CLOSED]),
    seed=st.integers(0, 2**32),
)
def test_a_known_age_costs_no_session_its_end(age: float, dies: Ending, seed: int) -> None:
    world = World(seed, age=age, dies=dies)
    world.run_until(world.now + 5 * age)
    assert 3 <= len(world.records) <= 5
    assert {outage.kind for outage in world.records.values()} == {"partition" if dies is SILENT else "cull"}
    assert all(of_age(outage).kind == OutageKind.LIFETIME for outage in world.records.values() if over(outage))
    world.see(AgeKnown(proven_seconds=age - World.CONNECT - EVERY))
    seen = len(world.records)
    world.run_until(world.now + 20 * age)
    assert len(world.records) <= seen + 1, "one may have been too old for the next look at the connect path"


# Illegal or not, in any order


class Shell(RuleBasedStateMachine):
    """Knows what a shell knows: which session, question and attempts there are. That alone decides what is legal."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.machine = make(self.now)
        self.session = False
        self.question: type[Command] | None = None
        self.attempts: set[int] = set()
        self.logged_in: set[int] = set()
        self.looking: int | None = None
        self.looks: bool | None = None  # None while watching
        self.records: dict[str, Outage] = {}

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Beat() | Look() | CheckWrite():
                    assert self.session
                    assert self.question is None
                    self.question = type(command)
                case Attempt(number=number, role=role):
                    assert self.looks is not False
                    assert (role is ConnectionRole.LOOK) == (self.looks is True)
                    self.attempts.add(number)
                    assert len(self.attempts) <= (IN_FLIGHT if self.looks is None else 1)
                case AskTable(number=number):
                    assert self.looks
                    self.looking = number
                    self.attempts.add(number)
                case Adopt():
                    self.session, self.question, self.attempts, self.looking = True, None, set(), None
                case Drop():
                    self.session, self.question, self.attempts, self.looking = False, None, set(), None
                case Record(outage=outage):
                    self.keep(outage)
                case Discard() | Tell(disturbed=Disturbed()) | TellRefused() | Witness():
                    pass

    def keep(self, outage: Outage) -> None:
        former = self.records.get(outage.id)
        if former is None:
            assert all(over(known) for known in self.records.values()), "two outages at a time"
        elif over(former):
            assert replace(former, connections_lost={}) == replace(outage, connections_lost={}), "changed afterwards"
        self.records[outage.id] = outage
        assert outage.downtimes
        if outage.dns_changed is not None:
            assert outage.dns_changed.after <= outage.dns_changed.until
            assert outage.dns_lag_seconds is not None
            assert outage.dns_lag_seconds >= 0
        for downtime in outage.downtimes.values():
            assert downtime.began.after <= downtime.began.until
            if downtime.ended is not None:
                assert downtime.began.after <= downtime.ended.after <= downtime.ended.until

    def tell(self, fact: Fact, *, legal: bool) -> None:
        if legal:
            if isinstance(fact, BeatAnswered | WriteAnswered):
                self.question = None
            elif isinstance(fact, TableAnswered):
                self.attempts.discard(self.looking or 0)
                self.question = self.looking = None
            elif isinstance(fact, Connected | NotConnected):
                self.attempts.discard(fact.attempt)
                self.looking = None if self.looking == fact.attempt else self.looking
            self.obey(self.machine.observe(fact, self.now))
            return
        frozen = copy.deepcopy(vars(self.machine))
        with pytest.raises(IllegalEvent):
            self.machine.observe(fact, self.now)
        assert vars(self.machine) == frozen

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.05, 0.3, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def timer(self) -> None:
        due = self.machine.next_deadline()
        if due is not None:
            self.now = max(self.now, due)
        self.obey(self.machine.handle_timer(self.now))

    @precondition(lambda self: self.attempts - {self.looking})
    @rule(
        data=st.data(),
        identity=st.sampled_from([PRIMARY, RESTARTED, STANDBY, PROMOTED, ANONYMOUS]),
        tells=st.booleans(),
    )
    def connected(self, data: st.DataObject, identity: Identity, tells: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.attempts - {self.looking})))
        addresses = (data.draw(st.sampled_from(["10.0.0.1", "10.0.0.2"])),)
        fact = Connected(attempt=number, at=self.now + EPOCH, identity=identity, tells_role=tells, addresses=addresses)
        self.tell(fact, legal=True)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), sqlstate=st.sampled_from([None, "57P03", "53300", "28P01"]), hung=st.booleans())
    def not_connected(self, data: st.DataObject, sqlstate: str | None, hung: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.attempts)))
        self.tell(replace(not_connected(number, sqlstate, "OSError"), hung=hung and sqlstate is None), legal=True)

    @precondition(lambda self: self.attempts - {self.looking})
    @rule(data=st.data())
    def let_in(self, data: st.DataObject) -> None:
        self.tell(LoggedIn(attempt=data.draw(st.sampled_from(sorted(self.attempts - {self.looking})))), legal=True)

    @precondition(lambda self: self.attempts - {self.looking})
    @rule(data=st.data())
    def waits(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.attempts - {self.looking})))
        self.tell(Waits(attempt=number, error="no answer"), legal=True)

    @rule(looks=st.booleans())
    def suspend(self, looks: bool) -> None:
        self.looks = looks
        self.tell(Suspend(looks=looks), legal=True)

    @rule()
    def resume(self) -> None:
        suspended, self.looks = self.looks is not None, None
        self.tell(Resume(), legal=suspended)

    @rule()
    def credentials_changed(self) -> None:
        self.tell(CredentialsChanged(), legal=True)

    @rule()
    def table_answered(self) -> None:
        self.tell(TableAnswered(at=self.now + EPOCH), legal=self.question is Look or self.looking is not None)

    @rule(number=st.integers(-1, 3))
    def connected_without_attempt(self, number: int) -> None:
        if number not in self.attempts:
            self.tell(Connected(attempt=number, at=self.now + EPOCH, identity=PRIMARY), legal=False)

    @rule(addresses=st.sampled_from([("10.0.0.1",), ("10.0.0.2",)]), old=st.booleans())
    def resolved(self, addresses: tuple[str, ...], old: bool) -> None:
        self.tell(Resolved(addresses=addresses, asked=self.now - old), legal=True)

    @rule()
    def beat_answered(self) -> None:
        self.tell(BeatAnswered(at=self.now + EPOCH), legal=self.question is Beat)

    @rule(writable=st.booleans())
    def write_answered(self, writable: bool) -> None:
        self.tell(WriteAnswered(at=self.now + EPOCH, writable=writable), legal=self.question is CheckWrite)

    @rule(ending=st.sampled_from([FAST, IMMEDIATE, SILENT, RESET, CLOSED]), own=st.booleans())
    def session_ended(self, ending: Ending, own: bool) -> None:
        self.tell(SessionEnded(ending=replace(ending, own_limit=own and ending is CLOSED)), legal=self.session)

    @rule(read_only=st.booleans())
    def role_changed(self, read_only: bool) -> None:
        self.tell(RoleChanged(read_only=read_only), legal=self.session)

    @rule(loss=st.sampled_from([Death.SILENT, STALE_WRITER]), rested=st.sampled_from([0.0, 1.0, 100.0]))
    def pooled_lost(self, loss: str, rested: float) -> None:
        self.tell(PooledLost(loss=loss, well_at=self.now - rested), legal=True)

    @rule(proven=st.sampled_from([None, 0.1, 10.0]))
    def age_known(self, proven: float | None) -> None:
        self.tell(AgeKnown(proven_seconds=proven), legal=True)

    @rule()
    def suspected(self) -> None:
        self.tell(Suspected(), legal=True)

    @invariant()
    def somebody_is_at_work(self) -> None:
        assert self.machine.next_deadline() is not None or self.attempts or self.looks is False

    @invariant()
    def the_status_agrees(self) -> None:
        status = self.machine.status(self.now)
        assert status.suspended == (self.looks is not None)
        if self.looks is not None:
            assert not self.session
            assert status.kind is None
            return
        assert bool(status.reachable) == self.session
        open_ones = [outage for outage in self.records.values() if not over(outage)]
        assert (status.kind is not None) == bool(open_ones) or status.state is State.READ_ONLY


TestShell = Shell.TestCase
TestShell.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
