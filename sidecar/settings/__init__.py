"""The settings: frozen, validated as a whole, from flags, environment, a YAML file and defaults, in that order.

A fault is one line: the key, where it was set unless in the file, what is wrong, and what the key takes. All faults
are told at once. No fault repeats a value, since a secret may stand in the wrong place.

The layers are merged here and handed to pydantic-settings as one: of its stock sources none treats an unknown variable
as a fault, or remembers which variable a complaint is about.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeGuard, TypeVar, get_args, get_origin
from urllib.parse import unquote

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, core_schema
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource


class ConfigurationError(Exception):
    """The settings cannot be used. `faults` holds one line for each reason."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


# What values may be

_UNIT_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}


def parse_duration(text: str) -> float:
    """Seconds meant by `350s`, `10m`, `8h`, `1d`, `100ms` or a bare number of seconds. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)?", text, re.ASCII)
    if match is None:
        raise ValueError("not a duration: takes 350s, 10m, 8h, 100ms, 1d or a number of seconds")
    return float(Decimal(match[1]) * _UNIT_SECONDS[match[2] or "s"])


def format_duration(seconds: float) -> str:
    """The shortest way of writing it that `parse_duration` reads back to exactly the same number."""
    amount = Decimal(repr(seconds))
    for unit in ("d", "h", "m", "s", "ms"):
        number = amount / _UNIT_SECONDS[unit]
        if number == number.to_integral_value() and (amount or unit == "s"):
            return f"{number:.0f}{unit}"
    return f"{amount:f}s"


@dataclass(frozen=True)
class Duration:
    """Marks a field as a duration between two others, kept in seconds. `also` are values that mean something else."""

    least: str
    most: str
    also: tuple[str | int, ...] = ()

    @property
    def takes(self) -> str:
        return f"{self.least} to {self.most}" + "".join(f", or {value}" for value in self.also)

    def read(self, value: object) -> object:
        for other in self.also:
            if value in (other, str(other)):
                return other
        try:
            seconds = parse_duration(str(value))
        except ValueError:
            raise ValueError(f"not a duration: takes {self.takes}") from None
        if not parse_duration(self.least) <= seconds <= parse_duration(self.most):
            raise ValueError(f"out of range: takes {self.takes}")
        return seconds

    def write(self, value: object) -> object:
        return format_duration(value) if isinstance(value, float) and value not in self.also else value

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self.read,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(self.write, when_used="json"),
        )


@dataclass(frozen=True)
class Whole:
    """Marks a field as a whole number between two others."""

    least: int
    most: int

    @property
    def takes(self) -> str:
        return f"a whole number from {self.least} to {self.most}"

    def read(self, value: object) -> int:
        if not re.fullmatch(r"-?[0-9]{1,9}", str(value), re.ASCII):
            raise ValueError(f"not a whole number: takes {self.takes}")
        number = int(str(value))
        if not self.least <= number <= self.most:
            raise ValueError(f"out of range: takes {self.takes}")
        return number

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))


@dataclass(frozen=True)
class Share:
    """Marks a field as a part of a whole."""

    takes = "a number above 0 and at most 1"

    def read(self, value: object) -> float:
        try:
            share = float(str(value))
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            raise ValueError(f"not a share: takes {self.takes}")
        return share

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.read, handler(source))


def _nonempty(value: object) -> object:
    if value in ("", Path()):
        raise ValueError("empty: takes the path of a file")
    return value


def _target_name(value: object) -> object:
    # Names become metric labels, path segments of queries and parts of environment variables.
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value, re.ASCII):
        raise ValueError("bad target name: takes 1 to 63 of a-z, 0-9, - and _, the first a letter or a digit")
    return value


FilePath = Annotated[Path, BeforeValidator(_nonempty)]
TargetName = Annotated[str, BeforeValidator(_target_name)]

_URL_FORM = "postgresql+asyncpg://user@host:5432/database"
_URL = re.compile(
    r"(?P<scheme>[^:]+)://(?:(?P<user>[^:/?#@]*)(?::(?P<password>[^/?#]*))?@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:/?#@\[\]]*)(?::(?P<port>[^/?#@]*))?"
    r"(?:/(?P<database>[^/?#@]*))?(?:\?(?P<query>[^#]*))?"
)
_URL_TLS = {
    "sslmode": "mode",
    "ssl": "mode",
    "sslrootcert": "ca_file",
    "sslcert": "cert_file",
    "sslkey": "key_file",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseUrl:
    """A PostgreSQL URL, taken apart. Its text form hides the password."""

    scheme: str
    host: str
    port: int
    database: str
    user: str
    password: SecretStr | None = None
    tls: Mapping[str, str] = field(default_factory=dict)  # keys of the `tls` section that its parameters set

    @property
    def display(self) -> str:
        """`host:port/database`, fit for logs and metrics."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.user}{':***' if self.password else ''}@{self.display}"

    @classmethod
    def parse(cls, value: object) -> DatabaseUrl:
        """Raises ValueError with a complaint that repeats no part of the value."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, str) or "://" not in value:
            raise ValueError(f"not a URL: takes {_URL_FORM}")
        if re.search(r"\s", value):
            raise ValueError("holds white space (a line break at its end?): percent-encode it or take it out")
        if re.search(r"%(?![0-9A-Fa-f]{2})", value):
            raise ValueError("holds a % that begins no percent-encoded byte: write a literal % as %25")
        match = _URL.fullmatch(value)
        if match is None:
            raise ValueError(
                f"cannot be taken apart: takes {_URL_FORM}; percent-encode @ : / ? # % in user and password"
            )
        parts = {name: unquote(text or "") for name, text in match.groupdict().items() if name != "query"}
        if parts["scheme"] not in ("postgresql+asyncpg", "postgresql", "postgres"):
            raise ValueError(f"unknown scheme: takes {_URL_FORM}, postgresql:// or postgres://")
        tls = cls._tls_parameters(match["query"] or "")
        if "," in parts["host"] + parts["port"]:
            raise ValueError("names several hosts: takes one; make each host a target of its own")
        if parts["host"].startswith("/"):
            raise ValueError(f"names a unix socket, which no network path can cut off: takes {_URL_FORM}")
        if not parts["host"] or not parts["user"]:
            raise ValueError(f"names no {'user' if parts['host'] else 'host'}: takes {_URL_FORM}")
        port = parts["port"] or "5432"
        if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
            raise ValueError("names no port that exists: takes 1 to 65535")
        return cls(
            scheme=parts["scheme"],
            host=parts["host"].strip("[]"),
            port=int(port),
            database=parts["database"] or parts["user"],  # as in libpq
            user=parts["user"],
            password=SecretStr(parts["password"]) if parts["password"] else None,
            tls=tls,
        )

    @staticmethod
    def _tls_parameters(query: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for parameter in filter(None, query.split("&")):
            name, _, text = parameter.partition("=")
            if name == "host" and unquote(text).startswith("/"):
                raise ValueError(f"names a unix socket, which no network path can cut off: takes {_URL_FORM}")
            if name == "application_name":
                raise ValueError("sets application_name: leave it out, every connection carries the sidecar's own")
            if name not in _URL_TLS:
                raise ValueError(f"has a parameter that is not supported: takes {', '.join(_URL_TLS)} and no other")
            if found.setdefault(_URL_TLS[name], unquote(text)) != unquote(text):
                raise ValueError(f"contradicts itself: its parameters set tls.{_URL_TLS[name]} twice")
        return found

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.to_string_ser_schema(when_used="json")
        )


# The sections


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
    """Connections held. Two: one can be checked out with pre-ping beside one without, at little cost to the server."""

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
    within 2.4, sixteen within 1.2. Never more than 5 % of what the server has free."""

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

    every: Annotated[float, Duration("10ms", "1h")] = 1.0
    """Seconds between two beats. One round trip a second is nothing to a server and times a silent outage to within
    `every` + `deadline`; a visible one is noticed at once."""

    deadline: Annotated[float, Duration("10ms", "5m")] = 2.0
    """Seconds a beat may take before the database is suspected. Above the hiccups of a healthy network, below what
    an application's user waits."""

    reconnect_every: Annotated[float, Duration("10ms", "1m")] = 0.1
    """Seconds between two connection attempts while the database is down: how exactly the end of an outage is timed.
    Not longer than `every`. A tenth of a second is gentle for a server that is starting."""

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

    ping_overhead: Annotated[float, Share()] = 0.10
    """Share of a checkout's time above which pinging at every checkout is advised against."""


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
            raise ValueError("not a store's URL: takes sqlite+aiosqlite:///evidence.db or " + _URL_FORM)
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


