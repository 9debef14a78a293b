"""Migrations: repeatable, whole or not there, and equal to the tables the code names."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from pupitre.config import DatabaseName
from pupitre.errors import SetupError
from pupitre.store.admin import migrate
from pupitre.store.schema import DATABASES

pytestmark = pytest.mark.parametrize("name", sorted(DATABASES))


def url(folder: Path, name: DatabaseName) -> str:
    return f"sqlite+aiosqlite:///{folder / 'db' / name}.sqlite"


def test_up_twice(tmp_path: Path, name: DatabaseName) -> None:
    assert migrate.upgrade(name, url(tmp_path, name))
    revision = migrate.current(url(tmp_path, name))
    assert revision is not None
    assert not migrate.upgrade(name, url(tmp_path, name))
    assert migrate.current(url(tmp_path, name)) == revision
    assert (tmp_path / f"db/{name}.sqlite").stat().st_mode & 0o777 == 0o600


def test_they_make_the_tables_that_the_code_names(tmp_path: Path, name: DatabaseName) -> None:
    migrate.upgrade(name, url(tmp_path, name))
    engine = create_engine(f"sqlite:///{tmp_path}/db/{name}.sqlite")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), DATABASES[name]) == []
    engine.dispose()


def test_a_counter_that_was_not_begun_is_begun(tmp_path: Path, name: DatabaseName) -> None:
    """A process that was killed between the tables and their first rows."""
    migrate.upgrade(name, url(tmp_path, name))
    engine = create_engine(f"sqlite:///{tmp_path}/db/{name}.sqlite")
    counters = [table for table in ("counter", "epochs", "news") if table in inspect(engine).get_table_names()]
    with engine.begin() as connection:
        for table in counters:
            connection.execute(text(f"DELETE FROM {table}"))  # noqa: S608 - a name of ours
    migrate.upgrade(name, url(tmp_path, name))
    with engine.begin() as connection:
        for table in counters:
            assert connection.execute(text(f"SELECT value FROM {table}")).scalar_one() == 0  # noqa: S608
    engine.dispose()


def test_several_at_once_make_it_once(tmp_path: Path, name: DatabaseName) -> None:
    program = "import sys; from pupitre.store.admin import migrate; migrate.upgrade(*sys.argv[1:])"
    command = [sys.executable, "-c", program, name, url(tmp_path, name)]
    several = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(4)]
    for process in several:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said.decode()
    assert not migrate.upgrade(name, url(tmp_path, name))


def test_a_database_of_another_kind_is_refused_with_a_sentence(tmp_path: Path, name: DatabaseName) -> None:
    with pytest.raises(SetupError, match="is not a database that Pupitre knows"):
        migrate.upgrade(name, "mssql://somewhere/there")
