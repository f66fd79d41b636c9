"""Rendering the charts with Helm itself, as a library."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import helm_python as helm
import yaml

OLDEST, NEWEST = "1.29", "1.37"  # versions of Kubernetes that manifests are validated for
REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "helm" / "connection-health-sidecar"
EXAMPLE = REPOSITORY / "helm" / "examples" / "application"

Manifest = dict[str, Any]

MINIMAL: Manifest = {"config": {"targets": {"default": {"url": "postgresql+asyncpg://app@db:5432/app"}}}}
SAMPLES = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").iterdir())}
EXAMPLE_SAMPLES = {path.name.removesuffix("-values.yaml"): path for path in sorted((EXAMPLE / "ci").iterdir())}


def values_of(path: Path) -> Manifest:
    values: Manifest = yaml.safe_load(path.read_text())
    return values


@cache
def _load(path: Path) -> helm.Chart:
    return helm.Chart.load(path)


def render(values: Manifest, chart: Path = CHART) -> list[Manifest]:
    """The manifests of a first revision called `rel`, in the order of their files."""
    files = _load(chart).render(values, name="rel", namespace="ns", revision=1)
    return [
        manifest
        for name, text in files.items()
        if name.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def one(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def pod_of(manifest: Manifest) -> Manifest:
    """The pod's spec of a Deployment, a Job or a Pod."""
    spec: Manifest = manifest["spec"]
    return spec["template"]["spec"] if "template" in spec else spec


def has_pods(manifest: Manifest) -> bool:
    return manifest["kind"] in ("Deployment", "Job", "Pod")


def containers(pod: Manifest) -> dict[str, Manifest]:
    return {each["name"]: each for each in [*(pod.get("initContainers") or ()), *pod["containers"]]}


def config_of(manifests: list[Manifest]) -> str:
    """The text of the sidecar's configuration file."""
    (text,) = (manifest["data"]["config.yaml"] for manifest in manifests if "config.yaml" in manifest.get("data", {}))
    return str(text)