# Gathering them


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


def load_settings(
    flags: Mapping[str, object] = MappingProxyType({}),
    environ: Mapping[str, str] = os.environ,
    config: Path | None = None,
) -> Settings:
    """Flags (dotted keys; None means not given) over environment over file over defaults.

    The file is `config`, or else the one `SIDECAR_CONFIG` names, or none. Raises ConfigurationError.
    """
    return _Gathered(flags, environ, config).validated(Settings)


def load_http(environ: Mapping[str, str] = os.environ) -> HttpSettings:
    """Only where a sidecar with this environment answers, targets or not. Raises ConfigurationError."""
    return _Gathered({}, environ, None).validated(HttpSettings, ("http",))


_S = TypeVar("_S", bound=Section)


class _Gathered:
    """What was set, merged key by key, and which variable or flag each overriding value came from."""

    def __init__(self, flags: Mapping[str, object], environ: Mapping[str, str], config: Path | None) -> None:
        self._tree: object = {}
        self._origins: dict[tuple[str, ...], str] = {}
        self._faults: list[str] = []
        file = environ.get("SIDECAR_CONFIG") if config is None else config
        if file == "":
            self._faults.append("SIDECAR_CONFIG: empty: takes the path of a YAML file, or unset it")
        elif file is not None:
            self._tree = _read_file(Path(file))
        self._take_environment(environ)
        for dotted, value in flags.items():
            if value is not None:
                self._set(tuple(dotted.split(".")), value, "on the command line")

    def _take_environment(self, environ: Mapping[str, str]) -> None:
        known = {path for path, _ in keys()}
        for name, value in environ.items():
            if not name.startswith("SIDECAR_") or name == "SIDECAR_CONFIG" or _is_service_link(name, environ):
                continue
            path = tuple(name.removeprefix("SIDECAR_").lower().split("__"))
            if name == "SIDECAR_TARGET_URL":
                path = ("targets", "default", "url")
            if _pattern(path) not in known:
                self._faults.append(f"{name}: unknown variable: {_suggestion(path)}")
            elif path in self._origins:
                self._faults.append(f"{name}: says the same as {self._origins[path]}: takes one of both")
            else:
                self._set(path, value, name)

    def _set(self, path: tuple[str, ...], value: object, origin: str) -> None:
        self._tree = _with(self._tree, path, value)
        self._origins[path] = origin

    def validated(self, model: type[_S], at: tuple[str, ...] = ()) -> _S:
        part = self._tree
        for name in at:
            part = part.get(name) if isinstance(part, dict) else None
        try:
            settings = model.model_validate(part)
        except ValidationError as error:
            self._faults += [self._complaint(at, each) for each in error.errors(include_url=False, include_input=False)]
        if self._faults:
            raise ConfigurationError(tuple(self._faults))
        return settings

    def _complaint(self, at: tuple[str, ...], error: ErrorDetails) -> str:
        path = (*at, *(str(part) for part in error["loc"] if part != "[key]"))
        # A name may be anything, even an URL with its password, where a line of YAML went wrong.
        key = ".".join(part if re.fullmatch(r"[\w-]{1,63}", part) else "<not a name>" for part in path)
        origin = f" ({self._origins[path]})" if path in self._origins else ""
        return f"{key}{origin}: {_what_is_wrong(error, path)}"


