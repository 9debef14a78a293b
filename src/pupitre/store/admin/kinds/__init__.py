"""Administration of each kind of database: one module for all that is special to it."""

from collections.abc import Mapping

from pupitre.store.admin.kinds.base import DatabaseKind
from pupitre.store.admin.kinds.mariadb import MARIADB
from pupitre.store.admin.kinds.postgresql import POSTGRESQL
from pupitre.store.admin.kinds.sqlite import SQLITE

KINDS: Mapping[str, DatabaseKind] = {kind.name: kind for kind in (SQLITE, POSTGRESQL, MARIADB)}
