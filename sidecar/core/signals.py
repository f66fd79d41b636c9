"""What a server says when it refuses or ends a connection, as far as decisions depend on it.

A driver of a database family maps its own codes (SQLSTATEs, error numbers) to these; nothing in the core reads a code.
The code itself travels beside the signal, to be shown and counted.
"""

from __future__ import annotations

from enum import StrEnum


class ServerSignal(StrEnum):
    """The server's own words, understood."""

    STOPPING = "stopping"  # it, or an administrator, ends this session: a stop, or pg_terminate_backend
    CRASHED = "crashed"  # another session's crash takes all sessions down, the server lives on
    STARTING = "starting"  # it takes no connections yet, or no more
    IDLE_TIMEOUT = "idle_timeout"  # the session rested too long
    IN_TRANSACTION_TIMEOUT = "in_transaction_timeout"  # the session held a transaction too long
    FULL = "full"  # no connection is free
    LOGIN_REFUSED = "login_refused"  # user, password or address are not accepted
    NO_DATABASE = "no_database"  # there is none of that name
    READ_ONLY = "read_only"  # writing is refused
    UNREACHABLE = "unreachable"  # a pooler or proxy that cannot reach the server itself
    UNKNOWN = "unknown"  # it said something else
