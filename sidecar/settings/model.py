"""The settings themselves: frozen sections. The docstring of each key says what it means, its unit and why its default.

Rules between neighbouring keys stand beside them; the values by themselves are in `values` and `url`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    SecretStr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from sidecar.settings.url import URL_FORM, DatabaseUrl
from sidecar.settings.values import Duration, FilePath, Share, TargetName, Whole, format_duration


class Section(BaseModel):
    """A group of settings. The docstring of each key says what it means, its unit and why its default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_default=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_under_its_heading(cls, value: Any) -> Any:
        return {} if value is None else value


class TlsSettings(Section):
    """How the connection to the database is encrypted; the modes are libpq's `sslmode`."""

    mode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = "prefer"
    """Whether to encrypt, and what of the server's certificate to verify. libpq's own default, `prefer`, connects
    to whatever the server offers; only `verify-full` keeps an impostor out. `sslmode` in the URL sets it too."""

    ca_file: FilePath | None = None
    """Certificates (PEM) of the authorities to trust, for `verify-ca` and `verify-full`. Without it, those the
    operating system trusts."""

    cert_file: FilePath | None = None
    """The client's own certificate (PEM), where the server asks for one. None unless set."""

    key_file: FilePath | None = None
    """The key of `cert_file`. Not needed when the key stands in the same file."""

    @field_validator("ca_file")
    @classmethod
    def _ca_is_used(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("mode") in ("disable", "prefer", "require"):
            raise ValueError("would not be used: takes mode verify-ca or verify-full beside it")
        return value

    @field_validator("cert_file")
    @classmethod
    def _certificate_is_used(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # Under `prefer` the server may decline TLS, and the certificate would silently not be presented.
        if value is not None and info.data.get("mode") in ("disable", "prefer"):
            raise ValueError("may not be used: takes mode require, verify-ca or verify-full beside it")
        return value

    @field_validator("key_file")
    @classmethod
    def _key_has_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("cert_file", value) is None:
            raise ValueError("would not be used: takes cert_file beside it")
        return value


class PoolSettings(Section):
    """The pool the sidecar itself holds, to live through what the application lives through."""

    size: Annotated[int, Whole(1, 100)] = 2
    """Connections held. Two: one can be checked out with pre-ping beside one without, at little cost to the server. A
    wish: while the idle limit is searched for, a second one comes after the connections that rest, and none is held
    where the server has none to spare."""

    pre_ping: bool = True
    """Whether checkouts ping. On, as the cautious advice is; the price of a ping is measured either way."""

    recycle: Annotated[float | Literal["auto"], Duration("1ms", "365d", also=("auto",))] = "auto"
    """Age in seconds at which a connection is replaced at checkout. `auto` follows the sidecar's own advice, so that
    the advice is lived by before anyone else is told to."""

    timeout: Annotated[float, Duration("10ms", "5m")] = 5.0
    """Seconds a checkout may take, connecting included, before it counts as failed. Ample for a connect over TLS to
    another region, short beside any outage."""


class IdleSettings(Section):
    """The measurement of the idle limit: how long a connection may rest on this path and still live."""

    enabled: bool = True
    """Whether to measure it. Off opens no resting connections: what the server declares and what is already proven
    still lead to advice. To let a scale-to-zero database sleep, do not point a sidecar at it: the heartbeat and the
    pool also keep it awake."""

    connections: Annotated[int, Whole(2, 64)] = 8
    """Connections resting side by side. More find the limit sooner: eight within about 1.5 times the limit, four
    within 2.4, sixteen within 1.2. A wish: what the server has to spare is shared with the pool and the trials, and is
    seven in all on a server of a hundred."""

    floor: Annotated[float, Duration("10ms", "1d")] = 5.0
    """Shortest rest tested, in seconds. No pool lives well with less than five seconds."""

    cap: Annotated[float, Duration("20ms", "30d")] = 86400.0
    """Longest rest tested, in seconds. No known component that counts idle time by default waits longer than a day,
    and no pool keeps a connection that long."""

    deadline: Annotated[float, Duration("10ms", "5m")] = 10.0
    """Seconds a rested connection may take to answer before it counts as silently dead. Long enough for several TCP
    retransmissions, so that one lost packet kills nobody."""

    @field_validator("cap")
    @classmethod
    def _cap_above_floor(cls, value: float, info: ValidationInfo) -> float:
        if value <= info.data.get("floor", 0):
            raise ValueError(f"too short: takes more than floor, {format_duration(info.data['floor'])}")
        return value


class HeartbeatSettings(Section):
    """The watch over the database itself, which times restarts, failovers and partitions."""

    enabled: bool = True
    """Whether to keep a connection for it. Off holds none: a short one looks in every minute, so that readiness and the
    number of connections are known all the same, and no outage is recorded or timed."""

    every: Annotated[float, Duration("10ms", "1h")] = 1.0
    """Seconds between two beats. One round trip a second is nothing to a server and times a silent outage to within
    `every` + `deadline`; a visible one is noticed at once."""

    deadline: Annotated[float, Duration("10ms", "5m")] = 2.0
    """Seconds a beat may take before the database is suspected. Above the hiccups of a healthy network, below what
    an application's user waits."""

    reconnect_every: Annotated[float, Duration("10ms", "1m")] = 0.1
    """Seconds between two connection attempts while the database is down: how exactly the end of an outage is timed.
    Not longer than `every`. A tenth of a second is gentle for a server that is starting."""

    door_every: Annotated[float, Duration("10ms", "1h")] = 20.0
    """Seconds between two looks whether a fresh connection can be had, while all is well. Each is a login and a line in
    the server's log, where it logs them; on any suspicion one is made at once. Only an outage that leaves open
    connections alone, a full server above all, is timed by it."""

    @field_validator("reconnect_every")
    @classmethod
    def _not_slower_than_beats(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("every", value):
            raise ValueError(f"too long: takes at most every, {format_duration(info.data['every'])}")
        return value


class ApplicationSettings(Section):
    """What the application's pool runs with today; the verdict says what that leads to. A key left out is unknown."""

    pool_recycle: Annotated[float, Duration("1ms", "365d", also=(-1,))] | None = None
    """Its `pool_recycle`, in seconds; -1 means never, as in SQLAlchemy. Unknown unless told."""

    pool_pre_ping: bool | None = None
    """Its `pool_pre_ping`. Unknown unless told."""

    checkout_p99: Annotated[float, Duration("1ms", "1m")] | None = None
    """The 99th percentile, in seconds, that its checkouts should stay below; a dearer ping is then advised against.
    No target unless told."""


class TargetSettings(Section):
    """One database over one path. Several targets are measured side by side."""

    url: DatabaseUrl
    """Where the database is: `postgresql+asyncpg://user@host:port/database`, also with the scheme `postgresql` or
    `postgres`. The port is 5432 and the database named like the user unless given. No default."""

    password_file: FilePath | None = None
    """File that holds the password, read again at every connect, so that a rotated one is taken up without a restart.
    It need not exist at the start. None unless set: the password then stands in the URL, or there is none."""

    tls: TlsSettings = TlsSettings()
    """Encryption on the way to the database."""

    pool: PoolSettings = PoolSettings()
    """The held pool."""

    idle: IdleSettings = IdleSettings()
    """The idle-limit measurement."""

    heartbeat: HeartbeatSettings = HeartbeatSettings()
    """The watch for outages."""

    application: ApplicationSettings | None = None
    """The application's own settings. Without them no verdict is given."""

    @field_validator("password_file")
    @classmethod
    def _one_password(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        # To let either win would leave the other behind as a secret that nobody rotates.
        url = info.data.get("url")
        if value is not None and url is not None and url.password is not None:
            raise ValueError("the URL holds a password too: takes one of both")
        return value

    @field_validator("tls", mode="before")
    @classmethod
    def _tls_of_url(cls, value: Any, info: ValidationInfo) -> Any:
        url = info.data.get("url")
        if isinstance(value, TlsSettings):
            value = value.model_dump(exclude_unset=True)
        if url is None or not isinstance(value, dict | None):
            return value
        merged = url.tls | (value or {})
        for key, text in url.tls.items():
            if str(merged[key]) != text:
                raise ValueError(f"{key} differs from the URL's parameter: takes one of both")
        return merged

    @property
    def host(self) -> str:
        return self.url.host

    @property
    def port(self) -> int:
        return self.url.port

    @property
    def database(self) -> str:
        return self.url.database

    @property
    def user(self) -> str:
        return self.url.user

    @property
    def password(self) -> SecretStr | None:
        """The URL's password; None where `password_file` holds it, or where there is none."""
        return self.url.password

    @property
    def display(self) -> str:
        """`host:port/database`, fit for logs and metrics."""
        return self.url.display


class PolicySettings(Section):
    """How measurements become advice."""

    safety: Annotated[float, Share()] = 0.5
    """Recommended `pool_recycle` as a share of the proven idle limit. Half is the usual rule: it leaves room for a
    path with a second, shorter timer and for a limit that is lowered."""

    max_pool_recycle: Annotated[float, Duration("1s", "30d")] = 1800.0
    """The recommended `pool_recycle` never exceeds this many seconds, whatever was proven. Half an hour also spreads
    connections over new replicas and takes up new credentials in reasonable time."""

    min_pool_recycle: Annotated[float, Duration("1s", "30d")] = 30.0
    """The recommended `pool_recycle` does not fall below this many seconds until something shorter is measured or
    declared. Who reads the advice once, at its start, lives with it: at two seconds it would reconnect every two for
    life. Half a minute is half of the shortest layer-4 default known. Not above `policy.max_pool_recycle`; where that
    is lower and this is not set, that holds."""

    ping_overhead: Annotated[float, Share()] = 0.10
    """Share of a checkout's time above which pinging at every checkout is advised against."""

    @field_validator("min_pool_recycle")
    @classmethod
    def _least_below_most(cls, value: float, info: ValidationInfo) -> float:
        if value > info.data.get("max_pool_recycle", value):
            raise ValueError("above max_pool_recycle: takes a shorter one, or a longer max_pool_recycle")
        return value


class FleetSettings(Section):
    """What this sidecar may take from the servers that it measures, beside the rules that hold for all."""

    max_connections: Annotated[int, Whole(2, 10000)] | None = None
    """The most connections this process may hold, to all targets together, heartbeats included; one of them is a fresh
    one that it opens now and then. It only ever lowers what the rules allow (see docs/cost.md), which are strict
    enough by themselves: none unless set."""


class ReadinessSettings(Section):
    """When `/health` answers 503."""

    depends_on: Literal["database", "process"] = "database"
    """`database`: not ready while a target's database is down. `process`: ready while the sidecar works. Where the
    probe decides about a whole pod's traffic, `database` takes every pod out of service in one failover."""

    grace: Annotated[float, Duration("0s", "1h")] = 10.0
    """Seconds a database may be down before readiness follows. Ten ride out a restart and the blip of a pooler, while
    a failover that takes a minute still shows."""


class HttpSettings(Section):
    """Where the sidecar answers."""

    host: str = "0.0.0.0"  # noqa: S104 - probes and Prometheus come from outside the pod
    """Address to listen on. All of IPv4, since probes and Prometheus come from outside the pod; `::` for IPv6."""

    port: Annotated[int, Whole(0, 65535)] = 8080
    """Port of the HTTP interface; 0 takes any free one. 8080 is open to a process without privileges."""

    admin_port: Annotated[int, Whole(0, 65535)] = 9091
    """Port for leaving and measuring afresh, on the loopback interface only; 0 takes any free one."""

    @field_validator("host")
    @classmethod
    def _one_word(cls, value: str) -> str:
        if not re.fullmatch(r"[^\s/]+", value):
            raise ValueError("not an address: takes 0.0.0.0, ::, 127.0.0.1 or a host name")
        return value

    @field_validator("admin_port")
    @classmethod
    def _two_ports(cls, value: int, info: ValidationInfo) -> int:
        if value and value == info.data.get("port"):
            raise ValueError("the same as port: takes another one")
        return value


class StoreSettings(Section):
    """Where evidence is kept, so that a restart resumes what was proven."""

    url: SecretStr = SecretStr("sqlite+aiosqlite:///evidence.db")
    """SQLAlchemy URL, `sqlite+aiosqlite` or `postgresql+asyncpg`. A file in the working directory needs no other
    service; PostgreSQL suits several sidecars that share what they prove."""

    @field_validator("url")
    @classmethod
    def _usable(cls, value: SecretStr) -> SecretStr:
        scheme, _, rest = value.get_secret_value().partition("://")
        if scheme in ("sqlite", "sqlite+aiosqlite") and rest[:1] in ("", "/"):
            return SecretStr(f"sqlite+aiosqlite://{rest}")
        if not scheme.startswith("postgres"):
            raise ValueError("not a store's URL: takes sqlite+aiosqlite:///evidence.db or " + URL_FORM)
        url = DatabaseUrl.parse(value.get_secret_value())
        if url.tls.keys() - {"mode"}:
            raise ValueError("has a parameter that is not supported: takes sslmode and no other")
        query = f"?ssl={url.tls['mode']}" if url.tls else ""  # as SQLAlchemy calls it under asyncpg
        return SecretStr(f"postgresql+asyncpg://{rest.partition('?')[0]}{query}")

    @property
    def display(self) -> str:
        """The URL without its password and parameters."""
        url = self.url.get_secret_value()
        return url.partition("?")[0] if url.startswith("sqlite") else str(DatabaseUrl.parse(url))

    @field_serializer("url", when_used="json")
    def _masked(self, _: SecretStr) -> str:
        return self.display


class LogSettings(Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe records written. `info` tells of every change, not of every measurement."""

    format: Literal["json", "console"] = "json"
    """`json`: one object a line, for collectors. `console`: for people."""


class Settings(Section, BaseSettings):  # type: ignore[misc]  # their configurations merge: one extends the other
    """All of it. Built by `load_settings`, or directly from a mapping by `Settings.model_validate`."""

    targets: dict[TargetName, TargetSettings]
    """The databases to measure, by name. The name is the metrics' label `target`."""

    policy: PolicySettings = PolicySettings()
    """How measurements become advice."""

    fleet: FleetSettings = FleetSettings()
    """What it may take from the servers."""

    readiness: ReadinessSettings = ReadinessSettings()
    """When the sidecar says that it is ready."""

    http: HttpSettings = HttpSettings()
    """Where the sidecar answers."""

    store: StoreSettings = StoreSettings()
    """Where evidence is kept."""

    log: LogSettings = LogSettings()
    """What is logged, and how."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # what `load_settings` has merged

    @field_validator("targets")
    @classmethod
    def _some_target(cls, value: dict[str, TargetSettings]) -> dict[str, TargetSettings]:
        if not value:
            raise ValueError("empty: takes at least one target")
        return value


def keys(model: type[Section] = Settings, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every key that takes a value, with its field: `("targets", "*", "pool", "size")`, …"""
    for name, info in model.model_fields.items():
        here = (*prefix, name)
        section = next((kind for kind in (info.annotation, *get_args(info.annotation)) if _is_section(kind)), None)
        if section is None:
            yield here, info
        else:
            yield from keys(section, (*here, "*") if get_origin(info.annotation) is dict else here)


def _is_section(kind: object) -> TypeGuard[type[Section]]:
    return isinstance(kind, type) and issubclass(kind, Section)
