"""The restricted profile of the Pod Security Standards, as Kubernetes documents it, applied to a pod's spec.

Source: kubernetes.io/docs/concepts/security/pod-security-standards, policies Baseline and Restricted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SECCOMP = {"RuntimeDefault", "Localhost"}


def violations(pod: dict[str, Any]) -> Iterator[str]:
    """What the admission controller would object to."""
    common = pod.get("securityContext") or {}
    yield from (key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key))
    yield from _context(common, "pod")
    for volume in pod.get("volumes") or ():
        yield from (f"volume {volume['name']}: {kind}" for kind in volume.keys() - VOLUMES - {"name"})
    for container in (*(pod.get("initContainers") or ()), *pod["containers"]):
        name, context = container["name"], container.get("securityContext") or {}
        yield from _context(context, name)
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if context.get("privileged"):
            yield f"{name}: privileged"
        if context.get("procMount", "Default") != "Default":
            yield f"{name}: procMount"
        if not context.get("runAsNonRoot", common.get("runAsNonRoot")):
            yield f"{name}: runAsNonRoot"
        if (context.get("seccompProfile") or common.get("seccompProfile") or {}).get("type") not in SECCOMP:
            yield f"{name}: seccompProfile"
        capabilities = context.get("capabilities") or {}
        if "ALL" not in capabilities.get("drop", ()) or set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            yield f"{name}: capabilities"
        if any(port.get("hostPort") for port in container.get("ports") or ()):
            yield f"{name}: hostPort"
        if any("host" in handler for handler in _handlers(container)):
            yield f"{name}: host of a probe or a hook"


def _context(context: dict[str, Any], whose: str) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield f"{whose}: runAsUser"
    yield from (f"{whose}: {key}" for key in ("seLinuxOptions", "windowsOptions", "sysctls") if context.get(key))
    if (context.get("appArmorProfile") or {}).get("type", "RuntimeDefault") == "Unconfined":
        yield f"{whose}: appArmorProfile"


def _handlers(container: dict[str, Any]) -> Iterator[dict[str, Any]]:
    hooks = [container.get(key) for key in ("startupProbe", "livenessProbe", "readinessProbe")]
    hooks += (container.get("lifecycle") or {}).values()
    for hook in filter(None, hooks):
        yield from (hook[kind] for kind in ("httpGet", "tcpSocket") if kind in hook)
