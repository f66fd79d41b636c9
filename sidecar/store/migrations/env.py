"""Run by Alembic's commands; the connection, inside its transaction, comes from `sidecar.store.schema`."""

from alembic import context

from sidecar.store import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    version_table=tables.version.name,
)
context.run_migrations()
