"""A simulated host's guests outlive its process, however it ends."""

from pathlib import Path

import pytest

from pupitre.host.hypervisor.port import Guest, GuestState, SeenGuest
from pupitre.host.simulation.guest_log import Ledger, Line, ledger_path
from pupitre.host.simulation.hypervisor import SimulatedHypervisor
from tests.rigs.hypervisor_backends import SPEC

pytestmark = pytest.mark.anyio
A, B = "01900000-0000-7000-8000-00000000000a", "01900000-0000-7000-8000-00000000000b"


def test_what_has_ended_does_not_run(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "guests.log")
    assert ledger.running() == {}
    ledger.write("run", A, 1)
    ledger.write("run", B, 1)
    ledger.write("end", A, 1)
    ledger.write("run", A, 2)
    ledger.write("end", B, 1)
    assert ledger.running() == {A: 2}


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "guests.log"
    ledger = Ledger(path)
    ledger.write("run", A, 1)
    with path.open("a") as file:
        file.write(f"end {A}")
    assert list(ledger.lines()) == [Line("run", A, 1)]


async def test_the_next_process_finds_the_guests(tmp_path: Path) -> None:
    first = SimulatedHypervisor.named("prompt", tmp_path / "serial")
    await first.open()
    await first.ensure_running(Guest(A, 3, SPEC, tmp_path / "disk"))
    await first.ensure_running(Guest(B, 1, SPEC, tmp_path / "disk"))
    await first.ensure_gone(B)
    second = SimulatedHypervisor.named("prompt", tmp_path / "serial")
    await second.open()
    assert await second.guests() == {A: SeenGuest(A, 3, GuestState.RUNNING)}
    await second.ensure_running(Guest(A, 3, SPEC, tmp_path / "disk"))
    await second.ensure_gone(A)
    assert [line.happened for line in Ledger(ledger_path(tmp_path)).lines()] == ["run", "run", "end", "end"]
    await first.close()
    await second.close()
