"""When a name came to lead elsewhere is an interval. Of a mere instant nobody can tell how exactly it was known."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TABLE = "connection_health_outages"


def upgrade() -> None:
    op.drop_column(_TABLE, "dns_changed_at")
    op.add_column(_TABLE, sa.Column("dns_changed", sa.JSON()))


def downgrade() -> None:
    op.drop_column(_TABLE, "dns_changed")
    op.add_column(_TABLE, sa.Column("dns_changed_at", sa.Double()))
