"""How fast and how honestly the idle limit is found: the real machine in virtual time, beside the prior art.

    python -m bench.discovery [--runs N] [--seed S]

Nothing sleeps. T is the true limit; times are in units of T, from the first command on. Prints Markdown, and says of
each goal whether it was met; the exit status is 1 when one was missed.

The prior art is implemented as published, under the same rules (a death shows only on use, and at once):

- RFC 5780 section 4.6 (RFC 3489 section 10.2): one connection; the rest is doubled until it kills, then bisected.
- The smart heartbeat of Tencent Mars: one connection; five successes lengthen the interval by 60 s, three failures in
  a row end the search one step lower. Its bounds of 4.5 and 9.5 minutes are lifted, or it would not search at all.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import exp, inf, log
from unittest import mock

from sidecar.catalogue import known_limits
from sidecar.core.advice.attribution import defaults
from sidecar.core.evidence import Status
from sidecar.core.idle import ladder
from sidecar.core.idle.ladder import RESOLUTION_RATIO, SPARED_UNTIL_SECONDS
from testing.simulation import Simulation, World

SHORTEST, LONGEST, FLOOR, CAP = 20.0, 28_800.0, 5.0, 86_400.0
DEFAULTS = defaults(known_limits())
TOLERANCE = 0.015
DEADLINE = 10.0  # seconds a silent use waits for its answer
WITHIN_5 = 1.05 / 0.95
SAFETY = 0.5  # the share of the proven rest that is advised
WITHIN_RANGE = [default for default in DEFAULTS if SHORTEST <= default <= LONGEST]
LIMITS = {
    "anything": lambda chance: exp(chance.uniform(log(SHORTEST), log(LONGEST))),
    "defaults": lambda chance: chance.choice(WITHIN_RANGE) * chance.uniform(1 - TOLERANCE, 1 + TOLERANCE),
}
DEATHS = {"close": "visible", "reset": "reset on use", "silent": "silent"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of world; each seed makes one run of it."""

    limits: str = "anything"
    connections: int = 8
    death: str = "reset"
    jitter: float = 0.0
    kills: float = 0.0  # per connection and T
    share: float = 0.0  # of paths with a fifth of the limit
    factor: float = 1.0  # what the limit becomes in mid-monitoring
    step: float = 1.0  # of an even ladder that knows no defaults
    spared: float = inf  # the sentinel of that, until so much is survived


@dataclass
class Run:
    """When things were reached, in units of T (infinite = never), and what was published then."""

    reached: dict[str, float] = field(default_factory=dict)
    estimate: dict[str, float] = field(default_factory=dict)  # as a multiple of T
    proven: dict[str, float] = field(default_factory=dict)
    opened: int = 0  # until the bracket was within 2 %
    used: int = 0

    def wrong(self, stage: str) -> bool:
        return abs(self.estimate.get(stage, inf) - 1) > 0.05  # never reached is wrong, too


def measure(case: Case, seed: int, known: tuple[float, ...] = DEFAULTS) -> Run:
    """One run, until the limit is verified. `known` are the defaults that the machine knows of."""
    limit, simulation = _start(case, seed, known)
    run = Run()

    def note(simulation: Simulation) -> bool:
        status = simulation.machine.status(simulation.now)
        low, high, found = status.proven_seconds or 0.0, status.dead_by_seconds or inf, status.status
        settled = found is not Status.MEASURING
        for name, holds in (
            ("5 %", settled or (low > 0 and high <= low * WITHIN_5)),
            ("2 %", settled or (low > 0 and high <= low * RESOLUTION_RATIO)),
            (Status.CONFIRMED, found in (Status.CONFIRMED, Status.VERIFIED)),
            (Status.VERIFIED, found is Status.VERIFIED),
        ):
            if holds and name not in run.reached:
                run.reached[name] = simulation.now / limit
                run.estimate[name] = (status.estimate_seconds or inf) / limit
                run.proven[name] = low / limit
                if name == "2 %":
                    run.opened, run.used = simulation.opened, simulation.used
        return found is Status.VERIFIED

    simulation.drive(note, give_up=60 * limit + 600)
    return run


