"""That a sidecar does no harm: what is promised, brought about with real servers and counted by `testing.counting`.

Each scenario makes a server (a pooler, a path) with a small limit, runs the sidecar as anyone would, does what an
application or a DBA does, and answers with findings: what was promised, what was counted, whether the promise was kept.
All take their lengths as arguments: the tests run them short, `bench.harmless` runs them as long as they are promised
for. Nothing of the sidecar's own figures makes a verdict, but where the promise is what it says (an outage's kind).
"""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psycopg

from sidecar.demo.server import PostgresServer
from testing.counting import (
    LOGGING,
    LOOK_SECONDS,
    SLACK_SECONDS,
    Application,
    Counter,
    Login,
    PoolerCounter,
    Session,
    aside,
    counted_server,
    create_database,
    create_role,
    execute,
    most_in,
    promise,
    read_log,
    shut_down,
    sidecar,
    url,
)
from testing.lab import Lab, boxes
from testing.poolers import pgbouncer

SETTLING_SECONDS = 9.0
"""Contact, the first look, what a heartbeat waits after its login, and what is opened then."""

AT_REST_A_MINUTE = 4
"""New connections a minute that are promised at rest, beside rests that end and connections that grow old."""

TERMINATE_OURS = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'conn%/%'"

LOGINS_AFTER_REFUSAL = {24.0: 6, 50.0: 7, 120.0: 9}
"""At most so many in so many seconds from the refusal on: attempts after 1, 2, 4 … 60 s, each at its earliest, and one
of another part that has not heard of it yet. For two minutes it is the number promised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    promise: str
    promised: str
    counted: str
    kept: bool

    def __str__(self) -> str:
        return f"{self.promise}: {self.counted}, promised {self.promised}"


def at_most(what: str, most: float, counted: float | None, unit: str = "") -> Finding:
    """None counts as never."""
    told = "never" if counted is None else f"{counted:.3g}{unit}"
    return Finding(
        promise=what, promised=f"at most {most:.3g}{unit}", counted=told, kept=counted is not None and counted <= most
    )


def at_least(what: str, least: float, counted: float) -> Finding:
    return Finding(promise=what, promised=f"at least {least:.3g}", counted=f"{counted:.3g}", kept=counted >= least)


def equal(what: str, expected: object, found: object) -> Finding:
    return Finding(promise=what, promised=str(expected), counted=str(found), kept=expected == found)


def target(where: str, **sections: Any) -> dict[str, Any]:
    return {"url": where, **sections}


# Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Limited:
    """A limit on sessions, and whose sessions count against it."""

    title: str
    user: str
    database: str
    usable: int

    def counts(self, session: Session) -> bool:
        return session.user == self.user and session.database == self.database


LIMITS = (
    Limited(title="role limit 4", user="four", database="postgres", usable=4),
    Limited(title="role limit 10", user="ten", database="postgres", usable=10),
    Limited(title="role limit 20", user="twenty", database="postgres", usable=20),
    Limited(title="database limit 6", user="six", database="six", usable=6),
)


def limits(*, settled: float = SETTLING_SECONDS, full: float = 4.0, after: float = 2.0) -> list[Finding]:
    """Limits of roles and of a database; an application takes all there is, at once, and gives it back."""
    with counted_server({"max_connections": 100}) as server:
        for each in LIMITS[:3]:
            create_role(server, each.user, limit=each.usable)
        create_role(server, "six")
        create_database(server, "six", limit=6)
        return _grown_into(server, LIMITS, settled=settled, full=full, after=after)


def reserved(*, settled: float = SETTLING_SECONDS, full: float = 4.0, after: float = 2.0) -> list[Finding]:
    """Twelve connections, of which three are kept for superusers and three for a privileged role."""
    settings = {"max_connections": 12, "superuser_reserved_connections": 3, "reserved_connections": 3}
    with counted_server(settings) as server:
        create_role(server, "app")
        one = Limited(title="12 connections, 6 reserved", user="app", database="postgres", usable=6 - 1)
        return _grown_into(server, [one], settled=settled, full=full, after=after, counted_apart=1)


def _grown_into(
    server: PostgresServer,
    limited: Sequence[Limited],
    *,
    settled: float,
    full: float,
    after: float,
    counted_apart: int = 0,
) -> list[Finding]:
    """What is held under these limits; then an application of each wants all of it. `counted_apart`: who counts."""
    findings: list[Finding] = []
    targets = {each.user: target(url(server, user=each.user, database=each.database)) for each in limited}

    def under(each: Limited) -> Callable[[Session], bool]:
        return (lambda session: True) if counted_apart else each.counts

    with ExitStack() as ends:
        counter = ends.enter_context(Counter(server))
        began = time.time()
        ends.enter_context(sidecar({"targets": targets}))
        time.sleep(settled)
        alone = time.time()
        for each in limited:
            broken = counter.breaches(each.usable + counted_apart, under(each), since=began, until=alone)
            findings += [
                Finding(
                    promise=f"{each.title}: held when nobody else is there",
                    promised="within the promise all the time",
                    counted="; ".join(map(str, broken)) or f"at most {_held(counter, each)}",
                    kept=not broken,
                ),
                at_least(
                    f"{each.title}: it measures all the same",
                    1,
                    min(counter.ours(since=alone - 2.0, match=each.counts)),
                ),
            ]

        def grow(each: Limited) -> Application:
            application = ends.enter_context(Application(aside(server, user=each.user, database=each.database)))
            application.take(each.usable)
            return application

        with ThreadPoolExecutor(len(limited)) as threads:
            applications = list(threads.map(grow, limited))
        taken = time.time()
        time.sleep(full)
        gave_back = time.time()
        for application in applications:
            application.give_back()
        time.sleep(after)
        log = read_log(server)
        for each, application in zip(limited, applications, strict=True):
            knocks = [one.at for one in log.foreign(since=taken, user=each.user) if one.at < gave_back]
            findings += [
                at_most(
                    f"{each.title}: longest wait of an application that takes all of it at once",
                    LOOK_SECONDS + SLACK_SECONDS,
                    application.worst_delay,
                    " s",
                ),
                at_most(f"{each.title}: held while it is full", 0, _held(counter, each, since=taken, until=gave_back)),
                at_most(f"{each.title}: logins in {full:.3g} s while it is full", 3, len(knocks)),
                at_most(
                    f"{each.title}: logins in {after:.3g} s after it was given back",
                    2,
                    len(log.foreign(since=gave_back, user=each.user)),
                ),
            ]
    return findings


def _held(counter: Counter, each: Limited, *, since: float = 0.0, until: float = float("inf")) -> int:
    """The most sessions of sidecars at one moment, looks aside."""
    return max(
        (
            sum(each.counts(session) and session.role not in (None, "look") for session in sample.sessions)
            for sample in counter.since(since, until)
        ),
        default=0,
    )


def many_targets(*, targets: int = 10, settled: float = 14.0, seconds: float = 6.0) -> list[Finding]:
    """Targets on one server in one process: one budget."""
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 100}))
        create_role(server, "app")
        names = [f"db{number}" for number in range(targets)]
        execute(server, *(f"CREATE DATABASE {name} STRATEGY file_copy" for name in names))
        counter = ends.enter_context(Counter(server))
        began = time.time()
        ends.enter_context(
            sidecar({"targets": {name: target(url(server, user="app", database=name)) for name in names}})
        )
        time.sleep(settled)
        rest = time.time()
        time.sleep(seconds)
        broken = counter.breaches(97, since=began)
        log = read_log(server)
        watched = {session.database for session in counter.samples[-1].sessions if session.role == "heartbeat"}
        looks = log.statements("pg_stat_activity|pg_stat_get_activity", since=rest)
        quiet = [one for one in log.foreign(since=rest) if one.role not in ("pool", "probe")]
        most = max(most_in(60.0, [one.at for one in quiet if one.database == name]) for name in names)
        return [
            Finding(
                promise=f"{targets} targets on one server of 100 connections",
                promised="9 heartbeats and 7 others",
                counted="; ".join(map(str, broken)) or _told(counter.peaks()),
                kept=not broken,
            ),
            at_least("… of which have a heartbeat", min(targets, 9), len(watched)),
            at_most("… looks at the table a second", 10, len(looks) / seconds),
            at_most("… most logins in a minute for one of them, beside pool and probes", AT_REST_A_MINUTE, most),
        ]


def _told(peaks: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {role}" for role, count in sorted(peaks.items()))


def greedy(
    *,
    rounds: int = 2,
    held: float = 3.0,
    pause: float = 2.0,
    settled: float = SETTLING_SECONDS,
    again: float | None = None,
) -> list[Finding]:
    """An application that takes 95 % of a server and gives it back, again and again; slowly, and at once.

    With `again`, it leaves for good, and measuring may take so many seconds to begin again.
    """
    usable = 40 - 3
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 40}))
        create_role(server, "app")
        counter = ends.enter_context(Counter(server))
        ends.enter_context(sidecar({"targets": {"db": target(url(server, user="app"))}}))
        time.sleep(settled)
        application = ends.enter_context(Application(aside(server, user="app")))
        began = time.time()
        # One that grows by no more than the free slots between two looks never meets us.
        application.take(int(0.8 * usable) - 1)
        slowly = int(0.95 * usable) - 1 - len(application.held)
        refused_before = len(application.refusals)
        for _ in range(slowly):
            application.take(1)
            time.sleep(0.6)
        refused_slowly = len(application.refusals) - refused_before
        time.sleep(held)
        application.give_back()
        for _ in range(rounds):
            time.sleep(pause)
            application.take(int(0.95 * usable) - 1)
            time.sleep(held)
            application.give_back()
        ended = time.time()
        broken = [each for each in counter.breaches(usable, since=began) if each.seconds > LOOK_SECONDS + SLACK_SECONDS]
        logins = [one for one in read_log(server).foreign(since=began) if one.at < ended]
        window = min(60.0, ended - began)
        resumed: list[Finding] = []
        if again is not None:
            time.sleep(again)
            back = counter.here_after(ended + 1.0, lambda session: session.role == "probe")
            resumed.append(at_most("… it measures again after", again, back, " s"))
        return [
            *resumed,
            at_most("95 % at once: longest wait", LOOK_SECONDS + SLACK_SECONDS, application.worst_delay, " s"),
            at_most("95 % slowly: refused", 0, refused_slowly),
            Finding(
                promise="held beside an application that breathes",
                promised="within the promise but for one look",
                counted="; ".join(map(str, broken)) or "within it",
                kept=not broken,
            ),
            at_most(
                f"most logins in {window:.0f} s, of {rounds + 1} times of taking and giving back",
                AT_REST_A_MINUTE + 2,
                most_in(60.0, [one.at for one in logins]),
            ),
            at_most("… of which were refused", 2, sum(one.sqlstate is not None for one in logins)),
        ]


# Poolers

_QUERY_WAIT_SECONDS = 8


def session_pooler(*, settled: float = SETTLING_SECONDS, queue: float = 14.0) -> list[Finding]:
    """A session-mode PgBouncer of six connections, three of them the application's, which then wants more."""
    settings = "[pgbouncer]\npool_mode = session\ndefault_pool_size = 6"
    settings += f"\nquery_wait_timeout = {_QUERY_WAIT_SECONDS}"
    findings = []
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 50}))
        base = ends.enter_context(pgbouncer(server, settings))
        counter = ends.enter_context(Counter(server))
        pooler = ends.enter_context(PoolerCounter(base))
        application = ends.enter_context(Application(f"{base}postgres"))
        application.take(3)
        heartbeat = {"door_every": "5s"} if _knows("door_every") else {}
        running = ends.enter_context(sidecar({"targets": {"db": target(f"{base}postgres", heartbeat=heartbeat)}}))
        time.sleep(settled)
        application.take(2)
        crowded = time.time()
        findings += [
            at_most("a session pooler of 6: our clients", 3 + 1, max(pooler.ours())),
            at_most("… for more than a moment", 3, _standing(pooler.ours())),
            at_most("… our server connections", 1 + 1, max(counter.ours())),
            at_most("… for more than a moment", 1, _standing(counter.ours())),
            at_least("… it measures all the same", 2, min(pooler.ours(since=crowded - 1.5), default=0)),
            at_most("… longest wait of an application of 3 that wants 5", 2.0, application.worst_delay, " s"),
        ]
        blocked = threading.Thread(target=application.take, args=(1,), kwargs={"patience": queue})
        blocked.start()  # the sixth is the heartbeat's
        full = time.time()
        time.sleep(queue)
        outages = running.json("/outages")["outages"]
        findings += [
            # PgBouncer does not notice that a client has left who waits: it stays in its table until its time is up.
            at_most(
                "a full session pooler: longest with more than one of ours in the queue",
                _QUERY_WAIT_SECONDS + SLACK_SECONDS,
                pooler.longest_above(1, "waiting", since=full),
                " s",
            ),
            at_most("… ours while it is full, at the end", 2, (pooler.ours(since=full) or [99])[-1]),
            equal(
                "… told as",
                "refusal, queue",
                ", ".join(map(str, (outages[0]["kind"], outages[0]["detail"]))) if outages else None,
            ),
        ]
        blocked.join()
    return findings


