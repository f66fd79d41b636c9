"""What may be held on a server: the promises, for any table and any limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.budget import (
    CALM_SECONDS,
    ELSE_AT_MOST,
    LOOKS,
    REDUCED,
    REFUSAL_REMEMBERED_SECONDS,
    SLOTS_LEFT_FREE,
    Allowance,
    Ceiling,
    CeilingKind,
    CeilingWatch,
    ConnectionRole,
    Grant,
    RefusedCeiling,
    Room,
    Session,
    SessionTable,
    Wish,
    allowance,
    ceilings,
    claims,
    full_share,
    grants,
    heartbeat_budget,
    within_cap,
)

SERVER = (CeilingKind.SERVER, "")


def server(usable: int, used: int, **counts: int) -> Ceiling:
    return Ceiling(kind=CeilingKind.SERVER, name="", usable=usable, used=used, **counts)


@st.composite
def any_ceiling(draw: st.DrawFn) -> Ceiling:
    usable = draw(st.integers(0, 600))
    ours, ours_beating = draw(st.integers(0, 30)), draw(st.integers(0, 10))
    measuring, heartbeats = ours + draw(st.integers(0, 40)), ours_beating + draw(st.integers(0, 60))
    others = draw(st.integers(0, 700))
    return server(
        usable,
        others + measuring + heartbeats,
        measuring=measuring,
        heartbeats=heartbeats,
        ours=ours,
        our_heartbeats=ours_beating,
    )


@pytest.mark.parametrize(
    ("usable", "heartbeats", "full"),
    [
        (1, 1, 2),
        (10, 1, 2),
        (25, 2, 2),
        (49, 4, 3),
        (50, 5, 4),
        (97, 9, 7),
        (297, 29, 23),
        (497, 49, 24),
        (5000, 500, 24),
    ],
)
def test_budgets_are_shares_of_what_is_usable_within_their_bounds(usable: int, heartbeats: int, full: int) -> None:
    assert (heartbeat_budget(usable), full_share(usable)) == (heartbeats, full)


def test_alone_on_a_server_of_a_hundred_a_sidecar_holds_a_heartbeat_and_seven() -> None:
    assert allowance(server(97, 1, heartbeats=1)) == Allowance(heartbeats=9, measuring=7)


@pytest.mark.parametrize(
    ("others", "measuring", "heartbeats"),
    [(69, 7, 9), (70, 2, 9), (84, 2, 9), (85, 0, 9), (86, 0, 9), (87, 0, 1), (94, 0, 1), (95, 0, 0), (97, 0, 0)],
)
def test_the_fuller_the_server_the_less_is_held(others: int, measuring: int, heartbeats: int) -> None:
    assert allowance(server(97, others + 1, heartbeats=1)) == Allowance(heartbeats=heartbeats, measuring=measuring)


@given(any_ceiling())
def test_rules_that_collide_win_in_their_order(ceiling: Ceiling) -> None:
    allowed = allowance(ceiling)
    standing = min(max(ceiling.heartbeats, 1), allowed.heartbeats)
    # 1. the free slots
    if allowed.heartbeats or allowed.measuring:
        assert ceiling.others + standing + allowed.measuring <= ceiling.usable - SLOTS_LEFT_FREE
    if allowed.measuring:
        assert ceiling.others + standing + allowed.measuring + LOOKS <= ceiling.usable - SLOTS_LEFT_FREE
    # 2. the thresholds
    if allowed.measuring > REDUCED:
        assert 5 * (ceiling.base + full_share(ceiling.usable)) <= 4 * ceiling.usable
    if allowed.measuring:
        assert 10 * (ceiling.base + min(REDUCED, full_share(ceiling.usable))) <= 9 * ceiling.usable
    if 10 * ceiling.base > 9 * ceiling.usable:
        assert allowed.heartbeats <= 1
    # 3. the budgets, where "at least" is no more than a floor of them
    assert allowed.heartbeats <= heartbeat_budget(ceiling.usable)
    assert allowed.measuring <= full_share(ceiling.usable) <= ELSE_AT_MOST


@given(any_ceiling())
def test_nothing_is_withheld_without_a_rule(ceiling: Ceiling) -> None:
    allowed = allowance(ceiling)
    room = ceiling.usable - SLOTS_LEFT_FREE - ceiling.others
    if 10 * ceiling.base <= 9 * ceiling.usable:
        assert allowed.heartbeats == max(0, min(heartbeat_budget(ceiling.usable), room))
    if 5 * (ceiling.base + full_share(ceiling.usable)) <= 4 * ceiling.usable:
        standing = min(max(1, ceiling.heartbeats), allowed.heartbeats)
        assert allowed.measuring == max(0, min(full_share(ceiling.usable), room - standing - LOOKS))


def test_what_must_be_given_back_is_given_back_at_once_and_taken_again_after_a_calm_minute() -> None:
    watch = CeilingWatch()
    assert watch.observe(server(97, 20), 0.0).measuring == 7
    assert watch.observe(server(97, 80), 2.0).measuring == 2
    assert watch.observe(server(97, 90), 4.0).measuring == 0
    for now in range(6, 64, 2):
        assert watch.observe(server(97, 20), float(now)).measuring == 0
    assert watch.observe(server(97, 20), 6.0 + CALM_SECONDS).measuring == 7


def test_a_threshold_is_crossed_back_only_with_a_margin() -> None:
    watch = CeilingWatch()
    assert watch.observe(server(100, 75), 0.0).measuring == 2
    for now in range(2, 300, 2):
        assert watch.observe(server(100, 70), float(now)).measuring == 2  # 70 + 8 is below 80, but not below 75
    for now in range(300, 360, 2):
        assert watch.observe(server(100, 67), float(now)).measuring == 2
    assert watch.observe(server(100, 67), 360.0).measuring == 8


@given(st.lists(st.integers(0, 110), min_size=2, max_size=120), st.floats(0.5, 10))
def test_an_application_that_breathes_makes_nobody_open_more_than_once_a_minute(
    others: list[int], every: float
) -> None:
    watch, before, rises = CeilingWatch(), 0, []
    for n, count in enumerate(others):
        allowed = watch.observe(server(97, count), n * every).measuring
        assert allowed <= allowance(server(97, count)).measuring  # never more than at this moment
        if n and allowed > before:
            rises.append(n * every)
        before = allowed
    assert all(later >= CALM_SECONDS for later in rises)
    # Between two rises lies a fall, and after that a calm minute.
    assert len(rises) <= 1 + len(others) * every / CALM_SECONDS


def test_a_refusal_takes_everything_but_heartbeats_for_a_minute() -> None:
    watch = CeilingWatch()
    watch.observe(server(97, 20), 0.0)
    watch.refused(10.0)
    assert watch.observe(server(97, 20), 11.0) == Allowance(heartbeats=9, measuring=0)
    assert watch.observe(server(97, 20), 10.0 + CALM_SECONDS).measuring == 0  # until then nobody had looked
    assert watch.observe(server(97, 20), 11.0 + CALM_SECONDS).measuring == 7


def test_what_a_refusal_showed_is_a_ceiling_until_it_is_refuted_or_old() -> None:
    refused = RefusedCeiling()
    assert refused.over(server(97, 30), 0.0) is None
    refused.shown(40, 0.0)
    ceiling = refused.over(server(97, 38, measuring=5, ours=5), 1.0)
    assert ceiling == Ceiling(kind=CeilingKind.REFUSAL, name="", usable=40, used=38, measuring=5, ours=5)
    refuted = refused.over(server(97, 45), 2.0)
    assert refuted is not None
    assert refuted.usable == 45
    assert refused.over(server(97, 38), REFUSAL_REMEMBERED_SECONDS) is None
    refused.shown(97, 1000.0)
    assert refused.over(server(97, 90), 1001.0) is None  # the server's own says as much


SIZES = [(5, 1, 1), (5, 5, 1), (2, 1, 1), (3, 4, 2), (3, 8, 8)]


@pytest.mark.parametrize(("allowed", "of_each", "sidecars"), SIZES)
def test_where_all_hold_too_much_each_closes_its_share_of_the_excess_and_no_more(
    allowed: int, of_each: int, sidecars: int
) -> None:
    """Everybody sees the same table: what they keep adds up to what is allowed, or to all there is."""
    pids = {sidecar: range(sidecar, sidecars * of_each, sidecars) for sidecar in range(sidecars)}
    table = SessionTable(
        usable=97, used=40, role="r", role_limit=None, role_used=40, database="d", database_limit=None,
        database_used=40,
        sidecars=tuple(
            Session(pid=pid, name="connhealth/probe", in_database=True) for pid in range(sidecars * of_each)
        ),
    )  # fmt: skip
    rooms = [Room.of(Allowance(heartbeats=0, measuring=allowed), ceilings(table, pids[n])[0]) for n in range(sidecars)]
    if sidecars * of_each >= allowed:
        assert sum(min(room.measuring, of_each) for room in rooms) == allowed
    else:
        assert all(room.measuring >= of_each for room in rooms)


def test_a_sidecar_s_name_is_believed_of_our_own_role_only_or_of_our_own_pid() -> None:
    table = SessionTable(
        usable=97, used=4, role="r", role_limit=10, role_used=2, database="d", database_limit=None, database_used=4,
        sidecars=(
            Session(pid=1, name="connhealth/heartbeat", in_database=True),
            Session(pid=2, name="connhealth/probe", in_database=True),
            Session(pid=3, name="connhealth/heartbeat", in_database=True, own_role=False),  # of another target of ours
            Session(pid=4, name="connhealth/probe", in_database=True, own_role=False),  # of a stranger
        ),
    )  # fmt: skip
    on_server, of_role = ceilings(table, {1, 3})
    assert (on_server.heartbeats, on_server.our_heartbeats, on_server.measuring, on_server.others) == (2, 2, 1, 1)
    assert (of_role.heartbeats, of_role.our_heartbeats, of_role.measuring, of_role.others) == (1, 1, 1, 0)


def test_what_others_and_the_dead_hold_is_not_there_for_us() -> None:
    ceiling = server(97, 30, measuring=6, ours=4, heartbeats=3, our_heartbeats=1)
    assert Room.of(Allowance(heartbeats=9, measuring=7), ceiling) == Room(heartbeats=7, measuring=5)


# -- who gets what ----------------------------------------------------------------------------------------------------


def granted(
    wishes: list[Wish],
    rooms: dict[object, Room],
    *,
    above: dict[str, tuple[object, ...]] | None = None,
    turn: int = 0,
    going_round: int = 0,
) -> dict[tuple[str, ConnectionRole], int]:
    above = above or {wish.target: (SERVER,) for wish in wishes}
    return grants(claims(wishes, turn=turn, going_round=going_round), above, rooms)  # type: ignore[arg-type]


def wish(target: str = "a", **changes: object) -> Wish:
    return replace(Wish(target=target, probes=8, pool=2, trials=0), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("measuring", "probes", "pool"),
    [(7, 6, 1), (4, 3, 1), (3, 2, 1), (2, 2, 0), (1, 0, 1), (0, 0, 0), (20, 8, 2)],
)
def test_a_search_comes_before_a_second_connection_of_the_pool(measuring: int, probes: int, pool: int) -> None:
    found = granted([wish()], {SERVER: Room(heartbeats=1, measuring=measuring)})
    assert found.get(("a", ConnectionRole.HEARTBEAT)) == 1
    assert (found.get(("a", ConnectionRole.PROBE), 0), found.get(("a", ConnectionRole.POOL), 0)) == (probes, pool)


def test_the_heartbeat_is_the_last_to_go() -> None:
    assert granted([wish()], {SERVER: Room(heartbeats=1, measuring=0)}) == {("a", ConnectionRole.HEARTBEAT): 1}
    assert granted([wish()], {SERVER: Room(heartbeats=0, measuring=0)}) == {}


def test_once_verified_the_lowest_rank_needs_two_and_the_next_searches() -> None:
    wishes = [wish("a", searching=False, probes=4, trials=1), wish("b")]
    found = granted(wishes, {SERVER: Room(heartbeats=9, measuring=7)}, turn=1, going_round=1)
    assert found["a", ConnectionRole.PROBE] == 2
    assert found["b", ConnectionRole.PROBE] == 4
    assert found["b", ConnectionRole.POOL] == 1


def test_of_ten_targets_one_searches_one_has_its_turn_and_nine_have_heartbeats() -> None:
    wishes = [wish(f"t{n}") for n in range(10)]
    found = granted(wishes, {SERVER: Room(heartbeats=9, measuring=7)}, turn=4, going_round=1)
    assert found["t4", ConnectionRole.POOL] == 1
    assert found["t0", ConnectionRole.PROBE] == 5
    assert sum(count for (_, holding), count in found.items() if holding is ConnectionRole.HEARTBEAT) == 9
    assert sum(count for (_, holding), count in found.items() if holding is not ConnectionRole.HEARTBEAT) == 7


@given(st.lists(st.builds(Grant, heartbeat=st.booleans(), probes=st.integers(0, 8), pool=st.integers(0, 3))), st.data())
def test_a_cap_by_hand_counts_heartbeats_and_a_look_and_takes_them_last(
    found: list[Grant], data: st.DataObject
) -> None:
    cap = data.draw(st.integers(2, 40))
    before = {str(n): one for n, one in enumerate(found)}
    capped = within_cap(before, cap)
    held = sum(one.heartbeat + one.measuring for one in capped.values())
    assert held == 0 or held + LOOKS <= cap
    for target, one in capped.items():
        assert one.heartbeat <= before[target].heartbeat
        assert one.probes <= before[target].probes
        assert one.pool <= before[target].pool
    if any(one.measuring for one in capped.values()):
        assert all(capped[target].heartbeat == one.heartbeat for target, one in before.items())
    wanted = sum(one.heartbeat + one.measuring for one in found)
    if wanted + LOOKS <= cap and not any(one.probes == 1 for one in found):
        assert capped == before


@given(st.data())
def test_no_grant_exceeds_a_wish_or_any_ceiling(data: st.DataObject) -> None:
    keys = [(kind, name) for kind in CeilingKind for name in "xy"]
    rooms: dict[object, Room] = {
        key: Room(heartbeats=data.draw(st.integers(0, 5)), measuring=data.draw(st.integers(0, 24))) for key in keys
    }
    wishes = [
        Wish(
            target=str(n),
            heartbeat=data.draw(st.booleans()),
            searching=data.draw(st.booleans()),
            probes=data.draw(st.integers(0, 16)),
            pool=data.draw(st.integers(0, 4)),
            trials=data.draw(st.integers(0, 4)),
        )
        for n in range(data.draw(st.integers(0, 6)))
    ]
    above: dict[str, tuple[object, ...]] = {
        each.target: tuple(data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=4, unique=True)))
        for each in wishes
    }
    turn, going_round = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 4))
    found = granted(wishes, rooms, above=above, turn=turn, going_round=going_round)
    for each in wishes:
        wanted = {ConnectionRole.PROBE: each.probes, ConnectionRole.POOL: each.pool, ConnectionRole.TRIAL: each.trials}
        for holding, count in wanted.items():
            assert 0 <= found.get((each.target, holding), 0) <= count
        assert found.get((each.target, ConnectionRole.HEARTBEAT), 0) <= each.heartbeat
        assert found.get((each.target, ConnectionRole.PROBE), 0) != 1 or each.probes == 1
    for key, room in rooms.items():
        below = [each.target for each in wishes if key in above[each.target]]
        held = [(holding, count) for (target, holding), count in found.items() if target in below]
        assert sum(count for holding, count in held if holding is ConnectionRole.HEARTBEAT) <= room.heartbeats
        assert sum(count for holding, count in held if holding is not ConnectionRole.HEARTBEAT) <= room.measuring
    for each in wishes:  # nobody is left out while there is room for the least that is of use
        spare = min(rooms[key].measuring for key in above[each.target])
        if len(wishes) == 1 and each.probes >= 2 and spare >= 2:
            assert found[each.target, ConnectionRole.PROBE] >= 2