def notice(case: Case, seed: int) -> Run:
    """One run whose limit changes at some time in the monitoring: when is that noticed, when measured anew?"""
    limit, simulation = _start(case, seed)
    simulation.drive(lambda s: s.machine.status(s.now).status is Status.VERIFIED, give_up=60 * limit + 600)
    changes = simulation.now + simulation.random.uniform(0, 5) * limit
    simulation.world.limit = lambda draw, now: limit * (case.factor if now >= changes else 1)
    simulation.drive(lambda s: s.now >= changes, give_up=changes)
    run, unit = Run(), limit * case.factor

    def note(simulation: Simulation) -> bool:
        status = simulation.machine.status(simulation.now)
        if status.suspect or status.regime > 1:
            run.reached.setdefault("noticed", (simulation.now - changes) / limit)
        if status.regime > 1 and status.status is not Status.MEASURING:
            run.reached.setdefault("2 %", (simulation.now - changes) / limit)
            run.estimate["2 %"] = (status.estimate_seconds or inf) / unit
        return "2 %" in run.reached

    simulation.drive(note, give_up=changes + 60 * max(limit, unit))
    return run


def _start(case: Case, seed: int, known: tuple[float, ...] = DEFAULTS) -> tuple[float, Simulation]:
    chance = random.Random(seed)
    limit = LIMITS[case.limits](chance)
    if case.share:
        limit = max(limit, 10 * FLOOR)  # or the shorter one lies below the shortest rest
    world = World(
        limit=lambda draw, now: limit / 5 if draw < case.share else limit,
        death=case.death,
        seed=seed,
        jitter=case.jitter,
        kill_rate=case.kills / limit,
        deadline=DEADLINE,
        floor=FLOOR,
        cap=CAP,
        connections=case.connections,
        defaults=known,
    )
    return limit, world.start()


def even(case: Case, seed: int) -> Run:
    """The machine with an even ladder that knows no defaults: what they and the sentinel cost."""
    with (
        mock.patch.object(ladder, "_WIDEST_STEP_RATIOS", ((2, case.step),)),
        mock.patch.object(ladder, "_RUNGS_BETWEEN_SECONDS", {}),
        mock.patch.object(ladder, "SPARED_UNTIL_SECONDS", case.spared),
    ):
        return measure(case, seed, known=())


def infinite(case: Case, seed: int) -> Run:
    """A path without limit: how long until that is said (in units of the cap)."""
    world = World(limit=lambda draw, now: inf, seed=seed, connections=case.connections, cap=CAP, defaults=DEFAULTS)
    run = Run()

    def note(simulation: Simulation) -> bool:
        status = simulation.machine.status(simulation.now)
        if status.exhausted:
            run.reached.setdefault("2 %", simulation.now / CAP)
        return status.status is Status.VERIFIED

    simulation = world.run(note, give_up=10 * CAP)
    run.reached[Status.VERIFIED] = simulation.now / CAP
    return run


# -- limits on age ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Ageing:
    """A path that ends connections at an age A however busy they are; `rest` is its limit on rest, in A."""

    rest: float = inf
    death: str = "reset"
    connections: int = 8
    beats: float = 1.0  # seconds between two of the heartbeat's session; 0 = without one


def grow_old(case: Ageing, seed: int) -> Run:
    """One run, until the limit on age is known and the one on rest verified. Times in units of A."""
    age = max(LIMITS["anything"](random.Random(seed)), SHORTEST / min(case.rest, 1))
    rest = case.rest * age
    world = World(
        limit=lambda draw, now: rest,
        lifetime=lambda draw, now: age,
        beats=case.beats,
        death=case.death,
        seed=seed,
        deadline=DEADLINE if case.death == "silent" else 0.0,
        floor=FLOOR,
        cap=CAP,
        connections=case.connections,
        defaults=DEFAULTS,
    )
    run = Run()

    def note(simulation: Simulation) -> bool:
        status = simulation.machine.status(simulation.now)
        for name, holds in (
            ("suspected", status.suspected_age_seconds is not None or status.lifetime is not None),
            ("known", status.lifetime is not None),
            ("rests", status.status is not Status.MEASURING),
            (Status.VERIFIED, status.status is Status.VERIFIED),
        ):
            if holds:
                run.reached.setdefault(name, simulation.now / age)
        return "known" in run.reached and Status.VERIFIED in run.reached

    status = world.run(note, give_up=60 * age + 600).machine.status(0.0)
    if status.lifetime is not None:
        run.estimate["known"] = (status.lifetime.estimate_seconds or inf) / age
        run.proven["known"] = status.lifetime.proven_seconds / age
    run.proven["rests"] = (status.proven_seconds or 0.0) / min(rest, age)
    shown = status.estimate_seconds
    if rest < age:
        run.estimate["rests"] = (shown or inf) / rest
    else:  # age ends all before: there is nothing to show
        run.estimate["rests"] = 1.0 if shown is None else inf
    return run