def _what_is_wrong(error: ErrorDetails, path: tuple[str, ...]) -> str:
    match error["type"]:
        case "value_error":
            return str(error["ctx"]["error"])
        case "missing" if path == ("targets",):
            return "missing: takes at least one target; for just one, SIDECAR_TARGET_URL will do"
        case "missing":
            return f"missing: takes {_URL_FORM}"
        case "extra_forbidden" | "invalid_key":
            siblings = [known[len(path) - 1] for known, _ in keys() if known[: len(path) - 1] == _pattern(path)[:-1]]
            return f"unknown key: takes {', '.join(dict.fromkeys(siblings))}"
        case "model_type" | "dict_type":
            return "not a section: takes keys of its own"
        case "literal_error":
            return f"unknown word: takes {error['ctx']['expected']}"
        case "string_type":
            return "not text: takes text, in quotes where YAML sees something else"
        case "path_type":
            return "not a path: takes the path of a file"
        case "bool_type" | "bool_parsing":
            return "neither yes nor no: takes true or false"
        case _:
            return error["msg"]


def _suggestion(path: tuple[str, ...]) -> str:
    from difflib import get_close_matches  # only ever needed to explain a fault

    target = path[1] if path[0] == "targets" and len(path) > 2 else "default"
    names = {"__".join(known).replace("*", target).upper() for known, _ in keys()} | {"CONFIG", "TARGET_URL"}
    return f"the nearest is SIDECAR_{get_close_matches('__'.join(path).upper(), sorted(names), n=1, cutoff=0)[0]}"


def _pattern(path: tuple[str, ...]) -> tuple[str, ...]:
    """The path as `keys` gives it, with `*` for the name of a target."""
    return (*path[:1], "*", *path[2:]) if path[0] == "targets" and len(path) > 1 else path


def _with(tree: object, path: tuple[str, ...], value: object) -> object:
    """A copy with one value set; a copy, because aliases in YAML share their parts."""
    if not path:
        return value
    if not isinstance(tree, dict | None):
        return tree  # no section: validation says so
    return {**(tree or {}), path[0]: _with((tree or {}).get(path[0]), path[1:], value)}


def _is_service_link(name: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes set this variable to describe a Service called `sidecar` or `sidecar-…` in our namespace."""
    link = re.fullmatch(
        r"(SIDECAR(?:_[A-Z0-9_]+)??)_(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
        r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)",
        name,
    )
    return link is not None and f"{link[1]}_SERVICE_HOST" in environ


def _read_file(file: Path) -> object:
    from sidecar.settings.yaml_file import Unusable, read  # here, because many sidecars need no file

    try:
        return read(file)
    except Unusable as fault:
        raise ConfigurationError((f"{file}: {fault}",)) from None