def transaction_pooler(*, settled: float = SETTLING_SECONDS) -> list[Finding]:
    """A transaction-mode PgBouncer of three, of which the application has two and wants the third."""
    settings = "[pgbouncer]\npool_mode = transaction\ndefault_pool_size = 3"
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 50}))
        base = ends.enter_context(pgbouncer(server, settings))
        ends.enter_context(Counter(server))
        pooler = ends.enter_context(PoolerCounter(base))
        application = ends.enter_context(Application(f"{base}postgres"))
        application.take(2)
        ends.enter_context(sidecar({"targets": {"db": target(f"{base}postgres")}}))
        time.sleep(settled)
        standing = min(pooler.ours(since=time.time() - 1.5), default=0)
        application.take(1)
        inherited = {
            str(value)
            for connection in application.held
            for value in connection.execute("SELECT current_setting('idle_session_timeout')").fetchone() or ()
        }
        log = read_log(server)
        return [
            at_most("a transaction pooler of 3: our clients", 3 + 1, max(pooler.ours())),
            at_most("… for more than a moment", 3, _standing(pooler.ours())),
            at_least("… it measures all the same", 2, standing),
            at_most("… longest wait of an application that takes the last one", 2.0, application.worst_delay, " s"),
            at_most("… what is set through it", 0, len(log.statements(r"set_config\('idle|^SET idle", since=0.0))),
            at_most("… what is ended through it", 0, len(log.statements("pg_terminate_backend"))),
            equal("… idle_session_timeout that the application inherits", {"0"}, inherited),
        ]


