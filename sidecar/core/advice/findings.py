"""What the advice is made of before it has words: a code, and the numbers it was decided from.

Whoever decides returns findings; `remarks` puts them into sentences. So a decision can be tested without its wording,
and the wording changed without a decision. The codes are public: scripts go by them, and none is ever renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.advice.recommendation import VerdictKind
from sidecar.core.evidence import Death


class Code(StrEnum):
    """What a reason or a warning says, as it is published. docs/recommendation.md explains each."""

    # what is known of rests
    MEASURING = "measuring"
    LIMIT_BRACKETED = "limit_bracketed"
    IDLE_LIMIT_MEASURED = "idle_limit_measured"
    NO_LIMIT_SEEN = "no_limit_seen"
    DEATH_SILENT = "death_silent"
    DEATH_RESET_ON_USE = "death_reset_on_use"
    DEATH_CLOSED = "death_closed"
    DEATH_FATAL = "death_fatal"
    # what is known of ages
    LIFETIME_LIMIT_MEASURED = "lifetime_limit_measured"
    NO_LIFETIME_LIMIT_SEEN = "no_lifetime_limit_seen"
    # why pool_recycle is what it is
    SHARE_OF_PROVEN = "share_of_proven"
    SHARE_OF_LIFETIME = "share_of_lifetime"
    LIFETIME_SUSPECTED = "lifetime_suspected"
    CAPPED_BY_POLICY = "capped_by_policy"
    RAISED_BY_POLICY = "raised_by_policy"
    NOTHING_PROVEN = "nothing_proven"
    DECLARED_LIMIT = "declared_limit"
    KEPT_BY_KEEPALIVE = "kept_by_keepalive"
    # why the ping is on, or not
    PRE_PING_COST = "pre_ping_cost"
    PRE_PING_KEPT = "pre_ping_kept"
    PRE_PING_SELECTIVE = "pre_ping_selective"
    # warnings
    TRIAL_FAILED = "trial_failed"
    SILENT_DEATH = "silent_death"
    LIMIT_SUSPECT = "limit_suspect"
    SEVERAL_POPULATIONS = "several_populations"
    TRANSACTION_POOLER = "transaction_pooler"
    TOO_SHORT_TO_POOL = "too_short_to_pool"
    MASKED_BY_SERVER_KEEPALIVE = "masked_by_server_keepalive"
    NOT_THE_SERVER = "not_the_server"
    STALE_WRITER = "stale_writer"
    POOL_EXHAUSTED = "pool_exhausted"
    IDLE_IN_TRANSACTION = "idle_in_transaction"
    APPLICATION_RESTS_TOO_LONG = "application_rests_too_long"
    APPLICATION_LEAVES_SESSIONS = "application_leaves_sessions"
    MEASURING_IS_SMALL = "measuring_is_small"
    MEASURING_IS_PAUSED = "measuring_is_paused"

    @classmethod
    def of_death(cls, death: Death) -> Code:
        """The code that tells how resting connections die."""
        return cls(f"death_{death}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One reason or warning. `values` are the arguments of its sentence in `remarks`."""

    code: Code
    values: Mapping[str, object] = field(default_factory=dict)


def found(code: Code, **values: object) -> Finding:
    return Finding(code=code, values=values)


class WhyPing(StrEnum):
    """Why the ping stays on at every checkout."""

    DEATH_UNKNOWN = "death_unknown"  # it is not known how connections die here
    NOT_VERIFIED = "not_verified"
    OUTAGES = "outages"  # they leave dead connections behind
    SILENT = "silent"  # it turns a hang into a reconnect
    CHEAP = "cheap"
    PRICE_UNKNOWN = "price_unknown"


class WhyWaiting(StrEnum):
    """Why no connection rests."""

    OFF = "off"  # the settings have it so
    PAUSED = "paused"  # an operator has it so
    NO_ROOM = "no_room"  # the server can spare none
    NOT_OPEN = "not_open"  # none is open yet


class Ground(StrEnum):
    """What a verdict on the application stands on."""

    NOTHING_PROVEN = "nothing_proven"
    YOUNG_ENOUGH = "young_enough"  # its pool_recycle is within what is proven
    NO_DEATH_SEEN = "no_death_seen"  # it is beyond, and nothing has died yet
    SETTING_UNKNOWN = "setting_unknown"  # the one that decides is not declared
    UNPINGED = "unpinged"  # dead connections are handed out unasked
    PING_HANGS = "ping_hangs"  # they are asked, and nothing answers
    PING_FINDS = "ping_finds"  # they are asked, and found
    NO_SESSION_SEEN = "no_session_seen"  # nothing is declared, and the server shows no session
    SESSION_DEAD = "session_dead"  # the server shows one that has rested longer than connections live
    SESSIONS_YOUNG = "sessions_young"  # it shows none
    TRIAL_SUCCEEDED = "trial_succeeded"
    TRIAL_FAILED = "trial_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A verdict and what it stands on. `values` are the arguments of its sentence in `remarks`."""

    verdict: VerdictKind
    ground: Ground
    values: Mapping[str, object] = field(default_factory=dict)


def judged(verdict: VerdictKind, ground: Ground, **values: object) -> Judgement:
    return Judgement(verdict=verdict, ground=ground, values=values)
