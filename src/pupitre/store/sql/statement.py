"""SQLAlchemy's statements in the words of one database, and its answers as rows.

SQLAlchemy writes the SQL; the driver itself sends it, because between the two SQLAlchemy's
asyncio layer costs several times what driver and server do (docs/design/databases.md has the figures).
A statement that is kept (at module level, with `bindparam` for what changes) is written
once; one that is made for one call is written for it.
"""

from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Boolean, Column, Delete, Dialect, Executable, Insert, Select, Update
from sqlalchemy.schema import ExecutableDDLElement

Values = Mapping[str, Any]
MOST_FORMS = 256
"""Texts kept of one statement, one for each length of its lists."""


class Result(list[Any]):
    """The rows of an answer, each a named tuple; ``rowcount`` is how many a change has touched."""

    def __init__(self, rows: Iterable[Any] = (), rowcount: int = -1) -> None:
        super().__init__(rows)
        self.rowcount = rowcount

    def first(self) -> Any:
        """The first row, None of none."""
        return self[0] if self else None

    def one_or_none(self) -> Any:
        """The only row there may be."""
        if len(self) > 1:
            raise AssertionError(f"{len(self)} rows where one may be")
        return self.first()

    def scalar(self) -> Any:
        """The first row's first value, None of none."""
        return self[0][0] if self else None

    def scalar_one(self) -> Any:
        """The one value of the one row."""
        [(value,)] = self
        return value

    def scalars(self) -> list[Any]:
        """The first value of every row."""
        return [row[0] for row in self]


@dataclass(frozen=True, slots=True)
class Form:
    """Text for lists of certain lengths. ``places`` name each argument; those of a list with an index, else None."""

    text: str
    places: tuple[tuple[str, int | None], ...]


@dataclass(slots=True)
class Prepared:
    """A statement as it is sent. ``returns``: it answers with rows.

    Each value of ``lists`` is an argument of its own; ``truths`` are places in a row at which the database holds a
    number for true or false.
    """

    compiled: Any
    text: str
    order: tuple[str, ...] = ()
    returns: bool = False
    lists: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    truths: tuple[int, ...] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    _forms: dict[tuple[int, ...], Form] = field(default_factory=dict)

    def form(self, values: Values) -> tuple[str, list[Any]]:
        """The text for these values, and its arguments."""
        given = {**self.defaults, **values}
        if not self.lists:
            return self.text, [given[name] for name in self.order]
        flat = {name: _flat(given[name]) for name in self.lists}
        lengths = tuple(len(flat[name]) for name in self.lists)
        if (form := self._forms.get(lengths)) is None:
            if len(self._forms) >= MOST_FORMS:
                self._forms.clear()
            form = self._forms[lengths] = self._expand(given)
        return form.text, [given[name] if at is None else flat[name][at] for name, at in form.places]

    def arguments(self, values: Values) -> list[Any]:
        """Arguments of a statement without lists."""
        given = {**self.defaults, **values}
        return [given[name] for name in self.order]

    def _expand(self, given: Values) -> Form:
        state = self.compiled.construct_expanded_state(dict(given), escape_names=False)
        place = {
            name: (listed, at) for listed, names in state.parameter_expansion.items() for at, name in enumerate(names)
        }
        return Form(state.statement, tuple(place.get(name, (name, None)) for name in state.positiontup))

    def result(self, rows: Iterable[Iterable[Any]], names: Iterable[str] = (), rowcount: int = -1) -> Result:
        """``names`` are the columns' where the statement does not name them."""
        make = _row_type(self.names or tuple(names))._make
        if not self.truths:
            return Result(map(make, rows), rowcount)
        processed = []
        for row in rows:
            values = list(row)
            for place in self.truths:
                values[place] = None if values[place] is None else bool(values[place])
            processed.append(make(values))
        return Result(processed, rowcount)


class Statements:
    """The statements of one kind of database, each compiled once for each set of names."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._kept: WeakKeyDictionary[Executable, dict[tuple[str, ...], Prepared]] = WeakKeyDictionary()

    def prepare(self, statement: Executable, values: Values) -> Prepared:
        """``statement`` for values with these names."""
        forms = self._kept.get(statement)
        if forms is None:
            forms = self._kept[statement] = {}
        names = tuple(values)
        if (found := forms.get(names)) is None:
            found = forms[names] = self._compile(statement, names)
        return found

    def _compile(self, statement: Any, names: tuple[str, ...]) -> Prepared:
        if isinstance(statement, ExecutableDDLElement):
            return Prepared(None, str(statement.compile(dialect=self.dialect)))
        is_change = isinstance(statement, Insert | Update | Delete)
        options: dict[str, Any] = {"column_keys": names} if is_change and names else {}
        compiled: Any = statement.compile(dialect=self.dialect, **options)
        columns: list[Any] = []
        if is_change:
            # Not `exported_columns`: it is kept, also in a copy to which RETURNING is added later.
            columns = list(statement._returning)
        elif isinstance(statement, Select):
            columns = list(statement.exported_columns)
        return Prepared(
            compiled,
            compiled.string,
            order=tuple(compiled.positiontup or ()),
            returns=bool(columns) or not is_change,
            lists=tuple(sorted(compiled.bind_names[bind] for bind in compiled.post_compile_params)),
            names=tuple(str(column.key) for column in columns),
            truths=self._truths(columns),
            defaults=dict(compiled.params),
        )

    def _truths(self, columns: Sequence[Any]) -> tuple[int, ...]:
        if self.dialect.supports_native_boolean:
            return ()
        return tuple(place for place, column in enumerate(columns) if isinstance(column.type, Boolean))


def _flat(values: Iterable[Any]) -> list[Any]:
    """A list of values, or of tuples for a key of several columns, as one list."""
    found: list[Any] = []
    for value in values:
        found.extend(value) if isinstance(value, tuple) else found.append(value)
    return found


@lru_cache
def returning(change: Update, column: Column[Any]) -> Any:
    """``change``, which answers with ``column`` as it is after it."""
    return change.returning(column)


@lru_cache(maxsize=1000)
def _row_type(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names, rename=True)
