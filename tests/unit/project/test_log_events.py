"""Log lines: each has an event name that stays, in snake_case, so that an operator can search for it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pupitre

SOURCES = Path(pupitre.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def calls() -> Iterator[tuple[Path, ast.Call]]:
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and "log" in node.func.value.id
            ):
                yield path, node


def test_each_log_line_has_an_event_name() -> None:
    wrong, count = [], 0
    for path, call in calls():
        count += 1
        assert isinstance(call.func, ast.Attribute)
        assert isinstance(call.func.value, ast.Name)
        event = call.args[0]
        named = isinstance(event, ast.Constant) and re.fullmatch(r"[a-z]+(_[a-z]+)*", str(event.value))
        chosen = isinstance(event, ast.Name) and event.id == "event"
        if call.func.value.id != "log" or not (named or chosen) or len(call.args) > 1:
            wrong.append(f"{path.relative_to(SOURCES)}:{call.lineno}")
    assert not wrong
    assert count > 100
