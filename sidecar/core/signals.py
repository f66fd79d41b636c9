"""What a server says when it refuses or ends a connection, as far as decisions depend on it.

A driver of a database family maps its own codes (SQLSTATEs, error numbers) to these; nothing in the core reads a code.
The code itself travels beside the signal, to be shown and counted. Where no server spoke there is no signal, but None.
"""

from __future__ import annotations

from enum import StrEnum

EXHAUSTED = "Exhausted"
"""What failures to connect are counted under in which no server was asked: this process had nothing left to do it with,
no descriptor, no port, no memory."""


class ServerSignal(StrEnum):
    """The server's own words, or those of a pooler before it, understood."""

    STOPPING = "stopping"  # it, or an administrator, ends this session: a stop, or pg_terminate_backend
    ORPHANED = "orphaned"  # its main process was killed; what is left of it ends this session
    CRASHED = "crashed"  # another session's crash takes all sessions down, the server lives on
    STARTING = "starting"  # it takes no connections yet, or no more
    IDLE_TIMEOUT = "idle_timeout"  # the session rested too long
    IN_TRANSACTION_TIMEOUT = "in_transaction_timeout"  # the session held a transaction too long
    FULL = "full"  # no connection is free, or there is nothing left to serve one with
    LOGIN_REFUSED = "login_refused"  # user, password or address are not accepted
    NO_DATABASE = "no_database"  # there is none of that name
    QUEUED = "queued"  # a pooler has no connection to serve one with, and others wait for one
    READ_ONLY = "read_only"  # writing is refused
    UNREACHABLE = "unreachable"  # a pooler or proxy has lost the server itself, or cannot reach it
    UNKNOWN = "unknown"  # it said something else

    @property
    def ends_sessions(self) -> bool:
        """Whether it ends sessions whatever they did, be it one of them or all."""
        return self in (ServerSignal.STOPPING, ServerSignal.ORPHANED, ServerSignal.CRASHED)

    @property
    def is_refusal(self) -> bool:
        """Whether it is the answer of one at work that does not want this connection: asking again soon is no use."""
        return not self.out_of_service and self is not ServerSignal.UNREACHABLE

    @property
    def is_exhaustion(self) -> bool:
        """Whether it wants no connection because too many are open already, which those that are open do not feel."""
        return self in (ServerSignal.FULL, ServerSignal.QUEUED)

    @property
    def out_of_service(self) -> bool:
        """Whether nobody is served, for a reason that lies with the server: it ends sessions, or does not take them."""
        return self.ends_sessions or self is ServerSignal.STARTING
