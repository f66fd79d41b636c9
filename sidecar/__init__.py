"""Measures how database connections die on the path to a PostgreSQL server and recommends pool settings."""

from importlib.metadata import version

__version__ = version("connection-health-sidecar")
