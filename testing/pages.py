"""Writes the pages of this folder that are made from the code: `make docs`.

`tests/test_docs.py` fails while one of them is stale: no setting, metric, route, command or flag can be missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import fill
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from pydantic.fields import FieldInfo

from sidecar.cli import _parser
from sidecar.metrics import Metrics
from sidecar.settings.model import Section, Settings, keys
from sidecar.settings.url import DatabaseUrl
from sidecar.web.openapi import document
from sidecar.web.routes import ADMIN, PUBLIC
from testing.pictures import Picture, outage, target, verified

DOCS = Path(__file__).parent.parent / "docs"
WIDTH = 120


def main() -> int:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
    return 0


def paragraph(text: str) -> str:
    return fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def item(text: str) -> str:
    return fill(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# -- settings ---------------------------------------------------------------------------------------------------------


def settings() -> str:
    parts = [
        "# Settings",
        paragraph(
            "Flags override environment variables, which override the file (YAML, `--config` or `SIDECAR_CONFIG`),"
            " which overrides the defaults. An unknown key is an error, as is a value out of range;"
            " `sidecar check-config` tells all faults at once and prints what is in effect. Only a target's `url` is"
            " needed."
        ),
        paragraph(
            "The variable for a key is `SIDECAR_` and its path in capitals, joined by two underscores. In those below,"
            " `DEFAULT` stands for the name of the target. `SIDECAR_TARGET_URL` is short for"
            " `SIDECAR_TARGETS__DEFAULT__URL`."
        ),
        paragraph(
            "Durations are written `100ms`, `350s`, `10m`, `8h`, `1d`, or as a number of seconds. A whole file, with"
            " every key in its place: [config.example.yaml](../config.example.yaml)."
        ),
    ]
    for prefix, fields in groupby(keys(), lambda entry: entry[0][:-1]):
        parts.append(f"## `{'.'.join(prefix)}`")
        parts.append(paragraph(_section(prefix).__doc__ or ""))
        for path, info in fields:
            variable = "__".join(("SIDECAR", *path)).replace("SIDECAR__", "SIDECAR_").replace("*", "default").upper()
            parts.append(
                f"### `{'.'.join(path)}`\n\n{paragraph(info.description or '')}\n\n"
                + paragraph(f"Takes {_takes(info)}. {_default(info)} Variable: `{variable}`.")
            )
    return "\n\n".join(parts) + "\n"


def _section(prefix: tuple[str, ...]) -> type[Section]:
    model: type[Section] = Settings
    for name in prefix:
        if name != "*":
            kinds = (model.model_fields[name].annotation, *get_args(model.model_fields[name].annotation))
            model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section))
    return model


def _marks(info: FieldInfo) -> Iterator[Any]:
    yield from info.metadata
    for kind in get_args(info.annotation):
        yield from getattr(kind, "__metadata__", ())


def _takes(info: FieldInfo) -> str:
    for mark in _marks(info):
        if hasattr(mark, "takes"):
            return str(mark.takes)
    kinds = [kind for kind in (info.annotation, *get_args(info.annotation)) if kind is not NoneType]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return ", ".join(f"`{word}`" for word in get_args(kind))
    if bool in kinds:
        return "`true` or `false`"
    if DatabaseUrl in kinds:
        return "a URL"
    return "the path of a file" if any(Path in (kind, *get_args(kind)) for kind in kinds) else "text"


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "Must be given."
    value: Any = info.default
    for mark in _marks(info):
        if hasattr(mark, "write"):
            value = mark.write(value)
    if value is None:
        return "Not set by default."
    if hasattr(value, "get_secret_value"):
        value = value.get_secret_value()
    return f"Default: `{str(value).lower() if isinstance(value, bool) else value}`."


# -- metrics ----------------------------------------------------------------------------------------------------------


def metrics() -> str:
    picture = Picture(views={"default": target(advice=verified())}, disturbed={"default": [outage(1)]})
    metrics = Metrics(picture, ("default",))
    metrics.application_seen("default", {"active": 1, "idle": 2, "idle_in_transaction": 0}, 3.0)
    exposition, _ = metrics.render("application/openmetrics-text; version=1.0.0")
    families = [
        family
        for family in text_string_to_metric_families(exposition.decode())
        if family.name.startswith("connection_health_")
    ]
    rows = "\n".join(
        f"| `{_name(family)}` | {family.type} | {_labels(family)} | {cell(family.documentation)} |"
        for family in sorted(families, key=lambda family: family.name)
    )
    return (
        "# Metrics\n\n"
        + paragraph(
            "`/metrics` answers in the Prometheus text format or in OpenMetrics, by Accept. All but"
            " `connection_health_build_info` carry the label `target`. What is not known has no series: no number poses"
            " as a measurement. Counters and histograms have all their series from the start, at 0. Beside these, there"
            " are the usual `process_*` and `python_info`."
        )
        + f"\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n{rows}\n\n"
        + paragraph("Alerts on them, and what to do when one fires, are in [alerts.md](alerts.md).")
        + "\n"
    )


def _name(family: Metric) -> str:
    return family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")


def _labels(family: Metric) -> str:
    values: dict[str, dict[str, None]] = {}
    for sample in family.samples:
        for label, value in sample.labels.items():
            values.setdefault(label, {})[value] = None
    told = []
    for label, known in values.items():
        if label in ("target", "le", "version"):
            continue
        # Of roles and states the picture shows some; of everything else, all.
        told.append(f"`{label}`" + ("" if label in ("role", "state") else f": {', '.join(known)}"))
    return "<br>".join(told)


# -- HTTP -------------------------------------------------------------------------------------------------------------


def http() -> str:
    described = document(PUBLIC, ADMIN)
    parts = [
        "# HTTP",
        paragraph(
            "Made from the description that is served at `/openapi.json` and printed by `sidecar openapi`. Every GET"
            " answers HEAD too. Bodies are JSON unless it says otherwise, errors are `application/problem+json`"
            " (RFC 9457). A number that is not known is `null`. Nothing here touches the database while a request"
            " waits."
        ),
        paragraph(
            "Left out below, because it is the same everywhere: a parameter that is unknown or given twice gets 400;"
            " where there is an `ETag`, sending it back in `If-None-Match` gets 304 while nothing has changed."
        ),
    ]
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            if method not in ("get", "post"):
                continue
            where = " (admin port)" if "servers" in methods else ""
            parts.append(f"## {method.upper()} `{path}`{where}\n\n{paragraph(_sentence(operation['summary']))}")
            parameters = [each for each in operation["parameters"] if each["in"] == "query"]
            if parameters:
                parts.append("Takes:\n\n" + "\n".join(item(_parameter(each)) for each in parameters))
            parts.append("Answers:\n\n" + "\n".join(item(text) for text in _responses(operation)))
            example = (
                operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("example")
            )
            if example is not None:
                parts.append(f"```json\n{json.dumps(example, indent=2)}\n```")
    parts.append("## Bodies")
    for name, schema in described["components"]["schemas"].items():
        parts.append(f"### {name}" + (f"\n\n{paragraph(schema['description'])}" if "description" in schema else ""))
        if "enum" in schema:
            parts.append(f"One of {', '.join(f'`{word}`' for word in schema['enum'])}.")
        elif "properties" in schema:
            parts.append("\n".join(item(f"`{key}`: {_type(kind)}") for key, kind in schema["properties"].items()))
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    return (text[:1].upper() + text[1:]).rstrip(".") + "."


def _parameter(parameter: Mapping[str, Any]) -> str:
    schema = parameter["schema"]
    words = f" One of {', '.join(f'`{word}`' for word in schema['enum'])}." if "enum" in schema else ""
    default = f" Default: `{schema['default']}`." if "default" in schema else ""
    return f"`{parameter['name']}`: {parameter['description']}{words}{default}"


def _responses(operation: Mapping[str, Any]) -> Iterator[str]:
    for status, response in operation["responses"].items():
        if status in ("304", "400", "default"):
            continue
        kinds = []
        for kind, content in response.get("content", {}).items():
            body = _type(content["schema"])
            kinds.append(f"`{kind}`" + (f" ({body})" if body != "text" and kind != "application/problem+json" else ""))
        said = response["description"]
        what = [] if said == operation["summary"] else [_sentence(said)]
        what += [f"{', '.join(kinds)}."] if kinds else []
        what += [
            f"Header `{name}`: {_sentence(each['description'])}" for name, each in response.get("headers", {}).items()
        ]
        yield f"**{status}** {' '.join(what)}"


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_type(each) for each in schema["anyOf"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{word}`" for word in schema["enum"])
    match schema.get("type"):
        case "array":
            return f"list of {_type(schema['items'])}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"object of {_type(schema['additionalProperties'])}"
        case "object" if schema.get("additionalProperties"):
            return "object of anything"
        case "string":
            return {"date-time": "instant (ISO 8601)"}.get(schema.get("format", ""), "text")
        case None:
            return "anything"
        case kind:
            return str(kind)


# -- commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    parts = [
        "# Commands",
        paragraph(
            "Exit status: 0 done, 1 what was asked for did not hold, 2 bad usage or configuration (one line per fault"
            " on standard error), 130 interrupted. Durations are written `100ms`, `350s`, `10m`, `8h`, `1d`, or as a"
            " number of seconds."
        ),
    ]
    for name, command in command_parsers().items():
        actions = [action for action in command._actions if action.dest != "help"]
        places = "".join(f" {_shown(action)}" for action in actions if not action.option_strings)
        parts.append(
            f"## `sidecar {name}{' [OPTIONS]' if any(a.option_strings for a in actions) else ''}{places}`\n\n"
            f"{paragraph(command.description or '')}"
        )
        if actions:
            rows = "\n".join(
                f"| `{', '.join(action.option_strings)}{' ' if action.option_strings and action.nargs != 0 else ''}"
                f"{_shown(action) if action.nargs != 0 else ''}` | {cell(action.help or '')} |"
                for action in actions
            )
            parts.append(f"| argument | |\n| --- | --- |\n{rows}")
        if command.epilog:
            parts.append(paragraph(command.epilog))
    return "\n\n".join(parts) + "\n"


def command_parsers() -> Mapping[str, argparse.ArgumentParser]:
    parser = _parser()
    (action,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return action.choices


def _shown(action: argparse.Action) -> str:
    name = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest)
    return f"[{name}]" if action.nargs == "?" else str(name)


PAGES: Mapping[str, Callable[[], str]] = {
    "settings.md": settings,
    "metrics.md": metrics,
    "http.md": http,
    "commands.md": commands,
}

if __name__ == "__main__":
    sys.exit(main())
