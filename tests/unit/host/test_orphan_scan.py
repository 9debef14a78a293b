"""Strays on a host: found while everything runs, settled, and said in the audit log."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.desktop import DesktopState
from pupitre.host.hypervisor.port import Guest, GuestState, SeenGuest
from pupitre.host.journal import Record
from pupitre.host.orphan_scan import OrphanScan, compare
from pupitre.images.store import ImageStore
from pupitre.store.audit import CLUSTER, AuditEntry, AuditLog
from tests.rigs.command_writer import new_id
from tests.rigs.local_cluster import IMAGE, HostRig, LocalCluster, eventually, local_cluster

pytestmark = pytest.mark.anyio

RECORD = Record("d", 1, DesktopState.RUNNING, DesktopState.RUNNING)
GUEST = SeenGuest("d", 1, GuestState.RUNNING)
IDS = st.sets(st.sampled_from("abcdef"))


@given(IDS, IDS, IDS, IDS)
def test_guest_with_record_before_or_after_is_no_orphan(
    before: set[str], after: set[str], running: set[str], overlays: set[str]
) -> None:
    """Nothing with a record on either side of the look is a stray."""

    def records(ids: set[str]) -> dict[str, Record]:
        return {id: replace(RECORD, desktop=id) for id in ids}

    guests = {id: replace(GUEST, desktop=id) for id in running}
    found = compare(records(before), records(after), guests, overlays)
    known = before | after
    assert {guest.desktop for guest in found.guests} == running - known
    assert found.overlays == overlays - known - running
    assert {record.desktop for record in found.missing} == (before & after) - running


def test_only_a_desktop_that_runs_is_missing() -> None:
    def missing(record: Record, guest: SeenGuest | None = None, *, before: Record | None = None) -> bool:
        guests = {"d": guest} if guest else {}
        return bool(compare({"d": before or record}, {"d": record}, guests, set()).missing)

    assert missing(RECORD)
    assert missing(RECORD, replace(GUEST, boot=2))
    assert missing(RECORD, replace(GUEST, state=GuestState.STOPPED))
    assert not missing(RECORD, GUEST)
    assert not missing(RECORD, replace(GUEST, state=GuestState.STARTING))
    assert not missing(replace(RECORD, wanted=DesktopState.GONE))
    for state in set(DesktopState) - {DesktopState.RUNNING}:
        assert not missing(replace(RECORD, state=state))
    assert not missing(RECORD, before=replace(RECORD, state=DesktopState.BOOTING))  # it began meanwhile


async def said(here: LocalCluster, action: str, subject: str) -> list[AuditEntry]:
    """What the audit log says that the cluster did with ``subject``, once it says anything."""
    log = AuditLog(here.commands.database)

    async def found() -> list[AuditEntry]:
        rows = await log.search(actor=CLUSTER, action=action)
        return [row for row in rows if row.subject == subject]

    async def any_found() -> bool:
        return bool(await found())

    await eventually(any_found)
    return await found()


def sweeping(host: HostRig) -> OrphanScan:
    """A second sweep beside the agent's own, which looks when the test wants it to."""
    agent = host.agent
    return OrphanScan(
        host.hypervisor, host.overlays, host.journal, put=agent._put, found=agent._reporter.found, every=1000
    )


async def test_strays_are_settled_while_everything_runs_and_said_once(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        mine = await here.running()
        sweep = sweeping(host)
        guest, overlay = new_id(), new_id()
        spec = ImageStore(here.settings.images_dir).spec(IMAGE)
        disk = await host.overlays.ensure(guest, None, None, 1)
        await host.hypervisor.ensure_running(Guest(guest, 1, spec, disk))
        await host.overlays.ensure(overlay, None, None, 1)

        await sweep.look()

        async def only_mine() -> bool:
            return set(await host.hypervisor.guests()) == {mine.desktop} == host.overlays.all()

        await eventually(only_mine)
        (removed,) = await said(here, "guest_removed", guest)
        assert (removed.actor_name, removed.outcome) == (CLUSTER, "")
        (swept,) = await said(here, "overlay_removed", overlay)
        assert swept.detail.startswith("host-1: A disk that belonged to no desktop")
        await eventually(lambda: guest not in host.journal.records)
        await sweep.look()
        host.agent.report_all()
        await here.running()
        assert len(await said(here, "guest_removed", guest)) == 1
        assert len(await said(here, "overlay_removed", overlay)) == 1


async def test_vanished_guest_fails_desktop_at_second_scan(tmp_path: Path) -> None:
    """A desktop whose guest vanished without a word has failed at the second look."""
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        sweep = sweeping(host)
        host.hypervisor._guests.pop(str(boot.desktop))  # as if its process and its event were lost
        await sweep.look()
        assert host.journal.records[str(boot.desktop)].state is DesktopState.RUNNING
        await sweep.look()
        failed = await here.wait_desktop(boot, DesktopState.FAILED)
        assert failed.reason == "The desktop's guest vanished from its host."
        (noted,) = await said(here, "desktop_failed", str(boot.desktop))
        assert noted.detail == failed.reason


async def test_lost_host_is_audited_though_endpoint_was_away(tmp_path: Path) -> None:
    """A lost host and its desktops are in the audit log even if the endpoint was away."""
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        await here.stop("endpoint")
        await host.crash()
        await here.start_endpoint()
        (noted,) = await said(here, "host_lost", "host-1")
        assert noted.detail == "It does not answer; its desktops are lost until it does."
        (lost,) = await said(here, "desktop_lost", str(boot.desktop))
        assert lost.detail == "host-1 does not answer"
        await host.start()
        await here.wait_desktop(boot, DesktopState.RUNNING)
