"""Which server answered: is it another one, another life of the same one?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which server answered, as far as it can be known without privileges.

    Two answers come from the same life of the same server when `key` is equal.
    """

    address: str | None = None  # inet_server_addr():port, as the server sees itself
    started_at: float | None = None  # pg_postmaster_start_time()
    system_identifier: str | None = None
    timeline: int | None = None
    in_recovery: bool | None = None
    backend_pid: int | None = None  # of the backend that answered; a change on one connection betrays a pooler

    @property
    def key(self) -> tuple[str | None, float | None]:
        return (self.address, self.started_at)
