"""Dialects that are program text in other languages: Go, JavaScript, C#."""

from __future__ import annotations

from string import Template

from sidecar.core.advice.recommendation import Recommendation
from sidecar.core.advice.render.common import (
    check_after,
    comment,
    ping_every,
    plain,
    preamble,
    swept,
    user_timeout_seconds,
)

_STATEMENTS = "A pooler on the path forgets prepared statements."

_GO = Template("""\
$about
//go:build unix

package db

import (
$imports)

var dialer = net.Dialer{$dialer}

$function""")

_GO_KEEPALIVE = Template("""\
	KeepAliveConfig: net.KeepAliveConfig{ // Go 1.23; without it, Go sends one after 15 s of silence
		Enable:   true,
		Idle:     $idle,
		Interval: $interval,
		Count:    $count,
	},
""")

_GO_USER_TIMEOUT = Template("""\
	// TCP_USER_TIMEOUT, in milliseconds, ends a wait for an answer that never comes. Linux only.
	Control: func(network, _ string, conn syscall.RawConn) (err error) {
		if runtime.GOOS != "linux" || !strings.HasPrefix(network, "tcp") {
			return nil
		}
		const tcpUserTimeout = 0x12
		failed := conn.Control(func(fd uintptr) {
			err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, $milliseconds)
		})
		if failed != nil {
			return failed
		}
		return err
	},
""")

_PGX = Template("""\
// NewPool opens a pool on DATABASE_URL.
func NewPool(ctx context.Context) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
	// Since connect. Up to the jitter is added, and pgx before 5.10 looks only once every HealthCheckPeriod: all
	// three together are the $recycle s advised.
	config.MaxConnLifetime = $lifetime
	config.MaxConnLifetimeJitter = $jitter
	config.HealthCheckPeriod = $period
$ping$statements	config.ConnConfig.DialFunc = dialer.DialContext
	return pgxpool.NewWithConfig(ctx, config)
}
""")

_PGX_PING = """\
	// pgxpool pings what rested over a second before handing it out, at one round trip.
"""

_PGX_SELECTIVE_PING = Template("""\
	// Ping what rested longer before handing it out, at one round trip (pgx 5.7.6).
	config.ShouldPing = func(_ context.Context, params pgxpool.ShouldPingParams) bool {
		return params.IdleDuration.Seconds() > $after
	}
""")

_PGX_PING_TIMEOUT = Template("""\
	// Without it nothing ends a ping on a silently dropped connection but TCP_USER_TIMEOUT (pgx 5.8).
	config.PingTimeout = $timeout
""")

_DATABASE_SQL = Template("""\
// Open opens a pool on DATABASE_URL.
func Open() (*sql.DB, error) {
	config, err := pgx.ParseConfig(os.Getenv("DATABASE_URL"))
	if err != nil {
		return nil, err
	}
$statements	config.DialFunc = dialer.DialContext
	pool := stdlib.OpenDB(*config)
	// Since connect, looked at whenever a connection is taken from the pool.
	pool.SetConnMaxLifetime($recycle)
	return pool, nil
}
""")

_NODE_POSTGRES = Template("""\
${about}import pg from "pg";

export const pool = new pg.Pool({
  connectionString: process.env.DATABASE_URL,
  // Seconds since connect. A timer ends idle connections, `min` or not.
  maxLifetimeSeconds: $recycle,
$keepalive});

// Without a listener, an idle connection that dies ends the process.
pool.on("error", (error) => console.warn("idle connection lost:", error.message));
""")

_NODE_KEEPALIVE = Template("""\
  // TCP keepalive after so many milliseconds of silence; interval and count are Node's (1 s, 10).
  keepAlive: true,
  keepAliveInitialDelayMillis: $milliseconds,
""")


def pgx(advice: Recommendation) -> str:
    """A Go file with a constructor for a pgxpool. Source: pgx, pgxpool.Config and pool.go."""
    age, period = swept(advice.age_with_keepalive)
    jitter = age // 10 or age / 10
    after, timeout = check_after(advice), user_timeout_seconds(advice)
    ping = _PGX_SELECTIVE_PING.substitute(after=f"{after:g}") if after else _PGX_PING
    if timeout is not None:
        ping += _PGX_PING_TIMEOUT.substitute(timeout=_duration(timeout))
    forgets = advice.forgets_statements
    function = _PGX.substitute(
        recycle=plain(advice.age_with_keepalive),
        lifetime=_duration(age - jitter),
        jitter=_duration(jitter),
        period=_duration(period),
        ping=ping,
        statements=_go_statements("config.ConnConfig") if forgets else "",
    )
    packages = {"context", "github.com/jackc/pgx/v5/pgxpool"} | ({"github.com/jackc/pgx/v5"} if forgets else set())
    return _go(advice, function, packages, "Not here: MaxConnIdleTime, which only shrinks the pool to MinConns.")


