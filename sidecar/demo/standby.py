"""A second embedded PostgreSQL that streams from a first one, until it is promoted to take its place."""

from __future__ import annotations

from collections.abc import Mapping

from sidecar.demo.server import HOST, PostgresServer


class StandbyServer(PostgresServer):
    """A copy of a running `primary`, made by the constructor with `pg_basebackup`; it follows the primary once started.

    Takes about a second to make. `settings` are its own, not the primary's; its files are beside the primary's.
    """

    def __init__(self, primary: PostgresServer, settings: Mapping[str, str | int] | None = None) -> None:
        self._primary = primary
        super().__init__(settings, under=primary.directory.parent)

    def _create(self) -> None:
        primary = ["-h", HOST, "-p", str(self._primary.port), "-U", self.user]
        data = str(self.directory / "data")
        self._run("pg_basebackup", "-D", data, *primary, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")

    def promote(self) -> None:
        """Have it take writes, on a timeline of its own; returns when it does."""
        self._run("pg_ctl", "promote", "-D", str(self.directory / "data"))
