"""How many connections the measurement may take from a server, and when it must give them all back.

A measurement that starves the application would be worse than none. It takes at most a twentieth of what is free,
never fewer than two (with one, nothing can be compared), and nothing at all once the server runs near its limit.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE_OF_FREE = 0.05
YIELD_ABOVE = 0.80  # of max_connections
LEAST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the server says of itself, read without privileges. Seconds; 0 = switched off; None = not known."""

    server_version: str | None = None
    idle_session_timeout: float | None = None
    idle_in_transaction_timeout: float | None = None
    tcp_keepalives_idle: float | None = None
    max_connections: int | None = None
    reserved_connections: int | None = None
    used_connections: int | None = None
    in_recovery: bool | None = None


def connections_to_spare(declared: Declared, wanted: int, own: int) -> int:
    """How many probe connections may be open: at most `wanted`, 0 when the server is nearly full.

    `own` is how many of the used ones are ours. Without figures from the server the wish stands: it is small.
    """
    if declared.max_connections is None or declared.used_connections is None:
        return wanted
    others = max(0, declared.used_connections - own)
    if others > YIELD_ABOVE * declared.max_connections:
        return 0
    free = declared.max_connections - (declared.reserved_connections or 0) - others
    return min(wanted, max(LEAST, int(SHARE_OF_FREE * free)))
