"""The example application: what its chart renders, and what its program does beside a real sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp import web

from sidecar.core.evidence import Status
from sidecar.demo.server import HOST, PostgresServer, free_port
from sidecar.remote import Unreachable, ask
from sidecar.web.server import HttpServer
from testing.pictures import Picture, target, verified
from tests.kubernetes.charts import EXAMPLE, EXAMPLE_SAMPLES, Manifest, containers, one, pod_of, render, values_of

PROGRAM = EXAMPLE / "files" / "app.py"
NAME = "connection-health-sidecar"
PASSWORD = "correct horse"


def environment(container: Manifest) -> dict[str, Any]:
    return {each["name"]: each.get("value") for each in container["env"]}


def test_native_starts_first_and_outlasts_the_application(example: Path) -> None:
    manifests = render(values_of(EXAMPLE_SAMPLES["native"]), example)
    for kind in ("Deployment", "Job"):
        pod = pod_of(one(manifests, kind))
        assert [(each["name"], each["restartPolicy"]) for each in pod["initContainers"]] == [(NAME, "Always")]
        assert [each["name"] for each in pod["containers"]] == ["application"]
        assert "lifecycle" not in pod["initContainers"][0]
    # Kubernetes ends a native one itself.
    assert "QUIT_URL" not in environment(containers(pod_of(one(manifests, "Job")))["application"])


def test_plain_is_waited_for_and_told_to_leave(example: Path) -> None:
    manifests = render(values_of(EXAMPLE_SAMPLES["plain"]), example)
    for kind in ("Deployment", "Job"):
        pod = pod_of(one(manifests, kind))
        assert not pod["initContainers"]
        assert [each["name"] for each in pod["containers"]] == [NAME, "application"]
        hooks = containers(pod)[NAME]["lifecycle"]
        assert hooks["postStart"]["exec"]["command"][:4] == ["sidecar", "wait", "--for", "started"]
        assert hooks["preStop"]["sleep"]["seconds"] > 0
    assert environment(containers(pod_of(one(manifests, "Job")))["application"])["QUIT_URL"] == "http://127.0.0.1:9091"


def test_readiness_follows_the_sidecar(example: Path) -> None:
    pod = pod_of(one(render(values_of(EXAMPLE_SAMPLES["native"]), example), "Deployment"))
    assert containers(pod)["application"]["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8080}
    assert "readinessProbe" not in containers(pod)[NAME]
    own = pod_of(one(render(values_of(EXAMPLE_SAMPLES["own-readiness"]), example), "Deployment"))
    assert containers(own)[NAME]["readinessProbe"]["httpGet"]["path"] == "/health"


def test_the_dependency_brings_no_pods_of_its_own(example: Path) -> None:
    kinds = sorted(manifest["kind"] for manifest in render({}, example))
    assert kinds == ["ConfigMap", "ConfigMap", "Deployment"]


def test_switched_off_it_leaves_no_trace(example: Path) -> None:
    manifests = render(values_of(EXAMPLE_SAMPLES["without"]), example)
    pod = pod_of(one(manifests, "Deployment"))
    assert list(containers(pod)) == ["application"]
    assert environment(containers(pod)["application"])["HEALTH_URL"] == ""
    assert "connection-health" not in json.dumps([volume["name"] for volume in pod["volumes"]])


def test_values_of_the_dependency_are_checked_too(example: Path) -> None:
    with pytest.raises(ValueError, match="additional properties 'tragets' not allowed"):
        render({NAME: {"config": {"tragets": {}}}}, example)


def test_its_templates_refuse_a_standalone_chart(example: Path) -> None:
    with pytest.raises(Exception, match="takes `sidecar` where its templates are included"):
        render({NAME: {"mode": "standalone"}}, example)


# The program, as in a pod: both containers share the loopback interface


class Pod:
    """A sidecar and what its application needs to know of it."""

    def __init__(self, sidecar: asyncio.subprocess.Process, base: str, environ: dict[str, str]) -> None:
        self.sidecar = sidecar
        self.base = base
        self.environ = environ


async def application(argument: str, environ: Mapping[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, PROGRAM, argument, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
async def pod(make_server: Callable[..., PostgresServer], tmp_path: Path) -> AsyncIterator[Pod]:
    server = make_server(password=PASSWORD)
    url = server.url().replace(f":{quote(PASSWORD)}@", "@")
    assert PASSWORD.split()[0] not in url
    password_file = tmp_path / "password"
    password_file.write_text(f"{PASSWORD}\n")
    port, admin_port = free_port(), free_port()
    config = tmp_path / "config.yaml"
    # JSON is YAML.
    config.write_text(
        json.dumps(
            {
                "targets": {"default": {"url": url, "password_file": str(password_file)}},
                "http": {"host": HOST, "port": port, "admin_port": admin_port},
                "store": {"url": f"sqlite+aiosqlite:///{tmp_path}/evidence.db"},
                "log": {"level": "warning"},
            }
        )
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    sidecar = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sidecar", "run", env=clean | {"SIDECAR_CONFIG": str(config)}
    )
    base = f"http://{HOST}:{port}"
    try:
        await answered(f"{base}/health")
        yield Pod(
            sidecar,
            base,
            clean
            | {
                "DATABASE_URL": url.replace("postgresql://", "postgresql+asyncpg://"),
                "PASSWORD_FILE": str(password_file),
                "HEALTH_URL": base,
                "ADMIN_URL": f"http://{HOST}:{admin_port}",
            },
        )
    finally:
        if sidecar.returncode is None:
            sidecar.kill()
        await sidecar.wait()


async def answered(url: str) -> str:
    base, _, path = url.rpartition("/")
    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(Unreachable):
                reply = await asyncio.to_thread(ask, base, f"/{path}")
                if reply.ok:
                    return reply.text
            await asyncio.sleep(0.1)


async def test_the_application_takes_no_advice_that_stands_on_little(pod: Pod) -> None:
    assert json.loads(await answered(f"{pod.base}/recommendation"))["status"] == "measuring"
    port = free_port()
    serving = await application("serve", pod.environ | {"PORT": str(port)})
    try:
        answer = json.loads(await answered(f"http://{HOST}:{port}/"))
    finally:
        serving.send_signal(signal.SIGTERM)
        output, errors = await serving.communicate()
    assert answer["pool"] == {"pool_recycle": 60, "pool_pre_ping": True}
    assert answer["server_version"]
    assert output.decode().count("pooling with") == 1
    assert (serving.returncode, errors.decode()) == (0, "")


async def test_the_application_takes_the_advice_when_it_comes(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real program, and a sidecar's real answers as it gets on; only a minute is shorter here."""
    spec = importlib.util.spec_from_file_location("example_application", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.ASK_AGAIN_SECONDS >= 60
    monkeypatch.setattr(program, "ASK_AGAIN_SECONDS", 0.1)
    picture = Picture()
    sidecar = HttpServer(picture, lambda accept: (b"", accept))
    await sidecar.start(HOST, 0, 0)
    monkeypatch.setenv("HEALTH_URL", f"http://{HOST}:{sidecar.port}")
    monkeypatch.setenv("DATABASE_URL", postgres.url().replace("postgresql://", "postgresql+asyncpg://"))
    monkeypatch.delenv("PASSWORD_FILE", raising=False)
    pool = program.Pool(await asyncio.to_thread(program.advice) or program.CAUTIOUS)
    runner = web.AppRunner(program.application(pool))
    await runner.setup()
    try:
        await asyncio.sleep(0.5)
        assert pool.settings == program.CAUTIOUS
        first, began = pool.database, await program.ask(pool.database)
        found = dataclasses.replace(verified(), status=Status.PROVISIONAL, connect_args={})
        picture.views["default"] = target(advice=found)
        async with asyncio.timeout(30):
            while pool.database is first:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        # All are tried, since the example has no listener that tries the rested ones only.
        assert pool.settings == {"pool_recycle": 171, "pool_pre_ping": True}
        assert (await program.ask(pool.database))["server_version"] == began["server_version"]
        picture.views["default"] = target()
        await asyncio.sleep(0.5)
        assert pool.settings["pool_recycle"] == 171, "what was found holds until more is known"
    finally:
        await runner.cleanup()
        await pool.database.dispose()
        await sidecar.stop(0.0)


async def test_a_job_with_a_plain_sidecar_ends(pod: Pod) -> None:
    report = await application("report", pod.environ | {"QUIT_URL": pod.environ["ADMIN_URL"]})
    output, errors = await report.communicate()
    assert report.returncode == 0, errors.decode()
    assert b"server_version" in output
    # The second container ends by itself, and well: so does the Job.
    assert await asyncio.wait_for(pod.sidecar.wait(), 60) == 0


async def test_without_a_sidecar_the_application_is_cautious(postgres: PostgresServer) -> None:
    url = postgres.url().replace("postgresql://", "postgresql+asyncpg://")
    nobody = f"http://{HOST}:{free_port()}"
    report = await application("report", os.environ | {"DATABASE_URL": url, "HEALTH_URL": nobody})
    output, errors = await report.communicate()
    assert report.returncode == 0, errors.decode()
    assert b"no advice from" in errors
    assert b"'pool_pre_ping': True" in output
