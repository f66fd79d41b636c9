from __future__ import annotations

import shutil
from pathlib import Path

import helm_python as helm
import pytest

from tests.kubernetes.charts import EXAMPLE, REPOSITORY


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example application's chart with its dependency built, as a user builds it."""
    helm_folder = tmp_path_factory.mktemp("charts") / "helm"
    shutil.copytree(REPOSITORY / "helm", helm_folder, ignore=shutil.ignore_patterns("charts", "Chart.lock"))
    chart = helm_folder / EXAMPLE.relative_to(REPOSITORY / "helm")
    helm.dependency_build(chart)
    return chart