def database_sql(advice: Recommendation) -> str:
    """A Go file that opens a database/sql pool on pgx. Source: Go, database/sql; pgx, stdlib."""
    function = _DATABASE_SQL.substitute(
        recycle=_duration(advice.age_with_keepalive),
        statements=_go_statements("config") if advice.forgets_statements else "",
    )
    return _go(
        advice,
        function,
        {"database/sql", "github.com/jackc/pgx/v5", "github.com/jackc/pgx/v5/stdlib"},
        "Not here: SetConnMaxIdleTime, which a connection younger than this does not need. database/sql itself tests no"
        " connection. pgx below it tests what rested over a second, and has it replaced; lib/pq does not.",
    )


def _go(advice: Recommendation, function: str, packages: set[str], note: str) -> str:
    keepalive, timeout_ms = advice.socket.keepalive, advice.socket.user_timeout_ms
    packages = packages | {"net", "os", "time"}
    dialer = ""
    if keepalive is not None:
        dialer += _GO_KEEPALIVE.substitute(
            idle=_duration(keepalive.idle), interval=_duration(keepalive.interval), count=keepalive.count
        )
    if timeout_ms is not None:
        dialer += _GO_USER_TIMEOUT.substitute(milliseconds=timeout_ms)
        packages |= {"runtime", "strings", "syscall"}
    standard = sorted(name for name in packages if "." not in name)
    others = sorted(name for name in packages if "." in name)
    return _GO.substitute(
        about=comment("//", *preamble(advice), note),
        imports="\n".join("".join(f'\t"{name}"\n' for name in group) for group in (standard, others)),
        dialer=dialer and "\n" + dialer,
        function=function,
    )


def _duration(seconds: float) -> str:
    """A time.Duration; from a tenth of a second on, rounded down to milliseconds."""
    if seconds == int(seconds):
        return f"{seconds:.0f} * time.Second"
    microseconds = round(seconds * 1_000_000)
    if microseconds >= 100_000 or microseconds % 1000 == 0:
        return f"{microseconds // 1000} * time.Millisecond"
    return f"{microseconds} * time.Microsecond"


def _go_statements(config: str) -> str:
    return f"\t// {_STATEMENTS}\n\t{config}.DefaultQueryExecMode = pgx.QueryExecModeExec\n"


def node_postgres(advice: Recommendation) -> str:
    """An ES module that exports a node-postgres pool. Source: pg-pool, index.js; Node.js, net.Socket.setKeepAlive."""
    keepalive = advice.socket.keepalive
    return _NODE_POSTGRES.substitute(
        about=comment(
            "//",
            *preamble(advice),
            "Not here: idleTimeoutMillis, which spares `min` connections. pg-pool tests no connection before use, and"
            " Node cannot set TCP_USER_TIMEOUT: `query_timeout` (milliseconds) is what ends a hang, and every query"
            " that takes as long.",
            *([f"{_STATEMENTS} Give no query a `name`."] if advice.forgets_statements else []),
        ),
        recycle=plain(advice.age_with_keepalive),
        keepalive=_NODE_KEEPALIVE.substitute(milliseconds=keepalive.idle * 1000) if keepalive else "",
    )


def npgsql(advice: Recommendation) -> str:
    """A C# constant to append to a connection string; seconds. Source: Npgsql, PoolingDataSource, NpgsqlConnector."""
    keepalive, age = advice.socket.keepalive, advice.age_with_keepalive
    parts: list[tuple[str, dict[str, object]]] = [
        (
            "Since connect, looked at when a connection leaves the pool.",
            {"Connection Lifetime": plain(age)},
        ),
        (
            "Pings connections at rest, in the pool too, which restarts every idle timer on the path.",
            {"Keepalive": ping_every(advice)},
        ),
    ]
    if age < 1:
        parts = [
            (
                f"Advised are {plain(age)} s since connect; Npgsql takes whole seconds. Without its pool none rests.",
                {"Pooling": "false"},
            )
        ]
    if keepalive is not None:
        parts.append(
            (
                "TCP keepalive, in seconds (before Npgsql 5: milliseconds, and only on Windows).",
                {"Tcp Keepalive Time": keepalive.idle, "Tcp Keepalive Interval": keepalive.interval},
            )
        )
    if advice.forgets_statements:
        parts.append((_STATEMENTS, {"Max Auto Prepare": 0, "No Reset On Close": "true"}))
    lines = [
        comment("    //", about) + " +\n".join(f'    "{name}={value};"' for name, value in values.items())
        for about, values in parts
    ]
    return (
        comment(
            "//",
            *preamble(advice),
            "Not here: Connection Idle Lifetime, which only shrinks the pool to Minimum Pool Size. Npgsql tests no"
            " connection before use and cannot set TCP_USER_TIMEOUT: Command Timeout (30 s) is what ends a hang.",
        )
        + "const string ConnectionHealth =\n"
        + " +\n".join(lines)
        + ";\n"
    )
