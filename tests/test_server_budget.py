"""What the targets of one server may hold in the course of time, on simulated servers. Nothing here waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.core.budget import (
    CALM_SECONDS,
    SLOTS_LEFT_FREE,
    BudgetStatus,
    CeilingKind,
    Grant,
    Hindrance,
    Session,
    SessionTable,
    Wish,
)
from sidecar.core.server_budget import (
    INTRODUCTION_SECONDS,
    SETTLE_SECONDS,
    STALE_SECONDS,
    Circumstances,
    ServerBudget,
)
from sidecar.core.signals import ServerSignal

LOOK_SECONDS = 2.0


def total(granted: Iterable[Grant]) -> int:
    """Connections held by all together."""
    return sum(one.heartbeat + one.measuring for one in granted)


@dataclass
class Server:
    """A server with one role and database, whose sessions are what was granted, and `others`."""

    usable: int = 97
    others: int = 0
    role_limit: int | None = None
    budget: ServerBudget = field(default_factory=ServerBudget)
    sessions: dict[tuple[str, str, int], int] = field(default_factory=dict)  # (target, role, number) -> pid
    left_over: list[int] = field(default_factory=list)
    now: float = 0.0
    opened: int = 0
    _pid: int = 100

    def table(self) -> SessionTable:
        ours = [
            Session(pid=pid, name=f"connhealth/{role}", in_database=True) for (_, role, _), pid in self.sessions.items()
        ] + [Session(pid=pid, name="connhealth/probe", in_database=True) for pid in self.left_over]
        used = self.others + len(ours)
        return SessionTable(
            usable=self.usable, used=used, role="app", role_limit=self.role_limit, role_used=used, database="d",
            database_limit=None, database_used=used, sidecars=tuple(ours),
        )  # fmt: skip

    def look(self, target: str) -> None:
        self.budget.looked(target, self.table(), set(self.sessions.values()), self.now)

    def share(self, *wishes: Wish, **circumstances: Circumstances) -> dict[str, BudgetStatus]:
        """Draw grants and do as they say, at once."""
        found = self.budget.grants(wishes, self.now, at=1000 + self.now, circumstances=circumstances)
        wanted = {
            (target, role, n)
            for target, status in found.items()
            for role, count in (
                ("heartbeat", int(status.granted.heartbeat)),
                ("probe", status.granted.probes),
                ("pool", status.granted.pool),
                ("trial", status.granted.trials),
            )
            for n in range(count)
        }
        for gone in self.sessions.keys() - wanted:
            del self.sessions[gone]
        for new in sorted(wanted - self.sessions.keys()):
            self._pid += 1
            self.opened += 1
            self.sessions[new] = self._pid
        return found

    def rounds(self, seconds: float, *wishes: Wish) -> dict[str, BudgetStatus]:
        """Every target that has a heartbeat looks in its turn, every two seconds."""
        found = self.share(*wishes)
        until = self.now + seconds
        while self.now < until:
            self.now += LOOK_SECONDS
            for wish in wishes:
                if (wish.target, "heartbeat", 0) in self.sessions:
                    self.look(wish.target)
                found = self.share(*wishes)
        return found


def wish(target: str = "a", **changes: object) -> Wish:
    return Wish(target=target, **{"probes": 8, "pool": 2, "trials": 1, **changes})  # type: ignore[arg-type]


def test_nothing_but_a_heartbeat_before_the_first_look() -> None:
    server = Server()
    status = server.share(wish())["a"]
    assert (status.granted, status.hindrance) == (Grant(heartbeat=True), Hindrance.NOT_LOOKED_YET)
    assert (status.usable, status.used, status.ceiling) == (None, None, None)
    server.look("a")
    status = server.share(wish())["a"]
    assert status.granted == Grant(heartbeat=True, probes=6, pool=1)
    assert (status.hindrance, status.usable, status.used, status.others) == (None, 97, 1, 0)
    assert (status.ceiling, status.joint) == (CeilingKind.SERVER, 7)


@pytest.mark.parametrize(
    ("role_limit", "granted", "hindrance"),
    [
        (4, Grant(heartbeat=True), Hindrance.FEW_SLOTS),
        (5, Grant(heartbeat=True, pool=1), Hindrance.FEW_SLOTS),
        (6, Grant(heartbeat=True, probes=2), Hindrance.FEW_SLOTS),
        (10, Grant(heartbeat=True, probes=2), Hindrance.FEW_SLOTS),
        (50, Grant(heartbeat=True, probes=3, pool=1), None),
    ],
)
def test_the_tightest_limit_decides(role_limit: int, granted: Grant, hindrance: Hindrance | None) -> None:
    server = Server(role_limit=role_limit)
    status = server.rounds(10, wish())["a"]
    assert (status.granted, status.hindrance) == (granted, hindrance)
    assert (status.ceiling, status.usable) == (CeilingKind.ROLE, role_limit)


def test_an_application_that_takes_most_and_gives_back() -> None:
    server = Server()
    server.rounds(10, wish())
    server.others = 84
    status = server.rounds(LOOK_SECONDS, wish())["a"]
    assert (status.granted, status.hindrance, status.others) == (
        Grant(heartbeat=True, probes=2),
        Hindrance.CROWDED,
        84,
    )
    server.others, since = 92, status.since_at
    status = server.rounds(LOOK_SECONDS, wish())["a"]
    assert (status.granted, status.hindrance, status.since_at) == (Grant(heartbeat=True), Hindrance.CROWDED, since)
    server.others = 10
    status = server.rounds(CALM_SECONDS - LOOK_SECONDS, wish())["a"]
    assert (status.granted, status.hindrance) == (Grant(heartbeat=True), Hindrance.CROWDED), "a minute of calm first"
    status = server.rounds(2 * LOOK_SECONDS, wish())["a"]
    assert (status.granted.measuring, status.hindrance) == (7, None)


def test_ten_targets_of_one_server_share_what_one_would_have() -> None:
    server = Server()
    wishes = [wish(f"t{n}") for n in range(10)]
    found = server.rounds(20, *wishes)
    assert sum(status.granted.heartbeat for status in found.values()) == 9
    assert sum(status.granted.measuring for status in found.values()) == 7
    assert found["t0"].granted.probes >= 2
    assert found["t9"].hindrance is Hindrance.NO_SEAT


def test_of_ten_targets_under_a_role_s_limit_of_four_one_logs_in() -> None:
    server = Server(role_limit=4)
    wishes = [wish(f"t{n}") for n in range(10)]
    server.share(*wishes)
    assert len(server.sessions) == 1, "the first introduces itself"
    found = server.rounds(30, *wishes)
    assert len(server.sessions) == 1
    assert [target for target, status in found.items() if status.granted.heartbeat] == ["t0"]


def test_who_cannot_introduce_itself_keeps_nobody_waiting_for_long() -> None:
    server = Server()
    wishes = [wish("a"), wish("b"), wish("c")]
    assert [each.granted.heartbeat for each in server.share(*wishes).values()] == [True, False, False]
    server.budget.refused("a", ServerSignal.LOGIN_REFUSED, server.now)
    assert [each.granted.heartbeat for each in server.share(*wishes).values()] == [True, True, False]
    server.now = INTRODUCTION_SECONDS
    assert [each.granted.heartbeat for each in server.share(*wishes).values()] == [True, True, True]


def test_sessions_of_ours_that_are_new_or_just_gone_close_nothing_and_open_nothing() -> None:
    server = Server()
    server.rounds(20, wish())
    held = dict(server.sessions)
    # The table shows one session that is not known to be ours yet, as if its first answer were under way.
    unknown = server.sessions.pop(("a", "probe", 5))
    server.left_over = [unknown]
    server.now += LOOK_SECONDS
    server.look("a")
    assert server.budget.grants([wish()], server.now, at=0.0)["a"].granted.probes == 6
    server.now += SETTLE_SECONDS
    server.look("a")
    assert server.budget.grants([wish()], server.now, at=0.0)["a"].granted.probes == 5, "the server keeps a dead one"
    server.left_over = []
    server.sessions = held
    server.now += LOOK_SECONDS
    server.look("a")
    assert server.budget.grants([wish()], server.now, at=0.0)["a"].granted.probes == 6


def test_without_looks_nothing_more_is_opened_and_what_is_held_stays() -> None:
    server = Server()
    few = wish(probes=2, pool=1, trials=0)
    server.rounds(10, few)
    server.now += STALE_SECONDS + 1
    assert server.share(wish())["a"].granted == Grant(heartbeat=True, probes=2, pool=1)
    server.look("a")
    assert server.share(wish())["a"].granted.measuring == 7


@pytest.mark.parametrize("said", [ServerSignal.LOGIN_REFUSED, ServerSignal.NO_DATABASE, ServerSignal.QUEUED])
def test_a_refusal_takes_all_but_the_heartbeat_until_the_connect_path_works_again(said: ServerSignal) -> None:
    server = Server()
    wishes = [wish("a", probes=2, pool=1, trials=0), wish("b", probes=2, pool=1, trials=0)]
    server.rounds(10, *wishes)
    server.budget.refused("a", said, server.now)
    found = server.share(*wishes, a=Circumstances(refused=True))
    assert (found["a"].granted, found["a"].hindrance) == (Grant(heartbeat=True), Hindrance.REFUSED)
    assert found["b"].granted.measuring == 3, "the refusal was another's"
    server.look("a")
    server.now += 10
    assert server.share(*wishes, a=Circumstances(refused=True))["a"].granted.measuring == 0
    server.look("a")
    assert server.share(*wishes)["a"].granted.measuring == 3


def test_a_full_server_is_left_alone_by_all_for_a_minute() -> None:
    server = Server(others=30)
    wishes = [wish("a"), wish("b")]
    server.rounds(10, *wishes)
    server.budget.refused("b", ServerSignal.FULL, server.now)
    found = server.share(*wishes)
    assert {status.hindrance for status in found.values()} == {Hindrance.REFUSED}
    assert total(status.granted for status in found.values()) == 2
    refused_at = server.now
    while server.now < refused_at + CALM_SECONDS:
        assert total(status.granted for status in server.rounds(LOOK_SECONDS, *wishes).values()) == 2
    assert found["a"].usable == 97
    found = server.rounds(2 * LOOK_SECONDS, *wishes)
    assert found["a"].ceiling is CeilingKind.REFUSAL, "nobody declares it, but somebody was refused at that"
    assert found["a"].usable == 30 + 9


def test_a_role_that_may_not_log_in_is_nobody_elses_affair() -> None:
    """CONNECTION LIMIT 0 on the role of one target: refused at every attempt, and taken up when that is lifted."""
    server = Server(others=1)
    wishes = [wish("a"), wish("b")]
    server.rounds(10, *wishes)
    refused = {"a": Circumstances(refused=True)}
    for target, role, number in list(server.sessions):
        if target == "a":
            del server.sessions[target, role, number]
    server.budget.refused("a", ServerSignal.FULL, server.now)
    assert server.share(*wishes, **refused)["b"].granted == Grant(heartbeat=True), "it may have been the server"
    for pause in (2, 4, 8, 16, 32, 60):
        until = server.now + pause
        while server.now < until:
            server.now += LOOK_SECONDS
            server.look("b")
            found = server.share(*wishes, **refused)
        server.budget.refused("a", ServerSignal.FULL, server.now)
    assert found["b"].granted.measuring > 2
    assert found["b"].ceiling is CeilingKind.SERVER
    assert found["a"].granted == Grant(heartbeat=True)
    server.now += 60
    server.share(*wishes)  # it has come through
    server.look("a")
    assert server.rounds(CALM_SECONDS, *wishes)["a"].granted.measuring >= 1
    assert {status.ceiling for status in server.share(*wishes).values()} == {CeilingKind.SERVER}


def test_a_ceiling_that_shows_explains_a_refusal() -> None:
    server = Server(others=30)
    server.rounds(10, wish())
    server.role_limit = 0
    server.budget.refused("a", ServerSignal.FULL, server.now)
    server.rounds(4, wish())
    server.role_limit = None
    server.look("a")  # through a connection of a moment, for there was no seat
    found = server.rounds(2 * CALM_SECONDS, wish())
    assert (found["a"].ceiling, found["a"].granted.measuring) == (CeilingKind.SERVER, 7)


def test_what_is_no_refusal_takes_nothing() -> None:
    server = Server()
    server.rounds(10, wish())
    server.budget.refused("a", ServerSignal.STARTING, server.now)
    assert server.share(wish())["a"].granted.measuring == 7


def test_through_a_pooler_a_heartbeat_and_two_probes() -> None:
    server = Server()
    server.budget.looked("a", None, set(), 0.0)
    status = server.share(wish(), a=Circumstances(pooled=True))["a"]
    assert (status.granted, status.hindrance) == (Grant(heartbeat=True, probes=2), Hindrance.POOLER)
    status = server.share(wish(), a=Circumstances(pooled=True, refused=True))["a"]
    assert (status.granted, status.hindrance) == (Grant(heartbeat=True), Hindrance.REFUSED)


def test_where_no_table_is_shown_the_least_is_held() -> None:
    server = Server()
    server.budget.looked("a", None, set(), 0.0)
    status = server.share(wish())["a"]
    assert (status.granted, status.hindrance) == (Grant(heartbeat=True, probes=2, pool=1), Hindrance.UNSEEN)


def test_who_is_paused_holds_nothing_and_leaves_it_to_others() -> None:
    server = Server()
    wishes = [wish("a"), wish("b")]
    server.rounds(10, *wishes)
    found = server.share(*wishes, a=Circumstances(paused=True))
    assert (found["a"].granted, found["a"].hindrance) == (Grant(), Hindrance.PAUSED)
    server.look("b")
    assert server.share(*wishes, a=Circumstances(paused=True))["b"].granted.measuring == 7


def test_without_a_heartbeat_nothing_is_held() -> None:
    server = Server()
    quiet = wish(heartbeat=False)
    server.look("a")
    status = server.share(quiet)["a"]
    assert (status.granted, status.hindrance) == (Grant(), Hindrance.NO_SEAT)


@settings(max_examples=60)
@given(
    usable=st.integers(0, 200),
    role_limit=st.none() | st.integers(0, 60),
    others=st.lists(st.integers(0, 210), min_size=1, max_size=12),
    targets=st.integers(1, 4),
    dead=st.integers(0, 3),
)
def test_whatever_others_do_all_targets_together_stay_within_the_promise(
    usable: int, role_limit: int | None, others: list[int], targets: int, dead: int
) -> None:
    server = Server(usable=usable, role_limit=role_limit)
    wishes = [wish(f"t{n}") for n in range(targets)]
    server.share(*wishes)
    tightest = usable if role_limit is None else min(usable, role_limit)
    server.left_over = list(range(1, 1 + dead))
    opened_in_minute: Counter[int] = Counter()
    for count in others:
        server.others = count
        before = server.opened
        for each in wishes:
            server.now += LOOK_SECONDS / targets
            if (each.target, "heartbeat", 0) in server.sessions or not server.sessions:
                server.look(each.target)  # who holds nothing looks through a short connection
            server.share(*wishes)
        opened_in_minute[int(server.now // CALM_SECONDS)] += server.opened - before
        beating = sum(role == "heartbeat" for _, role, _ in server.sessions)
        measuring = len(server.sessions) - beating
        if measuring:
            assert count + beating + measuring <= tightest - SLOTS_LEFT_FREE
            assert 10 * (count + beating + 2) <= 9 * tightest or 10 * (count + beating + measuring) <= 9 * tightest
        if beating:
            assert count + beating <= tightest - SLOTS_LEFT_FREE
            assert beating <= max(1, tightest // 10)
        assert measuring <= 24
    # Taken again after a calm minute only: in two minutes that touch, at most twice what is held.
    assert all(number <= 2 * (24 + targets) for number in opened_in_minute.values())
    rises = server.opened
    server.rounds(CALM_SECONDS * 3, *wishes)
    settled = server.opened
    assert settled - rises <= 24 + 2 * targets
