"""What a user sees of a desktop, from its row and its commands alone."""

from dataclasses import replace

import pytest

from pupitre.domain.command import BootDesktop, Command, CommandState, DestroyDesktop, Fault
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.portal.desktops import SeenDesktop, seen
from pupitre.timings import FAILURE_SHOWN_MS, ROW_EXPECTED_MS

NOW = 1_800_000_000_000
BOOT = Command("b", "u", BootDesktop("d", "tiny"), CommandState.QUEUED, NOW - 5000, NOW + 60_000)
STOP = Command("s", "u", DestroyDesktop("d"), CommandState.QUEUED, NOW - 1000, NOW + 60_000)
ROW = Desktop("d", "u", "tiny", "host-1", DesktopState.RUNNING, NOW - 3000, NOW - 5000, boot=1)
FAULT = Fault("VM_BOOT_FAILURE", "The disk is full.")


def ended(command: Command, state: CommandState, *, ago: int = 500, fault: Fault | None = None) -> Command:
    return replace(command, state=state, finished=NOW - ago, fault=fault)


def row(state: DesktopState) -> Desktop:
    return replace(ROW, state=state)


def look(found: Desktop | None, *commands: Command) -> SeenDesktop:
    result = seen(found, list(commands), now=NOW)
    assert result
    return result


def test_neither_row_nor_command() -> None:
    assert seen(None, [], now=NOW) is None
    assert seen(None, [STOP], now=NOW) is None


@pytest.mark.parametrize("state", [CommandState.QUEUED, CommandState.SENT, CommandState.ACCEPTED])
def test_a_wish_is_seen_before_the_cluster_speaks_of_it(state: CommandState) -> None:
    found = look(None, replace(BOOT, state=state))
    assert (found.desktop.state, found.desktop.since, found.shown) == (DesktopState.REQUESTED, BOOT.created, True)


@pytest.mark.parametrize("state", list(DesktopState))
def test_the_cluster_is_believed(state: DesktopState) -> None:
    found = look(row(state), ended(BOOT, CommandState.SUCCEEDED))
    assert found.desktop.state is state
    assert found.shown is (state is not DesktopState.GONE)


def test_successful_boot_may_be_ahead_of_its_row() -> None:
    """A boot that succeeded may be ahead of its row for a while."""
    assert look(None, ended(BOOT, CommandState.SUCCEEDED)).desktop.state is DesktopState.REQUESTED
    late = look(None, ended(BOOT, CommandState.SUCCEEDED, ago=ROW_EXPECTED_MS + 1))
    assert (late.desktop.state, late.shown) == (DesktopState.GONE, False)


@pytest.mark.parametrize("found", [None, row(DesktopState.GONE), row(DesktopState.FAILED)])
@pytest.mark.parametrize("state", [CommandState.FAILED, CommandState.TIMED_OUT, CommandState.CANCELLED])
def test_a_boot_that_failed_stays_in_sight_with_its_reason(found: Desktop | None, state: CommandState) -> None:
    failed = look(found, ended(BOOT, state, fault=FAULT))
    assert (failed.desktop.state, failed.desktop.reason) == (DesktopState.FAILED, FAULT.reason)
    assert failed.shown
    assert failed.boot_fault == FAULT


def test_a_failure_is_out_of_sight_when_dismissed_or_old() -> None:
    boot = ended(BOOT, CommandState.FAILED, fault=FAULT)
    assert not look(None, replace(boot, dismissed=True)).shown
    old = ended(BOOT, CommandState.FAILED, ago=FAILURE_SHOWN_MS + 1, fault=FAULT)
    assert not look(None, old).shown


def test_a_stop_is_seen_at_once() -> None:
    boot = ended(BOOT, CommandState.SUCCEEDED)
    assert look(ROW, boot, STOP).desktop.state is DesktopState.STOPPING
    assert look(None, BOOT, STOP).desktop.state is DesktopState.STOPPING
    stopping = row(DesktopState.STOPPING)
    assert look(stopping, boot, STOP).desktop == stopping, "the cluster's own word keeps its time"
    assert look(row(DesktopState.GONE), boot, STOP).desktop.state is DesktopState.GONE


def test_a_stop_of_what_never_came_to_be_ends_it() -> None:
    found = look(None, ended(BOOT, CommandState.FAILED, fault=FAULT), ended(STOP, CommandState.SUCCEEDED))
    assert (found.desktop.state, found.shown) == (DesktopState.GONE, False)


def test_a_stopped_boot_is_no_failure() -> None:
    found = look(row(DesktopState.GONE), ended(BOOT, CommandState.FAILED, fault=FAULT), STOP)
    assert not found.shown


def test_a_stop_that_failed_says_why_and_the_desktop_runs_on() -> None:
    fault = Fault("DOMAIN_DESTRUCTION_ERROR", "The host did not answer.")
    found = look(ROW, ended(BOOT, CommandState.SUCCEEDED), ended(STOP, CommandState.FAILED, fault=fault))
    assert (found.desktop.state, found.fault) == (DesktopState.RUNNING, fault)
