"""What answers look like, for the description of the interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sidecar import documents

RECOMMENDATION: Mapping[str, Any] = {
    "schema": documents.SCHEMA,
    "target": "default",
    "generated_at": "2026-11-24T03:00:00Z",
    "status": "verified",
    "settings": {
        "pool_recycle": 171,
        "pool_pre_ping": True,
        "selective_pre_ping_after": None,
        "pool_recycle_with_keepalive": 1800,
    },
    "socket": {"keepalive": {"idle": 102, "interval": 15, "count": 3}, "user_timeout_ms": 5000},
    "connect_args": {},
    "idle_limit": {
        "proven_seconds": 343.2,
        "dead_by_seconds": 350.2,
        "estimate_seconds": 346.7,
        "death": "silent",
        "sqlstate": None,
        "keepalive_helps": True,
        "likely": [{"id": "network_firewall", "component": "a stateful firewall that drops what it has forgotten"}],
    },
    "lifetime_limit": None,
    "pre_ping_cost": {
        "round_trips": 3,
        "p50_ms": 1.8,
        "p99_ms": 4.1,
        "overhead_ratio": 0.3,
        "overhead_low": 0.28,
        "overhead_high": 0.33,
        "round_trips_autocommit": 1,
    },
    "failover": {
        "outages": 2,
        "outage_seconds": {"p50": 14.2, "max": 31.5},
        "write_outage_seconds": {"p50": 16.1, "max": 33.4},
    },
    "application": {"verdict": "exposed", "because": "its pool_recycle of 1800 s lies above the idle limit"},
    "verification": {"outcome": "ok", "idle_seconds": 357.1, "checkout_ms": 6.2, "at": "2026-11-24T02:59:58.25Z"},
    "trials": [
        {
            "name": "pre_ping_only",
            "pool_recycle": -1,
            "pool_pre_ping": True,
            "keepalive": False,
            "outcome": "hang",
            "idle_seconds": 367.7,
            "checkout_ms": None,
            "reconnected": None,
            "error": "no answer within 15 s",
            "at": "2026-11-24T02:59:58.25Z",
        }
    ],
    "reasons": [
        {
            "code": "idle_limit_measured",
            "text": "Connections die after resting between 343 and 350 seconds.",
            "evidence": "/evidence?target=default&outcome=died",
        }
    ],
    "warnings": [],
}
"""Of `/recommendation`: a limit found on a path that drops what rests, and tried out."""
