"""Dialects that are settings files: environment, properties, YAML, ini. Each entry stands below the comment on it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render.common import (
    check_after,
    comment,
    libpq,
    ping_every,
    plain,
    preamble,
    swept,
)

HIKARI_SHORTEST_SECONDS = 30
"""The least HikariCP takes for maxLifetime and keepaliveTime, in seconds; for less it takes 30 minutes, and none.
Source: HikariConfig.validateNumerics."""

HIKARI_SHORTEST_VALIDATION_MS = 250
"""The least it takes for validationTimeout, in milliseconds. Source: HikariConfig."""

HIKARI_VALIDATION_MS = 5000
"""Its default for validationTimeout, in milliseconds. Source: HikariCP, README."""

HIKARI_UNTESTED_SECONDS = 0.5
"""What was used so recently is handed out untested: aliveBypassWindowMs. Source: HikariCP, HikariPool."""


def env(advice: Recommendation) -> str:
    """`KEY=value` lines for a shell or an environment file. What is not advised is left out.

    POOL_RECYCLE, POOL_RECYCLE_WITH_KEEPALIVE (for those who set the socket options too) and
    POOL_SELECTIVE_PRE_PING_AFTER are seconds, below one with a fraction; POOL_PRE_PING is true or false. TCP_KEEPIDLE,
    TCP_KEEPINTVL (seconds), TCP_KEEPCNT and TCP_USER_TIMEOUT (milliseconds) are named after the socket options they
    set: libpq has connection parameters for these, but reads none of them from the environment. CONNECT_ARGS is JSON,
    quoted for the shell.
    """
    keepalive = advice.socket.keepalive
    values = {
        "POOL_RECYCLE": advice.settings.pool_recycle,
        "POOL_RECYCLE_WITH_KEEPALIVE": advice.settings.pool_recycle_with_keepalive,
        "POOL_PRE_PING": "true" if advice.settings.pool_pre_ping else "false",
        "POOL_SELECTIVE_PRE_PING_AFTER": advice.settings.selective_pre_ping_after,
        "TCP_KEEPIDLE": keepalive and keepalive.idle,
        "TCP_KEEPINTVL": keepalive and keepalive.interval,
        "TCP_KEEPCNT": keepalive and keepalive.count,
        "TCP_USER_TIMEOUT": advice.socket.user_timeout_ms,
        "CONNECT_ARGS": shlex.quote(json.dumps(advice.connect_args)) if advice.connect_args else None,
    }
    return "".join(f"{name}={value}\n" for name, value in values.items() if value is not None)


def hikaricp(advice: Recommendation) -> str:
    """A properties file for HikariCP on PgJDBC; times in milliseconds. Source: HikariCP, README and HikariConfig."""
    recycle = advice.settings.pool_recycle
    lifetime = max(int(recycle), HIKARI_SHORTEST_SECONDS)
    ping = max(ping_every(advice), HIKARI_SHORTEST_SECONDS)
    window = check_after(advice) or (0.0 if recycle < HIKARI_UNTESTED_SECONDS else None)
    age = "Since connect. HikariCP retires idle connections by a timer, each a little early."
    if lifetime > recycle:
        age = (
            f"Since connect. Advised are {plain(recycle)} s, but HikariCP takes 30 s at least and 30 minutes for"
            " anything less. A connection may die before it is that old; the test before use then replaces it."
        )
    properties: list[tuple[str, str, int | str]] = [
        (age, "maxLifetime", lifetime * 1000),
        (
            "Pings connections at rest, which restarts every idle timer on the path."
            if ping < lifetime
            else "Off: HikariCP takes 30 s at least, and it must be less than maxLifetime.",
            "keepaliveTime",
            ping * 1000 if ping < lifetime else 0,
        ),
        (
            "HikariCP tests what rested over 0.5 s before handing it out, at one round trip, whatever is set here; a"
            " silently dropped connection costs this long."
            + (
                ""
                if window is None
                else f" -Dcom.zaxxer.hikari.aliveBypassWindowMs={window * 1000:.0f} makes it {window:g} s."
            ),
            "validationTimeout",
            max(advice.socket.user_timeout_ms or HIKARI_VALIDATION_MS, HIKARI_SHORTEST_VALIDATION_MS),
        ),
    ]
    if advice.socket.keepalive is not None:
        properties.append(
            (
                "PgJDBC can switch TCP keepalive on, but not say when: that is the kernel's tcp_keepalive_time, 7200 s."
                f" {advice.socket.keepalive.idle} s there would be as advised.",
                "dataSource.tcpKeepAlive",
                "true",
            )
        )
    if advice.forgets_statements:
        properties.append(
            ("A pooler on the path forgets prepared statements.", "dataSource.prepareThreshold", 0),
        )
    return comment(
        "#",
        *preamble(advice),
        "Not here: idleTimeout, which only shrinks the pool to minimumIdle; TCP_USER_TIMEOUT, which PgJDBC cannot set."
        " PgJDBC's socketTimeout would end a hang in the middle of a query, and every query that takes as long.",
    ) + "".join(f"\n{comment('#', about)}{name}={value}\n" for about, name, value in properties)


def rails(advice: Recommendation) -> str:
    """A part of config/database.yml; seconds, and milliseconds for `tcp_user_timeout`.

    Source: Rails, ActiveRecord::ConnectionAdapters::ConnectionPool.
    """
    longest = plain(advice.age_with_keepalive)
    age, period = swept(advice.age_with_keepalive)
    limits = {"max_age": age, "idle_timeout": age, "reaping_frequency": period}
    about = (
        "Since connect, and since the last use. The reaper looks once every reaping_frequency seconds, so that both end"
        f" within the {longest} s advised. max_age needs Rails 8.1; idle_timeout spares min_connections."
    )
    if age < 1:
        del limits["max_age"]  # of which Rails takes the whole seconds, and none for no limit
        about = (
            "Since the last use. The reaper looks once every reaping_frequency seconds, so that rests end within the"
            f" {longest} s advised, but spares min_connections. Not here: max_age, which counts whole"
            " seconds."
        )
    pool: list[tuple[str, Mapping[str, float | str]]] = [
        (about, limits),
        (
            "Rails 8.1 pings connections at rest this often, which restarts every idle timer on the path.",
            {"keepalive": min(float(ping_every(advice)), age)},
        ),
    ]
    if options := libpq(advice):
        pool.append(
            ("Given to libpq. tcp_user_timeout (milliseconds) ends a wait for an answer that never comes.", options)
        )
    if advice.forgets_statements:
        pool.append(("A pooler on the path forgets prepared statements.", {"prepared_statements": "false"}))
    return (
        comment(
            "#",
            *preamble(advice),
            "For config/database.yml; an environment takes it by `<<: [*default, *connection_health]`. Since 7.1 Rails"
            " checks a connection by itself when it is first used after a rest.",
        )
        + "connection_health: &connection_health\n"
        + "".join(
            comment("  #", about)
            + "".join(
                f"  {name}: {value if isinstance(value, str) else plain(value)}\n" for name, value in entries.items()
            )
            for about, entries in pool
        )
    )


def pgbouncer(advice: Recommendation) -> str:
    """The [pgbouncer] section of an ini file; seconds, and milliseconds for `tcp_user_timeout`.

    Source: PgBouncer, config documentation; janitor.c and objects.c for what the timers spare.
    """
    recycle, keepalive = advice.settings.pool_recycle, advice.socket.keepalive
    proven = advice.idle_limit.proven_seconds if advice.idle_limit else 0.0
    after = check_after(advice)
    lifetime = min(recycle, proven / 2 or recycle / 2)
    entries: list[tuple[str, dict[str, float]]] = [
        (
            "Since the last use. Looked at three times a second; spares min_pool_size (0 unless set).",
            {"server_idle_timeout": recycle},
        ),
        (
            "Since connect. Those of one age are closed one by one over as long again, the last at twice the age.",
            {"server_lifetime": int(lifetime) or lifetime},
        ),
        (
            "Asks a server connection that rested longer (server_check_query) before it is used again.",
            {"server_check_delay": int(after or min(30, recycle // 2))},
        ),
    ]
    if keepalive is not None:
        entries.append(
            (
                "TCP keepalive, on both sides.",
                {
                    "tcp_keepalive": 1,
                    "tcp_keepidle": keepalive.idle,
                    "tcp_keepintvl": keepalive.interval,
                    "tcp_keepcnt": keepalive.count,
                },
            )
        )
    if advice.socket.user_timeout_ms is not None:
        entries.append(
            (
                "Milliseconds, Linux: ends a wait for an answer that never comes.",
                {"tcp_user_timeout": advice.socket.user_timeout_ms},
            )
        )
    return (
        comment(
            ";",
            *preamble(advice),
            "This is for PgBouncer's own connections to the server, so the advice must have been measured from where"
            " PgBouncer runs. The application's connections to PgBouncer end by client_idle_timeout, and by what lies"
            " between the two: measure that as a target of its own.",
        )
        + "[pgbouncer]\n"
        + "".join(
            comment(";", about) + "".join(f"{name} = {plain(value)}\n" for name, value in values.items())
            for about, values in entries
        )
    )
