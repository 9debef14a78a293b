"""Draws the state tables of `pupitre.domain` into docs/design/states.md: ``python scripts/diagrams.py``."""

import re
from pathlib import Path
from typing import Any

from pupitre.domain.command import COMMAND_LIFE
from pupitre.domain.desktop import DESKTOP_LIFE
from pupitre.domain.host import HOST_LIFE
from pupitre.domain.state_machine import Machine

MACHINES: dict[str, Machine[Any, Any]] = {machine.name: machine for machine in (COMMAND_LIFE, DESKTOP_LIFE, HOST_LIFE)}


def redraw(page: str) -> str:
    """``page`` with the diagram of each machine between its markers."""
    for name, machine in MACHINES.items():
        page = re.sub(
            rf"(<!-- state:{name} -->\n).*?(<!-- /state -->)", rf"\1{_fenced(machine)}\2", page, flags=re.DOTALL
        )
    return page


def _fenced(machine: Machine[Any, Any]) -> str:
    return f"```mermaid\n{machine.mermaid()}\n```\n"


if __name__ == "__main__":
    states = Path(__file__).parents[1] / "docs/design/states.md"
    states.write_text(redraw(states.read_text()))