def _knows(key: str) -> bool:
    from sidecar.settings.model import keys

    return any(path[-1] == key for path, _ in keys())


def _standing(counts: Sequence[int], looks: int = 8) -> int:
    """The most that were there at so many looks in a row."""
    return max((min(counts[at : at + looks]) for at in range(max(1, len(counts) - looks))), default=0)


# Refusals


def refusals(*, seconds: float = 22.0, settled: float = 7.0, mended: float | None = None) -> list[Finding]:
    """NOLOGIN, a changed password, CONNECTION LIMIT 0, a dropped database; then the password file is mended.

    With `mended`, the others are mended too, and may take so many seconds to be taken up.
    """
    secret, findings = "first", []
    most = next(count for within, count in LOGINS_AFTER_REFUSAL.items() if seconds <= within)
    users = {
        "nologin": ("NOLOGIN", "authentication"),
        "wrong": ("a wrong password", "authentication"),
        "zero": ("CONNECTION LIMIT 0", "refusal"),
        "dropped": ("a dropped database", "refusal"),
    }
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 200}, password="superuser"))
        directory = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        password_file = directory / "password"
        password_file.write_text(secret)
        for user in users:
            create_role(server, user, password=secret)
            create_database(server, user)
        targets = {
            user: target(url(server, user=user, database=user), password_file=str(password_file)) for user in users
        }
        counter = ends.enter_context(Counter(server))
        running = ends.enter_context(sidecar({"targets": targets}))
        time.sleep(settled)
        late = time.time() + 60
        while not all(one["reachable"] for one in running.json("/targets")["targets"]) and time.time() < late:
            time.sleep(0.2)  # who was never reached has no outage; targets of one server log in one after the other
        began = time.time()
        execute(
            server,
            "ALTER ROLE nologin NOLOGIN",
            "ALTER ROLE wrong PASSWORD 'second'",
            "ALTER ROLE zero CONNECTION LIMIT 0",
            "DROP DATABASE dropped WITH (FORCE)",
            TERMINATE_OURS,
        )
        time.sleep(seconds)
        log = read_log(server)
        for user, (title, kind) in users.items():
            knocked = [one for one in log.foreign(since=began, user=user) if one.at <= began + seconds]
            # What is under way when the first answer comes is no more than the first: while a database is dropped, say,
            # nobody is answered, and that is an outage like any other.
            answered = min((one.refused_at for one in knocked if one.refused_at is not None), default=began)
            logins = 1 + sum(one.at > answered for one in knocked)
            outages = running.json(f"/outages?target={user}")["outages"]
            findings += [
                at_most(f"{title}: logins in {seconds:.0f} s", most, logins),
                equal("… told as", kind, outages[0]["kind"] if outages else None),
            ]
        mending = time.time()
        execute(server, "ALTER ROLE nologin PASSWORD 'second'", "ALTER ROLE zero PASSWORD 'second'")
        execute(server, "ALTER ROLE dropped PASSWORD 'second'")
        _replace(password_file, "second")
        if mended is not None:
            execute(server, "ALTER ROLE nologin LOGIN", "ALTER ROLE zero CONNECTION LIMIT -1")
            create_database(server, "dropped")
        time.sleep(2.5 if mended is None else mended + 1.0)
        findings.append(
            at_most("… until a mended password file is taken up", 2.2, _taken_up(counter, mending, "wrong"), " s")
        )
        if mended is not None:
            findings += [
                at_most(f"{title}: until what was mended is taken up", mended, _taken_up(counter, mending, user), " s")
                for user, (title, _) in users.items()
                if user != "wrong"
            ]
    return findings


