"""What the Prometheus operator's published definitions require, as far as the chart's objects go.

Source: prometheus-operator/prometheus-operator, example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml,
…_servicemonitors.yaml and …_prometheusrules.yaml (0.82): their `required` lists, and types and patterns of the fields
used here. Unlike there, other fields are refused: a misspelt one would be pruned by the server without a word. Where a
later release requires less, the stricter is kept.
"""

from __future__ import annotations

from typing import Any

_DURATION = {
    "type": "string",
    "pattern": r"^(0|(([0-9]+)y)?(([0-9]+)w)?(([0-9]+)d)?(([0-9]+)h)?(([0-9]+)m)?(([0-9]+)s)?(([0-9]+)ms)?)$",
}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def _section(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _resource(spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _section(["name"], name={"type": "string"}, labels=_TEXTS)
    return _section(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "monitoring.coreos.com/v1"},
        kind={"type": "string"},
        metadata=metadata,
        spec=spec,
    )


_SELECTOR = _section(["matchLabels"], matchLabels=_TEXTS)
_ENDPOINTS = {
    "type": "array",
    "minItems": 1,
    "items": _section(
        ["port"],
        port={"type": "string"},
        path={"type": "string"},
        interval=_DURATION,
        honorLabels={"type": "boolean"},
    ),
}
_RULE = _section(
    ["expr"],
    alert={"type": "string"},
    record={"type": "string"},
    expr={"type": ["string", "integer"]},
    **{"for": _DURATION},
    keep_firing_for=_DURATION,
    labels=_TEXTS,
    annotations=_TEXTS,
)
_GROUP = _section(
    ["name", "rules"],
    name={"type": "string", "minLength": 1},
    interval=_DURATION,
    rules={"type": "array", "minItems": 1, "items": _RULE},
)

SCHEMAS = {
    "PodMonitor": _resource(
        _section(["podMetricsEndpoints", "selector"], podMetricsEndpoints=_ENDPOINTS, selector=_SELECTOR)
    ),
    "ServiceMonitor": _resource(_section(["endpoints", "selector"], endpoints=_ENDPOINTS, selector=_SELECTOR)),
    "PrometheusRule": _resource(_section(["groups"], groups={"type": "array", "minItems": 1, "items": _GROUP})),
}
