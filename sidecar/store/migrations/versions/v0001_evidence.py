"""Observations and outages."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create(
        "connection_health_observations",
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("regime", sa.BigInteger(), nullable=False),
        sa.Column("arm", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("idle_seconds", sa.Double(), nullable=False),
        sa.Column("age_seconds", sa.Double(), nullable=False),
        sa.Column("death", sa.Text()),
        sa.Column("cause", sa.Text()),
        sa.Column("sqlstate", sa.Text()),
        sa.Column("message", sa.Text()),
        sa.Column("identity", sa.JSON(), nullable=False),
    )
    _create(
        "connection_health_outages",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text()),
        sa.Column("connect", sa.JSON()),
        sa.Column("read", sa.JSON()),
        sa.Column("write", sa.JSON()),
        sa.Column("before", sa.JSON()),
        sa.Column("after", sa.JSON()),
        sa.Column("addresses_before", sa.JSON(), nullable=False),
        sa.Column("addresses_after", sa.JSON(), nullable=False),
        sa.Column("dns_changed_at", sa.Double()),
        sa.Column("connections_lost", sa.JSON(), nullable=False),
        sa.Column("errors", sa.JSON(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("connection_health_outages")
    op.drop_table("connection_health_observations")


def _create(name: str, *columns: sa.Column[Any]) -> None:
    op.create_table(
        name,
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("database", sa.Text(), nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("seq", name=f"pk_{name}"),
        sa.UniqueConstraint("target", "database", "id", name=f"uq_{name}_target_database_id"),
    )
    op.create_index(f"ix_{name}_target_database_seq", name, ["target", "database", "seq"])
