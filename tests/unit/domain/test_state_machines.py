"""The state tables: reachable, complete, final where they end, and drawn in docs/design/states.md as they are."""

import ast
import re
from enum import StrEnum

import pytest
from scripts.diagrams import MACHINES, redraw

from pupitre.domain.command import COMMAND_LIFE, FINAL_STATES, CommandEvent, CommandState
from pupitre.domain.desktop import COUNTED_STATES, DESKTOP_LIFE, OPEN_STATES, DesktopEvent, DesktopState
from pupitre.domain.host import HOST_LIFE, HostEvent, HostState
from pupitre.domain.state_machine import Machine
from pupitre.errors import ForbiddenTransition
from tests import ROOT

LIVES = [
    (COMMAND_LIFE, CommandState, CommandEvent, {"succeeded", "failed", "timed_out", "cancelled"}),
    (DESKTOP_LIFE, DesktopState, DesktopEvent, {"gone"}),
    (HOST_LIFE, HostState, HostEvent, set()),
]
AnyMachine = Machine[StrEnum, StrEnum]


@pytest.mark.parametrize(("life", "states", "events", "final"), LIVES, ids=lambda value: getattr(value, "name", ""))
class TestEveryTable:
    def test_has_a_row_for_every_state_and_reaches_each(
        self, life: AnyMachine, states: type[StrEnum], events: type[StrEnum], final: set[str]
    ) -> None:
        assert set(life.table) == set(states)
        reached, frontier = {life.initial}, [life.initial]
        while frontier:
            for after in life.table[frontier.pop()].values():
                if after not in reached:
                    reached.add(after)
                    frontier.append(after)
        assert reached == set(states)

    def test_refuses_what_it_does_not_list(
        self, life: AnyMachine, states: type[StrEnum], events: type[StrEnum], final: set[str]
    ) -> None:
        for state in states:
            for event in events:
                if life.allows(state, event):
                    assert life.next(state, event) is life.table[state][event]
                else:
                    with pytest.raises(ForbiddenTransition, match=f"that is {state} cannot take '{event}'"):
                        life.next(state, event)

    def test_uses_every_event_and_ends_where_it_says(
        self, life: AnyMachine, states: type[StrEnum], events: type[StrEnum], final: set[str]
    ) -> None:
        assert {event for row in life.table.values() for event in row} == set(events)
        assert {state.value for state in states if life.is_final(state)} == final

    def test_is_drawn(self, life: AnyMachine, states: type[StrEnum], events: type[StrEnum], final: set[str]) -> None:
        drawn = re.findall(r"^    (\w+) --> (\w+): (\w+)$", life.mermaid(), re.MULTILINE)
        assert sorted(drawn) == sorted(
            (str(state), str(after), str(event)) for state, row in life.table.items() for event, after in row.items()
        )


def test_every_event_of_a_command_leads_to_one_state() -> None:
    """`Commands.advance` is one UPDATE with one target, whatever state it leaves."""
    for event in CommandEvent:
        assert len({row[event] for row in COMMAND_LIFE.table.values() if event in row}) == 1


def test_what_counts_and_what_opens() -> None:
    assert frozenset({"succeeded", "failed", "timed_out", "cancelled"}) == FINAL_STATES
    assert OPEN_STATES <= COUNTED_STATES
    assert set(DesktopState) - COUNTED_STATES == {DesktopState.GONE, DesktopState.FAILED}


def test_the_architecture_page_shows_the_tables_as_they_are() -> None:
    page = (ROOT / "docs/design/states.md").read_text()
    for name in MACHINES:
        assert page.count(f"<!-- state:{name} -->") == 1
    assert redraw(page) == page, "Run: python scripts/diagrams.py"


# Where a state is given by name rather than by a table, and why that is right there.
ASSIGNED_BY_NAME = {
    "host/agent.py": "what this host sees, which is an event for the cluster's table",
    "host/journal.py": "what this host sees",
    "host/orphan_scan.py": "what this host sees",
    "scheduler/host_commands.py": "outcomes of commands as the journal keeps them",
    "scheduler/desktops.py": "wanted, not seen; outcomes of commands as the journal keeps them",
    "scheduler/commands.py": "outcomes of commands as the journal keeps them",
    "cluster/server.py": "outcomes of commands as the journal keeps them",
    "store/status.py": "what a full set of pages does not name is gone",
    "portal/desktops.py": "what is shown before the first row of a desktop has come",
}


def test_nothing_else_gives_a_state_by_name() -> None:
    """A state appears by name in comparisons and collections; ``state=X.Y`` is for the tables' users."""
    found: set[str] = set()
    for path in sorted((ROOT / "src/pupitre").rglob("*.py")):
        name = str(path.relative_to(ROOT / "src/pupitre"))
        if name.startswith(("domain/", "bench/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.keyword)
                and node.arg in {"state", "wanted", "outcome"}
                and _names_a_state(node.value)
            ):
                found.add(name)
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "seen"
                and any(map(_names_a_state, node.args))
            ):
                found.add(name)
    assert found <= ASSIGNED_BY_NAME.keys(), found - ASSIGNED_BY_NAME.keys()


def _names_a_state(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"CommandState", "DesktopState", "HostState"}
        and (node.value.id, node.attr) != ("CommandState", "QUEUED")  # a new command, where its table begins
    )