def _taken_up(counter: Counter, since: float, user: str) -> float | None:
    return counter.here_after(since, lambda session: session.user == user and session.role is not None)


def _replace(file: Path, text: str) -> None:
    """As Kubernetes changes a mounted secret: all at once."""
    fresh = file.with_name(f"{file.name}.new")
    fresh.write_text(text)
    fresh.rename(file)


# Maintenance


def pause(*, seconds: float = 6.0, settled: float = SETTLING_SECONDS) -> list[Finding]:
    """A pause for a maintenance: DROP DATABASE works, and it resumes by itself."""
    with ExitStack() as ends:
        server = ends.enter_context(counted_server())
        create_role(server, "app")
        create_database(server, "app")
        counter = ends.enter_context(Counter(server))
        running = ends.enter_context(sidecar({"targets": {"db": target(url(server, user="app", database="app"))}}))
        time.sleep(settled)
        before = counter.now(lambda session: session.role is not None)
        asked = time.time()
        reply = running.ask(f"/pause?for={seconds:g}s", "POST", admin=True)
        time.sleep(1.5)
        gone = counter.gone_after(asked)
        health = running.ask("/health").status
        dropped = "works"
        try:
            execute(server, "DROP DATABASE app")
        except psycopg.Error as error:
            dropped = str(error).splitlines()[0]
        else:
            create_database(server, "app")
        time.sleep(max(0.0, asked + seconds - 0.3 - time.time()))
        meanwhile = len([one for one in read_log(server).foreign(since=asked + 1.0) if one.at < asked + seconds - 0.3])
        time.sleep(6.0)
        back = counter.here_after(asked + 1.2, lambda session: session.role is not None)
        return [
            at_least("before a pause: connections", 2, before),
            equal("a pause is accepted", True, reply.ok),
            at_most("every connection is back within", 1.0, gone, " s"),
            equal("/health meanwhile", 200, health),
            equal("DROP DATABASE meanwhile", "works", dropped),
            at_most("logins meanwhile", 0, meanwhile),
            at_most("it resumes by itself after", seconds + 5.0, None if back is None else back + 1.2, " s"),
        ]


