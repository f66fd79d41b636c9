"""That a sidecar harms nobody, counted by a stranger. `make bench-harmless`; about forty minutes, in part as root.

The scenarios of `testing.harmless`, as long as they are promised for: limits of roles, of a database and of a small
server, ten targets on one, an application that takes nearly everything and gives it back, poolers, refused logins for
two minutes, a pause, a minute of shutdown, and a path that loses connections silently for five minutes, at the end of
which path and sidecar die and what is left on the server has to go by itself. What is promised, and what a superuser's
session and the server's log have counted, is printed as a table; the exit status is 1 when a promise was broken.

`--only cost` counts what a sidecar costs in connections, queries and log lines, and prints `docs/cost.md`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from testing import harmless
from testing.harmless import Cost, Finding
from testing.lab import LabUnavailable

Scenario = Callable[[float], Sequence[Finding]]

# Each takes the factor by which to shorten it.
SCENARIOS: dict[str, Scenario] = {
    "limits": lambda short: harmless.limits(settled=30 * short, full=60 * short, after=20 * short),
    "reserved": lambda short: harmless.reserved(settled=30 * short, full=60 * short, after=20 * short),
    "targets": lambda short: harmless.many_targets(settled=30.0, seconds=120 * short),
    "greedy": lambda short: harmless.greedy(
        rounds=max(1, int(12 * short)), held=10.0, pause=10.0, again=150.0 if short > 0.5 else None
    ),
    "session-pooler": lambda short: harmless.session_pooler(settled=max(9, 30 * short), queue=30.0),
    "transaction-pooler": lambda short: harmless.transaction_pooler(settled=max(9, 60 * short)),
    "refusals": lambda short: harmless.refusals(seconds=120 * short, mended=75.0),
    "pause": lambda short: harmless.pause(seconds=max(6, 30 * short)),
    "restart": lambda short: harmless.restart(seconds=60 * short),
    "own-limits": lambda short: harmless.own_limits(),  # at the beginning, while rests are short
    "silent": lambda short: harmless.silent_path("drop", seconds=300 * short),
    "reset": lambda short: harmless.silent_path("reset", seconds=300 * short, orphans=False),
}


COST_PAGE = """\
# What a sidecar costs

Counted by a superuser's session and in the server's own log, not by the sidecar: one target with default settings on
PostgreSQL 18, over {minutes:.3g} minutes of each state, on a path without a limit, where no rest ends.
`python -m bench.harmless --only cost` counts again and writes this page.

{table}

- **The first minutes** begin with the start of the sidecar. **At rest** follows on them, and is how it stays.
- **In an outage** the server answers each attempt with 57P03. Where nobody answers, attempts are as many, and the
  server logs nothing.
- **While its logins are refused** (a password that changed, NOLOGIN, a database that was dropped, no slot left), each
  attempt waits longer than the one before, up to a minute, and after ten minutes up to five.
- Connections are the most at one moment; one of them may be a fresh one that is tried and closed at once.
- `log_connections` and `log_disconnections` write up to four lines for each new connection: received, authenticated,
  authorized, and its end. `log_statement = all` and pgaudit with `pgaudit.log = all` write one for each query (pgaudit
  was not run: it writes what is executed, and that is every query).
- On a path with an idle limit, each rest that ends is one more new connection while the limit is searched for; and the
  pool replaces its connections at the age advised.

What changes it:

| | key |
| --- | --- |
| connections | `idle.connections` and `pool.size` are wishes: held is what the server has room for. \
`fleet.max_connections` is a cap by hand; `heartbeat.enabled: false` holds none for the availability |
| new connections | `heartbeat.door_every`: how often a fresh connection is tried; `pool.recycle`: at which age the \
pool replaces one; `heartbeat.reconnect_every`: how often in an outage |
| queries | `heartbeat.every`: how often the session is asked for a sign of life. The table of sessions is looked at \
every two seconds whatever is set, because so long an application may have to wait for what a sidecar holds; without a \
heartbeat once a minute |
| all of it | `idle.enabled: false` measures no idle limit; `sidecar pause` gives everything back for a while |
"""


def run(name: str, scenario: Scenario, short: float) -> bool:
    """Print its rows; whether all was kept."""
    began = time.monotonic()
    try:
        findings = scenario(short)
    except LabUnavailable as reason:
        print(f"| **{name}** | | skipped: {reason} | |", flush=True)
        return True
    print(f"| **{name}** | | {time.monotonic() - began:.0f} s | |")
    for finding in findings:
        print(
            f"| {finding.promise} | {finding.promised} | {finding.counted} | {'' if finding.kept else '**BROKEN**'} |"
        )
    sys.stdout.flush()
    return all(finding.kept for finding in findings)


def cost_table(costs: Sequence[Cost]) -> str:
    """As it stands in `docs/cost.md`."""
    head = (
        "| | connections | new connections a minute | queries a minute | log lines a minute: `log_connections`,"
        " `log_disconnections` | `log_statement = all` | pgaudit, `pgaudit.log = all` |"
    )
    rows = [
        f"| {each.state} | {each.connections} | {_round(each.logins)} | {_round(each.queries)}"
        f" | {_round(each.login_lines)} | {_round(each.queries)} | {_round(each.queries)} |"
        for each in costs
    ]
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- | --- |", *rows])


def _round(number: float) -> str:
    return f"{number:.0f}" if number >= 10 else f"{number:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.harmless", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=[*SCENARIOS, "cost"], action="append", help="one scenario; may be repeated")
    parser.add_argument(
        "--short", type=float, default=1.0, metavar="FACTOR", help="shorten all by so much (default: 1)"
    )
    arguments = parser.parse_args()
    names = arguments.only or list(SCENARIOS)
    if "cost" in names:
        seconds = 180 * arguments.short
        costs = cost_table(harmless.cost(seconds=seconds))
        print(COST_PAGE.format(table=costs, minutes=seconds / 60), end="")
        names.remove("cost")
    if not names:
        return 0
    load_average = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, load average at the start {load_average}\n")
    print("| | promised | counted | |\n| --- | --- | --- | --- |", flush=True)
    kept = [run(name, SCENARIOS[name], arguments.short) for name in names]
    print(f"\n{'all promises kept' if all(kept) else 'a promise was BROKEN'}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
