"""From flags, environment, a YAML file and defaults, in that order, to settings validated as a whole; or to complaints.

A fault is one line: the key, where it was set unless in the file, what is wrong, and what the key takes. All faults
are told at once. No fault repeats a value, since a secret may stand in the wrong place.

The layers are merged here and handed to pydantic-settings as one: of its stock sources none treats an unknown variable
as a fault, or remembers which variable a complaint is about.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sidecar.settings.model import HttpSettings, Section, Settings, keys
from sidecar.settings.url import URL_FORM


class ConfigurationError(Exception):
    """The settings cannot be used. `faults` holds one line for each reason."""

    def __init__(self, faults: tuple[str, ...]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


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
            return f"missing: takes {URL_FORM}"
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