def restart(*, seconds: float = 60.0, settled: float = 6.0, late: float = 0.05) -> list[Finding]:
    """A shutdown that waits for a session, with 57P03 meanwhile; then the server is back."""
    reconnect_every = 0.1
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 60}))
        create_role(server, "app")
        heartbeat = {"reconnect_every": reconnect_every}
        ends.enter_context(sidecar({"targets": {"db": target(url(server, user="app"), heartbeat=heartbeat)}}))
        time.sleep(settled)
        lingering = ends.enter_context(psycopg.connect(aside(server), autocommit=True))
        shut_down(server)
        began = time.time()
        lingering.execute(TERMINATE_OURS)
        time.sleep(seconds)
        refused = [one for one in read_log(server).foreign(since=began) if one.sqlstate == "57P03"]
        lingering.close()
        server.stop("smart")
        server.start()  # which writes a new log
        time.sleep(2.0 + late)
        log = read_log(server)
        first = next((one.at for one in log.foreign() if one.admitted), None)
        ready = server.log.read_text().partition("database system is ready")[0].splitlines()[-1]
        ready_at = float(ready.partition("|")[0])
        return [
            at_least(f"{seconds:.0f} s of 57P03: attempts", 0.5 * seconds / (reconnect_every + 0.1), len(refused)),
            at_most("… found again after", reconnect_every + late, None if first is None else first - ready_at, " s"),
        ]


