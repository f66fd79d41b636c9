"""The errors that lost, refused and exhausted connections show themselves by: what is behind each, and what helps.

The one place for this knowledge: `sidecar explain` and docs/errors.md both come from here. Sources: PostgreSQL's
errcodes.txt; PgBouncer's objects.c; the texts, from real servers and drivers (tests/test_explain.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class Helps(StrEnum):
    """Which of the two pool settings helps."""

    PRE_PING = "pre-ping"
    RECYCLE = "recycle"
    BOTH = "both"
    NEITHER = "neither"


class Depth(IntEnum):
    """Who says it. A traceback holds several errors; the deepest is the cause of the others."""

    SERVER = 0  # the server, or a pooler, says why
    SYSTEM = 1  # the operating system reports of the network
    DRIVER = 2  # the driver found the connection dead
    POOL = 3  # the pool, or the application's patience, came to an end


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownError:
    """`signs` are regular expressions for a line; in a pair, the second must match the frames of its traceback too."""

    title: str
    depth: Depth
    sqlstates: tuple[str, ...] = ()
    signs: tuple[str | tuple[str, str], ...] = ()
    cause: str
    helps: Helps
    because: str
    remedies: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{' '.join(self.sqlstates)} {self.title}" if self.sqlstates else self.title


_MEASURED = "Set pool_recycle, pre-ping and the socket options as the sidecar advises for this path (/recommendation)."
_RETRY = (
    "Repeat idempotent work once on a new connection, and only when the error says that the connection is lost"
    " (SQLAlchemy: connection_invalidated). The format `python` of the advice shows how."
)
_FIND_THE_DEATH = "Let the sidecar tell how connections die on this path: its idle_limit names the kind of death and"
" the likely culprit."

# The more specific comes first: of two that fit the same line, the first wins.
KNOWN_ERRORS = (
    KnownError(
        title="admin_shutdown: the server ended the session",
        depth=Depth.SERVER,
        sqlstates=("57P01",),
        signs=("AdminShutdown", "terminating connection due to administrator command"),
        cause="The server is being stopped or restarted, a failover is under way, or somebody called"
        " pg_terminate_backend. It has nothing to do with rest or age.",
        helps=Helps.PRE_PING,
        because="It finds, at the next checkout, the sessions that were ended at rest. What was in flight fails all the"
        " same. Recycling knows nothing of it.",
        remedies=(
            "Look for a restart, a failover or an operator at that time: /outages of the sidecar, the server's log.",
            _RETRY,
            "If there was none, look for a job that ends sessions: an idle-session killer, a cloud's maintenance.",
        ),
    ),
    KnownError(
        title="crash_shutdown: another server process crashed",
        depth=Depth.SERVER,
        sqlstates=("57P02",),
        signs=("CrashShutdown", "because of crash of another server process"),
        cause="A server process crashed or was killed, or the server was stopped in immediate mode. All sessions are"
        " ended, because the memory they share may be damaged.",
        helps=Helps.PRE_PING,
        because="It finds the ended sessions at the next checkout. Recycling knows nothing of it.",
        remedies=(
            "Read the server's log for the process that crashed and its signal: 11 is a fault, 9 mostly the kernel's"
            " out-of-memory killer.",
            _RETRY,
        ),
    ),
    KnownError(
        title="cannot_connect_now: the server takes no connections yet, or no more",
        depth=Depth.SERVER,
        sqlstates=("57P03",),
        signs=(
            "CannotConnectNow",
            "the database system is (?:starting up|shutting down|in recovery mode|not (?:yet )?accepting connections)",
        ),
        cause="The server is starting, stopping or recovering; or it is a standby that serves no queries.",
        helps=Helps.NEITHER,
        because="There is no connection yet that either of them could look at.",
        remedies=(
            "Connect again, with growing pauses, for as long as outages last here (failover.outage_seconds of the"
            " advice).",
            "If it goes on for longer, the address leads to the wrong server, or its recovery does not end: read its"
            " log.",
        ),
    ),
    KnownError(
        title="idle_session_timeout: the session rested longer than the server allows",
        depth=Depth.SERVER,
        sqlstates=("57P05",),
        signs=("IdleSessionTimeout", "terminating connection due to idle-session timeout"),
        cause="The server's idle_session_timeout ended a session that rested in the pool. TCP keepalives do not count"
        " as use.",
        helps=Helps.BOTH,
        because="pool_recycle below the timeout prevents it; pre-ping finds what it ended.",
        remedies=(
            _MEASURED,
            "Or lift the limit for the application alone: ALTER ROLE app SET idle_session_timeout = 0.",
        ),
    ),
    KnownError(
        title="idle_in_transaction_session_timeout: a transaction was left open",
        depth=Depth.SERVER,
        sqlstates=("25P03",),
        signs=("IdleInTransactionSessionTimeout", "terminating connection due to idle-in-transaction timeout"),
        cause="A connection was checked out, a transaction begun, and then nothing was asked for longer than"
        " idle_in_transaction_session_timeout.",
        helps=Helps.NEITHER,
        because="Both look at connections that rest in the pool. This one was in the application's hands.",
        remedies=(
            "Find the code that holds a transaction open while it does something else (a call over the network, a"
            " user's answer) or forgets to end it: pg_stat_activity shows its last query, state `idle in transaction`.",
            "Check connections out by `async with`, and commit before you wait for anything but the database.",
        ),
    ),
    KnownError(
        title="transaction_timeout: a transaction took too long",
        depth=Depth.SERVER,
        sqlstates=("25P04",),
        signs=(r"\bTransactionTimeout", "terminating connection due to transaction timeout"),
        cause="A transaction was open for longer than transaction_timeout, busy or not; the server ended the session.",
        helps=Helps.NEITHER,
        because="The connection was in use.",
        remedies=(
            "Make the transaction shorter, or raise the timeout for that work: SET transaction_timeout.",
            "See in pg_stat_activity (xact_start, wait_event) whether it worked or waited for a lock.",
        ),
    ),
    KnownError(
        title="read_only_sql_transaction: writing to a server that takes no writes",
        depth=Depth.SERVER,
        sqlstates=("25006",),
        signs=("ReadOnlySqlTransaction", r"cannot execute .{1,60} in a read-only transaction"),
        cause="The connection leads to a standby, or to a primary that was demoted while the connection stayed open. Or"
        " the application itself asked for a read-only transaction.",
        helps=Helps.RECYCLE,
        because="A demoted server answers pings, so pre-ping passes for ever. Recycling ends it when the connection is"
        " of age; what ends it at once is below.",
        remedies=(
            "Treat 25006 as a lost connection: a `handle_error` listener that sets is_disconnect, as in the format"
            " `python` of the advice.",
            "Connect with target_session_attrs=read-write where several hosts are named.",
            "After a failover, check that the name leads to the new primary, and how long clients keep the old address."
            "",
        ),
    ),
    KnownError(
        title="client_idle_timeout: PgBouncer closed a client that rested",
        depth=Depth.SERVER,
        signs=("client_idle_timeout",),
        cause="PgBouncer's client_idle_timeout (it says so as 08P01). TCP keepalives do not count as use.",
        helps=Helps.BOTH,
        because="pool_recycle below the timeout prevents it; pre-ping finds what it closed.",
        remedies=(_MEASURED, "Or set client_idle_timeout = 0 in PgBouncer, its default."),
    ),
    KnownError(
        title="query_wait_timeout: PgBouncer had no server connection to give",
        depth=Depth.SERVER,
        signs=("query_wait_timeout",),
        cause="A query waited in PgBouncer for longer than query_wait_timeout: all server connections of the pool were"
        " in use, or the database could not be reached.",
        helps=Helps.NEITHER,
        because="The connection to PgBouncer is in order.",
        remedies=(
            "SHOW POOLS in PgBouncer's console: clients waiting (cl_waiting) with servers active (sv_active) means long"
            " transactions or too small a default_pool_size; no servers at all, that the database is away (its log).",
        ),
    ),
    KnownError(
        title="protocol_violation: a pooler refused, or the two sides do not understand each other",
        depth=Depth.SERVER,
        sqlstates=("08P01",),
        signs=("ProtocolViolation", "bouncer config error"),
        cause="PgBouncer uses this code for everything it has to say; the message beside it counts. From PostgreSQL"
        " itself it means that what arrived is no valid message.",
        helps=Helps.NEITHER,
        because="It is an answer, from somebody who is alive.",
        remedies=(
            "Read the message and PgBouncer's log. Often: an unknown database, an unsupported startup parameter"
            " (ignore_startup_parameters), a login that the server refused.",
        ),
    ),
    KnownError(
        title="too_many_connections: the server, the role, the database or the pooler is full",
        depth=Depth.SERVER,
        sqlstates=("53300",),
        signs=(
            "TooManyConnections",
            "too many clients already",
            "remaining connection slots are reserved",
            "too many connections for (?:role|database)",
            "no more connections allowed",
        ),
        cause="max_connections, or a CONNECTION LIMIT of the role or the database, or PgBouncer's max_client_conn, is"
        " reached. The database is up.",
        helps=Helps.NEITHER,
        because="Both only replace connections. Short pool_recycle even adds some that are being closed.",
        remedies=(
            "Add up what may be open: (pool_size + max_overflow) x processes x replicas, over all applications, during"
            " a rollout twice.",
            "Look who holds them: SELECT usename, application_name, state, count(*) FROM pg_stat_activity GROUP BY"
            " 1,2,3.",
            "Make the pools smaller, or put a pooler in between, before raising max_connections.",
        ),
    ),
    KnownError(
        title="invalid_password: the server refuses the password",
        depth=Depth.SERVER,
        sqlstates=("28P01",),
        signs=("InvalidPassword", "password authentication failed"),
        cause="The password is wrong: mostly it was rotated, and the process still has the old one. Sessions that are"
        " open live on, so it shows only as the pool connects anew. The database is up.",
        helps=Helps.NEITHER,
        because="Every new connection fails alike; recycling only brings it on sooner.",
        remedies=(
            "Read the password at every connect (a file, a `do_connect` listener, a token provider), not once at start."
            "",
            "While rotating, let both passwords work for longer than pool_recycle, by two roles.",
        ),
    ),
    KnownError(
        title="prepared statement does not exist, or already exists",
        depth=Depth.SERVER,
        sqlstates=("26000", "42P05"),
        signs=(
            "InvalidSqlStatementName",
            "DuplicatePreparedStatement",
            r"prepared statement .{1,80} (?:does not exist|already exists)",
        ),
        cause="A pooler in transaction or statement mode (PgBouncer, a cloud's pooler) gave the session another server"
        " process, which does not know the statements prepared before, or knows those of somebody else. Without a"
        " pooler: DISCARD ALL or DEALLOCATE.",
        helps=Helps.NEITHER,
        because="The connection is alive. With asyncpg even the pre-ping itself fails this way.",
        remedies=(
            "SQLAlchemy on asyncpg: connect_args={'statement_cache_size': 0, 'prepared_statement_cache_size': 0};"
            " asyncpg: statement_cache_size=0; psycopg: prepare_threshold=None.",
            "Or have the pooler follow them: PgBouncer 1.21, max_prepared_statements above 0.",
        ),
    ),
    KnownError(
        title="the host name cannot be resolved",
        depth=Depth.SYSTEM,
        signs=(
            "could not translate host name",
            "failed to resolve host",
            "Name or service not known",
            "Temporary failure in name resolution",
            "nodename nor servname provided",
            "No address associated with hostname",
            r"\bgaierror\b",
            r"\b(?:ENOTFOUND|EAI_AGAIN)\b",
        ),
        cause="DNS has no answer for the name of the server: a wrong name or namespace, or name servers that are down"
        " or overloaded. No database was asked.",
        helps=Helps.NEITHER,
        because="Connections that are open need no name. Short pool_recycle asks for it more often.",
        remedies=(
            "Resolve the name from where the application runs (getent hosts NAME).",
            "`Temporary failure` is the name server's: look at its health, and in Kubernetes at ndots and CoreDNS.",
        ),
    ),
    KnownError(
        title="connection refused",
        depth=Depth.SYSTEM,
        signs=("Connection refused", "ConnectionRefusedError", r"\bECONNREFUSED\b", r"\[Errno (?:111|61)\]"),
        cause="The host answers, but nobody listens on that address and port: the server is down or restarting, or the"
        " port is wrong.",
        helps=Helps.NEITHER,
        because="There is no connection yet that either of them could look at.",
        remedies=(
            "Connect again, with growing pauses, for as long as outages last here (failover.outage_seconds of the"
            " advice).",
            "If it never worked: check host and port, listen_addresses, and what a sidecar proxy listens on.",
        ),
    ),
    KnownError(
        title="connecting timed out",
        depth=Depth.SYSTEM,
        signs=(
            r"connection timeout expired",
            r"\bConnectionTimeout\b",
            r"^(?:psycopg2\.)?OperationalError: timeout expired",
            r"\[Errno (?:110|60)\] Connect call failed",
            r"connection to server .* failed: (?:Connection|Operation) timed out",
            (r"^(?:[\w.]+\.)?TimeoutError\b(?!:)", r"asyncpg[/\\]connect_utils"),
        ),
        cause="Nobody answered the attempt to connect: a firewall or security group drops it, the address belongs to a"
        " host that is gone or fenced, or the server is too busy to accept.",
        helps=Helps.NEITHER,
        because="There is no connection yet that either of them could look at.",
        remedies=(
            "During a failover this is what the old address does: connect again, and see how long DNS kept it.",
            "Otherwise follow the way from the application's host: routes, security groups, network policies.",
            "Keep the time for connecting short (asyncpg: timeout, libpq: connect_timeout); it holds a place in the"
            " pool.",
        ),
    ),
    KnownError(
        title="connection timed out in use (ETIMEDOUT)",
        depth=Depth.SYSTEM,
        signs=(r"\bETIMEDOUT\b", "Connection timed out(?!, timeout)", r"\[Errno (?:110|60)\]"),
        cause="Data was sent and never acknowledged until the kernel gave up: after TCP_USER_TIMEOUT where it is set,"
        " after about 15 minutes where not. Something on the path dropped the connection silently (a firewall, a"
        " connection table), or the host is gone.",
        helps=Helps.RECYCLE,
        because="Recycling below the limit prevents it. A pre-ping on such a connection hangs just as long, unless"
        " TCP_USER_TIMEOUT ends it.",
        remedies=(
            "Set TCP keepalive below the limit and TCP_USER_TIMEOUT on the client's sockets; asyncpg needs a `connect`"
            " listener, as in the format `python` of the advice.",
            _MEASURED,
        ),
    ),
    KnownError(
        title="connection reset by peer (ECONNRESET)",
        depth=Depth.SYSTEM,
        signs=(
            "Connection reset by peer",
            "ConnectionResetError",
            r"\bECONNRESET\b",
            r"\[Errno (?:104|54|32)\]",
            "Broken pipe",
            r"\bEPIPE\b",
        ),
        cause="Somebody on the path no longer knew the connection and answered with a reset: a load balancer or NAT"
        " gateway after its idle limit, or a host that was restarted.",
        helps=Helps.BOTH,
        because="pool_recycle below the limit prevents it; pre-ping meets the reset instead of the application.",
        remedies=(_MEASURED, _FIND_THE_DEATH, _RETRY),
    ),
    KnownError(
        title="server closed the connection unexpectedly",
        depth=Depth.DRIVER,
        sqlstates=("08006",),
        signs=("server closed the connection unexpectedly", r"\bConnectionFailure", "closed by the remote host"),
        cause="The connection ended and nobody said why. After a rest: an idle limit on the path. In the middle of"
        " work: the server process crashed, was killed, or somebody in between cut it.",
        helps=Helps.BOTH,
        because="When it comes after a rest, pool_recycle below the limit prevents it and pre-ping finds it first. In"
        " the middle of work neither helps.",
        remedies=(
            _FIND_THE_DEATH,
            "See the server's log at that time: a crash or an out-of-memory kill stands there, an idle limit of the"
            " network does not.",
            _RETRY,
        ),
    ),
    KnownError(
        title="SSL SYSCALL error: EOF detected",
        depth=Depth.DRIVER,
        signs=(
            "SSL SYSCALL error",
            "SSL connection has been closed unexpectedly",
            "unexpected eof while reading",
        ),
        cause="The connection ended without the goodbye that TLS asks for. TLS is not at fault: it is the same as"
        " `server closed the connection unexpectedly`, on an encrypted connection.",
        helps=Helps.BOTH,
        because="When it comes after a rest, pool_recycle below the limit prevents it and pre-ping finds it first. In"
        " the middle of work neither helps.",
        remedies=(
            _FIND_THE_DEATH,
            "See the server's log at that time: a crash or an out-of-memory kill stands there, an idle limit of the"
            " network does not.",
            _RETRY,
        ),
    ),
    KnownError(
        title="ConnectionDoesNotExistError: connection was closed in the middle of operation",
        depth=Depth.DRIVER,
        sqlstates=("08003",),
        signs=("ConnectionDoesNotExist", "connection was closed in the middle of operation"),
        cause="asyncpg was waiting for an answer when the connection ended, and nobody said why: it had died at rest"
        " and only using it showed that, or the server or the path ended it just then.",
        helps=Helps.BOTH,
        because="When it is the first query after a rest, pool_recycle below the limit prevents it and pre-ping meets"
        " it first. In the middle of work neither helps.",
        remedies=(_FIND_THE_DEATH, _MEASURED, _RETRY),
    ),
    KnownError(
        title="connection is closed",
        depth=Depth.DRIVER,
        signs=(
            r"(?<!if )connection is closed\b",
            "connection already closed",
            "connection has been released back to the pool",
        ),
        cause="The connection had ended before this was asked of it. asyncpg notices at once when a resting connection"
        " is closed, but drops the reason that the server gives.",
        helps=Helps.BOTH,
        because="Pre-ping finds it without asking the network, as the driver knows already. pool_recycle below an idle"
        " limit keeps it from happening.",
        remedies=(
            "If pre-ping is on, the connection ended after checkout: look for code that keeps it for long, or uses it"
            " after an earlier error.",
            _FIND_THE_DEATH,
            "The server's log says what asyncpg dropped: 57P01, 57P05, 25P03.",
        ),
    ),
    KnownError(
        title="TimeoutError from command_timeout",
        depth=Depth.DRIVER,
        signs=(
            r"\bcommand_timeout\b",
            # Either nothing is known but this line, or it was asyncpg that waited.
            (r"^(?:[\w.]+\.)?TimeoutError\b(?!:)", r"\A\Z|asyncpg"),
        ),
        cause="An answer took longer than asyncpg's command_timeout, or an asyncio.timeout around it: a slow query or a"
        " lock, or a connection that was dropped silently and will never answer.",
        helps=Helps.NEITHER,
        because="It is no error of the database to SQLAlchemy, so that even during a pre-ping the pool neither"
        " reconnects nor doubts its other connections: each dead one costs a request. (Recycling below the limit does"
        " prevent a silent death.)",
        remedies=(
            "First query after a rest? Then the path drops connections silently: TCP keepalive and TCP_USER_TIMEOUT on"
            " the client's sockets turn the hang into a lost connection, which the pool replaces.",
            "Otherwise look for the slow query or the lock it waits for: pg_stat_activity, wait_event.",
            "Bound queries by statement_timeout on the server, which keeps the connection usable.",
        ),
    ),
    KnownError(
        title="QueuePool limit reached: the pool is exhausted",
        depth=Depth.POOL,
        signs=(
            "QueuePool limit",
            r"\bPoolTimeout\b",
            "couldn't get a connection after",
            "Connection is not available, request timed out",
            "connection pool has been exhausted",
        ),
        cause="All connections were checked out for longer than the pool waits: a leak, transactions that take too"
        " long, or more work at once than pool_size + max_overflow.",
        helps=Helps.NEITHER,
        because="Both look at connections that rest in the pool, and there were none.",
        remedies=(
            "Look for a leak first: sessions `idle in transaction` in pg_stat_activity, code that checks out without"
            " `async with`, or holds a connection while it waits for something else.",
            "Is the database slow, or are connections hanging on a silent path? Then this is only where it shows.",
            "Only then raise pool_size, within what the server can take.",
        ),
    ),
    KnownError(
        title="pre-ping failed: the pool found a dead connection and replaced it",
        depth=Depth.POOL,
        signs=("pre-ping on connection .* failed", "pre-ping failed", "Disconnection detected on checkout"),
        cause="A connection had died at rest. Pre-ping found it before the application did, and replaced it: this line"
        " reports a success.",
        helps=Helps.BOTH,
        because="Pre-ping has just helped. pool_recycle below the idle limit makes it rare.",
        remedies=(
            "Now and then, after a restart or failover: nothing.",
            "All the time: pool_recycle lies above an idle limit of the path. " + _MEASURED,
        ),
    ),
)
