"""The catalogue of known limits, read from the package's own data."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from sidecar.core.advice.attribution import KnownLimit


@cache
def known_limits() -> tuple[KnownLimit, ...]:
    """All entries of `catalogue.toml`, in its order."""
    document = tomllib.loads(Path(__file__).with_name("catalogue.toml").read_text("utf-8"))
    return tuple(
        KnownLimit(
            id=entry["id"],
            component=entry["component"],
            limits=entry["limits"],
            default_seconds=entry.get("default_seconds"),
            death=entry["death"],
            tcp_keepalive_resets=entry["tcp_keepalive_resets"],
            configurable=entry.get("range_seconds") in ("any", "sysctl", "config", "flag", "0=off"),
        )
        for entry in document["limit"]
    )