def die_of_nothing(case: Case, seed: int) -> Run:
    """One run of 50 T without a limit on age, in which connections are killed: for which share of it was one told?"""
    limit, simulation = _start(case, seed)
    told = 0
    for times in range(1, 51):
        simulation.drive(lambda s, until=times * limit: s.now >= until, give_up=times * limit)
        told += simulation.machine.status(simulation.now).lifetime is not None
    return Run(estimate={"told": told / 50})


# -- prior art --------------------------------------------------------------------------------------------------------


def doubling_bisection(case: Case, seed: int) -> Run:
    """RFC 5780 section 4.6."""
    limit = LIMITS[case.limits](random.Random(seed))
    run, now, low, high = Run(opened=1), 0.0, 0.0, inf
    while not (low > 0 and high <= low * RESOLUTION_RATIO):
        rest = (low + high) / 2 if high < inf else 2 * low or FLOOR
        now += rest
        run.used += 1
        if rest < limit:
            low = rest
        else:
            high = rest
            run.opened += 1
        if low > 0 and high <= low * WITHIN_5:
            run.reached.setdefault("5 %", now / limit)
    run.reached["2 %"] = now / limit
    run.estimate["2 %"] = (low + high) / 2 / limit
    return run


def mars_heartbeat(case: Case, seed: int, *, step: float = 60.0, successes: int = 5, failures: int = 3) -> Run:
    """The heartbeat of Tencent Mars. What it settles at is its estimate."""
    limit = LIMITS[case.limits](random.Random(seed))
    run, now, rest = Run(opened=1), 0.0, step
    while rest < limit:
        now += successes * rest
        run.used += successes
        rest += step
    now += failures * rest
    run.used += failures
    run.opened += failures
    run.reached["settled"] = now / limit
    run.estimate["settled"] = (rest - step) / limit
    return run


# -- the report -------------------------------------------------------------------------------------------------------


class Bench:
    """Runs cases on all processors and remembers the goals."""

    def __init__(self, runs: int, seed: int, pool: multiprocessing.pool.Pool) -> None:
        self.runs, self.seed, self._pool = runs, seed, pool
        self.goals: list[tuple[str, str, bool]] = []

    def of(self, how: Callable[[Case, int], Run], case: Case, runs: int | None = None) -> list[Run]:
        seeds = range(self.seed, self.seed + (runs or self.runs))
        return self._pool.starmap(how, [(case, seed) for seed in seeds], chunksize=20)

    def goal(self, what: str, seen: str, met: bool) -> None:
        self.goals.append((what, seen, met))


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Median and 95th percentile."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def times(runs: list[Run], name: str) -> tuple[float, float]:
    return spread(run.reached.get(name, inf) for run in runs)


def cell(pair: tuple[float, float]) -> str:
    return " / ".join("never" if value == inf else f"{value:.2f}" for value in pair)


def share(hits: int, runs: list[Run]) -> str:
    return f"{100 * hits / len(runs):.2f} %"


