"""A state machine as one table: state -> event -> state.

What is not in the table is refused with `ForbiddenTransition`; nothing else
decides a next state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from pupitre.errors import ForbiddenTransition

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Machine(Generic[S, E]):
    """``table[state][event]`` is the next state; a state without events is final."""

    name: str
    initial: S
    table: Mapping[S, Mapping[E, S]]

    def next(self, state: S, event: E) -> S:
        """The state after ``event``. Raises `ForbiddenTransition`."""
        try:
            return self.table[state][event]
        except KeyError:
            raise ForbiddenTransition(f"a {self.name} that is {state} cannot take '{event}'") from None

    def allows(self, state: S, event: E) -> bool:
        return event in self.table[state]

    def is_final(self, state: S) -> bool:
        return not self.table[state]

    def mermaid(self) -> str:
        """The table as a Mermaid state diagram, for docs/design/states.md."""
        lines = ["stateDiagram-v2", f"    [*] --> {self.initial}"]
        for state, row in self.table.items():
            lines += [f"    {state} --> {after}: {event}" for event, after in row.items()]
            if not row:
                lines.append(f"    {state} --> [*]")
        return "\n".join(lines)
