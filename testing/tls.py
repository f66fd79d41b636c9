"""A real PostgreSQL that speaks TLS, where Debian's is installed: the embedded one is built without."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import trustme

from sidecar.demo.server import HOST, PostgresServer


def system_binaries() -> Path | None:
    """Where the programs of the newest PostgreSQL of the system are; None where there is none."""
    return max(
        (found.parent for found in Path("/usr/lib/postgresql").glob("*/bin/postgres")),
        key=lambda binaries: float(binaries.parent.name),
        default=None,
    )


class TlsServer(PostgresServer):
    """The system's PostgreSQL with a certificate of an authority of its own. `system_binaries` must find one."""

    def __init__(self, settings: Mapping[str, str | int] | None = None, *, password: str | None = None) -> None:
        super().__init__(settings, password=password)
        self.settings = {name: value for name, value in self.settings.items() if name != "io_method"}  # of version 18
        self.authority = trustme.CA()
        made = self.authority.issue_cert(HOST)
        owner = self.data.stat()
        for name, blob in (("server.crt", made.cert_chain_pems[0]), ("server.key", made.private_key_pem)):
            blob.write_to_path(str(self.data / name))
            os.chown(self.data / name, owner.st_uid, owner.st_gid)
            (self.data / name).chmod(0o600)
        self.settings["ssl"] = "on"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def _find_binaries(self) -> Path:
        binaries = system_binaries()
        assert binaries is not None
        return binaries
