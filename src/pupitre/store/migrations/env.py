"""Alembic's entry: migrates the one database that `pupitre.store.migrate` names."""

from alembic import context
from sqlalchemy import create_engine, event

from pupitre.store.schema import DATABASES

name = context.config.get_main_option("pupitre_database")
url = context.config.get_main_option("sqlalchemy.url")
assert name is not None
assert url is not None

engine = create_engine(url)
if engine.dialect.name == "sqlite":
    # SQLite's driver would commit each table by itself; a migration is whole or not there at all.
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=DATABASES[name], render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
