"""Making and upgrading the databases, by Alembic; both may be repeated."""

from contextlib import suppress
from importlib.resources import as_file, files
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, insert, make_url, select
from sqlalchemy.engine import URL
from sqlalchemy.exc import IntegrityError

from pupitre.errors import SetupError
from pupitre.store.schema import DATABASES

_DRIVERS = {"sqlite": "sqlite"}
"""The driver that migrations use, by kind of database; the processes use an asynchronous one."""


def upgrade(name: str, url: str) -> bool:
    """Bring the database ``name`` at ``url`` up to date; True when anything was done."""
    target = _driver_url(url)
    if target.get_backend_name() == "sqlite" and target.database:
        Path(target.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with as_file(files("pupitre.store") / "migrations") as folder:
        config = _config(folder, name, target)
        behind = current(url) != ScriptDirectory.from_config(config).get_current_head()
        if behind:
            command.upgrade(config, "head")
    _seed(name, target)
    if behind and target.get_backend_name() == "sqlite" and target.database:
        Path(target.database).chmod(0o600)
    return behind


def current(url: str) -> str | None:
    """The revision of the database, None when it was never made."""
    engine = create_engine(_driver_url(url))
    try:
        with engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        engine.dispose()


def head(name: str) -> str | None:
    """The newest revision of the database ``name``."""
    with as_file(files("pupitre.store") / "migrations") as folder:
        return ScriptDirectory.from_config(_config(folder, name, make_url("sqlite://"))).get_current_head()


def _driver_url(url: str) -> URL:
    parsed = make_url(url)
    try:
        return parsed.set(drivername=_DRIVERS[parsed.get_backend_name()])
    except KeyError:
        raise SetupError(f"{parsed.get_backend_name()} is not a database that Pupitre knows.", "Use sqlite.") from None


def _config(folder: Path, name: str, url: URL) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("version_locations", str(folder / "versions" / name))
    config.set_main_option("path_separator", "os")
    config.set_main_option("pupitre_database", name)
    config.set_main_option("sqlalchemy.url", url.render_as_string(hide_password=False).replace("%", "%%"))
    return config


def _seed(name: str, url: URL) -> None:
    """Counters start at nought."""
    engine = create_engine(url)
    for table in ("counter", "epochs"):
        found = DATABASES[name].tables.get(table)
        # Whoever else upgrades at this moment may write the row first: then it is there, which is all we want.
        with suppress(IntegrityError), engine.begin() as connection:
            if found is not None and connection.execute(select(found.c.id)).first() is None:
                connection.execute(insert(found).values(id=1, value=0))
    engine.dispose()