# Sessions that nobody ends


def own_limits(*, settled: float = 16.0) -> list[Finding]:
    """Each resting session has the server end it if it is never heard of again."""
    deadline = 1.0
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 100}))
        create_role(server, "app")
        counter = ends.enter_context(Counter(server))
        idle = {"floor": "2s", "deadline": f"{deadline:g}s", "connections": 4}
        ends.enter_context(sidecar({"targets": {"db": target(url(server, user="app"), idle=idle)}}))
        time.sleep(settled)
        standing = {session.pid: session.role for session in counter.samples[-1].sessions if session.role}
        logins = [one for one in read_log(server).foreign() if one.role == "probe" or one.pid in standing]
    findings = []
    for role, most in {"heartbeat": 300.0, "pool": 300.0}.items():
        limits = [_rest_limits(one) for one in logins if one.role == role]
        findings += [
            at_least(
                f"{role}: sessions that limit their own rest, of {len(limits)}",
                max(1, len(limits)),
                sum(map(bool, limits)),
            ),
            at_most(f"{role}: to", most, max((seconds for each in limits for _, seconds in each), default=None), " s"),
        ]
    probes = [one for one in logins if one.role == "probe" and len(one.statements) > 1]
    limited = sum(bool(_rest_limits(one)) for one in probes)
    return [
        *findings,
        at_least(f"probe: sessions that limit their own rest, of {len(probes)}", max(1, len(probes)), limited),
        at_most(
            "probe: to a minute after the longest rest it may come to, which is short at the beginning",
            deadline + 60.0 + 120.0,
            max((seconds for one in probes for _, seconds in _rest_limits(one)), default=None),
            " s",
        ),
    ]


def _rest_limits(login: Login) -> list[tuple[float, float]]:
    """When a session set its own limit, and to how many seconds."""
    found = []
    for at, statement in login.statements:
        if "idle_session_timeout" in statement and (number := re.search(r"'(\d{3,})'", statement)):
            found.append((at, int(number[1]) / 1000))
    return found


