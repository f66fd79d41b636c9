"""Probe connections as the idle-limit machine knows them."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.evidence import Arm


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeView:
    """One resting probe connection, for progress displays."""

    connection: int
    arm: Arm
    state: str  # opening | resting | using | …
    idle_seconds: float
    until_seconds: float | None  # the rest it is meant to reach; None for a sentinel
