"""A simulated host's guests outlive its process, however it ends."""

from pathlib import Path

import pytest

from pupitre.host.hypervisor.port import Guest, GuestState, SeenGuest
from pupitre.host.simulation.guest_log import GuestLogEntry, SimulatedGuestLog, guest_log_path
from pupitre.host.simulation.hypervisor import SimulatedHypervisor
from tests.rigs.hypervisor_backends import SPEC

pytestmark = pytest.mark.anyio
A, B = "01900000-0000-7000-8000-00000000000a", "01900000-0000-7000-8000-00000000000b"


def test_what_has_ended_does_not_run(tmp_path: Path) -> None:
    guest_log = SimulatedGuestLog(tmp_path / "guests.log")
    assert guest_log.running() == {}
    guest_log.write("run", A, 1)
    guest_log.write("run", B, 1)
    guest_log.write("end", A, 1)
    guest_log.write("run", A, 2)
    guest_log.write("end", B, 1)
    assert guest_log.running() == {A: 2}


def test_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "guests.log"
    guest_log = SimulatedGuestLog(path)
    guest_log.write("run", A, 1)
    with path.open("a") as file:
        file.write(f"end {A}")
    assert list(guest_log.entries()) == [GuestLogEntry("run", A, 1)]


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
    assert [line.kind for line in SimulatedGuestLog(guest_log_path(tmp_path)).entries()] == [
        "run",
        "run",
        "end",
        "end",
    ]
    await first.close()
    await second.close()