def silent_path(
    answer: Literal["drop", "reset"] = "drop", *, limit: int = 6, seconds: float = 300.0, orphans: bool = True
) -> list[Finding]:
    """A path that forgets connections after `limit` seconds, on a small server; at the end path and sidecar die."""
    with ExitStack() as ends:
        lab = ends.enter_context(Lab())
        server = lab.postgres(**LOGGING, max_connections=30)
        create_role(server, "app")
        path = lab.path(server)
        endpoint = boxes.conntrack(path, limit, answer=answer)
        counter = ends.enter_context(Counter(server))
        began = time.time()
        where = f"postgresql://app@{endpoint.host}:{endpoint.port}/{endpoint.database}"
        running = ends.enter_context(sidecar({"targets": {"db": target(where)}}))
        time.sleep(seconds / 2)
        application = ends.enter_context(Application(aside(server, user="app")))
        application.take(int(0.8 * 27) - 1)
        time.sleep(seconds / 4)
        application.give_back()
        time.sleep(seconds / 4)
        broken = counter.breaches(27, since=began)
        longest = max((each.seconds for each in broken), default=0.0)
        name = {"drop": "silent", "reset": "resetting"}[answer]
        allowed = promise(27, 1, 1)
        log = read_log(server)
        findings = [
            at_most(
                f"{name} path, {limit} s, {seconds:.0f} s long, 30 connections: longest above {allowed.heartbeats}+"
                f"{allowed.rest}",
                LOOK_SECONDS + SLACK_SECONDS,
                longest,
                " s",
            ),
            at_most("… most sessions of ours at once", allowed.heartbeats + allowed.rest + 1, max(counter.ours())),
            at_most(
                "… longest wait of an application that takes four fifths",
                LOOK_SECONDS + SLACK_SECONDS,
                application.worst_delay,
                " s",
            ),
            at_least("… it measures: logins of probes", 2, sum(one.role == "probe" for one in log.foreign())),
        ]
        if orphans:
            path.cut()
            running.kill()
            killed = time.time()
            while time.time() < killed + 330 and counter.now(lambda session: session.role is not None):
                time.sleep(0.5)
            time.sleep(0.5)
            probes = counter.gone_after(killed, lambda session: session.role == "probe")
            findings += [
                at_most(
                    "… kill -9 behind a cut: the probes are gone by themselves after", 60 + 10 + 4 * limit, probes, " s"
                ),
                at_most("… and everything after", 305, counter.gone_after(killed), " s"),
            ]
        return findings


# What it costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Counted over one state of a sidecar; all but `connections` a minute."""

    state: str
    connections: int
    logins: float
    queries: float
    login_lines: float


def cost(*, seconds: float = 180.0) -> list[Cost]:
    """One target with default settings on a server that limits nothing: measuring, later, down, and refusing."""
    costs = []
    with ExitStack() as ends:
        server = ends.enter_context(counted_server({"max_connections": 100}))
        create_role(server, "app")
        counter = ends.enter_context(Counter(server))
        ends.enter_context(sidecar({"targets": {"db": target(url(server, user="app"))}}))

        def count(state: str) -> None:
            since = time.time()
            time.sleep(seconds)
            costs.append(_cost(state, server, counter, since, seconds))

        count("the first minutes")
        count("at rest")
        lingering = psycopg.connect(aside(server), autocommit=True)
        shut_down(server)
        lingering.execute(TERMINATE_OURS)
        count("in an outage (57P03)")
        server.restart("fast")
        time.sleep(10)
        execute(server, "ALTER ROLE app NOLOGIN", TERMINATE_OURS)
        count("while its logins are refused")
    return costs


def _cost(state: str, server: PostgresServer, counter: Counter, since: float, seconds: float) -> Cost:
    log, minutes = read_log(server), seconds / 60
    logins = log.foreign(since=since)
    queries = log.statements("", since=since)
    # The lines of those who left meanwhile, and of those who came: in the long run as many as logins.
    lines = sum(one.lines for one in logins)
    return Cost(
        state=state,
        connections=max(counter.ours(since=since), default=0),
        logins=len(logins) / minutes,
        queries=len(queries) / minutes,
        login_lines=lines / minutes,
    )