def search(bench: Bench) -> None:
    print("## How long it takes\n")
    print("Median / 95th percentile, in units of the true limit T. Connections and probes: mean, until ±2 %.\n")
    print("| strategy | K | limits | death | ±5 % | ±2 % | confirmed | verified | opened | probes |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for limits in LIMITS:
        runs = bench.of(doubling_bisection, Case(limits=limits))
        print(_row("RFC 5780 doubling, bisection", 1, limits, "reset on use", runs))
        runs = bench.of(mars_heartbeat, Case(limits=limits))
        low, high = (sorted(run.estimate["settled"] for run in runs)[int(q * len(runs))] for q in (0.05, 0.95))
        print(
            f"| Mars heartbeat | 1 | {limits} | reset on use | settles {cell(times(runs, 'settled'))}"
            f" at {low:.2f} … {high:.2f} T | | | | {_mean(runs, 'opened')} | {_mean(runs, 'used')} |"
        )
    for limits in LIMITS:
        for death, told in DEATHS.items():
            for connections in (2, 4, 8, 16):
                runs = bench.of(measure, Case(limits=limits, connections=connections, death=death))
                print(_row("this machine", connections, limits, told, runs))
                if connections == 8:
                    _search_goals(bench, limits, death, runs)


def _search_goals(bench: Bench, limits: str, death: str, runs: list[Run]) -> None:
    goals = {
        ("anything", "reset"): (1.45, 1.65),
        ("defaults", "reset"): (1.12, 1.25),
        ("anything", "close"): (1.00, inf),
        ("defaults", "close"): (1.00, inf),
    }
    if (limits, death) in goals:
        median, tail = times(runs, "2 %")
        wanted = goals[limits, death]
        bench.goal(
            f"K = 8, {limits}, {DEATHS[death]}: ±2 % at {cell(wanted) if wanted[1] < inf else '1.00'}",
            cell((median, tail)),
            round(median, 2) <= wanted[0] and round(tail, 2) <= wanted[1],
        )


def _row(strategy: str, connections: int, limits: str, death: str, runs: list[Run]) -> str:
    confirmed, verified = ("" if name not in runs[0].reached else cell(times(runs, name)) for name in
                           (Status.CONFIRMED, Status.VERIFIED))  # fmt: skip
    return (
        f"| {strategy} | {connections} | {limits} | {death} | {cell(times(runs, '5 %'))} | {cell(times(runs, '2 %'))}"
        f" | {confirmed} | {verified} | {_mean(runs, 'opened')} | {_mean(runs, 'used')} |"
    )


def _mean(runs: list[Run], name: str) -> str:
    return f"{statistics.mean(getattr(run, name) for run in runs):.0f}"


def prices(bench: Bench) -> None:
    print("\n## What the defaults and the sentinel cost\n")
    print(
        "K = 8, any limit, ±2 %: a ladder of even steps that knows no defaults, its sentinel spared until so much is"
        " survived.\n"
    )
    spared = {"never": 0.0, f"{SPARED_UNTIL_SECONDS:.0f} s": SPARED_UNTIL_SECONDS, "all along": inf}
    print("| widest step | deaths | " + " | ".join(f"spared {until}" for until in spared) + " |")
    print("| --- | --- | --- | --- | --- |")
    for step, death in (*((step, "reset") for step in (1.23, 1.27, 1.31, 1.35, 1.40)), (1.31, "close")):
        cells = (
            cell(times(bench.of(even, Case(step=step, death=death, spared=until)), "2 %")) for until in spared.values()
        )
        print(f"| {step:.2f} | {DEATHS[death]} | {' | '.join(cells)} |")


def honesty(bench: Bench) -> None:
    print("\n## How often it is wrong\n")
    print("K = 8, deaths reset on use. Wrong: the estimate is more than 5 % off.\n")
    print("| world | ±2 % | confirmed | wrong then | verified | wrong then |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, case in (
        ("each rest's limit scatters by 1 %", Case(jitter=0.01)),
        ("1 % of connections killed in each T", Case(kills=0.01)),
        ("3 % of connections killed in each T", Case(kills=0.03)),
    ):
        runs = bench.of(measure, case, 5 * bench.runs)
        wrong = {stage: sum(run.wrong(stage) for run in runs) for stage in (Status.CONFIRMED, Status.VERIFIED)}
        cells = [f"{cell(times(runs, stage))} | {share(wrong[stage], runs)}" for stage in wrong]
        print(f"| {name} | {cell(times(runs, '2 %'))} | {' | '.join(cells)} |")
        for stage, hits in wrong.items():
            bench.goal(f"{name}: wrong at `{stage}` in at most 0.1 %", share(hits, runs), hits <= len(runs) / 1000)

    print("\n## Two populations\n")
    print(
        "K = 8. Some paths have the limit T, the others T/5. Unsafe: half of what is proven, the advice, kills there.\n"
    )
    print("| share of the shorter | verified | unsafe then |")
    print("| --- | --- | --- |")
    for part in (0.5, 0.3, 0.1):
        runs = bench.of(measure, Case(share=part))
        unsafe = sum(SAFETY * run.proven.get(Status.VERIFIED, 0.0) > 0.2 for run in runs)
        print(f"| {part:.0%} | {cell(times(runs, Status.VERIFIED))} | {share(unsafe, runs)} |")
        if part == 0.5:
            bench.goal(
                "two populations, half and half: unsafe in at most 1 %", share(unsafe, runs), unsafe <= len(runs) / 100
            )
    print("\nA tenth of all paths escapes any volley this small: 0 deaths of n bound the share only by about 3/n.")


def changes(bench: Bench) -> None:
    print("\n## When the limit changes\n")
    print("K = 8, in mid-monitoring; in units of the old limit.\n")
    print("| the limit becomes | noticed | measured anew to ±2 % |")
    print("| --- | --- | --- |")
    for factor, told in ((0.5, "half"), (2.0, "double")):
        runs = bench.of(notice, Case(factor=factor), max(20, bench.runs // 2))
        print(f"| {told} | {cell(times(runs, 'noticed'))} | {cell(times(runs, '2 %'))} |")
    runs = bench.of(infinite, Case(), 10)
    print(f"\nNo limit at all: said at {cell(times(runs, '2 %'))} of the cap, verified at"
          f" {cell(times(runs, Status.VERIFIED))}.")  # fmt: skip


def ages(bench: Bench) -> None:
    print("\n## Limits on age\n")
    print(
        "K = 8 and the heartbeat's session; times in units of the age A at which connections die. Rests are settled"
        " when their limit is known to ±2 %, or that none shows before age ends all. Wrong: more than 5 % off, or a"
        " limit on rest shown where there is none, or the other way round.\n"
    )
    print("| path | death | suspected | known | off by | wrong | rests settled | verified | wrong |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for told, case in (
        ("no limit on rest", Ageing()),
        ("no limit on rest", Ageing(death="close")),
        ("no limit on rest", Ageing(death="silent")),
        ("no limit on rest, no session", Ageing(beats=0.0)),
        ("no limit on rest, K = 2", Ageing(connections=2)),
        ("rests limited to A/3", Ageing(rest=1 / 3)),
        ("rests limited to 0.9 A", Ageing(rest=0.9)),
        ("rests limited to 2 A", Ageing(rest=2.0)),
    ):
        runs = bench.of(grow_old, case, max(20, bench.runs // 2))
        off = spread(100 * abs(run.estimate.get("known", inf) - 1) for run in runs)
        wrong = {name: sum(run.wrong(name) for run in runs) for name in ("known", "rests")}
        print(
            f"| {told} | {DEATHS[case.death]} | {cell(times(runs, 'suspected'))} | {cell(times(runs, 'known'))}"
            f" | {cell(off)} % | {share(wrong['known'], runs)} | {cell(times(runs, 'rests'))}"
            f" | {cell(times(runs, Status.VERIFIED))} | {share(wrong['rests'], runs)} |"
        )
        beyond = sum(max(run.proven.values()) > 1 + 1e-9 for run in runs)
        what = f"{told}, {DEATHS[case.death]}: nothing proven beyond the limits"
        bench.goal(what, share(beyond, runs), beyond == 0)
    print()
    for kills in (0.01, 0.03):
        runs = bench.of(die_of_nothing, Case(kills=kills), max(20, bench.runs // 2))
        ever = sum(run.estimate["told"] > 0 for run in runs)
        mean = statistics.mean(run.estimate["told"] for run in runs)
        print(
            f"No limit on age, and {kills:.0%} of connections killed in each T, for 50 T: told in {share(ever, runs)}"
            f" of the runs, {100 * mean:.1f} % of the time.\n"
        )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=400, help="per row (default 400; five times as many for errors)")
    options.add_argument("--seed", type=int, default=0, help="of the first run (default 0)")
    chosen = options.parse_args()
    started = time.monotonic()
    with multiprocessing.Pool(os.cpu_count()) as pool:
        bench = Bench(chosen.runs, chosen.seed, pool)
        for part in (search, prices, honesty, changes, ages):
            part(bench)
            sys.stdout.flush()
    print("\n## Goals\n\n| goal | seen | |\n| --- | --- | --- |")
    for what, seen, met in bench.goals:
        print(f"| {what} | {seen} | {'met' if met else '**missed**'} |")
    print(f"\n{chosen.runs} runs a row, seeds from {chosen.seed}, {time.monotonic() - started:.0f} s.")
    return 0 if all(met for _, _, met in bench.goals) else 1


if __name__ == "__main__":
    sys.exit(main())
