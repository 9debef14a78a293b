"""SQLAlchemy's statements in the words of one database, and its answers as rows.

SQLAlchemy writes the SQL; the driver itself sends it, because between the two SQLAlchemy's
asyncio layer costs several times what driver and server do (ARCHITECTURE.md has the figures).
A statement that is kept (at module level, with `bindparam` for what changes) is written
once; one that is made for one call is written for it.
"""

import re
from collections import namedtuple
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Boolean, Delete, Dialect, Executable, Insert, Select, TupleType, Update
from sqlalchemy.schema import ExecutableDDLElement

Values = Mapping[str, Any]
_LIST = re.compile(r"(NOT )?IN \(__\[POSTCOMPILE_([^\]]+)\]\)")
_PLACE = re.compile(r"\$\d+::[A-Z]+(?: PRECISION)?")
_ONE_ROW = re.compile(rf"VALUES \(((?:{_PLACE.pattern}(?:, )?)+)\)")
_NOTHING = "SELECT 1 FROM (SELECT 1) AS empty WHERE 1 <> 1"


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


@dataclass(slots=True)
class Prepared:
    """``text`` is sent with `arguments`; ``returns``: it answers with rows.

    Values of ``lists`` stand in the text one by one, where the database takes no list as one value; ``truths`` are
    places in a row at which it holds a number for true or false.
    """

    text: str
    order: tuple[str, ...]
    returns: bool
    lists: frozenset[str]
    names: tuple[str, ...]
    truths: tuple[int, ...]
    defaults: dict[str, Any] = field(default_factory=dict)
    text_of_many: str | None = None
    """The same for a list of each value, where the database takes lists and the statement changes row by row."""

    def arguments(self, values: Values) -> list[Any]:
        """In the order of ``text``."""
        held = {**self.defaults, **values}
        if not self.lists:
            return [held[name] for name in self.order]
        found: list[Any] = []
        for name in self.order:
            found.extend(held[name]) if name in self.lists else found.append(held[name])
        return found

    def expanded(self, values: Values, mark: str) -> str:
        """``text`` with a ``mark`` for each value of each list."""
        if not self.lists:
            return self.text
        held = {**self.defaults, **values}

        def marks(found: re.Match[str]) -> str:
            return f"{found[1] or ''}IN ({', '.join([mark] * len(held[found[2]])) or _NOTHING})"

        return _LIST.sub(marks, self.text)

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
    """The statements of one kind of database. ``arrays``: it takes a list as one value."""

    def __init__(self, dialect: Dialect, *, arrays: bool) -> None:
        self.dialect = dialect
        self._arrays = arrays
        self._kept: WeakKeyDictionary[Executable, dict[tuple[str, ...], Prepared]] = WeakKeyDictionary()

    def prepare(self, statement: Executable, values: Values) -> Prepared:
        """``statement`` for values with these names."""
        forms = self._kept.get(statement)
        if forms is None:
            forms = self._kept[statement] = {}
        names = tuple(values)
        if (found := forms.get(names)) is None:
            found = forms[names] = self._prepare(statement, names)
        return found

    def _prepare(self, statement: Any, names: tuple[str, ...]) -> Prepared:
        if isinstance(statement, ExecutableDDLElement):
            text = str(statement.compile(dialect=self.dialect))
            return Prepared(text, (), False, frozenset(), (), ())
        is_change = isinstance(statement, Insert | Update | Delete)
        options: dict[str, Any] = {"column_keys": names} if is_change and names else {}
        compiled: Any = statement.compile(dialect=self.dialect, **options)
        if any(isinstance(bind.type, TupleType) for bind in compiled.binds.values()):
            options["compile_kwargs"] = {"render_postcompile": True}
            compiled = statement.compile(dialect=self.dialect, **options)
        text, order, lists = compiled.string, tuple(compiled.positiontup or ()), set[str]()
        if self._arrays:
            text, order = self._with_arrays(compiled)
        else:
            lists.update(found[1] for found in _LIST.findall(text))
        columns = list(statement.exported_columns) if isinstance(statement, Insert | Update | Delete | Select) else []
        return Prepared(
            text=text,
            order=order,
            returns=bool(columns) or not is_change,
            lists=frozenset(lists),
            names=tuple(str(column.key) for column in columns),
            truths=self._truths(columns),
            defaults=dict(compiled.params),
            text_of_many=_of_many(text) if self._arrays else None,
        )

    def _with_arrays(self, compiled: Any) -> tuple[str, tuple[str, ...]]:
        """``IN`` and ``NOT IN`` as comparisons with one array, numbered after the other values."""
        lists: list[str] = []
        listed = {name for _, name in _LIST.findall(compiled.string)}
        single = [name for name in compiled.positiontup or () if name not in listed]

        def array(found: re.Match[str]) -> str:
            if found[2] not in lists:
                lists.append(found[2])
            kind = compiled.binds[found[2]].type.compile(dialect=self.dialect).partition("(")[0]
            how = "<> ALL" if found[1] else "= ANY"
            return f"{how} (${len(single) + lists.index(found[2]) + 1}::{kind}[])"

        text = _LIST.sub(array, compiled.string)
        return text, (*single, *lists)

    def _truths(self, columns: Sequence[Any]) -> tuple[int, ...]:
        if self.dialect.supports_native_boolean:
            return ()
        return tuple(place for place, column in enumerate(columns) if isinstance(column.type, Boolean))


def _of_many(text: str) -> str | None:
    """One change of many rows: to the server, a row of one statement costs a third of a statement for each row."""
    if text.startswith("UPDATE "):
        return _update_of_many(text)
    if (row := _ONE_ROW.search(text)) is None:
        return None
    lists = _PLACE.sub(lambda place: f"{place[0]}[]", row[1])
    return "".join((text[: row.start()], "SELECT * FROM unnest(", lists, ")", text[row.end() :]))


def _update_of_many(text: str) -> str | None:
    """Each value is the column of a table ``many``, which has a row for each row that is to change."""
    changes, where, which = text.partition(" WHERE ")
    places = sorted(set(_PLACE.findall(text)), key=lambda place: int(place[1:].partition(":")[0]))
    if not where or " RETURNING " in text or "[]" in text:
        return None
    changes, which = (_PLACE.sub(lambda place: _many(place[0]), part) for part in (changes, which))
    lists = ", ".join(f"{place}[]" for place in places)
    return f"{changes} FROM unnest({lists}) AS many({', '.join(map(_column, places))}) WHERE {which}"


def _column(place: str) -> str:
    return "v" + place[1:].partition(":")[0]


def _many(place: str) -> str:
    return f"many.{_column(place)}"


@lru_cache(maxsize=1000)
def _row_type(names: tuple[str, ...]) -> Any:
    return namedtuple("Row", names, rename=True)
