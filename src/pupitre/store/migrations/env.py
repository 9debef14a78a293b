"""Alembic's entry: migrates the one database that `pupitre.store.migrate` names."""

from alembic import context
from sqlalchemy import create_engine

from pupitre.store.schema import DATABASES

name = context.config.get_main_option("pupitre_database")
url = context.config.get_main_option("sqlalchemy.url")
assert name is not None and url is not None

engine = create_engine(url)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=DATABASES[name], render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
