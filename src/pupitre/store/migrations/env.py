"""Alembic's entry: migrates the one database that `store.admin.migrate` gives, in the transaction that it began."""

from alembic import context

given = context.config.attributes
context.configure(
    connection=given["connection"], target_metadata=given["metadata"], render_as_batch=True, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
